"""The mixture fitted to the aggregate posterior: against known truth, scikit-learn and numerical integration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from sccvae.inference import aggregate_prior

CENTRES = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 8.0]])
COVARIANCES = np.array([[[1.0, 0.6], [0.6, 1.0]], [[0.3, 0.0], [0.0, 2.0]], [[1.5, -0.5], [-0.5, 0.5]]])


def three_groups(n: int = 3000, seed: int = 0):
    """Points of three groups in two profiles; the second has no point of the third group."""
    rng = np.random.default_rng(seed)
    profile = rng.integers(2, size=n)
    group = np.where(profile == 0, rng.choice(3, n, p=[0.2, 0.3, 0.5]), rng.choice(3, n, p=[0.75, 0.25, 0]))
    x = CENTRES[group] + np.einsum("nij,nj->ni", np.linalg.cholesky(COVARIANCES)[group], rng.standard_normal((n, 2)))
    return x, group, profile


def test_known_groups_are_found_with_their_shares_in_each_profile():
    x, group, profile = three_groups()
    found = aggregate_prior.fit(x, np.zeros_like(x), profile, 2)
    assert len(found.means) == 3
    order = [np.linalg.norm(found.means - centre, axis=1).argmin() for centre in CENTRES]
    for k, at in enumerate(order):
        of_group = x[group == k]
        np.testing.assert_allclose(found.means[at], of_group.mean(0), atol=0.05)
        np.testing.assert_allclose(found.factors[at] @ found.factors[at].T, np.cov(of_group.T), atol=0.08)
    np.testing.assert_allclose(found.weights[:, order], [[0.2, 0.3, 0.5], [0.75, 0.25, 0]], atol=0.03)
    np.testing.assert_allclose(found.weights.sum(1), 1)


def test_without_variances_it_is_the_mixture_of_scikit_learn():
    x, _, _ = three_groups(900)
    found = aggregate_prior.fit(x, np.zeros_like(x), np.zeros(900, dtype=int), 1)
    reference = GaussianMixture(3, n_init=5, random_state=0).fit(x)
    mine = GaussianMixture(3).fit(x)
    mine.weights_, mine.means_ = found.weights[0], found.means
    mine.precisions_cholesky_ = np.linalg.inv(found.factors).transpose(0, 2, 1)
    assert mine.score(x) == pytest.approx(reference.score(x), abs=2e-3)


def test_the_width_of_the_posteriors_widens_the_components():
    rng = np.random.default_rng(1)
    mean, variance = rng.standard_normal((60, 3)) @ np.diag([1, 0.5, 0]), rng.uniform(0.1, 1, (60, 3))
    found = aggregate_prior.fit(
        mean, variance, np.zeros(60, dtype=int), 1
    )  # one component is all that so few cells bear
    assert len(found.means) == 1
    np.testing.assert_allclose(found.means[0], mean.mean(0), atol=1e-8)
    expected = np.cov(mean.T, bias=True) + np.diag(variance.mean(0))
    np.testing.assert_allclose(found.factors[0] @ found.factors[0].T, expected, atol=1e-6)


def test_the_bound_is_below_the_expected_log_density_and_near_it():
    x, _, _ = three_groups(400)
    variance = np.random.default_rng(2).uniform(0.05, 0.3, x.shape)
    share = aggregate_prior._start(x, 3, np.random.default_rng(0))
    bound, share, means, covariances = aggregate_prior._expectation_maximisation(x, variance, share)
    noise = np.random.default_rng(3).standard_normal((200, *x.shape))
    draws = (x + np.sqrt(variance) * noise).reshape(-1, 2)
    each = zip(share.mean(0), means, covariances, strict=True)
    log_p = logsumexp([np.log(w) + multivariate_normal(m, s).logpdf(draws) for w, m, s in each], axis=0)
    assert -0.05 < bound / 400 - log_p.mean() < 0.002


def test_draws_follow_the_mixture():
    x, _, profile = three_groups()
    found = aggregate_prior.fit(x, np.full_like(x, 0.1), profile, 2)
    for p in (0, 1):
        drawn = found.draw(np.full(20_000, p), np.random.default_rng(0))
        np.testing.assert_allclose(drawn.mean(0), x[profile == p].mean(0), atol=0.15)
        np.testing.assert_allclose(np.cov(drawn.T), np.cov(x[profile == p].T) + 0.1 * np.eye(2), atol=0.6)
    again = (found.draw(np.zeros(5, dtype=int), np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(*again)


def test_one_group_is_one_component():
    x = np.random.default_rng(0).standard_normal((2000, 6))
    assert len(aggregate_prior.fit(x, np.full_like(x, 0.2), np.zeros(2000, dtype=int), 1).means) == 1


def test_many_cells_are_represented_by_some_and_seeds_decide_which():
    x, _, profile = three_groups(8000)
    one, same, other = (aggregate_prior.fit(x, np.zeros_like(x), profile, 2, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.means, same.means)
    assert not np.array_equal(np.sort(one.means, 0), np.sort(other.means, 0))
    np.testing.assert_allclose(np.sort(one.means, 0), np.sort(other.means, 0), atol=0.2)


def test_a_profile_without_cells_has_the_weights_of_all():
    x, _, profile = three_groups()
    profile = np.where(profile == 1, -1, 0)
    found = aggregate_prior.fit(x, np.zeros_like(x), profile, 2)
    overall = aggregate_prior.fit(x, np.zeros_like(x), np.zeros_like(profile), 1).weights[0]
    np.testing.assert_allclose(found.weights[1], overall, atol=2e-3)
    assert np.abs(found.weights[0] - overall).max() > 0.1


@pytest.mark.parametrize("x", [np.zeros((1, 3)), np.zeros((500, 3)), np.repeat(np.eye(3), 200, 0)])
def test_one_cell_or_many_of_the_same(x):
    found = aggregate_prior.fit(x, np.full_like(x, 1e-6), np.zeros(len(x), dtype=int), 1)
    drawn = found.draw(np.zeros(300, dtype=int), np.random.default_rng(0))
    distance = np.linalg.norm(drawn[:, None] - np.unique(x, axis=0), axis=2).min(1)
    assert distance.max() < 0.01
