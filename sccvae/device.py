"""Where training reads its minibatches from when the weights are on another device than the counts.

A GPU works through a step while Python is already at the next, as long as nothing asks it for a value: within an epoch
nothing here does. What must be known beforehand, such as the number of stored values of a minibatch, the CPU knows.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from sccvae.data import Counts, Minibatch

Minibatches = Callable[[list[np.ndarray]], Iterator[Minibatch]]


def minibatches_on(device: torch.device, counts: Counts) -> Minibatches:
    """A function from groups of cells to minibatches on `device`.

    The counts move there for good when they take at most half of the memory that is free; otherwise each minibatch is
    copied from pinned memory, while the device works on those before it.
    """
    if device.type == "cpu":
        return counts.minibatches
    if device.type == "cuda" and _bytes(counts) > torch.cuda.mem_get_info(device)[0] / 2:
        return lambda groups: (_pinned(x).to(device) for x in counts.minibatches(groups))
    return Resident(counts, device).minibatches


class Resident:
    """Counts on a device, and their minibatches, gathered there: the same as `Counts.minibatches` gives.

    `indptr`, where the stored values of each cell begin, stays on the CPU as well: sizes are known without asking.
    """

    def __init__(self, counts: Counts, device: torch.device):
        self.indptr = counts.stored.indptr
        self.all = counts.minibatch(slice(None)).to(device)

    def minibatches(self, groups: list[np.ndarray]) -> Iterator[Minibatch]:
        """A minibatch for each group of cells; their numbers go to the device once."""
        order = torch.from_numpy(np.concatenate(groups)).to(self.all.indptr.device)
        first = 0
        for cells in groups:
            n_stored = int((self.indptr[cells + 1] - self.indptr[cells]).sum())
            yield self.all.take(order[first : first + len(cells)], n_stored)
            first += len(cells)


def _bytes(counts: Counts) -> int:
    rows = counts.stored
    return (4 + 4) * len(rows.values) + rows.indptr.nbytes + counts.codes.nbytes + counts.continuous.nbytes


def _pinned(x: Minibatch) -> Minibatch:
    return Minibatch(*(field.pin_memory() if isinstance(field, torch.Tensor) else field for field in x))  # type: ignore
