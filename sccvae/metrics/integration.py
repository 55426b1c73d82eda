"""Comparison of several embeddings of the same cells: separation of cell types and mixing of batches.

Two sets of scores have separate columns. The package's own scores need only scikit-learn. The scIB scores come from
scib-metrics, if installed, unchanged, in columns that begin with ``scib_``. The computation behind a column is
therefore the same in all installations.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccvae import __version__
from sccvae.metrics.embedding import batch_mixing_entropy, embedding_scores
from sccvae.validation.arguments import SEEDS, checked_seed, flag, limit, unless_none
from sccvae.validation.names import has_names, in_order_of_cells, same_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike

__all__ = ["BIOLOGY", "MIXING", "compare_embeddings"]

# Scores whose means are the two aggregates, `biology` and `mixing`.
BIOLOGY = ("knn_accuracy", "silhouette_label", "kmeans_ari", "kmeans_nmi")
MIXING = ("silhouette_batch", "batch_entropy", "graph_connectivity")
_SCIB_NAMES = {
    "isolated_labels": "scib_isolated_labels",
    "nmi_ari_cluster_labels_kmeans_nmi": "scib_kmeans_nmi",
    "nmi_ari_cluster_labels_kmeans_ari": "scib_kmeans_ari",
    "silhouette_label": "scib_silhouette_label",
    "clisi_knn": "scib_clisi",
    "bras": "scib_bras",
    "ilisi_knn": "scib_ilisi",
    "kbet_per_label": "scib_kbet",
    "graph_connectivity": "scib_graph_connectivity",
    "pcr_comparison": "scib_pcr",
    "Bio conservation": "scib_biology",
    "Batch correction": "scib_mixing",
    "Total": "scib_total",
}


def compare_embeddings(
    embeddings: Mapping[str, ArrayLike],
    labels: ArrayLike,
    batches: ArrayLike,
    *,
    unintegrated: ArrayLike | None = None,
    scib: bool | None = None,
    max_cells: int | None = 20_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score embeddings by `sccvae.metrics` and, if installed, by scib-metrics.

    Parameters
    ----------
    embeddings
        Name -> (cells, dimensions), all of the same cells.
    labels, batches
        Cell type and batch of each cell, (cells,); at least two of each, none missing.
    unintegrated
        Principal components before any correction, (cells, dimensions), the reference of ``scib_pcr``; None leaves
        ``scib_pcr`` out, also of ``scib_mixing`` and ``scib_total``.
    scib
        Whether to call scib-metrics; None calls scib-metrics if installed.
    max_cells, seed
        Largest number of cells to score; of more cells, a random sample is scored, the same for all embeddings. Seed of
        the sample, of k-means and of the bootstrap.

    Returns
    -------
    DataFrame, a row for each embedding. ``attrs["implementation"]`` names the package behind each column. Higher is
    better in all columns, and 1 is the best value where no other unit is given:

    - biology: ``knn_accuracy``, ``silhouette_label``, ``kmeans_ari``, ``kmeans_nmi``; ``biology``, their mean;
    - batches: ``silhouette_batch``, ``batch_entropy`` (a fraction of its maximum), ``graph_connectivity``; ``mixing``,
      their mean, without ``silhouette_batch`` where no label is found in two batches;
    - ``total``: 0.6 biology + 0.4 mixing, the weights of scIB (Luecken et al. 2022,
      https://doi.org/10.1038/s41592-021-01336-8). The scores are not those of scIB: compare ``total`` with ``total``
      only;
    - ``mixing_entropy``, ``mixing_entropy_sd``: `metrics.batch_mixing_entropy`, in nats, of at most log(batches);
    - ``scib_...``: results of ``scib_metrics.benchmark.Benchmarker`` with default settings, with ``scib_biology``,
      ``scib_mixing`` and ``scib_total``.

    Raises
    ------
    ValueError
        There is no embedding; there is only one label or batch; or as in `metrics.knn_accuracy`.
    ImportError
        `scib` is True and scib-metrics is not installed.
    """
    max_cells, seed = unless_none(limit, "max_cells", max_cells, least=2), checked_seed(seed, most=SEEDS)
    if not embeddings:
        raise ValueError("embeddings is empty; expected at least one, name -> (cells, dimensions).")
    named: list[Any] = [z for z in embeddings.values() if has_names(z)]
    if any(not same_names(z.index, named[0].index) for z in named):
        raise ValueError("embeddings has DataFrames with different indices; expected the same rows in one order.")
    groups = in_order_of_cells(named[0] if named else None, {"labels": labels, "batches": batches})
    groups = {name: pd.Series(np.asarray(given)) for name, given in groups.items()}
    for name, values in groups.items():
        if values.nunique() < 2:
            raise ValueError(
                f"{name} has {values.nunique()} different values; expected at least two to score separation or mixing."
            )
    scib = _installed() if scib is None else flag("scib", scib)
    if scib and not _installed():
        raise ImportError("scib=True needs scib-metrics: pip install scib-metrics, or pass scib=False.")
    rows = {}
    embeddings = {name: np.asarray(z) for name, z in embeddings.items()}  # rows were checked to be in one order
    for name, z in embeddings.items():
        row = embedding_scores(z, **groups, max_cells=max_cells, seed=seed)
        entropy = batch_mixing_entropy(z, groups["batches"], max_cells=max_cells, seed=seed)
        rows[name] = row | dict(zip(("mixing_entropy", "mixing_entropy_sd"), entropy, strict=True))
    scores = pd.DataFrame.from_dict(rows, orient="index")
    scores["biology"], scores["mixing"] = (scores[list(of)].mean(axis=1) for of in (BIOLOGY, MIXING))
    scores["total"] = 0.6 * scores["biology"] + 0.4 * scores["mixing"]
    own = [*BIOLOGY, "biology", *MIXING, "mixing", "total", "mixing_entropy", "mixing_entropy_sd"]
    implementation = dict.fromkeys(own, f"sccvae {__version__}, scikit-learn {version('scikit-learn')}")
    scores = scores[own]
    if scib:
        scib_scores = _scib_scores(embeddings, groups["labels"], groups["batches"], unintegrated, max_cells, seed)
        implementation |= dict.fromkeys(scib_scores.columns, f"scib-metrics {version('scib-metrics')}")
        scores = scores.join(scib_scores)
    scores.attrs["implementation"] = implementation
    return scores.rename_axis("embedding")


