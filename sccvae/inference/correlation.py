"""Correlation of genes over cells and posterior samples of denoised expression."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from scipy.stats import rankdata

from sccvae.data.counts import Counts
from sccvae.inference.noise import streams
from sccvae.inference.posterior import SAMPLED, Request, decode
from sccvae.kernels.parallel import alone
from sccvae.modules.vae import VAE

CorrelationType = Literal["spearman", "pearson"]
BLOCK = 2**14  # samples whose products are summed at once
MOST_BYTES = 2 * 2**30  # of the samples and three matrices


@alone()
def correlation(
    vae: VAE,
    counts: Counts,
    genes: np.ndarray,
    batches: Sequence[int | None],
    library_size: float,
    kind: CorrelationType,
    *,
    n_samples: int,
    seed: int,
) -> np.ndarray:
    """Compute the correlation of genes, (genes, genes) float64, averaged over batches.

    Genes without differences between samples have NaN. The diagonal of the others is 1.

    Raises
    ------
    ValueError
        More than `MOST_BYTES` would be taken.
    """
    if (n_bytes := 4 * n_samples * len(counts) * len(genes) + 3 * 8 * len(genes) ** 2) > MOST_BYTES:
        raise ValueError(
            f"n_samples={n_samples} of {len(genes):,} genes in {len(counts):,} cells would take {n_bytes / 2**30:.1f} "
            f"GiB; expected at most {MOST_BYTES / 2**30:.0f}: take fewer samples, name genes in gene_list, or pass "
            "some cells as indices."
        )
    total = np.zeros((len(genes), len(genes)))
    for batch in batches:
        total += correlated(denoised(vae, counts, genes, batch, library_size, n_samples=n_samples, seed=seed), kind)
    return total / len(batches)


@torch.no_grad()
def denoised(
    vae: VAE,
    counts: Counts,
    genes: np.ndarray,
    batch: int | None,
    library_size: float,
    *,
    n_samples: int,
    seed: int,
) -> np.ndarray:
    """Sample denoised expression of some genes, (genes, n_samples * cells) float32.

    z is sampled from its posterior, and with m = library_size * rho the expression from Gamma(theta, mean m): the rate
    of the negative binomial, without the noise of counting and without zero inflation. Without theta it is m.
    """
    rng = np.random.default_rng(seed)
    noise_seed, rng_of = int(rng.integers(2**62)), streams(rng)
    request = Request((batch,), n_samples, noise_seed, SAMPLED)
    samples, begin = np.empty((len(genes), n_samples * len(counts)), dtype=np.float32), 0
    columns = torch.from_numpy(genes).to(vae.device)
    for part, draw in enumerate(decode(vae, counts, request)):
        rate = library_size * vae.likelihood.expression(draw.decoded)[:, columns].cpu().double().numpy()
        if draw.decoded.log_dispersion is not None:
            theta = draw.decoded.log_dispersion.double().exp()[..., columns].cpu().numpy()
            rate = rate * rng_of(part).standard_gamma(np.broadcast_to(theta, rate.shape)) / theta
        samples[:, begin : begin + len(rate)] = rate.T
        begin += len(rate)
    return samples


def correlated(samples: np.ndarray, kind: CorrelationType) -> np.ndarray:
    """Correlate the rows of `samples`, (genes, samples) float32, which are overwritten: (genes, genes) float64."""
    n_genes, n = samples.shape
    lengths, products = np.empty(n_genes), np.zeros((n_genes, n_genes))
    for row in samples:
        values = rankdata(row) if kind == "spearman" else row.astype(np.float64)
        row[:] = values - values.mean()
    for gene, row in enumerate(samples):
        lengths[gene] = np.sqrt(np.dot(row.astype(np.float64), row.astype(np.float64)))
    for start in range(0, n, BLOCK):
        block = samples[:, start : start + BLOCK].astype(np.float64)
        products += block @ block.T
    lengths[lengths == 0] = np.nan
    found = np.clip(products / lengths[:, None] / lengths, -1, 1)
    found[np.diag_indices(n_genes)] = np.where(np.isnan(lengths), np.nan, 1.0)
    return found
