"""Compact CSR storage: uint8 counts, with larger counts in a side table.

scipy's CSR takes 8 bytes per nonzero value. `PackedRows` takes 3 bytes for counts in fewer than 65,537 genes: the few
counts of 255 or more are stored in a separate array. For arithmetic, a few cells at a time are converted to float32 and
int32.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.sparse as sp
from scipy.special import gammaln

from sccvae.data.stored_arrays import StoredArray

_LOG_FACTORIALS = gammaln(np.arange(2**16) + 1.0)
BLOCK = 2**16  # nonzero values processed at once: temporary arrays fit in a cache
BEYOND = 255  # marks a count of 255 or more, which is stored in `large`
_MOST = 4  # a count in `large` takes 12 bytes more, so float32 is smaller if a quarter of the counts are there

_Function = Callable[[np.ndarray], np.ndarray]  # elementwise, of float32 values


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Compact CSR rows with sorted columns, without duplicates and without zeros."""

    indptr: np.ndarray  # (cells + 1,) int64: start of each cell's values
    genes: np.ndarray | StoredArray  # (nonzero,) uint16 for up to 65,536 genes, else int32
    values: np.ndarray | StoredArray  # (nonzero,) uint8 or float32
    large_at: np.ndarray  # (large,) int64, sorted: positions of BEYOND in uint8 `values`
    large: np.ndarray  # (large,) float32: the counts at these positions
    n_genes: int

    @classmethod
    def of(cls, matrix: sp.csr_matrix, *, counts: bool = True, narrow: bool | None = None) -> Self:
        """Copy a CSR matrix with sorted rows, without duplicates and zeros; real values unless `counts`.

        `narrow` is whether counts are uint8; None takes what is smaller.
        """
        n_genes, given = matrix.shape[1], matrix.data
        genes = matrix.indices.astype(dtype_of_genes(n_genes))
        large_at = _at_least(BEYOND, given) if counts else np.zeros(0, np.int64)
        large = given[large_at].astype(np.float32)
        if counts and (len(large) * _MOST <= len(given) if narrow is None else narrow):
            values = given.astype(np.uint8)
            values[large_at] = BEYOND
        else:
            values, large_at, large = given.astype(np.float32), large_at[:0], large[:0]
        return cls(matrix.indptr.astype(np.int64), genes, values, large_at, large, n_genes)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Concatenate parts along the cells."""
        if len(parts) == 1:
            return parts[0]
        if len({part.values.dtype for part in parts}) > 1:
            parts = [part.wide() for part in parts]
        starts = np.cumsum([0, *(part.indptr[-1] for part in parts)])[:-1]
        indptr = [part.indptr[1:] + start for part, start in zip(parts, starts, strict=True)]
        large_at = [part.large_at + start for part, start in zip(parts, starts, strict=True)]
        genes, values, large = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("genes", "values", "large")
        )
        return cls(np.concatenate([[0], *indptr]), genes, values, np.concatenate(large_at), large, parts[0].n_genes)

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def in_file(self) -> bool:
        """Return whether the values are in a file, not in memory."""
        return isinstance(self.values, StoredArray)

    @property
    def nbytes(self) -> int:
        """Return the size of all arrays in bytes, in memory or in files."""
        return sum(a.nbytes for a in (self.indptr, self.genes, self.values, self.large_at, self.large))

    def same_as(self, other: Self) -> bool:
        """Return whether the other rows have equal values, in any dtype."""
        if self.n_genes != other.n_genes or not np.array_equal(self.indptr, other.indptr):
            return False
        starts = range(0, len(self.values), BLOCK)
        for start, stop in ((start, min(start + BLOCK, len(self.values))) for start in starts):
            if not np.array_equal(self.genes[start:stop], other.genes[start:stop]):
                return False
            if not np.array_equal(self._wide_values(start, stop), other._wide_values(start, stop)):
                return False
        return True

    def take(self, cells: np.ndarray | slice) -> Self:
        """Return the cells numbered `cells`, in that order, with unchanged dtypes."""
        return self._take(cells, self.genes.dtype, self.values.dtype)

    def wide(self, cells: np.ndarray | slice = slice(None)) -> Self:
        """Return the cells numbered `cells`, in that order, as new int32 and float32 arrays."""
        return self._take(cells, np.dtype(np.int32), np.dtype(np.float32))

    def csr(self, cells: np.ndarray | slice = slice(None)) -> sp.csr_matrix:
        """Return the cells numbered `cells`, in that order, as a scipy matrix."""
        rows = self.wide(cells)
        return sp.csr_matrix((rows.values, rows.genes, rows.indptr), shape=(len(rows), self.n_genes))

    def row_sums(self, function: _Function) -> np.ndarray:
        """Sum a function of the nonzero values over each cell, (cells,) float64."""
        sums = np.zeros(len(self))
        for first, last in _blocks(self.indptr):
            starts = self.indptr[first : last + 1]
            rows = np.repeat(np.arange(last - first), np.diff(starts))
            sums[first:last] = np.bincount(rows, function(self._wide_values(*starts[[0, -1]])), last - first)
        return sums

    def gene_sums(self, function: _Function) -> np.ndarray:
        """Sum a function of the nonzero values over each gene, (genes,) float64."""
        sums = np.zeros(self.n_genes)
        for start in range(0, len(self.values), BLOCK):
            stop = min(start + BLOCK, len(self.values))
            sums += np.bincount(self.genes[start:stop], function(self._wide_values(start, stop)), self.n_genes)
        return sums

    def _take(self, cells: np.ndarray | slice, genes: np.dtype, values: np.dtype) -> Self:
        starts = self.indptr[:-1][cells]
        indptr = np.concatenate([[0], np.cumsum(self.indptr[1:][cells] - starts)])
        taken_genes, taken_values = np.empty(indptr[-1], genes), np.empty(indptr[-1], values)
        large_at, large = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        together = isinstance(cells, slice) and cells.step in (None, 1)
        for here, there in _side_by_side(starts, indptr) if together else _scattered(starts, indptr):
            taken_genes[here], taken_values[here] = self.genes[there], (found := self.values[there])
            at, counts = self._large_in(there, found)
            if values == self.values.dtype:
                large_at.append(here.start + at)
                large.append(counts)
            else:
                taken_values[here.start + at] = counts
        at, counts = np.concatenate(large_at), np.concatenate(large)
        return type(self)(indptr, taken_genes, taken_values, at, counts, self.n_genes)

    def _wide_values(self, start: int, stop: int) -> np.ndarray:
        values = self.values[start:stop].astype(np.float32)
        at, counts = self._large_in(slice(start, stop), values)
        values[at] = counts
        return values

    def _large_in(self, stored: slice | np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of the nonzero values `values`, at positions `stored`, are in `large`, and the counts there."""
        if isinstance(stored, slice):
            these = slice(*np.searchsorted(self.large_at, [stored.start, stored.stop]))
            return self.large_at[these] - stored.start, self.large[these]
        if len(self.large) == 0:
            return self.large_at, self.large
        at = np.flatnonzero(values == BEYOND)
        return at, self.large[np.searchsorted(self.large_at, stored[at])]


