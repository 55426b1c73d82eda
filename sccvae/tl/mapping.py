"""Mapping of new cells onto a trained model, and labels for cells, written into an AnnData."""

import os
from typing import Any

from anndata import AnnData

from sccvae.data.columns import categories_of
from sccvae.data.matrix import check_adata
from sccvae.models.mapping import ERROR_RATE, LEAST_GENES, NOVELTY_RATE
from sccvae.models.sccvae import SCCVAE
from sccvae.tl import results
from sccvae.validation.arguments import checked_seed, flag
from sccvae.validation.conventions import scanpy_like
from sccvae.validation.names import check_key


@scanpy_like(kinds=("SCCVAE",), folders=True)
def map_query(
    query: AnnData,
    model: SCCVAE | str | os.PathLike,
    *,
    batch_key: str | None = None,
    gene_key: str | None = None,
    least_genes: float = LEAST_GENES,
    key_added: str = "sccvae",
    labels: bool = True,
    train: bool = True,
    copy: bool = False,
    seed: int = 0,
) -> AnnData | None:
    """Map new cells onto a trained model, and write their embedding and labels.

    Offsets of new batches are adapted to the new cells, in seconds. All other weights stay those of the model, which is
    not changed itself. Cells of the reference keep their embedding, so that new cells can be drawn beside them:
    `pl.mapping`. The data of the reference are not needed.

    Parameters
    ----------
    query
        (cells, genes) raw counts of new cells, where the model had them: in `X` or in its layer.
    model
        A trained model, the reference, or the folder of a saved one.
    batch_key
        Column of `obs` with the batches of the new cells; None takes the name of the reference's column.
    gene_key, least_genes
        Column of `var` with identifiers of genes; smallest fraction of the model's genes that has to be found. As in
        `SCCVAE.load_query_data`.
    key_added
        Prefix of everything written.
    labels
        Write labels, if the model was trained with labels.
    train
        Adapt the offsets of new batches. False takes the mean offsets of the known batches.
    {copy}
    seed
        Seed of the samples of z that probabilities are averaged over.

    Returns
    -------
    None, or the copy. Written, with `key_added="sccvae"`:

    - `obsm["X_sccvae"]`: embedding, (cells, n_latent);
    - `obs["sccvae_label"]`: the most probable label, a category;
    - `obs["sccvae_probability"]`: its probability;
    - `obs["sccvae_novelty"]`: 1 minus the fraction of the reference's cells that are as unlikely as this one;
    - `obs["sccvae_accepted"]`: whether novelty and probability are within the rates of `SCCVAE.predict`, bool;
    - `obs["sccvae_reason"]`: why a label is not accepted; empty for accepted cells;
    - `uns["sccvae"]`: parameters, history and versions of the model; in `mapping` the number of cells, the known and
      the new batches among them, and whether offsets were adapted.

    The columns of `obs` are written if the model was trained with labels. Results of an earlier run under the same keys
    are replaced or removed.

    Raises
    ------
    ValueError, KeyError, TypeError
        The counts are invalid, a gene or the column of batches is missing, files cannot store `key_added` as a key, or
        it would replace a column that the model reads; the message says how to fix it.
    FileNotFoundError, sccvae.ModelFileError
        There is no model in the folder, or it is damaged.
    RuntimeError
        The model is not trained.

    Examples
    --------
    >>> import sccvae
    >>> cells = sccvae.simulate.simulate(300, 50, seed=0)
    >>> new = cells.obs["batch"] == "batch_2"
    >>> model = sccvae.SCCVAE(cells[~new].copy(), batch_key="batch", labels_key="cell_type")
    >>> model.train(max_epochs=2)
    >>> query = cells[new].copy()
    >>> sccvae.tl.map_query(query, model)
    >>> query.obsm["X_sccvae"].shape
    (118, 20)
    >>> query.uns["sccvae"]["mapping"]["new_batches"]
    ['batch_2']
    """
    check_adata(query)
    check_key("key_added", key_added)
    labels, train, seed = flag("labels", labels), flag("train", train), checked_seed(seed)
    reference = model if isinstance(model, SCCVAE) else SCCVAE.load(model)
    of_genes: dict[str, Any] = {"gene_key": gene_key, "least_genes": least_genes}
    mapped = SCCVAE.load_query_data(query, reference, batch_key=batch_key, **of_genes)
    labels = labels and results.has_labels(mapped)
    results.check_columns(key_added, mapped)
    if train:
        mapped.train()
    predicted = mapped.predict(seed=seed) if labels else None
    embedding = mapped.get_latent_representation()
    results.remove_earlier(query, key_added)
    query.obsm[f"X_{key_added}"] = embedding
    if predicted is not None:
        results.write_labels(query, predicted, key_added)
    query.uns[key_added] = {**mapped.describe(), "mapping": _mapping(query, reference, mapped, batch_key, train)}
    return None


