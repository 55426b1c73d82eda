"""Observation models p(x | z, l, s): log-probability, mean and samples, given what the decoder returns.

A likelihood is a small object without weights. Its class attributes say which heads the decoder needs:

=============  =========  ==========  =======  ==========================================================
likelihood     library    dispersion  dropout  an entry x given m = l * softmax(logits)
=============  =========  ==========  =======  ==========================================================
`ZINB`         yes        yes         yes      sigmoid(pi) [x = 0] + sigmoid(-pi) NB(x; m, theta)
`NB`           yes        yes                  NB(x; m, theta): mean m, variance m + m^2 / theta
`Poisson`      yes                             Poisson(x; m)
`Normal`                  yes                  Normal(x; logits, sigma^2), sigma = exp(dispersion)
`Bernoulli`                                    Bernoulli(x; sigmoid(logits))
=============  =========  ==========  =======  ==========================================================
"""

import math
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch.nn.functional import softplus

from sccvae.data.counts import Counts, Minibatch
from sccvae.kernels.reference import FUSED, Kernel, count_log_likelihood, plain
from sccvae.modules.count_distribution import CountDistribution

LikelihoodName = Literal["zinb", "nb", "poisson", "normal", "bernoulli"]


class Decoded(NamedTuple):
    """What the decoder returns for a minibatch."""

    logits: torch.Tensor  # (cells, genes)
    log_dispersion: torch.Tensor | None  # (genes,) or (cells, genes): log theta, or log sigma
    dropout: torch.Tensor | None  # (cells, genes) drop-out logits pi


