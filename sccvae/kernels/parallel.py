"""Work split among the package's own threads, with the same results for any number of threads.

torch's results depend on the number of its threads, and its threads do not survive a fork: a forked program hangs. So
torch runs on one thread (`alone`), and long work is split here (`share`): between cells, genes or entries that are
independent, or, in matrix products (`multiply`), into blocks whose size depends on the product alone.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import torch

MOST = 64  # threads
WORTH = 2**15  # values of float32 to work on, below which another thread costs more than it saves
WORTH_COPYING = 2**20  # values: copies wait for memory, and two threads share it
WORTH_MULTIPLYING = 2**22  # multiplications of a product; starting a thread takes about a tenth of a millisecond
LEAST_COLUMNS, MOST_COLUMNS = 192, 1000  # of a block of a product; narrower ones are slower, wider ones are cut
FEW_BLOCKS, MANY_BLOCKS = 4, 16


class _Here(threading.local):
    n_threads = 0  # that `share` takes, inside `alone`; 0 outside


class _Pools:
    """Worker threads, and one that restores torch's number of threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.workers = ThreadPoolExecutor(MOST, "sccvae", self.begin)  # started when they are needed
        self.keeper = ThreadPoolExecutor(1, "sccvae-keeper")

    def begin(self) -> None:
        """Initialise a worker thread."""
        self.on_one_thread()
        _here.n_threads = 1
        torch.set_grad_enabled(False)

    def on_one_thread(self) -> int:
        """Let torch work on one thread in this thread; return the number of threads before."""
        with self.lock:
            before = torch.get_num_threads()
            if before > 1:
                torch.set_num_threads(1)
                # That is also how many threads begin with that start later: another thread puts this back.
                with suppress(RuntimeError):  # at the end of a program none can be had, nor is one needed
                    self.keeper.submit(torch.set_num_threads, before).result()
        return before

    def start(self, work: Callable[[int, int], Any], first: int, last: int) -> Future:
        """Start work on a worker thread, or do it here if no thread can be started."""
        try:
            return self.workers.submit(work, first, last)
        except RuntimeError:
            done: Future = Future()
            done.set_result(work(first, last))
            return done


_here, _pools = _Here(), _Pools()


def _begin_anew() -> None:
    global _pools
    _pools = _Pools()  # threads are not forked


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


@contextmanager
def alone() -> Iterator[int]:
    """Context in which torch uses one thread; yields the number of threads of `share`, as many as torch had."""
    if _here.n_threads:
        yield _here.n_threads
        return
    before = _pools.on_one_thread()
    _here.n_threads = min(before, MOST)
    try:
        yield _here.n_threads
    finally:
        _here.n_threads = 0
        if before > 1:
            torch.set_num_threads(before)


def each_alone(generator: Callable[..., Iterator]) -> Callable[..., Iterator]:
    """Decorate a generator function so that it runs inside `alone`, but not between its items."""

    @functools.wraps(generator)
    def wrapped(*args: Any, **kwargs: Any) -> Iterator:
        source = generator(*args, **kwargs)
        while True:
            with alone():
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    return wrapped


def rows_worth(n_columns: int) -> int:
    """Return the number of rows of `n_columns` values that are worth another thread."""
    return max(WORTH // max(n_columns, 1), 1)


def share(work: Callable[[int, int], Any], n: int, part: int = 1) -> list[Any]:
    """Return the results of `work(first, last)` for ranges that make up range(n), one thread each.

    Where ranges meet, at multiples of `part`, depends on the number of threads; what the work does must not.
    """
    with alone() as n_threads:
        n_parts = -(-n // part)
        n_ranges = min(n_threads, n_parts)
        if n_ranges <= 1:
            return [work(0, n)]
        ends = [min(k * n_parts // n_ranges * part, n) for k in range(n_ranges + 1)]
        others: list[Future] = []
        try:
            others += (_pools.start(work, *some) for some in pairwise(ends[1:]))
            first = work(0, ends[1])
        finally:
            wait(others)  # they write to arrays of the caller
        return [first, *(other.result() for other in others)]


@functools.cache
def blocks_of(n_columns: int) -> list[tuple[int, int]]:
    """Return (first, last) of the column blocks of a product, the same for any number of threads."""
    n_blocks = max(min(FEW_BLOCKS, n_columns // LEAST_COLUMNS), min(MANY_BLOCKS, n_columns // MOST_COLUMNS), 1)
    width = -(-n_columns // (16 * n_blocks)) * 16  # multiples of a cache line
    return list(pairwise([*range(0, n_columns, width)[:n_blocks], n_columns]))


def multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, add: bool = False) -> torch.Tensor:
    """Fill out, (rows, columns), with a @ b, or add that to it; return it."""
    blocks = blocks_of(b.shape[1])

    def work(first: int, last: int) -> None:
        for start, stop in blocks[first:last]:
            place = out[:, start:stop]
            if add:
                torch.addmm(place, a, b[:, start:stop], out=place)
            else:
                torch.mm(a, b[:, start:stop], out=place)

    small = a.shape[0] * a.shape[1] * b.shape[1] < WORTH_MULTIPLYING
    with torch.no_grad():
        share(work, len(blocks), len(blocks) if small else 1)
    return out


def copy(out: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Fill out, (rows, columns), from an array of any type; return it."""

    def work(first: int, last: int) -> None:
        out[first:last].copy_(source[first:last])

    with torch.no_grad():
        share(work, len(out), max(16, WORTH_COPYING // max(out.shape[1], 1)))
    return out


def affine(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Fill an array with h @ weight + bias, differentiable; on the CPU in the blocks of `multiply`."""
    on_cpu = h.dtype == torch.float32 and h.device.type == "cpu"
    if len(blocks_of(weight.shape[1])) > 1 and on_cpu and weight.dtype == h.dtype:
        return _Affine.apply(h, weight, bias)
    return torch.addmm(bias, h, weight)


class _Affine(torch.autograd.Function):
    """h @ weight + bias by `multiply`."""

    @staticmethod
    def forward(ctx, h, weight, bias):
        ctx.save_for_backward(h, weight)
        return multiply(h, weight, bias.repeat(len(h), 1), add=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        h, weight = ctx.saved_tensors
        grad_out, grad_h = grad_out.contiguous(), None
        if ctx.needs_input_grad[0]:
            grad_h = multiply(grad_out, weight.t(), torch.empty_like(h))
        return grad_h, multiply(h.t(), grad_out, torch.empty_like(weight)), grad_out.sum(0)
