"""Posterior predictive checks: counts compared with p(x'|x), the predictive distribution for the same cells.

Arrays in, arrays out (Gelman, Meng & Stern 1996). z and l are sampled from their posteriors, x' from the likelihood.
Given the decoder's parameters, cells are independent under p(x'|x). The number of cells without a count of a gene is
therefore a sum of independent 0/1 variables, whose quantiles need no replicate of the data (`zero_interval`). The
rank of a count in its predictive distribution is a mean of distribution functions (`Distribution.cdf`).
"""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pandas as pd
import scipy.sparse as sp

BINS = 20  # of the rank histogram
CALIBRATED_GENES, CALIBRATED_CELLS = 250, 400  # genes and cells of the rank histogram


class Distribution(Protocol):
    """Distribution p(x | z, l) of some cells at one sample of z and l, such as `CountDistribution`."""

    def zero(self) -> np.ndarray:
        """Return P(x = 0), (cells, genes)."""

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return E x and E x^2, (cells, genes) each."""

    def cdf(self, x: np.ndarray) -> np.ndarray:
        """Return P(x' <= x), (cells, genes); 0 below 0."""

    def part(self, cells: np.ndarray, genes: np.ndarray) -> "Distribution":
        """Return the distribution of some of the cells and genes."""


def predictive_check(
    draws: Iterator[tuple[slice, Distribution]], matrix: sp.csr_matrix, genes: pd.Index, *, n_samples: int, seed: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """Compare counts with the model's predictive distribution for the same cells.

    Parameters
    ----------
    draws
        (rows, parameters) for chunks of cells in order, `n_samples` times for each chunk.
    matrix
        (cells, genes) counts.
    genes
        Names of the genes.

    Returns
    -------
    genes
        A row per gene; see `Diagnosis`.
    ranks
        (20,) rank histogram: randomised probability integral transforms (Czado, Gneiting & Held 2009) of the counts of
        the 250 genes with the most counts, in 400 random cells.
    """
    n_cells, n_genes = matrix.shape
    rng = np.random.default_rng([seed, 17])
    calibrated = np.zeros(n_cells, dtype=bool)
    calibrated[rng.permutation(n_cells)[:CALIBRATED_CELLS]] = True
    total = np.asarray(matrix.sum(0, dtype=np.float64)).ravel()
    columns = np.sort(np.argsort(-total, kind="stable")[:CALIBRATED_GENES])
    sums = np.zeros((4, n_genes))  # over cells, of P(x > 0), its square, E x, E x^2
    places: list[np.ndarray] = []
    for (zero, first, second), (below, at) in _averages(draws, matrix, calibrated, columns, n_samples):
        for total_of, values in zip(sums, (1 - zero, (1 - zero) ** 2, first, second), strict=True):
            for of_cell in values:  # cell by cell, so that rounding does not depend on the size of chunks
                total_of += of_cell
        places.append(below + rng.random(below.shape) * (at - below))
    some, square, first, second = sums
    low, high = zero_interval(some, square, n_cells)
    frame = pd.DataFrame(
        {
            "mean": total / n_cells,
            "variance": _variance(matrix, total),
            "zeros": 1 - matrix.getnnz(0) / n_cells,
            "model_mean": first / n_cells,
            "model_variance": second / n_cells - (first / n_cells) ** 2,
            "model_zeros": 1 - some / n_cells,
            "zeros_low": low / n_cells,
            "zeros_high": high / n_cells,
        },
        index=genes,
    )
    ranks, _ = np.histogram(np.concatenate(places), bins=BINS, range=(0, 1 + 1e-9))
    return frame, ranks / ranks.sum()


def _averages(draws, matrix, calibrated, columns, n_samples) -> Iterator[tuple[Any, Any]]:
    """Yield for each chunk the means over samples of z and l of P(x = 0), E x, E x^2, and of P(x' < x), P(x' <= x).

    The last two are those of the genes and cells of the rank histogram.
    """
    for number, (rows, parameters) in enumerate(draws):
        if number % n_samples == 0:
            inside = np.flatnonzero(calibrated[rows])
            x = matrix[rows][inside][:, columns].toarray().astype(np.float32)  # 0 - 1 must not wrap around
            whole, places = [0.0, 0.0, 0.0], [0.0, 0.0]
        for i, values in enumerate((parameters.zero(), *parameters.moments())):
            whole[i] = whole[i] + values / n_samples
        part = parameters.part(inside, columns)
        for i, at in enumerate((x - 1, x)):
            places[i] = places[i] + part.cdf(at) / n_samples
        if (number + 1) % n_samples == 0:
            yield whole, places


def _variance(matrix: sp.csr_matrix, total: np.ndarray) -> np.ndarray:
    square = np.asarray(matrix.astype(np.float64).power(2).sum(0)).ravel()
    return square / matrix.shape[0] - (total / matrix.shape[0]) ** 2


def zero_interval(some: np.ndarray, square: np.ndarray, n_cells: int, share: float = 0.95) -> tuple[Any, Any]:
    """Compute the central interval of the number of cells without a count, for independent 0/1 variables.

    Parameters
    ----------
    some, square
        (genes,) sums over cells of p and of p^2, where p is the probability of a nonzero count.
    n_cells
        Number of cells.
    share
        Least probability inside the interval.

    Returns
    -------
    (genes,) lowest and highest number of cells. The sum of 0/1 variables is approximated by a binomial of the same mean
    and, up to rounding, variance, which has the same Poisson and normal limits. The error is at most one cell.
    """
    from scipy.stats import binom  # takes a third of a second to import

    some, square = np.maximum(some, 1e-12), np.maximum(square, 1e-24)
    trials = np.clip(np.round(some**2 / square), np.ceil(some), n_cells)
    low, high = (binom.ppf(q, trials, np.minimum(some / trials, 1)) for q in ((1 - share) / 2, (1 + share) / 2))
    return n_cells - high, n_cells - low
