"""Calibration of labels: temperatures, conformal thresholds, p-values of densities."""

from __future__ import annotations

import numpy as np
import pytest

from sccvae.statistics import calibration
from sccvae.statistics.calibration import Calibration, calibrated, calibration_error, fitted_temperature, tempered
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
