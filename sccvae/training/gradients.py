"""The gradients of a training step: by autograd, or the same numbers written out by hand (`manual_step`).

For the first half of a run the weights from hidden units to drop-outs wait: they do not move. They start at 0, where a
gene has one rate of drop-outs for all cells, and zero inflation must be earned: what cells differ in goes to their
expression first. While they are 0, half of the decoder's products need not be computed.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from sccvae.data.counts import Minibatch
from sccvae.kernels.reference import FUSED, fits
from sccvae.modules.networks import Block, CovariateOffset, Decoder, Dropout, Encoder, Linear, SparseLinear
from sccvae.modules.vae import VAE

# (minibatch, source of noise, KL weight, whether the drop-out head's weights wait)
# -> loss, (), and what `VAE.columns` names, (columns, cells). Every weight then has its gradient in `w.grad`; one
# that waits has none, or zeros.
Gradients = Callable[[Minibatch, torch.Generator, Any, bool], tuple[torch.Tensor, torch.Tensor]]
Precision = Literal["mixed", "full"]

# The classes that `manual_step` knows; torch's own hold them, or do nothing by themselves.
WRITTEN_BY_HAND = {
    *(VAE, Encoder, Decoder, Block, CovariateOffset, Dropout, Linear, SparseLinear),
    *(nn.LayerNorm, nn.ModuleList, nn.ParameterList),
}
DROPOUT_WAIT = 0.5  # share of a run in which the drop-out head waits


def gradients_of(vae: VAE, precision: Precision) -> Gradients:
    """Return the fastest way to the gradients of `vae`.

    Where an `optimizer.Adam` made buffers for them, they are put there.

    `mixed` lets the products by hand be of bfloat16 where the processor has them.
    """
    if not is_written_by_hand(vae):
        return Autograd(vae)
    from sccvae.training.manual_step import FASTEST, ByHand, Product  # imports numba

    return ByHand(vae, Autograd(vae), FASTEST if precision == "mixed" else Product)


def is_written_by_hand(vae: VAE) -> bool:
    """Whether `manual_step` computes what `vae.forward` does, and the gradients of exactly its trainable weights.

    A class derived from one of the parts, a hook, or a weight that is frozen is left to autograd. So are, within the
    step by hand, a likelihood and a term of the latent space that have no compiled version.
    """
    # Terms of the latent space are exempt: `term_gradients` gives every one to autograd that it has no version of.
    of_terms = {id(part) for term in vae.terms for part in term.modules()}
    parts = [part for part in vae.modules() if id(part) not in of_terms]
    known = all(type(part) in WRITTEN_BY_HAND for part in parts) and not any(map(_has_hooks, vae.modules()))
    compiled = vae.encoder.first.encode is FUSED.encode
    return known and compiled and all(fits(w) and w.requires_grad for w in vae.parameters())


def _has_hooks(part: nn.Module) -> bool:
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return any(hooks) or "forward" in vars(part)  # or another forward, set on the object


class Autograd:
    """Gradients of `VAE.forward` as autograd finds them, on any device and for every likelihood."""

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
        for w, by_w in zip(self.weights, torch.autograd.grad(loss, self.weights, allow_unused=True), strict=True):
            w.grad = by_w
        if waits and (dropout := self.vae.decoder.dropout) is not None:
            dropout.weight.grad = torch.zeros_like(dropout.weight)
        return loss.detach(), elbo.columns(kl_weight)
