"""Arrays in files, read where they are indexed, so that data larger than memory can be trained on.

The file is read at a position (`pread`), not mapped: memory and address space do not grow with what was read, the
interpreter is released meanwhile, a forked process reads the same file, and a file that was cut short is an error.
"""

import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

T = TypeVar("T")
_lock = threading.Lock()  # for systems without `pread`


class StoredArray:
    """A one-dimensional array in a file; indexing reads a copy of the values asked for."""

    ndim = 1

    def __init__(self, file: BinaryIO, dtype: np.dtype | type, length: int):
        self.file, self.dtype, self.length = file, np.dtype(dtype), length

    @classmethod
    def opened(cls, path: Path, dtype: np.dtype | type, length: int) -> "StoredArray":
        """Open the array of a file; raise ValueError if the file has another size."""
        array, n_bytes = cls(path.open("rb", buffering=0), dtype, length), path.stat().st_size
        if n_bytes != array.nbytes:
            raise ValueError(f"{path} has {n_bytes:,} bytes; expected {array.nbytes:,}. It is damaged: make it again.")
        return array

    def __len__(self) -> int:
        return self.length

    @property
    def nbytes(self) -> int:
        """Return the number of bytes in the file."""
        return self.length * self.dtype.itemsize

    @property
    def path(self) -> str | None:
        """Return the path of the file; None for a temporary file, which has no name."""
        return self.file.name if isinstance(self.file.name, str) and os.path.exists(self.file.name) else None

    def __getitem__(self, at: slice | np.ndarray) -> np.ndarray:
        """Return the values at a range, or at positions, of which runs are read at once."""
        if isinstance(at, slice):
            start, stop, step = at.indices(self.length)
            out = np.empty(max(stop - start, 0), self.dtype)
            self._fill(out, start)
            return out[::step]
        out = np.empty(len(at), self.dtype)
        ends = np.flatnonzero(np.diff(at) != 1) + 1
        for first, last in zip(np.append(0, ends), np.append(ends, len(at)), strict=True):
            if first < last:
                self._fill(out[first:last], int(at[first]))
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> "StoredArray":
        return self  # it is never written to

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            raise TypeError(
                "The counts of this model are in a temporary file, so it cannot be sent to another process: save the "
                "model, or keep the file by cache_dir='counts.pack'."
            )
        return type(self).opened, (Path(self.path), self.dtype, self.length)

    def _fill(self, out: np.ndarray, start: int) -> None:
        """Fill an array with the values from position `start` on."""
        place, position = out.view(np.uint8).data, start * self.dtype.itemsize
        while len(place):
            n = _read(self.file, place, position)
            if n == 0:
                raise OSError(f"The counts end early in {self.path or 'a temporary file'}: the file was cut short.")
            place, position = place[n:], position + n


def _read(file: BinaryIO, place: memoryview, position: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [place[: 2**30]], position)
    with _lock:
        file.seek(position)
        return file.readinto(place[: 2**30])  # type: ignore[attr-defined]


class Appended:
    """A file that a stored array is appended to, part by part."""

    def __init__(self, dtype: np.dtype | type, folder: Path | None, name: str):
        """Make `name` in `folder`, or in None a temporary file that has no name and ends with its last reader."""
        self.dtype, self.length = np.dtype(dtype), 0
        self.file: Any  # open as long as there is a reader
        self.file = (folder / name).open("w+b", 0) if folder else tempfile.TemporaryFile(buffering=0)  # noqa: SIM115

    def append(self, values: np.ndarray) -> None:
        """Write values at the end."""
        rest = np.ascontiguousarray(values, self.dtype).view(np.uint8).data
        self.length += len(values)
        while len(rest):
            rest = rest[self.file.write(rest[: 2**30]) :]

    def finished(self) -> StoredArray:
        """Return the array to read."""
        return StoredArray(self.file, self.dtype, self.length)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items of an iterator, each made by a thread while the one before is used."""
    with ThreadPoolExecutor(1, "sccvae-reader") as reader:
        none: Any = object()
        coming = reader.submit(next, items, none)
        while (item := coming.result()) is not none:
            coming = reader.submit(next, items, none)
            yield item
