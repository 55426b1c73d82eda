"""For each gene the cells in which a condition changes it most, chosen on some molecules and tested on others.

After LEMUR (Ahlmann-Eltze & Huber 2025, https://doi.org/10.1038/s41588-024-01996-0): cells are ordered by the predicted
effect of the gene, and the region is the beginning or the end of this order. Its length is that at which the mean
predicted effect is clearest. The test over samples reads molecules that the model was not fitted to. Samples that truly
differ do so in both parts: on donors of pbmc_8donors dealt into two arms, 7 to 9 % of the p-values are below 0.05.
"""

import numpy as np
import scipy.sparse as sp
from scipy.special import stdtr
from scipy.stats import false_discovery_control

from sccvae.statistics.samples.design import design_of
from sccvae.statistics.samples.moderated import fit

FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # of the cells, at either end of the order
LEAST_COUNTS = 5.0  # counts of a gene in the region, over all samples: fewer are not compared
LEAST_CELLS = 3  # of each sample in a region
SCATTER = 0.2  # standard deviation of log rates between samples beside that of counts, assumed for the choice


def tested(
    effect: np.ndarray, counts: list[sp.csc_matrix], size: np.ndarray, sample: np.ndarray, arms: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Choose a region for each gene, and test it over samples on held-out molecules.

    Parameters
    ----------
    effect
        (cells, genes) predicted log2 fold changes.
    counts
        (cells, genes) molecules that the model was fitted to, and held-out ones.
    size
        (cells,) library sizes of the held-out ones.
    sample, arms
        (cells,) number of the sample; 1 for the condition, 0 for the reference, NaN for other cells.

    Returns
    -------
    Columns of a table of genes, and (genes, cells) bool, the cells of each region. p-values are those of moderated
    t-tests, NaN where a region has too few held-out molecules or lacks a sample.
    """
    taken = np.flatnonzero(~np.isnan(arms))
    unit, row = np.unique(np.column_stack([sample, arms])[taken], axis=0, return_inverse=True)
    row, arm = row.ravel(), unit[:, 1].astype(int)
    design = design_of(unit[:, 0].astype(int), np.where(arm == 1, 1, 2))
    found = choose(effect[taken], counts[0][taken], row, arm)
    total, library = sums(found, counts[1][taken], size[taken], row, len(arm))
    usable = (library > 0).all(0) & (total.sum(0) >= LEAST_COUNTS)
    pval, lfc, error, padj = np.full((4, effect.shape[1]), np.nan)
    if usable.sum() > 1:
        x, n = total[:, usable], library[:, usable]
        y = np.log2((x + 0.5 * n / n.mean(0)) / n * n.sum(0) / x.sum(0))
        fitted = fit(y, design).effects
        lfc[usable], error[usable] = fitted.estimate, fitted.error
        pval[usable] = 2 * stdtr(fitted.degrees, -np.abs(fitted.estimate / fitted.error))
        padj[usable] = false_discovery_control(pval[usable])
    inside = np.zeros((effect.shape[1], len(arms)), dtype=bool)
    inside[:, taken] = found
    mean = np.array([effect[cells, gene].mean() for gene, cells in enumerate(inside)])
    columns = {"cells": inside.sum(1), "effect": mean, "lfc_mean": lfc, "lfc_se": error, "pval": pval, "padj": padj}
    return columns, inside


def choose(effect: np.ndarray, counts: sp.csc_matrix, sample: np.ndarray, arm: np.ndarray) -> np.ndarray:
    """Choose the region of each gene in which the predicted effect is largest beside its expected error.

    Counts enter by the number of molecules alone, not by their difference between the arms. The rate of a cell is the
    same in both parts of its molecules: a region in which the arms differ by chance in one part differs in the other.

    Parameters
    ----------
    effect
        (cells, genes) predicted log2 fold changes.
    counts
        (cells, genes) molecules that the model was fitted to.
    sample, arm
        (cells,) number of the sample of each cell; (samples,) 0 or 1.

    Returns
    -------
    (genes, cells) bool: the cells of the region of each gene.
    """
    n_cells, n_genes = effect.shape
    chosen = np.zeros((n_genes, n_cells), dtype=bool)
    ends = np.unique([max(1, int(f * n_cells)) for f in FRACTIONS])
    one_hot = np.zeros((n_cells, len(arm)))
    one_hot[np.arange(n_cells), sample] = 1
    for gene in range(n_genes):
        order = np.argsort(effect[:, gene], kind="stable")
        x, best = counts[:, [gene]].toarray().ravel(), -np.inf
        for along in (order[::-1], order):
            cells = np.cumsum(one_hot[along], 0)[ends - 1]  # (lengths, samples)
            molecules = np.cumsum(x[along])[ends - 1]
            mean = np.cumsum(effect[along, gene])[ends - 1] / ends
            scores = np.abs(mean) / expected_error(cells, molecules, arm)
            at = int(np.argmax(scores))
            if scores[at] > best:
                best = scores[at]
                chosen[gene] = False
                chosen[gene, along[: ends[at]]] = True
    return chosen


def expected_error(cells: np.ndarray, molecules: np.ndarray, arm: np.ndarray) -> np.ndarray:
    """Return the expected error of a difference of log rates between the arms, (regions,); infinite without cells.

    Parameters
    ----------
    cells
        (regions, samples) numbers of cells.
    molecules
        (regions,) molecules of the gene in all cells of the region.
    """
    expected = molecules[:, None] * cells / np.maximum(cells.sum(1, keepdims=True), 1)
    variance = 1 / np.maximum(expected, 1e-9) + SCATTER**2
    total = sum(variance[:, arm == k].mean(1) / (arm == k).sum() for k in (0, 1))
    return np.where((cells >= LEAST_CELLS).all(1) & (molecules >= LEAST_COUNTS), np.sqrt(total), np.inf)


def sums(
    inside: np.ndarray, counts: sp.csc_matrix, size: np.ndarray, sample: np.ndarray, n_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sum held-out counts and library sizes of each gene's region by sample, (samples, genes) each."""
    n_genes = counts.shape[1]
    total, library = np.zeros((2, n_samples, n_genes))
    for gene in range(n_genes):
        cells = inside[gene]
        x = counts[:, [gene]].toarray().ravel()
        total[:, gene] = np.bincount(sample[cells], x[cells], n_samples)
        library[:, gene] = np.bincount(sample[cells], size[cells], n_samples)
    return total, library