class Likelihood:
    """Contract of all likelihoods. `log_library`, (cells,), is None where there is no library."""

    name: ClassVar[str]
    support: ClassVar[Literal["counts", "real", "binary"]] = "counts"
    has_library: ClassVar[bool] = False
    has_dispersion: ClassVar[bool] = False
    has_dropout: ClassVar[bool] = False
    # Whether the compiled passes compute this class. Each class declares it in its own body: a subclass with another
    # `log_prob` or `expression` would otherwise be trained as its parent.
    compiled: ClassVar[bool] = False

    def __init__(self, kernel: Kernel = plain):
        self.kernel = kernel  # computes the likelihood of counts

    @property
    def is_compiled(self) -> bool:
        """Whether the compiled passes give the value, the gradients and the expression of exactly this likelihood."""
        declared = vars(type(self)).get("compiled", False) and "log_prob" not in vars(self)
        return declared and self.kernel is FUSED.likelihood

    def log_prob(
        self, x: Minibatch, decoded: Decoded, log_library: torch.Tensor | None, dropout_cost: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(cells,) log p(x) summed over genes, less the cost of drop-outs; (cells,) expected drop-outs."""
        raise NotImplementedError

    def mean(self, decoded: Decoded, log_library: torch.Tensor | None) -> torch.Tensor:
        """(cells, genes) mean of x; of the count distribution itself, before drop-out, for `ZINB`."""
        raise NotImplementedError

    def expression(self, decoded: Decoded) -> torch.Tensor:
        """(cells, genes) normalised expression: softmax(logits) for counts, the mean of x otherwise."""
        return self.mean(decoded, None)

    def parameters(self, decoded: Decoded, log_library: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Parameters of p(x | z, l) by users' names: (cells, genes), or (genes,) where all cells share them."""
        return {"mean": self.mean(decoded, log_library)}

    def moments(self, decoded: Decoded, log_library: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """E[x] and E[x] / Var[x] of counts, (cells, genes) each."""
        raise NotImplementedError

    def distribution(self, decoded: Decoded, log_library: torch.Tensor | None) -> CountDistribution:
        """p(x | z, l) of counts in numpy."""
        raise NotImplementedError

    def start(self, counts: Counts) -> tuple[np.ndarray, np.ndarray | None]:
        """Initial bias of the logits and initial log dispersion, (genes,) each; None leaves the decoder's default."""
        raise NotImplementedError

    def sample(self, decoded: Decoded, log_library: torch.Tensor | None, rng: np.random.Generator) -> np.ndarray:
        """(cells, genes) float32 draws of x."""
        raise NotImplementedError


class Poisson(Likelihood):
    """Poisson counts with mean l * softmax(logits)."""

    name = "poisson"
    has_library = True
    compiled = True

    def log_prob(self, x, decoded, log_library, dropout_cost=0.0):  # noqa: D102
        logits, log_theta, dropout = decoded
        return count_log_likelihood(x, logits, log_library, log_theta, dropout, dropout_cost, self.kernel)

    def expression(self, decoded):  # noqa: D102
        return torch.softmax(decoded.logits, dim=1)

    def mean(self, decoded, log_library):  # noqa: D102
        return self.expression(decoded) * log_library.exp()[:, None]

    def moments(self, decoded, log_library):  # noqa: D102
        mean = self.mean(decoded, log_library)
        return mean, torch.ones_like(mean)

    def distribution(self, decoded, log_library):  # noqa: D102
        found = {name: value.cpu().numpy() for name, value in self.parameters(decoded, log_library).items()}
        return CountDistribution(found["mean"], found.get("dispersions"), found.get("dropout"))

    def start(self, counts):  # noqa: D102
        total = counts.gene_means() * len(counts) + 0.5
        return np.log(total / total.sum()), None

    def sample(self, decoded, log_library, rng):  # noqa: D102
        return rng.poisson(_numpy(self.mean(decoded, log_library))).astype(np.float32)


class NB(Poisson):
    """Negative binomial counts: Poisson with a Gamma(theta, mean m) rate."""

    name = "nb"
    has_dispersion = True
    compiled = True

    def parameters(self, decoded, log_library):  # noqa: D102
        return {**super().parameters(decoded, log_library), "dispersions": decoded.log_dispersion.exp()}

    def moments(self, decoded, log_library):  # noqa: D102
        mean = self.mean(decoded, log_library)
        return mean, 1 / (1 + mean * torch.exp(-decoded.log_dispersion))

    def sample(self, decoded, log_library, rng):  # noqa: D102
        mean, theta = _numpy(self.mean(decoded, log_library)), np.exp(_numpy(decoded.log_dispersion))
        return rng.poisson(rng.gamma(np.broadcast_to(theta, mean.shape), mean / theta)).astype(np.float32)


class ZINB(NB):
    """Zero-inflated negative binomial: a count is lost with probability sigmoid(pi)."""

    name = "zinb"
    has_dropout = True
    compiled = True

    def parameters(self, decoded, log_library):  # noqa: D102
        return {**super().parameters(decoded, log_library), "dropout": torch.sigmoid(decoded.dropout)}

    def moments(self, decoded, log_library):  # noqa: D102
        # With m the mean of the NB: E = m (1 - pi), Var = E (1 + m (pi + 1 / theta)).
        mean, spread = self.mean(decoded, log_library), torch.exp(-decoded.log_dispersion) + decoded.dropout.sigmoid()
        return mean * torch.sigmoid(-decoded.dropout), 1 / (1 + mean * spread)

    def sample(self, decoded, log_library, rng):  # noqa: D102
        counts = super().sample(decoded, log_library, rng)
        return np.where(rng.random(counts.shape) < _numpy(torch.sigmoid(decoded.dropout)), np.float32(0), counts)


class Normal(Likelihood):
    """Real values, such as log-normalised expression: Normal(logits, sigma^2)."""

    name = "normal"
    support = "real"
    has_dispersion = True

    def log_prob(self, x, decoded, log_library, dropout_cost=0.0):  # noqa: D102
        log_sigma = decoded.log_dispersion
        deviation = (x.dense() - decoded.logits) * torch.exp(-log_sigma)
        value = -0.5 * deviation.square().sum(1) - log_sigma.expand_as(deviation).sum(1)
        value = value - 0.5 * x.n_genes * math.log(2 * math.pi)
        return value, torch.zeros_like(value)

    def mean(self, decoded, log_library):  # noqa: D102
        return decoded.logits

    def parameters(self, decoded, log_library):  # noqa: D102
        return {**super().parameters(decoded, log_library), "scale": decoded.log_dispersion.exp()}

    def start(self, counts):  # noqa: D102
        mean = counts.gene_means()
        return mean, 0.5 * np.log(np.maximum(counts.gene_means(power=2) - mean**2, 1e-4))

    def sample(self, decoded, log_library, rng):  # noqa: D102
        mean, sigma = _numpy(decoded.logits), np.exp(_numpy(decoded.log_dispersion))
        return rng.normal(mean, np.broadcast_to(sigma, mean.shape)).astype(np.float32)


class Bernoulli(Likelihood):
    """0/1 values, such as binarised digits or chromatin accessibility."""

    name = "bernoulli"
    support = "binary"

    def log_prob(self, x, decoded, log_library, dropout_cost=0.0):  # noqa: D102
        value = (x.dense() * decoded.logits).sum(1) - softplus(decoded.logits).sum(1)
        return value, torch.zeros_like(value)

    def mean(self, decoded, log_library):  # noqa: D102
        return torch.sigmoid(decoded.logits)

    def start(self, counts):  # noqa: D102
        ones = np.clip(counts.gene_means(), 0.5 / len(counts), 1 - 0.5 / len(counts))
        return np.log(ones / (1 - ones)), None

    def sample(self, decoded, log_library, rng):  # noqa: D102
        mean = _numpy(self.mean(decoded, log_library))
        return (rng.random(mean.shape) < mean).astype(np.float32)


def _numpy(t: torch.Tensor) -> np.ndarray:
    return t.detach().cpu().double().numpy()


LIKELIHOODS: dict[str, type[Likelihood]] = {cls.name: cls for cls in (ZINB, NB, Poisson, Normal, Bernoulli)}
