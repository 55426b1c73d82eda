"""Adam (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980) with gradients clipped to a norm, and the weights' average.

On the CPU compiled, one pass over each weight. torch's own takes the same steps, but it spends a third of its time
on things other than arithmetic, and its first step imports torch's compiler: more than a second and 70 MB.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sccvae.kernels import threads

BETAS = (0.9, 0.999)
MEMORY = 0.98  # what the average keeps of itself at a step: it looks back some fifty steps


class Adam:
    """Steps of Adam on `weights`; the gradients as a whole are first scaled down to the norm `clip`.

    Beside the weights goes their exponential moving average over the steps (Polyak & Juditsky 1992,
    https://doi.org/10.1137/0330046), free of the noise of single minibatches: see `averaged`.

    Parameters
    ----------
    eps
        Added to the root of the mean square. 1e-4, not 1e-8: an entry that has hardly moved, such as a weight of a
        gene that few cells have, then takes small steps.
    weight_decay
        Multiple of the weights that is added to the gradients.
    """

    def __init__(self, weights: list[torch.nn.Parameter], *, clip: float, weight_decay: float, eps: float = 1e-4):
        self.weights, self.clip, self.weight_decay, self.eps = weights, clip, weight_decay, eps
        self.n_steps = 0
        self.averages = [w.detach().clone() for w in weights]
        self.torch: torch.optim.Adam | None = None
        if all(w.dtype == torch.float32 and w.device.type == "cpu" and w.is_contiguous() for w in weights):
            moments = [torch.zeros(2, w.numel()).numpy() for w in weights]
            self.arrays = [(w.detach().view(-1).numpy(), *m) for w, m in zip(weights, moments, strict=True)]
        else:
            self.torch = torch.optim.Adam(weights, betas=BETAS, eps=eps, weight_decay=weight_decay)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for w in self.weights:
            w.grad = None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the average is the weights."""
        last = [w.detach().clone() for w in self.weights]
        _set(self.weights, self.averages)
        try:
            yield
        finally:
            _set(self.weights, last)

    def step(self, rate: float) -> None:
        """Move the weights at a learning rate, and their average after them."""
        self._move(rate)
        share = 1 - min(MEMORY, (1 + self.n_steps) / (10 + self.n_steps))  # early averages look back less far
        with torch.no_grad():
            for w, average in zip(self.weights, self.averages, strict=True):
                average.lerp_(w, share)

    def _move(self, rate: float) -> None:
        self.n_steps += 1
        if self.torch is not None:
            torch.nn.utils.clip_grad_norm_(self.weights, self.clip)
            self.torch.param_groups[0]["lr"] = rate
            self.torch.step()
            return
        from sccvae import fused as compiled

        bias, square_bias = (1 - beta**self.n_steps for beta in BETAS)
        pairs = [(w.grad.reshape(-1), a) for w, a in zip(self.weights, self.arrays, strict=True) if w.grad is not None]
        norm = math.sqrt(sum(torch.dot(g, g).item() for g, _ in pairs))
        scale = 1.0 if norm <= self.clip else self.clip / (norm + 1e-6)
        rates = (rate / bias, 1 / math.sqrt(square_bias), [1 - beta for beta in BETAS])
        others = (self.eps, self.weight_decay, scale)
        with threads() as n_threads:
            for gradient, (w, mean, square) in pairs:
                compiled.adam((w, gradient.numpy(), mean, square), *rates, others, n_threads)


@torch.no_grad()
def _set(weights: list[torch.nn.Parameter], values: list[torch.Tensor]) -> None:
    for w, value in zip(weights, values, strict=True):
        w.copy_(value)
