"""Figure of new cells that were mapped onto a reference: labels, novelty, and how right the labels are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from sccvae.data.columns import one_column
from sccvae.pl.embedding import categories, dot_size, draw_cells, dress, embedding, sample
from sccvae.pl.style import (
    BLACK,
    COLOURS,
    MEDIUM,
    MISSING,
    SMALL,
    as_text,
    colour_bar,
    draw_legend,
    font_for,
    legend_height,
    legend_width,
    new_figure,
    plot,
    style,
)
from sccvae.statistics.calibration import calibration_error
from sccvae.statistics.neighbour_votes import placed

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PANEL = 2.6  # inches
CELL, MOST_SIDE, LEAST_NUMBERED = 0.24, 9.0, 0.17  # inches, of the confusion matrix; smaller cells have no number
N_BINS, FEW = 10, 5  # of the calibration curve; bins with fewer cells have no point
CURVE = PANEL + 0.5, PANEL + 0.8  # width and height of the two panels of the calibration, in inches
OPEN = "not accepted"


class _Truth(NamedTuple):
    """Cells with a true label."""

    rows: pd.Categorical  # true labels, in the order of the matrix
    columns: pd.Categorical  # predicted labels, or OPEN
    n_known: int  # of the true labels, those that the model has; they come first
    probability: NDArray  # (cells of labels that the model has,)
    right: NDArray  # (cells of labels that the model has,) bool


@plot()
def mapping(
    query: AnnData,
    *,
    key: str = "sccvae",
    reference: AnnData | None = None,
    truth: str | None = None,
    max_cells: int = 20_000,
    seed: int = 0,
    show: bool = False,
) -> Figure:
    """Draw new cells that were mapped onto a reference: their labels, their novelty, and the errors of the labels.

    With `reference`, new cells are drawn beside its cells, which are grey: at the weighted mean of the UMAP positions
    of their 15 nearest cells of the reference in the embedding, similar to `scanpy.tl.ingest`. A cell whose neighbours
    are in several groups is drawn between them. Without it, the first two principal components of the embedding of the
    new cells are drawn.

    Parameters
    ----------
    query
        New cells after `tl.map_query`, with labels.
    key
        Prefix of what was written: the argument `key_added` of `tl.map_query`.
    reference
        Cells of the reference, with their embedding of the same model in ``obsm["X_sccvae"]`` (for ``key="sccvae"``)
        and a layout in ``obsm["X_umap"]``.
    truth
        Column of ``query.obs`` with true labels, which adds two panels; cells without a value are left out. The first
        is the confusion matrix, in percent of the cells of a true label, with a column for cells whose label is not
        accepted; labels that the model does not have are marked as new. The second is the calibration curve: the
        fraction of right labels against their probability, with 95 % intervals, for cells whose true label is one of
        the model's, accepted or not. Bins of fewer than five cells have no point.
    {max_cells}
    {seed_of_drawing}
    {show}

    {figure}

    Raises
    ------
    KeyError
        There are no labels in `query`, or no embedding or layout in `reference`; `truth` is no column.
    ValueError
        The embeddings have different numbers of dimensions; no cell has a true label.

    Examples
    --------
    >>> import sccvae
    >>> cells = sccvae.simulate.simulate(300, 50, seed=0)
    >>> new = cells.obs["batch"] == "batch_2"
    >>> model = sccvae.SCCVAE(cells[~new].copy(), batch_key="batch", labels_key="cell_type")
    >>> model.train(max_epochs=2)
    >>> query = cells[new].copy()
    >>> sccvae.tl.map_query(query, model)
    >>> figure = sccvae.pl.mapping(query, truth="cell_type")
    >>> figure.axes[0].get_title()
    '118 new cells: label'
    """
    labels = pd.Categorical(_column(query, key, "label"))
    novelty = np.asarray(_column(query, key, "novelty"), dtype=float)
    known = None if truth is None else _truth(query, key, labels, truth)
    cells = sample(query.n_obs, max_cells, seed)
    layout, behind = positions(query, key, reference, cells)
    if behind is not None:
        behind = behind[sample(len(behind), max_cells, seed)]
    shown = labels[cells].remove_unused_categories()
    upper_size = 2 * PANEL + legend_width(shown) + 0.9, max(PANEL, legend_height(shown)) + 0.4
    if known is None:
        figure = upper = new_figure(*upper_size)
    else:
        matrix = _size(known)
        below = max(upper_size[0], matrix[0] + CURVE[0]), max(matrix[1], CURVE[1])
        figure = new_figure(below[0], upper_size[1] + below[1])
        halves: Any = figure.subfigures(2, 1, height_ratios=[upper_size[1], below[1]])
        upper, lower = halves
        rest = below[0] - matrix[0] - CURVE[0] + 0.01, below[1] - CURVE[1] + 0.01
        parts: Any = lower.subfigures(1, 3, width_ratios=[matrix[0], CURVE[0], rest[0]])
        left, right = parts[0], parts[1].subfigures(2, 1, height_ratios=[CURVE[1], rest[1]])[0]
    _draw_layouts(upper, layout, behind, shown, novelty[cells], query.n_obs)
    if known is not None:
        _draw_confusion(left, known)
        _draw_calibration(right, known)
    return figure


def _column(query: AnnData, key: str, name: str) -> pd.Series:
    """Return a column that `tl.map_query` wrote."""
    column = f"{key}_{name}"
    if column not in query.obs:
        raise KeyError(
            f"query.obs has no column {column!r}: run sccvae.tl.map_query(query, model, key_added={key!r}) first, with "
            "a model that was trained with labels_key=."
        )
    return one_column(query.obs, column)


def _truth(query: AnnData, key: str, labels: pd.Categorical, truth: str) -> _Truth:
    """Return what the two panels on the labels need, of the cells that have a true label."""
    true = categories(query, truth, np.arange(query.n_obs), "query")
    true = true.rename_categories(list(map(str, true.categories)))
    has = np.asarray(true.codes >= 0)
    if not has.any():
        raise ValueError(f"query.obs[{truth!r}] has no value for any cell; expected true labels, as text.")
    names = list(map(str, labels.categories))
    accepted = np.asarray(_column(query, key, "accepted"), dtype=bool)
    predicted = np.where(accepted, labels.astype(str), OPEN)[has]
    rows = [name for name in names if name in true.categories]
    n_known = len(rows)
    rows += [name for name in true.categories if name not in names]
    columns = [name for name in names if name in rows or name in predicted]
    known = has & np.isin(np.asarray(true.astype(object), dtype=str), names)
    right = np.asarray(labels.astype(str) == np.asarray(true.astype(object), dtype=str))
    probability = np.asarray(_column(query, key, "probability"), dtype=float)
    return _Truth(
        pd.Categorical(true[has], rows),
        pd.Categorical(predicted, [*columns, OPEN]),
        n_known,
        probability[known],
        right[known],
    )


def positions(query: AnnData, key: str, reference: AnnData | None, cells: NDArray) -> tuple[NDArray, NDArray | None]:
    """Return the positions of new cells, (cells, 2), and those of all cells of the reference."""
    z = embedding(query, f"X_{key}", "query")
    if reference is None:
        centred = z - z.mean(0)
        axes = np.linalg.svd(centred.T @ centred)[0][:, :2]  # (dimensions, 2)
        found = centred[cells] @ axes
        return np.pad(found, ((0, 0), (0, 2 - found.shape[1]))), None
    known = embedding(reference, f"X_{key}", "reference")
    if known.shape[1] != z.shape[1]:
        raise ValueError(
            f"obsm['X_{key}'] has {known.shape[1]} dimensions in reference and {z.shape[1]} in query; expected the "
            f"embeddings of one model: reference.obsm['X_{key}'] = model.get_latent_representation(reference)."
        )
    if "X_umap" not in reference.obsm:
        raise KeyError(
            f"reference.obsm has no 'X_umap': run sc.pp.neighbors(reference, use_rep='X_{key}') and "
            "sc.tl.umap(reference) first."
        )
    behind = np.asarray(reference.obsm["X_umap"], dtype=float)[:, :2]
    return placed(known, behind, z[cells]), behind


def draw_behind(ax: Any, layout: NDArray) -> None:
    """Draw the cells of the reference at `layout`, (cells, 2), in grey."""
    ax.scatter(layout[:, 0], layout[:, 1], c=MISSING, s=dot_size(len(layout)), linewidths=0, rasterized=True)


def _draw_layouts(
    figure: Any, layout: NDArray, behind: NDArray | None, labels: pd.Categorical, novelty: NDArray, n_cells: int
) -> None:
    """Draw the cells twice: coloured by label and by novelty."""
    for i, what in enumerate(("label", "novelty")):
        ax = figure.add_subplot(1, 2, i + 1)
        if behind is not None:
            draw_behind(ax, behind)
        if what == "label":
            draw_cells(ax, layout, labels)
            draw_legend(ax, "label", labels)
        else:
            draw_cells(ax, layout, pd.Categorical.from_codes(np.zeros(len(layout), int), ["cell"]))
            dots = ax.collections[-1]
            dots.set(array=novelty, cmap="viridis", clim=(0, 1))
            colour_bar(figure, dots, ax, shrink=0.7)
        if behind is None:
            dress(ax, "PC")
        ax.set_title(f"{n_cells:,} new cells: {what}", fontsize=MEDIUM)


def _size(known: _Truth) -> tuple[float, float]:
    """Return width and height of the confusion matrix with its names, in inches."""
    cell = _cell(known)
    beside = 0.06 * max(len(name) for name in _row_names(known)) + 0.5
    below = 0.06 * max(len(as_text(name)) for name in known.columns.categories) + 0.5
    return cell * len(known.columns.categories) + beside, cell * len(known.rows.categories) + below


def _cell(known: _Truth) -> float:
    """Return the side of a cell of the matrix in inches."""
    n = max(len(known.rows.categories), len(known.columns.categories))
    return min(CELL, MOST_SIDE / n)


def _row_names(known: _Truth) -> list[str]:
    """Return the true labels with their numbers of cells."""
    sizes = np.bincount(known.rows.codes, minlength=len(known.rows.categories))
    names = [f"{as_text(name)}{', new' * (k >= known.n_known)}" for k, name in enumerate(known.rows.categories)]
    return [f"{name} ({n:,})" for name, n in zip(names, sizes, strict=True)]


def _draw_confusion(figure: Any, known: _Truth) -> None:
    """Draw the matrix of true against predicted labels, in percent of the cells of a true label."""
    ax, cell = figure.add_subplot(), _cell(known)
    counts = np.zeros((len(known.rows.categories), len(known.columns.categories)))
    np.add.at(counts, (known.rows.codes, known.columns.codes), 1)
    percent = 100 * counts / counts.sum(1, keepdims=True)
    ax.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="equal", interpolation="nearest")
    if cell >= LEAST_NUMBERED:
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.5:
                colour = "white" if value > 60 else BLACK
                ax.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=SMALL - 1, color=colour)
    ax.set_anchor("N")
    ax.axvline(percent.shape[1] - 1.5, color="0.5", linewidth=0.8)
    size = font_for(cell)
    ax.set_yticks(np.arange(len(percent)), _row_names(known), fontsize=size)
    names = [as_text(name) for name in known.columns.categories]
    ax.set_xticks(np.arange(len(names)), names, fontsize=size, rotation=90)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title("Confusion matrix, % of true label", fontsize=MEDIUM)
    ax.set_xlabel("label of accepted cells", fontsize=SMALL)
    ax.set_ylabel("true label (cells)", fontsize=SMALL)


def _draw_calibration(figure: Any, known: _Truth) -> None:
    """Draw the fraction of right labels against their probability, below the number of cells in each bin."""
    top, ax = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3])
    at = np.minimum((known.probability * N_BINS).astype(int), N_BINS - 1)
    n = np.bincount(at, minlength=N_BINS)
    top.bar((np.arange(N_BINS) + 0.5) / N_BINS, n, width=0.9 / N_BINS, color="0.75")
    for k in np.flatnonzero(n):
        top.text((k + 0.5) / N_BINS, n[k], f"{n[k]:,}", ha="center", va="bottom", fontsize=SMALL - 2)
    top.set(ylim=(0, 1.35 * max(n.max(), 1)), yticks=[])
    top.set_title("Calibration of probabilities", fontsize=MEDIUM)
    top.set_ylabel("cells", fontsize=SMALL)
    style(top)
    ax.axline((0, 0), slope=1, color="0.6", linewidth=0.8, linestyle="--")
    if len(bins := np.flatnonzero(n >= FEW)):
        sums = (np.bincount(at, values, N_BINS) for values in (known.right, known.probability))
        right, probability = (found[bins] / n[bins] for found in sums)
        low, high = _interval(right, n[bins])
        ax.errorbar(
            probability, right, np.abs([right - low, high - right]), color=COLOURS[0], marker="o", markersize=3,
            linewidth=1.2, elinewidth=0.8,
        )  # fmt: skip
        error = calibration_error(known.probability, known.right)
        text = f"expected calibration\nerror {error:.3f}"
        ax.text(0.98, 0.03, text, fontsize=SMALL, ha="right", va="bottom", transform=ax.transAxes)
    ax.set(xlim=(0, 1), ylim=(0, 1.02))
    ax.set_xlabel("probability of the label", fontsize=SMALL)
    ax.set_ylabel("fraction of right labels", fontsize=SMALL)
    style(ax)


def _interval(fraction: NDArray, n: NDArray) -> tuple[NDArray, NDArray]:
    """Return Wilson's 95 % interval of fractions of n cells each."""
    z = 1.96
    centre = (fraction + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(fraction * (1 - fraction) / n + z**2 / (4 * n**2))
    return centre - half, centre + half
