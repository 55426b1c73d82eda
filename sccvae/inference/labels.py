"""Labels of cells from the joint density of z and label, and how likely z is in the reference."""

from typing import NamedTuple

import numpy as np
import torch

from sccvae.data.counts import Counts
from sccvae.inference import posterior
from sccvae.kernels.parallel import alone
from sccvae.modules.latent_terms import LabelledPrior
from sccvae.modules.vae import VAE

TOGETHER = 8192  # cells


class Labelled(NamedTuple):
    """What the model says of cells."""

    probability: np.ndarray  # (cells, labels) float64, averaged over samples of q(z|x); without columns: no labels
    density: np.ndarray  # (cells,) log p(z) at the mean of q(z|x)


@alone()
@torch.no_grad()
def labelled(vae: VAE, counts: Counts, n_samples: int, seed: int) -> Labelled:
    """Compute p(y | x) and log p(z) of cells."""
    mean, variance = posterior.latent_moments(vae, counts)
    rng, n_labels = np.random.default_rng(seed), vae.architecture.n_labels
    probability = np.zeros((len(mean), n_labels))
    density = np.empty(len(mean), np.float32)
    for start in range(0, len(mean), TOGETHER):
        rows = slice(start, start + TOGETHER)
        m, sd = mean[rows], np.sqrt(variance[rows])
        density[rows] = vae.log_prior(_tensor(m, vae)).cpu().numpy()
        for _ in range(n_samples if n_labels else 0):
            assert isinstance(vae.prior, LabelledPrior)
            z = m + sd * rng.standard_normal(m.shape)
            probability[rows] += vae.prior.label_probabilities(_tensor(z, vae)).double().cpu().numpy()
    if n_labels:
        probability /= probability.sum(1, keepdims=True)
    return Labelled(probability, density)


def _tensor(z: np.ndarray, vae: VAE) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(z, np.float32)).to(vae.device)
