"""Training step: gradients, then Adam; on a GPU recorded once and replayed as a CUDA graph.

A step is hundreds of small operations, each of which a GPU finishes sooner than Python asks for the next. Replayed,
all are asked for at once (https://docs.pytorch.org/docs/stable/notes/cuda.html).
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from sccvae.data.counts import Counts, Minibatch
from sccvae.data.gpu.device_loading import DeviceCounts, minibatches_on
from sccvae.data.gpu.streaming import Cells, StreamedCounts
from sccvae.modules.vae import VAE
from sccvae.training.gradients import Precision, gradients_of
from sccvae.training.optimizer import Adam, Number

LARGEST = 3072  # cells of a step, above which the gradient of torch's embedding waits for the GPU

Outputs = tuple[torch.Tensor, ...]
# (minibatch, or `Cells` that it is made of; KL weight; result of `Adam.numbers`; whether zero inflation is frozen)
# -> loss, (); sums over cells of `VAE.columns`, (columns,)
Step = Callable[[Any, Any, Sequence[Number], bool], Outputs]


def steps(
    vae: VAE,
    counts: Counts,
    optimizer: Adam,
    noise: torch.Generator,
    precision: Precision,
    n_draws: int,
    processes: Any = None,
) -> tuple[Callable[[list[np.ndarray]], Iterator[Any]], Step]:
    """Return a function from groups of cells to the inputs of steps, and the function that takes a step.

    With several `processes`, gradients are added up between the recorded part and the step of Adam.
    """
    gradients, minibatches = gradients_of(vae, precision), minibatches_on(vae.device, counts)

    def step(x: Minibatch, kl_weight: Number, of_adam: Sequence[Number], waits: bool) -> Outputs:
        loss, elbo = gradients(x.repeated(n_draws), noise, kl_weight, waits)
        optimizer.collect() if processes else optimizer.move(*of_adam)
        return loss, elbo.sum(1)

    inputs: Callable[[list[np.ndarray]], Iterator[Any]] = minibatches
    take: Step = step
    if vae.device.type == "cuda" and isinstance(minibatches, DeviceCounts | StreamedCounts) and type(vae) is VAE:
        inputs, take = minibatches.cells, recorded(step, minibatches, noise, LARGEST // n_draws)
    return inputs, take if processes is None else together(take, vae, optimizer, processes)


def together(step: Step, vae: VAE, optimizer: Adam, processes: Any) -> Step:
    """Return a step of several processes; `step` leaves the gradient of this one's cells in the optimizer."""
    head = vae.decoder.dropout
    frozen = range(0) if head is None else optimizer.range_of(head.weight)

    def step_together(x: Any, kl_weight: Number, of_adam: Sequence[Number], waits: bool) -> Outputs:
        outputs = processes.add(optimizer, *step(x, kl_weight, of_adam, waits), frozen if waits else range(0))
        optimizer.move(*of_adam)
        return outputs

    return step_together


def recorded(step: Step, counts: DeviceCounts | StreamedCounts, noise: torch.Generator, most: int) -> Step:
    """Return `step` as a function of the `Cells` of a minibatch; up to `most` cells it is recorded."""

    def work(kind: tuple[tuple[int, ...], bool], data: torch.Tensor, numbers: torch.Tensor) -> Outputs:
        kl_weight, *of_adam = numbers.unbind()
        return step(counts.minibatch(Cells(data, kind[0])), kl_weight, of_adam, kind[1])

    replayed = Replayed(work, noise)

    def recorded_step(cells: Cells, kl_weight: float, of_adam: Sequence[Number], waits: bool) -> Outputs:
        if cells.kind[0] > most:
            return step(counts.minibatch(cells), kl_weight, of_adam, waits)
        return replayed((cells.kind, waits), cells.data, torch.tensor([kl_weight, *of_adam]))

    return recorded_step


class Replayed:
    """`work(kind, *inputs)`, recorded for each kind at the second call, and replayed from then on.

    What is done must depend on the kind and on shapes alone, not on what the inputs hold. The first call is an ordinary
    one: libraries prepare themselves at it in ways that cannot be recorded.
    """

    def __init__(self, work: Callable[..., Outputs], noise: torch.Generator):
        self.work, self.noise = work, noise
        self.places: dict[Hashable, list[torch.Tensor]] = {}  # where a kind's recording reads its inputs
        self.replays: dict[Hashable, Callable[[], Outputs]] = {}

    def __call__(self, kind: Hashable, *inputs: torch.Tensor) -> Outputs:
        """Return the outputs of `work`."""
        if kind not in self.places:
            self.places[kind] = [t.to(self.noise.device, copy=True, non_blocking=True) for t in inputs]
            return self.work(kind, *self.places[kind])
        for place, t in zip(self.places[kind], inputs, strict=True):
            place.copy_(t, non_blocking=True)
        if kind not in self.replays:
            self.replays[kind] = cuda_graph(lambda: self.work(kind, *self.places[kind]), self.noise)
        return tuple(t.clone() for t in self.replays[kind]())  # the next replay writes over them


def cuda_graph(work: Callable[[], Outputs], noise: torch.Generator) -> Callable[[], Outputs]:
    """Record `work`; return a function that repeats it on the same tensors, with further numbers of `noise`."""
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(noise)
    stream = torch.cuda.Stream(noise.device)  # torch's own may be another GPU's
    # The thread of `StreamedCounts` waits for its copies meanwhile, which is an error unless capture is of this thread.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        outputs = work()

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return replay
