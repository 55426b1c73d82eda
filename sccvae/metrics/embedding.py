"""Scores of an embedding: whether cells of one kind lie together, and batches are mixed.

Arrays in, floats out; higher is better everywhere, and 1 is the best that a score can be. Data of more than
`max_cells` cells are scored on a random sample of so many, the same for the same `seed`, because the silhouettes
compare every cell with every other.
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
    """Share of cells whose label is the commonest among their `k` nearest neighbours.

    The cell itself is left out of the vote; of labels with equally many votes, the one with the nearer neighbours
    wins.

    Parameters
    ----------
    z
        Embedding (cells, dimensions); neighbours by Euclidean distance.
    labels
        One label per cell, such as its type (cells,); strings, numbers or a categorical, without missing values.
    k
        Number of neighbours.
    max_cells
        Score a random sample of so many cells where there are more; ``None`` scores all.
    seed
        Seed of that sample.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        The arrays do not match, hold missing or infinite values, or have no more than `k` cells.

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
    r"""Entropy of batch mixing: how alike the batches of a cell's neighbours are to those of all cells.

    The mean over cells of the entropy :math:`-\sum_b p_b \log p_b` of the batch frequencies among their `k` nearest
    neighbours (Lopez et al. [1]_, who average it over 100 cells at a time), divided by the entropy of the batch
    frequencies of all cells. So 0 says that every cell has neighbours of one batch alone and 1 that every
    neighbourhood is composed like the whole, also where batches differ in size. `k` neighbours drawn at random fall
    short of 1 by about ``(n_batches - 1) / (2 * k)`` nats before the division: 0.02 for three batches and k = 50.
    Where batches hold different cell types, 1 is neither reached nor to be wished for.

    Parameters
    ----------
    z
        Embedding (cells, dimensions); neighbours by Euclidean distance.
    batches
        One batch per cell (cells,), at least two different ones.
    k
        Number of neighbours, the cell itself left out.
    max_cells, seed
        As in `knn_accuracy`.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        As in `knn_accuracy`; or there is one batch only.

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
    """Entropy of batch mixing in nats as Lopez et al. reported it, with its bootstrap standard deviation.

    The mean [1]_, over `n_cells` cells drawn at random, of the entropy of the batch frequencies among their `k` nearest
    neighbours; drawn `n_pools` times. Batches of one size, perfectly mixed, have the entropy log(n_batches), separated
    ones 0. `batch_entropy` divides by what can be reached, and takes all cells.

    Parameters
    ----------
    z, batches, k, max_cells
        As in `batch_entropy`.
    n_cells, n_pools
        Cells drawn at a time, with replacement; how often.
    seed
        Seed of the draws and of the sample of cells.

    Returns
    -------
    mean, sd
        Over the pools, in nats: the sd says how far one pool of `n_cells` cells may be from the mean.

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
    cells, place = np.unique(pools, return_inverse=True)
    entropy = _entropies(_neighbours(z, k, cells), batches)[place.reshape(pools.shape)].mean(1)
    return float(entropy.mean()), float(entropy.std(ddof=1)) if n_pools > 1 else float("nan")


