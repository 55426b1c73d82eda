"""Arrays in new files, filled row by row: a memory map (.npy) or a zarr array."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sccvae.io import files

_CHUNK = 2**20  # values in a chunk of a zarr array


@contextmanager
def new_array(path: str | os.PathLike, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[Any]:
    """Yield an empty array in a new file, which replaces `path` at the end of the block; rows are along axis -2.

    Raises
    ------
    ValueError
        The suffix is neither .npy nor .zarr.
    OSError
        `path` cannot be written, or the disk is full.
    """
    given = files.path_of(path, "out")
    is_zarr = given.suffix.lower() == ".zarr"
    if not is_zarr and given.suffix.lower() != ".npy":
        raise ValueError(f"out is {given}; expected an array, or a path that ends in .npy or .zarr.")
    with files.writing(given, folder=is_zarr) as part:
        if is_zarr:
            array = Rows(_zarr_array(part, shape, dtype))
            yield array
            array.flush()
        else:
            mapped = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape)
            if hasattr(os, "posix_fallocate"):  # else a disk that is full ends the process when the map is written
                with part.open("rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
            yield mapped
            mapped.flush()


def opened(path: str | os.PathLike) -> Any:
    """Open an array that `new_array` made, for reading."""
    given = files.path_of(path, "out")
    if given.suffix.lower() == ".npy":
        return np.lib.format.open_memmap(given, mode="r")
    import zarr

    return zarr.open_array(str(given), mode="r")


def _zarr_array(part: Path, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    import zarr

    rows = max(_CHUNK // max(shape[-1], 1), 1)
    chunks = (*(1 for _ in shape[:-2]), min(rows, max(shape[-2], 1)), max(shape[-1], 1))
    return zarr.open_array(str(part), mode="w", shape=shape, chunks=chunks, dtype=dtype)


class Rows:
    """A zarr array that is filled in order: rows are kept until a chunk of them is complete, then written once."""

    def __init__(self, array: Any):
        self.array, self.shape, self.dtype = array, tuple(array.shape), array.dtype
        self.height = array.chunks[-2]
        self.rows = np.empty((*self.shape[:-2], self.height, self.shape[-1]), self.dtype)
        self.first = self.n = 0  # of the rows that are kept

    def __setitem__(self, at: Any, values: np.ndarray) -> None:
        """Fill the next rows; `at` is their slice, or a tuple that ends with it."""
        rows = at[-1] if isinstance(at, tuple) else at
        if rows.start != self.first + self.n:
            raise ValueError(f"rows from {rows.start} on came out of order; expected {self.first + self.n}")
        begin = 0
        while begin < values.shape[-2]:
            taken = values[..., begin : begin + self.height - self.n, :]
            self.rows[..., self.n : self.n + taken.shape[-2], :] = taken
            begin, self.n = begin + taken.shape[-2], self.n + taken.shape[-2]
            if self.n == self.height:
                self.flush()

    def flush(self) -> None:
        """Write the rows that are kept."""
        if self.n:
            self.array[..., self.first : self.first + self.n, :] = self.rows[..., : self.n, :]
        self.first, self.n = self.first + self.n, 0
