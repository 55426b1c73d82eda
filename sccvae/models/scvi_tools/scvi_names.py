"""Translation of the arguments of scvi-tools into arguments of these models, or the reason why there is none.

Scripts written for scvi-tools run, or raise an error that says what to change. The tables have the arguments with
another name here, or none; `sccvae.models.signatures` looks an unknown argument up before it raises an error. Names
that both packages have are in no table. None means "not given", as in scvi-tools.
"""

from collections.abc import Callable, Collection, Mapping
from inspect import Parameter
from typing import Any, NamedTuple

from sccvae.validation.arguments import limit, real, unless_none
from sccvae.validation.wording import did_you_mean


class Asked(NamedTuple):
    """Argument by its scvi-tools name, and the context of the call."""

    name: str
    value: Any
    model: Any  # the model, or its class if the class is called
    beside: Mapping[str, Any]  # the other given arguments, by our names
    ours: Mapping[str, Parameter]  # all parameters of the method


class Refused(Exception):
    """The argument is not possible with this value; the text says why, and what to do instead."""


Entry = Callable[[Asked], dict[str, Any]]  # -> arguments by our names; empty if the argument has no effect here
Table = dict[str, Entry]


def anything(asked: Asked) -> dict[str, Any]:
    """Accept any value: the argument has no effect here."""
    return {}


def named(name: str) -> Entry:
    """Rename the argument."""
    return lambda asked: {name: asked.value}


def only(*values: Any, why: str) -> Entry:
    """Accept these values, which mean what is done here anyway; raise `Refused(why)` for others."""

    def entry(asked: Asked) -> dict[str, Any]:
        if not any(_equal(asked.value, value) for value in values):
            raise Refused(why)
        return {}

    return entry


def without(why: str) -> Entry:
    """Raise `Refused(why)` for every value that is not empty."""
    return only(False, {}, [], (), "", why=why)


def switch(name: str, if_true: Any, if_false: Any) -> Entry:
    """Rename the argument, and translate True and False."""

    def entry(asked: Asked) -> dict[str, Any]:
        if not (_equal(asked.value, True) or _equal(asked.value, False)):
            raise Refused(f"Expected True or False, or {name}={if_true!r} or {if_false!r} in its place.")
        return {name: if_true if asked.value else if_false}

    return entry


def positive(asked: Asked) -> dict[str, Any]:
    """Accept any whole number of at least 1: the argument has no effect here."""
    limit(asked.name, asked.value)
    return {}


def _device_of(value: Any) -> str:
    """Name in torch of an accelerator, of a switch for GPUs, or of the index of a GPU."""
    if isinstance(value, bool):
        return "cuda" if value else "cpu"
    return f"cuda:{value}" if isinstance(value, int) else {"gpu": "cuda"}.get(str(value), str(value))


def _equal(value: Any, known: Any) -> bool:
    try:
        return bool(value == known)
    except (TypeError, ValueError):  # arrays
        return False


# -------------------------------------------------------------------------------------------------------- constructors


def _library(asked: Asked) -> dict[str, Any]:
    if "library" in asked.ours:
        return switch("library", "observed", "lognormal")(asked)
    return only(True, why="This model always takes the observed library size.")(asked)


def _unlabeled(asked: Asked) -> dict[str, Any]:
    if "unlabeled" not in asked.ours:
        raise Refused("Only SCCVAE is trained on labels: leave it out.")
    return {"unlabeled": asked.value}


