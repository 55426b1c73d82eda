"""Integration of batches: outputs of a model, written into an AnnData."""

import os
from types import EllipsisType
from typing import Any, cast

import numpy as np
from anndata import AnnData

from sccvae.data.packs import checked_storage
from sccvae.data.sources import Given, open_source
from sccvae.models.sccvae import SCCVAE
from sccvae.tl import results, stored
from sccvae.tl.results import MAX_LAYER_BYTES
from sccvae.validation.conventions import scanpy_like
from sccvae.validation.names import check_key
from sccvae.validation.wording import warn


@scanpy_like()
def integrate(
    adata: Given,
    *,
    batch_key: str | None = None,
    labels_key: str | None = None,
    unlabeled: str | None = None,
    condition_key: str | None = None,
    layer: str | None = None,
    mask_var: str | np.ndarray | EllipsisType | None = ...,
    round_counts: bool = False,
    key_added: str = "sccvae",
    copy: bool = False,
    out: str | os.PathLike | None = None,
    expression: bool | None = None,
    model_options: dict[str, Any] | None = None,
    train_options: dict[str, Any] | None = None,
    seed: int = 0,
) -> AnnData | None:
    """Integrate the batches of `adata`: train an `SCCVAE` and store its outputs.

    Parameters
    ----------
    adata
        (cells, genes) raw counts in `X` or in `layer`. With `out` also files: a path, or a list of paths.
    batch_key
        Column of `obs` with the batch of each cell; None models one batch.
    labels_key
        Column of `obs` with labels of some or all cells, such as cell types. They help to form the embedding, and every
        cell gets a label; see `SCCVAE.predict`. None takes none.
    unlabeled
        Value of `labels_key` that means no label, such as "Unknown". Missing values are cells without a label, too.
    condition_key
        Column of `obs` with the condition of each cell, such as a treatment, that `batch_key` is not: its effect is
        removed from the embedding, and kept in both expression matrices. See `condition_effect`.
    layer
        Layer with the counts.
    mask_var
        Genes to model: a column of `var`, a (genes,) boolean array, or None for all. As in `scanpy.pp.pca`, the
        default takes `var["highly_variable"]` if it exists.
    round_counts
        Round expected counts, such as those of RSEM or Salmon, to whole numbers; see `SCCVAE`.
    key_added
        Prefix of everything written.
    {copy}
    out
        `.h5ad` or `.zarr` to write, block by block, in place of `adata`: for cells that do not fit into memory. It has
        the counts in `X`, `obs`, `var` and what is written below; other layers, `obsm` and `uns` are not copied.
    expression
        Whether to store the two expression matrices in `layers`; None stores them if they take less than 2 GiB in all.
    model_options, train_options
        Further arguments of `SCCVAE` and of `SCCVAE.train`.
    seed
        Seed of the model.

    Returns
    -------
    None, or the copy. Written, with `key_added="sccvae"`:

    - `obsm["X_sccvae"]`: embedding, (cells, n_latent);
    - `layers["sccvae"]`: normalised expression in each cell's own batch, scaled to the median library size;
    - `layers["sccvae_corrected"]`: its mean over all batches, which removes batch effects;
    - `obs["sccvae_library"]`: inferred library size;
    - `uns["sccvae"]`: parameters, history, versions;
    - with `labels_key`, the columns `sccvae_label`, `sccvae_probability`, `sccvae_novelty`, `sccvae_accepted` and
      `sccvae_reason` of `obs`: see `map_query`.

    With a mask also `var["sccvae_modelled"]`, the modelled genes; all others are NaN in the two layers. If the layers
    would take more than 2 GiB, the two matrices are written to `obsm["sccvae"]` and `obsm["sccvae_corrected"]`, (cells,
    modelled genes), with a warning. Results of an earlier run under the same keys are replaced or removed.

    Raises
    ------
    ValueError, KeyError, TypeError
        The data are invalid, and the message says how to fix them; or files cannot store `key_added` as a key.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(300, 50, seed=0)
    >>> sccvae.tl.integrate(adata, batch_key="batch", train_options={"max_epochs": 2})
    >>> adata.obsm["X_sccvae"].shape
    (300, 20)

    Files, without reading them into memory:

    >>> for k in range(2):
    ...     sccvae.simulate.simulate(150, 50, seed=0).write_h5ad(f"sample_{k}.h5ad")
    >>> paths = ["sample_0.h5ad", "sample_1.h5ad"]
    >>> sccvae.tl.integrate(paths, batch_key="batch", out="integrated.h5ad", train_options={"max_epochs": 2})
    """
    if out is None:
        results.check_in_memory(adata)
    check_key("key_added", key_added)
    options = {"seed": seed, "round_counts": round_counts, **(model_options or {})}
    budget = checked_storage(options.get("memory_budget"), None).memory_budget
    with open_source(adata, join=options.get("join", "inner"), budget=budget) as source:
        if out is not None:
            stored.check_place(source, out)
        if mask_var is ...:
            mask_var = stored.default_mask(source)
        given = adata if out is None else source
        keys: dict[str, Any] = {
            "batch_key": batch_key,
            "labels_key": labels_key,
            "unlabeled": unlabeled,
            "condition_key": condition_key,
            "layer": layer,
        }
        model = SCCVAE(given, mask_var=mask_var, **keys, **options)
        check_spared(key_added, model)
        model.train(**(train_options or {}))
        if out is not None:
            stored.write(source, model, out, key_added=key_added, expression=expression, own=True)
        else:
            _store(cast(AnnData, adata), None, model, key_added, expression)
    return None


