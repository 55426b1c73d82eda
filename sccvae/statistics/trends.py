"""Expression along pseudotime: smooth means with credible bands. Arrays in, arrays out.

A trend is a local linear regression (Cleveland 1979, without the robust steps): at each point of a grid, a line fitted
by weighted least squares to the nearest cells, with tricube weights that fall to 0 at the farthest of them. The
regression follows the slope at both ends, where a running mean is biased, and widens its window where cells are few.

A sample of the trend samples z from every cell's posterior and weights the cells at random (Bayesian bootstrap, Rubin
1981). These samples alone underestimate the uncertainty: they take the decoder's parameters as known, although these
were fitted to the noise of the same counts. Bands of 90 % would contain the truth one time in seven. Each sample is
therefore multiplied by r(t) ~ Gamma(1/2 + n, 1/2 + n), n = E^2 / V. E and V are the kernel's sums of the expected
counts and (kernel squared) of their variances; r(t) is the posterior of a mean given as many overdispersed counts. The
curve is the decoder's; the width of the band reflects the counts near each point. The band takes pseudotime as known
and does not include errors of the decoder, such as ends shrunken to the middle where cells are few: in simulations
bands of 90 % contained 75 to 96 % of the true trend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import gammaincinv

from sccvae.validation.arguments import MOST, checked_seed, real, whole

SAMPLES_OF_Z = 10  # number of decodings; the cells of each are weighted at random several times


Chunks = Iterable[tuple[slice, np.ndarray, np.ndarray]]


class Trend(NamedTuple):
    """Trend of one lineage: a grid of pseudotime, (points,); mean and band of each gene there, (points, genes)."""

    grid: np.ndarray
    mean: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class Smoother:
    """Local linear regression on one variable.

    Parameters
    ----------
    x
        Position of each value, such as its pseudotime, (cells,), finite.
    grid
        Positions at which the curve is evaluated, (points,).
    span
        Fraction of the cells to which each point of the curve is fitted.
    """

    def __init__(self, x: np.ndarray, grid: np.ndarray, span: float) -> None:
        n_near = min(len(x), max(3, int(np.ceil(span * len(x)))))
        apart = x[None, :] - grid[:, None]  # (points, cells)
        reach = np.partition(np.abs(apart), n_near - 1, axis=1)[:, n_near - 1 : n_near]
        reach = 1.0001 * np.maximum(reach, 1e-12)  # a small weight for the farthest cell: all cells may be tied with it
        apart /= reach
        kernel = np.maximum(1 - np.abs(apart) ** 3, 0) ** 3
        self.moments = kernel, kernel * apart, kernel * apart**2

    def __call__(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Smooth `values`, (cells, columns), with `weights`, (cells,): return the curve, (points, columns)."""
        s0, s1, s2 = ((moment @ weights)[:, None] for moment in self.moments)
        weighted = weights[:, None] * values
        a0, a1 = self.moments[0] @ weighted, self.moments[1] @ weighted
        spread = s0 * s2 - s1**2  # 0 where all cells have the same x: the curve is then the mean
        line = spread > 1e-9 * s0**2
        return np.where(line, (s2 * a0 - s1 * a1) / np.where(line, spread, 1), a0 / s0)


def trends(
    draw: Callable[[int], np.ndarray],
    counts: Chunks,
    pseudotime: np.ndarray,
    lineages: Sequence[np.ndarray],
    *,
    n_points: int = 50,
    span: float = 0.3,
    level: float = 0.9,
    n_samples: int = 200,
    seed: int = 0,
) -> list[Trend]:
    """Compute the trends of expression along pseudotime in each lineage.

    Parameters
    ----------
    draw
        Function from the number of a sample to expression, with z sampled from the posterior, (cells, genes), 0 or
        more.
    counts
        For chunks of cells, in order: (rows, expected counts, their variances), (cells, genes) each.
    pseudotime
        (cells,); cells with values that are not finite are left out.
    lineages
        Boolean mask of the cells of each lineage, (cells,).
    n_points
        Number of points of each curve, from the 1st to the 99th percentile of the lineage's pseudotime.
    span
        Fraction of the lineage's cells to which each point of the curve is fitted.
    level
        Probability of the band.
    n_samples
        Number of samples of each curve.

    Returns
    -------
    A `Trend` for each lineage, in the units of `draw`.

    Raises
    ------
    ValueError
        A lineage has fewer than 10 cells with a finite pseudotime; a number is out of range.
    """
    n_points, n_samples = whole("n_points", n_points, most=MOST), whole("n_samples", n_samples, most=MOST)
    span, level, seed = real("span", span), real("level", level), checked_seed(seed)
    for name, value, fits, expected in (
        ("n_points", n_points, n_points >= 2, "at least 2"),
        ("span", span, 0 < span <= 1, "a fraction in (0, 1]"),
        ("level", level, 0 < level < 1, "a probability between 0 and 1, such as 0.9"),
        ("n_samples", n_samples, n_samples >= 20, "at least 20, because the band consists of their quantiles"),
    ):
        if not fits:
            raise ValueError(f"{name} is {value}; expected {expected}.")
    known = np.isfinite(pseudotime)
    cells = [np.flatnonzero(mask & known) for mask in lineages]
    for number, some in enumerate(cells):
        if len(some) < 10:
            raise ValueError(f"Lineage number {number} has {len(some)} cells with a pseudotime; expected at least 10.")
    ends = [np.quantile(pseudotime[some], [0.01, 0.99]) for some in cells]
    grids = [np.linspace(first, last, n_points) for first, last in ends]
    smoothers = [Smoother(pseudotime[some], grid, span) for some, grid in zip(cells, grids, strict=True)]
    rng = np.random.default_rng(seed)
    curves: list[list[np.ndarray]] = [[] for _ in cells]
    for number in range(SAMPLES_OF_Z):
        expression = np.asarray(draw(number), dtype=np.float64)
        for _ in range(number, n_samples, SAMPLES_OF_Z):
            for some, smoother, found in zip(cells, smoothers, curves, strict=True):
                found.append(smoother(expression[some], rng.standard_exponential(len(some))))
    result = []
    for grid, found, n in zip(grids, curves, effective_counts(counts, cells, smoothers), strict=True):
        drawn = np.maximum(np.stack(found), 0)  # a line may cross 0 where expression vanishes
        # One quantile for each sample and gene, at all points, so that the band is as smooth as the curve.
        quantiles = rng.permuted(np.tile(np.arange(n_samples)[:, None], drawn.shape[2]), axis=0)
        drawn *= gammaincinv(0.5 + n, (quantiles[:, None, :] + 0.5) / n_samples) / (0.5 + n)
        lower, upper = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        result.append(Trend(grid, drawn.mean(0), lower, upper))
    return result


def effective_counts(counts: Chunks, cells: Sequence[np.ndarray], smoothers: Sequence[Smoother]) -> list[np.ndarray]:
    """Compute (sum of k E[x])^2 / sum of k^2 Var[x] with the kernel k, (points, genes) for each lineage."""
    expected, variance = (np.vstack(parts).astype(np.float64) for parts in zip(*(c[1:] for c in counts), strict=True))
    result = []
    for some, smoother in zip(cells, smoothers, strict=True):
        kernel = smoother.moments[0]
        result.append((kernel @ expected[some]) ** 2 / np.maximum(kernel**2 @ variance[some], 1e-30))
    return result
