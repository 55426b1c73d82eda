"""Normalised expression of codes, written where it is wanted.

On the CPU half of the time of a softmax over a fresh array is the system's, which clears the memory that each step
asks for. So the product goes into an array that is kept, and one compiled pass takes it from there to its place.
"""

import numpy as np
import torch

from sccvae.data.counts import Minibatch
from sccvae.kernels.parallel import alone, multiply
from sccvae.kernels.reference import fits
from sccvae.modules.vae import VAE

PRODUCT = 2**19  # values of a product at once: what is kept
PAGE = 1024  # float32 values in a page of memory


class Expressed:
    """Normalised expression by the decoder of `vae`; it keeps the array of one product."""

    def __init__(self, vae: VAE):
        self.vae, self.kept = vae, torch.empty(0, 0)
        self.compiled = vae.likelihood.is_compiled and all(map(fits, vae.decoder.parameters()))

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
        from sccvae.kernels.cpu import layers  # numba
        from sccvae.modules.offset_table import OffsetTable

        decoder, (n_cells, n_genes) = self.vae.decoder, out.shape
        hidden, shared = decoder.hidden(z, x), OffsetTable(decoder.logits.bias, decoder.offset)
        factors = np.broadcast_to(np.asarray(factor, np.float32), n_cells).copy()
        size = max(1, PRODUCT // n_genes)
        if len(self.kept) < min(size, n_cells):
            self.kept = torch.empty(min(size, n_cells), n_genes)
        for first in range(0, n_cells, size):
            rows = slice(first, min(first + size, n_cells))
            product = multiply(hidden[rows], decoder.logits.weight, self.kept[: rows.stop - first])
            table = shared.table(x.part(first, rows.stop))
            given = (t.numpy() for t in (product, table.values, table.row))
            arguments = (*given, factors[rows], add, out[rows].numpy())
            with alone() as n_threads:
                if n_threads > 1 and not add:
                    out[rows, ::PAGE] = 0  # memory that two threads touch first costs several times as much
                layers.expression(arguments)
