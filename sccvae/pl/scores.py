"""Tables of scores as a figure."""

from __future__ import annotations

from textwrap import fill, wrap
from typing import TYPE_CHECKING

import numpy as np

from sccvae.pl.style import MEDIUM, SMALL, as_text, axes_for, plot
from sccvae.validation.wording import listed, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Columns of `tl.score_integration`: heading of the group, column, heading.
_OWN = {
    "cell types": {
        "knn_accuracy": "neighbour\naccuracy",
        "silhouette_label": "silhouette",
        "kmeans_ari": "k-means\nARI",
        "kmeans_nmi": "k-means\nNMI",
    },
    "batches": {
        "batch_entropy": "entropy of\nmixing",
        "silhouette_batch": "silhouette",
        "graph_connectivity": "graph\nconnected",
    },
    "together": {"biology": "cell\ntypes", "mixing": "batches", "total": "total"},
}
_SCIB = {
    "cell types": {
        "knn_accuracy": "neighbour\naccuracy",
        "scib_isolated_labels": "isolated\nlabels",
        "scib_kmeans_nmi": "k-means\nNMI",
        "scib_kmeans_ari": "k-means\nARI",
        "scib_silhouette_label": "silhouette",
        "scib_clisi": "cLISI",
    },
    "batches": {
        "batch_entropy": "entropy of\nmixing",
        "scib_bras": "BRAS",
        "scib_ilisi": "iLISI",
        "scib_kbet": "kBET",
        "scib_graph_connectivity": "graph\nconnected",
        "scib_pcr": "PC\nregression",
    },
    "scIB": {"scib_biology": "cell\ntypes", "scib_mixing": "batches", "scib_total": "total"},
}
_WIDTH, _HEIGHT = 0.62, 0.3  # of a cell, in inches
_MOST_ROWS, _MOST_COLUMNS = 80, 36


@plot()
def score_table(
    scores: pd.DataFrame,
    *,
    columns: Sequence[str] | None = None,
    sort_by: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
) -> Figure:
    """Draw a table of scores, a row for each embedding; the best value of each column is bold and underlined.

    Darker is better. Each column is coloured from its worst to its best value, if they differ by more than 0.005:
    smaller differences are rounding.

    Parameters
    ----------
    scores
        Result of `sccvae.tl.score_integration`, or any table of numbers with a row per method; higher is better.
    columns
        Columns to show. None shows the scIB scores if there are any, else those of sccvae, both with their aggregates;
        of another table, all columns.
    sort_by
        Column to sort by, highest value first; None takes ``scib_total`` or ``total`` if there is one, else keeps the
        order.
    {ax}
    {show}

    {figure}

    Raises
    ------
    ValueError, KeyError
        The table is empty; a column is unknown, or does not hold numbers.

    Examples
    --------
    >>> import pandas as pd
    >>> from sccvae import pl
    >>> figure = pl.score_table(pd.DataFrame({"total": [0.7, 0.6]}, index=["X_sccvae", "X_pca"]))
    >>> [text.get_text() for text in figure.axes[0].texts][:2]
    ['X_sccvae', 'X_pca']
    """
    groups = _groups(scores, columns)
    named = {column: title for of_group in groups.values() for column, title in of_group.items()}
    if sort_by is None:
        sort_by = next((column for column in ("scib_total", "total") if column in named), None)
    elif sort_by not in scores:
        raise KeyError(f"sort_by={sort_by!r} is not a column of the scores, which have {listed(scores.columns)}.")
    if sort_by is not None:
        scores = scores.sort_values(sort_by, ascending=False, kind="stable")
    left_out = [
        f"{n - most:,} more {what} are not shown"
        for n, most, what in ((len(scores), _MOST_ROWS, "rows"), (len(named), _MOST_COLUMNS, "columns"))
        if n > most
    ]
    if len(named) > _MOST_COLUMNS:
        named = dict(list(named.items())[:_MOST_COLUMNS])
        groups = {"": named}
    scores = scores.iloc[:_MOST_ROWS]
    methods = [as_text(name, 48) for name in scores.index]
    width = max(20, int(_WIDTH * len(named) / 0.052))  # of the table, in characters
    note = fill("; ".join(filter(None, [_note(scores, named), *left_out])), width, break_on_hyphens=False)
    label_width = 0.25 + 0.062 * max(map(len, methods))
    height = _HEIGHT * (len(methods) + (2.9 if any(groups) else 2.2)) + 0.12 * bool(note) + 0.1 * len(note.splitlines())
    figure, ax = axes_for(ax, label_width + _WIDTH * len(named) + 0.12 * len(groups), height)
    _draw(ax, scores[list(named)].to_numpy(dtype=float), methods, groups)
    if note:
        ax.text(0, -0.2, note, fontsize=SMALL - 1, color="0.35", va="top", ha="left")
    return figure


