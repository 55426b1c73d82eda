"""Loading of minibatches onto the model's device, and sizes of chunks.

A GPU computes a step while Python prepares the next, unless Python reads a value from the GPU. Nothing here reads one
within an epoch: numbers that Python needs, such as the number of nonzero values of a minibatch, come from the CPU.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch

from sccvae.data.counts import ALONG_CELLS, Counts, Minibatch

TOGETHER = 32  # cells; sizes of chunks are multiples of it, because products of other numbers of rows round differently

Minibatches = Callable[[list[np.ndarray]], Iterator[Minibatch]]


def minibatches_on(device: torch.device, counts: Counts) -> Minibatches:
    """Return a function from groups of cells to minibatches on `device`.

    Counts of at most half of the free memory are copied to the device once (`DeviceCounts`). Otherwise each minibatch
    is copied from pinned memory, while the device computes the previous ones.
    """
    if device.type == "cpu":
        return counts.minibatches
    if device.type == "cuda" and _bytes(counts) > torch.cuda.mem_get_info(device)[0] / 2:
        return lambda groups: (_pinned(x).to(device) for x in counts.minibatches(groups))
    return DeviceCounts(counts, device)


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

    def __init__(self, counts: Counts, device: torch.device):
        self.all = counts.minibatch(slice(None)).to(device)
        longest = int(np.diff(counts.stored.indptr).max(initial=0))
        self.position, self.gene = (torch.arange(n, device=device) for n in (longest, counts.n_genes))

    def cells(self, groups: list[np.ndarray]) -> Iterator[torch.Tensor]:
        """Yield the numbers of the cells of each group, copied to the device at once."""
        yield from torch.from_numpy(np.concatenate(groups)).to(self.position.device).split(list(map(len, groups)))

    def minibatch(self, cells: torch.Tensor) -> Minibatch:
        """Return the cells numbered `cells`, in that order."""
        starts, ends = self.all.indptr[cells, None], self.all.indptr[cells + 1, None]
        at = starts + self.position
        stored = at < ends
        at = torch.where(stored, at, 0)
        genes = torch.where(stored, self.all.genes[at].long(), self.all.n_genes)  # an extra column for the rest
        counts = self.all.values.new_zeros(len(cells), self.all.n_genes + 1).scatter_(1, genes, self.all.values[at])
        along = {name: getattr(self.all, name)[cells] for name in ALONG_CELLS}
        indptr = self.all.n_genes * torch.arange(len(cells) + 1, device=cells.device)
        every = self.gene.int().repeat(len(cells))
        return Minibatch(indptr, every, counts[:, :-1].flatten(), self.all.n_genes, **along, full=True)

    def __call__(self, groups: list[np.ndarray]) -> Iterator[Minibatch]:
        """Yield a minibatch for each group of cells."""
        return map(self.minibatch, self.cells(groups))


def _bytes(counts: Counts) -> int:
    rows = counts.stored
    return (4 + 4) * len(rows.values) + rows.indptr.nbytes + counts.codes.nbytes + counts.continuous.nbytes


def _pinned(x: Minibatch) -> Minibatch:
    return Minibatch(*(field.pin_memory() if isinstance(field, torch.Tensor) else field for field in x))  # type: ignore
