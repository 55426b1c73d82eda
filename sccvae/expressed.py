"""Normalised expression of codes, written where it is wanted.

On the CPU half of the time of a softmax over a fresh array is the system's, which clears the memory that each step
asks for. So the product goes into an array that is kept, and one compiled pass takes it from there to its place.
"""

import numpy as np
import torch

from sccvae.data import Minibatch
from sccvae.kernels import FUSED, fits, threads
from sccvae.vae import VAE


class Expressed:
    """Normalised expression by the decoder of `vae`; it keeps an array of one chunk."""

    def __init__(self, vae: VAE):
        self.vae, self.kept = vae, torch.empty(0)
        counts = vae.likelihood.has_library and vae.likelihood.kernel is FUSED.likelihood
        self.compiled = counts and all(map(fits, vae.decoder.parameters()))

    @torch.no_grad()
    def into(
        self, out: torch.Tensor, z: torch.Tensor, x: Minibatch, factor: torch.Tensor | float = 1.0, *, add: bool = False
    ) -> None:
        """Fill out, (cells, genes), with `factor`, (cells,) or one number, times the expression, or add that to it."""
        if not self.compiled:
            rho = self.vae.likelihood.expression(self.vae.decoder(z, x, only_logits=True))
            rho = rho * (factor[:, None] if isinstance(factor, torch.Tensor) else factor)
            (out.add_ if add else out.copy_)(rho)
            return
        from sccvae import backprop, layers  # numba

        decoder = self.vae.decoder
        if self.kept.numel() < out.numel():
            self.kept = torch.empty(out.numel())
        product = self.kept[: out.numel()].view(out.shape)
        torch.mm(decoder.hidden(z, x), decoder.logits.weight, out=product)
        table = backprop.Shared(decoder.logits.bias, decoder.offset).table(x)
        factors = np.broadcast_to(np.asarray(factor, np.float32), len(out)).copy()
        with threads() as n_threads:
            layers.expression((product.numpy(), table.values, table.row, factors, add, out.numpy()), n_threads)
