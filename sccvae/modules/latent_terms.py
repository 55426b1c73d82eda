"""Terms of the loss that act on the latent space: each is a module that returns nats per cell.

A term is written once, as a class in `TERMS`. From that follow its place in the loss, its schedule, its column in the
history and its gradients in the step derived by hand (`training.term_gradients`).
"""

import math
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from sccvae.data.counts import Minibatch
from sccvae.modules.architecture import Architecture
from sccvae.modules.batch_penalty import own_batch_excess
from sccvae.modules.distributions import Gaussian, log_standard_normal

FLOOR = 1e-3  # added to the variances of the prior's components, so that none shrinks to a few cells
SPREAD = 0.5  # standard deviation of the initial means; with their own variances the components begin as about N(0, I)


class LatentTerm(nn.Module):
    """A term of the loss that reads q(z|x), a sample of z and the minibatch.

    A term in the bound is added to KL(q(z|x) || N(0, I)) and has the KL weight of the schedule. Any other is a penalty
    of training: it is added to the loss, is no part of the ELBO, and is not computed in evaluation.
    """

    name: ClassVar[str]  # of the attribute of `VAE`, and of a penalty's column in the history
    in_bound: ClassVar[bool] = False

    @classmethod
    def of(cls, architecture: Architecture, generator: torch.Generator | None) -> "LatentTerm | None":
        """Return the term that an architecture asks for, initial parameters drawn from `generator`; None without it."""
        raise NotImplementedError

    def scale(self, kl_weight):
        """Return the weight of the term in the loss where the KL weight is `kl_weight`, a number or a tensor.

        A penalty begins when the KL weight has reached 1: cell types separate first.
        """
        return kl_weight if self.in_bound else 1.0 * (kl_weight == 1)  # a product, for a weight that lies on a GPU

    def forward(self, q: Gaussian, z: torch.Tensor, x: Minibatch) -> torch.Tensor:
        """Return nats per cell, (cells,); `q` and `z` are (cells, n_latent)."""
        raise NotImplementedError


def mixture_log_prob(z, logits, mean, log_variance, floor: float) -> torch.Tensor:
    """Return the log density, (cells,), of a mixture of diagonal Gaussians at z, (cells, n_latent)."""
    components = Gaussian(mean, log_variance.exp() + floor)
    return torch.logsumexp(logits.log_softmax(0) + components.log_prob(z[:, None]).sum(2), 1)


class MixturePrior(LatentTerm):
    """p(z), a mixture of Gaussians with diagonal covariances; weights, means and variances are learnt.

    Without a generator means start at 0: for shapes alone, on torch's meta device, where drawing takes seconds.
    """

    name, in_bound = "prior", True

    def __init__(self, n_components: int, n_latent: int, generator: torch.Generator | None):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_components))
        sizes = (n_components, n_latent)
        start = torch.zeros(sizes) if generator is None else SPREAD * torch.randn(sizes, generator=generator)
        self.mean = nn.Parameter(start)
        self.log_variance = nn.Parameter(torch.full((n_components, n_latent), math.log(1 - SPREAD**2)))

    @classmethod
    def of(cls, architecture: Architecture, generator: torch.Generator | None) -> "MixturePrior | None":
        """Return the prior with `prior_components` components; None for N(0, I)."""
        n = architecture.prior_components
        return cls(n, architecture.n_latent, generator) if n else None

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """Return the log density, (cells,), at z, (cells, n_latent)."""
        return mixture_log_prob(z, self.logits, self.mean, self.log_variance, FLOOR)

    def forward(self, q: Gaussian, z: torch.Tensor, x: Minibatch) -> torch.Tensor:
        """Return log N(z; 0, I) - log p(z): with KL(q || N(0, I)) an estimate of KL(q || p) from one sample."""
        return log_standard_normal(z) - self.log_prob(z)

    @torch.no_grad()
    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n samples, (n, n_latent) float32."""
        weights = self.logits.double().softmax(0).cpu().numpy()
        at = rng.choice(len(weights), n, p=weights / weights.sum())
        mean, sd = self.mean.cpu().numpy(), (self.log_variance.exp() + FLOOR).sqrt().cpu().numpy()
        return mean[at] + sd[at] * rng.standard_normal((n, mean.shape[1])).astype(np.float32)


class BatchPenalty(LatentTerm):
    """A penalty on means of q(z|x) whose neighbours tell the cell's batch (`batch_penalty`)."""

    name = "batch_penalty"

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight  # nats per nat

    @classmethod
    def of(cls, architecture: Architecture, generator: torch.Generator | None) -> "BatchPenalty | None":
        """Return the penalty with the weight `batch_mixing`; None where it is 0, or where there is one batch."""
        return cls(w) if (w := architecture.batch_mixing) and architecture.n_levels[0] > 1 else None

    def forward(self, q: Gaussian, z: torch.Tensor, x: Minibatch) -> torch.Tensor:
        """Return `weight` times `batch_penalty.own_batch_excess` of the means."""
        return self.weight * own_batch_excess(q.mean, x.codes[:, 0], x.copies)


# Every term that a model may have, in the order of their parameters. A new term is a class and a line here.
TERMS: tuple[type[LatentTerm], ...] = (MixturePrior, BatchPenalty)
