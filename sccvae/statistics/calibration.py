"""Calibration of labels on held-out cells: temperature, conformal thresholds, p-values of densities."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

MOST_KEPT = 2000  # quantiles of the reference's densities
SPREAD = 0.5  # standard deviation of the prior of the log temperature, which few held-out cells cannot move far
TINY = 1e-12
LEAST_BATCHES = 3  # with enough held-out cells, for a threshold that holds in whole batches
OF_BATCHES = 0.75  # fraction of new batches in which the error rate holds


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
    batches
        Number of the batch of each of `scores`; empty for models that were saved without.
    """

    temperature: float
    densities: tuple[float, ...]
    scores: tuple[float, ...]
    log_total: float
    batches: tuple[int, ...] = ()

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
        With three batches of enough held-out cells, this is also so in three quarters of new batches like them: see
        `largest_score`. Too few held-out cells for that rate: one half.
        """
        largest = largest_score(np.asarray(self.scores), np.asarray(self.batches), error_rate)
        return 0.5 if largest is None else float(min(max(1 - largest, 0.0), 1.0))


def largest_score(scores: np.ndarray, batches: np.ndarray, error_rate: float) -> float | None:
    """Return the score that at most `error_rate` of new cells exceed; None if there are too few cells to say.

    Scores of cells of one batch are alike, and those of a new batch may all be large. The quantile of each batch with
    enough cells is therefore a number of its own, and the threshold is a conformal quantile of these numbers: that of a
    new batch exceeds it with a probability of at most 1 - `OF_BATCHES`. The quantile of all cells is taken if it is
    larger. Groups of data that are exchangeable: Dunn, Wasserman & Ramdas 2022 (https://arxiv.org/abs/1809.07441).

    Parameters
    ----------
    scores, batches
        (held-out cells,): 1 - the probability of the right label; number of the batch. Without batches, the cells are
        taken to be those of one.
    """
    found = _conformal(scores, error_rate)
    if found is None or len(batches) != len(scores):
        return found
    each = [_conformal(scores[batches == k], error_rate) for k in np.unique(batches)]
    enough = np.array([one for one in each if one is not None])
    if len(enough) < LEAST_BATCHES:
        return found
    of_batches = _conformal(enough, 1 - OF_BATCHES)
    return found if of_batches is None else max(found, of_batches)


def _conformal(scores: np.ndarray, error_rate: float) -> float | None:
    """Return the conformal quantile of some scores; None if there are too few for that rate."""
    rank = int(np.ceil((len(scores) + 1) * (1 - error_rate)))
    return None if rank > len(scores) or not len(scores) else float(np.sort(scores)[rank - 1])


def calibrated(
    probability: np.ndarray,
    labels: np.ndarray,
    densities: np.ndarray,
    log_totals: np.ndarray,
    batches: np.ndarray | None = None,
) -> Calibration:
    """Return the calibration from held-out labelled cells, and from all cells of the reference.

    Parameters
    ----------
    probability, labels
        (held-out cells, labels), (held-out cells,): numbers of the right labels.
    densities, log_totals
        (cells,) of the reference.
    batches
        (held-out cells,): numbers of the batches; None takes the cells as those of one.
    """
    temperature = fitted_temperature(probability, labels)
    scores = 1 - tempered(probability, temperature)[np.arange(len(labels)), labels]
    order = np.argsort(scores, kind="stable")
    kept = np.quantile(densities, np.linspace(0, 1, min(len(densities), MOST_KEPT)))
    return Calibration(
        temperature,
        tuple(map(float, kept)),
        tuple(map(float, scores[order])),
        float(np.quantile(log_totals, 0.01)),
        () if batches is None else tuple(map(int, batches[order])),
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
