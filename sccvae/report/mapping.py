"""Section of the report on cells that were mapped onto a reference."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from sccvae import pl
from sccvae.pl.embedding import categories, draw_cells, sample, umap
from sccvae.pl.mapping import draw_behind, positions
from sccvae.pl.style import draw_legend, finished, legend_width, new_figure
from sccvae.report.parts import figure_of, named, table, verdicts
from sccvae.validation.wording import shortened

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from sccvae.statistics.diagnostics import Diagnosis

LEAST = 20  # cells of a layout
CHECKS = ("new_cells", "missing_genes", "depth", "offsets")  # of the diagnosis
MOST_LABELS, MOST_REASONS = 30, 3  # of the table


class Mapped(NamedTuple):
    """What a model says of cells that were mapped onto its reference."""

    predicted: pd.DataFrame | None  # table of `SCCVAE.predict`; None of a model without labels
    reference: AnnData | None  # cells of the reference, with their embedding; None if they are not here
    known: tuple[str, ...]  # batches of the reference
    new: tuple[str, ...]  # new batches


def mapping(
    adata: AnnData,
    diagnosis: Diagnosis,
    mapped: Mapped,
    batch_key: str | None,
    label_key: str | None,
    *,
    max_cells: int,
    seed: int,
) -> str:
    """Return checks of the mapping in words, a table of labels, and the figure.

    Parameters
    ----------
    adata, diagnosis
        As for `sections.page`.
    mapped
        What the model says of these cells.
    batch_key, label_key
        Columns of ``adata.obs`` with batches and with true labels; None if there are none.
    max_cells, seed
        Largest number of cells of each kind to draw; seed of the sample and of the layout.
    """
    text = [
        f"<p>{escape(_batches(diagnosis, mapped))}</p>",
        verdicts(diagnosis.table[diagnosis.table.index.isin(CHECKS)]),
    ]
    if mapped.predicted is None:
        text.append("<p>The reference has no labels, so that new cells get none.</p>")
    else:
        text += ["<h3>Labels</h3>", _labels(mapped.predicted)]
    return "".join(text) + _figure(adata, mapped, batch_key, label_key, max_cells=max_cells, seed=seed)


def _batches(diagnosis: Diagnosis, mapped: Mapped) -> str:
    """Return a sentence on the batches, and one on the training."""
    text = f"The reference has {len(mapped.known):,} batch{'es' if len(mapped.known) > 1 else ''}: "
    text += f"{named(mapped.known)}. "
    if not mapped.new:
        return text + "All cells are of known batches, so that nothing was adapted."
    text += f"New: {named(mapped.new)}. "
    if not len(diagnosis.history):
        return text + "Offsets of new batches are the means of the known ones, because they were not adapted."
    n_epochs = diagnosis.history["epoch"].nunique()
    return text + f"Offsets of new batches were adapted in {n_epochs:,} epoch{'s' if n_epochs > 1 else ''}."


def _labels(predicted: pd.DataFrame) -> str:
    """Return a table of the labels: cells, how many are accepted, and why others are not."""
    rows = []
    for label, n in predicted["label"].value_counts().items():
        if n == 0:
            continue
        some = predicted[predicted["label"] == label]
        reasons = some["reason"][~some["accepted"]].value_counts()
        shown = [f"{reason}: {k:,}" for reason, k in reasons.iloc[:MOST_REASONS].items()]
        rest = int(reasons.iloc[MOST_REASONS:].sum())
        shown += [f"other reasons: {rest:,}"] if rest else []
        kept = some["accepted"].mean()
        rows.append([shortened(label, 120), f"{n:,}", f"{kept:.0%}", f"{some['probability'].median():.2f}"])
        rows[-1].append("; ".join(shown))
    head = ["Label", "Cells", "Accepted", "Median probability", "Reasons of those not accepted"]
    more = f'<p class="soft">and {len(rows) - MOST_LABELS} more</p>' if len(rows) > MOST_LABELS else ""
    n_kept, n = int(predicted["accepted"].sum()), len(predicted)
    text = f"<p>The labels of {n_kept:,} of {n:,} cells ({n_kept / n:.0%}) are accepted.</p>"
    return text + table(head, rows[:MOST_LABELS], numbers=range(1, 4)) + more


def _figure(
    adata: AnnData, mapped: Mapped, batch_key: str | None, label_key: str | None, *, max_cells: int, seed: int
) -> str:
    """Return the figure of new cells on the layout of the reference, with what is known of their labels."""
    reference, note = mapped.reference, ""
    if reference is None:
        note = (
            "<p>The cells of the reference are not here, so that new cells are shown without them: save the reference "
            "by save(path, with_reference=True).</p>"
        )
    elif reference.n_obs >= LEAST:
        reference = reference[np.sort(sample(reference.n_obs, max_cells, seed))].copy()
        reference.obsm["X_umap"] = umap(reference.obsm["X_sccvae"], seed=seed)
    else:
        reference = None
    if mapped.predicted is None and reference is None:
        return note
    if mapped.predicted is None:
        figure = _by_batch(adata, reference, batch_key, sample(adata.n_obs, max_cells, seed))
    else:
        query = adata.copy()
        for name in mapped.predicted:
            query.obs[f"sccvae_{name}"] = mapped.predicted[name].array
        figure = pl.mapping(query, reference=reference, truth=label_key, max_cells=max_cells, seed=seed)
    caption = (
        "Two principal components of the new cells' embedding."
        if reference is None
        else "New cells on the UMAP layout of the reference's cells, which are grey: each is at the weighted mean of "
        "its 15 nearest cells of the reference."
    )
    if mapped.predicted is not None:
        caption += " A novelty near 1 means that the cell is unlike any cell of the reference."
        caption += "" if label_key is None else f" The lower panels compare labels with the true ones, {label_key!r}."
    return note + figure_of(figure, "Mapped cells", caption)


def _by_batch(adata: AnnData, reference: AnnData, batch_key: str | None, cells: NDArray) -> Figure:
    """Plot new cells on the layout of the reference, coloured by batch."""
    one = pd.Categorical(["new cells"] * len(cells))
    groups = one if batch_key is None else categories(adata, batch_key, cells)
    layout, behind = positions(adata, "sccvae", reference, cells)
    figure = new_figure(2.6 + legend_width(groups), 2.6)
    ax = figure.add_subplot()
    if behind is not None:
        draw_behind(ax, behind)
    draw_cells(ax, layout, groups)
    draw_legend(ax, batch_key or "", groups)
    return finished(figure, show=False)
