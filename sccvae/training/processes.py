"""Training in several processes, each with a part of the cells of every minibatch: all calls of `torch.distributed`.

Every process holds the whole model and all counts, and draws the same minibatches. Of each minibatch it takes a part,
and computes the gradient of its mean loss. The gradients are weighted by the numbers of cells and added up, in one
message a step, which also holds the sums for the history. Then every process takes the same step of Adam. The batch
penalty compares the cells of one process.

What ends a run is decided alike in all processes, because it follows from sums over all of them. An interruption in one
is sent with the message of the next step. After an error, a process leaves the text for the others and closes its
connections, at which their calls fail.
"""

import atexit
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import rendezvous

from sccvae.training.optimizer import Adam

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
PATIENCE = timedelta(seconds=5)  # to read another process's text


class Disagreement(ValueError):
    """Error for processes with other data, settings or versions; raised in all of them."""


def processes_of(device: torch.device) -> "Processes | None":
    """Return the processes that train together, of the group that exists or of torchrun; None for a single one.

    The backend is gloo for the CPU, nccl for GPUs.
    """
    if not dist.is_initialized():
        if not all(os.environ.get(name) for name in _VARIABLES) or os.environ["WORLD_SIZE"] == "1":
            return None
        store, rank, size = next(rendezvous("env://"))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":  # torchrun's store may hold the addresses before a restart
            store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
        backend = "gloo" if device.type == "cpu" else "nccl"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        atexit.register(_end)  # threads of gloo that are left abort a process at its end
    return Processes(device) if dist.get_world_size() > 1 else None


