"""Conversion of the matrix of an AnnData to `PackedRows`: read in blocks, with every value checked."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from tqdm import tqdm

from sccvae.data.blocks import blocks_of
from sccvae.data.packed_rows import BLOCK, PackedRows
from sccvae.data.packs import Collector
from sccvae.validation.wording import Text, did_you_mean, listed_names

Support = Literal["counts", "real", "binary"]
MAX_COUNT = 2**24  # float32 represents all whole numbers up to here exactly
BLOCK_BYTES = 64 * 2**20  # rows read at once from a dense or backed matrix


class Part(NamedTuple):
    """Cells of one file, or of an AnnData."""

    name: str | None  # the path, for messages; None for a user's AnnData
    adata: AnnData  # its matrices may be in the file
    matrix: Any = None  # in place of those of `adata`


@contextmanager
def named(part: Part) -> Iterator[None]:
    """Begin messages of errors about a file with its path."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        if part.name is None:
            raise
        text = Text(f"{part.name}: {error.args[0] if error.args else error}")
        raise type(error)(text) from error.__cause__


def read_rows(
    parts: Sequence[Part],
    layer: str | None,
    support: Support,
    genes: Sequence[str],
    collector: Collector,
    *,
    at: np.ndarray | None = None,
    round_counts: bool = False,
    learning: bool = True,
) -> PackedRows:
    """Read and check the counts of `genes`, in that order, in all cells of all parts, with little temporary memory.

    Parameters
    ----------
    collector
        Takes the rows of each block.
    at
        Columns of these genes in a single part; None finds them by name.
    round_counts
        Round to the nearest whole number, and halves to the even one.
    learning
        True if the data are those of a new model; False if an existing model reads them. Selects the advice in errors.
    """
    n_cells = sum(part.adata.n_obs for part in parts)
    quiet = None if parts[0].name is not None else True  # None: unless the output is a terminal
    with tqdm(total=n_cells, desc=_reading(parts), unit="cell", delay=1, leave=False, disable=quiet) as bar:
        for part in parts:
            with named(part):
                columns = columns_of(part.adata, genes) if at is None else at
                source = _Source(part.adata, layer, support, genes, round_counts, learning)
                _read_part(part, source, columns, collector, bar)
    return collector.finished()


def _reading(parts: Sequence[Part]) -> str:
    """Return what is read, for the progress bar."""
    names = [PurePath(str(part.name)).name for part in parts]
    return f"reading {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _read_part(part: Part, source: "_Source", columns: np.ndarray | None, collector: Collector, bar: tqdm) -> None:
    """Add the rows of one part, after a check of every value and of empty cells."""
    adata, support, round_counts = part.adata, source.support, source.round_counts
    matrix = matrix_of(adata, source.layer, source.learning) if part.matrix is None else part.matrix
    empty = []
    for start, whole in blocks_of(matrix, source.where, adata.shape, BLOCK_BYTES, collector.budget):
        block = whole if columns is None else whole[:, columns]
        if not block.has_canonical_format:
            block = block.astype(np.float64)  # a copy
            block.sum_duplicates()
        if wrong := _wrong_values(block.data, support, round_counts):
            raise ValueError(source.message(start, whole, block, wrong))
        if round_counts and block.data.dtype.kind == "f":
            block = sp.csr_matrix((np.rint(block.data), block.indices, block.indptr), shape=block.shape)
        if np.count_nonzero(block.data) < len(block.data):
            block = block.copy()
            block.eliminate_zeros()
        empty.append(np.flatnonzero(np.diff(block.indptr) == 0) + start)
        collector.add(block)
        bar.update(block.shape[0])
    if support == "counts":
        source.check_empty_cells(np.concatenate(empty))


def counts_in_blocks(adata: AnnData, layer: str | None) -> Iterator[tuple[int, sp.csr_matrix]]:
    """Yield the counts of all cells in blocks of rows, as (first row, block); every value is checked.

    Raises
    ------
    ValueError, TypeError, KeyError
        A value is not a count, or the matrix cannot be read.
    """
    source = _Source(adata, layer, "counts", adata.var_names.to_list(), False, True, "round them first, by np.rint")
    for start, block in blocks_of(matrix_of(adata, layer), source.where, adata.shape, BLOCK_BYTES):
        if wrong := _wrong_values(block.data, "counts"):
            raise ValueError(source.message(start, block, block, wrong))
        yield start, block


