"""State of a training run between two steps, written every so many steps, so that a killed run can go on to the bit.

With the settings and the data of the run, the state is everything that later steps depend on: the arrays of Adam, the
generators of random numbers, the losses of the epoch so far, the history, the weights of the best epoch. The
minibatches of an epoch follow from the generator at the start of the epoch, and are not stored.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sccvae.modules.vae import VAE
from sccvae.training.optimizer import Adam

Weights = dict[str, torch.Tensor]
_ADAM = ("values", "gradient", "mean", "square", "average")  # `Adam.arrays`; the gradient is of one step
BEST, _GOOD = "best.", "last_good."


def weights_of(vae: VAE) -> Weights:
    """Return a copy of all arrays of a model."""
    return {name: tensor.detach().clone() for name, tensor in vae.state_dict().items()}


@dataclass
class State:
    """State of a run between two steps."""

    epoch: int  # of the next step
    rng: np.random.Generator  # shuffles the cells
    noise: torch.Generator
    optimizer: Adam
    best: Weights  # averages of the best epoch
    last_good: Weights  # averages of the last epoch that ended
    total: torch.Tensor  # (columns,) sums of the terms over the steps of the epoch so far
    step: int = 0  # number of steps taken in the run
    losses: list[torch.Tensor] = field(default_factory=list)  # of the steps of the epoch so far
    shuffling: Mapping[str, Any] = field(default_factory=dict)  # state of `rng` at the start of the epoch
    seconds: float = 0.0  # of the epoch, spent by an earlier process
    started: float = 0.0  # clock at the start of the epoch, as if this process had begun it

    def begin(self, epoch: int) -> None:
        """Note the start of an epoch, before the cells are shuffled."""
        self.epoch, self.shuffling = epoch, self.rng.bit_generator.state
        self.started = time.perf_counter() - self.seconds

    def add(self, loss: torch.Tensor, terms: torch.Tensor) -> None:
        """Count a step."""
        self.losses.append(loss)
        self.total, self.step = self.total + terms, self.step + 1

    def end(self) -> None:
        """Note the end of an epoch."""
        self.epoch, self.losses, self.total, self.seconds = self.epoch + 1, [], torch.zeros_like(self.total), 0.0

    @property
    def elapsed(self) -> float:
        """Return the seconds of the epoch so far."""
        return time.perf_counter() - self.started


@dataclass
class Checkpoints:
    """Writer of a run's state, and the state that a run goes on from.

    Parameters
    ----------
    every
        Steps from one checkpoint to the next.
    write
        Writes (progress, numbers, arrays); with no arrays but those of the best epoch, the run has ended.
    numbers, tensors
        What an earlier process wrote last; None at the start of a run.
    """

    every: int
    write: Callable[[Any, dict[str, Any], Weights], None]
    numbers: dict[str, Any] | None = None
    tensors: Weights | None = None

    def offer(self, state: State, progress: Any, processes: Any = None) -> None:
        """Write the state if a checkpoint is due."""
        if state.step % self.every:
            return
        noise = [state.noise.get_state()]
        if processes is not None:
            noise = processes.gathered(noise[0])
        if processes is None or processes.rank == 0:
            self.write(progress, {**_numbers(state, progress), "processes": len(noise)}, _tensors(state, noise))

    def finish(self, state: State, progress: Any, processes: Any = None) -> None:
        """Write the result of a run that has ended."""
        if processes is None or processes.rank == 0:
            best = {f"{BEST}{name}": tensor for name, tensor in state.best.items()}
            self.write(progress, {"finished": True, "stopped": progress.stopped}, best)

    def restore(self, state: State, progress: Any, processes: Any = None) -> None:
        """Set a state, with its generators and Adam, to that of the checkpoint; without one, leave it as it is."""
        if self.numbers is None or self.tensors is None:
            return
        numbers, tensors = self.numbers, self.tensors
        self.numbers = self.tensors = None
        rank, size = (0, 1) if processes is None else (processes.rank, processes.size)
        if numbers["processes"] != size:
            raise ValueError(
                f"The run in the checkpoint has {numbers['processes']} processes; found {size}: start as many."
            )
        state.epoch, state.step, state.seconds = numbers["epoch"], numbers["step"], numbers["seconds"]
        state.rng.bit_generator.state = numbers["shuffling"]
        state.noise.set_state(tensors[f"noise.{rank}"])
        device = state.total.device
        state.losses, state.total = list(tensors["losses"].to(device)), tensors["total"].to(device)
        state.best = best_weights(tensors)
        good = {name.removeprefix(_GOOD): t for name, t in tensors.items() if name.startswith(_GOOD)}
        state.last_good = good or state.best
        state.optimizer.n_steps = numbers["adam_steps"]
        for name, array in zip(_ADAM, state.optimizer.arrays, strict=True):
            if name != "gradient":
                array.copy_(tensors[f"adam.{name}"])
        progress.best_epoch = numbers["best_epoch"]
        progress.best_elbo = -math.inf if numbers["best_elbo"] is None else numbers["best_elbo"]


def best_weights(tensors: Weights) -> Weights:
    """Return the arrays of the best epoch from those of a checkpoint."""
    return {name.removeprefix(BEST): tensor for name, tensor in tensors.items() if name.startswith(BEST)}


def _numbers(state: State, progress: Any) -> dict[str, Any]:
    return {
        "finished": False,
        "epoch": state.epoch,
        "step": state.step,
        "seconds": state.elapsed,
        "shuffling": state.shuffling,
        "adam_steps": state.optimizer.n_steps,
        "first_epoch": progress.first_epoch,
        "best_epoch": progress.best_epoch,
        "best_elbo": progress.best_elbo if math.isfinite(progress.best_elbo) else None,
    }


def _tensors(state: State, noise: list[torch.Tensor]) -> Weights:
    arrays = zip(_ADAM, state.optimizer.arrays, strict=True)
    found = {f"adam.{name}": array for name, array in arrays if name != "gradient"}
    found |= {f"noise.{rank}": one for rank, one in enumerate(noise)}
    found |= {"losses": torch.stack(state.losses) if state.losses else state.total[:0], "total": state.total}
    found |= {f"{BEST}{name}": tensor for name, tensor in state.best.items()}
    if state.last_good is not state.best:
        found |= {f"{_GOOD}{name}": tensor for name, tensor in state.last_good.items()}
    return found
