"""Developmental gradients: pseudotime, a graph layout, and gene trends along pseudotime."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from numbers import Real
from types import EllipsisType
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae.data.columns import labels_of, one_column
from sccvae.data.matrix import check_adata
from sccvae.models.sccvae import SCCVAE
from sccvae.statistics import trends as curves
from sccvae.statistics.seeded_scanpy import seeded
from sccvae.tl.results import check_counts
from sccvae.validation.arguments import MOST, SEEDS, checked_library_size, checked_seed, limit, whole
from sccvae.validation.conventions import scanpy_like
from sccvae.validation.names import check_key, distinct_texts, known_as
from sccvae.validation.wording import listed


@scanpy_like()
def gradient(
    adata: AnnData,
    *,
    root: str | int | tuple[str, Any],
    use_rep: str = "X_sccvae",
    neighbors_key: str | None = None,
    n_neighbors: int = 15,
    n_dcs: int = 10,
    layout: str | None = "auto",
    key_added: str = "sccvae",
    copy: bool = False,
    seed: int = 0,
) -> AnnData | None:
    """Compute diffusion pseudotime from a root, and a graph layout, both by Scanpy.

    Diffusion pseudotime (Haghverdi et al. 2016, https://doi.org/10.1038/nmeth.3971) is a distance from the root by
    random walks on the neighbour graph. It orders cells, but does not measure time. Its only direction is away from the
    root, so the root must be chosen by biological knowledge.

    Parameters
    ----------
    adata
        Data with an embedding, or with a neighbour graph.
    root
        Start of development: the name of a cell, its number, or (column of `obs`, category). A category means its cell
        that is nearest to the mean of the category in the diffusion map.
    use_rep
        Key of ``adata.obsm`` with the embedding to make the graph from.
    neighbors_key
        Instead of `use_rep`: key of ``uns`` of an existing graph, such as ``"sccvae_similarity"``.
    n_neighbors
        Number of neighbours in the graph made from `use_rep`.
    n_dcs
        Number of diffusion components to use.
    layout
        Force-directed layout of `scanpy.tl.draw_graph`; ``"auto"`` takes ``"fa"`` if the package fa2-modified is
        installed, and else ``"fr"``; None makes none. It starts from two principal components of the embedding.
    key_added
        Prefix of everything written.
    {copy}
    seed
        Seed of graph, diffusion map and layout.

    Returns
    -------
    None, or the copy. Written, with ``key_added="sccvae"``:

    - ``obs["sccvae_pseudotime"]``: 0 at the root, 1 at the farthest cell; NaN if no path leads from the root;
    - ``obsm["X_sccvae_diffmap"]``: diffusion map without its constant component;
    - ``obsm["X_draw_graph_sccvae"]``: the layout, for ``sc.pl.embedding(adata, "draw_graph_sccvae")``;
    - ``uns["sccvae_neighbors"]`` with its ``obsp``, unless `neighbors_key` is given;
    - ``uns["sccvae_gradient"]``: name of the root and parameters.

    Warns
    -----
    UserWarning
        Some cells are not connected to the root.

    Raises
    ------
    KeyError, ValueError
        The root, the embedding or the graph does not exist.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(150, 30, seed=0)
    >>> sccvae.tl.gradient(adata, root=0, use_rep="z", layout=None)
    >>> float(adata.obs["sccvae_pseudotime"].iloc[0])
    0.0
    """
    import scanpy as sc

    check_adata(adata)
    check_key("key_added", key_added)
    n_neighbors = limit("n_neighbors", n_neighbors, least=2)
    n_dcs = whole("n_dcs", n_dcs, least=2, most=max(2, adata.n_obs - 1))
    seed, candidates = checked_seed(seed, most=SEEDS), _roots(adata, root)
    if use_rep not in adata.obsm:
        raise KeyError(
            f"{use_rep!r} is not in adata.obsm, which has {listed(adata.obsm)}. sccvae.tl.integrate(adata) makes "
            "'X_sccvae'."
        )
    graph = f"{key_added}_neighbors" if neighbors_key is None else neighbors_key
    rep = np.asarray(adata.obsm[use_rep])
    slim = AnnData(obs=pd.DataFrame(index=adata.obs_names), obsm={use_rep: rep})
    if neighbors_key is None:
        seeded(sc.pp.neighbors, slim, seed=seed, n_neighbors=n_neighbors, use_rep=use_rep, key_added=graph)
    else:
        _take_graph(adata, graph, slim)
    seeded(sc.tl.diffmap, slim, seed=seed, neighbors_key=graph, n_comps=max(15, n_dcs))
    values = np.asarray(slim.uns["diffmap_evals"][1:n_dcs], dtype=float)
    scaled = slim.obsm["X_diffmap"][:, 1:n_dcs] * (values / (1 - np.minimum(values, 0.9994)))
    from_mean = ((scaled[candidates] - scaled[candidates].mean(0)) ** 2).sum(1)
    slim.uns["iroot"] = int(candidates[np.argmin(from_mean)])
    sc.tl.dpt(slim, n_dcs=n_dcs, neighbors_key=graph)
    pseudotime = slim.obs["dpt_pseudotime"].to_numpy(dtype=float)
    apart = ~np.isfinite(pseudotime)
    if apart.any():
        warnings.warn(
            f"No path leads from the root to {apart.sum():,} of {adata.n_obs:,} cells: their pseudotime is NaN. A "
            "larger n_neighbors may connect them, if they belong to the same development.",
            stacklevel=3,  # the caller of the decorated function
        )
    if layout == "auto":
        layout = "fa" if find_spec("fa2_modified") else "fr"
    if layout is not None:
        slim.obsm["start"] = _start(rep)
        options = {"layout": layout, "init_pos": "start", "neighbors_key": graph, "key_added_ext": key_added}
        seeded(sc.tl.draw_graph, slim, seed=seed, **options)
        adata.obsm[f"X_draw_graph_{key_added}"] = slim.obsm[f"X_draw_graph_{key_added}"]
    if neighbors_key is None:
        adata.uns[graph] = slim.uns[graph]
        for key, matrix in slim.obsp.items():
            adata.obsp[key] = matrix
    adata.obs[f"{key_added}_pseudotime"] = np.where(apart, np.nan, pseudotime)
    adata.obsm[f"X_{key_added}_diffmap"] = slim.obsm["X_diffmap"][:, 1:]
    adata.uns[f"{key_added}_gradient"] = {
        "root": str(adata.obs_names[slim.uns["iroot"]]),
        "neighbors_key": graph,
        "n_dcs": n_dcs,
        "layout": layout or "none",
        "seed": seed,
    }
    return None


@scanpy_like(kinds=("SCCVAE",))
def trends(
    adata: AnnData,
    model: SCCVAE,
    genes: Sequence[str],
    *,
    pseudotime: str = "sccvae_pseudotime",
    groupby: str | None = None,
    lineages: Mapping[str, Sequence[str]] | None = None,
    transform_batch: str | Sequence[str] | EllipsisType | None = ...,
    library_size: float = 1e4,
    n_points: int = 50,
    span: float = 0.3,
    level: float = 0.9,
    n_samples: int = 200,
    key_added: str = "sccvae_trends",
    copy: bool = False,
    seed: int = 0,
) -> AnnData | None:
    """Compute denoised expression of genes along pseudotime, with credible bands; `sccvae.pl.trends` draws it.

    Curves are local linear regressions of posterior samples. The band is that of the mean at a pseudotime, not of
    single cells, and includes the uncertainty of the counts near it; `sccvae.statistics.trends` has the formulas.

    Parameters
    ----------
    {adata_of_model}
    model
        A trained model of counts.
    genes
        Names of modelled genes.
    pseudotime
        Column of `obs`, numbers; cells with NaN are left out.
    groupby, lineages
        Column of `obs` with groups, and for each lineage its groups, the first one included: ``{"erythroid": ["MEP",
        "Ery"], "myeloid": ["MEP", "GMP", "Mo"]}``. Without them, all cells are one lineage.
    transform_batch, library_size
        As in `SCCVAE.get_normalized_expression`: batches to decode in (by default the mean over all), and the total
        counts of a cell.
    n_points, span, level, n_samples
        Points of a curve; fraction of the cells that each point is fitted to; probability of the band; samples.
    key_added
        Key of ``uns``.
    {copy}
    seed
        Seed of the samples.

    Returns
    -------
    None, or the copy. ``uns[key_added]``: DataFrame with ``lineage``, ``gene``, ``pseudotime``, ``mean``, ``lower``,
    ``upper``, in counts per `library_size`.

    Raises
    ------
    KeyError, ValueError
        An unknown column, gene, or group; a lineage of fewer than 10 cells.

    Examples
    --------
    >>> import numpy as np
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(150, 30, seed=0)
    >>> model = sccvae.SCCVAE(adata)
    >>> model.train(max_epochs=1)
    >>> adata.obs["time"] = np.linspace(0, 1, 150)
    >>> sccvae.tl.trends(adata, model, ["gene_1"], pseudotime="time", n_samples=20)
    >>> adata.uns["sccvae_trends"].columns.tolist()
    ['lineage', 'gene', 'pseudotime', 'mean', 'lower', 'upper']
    """
    check_adata(adata)
    check_key("key_added", key_added)
    n_points, library_size = whole("n_points", n_points, most=MOST), checked_library_size(library_size)
    seed, n_samples = checked_seed(seed), whole("n_samples", n_samples, most=MOST)
    genes = [genes] if isinstance(genes, str) else list(map(str, genes))
    if pseudotime not in adata.obs:
        raise KeyError(
            f"adata.obs has no column {pseudotime!r}: sccvae.tl.gradient(adata, root=...) makes 'sccvae_pseudotime'."
        )
    when = pd.to_numeric(one_column(adata.obs, pseudotime)).to_numpy(dtype=float)
    masks = _lineages(adata, groupby, lineages)
    for name, mask in masks.items():
        if (n_cells := int((mask & np.isfinite(when)).sum())) < 10:
            raise ValueError(f"Lineage {name!r} has {n_cells} cells with a pseudotime; expected at least 10.")
    check_counts(model, "trends")
    source = model.source_of(adata)

    def draw(number: int) -> np.ndarray:
        return model.get_normalized_expression(
            source,
            gene_list=genes,
            transform_batch=model.batches if transform_batch is ... else transform_batch,
            library_size=library_size,
            n_samples=1,
            return_numpy=True,
            seed=seed + number,
        )

    counts = [(slice(0, adata.n_obs), *model.moments_of(genes, source))]
    options: dict[str, Any] = {"n_points": n_points, "span": span, "level": level, "n_samples": n_samples}
    found = curves.trends(draw, counts, when, list(masks.values()), **options, seed=seed)
    parts = [
        pd.DataFrame(
            {
                "lineage": name,
                "gene": np.repeat(genes, n_points),
                "pseudotime": np.tile(trend.grid, len(genes)),
                **{what: getattr(trend, what).T.ravel() for what in ("mean", "lower", "upper")},
            }
        )
        for name, trend in zip(masks, found, strict=True)
    ]
    table = pd.concat(parts, ignore_index=True)
    table.index = table.index.astype(str)
    adata.uns[key_added] = table
    return None


def _roots(adata: AnnData, root: Any) -> np.ndarray:
    """Numbers of the candidate cells for the root."""
    if isinstance(root, tuple) and len(root) == 2:
        labels = labels_of(root[0], adata.obs, adata.obs_names)
        name = known_as(root[1], tuple(labels.astype(str).unique()))
        cells = np.flatnonzero(labels.astype(str) == name)
        if not len(cells):
            raise ValueError(
                f"adata.obs[{root[0]!r}] has no cell of {root[1]!r}; it has {listed(sorted(map(str, set(labels))))}."
            )
        return cells
    if isinstance(root, str):
        if root not in adata.obs_names:
            raise ValueError(
                f"root={root!r} is not the name of a cell. Pass a name of adata.obs_names, such as "
                f"{adata.obs_names[0]!r}, a number, or (column of adata.obs, category)."
            )
        cells = np.flatnonzero(adata.obs_names == root)
        if len(cells) > 1:
            raise ValueError(
                f"root={root!r} is the name of {len(cells)} cells: pass the number of one of them, such as {cells[0]}."
            )
        return cells
    if isinstance(root, Real) and not isinstance(root, bool) and float(root).is_integer():
        if not 0 <= (cell := whole("root", root)) < adata.n_obs:
            raise ValueError(f"root={root} is not the number of a cell; expected 0 to {adata.n_obs - 1}.")
        return np.array([cell])
    raise ValueError(f"root={root!r}; expected the name of a cell, its number, or (column of adata.obs, category).")


def _take_graph(adata: AnnData, graph: str, slim: AnnData) -> None:
    """Copy an existing neighbour graph into `slim`."""
    if graph not in adata.uns or "connectivities_key" not in adata.uns[graph]:
        raise KeyError(
            f"adata.uns[{graph!r}] is not a graph of neighbours: sccvae.tl.similarity(adata, model) makes "
            "'sccvae_similarity', sc.pp.neighbors(adata, use_rep='X_sccvae') makes 'neighbors'."
        )
    slim.uns[graph] = adata.uns[graph]
    for what in ("connectivities_key", "distances_key"):
        if (name := adata.uns[graph].get(what)) not in adata.obsp:
            raise KeyError(
                f"adata.uns[{graph!r}] names {name!r}, which adata.obsp lacks: make the graph again, for these cells."
            )
        slim.obsp[adata.uns[graph][what]] = adata.obsp[adata.uns[graph][what]]


def _start(rep: np.ndarray) -> np.ndarray:
    """First two principal components, scaled to a layout with edges of length 1."""
    centred = rep - rep.mean(0)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    return left[:, :2] * size[:2] / np.maximum(size[0], 1e-12) * len(rep)


def _lineages(
    adata: AnnData, groupby: str | None, lineages: Mapping[str, Sequence[str]] | None
) -> dict[str, np.ndarray]:
    """Mask of the cells of each lineage."""
    if lineages is None:
        return {"all cells": np.ones(adata.n_obs, dtype=bool)}
    if groupby is None:
        raise ValueError("lineages names groups: pass groupby, the column of adata.obs that holds them.")
    labels = labels_of(groupby, adata.obs, adata.obs_names).astype(str)
    known = tuple(labels.unique())
    texts = distinct_texts(lineages, "lineages")
    passed = {
        text: [known_as(group, known) or str(group) for group in groups]
        for text, groups in zip(texts, lineages.values(), strict=True)
    }
    for name, groups in passed.items():
        unknown = sorted(set(groups) - set(known))
        if unknown:
            raise ValueError(
                f"Lineage {name!r} names {unknown[0]!r}, which is not in adata.obs[{groupby!r}]; it has "
                f"{listed(sorted(set(labels)))}."
            )
    return {name: labels.isin(groups).to_numpy() for name, groups in passed.items()}
