"""Mapping of new cells onto a trained model, and labels for cells, written into an AnnData."""

import os
from typing import Any, cast

from anndata import AnnData

from sccvae.data.columns import categories_of
from sccvae.data.matrix import check_adata
from sccvae.data.sources import Given, open_source
from sccvae.models.mapping import ERROR_RATE, LEAST_GENES, NOVELTY_RATE
from sccvae.models.sccvae import SCCVAE
from sccvae.tl import results, stored
from sccvae.validation.arguments import checked_seed, flag
from sccvae.validation.conventions import scanpy_like
from sccvae.validation.names import check_key

ADAPTED = 20_000  # most cells of files that offsets are adapted to


@scanpy_like(kinds=("SCCVAE",), folders=True)
def map_query(
    query: Given,
    model: SCCVAE | str | os.PathLike,
    *,
    batch_key: str | None = None,
    gene_key: str | None = None,
    least_genes: float = LEAST_GENES,
    key_added: str = "sccvae",
    labels: bool = True,
    train: bool = True,
    copy: bool = False,
    out: str | os.PathLike | None = None,
    seed: int = 0,
) -> AnnData | None:
    """Map new cells onto a trained model, and write their embedding and labels.

    Offsets of new batches are adapted to the new cells, in seconds. All other weights stay those of the model, which is
    not changed itself. Cells of the reference keep their embedding, so that new cells can be drawn beside them:
    `pl.mapping`. The data of the reference are not needed.

    Parameters
    ----------
    query
        (cells, genes) raw counts of new cells, where the model had them: in `X` or in its layer. With `out` also files:
        a path, or a list of paths.
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
    out
        `.h5ad` or `.zarr` to write, block by block, in place of `query`: for cells that do not fit into memory. It has
        the counts in `X`, `obs`, `var` and what is written below. Offsets are adapted to at most 20,000 of the cells,
        as many of each batch as possible.
    seed
        Seed of the samples of z that probabilities are averaged over, and of the cells that offsets are adapted to.

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

    A file, without reading it into memory:

    >>> query.write_h5ad("query.h5ad")
    >>> sccvae.tl.map_query("query.h5ad", model, out="mapped.h5ad")
    """
    if out is None:
        results.check_in_memory(query, "query")
    check_key("key_added", key_added)
    labels, train, seed = flag("labels", labels), flag("train", train), checked_seed(seed)
    reference = model if isinstance(model, SCCVAE) else SCCVAE.load(model)
    batch_key = reference.describe()["parameters"].get("batch_key") if batch_key is None else batch_key
    options: dict[str, Any] = {"batch_key": batch_key, "gene_key": gene_key, "least_genes": least_genes}
    if out is not None:
        with open_source(query) as source:
            stored.check_place(source, out)
            some = stored.sample_of(source, reference, batch_key, ADAPTED, seed)
            mapped = _mapped(some, reference, key_added, options, train=train)
            uns = _description(source.frame, reference, mapped, batch_key, train=train)
            labels = labels and results.has_labels(mapped)
            stored.write_mapped(source, mapped, out, uns, key_added, seed, labels=labels)
        return None
    cells = cast(AnnData, query)
    mapped = _mapped(cells, reference, key_added, options, train=train)
    predicted = mapped.predict(seed=seed) if labels and results.has_labels(mapped) else None
    embedding = mapped.get_latent_representation()
    results.remove_earlier(cells, key_added)
    cells.obsm[f"X_{key_added}"] = embedding
    if predicted is not None:
        results.write_labels(cells, predicted, key_added)
    cells.uns[key_added] = _description(cells, reference, mapped, batch_key, train=train)
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


def _mapped(query: AnnData, reference: SCCVAE, key: str, options: dict[str, Any], *, train: bool) -> SCCVAE:
    """Return the model of new cells, adapted to them if asked."""
    mapped = SCCVAE.load_query_data(query, reference, **options)
    results.check_columns(key, mapped)
    if train:
        mapped.train()
    return mapped


def _description(
    query: AnnData, reference: SCCVAE, mapped: SCCVAE, batch_key: str | None, *, train: bool
) -> dict[str, Any]:
    """Return the model, and what was mapped, in types that files can store."""
    found = () if batch_key is None else categories_of(query, batch_key)
    new = [name for name in mapped.batches if name not in reference.batches]
    known = [name for name in found if name in reference.batches]
    of_query = {"n_cells": query.n_obs, "known_batches": known, "new_batches": new, "trained": train and bool(new)}
    return {**mapped.describe(), "mapping": of_query}
