"""Integration of cells in files: outputs of a model, written with the cells into a new file, block by block."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sccvae.data.columns import column_of
from sccvae.data.sources import Source, open_source
from sccvae.io import anndata_files, files, in_blocks
from sccvae.models.plan import processes_beside
from sccvae.models.sccvae import SCCVAE
from sccvae.tl import results
from sccvae.tl.results import MAX_LAYER_BYTES
from sccvae.validation.names import why_no_key
from sccvae.validation.wording import warn


def write(
    given: Any, model: SCCVAE, out: str | os.PathLike, *, key_added: str, expression: bool | None, own: bool = False
) -> None:
    """Write cells and the outputs of a trained model for them to a new `.h5ad` or `.zarr`.

    The file has the counts in `X`, `obs`, `var`, and what `integrate` writes. Of files, the other layers, `obsm` and
    `uns` are not copied. A block of cells is in memory at once.

    With `own`, all processes that trained together call this function. Each computes and compresses the results of a
    range of cells. Process 0 writes its range to the new file, and appends those that the others wrote beside it.

    Parameters
    ----------
    given
        What the cells are read from; see `sccvae.data.sources.open_source`.
    own
        Whether these are the cells that the model was trained on, just now.
    """
    processes = processes_beside(model.device) if own else None
    with nullcontext() if processes is None else processes.announcing(), open_source(given) as source:
        check_place(source, out)
        with_expression, scale, cells = _with_expression(source, expression), 1.0, _range(source, processes)
        if with_expression and model.likelihood.has_library:
            scale = _median_library(source, model, cells, processes, own=own)
        blocks = _blocks(source, model, key_added, scale, cells, with_expression=with_expression)
        texts = _texts(model, key_added) if results.has_labels(model) else {}
        if processes is None:
            in_blocks.write(blocks, out, texts=texts)
        else:
            _write_together(blocks if cells else None, Path(out), processes, texts)


def sample_of(source: Source, model: SCCVAE, batch_key: str | None, most: int, seed: int) -> AnnData:
    """Read `most` cells of a source into memory, as many of each batch as there are or as fit; all if they are fewer.

    Parameters
    ----------
    model
        It says which layer is read.
    batch_key
        Column of `obs` with the batches; None for one.
    """
    frame = source.frame
    batches = pd.Series(0 if batch_key is None else column_of(frame.obs, batch_key).astype(str).to_numpy())
    order = np.random.default_rng(seed).permutation(frame.n_obs)
    rank = batches.iloc[order].groupby(batches.iloc[order].to_numpy(), sort=False).cumcount().to_numpy()
    chosen = np.sort(order[np.argsort(rank, kind="stable")[: max(most, batches.nunique())]])
    parts, start = [], 0
    for block in _cells(source, model, range(frame.n_obs)):
        here = chosen[(chosen >= start) & (chosen < start + block.n_obs)] - start
        parts.append(block.X[here])
        start += block.n_obs
    layer, x = model.describe()["parameters"].get("layer"), sp.vstack(parts, format="csr")
    return AnnData(x, obs=frame.obs.iloc[chosen], var=frame.var, layers={} if layer is None else {layer: x})


def write_mapped(
    source: Source, mapped: SCCVAE, out: str | os.PathLike, uns: dict[str, Any], key: str, seed: int, *, labels: bool
) -> None:
    """Write cells, and their embedding and labels by a mapped model, to a new file, block by block."""

    def blocks() -> Iterator[AnnData]:
        for given in _cells(source, mapped, range(source.frame.n_obs)):
            block = AnnData(given.X, obs=given.obs, var=given.var, uns={key: uns})
            block.obsm[f"X_{key}"] = mapped.get_latent_representation(given)
            if labels:
                results.write_labels(block, mapped.predict(given, seed=seed), key, numbered=True)
            yield block

    in_blocks.write(blocks(), out, texts=_texts(mapped, key) if labels else {})


def _texts(model: SCCVAE, key: str) -> dict[str, Callable[..., Sequence[str]]]:
    """Return what `in_blocks.write` needs for the column of reasons."""
    return {f"{key}_reason": partial(results.reasons_of, labels=model.describe()["parameters"]["labels"])}


def _range(source: Source, processes: Any) -> range:
    """Return the cells that this process computes; the ranges meet where chunks of layers do."""
    n_cells, rows = source.frame.n_obs, in_blocks.layer_rows(source.frame.n_vars)
    if processes is None:
        return range(n_cells)
    groups = processes.part(np.arange(-(-n_cells // rows)))  # the first processes have the longer parts
    return range(rows * groups[0], min(rows * (groups[-1] + 1), n_cells)) if len(groups) else range(0)


def _median_library(source: Source, model: SCCVAE, cells: range, processes: Any, *, own: bool) -> float:
    """Return the median library size of all cells; each process computes those of its own."""
    found = [np.empty(0, np.float32)]
    if own and cells:
        found.append(model.get_latent_library_size(indices=None if processes is None else np.array(cells)))
    elif cells:
        found += [model.get_latent_library_size(block) for block in _cells(source, model, cells)]
    here = np.concatenate(found)
    return float(np.median(here if processes is None else np.concatenate(processes.rows(here))))


def _write_together(
    blocks: Iterator[AnnData] | None, out: Path, processes: Any, texts: dict[str, Callable[..., Sequence[str]]]
) -> None:
    """Write the blocks of every process, None for none, in the order of the processes; all return when it is done.

    `texts` are as for `in_blocks.write`.
    """

    def parts() -> Iterator[Path]:
        for rank, text in enumerate(processes.texts("")):
            if text and not (part := Path(text)).exists():
                raise FileNotFoundError(
                    f"Process {rank} wrote its cells to {part}, which process 0 cannot see: the folder of the output "
                    "must be one that all machines share."
                )
            if text:
                yield part

    if processes.rank == 0:
        in_blocks.write(blocks or (), out, more=parts(), texts=texts)
        processes.texts("")
        return
    with ExitStack() as stack:
        name = ""
        if blocks is not None:
            part = stack.enter_context(files.part_beside(files.path_of(out, "out").absolute())) / out.name
            in_blocks.write(blocks, part)
            name = str(part)
        processes.texts(name)
        processes.texts("")  # process 0 has read it


def check_place(source: Source, out: str | os.PathLike) -> None:
    """Raise unless `out` can be written and is none of the files that are read."""
    files.check_apart(anndata_files.checked(out), source.files)


def check_names(adata: AnnData, source: Path, out: str | os.PathLike) -> None:
    """Raise unless `out` can store the names of `adata`, read from `source`: write and read one cell."""
    places = ("obs", "var", "uns", "obsm", "varm", "obsp", "varp", "layers")
    some, why = adata[:1].copy(), None
    with tempfile.TemporaryDirectory() as folder:
        try:
            anndata_files.write(some, Path(folder) / f"names{Path(out).suffix}")
        except Exception as error:  # noqa: BLE001  invalid names cause errors of any type
            if isinstance(error, OSError) and error.errno is not None:
                return  # the disk of temporary files is full, for example, which is independent of the names
            why = str(error).partition("\n")[0]
    if why is not None:
        keys = [(place, key) for place in places for key in getattr(some, place) if isinstance(key, str)]
        found = [f"adata.{place}[{key!r}]: {why_no_key(key)}" for place, key in keys if why_no_key(key)]
        raise ValueError(
            f"{out} could not be written or read with the names in {source} ({'; '.join(found[:3]) or why}). Rename "
            "them first."
        )


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


def _cells(source: Source, model: SCCVAE, cells: range) -> Iterator[AnnData]:
    """Yield a range of the cells of a source in blocks, with the counts in `X` and where the model reads them."""
    layer, frame = model.describe()["parameters"].get("layer"), source.frame
    obs = frame.obs.copy()
    for name in obs.columns[[not _can_be_appended(column) for _, column in obs.items()]]:
        obs[name] = pd.Categorical(obs[name].astype(str).where(obs[name].notna()))
    for rows, counts in source.blocks(layer, cells):
        x = sp.csr_matrix(counts, dtype=np.float32)
        yield AnnData(x, obs=obs.iloc[rows], var=frame.var, layers={} if layer is None else {layer: x})


def _can_be_appended(column: pd.Series) -> bool:
    return isinstance(column.dtype, pd.CategoricalDtype) or column.dtype.kind in "biuf"


def _blocks(
    source: Source, model: SCCVAE, key: str, scale: float, cells: range, *, with_expression: bool
) -> Iterator[AnnData]:
    """Yield the blocks of the new file."""
    where, with_labels = "layers" if with_expression else None, results.has_labels(model)
    for given in _cells(source, model, cells):
        block = AnnData(given.X, obs=given.obs, var=given.var)  # without the layer that the model reads
        results.write(block, given, model, key, where, scale)
        if with_labels:
            results.write_labels(block, model.predict(given), key, numbered=True)
        yield block