_COUNTED = without("It is read from adata, and from the keys of its columns: leave it out.")
_NORM = "Layer norm follows each hidden layer of encoder and decoder, and there is no batch norm: leave it out."
_FIXED = "The networks have one form here: leave it out. n_hidden, n_layers and dropout_rate can be chosen."
CONSTRUCTOR: Table = {
    "labels_key": without(
        "Only SCCVAE is trained on labels. Name the column where it is used, as in "
        "tl.score_integration(adata, batch_key, label_key)."
    ),
    "unlabeled_category": _unlabeled,
    "categorical_covariate_keys": without("Only SCCVAE takes covariates besides the batch."),
    "continuous_covariate_keys": without("Only SCCVAE takes covariates besides the batch."),
    "size_factor_key": without("Only SCCVAE takes size factors."),
    "use_size_factor_key": without("Name the column instead: size_factor_key=..."),
    "use_observed_lib_size": _library,
    "library_log_means": without("Means are taken from the counts of each batch: leave it out."),
    "library_log_vars": without("Variances are taken from the counts of each batch: leave it out."),
    "latent_distribution": only("normal", why="The distribution of z is Gaussian here: leave it out."),
    "log_variational": only(True, why="The encoder always sees the logarithm of counts: leave it out."),
    "use_layer_norm": only("both", why=_NORM),
    "use_batch_norm": only("none", why=_NORM),
    "deeply_inject_covariates": only(True, why="Batch and covariates enter every layer: leave it out."),
    "batch_representation": only("one-hot", why="Each batch has its own offsets, as one-hot codes have: leave it out."),
    "batch_embedding_kwargs": without("Each batch has its own offsets, as one-hot codes have: leave it out."),
    "var_activation": without(_FIXED),
    "extra_encoder_kwargs": without(_FIXED),
    "extra_decoder_kwargs": without(_FIXED),
    "extra_payload_autotune": without("Settings are compared by cross_validate(adata, settings): leave it out."),
    "registry": without("The model reads adata itself; nothing is registered: leave it out."),
    **dict.fromkeys(("n_input", "n_batch", "n_labels", "n_continuous_cov", "n_cats_per_cov"), _COUNTED),
    **dict.fromkeys(("use_gpu", "use_cuda"), lambda asked: {"device": _device_of(asked.value)}),
}

# ------------------------------------------------------------------------------------------------------------ training


def _accelerator(asked: Asked) -> dict[str, Any]:
    """Accept the device that the model is on."""
    here = asked.model.device
    if _device_of(asked.value) not in ("auto", here.type, str(here)):
        raise Refused(
            f"This model is on {str(here)!r}, and trains there. The device is chosen before: "
            f"{asked.model.kind}(adata, device='cpu' or 'cuda')."
        )
    return {}


def _devices(asked: Asked) -> dict[str, Any]:
    """Accept values that mean the one device of the model."""
    index = asked.model.device.index or 0
    return only(
        "auto", 1, "1", -1, "-1", [index], (index,), why="A model trains on the one device that it is on: leave it out."
    )(asked)


def _validation_size(asked: Asked) -> dict[str, Any]:
    share, trained = real("validation_size", asked.value), asked.beside.get("train_size")
    if trained is None:
        return {"train_size": round(1 - share, 12)}
    if abs(real("train_size", trained) + share - 1) > 1e-6:
        raise Refused(
            f"All cells that are not trained on are held out, and train_size={trained}: the two make 1. To keep cells "
            "for a test, leave them out of adata."
        )
    return {}


def _warmup(unit: str) -> Entry:
    """Translate a warm-up in epochs or steps into a fraction of the run."""

    def entry(asked: Asked) -> dict[str, Any]:
        if "kl_warmup" not in asked.ours:
            raise Refused("This model has no KL divergence, so nothing to warm up: leave it out.")
        if asked.value is None:
            return {"kl_warmup": 0.0}
        run = ("max_epochs", "train_size", "batch_size")
        max_epochs, train_size, batch_size = (asked.beside.get(n, asked.ours[n].default) for n in run)
        n_epochs, n_steps = asked.model._length_of_run(
            None if max_epochs is None else limit("max_epochs", max_epochs),
            train_size,
            unless_none(limit, "batch_size", batch_size),
        )
        length, n = (n_epochs, "epochs") if unit == "epochs" else (n_steps, "steps")
        if (share := real(f"n_{unit}_kl_warmup", asked.value) / length) >= 1:
            raise Refused(
                f"The run has {length} {n}, and batch_mixing begins when the warm-up ends: leave it out, or pass "
                "kl_warmup, a fraction of the run below 1."
            )
        return {"kl_warmup": share}

    return entry


