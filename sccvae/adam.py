"""Adam (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980) with gradients clipped to a norm, and the weights' average.

On the CPU compiled, one pass over each weight. torch's own takes the same steps, but it spends a third of its time
on things other than arithmetic, and its first step imports torch's compiler: more than a second and 70 MB.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from sccvae.kernels import fits, threads

BETAS = (0.9, 0.999)
ALIGNED = 16  # entries, 64 bytes: where every weight begins
MEMORY = 0.98  # what the average keeps of itself at a step: it looks back some fifty steps
EVERY = 5  # after 100 steps, how many lie between two looks of the average at the weights: a look costs memory traffic


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
    """

    def __init__(
        self, weights: list[torch.nn.Parameter], *, clip: float, decays: list[float] | None = None, eps: float = 1e-4
    ):
        self.weights, self.clip, self.eps = weights, clip, eps
        self.decays = np.zeros(len(weights), np.float32) if decays is None else np.array(decays, np.float32)
        self.n_steps = 0
        self.torch: torch.optim.Adam | None = None
        if all(map(fits, weights)):
            self.arrays, (places, self.places, *_, self.averages) = _side_by_side(weights)
            self.ends, self.moves = np.cumsum(_sizes(weights)), np.ones(len(weights), bool)
            _point(weights, places)
            for w, by_w in zip(weights, self.places, strict=True):
                w.grad = by_w if w.grad is None else by_w.copy_(w.grad)
        else:
            self.averages = [w.detach().clone() for w in weights]
            groups = [{"params": [w], "weight_decay": float(d)} for w, d in zip(weights, self.decays, strict=True)]
            self.torch = torch.optim.Adam(groups, betas=BETAS, eps=eps)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the average is the weights; nothing is copied."""
        last = [w.data for w in self.weights]
        _point(self.weights, self.averages)
        try:
            yield
        finally:
            _point(self.weights, last)

    def step(self, rate: float) -> None:
        """Move the weights at a learning rate, and their average after them."""
        self.n_steps += 1
        kept = min(MEMORY, (1 + self.n_steps) / (10 + self.n_steps))  # early averages look back less far
        share = 1 - kept if self.n_steps <= 100 else 0.0 if self.n_steps % EVERY else 1 - kept**EVERY
        if self.torch is not None:
            torch.nn.utils.clip_grad_norm_(self.weights, self.clip)
            for group in self.torch.param_groups:
                group["lr"] = rate
            self.torch.step()
            for w, average in zip(self.weights, self.averages, strict=True) if share else ():
                average.lerp_(w.detach(), share)
            return
        from sccvae import layers

        for k, (w, place) in enumerate(zip(self.weights, self.places, strict=True)):
            if w.grad is None and self.moves[k]:
                place.zero_()
            elif w.grad is not None and w.grad is not place:  # a gradient of autograd's own
                w.grad = place.copy_(w.grad)
            self.moves[k] = w.grad is not None
        bias, square_bias = (1 - beta**self.n_steps for beta in BETAS)
        norm = math.sqrt(torch.dot(self.arrays[1], self.arrays[1]).item())
        scale = 1.0 if norm <= self.clip else self.clip / (norm + 1e-6)
        numbers = (rate / bias, 1 / math.sqrt(square_bias), *(1 - beta for beta in BETAS), share)
        with threads() as n_threads:
            arrays = [t.numpy() for t in self.arrays]
            layers.adam((self.ends, self.decays, self.moves), arrays, (*numbers, self.eps, scale), n_threads)


def _sizes(weights: list[torch.nn.Parameter]) -> list[int]:
    """Entries that each weight takes up."""
    return [-(-w.numel() // ALIGNED) * ALIGNED for w in weights]


def _side_by_side(weights: list[torch.nn.Parameter]) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    """Long arrays, (entries,), and each weight's views of them: values, gradient, mean, square, average."""
    sizes = _sizes(weights)
    arrays = [torch.zeros(sum(sizes)) for _ in range(5)]  # one by one: the values outlive the others
    views = [[t[: w.numel()].view_as(w) for w, t in zip(weights, a.split(sizes), strict=True)] for a in arrays]
    _set(views[0], weights)
    _set(views[-1], weights)
    return arrays, views


def _point(weights: list[torch.nn.Parameter], places: Sequence[torch.Tensor]) -> None:
    """Let weights be what stands at these places."""
    for w, place in zip(weights, places, strict=True):
        w.data = place


@torch.no_grad()
def _set(weights: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for w, value in zip(weights, values, strict=True):
        w.copy_(value)