def columns_of(adata: AnnData, genes: Sequence[str]) -> np.ndarray | None:
    """Return the columns of the genes in the AnnData; None if they are all its genes in its order."""
    names = adata.var_names.astype(str)
    if len(names) == len(genes) and (names == np.asarray(genes)).all():
        return None
    asked = pd.Index(genes)
    check_unique(names[names.isin(asked)], "var_names", "adata.var_names_make_unique()")
    first = np.flatnonzero(~names.duplicated())  # genes outside the model may have duplicate names
    at = names[first].get_indexer(asked)
    check_known_genes([g for g, i in zip(genes, at, strict=True) if i < 0], names, "adata lacks genes of the model:")
    return first[at]


def with_columns(adata: AnnData, layer: str | None, genes: Sequence[str], at: np.ndarray) -> AnnData:
    """Return cells with other genes: those of the columns `at`, (genes,), and zeros where that is -1."""
    matrix = matrix_of(adata, layer, learning=False)
    if hasattr(matrix, "to_memory"):
        matrix = matrix.to_memory()
    found = np.flatnonzero(at >= 0)
    place = sp.csr_matrix((np.ones(len(found), np.float32), (at[found], found)), shape=(adata.n_vars, len(genes)))
    chosen = sp.csr_matrix(matrix) @ place
    return AnnData(
        chosen, obs=adata.obs, var=pd.DataFrame(index=list(genes)), layers={} if layer is None else {layer: chosen}
    )


def where_of(layer: str | None) -> str:
    """Return the Python expression for a layer, or for `X`."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def layer_names(adata: AnnData) -> list[str]:
    """Return the names of the layers without None, which anndata 0.13 uses for `X`."""
    return [name for name in adata.layers if name is not None]


def matrix_of(adata: AnnData, layer: str | None, learning: bool = True) -> Any:
    """Return `X` or a layer as stored."""
    names = layer_names(adata)
    if layer is not None and layer not in names:
        hint = ""
        if not learning and _holds_counts(adata, None):
            hint = f" The model reads this layer; adata.X holds counts: adata.layers[{layer!r}] = adata.X.copy()."
        raise KeyError(Text(f"adata.layers has no {layer!r}.{did_you_mean(layer, names)}{hint}"))
    matrix = _stored(adata, layer)
    if matrix is None:
        if learning:
            hint = f"pass layer= one of {listed_names(names)}" if names else "put the counts there"
        else:
            hint = "the model reads counts there" + (f": adata.X = adata.layers[{names[0]!r}]" if names else "")
        raise ValueError(f"adata.X is None; {hint}.")
    return matrix


def _wrong_values(values: np.ndarray, support: Support, rounded: bool = False) -> tuple[int, int] | None:
    """Return the position of the first value outside the likelihood's support, and the number of such values."""
    first: int | None = None
    n = 0
    for start in range(0, len(values) if values.dtype != bool else 0, BLOCK):
        wrong = _are_wrong(values[start : start + BLOCK], support, rounded)
        if found := np.count_nonzero(wrong):
            first, n = (start + int(wrong.argmax()) if first is None else first), n + int(found)
    return None if first is None else (first, n)


def _are_wrong(values: np.ndarray, support: Support, rounded: bool) -> np.ndarray:
    if support == "real":
        return ~(np.abs(values) <= np.finfo(np.float32).max)
    if support == "binary":
        return (values != 0) & (values != 1)
    if rounded or np.issubdtype(values.dtype, np.integer):
        return ~((values >= 0) & (values <= MAX_COUNT))
    return ~((values >= 0) & (values <= MAX_COUNT) & (np.floor(values) == values))


