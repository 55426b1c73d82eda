"""A model's outputs written into an AnnData."""

import warnings
from types import EllipsisType
from typing import Any

import numpy as np
from anndata import AnnData

from sccvae.conventions import scanpy_like
from sccvae.matrix import check_adata
from sccvae.model import SCCVAE

MAX_LAYER_BYTES = 2 * 2**30


@scanpy_like()
def integrate(
    adata: AnnData,
    *,
    batch_key: str | None = None,
    layer: str | None = None,
    mask_var: str | np.ndarray | EllipsisType | None = ...,
    key_added: str = "sccvae",
    copy: bool = False,
    expression: bool | None = None,
    model_options: dict[str, Any] | None = None,
    train_options: dict[str, Any] | None = None,
    seed: int = 0,
) -> AnnData | None:
    """Integrate the batches of `adata`: train an `SCCVAE` and store what it says of the cells.

    Parameters
    ----------
    adata
        (cells, genes) raw counts in `X` or in `layer`.
    batch_key
        Column of `obs` with the experiment of each cell; None models one batch.
    layer
        Layer with the counts.
    mask_var
        Genes to model: a column of `var`, a (genes,) boolean array, or None for all. As in `scanpy.pp.pca`, the
        default takes `var["highly_variable"]` when it is there.
    key_added
        Prefix of everything written.
    copy
        Write to a copy and return it.
    expression
        Whether to store the two expression matrices; None stores them when they stay under 2 GiB together.
    model_options, train_options
        Further arguments of `SCCVAE` and of `SCCVAE.train`.
    seed
        Of the model.

    Returns
    -------
    None, or the copy. Written, with `key_added="sccvae"`:

    - `obsm["X_sccvae"]`: embedding, (cells, n_latent);
    - `layers["sccvae"]`: normalised expression in each cell's own batch, scaled to the median library size;
    - `layers["sccvae_corrected"]`: the same averaged over all batches, which removes their effect;
    - `obs["sccvae_library"]`: inferred library size;
    - `uns["sccvae"]`: parameters, history, versions.

    With a mask the two matrices go to `obsm["sccvae"]` and `obsm["sccvae_corrected"]`, as DataFrames with gene names.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(300, 50, seed=0)
    >>> sccvae.tl.integrate(adata, batch_key="batch", train_options={"max_epochs": 2})
    >>> adata.obsm["X_sccvae"].shape
    (300, 20)
    """
    check_adata(adata)
    if mask_var is ...:
        mask_var = "highly_variable" if "highly_variable" in adata.var else None
    options = {"seed": seed, **(model_options or {})}
    model = SCCVAE(adata, batch_key=batch_key, layer=layer, mask_var=mask_var, **options)
    model.train(**(train_options or {}))
    _store(adata, None, model, key_added, expression)
    return None


@scanpy_like(kinds=("SCCVAE",))
def store(
    adata: AnnData,
    model: SCCVAE,
    *,
    key_added: str = "sccvae",
    copy: bool = False,
    expression: bool | None = None,
) -> AnnData | None:
    """Write to `adata` what a trained model says of its cells; keys as in `integrate`.

    Parameters
    ----------
    adata
        The data the model was trained on, or new data of the same kind.
    model
        A trained model.
    key_added
        Prefix of everything written.
    copy
        Write to a copy and return it.
    expression
        Whether to store the two expression matrices; None stores them when they stay under 2 GiB together.

    Returns
    -------
    None, or the copy. Written are the keys of `integrate`.

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
    check_adata(adata)
    _store(adata, adata, model, key_added, expression)
    return None


def _store(adata: AnnData, source: AnnData | None, model: SCCVAE, key_added: str, expression: bool | None) -> None:
    """Write to `adata` the outputs for the cells of `source`; None stands for the training data."""
    embedding = model.get_latent_representation(source)
    if expression is None and 2 * 4 * adata.n_obs * len(model.gene_names) > MAX_LAYER_BYTES:
        expression = False
        warnings.warn(
            "Expression was left out, since it would take more than 2 GiB; model.get_normalized_expression(out=...) "
            "streams it into a memmap or zarr array, and expression=True stores it all the same.",
            stacklevel=4,  # the caller of the decorated function
        )
    scale = 1.0
    if model.likelihood.has_library:
        library = model.get_latent_library_size(source)
        scale = float(np.median(library))
        adata.obs[f"{key_added}_library"] = library
    adata.obsm[f"X_{key_added}"] = embedding
    adata.uns[key_added] = {**model.describe(), "expression_library_size": scale}
    if expression is False:
        return
    whole = len(model.gene_names) == adata.n_vars
    options = {"library_size": scale, "gene_list": adata.var_names if whole else None, "return_numpy": whole}
    for key, batch in ((key_added, None), (f"{key_added}_corrected", "all")):
        (adata.layers if whole else adata.obsm)[key] = model.get_normalized_expression(
            source, transform_batch=batch, **options
        )
