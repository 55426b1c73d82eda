"""A matrix as CSR blocks of whole rows, wherever it is stored: in memory, in a file, or not computed yet.

Files (`anndata.io.sparse_dataset`, datasets of h5py and zarr, an AnnData that is backed) and dask arrays are told by
what they can do, so that none of their packages is needed here.
"""

from collections.abc import Iterator
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
import scipy.sparse as sp

NUMBERS = "biuf"  # kinds of dtype that can hold counts


def blocks_of(matrix: Any, where: str, shape: tuple[int, int], n_bytes: int) -> Iterator[tuple[int, sp.csr_matrix]]:
    """All rows in order: (first row, block). One block when the matrix is sparse in memory.

    Parameters
    ----------
    matrix, where
        What holds the values, and its name in messages.
    shape
        (cells, genes) that it must have.
    n_bytes
        Size of a block read from a dense matrix or a file, as if it held float64.

    Raises
    ------
    TypeError, ValueError
        It holds no numbers, or cannot be read.
    """
    start, parts = 0, _parts(matrix, shape[0], max(1, n_bytes // (8 * shape[1])))
    while start < shape[0]:
        try:
            part: Any = next(parts, None)
            if not (sp.issparse(part) or np.ma.isMaskedArray(part)):
                part = np.asarray(part)
        except MemoryError:
            raise
        except Exception as error:  # whatever a file or a graph of tasks may raise
            raise ValueError(
                f"{where}, a {type(matrix).__name__}, cannot be read ({type(error).__name__}: {error}). Read it into "
                "memory first: adata = adata.to_memory(). Is the file that it lies in still there and open?"
            ) from error
        if part.ndim != 2 or part.shape[1] != shape[1] or not 0 < part.shape[0] <= shape[0] - start:
            raise ValueError(
                f"{where}, a {type(matrix).__name__}, should have shape {shape}, but gives rows of shape {part.shape}. "
                "Read it into memory first: adata = adata.to_memory()."
            )
        yield start, _csr(part, where)
        start += part.shape[0]


def rows_of(matrix: Any, where: str, cells: np.ndarray) -> sp.csr_matrix:
    """Some rows, numbered in ascending order."""
    part = matrix.oindex[cells] if hasattr(matrix, "oindex") else matrix[cells]  # zarr's [] is not by rows
    if hasattr(part, "compute"):
        part = part.compute()
    return _csr(part if sp.issparse(part) else np.asarray(part), where)


def _parts(matrix: Any, n_cells: int, rows: int) -> Iterator[Any]:
    """Whole rows in order, as they come: sparse matrices or arrays."""
    if sp.issparse(matrix):
        yield matrix
    elif hasattr(matrix, "to_memory") and getattr(matrix, "format", None) == "csc":
        yield matrix.to_memory()  # each block of rows would read the whole file
    elif hasattr(matrix, "compute") and getattr(matrix, "chunks", None) is not None:
        yield from _computed(matrix, rows)
    else:
        for start in range(0, n_cells, rows):
            yield matrix[start : min(start + rows, n_cells)]


def _computed(matrix: Any, rows: int) -> Iterator[Any]:
    """The rows of a dask array, each of its chunks computed once, small ones together."""
    down, across = ([0, *np.cumsum(sizes).tolist()] for sizes in matrix.chunks)  # NaN where dask knows no sizes
    if np.isnan([down[-1], across[-1]]).any():
        raise ValueError("the sizes of its chunks are not known")
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
    """Rows as CSR, of a dtype that scipy can work with; memory is shared where that can be."""
    if np.ma.isMaskedArray(part):
        if np.ma.is_masked(part):
            raise ValueError(
                f"{where} is a masked array with masked values; a count is a number. Fill them in, where they stand "
                f"for none: {where} = {where}.filled(0)."
            )
        part = np.asarray(part)
    if part.dtype.kind not in NUMBERS:
        raise TypeError(_not_numbers(part, where))
    if sp.issparse(part):
        part = _sound(part, where)
    narrower = {2: np.float32, 4: np.float32}.get(part.dtype.itemsize, np.float64)  # scipy knows no float16
    native = np.dtype(narrower) if part.dtype.kind == "f" else part.dtype.newbyteorder("=")
    return sp.csr_matrix(part if part.dtype == native else part.astype(native))


def _sound(matrix: Any, where: str) -> Any:
    """A sparse matrix without values beyond its last row. Raises ValueError if its parts do not fit each other."""
    if matrix.format not in ("csr", "csc"):
        return matrix.tocsr()
    data, indices, indptr = matrix.data, matrix.indices, matrix.indptr
    major, minor = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
    whole = len(indptr) == major + 1 and indptr[0] == 0 and (indptr[1:] >= indptr[:-1]).all()
    n_stored = int(indptr[-1])
    whole = whole and n_stored <= min(len(data), len(indices))
    if not whole or (n_stored and not (indices[:n_stored].min() >= 0 and indices[:n_stored].max() < minor)):
        raise ValueError(
            f"{where} is a damaged sparse matrix: its indices do not fit its shape {matrix.shape}. Read or make it "
            "again."
        )
    if n_stored == len(data) == len(indices):
        return matrix
    return type(matrix)((data[:n_stored], indices[:n_stored], indptr), shape=matrix.shape)


def _not_numbers(part: Any, where: str) -> str:
    """What is wrong with rows whose dtype holds no numbers."""
    kind, cure = part.dtype.kind, f"{where} = {where}.astype('float32')"
    if kind == "c":
        return f"{where} holds complex numbers (dtype {part.dtype}); counts are real numbers: {where} = {where}.real."
    if kind == "O":
        values = part.data if sp.issparse(part) else part.ravel()
        strange = next((value for value in values if not isinstance(value, Real)), None)
        found = "" if strange is None else f" It holds {strange!r}, which is no number."
        return (
            f"{where} has dtype object, as a table with columns of several types gives it; expected numbers.{found} "
            f"Convert it: {cure}."
        )
    if kind in "SUT":
        return f"{where} holds text (dtype {part.dtype}); expected numbers. Where all of it reads as numbers: {cure}."
    return f"{where} has dtype {part.dtype}; expected one number for each cell and gene."
