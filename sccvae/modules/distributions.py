"""`Gaussian`, the distribution of the latent variables."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch


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
