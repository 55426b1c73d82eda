"""An AnnData written to ``.h5ad`` or ``.zarr``: whole or not at all, and read back first (see `files`)."""

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sccvae.io import files

_AXES = ("obsm", "varm", "obsp", "varp", "layers")
_MARGIN = 2**24  # bytes that a file takes beside its arrays, at most


def checked(path: str | os.PathLike, what: str = "output") -> Path:
    """`files.checked` for an AnnData. Raises ValueError where the suffix names no format, too."""
    given = files.path_of(path, what)
    if given.suffix.lower() not in (".h5ad", ".zarr"):
        raise ValueError(f"The {what} is {given}; expected a name that ends in .h5ad or .zarr.")
    return files.checked(given, what, folder=_is_zarr(given))


def write(adata: Any, path: str | os.PathLike, what: str = "output") -> None:
    """Write an AnnData in the format that the suffix names, in place of what was there.

    Raises
    ------
    ValueError
        The suffix is another, or what was written cannot be read again; the target then stays as it was.
    OSError
        `path` cannot be written, or the disk is full.
    """
    given = files.path_of(path, what)
    checked(given, what)
    with files.writing(given, what, folder=_is_zarr(given)) as part:
        if _is_zarr(given):
            _write_zarr(adata, part)
        else:
            _write_h5ad(adata, part)
        try:
            check(adata, part)
        except Exception as error:  # whatever a damaged file makes anndata do
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"The {what} {given} cannot be read back, so it was not written ({reason}).") from error


def _is_zarr(path: Path) -> bool:
    return path.suffix.lower() == ".zarr"


# ---------------------------------------------------------------------------------------------------------- read back


def check(adata: Any, path: Path) -> None:
    """Raise unless the file at `path` can be read and holds what `adata` does, by names and shapes."""
    from anndata.io import read_elem

    with _opened(path) as group:
        read_elem(group["uns"])
        for name in ("obs", "var"):
            found, frame = read_elem(group[name]), getattr(adata, name)
            if found.shape != frame.shape or list(map(str, found)) != list(map(str, frame)):
                raise ValueError(f"{name} has other columns or rows")
        if adata.X is not None:
            _check_shape("X", group["X"], adata.X)
        if adata.raw is not None:
            _check_shape("raw.X", group["raw/X"], adata.raw.X)
            _check_shape("raw.var", group["raw/var"], adata.raw.var)
        for name in _AXES:
            expected = {key: value for key, value in getattr(adata, name).items() if key is not None}
            held = set(group[name].keys()) if name in group else set()
            if held != set(expected):  # by `keys`: "a/b" in group is true of a nested one
                raise ValueError(f"{name} holds {sorted(held)}, expected {sorted(expected)}")
            for key, value in expected.items():
                _check_shape(f"{name}[{key!r}]", group[name][key], value)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if _is_zarr(path):
        import zarr

        yield zarr.open_group(str(path), mode="r")
    else:
        import h5py

        with h5py.File(path, "r") as file:
            yield file


def _check_shape(name: str, stored: Any, expected: Any) -> None:
    """Compare shapes without reading the values."""
    if hasattr(expected, "shape") and _shape(stored) != tuple(expected.shape):
        raise ValueError(f"{name} has shape {_shape(stored)}, expected {tuple(expected.shape)}")


def _shape(stored: Any) -> tuple[int, ...]:
    from anndata.io import read_elem

    kind = stored.attrs.get("encoding-type")
    if kind in ("csr_matrix", "csc_matrix"):
        shape = tuple(int(n) for n in stored.attrs["shape"])
        n_values, n_lines = stored["data"].shape[0], shape[0 if kind == "csr_matrix" else 1]
        if stored["indices"].shape[0] != n_values or stored["indptr"].shape[0] != n_lines + 1:
            raise ValueError("parts of a sparse matrix do not fit together")
        return shape
    if kind == "dataframe":
        columns = list(stored.attrs["column-order"])
        if lost := [name for name in columns if name not in stored]:
            raise ValueError(f"columns are lost: {lost[:3]}")
        return len(read_elem(stored[stored.attrs["_index"]])), len(columns)
    return tuple(stored.shape) if hasattr(stored, "shape") else tuple(read_elem(stored).shape)


# ------------------------------------------------------------------------------------------------------ zarr and h5ad


def _write_zarr(adata: Any, part: Path) -> None:
    """As `AnnData.write_zarr`, which warns of the format that it takes by default."""
    import anndata
    import zarr

    adata.strings_to_categoricals()
    newer = tuple(map(int, metadata.version("anndata").split(".")[:2])) >= (
        0,
        13,
    )  # it writes format 3
    version = 3 if newer else getattr(anndata.settings, "zarr_write_format", 2)
    options: dict[str, Any] = {} if zarr.__version__.startswith("2.") else {"zarr_format": version}
    anndata.io.write_elem(zarr.open_group(str(part), mode="w", **options), "/", adata)


def _write_h5ad(adata: Any, part: Path) -> None:
    """Write an .h5ad; where the disk may be too small, in a process of its own.

    HDF5 does not outlive a write that fails: what it could not write it tries again when Python ends, and crashes. So
    the risk is taken by a child that ends without that.
    """

    def work() -> None:
        adata.write_h5ad(part, compression="gzip")

    if hasattr(os, "fork") and _room(part.parent) < 1.5 * _size(adata) + _MARGIN:
        _in_a_child(work)
    else:
        work()


def _room(folder: Path) -> float:
    """Bytes that a new file in `folder` may take."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return min(shutil.disk_usage(folder).free, np.inf if limit == resource.RLIM_INFINITY else limit)


def _size(value: Any) -> int:
    """Bytes of all arrays and tables of an AnnData, or of a part of it, about as many as a file takes at most."""
    if sp.issparse(value):
        return sum(getattr(value, name).nbytes for name in ("data", "indices", "indptr") if hasattr(value, name))
    if isinstance(value, pd.DataFrame):
        return int(value.memory_usage(deep=True).sum())
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if hasattr(value, "obsm") and hasattr(value, "X"):
        parts = [value.X, value.obs, value.var, value.uns, *(getattr(value, name) for name in _AXES)]
        return sum(map(_size, parts + ([] if value.raw is None else [value.raw.X, value.raw.var])))
    return int(getattr(value, "nbytes", 0)) or sys.getsizeof(value)


def _in_a_child(work: Callable[[], None]) -> None:
    """Do `work` in a copy of this process; raise here what it raised there."""
    source, sink = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # HDF5's complaints, many lines of them
            work()
            status = 0
        except BaseException as error:  # noqa: BLE001  told to the parent
            told = (type(error).__name__, getattr(error, "errno", None), " ".join(str(error).split())[:2000])
            with suppress(OSError):
                os.write(sink, json.dumps(told).encode())
        finally:
            os._exit(status)  # without what Python and HDF5 do at the end
    os.close(sink)
    try:
        with os.fdopen(source, "rb") as handle:
            said = handle.read()
        _, status = os.waitpid(child, 0)
    except BaseException:  # Ctrl-C
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    if said:
        _raise(*json.loads(said))
    if status:
        raise OSError(errno.EIO, f"The process that wrote ended with status {status}")


def _raise(kind: str, code: int | None, text: str) -> None:
    """Raise what a child told."""
    if kind == "KeyboardInterrupt":
        raise KeyboardInterrupt
    if code is not None:
        raise OSError(code, os.strerror(code))
    raise {"MemoryError": MemoryError, "OSError": OSError, "TypeError": TypeError}.get(kind, ValueError)(text)
