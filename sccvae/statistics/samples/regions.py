"""For each gene the cells in which a condition changes it most, chosen on some molecules and tested on others.

After LEMUR (Ahlmann-Eltze & Huber 2025, https://doi.org/10.1038/s41588-024-01996-0): cells are ordered by the predicted
effect of the gene, and the region is the beginning or the end of this order. Its length is chosen by the molecules that
the model was fitted to. The test over samples reads molecules that neither the model nor the choice has read.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # of the cells, at either end of the order
LEAST_COUNTS = 5.0  # counts of a gene in the region, over all samples: fewer are not compared


class Regions(NamedTuple):
    """A region for each gene."""

    cells: np.ndarray  # (genes, cells) bool
    sign: np.ndarray  # (genes,) 1: the largest effects; -1: the smallest


def choose(effect: np.ndarray, counts: sp.csc_matrix, size: np.ndarray, sample: np.ndarray, arm: np.ndarray) -> Regions:
    """Choose the region of each gene in which the samples of two arms differ most clearly.

    Parameters
    ----------
    effect
        (cells, genes) predicted log2 fold changes.
    counts
        (cells, genes) molecules that the model was fitted to.
    size
        (cells,) their library sizes.
    sample, arm
        (cells,) number of the sample of each cell; (samples,) 0 or 1.
    """
    n_cells, n_genes = effect.shape
    chosen, sign = np.zeros((n_genes, n_cells), dtype=bool), np.ones(n_genes, dtype=int)
    ends = np.unique([max(1, int(f * n_cells)) for f in FRACTIONS])
    n_samples = len(arm)
    one_hot = np.zeros((n_cells, n_samples))
    one_hot[np.arange(n_cells), sample] = 1
    for gene in range(n_genes):
        order = np.argsort(effect[:, gene], kind="stable")
        x = counts[:, [gene]].toarray().ravel()
        best = -np.inf
        for direction in (1, -1):
            along = order[::-1] if direction == 1 else order
            total = np.cumsum(one_hot[along] * x[along, None], 0)[ends - 1]  # (lengths, samples)
            library = np.cumsum(one_hot[along] * size[along, None], 0)[ends - 1]
            scores = clarity(total, library, arm)
            at = int(np.argmax(scores))
            if scores[at] > best:
                best, sign[gene] = scores[at], direction
                chosen[gene] = False
                chosen[gene, along[: ends[at]]] = True
        if best == -np.inf:
            chosen[gene] = True
    return Regions(chosen, sign)


def clarity(total: np.ndarray, library: np.ndarray, arm: np.ndarray) -> np.ndarray:
    """Return the absolute t statistic of log rates between the arms, (regions,); -inf where samples have no cells.

    Parameters
    ----------
    total, library
        (regions, samples) counts of the gene, and library sizes.
    """
    rate = total.sum(1, keepdims=True) / np.maximum(library.sum(1, keepdims=True), 1)
    logs = np.log((total + 0.5) / (library * 1.0 + 0.5 / np.maximum(rate, 1e-12)))
    first, second = logs[:, arm == 1], logs[:, arm == 0]
    # The variance is at least that of the counts alone.
    noise = sum((1 / (total[:, arm == k] + 0.5)).mean(1) / (arm == k).sum() for k in (0, 1))
    scatter = first.var(1, ddof=1) / first.shape[1] + second.var(1, ddof=1) / second.shape[1]
    t = np.abs(first.mean(1) - second.mean(1)) / np.sqrt(np.maximum(scatter, noise))
    return np.where((library > 0).all(1) & (total.sum(1) >= LEAST_COUNTS), t, -np.inf)


def sums(regions: Regions, counts: sp.csc_matrix, size: np.ndarray, sample: np.ndarray, n_samples: int):
    """Sum held-out counts and library sizes of each gene's region by sample, (samples, genes) each."""
    n_genes = counts.shape[1]
    total, library = np.zeros((2, n_samples, n_genes))
    for gene in range(n_genes):
        inside = regions.cells[gene]
        x = counts[:, [gene]].toarray().ravel()
        total[:, gene] = np.bincount(sample[inside], x[inside], n_samples)
        library[:, gene] = np.bincount(sample[inside], size[inside], n_samples)
    return total, library