def _end() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class Processes:
    """The processes of a run, seen from one of them.

    Attributes
    ----------
    rank, size
        Number of this process, from 0 on, and number of processes.
    """

    _runs = 0

    def __init__(self, device: torch.device):
        Processes._runs += 1
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device
        self.key = f"sccvae/{Processes._runs}"  # of this run's texts
        self.store = dist.distributed_c10d._get_default_store()
        self.interrupted = False
        self.weights: Iterator[float] = iter(())

    # --------------------------------------------------------------------------------------------- parts of the cells

    def parts(self, groups: list[np.ndarray]) -> list[np.ndarray]:
        """Return this process's cells of each group; `add` weights their gradients in this order.

        Of a group with fewer cells than processes, some take a cell of another, with weight 0.
        """
        mine = [np.array_split(cells, self.size)[self.rank] for cells in groups]
        self.weights = iter([len(part) / len(cells) for part, cells in zip(mine, groups, strict=True)])
        return [part if len(part) else cells[:1] for part, cells in zip(mine, groups, strict=True)]

    def part(self, cells: np.ndarray) -> np.ndarray:
        """Return this process's part of the cells, which may be empty."""
        return np.array_split(cells, self.size)[self.rank]

    def seed(self, *seeds: int) -> int:
        """Return a seed of this process's own noise."""
        return int(np.random.default_rng([*seeds, self.rank]).integers(2**62))

    # ----------------------------------------------------------------------------------------------------- collectives

    def add(
        self, optimizer: Adam, loss: torch.Tensor, terms: torch.Tensor, still: range
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the gradient that of all cells; return mean loss and sums of terms over all of them.

        Parameters
        ----------
        optimizer
            Holds the gradient of this process's mean loss, and room for `room` entries behind the gradient.
        loss, terms
            Mean loss, (), and sums of terms, (columns,), of this process's cells.
        still
            Entries of the gradient that are 0 in all processes, and are not sent.

        Raises
        ------
        KeyboardInterrupt
            A process was interrupted; raised in all of them.
        """
        weight, message, n = next(self.weights), optimizer.message, len(optimizer.arrays[0])
        sums, flag, moves = message[n : n + 1 + len(terms)], message[n + 1 + len(terms)], message[n + 2 + len(terms) :]
        optimizer.arrays[1].mul_(weight)
        torch.cat([(loss * weight)[None], terms * (weight > 0)], out=sums)
        flag.fill_(self.interrupted)
        moves.copy_(torch.from_numpy(optimizer.moves.astype(np.float32)))
        with self._connected():
            parts = (message[: still.start], message[still.stop :]) if len(still) else (message,)
            for work in [dist.all_reduce(part, async_op=True) for part in parts if len(part)]:
                work.wait()
        if self.device.type == "cpu":  # a GPU is not made to wait; there, `align` and `summed` see an interruption
            optimizer.take_along(moves.numpy() > 0)
            self._obey(flag.item())
        loss, *rest = sums.clone().split([1, len(terms)])
        return loss[0], rest[0]

    @staticmethod
    def room(n_columns: int, n_weights: int) -> int:
        """Return the number of entries that `add` sends besides the gradient."""
        return 2 + n_columns + n_weights

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """Add values of all processes, (n,), in the order of their ranks, in float64."""
        gathered = self.gathered(torch.cat([values.double(), values.new_tensor([self.interrupted]).double()]))
        *total, flag = torch.stack(gathered).sum(0)
        self._obey(flag.item())
        return torch.stack(total).to(values)

    def gathered(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Return a tensor of each process, of one shape in all of them."""
        here = values.to(self.device)
        every = [torch.empty_like(here) for _ in range(self.size)]
        with self._connected():
            dist.all_gather(every, here)
        return [each.to(values.device) for each in every]

    def rows(self, values: np.ndarray) -> list[np.ndarray]:
        """Return an array of each process, (n,) with another n in each."""
        lengths = [int(n) for n in self.gathered(torch.tensor([len(values)]))]
        padded = np.zeros(max(lengths), values.dtype)
        padded[: len(values)] = values
        every = self.gathered(torch.from_numpy(padded))
        return [each.numpy()[:n] for each, n in zip(every, lengths, strict=True)]

    def texts(self, text: str) -> list[str]:
        """Return a text of each process."""
        return [bytes(each).decode() for each in self.rows(np.frombuffer(text.encode(), np.uint8))]

    def check_same(self, facts: dict[str, Any], difference: Any) -> None:
        """Raise `Disagreement` unless all processes have the same facts; `difference(ours, theirs)` names one."""
        first, *others = (json.loads(text) for text in self.texts(json.dumps(facts)))
        for rank, other in enumerate(others, 1):
            if found := difference(first, other):
                raise Disagreement(
                    f"Processes 0 and {rank} of {self.size} cannot train together: {found} ('there' is process 0). Give"
                    " all the same data, settings and versions; to train separate models, unset WORLD_SIZE."
                )

    def align(self, optimizer: Adam) -> None:
        """Copy the weights of process 0 and their moments, where processors of other kinds rounded differently.

        Raises
        ------
        KeyboardInterrupt
            A process was interrupted; raised in all of them.
        """
        bits = optimizer.arrays[0].view(torch.int64).sum()
        every, flags = torch.stack(self.gathered(torch.stack([bits, bits.new_tensor(self.interrupted)]))).unbind(1)
        self._obey(flags.sum().item())
        if (every == every[0]).all():
            return
        with self._connected():
            for array in (optimizer.arrays[0], *optimizer.arrays[2:]):
                dist.broadcast(array, 0)

    # ----------------------------------------------------------------------------------------- interruptions and errors

    def _obey(self, flag: float) -> None:
        if flag:
            self.interrupted = False
            raise KeyboardInterrupt

    @contextmanager
    def together(self, *alike: type[BaseException]) -> Iterator[None]:
        """Context of a run: Ctrl-C is sent to the other processes, and so are errors, but those `alike` in all."""

        def note(*_: Any) -> None:
            signal.signal(signal.SIGINT, before)  # a second one has its usual effect
            self.interrupted = True

        listens = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGINT) or signal.SIG_DFL
        if listens:
            signal.signal(signal.SIGINT, note)
        try:
            with self.announcing(*alike):
                yield
        finally:
            if listens:
                signal.signal(signal.SIGINT, before)

    @contextmanager
    def announcing(self, *alike: type[BaseException]) -> Iterator[None]:
        """Context in which an error ends the other processes, with its text; but those `alike` in all."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, (*alike, Disagreement, ConnectionError)):
                self._announce(error)
            raise

    def _announce(self, error: BaseException) -> None:
        """Leave the text of an error for the other processes, and close the connections, at which their calls fail."""
        text = " ".join(f"{type(error).__name__}: {error}".split())
        with suppress(RuntimeError):
            self.store.set(f"{self.key}/error", f"Process {self.rank} of {self.size} ended the run: {text}")
            dist.destroy_process_group()
            if self.rank == 0:  # which may hold the store: the others read it first
                readers = [f"{self.key}/read/{rank}" for rank in range(1, self.size)]
                self.store.wait(readers, PATIENCE)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Convert errors of a lost connection to a sentence: the error of another process, or that one is gone."""
        try:
            yield
        except RuntimeError as error:
            text = None
            with suppress(RuntimeError):
                self.store.wait([f"{self.key}/error"], PATIENCE)
                text = self.store.get(f"{self.key}/error").decode()
                self.store.set(f"{self.key}/read/{self.rank}", "")
            with suppress(RuntimeError):
                dist.destroy_process_group()  # the next process to wait for this one fails, too
            raise ConnectionError(
                text
                or f"One of {self.size} processes ended or cannot be reached: it was killed, or its machine failed. "
                "Start all again; with a checkpoint, the run goes on from there."
            ) from error
