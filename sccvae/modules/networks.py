"""Encoder x -> q(z|x), q(log l|x), and decoder z -> heads. All noise comes from the generator that is passed."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from sccvae.data.counts import Minibatch
from sccvae.kernels.parallel import affine
from sccvae.kernels.reference import plain_encode
from sccvae.modules.architecture import Architecture
from sccvae.modules.distributions import Gaussian
from sccvae.modules.likelihoods import LIKELIHOODS, Decoded

BOUNDS_Z, BOUNDS_L = (-12.0, 8.0, 1e-6), (-12.0, 4.0, 0.0)  # log variances: lowest, highest; added to the variance
LEAST_L = -0.2  # lowest mean of log l less the log of the observed library size; see `Encoder`
LOG_THETA = 0.5  # where dispersions start: a small theta excuses a poor mean


class Linear(nn.Module):
    """h @ weight + bias, with Xavier weights from `generator` (or zeros) and the same bias everywhere.

    The weight lies as (n_in, n_out), unlike torch's: its gradient then comes out contiguous and is never copied.
    """

    def __init__(self, n_in: int, n_out: int, generator: torch.Generator, *, zero: bool = False, bias: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_in, n_out))
        self.bias = nn.Parameter(torch.full((n_out,), bias))
        if not zero:
            nn.init.xavier_uniform_(self.weight, generator=generator)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(cells, n_in) -> (cells, n_out)."""
        return affine(h, self.weight, self.bias)


class SparseLinear(nn.Module):
    """Linear layer of sparse input: each cell sums the rows of the weight at its nonzero values."""

    def __init__(self, n_in: int, n_out: int, generator: torch.Generator, encode: Callable = plain_encode):
        super().__init__()
        self.encode = encode
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))
        nn.init.xavier_uniform_(self.weight, generator=generator)

    def forward(self, x: Minibatch, scale: torch.Tensor | None) -> torch.Tensor:
        """(cells, n_out), from log1p(scale * counts), or from the values themselves without a `scale`, (cells,)."""
        return self.encode(x, scale, self.weight) + self.bias


class CovariateOffset(nn.Module):
    """Covariate offset of a layer: one-hot columns of its input, computed as a gather."""

    def __init__(self, n_levels: tuple[int, ...], n_continuous: int, n_out: int):
        super().__init__()
        # A covariate with one level would only repeat the bias.
        self.used = [column for column, n in enumerate(n_levels) if n > 1]
        self.levels = nn.ParameterList(torch.zeros(n_levels[column], n_out) for column in self.used)
        if n_continuous:
            self.slopes = nn.Parameter(torch.zeros(n_continuous, n_out))

    def forward(self, h: torch.Tensor, x: Minibatch) -> torch.Tensor:
        """`h` plus the offset, (cells, n_out)."""
        for column, levels in zip(self.used, self.levels, strict=True):
            h = h + F.embedding(x.codes[:, column], levels)
        return h + x.continuous @ self.slopes if hasattr(self, "slopes") else h


