"""New cells: z and library size from a prior or from given cells, counts from the likelihood, block by block."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from sccvae.data.counts import Minibatch
from sccvae.inference.noise import streams
from sccvae.inference.posterior import SAMPLED, chunks
from sccvae.kernels.parallel import alone, each_alone, share
from sccvae.modules.latent_terms import LabelledPrior
from sccvae.modules.vae import VAE


@dataclass(frozen=True)
class Latent:
    """Decoder inputs of new cells.

    Attributes
    ----------
    codes
        (cells, 1 + categorical covariates) numbers of batches and covariates.
    continuous
        (cells, continuous covariates) float32, standardised; None takes their means.
    z
        (cells, n_latent) float32.
    log_library
        (cells,) float32; None if the likelihood has no library size.
    """

    codes: np.ndarray
    continuous: np.ndarray | None
    z: np.ndarray
    log_library: np.ndarray | None

    @property
    @alone()
    def library(self) -> np.ndarray | None:
        """Return the library sizes, (cells,)."""
        return None if self.log_library is None else torch.from_numpy(self.log_library).exp().numpy()

    def __len__(self) -> int:
        return len(self.z)

    def part(self, rows: slice) -> "Latent":
        """Return some of the cells."""
        continuous = None if self.continuous is None else self.continuous[rows]
        log_library = None if self.log_library is None else self.log_library[rows]
        return Latent(self.codes[rows], continuous, self.z[rows], log_library)

    def minibatch(self, vae: VAE) -> Minibatch:
        """Return the covariates on the device."""
        x = Minibatch.of_covariates(self.codes, vae.architecture.n_continuous, vae.architecture.n_genes)
        if self.continuous is not None:
            x = x._replace(continuous=torch.from_numpy(np.ascontiguousarray(self.continuous)))
        return x.to(vae.device)


@alone()
def draw_z(vae: VAE, n: int, rng: np.random.Generator, label: int | None = None) -> np.ndarray:
    """Draw n samples of the prior, (n, n_latent) float32; of p(z | label) if a label is given."""
    if vae.prior is None:
        return rng.standard_normal((n, vae.architecture.n_latent)).astype(np.float32)
    return vae.prior.sample(n, rng, label)


@alone()
@torch.no_grad()
def draw_log_library(
    vae: VAE, codes: np.ndarray, rng: np.random.Generator, deviation: np.ndarray | None = None
) -> np.ndarray:
    """Sample log library sizes from the log-normal prior of each cell's batch, (cells,) float32.

    `deviation`, (cells,), in standard deviations, is sampled from N(0, 1) unless given.
    """
    prior = vae.library_prior(Minibatch.of_covariates(codes, 0, vae.architecture.n_genes).to(vae.device))
    deviation = rng.standard_normal(len(codes)) if deviation is None else deviation
    noise = torch.from_numpy(deviation.astype(np.float32)).to(vae.device)
    return (prior.mean + prior.variance.sqrt() * noise).cpu().numpy()


@each_alone
@torch.no_grad()
def counts_of(
    vae: VAE, latent: Latent, rng: np.random.Generator, per_block: int, *, expected: bool = False
) -> Iterator[tuple[slice, sp.csr_matrix, np.ndarray | None]]:
    """Yield (rows, x, E[x]) for blocks of cells, (cells, genes) each; E[x] is None unless `expected`.

    The samples do not depend on `per_block`, about the number of cells of a block.
    """
    vae.eval()
    rng_of, parts = streams(rng), list(chunks(len(latent), SAMPLED))
    together = -(-per_block // SAMPLED)
    for start in range(0, len(parts), together):
        rows = parts[start : start + together]

        def draw(first: int, last: int, start: int = start) -> list[tuple[sp.csr_matrix, np.ndarray | None]]:
            return [_drawn(vae, latent.part(parts[start + k]), rng_of(start + k), expected) for k in range(first, last)]

        drawn = [part for some in share(draw, len(rows)) for part in some]
        matrix = sp.vstack([x for x, _ in drawn], format="csr")
        means = [mean for _, mean in drawn if mean is not None]
        yield slice(rows[0].start, rows[-1].stop), matrix, np.concatenate(means) if expected else None


def _drawn(vae: VAE, some: Latent, rng: np.random.Generator, expected: bool) -> tuple[sp.csr_matrix, np.ndarray | None]:
    """Return the counts of some cells, and their expectation if it is wanted."""
    log_l = None if some.log_library is None else torch.from_numpy(some.log_library).to(vae.device)
    decoded = vae.decoder(torch.from_numpy(some.z).to(vae.device), some.minibatch(vae))
    counts = sp.csr_matrix(vae.likelihood.sample(decoded, log_l, rng))
    return counts, _expected(vae, decoded, log_l) if expected else None


def _expected(vae: VAE, decoded, log_library: torch.Tensor | None) -> np.ndarray:
    if log_library is not None:
        return vae.likelihood.moments(decoded, log_library)[0].cpu().numpy()
    return vae.likelihood.mean(decoded, log_library).cpu().numpy()


@alone()
@torch.no_grad()
def labels_of(vae: VAE, z: np.ndarray) -> np.ndarray:
    """Return the number of the most probable label of each z, (cells,)."""
    assert isinstance(vae.prior, LabelledPrior)
    return vae.prior.label_probabilities(torch.from_numpy(z).to(vae.device)).argmax(1).cpu().numpy()
