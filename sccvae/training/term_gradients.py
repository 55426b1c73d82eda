"""Values and gradients of the terms of the latent space in the step derived by hand.

A version of the table of operations is taken for exactly the class that it is registered for; every other term is
computed by autograd.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import Parameter

from sccvae.data.counts import Minibatch
from sccvae.kernels.table import Operations
from sccvae.modules.batch_penalty import NEIGHBOURS, SMOOTHING, WIDTH
from sccvae.modules.distributions import Gaussian
from sccvae.modules.latent_terms import FASTER, FLOOR, BatchPenalty, LabelledPrior, LatentTerm, MixturePrior
from sccvae.training.workspace import Workspace, buffer_or, fill


class TermResult(NamedTuple):
    """Value of a term, and the gradients of `scale` times its mean over cells; None where there is none."""

    value: torch.Tensor  # (cells,) nats
    grad_z: torch.Tensor | None = None  # (cells, n_latent)
    grad_mean: torch.Tensor | None = None
    grad_variance: torch.Tensor | None = None
    penalty: torch.Tensor | None = None  # (cells,) nats of the term's own penalty; the gradients include its own


class PriorGradients:
    """`MixturePrior` by the table of operations."""

    def __init__(self, prior: MixturePrior, operations: Operations):
        self.weights: tuple[Parameter, ...] = (prior.logits, prior.mean, prior.log_variance)
        self.operations = operations
        self.arrays = Workspace()

    def __call__(self, q: Gaussian, z: torch.Tensor, x: Minibatch, scale: float) -> TermResult:
        """Return value and gradients; fill the gradients of the parameters."""
        weights, buffers = [w.detach() for w in self.weights], []
        for k, w in enumerate(self.weights):
            buffers.append(buffer_or(self.arrays, f"grad_{k}", w))
        given = (self.arrays, z, *weights, FLOOR, scale / len(z))
        return TermResult(*self.operations.mixture_prior(*given, *buffers))


class LabelledGradients(PriorGradients):
    """`LabelledPrior` by the table of operations."""

    def __init__(self, prior: LabelledPrior, operations: Operations):
        super().__init__(prior, operations)
        self.weights, self.weight = (*self.weights, prior.label_logits), prior.weight

    def __call__(self, q: Gaussian, z: torch.Tensor, x: Minibatch, scale: float) -> TermResult:
        """Return values and gradients; fill the gradients of the parameters."""
        logits, mean, log_variance, label_logits = (w.detach() for w in self.weights)
        buffers = [buffer_or(self.arrays, f"grad_{k}", w) for k, w in enumerate(self.weights)]
        weights = FASTER * logits, mean, log_variance, FASTER * label_logits
        given = (self.arrays, z, *weights, x.labels, FLOOR, scale / len(z), self.weight / len(z))
        value, penalty, grad_z = self.operations.labelled_prior(*given, *buffers)
        for grad in (buffers[0], buffers[-1]):
            grad.mul_(FASTER)
        return TermResult(value, grad_z, penalty=self.weight * penalty)


class PenaltyGradients:
    """`BatchPenalty` by the table of operations."""

    def __init__(self, penalty: BatchPenalty, operations: Operations):
        self.weight, self.operations, self.arrays = penalty.weight, operations, Workspace()

    def __call__(self, q: Gaussian, z: torch.Tensor, x: Minibatch, scale: float) -> TermResult:
        """Return value and gradient."""
        n, copies = x.n_cells, x.copies
        if n < 3 * copies:
            return TermResult(q.mean.new_zeros(n))
        numbers = copies, WIDTH, SMOOTHING, min(NEIGHBOURS, n - copies)
        value, grad_mean = self.operations.own_batch_excess(self.arrays, q.mean, x.codes[:, 0], *numbers)
        weight = np.float32(self.weight) * np.float32(scale) / np.float32(n)
        return TermResult(self.weight * value, grad_mean=float(weight) * grad_mean)


class ByAutograd:
    """Any term."""

    def __init__(self, term: LatentTerm, operations: Operations):
        self.term, self.weights = term, [w for w in term.parameters() if w.requires_grad]

    def __call__(self, q: Gaussian, z: torch.Tensor, x: Minibatch, scale: float) -> TermResult:
        """Return value and gradients; fill the gradients of the parameters."""
        grads: Any
        with torch.enable_grad():
            inputs = [t.detach().clone().requires_grad_() for t in (z, q.mean, q.variance)]
            value = self.term(Gaussian(*inputs[1:]), inputs[0], x)
            penalty = None if self.term.own_penalty is None else self.term.penalty(inputs[0], x)
            asked, loss = [*inputs, *self.weights], scale * value.mean()
            loss = loss if penalty is None else loss + penalty.mean()
            # A term may be constant, such as in a minibatch without a labelled cell.
            grads = [None] * len(asked)
            if loss.requires_grad:
                grads = torch.autograd.grad(loss, asked, allow_unused=True)
        for w, grad in zip(self.weights, grads[3:], strict=True):
            fill(w, grad)
        return TermResult(value.detach(), *grads[:3])._replace(penalty=None if penalty is None else penalty.detach())


BY_THE_TABLE: dict[type[LatentTerm], type] = {
    MixturePrior: PriorGradients,
    LabelledPrior: LabelledGradients,
    BatchPenalty: PenaltyGradients,
}


def gradients_of_term(term: LatentTerm, operations: Operations):
    """Return the function (q, z, x, scale) -> `TermResult` of a term."""
    return BY_THE_TABLE.get(type(term), ByAutograd)(term, operations)


def total(gradients: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Return the sum of those that there are."""
    there = [grad for grad in gradients if grad is not None]
    return sum(there[1:], start=there[0]) if there else None
