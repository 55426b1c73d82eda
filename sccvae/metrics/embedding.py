"""Scores of an embedding: separation of cell types and mixing of batches.

Arrays in, floats out; for every score higher is better and 1 is the best possible value. Of more than `max_cells`
cells, a random sample is scored, determined by `seed`, because the silhouettes compare every cell with every other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from sklearn import config_context
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_samples,
    silhouette_score,
)
from sklearn.neighbors import NearestNeighbors

from sccvae.validation.arguments import SEEDS, checked_seed, limit, positive, unless_none, whole
from sccvae.validation.names import in_order_of_cells

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "batch_entropy",
    "batch_mixing_entropy",
    "embedding_scores",
    "graph_connectivity",
    "kmeans_ari_nmi",
    "knn_accuracy",
    "silhouette_batch",
    "silhouette_label",
]


def knn_accuracy(
    z: ArrayLike, labels: ArrayLike, k: int = 15, *, max_cells: int | None = 20_000, seed: int = 0
) -> float:
    """Compute the fraction of cells whose label is the most common among their `k` nearest neighbours.

    The cell itself does not vote. Ties are resolved in favour of the label with the nearer neighbours.

    Parameters
    ----------
    z
        Embedding (cells, dimensions); neighbours by Euclidean distance.
    labels
        One label per cell, such as its type (cells,); strings, numbers or a categorical, without missing values.
    k
        Number of neighbours.
    max_cells
        Largest number of cells to score; of more cells, a random sample is scored. ``None`` scores all.
    seed
        Seed of the random sample.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        The arrays do not match, have missing or infinite values, or have no more than `k` cells.

    Examples
    --------
    >>> from sccvae import metrics
    >>> metrics.knn_accuracy([[0.0], [0.1], [5.0], [5.1]], ["T", "T", "B", "B"], k=1)
    1.0
    """
    z, labels = _checked(z, max_cells, seed, labels=labels)
    return _knn_accuracy(_neighbours(z, k), labels)


def batch_entropy(
    z: ArrayLike, batches: ArrayLike, k: int = 50, *, max_cells: int | None = 20_000, seed: int = 0
) -> float:
    r"""Compute the entropy of batch mixing: batch composition of neighbourhoods relative to that of all cells.

    The score is the mean over cells of the entropy :math:`-\sum_b p_b \log p_b` of the batch frequencies among their
    `k` nearest neighbours (Lopez et al. [1]_, who average over 100 cells at a time), divided by the entropy of the
    batch frequencies of all cells. 0 means that every cell has neighbours of one batch alone. 1 means that every
    neighbourhood has the batch composition of all cells, also where batches differ in size. For `k` random neighbours
    the entropy is below its maximum by about ``(n_batches - 1) / (2 * k)`` nats before the division: 0.02 for three
    batches and k = 50. Where batches contain different cell types, 1 is neither reached nor desirable.

    Parameters
    ----------
    z
        Embedding (cells, dimensions); neighbours by Euclidean distance.
    batches
        One batch per cell (cells,), at least two different ones.
    k
        Number of neighbours, without the cell itself.
    max_cells, seed
        As in `knn_accuracy`.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        As in `knn_accuracy`; or there is only one batch.

    References
    ----------
    .. [1] Lopez et al., Deep generative modeling for single-cell transcriptomics, Nature Methods 15 (2018), Methods,
       "Entropy of batch mixing".

    Examples
    --------
    >>> import numpy as np
    >>> from sccvae import metrics
    >>> z, batches = np.random.default_rng(0).normal(size=(200, 2)), np.tile(["a", "b"], 100)
    >>> metrics.batch_entropy(z, batches) > 0.95  # mixed
    True
    """
    z, batches = _checked(z, max_cells, seed, batches=batches)
    return _batch_entropy(_neighbours(z, k), batches)


def batch_mixing_entropy(
    z: ArrayLike,
    batches: ArrayLike,
    k: int = 50,
    *,
    n_cells: int = 100,
    n_pools: int = 50,
    max_cells: int | None = 20_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Compute the entropy of batch mixing in nats as in Lopez et al., with its bootstrap standard deviation.

    The score [1]_ is the mean, over `n_cells` random cells, of the entropy of the batch frequencies among their `k`
    nearest neighbours, repeated `n_pools` times. Perfectly mixed batches of equal size have the entropy log(n_batches),
    separated batches 0. `batch_entropy` divides by the largest possible entropy, and uses all cells.

    Parameters
    ----------
    z, batches, k, max_cells
        As in `batch_entropy`.
    n_cells, n_pools
        Number of cells per pool, sampled with replacement, and number of pools.
    seed
        Seed of the pools and of the random sample of cells.

    Returns
    -------
    mean, sd
        Over the pools, in nats: the sd is that of one pool of `n_cells` cells.

    References
    ----------
    .. [1] Lopez et al., Deep generative modeling for single-cell transcriptomics, Nature Methods 15 (2018), Methods,
       "Entropy of batch mixing".

    Examples
    --------
    >>> import numpy as np
    >>> from sccvae import metrics
    >>> z, batches = np.random.default_rng(0).normal(size=(200, 2)), np.tile(["a", "b"], 100)
    >>> mean, sd = metrics.batch_mixing_entropy(z, batches)
    >>> bool(0.9 * np.log(2) < mean <= np.log(2))
    True
    """
    n_cells, n_pools, seed = positive("n_cells", n_cells), positive("n_pools", n_pools), checked_seed(seed)
    z, batches = _checked(z, max_cells, seed, batches=batches)
    pools = np.random.default_rng(seed).integers(len(z), size=(n_pools, n_cells))
    cells, inverse = np.unique(pools, return_inverse=True)
    entropy = _entropies(_neighbours(z, k, cells), batches)[inverse.reshape(pools.shape)].mean(1)
    return float(entropy.mean()), float(entropy.std(ddof=1)) if n_pools > 1 else float("nan")


