"""Loss curves of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sccvae.pl.style import COLOURS, MEDIUM, SMALL, new_figure, plot, style
from sccvae.validation.wording import listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_CURVES = {
    "elbo": ("ELBO", "nats per cell"),
    "reconstruction": ("log-likelihood", "nats per cell"),
    "kl_z": ("KL divergence of z", "nats per cell"),
    "kl_l": ("KL divergence of library size", "nats per cell"),
    "learning_rate": ("learning rate", ""),
    "kl_weight": ("KL weight", ""),
}


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