def graph_connectivity(
    z: ArrayLike, labels: ArrayLike, k: int = 15, *, max_cells: int | None = 20_000, seed: int = 0
) -> float:
    """Mean over labels of the share of their cells in the largest connected piece of their neighbour graph.

    The graph joins every cell to its `k` nearest neighbours, in both directions; for each label, only its own cells
    and the edges between them are kept. A cell type that an embedding tears into one piece per batch scores 1 over
    the number of batches (scIB, Luecken et al. [1]_).

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
    """Mean silhouette width of the labels, scaled from [-1, 1] to [0, 1] as in scIB (Luecken et al. 2022).

    Parameters
    ----------
    z, max_cells, seed
        As in `knn_accuracy`.
    labels
        One label per cell (cells,), at least two different ones.

    Returns
    -------
    float
        1 for dense labels far apart, 0.5 where labels overlap, below where cells lie nearer to another label.

    Examples
    --------
    >>> from sccvae import metrics
    >>> metrics.silhouette_label([[0.0], [0.1], [5.0], [5.1]], ["T", "T", "B", "B"]) > 0.9
    True
    """
    z, labels = _checked(z, max_cells, seed, labels=labels)
    if not 2 <= _n_different(labels) < len(z):
        raise ValueError(
            f"labels holds {_n_different(labels)} different values for {len(z)} cells: expected at least "
            "two, and fewer than cells."
        )
    with config_context(working_memory=128):
        return float((silhouette_score(z, labels) + 1) / 2)


def silhouette_batch(
    z: ArrayLike, labels: ArrayLike, batches: ArrayLike, *, max_cells: int | None = 20_000, seed: int = 0
) -> float:
    """How little the batches of one label lie apart: 1 minus the absolute silhouette width of batches, as in scIB.

    The mean over the cells of a label, then over labels (Luecken et al. 2022, "batch ASW"). Labels found in one batch
    only say nothing about mixing and are left out.

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
    """Agreement of k-means clusters, as many as there are labels, with the labels.

    Parameters
    ----------
    z, labels, max_cells
        As in `knn_accuracy`.
    n_init
        Number of starts of k-means, of which the best is kept.
    seed
        Seed of the starts and of the sample of cells.

    Returns
    -------
    ari, nmi
        Adjusted Rand index, about 0 for clusters drawn at random, and normalised mutual information (arithmetic
        mean). Both are 1 where clusters and labels agree.

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
        that are all alike have no silhouette or entropy, and their scores are left out.

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
        raise ValueError("Nothing to score against: pass labels (such as cell types), batches, or both.")
    z, *arrays = _checked(z, max_cells, seed := checked_seed(seed, most=SEEDS), **given)
    if len(z) <= 50:
        raise ValueError(f"z holds {len(z)} cells: expected at least 51, as 50 neighbours of each are looked at.")
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
    """Return z and integer codes of the annotations, the same sample of cells of each; raise where they are unfit."""
    max_cells, seed = unless_none(limit, "max_cells", max_cells, least=2), checked_seed(seed)
    annotations = in_order_of_cells(z, annotations)
    z = np.asarray(z)
    if z.ndim != 2 or not np.issubdtype(z.dtype, np.number):
        raise ValueError(
            f"z has shape {z.shape} and dtype {z.dtype}: expected numbers of shape (cells, dimensions), "
            "such as adata.obsm['X_sccvae']."
        )
    bad = np.flatnonzero(~np.isfinite(z).all(1))
    if len(bad):
        raise ValueError(
            f"z holds NaN or infinite values in {len(bad)} of {len(z)} cells, first in cell {bad[0]}: "
            "expected finite numbers."
        )
    largest = np.abs(z).max(initial=0)
    odd = largest > 0 and not 1e-15 < largest < 1e15  # squares overflow in float32; no score depends on the unit
    arrays: list[NDArray] = [z / largest if odd else z]
    for name, values in annotations.items():
        codes, _ = pd.factorize(pd.Series(values))
        if len(codes) != len(z):
            raise ValueError(
                f"{name} holds {len(codes)} values but z holds {len(z)} cells: expected one per cell, in "
                "the same order."
            )
        missing = np.flatnonzero(codes < 0)
        if len(missing):
            raise ValueError(
                f"{name} misses {len(missing)} of {len(z)} values, first of cell {missing[0]}. Score the "
                f"others: with known = pd.notna({name}), pass z[known] and {name}[known]."
            )
        arrays.append(codes)
    if max_cells is not None and len(z) > max_cells:
        sample = np.sort(np.random.default_rng(seed).choice(len(z), size=max_cells, replace=False))
        arrays = [array[sample] for array in arrays]
    return arrays


def _n_different(codes: NDArray) -> int:
    return len(np.unique(codes))


def _neighbours(z: NDArray, k: int, cells: NDArray | None = None) -> NDArray:
    """Numbers of the k nearest other cells, nearest first: (cells, k), for all cells or those numbered `cells`."""
    if not 1 <= (k := whole("k", k)) < len(z):
        raise ValueError(f"k={k} nearest neighbours of {len(z)} cells: expected 1 to {len(z) - 1}.")
    search = NearestNeighbors(n_neighbors=k).fit(z)
    if cells is None:
        return search.kneighbors(return_distance=False)
    found = search.kneighbors(z[cells], k + 1, return_distance=False)
    others_first = np.argsort(found == cells[:, None], axis=1, kind="stable")
    return np.take_along_axis(found, others_first, axis=1)[:, :k]


def _frequencies(neighbours: NDArray, codes: NDArray, weights: NDArray | None = None) -> NDArray:
    """(Weighted) number of neighbours with each code: (cells, codes)."""
    n_cells, k = neighbours.shape
    n_codes = codes.max() + 1
    places = np.arange(n_cells)[:, None] * n_codes + codes[neighbours]
    weights = None if weights is None else np.broadcast_to(weights, (n_cells, k)).ravel()
    return np.bincount(places.ravel(), weights, minlength=n_cells * n_codes).reshape(n_cells, n_codes)


def _knn_accuracy(neighbours: NDArray, labels: NDArray) -> float:
    k = neighbours.shape[1]
    votes = 1 + np.linspace(0.5 / k, 0, k)  # the nearer decide ties, and nothing else
    return float(np.mean(_frequencies(neighbours, labels, votes).argmax(1) == labels))


def _batch_entropy(neighbours: NDArray, batches: NDArray) -> float:
    whole = np.bincount(batches) / len(batches)
    if (whole > 0).sum() < 2:
        raise ValueError("batches holds one value only: expected at least two batches, or there is nothing to mix.")
    # Cells that are neighbours of many can push the mean a little above the whole's.
    return float(min(_entropies(neighbours, batches).mean() / -_x_log_x(whole).sum(), 1.0))


def _entropies(neighbours: NDArray, batches: NDArray) -> NDArray:
    """Entropy of the batches among each cell's neighbours in nats, (cells,)."""
    return np.maximum(-_x_log_x(_frequencies(neighbours, batches) / neighbours.shape[1]).sum(1), 0.0)


def _x_log_x(x: NDArray) -> NDArray:
    """With 0 log 0 = 0."""
    return x * np.log(np.where(x > 0, x, 1))


def _graph_connectivity(neighbours: NDArray, labels: NDArray) -> float:
    n_cells, k = neighbours.shape
    edges = (np.repeat(np.arange(n_cells), k), neighbours.ravel())
    graph = csr_matrix((np.ones(n_cells * k, dtype=np.int8), edges), shape=(n_cells, n_cells))
    shares = []
    for label in np.unique(labels):
        cells = np.flatnonzero(labels == label)
        _, piece = connected_components(graph[cells][:, cells], directed=True, connection="weak")
        shares.append(np.bincount(piece).max() / len(cells))
    return float(np.mean(shares))
