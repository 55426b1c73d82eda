"""Distances between cells and between groups of cells, in the format of Scanpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sccvae.data.columns import labels_of
from sccvae.data.matrix import check_adata
from sccvae.models.autoencoder import AutoencodingModel
from sccvae.models.sccvae import SCCVAE
from sccvae.statistics.posterior_distances import Linkage, Metric, group_distances, linkage, matrix, neighbours
from sccvae.statistics.seeded_scanpy import seeded
from sccvae.validation.arguments import SEEDS, checked_seed, flag, whole
from sccvae.validation.conventions import ANY_MODEL, scanpy_like
from sccvae.validation.names import check_key, why_no_key
from sccvae.validation.wording import listed, warn

MAX_DENSE = 20_000  # cells; a matrix of 1.6 GB


@scanpy_like(kinds=ANY_MODEL)
def similarity(
    adata: AnnData,
    model: SCCVAE | AutoencodingModel | None = None,
    *,
    metric: Metric = "symmetric_kl",
    n_neighbors: int = 15,
    dense: bool = False,
    use_rep: str = "X_sccvae",
    key_added: str = "sccvae_similarity",
    copy: bool = False,
    seed: int = 0,
) -> AnnData | None:
    """Compute a nearest-neighbour graph by distances between posteriors, and optionally all distances.

    Where the counts carry little information on a cell, q(z|x) is wide. `symmetric_kl` and `wasserstein` take this into
    account; the Euclidean distance of `scanpy.pp.neighbors` does not. Scanpy's functions use the graph:
    ``sc.tl.leiden(adata, neighbors_key="sccvae_similarity")``, and likewise `sc.tl.umap`, `sc.tl.diffmap`,
    `sc.tl.paga`, `sccvae.tl.gradient`.

    Parameters
    ----------
    {adata_of_model}
    model
        A trained `SCCVAE`; for ``metric="euclidean"`` also an autoencoder, or None, which uses `use_rep`.
    metric
        Distance between two cells; `sccvae.statistics.posterior_distances` has the formulas.
    n_neighbors
        Size of a neighbourhood, the cell itself included, as in Scanpy.
    dense
        Whether to store the distances between all pairs as well; for at most 20,000 cells.
    use_rep
        Key of ``adata.obsm`` with the embedding, which Scanpy's functions read together with the graph. It is written
        if a model is given and the key is missing. An existing embedding of other values is kept, with a warning.
    key_added
        Key of ``adata.uns``: the `neighbors_key` of Scanpy's functions.
    {copy}
    seed
        Seed of Scanpy's neighbours.

    Returns
    -------
    None, or the copy. Written, as `scanpy.pp.neighbors` does:

    - ``uns[key_added]``: keys and parameters;
    - ``obsp[f"{key_added}_distances"]``: CSR, n_neighbors - 1 in each row;
    - ``obsp[f"{key_added}_connectivities"]``: UMAP's fuzzy graph, CSR, symmetric;
    - with `dense`, ``obsp[f"{key_added}_matrix"]``: distances, (cells, cells) float32.

    Raises
    ------
    ValueError, KeyError
        The metric needs a model with posteriors; there are too many cells for a matrix; there is no embedding.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(100, 30, seed=0)
    >>> sccvae.tl.similarity(adata, metric="euclidean", use_rep="z")
    >>> adata.obsp["sccvae_similarity_connectivities"].shape
    (100, 100)
    """
    check_adata(adata)
    check_key("key_added", key_added)
    if use_rep not in adata.obsm:
        check_key("use_rep", use_rep)
    n_neighbors, seed = whole("n_neighbors", n_neighbors, least=2), checked_seed(seed, most=SEEDS)
    if n_neighbors > adata.n_obs:
        raise ValueError(f"n_neighbors is {n_neighbors}; expected at most {adata.n_obs}, the number of cells.")
    if (dense := flag("dense", dense)) and adata.n_obs > MAX_DENSE:
        raise ValueError(
            f"dense=True with {adata.n_obs:,} cells: distances of all pairs are stored for at most {MAX_DENSE:,}. Take "
            "dense=False, the graph of nearest neighbours, or fewer cells."
        )
    mean, variance = _posterior(adata, model, metric, use_rep)
    nearest = neighbours(mean, variance, n_neighbors - 1, metric=metric)
    import scanpy as sc

    slim = AnnData(obs=pd.DataFrame(index=adata.obs_names), obsm={use_rep: mean})
    seeded(
        sc.pp.neighbors,
        slim,
        seed=seed,
        n_neighbors=n_neighbors,
        use_rep=use_rep,
        transformer=_Found(nearest),
        key_added=key_added,
    )
    # Scanpy's own parameter `metric` stays "euclidean": sc.tl.umap passes it to UMAP, which has none of the others.
    slim.uns[key_added]["params"]["posterior_distance"] = metric
    if use_rep not in adata.obsm:
        adata.obsm[use_rep] = mean
    elif not _alike(adata.obsm[use_rep], mean):
        warn(
            f"adata.obsm[{use_rep!r}] is not the model's embedding of these cells, and was left as it is; to store the "
            "embedding beside the graph, pass another key as use_rep."
        )
    adata.uns[key_added] = slim.uns[key_added]
    for key, values in slim.obsp.items():
        adata.obsp[key] = values
    adata.obsp.pop(f"{key_added}_matrix", None)  # of an earlier call, perhaps with another metric
    if dense:
        adata.obsp[f"{key_added}_matrix"] = matrix(mean, variance, metric=metric)
    return None


@scanpy_like(instead={"linkage_method": "its name here is method", "cor_method": "groups are compared by distances"})
def hierarchy(
    adata: AnnData,
    groupby: str | None = None,
    *,
    method: Linkage = "average",
    key: str = "sccvae_similarity",
    use_rep: str | None = None,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Cluster groups of cells, or single cells, hierarchically.

    Parameters
    ----------
    adata
        After ``sccvae.tl.similarity(adata, model, dense=True)``, or with an embedding.
    groupby
        Categorical column of `obs` with the groups; None clusters single cells.
    method
        `average`: by the mean distance between cells of two clusters (UPGMA). `ward`: by the increase of the variance
        within clusters; groups are represented by their centres.
    key
        Key of the distances between all pairs, ``obsp[f"{key}_matrix"]``.
    use_rep
        Instead of `key`: key of ``adata.obsm`` with an embedding, compared by Euclidean distance.
    key_added
        Key of ``uns``; by default ``dendrogram_{groupby}``, which Scanpy reads, or ``hierarchy``.
    {copy}

    Returns
    -------
    None, or the copy. Written to ``uns[key_added]``:

    - for groups, the format of `scanpy.tl.dendrogram` (so `sc.pl.dendrogram` works, and ``dendrogram=True`` of
      `sc.pl.dotplot` and similar functions), with ``distances``, (groups, groups), in place of ``correlation_matrix``;
    - for cells, ``linkage``, (cells - 1, 4), and ``order`` of the leaves: ``sc.pl.clustermap(adata,
      row_linkage=adata.uns["hierarchy"]["linkage"])``.

    Raises
    ------
    KeyError, ValueError, TypeError
        There are no distances, or too many cells; the column is not categorical, or has categories without cells; files
        cannot store the key.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(100, 30, seed=0)
    >>> sccvae.tl.hierarchy(adata, "cell_type", use_rep="z")
    >>> sorted(adata.uns["dendrogram_cell_type"]["categories_ordered"]) == sorted(adata.obs["cell_type"].cat.categories)
    True
    """
    from scipy.cluster.hierarchy import dendrogram, leaves_list

    check_adata(adata)
    if key_added is None:
        key_added = "hierarchy" if groupby is None else f"dendrogram_{groupby}"
        if (why := why_no_key(key_added)) is not None:
            raise ValueError(f"adata.uns[{key_added!r}] could not be stored in a file: {why}. Pass key_added.")
    check_key("key_added", key_added)
    codes = categories = None
    if groupby is not None:
        codes, categories = _groups(adata, groupby)
    distances = all_distances(adata, key, use_rep)
    about: dict[str, Any] = {"linkage_method": method, "use_rep": key if use_rep is None else use_rep}
    if codes is None or categories is None:
        tree = linkage(distances, method=method, optimal_ordering=False)
        adata.uns[key_added] = {"linkage": tree, "order": leaves_list(tree), **about}
        return None
    between = group_distances(distances, codes, method=method)
    tree = linkage(between, method=method)
    drawing = dendrogram(tree, labels=list(categories), no_plot=True)
    adata.uns[key_added] = {
        "linkage": tree,
        "groupby": [groupby],
        **about,
        "cor_method": "none",
        "categories_ordered": drawing["ivl"],
        "categories_idx_ordered": drawing["leaves"],
        "dendrogram_info": drawing,
        "distances": between,
    }
    return None