def graph_connectivity(
    z: ArrayLike, labels: ArrayLike, k: int = 15, *, max_cells: int | None = 20_000, seed: int = 0
) -> float:
    """Compute the mean over labels of the fraction of cells in the largest component of the neighbour graph.

    The graph connects every cell to its `k` nearest neighbours, in both directions. For each label, only cells of the
    label and the edges between them are kept. A cell type split into one component per batch scores 1 over the number
    of batches, for batches of equal size (scIB, Luecken et al. [1]_).

    Parameters
    ----------
    z, labels, k, max_cells, seed
        As in `knn_accuracy`.

    Returns
    -------
    float
        Between 0 and 1.

    References
    ----------
    .. [1] Luecken et al., Benchmarking atlas-level data integration in single-cell genomics, Nature Methods 19
       (2022), Methods, "Graph connectivity".

    Examples
    --------
    >>> from sccvae import metrics
    >>> metrics.graph_connectivity([[0.0], [0.1], [5.0], [5.1]], ["T", "T", "B", "B"], k=1)
    1.0
    """
    z, labels = _checked(z, max_cells, seed, labels=labels)
    return _graph_connectivity(_neighbours(z, k), labels)


def silhouette_label(z: ArrayLike, labels: ArrayLike, *, max_cells: int | None = 20_000, seed: int = 0) -> float:
    """Compute the mean silhouette width of the labels, scaled from [-1, 1] to [0, 1] as in scIB (Luecken et al. 2022).

    Parameters
    ----------
    z, max_cells, seed
        As in `knn_accuracy`.
    labels
        One label per cell (cells,), at least two different ones.

    Returns
    -------
    float
        1 for compact, well separated labels; 0.5 for overlapping labels; lower if cells are nearer to another label.

    Examples
    --------
    >>> from sccvae import metrics
    >>> metrics.silhouette_label([[0.0], [0.1], [5.0], [5.1]], ["T", "T", "B", "B"]) > 0.9
    True
    """
    z, labels = _checked(z, max_cells, seed, labels=labels)
    if not 2 <= _n_different(labels) < len(z):
        raise ValueError(
            f"labels has {_n_different(labels)} different values for {len(z)} cells; expected at least two, and fewer "
            "than the number of cells."
        )
    with config_context(working_memory=128):
        return float((silhouette_score(z, labels) + 1) / 2)


def silhouette_batch(
    z: ArrayLike, labels: ArrayLike, batches: ArrayLike, *, max_cells: int | None = 20_000, seed: int = 0
) -> float:
    """Compute 1 minus the absolute silhouette width of batches within labels, as in scIB.

    The score is the mean over the cells of a label, then over labels (Luecken et al. 2022, "batch ASW"). Labels found
    in only one batch carry no information about mixing and are left out.

    Parameters
    ----------
    z, labels, max_cells, seed
        As in `knn_accuracy`.
    batches
        One batch per cell (cells,).

    Returns
    -------
    float
        1 where batches overlap within labels, 0 where they are far apart; ``nan`` where no label is found in two
        batches.

    Examples
    --------
    >>> import numpy as np
    >>> from sccvae import metrics
    >>> z, batches = np.random.default_rng(0).normal(size=(200, 2)), np.tile(["a", "b"], 100)
    >>> metrics.silhouette_batch(z, np.repeat("T", 200), batches) > 0.9  # mixed
    True
    """
    z, labels, batches = _checked(z, max_cells, seed, labels=labels, batches=batches)
    scores = []
    for label in np.unique(labels):
        cells = labels == label
        if 2 <= _n_different(batches[cells]) < cells.sum():
            with config_context(working_memory=128):
                scores.append(np.mean(1 - np.abs(silhouette_samples(z[cells], batches[cells]))))
    return float(np.mean(scores)) if scores else float("nan")


