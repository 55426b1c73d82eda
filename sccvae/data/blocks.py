"""Reading of a matrix as CSR blocks of whole rows, from memory, from a file, or from a dask array.

Files (`anndata.io.sparse_dataset`, datasets of h5py and zarr, a backed AnnData) and dask arrays are recognised by their
attributes, so that this module imports none of their packages.
"""

from collections.abc import Iterator
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
import scipy.sparse as sp

from sccvae.data.packs import free_memory

NUMBERS = "biuf"  # kinds of dtype for counts


def blocks_of(
    matrix: Any, where: str, shape: tuple[int, int], n_bytes: int, most: float = np.inf, cells: range | None = None
) -> Iterator[tuple[int, sp.csr_matrix]]:
    """Yield rows in order as (first row, block); a sparse matrix in memory is one block, unless it is large.

    Parameters
    ----------
    matrix, where
        The matrix, and its name in messages.
    shape
        Expected shape of the matrix, (cells, genes).
    n_bytes
        Size of a block read from a dense matrix or a file, at 8 bytes a value.
    most
        Bytes above which a sparse matrix is not one block, at 3 bytes a value.
    cells
        The rows to read; None reads all.

    Raises
    ------
    TypeError, ValueError
        The matrix is not numeric, or cannot be read.
    """
    cells = range(shape[0]) if cells is None else cells
    start, parts = cells.start, _parts(matrix, cells, max(1, n_bytes // (8 * shape[1])), most)
    while start < cells.stop:
        try:
            part: Any = next(parts, None)
            if not (sp.issparse(part) or np.ma.isMaskedArray(part)):
                part = np.asarray(part)
        except MemoryError:
            raise
        except Exception as error:  # files and task graphs raise errors of any type
            raise ValueError(
                f"{where}, a {type(matrix).__name__}, cannot be read ({type(error).__name__}: {error}). Read it into "
                "memory first: adata = adata.to_memory(). Check that its file exists and is open."
            ) from error
        if part.ndim != 2 or part.shape[1] != shape[1] or not 0 < part.shape[0] <= cells.stop - start:
            raise ValueError(
                f"{where}, a {type(matrix).__name__}, gives rows of shape {part.shape}; expected {shape} in total. "
                "Read it into memory first: adata = adata.to_memory()."
            )
        yield start, _csr(part, where)
        start += part.shape[0]


def membership(codes: np.ndarray, n_rows: int) -> sp.csr_matrix:
    """Return the matrix, (rows, cells), whose product with values of cells sums them by row.

    Parameters
    ----------
    codes
        (cells,) row of each cell.
    """
    n = len(codes)
    return sp.csr_matrix((np.ones(n), (codes, np.arange(n))), shape=(n_rows, n))


def rows_of(matrix: Any, where: str, cells: np.ndarray) -> sp.csr_matrix:
    """Read the rows `cells`, numbers in ascending order."""
    part = matrix.oindex[cells] if hasattr(matrix, "oindex") else matrix[cells]  # zarr's [] does not select rows
    if hasattr(part, "compute"):
        part = part.compute()
    return _csr(part if sp.issparse(part) else np.asarray(part), where)


def _parts(matrix: Any, cells: range, rows: int, most: float) -> Iterator[Any]:
    """Yield the rows `cells` in order as stored: sparse matrices or arrays."""
    some = slice(cells.start, cells.stop)
    if sp.issparse(matrix) and (matrix.format != "csr" or 3 * matrix.nnz <= most):
        yield matrix if len(cells) == matrix.shape[0] else matrix[some]
    elif hasattr(matrix, "to_memory") and getattr(matrix, "format", None) == "csc":
        yield _by_genes(matrix).to_memory()[some]  # each block of rows would read the whole file
    elif hasattr(matrix, "compute") and getattr(matrix, "chunks", None) is not None:
        yield from _computed(matrix if len(cells) == matrix.shape[0] else matrix[some], rows)
    else:
        for start in range(cells.start, cells.stop, rows):
            yield matrix[start : min(start + rows, cells.stop)]


def _by_genes(matrix: Any) -> Any:
    """Return a matrix of columns in a file; raise MemoryError if it does not fit into memory."""
    n_values = int(matrix.group["indptr"][-1])
    if 24 * n_values > (free := free_memory()):  # the matrix, and its copy in the order of rows
        raise MemoryError(
            f"The counts are stored gene by gene (CSC), so all {n_values:,} must be in memory at once, which takes "
            f"{24 * n_values / 2**30:.1f} GiB; {free / 2**30:.1f} are free. Store them cell by cell (CSR) on a machine "
            "with more memory: adata.X = adata.X.tocsr()."
        )
    return matrix


def _computed(matrix: Any, rows: int) -> Iterator[Any]:
    """Yield the rows of a dask array, with each chunk computed once and small chunks combined."""
    down, across = ([0, *np.cumsum(sizes).tolist()] for sizes in matrix.chunks)  # NaN for unknown sizes
    if np.isnan([down[-1], across[-1]]).any():
        raise ValueError("the sizes of its chunks are unknown")
    bounds = [0]
    for start, stop in pairwise(down):
        if start > bounds[-1] and stop - bounds[-1] > rows:
            bounds.append(start)
    for start, stop in pairwise([*bounds, down[-1]]):
        parts = [matrix[start:stop, left:right].compute() for left, right in pairwise(across)]
        if len(parts) == 1:
            yield parts[0]
        else:
            yield sp.hstack(parts, format="csr") if any(map(sp.issparse, parts)) else np.concatenate(parts, axis=1)


def _csr(part: Any, where: str) -> sp.csr_matrix:
    """Return rows as CSR of a dtype that scipy supports, without a copy where possible."""
    if np.ma.isMaskedArray(part):
        if np.ma.is_masked(part):
            raise ValueError(
                f"{where} is a masked array with masked values; expected a number for each cell and gene. Where masked "
                f"values mean no count, fill them: {where} = {where}.filled(0)."
            )
        part = np.asarray(part)
    if part.dtype.kind not in NUMBERS:
        raise TypeError(_not_numbers(part, where))
    if sp.issparse(part):
        part = _sound(part, where)
    narrower = {2: np.float32, 4: np.float32}.get(part.dtype.itemsize, np.float64)  # scipy lacks float16
    native = np.dtype(narrower) if part.dtype.kind == "f" else part.dtype.newbyteorder("=")
    return sp.csr_matrix(part if part.dtype == native else part.astype(native))


def _sound(matrix: Any, where: str) -> Any:
    """Return a sparse matrix without values beyond its last row; raise ValueError if indices and shape disagree."""
    if matrix.format not in ("csr", "csc"):
        return matrix.tocsr()
    data, indices, indptr = matrix.data, matrix.indices, matrix.indptr
    major, minor = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
    consistent = len(indptr) == major + 1 and indptr[0] == 0 and (indptr[1:] >= indptr[:-1]).all()
    n_stored = int(indptr[-1])
    consistent = consistent and n_stored <= min(len(data), len(indices))
    if not consistent or (n_stored and not (indices[:n_stored].min() >= 0 and indices[:n_stored].max() < minor)):
        raise ValueError(
            f"{where} is a damaged sparse matrix; expected indices within its shape {matrix.shape}. Read or create the "
            "matrix again."
        )
    if n_stored == len(data) == len(indices):
        return matrix
    return type(matrix)((data[:n_stored], indices[:n_stored], indptr), shape=matrix.shape)


def _not_numbers(part: Any, where: str) -> str:
    """Return the error message for rows whose dtype is not numeric."""
    kind, cure = part.dtype.kind, f"{where} = {where}.astype('float32')"
    if kind == "c":
        return f"{where} has complex numbers (dtype {part.dtype}); expected real numbers: {where} = {where}.real."
    if kind == "O":
        values = part.data if sp.issparse(part) else part.ravel()
        strange = next((value for value in values if not isinstance(value, Real)), None)
        found = "" if strange is None else f" (such as {strange!r}, which is not a number)"
        return (
            f"{where} has dtype object, like a table with columns of several types{found}; expected numbers. Convert "
            f"it: {cure}."
        )
    if kind in "SUT":
        return f"{where} has text (dtype {part.dtype}); expected numbers. If all text is numeric, convert it: {cure}."
    return f"{where} has dtype {part.dtype}; expected one number for each cell and gene."
