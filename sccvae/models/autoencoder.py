"""`Autoencoder`, and the base class that it has in common with `DenoisingAutoencoder`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from sccvae.data.counts import Counts
from sccvae.data.schema import learn
from sccvae.inference import generation, posterior
from sccvae.models.base import BaseModel
from sccvae.models.plan import checked_plan
from sccvae.models.signatures import with_history
from sccvae.modules.architecture import Architecture, check_choices
from sccvae.modules.autoencoders import Reconstructor
from sccvae.modules.likelihoods import LIKELIHOODS, LikelihoodName
from sccvae.validation.arguments import FLOAT32, MOST, check_choice, checked_seed, finite, positive, real, whole

Codes = Literal["fitted", "prior"]


class AutoencodingModel(BaseModel):
    """Base class of the two autoencoders: construction, training, latent representation."""

    objective: ClassVar[str] = "log-likelihood"
    _vae: Reconstructor

    def _build(
        self,
        adata: AnnData,
        batch_key: str | None,
        layer: str | None,
        mask_var: str | np.ndarray | None,
        round_counts: bool,
        sizes: dict[str, int],
        dropout_rate: float,
        gene_likelihood: LikelihoodName,
        seed: int,
        device: str | torch.device,
        options: dict[str, Any],
    ) -> None:
        """Read and check the data, and make the network."""
        sizes, seed = {name: whole(name, n, most=MOST) for name, n in sizes.items()}, checked_seed(seed)
        frame, schema, counts = learn(
            adata,
            layer=layer,
            support=LIKELIHOODS[gene_likelihood].support,
            batch_key=batch_key,
            mask_var=mask_var,
            round_counts=round_counts,
        )
        architecture = Architecture(
            n_genes=counts.n_genes,
            n_levels=counts.n_levels,
            n_continuous=0,
            **sizes,
            dropout_rate=real("dropout_rate", dropout_rate),
            dispersion="gene",
            gene_likelihood=gene_likelihood,
            library="observed",
            encode_covariates=False,
            dropout_cost=0.05,
        )
        self._begin(adata, frame, schema, counts, architecture, seed, device, options)

    def train(
        self,
        max_epochs: int | None = None,
        *,
        batch_size: int | None = None,
        train_size: float = 0.9,
        early_stopping: bool = True,
        patience: int = 20,
        learning_rate: float = 3e-3,
        gradient_clip: float = 50.0,
        weight_decay: float = 0.0,
        checkpoint: str | os.PathLike | None = None,
        checkpoint_every: int = 1000,
        resume: bool = False,
        progress_bar: bool = True,
    ) -> None:
        """Fit the model; a further call continues training.

        {ctrl_c}

        Parameters
        ----------
        {run}
        {gradients}
        {checkpoint}
        {progress_bar}

        Raises
        ------
        {checkpoint_errors}
        {training_error}

        Examples
        --------
        >>> model.train(max_epochs=1)  # goes on from the two epochs before
        >>> int(model.history["epoch"].max())
        3
        """
        plan = checked_plan(
            max_epochs=self._epochs(max_epochs, train_size),
            batch_size=self._batch_size(batch_size, train_size),
            learning_rate=learning_rate,
            kl_warmup=0.0,
            early_stopping=early_stopping,
            patience=patience,
            gradient_clip=gradient_clip,
            weight_decay=weight_decay,
            n_draws=1,
            precision="full",
        )
        self._train(plan, train_size, progress_bar, checkpoint, checkpoint_every, resume)

    def _after_training(self) -> None:
        self._vae.remember_codes(posterior.latent(self._vae, cast(Counts, self._counts)))

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch and split: log-likelihood of the reconstruction (nats per cell), learning rate, seconds.

        The column `elbo`, which `sccvae.pl.history` draws, repeats it: without a prior there is no other term.

        Examples
        --------
        >>> model.history[["epoch", "split", "reconstruction"]].shape
        (4, 3)
        """
        table = pd.DataFrame(self._rows).drop(columns=["kl_z", "kl_l", "kl_weight"], errors="ignore")
        return with_history(table)

    def get_latent_representation(self, adata: AnnData | None = None, indices: Any = None) -> np.ndarray:
        """Latent representation of each cell, its code, (cells, n_latent) float32.

        Parameters
        ----------
        {new_data}
        {indices}

        Examples
        --------
        >>> adata.obsm["X_autoencoder"] = model.get_latent_representation()
        >>> adata.obsm["X_autoencoder"].shape
        (300, 20)
        """
        return posterior.latent(self._vae, self._cells(adata, indices)[0])


