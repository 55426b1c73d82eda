"""Plots: the loss curves of a training, and an embedding before and after integration.

Every function returns a `matplotlib.figure.Figure` and draws it nowhere else unless `show=True`. The AnnData and
matplotlib's settings stay as they were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["history", "integration"]

# Okabe & Ito (2008), Color universal design: distinct for readers of all kinds of colour vision.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
_CURVES = {
    "elbo": ("ELBO", "nats per cell"),
    "reconstruction": ("log-likelihood", "nats per cell"),
    "kl_z": ("KL divergence of z", "nats per cell"),
    "kl_l": ("KL divergence of library size", "nats per cell"),
    "learning_rate": ("learning rate", ""),
    "kl_weight": ("KL weight", ""),
}
_BLACK, _MISSING = "#000000", "#D0D0D0"
_SMALL, _MEDIUM = 7, 8  # font sizes in points, for a figure printed at its own size
_LEGEND_ROWS = 14


def history(history: pd.DataFrame | Mapping, *, ax: Axes | None = None, show: bool = False) -> Figure:
    """Loss curves of training and validation cells.

    A panel each for the ELBO, its parts (the log-likelihood, and the divergences of posterior from prior), the
    learning rate and the KL weight. A dotted line marks the epoch with the highest ELBO of validation cells. First
    epochs that lie far off may leave the frame, so that the rest can be read.

    Parameters
    ----------
    history
        One row per epoch and split, as in ``SCCVAE.history``: columns ``epoch``, ``split`` (``"training"`` or
        ``"validation"``), ``elbo``, ``reconstruction``, ``kl_z``, ``kl_l`` (nats per cell), ``learning_rate``,
        ``kl_weight``. Panels whose columns are missing are left out; only the first three are needed. A mapping of
        column names to values does as well.
    ax
        Draw the ELBO alone into these axes instead.
    show
        Open the figure in a window (or the notebook) now.

    Returns
    -------
    matplotlib.figure.Figure
        Save it with ``figure.savefig("history.pdf")``.

    Raises
    ------
    ValueError
        `history` is empty or lacks a column.

    Examples
    --------
    >>> curve = {"epoch": [1, 2], "split": ["training", "training"], "elbo": [-310.0, -260.0]}
    >>> figure = history(curve)
    >>> figure.axes[0].get_title()
    'ELBO'
    """
    frame = _history_frame(history)
    if ax is not None:
        _draw_curves(ax, frame, "elbo", legend=True)
        return _finished(ax.figure.figure, show, own=False)  # axes may be in a subfigure: its figure
    panels = [column for column in _CURVES if _is_used(frame, column)]
    n_columns = min(len(panels), 3)
    n_rows = -(-len(panels) // n_columns)
    figure = _new_figure(2.4 * n_columns, 2.0 * n_rows)
    for i, column in enumerate(panels):
        _draw_curves(figure.add_subplot(n_rows, n_columns, i + 1), frame, column, legend=i == 0)
    return _finished(figure, show)


def integration(
    adata: AnnData,
    *,
    use_rep: str = "X_sccvae",
    batch_key: str | None = None,
    label_key: str | None = None,
    layer: str | None = None,
    history: pd.DataFrame | Mapping | None = None,
    max_cells: int = 20_000,
    show: bool = False,
) -> Figure:
    """UMAP of the cells before and after integration, coloured by batch and by cell type.

    Before: the first 50 principal components of normalised log counts (of the 2,000 most variable genes, where there
    are more). After: `use_rep`. Both layouts are made by `scanpy.tl.umap` from 15 neighbours with a fixed seed.

    Parameters
    ----------
    adata
        Data with raw counts and the embedding. Not written to: colours and layouts are not kept.
    use_rep
        Key of the embedding in ``adata.obsm``.
    batch_key, label_key
        Columns of ``adata.obs`` with batches and with cell types; at least one. Without `batch_key`, the one that
        the embedding was made with, where ``adata.uns`` tells (``uns["sccvae"]`` of ``obsm["X_sccvae"]``). Missing
        values are drawn in grey.
    layer
        Layer with the raw counts; by default the one the embedding was made with, else ``adata.X``.
    history
        Adds the curves of the ELBO and of the KL divergence, as `pl.history` takes them. By default
        that of the embedding, ``adata.uns["sccvae"]["history"]``, where there is one.
    max_cells
        Draw a random sample of so many cells where there are more, the same at every call.
    show
        Open the figure in a window (or the notebook) now.

    Returns
    -------
    matplotlib.figure.Figure
        One row per key; columns before, after and, where there is a history, loss curves.

    Raises
    ------
    KeyError
        A key is in none of ``adata.obsm``, ``adata.obs``, ``adata.layers``.
    ValueError
        Neither key is given, a key holds more than 100 different values, or the counts are no counts.
    """
    made_with = adata.uns.get(use_rep.removeprefix("X_"), {})
    parameters = made_with.get("parameters", {})
    batch_key = parameters.get("batch_key") if batch_key is None else batch_key
    layer = parameters.get("layer") if layer is None else layer
    history = made_with.get("history") if history is None else history
    keys = [key for key in (batch_key, label_key) if key is not None]
    if not keys:
        raise ValueError("Nothing to colour the cells by: pass batch_key, label_key, or both; columns of adata.obs.")
    cells = _sample(adata.n_obs, max_cells)
    groups = {key: _categories(adata, key, cells) for key in dict.fromkeys(keys)}
    after = _umap(_embedding(adata, use_rep)[cells])
    before = _umap(_pca_of_counts(adata, layer, cells))

    frame = None if history is None else _history_frame(history)
    n_columns = 2 if frame is None else 3
    figure = _new_figure(2.5 * n_columns + max(map(_legend_width, groups.values())), 2.5 * len(groups))
    for row, (key, values) in enumerate(groups.items()):
        axes = [figure.add_subplot(len(groups), n_columns, row * n_columns + i + 1) for i in range(n_columns)]
        for axis, layout in zip(axes, (before, after), strict=False):
            _draw_cells(axis, layout, values)
        _draw_legend(axes[1], key, values)
        if row == 0:
            axes[0].set_title("Before: principal components", fontsize=_MEDIUM)
            axes[1].set_title(f"After: {use_rep}", fontsize=_MEDIUM)
        if frame is not None:
            column = ("elbo", "kl_z")[row]
            if _is_used(frame, column):
                _draw_curves(axes[2], frame, column, legend=row == 0)
    return _finished(figure, show)


# Curves


def _history_frame(history: pd.DataFrame | Mapping) -> pd.DataFrame:
    frame = pd.DataFrame(history)
    missing = [column for column in ("epoch", "split", "elbo") if column not in frame.columns]
    if missing:
        raise ValueError(
            f"history lacks the columns {missing} (it has {list(frame.columns)}): expected one row per epoch and "
            "split, as in SCCVAE.history."
        )
    if frame.empty:
        raise ValueError("history is empty: train the model first, with model.train().")
    return frame


def _is_used(frame: pd.DataFrame, column: str) -> bool:
    """Whether a column has something to show: the divergence of an observed library is 0 throughout."""
    return column in frame.columns and bool(np.any(frame[column].fillna(0) != 0))


def _draw_curves(ax: Axes, frame: pd.DataFrame, column: str, *, legend: bool) -> None:
    """One quantity of the history against the epoch, a curve per split."""
    from matplotlib.ticker import MaxNLocator

    scheduled = column in ("learning_rate", "kl_weight")  # the same in both splits
    for split, colour in (("training", _COLOURS[0]), ("validation", _COLOURS[3])):
        rows = frame[frame["split"] == split]
        if len(rows) and not (scheduled and split == "validation"):
            colour, marker = ("0.25" if scheduled else colour), ("o" if len(rows) == 1 else None)
            ax.plot(rows["epoch"], rows[column], color=colour, linewidth=1.2, marker=marker, markersize=3, label=split)
    held_out = frame[frame["split"] == "validation"].dropna(subset="elbo")
    if len(held_out) > 1 and not scheduled:
        best = held_out.loc[held_out["elbo"].idxmax(), "epoch"]
        ax.axvline(best, color="0.6", linewidth=0.8, linestyle=":", zorder=0, label=f"best: epoch {best:g}")
    if scheduled:
        ax.set_ylim(0, 1.05 * frame[column].max())
    else:
        _focus(ax, frame[column].to_numpy(dtype=float))
    title, unit = _CURVES[column]
    ax.set_title(title, fontsize=_MEDIUM)
    ax.set_xlabel("epoch", fontsize=_SMALL)
    ax.set_ylabel(unit, fontsize=_SMALL)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    _style(ax)
    if legend:
        ax.legend(loc="best", fontsize=_SMALL, frameon=False, handlelength=1.4, borderaxespad=0.2)


def _focus(ax: Axes, values: NDArray) -> None:
    """Cut off the few values of the first epochs where they would flatten all others."""
    values = values[np.isfinite(values)]
    if len(values) < 10:
        return
    low, high = np.quantile(values, [0.1, 0.9])
    reach = 2.5 * (high - low)
    bottom, top = max(values.min(), low - reach), min(values.max(), high + reach)
    if top > bottom:
        ax.set_ylim(bottom - 0.05 * (top - bottom), top + 0.05 * (top - bottom))


# Cells


def _sample(n_cells: int, max_cells: int) -> NDArray:
    """Numbers of the cells to draw, in random order: no batch then hides another that is drawn before it."""
    return np.random.default_rng(0).permutation(n_cells)[:max_cells]


def _categories(adata: AnnData, key: str, cells: NDArray) -> pd.Categorical:
    if key not in adata.obs.columns:
        raise KeyError(f"{key!r} is not a column of adata.obs, which has {list(adata.obs.columns)}.")
    values = pd.Categorical(adata.obs[key].iloc[cells]).remove_unused_categories()
    if len(values.categories) > 100:
        raise ValueError(
            f"adata.obs[{key!r}] holds {len(values.categories)} different values: expected at most 100 categories, "
            "such as batches or cell types."
        )
    return values


def _embedding(adata: AnnData, use_rep: str) -> NDArray:
    if use_rep not in adata.obsm:
        raise KeyError(
            f"{use_rep!r} is not in adata.obsm, which has {list(adata.obsm)}. sccvae.tl.integrate(adata, "
            "batch_key=...) makes 'X_sccvae'."
        )
    return np.asarray(adata.obsm[use_rep], dtype=np.float32)


def _pca_of_counts(adata: AnnData, layer: str | None, cells: NDArray) -> NDArray:
    """Principal components of normalised log counts: (cells, at most 50)."""
    import scanpy as sc
    from anndata import AnnData

    if layer is not None and layer not in adata.layers:
        raise KeyError(f"{layer!r} is not in adata.layers, which has {list(adata.layers)}.")
    source, where = (adata.X, "adata.X") if layer is None else (adata.layers[layer], f"adata.layers[{layer!r}]")
    # Rows are fetched in ascending order: files on disk ask for that.
    ascending = np.sort(cells)
    counts = csr_matrix(source[ascending], dtype=np.float32)[np.searchsorted(ascending, cells)]
    wrong = counts.data[(counts.data < 0) | (counts.data != np.rint(counts.data))]
    if len(wrong):
        raise ValueError(
            f"{where} holds values that are not counts: {wrong[0]:.4g}. The picture before integration is made from "
            "raw counts: pass layer=... with the layer that holds them."
        )
    slim = AnnData(counts)
    sc.pp.normalize_total(slim, target_sum=1e4)
    sc.pp.log1p(slim)
    if slim.n_vars > 2000:
        sc.pp.highly_variable_genes(slim, n_top_genes=2000)
        slim = slim[:, slim.var["highly_variable"]].copy()
    _seeded(sc.pp.pca, slim, n_comps=min(50, slim.n_obs - 1, slim.n_vars - 1))
    return slim.obsm["X_pca"]


def _umap(representation: NDArray) -> NDArray:
    """UMAP layout: (cells, dimensions) -> (cells, 2)."""
    import scanpy as sc
    from anndata import AnnData

    names = pd.RangeIndex(len(representation)).astype(str)
    slim = AnnData(obs=pd.DataFrame(index=names), obsm={"rep": representation})
    _seeded(sc.pp.neighbors, slim, n_neighbors=min(15, slim.n_obs - 1), use_rep="rep")
    _seeded(sc.tl.umap, slim)
    return slim.obsm["X_umap"]


def _seeded(function, adata: AnnData, **arguments) -> None:
    """Call a function of Scanpy with a fixed seed, which newer versions call `rng`."""
    from inspect import signature

    seed = "rng" if "rng" in signature(function).parameters else "random_state"
    function(adata, **{seed: 0}, **arguments)


def _palette(n: int) -> list[str]:
    """Okabe-Ito, then darker and lighter shades of it."""
    from matplotlib.colors import to_hex, to_rgb

    colours = [*_COLOURS, _BLACK]
    for target, share in ((0.0, 0.45), (1.0, 0.55), (0.0, 0.7), (1.0, 0.3)):
        for colour in _COLOURS:
            red, green, blue = ((1 - share) * channel + share * target for channel in to_rgb(colour))
            colours.append(to_hex((red, green, blue)))
    return [colours[i % len(colours)] for i in range(n)]


def _draw_cells(ax: Axes, layout: NDArray, values: pd.Categorical) -> None:
    palette = np.array([*_palette(len(values.categories)), _MISSING])  # the code of a missing value is -1: the last
    size = float(np.clip(9000 / len(layout), 0.6, 14))
    # Rasterised, so that a PDF of 20,000 cells stays small.
    ax.scatter(layout[:, 0], layout[:, 1], c=palette[values.codes], s=size, linewidths=0, alpha=0.85, rasterized=True)
    ax.set(xticks=[], yticks=[], box_aspect=1)
    ax.set_xlabel("UMAP 1", fontsize=_SMALL, loc="left")
    ax.set_ylabel("UMAP 2", fontsize=_SMALL, loc="bottom")
    _style(ax)


def _legend_names(values: pd.Categorical) -> list[str]:
    names = [*map(str, values.categories), *(["missing"] if (values.codes < 0).any() else [])]
    return [name if len(name) <= 28 else f"{name[:27]}…" for name in names]


def _legend_width(values: pd.Categorical) -> float:
    """About the width of the legend in inches."""
    names = _legend_names(values)
    columns = [names[i : i + _LEGEND_ROWS] for i in range(0, len(names), _LEGEND_ROWS)]
    return sum(0.3 + 0.055 * max(map(len, column)) for column in columns)


def _draw_legend(ax: Axes, key: str, values: pd.Categorical) -> None:
    """Categories beside the axes, in columns."""
    from matplotlib.lines import Line2D

    names = _legend_names(values)
    colours = [*_palette(len(values.categories)), _MISSING][: len(names)]
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=4.5, color=colour, markeredgewidth=0) for colour in colours
    ]
    ax.legend(
        handles,
        names,
        title=key,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        borderaxespad=0,
        frameon=False,
        fontsize=_SMALL,
        title_fontsize=_MEDIUM,
        handletextpad=0.2,
        labelspacing=0.35,
        columnspacing=0.8,
        ncols=-(-len(names) // _LEGEND_ROWS),
        alignment="left",
    )


# Figures


def _new_figure(width: float, height: float) -> Figure:
    import matplotlib.pyplot as plt

    return plt.figure(figsize=(width, height), layout="constrained", dpi=150, facecolor="white")


def _style(ax: Axes) -> None:
    ax.tick_params(labelsize=_SMALL, width=0.8, length=2.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_linewidth(0.8)
    ax.grid(visible=False)


def _finished(figure: Figure, show: bool, *, own: bool = True) -> Figure:
    """Show a figure if asked; else take our own from pyplot, lest a notebook draws it twice and memory fills up."""
    import matplotlib.pyplot as plt

    if show:
        plt.show()
    elif own:
        plt.close(figure)
    return figure
