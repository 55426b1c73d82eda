"""Scores of a generator: similarity of generated to real cells, and holes in the latent space.

Arrays in, numbers out. Compare every score with that of real cells against other real cells: pass a second half of the
data as `generated` for the scores of a perfect generator. Distance scores need features on one scale, such as
`principal_components` of `log_normalized` counts; `score_generator` computes all scores.

`real` and `generated` are (cells, genes or features), dense or SciPy sparse, with the same columns. Of arrays with more
than `max_cells` cells, random samples of `max_cells` cells are scored, determined by `seed`. Sums are in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array, issparse
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC

from sccvae.metrics.distances import (
    MMD,
    PathLogDensity,
    PrecisionCoverage,
    as_float,
    checked,
    checked_pair,
    line_log_density,
    mmd,
    path_log_density,
    precision_coverage,
    prior_fit,
    spurious,
    stacked,
    stream,
)
from sccvae.metrics.memorisation import Memorisation, memorisation
from sccvae.validation.arguments import FLOAT32, MOST, SEEDS, checked_seed, finite, limit, unless_none, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sccvae.metrics.distances import Matrix

__all__ = [
    "MMD",
    "Memorisation",
    "PathLogDensity",
    "PrecisionCoverage",
    "gene_agreement",
    "line_log_density",
    "log_normalized",
    "memorisation",
    "mmd",
    "path_log_density",
    "precision_coverage",
    "principal_components",
    "prior_fit",
    "score_generator",
    "spurious",
    "summaries",
    "two_sample_auc",
]


# ------------------------------------------------------------------------------------------------------------- features


def log_normalized(counts: Matrix, *, total: float = 1e4) -> Any:
    """Compute the logarithm of one plus the counts, with each cell scaled to the same total.

    Parameters
    ----------
    counts
        (cells, genes), not negative. Cells without counts stay zero.
    total
        Counts per cell after scaling. Use one number for all data that are compared, such as the median of the real
        cells.

    Returns
    -------
    numpy.ndarray or scipy.sparse.csr_array
        (cells, genes), float64; sparse if `counts` are.

    Raises
    ------
    ValueError
        `counts` is not a matrix of finite numbers, or has negative values; `total` is not positive.

    Examples
    --------
    >>> from sccvae import generation
    >>> generation.log_normalized([[1, 3], [0, 0]], total=4).round(2).tolist()
    [[0.69, 1.39], [0.0, 0.0]]
    """
    total = finite("total", total, "counts per cell above 0, such as 1e4", above=0, most=FLOAT32)
    x = as_float(checked(counts, "counts", nonnegative=True, least=1))
    sums = np.asarray(x.sum(1)).ravel()
    factors = total / np.where(sums > 0, sums, 1)
    if not issparse(x):
        return np.log1p(x * factors[:, None])
    return csr_array((np.log1p(x.data * np.repeat(factors, np.diff(x.indptr))), x.indices, x.indptr), shape=x.shape)


def summaries(counts: Matrix) -> NDArray:
    """Compute six summary statistics of each cell's counts, without normalisation.

    Parameters
    ----------
    counts
        (cells, genes), not negative.

    Returns
    -------
    numpy.ndarray
        (cells, 6), float64: log(1 + total), fraction of genes with no count, fraction of ones among the detected genes,
        fraction of the total in the highest gene, log(1 + variance over genes), entropy of the profile in nats. For a
        cell without counts, the last four are 0.

    Raises
    ------
    ValueError
        `counts` is not a matrix of finite numbers, or has negative values.

    Examples
    --------
    >>> from sccvae import generation, simulate
    >>> generation.summaries(simulate.simulate(100, 30, seed=0).X).shape
    (100, 6)
    """
    x = csr_array(as_float(checked(counts, "counts", nonnegative=True, least=1)))
    x.eliminate_zeros()
    n_cells, n_genes = x.shape
    cell = np.repeat(np.arange(n_cells), np.diff(x.indptr))

    def per_cell(values: NDArray) -> NDArray:
        return np.bincount(cell, values, minlength=n_cells)

    totals, detected = per_cell(x.data), np.diff(x.indptr)
    fraction = x.data / totals[cell]
    highest = np.zeros(n_cells)
    np.maximum.at(highest, cell, fraction)
    variance = np.maximum(per_cell(x.data**2) / n_genes - (totals / n_genes) ** 2, 0)
    ones = per_cell(x.data == 1) / np.maximum(detected, 1)
    entropy = -per_cell(fraction * np.log(fraction))
    return np.column_stack([np.log1p(totals), 1 - detected / n_genes, ones, highest, np.log1p(variance), entropy])


def principal_components(
    real: Matrix, generated: Matrix, *, n_components: int = 50, seed: int = 0
) -> tuple[NDArray, NDArray]:
    """Compute principal components of real and generated cells jointly, so that neither is favoured.

    Parameters
    ----------
    real, generated
        Features of one scale, such as `log_normalized` counts; (cells, features) each.
    n_components
        Largest number of components; fewer where there are fewer features or cells.
    seed
        Seed of the solver's first vector.

    Returns
    -------
    real, generated
        (cells, components) each, dense float64, in the units of the features.

    Raises
    ------
    ValueError
        The arrays do not match or are not finite; all cells are identical.

    Examples
    --------
    >>> from sccvae import generation, simulate
    >>> real, other = (generation.log_normalized(simulate.simulate(100, 30, seed=seed).X) for seed in (0, 1))
    >>> z_real, z_other = generation.principal_components(real, other, n_components=5)
    >>> z_real.shape, z_other.shape
    ((100, 5), (100, 5))
    """
    real, generated = checked_pair(real, generated)
    n_components, seed = whole("n_components", n_components), checked_seed(seed, most=SEEDS)
    if n_components < 1:
        raise ValueError(f"n_components is {n_components}; expected at least 1, such as 50.")
    both = stacked(real, generated)
    scores = _fitted_pca(both, n_components, seed).transform(both)
    return scores[: real.shape[0]], scores[real.shape[0] :]


# --------------------------------------------------------------------------------------------------------------- scores


def two_sample_auc(
    real: Matrix,
    generated: Matrix,
    *,
    n_folds: int = 5,
    n_components: int = 50,
    max_cells: int | None = 2_000,
    seed: int = 0,
) -> float:
    """Compute the AUC of a classifier of generated against real cells: a classifier two-sample test.

    The score [1]_ is the area under the ROC curve in test cells, the mean over folds. The classifier is the mean rank
    of a support vector machine (RBF kernel) and of gradient-boosted trees. On simulated counts the first was more
    accurate, on cortex cells the second; the mean was about as accurate as the better one on both.

    Parameters
    ----------
    real, generated
        Features, (cells, features) each, such as ``log_normalized(counts)`` or ``summaries(counts)``. The larger array
        is replaced by a random sample of as many cells as the smaller.
    n_folds
        Number of folds of the cross-validation.
    n_components
        If there are more features than `n_components`, they are replaced by `n_components` principal components;
        otherwise they are standardised. Both are fitted to the training part of each fold.
    max_cells
        Largest number of cells of each, sampled at random; ``None`` takes all. Time grows with its square.
    seed
        Seed of the random samples, the folds and the classifier.

    Returns
    -------
    float
        0.5, the best value: classified no better than by chance; 1: always classified correctly. A perfect generator
        scores 0.5 within about ``1 / sqrt(cells)``. Copies of real cells score well below 0.5, because each copy is
        classified as its original is labelled.

    Raises
    ------
    ValueError
        The arrays do not match or are not finite; there are fewer cells than folds, or `n_folds` is below 2.

    References
    ----------
    .. [1] Lopez-Paz & Oquab, Revisiting classifier two-sample tests, ICLR 2017.

    Examples
    --------
    >>> from sccvae import generation, simulate
    >>> x = simulate.simulate(100, 30, seed=0).X.toarray()
    >>> round(generation.two_sample_auc(x, x + 100), 2)  # always told apart
    1.0
    """
    n_folds, n_components = whole("n_folds", n_folds, most=MOST), whole("n_components", n_components)
    if n_folds < 2 or n_components < 1:
        raise ValueError(f"n_folds is {n_folds} and n_components is {n_components}; expected at least 2 and 1.")
    real, generated = checked_pair(real, generated, max_cells=max_cells, seed=seed, balanced=True, least=n_folds)
    x, y = stacked(real, generated), np.repeat([0, 1], real.shape[0])
    state = int(stream(seed, 1).integers(2**31))
    scores = []
    for train, test in StratifiedKFold(n_folds, shuffle=True, random_state=state).split(np.zeros(len(y)), y):
        seen, unseen = _reduced(x[train], x[test], n_components, state)
        machine = SVC(C=1.0, gamma="scale", random_state=state).fit(seen, y[train])
        trees = HistGradientBoostingClassifier(
            max_iter=60, max_leaf_nodes=15, early_stopping=False, random_state=state
        ).fit(seen, y[train])
        votes = rankdata(machine.decision_function(unseen)) + rankdata(trees.decision_function(unseen))
        scores.append(roc_auc_score(y[test], votes))
    return float(np.mean(scores))


def gene_agreement(real: Matrix, generated: Matrix, *, n_top_genes: int = 200) -> pd.DataFrame:
    """Compare mean, variance and zero fraction of each gene, and coexpression of pairs, with those of real counts.

    Parameters
    ----------
    real, generated
        Counts, (cells, genes) each, not negative.
    n_top_genes
        Number of genes that form pairs: those with the largest variance of log-normalised counts in real cells.

    Returns
    -------
    pandas.DataFrame
        A row each for ``log_mean`` and ``log_variance`` (log10 of the gene's mean and variance plus one count in all
        cells of the smaller array), ``zero_fraction``, and ``coexpression`` (over pairs of genes: Pearson's correlation
        of log-normalised counts, 0 where a gene does not vary). Columns: ``correlation`` of the two arrays, at most 1,
        ``nan`` where one is constant, and ``difference``, the mean absolute one: 0.3 is a factor of 2 in mean or
        variance. Genes found in neither are left out.

    Raises
    ------
    ValueError
        The arrays do not match, are not finite, or have negative values; no gene has a count in real cells.

    Examples
    --------
    >>> from sccvae import generation, simulate
    >>> real, other = (simulate.simulate(100, 30, seed=seed).X for seed in (0, 1))
    >>> generation.gene_agreement(real, other).index.tolist()
    ['log_mean', 'log_variance', 'zero_fraction', 'coexpression']
    """
    n_top_genes = limit("n_top_genes", n_top_genes)
    real, generated = (csr_array(x) for x in checked_pair(real, generated, nonnegative=True))
    (mean, variance, zeros), (mean_g, variance_g, zeros_g) = _moments(real), _moments(generated)
    found = (mean > 0) | (mean_g > 0)
    one = 1 / min(real.shape[0], generated.shape[0])
    total = _median_total(real)
    log, log_g = log_normalized(real, total=total), log_normalized(generated, total=total)
    top = np.argsort(-_moments(log)[1], kind="stable")[:n_top_genes]
    pairs = np.triu_indices(len(top), 1)
    compared = {
        "log_mean": (np.log10(mean + one)[found], np.log10(mean_g + one)[found]),
        "log_variance": (np.log10(variance + one)[found], np.log10(variance_g + one)[found]),
        "zero_fraction": (zeros[found], zeros_g[found]),
        "coexpression": (_correlations(log[:, top])[pairs], _correlations(log_g[:, top])[pairs]),
    }
    rows = {name: _agreement(a, b) for name, (a, b) in compared.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["correlation", "difference"])


def score_generator(
    real: Matrix,
    generated: Matrix,
    *,
    seconds: float | None = None,
    n_components: int = 50,
    max_cells: int | None = 2_000,
    seed: int = 0,
) -> dict[str, float]:
    """Compute all scores of generated counts, a row of ``pd.DataFrame({name: score_generator(...)}).T``.

    Parameters
    ----------
    real, generated
        Counts, (cells, genes) each, not negative; preferably real cells that the generator was not trained on.
    seconds
        Time to generate `generated`, in seconds, for ``seconds_per_1000``; None leaves the score out.
    n_components
        Number of principal components of log-normalised counts (to the real cells' median total) for the distances.
    max_cells, seed
        As in `two_sample_auc`; as many cells of each are compared, and all of them in `gene_agreement`.

    Returns
    -------
    dict of str to float
        ``auc_log``, ``auc_summaries`` (best 0.5); ``mmd`` (0), ``mmd_p``; ``precision`` and ``coverage`` (high),
        ``spurious`` (0.01); of each of ``log_mean``, ``log_variance``, ``zero_fraction``, ``coexpression`` of
        `gene_agreement` both ``..._correlation`` (1) and ``..._difference`` (0); only the difference detects a variance
        that is too small in every gene; ``seconds_per_1000`` cells, if `seconds` is given.

    Raises
    ------
    ValueError
        The arrays do not match, are not finite, have negative values or fewer than 6 cells; no real cell has counts.

    Examples
    --------
    >>> from sccvae import generation, simulate
    >>> real, other = (simulate.simulate(60, 30, seed=seed).X for seed in (0, 1))
    >>> scores = generation.score_generator(real, other)
    >>> 0.5 < scores["auc_log"] <= 1
    True
    """
    seconds = unless_none(finite, "seconds", seconds, "seconds, 0 or more", least=0)
    n_components, seed = limit("n_components", n_components), checked_seed(seed, most=SEEDS)
    real, generated = checked_pair(real, generated, nonnegative=True, least=6)
    agreement = gene_agreement(real, generated)
    total, n_generated = _median_total(real), generated.shape[0]
    real, generated = checked_pair(real, generated, max_cells=max_cells, seed=seed, balanced=True, least=6)
    log = log_normalized(real, total=total), log_normalized(generated, total=total)
    near = principal_components(*log, n_components=n_components, seed=seed)
    discrepancy = mmd(*near, max_cells=None, seed=seed)
    precision, coverage = precision_coverage(*near, max_cells=None)
    scores = {
        "auc_log": two_sample_auc(*log, n_components=n_components, max_cells=None, seed=seed),
        "auc_summaries": two_sample_auc(summaries(real), summaries(generated), max_cells=None, seed=seed),
        "mmd": discrepancy.value,
        "mmd_p": discrepancy.p_value,
        "precision": precision,
        "coverage": coverage,
        "spurious": spurious(*near, max_cells=None),
        **{f"{gene}_{kind}": float(value) for (gene, kind), value in agreement.stack(future_stack=True).items()},
    }
    return scores if seconds is None else {**scores, "seconds_per_1000": 1000 * seconds / n_generated}


# -------------------------------------------------------------------------------------------------------------- details


def _median_total(counts: csr_array | NDArray) -> float:
    """Compute the median total of cells with counts."""
    totals = np.asarray(counts.sum(1)).ravel()
    if not totals.any():
        raise ValueError("real has no nonzero counts; expected raw counts, such as adata.layers['counts'].")
    return float(np.median(totals[totals > 0]))


def _fitted_pca(x: Any, n_components: int, seed: int) -> PCA:
    spread = x.max(axis=0) - x.min(axis=0)
    spread, largest = spread.toarray() if issparse(spread) else spread, abs(x).max()
    if not (spread > 1e-12 * largest).any():
        raise ValueError(
            "real and generated have identical cells only, without principal components; expected cells that differ."
        )
    if min(x.shape) > n_components:
        return PCA(n_components, svd_solver="arpack", random_state=seed).fit(x)
    x = x.toarray() if issparse(x) else x
    return PCA(min(x.shape), svd_solver="full").fit(x)


def _reduced(seen: Any, unseen: Any, n_components: int, seed: int) -> tuple[NDArray, NDArray]:
    """Return principal components, or standardised features if there are few, both fitted to `seen`."""
    if seen.shape[1] > n_components:
        pca = _fitted_pca(seen, n_components, seed)
        return pca.transform(seen), pca.transform(unseen)
    seen, unseen = (x.toarray() if issparse(x) else x for x in (seen, unseen))
    mean, sd = seen.mean(0), seen.std(0)
    sd[sd <= 1e-12 * np.abs(seen).max(0)] = np.inf  # constant up to rounding
    return (seen - mean) / sd, (unseen - mean) / sd


def _moments(x: csr_array) -> tuple[NDArray, NDArray, NDArray]:
    """Compute mean, variance and fraction of zeros of each column from the nonzero entries."""
    n_cells, n_genes = x.shape
    x.eliminate_zeros()
    n_stored = np.bincount(x.indices, minlength=n_genes)
    mean = np.bincount(x.indices, x.data, minlength=n_genes) / n_cells
    squares = np.bincount(x.indices, (x.data - mean[x.indices]) ** 2, minlength=n_genes)
    squares = squares + (n_cells - n_stored) * mean**2
    return mean, squares / (n_cells - 1), 1 - n_stored / n_cells


def _correlations(x: csr_array) -> NDArray:
    """Compute Pearson correlations between columns; 0 where a column is constant."""
    mean, variance, _ = _moments(x)
    covariance = ((x.T @ x).toarray() - x.shape[0] * np.outer(mean, mean)) / (x.shape[0] - 1)
    scale = np.where(variance > 1e-12, 1 / np.sqrt(np.maximum(variance, 1e-12)), 0)
    return covariance * np.outer(scale, scale)


def _agreement(a: NDArray, b: NDArray) -> tuple[float, float]:
    """Compute Pearson correlation and mean absolute difference; nan where they are undefined."""
    if len(a) == 0:
        return np.nan, np.nan
    varied = all(np.ptp(x) > 1e-12 * np.abs(x).max() for x in (a, b))
    return float(np.corrcoef(a, b)[0, 1]) if varied else np.nan, float(np.abs(a - b).mean())
