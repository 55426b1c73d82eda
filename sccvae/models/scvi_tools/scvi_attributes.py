"""Replacements for attributes of scvi-tools' models, and for columns of their history, that these models lack."""

from typing import Any

_SETUP = "Pass its keys to the constructor: {kind}(adata, layer=..., batch_key=...)."
_REGISTRY = "Nothing is registered: print(model) and model.describe() show its parameters."
_QUERY = "Pass new cells to the methods themselves, or map new batches by SCCVAE.load_query_data(adata, model)."
_NETWORK = "Methods such as get_latent_representation and decode return what the network computes."
_SPLIT = "Which cells are held out follows from train_size and the seed, and is not kept."
_HISTORY = "See model.history, a table with a row for each epoch and split."
ATTRIBUTES: dict[str, str] = {
    **dict.fromkeys(("setup_anndata", "setup_mudata", "register_manager"), _SETUP),
    "adata": "A model keeps counts, not the AnnData, and the one that it was built on is gone, or there was none.",
    **dict.fromkeys(("adata_manager", "registry", "registry_", "summary_stats", "get_anndata_manager"), _REGISTRY),
    **dict.fromkeys(("view_anndata_setup", "get_from_registry", "deregister_manager", "summary_string"), _REGISTRY),
    **dict.fromkeys(("view_setup_args", "load_registry"), "Load the model by {kind}.load(path), and print it."),
    **dict.fromkeys(("prepare_query_anndata", "prepare_query_mudata"), _QUERY),
    "module": _NETWORK,
    "trainer": _HISTORY,
    "history_": _HISTORY,
    "is_trained_": "See model.is_trained.",
    "to_device": "A device is chosen by {kind}(adata, device=...) or {kind}.load(path, adata, device=...).",
    **dict.fromkeys(("train_indices", "validation_indices", "test_indices"), _SPLIT),
    "convert_legacy_save": "Models of scvi-tools cannot be read, since the networks differ: train anew.",
    "minify_adata": "Outputs need no training data: {kind}.load(path) keeps the model alone.",
    "get_aggregated_posterior": "Sample from a mixture fitted to it by generate(prior='aggregate').",
    "differential_abundance": "It is not here. metrics.embedding_scores measures the mixing of batches.",
    "get_batch_representation": "Each batch has its own offsets; there is no embedding of batches.",
}
PACKAGE: dict[str, str] = {  # looked for in the package itself
    "settings": "There are no global settings: pass seed= to SCCVAE and to the methods that sample.",
    "SCVI": "The model of that name is SCCVAE(adata, layer=..., batch_key=...).",
    "autotune": "Settings are compared by sccvae.cross_validate(adata, settings).",
    "SCANVI": "SCCVAE takes labels: SCCVAE(adata, batch_key=..., labels_key=..., unlabeled=...).",
    **dict.fromkeys(("TOTALVI", "PEAKVI", "MULTIVI", "LinearSCVI"), "It is not here: see scvi-tools."),
}

# ------------------------------------------------------------------------------------------------------------- history

_OF_SPLIT = "model.history[model.history['split'] == '{split}']"
_COLUMNS = {
    "elbo": "['elbo'], of which scvi-tools keeps the negative: here higher is better",
    "reconstruction_loss": "['reconstruction'], of which scvi-tools keeps the negative: here higher is better",
    "kl_local": "[['kl_z', 'kl_l']], whose sum it is",
    "kl_global": ": this model has no KL divergence of that kind",
    "loss": "['elbo'], of which it is the negative, apart from the weight of the KL divergence",
}


def of_history(key: Any) -> str | None:
    """Place in the history of the values that scvi-tools keeps under `key`; None if there are none."""
    name = str(key).removesuffix("_step").removesuffix("_epoch")
    for split, known in (("training", "train"), ("validation", "validation")):
        what = name.removesuffix(f"_{known}") if name.endswith(f"_{known}") else name.removeprefix(f"{known}_")
        if what != name and what in _COLUMNS:
            return f"There is a row for each epoch and split: {_OF_SPLIT.format(split=split)}{_COLUMNS[what]}."
    return "The column is called 'learning_rate'." if name in ("lr", "lr-Adam") else None