def _all_of(table: Callable[[], Table], what: str) -> Entry:
    """Translate each argument in a dictionary of further arguments."""

    def entry(asked: Asked) -> dict[str, Any]:
        if not isinstance(asked.value, Mapping):
            raise Refused(f"Expected a dictionary of {what}.")
        known, values = table(), dict(asked.value)
        result: dict[str, Any] = {}
        if values.get("n_epochs_kl_warmup") is not None:  # takes precedence in scvi-tools
            values.pop("n_steps_kl_warmup", None)
        elif values.get("n_steps_kl_warmup") is not None:
            values.pop("n_epochs_kl_warmup", None)
        for name, value in values.items():
            if name in known:
                if value is None and name != "n_epochs_kl_warmup":
                    continue
                try:
                    result |= known[name](asked._replace(name=name, value=value))
                except Refused as refused:
                    raise Refused(f"{name}={value!r}: {refused}") from None
            elif name in asked.ours:
                result[name] = value
            else:
                hint = did_you_mean(name, known, listed=True)
                raise Refused(f"{name!r} is not among the {what} that have a meaning here.{hint or ' Leave it out.'}")
        return result

    return entry


_SCHEDULE = "The learning rate falls to a hundredth in the course of a run: leave it out, or set learning_rate."
_ADAM = "Weights are moved by Adam: leave it out. learning_rate and weight_decay can be chosen."
_BEST = "Training keeps the best epoch, and model.save(path) writes it: leave it out."
PLAN: Table = {
    "lr": named("learning_rate"),
    "weight_decay": named("weight_decay"),
    "n_epochs_kl_warmup": _warmup("epochs"),
    "n_steps_kl_warmup": _warmup("steps"),
    "max_kl_weight": only(1, why="The weight of the KL divergence rises to 1, as the ELBO has it: leave it out."),
    "min_kl_weight": only(0, why="The weight of the KL divergence rises from 0: leave it out."),
    "reduce_lr_on_plateau": only(False, why=_SCHEDULE),
    **dict.fromkeys(("lr_factor", "lr_patience", "lr_threshold", "lr_min", "lr_scheduler_metric"), anything),
    "optimizer": only("Adam", why=_ADAM),
    "optimizer_creator": without(_ADAM),
    "eps": without(_ADAM),
    "compile": anything,  # the kernels are compiled already
    "compile_kwargs": anything,
}
DATA_SPLITTER: Table = {
    "drop_last": only(False, why="Every cell is seen in every epoch: leave it out."),
    "drop_dataset_tail": only(False, why="Every cell is seen in every epoch: leave it out."),
    "external_indexing": without("Cells are held out at random: leave it out, or build the model on fewer cells."),
    **dict.fromkeys(("num_workers", "pin_memory", "persistent_workers"), anything),
}
TRAIN: Table = {
    "early_stopping_patience": named("patience"),
    "early_stopping_monitor": only("elbo_validation", why="Early stopping uses the held-out ELBO: leave it out."),
    "early_stopping_mode": only("min", why="Early stopping maximises the held-out ELBO: leave it out."),
    "early_stopping_min_delta": only(0, why="Any higher held-out ELBO is a better epoch: leave it out."),
    "early_stopping_warmup_epochs": only(0, why="Epochs are compared from the first on: raise patience instead."),
    "check_val_every_n_epoch": positive,  # every epoch is checked
    "plan_kwargs": _all_of(lambda: PLAN, "plan_kwargs"),
    "plan_config": _all_of(lambda: PLAN, "plan_kwargs"),
    "trainer_config": _all_of(lambda: TRAIN, "arguments of train"),
    "datasplitter_kwargs": _all_of(lambda: DATA_SPLITTER | TRAIN, "datasplitter_kwargs"),
    **dict.fromkeys(("accelerator", "use_gpu"), _accelerator),
    "devices": _devices,
    "validation_size": _validation_size,
    "shuffle_set_split": only(True, why="Cells are held out at random, the same fraction of each batch: leave it out."),
    "load_sparse_tensor": anything,  # minibatches are sparse
    "datamodule": without("A model trains on the AnnData that it was built on: leave it out."),
    "n_epochs": named("max_epochs"),
    "enable_progress_bar": named("progress_bar"),
    "gradient_clip_val": named("gradient_clip"),
    "gradient_clip_algorithm": only("norm", why="Gradients are clipped by their norm: leave it out."),
    "logger": only(False, True, why="What a run records is in model.history: leave it out."),
    "log_save_dir": without("What a run records is in model.history: leave it out."),
    "enable_checkpointing": only(False, why=_BEST),
    "checkpointing_monitor": only("elbo_validation", "validation_loss", why=_BEST),
    "callbacks": without("Training has no callbacks: leave it out. model.history has every epoch."),
    "accumulate_grad_batches": only(1, why="A step is taken after each minibatch: set batch_size."),
    "strategy": only("auto", why="Training uses one device: leave it out."),
    **dict.fromkeys(
        ("max_steps", "min_epochs", "min_steps", "max_time"), without("Set max_epochs: it is what counts here.")
    ),
    **dict.fromkeys(
        ("simple_progress_bar", "progress_bar_refresh_rate", "log_every_n_steps", "learning_rate_monitor"), anything
    ),
    **dict.fromkeys(
        ("benchmark", "deterministic", "default_root_dir", "enable_model_summary", "num_sanity_val_steps"), anything
    ),
    **PLAN,
}