def all_distances(adata: AnnData, key: str, use_rep: str | None) -> np.ndarray:
    """Distances between all pairs of cells, stored ones or those of an embedding."""
    if use_rep is not None:
        if use_rep not in adata.obsm:
            raise KeyError(f"{use_rep!r} is not in adata.obsm, which has {listed(adata.obsm)}.")
        if adata.n_obs > MAX_DENSE:
            raise ValueError(
                f"{adata.n_obs:,} cells: distances of all pairs are made for at most {MAX_DENSE:,}. Take a sample: "
                f"sc.pp.sample(adata, n={MAX_DENSE}, copy=True)."
            )
        return matrix(np.asarray(adata.obsm[use_rep]), None, metric="euclidean")
    if f"{key}_matrix" not in adata.obsp:
        raise KeyError(
            f"'{key}_matrix' is not in adata.obsp, which has {listed(adata.obsp)}. sccvae.tl.similarity(adata, model, "
            "dense=True) makes it; or pass use_rep='X_sccvae' for Euclidean distances of an embedding."
        )
    return adata.obsp[f"{key}_matrix"]


class _Found:
    """Precomputed neighbours, in the interface of a scikit-learn transformer, which Scanpy takes."""

    def __init__(self, distances: sp.csr_matrix) -> None:
        self.distances = distances

    def fit_transform(self, x: Any) -> sp.csr_matrix:
        return self.distances

    def get_params(self) -> dict[str, int]:
        """Number of neighbours, the cell itself included, as in Scanpy."""
        return {"n_neighbors": int(self.distances.indptr[1]) + 1}


