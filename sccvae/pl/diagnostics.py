"""Figures of a training: loss curves, and the diagnosis of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from sccvae.pl.style import BLACK, COLOURS, MEDIUM, SMALL, as_text, new_figure, plot, style
from sccvae.validation.wording import listed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from sccvae.statistics.diagnostics import Diagnosis

_CURVES = {
    "elbo": ("ELBO", "nats per cell"),
    "reconstruction": ("log-likelihood", "nats per cell"),
    "kl_z": ("KL divergence of z", "nats per cell"),
    "kl_l": ("KL divergence of library size", "nats per cell"),
    "learning_rate": ("learning rate", ""),
    "kl_weight": ("KL weight", ""),
}
GOOD, BAD, MODEL, IDLE = COLOURS[0], COLOURS[3], COLOURS[1], "0.6"
NAMES = {
    "active_units": "active latent units",
    "kl_per_cell": "KL of z, nats per cell",
    "late_gain": "late gain of the ELBO",
    "held_out_gap": "held-out gap of ELBO",
    "zeros_inside": "zero fractions inside",
    "variance_ratio": "variance, model / data",
    "coverage_90": "90% intervals hold",
    "batches_apart": "batches apart",
    "neighbours_kept": "neighbours kept",
    "kinds_drawn": "kinds drawn to others",
    "markers_kept": "markers kept",
    "unexplained_cells": "cells unexplained",
    "new_cells": "cells unlike the reference",
    "missing_genes": "genes missing",
    "depth": "depth, query / reference",
    "offsets": "offsets, new / known",
}
SHARES = {"late_gain", "held_out_gap", "zeros_inside", "coverage_90", "unexplained_cells"}
SHARES |= {"neighbours_kept", "markers_kept", "new_cells", "missing_genes"}


@plot()
def diagnostics(diagnosis: Diagnosis, *, show: bool = False) -> Figure:
    """Plot a model's diagnosis: the list of checks, and a panel for each quantity.

    Panels that do not apply are left out: predictive checks if the data are not counts, batches if there is only one,
    the ELBO if there was no training.

    Parameters
    ----------
    diagnosis
        Result of ``SCCVAE.diagnose``.
    {show}

    {figure}
        Values as expected are blue, others vermilion.

    Raises
    ------
    TypeError
        `diagnosis` is of another type, such as a model.

    Examples
    --------
    >>> import sccvae
    >>> model = sccvae.SCCVAE(sccvae.simulate.simulate(200, 50, seed=0), **{"n_hidden": 8})
    >>> model.train(max_epochs=1)
    >>> figure = sccvae.pl.diagnostics(model.diagnose())
    >>> figure.axes[0].get_title()
    'What was checked'
    """
    if not hasattr(diagnosis, "units"):
        raise TypeError(
            f"diagnosis is of type {type(diagnosis).__name__}; expected the result of SCCVAE.diagnose: "
            "pl.diagnostics(model.diagnose())."
        )
    panels: list[Callable[[Axes, Diagnosis], None]] = [_checks, *([_elbo] if len(diagnosis.history) else []), _units]
    panels += [_zeros, _variance, _ranks] if diagnosis.genes is not None else []
    panels += [_batches] if diagnosis.batches is not None else []
    panels += [_cells]
    n_columns = 4 if len(panels) > 6 else 3
    n_rows = -(-len(panels) // n_columns)
    figure = new_figure(2.6 * n_columns, 2.3 * n_rows)
    for i, draw in enumerate(panels):
        draw(figure.add_subplot(n_rows, n_columns, i + 1), diagnosis)
    return figure


def _titled(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, fontsize=MEDIUM)
    ax.set_xlabel(x, fontsize=SMALL)
    ax.set_ylabel(y, fontsize=SMALL)
    style(ax)


def _checks(ax: Axes, diagnosis: Diagnosis) -> None:
    """List of the checks."""
    ax.set_title("What was checked", fontsize=MEDIUM)
    ax.axis("off")
    step = 1 / max(len(diagnosis.table), 9)
    for i, row in enumerate(diagnosis.table.itertuples()):
        name = str(row.Index)
        value = f"{round(row.value, 3) + 0:.1%}" if name in SHARES else f"{row.value:.3g}"
        colour, y = (GOOD if row.ok else BAD), 1 - (i + 0.5) * step
        bold = "normal" if row.ok else "bold"
        options: dict[str, Any] = {"transform": ax.transAxes, "fontsize": SMALL, "va": "center"}
        ax.text(0.0, y, "✓" if row.ok else "✗", color=colour, weight="bold", **options)
        ax.text(0.08, y, NAMES.get(name, name), weight=bold, **options)
        ax.text(1.0, y, value, ha="right", color=colour, weight=bold, **options)


def _elbo(ax: Axes, diagnosis: Diagnosis) -> None:
    draw_curves(ax, history_frame(diagnosis.history), "elbo", legend=True)


def _units(ax: Axes, diagnosis: Diagnosis) -> None:
    """KL divergence of each latent unit as bars, highest first."""
    units = diagnosis.units.sort_values("kl", ascending=False)
    ax.bar(np.arange(len(units)), units["kl"], width=0.8, color=np.where(units["active"], GOOD, IDLE))
    _titled(ax, "Latent units", "unit, by rank", "KL divergence, nats per cell")
    ax.set_xticks([])
    ax.set_ylim(0, max(1.05 * units["kl"].max(), 0.1))
    idle = int((~units["active"]).sum())
    ax.text(
        1.0, 0.97, f"{len(units) - idle} active" + (f", {idle} idle" if idle else ""), transform=ax.transAxes,
        ha="right", va="top", fontsize=SMALL, color=GOOD if idle < len(units) else BAD,
    )  # fmt: skip


def _zeros(ax: Axes, diagnosis: Diagnosis) -> None:
    """Zero fractions of the data against those of the model; genes outside the interval are coloured."""
    genes = diagnosis.genes
    assert genes is not None
    inside = genes["zeros"].between(genes["zeros_low"] - 1e-9, genes["zeros_high"] + 1e-9).to_numpy()
    ax.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=0)
    for chosen, colour, name in ((inside, GOOD, "inside 95%"), (~inside, BAD, "outside")):
        some, label = genes[chosen], f"{name} ({chosen.mean():.0%})"
        ax.scatter(
            some["model_zeros"], some["zeros"], s=3, color=colour, alpha=0.6, linewidths=0, rasterized=True, label=label
        )
    _titled(ax, "Zero fraction per gene", "model", "data")
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _legend(ax, "upper left")


def _variance(ax: Axes, diagnosis: Diagnosis) -> None:
    """Variance over cells against the mean, for the data and for the model."""
    genes = diagnosis.genes
    assert genes is not None
    genes = genes[(genes["mean"] > 0) & (genes["variance"] > 0)]
    ends = np.array([genes["mean"].min(), genes["mean"].max()])
    ax.plot(ends, ends, color="0.6", linewidth=0.8, zorder=0, label="Poisson")
    for mean, variance, colour, name in (
        ("mean", "variance", "0.45", "data"),
        ("model_mean", "model_variance", MODEL, "model"),
    ):
        ax.scatter(
            genes[mean], genes[variance], s=3, color=colour, alpha=0.6, linewidths=0, rasterized=True, label=name
        )
    if not genes.empty:  # an empty axis has no logarithm
        ax.set(xscale="log", yscale="log")
    _titled(ax, "Variance per gene", "mean count", "variance")
    _legend(ax, "upper left")


def _ranks(ax: Axes, diagnosis: Diagnosis) -> None:
    """Rank histogram, which is flat if the predictive distributions are calibrated."""
    ranks = diagnosis.ranks
    assert ranks is not None
    n = len(ranks)
    ax.bar((np.arange(n) + 0.5) / n, ranks * n, width=0.92 / n, color=_colour(diagnosis, "coverage_90"), alpha=0.85)
    ax.axhline(1, color=BLACK, linewidth=0.8, linestyle="--")
    _titled(ax, "Rank of counts among predicted ones", "rank", "density")
    ax.set(xlim=(0, 1), ylim=(0, max(1.5, 1.1 * float(ranks.max()) * n)))
    ax.text(0.99, 0.97, "flat: calibrated", transform=ax.transAxes, ha="right", va="top", fontsize=SMALL, color="0.35")


def _batches(ax: Axes, diagnosis: Diagnosis) -> None:
    """Mixing of each batch; of more than twenty batches, the twenty least mixed."""
    batches = diagnosis.batches
    assert batches is not None
    shown = batches.sort_values("mixing")[:20][::-1]
    names = [as_text(name, 16) for name in shown.index]
    # batches_apart counts the least mixed ones.
    apart = np.arange(len(shown))[::-1] < diagnosis.table.loc["batches_apart", "value"]
    ax.barh(np.arange(len(shown)), shown["mixing"], height=0.7, color=np.where(apart, BAD, GOOD))
    ax.axvline(1, color=BLACK, linewidth=0.8, linestyle="--")
    title = "Mixing of batches" if len(shown) == len(batches) else f"The {len(shown)} least mixed batches"
    _titled(ax, title, "foreign neighbours (1: as at random)", "")
    ax.set_yticks(np.arange(len(shown)), names, fontsize=SMALL if len(shown) <= 12 else 5)
    ax.set_xlim(0, max(1.1, 1.05 * float(shown["mixing"].max())))


def _cells(ax: Axes, diagnosis: Diagnosis) -> None:
    """Log-likelihood of cells against their library size; cells with an unexpectedly low one are coloured."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    cells = diagnosis.cells
    sized = cells["log_size"].nunique() > 1
    x = np.exp(cells["log_size"]) if sized else np.arange(len(cells))
    bad = cells["unexplained"].to_numpy()
    ax.scatter(x[~bad], cells["log_likelihood"][~bad], s=2.5, color=GOOD, alpha=0.4, linewidths=0, rasterized=True)
    if bad.any():
        ax.scatter(
            x[bad], cells["log_likelihood"][bad], s=12, color=BAD, linewidths=0, label=f"unexplained ({bad.sum():,})"
        )
        _legend(ax, "lower left")
    if sized:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    _titled(ax, "Cells", "total count" if sized else "cell", "log-likelihood, nats")