class Autoencoder(AutoencodingModel):
    """Plain autoencoder, without a prior over its latent representations (codes).

    The networks are those of `SCCVAE`, trained to maximise log p(x | f(x)), where f is the mean of the encoder.
    Without a prior, codes are not distributed as N(0, I). `generate(codes="prior")` samples codes from N(0, I) all the
    same; `"fitted"` samples them from a Gaussian fitted to the codes of the training cells.

    Parameters
    ----------
    adata
        (cells, genes) values in `X` or in `layer`: cells, or other samples such as images with a pixel per column.
    batch_key
        Column of `obs` with the batch, an input of the decoder, so that codes need not encode it.
    layer
        Layer with the values; None takes `X`.
    {mask_var}
    round_counts
        Round values to whole numbers, as in `SCCVAE`; for counts.
    n_hidden, n_latent, n_layers
        Width of the hidden layers; dimensions of the code; hidden layers, in the encoder and in the decoder.
    {dropout_rate}
    gene_likelihood
        `nb`, `poisson`, `zinb` for counts, at each cell's observed library size; `normal` for real values;
        `bernoulli` for 0/1 values.
    scale
        Fixed standard deviation of `normal`, in the units of the data; 1 gives half the squared error. None learns one
        for each gene.
    {seed_of_model}
    {device}

    Raises
    ------
    {input_errors}

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(300, 50, seed=0)
    >>> model = sccvae.Autoencoder(adata, n_latent=5)
    >>> model.train(max_epochs=2)
    >>> model.decode(model.sample_codes(10)).shape
    (10, 50)
    """

    kind: ClassVar[str] = "Autoencoder"

    def __init__(
        self,
        adata: AnnData,
        *,
        batch_key: str | None = None,
        layer: str | None = None,
        mask_var: str | np.ndarray | None = None,
        round_counts: bool = False,
        n_hidden: int = 256,
        n_latent: int = 20,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        gene_likelihood: LikelihoodName = "nb",
        scale: float | None = None,
        seed: int = 0,
        device: str | torch.device = "auto",
    ):
        check_choices(gene_likelihood=gene_likelihood)
        sizes = {"n_hidden": n_hidden, "n_latent": n_latent, "n_layers": n_layers}
        options = {"scale": checked_scale(scale, gene_likelihood)}
        data = (adata, batch_key, layer, mask_var, round_counts)
        self._build(*data, sizes, dropout_rate, gene_likelihood, seed, device, options)

    @staticmethod
    def _network(architecture, generator, kernels, options) -> Reconstructor:
        return Reconstructor(architecture, generator, kernels, scale=options["scale"])

    def sample_codes(self, n_codes: int, *, codes: Codes = "fitted", seed: int = 0) -> np.ndarray:
        """Codes to decode, (n_codes, n_latent) float32.

        Parameters
        ----------
        codes
            `fitted`: from the Gaussian with the mean and covariance of the training cells' codes; `prior`: from
            N(0, I), to which an autoencoder is not fitted.

        Examples
        --------
        >>> z = model.sample_codes(10, codes="fitted")
        >>> model.decode(z, batch="batch_0").shape
        (10, 50)
        """
        self._check_trained()
        n_codes, seed = positive("n_codes", n_codes), checked_seed(seed)
        check_choice("codes", codes, get_args(Codes))
        z = np.random.default_rng(seed).standard_normal((n_codes, self._vae.architecture.n_latent))
        if codes == "fitted":
            z = self._vae.code_mean.cpu().numpy() + z @ self._vae.code_factor.cpu().numpy().T
        return z.astype(np.float32)

    def generate(
        self, n_cells: int, *, codes: Codes = "fitted", batch: str | Sequence[str] | None = None, seed: int = 0
    ) -> AnnData:
        """Generate cells: codes by `sample_codes`, library size from the batch's log-normal, x from the likelihood.

        Parameters
        ----------
        codes
            `fitted` or `prior`, see `sample_codes`.
        {generated_batch}
            Batches come in the proportions of the training data.

        Returns
        -------
        AnnData with the batch in `obs`, the codes in `obsm["X_sccvae"]` and, for counts, the library size in
        `obs["sccvae_library"]`.

        Examples
        --------
        >>> new = model.generate(100, batch="batch_0")
        >>> new.shape
        (100, 50)
        """
        self._check_trained()
        n_cells, seed = positive("n_cells", n_cells), checked_seed(seed)
        z, rng = self.sample_codes(n_cells, codes=codes, seed=seed), np.random.default_rng([seed, 1])
        profiles = self._draw_profiles(n_cells, batch, rng)
        library = generation.draw_log_library(self._vae, profiles, rng) if self.likelihood.has_library else None
        latent = generation.Latent(profiles, None, z, library)
        _, matrix, _ = next(generation.counts_of(self._vae, latent, rng, n_cells))
        return self._generated(matrix, profiles, z, latent.library)


def checked_scale(scale: float | None, gene_likelihood: str) -> float | None:
    """Check the fixed standard deviation; None stays None."""
    if scale is None:
        return None
    if gene_likelihood != "normal":
        raise ValueError(f"scale is for gene_likelihood='normal'; found {gene_likelihood!r}: leave scale out.")
    what = "a standard deviation above 0, in the units of the data"
    return finite("scale", scale, what, least=1 / FLOAT32, most=FLOAT32)