# ------------------------------------------------------------------------------------------------------------- outputs


def _chunk(asked: Asked) -> dict[str, Any]:
    """Translate into `chunk_size`, cells decoded at once, if the method has it. Results do not depend on it."""
    limit("batch_size", asked.value)
    return {"chunk_size": asked.value} if "chunk_size" in asked.ours else {}


def _both_moments(asked: Asked) -> dict[str, Any]:
    if "return_variance" in asked.ours:
        return {"return_variance": asked.value}
    return only(False, why="A code has no variance here: leave it out.")(asked)


def _library_size(asked: Asked) -> dict[str, Any]:
    """Without `give_mean`, scvi-tools returns the observed size, or a sample if the size is inferred."""
    values = (True,) if asked.model._vae.architecture.infers_library else (True, False)
    return only(
        *values, why="The inferred size is the median of q(l|x), and samples of it are not returned: leave it out."
    )(asked)


_EQUAL = "All samples have the same weight: leave it out."
_WEIGHTS = only("uniform", why=_EQUAL)
_DRAWS = "The number of samples per cell is n_samples: with return_mean=False, (n_samples, cells, genes)."
_MEANS = (
    "Groups are compared by the means of all their cells: leave it out. n_samples is the number of samples of them."
)
_LFC = "The test is of the log2 fold change of the means: leave it out."
_LATENT_DRAW = (
    "These are the means of q(z|x). To sample: mean, variance = get_latent_representation(return_variance=True)."
)
OUTPUT: Table = {
    "batch_size": _chunk,
    "silent": anything,  # no output shows its progress
    "dataloader": without("Pass the cells as adata, an AnnData or the path of a file."),
    **dict.fromkeys(("data_loader_kwargs", "num_workers", "pin_memory"), anything),
}
OUTPUTS: dict[str, Table] = {
    "get_latent_representation": {
        "give_mean": only(True, why=_LATENT_DRAW),
        "mc_samples": anything,  # the mean of a Gaussian needs no samples
        "return_dist": _both_moments,
    },
    "get_normalized_expression": {
        "n_samples_overall": without(_DRAWS),
        "weights": _WEIGHTS,
        "importance_weighting_kwargs": without(_EQUAL),
    },
    "differential_expression": {
        "all_stats": only(
            True, why="The table always has the statistics of counts: drop columns that you do not need."
        ),
        "batchid1": without(
            "Both groups are decoded in all batches: leave it out, or pass the cells of fewer as adata."
        ),
        "batchid2": without(
            "Both groups are decoded in all batches: leave it out, or pass the cells of fewer as adata."
        ),
        "use_observed_batches": switch("batch_correction", False, True),
        "weights": _WEIGHTS,
        "importance_weighting_kwargs": without(_EQUAL),
        "filter_outlier_cells": without(
            "All cells of a group are used: choose them by idx1 and idx2 to leave some out."
        ),
        "pseudocounts": named("pseudocount"),
        "threshold_counts": without("The pseudocount is taken from the data, or set by pseudocount."),
        "n_samples_overall": without(_MEANS),
        "n_samples_per_cell": without(_MEANS),
        "use_permutation": without(_MEANS),
        "m_permutation": anything,  # there are no permutations
        "change_fn": only("log-fold", why=_LFC),
        "m1_domain_fn": without("Set delta, the smallest change that counts: leave it out."),
        "test_mode": only("two", why="Genes that rise and genes that fall are judged together: leave it out."),
        "cred_interval_lvls": without("The table has lfc_std, lfc_min and lfc_max: leave it out."),
    },
    "get_likelihood_parameters": {
        "n_samples": only(1, why="Parameters are those at the posterior means: leave it out."),
        "give_mean": anything,  # one sample has no average
    },
    "get_latent_library_size": {"give_mean": _library_size},
    "get_marginal_ll": {"n_mc_samples": named("n_samples"), "n_mc_samples_per_pass": anything},
}

