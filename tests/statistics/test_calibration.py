"""Calibration of labels: temperatures, conformal thresholds, p-values of densities."""

from __future__ import annotations

import numpy as np
import pytest

from sccvae.statistics import calibration
from sccvae.statistics.calibration import (
    Calibration,
    calibrated,
    calibration_error,
    fitted_temperature,
    largest_score,
    tempered,
)
from sccvae.statistics.neighbour_votes import vote


def drawn(n: int, temperature: float, seed: int = 0):
    """Probabilities of four labels that are overconfident by a temperature, and labels."""
    rng = np.random.default_rng(seed)
    right = tempered(np.exp(2 * rng.normal(size=(n, 4))), 1.0)
    labels = np.array([rng.choice(4, p=p) for p in right])
    return tempered(right, 1 / temperature), labels


def test_the_temperature_is_found():
    for temperature in (0.7, 1.0, 2.0):
        probability, labels = drawn(20_000, temperature)
        assert fitted_temperature(probability, labels) == pytest.approx(temperature, rel=0.05)


def test_few_cells_hardly_move_the_temperature():
    assert fitted_temperature(np.array([[0.9, 0.1]] * 3), np.zeros(3, int)) == pytest.approx(1, abs=0.15)
    assert fitted_temperature(np.zeros((0, 4)), np.zeros(0, int)) == 1.0


def test_the_calibration_error():
    probability, labels = drawn(50_000, 1.0)
    right, sure = probability.argmax(1) == labels, probability.max(1)
    assert calibration_error(sure, right) < 0.01
    probability, labels = drawn(50_000, 3.0)
    assert calibration_error(probability.max(1), probability.argmax(1) == labels) > 0.1
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, False])) == 0.5


def test_p_values_are_uniform_among_like_cells_and_fall_beyond_them():
    rng = np.random.default_rng(0)
    found = Calibration(1.0, tuple(np.sort(rng.normal(size=1000))), (), 0.0)
    p = found.p_values(rng.normal(size=20_000))
    assert np.abs(np.quantile(p, [0.05, 0.5, 0.9]) - [0.05, 0.5, 0.9]).max() < 0.04
    far = found.p_values(np.array([0.0, -4.0, -5.0, -50.0, -1e6]))
    assert (np.diff(far[:4]) < 0).all()
    assert far[-1] >= 0
    assert np.isfinite(far).all()


@pytest.mark.parametrize("error_rate", [0.05, 0.2])
def test_so_many_right_labels_are_less_probable_than_the_threshold(error_rate):
    probability, labels = drawn(4000, 1.0)
    densities, totals = np.zeros(5), np.arange(100.0)
    found = calibrated(probability[:2000], labels[:2000], densities, totals)
    right = found.tempered(probability[2000:])[np.arange(2000), labels[2000:]]
    assert (right < found.least_probability(error_rate)).mean() == pytest.approx(error_rate, abs=0.02)
    assert found.log_total == pytest.approx(np.quantile(totals, 0.01))


def test_without_enough_cells_the_threshold_is_one_half():
    found = calibrated(np.array([[0.9, 0.1]] * 10), np.zeros(10, int), np.zeros(5), np.zeros(5))
    assert found.least_probability(0.05) == 0.5
    assert found.least_probability(0.2) > 0.5


def scores_of(shift: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """1 - the probability of the right label in a batch whose labels are `shift` nats less certain."""
    return 1 / (1 + np.exp(2 - shift + rng.normal(size=n)))


@pytest.mark.parametrize("n_batches", [3, 8])
@pytest.mark.parametrize("error_rate", [0.05, 0.1])
def test_the_error_of_a_new_batch_is_nearer_to_the_rate_than_with_pooled_cells(n_batches, error_rate):
    """Batches differ, and labels of a new one are a little less certain than those of batches in the training."""
    rng, pooled, of_batches = np.random.default_rng(0), [], []
    for _ in range(300):
        known = np.concatenate([scores_of(0.7 * rng.normal(), 60, rng) for _ in range(n_batches)])
        new = scores_of(0.7 * rng.normal() + 0.2, 1000, rng)
        batches = np.repeat(np.arange(n_batches), 60)
        for errors, given in ((pooled, batches[:0]), (of_batches, batches)):
            errors.append((new > largest_score(known, given, error_rate)).mean())
    distance = [np.abs(np.array(errors) - error_rate).mean() for errors in (pooled, of_batches)]
    beyond = [(np.array(errors) > error_rate).mean() for errors in (pooled, of_batches)]
    assert distance[1] < 0.9 * distance[0]
    assert beyond[1] < 0.7 * beyond[0]
    assert np.mean(of_batches) < np.mean(pooled)


def test_the_rate_holds_in_three_of_four_new_batches():
    rng, beyond = np.random.default_rng(1), []
    for _ in range(400):
        known = np.concatenate([scores_of(rng.normal(), 200, rng) for _ in range(7)])
        largest = largest_score(known, np.repeat(np.arange(7), 200), 0.1)
        beyond.append((scores_of(rng.normal(), 2000, rng) > largest).mean() > 0.1)
    assert np.mean(beyond) == pytest.approx(0.25, abs=0.05)


def test_few_batches_or_small_ones_are_pooled():
    rng = np.random.default_rng(2)
    scores = rng.random(200)
    pooled = largest_score(scores, np.zeros(0, int), 0.05)
    for sizes in ((100, 100), (164, 18, 18)):  # 18 cells are too few for one in twenty
        assert largest_score(scores, np.repeat(np.arange(len(sizes)), sizes), 0.05) == pooled
    worst = np.r_[scores[:150], np.full(50, 0.999)]
    assert largest_score(worst, np.repeat(np.arange(4), 50), 0.05) == 0.999
    assert largest_score(scores[:10], np.arange(10), 0.05) is None


def test_batches_go_with_their_scores():
    probability, labels = drawn(300, 1.0)
    batches = np.random.default_rng(0).integers(3, size=300)
    found = calibrated(probability, labels, np.zeros(5), np.zeros(5), batches)
    right = 1 - found.tempered(probability)[np.arange(300), labels]
    for k in range(3):
        np.testing.assert_allclose(np.array(found.scores)[np.array(found.batches) == k], np.sort(right[batches == k]))
    assert calibrated(probability, labels, np.zeros(5), np.zeros(5)).batches == ()


def test_many_densities_are_kept_as_quantiles():
    densities = np.random.default_rng(0).normal(size=10_000)
    found = calibrated(np.zeros((0, 2)), np.zeros(0, int), densities, np.zeros(3))
    assert len(found.densities) == calibration.MOST_KEPT
    assert found.densities[0] == densities.min()
    assert found.p_values(np.array([np.quantile(densities, 0.3)]))[0] == pytest.approx(0.3, abs=0.01)


def test_votes_of_neighbours():
    z = np.concatenate([np.zeros((20, 2)), np.full((20, 2), 10.0)]) + np.random.default_rng(0).normal(size=(40, 2))
    shares, names = vote(z, np.array(["a"] * 20 + ["b"] * 20), np.array([[0.0, 0.0], [10.0, 10.0]]), 5)
    assert names.tolist() == ["a", "b"]
    np.testing.assert_allclose(shares, [[1, 0], [0, 1]])
    shares, _ = vote(z[:3], np.array(["a", "b", "b"]), z[:2])
    np.testing.assert_allclose(shares.sum(1), 1)
