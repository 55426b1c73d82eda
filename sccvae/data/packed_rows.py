"""The values of cells in compressed rows, in as few bytes as hold them: the one place that knows how narrow these are.

scipy's CSR takes 8 bytes for each stored value. Here it is 3 for counts in fewer than 65,537 genes: the few counts that
no byte holds stand beside the others. What arithmetic is done on is widened again, a few cells at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.sparse as sp
from scipy.special import gammaln

_LOG_FACTORIALS = gammaln(np.arange(2**16) + 1.0)
BLOCK = 2**16  # stored values looked at in one go: their temporaries stay in a cache
BEYOND = 255  # what stands for a count that has its place in `large`: itself, or more
_MOST = 4  # one such count takes 12 bytes more, so a quarter of them make float32 the narrower form

_Function = Callable[[np.ndarray], np.ndarray]  # of float32 values, one by one


@dataclass(frozen=True, eq=False)
class Rows:
    """Compressed rows; the columns of a row are sorted, none comes twice, and no value is 0."""

    indptr: np.ndarray  # (cells + 1,) int64: where each cell's values begin
    genes: np.ndarray  # (stored,) uint16 where that is enough, else int32
    values: np.ndarray  # (stored,) uint8 or float32
    large_at: np.ndarray  # (large,) int64, sorted: where `values` is uint8 and holds BEYOND
    large: np.ndarray  # (large,) float32: the counts there
    n_genes: int

    @classmethod
    def of(cls, matrix: sp.csr_matrix, *, counts: bool = True) -> Self:
        """A copy of a CSR matrix with sorted rows, without duplicates and zeros; real values unless `counts`."""
        n_genes, given = matrix.shape[1], matrix.data
        genes = matrix.indices.astype(np.uint16 if n_genes <= 2**16 else np.int32)
        large_at = _at_least(BEYOND, given) if counts else np.zeros(0, np.int64)
        large = given[large_at].astype(np.float32)
        if counts and len(large) * _MOST <= len(given):
            values = given.astype(np.uint8)
            values[large_at] = BEYOND
        else:
            values, large_at, large = given.astype(np.float32), large_at[:0], large[:0]
        return cls(matrix.indptr.astype(np.int64), genes, values, large_at, large, n_genes)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All of them, one beneath the other."""
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

    def same_as(self, other: Self) -> bool:
        """Whether the other rows hold the same values, however narrow."""
        if self.n_genes != other.n_genes or not np.array_equal(self.indptr, other.indptr):
            return False
        if not np.array_equal(self.genes, other.genes):
            return False
        starts = range(0, len(self.values), BLOCK)
        ends = [(start, min(start + BLOCK, len(self.values))) for start in starts]
        return all(np.array_equal(self._wide_values(*at), other._wide_values(*at)) for at in ends)

    def take(self, cells: np.ndarray | slice) -> Self:
        """The cells numbered `cells`, in that order, as narrow as here."""
        return self._take(cells, self.genes.dtype, self.values.dtype)

    def wide(self, cells: np.ndarray | slice = slice(None)) -> Self:
        """The cells numbered `cells`, in that order, as int32 and float32: new arrays."""
        return self._take(cells, np.dtype(np.int32), np.dtype(np.float32))

    def csr(self, cells: np.ndarray | slice = slice(None)) -> sp.csr_matrix:
        """The same as a scipy matrix."""
        rows = self.wide(cells)
        return sp.csr_matrix((rows.values, rows.genes, rows.indptr), shape=(len(rows), self.n_genes))

    def row_sums(self, function: _Function) -> np.ndarray:
        """(cells,) float64: sum over each cell's stored values of a function of them."""
        sums = np.zeros(len(self))
        for first, last in _blocks(self.indptr):
            starts = self.indptr[first : last + 1]
            rows = np.repeat(np.arange(last - first), np.diff(starts))
            sums[first:last] = np.bincount(rows, function(self._wide_values(*starts[[0, -1]])), last - first)
        return sums

    def gene_sums(self, function: _Function) -> np.ndarray:
        """(genes,) float64: the same over each gene's."""
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
        """Which of the stored values, `values`, are only in `large`, and what they are there."""
        if isinstance(stored, slice):
            these = slice(*np.searchsorted(self.large_at, [stored.start, stored.stop]))
            return self.large_at[these] - stored.start, self.large[these]
        if len(self.large) == 0:
            return self.large_at, self.large
        at = np.flatnonzero(values == BEYOND)
        return at, self.large[np.searchsorted(self.large_at, stored[at])]


def log_factorials(counts: np.ndarray) -> np.ndarray:
    """log(x!) of whole numbers x."""
    in_table = counts.max(initial=0) < len(_LOG_FACTORIALS)
    return _LOG_FACTORIALS[counts.astype(np.intp)] if in_table else gammaln(counts.astype(np.float64) + 1)


def _at_least(bound: int, values: np.ndarray) -> np.ndarray:
    """Where values are not smaller than a bound, in order."""
    starts = range(0, len(values), BLOCK)
    found = [np.flatnonzero(values[start : start + BLOCK] >= bound) + start for start in starts]
    return np.concatenate([np.zeros(0, np.int64), *found])


def _blocks(indptr: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last) of runs of cells with at most BLOCK stored values each, or of one cell with more."""
    first, n_cells = 0, len(indptr) - 1
    while first < n_cells:
        last = max(int(np.searchsorted(indptr, indptr[first] + BLOCK, side="right")) - 1, first + 1)
        yield first, last
        first = last


def _side_by_side(starts: np.ndarray, indptr: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """From where to where the values of cells go that follow each other: (to, from)."""
    if len(starts):
        yield slice(0, indptr[-1]), slice(starts[0], starts[0] + indptr[-1])


def _scattered(starts: np.ndarray, indptr: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The same for cells in any order, some at a time."""
    for first, last in _blocks(indptr):
        here = slice(*indptr[[first, last]])
        shift = np.repeat(starts[first:last] - indptr[first:last], np.diff(indptr[first : last + 1]))
        yield here, shift + np.arange(here.start, here.stop)