@dataclass(frozen=True)
class _Source:
    """Source of the values and options of reading, for error messages."""

    adata: AnnData
    layer: str | None
    support: Support
    genes: Sequence[str]
    round_counts: bool
    learning: bool
    how: str = "pass round_counts=True when the model is built (command line: --round-counts)"  # to round fractions

    @property
    def where(self) -> str:
        return where_of(self.layer)

    def message(self, start: int, whole: sp.csr_matrix, block: sp.csr_matrix, wrong: tuple[int, int]) -> str:
        """Return the error message for wrong values in a block of cells from number `start` on.

        `whole` has all genes of these cells, `block` the genes of the model.
        """
        (at, n_wrong), where, support = wrong, self.where, self.support
        row = int(np.searchsorted(block.indptr, at, side="right")) - 1
        value, cell, gene = block.data[at], self.adata.obs_names[start + row], self.genes[block.indices[at]]
        within = "in this block of cells" if start or block.shape[0] < self.adata.n_obs else "in all"
        found = f"{value:g} at cell {str(cell)!r}, gene {str(gene)!r} ({n_wrong} such values {within})"
        if support == "real":
            return (
                f"{where} holds a value that is not finite: {found}; expected finite numbers. Correct or remove the "
                f"value before building the model.{_of_nan(value)}"
            )
        if support == "binary":
            return (
                f"{where} holds values other than 0 and 1: {found}; expected 0/1 data for gene_likelihood='bernoulli'. "
                f"Binarise first, or choose gene_likelihood='zinb' for counts.{_of_nan(value)}"
            )
        if np.isfinite(value) and value > MAX_COUNT:
            return (
                f"{where} holds a count above 2**24 = {MAX_COUNT}: {found}; expected counts of molecules. Pass the raw "
                "count matrix."
            )
        what = "negative values" if value < 0 else "values that are not counts"
        known, cure = self._where_counts_are()
        if np.isfinite(value) and value > 0:
            cure += _of_fractions(whole, known, self.how)
        return f"{where} holds {what}: {found}; expected raw counts.{_of_nan(value)} {cure}"

    def _where_counts_are(self) -> tuple[bool, str]:
        """Return whether another matrix of adata has counts, and the advice for the error message."""
        adata, where = self.adata, self.where
        candidates = [n for n in [None, *layer_names(adata)] if n != self.layer and _holds_counts(adata, n)]
        if candidates:
            cure = f"pass layer={candidates[0]!r}" if self.learning else f"{where} = {where_of(candidates[0])}"
            return True, f"{where_of(candidates[0])} holds counts: {cure}."
        if adata.raw is not None and _holds(adata.raw.X, adata.raw.shape, "counts"):
            return True, "adata.raw holds counts: use adata.raw.to_adata() (with adata.obs)."
        cure = "use the raw matrix from before sc.pp.normalize_total and log1p"
        return False, f"No other layer of adata holds counts: {cure}."

    def check_empty_cells(self, empty: np.ndarray) -> None:
        """Raise if there are cells without counts, with numbers `empty`."""
        if len(empty) == 0:
            return
        cure = "Remove them first: sc.pp.filter_cells(adata, min_counts=1)."
        if self.round_counts or len(self.genes) < self.adata.n_vars:
            cure = "Leave those cells out, or model genes in which they have counts."
        elif self.layer is not None:
            cure = f"Leave those cells out: adata[np.ravel({self.where}.sum(1)) > 0].copy()."
        rounded = " once they are rounded" if self.round_counts else ""
        raise ValueError(
            f"{len(empty)} of {self.adata.n_obs} cells have no counts in the genes modelled{rounded}, such as "
            f"{listed_names(self.adata.obs_names[empty])}; expected at least one count per cell. {cure}"
        )


def _of_nan(value: float) -> str:
    """Return the likely origin of missing values, for error messages."""
    if not np.isnan(value):
        return ""
    return (
        " Missing values often come from anndata.concat(..., join='outer'), where not all tables have the gene: "
        "join='inner' keeps the genes that all have."
    )


