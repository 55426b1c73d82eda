"""Effect of a condition in each cell: the same z decoded under two conditions."""

from collections.abc import Iterator

import numpy as np
import torch

from sccvae.data.counts import Counts
from sccvae.inference import posterior
from sccvae.inference.expression import Expressed
from sccvae.kernels.parallel import each_alone
from sccvae.modules.vae import VAE

LEAST = 0.01  # counts per cell that are added to both expressions: a gene without expression has no fold change


@each_alone
@torch.no_grad()
def effects(
    vae: VAE,
    counts: Counts,
    column: int,
    levels: tuple[int, ...],
    genes: np.ndarray | None = None,
    *,
    n_samples: int | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield (rows, log2 fold changes, their standard deviations), (cells, genes) float32 each, per chunk.

    Parameters
    ----------
    column
        Column of `Counts.codes` with the condition.
    levels
        Codes of the condition and of the reference: the fold change is that of the first over the second.
    genes
        Columns of the genes; None takes all.
    n_samples
        Samples of z for each cell, over which mean and standard deviation are taken; None decodes the mean of q(z|x),
        and the standard deviations are 0.
    """
    expressed = Expressed(vae)
    floor = LEAST / float(np.exp(np.median(counts.log_size)))
    request = posterior.Request(n_samples=n_samples, seed=seed, chunk_size=chunk_size)
    done = 0
    for rows, x, z, _ in posterior.codes(vae, counts, request):
        rho = z.new_empty(2, len(z), counts.n_genes)
        for target, level in zip(rho, levels, strict=True):
            expressed.into(target, z, x.with_level(column, level))
        if genes is not None:
            rho = rho[:, :, torch.from_numpy(genes).to(rho.device)]
        change = (rho.add_(floor).log2_()[0] - rho[1]).double()
        if done == 0:
            total, square = torch.zeros_like(change), torch.zeros_like(change)
        total += change
        square += change**2
        done += 1
        if done == (n_samples or 1):
            mean = total / done
            sd = (square / done - mean**2).clamp_min(0).sqrt()
            yield rows, mean.float().cpu().numpy(), sd.float().cpu().numpy()
            done = 0
