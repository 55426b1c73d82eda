"""The generative model and its evidence lower bound.

For cell n with batch and covariates s and gene g (Lopez et al. 2018, https://doi.org/10.1038/s41592-018-0229-2):

    z ~ sum_k w_k Normal(m_k, diag v_k)    cell embedding; a mixture that is learnt, or Normal(0, I)
    log l ~ Normal(mu_s, sigma_s^2)        library size; moments of the log total counts of the cell's batch
    rho = softmax(f(z, s))                 normalised expression
    x_g ~ ZINB(l rho_g, theta_g, pi_g)     counts (or another likelihood)
    w ~ Normal(0, 1 / weight_precision)    from hidden units to genes: each weight of the heads

    ELBO = E_q[log p(x | z, l, s)] - KL(q(z|x) || p(z)) - KL(q(log l|x) || p(log l|s))

Zero inflation is penalised: each expected inflated zero costs `dropout_cost` nats. Otherwise it absorbs overdispersion.
Training also penalises dependence of z on the batch (`batch_penalty`), which the model assumes to be absent. It can
thin the counts that the encoder reads.
"""

from typing import NamedTuple

import torch
from torch import nn

from sccvae.data.counts import Counts, Minibatch
from sccvae.kernels.reference import PLAIN, Kernels
from sccvae.modules.architecture import Architecture
from sccvae.modules.distributions import Gaussian, log_standard_normal
from sccvae.modules.latent_terms import TERMS, LatentTerm, MixturePrior
from sccvae.modules.likelihoods import LIKELIHOODS
from sccvae.modules.networks import Decoder, Encoder


class Elbo(NamedTuple):
    """Terms of the evidence lower bound, (cells,) each, in nats."""

    reconstruction: torch.Tensor  # one-sample estimate of E_q[log p(x | z, l, s)]
    kl_z: torch.Tensor
    kl_l: torch.Tensor
    dropout_penalty: torch.Tensor  # dropout_cost * expected inflated zeros; not part of the bound
    penalties: tuple[tuple[LatentTerm, torch.Tensor], ...] = ()  # of training, with their nats per cell; neither

    @property
    def value(self) -> torch.Tensor:
        """The evidence lower bound of each cell, (cells,)."""
        return self.reconstruction - self.kl_z - self.kl_l

    def loss(self, kl_weight: float | torch.Tensor = 1.0) -> torch.Tensor:
        """Return the loss that training minimises, a scalar."""
        value = self.reconstruction - self.dropout_penalty - kl_weight * self.kl_z - self.kl_l
        for term, nats in self.penalties:
            value = value - nats * term.penalty_scale(kl_weight)
        return -value.mean()

    def columns(self, kl_weight: float | torch.Tensor = 1.0) -> torch.Tensor:
        """Return what the history records of each cell, (columns, cells), detached; `VAE.columns` has their names."""
        penalties = [nats.detach() * term.penalty_scale(kl_weight) for term, nats in self.penalties]
        return torch.stack([*(t.detach() for t in self[:3]), *penalties])


class VAE(nn.Module):
    """Variational autoencoder of the module's heading; initial parameters are drawn from `generator`.

    `kernels` say how counts are thinned, encoded and given a likelihood; `kernels.reference.for_device` knows
    the fastest.
    """

    library_mean: torch.Tensor  # (batches,)
    library_variance: torch.Tensor  # (batches,)
    prior: MixturePrior | None  # None: N(0, I)
    moving: range | None = None  # rows of the parameters that training changes, where not all of them

    def __init__(self, architecture: Architecture, generator: torch.Generator, kernels: Kernels = PLAIN):
        super().__init__()
        self.architecture = architecture
        self.likelihood = LIKELIHOODS[architecture.gene_likelihood](kernels.likelihood)
        self.thinning = architecture.thinning if self.likelihood.support == "counts" else 0.0
        self.kernels, self.thin = kernels, kernels.thin
        self.encoder = Encoder(architecture, generator, kernels.encode)
        self.decoder = Decoder(architecture, generator)
        for term in TERMS:
            self.register_module(term.name, term.of(architecture, generator))
        self.register_buffer("library_mean", torch.zeros(architecture.n_levels[0]))
        self.register_buffer("library_variance", torch.ones(architecture.n_levels[0]))

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.library_mean.device

    @property
    def terms(self) -> list[LatentTerm]:
        """The terms of the latent space that this model has, in the order of `TERMS`."""
        return [term for kind in TERMS if (term := getattr(self, kind.name)) is not None]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what the history records of each cell, in nats."""
        penalties = [term.own_penalty if term.in_bound else term.name for term in self.terms]
        return ("reconstruction", "kl_z", "kl_l", *(name for name in penalties if name is not None))

    @torch.no_grad()
    def start_from(self, counts: Counts) -> None:
        """Initialise from the data: the library prior, the decoder's bias, the dispersion."""
        if self.likelihood.support == "counts":
            library_mean, library_variance = counts.library_prior()
            self.library_mean.copy_(torch.from_numpy(library_mean))
            self.library_variance.copy_(torch.from_numpy(library_variance))
            self.encoder.log_target.fill_(float(counts.log_total.mean()))
        bias, log_dispersion = self.likelihood.start(counts)
        if log_dispersion is not None:
            per_gene = self.decoder.dispersion_head.bias if self.decoder.per_cell else self.decoder.log_dispersion
            per_gene.copy_(torch.from_numpy(log_dispersion))
        self.decoder.logits.bias.copy_(torch.from_numpy(bias))

    def precisions(self) -> list[float]:
        """Precision of the Gaussian prior of each parameter, in their order; 0 for none."""
        heads = (self.decoder.logits, self.decoder.dropout) if self.likelihood.support == "counts" else ()
        places = {id(head.weight) for head in heads if head is not None}
        return [self.architecture.weight_precision * (id(w) in places) for w in self.parameters()]

    def library_prior(self, x: Minibatch) -> Gaussian:
        """p(log l | s), (cells,)."""
        return Gaussian(self.library_mean[x.codes[:, 0]], self.library_variance[x.codes[:, 0]])

    def log_prior(self, z: torch.Tensor) -> torch.Tensor:
        """Return the log density of the prior, (cells,), at z, (cells, n_latent)."""
        return log_standard_normal(z) if self.prior is None else self.prior.log_prob(z)

    def forward(self, x: Minibatch, generator: torch.Generator) -> Elbo:
        """Return the terms of the ELBO of a minibatch, with one sample of z and l per cell."""
        q_z, q_l = self.encoder(self.thin(x, generator, self.thinning) if self.training else x, generator)
        z = q_z.sample(generator)
        log_l = x.log_size if q_l is None else q_l.sample(generator)
        decoded = self.decoder(z, x, generator)
        cost = self.architecture.dropout_cost
        value, dropouts = self.likelihood.log_prob(x, decoded, log_l, cost)
        kl_z, penalties = q_z.kl().sum(1), []
        for term in self.terms:
            if term.in_bound:
                kl_z = kl_z + term(q_z, z, x)
                if self.training and term.own_penalty is not None:
                    penalties.append((term, term.penalty(z, x)))
            elif self.training:
                penalties.append((term, term(q_z, z, x)))
        kl_l = torch.zeros_like(kl_z) if q_l is None else q_l.kl(self.library_prior(x))
        # `value` includes the penalty and its gradient; the two terms below add up to it exactly.
        return Elbo(value + cost * dropouts, kl_z, kl_l, cost * dropouts, tuple(penalties))
