"""Sums of counts and of expected counts over groups of cells."""

import numpy as np
import torch

from sccvae.data.blocks import membership
from sccvae.data.counts import Counts
from sccvae.inference.posterior import TAKEN, count_moments
from sccvae.kernels.parallel import alone
from sccvae.modules.vae import VAE


def observed(counts: Counts, unit: np.ndarray, n_units: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum the counts over the cells of each unit, and count cells with a nonzero count, (units, genes) float64 each.

    Parameters
    ----------
    unit
        (cells,) number of the unit of each cell.
    """
    total, detected = np.zeros((2, n_units, counts.n_genes))
    for start in range(0, len(counts), TAKEN):
        cells = np.arange(start, min(start + TAKEN, len(counts)))
        matrix = counts.stored.take(cells).csr().astype(np.float64)
        member = membership(unit[cells], n_units)
        total += (member @ matrix).toarray()
        matrix.data = (matrix.data > 0).astype(np.float64)
        detected += (member @ matrix).toarray()
    return total, detected


@alone()
@torch.no_grad()
def expected(vae: VAE, counts: Counts, unit: np.ndarray, n_units: int, chunk_size: int | None = None) -> np.ndarray:
    """Sum E[x] at the posterior means, each cell in its own batch, over the cells of each unit, (units, genes).

    Only for count likelihoods. Cells whose unit is -1 are left out.
    """
    taken = np.flatnonzero(unit >= 0)
    total = torch.zeros(n_units, counts.n_genes, dtype=torch.float64, device=vae.device)
    units = torch.from_numpy(unit[taken]).to(vae.device)
    for draw, mean, _ in count_moments(vae, counts[taken], chunk_size):
        total.index_add_(0, units[draw.rows], mean.double())
    return total.cpu().numpy()