@scanpy_like(kinds=("SCCVAE",))
def transfer_labels(
    adata: AnnData,
    model: SCCVAE,
    *,
    key_added: str = "sccvae",
    reference_labels: Any = None,
    novelty_rate: float = NOVELTY_RATE,
    error_rate: float = ERROR_RATE,
    copy: bool = False,
    seed: int = 0,
) -> AnnData | None:
    """Write a model's labels for cells to columns of `obs`.

    Parameters
    ----------
    {adata_of_model}
    model
        A model that was trained with labels, or mapped onto one that was. With `reference_labels` any model that has
        its data, or was saved with its reference.
    key_added
        Prefix of the columns.
    reference_labels
        Labels of the cells that the model was trained on: a column of their `obs`, or a label for each. Cells of
        `adata` are labelled by their nearest neighbours among them. None takes the labels of the model.
    novelty_rate
        Fraction of the reference's own cells that would be called new. Cells less likely than those are not accepted.
    error_rate
        Largest fraction of cells like the held-out ones of the reference whose right label has too low a probability to
        be accepted.
    {copy}
    seed
        Seed of the samples of z that probabilities are averaged over.

    Returns
    -------
    None, or the copy. Written to `obs`, with `key_added="sccvae"`: `sccvae_label`, `sccvae_probability`,
    `sccvae_novelty`, `sccvae_accepted` and `sccvae_reason`, as by `map_query`. Columns of these names are replaced.

    Raises
    ------
    ValueError
        The model has no labels and none are given; a rate is not between 0 and 1; a batch is unknown to the model: map
        the cells first.
    ValueError, KeyError, TypeError
        The data are invalid, or the labels do not match the cells; the message says how to fix it.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(300, 50, seed=0)
    >>> model = sccvae.SCCVAE(adata, batch_key="batch")
    >>> model.train(max_epochs=2)
    >>> sccvae.tl.transfer_labels(adata, model, reference_labels="cell_type")
    >>> adata.obs["sccvae_label"].cat.categories[:2].tolist()
    ['type_0', 'type_1']
    """
    check_adata(adata)
    check_key("key_added", key_added)
    results.check_columns(key_added, model)
    predicted = model.predict(
        model.source_of(adata),
        reference_labels=reference_labels,
        novelty_rate=novelty_rate,
        error_rate=error_rate,
        seed=seed,
    )
    results.write_labels(adata, predicted, key_added)
    return None


def _mapping(query: AnnData, reference: SCCVAE, mapped: SCCVAE, batch_key: str | None, train: bool) -> dict[str, Any]:
    """Return what was mapped, in types that files can store."""
    key = mapped.describe()["parameters"].get("batch_key") if batch_key is None else batch_key
    found = () if key is None else categories_of(query, key)
    new = [name for name in mapped.batches if name not in reference.batches]
    known = [name for name in found if name in reference.batches]
    return {"n_cells": query.n_obs, "known_batches": known, "new_batches": new, "trained": train and bool(new)}
