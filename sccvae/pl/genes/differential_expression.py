"""Differential expression: volcano plot and dot plot. Differential abundance of labels and of neighbourhoods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccvae.data.columns import one_column
from sccvae.pl.style import (
    COLOURS,
    MEDIUM,
    MOST_INCHES,
    SMALL,
    as_text,
    axes_for,
    font_for,
    plot,
    spread,
    style,
)
from sccvae.statistics.samples import confounding
from sccvae.validation.arguments import limit
from sccvae.validation.wording import listed, warn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_GROUPS = 150  # of a dot plot


@plot()
def volcano(
    table: pd.DataFrame,
    group: str | None = None,
    *,
    n_names: int = 8,
    ax: Axes | None = None,
    show: bool = False,
) -> Figure:
    """Volcano plot: fold change of each gene against its posterior probability; called genes are coloured.

    Parameters
    ----------
    table
        As `SCCVAE.differential_expression` returns it: genes in the index, columns ``lfc_median`` and ``bayes_factor``,
        or with `sample_key` ``lfc_mean`` and ``pval``, and ``is_de_fdr_...``; of a table `by` types the rows of one.
    group
        Group to draw (column ``group1``), if the table has several.
    n_names
        Genes to name on each side: the called ones with the highest probability.
    {ax}
    {show}

    {figure}
        The y-axis is -log10 of the posterior probability that the gene has not changed, or of the p-value.

    Raises
    ------
    KeyError, ValueError
        A column is missing; the table has several groups and `group` is None.

    Examples
    --------
    >>> import pandas as pd
    >>> from sccvae import pl
    >>> table = pd.DataFrame({"lfc_median": [2.0, 0.1], "bayes_factor": [5.0, -2.0], "is_de_fdr_0.05": [True, False]})
    >>> figure = pl.volcano(table)
    >>> figure.axes[0].get_xlabel()
    'log2 fold change (posterior median)'
    """
    n_names = limit("n_names", n_names, least=0)
    rows, title, called_by = _comparison(table, group)
    over_samples = "pval" in rows
    if over_samples:
        surprise = -np.log10(np.maximum(rows["pval"].to_numpy(dtype=float), 1e-300))
    else:
        surprise = np.logaddexp(0, rows["bayes_factor"].to_numpy(dtype=float)) / np.log(10)  # -log10(1 - proba_de)
    change = rows["lfc_mean" if over_samples else "lfc_median"].to_numpy(dtype=float)
    called = rows[called_by].to_numpy(dtype=bool)
    sides = {side: _surest(called & (np.sign(change) == side), surprise, n_names) for side in (-1, 1)}
    names = {gene: as_text(rows.index[gene], 28 if ax is None else 14) for side in sides.values() for gene in side}
    # The figure is wider for long names, so that they do not cover the scale.
    more = max(0.0, 0.07 * max(map(len, names.values()), default=0) - 0.5) if ax is None else 0.0
    figure, ax = axes_for(ax, 4.6 + 2 * more, 3.4)
    for mask, colour, name in (
        (~called, "0.75", "not called"),
        (called & (change > 0), COLOURS[3], "higher"),
        (called & (change <= 0), COLOURS[0], "lower"),
    ):
        ax.scatter(
            change[mask], surprise[mask], s=7, color=colour, linewidths=0, alpha=0.8, label=f"{name} ({mask.sum():,})"
        )
    reach = 1.5 * max(0.5, float(np.abs(change).max(initial=0)))
    top = 1.06 * max(1.0, float(surprise.max(initial=0)))
    edge = reach * (1 + more / 1.95)
    ax.set(xlim=(-edge, edge), ylim=(-0.02 * top, top))
    for side, named in sides.items():
        heights = spread(surprise[named], 0.055 * top, 0.02 * top, 0.98 * top)
        for gene, height in zip(named, heights, strict=True):
            ax.plot([change[gene], 0.72 * side * reach], [surprise[gene], height], color="0.6", linewidth=0.4, zorder=0)
            ax.text(
                0.73 * side * reach,
                height,
                names[gene],
                fontsize=SMALL,
                fontstyle="italic",
                ha="left" if side > 0 else "right",
                va="center",
            )
    ax.set_xlabel(f"log2 fold change{'' if over_samples else ' (posterior median)'}", fontsize=SMALL)
    ax.set_ylabel(f"-log10 {'p-value over samples' if over_samples else 'probability of no change'}", fontsize=SMALL)
    ax.set_title(as_text(title, 70), fontsize=MEDIUM)
    style(ax)
    ax.legend(
        fontsize=SMALL, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, handletextpad=0.1,
        title=called_by.removeprefix("is_de_").replace("fdr_", "called at an expected false discovery rate of "),
        title_fontsize=SMALL,
    )  # fmt: skip
    return figure


def _surest(some: np.ndarray, surprise: np.ndarray, n: int) -> np.ndarray:
    """Numbers of the n genes with the highest surprise."""
    genes = np.flatnonzero(some)
    return genes[np.argsort(-surprise[genes], kind="stable")][:n]


@plot()
def dotplot(
    adata: AnnData,
    var_names: Sequence[str] | Mapping[str, Sequence[str]],
    groupby: str,
    *,
    layer: str = "sccvae",
    counts_layer: str | None = None,
    standard_scale: str | None = "var",
    ax: Axes | None = None,
    show: bool = False,
    **kwargs: Any,
) -> Figure:
    """Dot plot of `scanpy.pl.dotplot`: colour is denoised expression, size is the fraction of cells with a count.

    Scanpy takes both from one matrix. Denoised expression is above 0 in every cell, so that all dots would have the
    same size.

    Parameters
    ----------
    adata
        After `sccvae.tl.integrate`.
    var_names
        Genes, or a mapping from the name of a group to its marker genes.
    groupby
        Column of `obs`.
    layer
        Denoised expression: key of ``adata.layers``, or of ``adata.obsm`` if only some genes were modelled.
    counts_layer
        Layer with the counts; None takes ``adata.X``. Normalised counts are possible: only whether they are above 0 is
        used.
    standard_scale
        ``"var"`` scales the colours of each gene from 0 to 1, ``"group"`` those of each group, None neither.
    ax
        Draw in the place of these axes.
    {show}
    kwargs
        Further arguments of `scanpy.pl.dotplot`, such as ``dendrogram=True``.

    {figure}
        It has at most 150 groups: of more, the largest, which the title states.

    Raises
    ------
    KeyError
        There is no such layer, column or gene.
    ValueError
        There are more than 150 groups, and `kwargs` ask for a dendrogram.

    Warns
    -----
    UserWarning
        The layer is corrected for batches, and two groups share no batch: their difference may have been removed.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(100, 30, seed=0)
    >>> adata.layers["denoised"] = adata.X.toarray() + 0.5
    >>> figure = sccvae.pl.dotplot(adata, ["gene_1", "gene_2"], "cell_type", layer="denoised")
    >>> len(figure.axes)
    4
    """
    import scanpy as sc
    from anndata import AnnData

    nested = var_names.values() if hasattr(var_names, "values") else [var_names]
    genes = list(dict.fromkeys(gene for group in nested for gene in ([group] if isinstance(group, str) else group)))
    denoised = _expression(adata, layer, genes)
    if groupby not in adata.obs:
        raise KeyError(f"{groupby!r} is not a column of adata.obs, which has {listed(adata.obs.columns)}.")
    counts = adata[:, genes].X if counts_layer is None else adata[:, genes].layers[counts_layer]
    counts = counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts)
    groups, left_out = _largest(pd.Categorical(one_column(adata.obs, groupby)), bool(kwargs.get("dendrogram")))
    _warn_of_batches(adata, layer, groups)
    shares = pd.DataFrame(counts > 0, columns=genes).groupby(groups, observed=True).mean()
    slim = AnnData(denoised, obs=pd.DataFrame({groupby: groups}, index=adata.obs_names), var=pd.DataFrame(index=genes))
    if left_out:
        slim = slim[groups.codes >= 0].copy()
        kwargs.setdefault("title", f"the {MOST_GROUPS} largest of {MOST_GROUPS + left_out:,} groups")
    slim.uns.update({key: adata.uns[key] for key in adata.uns if key.startswith("dendrogram_")})
    options = {"cmap": "viridis", "colorbar_title": "denoised expression", **kwargs}
    options.setdefault("size_title", "cells with a count (%)")
    drawn = sc.pl.dotplot(
        slim, var_names, groupby, standard_scale=standard_scale, dot_size_df=shares[genes], return_fig=True, ax=ax,
        **options,
    )  # fmt: skip
    _fit(drawn)
    return drawn.fig


def _warn_of_batches(adata: AnnData, layer: str, groups: pd.Categorical) -> None:
    """Warn if the layer is the corrected expression of `tl.integrate`, and two groups share no batch."""
    key, _, corrected = layer.rpartition("_")
    said: Any = adata.uns.get(key) if corrected == "corrected" else None
    batch_key = said["parameters"].get("batch_key") if said is not None and "parameters" in said else None
    if batch_key in adata.obs:
        found = confounding.sentence_of_labels(groups, one_column(adata.obs, batch_key), "dotplot")
        if found is not None:
            warn(found)


def _largest(groups: pd.Categorical, dendrogram: bool) -> tuple[pd.Categorical, int]:
    """At most 150 groups, the largest, and the number of groups left out, whose cells get no group."""
    sizes = pd.Series(groups).value_counts(sort=False)
    left_out = int((sizes > 0).sum()) - MOST_GROUPS
    if left_out <= 0:
        return groups, 0
    if dendrogram:
        raise ValueError(
            f"There are {MOST_GROUPS + left_out:,} groups; a dot plot with a dendrogram shows at most {MOST_GROUPS}: "
            "take fewer cells, or dendrogram=False."
        )
    named = sizes.index[np.sort(np.argsort(-sizes.to_numpy(), kind="stable")[:MOST_GROUPS])]
    return groups.set_categories(named), left_out


def _fit(drawn: Any) -> None:
    """Draw Scanpy's figure within 30 inches, with plain names, and large enough that no name is cut off."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # Scanpy's attributes: inches per group (HEIGHT) and per gene (WIDTH), which `swap_axes` has exchanged already.
    for side, n in (("HEIGHT", len(drawn.categories)), ("WIDTH", len(drawn.var_names))):
        name = f"DEFAULT_CATEGORY_{side}"
        room = min(getattr(drawn, name), (MOST_INCHES - 6) / max(n, 1))
        setattr(drawn, name, room)
        drawn.largest_dot = min(drawn.largest_dot, (72 * 0.73 * room) ** 2)  # 0.73: the rest is margins
    drawn.make_figure()
    figure, ax = drawn.fig, drawn.get_axes()["mainplot_ax"]
    size = figure.get_size_inches()
    for axis, inches in zip((ax.xaxis, ax.yaxis), ax.get_position().size * size, strict=True):
        labels = axis.get_ticklabels()
        names = [label.get_text() for label in labels]
        if (shown := [as_text(name, 40) for name in names]) != names:
            axis.set_ticklabels(shown)
        for label in axis.get_ticklabels():
            label.set_fontsize(font_for(inches / len(labels), label.get_fontsize()))
    if drawn.ax is not None:
        return
    box = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    low, high = np.maximum(0, -box.min), np.maximum(0, box.max - size)  # inches outside: left, below; right, above
    if max(*low, *high) > 0.5:  # for less, bbox_inches="tight" does, as in Scanpy
        low, high = (np.where(side > 0, side + 0.05, 0) for side in (low, high))
        places = [axes.get_position().bounds for axes in figure.axes]
        figure.set_size_inches(larger := size + low + high)
        for axes, (left, bottom, width, height) in zip(figure.axes, places, strict=True):
            corner = ((left, bottom) * size + low) / larger
            axes.set_position((*corner, *((width, height) * size / larger)))


