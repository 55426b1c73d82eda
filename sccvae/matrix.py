"""The matrix of an AnnData -> `Rows`, wherever it is stored: read in blocks, every value checked."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sccvae.stored import BLOCK, Rows
from sccvae.wording import Text, did_you_mean, listed_names

Support = Literal["counts", "real", "binary"]
MAX_COUNT = 2**24  # the largest whole number below which float32 holds every one exactly
BLOCK_BYTES = 64 * 2**20  # rows read at once from a dense or backed matrix


def read_rows(adata: AnnData, layer: str | None, support: Support, genes: Sequence[str]) -> Rows:
    """All cells, the genes named in that order, checked, in memory of its own. In passing little else is taken."""
    columns = _columns_of(adata, genes)
    parts = []
    for start, block in _blocks(adata, layer):
        if columns is not None:
            block = block[:, columns]
        if not block.has_canonical_format:
            block = block.astype(np.float64)  # a copy
            block.sum_duplicates()
        if wrong := _wrong_values(block.data, support):
            raise ValueError(_wrong_value_message(adata, layer, support, start, block, wrong, genes))
        if np.count_nonzero(block.data) < len(block.data):
            block = block.copy()
            block.eliminate_zeros()
        parts.append(Rows.of(block, counts=support != "real"))
    rows = Rows.joined(parts)
    if support == "counts":
        _check_empty_cells(adata, rows)
    return rows


def _columns_of(adata: AnnData, genes: Sequence[str]) -> np.ndarray | None:
    """Where the genes stand in the AnnData; None when they are its own, in its order."""
    names = adata.var_names.astype(str)
    if len(names) == len(genes) and (names == np.asarray(genes)).all():
        return None
    check_unique(names, "var_names", "adata.var_names_make_unique()")
    at = names.get_indexer(pd.Index(genes))
    check_known_genes(
        [g for g, i in zip(genes, at, strict=True) if i < 0], names, "The model needs genes that adata lacks:"
    )
    return at


def _blocks(adata: AnnData, layer: str | None) -> Iterator[tuple[int, sp.csr_matrix]]:
    """The matrix as CSR blocks of whole rows, in order: (first row, block). One block when it is sparse in memory."""
    if layer is not None and layer not in adata.layers:
        raise KeyError(Text(f"adata.layers has no {layer!r}.{did_you_mean(layer, adata.layers)}"))
    backed = adata.isbacked and layer is None and not adata.is_view  # anndata makes no view of a view of a file
    matrix: Any = None if backed else (adata.X if layer is None else adata.layers[layer])
    if matrix is None and not backed:
        hint = f"pass layer= one of {listed_names(adata.layers)}" if adata.layers else "put the counts there"
        raise ValueError(f"adata.X is None; {hint}.")
    if sp.issparse(matrix):
        yield 0, sp.csr_matrix(matrix)
        return
    rows = max(1, BLOCK_BYTES // (8 * adata.n_vars))
    for start in range(0, adata.n_obs, rows):
        stop = min(start + rows, adata.n_obs)
        block = adata[start:stop].X if backed else np.asarray(matrix[start:stop])
        if not sp.issparse(block) and block.dtype.kind in "iuf":  # scipy knows neither float16 nor other byte orders
            native = np.float32 if block.dtype == np.float16 else block.dtype.newbyteorder("=")
            block = block.astype(native, copy=False)
        yield start, sp.csr_matrix(block)


def _wrong_values(values: np.ndarray, support: Support) -> tuple[int, int] | None:
    """Where the first value lies that is not what the likelihood is about, and how many do. Every one is looked at."""
    first: int | None = None
    n = 0
    for start in range(0, len(values) if values.dtype != bool else 0, BLOCK):
        wrong = _are_wrong(values[start : start + BLOCK], support)
        if found := np.count_nonzero(wrong):
            first, n = (start + int(wrong.argmax()) if first is None else first), n + int(found)
    return None if first is None else (first, n)


def _are_wrong(values: np.ndarray, support: Support) -> np.ndarray:
    if support == "real":
        return ~(np.abs(values) <= np.finfo(np.float32).max)
    if support == "binary":
        return (values != 0) & (values != 1)
    if np.issubdtype(values.dtype, np.integer):
        return (values < 0) | (values > MAX_COUNT)
    return ~((values >= 0) & (values <= MAX_COUNT) & (np.floor(values) == values))


def _wrong_value_message(adata, layer, support, start, block, wrong, genes) -> str:
    at, n_wrong = wrong
    row = int(np.searchsorted(block.indptr, at, side="right")) - 1
    value, cell, gene = block.data[at], adata.obs_names[start + row], genes[block.indices[at]]
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    found = f"{value:g} at cell {str(cell)!r}, gene {str(gene)!r} ({n_wrong} such values in all)"
    if start or block.shape[0] < adata.n_obs:
        found = found.replace(" in all)", " in this block of cells)")
    if support == "real":
        return f"{where} holds a value that is not finite: {found}. Mend or remove it before building the model."
    if support == "binary":
        return (
            f"{where} holds values other than 0 and 1: {found}. gene_likelihood='bernoulli' models 0/1 data: "
            "binarise first, or choose gene_likelihood='zinb' for counts."
        )
    if np.isfinite(value) and value > MAX_COUNT:
        return f"{where} holds a count above 2**24 = {MAX_COUNT}: {found}. Is this matrix really counts of molecules?"
    what = "negative values" if value < 0 else "values that are not counts"
    candidates = [n for n in [None, *adata.layers] if n != layer and _holds_counts(adata, n)]
    hint = "No other layer of adata holds counts: go back to the raw matrix, before sc.pp.normalize_total and log1p."
    if candidates:
        first = "adata.X" if candidates[0] is None else f"adata.layers[{candidates[0]!r}]"
        hint = f"{first} holds counts: pass layer={candidates[0]!r}."
    elif adata.raw is not None and not _wrong_values(_stored(adata.raw.X), "counts"):
        hint = "adata.raw holds counts: use adata.raw.to_adata() (with adata.obs)."
    return f"{where} holds {what}: {found}. sccvae models raw counts. {hint}"


def _holds_counts(adata: AnnData, layer: str | None) -> bool:
    return holds(adata, layer, "counts")


def holds(adata: AnnData, layer: str | None, support: Support) -> bool:
    """Whether the matrix is there and holds nothing but what the likelihood is about."""
    if layer not in adata.layers if layer is not None else adata.X is None:
        return False
    return not any(_wrong_values(block.data, support) for _, block in _blocks(adata, layer))


def _stored(matrix) -> np.ndarray:
    return matrix.data if sp.issparse(matrix) else np.asarray(matrix).ravel()


# ------------------------------------------------------------------------------------------------------------- checks


def check_adata(adata: AnnData) -> None:
    """Raise unless it is an AnnData that holds cells and genes."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"Expected an AnnData; found {type(adata).__name__}. Wrap a matrix as anndata.AnnData(matrix).")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"adata holds {adata.n_obs} cells and {adata.n_vars} genes; both must be at least 1.")


def check_unique(names: pd.Index, what: str, fix: str) -> None:
    """Raise unless no name comes twice."""
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        raise ValueError(f"adata.{what} are not unique: {listed_names(twice)} appear more than once. Call {fix} first.")


def check_known_genes(missing: list[str], known: Iterable[str], what: str) -> None:
    """Raise if genes are missing."""
    if missing:
        known = [str(k) for k in known]
        raise ValueError(
            f"{what} {len(missing)} unknown gene{'s' if len(missing) > 1 else ''}: {listed_names(missing)}."
            f"{did_you_mean(missing[0], known, listed=True)} Genes are matched by name."
        )


def _check_empty_cells(adata: AnnData, rows: Rows) -> None:
    empty = np.diff(rows.indptr) == 0
    if empty.any():
        raise ValueError(
            f"{empty.sum()} of {adata.n_obs} cells have no counts in the genes modelled, such as "
            f"{listed_names(adata.obs_names[empty])}. Remove them first: sc.pp.filter_cells(adata, min_counts=1)."
        )
