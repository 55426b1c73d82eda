"""Developmental gradients: a layout coloured by pseudotime, gene trends along pseudotime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sccvae.data.columns import one_column
from sccvae.pl.embedding import categories, dot_size, draw_cells, dress, embedding, sample
from sccvae.pl.style import (
    MEDIUM,
    MISSING,
    SMALL,
    as_text,
    colour_bar,
    colours_of,
    draw_legend,
    legend_height,
    legend_width,
    new_figure,
    plot,
    rows_and_columns,
    style,
)
from sccvae.validation.arguments import limit
from sccvae.validation.wording import listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@plot()
def gradient(
    adata: AnnData,
    *,
    label_key: str | None = None,
    key: str = "sccvae",
    basis: str | None = None,
    max_cells: int = 20_000,
    seed: int = 0,
    ax: Axes | None = None,
    show: bool = False,
) -> Figure:
    """Draw a layout of the cells, coloured by pseudotime and, in a second panel, by group. A cross marks the root.

    Parameters
    ----------
    adata
        After ``sccvae.tl.gradient(adata, root=...)``.
    label_key
        Column of `obs` with groups, such as cell types; None leaves the second panel out.
    key
        The `key_added` of `sccvae.tl.gradient`.
    basis
        Key of ``adata.obsm`` with another layout, such as ``"X_umap"``.
    {max_cells}
    {seed_of_drawing}
    ax
        Draw only pseudotime, into these axes.
    {show}

    {figure}

    Raises
    ------
    KeyError
        Pseudotime, the layout or the column does not exist.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(150, 30, seed=0)
    >>> sccvae.tl.gradient(adata, root=0, use_rep="z", layout=None)
    >>> figure = sccvae.pl.gradient(adata, basis="z")
    >>> figure.axes[0].get_xlabel()
    'z 1'
    """
    if f"{key}_pseudotime" not in adata.obs:
        raise KeyError(f"'{key}_pseudotime' is not in adata.obs: run sccvae.tl.gradient(adata, root=...) first.")
    basis = f"X_draw_graph_{key}" if basis is None else basis
    cells = sample(adata.n_obs, max_cells, seed)
    layout = embedding(adata, basis)[:, :2]
    pseudotime = one_column(adata.obs, f"{key}_pseudotime").to_numpy(dtype=float)
    root = adata.uns.get(f"{key}_gradient", {}).get("root")
    at_root = layout[adata.obs_names == root]
    axis_name = as_text(basis.removeprefix("X_").replace("draw_graph_", "layout ").replace("_", " "))
    if ax is not None:
        _draw_pseudotime(ax, layout[cells], pseudotime[cells], at_root, axis_name)
        return ax.figure.figure
    values = None if label_key is None else categories(adata, label_key, cells)
    width = 0.0 if values is None else 2.9 + legend_width(values)
    figure = new_figure(3.5 + width, 3.0)
    axes = figure.subplots(1, 1 if values is None else 2, squeeze=False)[0]
    _draw_pseudotime(axes[0], layout[cells], pseudotime[cells], at_root, axis_name)
    if values is not None:
        draw_cells(axes[1], layout[cells], values)
        dress(axes[1], axis_name)
        draw_legend(axes[1], label_key or "", values)
    return figure


@plot()
def trends(
    adata: AnnData | pd.DataFrame,
    genes: Sequence[str] | None = None,
    *,
    key: str = "sccvae_trends",
    n_columns: int = 4,
    ax: Axes | None = None,
    show: bool = False,
) -> Figure:
    """Draw expression along pseudotime: a panel for each gene, a line with its credible band for each lineage.

    Parameters
    ----------
    adata
        Data after ``sccvae.tl.trends(adata, model, genes)``, or the table itself.
    genes
        Genes to draw, in this order; None draws all of the table.
    key
        Key of ``adata.uns``.
    n_columns
        Panels in a row; more if the figure would be higher than 30 inches.
    ax
        Draw the trends of a single gene into these axes.
    {show}

    {figure}

    Raises
    ------
    KeyError, ValueError
        There are no trends, or none of a gene; the table lacks a column; `ax` is given and there are several genes.

    Examples
    --------
    >>> import pandas as pd
    >>> from sccvae import pl
    >>> curve = {"pseudotime": [0, 1], "mean": [1, 2], "lower": [0, 1], "upper": [2, 3]}
    >>> figure = pl.trends(pd.DataFrame({"lineage": "all", "gene": "Gata1", **curve}))
    >>> figure.axes[0].get_title()
    'Gata1'
    """
    table = _table(adata, key)
    known = list(dict.fromkeys(table["gene"]))
    names = known if genes is None else [genes] if isinstance(genes, str) else list(genes)
    unknown = [gene for gene in names if gene not in known]
    if unknown:
        raise KeyError(f"There is no trend of {unknown[0]!r}; the table has {listed(known)}.")
    lineages = list(dict.fromkeys(table["lineage"]))
    values = pd.Categorical(lineages, categories=lineages)
    curves = dict(list(table[table["gene"].isin(names)].groupby(["gene", "lineage"], sort=False, observed=True)))
    legend = legend_width(values) if len(lineages) > 1 else 0
    if ax is not None:
        if len(names) > 1:
            raise ValueError(f"ax has room for one gene; found {len(names)}: pass genes= with one, or leave ax out.")
        _draw_trends(ax, curves, names[0], values)
        ax.set_xlabel("pseudotime", fontsize=SMALL)
        ax.set_ylabel("denoised expression", fontsize=SMALL)
        if legend:
            draw_legend(ax, "lineage", values)
        return ax.figure.figure
    n_rows, n_columns = rows_and_columns(len(names), limit("n_columns", n_columns), 1.75, 1.6)
    height = max(1.6 * n_rows + 0.25, legend_height(values) + 0.45 if legend else 0)
    figure = new_figure(1.75 * n_columns + legend + 0.3, height)
    axes = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True)
    for number, panel in enumerate(axes.flat):
        if number >= len(names):
            panel.set_visible(False)
            continue
        _draw_trends(panel, curves, names[number], values)
        panel.xaxis.set_tick_params(labelbottom=number + n_columns >= len(names))
    if legend:
        draw_legend(axes[0, -1], "lineage", values)
    figure.supxlabel("pseudotime", fontsize=MEDIUM)
    figure.supylabel("denoised expression", fontsize=MEDIUM)
    return figure


def _draw_trends(ax: Axes, curves: dict, gene: str, lineages: pd.Categorical) -> None:
    """Draw the trends of one gene, a line with its band for each lineage; `curves` by gene and lineage."""
    for lineage, colour in zip(lineages, colours_of(lineages), strict=True):
        if (rows := curves.get((gene, lineage))) is None:
            continue
        ax.fill_between(rows["pseudotime"], rows["lower"], rows["upper"], color=colour, alpha=0.25, linewidth=0)
        ax.plot(rows["pseudotime"], rows["mean"], color=colour, linewidth=1.3)
    ax.set_title(as_text(gene), fontsize=MEDIUM, fontstyle="italic")
    ax.set_ylim(bottom=0)
    ax.margins(x=0.02)
    style(ax)


def _draw_pseudotime(ax: Axes, layout: np.ndarray, pseudotime: np.ndarray, root: np.ndarray, name: str) -> None:
    """Draw cells coloured by pseudotime, above cells without pseudotime in grey."""
    size = dot_size(len(layout))
    known = np.isfinite(pseudotime)
    x, y = layout.T
    ax.scatter(x[~known], y[~known], color=MISSING, s=size, linewidths=0, rasterized=True)
    drawn = ax.scatter(x[known], y[known], c=pseudotime[known], cmap="viridis", s=size, linewidths=0, rasterized=True)
    ax.scatter(root[:, 0], root[:, 1], marker="P", s=55, color="#D55E00", edgecolors="white", linewidths=0.8, zorder=3)
    colour_bar(ax.figure, drawn, ax, "pseudotime", shrink=0.6, aspect=15, pad=0.02)
    dress(ax, name)


def _table(adata: AnnData | pd.DataFrame, key: str) -> pd.DataFrame:
    """Table of trends, after a check of its columns."""
    if isinstance(adata, pd.DataFrame):
        table, where = adata, "The table"
    else:
        if key not in adata.uns:
            raise KeyError(f"{key!r} is not in adata.uns: run sccvae.tl.trends(adata, model, genes) first.")
        table, where = pd.DataFrame(adata.uns[key]), f"adata.uns[{key!r}]"
    missing = [c for c in ("lineage", "gene", "pseudotime", "mean", "lower", "upper") if c not in table.columns]
    if missing:
        raise ValueError(f"{where} lacks the columns {missing}: expected the table that sccvae.tl.trends writes.")
    return table