@scanpy_like(kinds=("SCCVAE",))
def store(
    adata: Given,
    model: SCCVAE,
    *,
    key_added: str = "sccvae",
    copy: bool = False,
    out: str | os.PathLike | None = None,
    expression: bool | None = None,
) -> AnnData | None:
    """Write the outputs of a trained model to `adata`, under the keys of `integrate`.

    Parameters
    ----------
    adata
        Data that the model was trained on, or new data.
    model
        A trained model.
    key_added
        Prefix of everything written.
    {copy}
    out, expression
        As in `integrate`.

    Returns
    -------
    None, or the copy. The keys of `integrate` are written; those of labels if the model was trained with labels.

    Raises
    ------
    ValueError, KeyError, TypeError
        As in `integrate`.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(100, 30, seed=0)
    >>> model = sccvae.SCCVAE(adata, batch_key="batch")
    >>> model.train(max_epochs=1)
    >>> sccvae.tl.store(adata, model)
    >>> adata.obsm["X_sccvae"].shape
    (100, 20)
    """
    if out is None:
        results.check_in_memory(adata)
    check_key("key_added", key_added)
    check_spared(key_added, model)
    if out is not None:
        stored.write(adata, model, out, key_added=key_added, expression=expression)
    else:
        _store(cast(AnnData, adata), model.source_of(cast(AnnData, adata)), model, key_added, expression)
    return None


def check_spared(key_added: str, model: SCCVAE) -> None:
    """Raise if writing the results would overwrite data that the model reads."""
    columns, layer = results.columns_read(model), model.describe()["parameters"].get("layer")
    read = {
        f"adata.layers[{layer!r}]": layer in (key_added, f"{key_added}_corrected"),
        f"adata.obs['{key_added}_library']": f"{key_added}_library" in columns,
    }
    for what, replaced in read.items():
        if replaced:
            raise ValueError(
                f"key_added is {key_added!r}, so {what}, read by the model, would be lost. Choose another."
            )
    if results.has_labels(model):
        results.check_columns(key_added, model)


def _store(adata: AnnData, source: AnnData | None, model: SCCVAE, key_added: str, expression: bool | None) -> None:
    """Write the outputs for the cells of `source` to `adata`; None means the training data."""
    where = "layers" if expression else None
    if expression is None:
        where = _place(adata.n_obs, adata.n_vars, int(adata.var_names.isin(model.gene_names).sum()), key_added)
    predicted = model.predict(source) if results.has_labels(model) else None
    results.write(adata, source, model, key_added, where)
    if predicted is not None:
        results.write_labels(adata, predicted, key_added)


def _place(n_cells: int, n_genes: int, n_modelled: int, key: str) -> str | None:
    """Place for two float32 matrices within 2 GiB: `layers`, `obsm` for the modelled genes, or None."""
    if 2 * 4 * n_cells * n_genes <= MAX_LAYER_BYTES:
        return "layers"
    if n_modelled < n_genes and 2 * 4 * n_cells * n_modelled <= MAX_LAYER_BYTES:
        warn(
            f"Expression went to adata.obsm[{key!r}] and [{key + '_corrected'!r}], for the modelled genes only, since "
            f"layers would take more than 2 GiB. To draw it, take adata[:, adata.var['{key}_modelled']].copy() and "
            "make it a layer of that."
        )
        return "obsm"
    warn(
        "Expression was left out, since it would take more than 2 GiB; model.get_normalized_expression(out=...) "
        "streams it into a memmap or zarr array, and expression=True stores it all the same."
    )
    return None
