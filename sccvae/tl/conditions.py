"""Batches, samples and conditions of an AnnData."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from sccvae.data.columns import labels_of
from sccvae.data.matrix import check_adata
from sccvae.statistics.samples import confounding
from sccvae.validation.conventions import scanpy_like
from sccvae.validation.wording import warn


@scanpy_like(instead={"copy": "nothing is written to adata, the table is returned"})
def confounding_table(
    adata: AnnData, batch_key: str, condition_key: str | None = None, label_key: str | None = None
) -> pd.DataFrame:
    """Count the cells of each batch, condition and label, and warn where they cannot be told apart.

    Run it before the fit. Where no batch holds cells of two conditions, the correction for batches also removes the
    effect of the condition. A cell type that lies in one batch only may be drawn to other types.

    Parameters
    ----------
    adata
        Data with these columns. Its counts are not read.
    batch_key, condition_key, label_key
        Columns of `obs` without missing values: the batches to correct for, the conditions to compare, the cell types.

    Returns
    -------
    DataFrame of numbers of cells. A row for each batch, or for each batch and condition; a column for each label, or
    the column `cells`. Its `attrs["warnings"]` has the sentences of the warnings.

    Raises
    ------
    KeyError, ValueError
        A column is unknown, is named twice, or has missing values.

    Warns
    -----
    UserWarning
        A sentence for each pair of columns that cannot be told apart, with what to do.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(300, 50, seed=0)
    >>> table = sccvae.tl.confounding_table(adata, "batch", label_key="cell_type")
    >>> table.shape, table.attrs["warnings"]
    ((3, 6), [])
    """
    check_adata(adata)
    keys = [key for key in (batch_key, condition_key, label_key) if key is not None]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"batch_key, condition_key and label_key name {twice!r} twice; expected different columns.")
    columns = {key: labels_of(key, adata.obs, adata.obs_names, "key").astype(str) for key in keys}
    table = pd.DataFrame(columns).groupby(keys).size().rename("cells").reset_index()
    found = confounding.sentences(table, batch_key, condition_key, label_key)
    for sentence in found:
        warn(sentence)
    rows = [key for key in (batch_key, condition_key) if key is not None]
    counts = table.set_index(keys)["cells"]
    counts = counts.unstack(label_key, fill_value=0) if label_key is not None else counts.to_frame()
    counts = counts.groupby(level=rows, sort=False).sum()
    counts.attrs["warnings"] = found
    return counts
