"""Arrays that a step reuses, and the buffers of gradients."""

import numpy as np
import torch
from torch.nn import Parameter

from sccvae.kernels.table import APART


class Workspace:
    """Arrays by name, kept from step to step: fresh memory costs as much as the arithmetic on it."""

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}
        self.views: dict[tuple, torch.Tensor] = {}

    def __call__(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the array of that name, with whatever it holds.

        Minibatches differ in size by one cell, so it is often a part of a larger one.
        """
        if (view := self.views.get((name, *shape))) is None:
            size = int(np.prod(shape))
            if name not in self.kept or self.kept[name].numel() < size:
                self.views = {key: view for key, view in self.views.items() if key[0] != name}
                self.kept[name] = torch.empty(size + 2 * APART, dtype=dtype)[APART : APART + size]
            view = self.views[(name, *shape)] = self.kept[name][:size].view(shape)
        return view


def gradient_buffer(weight: Parameter) -> torch.Tensor | None:
    """Return the tensor that the gradient of a parameter is written to; None for one that is frozen."""
    if not weight.requires_grad:
        return None
    if weight.grad is None:
        weight.grad = torch.empty_like(weight)
    return weight.grad


def buffer_or(keep: Workspace, name: str, weight: Parameter) -> torch.Tensor:
    """Return the buffer of a parameter; for one that is frozen, an array of that name, which nobody reads."""
    buffer = gradient_buffer(weight)
    return keep(name, *weight.shape) if buffer is None else buffer


def fill(weight: Parameter, grad: torch.Tensor | None) -> None:
    """Write a gradient, None for zero, to the buffer of a parameter that is not frozen."""
    if (buffer := gradient_buffer(weight)) is not None:
        buffer.zero_() if grad is None else buffer.copy_(grad)