def _groups(scores: pd.DataFrame, columns: Sequence[str] | None) -> dict[str, dict[str, str]]:
    """Columns to show, by group: heading of the group -> column -> its heading."""
    if scores.empty:
        raise ValueError("scores is empty: expected a row for each embedding, as from sccvae.tl.score_integration.")
    known = _SCIB if "scib_total" in scores else _OWN
    if columns is None:
        groups = {name: {c: title for c, title in of.items() if c in scores} for name, of in known.items()}
        groups = {name: of for name, of in groups.items() if of}
        if groups:
            return groups
        columns = list(scores.columns)
    unknown = [column for column in columns if column not in scores]
    if unknown:
        raise KeyError(f"scores has no column {unknown[0]!r}: it has {listed(scores.columns)}.")
    texts = [column for column in columns if scores[column].dtype.kind not in "iufb"]
    if texts:
        raise ValueError(f"The column {texts[0]!r} of the scores holds no numbers: leave it out of columns=.")
    titles = {column: title for of in (_OWN, _SCIB) for group in of.values() for column, title in group.items()}
    return {"": {column: titles.get(column, _heading(str(column))) for column in columns}}


def _heading(name: str) -> str:
    """Name of a column, wrapped for a narrow column."""
    return "\n".join(map(as_text, name.split("_") if len(name) <= 36 else wrap(shortened(name, 36), 12)))


def _note(scores: pd.DataFrame, shown: dict[str, str]) -> str:
    """Note on the packages that computed the shown columns."""
    said: dict[str, str] = scores.attrs.get("implementation", {})
    by = dict.fromkeys(said[column] for column in shown if column in said)
    if len(by) < 2:
        return "".join(f"computed by {text}" for text in by)
    lone = {text: [t.replace("\n", " ") for c, t in shown.items() if said.get(c) == text] for text in by}
    first, *others = sorted(by, key=lambda text: len(lone[text]))
    return f"{', '.join(lone[first])}: {first}; all others: {', '.join(others)}"


def _draw(ax: Axes, values: np.ndarray, methods: list[str], groups: dict[str, dict[str, str]]) -> None:
    """Draw the fields of the table, row 0 at the top; x and y are in columns and rows, with gaps between groups."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    n_rows, gap, x, column = len(methods), 0.12 / _WIDTH, 0.0, 0
    colours = colormaps["Blues"]
    for row, name in enumerate(methods):
        ax.text(-0.15, n_rows - row - 0.5, name, fontsize=MEDIUM, ha="right", va="center")
    for heading, titles in groups.items():
        if heading:
            ax.text(x, n_rows + 1.25, heading, fontsize=MEDIUM, weight="bold", ha="left", va="bottom")
            ax.plot([x, x + len(titles)], [n_rows + 1.15] * 2, color="0.2", linewidth=0.8)
        for title in titles.values():
            ax.text(x + 0.5, n_rows + 0.12, title, fontsize=SMALL, ha="center", va="bottom", linespacing=1.0)
            shares, best = _shares(values[:, column])
            for row in range(n_rows):
                y, value = n_rows - row - 1, values[row, column]
                face = "white" if np.isnan(value) else colours(0.05 + 0.7 * shares[row])
                ax.add_patch(Rectangle((x + 0.03, y + 0.05), 0.94, 0.9, facecolor=face, edgecolor="none"))
                text = "–" if np.isnan(value) else f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
                ax.text(
                    x + 0.5,
                    y + 0.5,
                    text,
                    fontsize=MEDIUM,
                    ha="center",
                    va="center",
                    color="white" if shares[row] > 0.8 else "black",
                    weight="bold" if best[row] else "normal",
                )
                if best[row]:
                    line = "white" if shares[row] > 0.8 else "black"
                    ax.plot([x + 0.28, x + 0.72], [y + 0.2] * 2, color=line, linewidth=0.8, solid_capstyle="butt")
            x, column = x + 1, column + 1
        x += gap
    ax.set(xlim=(-0.05, x - gap), ylim=(-0.05, n_rows + (1.9 if any(groups) else 1.2)))
    ax.axis("off")


def _shares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position of each value between worst and best, in [0, 1], and whether it is the best as printed."""
    known = values[~np.isnan(values)]
    if not len(known) or np.ptp(known) <= 0.005:
        return np.full(len(values), 0.4), np.zeros(len(values), dtype=bool)
    shares = (values - known.min()) / np.ptp(known)
    return np.nan_to_num(shares), np.round(values, 2) == np.round(known.max(), 2)