def _of_fractions(whole: sp.csr_matrix, known: bool, how: str) -> str:
    """Return further advice for fractions, which depends on the values and on whether counts exist elsewhere."""
    if not _look_normalised(whole):
        return f" If these are expected counts, as of RSEM, Salmon or Smart-seq2: {how}."
    return "" if known else f" These look normalised; only if they are expected counts, as of RSEM or Salmon, {how}."


def _look_normalised(block: sp.csr_matrix) -> bool:
    """Return whether most values are fractions, and either logarithms or of equal sum in all cells."""
    values = block.data
    if np.mean(values != np.floor(values)) <= 0.5:
        return False
    if values.max() < 20:
        return True
    totals = np.asarray(block.sum(1, dtype=np.float64))
    return len(totals) > 1 and float(np.ptp(totals)) <= 1e-3 * float(totals.mean())


def _stored(adata: AnnData, layer: str | None) -> Any:
    """Return `X` or a layer; None for a backed file without `X`, for which anndata raises KeyError."""
    if layer is not None:
        return adata.layers[layer]
    try:
        return adata.X
    except KeyError:
        return None


def _holds_counts(adata: AnnData, layer: str | None) -> bool:
    return holds(adata, layer, "counts")


def holds(adata: AnnData, layer: str | None, support: Support) -> bool:
    """Return whether the matrix exists and all its values are in the likelihood's support."""
    matrix = None if layer is not None and layer not in layer_names(adata) else _stored(adata, layer)
    return matrix is not None and _holds(matrix, adata.shape, support)


def _holds(matrix: Any, shape: tuple[int, int], support: Support) -> bool:
    try:
        return not any(_wrong_values(block.data, support) for _, block in blocks_of(matrix, "", shape, BLOCK_BYTES))
    except (TypeError, ValueError):
        return False


# ------------------------------------------------------------------------------------------------------------- checks


def check_adata(adata: AnnData) -> None:
    """Raise unless `adata` is an AnnData with cells and genes."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata is a {type(adata).__name__}; expected an AnnData. {_instead(adata)}")
    if not isinstance(adata.obs, pd.DataFrame) or not isinstance(adata.var, pd.DataFrame):
        raise TypeError(
            f"adata was read lazily: adata.obs is a {type(adata.obs).__name__}; expected a DataFrame in memory. Pass "
            "adata.to_memory(). To leave the counts in the file: adata.obs, adata.var = adata.obs.to_memory(), "
            "adata.var.to_memory()."
        )
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"adata has {adata.n_obs} cells and {adata.n_vars} genes; expected at least 1 of each.")


def _instead(given: Any) -> str:
    """Return advice for a conversion of `given` to an AnnData."""
    name = type(given).__name__
    if isinstance(given, str | PathLike):
        return f"Read the file first: sc.read_h5ad({str(given)!r})."
    if name == "MuData":
        names = list(getattr(given, "mod", {})) or ["rna"]
        chosen = "rna" if "rna" in names else names[0]
        return f"Pass the modality with gene counts, such as mdata[{chosen!r}]; modalities: {listed_names(names)}."
    if name == "SpatialData":
        names = list(getattr(given, "tables", {})) or ["table"]
        return f"Pass the table with gene counts, such as sdata.tables[{names[0]!r}]."
    if name == "Raw":
        return "Pass adata.raw.to_adata(), with the columns of adata.obs."
    if isinstance(given, list | tuple | dict):
        return "Join several first: anndata.concat([...], label='batch')."
    return "Wrap a matrix as anndata.AnnData(matrix)."


def check_unique(names: pd.Index, what: str, fix: str) -> None:
    """Raise if names are duplicated."""
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        raise ValueError(f"adata.{what} are not unique: {listed_names(twice)} appear more than once. Call {fix} first.")


def check_known_genes(missing: list[str], known: Iterable[str], what: str) -> None:
    """Raise if genes are missing."""
    if missing:
        known = [str(k) for k in known]
        raise ValueError(
            f"{what} {len(missing)} unknown gene{'s' if len(missing) > 1 else ''}: {listed_names(missing)}."
            f"{did_you_mean(missing[0], known, listed=True)} Genes are matched by name."
        )
