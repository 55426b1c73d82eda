"""Calibration of labels on held-out cells: temperature, conformal thresholds, p-values of densities."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

MOST_KEPT = 2000  # quantiles of the reference's densities
SPREAD = 0.5  # standard deviation of the prior of the log temperature, which few held-out cells cannot move far
TINY = 1e-12


@dataclass(frozen=True)
class Calibration:
    """What a reference says about the labels of new cells.

    Attributes
    ----------
    temperature
        Divides the log probabilities of labels.
    densities
        log p(z) of the reference's cells, or quantiles of them, in order.
    scores
        1 - the probability of the right label, of the held-out cells that have one, in order.
    log_total
        Log of the smallest total count that is usual in the reference.
    """

    temperature: float
    densities: tuple[float, ...]
    scores: tuple[float, ...]
    log_total: float

    def tempered(self, probability: np.ndarray) -> np.ndarray:
        """Return probabilities of labels, (cells, labels), at the temperature."""
        return tempered(probability, self.temperature)

    def p_values(self, density: np.ndarray) -> np.ndarray:
        """Return the fraction of the reference's cells with so low a density, (cells,), above 0.

        Beyond the lowest of the reference, the fraction falls exponentially, as it does among the lowest tenth.
        """
        known = np.asarray(self.densities)
        n = len(known)
        fraction = (1 + np.searchsorted(known, density, side="right")) / (n + 1)
        tail = known[: max(n // 10, 2)]
        scale = max(float(np.mean(tail[-1] - tail)), TINY)
        below = np.minimum(density - known[0], 0) / scale
        return np.minimum(fraction * np.exp(np.maximum(below, -600.0)), 1.0)

    def least_probability(self, error_rate: float) -> float:
        """Return the probability below which a label is left open, by split conformal prediction.

        At most `error_rate` of cells like the held-out ones have a right label of less (Vovk, Gammerman & Shafer 2005).
        Too few held-out cells for that rate: one half.
        """
        n = len(self.scores)
        rank = int(np.ceil((n + 1) * (1 - error_rate)))
        if rank > n or n == 0:
            return 0.5
        return float(min(max(1 - self.scores[rank - 1], 0.0), 1.0))


def calibrated(
    probability: np.ndarray, labels: np.ndarray, densities: np.ndarray, log_totals: np.ndarray
) -> Calibration:
    """Return the calibration from held-out labelled cells, and from all cells of the reference.

    Parameters
    ----------
    probability, labels
        (held-out cells, labels), (held-out cells,): numbers of the right labels.
    densities, log_totals
        (cells,) of the reference.
    """
    temperature = fitted_temperature(probability, labels)
    right = tempered(probability, temperature)[np.arange(len(labels)), labels]
    kept = np.quantile(densities, np.linspace(0, 1, min(len(densities), MOST_KEPT)))
    return Calibration(
        temperature,
        tuple(map(float, kept)),
        tuple(map(float, np.sort(1 - right))),
        float(np.quantile(log_totals, 0.01)),
    )


def tempered(probability: np.ndarray, temperature: float) -> np.ndarray:
    """Return the softmax of log probabilities divided by a temperature, (cells, labels)."""
    logits = np.log(np.maximum(probability, TINY)) / temperature
    found = np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf))
    return found / found.sum(1, keepdims=True)


def fitted_temperature(probability: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the highest likelihood of the right labels times a prior around 1."""
    if not len(labels):
        return 1.0

    def loss(log_temperature: float) -> float:
        right = tempered(probability, float(np.exp(log_temperature)))[np.arange(len(labels)), labels]
        return float(-np.log(np.maximum(right, TINY)).sum() + 0.5 * (log_temperature / SPREAD) ** 2)

    return float(np.exp(minimize_scalar(loss, bounds=(-2, 2), method="bounded").x))


def calibration_error(probability: np.ndarray, right: np.ndarray, n_bins: int = 15) -> float:
    """Return the expected calibration error: mean distance of accuracy and probability over bins of the probability."""
    at = np.minimum((probability * n_bins).astype(int), n_bins - 1)
    errors = [abs(right[at == k].mean() - probability[at == k].mean()) * (at == k).mean() for k in np.unique(at)]
    return float(sum(errors))
