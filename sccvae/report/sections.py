"""Page of the report and its sections."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccvae import metrics, pl
from sccvae.io import files
from sccvae.pl.embedding import categories, draw_cells, sample, umap
from sccvae.pl.style import MEDIUM, as_text, draw_legend, finished, legend_width, new_figure
from sccvae.report.mapping import Mapped, mapping
from sccvae.report.parts import POLICY, STYLE, as_list, figure_of, named, table, verdicts
from sccvae.validation.wording import shortened

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

    from sccvae.statistics.diagnostics import Diagnosis

SCORES = {  # names and explanations of the scores of `metrics.embedding_scores`
    "knn_accuracy": ("kNN accuracy", "fraction of cells whose 15 nearest neighbours vote for their label"),
    "kmeans_ari": ("Clusters, ARI", "agreement of k-means clusters with the labels; 0 is chance"),
    "kmeans_nmi": ("Clusters, NMI", "agreement of k-means clusters with the labels, as mutual information"),
    "graph_connectivity": ("Connectivity", "fraction of a label's cells in the largest component of the graph"),
    "silhouette_label": ("Silhouette of labels", "0.5 where labels overlap, 1 where they are well separated"),
    "batch_entropy": ("Batch mixing", "entropy of batches among 50 neighbours; 1 as in all cells together"),
    "silhouette_batch": ("Silhouette of batches", "1 where batches overlap within labels"),
}
EXPLAINED = {
    "gene_likelihood": "distribution of the counts",
    "library": "library size: inferred (lognormal) or the total count (observed)",
    "dispersion": "one per gene, per gene and batch, or per gene and cell",
    "n_latent": "dimensions of the embedding",
    "n_hidden": "width of the hidden layers, of encoder and decoder",
    "n_layers": "hidden layers of encoder and decoder each",
    "n_genes": "genes modelled",
    "n_levels": "categories of each column of batches and covariates",
    "n_continuous": "continuous covariates",
    "n_labels": "labels that cells can have",
    "label_weight": "weight of the labels beside the counts in training",
    "labels_key": "column with the labels of the reference",
    "labels": "the labels",
    "unlabeled": "value that means no label",
    "condition_key": "column with the condition whose effect is kept",
    "support": "type of the values modelled",
    "log_size_offset": "log of the factor by which size factors were multiplied",
    "batch_key": "column with the batches whose effect is removed",
    "dropout_rate": "fraction of the encoder's hidden units left out in a training step",
    "dropout_cost": "penalty on zero inflation, in nats per expected extra zero",
    "prior_components": "Gaussians in the prior of the embedding; 0 is a standard normal",
    "batch_mixing": "penalty in training, in nats per nat of information of neighbours on a cell's batch",
    "weight_precision": "precision of the Gaussian prior of the weights from hidden units to genes; 0: none",
    "thinning": "largest fraction of a cell's molecules hidden from the encoder in a training step",
    "encode_covariates": "whether batch and covariates are inputs of the encoder",
    "seed": "seed of all random numbers",
    "layer": "source of the counts",
    "round_counts": "whether expected counts were rounded",
}


def write(path: str | os.PathLike, text: str) -> None:
    """Write a page atomically, so that a killed run leaves the old page or the new one."""
    with files.writing(path, "report") as part:
        part.write_text(text, encoding="utf-8")


def checked_path(path: str | os.PathLike) -> Path:
    """Check, before computing, that a page can be written; return its absolute path.

    Raises
    ------
    TypeError, ValueError, OSError
        `path` is not a path, or is a folder; or its folder does not exist or is not writable.
    """
    if (given := files.path_of(path)).is_dir():
        raise IsADirectoryError(f"{str(given)!r} is a folder; expected the name of a file, such as 'report.html'.")
    return files.checked(given, "report")


def page(
    adata: AnnData,
    diagnosis: Diagnosis,
    description: dict[str, Any],
    *,
    title: str,
    summary: str,
    batch_key: str | None,
    label_key: str | None,
    counts: bool,
    max_cells: int,
    seed: int,
    mapped: Mapped | None = None,
) -> str:
    """Return the HTML of the whole page.

    Parameters
    ----------
    adata
        (cells, genes) modelled values in `X`, ``obsm["X_sccvae"]``, columns `batch_key` and `label_key`.
    diagnosis, description
        Results of `SCCVAE.diagnose` and `SCCVAE.describe`.
    title, summary
        Heading, and a description of the model of one or more lines.
    counts
        Whether the values in `X` are counts.
    max_cells
        Largest number of cells to plot and score.
    mapped
        What the model says of cells that were mapped onto its reference; None for cells that it was trained on.
    """
    notes = [*diagnosis.warnings, *_notes(adata.obs, batch_key, label_key, new=mapped is not None)]
    keys = batch_key, label_key
    sections = {
        "Summary": _summary(adata, diagnosis, notes, batch_key, label_key),
        "Data": _data(adata, batch_key, label_key, counts=counts),
        "Mapping": "" if mapped is None else mapping(adata, diagnosis, mapped, *keys, max_cells=max_cells, seed=seed),
        "Embedding": _embedding(adata, batch_key, label_key, counts=counts, max_cells=max_cells),
        "Scores": _scores(adata, batch_key, label_key, max_cells=max_cells, seed=seed),
        "Training": _training(diagnosis, new=mapped is not None),
        "Diagnostics": _diagnostics(diagnosis),
        "Model": _model(description, summary),
    }
    sections = {name: body for name, body in sections.items() if body}
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    looks = {"Summary": f' class="verdict{" look" if notes else ""}"'}
    body = "".join(
        f'<section id="{name.lower()}"{looks.get(name, "")}><h2>{name}</h2>{html}</section>'
        for name, html in sections.items()
    )
    today, version = f"{datetime.now(UTC):%d %B %Y}".lstrip("0"), description["versions"].get("sccvae", "")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p>{today}, sccvae {escape(str(version))}</p><nav>{links}</nav></header>"
        f"{body}</main></body></html>\n"
    )


# ----------------------------------------------------------------------------------------------------------- sections


def _summary(
    adata: AnnData, diagnosis: Diagnosis, notes: list[str], batch_key: str | None, label_key: str | None
) -> str:
    """Return the key numbers and the list of concerns."""
    facts = {"cells": f"{adata.n_obs:,}", "genes": f"{adata.n_vars:,}"}
    for key, name in ((batch_key, "batches"), (label_key, "labels")):
        if key is not None:
            facts[name] = f"{adata.obs[key].nunique():,}"
    facts["checks as expected"] = f"{diagnosis.table['ok'].sum()} of {len(diagnosis.table)}"
    boxes = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in facts.items())
    verdict = (
        f"<h3>Concerns</h3>{as_list(notes)}"
        if notes
        else "<p>The model fits these cells well: every check below is as expected.</p>"
    )
    return f'<div class="facts">{boxes}</div>{verdict}'


def _notes(obs: pd.DataFrame, batch_key: str | None, label_key: str | None, *, new: bool = False) -> list[str]:
    """Return limitations of the data: few cells, small batches, cell types in a single batch.

    Of `new` cells, on which no network was trained, small batches alone.
    """
    notes = []
    if len(obs) < 500 and not new:
        notes.append(f"There are {len(obs):,} cells: with fewer than 500, results change with the seed.")
    if batch_key is not None:
        sizes = obs[batch_key].astype(str).value_counts()
        small = sizes[sizes < 50]
        if len(small):
            notes.append(f"Batches of fewer than 50 cells cannot be aligned with confidence: {named(small.index)}.")
        if label_key is not None and len(sizes) > 1 and not new:
            batches = obs.groupby(obs[label_key].astype(str))[batch_key].nunique()
            single = batches.index[batches == 1]
            if len(single):
                notes.append(f"Found in one batch only, so that cell type and batch are confounded: {named(single)}.")
    return notes


def _data(adata: AnnData, batch_key: str | None, label_key: str | None, *, counts: bool) -> str:
    """Return a table of cells, counts and genes of each batch and label."""
    stored = pd.Series(adata.X.getnnz(1), index=adata.obs_names)
    total = pd.Series(np.asarray(adata.X.sum(1)).ravel(), index=adata.obs_names)
    parts = []
    for key, name in ((batch_key, "Batch"), (label_key, "Label")):
        if key is None:
            continue
        groups = adata.obs[key].astype(str)
        frame = pd.DataFrame({"Cells": groups.value_counts()})
        if counts:
            frame["Counts per cell"] = total.groupby(groups.to_numpy()).median()
            frame["Genes per cell"] = stored.groupby(groups.to_numpy()).median()
        rows = [[shortened(group, 120), *(f"{value:,.0f}" for value in row)] for group, *row in frame.itertuples()]
        more = f'<p class="soft">and {len(rows) - 30} more</p>' if len(rows) > 30 else ""
        heading = f"<h3>{name}: {escape(str(key))}</h3>"
        parts.append(f"<div>{heading}{table([name, *frame.columns], rows[:30], numbers=range(1, 4))}{more}</div>")
    text = f"{adata.n_obs:,} cells and {adata.n_vars:,} genes were modelled. "
    if counts:
        text += (
            f"A cell has {total.median():,.0f} counts of {stored.median():,.0f} genes (medians); "
            f"{1 - stored.sum() / (adata.n_obs * adata.n_vars):.1%} of all entries are zero."
        )
    return f"<p>{text}</p>" + (f'<div class="columns">{"".join(parts)}</div>' if parts else "")


def _embedding(adata: AnnData, batch_key: str | None, label_key: str | None, *, counts: bool, max_cells: int) -> str:
    """Plot UMAPs before and after integration if there are batches or labels; else only after."""
    if adata.n_obs < 20:
        return ""
    if counts and (batch_key or label_key):
        figure = pl.integration(adata, batch_key=batch_key, label_key=label_key, max_cells=max_cells)
        caption = (
            "UMAP layouts of the cells before integration (principal components of log counts) and after (the model's "
            "embedding). After integration, cells of the same type should cluster together regardless of batch."
        )
    else:
        figure = _after(adata, [key for key in (batch_key, label_key) if key], max_cells)
        caption = "UMAP layout of the cells from the model's embedding."
    more = f" A random sample of {max_cells:,} cells." if adata.n_obs > max_cells else ""
    return figure_of(figure, "UMAP of the cells", caption + more)


def _after(adata: AnnData, keys: list[str], max_cells: int) -> Figure:
    """Plot a UMAP of the embedding, with a panel for each key."""
    some = sample(adata.n_obs, max_cells)
    groups = {key: categories(adata, key, some) for key in keys} or {"cells": pd.Categorical(["cells"] * len(some))}
    legends = legend_width if keys else lambda _: 0.2
    widths = [2.5 + legends(values) for values in groups.values()]
    figure, layout = new_figure(sum(widths), 2.7), umap(np.asarray(adata.obsm["X_sccvae"])[some])
    grid = figure.add_gridspec(1, len(groups), width_ratios=widths)
    for i, (key, values) in enumerate(groups.items()):
        ax = figure.add_subplot(grid[i])
        draw_cells(ax, layout, values)
        ax.set_title(as_text(key), fontsize=MEDIUM)
        if keys:
            draw_legend(ax, key, values)
    return finished(figure, show=False)


def _scores(adata: AnnData, batch_key: str | None, label_key: str | None, *, max_cells: int, seed: int) -> str:
    """Return a table of scores of the embedding against labels and batches."""
    given = {"labels": label_key, "batches": batch_key}
    arrays = {name: adata.obs[key].astype(str).to_numpy() for name, key in given.items() if key is not None}
    arrays = {name: values for name, values in arrays.items() if len(set(values)) > 1}
    if not arrays or min(adata.n_obs, max_cells) < 60:
        return ""
    scores = metrics.embedding_scores(adata.obsm["X_sccvae"], **arrays, max_cells=max_cells, seed=seed)
    rows = [[*SCORES[name], f"{value:.3f}"] for name, value in scores.items() if np.isfinite(value)]
    text = (
        "<p>Scores of the embedding; 1 is the best value. Compare models on the same cells, not across data sets.</p>"
    )
    return text + table(["Score", "Meaning", "Value"], rows, numbers=[2])


def _training(diagnosis: Diagnosis, *, new: bool) -> str:
    """Return the figure of loss curves, if there was a training."""
    if not len(diagnosis.history):
        return ""
    caption = (
        "The evidence lower bound (ELBO), which training maximises, its parts, and the schedule, by epoch. Validation "
        "cells were not trained on; the parameters are those of the epoch with the highest validation ELBO."
    )
    if new:
        caption += " Offsets of new batches alone were trained; epochs go on from those of the reference."
    return figure_of(pl.history(diagnosis.history), "Loss curves of the training", caption)


def _diagnostics(diagnosis: Diagnosis) -> str:
    """Return the sentences and the figure of the checks."""
    caption = (
        "Zero fractions, variances and ranks compare the data with the model's predictive distribution for the same "
        "cells. Blue is as expected, vermilion is not."
    )
    return verdicts(diagnosis.table) + figure_of(pl.diagnostics(diagnosis), "Diagnostics of the model", caption)


def _model(description: dict[str, Any], summary: str) -> str:
    """Return the parameters, versions, and the paper to cite."""
    rows = [[name, _value(value), EXPLAINED.get(name, "")] for name, value in description["parameters"].items()]
    versions = [[name, str(version)] for name, version in description["versions"].items()]
    paper = (
        "Lopez, Regier, Cole, Jordan and Yosef (2018), Deep generative modeling for single-cell transcriptomics, "
        "Nature Methods 15, 1053-1058, doi:10.1038/s41592-018-0229-2."
    )
    return (
        f"<p>{'<br>'.join(escape(line.strip()) for line in summary.splitlines())}</p>"
        f"<h3>Parameters</h3>{table(['Parameter', 'Value', 'Meaning'], rows)}"
        f"<h3>Versions</h3>{table(['Package', 'Version'], versions)}"
        f"<h3>The method</h3><p>{escape(paper)}</p>"
    )


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
