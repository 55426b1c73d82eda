"""From log fold changes with errors to probabilities that genes have changed."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import expit, ndtr

SMALLEST_DELTA = 0.1  # log2 units: lower bound of a threshold fitted to the data
DECODER_WEIGHT = 2.0  # of log odds from the decoder, beside those from the counts, in the order of genes
MOST_AGREEMENT = 0.25  # log units: by how much a change in the decoder adds to the log odds
APART = 1e-6  # log units, between genes of the same probability


class Prior(NamedTuple):
    """Prior of the log fold changes of all genes: a mixture of normals about one centre."""

    centre: float
    weights: np.ndarray  # (components,)
    scales: np.ndarray  # (components,) standard deviations, the first 0


def fit_prior(mean: np.ndarray, sd: np.ndarray, *, n_scales: int = 12, n_steps: int = 100) -> Prior:
    """Fit the prior of the log fold changes by EM to their estimates, (genes,), with standard errors (genes,).

    The centre is the location of most genes. It differs from 0 where few genes take up so many counts that the fraction
    of all others falls. A prior with the weight of ten genes keeps the centre near 0, so that few genes do not
    determine it. Of more than 5,000 genes, an evenly spaced subset is used, which is as accurate.
    """
    every = -(-len(mean) // 5000)
    mean, sd = mean[::every], sd[::every]
    centre = float(np.median(mean)) * len(mean) / (len(mean) + 10)
    scales = np.concatenate([[0.0], np.geomspace(0.05, max(2 * np.abs(mean - centre).max(), 0.1), n_scales)])
    weights, precision = np.full(len(scales), 1 / len(scales)), 1 / (sd[:, None] ** 2 + scales**2)  # (genes, scales)
    for _ in range(n_steps):
        responsibility = _responsibilities(mean, Prior(centre, weights, scales), precision)
        before, weights = weights, responsibility.mean(0)
        pull = (responsibility * precision).sum(1)
        centre = float(pull @ mean / (pull.sum() + 10 * pull.mean()))
        if np.abs(weights - before).max() < 1e-3:
            break
    return Prior(centre, weights, scales)


def _responsibilities(mean: np.ndarray, prior: Prior, precision: np.ndarray) -> np.ndarray:
    """Compute the posterior probability of each mixture component, (genes, scales).

    `precision`, (genes, scales), is that of an estimate under each component.
    """
    result = (-0.5 * (mean - prior.centre) ** 2)[:, None] * precision
    np.exp(result - result.max(1, keepdims=True), out=result)
    result *= np.sqrt(precision) * prior.weights
    return result / np.maximum(result.sum(1, keepdims=True), 1e-300)


def probability_of_change(
    mean: np.ndarray, sd: np.ndarray, delta: float, prior: Prior
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the probabilities that a gene has changed and has not, (genes,), for estimates with normal errors.

    A gene is unchanged within `delta` of 0, of the prior's centre, or between 0 and the centre: where few genes take
    up many counts, the fractions of all others fall, and a gene that follows most others has not changed. The second
    probability is computed separately from the first, so that small values are exact.
    """
    precision = 1 / (sd[:, None] ** 2 + prior.scales**2)
    responsibility = _responsibilities(mean, prior, precision)
    weight = prior.scales**2 * precision  # of the estimate, against the centre
    centre = prior.centre + weight * (mean[:, None] - prior.centre)
    spread = np.maximum(np.sqrt(weight) * sd[:, None], 1e-9)
    above = (centre - max(0.0, prior.centre) - delta) / spread
    below = (min(0.0, prior.centre) - delta - centre) / spread
    change = (responsibility * (ndtr(above) + ndtr(below))).sum(1)
    inside = np.maximum(ndtr(-np.maximum(above, below)) - ndtr(np.minimum(above, below)), 0)
    return change, (responsibility * inside).sum(1)


