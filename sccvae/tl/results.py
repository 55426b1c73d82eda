"""Outputs of a model for cells, written into an AnnData."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae.data.matrix import check_adata
from sccvae.data.sources import is_paths
from sccvae.models.sccvae import SCCVAE

REASONS = ("", "new kind", "few molecules", "few shared genes")  # of `SCCVAE.predict`; others name two labels
PREDICTED = ("label", "probability", "novelty", "accepted", "reason")  # columns of `SCCVAE.predict`
# Keys of `uns[key]`: those of every description of a model, and one of those that functions of `tl` add.
_DESCRIBED, _WRITTEN = {"parameters", "versions"}, {"expression_library_size", "mapping"}
MAX_LAYER_BYTES = 2 * 2**30  # of the two expression matrices, which are not made by default if they are larger


def write(
    adata: AnnData, source: AnnData | None, model: SCCVAE, key: str, where: str | None, scale: float | None = None
) -> None:
    """Write the outputs for the cells of `source`, None for the training data, to `adata`.

    Parameters
    ----------
    key
        Prefix of the keys.
    where
        Place of the two expression matrices: `layers`, `obsm`, or None for none.
    scale
        Library size of expression; None takes the median of the cells.
    """
    embedding = model.get_latent_representation(source)
    remove_earlier(adata, key)
    modelled = adata.var_names.isin(model.gene_names)
    if model.likelihood.has_library:
        library = model.get_latent_library_size(source)
        scale = float(np.median(library)) if scale is None else scale
        adata.obs[f"{key}_library"] = library
    scale = 1.0 if scale is None else scale
    adata.obsm[f"X_{key}"] = embedding
    adata.uns[key] = {**model.describe(), "expression_library_size": scale}
    if not modelled.all():
        adata.var[f"{key}_modelled"] = modelled
    if where is None:
        return
    genes = adata.var_names[modelled]
    for name, batches in ((key, None), (f"{key}_corrected", model.batches)):
        values = model.get_normalized_expression(
            source, transform_batch=batches, library_size=scale, gene_list=genes, return_numpy=True
        )
        if where == "layers" and not modelled.all():
            known, values = values, np.full(adata.shape, np.nan, dtype=np.float32)
            values[:, modelled] = known
        getattr(adata, where)[name] = values


def check_in_memory(given: Any, name: str = "adata") -> None:
    """Raise unless results can be written into the argument called `name`."""
    if is_paths(given):
        raise TypeError(
            f"{name} is a path; expected an AnnData to write into. Of files, name the new one: out='new.h5ad'."
        )
    check_adata(given)


def check_counts(model: SCCVAE, function: str) -> None:
    """Raise unless the likelihood is one of counts."""
    if model.likelihood.support != "counts":
        raise ValueError(
            f"{function} needs a count likelihood; found gene_likelihood={model.likelihood.name!r}, expected 'zinb', "
            "'nb' or 'poisson'."
        )


def has_labels(model: SCCVAE) -> bool:
    """Return whether a model was trained with labels."""
    return bool(model.describe()["parameters"].get("labels"))


def write_labels(adata: AnnData, predicted: pd.DataFrame, key: str, *, numbered: bool = False) -> None:
    """Write the table of `SCCVAE.predict` to columns of `obs`; reasons `numbered` as by `reason_numbers`, if asked."""
    columns = {f"{key}_{name}": predicted[name].array for name in PREDICTED}
    columns[f"{key}_reason"] = reason_numbers(predicted) if numbered else pd.Categorical(predicted["reason"])
    if adata.is_view:  # writing the first column makes a view an AnnData of its own
        adata.obs[f"{key}_label"] = columns[f"{key}_label"]
    for name, values in columns.items():
        adata.obs[name] = values


def reason_numbers(predicted: pd.DataFrame) -> np.ndarray:
    """Return a number for the reason of each cell, (cells,) int64, which depends on nothing but the model's labels.

    Blocks of cells have different reasons, and the columns of a file that is written in blocks have one type.
    """
    labels, label = list(predicted["label"].cat.categories), predicted["label"].cat.codes.to_numpy()
    reasons, at = np.unique(predicted["reason"].to_numpy(str), return_inverse=True)
    found = np.zeros(len(predicted), dtype=np.int64)
    for k, first in {(int(k), int(first)) for k, first in zip(at, label, strict=True)}:
        reason = str(reasons[k])
        if reason in REASONS:
            number = REASONS.index(reason)
        else:  # two labels, the first of which is the cell's own
            second = labels.index(reason.removeprefix(f"between {labels[first]} and "))
            number = len(REASONS) + first * len(labels) + second
        found[(at == k) & (label == first)] = number
    return found


def reasons_of(numbers: np.ndarray, labels: Sequence[str]) -> list[str]:
    """Return the reasons that `reason_numbers` gave these numbers."""
    pairs = [divmod(int(number) - len(REASONS), len(labels)) for number in numbers]
    return [
        REASONS[number] if number < len(REASONS) else f"between {labels[first]} and {labels[second]}"
        for number, (first, second) in zip(numbers, pairs, strict=True)
    ]


def check_columns(key: str, model: SCCVAE) -> None:
    """Raise if the columns of labels would overwrite one that the model reads."""
    read = columns_read(model)
    for name in (f"{key}_{column}" for column in PREDICTED):
        if name in read:
            raise ValueError(
                f"key_added is {key!r}, so adata.obs[{name!r}], read by the model, would be lost. Choose another."
            )


def columns_read(model: SCCVAE) -> set[str]:
    """Return the columns of `obs` that a model reads; one with mapped cells does not read their labels."""
    said = model.describe()["parameters"]  # keys that are None or empty are left out
    lists = ("categorical_covariate_keys", "continuous_covariate_keys")
    labels = None if model.is_mapped else said.get("labels_key")
    single = {said.get("batch_key"), said.get("size_factor_key"), labels}
    return {column for name in lists for column in said.get(name, ())} | single - {None}


def remove_earlier(adata: AnnData, key_added: str) -> None:
    """Remove results of an earlier run, so that nothing of another model remains under the same keys."""
    earlier = adata.uns.get(key_added)
    if not hasattr(earlier, "keys") or not (set(earlier.keys()) >= _DESCRIBED and set(earlier.keys()) & _WRITTEN):
        return
    for key in (key_added, f"{key_added}_corrected"):
        for place in (adata.layers, adata.obsm):
            if key in place:
                del place[key]
    in_obs, predicted = [f"{key_added}_library"], [f"{key_added}_{name}" for name in PREDICTED]
    if set(predicted[:-1]) <= set(adata.obs):  # older files have no reasons; a single column may be the user's
        in_obs += predicted
    for table, columns in ((adata.obs, in_obs), (adata.var, [f"{key_added}_modelled"])):
        for column in columns:
            if column in table:
                del table[column]