def kmeans_ari_nmi(
    z: ArrayLike, labels: ArrayLike, n_init: int = 10, seed: int = 0, *, max_cells: int | None = 20_000
) -> tuple[float, float]:
    """Compute the agreement of labels with k-means clusters, as many clusters as labels.

    Parameters
    ----------
    z, labels, max_cells
        As in `knn_accuracy`.
    n_init
        Number of k-means starts, of which the best is kept.
    seed
        Seed of the starts and of the random sample of cells.

    Returns
    -------
    ari, nmi
        Adjusted Rand index, about 0 for random clusters, and normalised mutual information (arithmetic mean). Both
        are 1 where clusters and labels agree.

    Examples
    --------
    >>> from sccvae import metrics
    >>> ari, nmi = metrics.kmeans_ari_nmi([[0.0], [0.1], [5.0], [5.1]], ["T", "T", "B", "B"])
    >>> ari, nmi
    (1.0, 1.0)
    """
    n_init, seed = positive("n_init", n_init), checked_seed(seed, most=SEEDS)
    z, labels = _checked(z, max_cells, seed, labels=labels)
    clusters = KMeans(n_clusters=_n_different(labels), n_init=n_init, random_state=seed).fit_predict(z)
    return float(adjusted_rand_score(labels, clusters)), float(normalized_mutual_info_score(labels, clusters))


def embedding_scores(
    z: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    batches: ArrayLike | None = None,
    max_cells: int | None = 20_000,
    seed: int = 0,
) -> dict[str, float]:
    """Compute every score of this module that applies.

    Parameters
    ----------
    z, max_cells, seed
        As in `knn_accuracy`.
    labels
        One label per cell (cells,), or ``None``.
    batches
        One batch per cell (cells,), or ``None``.

    Returns
    -------
    dict of str to float
        With `labels`: ``knn_accuracy``, ``silhouette_label``, ``kmeans_ari``, ``kmeans_nmi``,
        ``graph_connectivity``. With `batches`: ``batch_entropy``. With both: ``silhouette_batch``. Labels or batches
        with one value only have no silhouette or entropy, and these scores are left out.

    Raises
    ------
    ValueError
        Neither `labels` nor `batches` is given; or as in `knn_accuracy`. At least 51 cells are needed.

    Examples
    --------
    >>> import numpy as np
    >>> from sccvae import metrics
    >>> z = np.random.default_rng(0).normal(size=(300, 2))
    >>> sorted(metrics.embedding_scores(z, batches=np.repeat(["a", "b"], 150)))
    ['batch_entropy']
    """
    given = {name: x for name, x in (("labels", labels), ("batches", batches)) if x is not None}
    if not given:
        raise ValueError(
            "labels and batches are None; expected at least one: pass labels (such as cell types) or batches."
        )
    z, *arrays = _checked(z, max_cells, seed := checked_seed(seed, most=SEEDS), **given)
    if len(z) <= 50:
        raise ValueError(f"z has {len(z)} cells; expected at least 51, because scores use 50 neighbours of each cell.")
    codes = dict(zip(given, arrays, strict=True))
    neighbours = _neighbours(z, 50)
    scores: dict[str, float] = {}
    if "labels" in codes:
        nearest = neighbours[:, :15]
        scores["knn_accuracy"] = _knn_accuracy(nearest, codes["labels"])
        scores["kmeans_ari"], scores["kmeans_nmi"] = kmeans_ari_nmi(z, codes["labels"], seed=seed, max_cells=None)
        scores["graph_connectivity"] = _graph_connectivity(nearest, codes["labels"])
        if _n_different(codes["labels"]) > 1:
            scores["silhouette_label"] = silhouette_label(z, codes["labels"], max_cells=None)
    if "batches" in codes and _n_different(codes["batches"]) > 1:
        scores["batch_entropy"] = _batch_entropy(neighbours, codes["batches"])
        if "labels" in codes:
            scores["silhouette_batch"] = silhouette_batch(z, codes["labels"], codes["batches"], max_cells=None)
    return scores


