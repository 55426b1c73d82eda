"""Minibatches of counts that do not fit on a GPU: gathered ahead by a thread, copied while the device computes.

A minibatch is one array of bytes, of a length that depends on few numbers. A step that reads it can therefore be
recorded (`training.steps`), as with `DeviceCounts`. The array passes through three places: a thread fills it in pinned
memory (two arrays), a stream of its own copies it to the device (two arrays), and the step reads it there.
"""

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch

from sccvae.data.counts import ALONG_CELLS, Counts, Minibatch

_BUFFERS = 2
_STEPS = 8  # lengths that arrays are rounded up to: few, since each has a recorded step
_TYPES: dict[Any, torch.dtype] = {
    np.uint8: torch.uint8, np.int32: torch.int32, np.int64: torch.int64, np.float32: torch.float32
}  # fmt: skip


class Cells(NamedTuple):
    """Input of a step: a tensor on the device, and what decides the operations that make a `Minibatch` of it."""

    data: torch.Tensor
    kind: tuple[int, ...]  # the number of cells first


class Layout(NamedTuple):
    """Places of a minibatch's arrays in an array of bytes: (name, type, shape), the largest types first."""

    fields: tuple[tuple[str, Any, tuple[int, ...]], ...]

    @property
    def n_bytes(self) -> int:
        """Return the length of the array."""
        return sum(np.dtype(kind).itemsize * int(np.prod(shape)) for _, kind, shape in self.fields)

    def arrays(self, data: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays by name, as views of the bytes."""
        return {name: data[at].view(kind).reshape(shape) for name, kind, shape, at in self._places()}

    def tensors(self, data: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the arrays by name, as views of a tensor of bytes."""
        return {name: data[at].view(_TYPES[kind]).view(shape) for name, kind, shape, at in self._places()}

    def _places(self) -> Iterator[tuple[str, Any, tuple[int, ...], slice]]:
        start = 0
        for name, kind, shape in self.fields:
            end = start + np.dtype(kind).itemsize * int(np.prod(shape))
            yield name, kind, shape, slice(start, end)
            start = end


class StreamedCounts:
    """Counts in memory, and minibatches of them on a device, with the values of `DeviceCounts`.

    An array holds the nonzero values and their places, padded, or all values if that is smaller.
    """

    loading = "streamed"

    def __init__(self, counts: Counts, device: torch.device):
        self.counts, self.device = counts, device
        self.gene = torch.arange(counts.n_genes, device=device)
        self._lengths = np.diff(counts.stored.indptr)
        small = counts.stored.values.dtype == np.uint8 and len(counts.stored.large) == 0
        self._dense = np.uint8 if small else np.float32
        mean = float(self._lengths.mean()) if len(counts) else 0.0
        self.stores_all = np.dtype(self._dense).itemsize * counts.n_genes <= 8 * mean
        self._most: dict[int, int] = {}  # cells -> nonzero values of the longest of so many cells
        self._here: list[torch.Tensor] = []  # pinned memory, kept from epoch to epoch
        self._there: list[torch.Tensor] = []  # on the device
        self._copies = _Copies(device)

    def cells(self, groups: list[np.ndarray]) -> Iterator[Cells]:
        """Yield the cells of each group; each is valid until the next is asked for.

        An error of the thread is raised here. The thread ends with the iterator, however that ends.
        """
        self._reserve({len(group) for group in groups})
        free: queue.SimpleQueue = queue.SimpleQueue()  # numbers of arrays in memory; None ends the thread
        ready: queue.SimpleQueue = queue.SimpleQueue()  # (number, kind), or an error
        for number in range(_BUFFERS):
            free.put(number)
        thread = threading.Thread(target=self._fill, args=(groups, free, ready), name="sccvae-loading", daemon=True)
        thread.start()
        try:
            for step in range(len(groups)):
                if isinstance(found := ready.get(), BaseException):
                    raise found
                number, kind = found
                n_bytes = self.layout(kind).n_bytes
                there = self._there[step % _BUFFERS][:n_bytes]
                self._copies.begin(self._here[number][:n_bytes], there, number, step % _BUFFERS)
                free.put(number)
                try:
                    yield Cells(there, kind)
                finally:
                    self._copies.used(step % _BUFFERS)
        finally:
            with suppress(queue.Empty):
                while True:
                    free.get_nowait()
            free.put(None)
            thread.join()

    def minibatch(self, cells: Cells) -> Minibatch:
        """Return the cells; covariates and library sizes are views of the input."""
        n, n_genes = cells.kind[0], self.counts.n_genes
        fields = self.layout(cells.kind).tensors(cells.data)
        values = fields["values"].float()
        if not self.stores_all:  # an extra entry for the padding
            values = values.new_zeros(n * n_genes + 1).scatter_(0, fields["at"].long(), values)[:-1]
        return dense_minibatch(values, self.gene, {name: fields[name] for name in ALONG_CELLS})

    def __call__(self, groups: list[np.ndarray]) -> Iterator[Minibatch]:
        """Yield a minibatch for each group of cells."""
        for cells in self.cells(groups):
            yield self.minibatch(cells._replace(data=cells.data.clone()))

    def layout(self, kind: tuple[int, ...]) -> Layout:
        """Return the layout of so many cells and stored values."""
        n, n_stored = kind
        n_codes, n_continuous = self.counts.codes.shape[1], self.counts.continuous.shape[1]
        fields: list[tuple[str, Any, tuple[int, ...]]] = [("codes", np.int64, (n, n_codes)), ("labels", np.int64, (n,))]
        fields += [(name, np.float32, (n,)) for name in ("log_total", "log_size", "log_factorial")]
        fields += [("continuous", np.float32, (n, n_continuous))]
        fields += [("values", self._dense if self.stores_all else np.float32, (n_stored,))]
        if not self.stores_all:
            fields += [("at", np.int32 if n * self.counts.n_genes < 2**31 else np.int64, (n_stored,))]
        return Layout(tuple(sorted(fields, key=lambda field: -np.dtype(field[1]).itemsize)))  # so that all are aligned

    def most(self, n: int) -> int:
        """Return the largest number of stored values of `n` cells."""
        if self.stores_all:
            return n * self.counts.n_genes
        if n not in self._most:
            n_cells = len(self._lengths)
            longest = np.partition(self._lengths, n_cells - n)[n_cells - n :] if n < n_cells else self._lengths
            repeats = -(-n // max(n_cells, 1))  # 1, unless cells are repeated
            self._most[n] = max(int(longest.sum()) * repeats, 1)
        return self._most[n]

    def kind_of(self, n: int, n_nonzero: int) -> tuple[int, int]:
        """Return the number of cells, and that of stored values, rounded up to one of few."""
        most = self.most(n)
        if self.stores_all:
            return n, most
        unit = -(-most // _STEPS)
        return n, min(max(-(-n_nonzero // unit), 1) * unit, most)

    def _reserve(self, sizes: set[int]) -> None:
        """Allocate the arrays, or larger ones."""
        n_bytes = max((self.layout((n, self.most(n))).n_bytes for n in sizes), default=0)
        if not self._here or len(self._here[0]) < n_bytes:
            pinned = self.device.type == "cuda"
            self._here = [torch.empty(n_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(_BUFFERS)]
            self._there = [torch.empty(n_bytes, dtype=torch.uint8, device=self.device) for _ in range(_BUFFERS)]
            self._copies = _Copies(self.device)

    def _fill(self, groups: list[np.ndarray], free: queue.SimpleQueue, ready: queue.SimpleQueue) -> None:
        """Fill arrays in memory, in a thread, as they become free."""
        try:
            for x in self.counts.minibatches(groups):
                if (number := free.get()) is None:
                    return
                self._copies.wait(number)
                kind = self.kind_of(x.n_cells, len(x.values))
                layout = self.layout(kind)
                self._write(x, layout.arrays(self._here[number].numpy()[: layout.n_bytes]))
                ready.put((number, kind))
            ready.put(RuntimeError("There are fewer minibatches than groups of cells."))
        except BaseException as error:  # noqa: BLE001  raised by the reader
            ready.put(error)

    def _write(self, x: Minibatch, arrays: dict[str, np.ndarray]) -> None:
        """Write a minibatch on the CPU to arrays of bytes."""
        for name in ALONG_CELLS:
            arrays[name][...] = getattr(x, name).numpy()
        first = np.arange(x.n_cells, dtype=np.int64) * x.n_genes  # entries are numbered row by row
        at = np.repeat(first, np.diff(x.indptr.numpy())) + x.genes.numpy()
        if self.stores_all:
            arrays["values"][...] = 0
            arrays["values"][at] = x.values.numpy()
            return
        n = len(at)
        arrays["values"][:n], arrays["values"][n:] = x.values.numpy(), 0
        arrays["at"][:n], arrays["at"][n:] = at, x.n_cells * x.n_genes


class _Copies:
    """Copies to a device, in the order of the calls; on a GPU in a stream of its own, and without waiting.

    An array on the device is written again once the steps that were asked for before `used` have read it. An array in
    memory is written again once its copy has ended, for which `wait` waits in the thread that fills it.
    """

    def __init__(self, device: torch.device):
        self.stream: torch.cuda.Stream | None = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: dict[int, torch.cuda.Event] = {}  # by number of the array in memory
        self._used: dict[int, torch.cuda.Event] = {}  # by number of the array on the device

    def begin(self, here: torch.Tensor, there: torch.Tensor, number: int, place: int) -> None:
        """Copy; steps asked for from now on wait for the copy, on the device."""
        if self.stream is None:
            there.copy_(here)
            return
        if place in self._used:
            self.stream.wait_event(self._used[place])
        else:  # the allocator may have given memory that earlier operations still use
            self.stream.wait_stream(torch.cuda.current_stream(there.device))
        with torch.cuda.stream(self.stream):
            there.copy_(here, non_blocking=True)
        there.record_stream(self.stream)
        self._copied[number] = self.stream.record_event()
        torch.cuda.current_stream(there.device).wait_event(self._copied[number])

    def used(self, place: int) -> None:
        """Note that all steps that read an array on the device were asked for."""
        if self.stream is not None:
            self._used[place] = torch.cuda.current_stream(self.stream.device).record_event()

    def wait(self, number: int) -> None:
        """Wait until an array in memory was copied."""
        if number in self._copied:
            self._copied[number].synchronize()


def dense_minibatch(values: torch.Tensor, gene: torch.Tensor, along: dict[str, torch.Tensor]) -> Minibatch:
    """Return a minibatch with every value stored: `values` is (cells * genes,), `gene` holds 0, 1, ..., genes - 1."""
    n, n_genes = len(along["log_total"]), len(gene)
    indptr = n_genes * torch.arange(n + 1, device=values.device)
    return Minibatch(indptr, gene.int().repeat(n), values, n_genes, **along, full=True)  # type: ignore[arg-type]
