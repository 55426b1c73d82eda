"""The densities of latent variables: `Gaussian`, and `MixturePrior`, whose weights are learnt."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

FLOOR = 1e-3  # added to the variances of the prior's components, so that none closes in on a few cells
SPREAD = 0.5  # standard deviation of where these begin; with their own variance they begin as about N(0, I)


class Gaussian(NamedTuple):
    """Independent normal distributions, one per entry."""

    mean: torch.Tensor
    variance: torch.Tensor

    def sample(self, generator: torch.Generator | Iterator[torch.Tensor]) -> torch.Tensor:
        """A reparameterised draw: mean + sd * noise, which the generator draws, or which is the iterator's next."""
        if isinstance(generator, torch.Generator):
            options: Any = {"device": self.mean.device, "dtype": self.mean.dtype}
            noise = torch.randn(self.mean.shape, generator=generator, **options)
        else:
            noise = next(generator)
        return self.mean + self.variance.sqrt() * noise

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """Log density of every entry."""
        return -0.5 * ((x - self.mean).square() / self.variance + self.variance.log() + 1.8378770664093453)

    def kl(self, prior: "Gaussian | None" = None) -> torch.Tensor:
        """KL(self || prior) of every entry: (v/v0 + (mu - mu0)^2/v0 - 1 - log v/v0) / 2; None stands for N(0, 1)."""
        if prior is None:
            return 0.5 * (self.variance + self.mean.square() - 1 - self.variance.log())
        ratio = self.variance / prior.variance
        return 0.5 * (ratio + (self.mean - prior.mean).square() / prior.variance - 1 - ratio.log())


def log_standard_normal(z: torch.Tensor) -> torch.Tensor:
    """The log density of N(0, I), (cells,), at z, (cells, n_latent)."""
    return Gaussian(torch.zeros_like(z), torch.ones_like(z)).log_prob(z).sum(1)


class MixturePrior(nn.Module):
    """p(z), a mixture of Gaussians with diagonal covariances; weights, means and variances are learnt.

    Without a generator means start at 0: for shapes alone, on torch's meta device, where drawing takes seconds.
    """

    def __init__(self, n_components: int, n_latent: int, generator: torch.Generator | None):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_components))
        sizes = (n_components, n_latent)
        start = torch.zeros(sizes) if generator is None else SPREAD * torch.randn(sizes, generator=generator)
        self.mean = nn.Parameter(start)
        self.log_variance = nn.Parameter(torch.full((n_components, n_latent), math.log(1 - SPREAD**2)))

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """The log density, (cells,), at z, (cells, n_latent)."""
        components = Gaussian(self.mean, self.log_variance.exp() + FLOOR)
        return torch.logsumexp(self.logits.log_softmax(0) + components.log_prob(z[:, None]).sum(2), 1)

    def below_standard(self, z: torch.Tensor) -> torch.Tensor:
        """By how much N(0, I) is the denser, (cells,): KL(q || N(0, I)) plus the mean of it under q is KL(q || p)."""
        return log_standard_normal(z) - self.log_prob(z)

    @torch.no_grad()
    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws, (n, n_latent) float32."""
        weights = self.logits.double().softmax(0).cpu().numpy()
        at = rng.choice(len(weights), n, p=weights / weights.sum())
        mean, sd = self.mean.cpu().numpy(), (self.log_variance.exp() + FLOOR).sqrt().cpu().numpy()
        return mean[at] + sd[at] * rng.standard_normal((n, mean.shape[1])).astype(np.float32)
