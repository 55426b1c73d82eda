"""Opening of files of cells: tables in memory, matrices left in the file and read where they are indexed."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anndata

from sccvae.io.reading import cannot_be_read, read


@contextmanager
def opened(path: Path) -> Iterator[list[tuple[str, anndata.AnnData]]]:
    """Yield (name, data) of each data set in an .h5ad or .zarr; there are several in a collection, as of annbatch.

    Only `obs`, `var`, `X` and `layers` are opened. Files of other formats are read into memory, as by `read`.

    Raises
    ------
    ValueError
        The format is not supported, or the file is damaged.
    OSError
        The file does not exist or is not readable.
    """
    with ExitStack() as stack:
        group = _group(path, stack)
        if group is None:
            yield [(str(path), read(path))]
            return
        try:
            found = _data_sets(group, str(path))
        except Exception as error:  # damaged files cause errors of any type
            raise ValueError(cannot_be_read(path, "", error)) from error
        yield found or [(str(path), read(path))]  # which says what the file holds


def size_of(path: Path) -> float:
    """Return the bytes that the matrices of an .h5ad or .zarr take in memory; 0 for other files, inf for collections.

    A collection cannot be read as one AnnData.
    """
    with ExitStack() as stack:
        group = _group(path, stack)
        if group is None:
            return 0.0
        if "obs" not in group:
            return float("inf") if _is_collection(group) else 0.0
        return float(_arrays_in(group))


def _arrays_in(group: Any) -> int:
    """Return the bytes of all arrays in a group."""
    if hasattr(group, "shape"):
        return int(group.dtype.itemsize * math.prod(group.shape))
    return sum(_arrays_in(group[key]) for key in group)


def _group(path: Path, stack: ExitStack) -> Any:
    """Open the group at the top of a file; None where there is none, or it is not one of HDF5 or zarr."""
    if not path.exists():
        return None
    if path.is_dir():
        if not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
            return None
        import zarr

        return zarr.open_group(str(path), mode="r")
    import h5py

    if not h5py.is_hdf5(path):
        return None
    try:
        return stack.enter_context(h5py.File(path, "r"))
    except OSError as error:
        raise ValueError(cannot_be_read(path, "an HDF5 file", error)) from error


def _data_sets(group: Any, name: str) -> list[tuple[str, anndata.AnnData]]:
    """Return the data sets of a group; none if it is of an earlier format of anndata or of another program."""
    if "obs" in group and "var" in group:
        tables = all("encoding-type" in group[table].attrs for table in ("obs", "var"))
        return [(name, _lazily(group))] if tables and "row_attrs" not in group else []
    if not _is_collection(group):
        return []
    return [(f"{name}/{key}", _lazily(group[key])) for key in sorted(group, key=_in_order)]


def _is_collection(group: Any) -> bool:
    """Return whether a group holds data sets and nothing else."""
    kinds = {group[key].attrs.get("encoding-type") for key in group}
    return kinds == {"anndata"}


def _in_order(key: str) -> tuple[str, int, str]:
    """Return a key for sorting by which dataset_10 follows dataset_9."""
    stem = key.rstrip("0123456789")
    return stem, int(key[len(stem) :] or -1), key


def _lazily(group: Any) -> anndata.AnnData:
    """Return an AnnData whose matrices stay in the file."""
    layers = group.get("layers", {})
    return anndata.AnnData(
        _matrix(group["X"]) if "X" in group else None,
        obs=anndata.io.read_elem(group["obs"]),
        var=anndata.io.read_elem(group["var"]),
        layers={key: _matrix(layers[key]) for key in layers},
    )


def _matrix(stored: Any) -> Any:
    """Return a matrix in a file: a dense one as the array, a sparse one as anndata's data set."""
    sparse = stored.attrs.get("encoding-type") in ("csr_matrix", "csc_matrix")
    return anndata.io.sparse_dataset(stored) if sparse else stored