def _posterior(
    adata: AnnData, model: SCCVAE | AutoencodingModel | None, metric: Metric, use_rep: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean and, if the metric needs it, variance of each cell's posterior."""
    if metric != "euclidean" and not isinstance(model, SCCVAE):
        what = "no model was given" if model is None else f"{type(model).__name__} has none"
        raise ValueError(
            f"metric={metric!r} compares posteriors, and {what}: pass a trained SCCVAE, or metric='euclidean'."
        )
    if isinstance(model, SCCVAE):
        mean, variance = model.get_latent_representation(model.source_of(adata), return_variance=True)
        return mean, None if metric == "euclidean" else variance
    if model is not None:
        return model.get_latent_representation(model.source_of(adata)), None
    if use_rep not in adata.obsm:
        raise KeyError(f"{use_rep!r} is not in adata.obsm, which has {listed(adata.obsm)}: pass a model or use_rep.")
    return np.asarray(adata.obsm[use_rep]), None


def _alike(given: Any, mean: np.ndarray) -> bool:
    """Whether an embedding equals the model's, up to the rounding of chunks and devices."""
    given = np.asarray(given)
    return given.shape == mean.shape and np.allclose(given, mean, rtol=1e-3, atol=1e-3)


def _groups(adata: AnnData, groupby: str) -> tuple[np.ndarray, pd.Index]:
    """Group code of each cell, and the names of the groups; each group has cells."""
    column = labels_of(groupby, adata.obs, adata.obs_names)
    if not isinstance(column.dtype, pd.CategoricalDtype):
        raise ValueError(
            f"adata.obs[{groupby!r}] is not categorical but {column.dtype}: "
            f"adata.obs[{groupby!r}] = adata.obs[{groupby!r}].astype('category')."
        )
    empty = column.cat.categories.difference(column.unique())
    if len(empty):
        raise ValueError(
            f"adata.obs[{groupby!r}] has categories without cells, such as {empty[0]!r}: "
            f"adata.obs[{groupby!r}] = adata.obs[{groupby!r}].cat.remove_unused_categories()."
        )
    return column.cat.codes.to_numpy(), column.cat.categories
