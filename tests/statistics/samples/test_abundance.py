"""Differential abundance between samples: the fit against a minimiser, p-values under the null, neighbourhoods."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize
from scipy.special import expit

from sccvae.statistics.samples import abundance
from sccvae.statistics.samples.neighbourhoods import neighbourhoods

BASE = np.array([0.3, 0.25, 0.15, 0.1, 0.08, 0.06, 0.04, 0.02])


def design_of(n_each: int) -> np.ndarray:
    return np.c_[np.ones(2 * n_each), np.repeat([0.0, 1.0], n_each)]


def counts_of(
    rng: np.random.Generator, n_each: int, tau: float, *, lfc: float = 0.0, kind: int = 3, depth: float = 1500
) -> np.ndarray:
    """Cells of each kind and sample; log fractions vary between samples, more for some kinds; one kind may change."""
    n_samples = 2 * n_each
    sizes = rng.lognormal(np.log(depth), 0.5, n_samples).astype(int) + 30
    spread = tau * rng.uniform(0.6, 1.4, (len(BASE), 1))
    log = np.log(BASE)[:, None] + spread * rng.standard_normal((len(BASE), n_samples))
    log[kind, n_each:] += lfc * np.log(2)
    fractions = np.exp(log) / np.exp(log).sum(0)
    return np.array([rng.multinomial(sizes[s], fractions[:, s]) for s in range(n_samples)]).T.astype(float)


def totals_of(n: np.ndarray) -> np.ndarray:
    return np.broadcast_to(n.sum(0), n.shape)


@pytest.mark.parametrize("tau", [0.0, 0.05, 0.4, 2.0])
def test_the_fit_minimises_the_deviance(tau):
    rng = np.random.default_rng(0)
    n = counts_of(rng, 3, 0.5, depth=60)
    n[7, 3:] = 0  # the second condition lacks the last kind
    totals, design, offset = totals_of(n), design_of(3), rng.normal(0, 0.3, 6)
    fit = abundance._fit(n, totals, design, offset, tau)
    found = abundance._deviance(n, totals, fit, tau)

    def deviance(values, kind):
        eta = design @ values[:2] + offset
        theta = values[2:] if tau else eta
        least = -stats.binom.logpmf(n[kind], totals[kind], n[kind] / totals[kind])
        binomial = -stats.binom.logpmf(n[kind], totals[kind], expit(theta)) - least
        return 2 * binomial.sum() + (((theta - eta) / tau) ** 2).sum() if tau else 2 * binomial.sum()

    for kind in range(7):
        start = np.r_[fit.beta[kind], fit.theta[kind]] + 0.1
        best = minimize(deviance, start, (kind,), method="BFGS", options={"gtol": 1e-8})
        np.testing.assert_allclose(found[kind], best.fun, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(fit.beta[kind], best.x[:2], atol=1e-3)
    assert np.isfinite(found).all()


def test_with_many_cells_it_is_the_t_test_of_log_odds():
    rng = np.random.default_rng(1)
    log_odds = -2 + 0.4 * rng.standard_normal((2, 8))
    totals = np.full((2, 8), 1e7)
    n = np.rint(totals * expit(log_odds))
    found = abundance.effects_of(n, totals, design_of(4))
    expected = stats.ttest_ind(log_odds[:, 4:], log_odds[:, :4], axis=1)  # two kinds are not moderated
    np.testing.assert_allclose(found.pval, expected.pvalue, rtol=2e-3)
    np.testing.assert_allclose(found.lfc, (log_odds[:, 4:].mean(1) - log_odds[:, :4].mean(1)) / np.log(2), rtol=1e-3)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose(found.lower, interval.low / np.log(2), rtol=5e-3)
    np.testing.assert_allclose(found.upper, interval.high / np.log(2), rtol=5e-3)


@pytest.mark.parametrize(("n_each", "tau"), [(3, 0.1), (3, 0.4), (5, 0.1), (8, 0.4)])
def test_p_values_are_uniform_without_an_effect(n_each, tau):
    rng, design = np.random.default_rng(2), design_of(n_each)
    n = [counts_of(rng, n_each, tau) for _ in range(120)]
    p = np.array([abundance.effects_of(one, totals_of(one), design).pval for one in n])
    assert 0.03 <= (p < 0.05).mean() <= 0.075
    assert (p < 0.01).mean() <= 0.02
    assert 0.4 <= (p < 0.5).mean() <= 0.6
    median = [abundance.median_offset(one, totals_of(one), design) for one in n]
    p = np.array([abundance.effects_of(o, totals_of(o), design, m).pval for o, m in zip(n, median, strict=True)])
    assert (p < 0.05).mean() <= 0.08


def test_a_change_is_found_with_its_size():
    rng, design = np.random.default_rng(3), design_of(4)
    found = []
    for _ in range(60):
        n = counts_of(rng, 4, 0.2, lfc=-1.0)
        found.append(abundance.effects_of(n, totals_of(n), design))
    assert np.mean([one.pval[3] < 0.05 for one in found]) > 0.9
    assert np.mean([one.lfc[3] for one in found]) == pytest.approx(-1, abs=0.1)
    inside = [one.lower[3] < -1.04 < one.upper[3] for one in found]  # log odds of a fraction of a tenth
    assert 0.85 <= np.mean(inside) <= 1


def test_an_interval_excludes_no_change_where_the_p_value_says_so():
    n = counts_of(np.random.default_rng(4), 4, 0.3, lfc=2, depth=80)
    n[5, :4] = 0
    for level in (0.5, 0.9, 0.95):
        found = abundance.effects_of(n, totals_of(n), design_of(4), level=level)
        assert np.isfinite(found).all()
        np.testing.assert_array_equal((found.lower > 0) | (found.upper < 0), found.pval < 1 - level)


def test_the_deviation_between_samples_is_estimated():
    rng = np.random.default_rng(5)
    for tau in (0.0, 0.3, 0.8):
        eta = rng.uniform(-5, -2, (400, 1)) + tau * rng.standard_normal((400, 8))
        totals = np.full(eta.shape, 2000.0)
        n = rng.binomial(2000, expit(eta)).astype(float)
        assert abundance.deviation_between_samples(n, totals, design_of(4)) == pytest.approx(tau, abs=0.06)


def test_variances_are_moderated_as_much_as_they_scatter_by_chance():
    rng = np.random.default_rng(6)
    alike = rng.chisquare(6, 500) / 6
    scale, df = abundance.moderated(alike, 6)
    assert df.min() > 60
    assert scale.std() < 0.2 * alike.std()
    varied = alike / (rng.chisquare(4, 500) / 4)
    _, df = abundance.moderated(varied, 6)
    assert 8.5 < np.median(df) < 12
    alike[17] = 60.0
    scale, df = abundance.moderated(alike, 6)
    assert df[17] < 12 < np.median(df)
    assert scale[17] > 25
    two = np.array([1.0, 4.0])
    np.testing.assert_array_equal(abundance.moderated(two, 4)[0], two)


def test_a_weighted_median_counts_values_as_often_as_their_weight():
    values = np.random.default_rng(10).standard_normal((3, 7))
    np.testing.assert_allclose(abundance._weighted_median(values, np.ones(7)), np.median(values, axis=1))
    weights = np.array([1, 1, 9, 1, 1, 1, 1])
    found = abundance._weighted_median(values, weights)
    np.testing.assert_allclose(found, values[:, 2], atol=0.35)


def test_adjusted_p_values_are_those_of_scipy_and_weights_count_hypotheses():
    p = np.random.default_rng(7).uniform(size=30) ** 2
    np.testing.assert_allclose(abundance.adjusted(p), stats.false_discovery_control(p))
    weights = np.random.default_rng(8).integers(1, 4, 30)
    repeated = stats.false_discovery_control(np.repeat(p, weights))
    np.testing.assert_allclose(abundance.adjusted(p, weights), repeated[np.cumsum(weights) - 1])


def test_neighbourhoods_are_the_nearest_cells():
    rng = np.random.default_rng(9)
    z, codes = rng.standard_normal((300, 3)), rng.integers(4, size=300)
    found = neighbourhoods(z, 40, 12, seed=1)
    assert 20 < len(found.cells) <= 40
    distances = np.linalg.norm(z[found.cells][:, None] - z, axis=2)
    for row, (members, reach) in enumerate(zip(found.members, found.reach, strict=True)):
        assert set(members) == set(np.argsort(distances[row])[:12])
        assert reach == pytest.approx(np.sort(distances[row])[11], rel=1e-5)
    np.testing.assert_array_equal(found.nearest, distances.argmin(0))
    expected = [np.bincount(codes[members], minlength=5) for members in found.members]
    np.testing.assert_array_equal(found.counts(codes, 5), expected)
    again, other = neighbourhoods(z, 40, 12, seed=1), neighbourhoods(z, 40, 12, seed=2)
    np.testing.assert_array_equal(again.cells, found.cells)
    assert not np.array_equal(other.cells, found.cells)
