"""Two sources of evidence for the effect in one kind of cells, weighed by a mixture that is fitted to all genes.

The own effect is that in the sums of the compared cells. The other one is either that in the sums of the other cells of
the same samples, or that in the model's expected counts of the compared cells. Estimates x = (own, other) of a gene are
N(0, C_k + V), V being their error. The components k, after Urbut et al. 2019
(https://doi.org/10.1038/s41588-018-0268-8), are

    no effect           C = 0
    own effect only     C = diag(a^2, 0)
    other effect only   C = diag(0, a^2)       the own effect is zero
    the same effect     C = a^2 (1 1; 1 1)
    similar effects     C = a^2 (1 .6; .6 1)

at scales a from a grid. Weights by EM state how far the other source can be trusted in the data at hand: if effects are
local, components of the same effect have little weight. The score of a gene is the log odds of an own effect.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from sccvae.statistics.differential_expression.probability import widths
from sccvae.statistics.samples.moderated import Effects

N_SCALES = 9
SMALLEST_SCALE = 0.05  # log2 units
SIMILAR = 0.6  # correlation of similar effects
N_STEPS = 150
MOST_GENES = 5000  # that the mixture is fitted to
LEAST_LEAK = 2.0  # same effects below this multiple of the error that all samples share count as no own effect


class Mixture(NamedTuple):
    """Mixture of effects.

    Attributes
    ----------
    covariances
        (components, 3): variance of the own effect, of the other one, covariance.
    own, same
        (components,) whether there is an own effect; whether both are the same.
    log_weights
        (components,) log weights.
    """

    covariances: np.ndarray
    own: np.ndarray
    same: np.ndarray
    log_weights: np.ndarray


class Sources(NamedTuple):
    """Estimates of the own and the other effect.

    Attributes
    ----------
    own, other
        (..., genes) estimates, in log2 units.
    own_error, other_error
        Their standard errors.
    covariance
        (..., genes) or a number: covariance of their errors.
    """

    own: np.ndarray
    other: np.ndarray
    own_error: np.ndarray
    other_error: np.ndarray
    covariance: np.ndarray


def grid(estimate: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return scales of effects, (N_SCALES,), from far below the errors to twice the largest effect."""
    low = max(0.1 * float(np.median(error)), SMALLEST_SCALE)
    high = max(2 * float(np.sqrt(max((estimate**2 - error**2).max(), 0.01))), 0.5)
    return np.geomspace(low, max(high, 2 * low), N_SCALES)


def components(sources: Sources, shared_error: float) -> Mixture:
    """Return the components of the mixture, all with the same weight.

    Parameters
    ----------
    shared_error
        Error that the other source has in common for all samples, in log2 units.
    """
    first = grid(sources.own, sources.own_error)
    second = grid(sources.other, sources.other_error)
    large = first >= LEAST_LEAK * shared_error
    rows = [(0.0, 0.0, 0.0, False, False)]
    rows += [(a * a, 0.0, 0.0, True, False) for a in first]
    rows += [(0.0, a * a, 0.0, False, False) for a in second]
    rows += [(a * a, a * a, a * a, bool(big), bool(big)) for a, big in zip(first, large, strict=True)]
    rows += [(a * a, a * a, SIMILAR * a * a, True, False) for a in first[large]]
    columns = np.array(rows)
    weights = np.full(len(rows), -np.log(len(rows)))
    return Mixture(columns[:, :3], columns[:, 3] == 1, columns[:, 4] == 1, weights)


def log_likelihood(sources: Sources, covariances: np.ndarray) -> np.ndarray:
    """Compute log N(x; 0, C_k + V) without the constant, (..., genes, components)."""
    x, y = sources.own, sources.other
    result = np.empty((*x.shape, len(covariances)))
    for k, (first, second, between) in enumerate(covariances):
        a, b, c = sources.own_error**2 + first, sources.other_error**2 + second, sources.covariance + between
        determinant = np.maximum(a * b - c * c, 1e-300)
        result[..., k] = -0.5 * ((b * x * x - 2 * c * x * y + a * y * y) / determinant + np.log(determinant))
    return result


def fit(sources: Sources, shared_error: float = 0.0) -> Mixture:
    """Fit the weights of the components to estimates, (genes,), by EM."""
    mixture = components(sources, shared_error)
    every = -(-len(sources.own) // MOST_GENES)
    some = Sources(*(np.broadcast_to(part, sources.own.shape)[::every] for part in sources))
    likelihood = log_likelihood(some, mixture.covariances)
    likelihood = np.exp(likelihood - likelihood.max(1, keepdims=True))
    weights = np.full(len(mixture.own), 1 / len(mixture.own))
    for _ in range(N_STEPS):
        share = likelihood * weights
        share /= share.sum(1, keepdims=True)
        weights = share.mean(0)
    return mixture._replace(log_weights=np.log(np.maximum(weights, 1e-12)))


class Posterior(NamedTuple):
    """Posterior of each gene, (..., genes): log odds of an own effect; probability that an own effect is the same."""

    log_odds: np.ndarray
    same: np.ndarray


def posterior(sources: Sources, mixture: Mixture) -> Posterior:
    """Compute the posterior of estimates given a fitted mixture."""
    joint = log_likelihood(sources, mixture.covariances) + mixture.log_weights
    own = logsumexp(joint[..., mixture.own], axis=-1)
    none = logsumexp(joint[..., ~mixture.own], axis=-1)
    if not mixture.same.any():
        return Posterior(own - none, np.zeros_like(own))
    return Posterior(own - none, np.exp(logsumexp(joint[..., mixture.same], axis=-1) - own))


def p_values(score: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Compute p-values of scores, (genes,), from scores without effects; larger scores are more extreme.

    Beyond the 100 largest null scores an exponential tail is fitted, so that p-values of large scores differ.
    """
    ranked = np.sort(null, axis=None)
    n = len(ranked)
    m = max(min(100, n // 20), 1)
    start = ranked[n - 1 - m]
    mean = max(float((ranked[n - m :] - start).mean()), 1e-6)
    above = n - np.searchsorted(ranked, score, side="left")
    inside = (1 + above) / (1 + n)
    beyond = (1 + m) / (1 + n) * np.exp(-np.maximum(score - start, 0) / mean)
    return np.maximum(np.where(score > start, beyond, inside), 1e-300)


def shared_error(other: Effects, abundance: np.ndarray) -> np.ndarray:
    """Estimate the error of the model's expectation that all samples have in common, (genes,), in log2 units.

    The decoder is fitted to the counts of all samples together. Chance differences between the groups therefore appear
    in the expected counts of all samples, and the variation between samples does not include them. The narrower of two
    normals, fitted to the estimates of genes of similar abundance, has both errors.
    """
    total = widths(other.estimate, abundance)
    return np.sqrt(np.maximum(total**2 - other.error**2, 0))


def no_effect(log_odds: np.ndarray) -> np.ndarray:
    """Return the posterior probabilities that genes have no own effect, from log odds."""
    return np.exp(-np.logaddexp(0, log_odds))
