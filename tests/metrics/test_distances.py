"""Scores by distance: brute force, closed forms, cases counted by hand, what perfect samples score, errors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist, pdist

from sccvae.metrics import distances
from sccvae.metrics.distances import mmd, path_log_density, precision_coverage, prior_fit, spurious

TWO_SAMPLES = [mmd, precision_coverage, spurious]
CODES = [prior_fit, path_log_density]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def same_value(a, b, **tolerance):
    return np.asarray(a) == pytest.approx(np.asarray(b), **tolerance)


# ------------------------------------------------------------------------------------------------------------------ MMD


def test_mmd_by_brute_force():
    x, y, h = normal(0, 13, 4), normal(1, 9, 4) + 0.5, 1.3

    def mean_kernel(a, b):
        same = a is b
        values = [
            np.exp(-np.sum((p - q) ** 2) / (2 * h**2))
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (same and i == j)
        ]
        return np.mean(values)

    expected = mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)
    assert mmd(x, y, bandwidth=h).value == pytest.approx(expected, rel=1e-12)
    assert mmd(y, x, bandwidth=h).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.7, 2.0])
def test_mmd_of_gaussians_in_closed_form(shift):
    """The mean of e^(-|x-y|^2 / 2h^2) for x - y ~ N(mu, 2 I) is (h^2 / (h^2+2))^(d/2) e^(-|mu|^2 / (2 (h^2+2)))."""
    d, h = 3, 1.5
    expected = 2 * (h**2 / (h**2 + 2)) ** (d / 2) * (1 - np.exp(-d * shift**2 / (2 * (h**2 + 2))))
    values = [
        mmd(normal([s, 0], 400, d), normal([s, 1], 300, d) + shift, bandwidth=h, n_permutations=1).value
        for s in range(20)
    ]
    error = np.std(values, ddof=1) / np.sqrt(20)
    assert abs(np.mean(values) - expected) < 4 * error
    assert error < 0.01
    assert min(values) < 0 or shift > 0  # unbiased: on either side of 0


def test_the_bandwidth_is_the_median_distance():
    x, y = normal(0, 30, 3), normal(1, 20, 3)
    assert same_value(mmd(x, y), mmd(x, y, bandwidth=np.median(pdist(np.vstack([x, y])))), rel=1e-9)


def test_the_p_value_of_one_distribution_is_uniform():
    p = np.array(
        [mmd(normal([s, 0], 30, 3), normal([s, 1], 40, 3), n_permutations=99, seed=s).p_value for s in range(80)]
    )
    assert 0.4 < p.mean() < 0.6
    assert 0.2 < p.std() < 0.38  # 0.29
    assert (p <= 0.1).mean() < 0.25


def test_the_p_value_of_two_distributions_is_the_least():
    assert mmd(normal(0, 100, 3), normal(1, 100, 3) + 1, n_permutations=99).p_value == 1 / 100


def test_the_p_value_counted_by_hand():
    """Of the 6 ways to label 4 cells, 2 part the near pairs: the given one and its mirror image, which is as large."""
    p = mmd([[0.0], [0.1]], [[5.0], [5.1]], n_permutations=5000).p_value
    assert p == pytest.approx(2 / 6, abs=0.03)


def test_mmd_of_the_same_cells():
    x = normal(0, 50, 3)
    assert mmd(x, x).value < 0
    assert mmd(x, x).p_value > 0.9
    with pytest.raises(ValueError, match=r"more than half of the pairs of cells have distance 0; .* pass bandwidth"):
        mmd(np.ones((5, 2)), np.ones((4, 2)))
    assert mmd(np.ones((5, 2)), np.ones((4, 2)), bandwidth=1.0) == (pytest.approx(0), 1)


# --------------------------------------------------------------------------------------------------- nearest neighbours


def brute_precision_coverage(real, generated, k):
    between = cdist(real, real)
    np.fill_diagonal(between, np.inf)
    radius = np.sort(between, axis=1)[:, k - 1]
    hit = cdist(generated, real) <= radius
    return hit.any(1).mean(), hit.any(0).mean()


@pytest.mark.parametrize("k", [1, 5])
def test_precision_and_coverage_by_brute_force(k):
    real, generated = normal(0, 1500, 4), 1.3 * normal(1, 1100, 4)  # more than one block of distances
    expected = brute_precision_coverage(real, generated, k)
    assert 0.1 < expected[0] < 0.99
    assert 0.1 < expected[1] < 0.99
    assert precision_coverage(real, generated, n_neighbors=k) == pytest.approx(expected, abs=1e-9)


def test_precision_and_coverage_by_hand():
    """Balls of radius 1 around 0, 1, ..., 9. A cell on the edge is inside."""
    real, generated = np.arange(10.0)[:, None], np.array([[0.5], [2.0], [100.0]])
    assert precision_coverage(real, generated, n_neighbors=1) == (pytest.approx(2 / 3), 4 / 10)


def test_copies_are_on_the_edge_of_balls():
    """Copies of every tenth cell are exactly as far from others as their originals, whatever rounding does."""
    real = normal(0, 400, 7) + 1000
    result = precision_coverage(real, real[::10])
    assert result == pytest.approx(brute_precision_coverage(real, real[::10], 5), abs=1e-9)
    assert result.precision == 1


@pytest.mark.parametrize(("n_real", "n_generated", "k"), [(200, 200, 1), (200, 200, 5), (200, 60, 3)])
def test_coverage_of_a_perfect_generator(n_real, n_generated, k):
    """That none of M generated cells is among the k nearest of N - 1 + M exchangeable ones (Naeem et al., lemma 2)."""
    i = np.arange(k)
    expected = 1 - np.prod((n_real - 1 - i) / (n_real + n_generated - 1 - i))
    found = [
        precision_coverage(normal([s, 0], n_real, 3), normal([s, 1], n_generated, 3), n_neighbors=k).coverage
        for s in range(40)
    ]
    assert abs(np.mean(found) - expected) < 4 * np.std(found, ddof=1) / np.sqrt(40)
    assert np.std(found) < 0.05
    if n_real == n_generated:
        assert expected == pytest.approx(1 - 2.0**-k, abs=0.01)


def test_a_dropped_mode_lowers_coverage_and_a_new_one_precision():
    real = np.vstack([normal(0, 300, 2), normal(1, 100, 2) + 20])
    dropped = precision_coverage(real, normal(2, 400, 2))
    assert dropped.precision > 0.93
    assert dropped.coverage == pytest.approx(0.75, abs=0.02)
    added = precision_coverage(real, np.vstack([normal(3, 300, 2), normal(4, 100, 2) + 20, normal(5, 100, 2) - 50]))
    assert added.precision == pytest.approx(0.8, abs=0.05)
    assert added.coverage > 0.93


@pytest.mark.parametrize("quantile", [0.5, 0.99])
def test_spurious_by_brute_force(quantile):
    real, generated = normal(0, 1200, 3), 1.3 * normal(1, 300, 3)
    between = cdist(real, real)
    np.fill_diagonal(between, np.inf)
    expected = np.mean(cdist(generated, real).min(1) > np.quantile(between.min(1), quantile))
    assert 0.01 < expected < 0.99
    assert spurious(real, generated, quantile=quantile) == pytest.approx(expected, abs=1e-9)


def test_spurious_cells_are_counted():
    real = normal(0, 500, 3)
    generated = np.vstack([real[:190], normal(1, 10, 3) + np.array([40, 0, 0])])
    assert spurious(real, generated) == 10 / 200
    assert spurious(real, real) == 0


@pytest.mark.parametrize("quantile", [0.9, 0.99])
def test_spurious_share_of_a_perfect_generator(quantile):
    shares = [spurious(normal([s, 0], 400, 4), normal([s, 1], 400, 4), quantile=quantile) for s in range(25)]
    expected = 1 - (quantile * 399 + 1) / 401  # the quantile of 400 real cells, as a rank among 401
    assert abs(np.mean(shares) - expected) < 4 * np.std(shares, ddof=1) / np.sqrt(25)
    assert expected == pytest.approx(1 - quantile, abs=0.003)
    assert np.std(shares) < 0.05


# ---------------------------------------------------------------------------------------------------------------- codes


def test_codes_like_the_prior_fit_it():
    """Also where they are drawn with the same seed, by which the draws of the prior are then not the codes again."""
    fits = [prior_fit(normal(s, 150, 4), seed=s, n_permutations=99) for s in range(20)]
    p = [fit.p_value for fit in fits]
    assert 0.3 < np.mean(p) < 0.7
    assert np.std(p) > 0.15
    assert abs(np.mean([fit.value for fit in fits])) < 0.001


@pytest.mark.parametrize("spoil", [lambda z: 0.7 * z, lambda z: z + 0.4, lambda z: z + 2 * np.sign(z) * [1, 0, 0, 0]])
def test_codes_unlike_the_prior_do_not(spoil):
    fit = prior_fit(spoil(normal(0, 400, 4)), n_permutations=99)
    assert fit.p_value == 0.01
    assert fit.value > 0.005


@pytest.mark.parametrize("d", [1, 2, 3])
def test_path_density_of_a_gaussian_in_closed_form(d):
    """At share t of a line, z is N(0, (t^2 + (1-t)^2) I): d/2 (1 - t^2 - (1-t)^2) above the codes, d/6 on average."""
    value, reference = path_log_density(5 + 3 * normal(7, 2000, d), n_pairs=1000)
    assert value == pytest.approx(d / 6, abs=0.04 + 0.02 * d)
    assert reference == pytest.approx(d / 6, abs=0.04 + 0.02 * d)
    assert value != reference


def test_path_density_sees_holes():
    z = normal(0, 1000, 3)
    ring = 3 * z / np.linalg.norm(z, axis=1, keepdims=True) * (1 + 0.02 * normal(1, 1000, 1))
    for holed in (z + 4 * np.sign(z) * [1, 0, 0], ring):
        value, reference = path_log_density(holed)
        assert value < -1 < 0 < reference
    value, reference = path_log_density(z)
    assert value == pytest.approx(reference, abs=0.15)


def test_path_density_has_no_unit():
    z = normal(0, 300, 3)
    assert path_log_density(7 * z - 100).value == pytest.approx(path_log_density(z).value, abs=1e-9)


def test_path_density_by_brute_force():
    z, first, second, n_points, k = normal(0, 40, 2), np.array([0, 5, 9]), np.array([3, 1, 30]), 4, 3
    at_codes = [np.sort(np.delete(np.linalg.norm(z - code, axis=1), i))[k - 1] for i, code in enumerate(z)]
    at_points, along = [], (np.arange(n_points) + 0.5) / n_points
    for i, j in zip(first, second, strict=True):
        for t in along:
            away = np.linalg.norm(np.delete(z, [i, j], axis=0) - ((1 - t) * z[i] + t * z[j]), axis=1)
            at_points.append(np.sort(away)[k - 1])
    # density = k / (number of others * volume of the ball)
    log_codes, log_points = -np.log(39) - 2 * np.log(at_codes), -np.log(38) - 2 * np.log(at_points)
    expected = (log_points - log_codes.mean()).reshape(3, n_points)
    found = distances.line_log_density(z, first, second, along, n_neighbors=k)
    np.testing.assert_allclose(found, expected, atol=1e-9)


# ------------------------------------------------------------------------------------------------------- kinds of input


@pytest.mark.parametrize("score", TWO_SAMPLES)
def test_sparse_and_dense_score_the_same(score):
    rng = np.random.default_rng(0)
    x, y = rng.poisson(0.3, (80, 30)), rng.poisson(0.4, (60, 30))
    expected = score(x.astype(float), y.astype(float))
    for kind in (sp.csr_matrix, sp.csr_array, sp.csc_array, sp.coo_matrix, np.float32):
        assert same_value(score(kind(x), kind(y)), expected, abs=1e-9)
    assert same_value(score(sp.csr_array(x), y), expected, abs=1e-9)
    assert same_value(score(x.tolist(), sp.csr_matrix(y)), expected, abs=1e-9)


@pytest.mark.parametrize("score", TWO_SAMPLES)
def test_far_from_the_origin(score):
    x, y = normal(0, 100, 3), 1.5 * normal(1, 90, 3)
    assert same_value(score(x + 1e6, y + 1e6), score(x, y), abs=1e-6)


@pytest.mark.parametrize("score", TWO_SAMPLES)
def test_samples_of_many_cells(score):
    x, y = normal(0, 600, 3), 1.5 * normal(1, 500, 3)
    some = [score(x, y, max_cells=200, seed=seed) for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert same_value(some[0], score(x, y, max_cells=None), abs=0.12)
    assert score(x, y, max_cells=600) == score(x, y, max_cells=None)


@pytest.mark.parametrize("score", CODES)
def test_samples_of_many_codes(score):
    z = normal(0, 600, 3)
    some = [score(z, max_cells=200, seed=seed) for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert score(z, max_cells=600) == score(z, max_cells=None)


def test_random_state_and_arguments_are_left_alone():
    before = np.random.get_state()  # noqa: NPY002
    x = sp.csr_matrix((np.ones(4), [1, 0, 0, 2], [0, 2, 3, 4]), shape=(3, 3))  # its first row is not sorted
    z, untouched = normal(0, 50, 3), normal(0, 50, 3)
    for score in TWO_SAMPLES:
        score(x, x, max_cells=None, **({"n_neighbors": 1} if score is precision_coverage else {}))
        score(z, z, max_cells=20)
    for score in CODES:
        score(z, max_cells=30)
    assert all(np.array_equal(a, b) for a, b in zip(before, np.random.get_state(), strict=True))  # noqa: NPY002
    assert x.indices.tolist() == [1, 0, 0, 2]
    assert np.array_equal(z, untouched)


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("score", TWO_SAMPLES)
def test_errors_of_two_samples(score):
    x = normal(0, 20, 3)
    with pytest.raises(ValueError, match=r"has 3 columns but .* has 2; expected the same genes .* adata\[:, shared\]"):
        score(x, x[:, :2])
    with pytest.raises(ValueError, match=r"has shape \(20,\) and dtype float64; expected numbers of shape"):
        score(x[:, 0], x)
    with pytest.raises(ValueError, match=r"has shape \(1, 2\) and dtype <U1"):
        score(x, [["a", "b"]])
    with pytest.raises(ValueError, match="max_cells is 1; expected at least 2"):
        score(x, x, max_cells=1)
    y = x.copy()
    y[[4, 7], 1] = np.nan, np.inf
    for bad in (y, sp.csr_matrix(y)):
        with pytest.raises(ValueError, match="has 2 NaN or infinite values, first in cell 4; expected finite"):
            score(x, bad)
    with pytest.raises(ValueError, match=r"(generated|y) has 0 cells"):
        score(x, x[:0])


def test_errors_of_arguments():
    x = normal(0, 20, 3)
    with pytest.raises(ValueError, match="x has 1 cells; expected at least 2"):
        mmd(x[:1], x)
    for bandwidth in (0.0, -1.0, np.inf):
        with pytest.raises(ValueError, match="expected a distance > 0, or None for the median distance"):
            mmd(x, x, bandwidth=bandwidth)
    with pytest.raises(ValueError, match="n_permutations is 0; expected at least 1"):
        mmd(x, x, n_permutations=0)
    for k in (0, 20):
        with pytest.raises(ValueError, match=f"n_neighbors is {k} for 20 real cells; expected 1 to 19"):
            precision_coverage(x, x, n_neighbors=k)
    for quantile in (0, 1, 99):
        with pytest.raises(ValueError, match=f"quantile is {quantile}; expected a fraction between 0 and 1"):
            spurious(x, x, quantile=quantile)
    with pytest.raises(ValueError, match="n_neighbors is 1 for 1 real cells"):
        spurious(x[:1], x)


@pytest.mark.parametrize("score", CODES)
def test_errors_of_codes(score):
    z = normal(0, 20, 3)
    with pytest.raises(ValueError, match="z has 2 cells; expected at least 3"):
        score(z[:2])
    with pytest.raises(ValueError, match="z is sparse; expected a dense latent representation"):
        score(sp.csr_array(z))
    with pytest.raises(ValueError, match="max_cells is 2; expected at least 3"):
        score(z, max_cells=2)
    z[3, 0] = np.nan
    with pytest.raises(ValueError, match="z has 1 NaN or infinite values, first in cell 3"):
        score(z)


def test_errors_of_paths():
    z = normal(0, 20, 3)
    with pytest.raises(ValueError, match="n_neighbors is 19 for 20 cells; expected 1 to 18"):
        path_log_density(z, n_neighbors=19)
    with pytest.raises(ValueError, match="n_pairs is 0; expected at least 1"):
        path_log_density(z, n_pairs=0)
    z[:4] = z[0]
    with pytest.raises(ValueError, match="z has 4 points with n_neighbors duplicates, whose density is infinite"):
        path_log_density(z, n_neighbors=3)
    assert np.isfinite(path_log_density(z, n_neighbors=4).value)


@pytest.mark.parametrize("score", TWO_SAMPLES)
def test_columns_of_dataframes_are_matched_by_name(score):
    genes = [f"gene{i}" for i in range(5)]
    real = pd.DataFrame(normal(0, 40, 5) + np.arange(5), columns=genes)
    generated = pd.DataFrame(normal(1, 40, 5) + np.arange(5), columns=genes)
    assert same_value(score(real, generated[genes[::-1]]), score(real.to_numpy(), generated.to_numpy()))
    for wrong in (generated.rename(columns={"gene0": "other"}), generated.set_axis(range(5), axis=1)):
        with pytest.raises(ValueError, match=r"(real|x) and (generated|y) are DataFrames with different columns"):
            score(real, wrong)
