"""Figure of a model's diagnosis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sccvae.pl.loss_curves import draw_curves, history_frame
from sccvae.pl.style import BLACK, COLOURS, MEDIUM, SMALL, as_text, new_figure, plot, style

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sccvae.statistics.diagnostics import Diagnosis

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
    "unexplained_cells": "cells unexplained",
}
SHARES = {"late_gain", "held_out_gap", "zeros_inside", "coverage_90", "unexplained_cells"}


@plot()
def diagnostics(diagnosis: Diagnosis, *, show: bool = False) -> Figure:
    """Plot a model's diagnosis: the list of checks, and a panel for each quantity.

    Panels that do not apply are left out: predictive checks if the data are not counts, batches if there is only one.

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
    panels: list[Callable[[Axes, Diagnosis], None]] = [_checks, _elbo, _units]
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
