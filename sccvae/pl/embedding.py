"""Embedding before and after integration, and functions for scatter plots of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccvae.data.blocks import rows_of
from sccvae.data.columns import one_column
from sccvae.data.matrix import layer_names
from sccvae.pl.diagnostics import draw_curves, history_frame, is_used
from sccvae.pl.style import (
    MEDIUM,
    MISSING,
    SMALL,
    as_text,
    colours_of,
    draw_legend,
    legend_width,
    new_figure,
    plot,
    style,
)
from sccvae.statistics.seeded_scanpy import seeded
from sccvae.validation.arguments import SEEDS, checked_seed, limit
from sccvae.validation.wording import listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


@plot()
def integration(
    adata: AnnData,
    *,
    use_rep: str = "X_sccvae",
    batch_key: str | None = None,
    label_key: str | None = None,
    layer: str | None = None,
    history: pd.DataFrame | Mapping | None = None,
    max_cells: int = 20_000,
    seed: int = 0,
    show: bool = False,
) -> Figure:
    """Plot UMAPs of the cells before and after integration, coloured by batch and by cell type.

    Before: the first 50 principal components of normalised log counts (of the 2,000 most variable genes, if there are
    more). After: `use_rep`. Both layouts are made by `scanpy.tl.umap` from 15 neighbours.

    Parameters
    ----------
    adata
        Data with raw counts and the embedding. Nothing is written to it, neither colours nor layouts.
    use_rep
        Key of the embedding in ``adata.obsm``.
    batch_key, label_key
        Columns of ``adata.obs`` with batches and with cell types; at least one. The default of `batch_key` is that of
        the embedding, if ``adata.uns`` has it (``uns["sccvae"]`` for ``obsm["X_sccvae"]``). Missing values are drawn in
        grey.
    layer
        Layer with the raw counts; by default that of the embedding, else ``adata.X``.
    history
        Training history, as for `pl.history`: adds the curves of the ELBO and of the KL divergence. The default is that
        of the embedding, ``adata.uns["sccvae"]["history"]``, if there is one.
    {max_cells}
    seed
        Seed of the sample and of the layouts.
    {show}

    {figure}
        One row per key; the columns are before, after and, if there is a history, loss curves.

    Raises
    ------
    KeyError
        A key is in none of ``adata.obsm``, ``adata.obs``, ``adata.layers``.
    ValueError
        Neither key is given; a column holds numbers or cell names in place of groups; the counts are not counts.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(100, 30, seed=0)
    >>> figure = sccvae.pl.integration(adata, use_rep="z", batch_key="batch")
    >>> figure.axes[1].get_title()
    'After: z'
    """
    made_with = adata.uns.get(use_rep.removeprefix("X_"), {})
    parameters = made_with.get("parameters", {})
    batch_key = parameters.get("batch_key") if batch_key is None else batch_key
    layer = parameters.get("layer") if layer is None else layer
    history = made_with.get("history") if history is None else history
    keys = [key for key in (batch_key, label_key) if key is not None]
    if not keys:
        raise ValueError("Nothing to colour the cells by: pass batch_key, label_key, or both; columns of adata.obs.")
    cells = sample(adata.n_obs, max_cells, seed)
    groups = {key: categories(adata, key, cells) for key in dict.fromkeys(keys)}
    after = umap(embedding(adata, use_rep)[cells], seed=seed)
    before = umap(
        pca_of_counts(adata, layer, cells, rounded=bool(parameters.get("round_counts")), seed=seed), seed=seed
    )

    frame = None if history is None else history_frame(history)
    n_columns = 2 if frame is None else 3
    figure = new_figure(2.5 * n_columns + max(map(legend_width, groups.values())), 2.5 * len(groups))
    for row, (key, values) in enumerate(groups.items()):
        axes = [figure.add_subplot(len(groups), n_columns, row * n_columns + i + 1) for i in range(n_columns)]
        for axis, layout in zip(axes, (before, after), strict=False):
            draw_cells(axis, layout, values)
        draw_legend(axes[1], key, values)
        if row == 0:
            axes[0].set_title("Before: principal components", fontsize=MEDIUM)
            axes[1].set_title(f"After: {as_text(use_rep)}", fontsize=MEDIUM)
        if frame is not None:
            column = ("elbo", "kl_z")[row]
            if is_used(frame, column):
                draw_curves(axes[2], frame, column, legend=row == 0)
    return figure


def sample(n_cells: int, max_cells: int, seed: int = 0) -> NDArray:
    """Numbers of the cells to draw, in random order, so that no batch covers another."""
    return np.random.default_rng(checked_seed(seed, most=SEEDS)).permutation(n_cells)[: limit("max_cells", max_cells)]


def categories(adata: AnnData, key: str, cells: NDArray, name: str = "adata") -> pd.Categorical:
    """Groups of the drawn cells, a column of `obs`, of an AnnData called `name` in messages."""
    if key not in adata.obs.columns:
        raise KeyError(f"{key!r} is not a column of {name}.obs, which has {listed(adata.obs.columns)}.")
    values = pd.Categorical(one_column(adata.obs, key).iloc[cells]).remove_unused_categories()
    n = len(values.categories)
    if n > 100 and (values.categories.dtype.kind == "f" or n == len(values)):
        what = "numbers" if values.categories.dtype.kind == "f" else "one for each cell"
        raise ValueError(
            f"{name}.obs[{key!r}] holds {n:,} different values, {what}: expected categories, such as batches or cell "
            "types."
        )
    return values


def embedding(adata: AnnData, use_rep: str, name: str = "adata") -> NDArray:
    """Embedding in `obsm`, (cells, dimensions), of an AnnData called `name` in messages."""
    if use_rep not in adata.obsm:
        raise KeyError(
            f"{use_rep!r} is not in {name}.obsm, which has {listed(adata.obsm)}. sccvae.tl.integrate(adata, "
            "batch_key=...) makes 'X_sccvae'."
        )
    return np.asarray(adata.obsm[use_rep], dtype=np.float32)


def matrix_of(adata: AnnData, layer: str | None, name: str = "adata") -> tuple[Any, str]:
    """Matrix `X` or a layer, and its name in messages, for an AnnData called `name`."""
    if layer is None:
        return adata.X, f"{name}.X"
    if layer not in (known := layer_names(adata)):
        raise KeyError(f"{layer!r} is not in {name}.layers, which has {listed(known)}.")
    return adata.layers[layer], f"{name}.layers[{layer!r}]"


def pca_of_counts(
    adata: AnnData, layer: str | None, cells: NDArray, *, rounded: bool = False, seed: int = 0
) -> NDArray:
    """Principal components of normalised log counts, (cells, at most 50); `rounded` as for the model."""
    import scanpy as sc
    from anndata import AnnData

    source, where = matrix_of(adata, layer)
    # Rows are read in ascending order, which files on disk require.
    ascending = np.sort(cells)
    counts = rows_of(source, where, ascending).astype(np.float32)[np.searchsorted(ascending, cells)]
    if rounded:
        counts.data = np.rint(counts.data)
    wrong = counts.data[(counts.data < 0) | (counts.data != np.rint(counts.data))]
    if len(wrong):
        raise ValueError(
            f"{where} holds values that are not counts: {wrong[0]:.4g}. The plot before integration is made from "
            "raw counts: pass layer=... with the layer that holds them."
        )
    slim = AnnData(counts)
    sc.pp.normalize_total(slim, target_sum=1e4)
    sc.pp.log1p(slim)
    if slim.n_vars > 2000:
        sc.pp.highly_variable_genes(slim, n_top_genes=2000)
        slim = slim[:, slim.var["highly_variable"]].copy()
    n_comps, spread = min(50, slim.n_obs - 1, slim.n_vars - 1), slim.X.max(axis=0) - slim.X.min(axis=0)
    if n_comps < 1 or spread.max() <= 1e-6 * slim.X.max():  # one gene, one cell, or equal cells
        return slim.X.toarray()
    seeded(sc.pp.pca, slim, seed=seed, n_comps=n_comps)
    return slim.obsm["X_pca"]


def umap(representation: NDArray, *, seed: int = 0) -> NDArray:
    """UMAP layout: (cells, dimensions) -> (cells, 2)."""
    import scanpy as sc
    from anndata import AnnData

    names = pd.RangeIndex(len(representation)).astype(str)
    slim = AnnData(obs=pd.DataFrame(index=names), obsm={"rep": representation})
    seeded(sc.pp.neighbors, slim, seed=seed, n_neighbors=min(15, slim.n_obs - 1), use_rep="rep")
    seeded(sc.tl.umap, slim, seed=seed)
    return slim.obsm["X_umap"]


def layout_of(adata: AnnData, basis: str | None, use_rep: str, cells: NDArray, *, seed: int) -> tuple[NDArray, str]:
    """Layout of some cells, (cells, 2), and its name: `basis`, or for None ``"X_umap"``, which is made if missing."""
    if basis is None and "X_umap" not in adata.obsm:
        return umap(embedding(adata, use_rep)[cells], seed=seed), "umap"
    basis = "X_umap" if basis is None else basis
    return embedding(adata, basis)[cells, :2], as_text(basis.removeprefix("X_"))


def dot_size(n_cells: int) -> float:
    """Size of a cell in a layout of this many."""
    return float(np.clip(9000 / n_cells, 0.6, 14))


def dress(ax: Axes, name: str) -> None:
    """Name the axes of a layout, which have no scale."""
    ax.set(xticks=[], yticks=[], box_aspect=1)
    ax.set_xlabel(f"{name} 1", fontsize=SMALL, loc="left")
    ax.set_ylabel(f"{name} 2", fontsize=SMALL, loc="bottom")
    style(ax)


def draw_signed(ax: Axes, layout: NDArray, values: NDArray, cells: NDArray, reach: float) -> PathCollection:
    """Draw some cells of a layout, blue to red from -reach to reach, the largest values last."""
    order = cells[np.argsort(np.abs(values[cells]), kind="stable")]
    options: Any = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach, "linewidths": 0, "rasterized": True}
    return ax.scatter(layout[order, 0], layout[order, 1], c=values[order], s=dot_size(len(layout)), **options)


def draw_cells(ax: Axes, layout: NDArray, values: pd.Categorical) -> None:
    """Draw cells at `layout`, (cells, 2), coloured by category; missing values are grey."""
    colours = np.array([*colours_of(values), MISSING])  # code -1, a missing value, takes the last
    size = dot_size(len(layout))
    # Rasterised, so that a PDF of 20,000 cells is small.
    ax.scatter(layout[:, 0], layout[:, 1], c=colours[values.codes], s=size, linewidths=0, alpha=0.85, rasterized=True)
    dress(ax, "UMAP")
