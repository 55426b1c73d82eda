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
from sccvae.tl import results
from sccvae.tl.results import MAX_LAYER_BYTES
from sccvae.validation.wording import warn


def write(
    given: Any, model: SCCVAE, out: str | os.PathLike, *, key_added: str, expression: bool | None, own: bool = False
) -> None:
    """Write cells and the outputs of a trained model for them to a new `.h5ad` or `.zarr`.

    The file has the counts in `X`, `obs`, `var`, and what `integrate` writes. Of files, the other layers, `obsm` and
    `uns` are not copied. A block of cells is in memory at once.

    Parameters
    ----------
    given
        What the cells are read from; see `sccvae.data.sources.open_source`.
    own
        Whether these are the cells that the model was trained on.
    """
    with open_source(given) as source:
        check_place(source, out)
        with_expression, scale = _with_expression(source, expression), 1.0
        if with_expression and model.likelihood.has_library:
            blocks = [None] if own else _cells(source, model)  # None: the training data
            scale = float(np.median(np.concatenate([model.get_latent_library_size(block) for block in blocks])))
        in_blocks.write(_blocks(source, model, key_added, scale, with_expression=with_expression), out)


def check_place(source: Source, out: str | os.PathLike) -> None:
    """Raise unless `out` can be written and is none of the files that are read."""
    target = anndata_files.checked(out)
    for path in source.files:
        if path.resolve() == target.resolve():
            raise ValueError(f"The output would replace {path}, from which the cells are read: choose another name.")


def default_mask(source: Source) -> str | None:
    """Return the column of `var` that chooses genes where the user does not, as in `scanpy.pp.pca`."""
    source.check_mask("highly_variable")
    return "highly_variable" if "highly_variable" in source.frame.var else None


def _with_expression(source: Source, expression: bool | None) -> bool:
    if expression is not None:
        return expression
    fits = 2 * 4 * source.frame.n_obs * source.frame.n_vars <= MAX_LAYER_BYTES
    if not fits:
        warn("Expression was left out, since it would take more than 2 GiB; expression=True writes it all the same.")
    return fits


def _cells(source: Source, model: SCCVAE) -> Iterator[AnnData]:
    """Yield the cells of a source in blocks, with the counts in `X` and where the model reads them."""
    layer, frame = model.describe()["parameters"].get("layer"), source.frame
    obs = frame.obs.copy()
    for name in obs.columns[[not _can_be_appended(column) for _, column in obs.items()]]:
        obs[name] = pd.Categorical(obs[name].astype(str).where(obs[name].notna()))
    for rows, counts in source.blocks(layer):
        x = sp.csr_matrix(counts, dtype=np.float32)
        yield AnnData(x, obs=obs.iloc[rows], var=frame.var, layers={} if layer is None else {layer: x})


def _can_be_appended(column: pd.Series) -> bool:
    return isinstance(column.dtype, pd.CategoricalDtype) or column.dtype.kind in "biuf"


def _blocks(source: Source, model: SCCVAE, key: str, scale: float, *, with_expression: bool) -> Iterator[AnnData]:
    """Yield the blocks of the new file."""
    where = "layers" if with_expression else None
    for given in _cells(source, model):
        block = AnnData(given.X, obs=given.obs, var=given.var)  # without the layer that the model reads
        results.write(block, given, model, key, where, scale)
        yield block
