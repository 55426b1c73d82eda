"""Loading of minibatches onto the model's device, and sizes of chunks.

A GPU computes a step while Python prepares the next, unless Python reads a value from the GPU. Nothing here reads one
within an epoch: numbers that Python needs, such as the number of nonzero values of a minibatch, come from the CPU.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch

from sccvae.data.counts import ALONG_CELLS, Counts, Minibatch
from sccvae.data.gpu.streaming import Cells, StreamedCounts, dense_minibatch

_MOVED = 2**16  # cells that are moved to a device at once
TOGETHER = 32  # cells; sizes of chunks are multiples of it, because products of other numbers of rows round differently

Minibatches = Callable[[list[np.ndarray]], Iterator[Minibatch]]


def minibatches_on(device: torch.device, counts: Counts) -> Minibatches:
    """Return a function from groups of cells to minibatches on `device`.

    Counts of at most half of the free memory are copied to the device once (`DeviceCounts`). Otherwise each minibatch
    is copied while the device computes the one before (`StreamedCounts`).
    """
    if device.type == "cpu":
        return counts.minibatches
    if device.type == "cuda" and _bytes(counts) > torch.cuda.mem_get_info(device)[0] / 2:
        return StreamedCounts(counts, device)
    return DeviceCounts(counts, device)


def loading_of(minibatches: Callable) -> str:
    """Return where the minibatches of a run come from: "resident" on a GPU, "streamed" to it; else an empty text."""
    owner = getattr(minibatches, "__self__", minibatches)
    return getattr(owner, "loading", "") if getattr(owner, "device", torch.device("cpu")).type == "cuda" else ""


def chunk_of(n_genes: int, device: torch.device) -> int:
    """Return the number of cells to decode at once: about half a million values, for speed at little memory.

    On a GPU the number is four times as large, because smaller chunks finish before Python submits the next.
    """
    return max(16, 2 ** (19 if device.type == "cpu" else 21) // n_genes)


def chunks(n_cells: int, size: int) -> Iterator[slice]:
    """Yield the rows of chunks of about `size` cells, rounded down to a multiple of `TOGETHER`, except the last.

    Results for a cell therefore do not depend on `size`.
    """
    ends = [*range(0, n_cells, max(size // TOGETHER, 1) * TOGETHER), n_cells]
    if len(ends) > 2 and ends[-1] - ends[-2] < TOGETHER:
        del ends[-2]
    return (slice(*some) for some in pairwise(ends) if n_cells)


class DeviceCounts:
    """Counts on a device, and minibatches gathered there, with the values of `Counts.minibatches` but `full`.

    The operations on a minibatch therefore depend on its number of cells alone, and can be recorded (`training.steps`).
    """

    loading = "resident"

    def __init__(self, counts: Counts, device: torch.device):
        self.device = device
        self.all = _moved(counts, device)
        longest = int(np.diff(counts.stored.indptr).max(initial=0))
        self.position, self.gene = (torch.arange(n, device=device) for n in (longest, counts.n_genes))

    def cells(self, groups: list[np.ndarray]) -> Iterator[Cells]:
        """Yield the numbers of the cells of each group, copied to the device at once."""
        for some in torch.from_numpy(np.concatenate(groups)).to(self.device).split(list(map(len, groups))):
            yield Cells(some, (len(some),))

    def minibatch(self, numbers: Cells) -> Minibatch:
        """Return the cells with these numbers, in that order."""
        cells = numbers.data
        starts, ends = self.all.indptr[cells, None], self.all.indptr[cells + 1, None]
        at = starts + self.position
        stored = at < ends
        at = torch.where(stored, at, 0)
        genes = torch.where(stored, self.all.genes[at].long(), self.all.n_genes)  # an extra column for the rest
        counts = self.all.values.new_zeros(len(cells), self.all.n_genes + 1).scatter_(1, genes, self.all.values[at])
        along = {name: getattr(self.all, name)[cells] for name in ALONG_CELLS}
        return dense_minibatch(counts[:, :-1].flatten(), self.gene, along)

    def __call__(self, groups: list[np.ndarray]) -> Iterator[Minibatch]:
        """Yield a minibatch for each group of cells."""
        return map(self.minibatch, self.cells(groups))


def _moved(counts: Counts, device: torch.device) -> Minibatch:
    """Return all cells on a device, moved in parts: in memory they would take 8 bytes for each value."""
    found, n_stored = counts.minibatch(slice(0, 0)).to(device), len(counts.stored.values)
    genes, values = (like.new_empty(n_stored) for like in (found.genes, found.values))
    for start in range(0, len(counts), _MOVED):
        cells = slice(start, min(start + _MOVED, len(counts)))
        part, at = counts.minibatch(cells), slice(*counts.stored.indptr[[cells.start, cells.stop]].tolist())
        genes[at], values[at] = part.genes.to(device), part.values.to(device)
    along = {name: torch.from_numpy(getattr(counts, name).copy()).to(device) for name in ALONG_CELLS}
    indptr = torch.from_numpy(counts.stored.indptr.copy()).to(device)
    return found._replace(indptr=indptr, genes=genes, values=values, **along)  # type: ignore[arg-type]


def _bytes(counts: Counts) -> int:
    rows = counts.stored
    return (4 + 4) * len(rows.values) + rows.indptr.nbytes + counts.codes.nbytes + counts.continuous.nbytes