def fit_delta(mean: np.ndarray) -> float:
    """Estimate the threshold at which a gene is as likely to have changed as not, from (genes,) log fold changes.

    Two normals about the median, one narrow and one wide, are fitted by EM. delta is the distance at which both are
    equally likely, at least `SMALLEST_DELTA`.
    """
    x = np.abs(mean - np.median(mean))
    start = max(np.quantile(x, 0.5), 1e-3), max(np.quantile(x, 0.95), 2e-3), 0.2
    narrow, wide, fraction = two_normals(x, *start, n_steps=500)
    odds = (1 - fraction) * wide / (fraction * narrow)
    return max(SMALLEST_DELTA, float(np.sqrt(max(2 * np.log(odds), 0) / (1 / narrow**2 - 1 / wide**2))))


def two_normals(
    x: np.ndarray, narrow: float, wide: float, fraction: float, *, n_steps: int
) -> tuple[float, float, float]:
    """Fit a narrow and a wide normal about 0 by EM: their standard deviations, and the fraction of the wide one.

    Parameters
    ----------
    x
        (genes,) absolute values.
    narrow, wide, fraction
        Where EM begins.
    """
    for _ in range(n_steps):
        ratio = np.exp(np.clip(0.5 * x**2 * (1 / narrow**2 - 1 / wide**2), 0, 700))
        from_wide = 1 / (1 + (1 - fraction) * wide / (fraction * narrow * ratio))
        fraction = float(np.clip(from_wide.mean(), 1e-6, 1 - 1e-6))
        narrow = max(float(np.sqrt(np.average(x**2, weights=1 - from_wide + 1e-12))), 1e-3)
        wide = max(float(np.sqrt(np.average(x**2, weights=from_wide + 1e-12))), 2 * narrow)
    return narrow, wide, fraction


def widths(estimates: np.ndarray, abundance: np.ndarray) -> np.ndarray:
    """Estimate the error of fold changes from those of genes of similar abundance, (genes,).

    It is the narrower of two normals about 0: that of the genes that did not change. The number of counts of a gene is
    its abundance.
    """
    order = np.argsort(abundance, kind="stable")
    size, width = [], []
    for part in np.array_split(order, int(np.clip(len(order) // 100, 1, 8))):
        size.append(float(np.log(abundance[part].mean() + 1)))
        x = np.abs(estimates[part])
        begin = max(float(np.median(x)) / 0.6745, 1e-3), max(2 * float(np.quantile(x, 0.95)), 2e-3), 0.1
        width.append(float(np.log(two_normals(x, *begin, n_steps=100)[0])))
    return np.exp(np.interp(np.log(abundance + 1), size, width))


def log_odds(probability: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Compute log odds, finite for probabilities and errors of 0."""
    return np.log(np.maximum(probability, 1e-300)) - np.log(np.maximum(error, 1e-300))


def pooled(odds: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Order the genes by the log odds from the counts and from the decoder, and return log odds in this order.

    The probabilities from the counts are averaged over genes that this order and their own one rank differently
    (isotonic regression), so that they keep their mean. Genes with the same mean are apart by less than `APART`.

    Parameters
    ----------
    odds, decoded
        (genes,) log odds that a gene has changed: from the counts, and from the decoder alone.
    """
    seen = DECODER_WEIGHT * np.maximum(decoded, 0)
    order = np.argsort(odds + seen, kind="stable")
    given = (odds + np.minimum(seen, MOST_AGREEMENT))[order]
    probability, error = isotonic_regression(expit(given)).x, isotonic_regression(expit(-given), increasing=False).x
    result = np.empty(len(odds))  # values near 1 do not tell genes apart: hence both, and the maximum
    result[order] = np.maximum.accumulate(log_odds(probability, error)) + APART * np.arange(len(odds)) / len(odds)
    return result


def expected_fdr(error: np.ndarray) -> np.ndarray:
    """Compute the expected fraction of false discoveries if a gene and all more probable ones are called, (genes,).

    Parameters
    ----------
    error
        (genes,) posterior probability that calling the gene is wrong, 1 - proba_de. Ties are called together.
    """
    order = np.argsort(error, kind="stable")
    ranked = error[order]
    running = np.cumsum(ranked) / np.arange(1, len(error) + 1)
    last = np.searchsorted(ranked, ranked, side="right") - 1
    result = np.empty(len(error))
    result[order] = running[last]
    return result