def noise_of_units(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device | str = "cpu"):
    """Uniform int16, four from each number drawn: drawing floats takes three times as long."""
    n = math.prod(shape)
    drawn = torch.empty(-(-n // 4), dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)
    return drawn.view(torch.int16)[:n].view(shape)


class Dropout(nn.Module):
    """Dropout with noise from the generator that is passed."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    @property
    def lowest(self) -> int:
        """The lowest `noise_of_units` of a unit that is kept."""
        return min(round(2**16 * self.rate), 2**16 - 1) - 2**15

    def forward(self, h: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """`h` as it is in evaluation; in training, entries zeroed with probability `rate`, the rest scaled up."""
        if not self.training or self.rate == 0:
            return h
        kept = noise_of_units(tuple(h.shape), generator, h.device) >= self.lowest
        return h * kept.to(h.dtype).div_(1 - self.rate)


class Block(nn.Module):
    """Hidden block after a linear map: covariate offset, layer norm, ReLU, dropout.

    Layer norm, not batch norm: the embedding of a cell does not depend on the other cells of the minibatch.
    """

    def __init__(self, n_hidden: int, n_levels: tuple[int, ...], n_continuous: int, dropout_rate: float):
        super().__init__()
        self.offset = CovariateOffset(n_levels, n_continuous, n_hidden)
        self.norm = nn.LayerNorm(n_hidden)
        self.dropout = Dropout(dropout_rate)

    def forward(self, h: torch.Tensor, x: Minibatch, generator: torch.Generator | None) -> torch.Tensor:
        """(cells, n_hidden) -> (cells, n_hidden)."""
        return self.dropout(F.relu(self.norm(self.offset(h, x))), generator)


class Encoder(nn.Module):
    """q(z|x) and q(log l|x), from log(1 + x) of the counts scaled to a common total.

    The median of q(l|x) is at least exp(`LEAST_L`) = 0.82 of the observed library size: zero inflation tells of more
    molecules than were seen, and nothing of fewer. Without that, the likelihood takes the high counts of a few widely
    dispersed genes, which weigh little in it, for chance: a deep plasma cell, nine tenths of whose molecules are of
    immunoglobulins, was given a third of its counts.
    """

    log_target: torch.Tensor  # () log of that total

    def __init__(self, a: Architecture, generator: torch.Generator, encode: Callable = plain_encode):
        super().__init__()
        n_hidden, covariates = a.widths[0], (a.n_levels, a.n_continuous) if a.encode_covariates else ((), 0)
        self.takes_counts = LIKELIHOODS[a.gene_likelihood].support == "counts"
        self.first = SparseLinear(a.n_genes, n_hidden, generator, encode)
        self.linears = nn.ModuleList(Linear(n_hidden, n_hidden, generator) for _ in range(a.n_layers - 1))
        self.blocks = nn.ModuleList(Block(n_hidden, *covariates, a.dropout_rate) for _ in range(a.n_layers))
        self.z = Linear(n_hidden, 2 * a.n_latent, generator, zero=True)  # mean and log variance of q(z|x)
        nn.init.xavier_uniform_(self.z.weight[:, : a.n_latent], generator=generator)
        self.register_buffer("log_target", torch.zeros(()))
        self.library = Linear(n_hidden, 2, generator, zero=True) if a.infers_library else None
        if self.library is not None:
            nn.init.constant_(self.library.bias[1:], -4.0)  # the observed total is a good guess: start sure of it

    def scale(self, x: Minibatch) -> torch.Tensor | None:
        """Return what the counts of each cell are multiplied by, (cells,); None for values that are not counts."""
        return torch.exp(self.log_target - x.log_total) if self.takes_counts else None

    def forward(self, x: Minibatch, generator: torch.Generator | None = None) -> tuple[Gaussian, Gaussian | None]:
        """q(z|x), (cells, n_latent), and q(log l|x), (cells,), None where the library is observed or absent."""
        h = self.blocks[0](self.first(x, self.scale(x)), x, generator)
        for layer, block in zip(self.linears, self.blocks[1:], strict=True):
            h = block(layer(h), x, generator)
        mean, log_variance = self.z(h).chunk(2, dim=1)
        q_z = Gaussian(mean, log_variance.clamp(*BOUNDS_Z[:2]).exp() + BOUNDS_Z[2])
        if self.library is None:
            return q_z, None
        residual, log_variance = self.library(h).unbind(1)
        return q_z, Gaussian(x.log_size + residual.clamp(min=LEAST_L), log_variance.clamp(*BOUNDS_L[:2]).exp())


class Decoder(nn.Module):
    """Decoder: z and covariates -> the heads of the likelihood (logits, dispersion, zero-inflation logits)."""

    def __init__(self, a: Architecture, generator: torch.Generator):
        super().__init__()
        kind, n_hidden, covariates = LIKELIHOODS[a.gene_likelihood], a.widths[1], (a.n_levels, a.n_continuous)
        sizes = [a.n_latent] + [n_hidden] * a.n_layers
        self.linears = nn.ModuleList(Linear(m, n, generator) for m, n in itertools.pairwise(sizes))
        self.blocks = nn.ModuleList(Block(n_hidden, *covariates, 0.0) for _ in range(a.n_layers))
        self.logits = Linear(n_hidden, a.n_genes, generator)
        self.offset = CovariateOffset(*covariates, a.n_genes)
        self.dispersion = a.dispersion if kind.has_dispersion else None
        self.per_cell = self.dispersion == "gene-cell"
        if self.per_cell:
            self.dispersion_head = Linear(n_hidden, a.n_genes, generator, zero=True, bias=LOG_THETA)
        elif self.dispersion is not None:
            n_rows = a.n_levels[0] if self.dispersion == "gene-batch" else 1
            self.log_dispersion = nn.Parameter(torch.full((n_rows, a.n_genes), LOG_THETA))
        # Zero inflation starts near none.
        self.dropout = Linear(n_hidden, a.n_genes, generator, zero=True, bias=-3.0) if kind.has_dropout else None

    def forward(
        self, z: torch.Tensor, x: Minibatch, generator: torch.Generator | None = None, *, only_logits: bool = False
    ) -> Decoded:
        """(cells, n_latent) -> heads, (cells, n_genes) each; of `x` only the covariates are read."""
        return self.heads(self.hidden(z, x, generator), x, only_logits=only_logits)

    def heads(self, h: torch.Tensor, x: Minibatch, *, only_logits: bool = False) -> Decoded:
        """(cells, n_hidden) -> heads, (cells, n_genes) each."""
        logits = self.offset(self.logits(h), x)
        if only_logits:
            return Decoded(logits, None, None)
        dropout = None if self.dropout is None else self.dropout(h)
        return Decoded(logits, self._log_dispersion(h, x), dropout)

    def hidden(self, h: torch.Tensor, x: Minibatch, generator: torch.Generator | None = None) -> torch.Tensor:
        """(cells, n_latent) -> what the heads read, (cells, n_hidden)."""
        for layer, block in zip(self.linears, self.blocks, strict=True):
            h = block(layer(h), x, generator)
        return h

    def _log_dispersion(self, h: torch.Tensor, x: Minibatch) -> torch.Tensor | None:
        if self.per_cell:
            return self.dispersion_head(h)
        if self.dispersion == "gene-batch":
            return F.embedding(x.codes[:, 0], self.log_dispersion)
        return None if self.dispersion is None else self.log_dispersion[0]
