"""Adam (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980) with gradients clipped to a norm.

On the CPU compiled, one pass over each weight. torch's own takes the same steps, but it spends a third of its time
on things other than arithmetic, and its first step imports torch's compiler: more than a second and 70 MB.
"""

import math

import torch

from sccvae.kernels import threads

BETAS = (0.9, 0.999)
ALIGNED = 16  # entries, 64 bytes: where every weight begins


class Adam:
    """Steps of Adam on `weights`; the gradients as a whole are first scaled down to the norm `clip`.

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
        self.torch: torch.optim.Adam | None = None
        if all(w.dtype == torch.float32 and w.device.type == "cpu" for w in weights):
            self.flat, self.gradient, self.places = _side_by_side(weights)
            self.moments = torch.zeros(2, len(self.flat))
        else:
            self.torch = torch.optim.Adam(weights, betas=BETAS, eps=eps, weight_decay=weight_decay)

    def step(self, rate: float) -> None:
        """Move the weights at a learning rate."""
        self.n_steps += 1
        if self.torch is not None:
            torch.nn.utils.clip_grad_norm_(self.weights, self.clip)
            self.torch.param_groups[0]["lr"] = rate
            self.torch.step()
            return
        from sccvae import layers

        for w, place in zip(self.weights, self.places, strict=True):
            if w.grad is not place:  # a gradient of autograd's own, or none
                w.grad = place.zero_() if w.grad is None else place.copy_(w.grad)
        bias, square_bias = (1 - beta**self.n_steps for beta in BETAS)
        norm = math.sqrt(torch.dot(self.gradient, self.gradient).item())
        scale = 1.0 if norm <= self.clip else self.clip / (norm + 1e-6)
        rates = (rate / bias, 1 / math.sqrt(square_bias), [1 - beta for beta in BETAS])
        arrays = [t.numpy() for t in (self.flat, self.gradient, *self.moments)]
        with threads() as n_threads:
            layers.adam(arrays, *rates, (self.eps, self.weight_decay, scale), n_threads)


def _side_by_side(weights: list[torch.nn.Parameter]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Move the weights into one array, (entries,); one for their gradients; the place of each in it, now `w.grad`."""
    sizes = [-(-w.numel() // ALIGNED) * ALIGNED for w in weights]
    flat, gradient = torch.zeros(2, sum(sizes))
    places = []
    for w, values, by_values in zip(weights, flat.split(sizes), gradient.split(sizes), strict=True):
        w.data = values[: w.numel()].view_as(w).copy_(w.data)
        place = by_values[: w.numel()].view_as(w)
        w.grad = place if w.grad is None else place.copy_(w.grad)
        places.append(place)
    return flat, gradient, places
