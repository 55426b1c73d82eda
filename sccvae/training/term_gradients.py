"""Values and gradients of the terms of the latent space in the step derived by hand.

A compiled version is taken for exactly the class that it is registered for; every other term is computed by autograd.
"""

from typing import NamedTuple

import numpy as np
import torch

from sccvae.data.counts import Minibatch
from sccvae.kernels.cpu import latent
from sccvae.modules.batch_penalty import NEIGHBOURS, SMOOTHING, WIDTH
from sccvae.modules.distributions import Gaussian
from sccvae.modules.latent_terms import FLOOR, BatchPenalty, LatentTerm, MixturePrior
from sccvae.modules.offset_table import codes_of
from sccvae.training.workspace import Workspace, array, gradient_buffer


class TermResult(NamedTuple):
    """A term's value, and the gradients of `scale` times its mean over cells; None where there is none."""

    value: np.ndarray  # (cells,) nats
    by_z: np.ndarray | None = None  # (cells, n_latent)
    by_mean: np.ndarray | None = None
    by_variance: np.ndarray | None = None


class CompiledPrior:
    """`MixturePrior`."""

    def __init__(self, prior: MixturePrior):
        self.weights, self.arrays = (prior.logits, prior.mean, prior.log_variance), Workspace()

    def __call__(self, q: Gaussian, z: torch.Tensor, x: Minibatch, scale: float) -> TermResult:
        """Return value and gradients; those of the parameters are put into their buffers."""
        n_cells, n = z.shape
        value, by_z = np.empty(n_cells, np.float32), self.arrays("by_z", n, n_cells).numpy()
        share = self.arrays("share", len(self.weights[0]), n_cells).numpy()
        given, buffers = map(array, self.weights), (gradient_buffer(w).numpy() for w in self.weights)
        numbers = np.float32(FLOOR), np.float32(scale / n_cells)
        latent.mixture_prior(np.ascontiguousarray(array(z).T), *given, *numbers, share, value, by_z, *buffers)
        return TermResult(value, by_z.T)


class CompiledPenalty:
    """`BatchPenalty`."""

    def __init__(self, penalty: BatchPenalty):
        self.weight = np.float32(penalty.weight)

    def __call__(self, q: Gaussian, z: torch.Tensor, x: Minibatch, scale: float) -> TermResult:
        """Return value and gradient."""
        n, copies, value = x.n_cells, x.copies, np.zeros(x.n_cells, np.float32)
        if n < 3 * copies:
            return TermResult(value)
        numbers = copies, np.float32(WIDTH), np.float32(SMOOTHING), min(NEIGHBOURS, n - copies)
        by_mean = latent.own_batch_excess((np.ascontiguousarray(array(q.mean).T), codes_of(x, 0), *numbers, value))
        return TermResult(self.weight * value, by_mean=self.weight * np.float32(scale) / np.float32(n) * by_mean.T)


class ByAutograd:
    """Any term."""

    def __init__(self, term: LatentTerm):
        self.term, self.weights = term, list(term.parameters())

    def __call__(self, q: Gaussian, z: torch.Tensor, x: Minibatch, scale: float) -> TermResult:
        """Return value and gradients; those of the parameters are put into their buffers."""
        with torch.enable_grad():
            inputs = [t.detach().clone().requires_grad_() for t in (z, q.mean, q.variance)]
            value = self.term(Gaussian(*inputs[1:]), inputs[0], x)
            asked = [*inputs, *self.weights]
            # A term may be constant, such as in a minibatch without a labelled cell.
            by = (
                torch.autograd.grad(scale * value.mean(), asked, allow_unused=True)
                if value.requires_grad
                else [None] * len(asked)
            )
        for w, by_w in zip(self.weights, by[3:], strict=True):
            gradient_buffer(w).zero_() if by_w is None else gradient_buffer(w).copy_(by_w)
        return TermResult(array(value), *(None if t is None else t.numpy() for t in by[:3]))


COMPILED: dict[type[LatentTerm], type] = {MixturePrior: CompiledPrior, BatchPenalty: CompiledPenalty}


def gradients_of_term(term: LatentTerm):
    """Return the function (q, z, x, scale) -> `TermResult` of a term."""
    return COMPILED.get(type(term), ByAutograd)(term)
