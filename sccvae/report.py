"""Report on a trained model for collaborators: one self-contained HTML page, readable without a network.

The page has no scripts, inline styles, and figures as PNG in base64. All text from the data is escaped.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable
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
from sccvae.validation.wording import shortened

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

    from sccvae.statistics.diagnostics import Diagnosis

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # of the page: nothing is loaded or executed
STYLE = """
:root { color-scheme: light; --ink: #1d2733; --soft: #5b6875; --line: #dde3e9; --good: #0072B2; --bad: #B34A00; }
* { box-sizing: border-box; }
body { margin: 0; background: #f3f5f7; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
header p, .soft, figcaption { color: var(--soft); margin: 0; }
nav { margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
nav a { color: var(--good); text-decoration: none; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 1.2rem 1.4rem 1.4rem;
  margin-top: 1.25rem; }
h2 { font-size: 1.2rem; margin: 0 0 .7rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
figure { margin: .8rem 0 0; overflow-x: auto; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { font-size: .88rem; margin-top: .5rem; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2.2rem; }
.facts div { min-width: 6rem; }
.facts b { display: block; font-size: 1.5rem; line-height: 1.2; font-weight: 650; font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: .88rem; }
.verdict { border-left: 6px solid var(--good); }
.verdict.look { border-left-color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; width: 100%; }
th, td { text-align: left; padding: .32rem .8rem .32rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: break-word; }
thead th { color: var(--soft); font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } td.n { white-space: nowrap; }
.ok, .bad { color: var(--good); font-weight: 700; white-space: nowrap; } .bad { color: var(--bad); }
ul { margin: .4rem 0; padding-left: 1.2rem; } li { margin: .25rem 0; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 0 2.2rem; }
.columns > div { min-width: 0; }
@media print {
  body { background: #fff; font-size: 10pt; } main { max-width: none; padding: 0; } nav { display: none; }
  section { border: 0; border-top: 1px solid var(--line); border-radius: 0; padding: .6rem 0; }
  .verdict { border-left: 4px solid var(--good); padding-left: .8rem; } figure, tr, .facts { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""

MOST_PIXELS = 20e6  # of a figure
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
    """
    notes = [*diagnosis.warnings, *_notes(adata.obs, batch_key, label_key)]
    sections = {
        "Summary": _summary(adata, diagnosis, notes, batch_key, label_key),
        "Data": _data(adata, batch_key, label_key, counts=counts),
        "Embedding": _embedding(adata, batch_key, label_key, counts=counts, max_cells=max_cells),
        "Scores": _scores(adata, batch_key, label_key, max_cells=max_cells, seed=seed),
        "Training": _training(diagnosis),
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
        f"<h3>Concerns</h3>{_list(notes)}"
        if notes
        else "<p>The model fits these cells well: every check below is as expected.</p>"
    )
    return f'<div class="facts">{boxes}</div>{verdict}'


def _notes(obs: pd.DataFrame, batch_key: str | None, label_key: str | None) -> list[str]:
    """Return limitations of the data: few cells, small batches, cell types in a single batch."""
    notes = []
    if len(obs) < 500:
        notes.append(f"There are {len(obs):,} cells: with fewer than 500, results change with the seed.")
    if batch_key is not None:
        sizes = obs[batch_key].astype(str).value_counts()
        small = sizes[sizes < 50]
        if len(small):
            notes.append(f"Batches of fewer than 50 cells cannot be aligned with confidence: {_named(small.index)}.")
        if label_key is not None and len(sizes) > 1:
            batches = obs.groupby(obs[label_key].astype(str))[batch_key].nunique()
            single = batches.index[batches == 1]
            if len(single):
                notes.append(f"Found in one batch only, so that cell type and batch are confounded: {_named(single)}.")
    return notes


def _named(names: Iterable[Any]) -> str:
    names = list(names)
    return ", ".join(repr(shortened(name)) for name in names[:8]) + (
        f" and {len(names) - 8} more" if len(names) > 8 else ""
    )


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
        parts.append(f"<div>{heading}{_table([name, *frame.columns], rows[:30], numbers=True)}{more}</div>")
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
    return _figure(figure, "UMAP of the cells", caption + more)


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
    return text + _table(["Score", "Meaning", "Value"], rows, numbers=1)


def _training(diagnosis: Diagnosis) -> str:
    """Return the figure of loss curves."""
    caption = (
        "The evidence lower bound (ELBO), which training maximises, its parts, and the schedule, by epoch. Validation "
        "cells were not trained on; the parameters are those of the epoch with the highest validation ELBO."
    )
    return _figure(pl.history(diagnosis.history), "Loss curves of the training", caption)


def _diagnostics(diagnosis: Diagnosis) -> str:
    """Return the sentences and the figure of the checks."""
    rows = "".join(
        f'<tr><td class="{"ok" if row.ok else "bad"}">{"✓ ok" if row.ok else "✗ look"}</td>'
        f"<td>{escape(row.sentence)}</td></tr>"
        for row in diagnosis.table.itertuples()
    )
    caption = (
        "Zero fractions, variances and ranks compare the data with the model's predictive distribution for the same "
        "cells. Blue is as expected, vermilion is not."
    )
    figure = _figure(pl.diagnostics(diagnosis), "Diagnostics of the model", caption)
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>{figure}'


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
        f"<h3>Parameters</h3>{_table(['Parameter', 'Value', 'Meaning'], rows)}"
        f"<h3>Versions</h3>{_table(['Package', 'Version'], versions)}"
        f"<h3>The method</h3><p>{escape(paper)}</p>"
    )


# --------------------------------------------------------------------------------------------------------------- parts


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _list(sentences: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _table(head: list[str], rows: list[list[str]], *, numbers: bool | int = False) -> str:
    """Return an HTML table; `numbers` is True if all columns but the first are numeric, or the number of last ones."""
    first = len(head) if numbers is False else 1 if numbers is True else len(head) - numbers

    def cells(row: list[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if i >= first else ''}>{escape(str(value))}</{tag}>" for i, value in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(figure: Figure, name: str, caption: str) -> str:
    """Return the HTML of an embedded figure, at a resolution for print."""
    sink = io.BytesIO()
    dots = min(200.0, (MOST_PIXELS / np.prod(figure.get_size_inches())) ** 0.5)
    figure.savefig(sink, format="png", dpi=dots, facecolor="white")
    data = base64.b64encode(sink.getvalue()).decode("ascii")
    width = round(figure.get_figwidth() * 120)  # CSS pixels: a quarter larger than on paper
    return (
        f'<figure><img alt="{escape(name)}" width="{width}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
