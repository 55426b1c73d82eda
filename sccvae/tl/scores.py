"""Scores of embeddings of an AnnData."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae.data.columns import labels_of
from sccvae.data.matrix import check_adata
from sccvae.validation.conventions import scanpy_like
from sccvae.validation.wording import listed


@scanpy_like(instead={"copy": "nothing is written to adata, the scores are returned"})
def score_integration(
    adata: AnnData,
    batch_key: str,
    label_key: str,
    *,
    use_rep: str | Sequence[str] = ("X_pca", "X_sccvae"),
    unintegrated: str | None = "X_pca",
    scib: bool | None = None,
    max_cells: int | None = 20_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score embeddings by the separation of cell types and the mixing of batches.

    `sccvae.pl.score_table` draws the result. Nothing is written to `adata`.

    Parameters
    ----------
    adata
        Data with embeddings in `obsm`.
    batch_key, label_key
        Columns of `obs` with the batch and the cell type of each cell, without missing values.
    use_rep
        Keys of `obsm`: the embeddings to compare. Include one before integration, as the baseline.
    unintegrated
        Key of `obsm` with principal components before any correction, for scib-metrics' principal component
        regression; without this key in `obsm`, that score is left out.
    scib
        Whether to add the scores of scib-metrics; None adds them if it is installed (pip install scib-metrics).
    max_cells
        Score a random sample of this many cells if there are more; None scores all.
    seed
        Seed of the sample, of k-means, and of the bootstrap.

    Returns
    -------
    DataFrame with a row for each embedding; columns as in `sccvae.metrics.integration.compare_embeddings`. Scores of
    sccvae have plain names (``biology``, ``mixing``, ``total``), those of scib-metrics begin with ``scib_``
    (``scib_total``); ``attrs["implementation"]`` has package and version of each column.

    Raises
    ------
    KeyError, ValueError
        A key is unknown; labels or batches have missing values, or only one value.
    ImportError
        `scib` is True and scib-metrics is not installed.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(300, 50, seed=0)
    >>> adata.obsm["truth"] = adata.obsm["z"]
    >>> scores = sccvae.tl.score_integration(adata, "batch", "cell_type", use_rep="truth", scib=False)
    >>> scores.index.tolist(), bool(scores.loc["truth", "batch_entropy"] > 0.9)
    (['truth'], True)
    """
    from sccvae.metrics.integration import compare_embeddings

    check_adata(adata)
    labels, batches = (labels_of(key, adata.obs, adata.obs_names) for key in (label_key, batch_key))
    reps = [use_rep] if isinstance(use_rep, str) else list(use_rep)
    for rep in reps:
        if rep not in adata.obsm:
            raise KeyError(
                f"{rep!r} is not in adata.obsm, which has {listed(adata.obsm)}. sccvae.tl.integrate(adata, "
                "batch_key=...) makes 'X_sccvae', sc.pp.pca(adata) makes 'X_pca'."
            )
    return compare_embeddings(
        {rep: np.asarray(adata.obsm[rep]) for rep in reps},
        labels,
        batches,
        unintegrated=np.asarray(adata.obsm[unintegrated]) if unintegrated in adata.obsm else None,
        scib=scib,
        max_cells=max_cells,
        seed=seed,
    )
