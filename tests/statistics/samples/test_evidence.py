"""The mixture of own and other effects: its trust follows the data, and its p-values have their level."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sccvae.statistics.samples import evidence
from sccvae.statistics.samples.moderated import Effects


def sources(effect: np.ndarray, other: np.ndarray, seed: int, own_error: float = 0.4) -> evidence.Sources:
    rng = np.random.default_rng(seed)
    n = len(effect)
    errors = np.full(n, own_error), np.full(n, 0.15)
    noise = [rng.standard_normal(n) * error for error in errors]
    return evidence.Sources(effect + noise[0], other + noise[1], *errors, np.zeros(n))


@pytest.fixture
def effect():
    result = np.zeros(2000)
    result[:200] = np.where(np.arange(200) % 2, 1, -1)
    return result


def area(score: np.ndarray, true: np.ndarray) -> float:
    return stats.rankdata(score)[true].mean() / len(score)


def test_likelihood_is_that_of_a_normal():
    found = sources(np.zeros(5), np.zeros(5), 0)._replace(covariance=np.full(5, 0.02))
    covariances = np.array([[0.3, 0.2, 0.1]])
    expected = [
        stats.multivariate_normal([0, 0], [[0.16 + 0.3, 0.12], [0.12, 0.0225 + 0.2]]).logpdf(x) + np.log(2 * np.pi)
        for x in zip(found.own, found.other, strict=True)
    ]
    np.testing.assert_allclose(evidence.log_likelihood(found, covariances)[:, 0], expected)


def test_effects_of_all_cells_are_found_by_the_other_evidence(effect):
    found = sources(effect, effect, 1)
    posterior = evidence.posterior(found, evidence.fit(found))
    true = effect != 0
    assert area(posterior.log_odds, true) > area(np.abs(found.own), true) + 0.03
    assert posterior.same[true].mean() > 0.8


def test_effects_of_other_cells_are_no_own_effects(effect):
    found = sources(np.zeros(2000), effect, 2)
    posterior = evidence.posterior(found, evidence.fit(found))
    assert evidence.no_effect(posterior.log_odds).min() > 0.2


def test_local_effects_are_found_without_the_other_evidence(effect):
    found = sources(effect, np.zeros(2000), 3, own_error=0.25)
    posterior = evidence.posterior(found, evidence.fit(found))
    true = effect != 0
    assert area(posterior.log_odds, true) > area(np.abs(found.own), true) - 0.005
    assert (posterior.log_odds[true] > 0).mean() > 0.5


def test_p_values_are_ranks_and_do_not_tie_at_the_top():
    rng = np.random.default_rng(4)
    null = rng.exponential(size=50_000)
    score = rng.exponential(size=20_000)
    p = evidence.p_values(score, null)
    for level in (0.1, 0.01, 0.001):
        np.testing.assert_allclose((p < level).mean(), level, rtol=0.3)
    far = evidence.p_values(np.array([20.0, 30.0, 40.0, 5000.0]), null)
    assert (np.diff(far) < 0).all()
    assert far[-1] > 0


def test_the_error_that_samples_share_is_found_beside_large_effects():
    rng = np.random.default_rng(5)
    abundance = rng.uniform(10, 1000, 3000)
    shared = 2 / np.sqrt(abundance)
    estimate = shared * rng.standard_normal(3000)
    estimate[:300] += 1.5
    found = evidence.shared_error(Effects(estimate, np.full(3000, 0.01), 10.0), abundance)
    for low, high in ((10, 100), (400, 1000)):
        some = (abundance > low) & (abundance < high)
        np.testing.assert_allclose(np.median(found[some]), np.median(shared[some]), rtol=0.35)
    assert evidence.shared_error(Effects(estimate, np.full(3000, 5.0), 10.0), abundance).max() == 0
