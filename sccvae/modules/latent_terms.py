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
FASTER = 10.0  # how much faster weights and labels of components move where there are labels
START = 4.0  # logit of the one label that a component begins with; 0 of the others
SPREAD = 0.5  # standard deviation of the initial means; with their own variances the components begin as about N(0, I)


class LatentTerm(nn.Module):
    """A term of the loss that reads q(z|x), a sample of z and the minibatch.

    A term in the bound is added to KL(q(z|x) || N(0, I)) and has the KL weight of the schedule. Any other is a penalty
    of training: it is added to the loss, is no part of the ELBO, and is not computed in evaluation.
    """

    name: ClassVar[str]  # of the attribute of `VAE`, and of a penalty's column in the history
    in_bound: ClassVar[bool] = False
    own_penalty: ClassVar[str | None] = None  # name of the penalty of training that a term in the bound has besides

    @classmethod
    def of(cls, architecture: Architecture, generator: torch.Generator | None) -> "LatentTerm | None":
        """Return the term that an architecture asks for, initial parameters drawn from `generator`; None without it."""
        raise NotImplementedError

    def scale(self, kl_weight):
        """Return the weight of the term in the loss where the KL weight is `kl_weight`, a number or a tensor.

        A penalty begins when the KL weight has reached 1: cell types separate first.
        """
        return kl_weight if self.in_bound else 1.0 * (kl_weight == 1)  # a product, for a weight that lies on a GPU

    def penalty_scale(self, kl_weight):
        """Return the weight of the term's penalty in the loss: always 1 for that beside a term in the bound."""
        return 1.0 if self.in_bound else self.scale(kl_weight)

    def forward(self, q: Gaussian, z: torch.Tensor, x: Minibatch) -> torch.Tensor:
        """Return nats per cell, (cells,); `q` and `z` are (cells, n_latent)."""
        raise NotImplementedError

    def penalty(self, z: torch.Tensor, x: Minibatch) -> torch.Tensor:
        """Return the nats per cell, (cells,), of `own_penalty`."""
        raise NotImplementedError


def mixture_log_prob(z, logits, mean, log_variance, floor: float) -> torch.Tensor:
    """Return the log density, (cells,), of a mixture of diagonal Gaussians at z, (cells, n_latent)."""
    return torch.logsumexp(log_by_component(z, logits, mean, log_variance, floor), 1)


def log_by_component(z, logits, mean, log_variance, floor: float) -> torch.Tensor:
    """Return the logarithms of the parts of a mixture's density, (cells, components)."""
    components = Gaussian(mean, log_variance.exp() + floor)
    return logits.log_softmax(0) + components.log_prob(z[:, None]).sum(2)


def joint_log_prob(z, logits, mean, log_variance, label_logits, labels, floor: float) -> torch.Tensor:
    """Return log p(z, y) of each cell, (cells,); log p(z) where `labels`, (cells,), is -1."""
    parts, log_pi = log_by_component(z, logits, mean, log_variance, floor), label_logits.log_softmax(1)
    of_labels = log_pi.t()[labels.clamp(min=0)]
    return torch.logsumexp(parts + torch.where((labels >= 0)[:, None], of_labels, 0), 1)


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
        n, a = architecture.prior_components, architecture
        if n and a.n_labels:
            return LabelledPrior(n, a.n_latent, generator, a.n_labels, a.label_weight)
        return cls(n, a.n_latent, generator) if n else None

    @property
    def log_weights(self) -> torch.Tensor:
        """Logarithms of the components' weights, but for a constant, (components,)."""
        return self.logits

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """Return the log density, (cells,), at z, (cells, n_latent)."""
        return mixture_log_prob(z, self.log_weights, self.mean, self.log_variance, FLOOR)

    def forward(self, q: Gaussian, z: torch.Tensor, x: Minibatch) -> torch.Tensor:
        """Return log N(z; 0, I) - log p(z): with KL(q || N(0, I)) an estimate of KL(q || p) from one sample."""
        return log_standard_normal(z) - self.log_prob(z)

    @torch.no_grad()
    def weights(self, label: int | None = None) -> torch.Tensor:
        """Return the weights of the components, (components,) float64."""
        return self.log_weights.double().softmax(0)

    @torch.no_grad()
    def sample(self, n: int, rng: np.random.Generator, label: int | None = None) -> np.ndarray:
        """Draw n samples, (n, n_latent) float32, of cells with a label if one is given."""
        weights = self.weights(label).cpu().numpy()
        at = rng.choice(len(weights), n, p=weights / weights.sum())
        mean, sd = self.mean.cpu().numpy(), (self.log_variance.exp() + FLOOR).sqrt().cpu().numpy()
        return mean[at] + sd[at] * rng.standard_normal((n, mean.shape[1])).astype(np.float32)


class LabelledPrior(MixturePrior):
    """p(z, y): each component of p(z) has a distribution over labels y.

        p(z, y) = sum_k w_k Normal(z; m_k, v_k) pi_k(y)

    In the bound, log p(z, y) of a labelled cell takes the place of log p(z). The penalty is `weight` times
    -log p(y | z) of labelled cells: without it, a label counts as one observation among those of all genes.
    """

    own_penalty = "label_penalty"

    def __init__(
        self, n_components: int, n_latent: int, generator: torch.Generator | None, n_labels: int, weight: float
    ):
        super().__init__(n_components, n_latent, generator)
        self.weight = weight
        start = START * torch.eye(n_labels).repeat(-(-n_components // n_labels), 1)[:n_components]
        self.label_logits = nn.Parameter(start / FASTER)  # (components, labels)

    @property
    def log_weights(self) -> torch.Tensor:
        """As that of `MixturePrior`; they move `FASTER` times as fast as other parameters."""
        return FASTER * self.logits

    @property
    def log_label_weights(self) -> torch.Tensor:
        """Logarithms of each component's probabilities of labels, but for a constant, (components, labels)."""
        return FASTER * self.label_logits

    def forward(self, q: Gaussian, z: torch.Tensor, x: Minibatch) -> torch.Tensor:
        """Return log N(z; 0, I) - log p(z, y), and of a cell without a label as `MixturePrior`."""
        return log_standard_normal(z) - self._joint(z, x.labels)

    def penalty(self, z: torch.Tensor, x: Minibatch) -> torch.Tensor:
        """Return `weight` times -log p(y | z), 0 for a cell without a label."""
        return self.weight * (self.log_prob(z) - self._joint(z, x.labels))

    def _joint(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        given = self.log_weights, self.mean, self.log_variance, self.log_label_weights
        return joint_log_prob(z, *given, labels, FLOOR)

    def label_probabilities(self, z: torch.Tensor) -> torch.Tensor:
        """Return p(y | z), (cells, labels), at z, (cells, n_latent)."""
        parts = log_by_component(z, self.log_weights, self.mean, self.log_variance, FLOOR)
        return parts.softmax(1) @ self.log_label_weights.softmax(1)

    def count_of_right(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return how many labelled cells have the label that is most probable at z, and how many are labelled, (2,)."""
        right = self.label_probabilities(z).argmax(1) == labels
        return torch.stack([right.sum(), (labels >= 0).sum()])

    @torch.no_grad()
    def weights(self, label: int | None = None) -> torch.Tensor:
        """Return the weights of the components, (components,) float64; of those cells that have a label."""
        weights = super().weights()
        if label is None:
            return weights
        of_label = weights * self.log_label_weights.double().softmax(1)[:, label]
        return of_label / of_label.sum()


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
