"""Sums of counts over the cells of each sample, with the design of the samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.utils import make_index_unique

from sccvae.data.blocks import membership
from sccvae.data.columns import labels_of
from sccvae.data.matrix import check_adata, counts_in_blocks
from sccvae.models.sccvae import SCCVAE
from sccvae.validation.conventions import scanpy_like

SIZES = ("n_cells", "total_counts")  # columns of the result
EXPECTED = "sccvae_expected"
BLOCK = 2**22  # expected counts in memory at once
INSTEAD = {
    "copy": "the sums are a new AnnData, which is returned",
    "groups_col": "its name here is by",
    "mode": "counts are summed, because tests of samples need sums",
    "min_cells": "filter the result: bulk[bulk.obs['n_cells'] >= 10]",
}


@scanpy_like(kinds=("SCCVAE",), instead=INSTEAD)
def pseudobulk(
    adata: AnnData,
    sample_key: str,
    by: str | None = None,
    *,
    layer: str | None = None,
    model: SCCVAE | None = None,
) -> AnnData:
    """Sum the counts of each sample, or of each sample and cell type, for tests between samples.

    Cells of one sample are not independent. A test of a condition needs samples as its units (Squair et al. 2021,
    https://doi.org/10.1038/s41467-021-25960-2). The result is the input of pydeseq2, edgeR and decoupler.

    Parameters
    ----------
    adata
        Raw counts, in memory or backed by a file. They are read in blocks of cells.
    sample_key
        Column of `obs` with the sample of each cell, such as a donor or a mouse, without missing values.
    by
        Column of `obs` with the cell type of each cell. None sums all cells of a sample.
    layer
        Layer with the counts. None takes `X`, or with `model` the matrix that the model reads.
    model
        A trained model of counts. Its expected counts are summed, too.

    Returns
    -------
    AnnData, (samples x types, genes). A sample without a cell of a type has no row for the type. Rows are sorted by
    type, then by sample.

    - `X`: sums of counts, a float64 array of whole numbers;
    - `obs`: `sample_key`, `by`, `n_cells` (cells), `total_counts` (molecules), and each column of `adata.obs` that has
      one value in the cells of each row. Categories keep their order; unused ones are left out;
    - `var`: that of `adata`;
    - with `model`, `layers["sccvae_expected"]`: sums of the expected counts of the cells, each in its own batch and at
      its own library size, in molecules. Zero inflation is included. Genes outside the model have NaN, and
      `var["sccvae_modelled"]` tells them apart.

    Raises
    ------
    ValueError, KeyError, TypeError
        A column is unknown or has missing values; a value is not a count; the likelihood of `model` is not of counts.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(200, 30, seed=0)
    >>> bulk = sccvae.tl.pseudobulk(adata, "batch", by="cell_type")
    >>> bulk.shape, bool(bulk.X.sum() == adata.X.sum())
    ((18, 30), True)
    >>> bulk.obs.columns.tolist()
    ['batch', 'cell_type', 'n_cells', 'total_counts']
    """
    check_adata(adata)
    keys = [sample_key] if by is None else [by, sample_key]
    for name, key in (("sample_key", sample_key), ("by", by)):
        if not isinstance(key, str) and not (name == "by" and key is None):
            raise TypeError(f"{name} is a {type(key).__name__}; expected the name of a column of adata.obs.")
        if key in SIZES:
            raise ValueError(f"{name} is {key!r}, which is a column of the result; expected another name: rename it.")
    if len(set(keys)) < len(keys):
        raise ValueError(f"sample_key and by are both {by!r}; expected two columns of adata.obs, or by=None.")
    rows = _rows(adata, keys)
    if model is not None and layer is None:
        layer = model.describe()["parameters"].get("layer")
    x = _sums(rows.codes, len(rows.categories), adata.n_vars, counts_in_blocks(adata, layer))
    obs = _design(adata.obs, rows, keys)
    obs["n_cells"] = np.bincount(rows.codes, minlength=len(obs))
    obs["total_counts"] = x.sum(1)
    bulk = AnnData(x, obs=obs, var=adata.var.copy())
    if model is not None:
        modelled = np.flatnonzero(adata.var_names.isin(model.gene_names))
        expected = np.full(bulk.shape, np.nan)
        blocks = _expected(adata, model, adata.var_names[modelled].to_list())
        expected[:, modelled] = _sums(rows.codes, bulk.n_obs, len(modelled), blocks)
        bulk.layers[EXPECTED] = expected
        if len(modelled) < adata.n_vars:
            bulk.var["sccvae_modelled"] = adata.var_names.isin(model.gene_names)
    return bulk


def _rows(adata: AnnData, keys: list[str]) -> pd.Categorical:
    """Row of each cell: a category for each combination of values that has cells, named by its values."""
    columns = [pd.Categorical(labels_of(key, adata.obs, adata.obs_names, key)) for key in keys]
    combined = np.zeros(adata.n_obs, dtype=np.int64)
    for column in columns:
        combined = combined * len(column.categories) + column.codes
    _, first, codes = np.unique(combined, return_index=True, return_inverse=True)
    names = pd.Index(["_".join(str(column[cell]) for column in reversed(columns)) for cell in first])
    return pd.Categorical.from_codes(codes, categories=make_index_unique(names))  # a_b + c and a + b_c are alike


def _design(obs: pd.DataFrame, rows: pd.Categorical, keys: list[str]) -> pd.DataFrame:
    """Columns of `obs` with one value in the cells of each row; first those of the keys."""
    first = np.unique(rows.codes, return_index=True)[1]
    columns = {key: pd.Categorical(obs[key]).remove_unused_categories()[first] for key in keys[::-1]}
    for position, name in enumerate(obs.columns):
        column = obs.iloc[:, position]
        if name in columns or name in SIZES or not _is_constant(column, rows.codes, first):
            continue
        values = column.iloc[first]
        if isinstance(values.dtype, pd.CategoricalDtype):
            values = values.cat.remove_unused_categories()
        columns[name] = values.array
    return pd.DataFrame(columns, index=rows.categories)


def _is_constant(column: pd.Series, codes: np.ndarray, first: np.ndarray) -> bool:
    """Return whether the cells of each row have one value; a missing value is a value of its own."""
    try:
        values = pd.factorize(column, use_na_sentinel=False)[0]
    except TypeError:  # lists and other values without a hash
        return False
    return bool((values == values[first][codes]).all())


def _sums(
    codes: np.ndarray, n_rows: int, n_genes: int, blocks: Iterator[tuple[int, sp.csr_matrix | np.ndarray]]
) -> np.ndarray:
    """Sum blocks of cells by row, (rows, genes) float64."""
    total = np.zeros((n_rows, n_genes))
    for start, block in blocks:
        found = membership(codes[start : start + block.shape[0]], n_rows) @ block
        if sp.issparse(found):
            found = found.tocoo()
            total[found.row, found.col] += found.data
        else:
            total += found
    return total


def _expected(adata: AnnData, model: SCCVAE, genes: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield expected counts of blocks of cells as (first cell, (cells, genes) float32)."""
    source, step = model.source_of(adata), max(1, BLOCK // max(len(genes), 1))
    for start in range(0, adata.n_obs, step):
        cells = np.arange(start, min(start + step, adata.n_obs))
        if source is None:
            yield start, model.moments_of(genes, indices=cells)[0]
        else:
            block = source[cells]
            yield start, model.moments_of(genes, block.to_memory() if block.isbacked else block)[0]
