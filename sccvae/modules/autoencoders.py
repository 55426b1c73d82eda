"""Autoencoder and denoising autoencoder: networks without a prior, and the Markov chain of the latter.

With the encoder's mean as the code, f(x), and the decoder's distribution of x:

    autoencoder             maximise  log p(x | f(x))
    denoising autoencoder   maximise  log p(x | f(x~)),  x~ ~ C(x~ | x)

Alternating the corruption and the reconstruction distribution,

    x~_t ~ C(x~ | x_t),   x_(t+1) ~ p(x | f(x~_t)),

is a Markov chain whose stationary distribution estimates that of the data (Bengio, Yao, Alain & Vincent 2013,
"Generalized Denoising Auto-Encoders as Generative Models", https://arxiv.org/abs/1305.6663, theorem 1). Walkback
(algorithm 1 there) trains on what that chain visits: from a cell it goes on for another step with probability p, and
every corrupted point on the way is to give back the cell itself, so that modes that no cell is near are left.

**Library size.** A chain of counts walks at a fixed library size l, the one of the cell it starts from: what it samples
is p(x | l), and l has its own distribution. Had each step to take the total of the counts before, the totals would walk
at random, since nothing but sampling noise moves them, and no stationary distribution would exist. The encoder sees
counts at a common depth, so it need not know l, nor how many molecules the corruption has cost.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse as sp
import torch

from sccvae.corruption import Corruption
from sccvae.data.counts import Counts, Minibatch
from sccvae.kernels.reference import PLAIN, Kernels
from sccvae.modules.architecture import Architecture
from sccvae.modules.vae import VAE, Elbo


class Reconstructor(VAE):
    """Autoencoder of the module's heading.

    It has a VAE's weights and no other; the encoder's variance is not used.

    Parameters
    ----------
    architecture, generator, kernels
        As for `VAE`; the library is observed.
    scale
        Standard deviation of the `normal` likelihood, held fixed; None learns one for each gene.
    """

    code_mean: torch.Tensor  # (n_latent,) of the codes of the training cells
    code_factor: torch.Tensor  # (n_latent, n_latent), lower triangular: their covariance is factor @ factor.T

    def __init__(
        self,
        architecture: Architecture,
        generator: torch.Generator,
        kernels: Kernels = PLAIN,
        *,
        scale: float | None = None,
    ):
        super().__init__(architecture, generator, kernels)
        self.scale = scale
        if scale is not None:
            self.decoder.log_dispersion.requires_grad_(False).fill_(float(np.log(scale)))
        self.register_buffer("code_mean", torch.zeros(architecture.n_latent))
        self.register_buffer("code_factor", torch.zeros(architecture.n_latent, architecture.n_latent).fill_diagonal_(1))

    @torch.no_grad()
    def start_from(self, counts: Counts) -> None:
        """Set what the data tell before the first step, as `VAE` does, but for a scale that is held."""
        super().start_from(counts)
        if self.scale is not None:
            self.decoder.log_dispersion.fill_(float(np.log(self.scale)))

    def forward(self, x: Minibatch, generator: torch.Generator) -> Elbo:
        """Log p(x | f(x)) of each cell, and no divergence."""
        return self.explain(x, x, generator)

    def explain(self, given: Minibatch, target: Minibatch, generator: torch.Generator) -> Elbo:
        """Log p(target | f(given)), row by row, at the target's library size and covariates."""
        code = self.encoder(given, generator)[0].mean
        decoded, cost = self.decoder(code, target, generator), self.architecture.dropout_cost
        value, dropouts = self.likelihood.log_prob(target, decoded, target.log_size, cost)
        none = torch.zeros_like(value)
        return Elbo(value + cost * dropouts, none, none, cost * dropouts)

    @torch.no_grad()
    def remember_codes(self, codes: np.ndarray) -> None:
        """Keep mean and covariance of codes, (cells, n_latent)."""
        codes = codes.astype(np.float64)
        covariance = np.cov(codes.T, bias=True).reshape(codes.shape[1], -1)
        # A code that does not vary would leave no factor.
        covariance += 1e-6 * max(covariance.trace() / len(covariance), 1e-6) * np.eye(len(covariance))
        self.code_mean.copy_(torch.from_numpy(codes.mean(0)))
        self.code_factor.copy_(torch.from_numpy(np.linalg.cholesky(covariance)))