def _installed() -> bool:
    try:
        version("scib-metrics")
    except PackageNotFoundError:
        return False
    return True


def _scib_scores(
    embeddings: Mapping[str, ArrayLike],
    labels: pd.Series,
    batches: pd.Series,
    unintegrated: ArrayLike | None,
    max_cells: int | None,
    seed: int,
) -> pd.DataFrame:
    """Return the scores of `Benchmarker` with default settings, on the random sample of the package's own scores."""
    from anndata import AnnData
    from scib_metrics.benchmark import BatchCorrection, Benchmarker

    n_cells, before = len(labels), "unintegrated"
    cells = np.arange(n_cells)
    if max_cells is not None and n_cells > max_cells:
        cells = np.sort(np.random.default_rng(seed).choice(n_cells, size=max_cells, replace=False))
    arrays = {f"{i}": z for i, z in enumerate(embeddings.values())}  # numbers, because a name may be "unintegrated"
    arrays |= {} if unintegrated is None else {before: unintegrated}
    obs = pd.DataFrame({"label": labels.astype(str), "batch": batches.astype(str)}).iloc[cells].astype("category")
    obs.index = cells.astype(str)
    slim = AnnData(obs=obs, obsm={key: np.asarray(z, dtype=np.float32)[cells] for key, z in arrays.items()})
    benchmark = Benchmarker(
        slim,
        "batch",
        "label",
        [f"{i}" for i in range(len(embeddings))],
        batch_correction_metrics=BatchCorrection(pcr_comparison=unintegrated is not None),
        # With None, Benchmarker would run a PCA of slim.X, which does not exist.
        pre_integrated_embedding_obsm_key="0" if unintegrated is None else before,
        progress_bar=False,
    )
    benchmark.benchmark()
    table = benchmark.get_results(clean_names=False).drop(index="Metric Type").astype(float)
    table.index = list(embeddings)
    return table.rename(columns=lambda name: _SCIB_NAMES.get(name, f"scib_{name}"))