def _checked(z: ArrayLike, max_cells: int | None, seed: int, **annotations: ArrayLike) -> list[NDArray]:
    """Return z and integer codes of the annotations for one random sample of cells; raise if they are invalid."""
    max_cells, seed = unless_none(limit, "max_cells", max_cells, least=2), checked_seed(seed)
    annotations = in_order_of_cells(z, annotations)
    z = np.asarray(z)
    if z.ndim != 2 or not np.issubdtype(z.dtype, np.number):
        raise ValueError(
            f"z has shape {z.shape} and dtype {z.dtype}; expected numbers of shape (cells, dimensions), "
            "such as adata.obsm['X_sccvae']."
        )
    bad = np.flatnonzero(~np.isfinite(z).all(1))
    if len(bad):
        raise ValueError(
            f"z has NaN or infinite values in {len(bad)} of {len(z)} cells, first in cell {bad[0]}; "
            "expected finite numbers."
        )
    largest = np.abs(z).max(initial=0)
    odd = largest > 0 and not 1e-15 < largest < 1e15  # squares overflow in float32; no score depends on the unit
    arrays: list[NDArray] = [z / largest if odd else z]
    for name, values in annotations.items():
        codes, _ = pd.factorize(pd.Series(values))
        if len(codes) != len(z):
            raise ValueError(
                f"{name} has {len(codes)} values but z has {len(z)} cells; expected one value per cell, in the same "
                "order."
            )
        missing = np.flatnonzero(codes < 0)
        if len(missing):
            raise ValueError(
                f"{name} misses {len(missing)} of {len(z)} values, first of cell {missing[0]}; expected a value per "
                f"cell. Score the other cells: with known = pd.notna({name}), pass z[known] and {name}[known]."
            )
        arrays.append(codes)
    if max_cells is not None and len(z) > max_cells:
        sample = np.sort(np.random.default_rng(seed).choice(len(z), size=max_cells, replace=False))
        arrays = [array[sample] for array in arrays]
    return arrays


def _n_different(codes: NDArray) -> int:
    return len(np.unique(codes))


def _neighbours(z: NDArray, k: int, cells: NDArray | None = None) -> NDArray:
    """Return numbers of the k nearest other cells, nearest first, (cells, k), for all cells or for numbers `cells`."""
    if not 1 <= (k := whole("k", k)) < len(z):
        raise ValueError(f"k is {k} for {len(z)} cells; expected 1 to {len(z) - 1} nearest neighbours.")
    search = NearestNeighbors(n_neighbors=k).fit(z)
    if cells is None:
        return search.kneighbors(return_distance=False)
    found = search.kneighbors(z[cells], k + 1, return_distance=False)
    others_first = np.argsort(found == cells[:, None], axis=1, kind="stable")
    return np.take_along_axis(found, others_first, axis=1)[:, :k]


def _frequencies(neighbours: NDArray, codes: NDArray, weights: NDArray | None = None) -> NDArray:
    """Count neighbours with each code, weighted if `weights` are given: (cells, codes)."""
    n_cells, k = neighbours.shape
    n_codes = codes.max() + 1
    bins = np.arange(n_cells)[:, None] * n_codes + codes[neighbours]
    weights = None if weights is None else np.broadcast_to(weights, (n_cells, k)).ravel()
    return np.bincount(bins.ravel(), weights, minlength=n_cells * n_codes).reshape(n_cells, n_codes)


def _knn_accuracy(neighbours: NDArray, labels: NDArray) -> float:
    k = neighbours.shape[1]
    votes = 1 + np.linspace(0.5 / k, 0, k)  # weights that differ too little to change anything but ties
    return float(np.mean(_frequencies(neighbours, labels, votes).argmax(1) == labels))


def _batch_entropy(neighbours: NDArray, batches: NDArray) -> float:
    whole = np.bincount(batches) / len(batches)
    if (whole > 0).sum() < 2:
        raise ValueError("batches has one value only; expected at least two batches to score their mixing.")
    # Cells that are neighbours of many others can raise the mean slightly above the entropy of all cells.
    return float(min(_entropies(neighbours, batches).mean() / -_x_log_x(whole).sum(), 1.0))


def _entropies(neighbours: NDArray, batches: NDArray) -> NDArray:
    """Compute the entropy of the batches among each cell's neighbours in nats, (cells,)."""
    return np.maximum(-_x_log_x(_frequencies(neighbours, batches) / neighbours.shape[1]).sum(1), 0.0)


def _x_log_x(x: NDArray) -> NDArray:
    """Compute x log x, with 0 log 0 = 0."""
    return x * np.log(np.where(x > 0, x, 1))


def _graph_connectivity(neighbours: NDArray, labels: NDArray) -> float:
    n_cells, k = neighbours.shape
    edges = (np.repeat(np.arange(n_cells), k), neighbours.ravel())
    graph = csr_matrix((np.ones(n_cells * k, dtype=np.int8), edges), shape=(n_cells, n_cells))
    fractions = []
    for label in np.unique(labels):
        cells = np.flatnonzero(labels == label)
        _, component = connected_components(graph[cells][:, cells], directed=True, connection="weak")
        fractions.append(np.bincount(component).max() / len(cells))
    return float(np.mean(fractions))
