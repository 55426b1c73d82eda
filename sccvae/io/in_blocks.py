"""Writing of an AnnData that is made block by block, in the memory of one block; atomic as `anndata_files.write`."""

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sccvae.io import anndata_files, files

_NONZERO, _CELLS, _DENSE = 2**17, 2**14, 2**18  # values in a chunk of X, cells in a chunk, values in a dense chunk
_MOST = 2**31 - 1  # values of X, beyond which their positions take 64 bits
_MARGIN = 2**21  # bytes that HDF5 may write in addition to a block
_COMPRESSION = {"compression": "gzip", "compression_opts": 1, "shuffle": True}  # counts: 0.15 of their bytes


def write(
    blocks: Iterable[AnnData],
    path: str | os.PathLike,
    what: str = "output",
    more: Iterable[Path] = (),
    texts: Mapping[str, Callable[[np.ndarray], Sequence[str]]] = MappingProxyType({}),
) -> None:
    """Write blocks of cells as one AnnData, in the format of the suffix, replacing an existing file.

    `X`, `obs`, `obsm` and `layers` grow along the cells; all else is that of the first block.

    Parameters
    ----------
    blocks
        At least one AnnData, all with the same genes, keys and categories. `X` is CSR; columns of `obs` are numbers or
        categories; `obsm` and `layers` hold dense arrays.
    path, what
        As in `anndata_files.write`.
    more
        Files that this function wrote, of the same format: cells that come after the blocks.
    texts
        Columns of `obs` with whole numbers that stand for texts, of which each block has others: name -> function from
        distinct numbers to texts. In the file they are categories. In files of `more` they are numbers.

    Raises
    ------
    ValueError
        The suffix is unknown, blocks or files differ, or the written file cannot be read back. The target is unchanged.
    OSError
        `path` cannot be written, or the disk is full.
    """
    given = files.path_of(path, what)
    anndata_files.checked(given, what)
    with files.writing(given, what, folder=anndata_files.is_zarr(given)) as part:
        lengths = _write(iter(blocks), part, more)
        with anndata_files.opened(part, "r+") as group:
            for key, of_numbers in texts.items():
                _name(group, key, of_numbers, lengths)
        with anndata_files.read_back(given, what):
            _check(part, lengths)