def _colour(diagnosis: Diagnosis, check: str) -> str:
    return GOOD if diagnosis.table.loc[check, "ok"] else BAD


def _legend(ax: Axes, where: Literal["upper left", "lower left"]) -> None:
    ax.legend(
        loc=where, fontsize=SMALL, frameon=False, handletextpad=0.3, borderaxespad=0.2, markerscale=2, handlelength=1.2
    )


@plot()
def history(history: pd.DataFrame | Mapping, *, ax: Axes | None = None, show: bool = False) -> Figure:
    """Draw loss curves of training and validation cells.

    There are panels for the ELBO, its parts (the log-likelihood, and the divergences of posterior from prior), the
    learning rate and the KL weight. A dotted line marks the epoch with the highest ELBO of validation cells. The first
    epochs may be outside the frame if they would compress the rest of the curves.

    Parameters
    ----------
    history
        One row per epoch and split, as in ``SCCVAE.history``: columns ``epoch``, ``split`` (``"training"`` or
        ``"validation"``), ``elbo``, ``reconstruction``, ``kl_z``, ``kl_l`` (nats per cell), ``learning_rate``,
        ``kl_weight``. Panels with missing columns are left out; only the first three columns are required. A mapping
        of column names to values is possible, too.
    ax
        Draw only the ELBO, into these axes.
    {show}

    {figure}

    Raises
    ------
    ValueError
        `history` is empty or lacks a column.

    Examples
    --------
    >>> from sccvae import pl
    >>> curve = {"epoch": [1, 2], "split": ["training", "training"], "elbo": [-310.0, -260.0]}
    >>> figure = pl.history(curve)
    >>> figure.axes[0].get_title()
    'ELBO'
    """
    frame = history_frame(history)
    if ax is not None:
        draw_curves(ax, frame, "elbo", legend=True)
        return ax.figure.figure  # the figure, also for axes in a subfigure
    panels = [column for column in _CURVES if is_used(frame, column)]
    n_columns = min(len(panels), 3)
    n_rows = -(-len(panels) // n_columns)
    figure = new_figure(2.4 * n_columns, 2.0 * n_rows)
    for i, column in enumerate(panels):
        draw_curves(figure.add_subplot(n_rows, n_columns, i + 1), frame, column, legend=i == 0)
    return figure


def history_frame(history: pd.DataFrame | Mapping) -> pd.DataFrame:
    """Check the columns of the history, and return it as a DataFrame."""
    frame = pd.DataFrame(history)
    missing = [column for column in ("epoch", "split", "elbo") if column not in frame.columns]
    if missing:
        raise ValueError(
            f"history lacks the columns {missing} (it has {listed(frame.columns)}): expected one row per epoch and "
            "split, as in SCCVAE.history."
        )
    if frame.empty:
        raise ValueError("history is empty: train the model first, with model.train().")
    return frame


def is_used(frame: pd.DataFrame, column: str) -> bool:
    """Whether a column has values other than 0: the divergence of an observed library size has none."""
    return column in frame.columns and bool(np.any(frame[column].fillna(0) != 0))


def draw_curves(ax: Axes, frame: pd.DataFrame, column: str, *, legend: bool) -> None:
    """Draw one quantity of the history against the epoch, a curve per split."""
    from matplotlib.ticker import MaxNLocator

    scheduled = column in ("learning_rate", "kl_weight")  # the same in both splits
    for split, colour in (("training", COLOURS[0]), ("validation", COLOURS[3])):
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
    ax.set_title(title, fontsize=MEDIUM)
    ax.set_xlabel("epoch", fontsize=SMALL)
    ax.set_ylabel(unit, fontsize=SMALL)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    style(ax)
    if legend:
        ax.legend(loc="best", fontsize=SMALL, frameon=False, handlelength=1.4, borderaxespad=0.2)


def _focus(ax: Axes, values: NDArray) -> None:
    """Limit the y-axis if a few values of the first epochs would compress all others."""
    values = values[np.isfinite(values)]
    if len(values) < 10:
        return
    low, high = np.quantile(values, [0.1, 0.9])
    reach = 2.5 * (high - low)
    bottom, top = max(values.min(), low - reach), min(values.max(), high + reach)
    if top > bottom:
        ax.set_ylim(bottom - 0.05 * (top - bottom), top + 0.05 * (top - bottom))
