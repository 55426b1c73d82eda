"""Distribution of counts given z and l, in numpy: probabilities of zero, moments, distribution function."""

from typing import NamedTuple

import numpy as np
from scipy.special import betainc, pdtr


class CountDistribution(NamedTuple):
    """p(x | z, l) of some cells at one sample of z and l: Poisson, with theta NB, with zero inflation ZINB."""

    mean: np.ndarray  # (cells, genes), before drop-out
    theta: np.ndarray | None  # (genes,) or (cells, genes)
    dropout: np.ndarray | None  # (cells, genes), a probability

    def zero(self) -> np.ndarray:
        """P(x = 0), (cells, genes)."""
        zero = np.exp(-self.mean if self.theta is None else -self.theta * np.log1p(self.mean / self.theta))
        return zero if self.dropout is None else self.dropout + (1 - self.dropout) * zero

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """E x and E x^2, (cells, genes) each."""
        first, second = self.mean, self.mean + self.mean**2 * (1 if self.theta is None else 1 + 1 / self.theta)
        return (first, second) if self.dropout is None else ((kept := 1 - self.dropout) * first, kept * second)

    def cdf(self, x: np.ndarray) -> np.ndarray:
        """P(x' <= x), (cells, genes); 0 below 0."""
        at, mean = np.maximum(x, 0).astype(np.float64), np.maximum(self.mean.astype(np.float64), 1e-12)
        if self.theta is None:
            value = pdtr(at, mean)
        else:
            theta = np.broadcast_to(self.theta, mean.shape).astype(np.float64)
            value = betainc(theta, at + 1, theta / (theta + mean))
        value = value if self.dropout is None else self.dropout + (1 - self.dropout) * value
        return np.where(x < 0, 0.0, value)

    def part(self, cells: np.ndarray, genes: np.ndarray) -> "CountDistribution":
        """Some of the cells and genes."""
        theta = self.theta if self.theta is None else self.theta[..., genes]
        theta = theta[cells] if theta is not None and theta.ndim == 2 else theta
        dropout = None if self.dropout is None else self.dropout[np.ix_(cells, genes)]
        return CountDistribution(self.mean[np.ix_(cells, genes)], theta, dropout)