def layer_rows(n_genes: int) -> int:
    """Return the number of cells in a chunk of a layer."""
    return max(_DENSE // max(n_genes, 1), 1)


def _write(blocks: Iterator[AnnData], part: Path, more: Iterable[Path]) -> dict[str, int]:
    """Write all blocks, then the cells of other files; return the length of each array along the cells."""
    first = next(blocks)
    empty = AnnData(
        X=first.X[:0], obs=first.obs.iloc[:0], obsm={k: v[:0] for k, v in first.obsm.items()},
        layers={k: v[:0] for k, v in first.layers.items() if k is not None},
        var=first.var, varm=dict(first.varm), uns=first.uns,
    )  # fmt: skip
    anndata_files.write_zarr(empty, part) if anndata_files.is_zarr(part) else empty.write_h5ad(part)
    with anndata_files.opened(part, "r+") as group:
        names = f"obs/{group['obs'].attrs['_index']}"
        lengths, categories = _begin(group, _along_cells(first, names, 0)), _categories(first)
        block: AnnData | None = first
        while block is not None:
            if _categories(block) != categories:
                raise ValueError("Blocks have different columns of obs or categories; expected those of the first.")
            _check_room(part, anndata_files.size_of(block))
            for name, array in _along_cells(block, names, lengths["X/data"]).items():
                _grow(group, name, array, lengths)
            if hasattr(group, "flush"):
                group.flush()
            block = next(blocks, None)
        for other in more:
            _check_room(part, 0 if other.is_dir() else other.stat().st_size)
            with anndata_files.opened(other) as theirs:
                _join(group, theirs, lengths, categories)
        group["X"].attrs["shape"] = [lengths[names], first.n_vars]
        return lengths


def _along_cells(block: AnnData, names: str, n_stored: int) -> dict[str, np.ndarray]:
    """Arrays of a block that are appended, by their place in the file that holds `n_stored` values of X so far."""
    if not sp.issparse(block.X) or block.X.format != "csr":
        raise ValueError(f"X is {type(block.X).__name__}; expected CSR.")
    found = {"X/data": block.X.data, "X/indices": block.X.indices, "X/indptr": block.X.indptr[1:] + np.int64(n_stored)}
    found[names] = block.obs_names.to_numpy(dtype=object)
    for key, column in block.obs.items():
        categorical = isinstance(column.dtype, pd.CategoricalDtype)
        found[f"obs/{key}/codes" if categorical else f"obs/{key}"] = (
            column.cat.codes.to_numpy() if categorical else column.to_numpy()
        )
    found |= {f"obsm/{key}": value for key, value in block.obsm.items()}
    return found | {f"layers/{key}": value for key, value in block.layers.items() if key is not None}


def _begin(group: Any, arrays: dict[str, np.ndarray], *, full: bool = False) -> dict[str, int]:
    """Replace arrays by ones of these types that can grow, in chunks, empty unless `full`; return their lengths."""
    from anndata.io import write_elem

    for name, array in arrays.items():
        width = int(np.prod(array.shape[1:]))
        rows = layer_rows(width) if name.startswith("layers/") else _CELLS
        options: dict[str, Any] = {"chunks": (_NONZERO if name.startswith("X/") else rows, *array.shape[1:])}
        if not _in_zarr(group):
            options |= {"maxshape": (None, *array.shape[1:]), **_COMPRESSION}
        start = np.zeros(1, np.int32) if name == "X/indptr" else array[:0]
        folder, _, key = name.rpartition("/")
        place = group[folder] if folder else group
        del place[key]
        write_elem(place, key, array if full else start, dataset_kwargs=options)
    return {name: int(name == "X/indptr") for name in arrays}


def _grow(group: Any, name: str, array: np.ndarray, lengths: dict[str, int]) -> None:
    """Append to an array of the file."""
    lengths[name] += len(array)
    if name == "X/indptr" and lengths["X/data"] > _MOST and group[name].dtype == np.int32:
        _begin(group, {name: group[name][:].astype(np.int64)}, full=True)
    stored = group[name]
    stored.resize((lengths[name], *array.shape[1:]))
    stored[lengths[name] - len(array) :] = array


def _join(group: Any, other: Any, lengths: dict[str, int], categories: dict[str, list | None]) -> None:
    """Append the cells of another file."""
    from anndata.io import read_elem

    for key, expected in categories.items():
        place = f"obs/{key}/categories" if expected is not None else f"obs/{key}"
        if place not in other or (expected is not None and list(read_elem(other[place])) != expected):
            raise ValueError("Files have different columns of obs or categories; expected those of the first.")
    n_stored = lengths["X/data"]
    for name in lengths:
        source, begin = other[name], int(name == "X/indptr")
        if _same_chunks(group[name], source, lengths[name]):
            lengths[name] = _copy_chunks(group[name], source, lengths[name])
            continue
        for start in range(begin, source.shape[0], rows := source.chunks[0]):
            some = source[start : start + rows]
            _grow(group, name, some + np.int64(n_stored) if name == "X/indptr" else some, lengths)


def _same_chunks(stored: Any, source: Any, length: int) -> bool:
    """Return whether the chunks of a dataset of HDF5, compressed as they are, can follow those of another."""
    if _in_zarr(stored) or source.ndim == 1 or length % stored.chunks[0] or source.shape[0] == 0:
        return False
    alike = ("chunks", "dtype", "compression", "compression_opts", "shuffle")
    return all(getattr(stored, name) == getattr(source, name) for name in alike)


def _copy_chunks(stored: Any, source: Any, length: int) -> int:
    """Append the rows of a dataset without decompressing them; return the new length."""
    stored.resize((length + source.shape[0], *source.shape[1:]))
    for k in range(source.id.get_num_chunks()):
        first, *others = source.id.get_chunk_info(k).chunk_offset
        mask, content = source.id.read_direct_chunk((first, *others))
        stored.id.write_direct_chunk((length + first, *others), content, mask)
    return stored.shape[0]


def _name(group: Any, key: str, of_numbers: Callable[[np.ndarray], Sequence[str]], lengths: dict[str, int]) -> None:
    """Replace the numbers in a column of `obs` by the categories that they stand for, in the order of the text."""
    from anndata.io import write_elem

    numbers, codes = np.unique(group[f"obs/{key}"][:], return_inverse=True)
    names = of_numbers(numbers)
    categories = pd.Categorical(names).categories
    del group["obs"][key]
    write_elem(group["obs"], key, pd.Categorical.from_codes(categories.get_indexer(names)[codes], categories))
    lengths[f"obs/{key}/codes"] = lengths.pop(f"obs/{key}")


def _in_zarr(group: Any) -> bool:
    return type(group).__module__.split(".")[0] == "zarr"


def _categories(block: AnnData) -> dict[str, list | None]:
    """Categories of each column of `obs`, None for numbers."""
    return {
        key: list(column.cat.categories) if isinstance(column.dtype, pd.CategoricalDtype) else None
        for key, column in block.obs.items()
    }


def _check_room(part: Path, n_bytes: int) -> None:
    """Raise OSError unless an .h5ad can grow by so much: HDF5 crashes at Python's exit after a failed write."""
    if part.is_dir():
        return
    needed = n_bytes + _MARGIN
    with suppress(ImportError):  # not POSIX
        import resource

        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY and part.stat().st_size + needed > limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    if shutil.disk_usage(part.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _check(part: Path, lengths: dict[str, int]) -> None:
    """Raise unless the file can be opened, and its arrays have these lengths."""
    from anndata.io import read_elem

    with anndata_files.opened(part) as group:
        for name in ("uns", "var", "varm"):
            read_elem(group[name])
        for name, length in lengths.items():
            if group[name].shape[0] != length:
                raise ValueError(f"{name} has length {group[name].shape[0]}, expected {length}")
        if int(group["X/indptr"][-1]) != lengths["X/data"]:
            raise ValueError("parts of a sparse matrix have inconsistent sizes")
