"""Counts, in memory or in a file, and minibatches for training.

`Counts` is independent of AnnData (see `schema`): an immutable sparse matrix with library sizes and covariates of each
cell. A `Minibatch` is sparse; dense (cells, genes) arrays are made of at most one minibatch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from sccvae.data.packed_rows import PackedRows, log_factorials
from sccvae.data.stored_arrays import ahead

ALONG_CELLS = ("log_total", "log_size", "log_factorial", "codes", "continuous", "labels")
_GATHERED = 8  # minibatches gathered at once: fewer calls, with little memory
# Of counts in a file: bytes of neighbouring cells read at once; most bytes and cells that minibatches are mixed from.
_BLOCK_BYTES, _WINDOW_BYTES, _WINDOW_CELLS = 2**16, 2**25, 2**15


class Minibatch(NamedTuple):
    """Cells of one training step: nonzero values in CSR form, library sizes and covariates."""

    indptr: torch.Tensor  # (cells + 1,) int64, start of each cell's values
    genes: torch.Tensor  # (nonzero,) int32
    values: torch.Tensor  # (nonzero,) float32
    n_genes: int
    log_total: torch.Tensor  # (cells,) log of the cell's total count
    log_size: torch.Tensor  # (cells,) log of the observed library size: total count or scaled size factor
    log_factorial: torch.Tensor  # (cells,) sum over genes of log(x!), a constant of the data
    codes: torch.Tensor  # (cells, 1 + categorical covariates) int64; column 0 is the batch
    continuous: torch.Tensor  # (cells, continuous covariates) float32, standardised
    labels: torch.Tensor  # (cells,) int64 number of the label; -1 for none
    copies: int = 1  # adjacent copies of each cell
    full: bool = False  # whether zeros are stored, too, so that values has all entries in order

    @classmethod
    def of_covariates(cls, codes: np.ndarray, n_continuous: int, n_genes: int) -> "Minibatch":
        """Return cells without counts: only covariates, with the continuous ones at their means (0)."""
        n, none = len(codes), torch.zeros(0)
        return cls(
            indptr=torch.zeros(n + 1, dtype=torch.int64),
            genes=none.int(),
            values=none,
            n_genes=n_genes,
            log_total=torch.zeros(n),
            log_size=torch.zeros(n),
            log_factorial=torch.zeros(n),
            codes=torch.from_numpy(codes),
            continuous=torch.zeros(n, n_continuous),
            labels=torch.full((n,), -1),
        )

    @property
    def n_cells(self) -> int:
        """Return the number of cells."""
        return len(self.indptr) - 1

    def part(self, first: int, last: int) -> "Minibatch":
        """Return the cells from `first` to `last`, exclusive, as views."""
        start, stop = int(self.indptr[first]), int(self.indptr[last])
        along = {name: getattr(self, name)[first:last] for name in ALONG_CELLS}
        indptr = self.indptr[first : last + 1] - start
        return Minibatch(indptr, self.genes[start:stop], self.values[start:stop], self.n_genes, **along)

    def take(self, cells: torch.Tensor, n_stored: int | None = None) -> "Minibatch":
        """Return the cells numbered `cells`, in that order; repeats are allowed.

        `n_stored` is the number of values of these cells; None computes it, which synchronises a GPU.
        """
        starts, lengths = self.indptr[cells], self.indptr[cells + 1] - self.indptr[cells]
        indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        shift = torch.repeat_interleave(starts - indptr[:-1], lengths, output_size=n_stored)
        stored = torch.arange(len(shift), device=cells.device) + shift
        along = {name: getattr(self, name)[cells] for name in ALONG_CELLS}
        return Minibatch(indptr, self.genes[stored], self.values[stored], self.n_genes, **along, full=self.full)

    def repeated(self, times: int) -> "Minibatch":
        """Repeat every cell `times` times, with adjacent copies."""
        cells = torch.arange(self.n_cells, device=self.indptr.device)
        if times == 1:
            return self
        return self.take(cells.repeat_interleave(times), times * len(self.genes))._replace(copies=times)

    @property
    def rows(self) -> torch.Tensor:
        """Return the row of every nonzero value, (nonzero,)."""
        cells, lengths = torch.arange(self.n_cells, device=self.indptr.device), self.indptr.diff()
        return torch.repeat_interleave(cells, lengths, output_size=len(self.genes))

    def dense(self) -> torch.Tensor:
        """Return the minibatch as a dense array, (cells, genes)."""
        if self.full:
            return self.values.view(self.n_cells, self.n_genes)
        x = self.values.new_zeros(self.n_cells, self.n_genes)
        x[self.rows, self.genes.long()] = self.values
        return x

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "Minibatch":
        """Move the minibatch to `device`, with its floating-point arrays as `dtype`."""
        moved = {
            name: field.to(device, dtype if field.is_floating_point() else None, non_blocking=True)
            for name, field in self._asdict().items()
            if isinstance(field, torch.Tensor)
        }
        return self._replace(**moved)  # type: ignore[arg-type]

    def with_level(self, column: int, code: int) -> "Minibatch":
        """Return the cells with one of the codes, that of the batch (0) or of a covariate, replaced by `code`."""
        codes = self.codes.clone()
        codes[:, column] = code
        return self._replace(codes=codes)


@dataclass(frozen=True, eq=False)
class Counts:
    """Checked values of all cells, sparse and read-only, with library sizes and covariates.

    Attributes
    ----------
    stored
        The values, (cells, genes), in compact storage.
    codes
        (cells, 1 + categorical covariates) int64; column 0 is the batch.
    n_levels
        Number of categories of each column of `codes`.
    continuous
        (cells, continuous covariates) float32, standardised.
    log_size
        (cells,) float32, log of the observed library size: the total count unless size factors are given.
    log_total, log_factorial
        (cells,) float32: log total count; sum over genes of log(x!).
    labels
        (cells,) int64, number of each cell's label; -1 for a cell without one.
    missing
        (genes,) bool, genes that were not measured, with zeros in their place; None if there are none.
    """

    stored: PackedRows
    codes: np.ndarray
    n_levels: tuple[int, ...]
    continuous: np.ndarray
    log_size: np.ndarray
    log_total: np.ndarray
    log_factorial: np.ndarray
    labels: np.ndarray
    missing: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        stored: PackedRows,
        *,
        codes: np.ndarray | None = None,
        n_levels: tuple[int, ...] = (1,),
        continuous: np.ndarray | None = None,
        log_size: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        nonnegative: bool = True,
    ) -> "Counts":
        """Create `Counts` from rows, without a copy.

        `nonnegative=False` is for real-valued data, which have no totals and no factorials.
        """
        n = len(stored)
        log_total, log_factorial = np.zeros((2, n), dtype=np.float32)
        if nonnegative:
            log_total = np.log(np.maximum(stored.row_sums(lambda x: x), 1e-8)).astype(np.float32)
            log_factorial = stored.row_sums(log_factorials).astype(np.float32)
        counts = cls(
            stored=stored,
            codes=np.zeros((n, 1), dtype=np.int64) if codes is None else codes,
            n_levels=n_levels,
            continuous=np.zeros((n, 0), dtype=np.float32) if continuous is None else continuous,
            log_size=log_total if log_size is None else log_size,
            log_total=log_total,
            log_factorial=log_factorial,
            labels=np.full(n, -1) if labels is None else labels,
        )
        for array in [getattr(owner, f.name) for owner in (counts, stored) for f in fields(owner)]:
            if isinstance(array, np.ndarray):
                array.setflags(write=False)
        return counts

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def n_genes(self) -> int:
        """Return the number of genes."""
        return self.stored.n_genes

    @property
    def matrix(self) -> sp.csr_matrix:
        """Return all values as a new float32 CSR matrix, with three times the memory of `stored`."""
        return self.stored.csr()

    def __getitem__(self, cells: np.ndarray) -> "Counts":
        """Return the cells numbered `cells`, in that order."""
        along = {name: getattr(self, name)[cells] for name in ALONG_CELLS}
        return replace(self, stored=self.stored.take(cells), **along)

    def gene_means(self, power: int = 1) -> np.ndarray:
        """Compute the mean over all cells of the values to a power, (genes,) float64."""
        return self.stored.gene_sums(lambda x: x.astype(np.float64) ** power) / len(self)

    def minibatch(self, cells: np.ndarray | slice) -> Minibatch:
        """Return the cells numbered `cells`, in that order, as tensors on the CPU."""
        part = self.stored.wide(cells)
        along = {name: getattr(self, name)[cells] for name in ALONG_CELLS}
        arrays = {"indptr": part.indptr, "genes": part.genes, "values": part.values, **along}
        # Slices are read-only views, and torch has no read-only tensors.
        tensors = {name: torch.from_numpy(a if a.flags.writeable else a.copy()) for name, a in arrays.items()}
        return Minibatch(n_genes=self.n_genes, **tensors)  # type: ignore[arg-type]

    def shuffled(self, cells: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Shuffle `cells` into minibatches of nearly equal size; of counts in a file within windows of blocks."""
        if not self.stored.in_file:
            return shuffled(cells, batch_size, rng)
        per_block, per_window = self._block_and_window()
        blocks = np.array_split(cells, -(-len(cells) // per_block))
        cells = np.concatenate([blocks[k] for k in rng.permutation(len(blocks))])
        windows = np.array_split(cells, -(-len(cells) // per_window))
        mixed = np.concatenate([rng.permutation(window) for window in windows])
        return np.array_split(mixed, -(-len(cells) // batch_size))

    def _block_and_window(self) -> tuple[int, int]:
        """Return the numbers of cells that are read side by side, and that are mixed."""
        bytes_per_cell = max(self.stored.nbytes / max(len(self), 1), 1.0)
        window = int(min(_WINDOW_BYTES / bytes_per_cell, _WINDOW_CELLS))
        return max(int(_BLOCK_BYTES / bytes_per_cell), 1), max(window, 1)

    def minibatches(self, groups: list[np.ndarray]) -> Iterator[Minibatch]:
        """Yield a minibatch for each group of cells; several are gathered at once, and files are read ahead."""
        for counts, some in self._near(groups):
            for start in range(0, len(some), _GATHERED):
                together = some[start : start + _GATHERED]
                block, first = counts.minibatch(np.concatenate(together)), 0
                for cells in together:
                    yield block.part(first, first + len(cells))
                    first += len(cells)

    def _near(self, groups: list[np.ndarray]) -> Iterator[tuple["Counts", list[np.ndarray]]]:
        """Yield counts in memory, and the groups of their cells."""
        if not self.stored.in_file:
            yield self, groups
            return
        n_groups = max(self._block_and_window()[1] // max(len(groups[0]), 1), 1) if groups else 1
        windows = [groups[start : start + n_groups] for start in range(0, len(groups), n_groups)]
        yield from ahead(map(self._read, windows))

    def _read(self, groups: list[np.ndarray]) -> tuple["Counts", list[np.ndarray]]:
        """Read the cells of some groups, in the order of the file; return them, and the groups as their numbers."""
        cells, where = np.unique(np.concatenate(groups), return_inverse=True)
        return self[cells], np.split(where.reshape(-1), np.cumsum([len(group) for group in groups])[:-1])

    def chunks(self, size: int, cells: np.ndarray | None = None) -> Iterator[tuple[slice, Minibatch]]:
        """Yield (rows, minibatch) of `size` cells at a time, for all cells in order, or for numbers `cells`.

        `rows` are positions in `cells` if given.
        """
        n = len(self) if cells is None else len(cells)
        for start in range(0, n, size):
            rows = slice(start, min(start + size, n))
            yield rows, self.minibatch(rows if cells is None else cells[rows])

    def library_prior(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute mean and variance of the log library sizes within each batch, 2 x (batches,) float32.

        A batch without two different library sizes gets the variance over all cells.
        """
        batch, log_size = self.codes[:, 0], self.log_size.astype(np.float64)
        n = np.maximum(np.bincount(batch, minlength=self.n_levels[0]), 1)
        mean = np.bincount(batch, log_size, len(n)) / n
        variance = np.bincount(batch, (log_size - mean[batch]) ** 2, len(n)) / n
        overall = max(float(log_size.var()), 1e-2)
        return mean.astype(np.float32), np.where(variance < 1e-4, overall, variance).astype(np.float32)


def split(batch: np.ndarray, train_size: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Split cells into training and validation cells: 2 arrays of sorted cell numbers.

    Every batch contributes the same fraction; all cells of a batch too small to split are training cells.

    Parameters
    ----------
    batch
        (cells,) batch code of every cell.
    train_size
        Fraction of the cells for training, in (0, 1].
    """
    if not 0 < train_size <= 1:
        raise ValueError(f"train_size is {train_size}; expected a fraction of the cells in (0, 1], such as 0.9.")
    held = []
    for code in np.unique(batch):
        cells = np.flatnonzero(batch == code)
        n_held = min(round(len(cells) * (1 - train_size)), len(cells) - 1)
        held.append(rng.permutation(cells)[:n_held])
    validation = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(batch)), validation), validation


def shuffled(cells: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffle `cells` into minibatches of nearly equal size: cells of a short minibatch would have a larger weight."""
    return np.array_split(rng.permutation(cells), -(-len(cells) // batch_size))
