"""Outputs of a model for cells, written into an AnnData."""

import numpy as np
from anndata import AnnData

from sccvae.models.sccvae import SCCVAE

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
    _remove_earlier(adata, key)
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


def _remove_earlier(adata: AnnData, key_added: str) -> None:
    """Remove results of an earlier run, so that no matrix of another model remains under the same keys."""
    earlier = adata.uns.get(key_added)
    if not hasattr(earlier, "keys") or not {"parameters", "versions", "expression_library_size"} <= set(earlier.keys()):
        return
    for key in (key_added, f"{key_added}_corrected"):
        for place in (adata.layers, adata.obsm):
            if key in place:
                del place[key]
    for table, column in ((adata.obs, f"{key_added}_library"), (adata.var, f"{key_added}_modelled")):
        if column in table:
            del table[column]
