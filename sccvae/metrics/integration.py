"""Several embeddings of the same cells side by side: how well each keeps cell types apart and mixes batches.

Two sets of scores, which never share a column. The package's own needs scikit-learn only. The scIB scores come from
scib-metrics where that is installed, unchanged, and their columns begin with ``scib_``; so the same column always
holds the same computation, whatever is installed.
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

# What the two aggregates are the means of.
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
    """Score embeddings by `sccvae.metrics` and, where it is installed, by scib-metrics.

    Parameters
    ----------
    embeddings
        Name -> (cells, dimensions), all of the same cells.
    labels, batches
        Cell type and batch of each cell, (cells,); at least two of each, none missing.
    unintegrated
        Principal components before any correction, (cells, dimensions), which ``scib_pcr`` compares with; None leaves
        that score out, of ``scib_mixing`` and ``scib_total``, too.
    scib
        Whether to call scib-metrics; None does where it is installed.
    max_cells, seed
        Score a random sample of so many cells where there are more, the same for all embeddings; its seed, and that of
        k-means and the bootstrap.

    Returns
    -------
    DataFrame, a row for each embedding. ``attrs["implementation"]`` says of each column what computed it. Higher is
    better everywhere, and 1 is the best where no other unit is given:

    - biology: ``knn_accuracy``, ``silhouette_label``, ``kmeans_ari``, ``kmeans_nmi``; ``biology``, their mean;
    - batches: ``silhouette_batch``, ``batch_entropy`` (a share of what can be reached), ``graph_connectivity``;
      ``mixing``, their mean, without ``silhouette_batch`` where no label is found in two batches;
    - ``total``: 0.6 biology + 0.4 mixing, the weights of scIB (Luecken et al. 2022,
      https://doi.org/10.1038/s41592-021-01336-8). It has its weights, not its scores: compare it with ``total`` alone;
    - ``mixing_entropy``, ``mixing_entropy_sd``: `metrics.batch_mixing_entropy`, in nats, of at most log(batches);
    - ``scib_...``: what ``scib_metrics.benchmark.Benchmarker`` says by default, with ``scib_biology``,
      ``scib_mixing`` and ``scib_total``.

    Raises
    ------
    ValueError
        There is no embedding; there is one label or batch only; or as in `metrics.knn_accuracy`.
    ImportError
        `scib` is True and scib-metrics is not installed.
    """
    max_cells, seed = unless_none(limit, "max_cells", max_cells, least=2), checked_seed(seed, most=SEEDS)
    if not embeddings:
        raise ValueError("There is no embedding to score: expected at least one, name -> (cells, dimensions).")
    named: list[Any] = [z for z in embeddings.values() if has_names(z)]
    if any(not same_names(z.index, named[0].index) for z in named):
        raise ValueError("The embeddings are DataFrames with different indices: give all the same rows in one order.")
    kinds = in_order_of_cells(named[0] if named else None, {"labels": labels, "batches": batches})
    kinds = {name: pd.Series(np.asarray(given)) for name, given in kinds.items()}
    for name, values in kinds.items():
        if values.nunique() < 2:
            raise ValueError(
                f"{name} holds {values.nunique()} different values: expected at least two, or there is nothing that "
                "could be kept apart or mixed."
            )
    scib = _installed() if scib is None else flag("scib", scib)
    if scib and not _installed():
        raise ImportError("scib=True needs scib-metrics: pip install scib-metrics. scib=False goes without.")
    rows = {}
    embeddings = {name: np.asarray(z) for name, z in embeddings.items()}  # in order by now
    for name, z in embeddings.items():
        row = embedding_scores(z, **kinds, max_cells=max_cells, seed=seed)
        entropy = batch_mixing_entropy(z, kinds["batches"], max_cells=max_cells, seed=seed)
        rows[name] = row | dict(zip(("mixing_entropy", "mixing_entropy_sd"), entropy, strict=True))
    scores = pd.DataFrame.from_dict(rows, orient="index")
    scores["biology"], scores["mixing"] = (scores[list(of)].mean(axis=1) for of in (BIOLOGY, MIXING))
    scores["total"] = 0.6 * scores["biology"] + 0.4 * scores["mixing"]
    own = [*BIOLOGY, "biology", *MIXING, "mixing", "total", "mixing_entropy", "mixing_entropy_sd"]
    implementation = dict.fromkeys(own, f"sccvae {__version__}, scikit-learn {version('scikit-learn')}")
    scores = scores[own]
    if scib:
        referee = _scib_scores(embeddings, kinds["labels"], kinds["batches"], unintegrated, max_cells, seed)
        implementation |= dict.fromkeys(referee.columns, f"scib-metrics {version('scib-metrics')}")
        scores = scores.join(referee)
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
    """What `Benchmarker` says by default, on the same sample of cells as the own scores."""
    from anndata import AnnData
    from scib_metrics.benchmark import BatchCorrection, Benchmarker

    n_cells, before = len(labels), "unintegrated"
    cells = np.arange(n_cells)
    if max_cells is not None and n_cells > max_cells:
        cells = np.sort(np.random.default_rng(seed).choice(n_cells, size=max_cells, replace=False))
    arrays = {f"{i}": z for i, z in enumerate(embeddings.values())}  # names may be anything, even "unintegrated"
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
        # Left None, Benchmarker would run a PCA of slim.X, which there is not.
        pre_integrated_embedding_obsm_key="0" if unintegrated is None else before,
        progress_bar=False,
    )
    benchmark.benchmark()
    table = benchmark.get_results(clean_names=False).drop(index="Metric Type").astype(float)
    table.index = list(embeddings)
    return table.rename(columns=lambda name: _SCIB_NAMES.get(name, f"scib_{name}"))