class Denoiser(Reconstructor):
    """Denoising autoencoder of the module's heading, and its Markov chain.

    Parameters
    ----------
    architecture, generator, kernels, scale
        As for `Reconstructor`.
    corruption
        Processes, applied one after another.
    continuation
        Walkback's probability of another step of the chain, in [0, 1); 0 corrupts each cell once.
    """

    def __init__(
        self,
        architecture: Architecture,
        generator: torch.Generator,
        kernels: Kernels = PLAIN,
        *,
        scale: float | None = None,
        corruption: Sequence[Corruption],
        continuation: float,
    ):
        super().__init__(architecture, generator, kernels, scale=scale)
        self.corruption, self.continuation = tuple(corruption), continuation

    def forward(self, x: Minibatch, generator: torch.Generator) -> Elbo:
        """Log p(x | f(x~)), a row for each corrupted point that the chains from `x` visit: (points,)."""
        given, cells = self.visit(x, numpy_generator(generator))
        return self.explain(given, gathered(x, cells), generator)

    @torch.no_grad()
    def visit(self, x: Minibatch, rng: np.random.Generator) -> tuple[Minibatch, np.ndarray]:
        """Corrupted points on the chains that start at the cells of `x`: their values, and the cell each came from.

        A chain visits k points with probability (1 - p) p^(k - 1). All points are collected before any of them is
        learnt from, so that one pass through the networks serves them all.
        """
        lengths = rng.geometric(1 - self.continuation, size=x.n_cells)
        cells, state = np.arange(x.n_cells), matrix_of(x)
        points, origins, training = [], [], self.training
        self.eval()  # the chain that is sampled has no dropout of hidden units
        while True:
            corrupted = self.corrupt(state, rng)
            points.append(corrupted)
            origins.append(cells)
            goes_on = lengths[cells] > len(points)
            if not goes_on.any():
                break
            cells = cells[goes_on]
            state, _ = self.reconstruct(corrupted[goes_on], gathered(x, cells), rng)
        self.train(training)
        origin = np.concatenate(origins)
        return with_values(gathered(x, origin), sp.vstack(points, format="csr")), origin

    @torch.no_grad()
    def chain(
        self, state: sp.csr_matrix, along: Minibatch, rng: np.random.Generator
    ) -> Iterator[tuple[sp.csr_matrix, np.ndarray]]:
        """Step without end, a chain for each row of `state`: x (chains, genes), and the codes that it was drawn from.

        Of `along`, library size and covariates are read; they stay what they are.
        """
        while True:
            state, z = self.reconstruct(self.corrupt(state, rng), along, rng)
            yield state, z

    def corrupt(self, x: sp.csr_matrix, rng: np.random.Generator) -> sp.csr_matrix:
        """A draw from C(x~ | x), (cells, genes)."""
        for process in self.corruption:
            x = process(x, rng)
        return x

    @torch.no_grad()
    def reconstruct(
        self, corrupted: sp.csr_matrix, along: Minibatch, rng: np.random.Generator
    ) -> tuple[sp.csr_matrix, np.ndarray]:
        """A draw from p(x | f(x~)), (cells, genes), and the codes f(x~), (cells, n_latent)."""
        z = self.encoder(with_values(along, corrupted))[0].mean
        decoded = self.decoder(z, along)
        log_library = along.log_size if self.likelihood.has_library else None
        return sp.csr_matrix(self.likelihood.sample(decoded, log_library, rng)), z.cpu().numpy()


def numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """Return a NumPy generator seeded with the next number of a torch generator."""
    draw = torch.randint(2**62, (), generator=generator, device=generator.device)
    return np.random.default_rng(int(draw))


def matrix_of(x: Minibatch) -> sp.csr_matrix:
    """The values of a minibatch, (cells, genes), without stored zeros."""
    if x.full:
        return sp.csr_matrix(x.dense().cpu().numpy())
    arrays = tuple(t.cpu().numpy() for t in (x.values, x.genes, x.indptr))
    return sp.csr_matrix(arrays, shape=(x.n_cells, x.n_genes))


def with_values(along: Minibatch, matrix: sp.csr_matrix) -> Minibatch:
    """A minibatch to encode: the values and totals of `matrix`, the rest as in `along`.

    The constant log(x!) is left out: nobody asks for the likelihood of a corrupted point.
    """
    real, device = along.log_size.dtype, along.log_size.device
    totals = np.asarray(matrix.sum(1, dtype=np.float64)).ravel()
    arrays = {
        "indptr": matrix.indptr.astype(np.int64),
        "genes": matrix.indices.astype(np.int32),
        "values": matrix.data,
        "log_total": np.log(np.maximum(totals, 1e-8)),
    }
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    tensors = {name: t.to(real) if t.is_floating_point() else t for name, t in tensors.items()}
    tensors["log_factorial"] = torch.zeros_like(along.log_size)
    return along._replace(**tensors, full=False)  # type: ignore[arg-type]


def gathered(x: Minibatch, cells: np.ndarray) -> Minibatch:
    """The cells numbered `cells` of a minibatch, in that order; the same cell may come more than once."""
    return x.take(torch.from_numpy(cells).to(x.indptr.device))


def noise_start(support: str, log_size: np.ndarray, n_genes: int, rng: np.random.Generator) -> sp.csr_matrix:
    """Where chains start that know nothing of the data, (chains, genes).

    Counts: Poisson with the chain's library size, the same for every gene; real: N(0, 1); binary: fair coins.
    """
    shape = (len(log_size), n_genes)
    if support == "counts":
        return sp.csr_matrix(rng.poisson(np.exp(log_size)[:, None] / n_genes, shape).astype(np.float32))
    if support == "real":
        return sp.csr_matrix(rng.standard_normal(shape, dtype=np.float32))
    return sp.csr_matrix(rng.integers(2, size=shape).astype(np.float32))
