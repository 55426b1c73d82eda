"""Adam (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980) with clipped gradients and an average of the parameters.

All weights lie side by side in one array, and so do their gradients: a step is one compiled pass on the CPU, and a
dozen operations of torch elsewhere. torch's own Adam takes the same steps, but it goes from weight to weight, and its
first step imports torch's compiler: more than a second and 70 MB.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from sccvae.kernels.parallel import alone
from sccvae.kernels.reference import fits

BETAS = (0.9, 0.999)
ALIGNED = 16  # entries, 64 bytes: where every weight begins
MEMORY = 0.98  # what the average keeps of itself at a step: it looks back some fifty steps
EVERY = 5  # after 100 steps, how many lie between two looks of the average at the weights: a look costs memory traffic

Number = float | torch.Tensor


class Adam:
    """Steps of Adam on `weights`; the gradients as a whole are first scaled down to the norm `clip`.

    A weight without a gradient stays as it is.

    Beside the weights goes their exponential moving average over the steps (Polyak & Juditsky 1992,
    https://doi.org/10.1137/0330046), free of the noise of single minibatches: see `averaged`.

    Parameters
    ----------
    eps
        Added to the root of the mean square. 1e-4, not 1e-8: an entry that has hardly moved, such as a weight of a
        gene that few cells have, then takes small steps.
    decays
        For each weight, the multiple of it that is added to its gradient; None: 0 for all.
    rows
        Of a weight by its number, the range of its first axis that moves; the rest is frozen. None: all of each.
    room
        Entries behind the gradient in `message`, for what processes send with it.
    """

    def __init__(
        self,
        weights: list[torch.nn.Parameter],
        *,
        clip: float,
        decays: list[float] | None = None,
        eps: float = 1e-4,
        rows: Mapping[int, range] | None = None,
        room: int = 0,
    ):
        self.weights, self.clip, self.eps = weights, clip, eps
        self.decays = np.zeros(len(weights), np.float32) if decays is None else np.array(decays, np.float32)
        self.n_steps, self.compiled = 0, all(map(fits, weights))
        self.arrays, (places, self.places, *_, self.averages) = _side_by_side(weights, room)
        self.message = self.arrays[1]
        self.arrays[1] = self.message[: len(self.arrays[0])]
        self.moves = np.ones(len(weights), bool)
        self.starts, self.stops = _ranges(weights, rows or {})
        # Gradients of rows that do not move, which must not count in the norm.
        frozen = [(self.places[k][: some.start], self.places[k][some.stop :]) for k, some in (rows or {}).items()]
        self.frozen = [gradient for both in frozen for gradient in both if len(gradient)]
        if not self.compiled:
            self.decay = torch.from_numpy(np.repeat(self.decays, _sizes(weights))).to(self.arrays[0])  # of every entry
        _point(weights, places)
        for w, grad_w in zip(weights, self.places, strict=True):
            w.grad = grad_w if w.grad is None else grad_w.copy_(w.grad)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the parameters are their averages; nothing is copied."""
        last = [w.data for w in self.weights]
        _point(self.weights, self.averages)
        try:
            yield
        finally:
            _point(self.weights, last)

    def numbers(self, rate: float) -> tuple[float, float, float]:
        """Return the numbers of the next `move`, at a learning rate.

        The rate and the factor of the roots, both corrected for Adam's bias; the share of the average that is replaced.
        """
        self.n_steps += 1
        kept = min(MEMORY, (1 + self.n_steps) / (10 + self.n_steps))  # early averages look back less far
        share = 1 - kept if self.n_steps <= 100 else 0.0 if self.n_steps % EVERY else 1 - kept**EVERY
        bias, square_bias = (1 - beta**self.n_steps for beta in BETAS)
        return rate / bias, 1 / math.sqrt(square_bias), share

    def collect(self) -> None:
        """Copy the gradients that autograd made anew to the long array; of a parameter without one they are 0."""
        places, gradients = [], []
        for k, (w, place) in enumerate(zip(self.weights, self.places, strict=True)):
            if w.grad is None and self.moves[k]:
                place.zero_()
            elif w.grad is not None and w.grad is not place:
                places.append(place)
                gradients.append(w.grad)
                w.grad = place
            self.moves[k] = w.grad is not None
        if places:
            torch._foreach_copy_(places, gradients)
        for gradient in self.frozen:
            gradient.zero_()

    def take_along(self, moves: np.ndarray) -> None:
        """Let exactly these parameters move, (parameters,) bool, with the gradients in the long array."""
        self.moves = moves
        for w, place, moved in zip(self.weights, self.places, moves, strict=True):
            w.grad = place if moved else None

    def move(self, rate: Number, correction: Number, share: Number) -> None:
        """Update the parameters, then their average; the numbers may be tensors on their device."""
        self.collect()
        if not self.compiled:
            self._move(rate, correction, share)
            return
        from sccvae.kernels.cpu.operations import CPU

        with alone():  # the order of a sum is that of one thread
            norm = math.sqrt(torch.dot(self.arrays[1], self.arrays[1]).item())
        scale = 1.0 if norm <= self.clip else self.clip / (norm + 1e-6)
        numbers = (rate, correction, *(1 - beta for beta in BETAS), share, self.eps, scale)
        CPU.adam(self.segments(), self.arrays, numbers)

    def range_of(self, weight: torch.nn.Parameter) -> range:
        """Return where a parameter is in the long arrays, with the entries up to the next one."""
        k = next(k for k, w in enumerate(self.weights) if w is weight)
        return range(int(self.starts[k]), int(self.stops[k]))

    def segments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return where the parts that move begin and end in the long arrays, and their decays."""
        return self.starts[self.moves], self.stops[self.moves], self.decays[self.moves]

    @torch.no_grad()
    def _move(self, rate: Number, correction: Number, share: Number) -> None:
        """Update in operations of torch on all entries; then restore the parameters without a gradient."""
        values, gradient, mean, square, average = self.arrays
        starts, stops, _ = self.segments()
        gaps = zip(np.append(0, stops), np.append(starts, len(values)), strict=True)
        at_rest = [a[first:last] for first, last in gaps if first < last for a in (values, mean, square)]
        as_they_were = [a.clone() for a in at_rest]
        gradient = gradient * (self.clip / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp(max=1)
        gradient.add_(values * self.decay)
        mean.lerp_(gradient, 1 - BETAS[0])
        square.lerp_(gradient.square_(), 1 - BETAS[1])
        values.sub_(rate * mean / (square.sqrt().mul_(correction).add_(self.eps)))
        for a, before in zip(at_rest, as_they_were, strict=True):
            a.copy_(before)
        average.lerp_(values, share)


def _sizes(weights: list[torch.nn.Parameter]) -> list[int]:
    """Return the number of entries of each parameter in the long arrays."""
    return [-(-w.numel() // ALIGNED) * ALIGNED for w in weights]


def _ranges(weights: list[torch.nn.Parameter], rows: Mapping[int, range]) -> tuple[np.ndarray, np.ndarray]:
    """Return where the part of each weight that moves begins and ends in the long arrays."""
    stops = np.cumsum(_sizes(weights))
    starts = stops - _sizes(weights)
    for k, some in rows.items():
        width = weights[k][0].numel()
        starts[k], stops[k] = starts[k] + some.start * width, starts[k] + some.stop * width
    return starts, stops


def _side_by_side(weights: list[torch.nn.Parameter], room: int) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    """Return long arrays, (entries,), and each parameter's views of them: values, gradient, mean, square, average.

    The gradient is longer by `room` entries.
    """
    sizes, n = _sizes(weights), sum(_sizes(weights))
    # One by one: the values outlive the others.
    arrays = [weights[0].new_zeros(n + more) for more in (0, room, 0, 0, 0)]
    views = [[t[: w.numel()].view_as(w) for w, t in zip(weights, a[:n].split(sizes), strict=True)] for a in arrays]
    _set(views[0], weights)
    _set(views[-1], weights)
    return arrays, views


def _point(weights: list[torch.nn.Parameter], places: Sequence[torch.Tensor]) -> None:
    """Let the parameters be views of these tensors."""
    for w, place in zip(weights, places, strict=True):
        w.data = place


@torch.no_grad()
def _set(weights: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for w, value in zip(weights, values, strict=True):
        w.copy_(value)
