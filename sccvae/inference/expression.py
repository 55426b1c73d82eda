"""Normalised expression decoded from z, written into a given array.

On the CPU half of the time of a softmax into a new array is spent by the system, which clears the memory allocated at
each step. The matrix product is therefore written into a reused buffer, and one compiled pass writes the softmax of the
buffer into the output.
"""

import numpy as np
import torch

from sccvae.data.counts import Minibatch
from sccvae.kernels.parallel import alone, multiply
from sccvae.kernels.reference import fits
from sccvae.modules.vae import VAE

PRODUCT = 2**19  # values of the product buffer
PAGE = 1024  # float32 values in a page of memory


class Expressed:
    """Normalised expression by the decoder of `vae`, with a buffer for one matrix product."""

    def __init__(self, vae: VAE):
        self.vae, self.buffer = vae, torch.empty(0, 0)
        self.compiled = vae.likelihood.is_compiled and all(map(fits, vae.decoder.parameters()))

    @torch.no_grad()
    def into(
        self, out: torch.Tensor, z: torch.Tensor, x: Minibatch, factor: torch.Tensor | float = 1.0, *, add: bool = False
    ) -> None:
        """Write `factor`, (cells,) or a number, times the expression into `out`, (cells, genes); add if `add`."""
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
        if len(self.buffer) < min(size, n_cells):
            self.buffer = torch.empty(min(size, n_cells), n_genes)
        for first in range(0, n_cells, size):
            rows = slice(first, min(first + size, n_cells))
            product = multiply(hidden[rows], decoder.logits.weight, self.buffer[: rows.stop - first])
            table = shared.table(x.part(first, rows.stop))
            given = (t.numpy() for t in (product, table.values, table.row))
            arguments = (*given, factors[rows], add, out[rows].numpy())
            with alone() as n_threads:
                if n_threads > 1 and not add:
                    out[rows, ::PAGE] = 0  # touch pages in one thread: first touches by two are several times slower
                layers.expression(arguments)
