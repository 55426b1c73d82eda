"""`SCCVAE`: the model that users hold."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from sccvae.data.schema import Schema, mask_of_genes
from sccvae.models import cross_validation
from sccvae.models.analysis import AnalysisModel
from sccvae.models.plan import checked_plan
from sccvae.modules.architecture import Architecture, Dispersion, Library, check_choices
from sccvae.modules.likelihoods import LIKELIHOODS, LikelihoodName
from sccvae.training.gradients import Precision
from sccvae.validation.arguments import MOST, checked_seed, flag, real, whole
from sccvae.validation.docstrings import filled
from sccvae.validation.names import same_names

OWN = "this model"  # in a table of cross-validation
_NETWORK = ("n_hidden", "n_latent", "n_layers", "dropout_rate", "encode_covariates")
_PRIORS = ("dropout_cost", "prior_components", "batch_mixing", "weight_precision", "thinning")
_LIKELIHOOD = ("gene_likelihood", "dispersion", "library", *_PRIORS)
_KEYS = ("batch_key", "categorical_covariate_keys", "continuous_covariate_keys", "size_factor_key")


class SCCVAE(AnalysisModel):
    """Variational autoencoder of single-cell counts (Lopez et al. 2018, https://doi.org/10.1038/s41592-018-0229-2).

    The AnnData is checked and copied into sparse form here, and never changed.

    Parameters
    ----------
    adata
        (cells, genes) raw counts in `X` or in `layer`.
    batch_key
        Column of `obs`: the experiment of each cell, whose effect is to be removed.
    layer
        Layer with the counts; None takes `X`.
    categorical_covariate_keys, continuous_covariate_keys
        Further columns of `obs` whose effects are to be removed; None takes none.
    size_factor_key
        Column of `obs` with positive size factors; they replace the library size (as `library="observed"`).
    {mask_var}
    round_counts
        Round values to whole numbers, an even one where two are as near: for the expected counts of RSEM, Salmon or
        Smart-seq2. New data are rounded alike. False refuses fractions, which most often mean normalised values.
    n_hidden
        Width of the hidden layers: of encoder and decoder alike, or two numbers, the encoder's and the decoder's.
    n_latent, n_layers
        Dimensions of the embedding; hidden layers of encoder and decoder each.
    {dropout_rate}
        None takes 0.1, and beyond 2,000 cells 200 / cells, because more cells are overfitted less.
    dispersion
        One theta per gene, per gene and batch, or per gene and cell.
    gene_likelihood
        `zinb`, `nb`, `poisson` for counts; `normal` for log-normalised values; `bernoulli` for 0/1 values.
    library
        `lognormal` infers each cell's library size; `observed` takes the total count.
    encode_covariates
        Give batch and covariates to the encoder, too; the decoder always has them. An encoder that knows the batch
        can leave it out of the embedding.
    dropout_cost
        Nats that the prior charges for each expected drop-out (`zinb`); 0 leaves zero inflation free.
    prior_components
        Gaussians in the prior of z, a mixture that is learnt (as Dilokthanakul et al. 2016,
        https://arxiv.org/abs/1611.02648, marginalised); 0 takes N(0, I), under which kinds of cells part less clearly.
    batch_mixing
        Weight of a penalty in training, from the end of the KL warm-up on: by how many nats a cell's neighbours in the
        embedding tell its batch (`sccvae.modules.batch_penalty`). Up to about 3 mixes batches better where they hold
        the same kinds of cells; 0 leaves that to the model. Turn it off where batches hold different kinds of cells by
        design, or where their difference is of interest: it takes part of that for an effect of the batch.
    weight_precision
        Of the prior of the weights that lead from hidden units to genes, Normal(0, 1 / weight_precision); for counts.
        What few cells show of a gene is then not learnt by heart: the smaller the data, the more it matters. 0 leaves
        them free.
    thinning
        Largest share of a cell's molecules that the encoder does not see in a step of training; for counts. The share
        is drawn anew for each cell and step, from 0 to this. With 0.8 codes depend less on depth: choose it for a model
        that is to embed other cells, above all shallower ones. The ELBO of training cells in `history` is then that of
        cells seen in part. 0, the default, shows every molecule.
    {seed_of_model}
        The same seed, data and settings give the same model to the bit, whatever the number of threads. Results round
        differently on another device, kind of processor (see `precision` of `train`) or version of torch.
    {device}

    Notes
    -----
    Work on the CPU is shared among as many threads as torch has (`torch.set_num_threads`, `OMP_NUM_THREADS`). Draws
    depend on `seed` and the place of a cell among those asked for, not on `chunk_size`. A process may be forked after
    training; one that has used a GPU may not, as CUDA says: start it by `multiprocessing.get_context("spawn")`.

    Raises
    ------
    {input_errors}

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(300, 50, seed=0)
    >>> model = sccvae.SCCVAE(adata, batch_key="batch")
    >>> model.train(max_epochs=2)
    >>> adata.obsm["X_sccvae"] = model.get_latent_representation()
    """

    def __init__(
        self,
        adata: AnnData,
        *,
        batch_key: str | None = None,
        layer: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = (),
        continuous_covariate_keys: Sequence[str] | None = (),
        size_factor_key: str | None = None,
        mask_var: str | np.ndarray | None = None,
        round_counts: bool = False,
        n_hidden: int | tuple[int, int] = (256, 384),
        n_latent: int = 20,
        n_layers: int = 1,
        dropout_rate: float | None = None,
        dispersion: Dispersion = "gene",
        gene_likelihood: LikelihoodName = "zinb",
        library: Library = "lognormal",
        encode_covariates: bool = True,
        dropout_cost: float = 0.02,
        prior_components: int = 30,
        batch_mixing: float = 1.5,
        weight_precision: float = 100.0,
        thinning: float = 0.0,
        seed: int = 0,
        device: str | torch.device = "auto",
    ):
        seed = checked_seed(seed)
        check_choices(gene_likelihood=gene_likelihood, dispersion=dispersion, library=library)
        schema, counts = Schema.learn(
            adata,
            layer=layer,
            support=LIKELIHOODS[gene_likelihood].support,
            batch_key=batch_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
            size_factor_key=size_factor_key,
            genes=None if mask_var is None else mask_of_genes(adata, mask_var),
            round_counts=round_counts,
        )
        architecture = Architecture(
            n_genes=counts.n_genes,
            n_levels=counts.n_levels,
            n_continuous=counts.continuous.shape[1],
            n_hidden=_widths(n_hidden),
            n_latent=whole("n_latent", n_latent, most=MOST),
            n_layers=whole("n_layers", n_layers, most=MOST),
            dropout_rate=min(0.1, 200 / len(counts)) if dropout_rate is None else real("dropout_rate", dropout_rate),
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            library="observed" if size_factor_key is not None else library,
            encode_covariates=flag("encode_covariates", encode_covariates),
            dropout_cost=real("dropout_cost", dropout_cost),
            prior_components=whole("prior_components", prior_components, most=MOST),
            batch_mixing=real("batch_mixing", batch_mixing),
            weight_precision=real("weight_precision", weight_precision),
            thinning=real("thinning", thinning),
        )
        self._begin(adata, schema, counts, architecture, seed, device)

    def train(
        self,
        max_epochs: int | None = None,
        *,
        batch_size: int = 128,
        train_size: float = 0.95,
        early_stopping: bool = True,
        patience: int = 20,
        learning_rate: float = 4e-3,
        kl_warmup: float = 0.1,
        gradient_clip: float = 50.0,
        weight_decay: float = 0.0,
        n_draws: int = 1,
        precision: Precision = "mixed",
        progress_bar: bool = True,
    ) -> None:
        """Fit the model; called again, go on from where it stands.

        {ctrl_c}
        What is evaluated and kept of an epoch is the average of the weights over about fifty steps.

        Parameters
        ----------
        {run}
        kl_warmup
            Share of the run over which the weight of KL(q(z|x) || p(z)) rises to 1. At its end `batch_mixing` begins.
            (What lets drop-outs differ between cells is learnt in the second half of the run, whatever this is.)
        {gradients}
        n_draws
            Draws of z and l for each cell at each step (L of Kingma & Welling 2014); one does for minibatches of 100.
        precision
            `mixed` multiplies bfloat16 in the largest products of a step, where the CPU has instructions for it
            (AVX-512 BF16, AMX) and counts are modelled: a third less time for the same fit. `full` is float32
            throughout, closer to what processors without them compute. Weights and outputs are float32 in both.
        {progress_bar}

        Raises
        ------
        ValueError
            A number or a choice makes no sense.
        {training_error}
        """
        plan = checked_plan(
            max_epochs=self._epochs(max_epochs, train_size),
            batch_size=batch_size,
            learning_rate=learning_rate,
            kl_warmup=0.0 if self._rows else kl_warmup,
            early_stopping=early_stopping,
            patience=patience,
            gradient_clip=gradient_clip,
            weight_decay=weight_decay,
            n_draws=n_draws,
            precision=precision,
        )
        self._train(plan, train_size, progress_bar)

    def cross_validate(
        self,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        n_splits: int = 3,
        kept: float = 0.8,
        seed: int = 0,
        progress_bar: bool = True,
    ) -> pd.DataFrame:
        """Molecular cross-validation of this model's settings, on its data, and of changes to them.

        The model itself stays as it is: new ones are trained, `n_splits` for each setting. As `sccvae.cross_validate`,
        which says what is returned; the row of the model's own settings is called "this model".

        Parameters
        ----------
        settings
            Name -> what is changed, such as ``{"5 dimensions": {"n_latent": 5}, "short": {"max_epochs": 5}}``.
        options
            What is changed in all settings, its own as well. Training takes the defaults of `train` unless
            changed here, whatever this model was trained with.
        n_splits, kept, seed, progress_bar
            As in `sccvae.cross_validate`.
        """
        if self._counts is None:
            raise ValueError(
                "This model was loaded without data: load it as SCCVAE.load(path, adata) to cross-validate it."
            )
        if settings is not None and OWN in settings:
            raise ValueError(f"A setting is called {OWN!r}, the name of the model's own settings: rename it.")
        own = {name: getattr(self._vae.architecture, name) for name in (*_NETWORK, *_LIKELIHOOD)}
        own |= {name: getattr(self._schema, name) for name in _KEYS} | {"device": self.device} | dict(options or {})
        every = {OWN: own} | {name: own | dict(changes) for name, changes in (settings or {}).items()}
        obs, genes = self._obs, self.gene_names
        if not same_names(obs.index, cast(pd.Index, self._cell_names)):
            raise ValueError(
                "The cells of the AnnData have changed since the model was built: call sccvae.cross_validate(adata)."
            )
        return cross_validation.compare(
            SCCVAE,
            self._counts.matrix,
            obs,
            genes,
            every,
            n_splits=n_splits,
            kept=kept,
            seed=seed,
            progress_bar=progress_bar,
        )


def _widths(n_hidden: int | Sequence[int]) -> int | tuple[int, int]:
    """What `Architecture` takes, of plain integers."""
    if isinstance(n_hidden, str) or not np.iterable(n_hidden):
        return whole("n_hidden", n_hidden, most=MOST)
    return cast(tuple[int, int], tuple(whole("n_hidden", n, most=MOST) for n in n_hidden))


@filled
def cross_validate(
    adata: AnnData,
    settings: Mapping[str, Mapping[str, Any]],
    *,
    batch_key: str | None = None,
    layer: str | None = None,
    mask_var: str | np.ndarray | None = None,
    round_counts: bool = False,
    options: Mapping[str, Any] | None = None,
    n_splits: int = 3,
    kept: float = 0.8,
    seed: int = 0,
    progress_bar: bool = True,
) -> pd.DataFrame:
    """Tell which of several settings fits the data best, by molecular cross-validation.

    Each molecule is dealt at random into a part to train on or a part held out (Batson, Royer & Webber 2019,
    https://doi.org/10.1101/786269), the same for all settings. The loss of a setting is the Poisson negative
    log-likelihood of the held-out counts under its expected counts, mean * (1 - dropout), scaled to the depth held out
    of each cell. So models of different likelihoods compare. It judges denoising: not the library size, and not whether
    batches are mixed, for which there is `sccvae.tl.score_integration`.

    Parameters
    ----------
    adata, batch_key, layer, mask_var, round_counts
        As in `SCCVAE`.
    settings
        Name -> arguments of `SCCVAE` and of `SCCVAE.train`, such as
        ``{"default": {}, "5 dimensions": {"n_latent": 5}, "short": {"max_epochs": 5}}``.
    options
        Arguments of all settings, such as ``{"library": "observed"}``.
    n_splits
        How often molecules are dealt and every setting is trained.
    kept
        Share of the molecules to train on.
    seed
        Of the dealing; the models of split i have the seed `seed` + i.
    {progress_bar}

    Returns
    -------
    DataFrame, a row for each setting, the best first, and one for the "mean profile": all cells alike but for their
    depth, the guess that a model must beat. Columns:

    - `loss`, `loss_se`: nats per cell, lower is better; mean and standard error over splits;
    - `excess`, `excess_se`: the same of the loss above that of the first row on the same molecules. Settings compare
      by these: an excess below about two standard errors is no difference;
    - `best`: whether it is the first row;
    - `split_1`, ...: the loss in each split; `seconds`: what building and training took.

    Standard errors are over ways to deal the molecules and over seeds, not over other cells.

    Raises
    ------
    ValueError, KeyError, TypeError
        What is wrong with the data, with a setting, or with a number.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(300, 50, seed=0)
    >>> settings = {"default": {}, "2 dimensions": {"n_latent": 2}}
    >>> table = sccvae.cross_validate(adata, settings, batch_key="batch", options={"max_epochs": 2}, n_splits=2)
    >>> table.shape
    (3, 8)
    """
    genes = None if mask_var is None else mask_of_genes(adata, mask_var)
    schema, counts = Schema.learn(adata, layer=layer, genes=genes, round_counts=round_counts)
    common = {"batch_key": batch_key} | dict(options or {})
    every = {name: common | dict(changes) for name, changes in settings.items()}
    return cross_validation.compare(
        SCCVAE,
        counts.matrix,
        adata.obs,
        schema.genes,
        every,
        n_splits=n_splits,
        kept=kept,
        seed=seed,
        progress_bar=progress_bar,
    )
