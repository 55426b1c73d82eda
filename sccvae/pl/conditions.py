"""Figures of samples and conditions: abundance of cell types, the effect of a condition in each cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sccvae.data.columns import one_column
from sccvae.pl.embedding import dot_size, draw_signed, dress, layout_of, sample
from sccvae.pl.style import COLOURS, MEDIUM, MISSING, SMALL, as_text, colour_bar, new_figure, plot, style
from sccvae.validation.wording import listed

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LABELS = 100  # of a plot of abundance
CALLED = 0.05  # adjusted p-value


@plot()
def differential_abundance(
    adata: AnnData,
    *,
    key: str = "differential_abundance",
    basis: str | None = None,
    max_cells: int = 20_000,
    seed: int = 0,
    show: bool = False,
) -> Figure:
    """Draw the result of `sccvae.tl.differential_abundance`.

    By label: the fraction of each sample as a point, on a log scale, and the log2 fold change with its interval. By
    neighbourhood: a layout of the cells, coloured by log2 fold change. A second panel has colours only where the
    adjusted p-value is below 0.05.

    Parameters
    ----------
    adata
        Data after `sccvae.tl.differential_abundance`.
    key
        The `key_added` of `sccvae.tl.differential_abundance`.
    basis
        Key of ``adata.obsm`` with a layout of the cells. None takes ``"X_umap"``, or makes a UMAP if there is none.
    {max_cells}
    {seed_of_drawing}
    {show}

    {figure}
        Of more than 100 labels, those with the lowest p-values.

    Raises
    ------
    KeyError
        There is no result, or its columns or the layout are missing.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(600, 30, n_batches=6, seed=0)
    >>> adata.obs["treated"] = adata.obs["batch"].isin(["batch_3", "batch_4", "batch_5"])
    >>> sccvae.tl.differential_abundance(adata, "batch", "treated", by="cell_type")
    >>> figure = sccvae.pl.differential_abundance(adata)
    >>> figure.axes[1].get_xlabel()
    'log2 fold change of odds'
    """
    if key not in adata.uns or f"{key}_params" not in adata.uns:
        raise KeyError(
            f"adata.uns has no result {key!r}; expected that of sccvae.tl.differential_abundance: run it first, or "
            "pass its key_added as key."
        )
    table, params = adata.uns[key], adata.uns[f"{key}_params"]
    if "by" in params:
        return _draw_labels(adata, table, params)
    cells = np.sort(sample(adata.n_obs, max_cells, seed))
    lfc, padj = (one_column(adata.obs, f"{key}_{what}").to_numpy(dtype=float)[cells] for what in ("lfc", "padj"))
    layout, name = layout_of(adata, basis, params["use_rep"], cells, seed=seed)
    return _draw_changes(layout, lfc, padj, name, params)


def _draw_labels(adata: AnnData, table: pd.DataFrame, params: Any) -> Figure:
    """Draw fractions of samples and fold changes, a row for each label."""
    from matplotlib.ticker import LogLocator, NullFormatter

    levels = [str(params[what]) for what in ("reference", "condition")]
    columns = [one_column(adata.obs, params[what]).astype(str) for what in ("by", "sample_key", "condition_key")]
    counts = pd.crosstab(columns[0].to_numpy(), columns[1].to_numpy())
    fractions = counts / counts.sum()
    level_of = pd.Series(columns[2].to_numpy(), index=columns[1].to_numpy()).groupby(level=0).first()
    n_labels, left_out = len(table), max(0, len(table) - MOST_LABELS)
    if left_out:
        table = table.iloc[np.sort(np.argsort(table["pval"].to_numpy(), kind="stable")[:MOST_LABELS])]
    names = table["label"].astype(str).to_numpy()
    shown = [as_text(name, 40) for name in names]
    figure = new_figure(3.9 + 0.055 * max(map(len, shown)), 0.9 + 0.24 * len(names))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.6, 1])
    least = 0.5 * fractions.to_numpy()[fractions.to_numpy() > 0].min()
    rows = np.arange(len(names))
    for level, colour, shift in zip(levels, (COLOURS[0], COLOURS[3]), (-0.16, 0.16), strict=True):
        values = 100 * fractions.loc[names, level_of.index[level_of == level]].clip(lower=least).to_numpy()
        height = np.broadcast_to(rows[:, None] + shift, values.shape)
        left.scatter(values, height, s=9, color=colour, linewidths=0, alpha=0.8, label=as_text(level, 24))
        middle = np.exp(np.log(values).mean(1))
        left.vlines(middle, rows + shift - 0.14, rows + shift + 0.14, color=colour, linewidth=1.2)
    drawn = 100 * fractions.loc[names].clip(lower=least).to_numpy()
    high = drawn.max()
    low = min(drawn.min() / 1.2, high / 5)
    left.set(xscale="log", xlim=(low, 1.2 * high), ylim=(len(names) - 0.5, -0.5))
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("cells of a sample (%)", fontsize=SMALL)
    called = (table["padj"] < CALLED).to_numpy()
    for mask, colour in ((~called, "0.55"), (called, "black")):
        part = table[mask]
        right.hlines(rows[mask], part["lfc_lower"], part["lfc_upper"], color=colour, linewidth=1)
        right.scatter(part["lfc"], rows[mask], s=12, color=colour, zorder=3, linewidths=0)
    right.axvline(0, color="0.75", linewidth=0.8, zorder=0)
    ends = np.abs(table[["lfc_lower", "lfc_upper"]].to_numpy())  # of many labels few may be far out
    reach = 1.1 * max(1.0, float(ends.max() if len(ends) <= 20 else np.quantile(ends, 0.95)))
    right.set_xlim(-reach, reach)
    right.set_xlabel("log2 fold change of odds", fontsize=SMALL)
    for ax in (left, right):
        style(ax)
    left.set_yticks(rows, shown, fontsize=SMALL)
    right.tick_params(axis="y", left=False)
    if left_out:
        left.set_ylabel(f"the {MOST_LABELS} lowest p-values of {n_labels:,} labels", fontsize=MEDIUM)
    right.set_title(f"black: adjusted p < {CALLED}", fontsize=SMALL)
    left.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=SMALL, frameon=False, handletextpad=0.1,
        borderaxespad=0.2, columnspacing=1,
    )  # fmt: skip
    return figure


def _draw_changes(layout: np.ndarray, lfc: np.ndarray, padj: np.ndarray, axis_name: str, params: Any) -> Figure:
    """Draw cells coloured by fold change: all of them, and those of called neighbourhoods."""
    figure, known = new_figure(6.6, 3.1), np.isfinite(lfc)
    axes = figure.subplots(1, 2)
    reach = max(0.5, float(np.quantile(np.abs(lfc[known]), 0.98))) if known.any() else 1.0
    called = known & (padj < CALLED)
    title = f"{as_text(params['condition'], 24)} against {as_text(params['reference'], 24)}"
    for ax, mask, name in zip(axes, (known, called), (title, f"adjusted p < {CALLED}"), strict=True):
        ax.scatter(*layout[~mask].T, s=dot_size(len(layout)), color=MISSING, linewidths=0, rasterized=True)
        points = draw_signed(ax, layout, lfc, np.flatnonzero(mask), reach)
        dress(ax, axis_name)
        ax.set_title(name, fontsize=MEDIUM)
    colour_bar(figure, points, list(axes), "log2 fold change of odds", shrink=0.6, aspect=18, extend="both")
    return figure


@plot()
def condition_effect(
    adata: AnnData,
    gene: str,
    *,
    label: str | None = None,
    key: str = "condition_effect",
    basis: str | None = None,
    use_rep: str = "X_sccvae",
    layer: str | None = None,
    max_cells: int = 20_000,
    seed: int = 0,
    show: bool = False,
) -> Figure:
    """Draw the effect of a condition on a gene: cell by cell, beside other genes, and in each sample.

    Left: the cells, coloured by the log2 fold change of the gene; the outline holds the region of `tl.condition_effect`
    with `held_out`, if there is one. Middle: all genes in one cell type, log2 fold change over samples against its
    p-value. Right: counts of the gene in the cell type per 10,000, a point for each sample.

    Parameters
    ----------
    adata
        Data after `sccvae.tl.condition_effect`, with the counts in `X` or in `layer`.
    gene
        Name of the gene.
    label
        Cell type of the middle and right panel; None takes that in which the p-value of the gene is lowest.
    key
        The `key_added` of `sccvae.tl.condition_effect`.
    basis
        Key of ``adata.obsm`` with a layout of the cells. None takes ``"X_umap"``, or makes a UMAP of `use_rep`.
    use_rep
        Key of ``adata.obsm`` with the embedding.
    layer
        Layer with the counts; None takes `X`.
    {max_cells}
    {seed_of_drawing}
    {show}

    {figure}

    Raises
    ------
    KeyError
        There is no result; the gene, the label, the layout or the layer is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(300, 40, seed=0)
    >>> adata.obs["donor"] = [f"donor_{k}" for k in np.arange(300) % 6]
    >>> adata.obs["drug"] = np.where(np.arange(300) % 2, "drug", "none")
    >>> model = sccvae.SCCVAE(adata, batch_key="donor", condition_key="drug")
    >>> model.train(max_epochs=2)
    >>> sccvae.tl.condition_effect(adata, model, "drug", "none", by="cell_type", n_samples=5)
    >>> figure = sccvae.pl.condition_effect(adata, "gene_1", basis="z")
    >>> figure.axes[1].get_xlabel()
    'log2 fold change'
    """
    if key not in adata.uns or "by_label" not in adata.uns[key]:
        raise KeyError(
            f"adata.uns has no result {key!r}; expected that of sccvae.tl.condition_effect: run it first, or pass its "
            "key_added as key."
        )
    result = adata.uns[key]
    table = result["by_label"]
    of_gene = table[table["gene"] == gene]
    if not len(of_gene):
        raise KeyError(f"adata.uns[{key!r}] has no gene {gene!r}; it has {listed(table['gene'].unique(), 10)}.")
    label = str(of_gene.sort_values("pval")["label"].iloc[0]) if label is None else str(label)
    if label not in set(table["label"]):
        raise KeyError(f"adata.uns[{key!r}] has no label {label!r}; it has {listed(table['label'].unique())}.")
    cells = np.sort(sample(adata.n_obs, max_cells, seed))
    layout, name = layout_of(adata, basis, use_rep, cells, seed=seed)
    figure = new_figure(8.6, 2.8)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1, 0.8])
    effect = np.asarray(adata.obsm[key][gene] if key in adata.obsm else adata[:, gene].layers[key]).ravel()[cells]
    inside = None
    if f"{key}_regions" in adata.obsm:
        column = list(result["genes"]).index(gene)
        inside = np.asarray(adata.obsm[f"{key}_regions"][:, column].todense()).ravel()[cells].astype(bool)
    _draw_effect(figure, left, layout, effect, inside, name)
    against = f"{as_text(result['condition'], 16)} / {as_text(result['reference'], 16)}"
    left.set_title(f"{as_text(gene, 24)}: {against}", fontsize=MEDIUM)
    _draw_volcano(middle, table[table["label"] == label], gene)
    middle.set_title(as_text(label, 32), fontsize=MEDIUM)
    _draw_samples(right, adata, gene, label, result, layer)
    return figure


def _draw_effect(
    figure: Figure, ax: Axes, layout: np.ndarray, effect: np.ndarray, inside: np.ndarray | None, axis_name: str
) -> None:
    """Draw cells coloured by the effect; those of a region with a dark edge."""
    reach = max(0.25, float(np.nanquantile(np.abs(effect), 0.98)))
    if inside is not None and not inside.all():
        size = 3 * dot_size(len(layout)) + 3
        ax.scatter(layout[inside, 0], layout[inside, 1], s=size, color="0.3", linewidths=0, rasterized=True)
    points = draw_signed(ax, layout, effect, np.arange(len(layout)), reach)
    dress(ax, axis_name)
    colour_bar(figure, points, ax, "log2 fold change", shrink=0.6, aspect=18, extend="both")


def _draw_volcano(ax: Axes, table: pd.DataFrame, gene: str) -> None:
    """Draw all genes of a cell type; the called ones in colour, the gene with its name."""
    change, height = table["lfc_mean"].to_numpy(), -np.log10(table["pval"].to_numpy(dtype=float))
    called = (table["padj"] < CALLED).to_numpy()
    for mask, colour in ((~called, "0.7"), (called, COLOURS[3])):
        ax.scatter(change[mask], height[mask], s=5, color=colour, linewidths=0, rasterized=True)
    at = int(np.flatnonzero(table["gene"] == gene)[0])
    ax.scatter(change[at], height[at], s=26, facecolors="none", edgecolors="black", linewidths=1)
    reach = 1.15 * max(1.0, float(np.quantile(np.abs(change), 0.999)), abs(float(change[at])))
    side = "left" if change[at] < -0.4 * reach else "right" if change[at] > 0.4 * reach else "center"
    ax.annotate(
        as_text(gene, 16), (change[at], height[at]), xytext=(0, 6), textcoords="offset points", ha=side, fontsize=SMALL
    )
    ax.set(xlim=(-reach, reach), ylim=(0, 1.15 * max(float(np.nanmax(height)), 0.1)))
    ax.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    ax.set_xlabel("log2 fold change", fontsize=SMALL)
    ax.set_ylabel("-log10 p-value over samples", fontsize=SMALL)
    style(ax)


def _draw_samples(ax: Axes, adata: AnnData, gene: str, label: str, result: Any, layer: str | None) -> None:
    """Draw the gene's counts per 10,000 in the cells of a type, a point for each sample."""
    levels = [str(result[what]) for what in ("reference", "condition")]
    kind = np.full(adata.n_obs, "all") if not result["by"] else one_column(adata.obs, result["by"]).astype(str)
    condition, sample_of = (one_column(adata.obs, result[what]).astype(str) for what in ("condition_key", "sample_key"))
    taken = np.flatnonzero((np.asarray(kind) == label) & condition.isin(levels).to_numpy())
    counts = sp.csr_matrix(adata.X if layer is None else adata.layers[layer])[taken]
    totals, of_gene = (np.asarray(x.sum(1)).ravel() for x in (counts, counts[:, [adata.var_names.get_loc(gene)]]))
    keys = [condition.to_numpy()[taken], sample_of.to_numpy()[taken]]
    sums = pd.DataFrame({"gene": of_gene, "total": totals}).groupby(keys).sum()
    values = 1e4 * sums["gene"] / sums["total"].clip(lower=1)
    pairs = values.unstack(level=0).reindex(columns=levels)
    for _, pair in pairs.dropna().iterrows():  # samples in both conditions
        ax.plot((0, 1), pair.to_numpy(), color="0.8", linewidth=0.8, zorder=0)
    for at, (level, colour) in enumerate(zip(levels, (COLOURS[0], COLOURS[3]), strict=True)):
        own = pairs[level].dropna().to_numpy()
        shift = np.linspace(-0.12, 0.12, len(own)) if pairs.isna().any(axis=None) else np.zeros(len(own))
        ax.scatter(at + shift[: len(own)], own, s=14, color=colour, linewidths=0)
        ax.hlines(own.mean() if len(own) else 0, at - 0.25, at + 0.25, color=colour, linewidth=1.2)
    ax.set_xticks((0, 1), [as_text(level, 16) for level in levels], fontsize=SMALL)
    ax.set(xlim=(-0.5, 1.5), ylim=(0, None))
    ax.set_ylabel(f"{as_text(gene, 16)}, counts per 10,000", fontsize=SMALL)
    style(ax)