# ------------------------------------------------------------------------------------------------------------- storage


def _load_on(asked: Asked) -> dict[str, Any]:
    """Translate into `device`, unless `device` is given as well, which is more exact."""
    if not _equal(asked.beside.get("device", "auto"), "auto"):
        return {}
    return {"device": _device_of(asked.value)}


_FOLDER = "Each model has a folder of its own: put it into the path."
STORAGE: dict[str, Table] = {
    "save": {
        "dir_path": named("path"),
        "prefix": without(_FOLDER),
        "save_anndata": only(
            False, why="A model is saved without its data: leave it out, and write them by adata.write_h5ad(...)."
        ),
        "save_kwargs": without("A model is saved as safetensors and JSON: leave it out."),
        "legacy_mudata_format": anything,
        "datamodule": without("A model is saved without its data: leave it out."),
    },
    "load": {
        "dir_path": named("path"),
        "prefix": without(_FOLDER),
        "accelerator": _load_on,
        "use_gpu": _load_on,
        "map_location": _load_on,
        "backup_url": without("Models are read from folders: download it before."),
        "datamodule": without("Pass the data as adata, an AnnData or the paths of files."),
        "allowed_classes_names_list": without("A model is loaded by the class that saved it."),
    },
    "load_query_data": {
        "reference_model": named("reference"),
        "inplace_subset_query_vars": anything,
        "accelerator": _load_on,
        "use_gpu": _load_on,
        **dict.fromkeys(
            (
                "unfrozen",
                "freeze_dropout",
                "freeze_expression",
                "freeze_decoder_first_layer",
                "freeze_batchnorm_encoder",
                "freeze_batchnorm_decoder",
                "freeze_classifier",
            ),
            without("Only the offsets of new batches are trained: leave it out."),
        ),
    },
}


def table_of(name: str, ours: Collection[str]) -> Table:
    """Table of scvi-tools' arguments of a method; `ours` are the names of its own."""
    if name in ("__init__", "train"):
        return CONSTRUCTOR if name == "__init__" else TRAIN
    outputs = OUTPUT if "adata" in ours and name != "load" else {}
    return outputs | OUTPUTS.get(name, {}) | STORAGE.get(name, {})


UNSET: dict[str, tuple[str, ...]] = {  # our arguments whose default in scvi-tools is None
    "train": ("train_size",),
    "get_normalized_expression": ("return_numpy",),
}
