"""Gradients of a training step: by autograd, or derived by hand (`manual_step`).

The zero-inflation head is frozen for the first half of training. Its weights start at 0, where a gene has one
probability of zero inflation for all cells. Differences between cells are fitted by the expression first. While the
weights are 0, half of the decoder's products are not computed.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from sccvae.data.counts import Minibatch
from sccvae.kernels.reference import fits
from sccvae.modules.networks import Block, CovariateOffset, Decoder, Dropout, Encoder, Linear, SparseLinear
from sccvae.modules.vae import VAE

# (minibatch, source of noise, KL weight, whether the zero-inflation head is frozen)
# -> loss, (), and what `VAE.columns` names, (columns, cells). Every parameter then has its gradient in `w.grad`;
# a frozen one has none, or zeros.
Gradients = Callable[[Minibatch, torch.Generator, Any, bool], tuple[torch.Tensor, torch.Tensor]]
Precision = Literal["mixed", "full"]

# The classes that `manual_step` knows; torch's own hold them, or do nothing by themselves.
WRITTEN_BY_HAND = {
    *(VAE, Encoder, Decoder, Block, CovariateOffset, Dropout, Linear, SparseLinear),
    *(nn.LayerNorm, nn.ModuleList, nn.ParameterList),
}
DROPOUT_WAIT = 0.5  # fraction of a run in which the zero-inflation head is frozen


def gradients_of(vae: VAE, precision: Precision) -> Gradients:
    """Return the fastest way to the gradients of `vae`.

    Where an `optimizer.Adam` made buffers for them, they are put there. `mixed` lets the products of the step by hand
    be of bfloat16 where the processor supports them.
    """
    if vae.kernels.operations is None or not is_known(vae) or not all(map(fits, vae.parameters())):
        return Autograd(vae)
    from sccvae.training.manual_step import BFloat16Product, ManualStep, Product

    product = BFloat16Product if precision == "mixed" and bfloat16_is_fast() else Product
    return ManualStep(vae, vae.kernels.operations(), Autograd(vae), product)


def bfloat16_is_fast() -> bool:
    """Return whether the processor multiplies bfloat16; where it does not, such products are slower than float32's."""
    from sccvae.kernels.cpu.vector_math import BFLOAT16  # numba

    return BFLOAT16 and torch.backends.mkldnn.is_available()


def is_known(vae: VAE) -> bool:
    """Return whether `manual_step` computes what `vae.forward` does.

    A class derived from one of the parts, and a hook, are left to autograd. So are, within the step by hand, a
    likelihood and a term of the latent space that have no compiled version.
    """
    of_terms = {id(part) for term in vae.terms for part in term.modules()}
    known = all(type(part) in WRITTEN_BY_HAND or id(part) in of_terms for part in vae.modules())
    return known and not any(map(_has_hooks, vae.modules()))


def _has_hooks(part: nn.Module) -> bool:
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return any(hooks) or "forward" in vars(part)  # or another forward, set on the object


class Autograd:
    """Gradients of `VAE.forward` by autograd, on any device and for every likelihood."""

    def __init__(self, vae: VAE):
        self.vae, self.weights = vae, [w for w in vae.parameters() if w.requires_grad]

    def __call__(
        self, x: Minibatch, noise: torch.Generator, kl_weight: float | torch.Tensor, waits: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Gradients`."""
        elbo = self.vae(x, noise)
        loss = elbo.loss(kl_weight)
        self.vae.zero_grad()
        # Not `backward`, which adds to gradients that are there: a recorded step must not depend on the one before.
        for w, grad_w in zip(self.weights, torch.autograd.grad(loss, self.weights, allow_unused=True), strict=True):
            w.grad = grad_w
        if waits and (dropout := self.vae.decoder.dropout) is not None:
            dropout.weight.grad = torch.zeros_like(dropout.weight)
        return loss.detach(), elbo.columns(kl_weight)
