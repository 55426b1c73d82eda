"""Packed rows of a set of cells: in memory, in temporary files, or in a pack, a folder that is kept and opened again.

A pack holds the counts (`PackedRows`), the tables of cells and genes (`cells.h5ad`) and a description (`pack.json`)
with the size and time of the files that it was made from, and a checksum of each array. Nothing in it is executed.
"""

import errno
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from sccvae.data.packed_rows import PackedRows, dtype_of_genes
from sccvae.data.stored_arrays import Appended, StoredArray
from sccvae.io import anndata_files, files
from sccvae.validation.arguments import finite, unless_none
from sccvae.validation.wording import listed_names

DESCRIPTION, CELLS, FORMAT = "pack.json", "cells.h5ad", 1
SMALL = {"indptr": np.int64, "large_at": np.int64, "large": np.float32}  # arrays that are always in memory
_CHECKED = 2**24  # bytes read at once for a checksum
_CGROUPS = (  # limit and use of memory, in versions 2 and 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


# --------------------------------------------------------------------------------------------------------- collection


@dataclass(frozen=True)
class Storage:
    """Where the packed rows of a model go."""

    memory_budget: float | None = None  # bytes that may be in memory; None takes half of the memory that is free
    cache_dir: Path | None = None  # of a pack that is kept; None keeps none

    @property
    def budget(self) -> float:
        """Return the bytes that may be in memory."""
        return free_memory() / 2 if self.memory_budget is None else self.memory_budget


def checked_storage(memory_budget: Any, cache_dir: Any) -> Storage:
    """Return where counts go, from the arguments of a model."""
    expected = "bytes of memory, 0 or more, such as 4e9"
    return Storage(
        unless_none(finite, "memory_budget", memory_budget, expected, least=0),
        None if cache_dir is None else files.path_of(cache_dir, "cache_dir"),
    )


def free_memory() -> int:
    """Return the bytes of memory that this process can still take: of the machine, its control group, its limits."""
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else [2**32]
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    for limit, used in _CGROUPS:
        with suppress(OSError, ValueError):  # the limit may be the word "max"
            free.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    with suppress(ImportError, OSError):
        import resource

        limit_of_addresses = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit_of_addresses != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            free.append(limit_of_addresses - pages * os.sysconf("SC_PAGE_SIZE"))
    return max(min(free), 0)


class Collector:
    """Rows in the order in which they are added; `finished` returns them."""

    def __init__(self, n_genes: int, *, counts: bool = True, budget: float = 0.0, folder: Path | None = None):
        """`budget`: bytes that may be in memory. `folder`: where files go in any case; None: unnamed temporary files.

        `counts` as in `PackedRows.of`.
        """
        self.n_genes, self.counts, self.budget, self.folder = n_genes, counts, budget, folder
        self.parts: list[PackedRows] = []
        self.n_bytes = 0  # of the parts
        self.narrow: bool | None = None  # whether the files have uint8; None before there are files
        self.lengths: list[np.ndarray] = []  # numbers of values of each cell
        self.large: list[np.ndarray] = []
        self.large_at: list[np.ndarray] = []

    def add(self, rows: sp.csr_matrix) -> None:
        """Add cells: sorted rows without duplicates and zeros."""
        part = PackedRows.of(rows, counts=self.counts, narrow=self.narrow)
        if self.narrow is not None:
            self._append(part)
            return
        self.parts.append(part)
        self.n_bytes += part.nbytes
        if self.folder is not None or self.n_bytes > self.budget:
            self._begin_files()

    def finished(self) -> PackedRows:
        """Return all rows."""
        if self.narrow is None:
            return PackedRows.joined(self.parts)
        indptr = np.cumsum(np.concatenate([[0], *self.lengths]))
        large_at, large = np.concatenate(self.large_at), np.concatenate(self.large)
        return PackedRows(indptr, self.genes.finished(), self.values.finished(), large_at, large, self.n_genes)

    def _begin_files(self) -> None:
        """Write the parts that are in memory; what is added from now on is appended to them."""
        self.narrow = all(part.values.dtype == np.uint8 for part in self.parts)
        with _named_if_full(self.folder):
            self.genes = Appended(dtype_of_genes(self.n_genes), self.folder, "genes.bin")
            self.values = Appended(np.uint8 if self.narrow else np.float32, self.folder, "values.bin")
        for part in self.parts:
            self._append(part if self.narrow else part.wide())
        self.parts = []

    def _append(self, part: PackedRows) -> None:
        with _named_if_full(self.folder):
            self.lengths.append(np.diff(part.indptr))
            self.large_at.append(part.large_at + self.values.length)
            self.large.append(part.large)
            self.genes.append(part.genes[:])
            self.values.append(part.values[:])


Read = Callable[[Collector], PackedRows]  # reads rows into a collector, and returns what it has collected


@contextmanager
def _named_if_full(folder: Path | None) -> Iterator[None]:
    """Name the temporary folder in the error about a full disk; a folder that was given is named by who writes it."""
    try:
        yield
    except OSError as error:
        if folder is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        place = tempfile.gettempdir()
        raise OSError(
            error.errno,
            f"There is no space left for the counts in the temporary folder {place}: pass cache_dir, a folder on a "
            "larger disk, or set TMPDIR",
        ) from error


# ---------------------------------------------------------------------------------------------------------------- packs


@dataclass(frozen=True)
class Contents:
    """What a pack was made from, and how."""

    genes: tuple[str, ...]
    layer: str | None
    support: str
    round_counts: bool
    sources: tuple[tuple[str, int, int], ...]  # path, bytes, time of the last change in ns; none for an AnnData


@dataclass(frozen=True, eq=False)
class Pack:
    """An open pack."""

    path: Path
    contents: Contents
    frame: AnnData  # tables of cells and genes, without values
    rows: PackedRows

    @property
    def shape(self) -> tuple[int, int]:
        """Return the numbers of cells and genes."""
        return len(self.rows), self.rows.n_genes

    def __getitem__(self, cells: slice) -> sp.csr_matrix:
        """Return a range of cells."""
        return self.rows.csr(cells)


def is_pack(path: Path) -> bool:
    """Return whether there is a pack at a path."""
    return (path / DESCRIPTION).is_file()


def stamps(paths: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """Return path, bytes and time of the last change of files, or of all files in folders."""
    found = []
    for path in paths:
        inside = [path, *path.rglob("*")] if path.is_dir() else [path]
        stats = [each.stat() for each in inside]
        n_bytes = sum(s.st_size for s, each in zip(stats, inside, strict=True) if each.is_file())
        found.append((str(path.resolve()), n_bytes, max(s.st_mtime_ns for s in stats)))
    return tuple(found)


def write(target: Path, contents: Contents, frame: AnnData, read: Read) -> None:
    """Write a pack; `read` collects the rows of the cells. A killed run leaves nothing.

    Raises
    ------
    OSError
        `target` exists and is not an empty folder, or the disk is full.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists; expected a new name, or an empty folder, for a pack.")
    files.checked(target, "pack", folder=True)
    with files.named_if_full(target), files.part_beside(target) as beside:
        part = beside / target.name
        part.mkdir()
        rows = read(Collector(len(contents.genes), counts=contents.support != "real", folder=part))
        for name in SMALL:
            np.ascontiguousarray(getattr(rows, name), SMALL[name]).tofile(part / f"{name}.bin")
        anndata_files.write(AnnData(obs=frame.obs, var=frame.var.loc[list(contents.genes)]), part / CELLS, "pack")
        arrays = {name: _described(part, name, array) for name, array in _arrays(rows).items()}
        text = json.dumps({"format": FORMAT, **asdict(contents), "n_cells": len(rows), "arrays": arrays}, indent=1)
        (part / DESCRIPTION).write_text(text, encoding="utf-8")
        files.put(part, target)


def opened(path: Path, budget: float) -> Pack:
    """Open a pack; the counts are read into memory if they take at most `budget` bytes.

    Raises
    ------
    ValueError
        The pack is damaged, is of another format, or was made from files that have changed since.
    """
    try:
        said = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        version, arrays = said["format"], said["arrays"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is not a pack of sccvae, or it is damaged ({error}): make it again.") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version}; this version reads format {FORMAT}. Upgrade sccvae.")
    try:
        contents = Contents(
            tuple(said["genes"]), said["layer"], said["support"], said["round_counts"], _tuples(said["sources"])
        )
        small = {name: np.fromfile(path / f"{name}.bin", dtype) for name, dtype in SMALL.items()}
        stored = {n: StoredArray.opened(path / f"{n}.bin", *arrays[n][:2]) for n in ("genes", "values")}
        rows = PackedRows(n_genes=len(contents.genes), **small, **stored)  # type: ignore[arg-type]
        for name, array in _arrays(rows).items():
            if [str(array.dtype), len(array)] != arrays[name][:2] or _checksum(array) != arrays[name][2]:
                raise ValueError(f"{name}.bin has changed since it was written")
        frame = anndata.read_h5ad(path / CELLS)
        if frame.shape != (said["n_cells"], rows.n_genes) or len(rows) != frame.n_obs:
            raise ValueError(f"{CELLS} is of other cells")
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise ValueError(f"The pack {path} is damaged ({error}): make it again.") from error
    _check_current(path, contents.sources)
    if rows.nbytes <= budget:
        rows = PackedRows(**small, genes=rows.genes[:], values=rows.values[:], n_genes=rows.n_genes)
    return Pack(path, contents, frame, rows)


def kept(target: Path, contents: Contents, frame: AnnData, read: Read, budget: float) -> Pack:
    """Return the pack at `target`; make it first if there is none.

    Raises
    ------
    ValueError
        The pack there holds other data.
    """
    if not is_pack(target):
        files.checked(target, "cache_dir", folder=True)
    with files.alone_in(target.resolve().parent):  # of several processes one makes it, and the others open it
        if not is_pack(target):
            write(target, contents, frame, read)
            return opened(target, budget)
    pack = opened(target, budget)
    if pack.contents != contents or not contents.sources or len(pack.rows) != frame.n_obs:
        raise ValueError(
            f"The pack in cache_dir {str(target)!r} holds other data ({_difference(pack.contents, contents)}): choose "
            "another cache_dir, or delete that one."
        )
    return pack


def _difference(found: Contents, asked: Contents) -> str:
    """Return in words how the contents of a pack differ from those asked for."""
    if found.sources != asked.sources or not found.sources:
        names = [Path(path).name for path, *_ in found.sources]
        return f"of {listed_names(names)}" if names else "of an AnnData, which cannot be compared with others"
    if found.genes != asked.genes:
        return f"{len(found.genes)} genes, such as {listed_names(found.genes)}"
    return f"layer {found.layer!r}, round_counts {found.round_counts}, {found.support}"


def _check_current(path: Path, sources: tuple[tuple[str, int, int], ...]) -> None:
    """Raise if a file that a pack was made from is still there and has changed."""
    for source in sources:
        if Path(source[0]).exists() and stamps([Path(source[0])])[0] != source:
            raise ValueError(
                f"{path} was made from {source[0]}, which has changed since: delete the pack, and make it again."
            )


def _arrays(rows: PackedRows) -> dict[str, Any]:
    return {name: getattr(rows, name) for name in (*SMALL, "genes", "values")}


def _described(folder: Path, name: str, array: Any) -> list[Any]:
    """Return dtype, length and checksum of an array; numbers of small arrays are of the dtypes of `SMALL`."""
    dtype = np.dtype(SMALL.get(name, array.dtype))
    return [str(dtype), len(array), _checksum(StoredArray.opened(folder / f"{name}.bin", dtype, len(array)))]


def _checksum(array: Any) -> int:
    """Return the CRC-32 of an array's bytes."""
    found, step = 0, _CHECKED // array.dtype.itemsize
    for start in range(0, len(array), step):
        found = zlib.crc32(np.ascontiguousarray(array[start : start + step]).view(np.uint8).data, found)
    return found


def _tuples(sources: Any) -> tuple[tuple[str, int, int], ...]:
    return tuple((str(path), int(n_bytes), int(time)) for path, n_bytes, time in sources)