def dtype_of_genes(n_genes: int) -> np.dtype:
    """Return the dtype of numbers of genes."""
    return np.dtype(np.uint16 if n_genes <= 2**16 else np.int32)


def log_factorials(counts: np.ndarray) -> np.ndarray:
    """Compute log(x!) of whole numbers x."""
    in_table = counts.max(initial=0) < len(_LOG_FACTORIALS)
    return _LOG_FACTORIALS[counts.astype(np.intp)] if in_table else gammaln(counts.astype(np.float64) + 1)


def _at_least(bound: int, values: np.ndarray) -> np.ndarray:
    """Return the positions of values of at least `bound`, in order."""
    starts = range(0, len(values), BLOCK)
    found = [np.flatnonzero(values[start : start + BLOCK] >= bound) + start for start in starts]
    return np.concatenate([np.zeros(0, np.int64), *found])


def _blocks(indptr: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of runs of cells with at most BLOCK nonzero values each, or of one cell with more."""
    first, n_cells = 0, len(indptr) - 1
    while first < n_cells:
        last = max(int(np.searchsorted(indptr, indptr[first] + BLOCK, side="right")) - 1, first + 1)
        yield first, last
        first = last


def _side_by_side(starts: np.ndarray, indptr: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Yield (target, source) positions of the values of consecutive cells."""
    if len(starts):
        yield slice(0, indptr[-1]), slice(starts[0], starts[0] + indptr[-1])


def _scattered(starts: np.ndarray, indptr: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (target, source) positions of the values of cells in any order, some cells at a time."""
    for first, last in _blocks(indptr):
        here = slice(*indptr[[first, last]])
        shift = np.repeat(starts[first:last] - indptr[first:last], np.diff(indptr[first : last + 1]))
        yield here, shift + np.arange(here.start, here.stop)
