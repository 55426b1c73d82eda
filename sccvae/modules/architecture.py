"""`Architecture`: the numbers and choices that fix the shape of a model."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from sccvae.modules.likelihoods import LIKELIHOODS, LikelihoodName
from sccvae.validation.arguments import check_choice

Dispersion = Literal["gene", "gene-batch", "gene-cell"]
Library = Literal["lognormal", "observed"]


@dataclass(frozen=True)
class Architecture:
    """Numbers that fix the shape of a model; the defaults are those of the signature of `SCCVAE`."""

    n_genes: int
    n_levels: tuple[int, ...]  # categories of the batch and of each further categorical covariate
    n_continuous: int
    n_hidden: int | tuple[int, int]  # of encoder and decoder, where they differ
    n_latent: int
    n_layers: int
    dropout_rate: float  # in the encoder
    dispersion: Dispersion
    gene_likelihood: LikelihoodName
    library: Library
    encode_covariates: bool
    dropout_cost: float  # penalty in nats for each expected inflated zero
    prior_components: int = 0  # Gaussians in p(z), learnt; 0: N(0, I), which older models have
    batch_mixing: float = 0.0  # penalty in nats for each nat of `batch_penalty.own_batch_excess`
    weight_precision: float = 0.0  # of the Gaussian prior of the weights of the decoder's heads; 0: none
    thinning: float = 0.0  # largest fraction of a cell's counts that is hidden from the encoder in training
    n_labels: int = 0  # of cells, which the components of p(z) have distributions over; 0: none
    label_weight: float = 0.0  # penalty in nats for each nat of -log p(y | z) of a labelled cell

    def __post_init__(self) -> None:
        if len(self.widths) != 2:
            raise ValueError(f"n_hidden is {self.n_hidden}; expected one width, or two: of encoder and of decoder.")
        for name, least in {"n_hidden": min(self.widths), "n_latent": self.n_latent, "n_layers": self.n_layers}.items():
            if least < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number of at least 1.")
        for name, what in {"dropout_rate": "units", "thinning": "molecules"}.items():
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a fraction of the {what} in [0, 1).")
        if self.n_labels and not self.prior_components:
            raise ValueError("prior_components is 0, and labels are given; expected a mixture, such as 30 Gaussians.")
        floors = {"dropout_cost": "nats per drop-out", "prior_components": "Gaussians", "batch_mixing": "nats per nat"}
        for name, what in (floors | {"weight_precision": "a finite number", "label_weight": "nats per nat"}).items():
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {what}, 0 or more.")

    @property
    def widths(self) -> tuple[int, int]:
        """Hidden units of a layer of the encoder, of the decoder."""
        return self.n_hidden if isinstance(self.n_hidden, tuple) else (self.n_hidden, self.n_hidden)

    @property
    def infers_library(self) -> bool:
        """Whether the model infers the library size, q(log l|x)."""
        return LIKELIHOODS[self.gene_likelihood].has_library and self.library == "lognormal"


def check_choices(**choices: str) -> None:
    """Raise ValueError unless every choice is valid for an `Architecture`."""
    known = {"gene_likelihood": LIKELIHOODS, "dispersion": get_args(Dispersion), "library": get_args(Library)}
    for name, value in choices.items():
        check_choice(name, value, known[name])
