"""Mixture of Gaussians fitted to the aggregate posterior: arrays in, arrays out.

The aggregate posterior, the mean of q(y|x_n) over the cells, is the training distribution of the decoder's inputs.
Training pulls the aggregate posterior towards the prior. Where the two differ (the "holes" of a latent space), samples
from the prior decode to cells of no real cell type. With q(y|x_n) = Normal(mean_n, diag(variance_n)), EM raises a lower
bound of the mean log density,

    sum_n log sum_k w_k exp E_q[log Normal(y; m_k, S_k)]  <=  sum_n E_q[log sum_k w_k Normal(y; m_k, S_k)].

For variances of 0 this is the standard EM algorithm. The posterior variances enter S_k, so that no component collapses.
The information criterion of Akaike (1974, https://doi.org/10.1109/TAC.1974.1100705) selects the number of components.
That of Schwarz selects two to four on the data sets tried, whose samples are told from cells more easily.
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp, softmax

_COMPONENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_MAX_CELLS, _MAX_STEPS, _TOLERANCE = 5_000, 200, 1e-3  # _TOLERANCE in nats per cell


class Mixture(NamedTuple):
    """Mixture of Gaussians, with weights of the components for each profile of batch and covariates."""

    weights: np.ndarray  # (profiles, components), rows sum to 1
    means: np.ndarray  # (components, dimensions)
    factors: np.ndarray  # (components, dimensions, dimensions), lower triangular: covariance = factor @ factor.T

    def draw(self, profile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a sample for each entry of `profile`, (cells, dimensions)."""
        above = self.weights.cumsum(1)[profile] < rng.random(len(profile))[:, None]
        component = np.minimum(above.sum(1), len(self.means) - 1)  # a sum of weights may miss 1 by rounding
        noise = rng.standard_normal((len(profile), self.means.shape[1]))
        return self.means[component] + np.einsum("nij,nj->ni", self.factors[component], noise)


def fit(mean: np.ndarray, variance: np.ndarray, profile: np.ndarray, n_profiles: int, *, seed: int = 0) -> Mixture:
    """Fit a mixture of Gaussians to the aggregate posterior by EM.

    Components are shared by all profiles. The weights in a profile are those of the profile's cells, shrunken towards
    the weights among all cells by a prior of one cell.

    Parameters
    ----------
    mean, variance
        (cells, dimensions) of q(y|x) of each cell; of more than 5,000 cells, a random sample of 5,000 is used.
    profile
        (cells,) the profile of each cell, below `n_profiles`; -1 for a cell of no profile.
    seed
        Seed of the random sample of cells and of the starts of EM.
    """
    rng = np.random.default_rng(seed)
    if len(mean) > _MAX_CELLS:
        chosen = rng.choice(len(mean), _MAX_CELLS, replace=False)
        mean, variance, profile = mean[chosen], variance[chosen], profile[chosen]
    mean, variance = mean.astype(np.float64), variance.astype(np.float64)
    n_cells, d = mean.shape
    best, lowest, worse = None, np.inf, 0
    for k in _COMPONENTS:
        if k > 1 and n_cells < 2 * (d + 1) * k:
            break
        fitted = _expectation_maximisation(mean, variance, _start(mean, k, rng))
        n_parameters = k * (1 + d + d * (d + 1) / 2) - 1
        criterion = 2 * n_parameters - 2 * fitted[0]
        best, lowest, worse = (fitted, criterion, 0) if criterion < lowest else (best, lowest, worse + 1)
        if worse == 2:
            break
    assert best is not None
    _, responsibility, means, covariances = best
    of_profiles = np.zeros((n_profiles, responsibility.shape[1]))
    np.add.at(of_profiles, profile[profile >= 0], responsibility[profile >= 0])
    weights = of_profiles + responsibility.mean(0)
    return Mixture(weights / weights.sum(1, keepdims=True), means, np.linalg.cholesky(covariances))


def _start(x: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Return initial responsibilities, (cells, k): 1 for the nearest of k distant cells (k-means++, Arthur 2007)."""
    distance2 = ((x - x[rng.integers(len(x))]) ** 2).sum(1)[:, None]
    while distance2.shape[1] < k and (nearest := distance2.min(1)).any():
        centre = x[rng.choice(len(x), p=nearest / nearest.sum())]
        distance2 = np.column_stack([distance2, ((x - centre) ** 2).sum(1)])
    return np.eye(distance2.shape[1])[distance2.argmin(1)]


def _expectation_maximisation(
    mean: np.ndarray, variance: np.ndarray, responsibility: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Run EM from initial responsibilities, (cells, k).

    Returns the bound in nats, responsibilities (cells, k), means (k, d) and covariances (k, d, d).
    """
    bound, d = -np.inf, mean.shape[1]
    for _ in range(_MAX_STEPS):
        n = responsibility.sum(0) + 1e-10
        means = responsibility.T @ mean / n[:, None]
        covariances, log_p = np.empty((len(n), d, d)), np.empty_like(responsibility)
        for k, centre in enumerate(means):
            difference = mean - centre
            covariances[k] = (responsibility[:, k, None] * difference).T @ difference / n[k]
            covariances[k] += np.diag(responsibility[:, k] @ variance / n[k] + 1e-8)
            factor = np.linalg.cholesky(covariances[k])
            inverse = solve_triangular(factor, np.eye(d), lower=True)
            squares = ((difference @ inverse.T) ** 2).sum(1) + variance @ (inverse**2).sum(0)
            log_p[:, k] = np.log(n[k] / len(mean)) - np.log(np.diag(factor)).sum() - squares / 2
        before, bound = bound, float(logsumexp(log_p, axis=1).sum() - len(mean) * d / 2 * np.log(2 * np.pi))
        if bound - before < _TOLERANCE * len(mean):
            break
        responsibility = softmax(log_p, axis=1)
    return bound, responsibility, means, covariances