def _comparison(table: pd.DataFrame, group: str | None) -> tuple[pd.DataFrame, str, str]:
    """Rows of one comparison, its name, and the name of the column with the called genes."""
    called = [column for column in table.columns if str(column).startswith("is_de_fdr_")]
    needed = ("lfc_mean",) if "pval" in table.columns else ("lfc_median", "bayes_factor")
    missing = [column for column in needed if column not in table.columns]
    if missing or not called:
        raise ValueError(
            f"The table lacks the columns {missing or ['is_de_fdr_...']} (it has {listed(table.columns)}): expected "
            "the result of model.differential_expression(mode='change')."
        )
    if "group1" not in table.columns:
        return table, "", called[0]
    known = list(dict.fromkeys(table["group1"]))
    if group is None and len(known) > 1:
        raise ValueError(f"The table compares several groups: name one, group=... of {listed(known)}.")
    if group is not None and group not in known:
        raise KeyError(f"The table has no group {group!r}; it has {listed(known)}.")
    rows = table if group is None else table[table["group1"] == group]
    if "pval" in rows and rows.index.has_duplicates:
        raise ValueError("The table has several rows of a gene: pass those of one cell type, table[table[by] == ...].")
    return rows, str(rows["comparison"].iloc[0]) if "comparison" in rows else str(group), called[0]


def _expression(adata: AnnData, layer: str, genes: list[str]) -> np.ndarray:
    """Denoised expression of the genes, (cells, genes)."""
    if layer is not None and layer in adata.layers:  # in anndata 0.13 `X` is among the layers, under None
        frame, where = adata.to_df(layer=layer), f"adata.layers[{layer!r}]"
    elif layer in adata.obsm and isinstance(adata.obsm[layer], pd.DataFrame):
        frame, where = adata.obsm[layer], f"adata.obsm[{layer!r}]"
    else:
        raise KeyError(
            f"{layer!r} is neither in adata.layers nor a table in adata.obsm: sccvae.tl.integrate(adata) makes "
            "'sccvae' and 'sccvae_corrected'."
        )
    unknown = [gene for gene in genes if gene not in frame.columns]
    if unknown:
        raise KeyError(f"{where} has no gene {unknown[0]!r}.")
    return frame[genes].to_numpy()
