"""What cells are read from: an AnnData, or files, of which several are one set."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sccvae.data import packs
from sccvae.data.blocks import blocks_of
from sccvae.data.columns import column_of
from sccvae.data.matrix import BLOCK_BYTES, Part, check_adata, columns_of, matrix_of, named, where_of
from sccvae.data.packed_rows import PackedRows
from sccvae.data.packs import Collector, Contents, Pack, Read, Storage
from sccvae.io.opening import opened
from sccvae.validation.arguments import check_choice
from sccvae.validation.wording import listed_names

Join = Literal["inner", "exact"]
Given = AnnData | str | PathLike | Sequence[str | PathLike]


@dataclass(frozen=True, eq=False)
class Source:
    """Cells to read.

    Attributes
    ----------
    frame
        Tables of all cells and of the genes that all parts have; a user's AnnData itself.
    parts
        Where the values are, in the order of the cells.
    files
        The files that they are read from; none for an AnnData in memory.
    pack
        The pack, where the source is one.
    """

    frame: AnnData
    parts: tuple[Part, ...]
    files: tuple[Path, ...] = ()
    pack: Pack | None = None

    @classmethod
    def of(cls, adata: "AnnData | Source") -> "Source":
        """Return an AnnData as a source; tables that were read lazily are read."""
        if isinstance(adata, Source):
            return adata
        if isinstance(adata, AnnData) and not isinstance(adata.obs, pd.DataFrame) and hasattr(adata.obs, "to_memory"):
            layers = {key: adata.layers[key] for key in adata.layers if key is not None}
            adata = AnnData(adata.X, obs=adata.obs.to_memory(), var=adata.var.to_memory(), layers=layers)
        check_adata(adata)
        in_file = adata.filename is not None and not adata.is_view  # a view may be of some cells
        return cls(adata, (Part(None, adata),), (Path(adata.filename),) if in_file else ())

    def layer_of(self, layer: str | None) -> str | None:
        """Return the layer to read: that of the pack, where the source is one."""
        if self.pack is None:
            return layer
        if layer not in (None, self.pack.contents.layer):
            raise ValueError(
                f"The pack {self.pack.path} holds the counts of layer {self.pack.contents.layer!r}; found "
                f"layer={layer!r}: leave layer out, or make a pack of that layer."
            )
        return self.pack.contents.layer

    def blocks(self, layer: str | None, cells: range | None = None) -> Iterator[tuple[slice, sp.csr_matrix]]:
        """Yield (rows, values) of the genes of `frame`, in its order, for a range of cells in blocks; None for all."""
        begin, cells = 0, range(self.frame.n_obs) if cells is None else cells
        for part in self.parts:
            here = range(part.adata.n_obs)[max(cells.start - begin, 0) : max(cells.stop - begin, 0)]
            with named(part):
                columns = columns_of(part.adata, list(self.frame.var_names.astype(str)))
                matrix = matrix_of(part.adata, layer) if part.matrix is None else part.matrix
                where, sizes = where_of(layer), (BLOCK_BYTES, BLOCK_BYTES)
                for start, whole in blocks_of(matrix, where, part.adata.shape, *sizes, here) if here else ():
                    rows = slice(begin + start, begin + start + whole.shape[0])
                    yield rows, whole if columns is None else whole[:, columns]
            begin += part.adata.n_obs

    def rows(self, contents: Contents, storage: Storage, read: Read) -> PackedRows:
        """Return the packed rows: those of a pack where they are as asked for, else what `read` collects.

        Parameters
        ----------
        contents
            What is asked for; its `sources` are filled in.
        read
            Reads the rows into a collector.
        """
        if self.pack is not None and replace(self.pack.contents, sources=()) == contents:
            return self.pack.rows
        if storage.cache_dir is None:
            return read(Collector(len(contents.genes), counts=contents.support != "real", budget=storage.budget))
        contents = replace(contents, sources=packs.stamps(self.files))
        return packs.kept(storage.cache_dir, contents, self.frame, read, storage.budget).rows

    def check_columns(self, keys: Sequence[str | None]) -> None:
        """Raise if a file lacks one of the columns of `obs`, or a value in it."""
        for part in self.parts if self.parts[0].name is not None else ():
            with named(part):
                for key in keys:
                    if key is not None:
                        column_of(part.adata.obs, key)

    def check_mask(self, mask_var: Any) -> None:
        """Raise if a column of `var` that chooses genes differs between files."""
        if not isinstance(mask_var, str) or mask_var in self.frame.var:
            return
        have = [str(part.name) for part in self.parts if part.name is not None and mask_var in part.adata.var]
        if have:
            raise ValueError(
                f"var[{mask_var!r}] is not the same in all files, though {have[0]} has it; expected one choice of "
                "genes for all files: pass their names, genes=[...]."
            )


@contextmanager
def open_source(given: Any, *, join: Join = "inner", budget: float | None = None) -> Iterator[Source]:
    """Yield the source that a user gave: an AnnData, the path of a file or of a pack, or a list of paths.

    Parameters
    ----------
    budget
        Bytes up to which the counts of a pack are read into memory; None takes half of the memory that is free.
    join
        Genes of several files: `inner` keeps those that all have; `exact` raises an error if they differ.

    Raises
    ------
    TypeError, ValueError, OSError
        `given` is something else; a file cannot be read; the files have no gene in common.
    """
    check_choice("join", join, ("inner", "exact"))
    if not is_paths(given):
        yield Source.of(given)
        return
    paths = paths_of(given)
    packed = [path for path in paths if packs.is_pack(path)]
    if packed:
        if len(paths) > 1:
            raise ValueError(f"{packed[0]} is a pack; expected it alone. Make one pack of all files.")
        pack = packs.opened(packed[0], Storage(budget).budget)
        yield Source(pack.frame, (Part(str(pack.path), pack.frame, pack),), (pack.path,), pack)
        return
    with ExitStack() as stack:
        parts = [Part(*some) for path in paths for some in stack.enter_context(opened(path))]
        for part in parts:
            with named(part):
                check_adata(part.adata)
        yield Source(_frame(parts, join), tuple(parts), tuple(paths))


def is_paths(given: Any) -> bool:
    """Return whether a user gave a path or a list of paths."""
    if isinstance(given, str | PathLike):
        return True
    return isinstance(given, list | tuple) and bool(given) and all(isinstance(each, str | PathLike) for each in given)


def paths_of(given: Any) -> list[Path]:
    """Return a path, or a list of them, as a list; raise if one does not exist, or is twice in it."""
    paths = [Path(fspath(path)) for path in ([given] if isinstance(given, str | PathLike) else given)]
    real = [path.resolve() for path in paths]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"There is no file {path}; expected an AnnData, or the path of an .h5ad, a .zarr or a pack."
            )
    twice = [str(path) for path, place in zip(paths, real, strict=True) if real.count(place) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given twice; expected each file once.")
    return paths


def _frame(parts: list[Part], join: Join) -> AnnData:
    """Return the tables of several files as one: all cells, and the genes that all files have."""
    genes = _common_genes(parts, join)
    first = parts[0].adata.var
    var = first if len(parts) == 1 else first[~first.index.duplicated()].loc[genes]
    for other in (part.adata.var for part in parts[1:]):
        there = other[~other.index.duplicated()].reindex(genes)
        same = [key for key in var if key in there and var[key].astype(object).equals(there[key].astype(object))]
        var = var[same]
    return AnnData(obs=_cells(parts), var=var.copy())


def _common_genes(parts: list[Part], join: Join) -> pd.Index:
    """Return the genes that all files have, in the order of the first."""
    names = [part.adata.var_names.astype(str) for part in parts]
    common = names[0][np.logical_and.reduce([names[0].isin(other) for other in names])]
    if len(common) == 0:
        others = next(k for k, other in enumerate(names) if not names[0].isin(other).any())
        raise ValueError(
            f"{parts[0].name} and {parts[others].name} have no gene in common: the first has "
            f"{listed_names(names[0])}, the second {listed_names(names[others])}. Genes are matched by name."
        )
    if join == "exact":
        for part, of_part in zip(parts[1:], names[1:], strict=True):
            alone = [*of_part[~of_part.isin(names[0])], *names[0][~names[0].isin(of_part)]]
            if alone:
                raise ValueError(
                    f"{part.name} has other genes than {parts[0].name}: {listed_names(alone)}; expected the same. "
                    "join='inner' keeps the genes that all files have."
                )
    return common


def _cells(parts: list[Part]) -> pd.DataFrame:
    """Return one table of the cells of all files, with names `file:cell` if two files have a name in common."""
    if len(parts) == 1:
        return parts[0].adata.obs
    tables = [part.adata.obs for part in parts]
    if not tables[0].index.append([table.index for table in tables[1:]]).is_unique:
        stems = _distinct([str(part.name) for part in parts])
        names = [[f"{stem}:{cell}" for cell in table.index] for stem, table in zip(stems, tables, strict=True)]
        tables = [table.set_axis(of_file, axis=0) for table, of_file in zip(tables, names, strict=True)]
    return anndata.concat([AnnData(obs=table) for table in tables], join="outer").obs  # unites categories


def _distinct(paths: list[str]) -> list[str]:
    """Return the shortest ends of paths, without suffixes, that differ."""
    parts = [Path(path).with_suffix("").parts for path in paths]
    for n in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(some[-n:]) for some in parts]
        if len(set(ends)) == len(ends):
            return ends
    return paths
