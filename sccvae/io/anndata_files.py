"""Writing of an AnnData to ``.h5ad`` or ``.zarr``: atomic, and verified by reading the file (see `files`)."""

import errno
import json
import os
import re
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
_MARGIN = 2**24  # upper bound of the bytes of a file in addition to its arrays


def checked(path: str | os.PathLike, what: str = "output") -> Path:
    """Check a path as `files.checked` does; raise ValueError for a suffix of no known format, too."""
    given = files.path_of(path, what)
    if given.suffix.lower() not in (".h5ad", ".zarr"):
        raise ValueError(f"The {what} is {given}; expected a name that ends in .h5ad or .zarr.")
    return files.checked(given, what, folder=is_zarr(given))


def write(adata: Any, path: str | os.PathLike, what: str = "output") -> None:
    """Write an AnnData in the format of the suffix, replacing an existing file.

    Raises
    ------
    ValueError
        The suffix is unknown, or the written file cannot be read back; the target is then unchanged.
    OSError
        `path` cannot be written, or the disk is full.
    """
    given = files.path_of(path, what)
    checked(given, what)
    with files.writing(given, what, folder=is_zarr(given)) as part:
        if is_zarr(given):
            write_zarr(adata, part)
        else:
            _write_h5ad(adata, part)
        with read_back(given, what):
            check(adata, part)


@contextmanager
def read_back(path: Path, what: str) -> Iterator[None]:
    """Convert errors of the check of a written file to a ValueError."""
    try:
        yield
    except Exception as error:  # damaged files make anndata raise errors of any type
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"The {what} {path} cannot be read back, so it was not written ({reason}).") from error


def is_zarr(path: Path) -> bool:
    """Return whether the suffix is that of a zarr store."""
    return path.suffix.lower() == ".zarr"


# ---------------------------------------------------------------------------------------------------------- read back


def check(adata: Any, path: Path) -> None:
    """Raise unless the file at `path` can be read and has the names and shapes of `adata`."""
    from anndata.io import read_elem

    with opened(path) as group:
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
            if held != set(expected):  # sets of keys, because `"a/b" in group` is also true for nested groups
                raise ValueError(f"{name} has {sorted(held)}, expected {sorted(expected)}")
            for key, value in expected.items():
                _check_shape(f"{name}[{key!r}]", group[name][key], value)


@contextmanager
def opened(path: Path, mode: str = "r") -> Iterator[Any]:
    """Yield the file as a group of h5py or zarr."""
    if is_zarr(path):
        import zarr

        yield zarr.open_group(str(path), mode=mode)  # type: ignore[arg-type]
    else:
        import h5py

        with h5py.File(path, mode) as file:
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
            raise ValueError("parts of a sparse matrix have inconsistent sizes")
        return shape
    if kind == "dataframe":
        columns = list(stored.attrs["column-order"])
        if lost := [name for name in columns if name not in stored]:
            raise ValueError(f"columns are missing: {lost[:3]}")
        return len(read_elem(stored[stored.attrs["_index"]])), len(columns)
    return tuple(stored.shape) if hasattr(stored, "shape") else tuple(read_elem(stored).shape)


# ------------------------------------------------------------------------------------------------------ zarr and h5ad


def write_zarr(adata: Any, part: Path) -> None:
    """Write a zarr store as `AnnData.write_zarr` does, but without a warning about its default format."""
    import anndata
    import zarr

    adata.strings_to_categoricals()
    found = re.match(r"(\d+)\.(\d+)", metadata.version("anndata"))
    newer = found is not None and tuple(map(int, found.groups())) >= (0, 13)  # which writes format 3
    version = 3 if newer else getattr(anndata.settings, "zarr_write_format", 2)
    options: dict[str, Any] = {} if zarr.__version__.startswith("2.") else {"zarr_format": version}
    anndata.io.write_elem(zarr.open_group(str(part), mode="w", **options), "/", adata)


def _write_h5ad(adata: Any, part: Path) -> None:
    """Write an .h5ad; if the disk may be too small, in a child process.

    After a failed write HDF5 repeats the write when Python exits, and crashes. A child process that exits without
    cleanup avoids the crash.
    """

    def work() -> None:
        adata.write_h5ad(part, compression="gzip")

    if hasattr(os, "fork") and _free_bytes(part.parent) < 1.5 * size_of(adata) + _MARGIN:
        _in_a_child(work)
    else:
        work()


def _free_bytes(folder: Path) -> float:
    """Return the largest possible size of a new file in `folder`, in bytes."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return min(shutil.disk_usage(folder).free, np.inf if limit == resource.RLIM_INFINITY else limit)


def size_of(value: Any) -> int:
    """Return the bytes of all arrays and tables of an AnnData or of a part, about the largest size of its file."""
    if sp.issparse(value):
        return sum(getattr(value, name).nbytes for name in ("data", "indices", "indptr") if hasattr(value, name))
    if isinstance(value, pd.DataFrame):
        return int(value.memory_usage(deep=True).sum())
    if isinstance(value, Mapping):
        return sum(map(size_of, value.values()))
    if hasattr(value, "obsm") and hasattr(value, "X"):
        parts = [value.X, value.obs, value.var, value.uns, *(getattr(value, name) for name in _AXES)]
        return sum(map(size_of, parts + ([] if value.raw is None else [value.raw.X, value.raw.var])))
    return int(getattr(value, "nbytes", 0)) or sys.getsizeof(value)


def _in_a_child(work: Callable[[], None]) -> None:
    """Run `work` in a forked child process, and raise its error in this process."""
    source, sink = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # hide HDF5's many lines of error messages
            work()
            status = 0
        except BaseException as error:  # noqa: BLE001  sent to the parent
            sent = (type(error).__name__, getattr(error, "errno", None), " ".join(str(error).split())[:2000])
            with suppress(OSError):
                os.write(sink, json.dumps(sent).encode())
        finally:
            os._exit(status)  # exits without the cleanup of Python and HDF5
    os.close(sink)
    try:
        with os.fdopen(source, "rb") as handle:
            received = handle.read()
        _, status = os.waitpid(child, 0)
    except BaseException:  # Ctrl-C
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    if received:
        _raise(*json.loads(received))
    if status:
        raise OSError(errno.EIO, f"The writing process ended with status {status}")


def _raise(kind: str, code: int | None, text: str) -> None:
    """Raise the error of a child process."""
    if kind == "KeyboardInterrupt":
        raise KeyboardInterrupt
    if code is not None:
        raise OSError(code, os.strerror(code))
    raise {"MemoryError": MemoryError, "OSError": OSError, "TypeError": TypeError}.get(kind, ValueError)(text)
