"""`SCCVAE`, the variational autoencoder, and molecular cross-validation of its settings.

Its public methods, by the file that defines them:

========== ========== ===============================================================================================
class      file       methods and properties
========== ========== ===============================================================================================
SCCVAE     sccvae     train, cross_validate
Mapping    mapping    load_query_data, is_mapped, predict, reference_cells, save
Analysis   analysis   differential_expression, condition_effect, diagnose, report
Generation generation generate
Outputs    posterior  get_latent_representation, get_normalized_expression, get_latent_library_size, get_elbo,
                      get_likelihood_parameters, get_reconstruction_error, get_marginal_ll, moments_of,
                      posterior_predictive_sample, get_feature_correlation_matrix, describe
Base       base       get_reconstruction, decode, save, load, source_of, history, gene_names, n_latent, batches,
                      likelihood, device, adata, is_trained
Training   plan       resume
========== ========== ===============================================================================================
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from sccvae.data.packs import checked_storage
from sccvae.data.schema import learn
from sccvae.data.sources import Given, Join
from sccvae.models import cross_validation
from sccvae.models.mapping import RATE, MappingModel
from sccvae.models.plan import checked_plan
from sccvae.modules.architecture import Architecture, Dispersion, Library, check_choices
from sccvae.modules.likelihoods import LIKELIHOODS, LikelihoodName
from sccvae.training.gradients import Precision
from sccvae.validation.arguments import MOST, checked_seed, finite, flag, real, whole
from sccvae.validation.docstrings import filled
from sccvae.validation.names import same_names

logger = logging.getLogger("sccvae")

OWN = "this model"  # in a table of cross-validation
_NETWORK = ("n_hidden", "n_latent", "n_layers", "dropout_rate", "encode_covariates")
_PRIORS = ("dropout_cost", "prior_components", "batch_mixing", "weight_precision", "thinning")
_LIKELIHOOD = ("gene_likelihood", "dispersion", "library", *_PRIORS)
_KEYS = ("batch_key", "categorical_covariate_keys", "continuous_covariate_keys", "size_factor_key", "condition_key")


class SCCVAE(MappingModel):
    """Variational autoencoder of single-cell counts (Lopez et al. 2018, https://doi.org/10.1038/s41592-018-0229-2).

    Every count is checked and copied in sparse form, three bytes each. The data are never changed.

    Parameters
    ----------
    adata
        (cells, genes) raw counts in `X` or in `layer`: an AnnData, in memory or backed; the path of an `.h5ad`, a
        `.zarr` or a pack (`sccvae.pack`); or a list of paths, which are one set. Files are read once, in blocks.
    batch_key
        Column of `obs` with the batch of each cell. Batch effects are removed from the embedding.
    layer
        Layer with the counts; None takes `X`.
    categorical_covariate_keys, continuous_covariate_keys
        Further columns of `obs` whose effects are removed; None takes none.
    size_factor_key
        Column of `obs` with positive size factors. They replace the library size, as with `library="observed"`.
    labels_key
        Column of `obs` with labels of cells, such as cell types. They help to form the embedding, and `predict` gives
        labels to other cells. Missing values are cells without a label.
    unlabeled
        Value of `labels_key` that means no label, such as "Unknown".
    condition_key
        Column of `obs` with the condition of each cell, such as a treatment. Its effect may depend on the embedding,
        from which it is removed; `tl.condition_effect` shows it. What all batches of a condition have in common, such
        as donors, belongs to the condition (`sccvae.modules.batch_offsets.centre_within_conditions`).
    {mask_var}
    genes
        Names of the genes to model, in this order, in place of `mask_var`.
    round_counts
        Round values to whole numbers, halves to the even one: for the expected counts of RSEM, Salmon or Smart-seq2.
        New data are rounded in the same way. False raises an error for fractions, which are usually normalised values.
    join
        Genes of several files: `inner` keeps those that all files have; `exact` raises an error if they differ.
    memory_budget
        Bytes of memory for the counts; None takes half of what is free. Beyond it they go into a file, and training
        reads cells in blocks: minibatches then differ from those in memory.
    cache_dir
        Folder in which the counts are kept as a pack, and from which the next model of the same files and genes reads
        them; None takes a temporary file.
    n_hidden
        Width of the hidden layers: one number for encoder and decoder, or two, (encoder, decoder).
    n_latent, n_layers
        Dimensions of the embedding; number of hidden layers, in the encoder and in the decoder.
    {dropout_rate}
        None takes 0.1, and beyond 2,000 cells 200 / cells, because more cells are overfitted less.
    dispersion
        One theta per gene, per gene and batch, or per gene and cell.
    gene_likelihood
        `zinb`, `nb`, `poisson` for counts; `normal` for log-normalised values; `bernoulli` for 0/1 values.
    library
        `lognormal` infers the library size of each cell; `observed` takes the total count.
    encode_covariates
        Whether batch and covariates are inputs of the encoder; they always are of the decoder. With the batch as an
        input, the encoder can remove its effect from the embedding.
    dropout_cost
        Penalty in nats for each expected zero-inflated count (`zinb`); 0 does not penalise zero inflation.
    prior_components
        Number of Gaussians in the prior of z, a learnt mixture (as Dilokthanakul et al. 2016,
        https://arxiv.org/abs/1611.02648, marginalised). 0 takes N(0, I), which separates cell types less clearly. None
        takes 30, and with labels three for each label if that is more.
    batch_mixing
        Weight of the batch penalty, from the end of the KL warm-up on. The penalty is the information in nats that the
        neighbours of a cell in the embedding give on its batch (`sccvae.modules.batch_penalty`). Values up to about 3
        improve mixing if the batches contain the same cell types; 0 removes the penalty. Set 0 if the batches contain
        different cell types by design, or if differences between batches are of interest, because the penalty removes
        part of them.
    weight_precision
        Precision of the prior of the weights from hidden units to genes, Normal(0, 1 / weight_precision); for counts.
        It reduces overfitting of genes that are detected in few cells, and matters most for small data. 0 removes the
        prior.
    thinning
        Largest fraction of a cell's molecules that are hidden from the encoder in a training step; for counts. The
        fraction is sampled for each cell and step, between 0 and this value. With 0.8 the embedding depends less on
        sequencing depth: use it for models that will embed other cells, above all cells with fewer counts. The ELBO of
        training cells in `history` is then that of thinned cells. 0, the default, hides nothing.
    label_weight
        Weight of -log p(label | z) of a labelled cell in the loss, beside the ELBO. With 0, a label counts as one
        observation among those of all genes.
    {seed_of_model}
        The same seed, data and settings give the same model to the bit, whatever the number of threads. Results round
        differently on another device, kind of processor (see `precision` of `train`) or version of torch.
    {device}

    Notes
    -----
    On the CPU, work is split among as many threads as torch has (`torch.set_num_threads`, `OMP_NUM_THREADS`). Samples
    depend on `seed` and on the position of a cell in the call, not on `chunk_size`. A process may be forked after
    training. CUDA does not allow this once a GPU was used: start processes by `multiprocessing.get_context("spawn")`.

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
        adata: Given,
        *,
        batch_key: str | None = None,
        layer: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = (),
        continuous_covariate_keys: Sequence[str] | None = (),
        size_factor_key: str | None = None,
        labels_key: str | None = None,
        unlabeled: str | None = None,
        condition_key: str | None = None,
        mask_var: str | np.ndarray | None = None,
        genes: Sequence[str] | None = None,
        round_counts: bool = False,
        join: Join = "inner",
        memory_budget: float | None = None,
        cache_dir: str | os.PathLike | None = None,
        n_hidden: int | tuple[int, int] = (256, 384),
        n_latent: int = 20,
        n_layers: int = 1,
        dropout_rate: float | None = None,
        dispersion: Dispersion = "gene",
        gene_likelihood: LikelihoodName = "zinb",
        library: Library = "lognormal",
        encode_covariates: bool = True,
        dropout_cost: float = 0.02,
        prior_components: int | None = None,
        batch_mixing: float = 1.5,
        weight_precision: float = 100.0,
        thinning: float = 0.0,
        label_weight: float = 10.0,
        seed: int = 0,
        device: str | torch.device = "auto",
    ):
        seed = checked_seed(seed)
        weight = finite("label_weight", label_weight, "nats per nat, 0 or more", least=0)
        check_choices(gene_likelihood=gene_likelihood, dispersion=dispersion, library=library)
        frame, schema, counts = learn(
            adata,
            join=join,
            storage=checked_storage(memory_budget, cache_dir),
            layer=layer,
            support=LIKELIHOODS[gene_likelihood].support,
            batch_key=batch_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
            size_factor_key=size_factor_key,
            labels_key=labels_key,
            unlabeled=unlabeled,
            condition_key=condition_key,
            mask_var=mask_var,
            genes=genes,
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
            prior_components=_components(prior_components, len(schema.labels)),
            batch_mixing=real("batch_mixing", batch_mixing),
            weight_precision=real("weight_precision", weight_precision),
            thinning=real("thinning", thinning),
            n_labels=len(schema.labels),
            label_weight=weight if schema.labels else 0.0,
        )
        self._begin(adata, frame, schema, counts, architecture, seed, device)

    def train(
        self,
        max_epochs: int | None = None,
        *,
        batch_size: int | None = None,
        train_size: float = 0.95,
        early_stopping: bool = True,
        patience: int = 20,
        learning_rate: float | None = None,
        kl_warmup: float = 0.1,
        gradient_clip: float = 50.0,
        weight_decay: float = 0.0,
        n_draws: int = 1,
        precision: Precision = "mixed",
        checkpoint: str | os.PathLike | None = None,
        checkpoint_every: int = 1000,
        resume: bool = False,
        progress_bar: bool = True,
    ) -> None:
        """Fit the model; a further call continues training.

        {ctrl_c}
        What is evaluated and kept of an epoch is the average of the weights over about fifty steps.

        Parameters
        ----------
        {run}
        kl_warmup
            Fraction of the run over which the weight of KL(q(z|x) || p(z)) rises to 1. At its end `batch_mixing`
            begins. (The zero-inflation head is trained in the second half of the run, whatever this value is.)
        {gradients}
        n_draws
            Samples of z and l per cell and step (L of Kingma & Welling 2014); one is enough for minibatches of 100.
        precision
            `mixed` computes the largest matrix products of a step in bfloat16 if the CPU has instructions for it
            (AVX-512 BF16, AMX) and the data are counts: a third less time for the same fit. `full` computes in float32
            throughout, which is closer to other processors. Weights and outputs are float32 in both.
        {checkpoint}
        {progress_bar}

        Raises
        ------
        ValueError
            A number is out of range, or a choice is unknown.
        {checkpoint_errors}
        {training_error}

        Examples
        --------
        >>> model.train(max_epochs=1)  # goes on from the two epochs before
        >>> int(model.history["epoch"].max())
        3
        """
        if learning_rate is None:
            learning_rate = RATE if self.is_mapped else 4e-3
        plan = checked_plan(
            max_epochs=self._epochs(max_epochs, train_size),
            batch_size=self._batch_size(batch_size, train_size),
            learning_rate=learning_rate,
            kl_warmup=0.0 if self._rows else kl_warmup,
            early_stopping=early_stopping,
            patience=patience,
            gradient_clip=gradient_clip,
            weight_decay=weight_decay,
            n_draws=n_draws,
            precision=precision,
        )
        if self.is_mapped and not self._vae.moving:
            logger.info("All batches are known to the reference: there is nothing to adapt.")
            return
        self._train_size = train_size
        self._train(plan, train_size, progress_bar, checkpoint, checkpoint_every, resume)

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
        """Compare this model's settings with changes to them, by molecular cross-validation on its data.

        New models are trained, `n_splits` for each setting; this model stays as it is. The result is that of
        `sccvae.cross_validate`; the row of this model's own settings is called "this model".

        Parameters
        ----------
        settings
            Name -> changed arguments, such as ``{"5 dimensions": {"n_latent": 5}, "short": {"max_epochs": 5}}``.
        options
            Arguments changed in all settings, this model's own included. Training uses the defaults of `train`
            unless they are changed here, not the arguments that this model was trained with.
        n_splits, kept, seed, progress_bar
            As in `sccvae.cross_validate`.

        Examples
        --------
        >>> table = model.cross_validate({"2 dimensions": {"n_latent": 2}}, options={"max_epochs": 1}, n_splits=2)
        >>> sorted(table.index)
        ['2 dimensions', 'mean profile', 'this model']
        """
        if self._counts is None:
            raise ValueError(
                "This model was loaded without data: load it as SCCVAE.load(path, adata) to cross-validate it."
            )
        if settings is not None and OWN in settings:
            raise ValueError(f"A setting is called {OWN!r}, the name of the model's own settings: rename it.")
        own = {name: getattr(self._vae.architecture, name) for name in (*_NETWORK, *_LIKELIHOOD)}
        own |= {name: getattr(self._schema, name) for name in _KEYS}
        covariates = [key for key in self._schema.categorical_covariate_keys if key != self._schema.condition_key]
        own |= {"categorical_covariate_keys": covariates, "device": self.device} | dict(options or {})
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


def _components(given: int | None, n_labels: int) -> int:
    """Check the number of Gaussians; None takes the default."""
    return max(30, 3 * n_labels) if given is None else whole("prior_components", given, most=MOST)


def _widths(n_hidden: int | Sequence[int]) -> int | tuple[int, int]:
    """One width, or two, as plain integers."""
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
    """Compare how well several settings fit the data, by molecular cross-validation.

    Each molecule is assigned at random to a training or to a held-out part (Batson, Royer & Webber 2019,
    https://doi.org/10.1101/786269), in the same way for all settings. The loss of a setting is the Poisson negative
    log-likelihood of the held-out counts under its expected counts, mean * (1 - dropout), scaled to the held-out depth
    of each cell. Models with different likelihoods are therefore comparable. The loss measures denoising. It does not
    measure the library size, nor the mixing of batches: see `sccvae.tl.score_integration`.

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
        Number of random splits of the molecules; every setting is trained once on each.
    kept
        Fraction of the molecules to train on.
    seed
        Seed of the splits; the models of split i have the seed `seed` + i.
    {progress_bar}

    Returns
    -------
    DataFrame with a row for each setting, the best first, and one for the baseline "mean profile", which predicts the
    same composition for all cells. Columns:

    - `loss`, `loss_se`: nats per cell, lower is better; mean and standard error over splits;
    - `excess`, `excess_se`: mean and standard error of the loss minus that of the first row on the same molecules. Use
      these to compare settings: an excess below about two standard errors is no difference;
    - `best`: whether it is the first row;
    - `split_1`, ...: the loss in each split; `seconds`: time of building and training.

    Standard errors are over random splits of the molecules and over seeds, not over other cells.

    Raises
    ------
    ValueError, KeyError, TypeError
        The data, a setting or a number is invalid; the message says how to fix it.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(300, 50, seed=0)
    >>> settings = {"default": {}, "2 dimensions": {"n_latent": 2}}
    >>> table = sccvae.cross_validate(adata, settings, batch_key="batch", options={"max_epochs": 2}, n_splits=2)
    >>> table.shape
    (3, 8)
    """
    frame, schema, counts = learn(adata, layer=layer, mask_var=mask_var, round_counts=round_counts)
    common = {"batch_key": batch_key} | dict(options or {})
    every = {name: common | dict(changes) for name, changes in settings.items()}
    return cross_validation.compare(
        SCCVAE,
        counts.matrix,
        frame.obs,
        schema.genes,
        every,
        n_splits=n_splits,
        kept=kept,
        seed=seed,
        progress_bar=progress_bar,
    )
