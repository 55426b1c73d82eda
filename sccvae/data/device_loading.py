"""Where training reads its minibatches from when the weights are on another device than the counts; chunks.

A GPU works through a step while Python is already at the next, as long as nothing asks it for a value: within an epoch
nothing here does. What must be known beforehand, such as the number of stored values of a minibatch, the CPU knows.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch

from sccvae.data.counts import ALONG_CELLS, Counts, Minibatch

TOGETHER = 32  # cells: vector instructions take numbers of them whole, and products of few rows round otherwise

Minibatches = Callable[[list[np.ndarray]], Iterator[Minibatch]]


def minibatches_on(device: torch.device, counts: Counts) -> Minibatches:
    """A function from groups of cells to minibatches on `device`.

    The counts move there for good when they take at most half of the memory that is free (`Resident`); otherwise each
    minibatch is copied from pinned memory, while the device works on those before it.
    """
    if device.type == "cpu":
        return counts.minibatches
    if device.type == "cuda" and _bytes(counts) > torch.cuda.mem_get_info(device)[0] / 2:
        return lambda groups: (_pinned(x).to(device) for x in counts.minibatches(groups))
    return Resident(counts, device)


def chunk_of(n_genes: int, device: torch.device) -> int:
    """Cells to decode at once: about half a million values, enough for the arithmetic and little memory.

    Four times as many on a GPU, which is done with few before Python asks for the next.
    """
    return max(16, 2 ** (19 if device.type == "cpu" else 21) // n_genes)


def chunks(n_cells: int, size: int) -> Iterator[slice]:
    """The rows of chunks of `size` cells, but for what a multiple of `TOGETHER` asks; only the last is another number.

    So what is computed for a cell does not depend on `size`.
    """
    ends = [*range(0, n_cells, max(size // TOGETHER, 1) * TOGETHER), n_cells]
    if len(ends) > 2 and ends[-1] - ends[-2] < TOGETHER:
        del ends[-2]
    return (slice(*some) for some in pairwise(ends) if n_cells)


class Resident:
    """Counts on a device, and their minibatches, gathered there: the same as `Counts.minibatches` gives, but `full`.

    So the work on a minibatch depends on its number of cells alone, and can be recorded (`training.steps`).
    """

    def __init__(self, counts: Counts, device: torch.device):
        self.all = counts.minibatch(slice(None)).to(device)
        longest = int(np.diff(counts.stored.indptr).max(initial=0))
        self.place, self.gene = (torch.arange(n, device=device) for n in (longest, counts.n_genes))

    def cells(self, groups: list[np.ndarray]) -> Iterator[torch.Tensor]:
        """The numbers of the cells of each group; they go to the device all at once."""
        yield from torch.from_numpy(np.concatenate(groups)).to(self.place.device).split(list(map(len, groups)))

    def minibatch(self, cells: torch.Tensor) -> Minibatch:
        """The cells numbered `cells`, in that order."""
        starts, ends = self.all.indptr[cells, None], self.all.indptr[cells + 1, None]
        at = starts + self.place
        stored = at < ends
        at = torch.where(stored, at, 0)
        genes = torch.where(stored, self.all.genes[at].long(), self.all.n_genes)  # one column more takes what is not
        counts = self.all.values.new_zeros(len(cells), self.all.n_genes + 1).scatter_(1, genes, self.all.values[at])
        along = {name: getattr(self.all, name)[cells] for name in ALONG_CELLS}
        indptr = self.all.n_genes * torch.arange(len(cells) + 1, device=cells.device)
        every = self.gene.int().repeat(len(cells))
        return Minibatch(indptr, every, counts[:, :-1].flatten(), self.all.n_genes, **along, full=True)

    def __call__(self, groups: list[np.ndarray]) -> Iterator[Minibatch]:
        """A minibatch for each group of cells."""
        return map(self.minibatch, self.cells(groups))


def _bytes(counts: Counts) -> int:
    rows = counts.stored
    return (4 + 4) * len(rows.values) + rows.indptr.nbytes + counts.codes.nbytes + counts.continuous.nbytes


def _pinned(x: Minibatch) -> Minibatch:
    return Minibatch(*(field.pin_memory() if isinstance(field, torch.Tensor) else field for field in x))  # type: ignore
