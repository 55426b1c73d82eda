"""Integration of cells in files: outputs of a model, written with the cells into a new file, block by block."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sccvae.data.sources import Source, open_source
from sccvae.io import anndata_files, in_blocks
from sccvae.models.sccvae import SCCVAE
from sccvae.validation.wording import warn

MAX_BYTES = 2 * 2**30  # of the two expression matrices, which are left out if they are larger


def write(given: Any, model: SCCVAE, out: str | os.PathLike, *, key_added: str, expression: bool | None) -> None:
    """Write cells and the outputs of a trained model for them to a new `.h5ad` or `.zarr`.

    The file has the counts in `X`, `obs`, `var`, and what `integrate` writes. Of files, the other layers, `obsm` and
    `uns` are not copied. A block of cells is in memory at once.

    Parameters
    ----------
    given
        What the cells are read from; see `sccvae.data.sources.open_source`.
    """
    check_place(given, out)
    with open_source(given) as source:
        with_expression = _with_expression(source, expression)
        scale = _scale(source, model) if with_expression and model.likelihood.has_library else 1.0
        in_blocks.write(_blocks(source, model, key_added, scale, with_expression=with_expression), out)


def check_place(given: Any, out: str | os.PathLike) -> None:
    """Raise unless `out` can be written and is none of the files that are read."""
    target = anndata_files.checked(out)
    with open_source(given) as source:
        for path in source.files:
            if path.resolve() == target.resolve():
                raise ValueError(
                    f"The output would replace {path}, from which the cells are read: choose another name."
                )


def default_mask(given: Any) -> str | None:
    """Return the column of `var` that chooses genes where the user does not, as in `scanpy.pp.pca`."""
    with open_source(given) as source:
        source.check_mask("highly_variable")
        return "highly_variable" if "highly_variable" in source.frame.var else None


def _with_expression(source: Source, expression: bool | None) -> bool:
    if expression is not None:
        return expression
    fits = 2 * 4 * source.frame.n_obs * source.frame.n_vars <= MAX_BYTES
    if not fits:
        warn("Expression was left out, since it would take more than 2 GiB; expression=True writes it all the same.")
    return fits


def _scale(source: Source, model: SCCVAE) -> float:
    """Return the median of the library sizes of all cells."""
    sizes = [model.get_latent_library_size(block) for block in _cells(source, model)]
    return float(np.median(np.concatenate(sizes)))


def _cells(source: Source, model: SCCVAE) -> Iterator[AnnData]:
    """Yield the cells of a source in blocks, with the counts where the model reads them."""
    layer = model.describe()["parameters"].get("layer")
    frame = source.frame
    obs = frame.obs.copy()
    for name in obs.columns[[not _can_be_appended(column) for _, column in obs.items()]]:
        obs[name] = pd.Categorical(obs[name].astype(str).where(obs[name].notna()))
    for rows, counts in source.blocks(layer):
        layers = {} if layer is None else {layer: counts}
        yield AnnData(counts, obs=obs.iloc[rows], var=frame.var, layers=layers)


def _can_be_appended(column: pd.Series) -> bool:
    return isinstance(column.dtype, pd.CategoricalDtype) or column.dtype.kind in "biuf"


def _blocks(source: Source, model: SCCVAE, key: str, scale: float, *, with_expression: bool) -> Iterator[AnnData]:
    """Yield the blocks of the new file."""
    modelled = source.frame.var_names.isin(model.gene_names)
    uns = {key: {**model.describe(), "expression_library_size": scale}}
    for block in _cells(source, model):
        embedding = model.get_latent_representation(block)
        if model.likelihood.has_library:
            block.obs[f"{key}_library"] = model.get_latent_library_size(block)
        if not modelled.all():
            block.var[f"{key}_modelled"] = modelled
        layers = {}
        if with_expression:
            for name, batches in ((key, None), (f"{key}_corrected", model.batches)):
                layers[name] = np.full(block.shape, np.nan, dtype=np.float32)
                layers[name][:, modelled] = model.get_normalized_expression(
                    block, transform_batch=batches, library_size=scale, gene_list=block.var_names[modelled],
                    return_numpy=True,
                )  # fmt: skip
        x = block.X if block.X.dtype == np.float32 else sp.csr_matrix(block.X, dtype=np.float32)
        yield AnnData(x, obs=block.obs, var=block.var, obsm={f"X_{key}": embedding}, layers=layers, uns=uns)
