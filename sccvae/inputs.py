"""AnnData -> checked `Counts`: the only way in, and every error about the input.

A `Schema` is what a model remembers of the AnnData it was built on: genes, keys, categories, scaling. The same schema
reads new data, so genes are matched by name, batches by category, and nothing by position. The AnnData is only read.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sccvae.data import Counts
from sccvae.stored import BLOCK, Rows

Support = Literal["counts", "real", "binary"]
MAX_COUNT = 2**24  # the largest whole number below which float32 holds every one exactly
BLOCK_BYTES = 64 * 2**20  # rows read at once from a dense or backed matrix


@dataclass(frozen=True)
class Schema:
    """How to read an AnnData the way the training data were read.

    Attributes
    ----------
    genes
        Names in the model's order.
    categories
        For the batch and every categorical covariate (in the order of the code columns): its categories, as text.
    means, scales
        Of the continuous covariates in the training data; values are standardised with them.
    log_size_offset
        Added to log size factors so that the mean library size is the mean total count; 0 without size factors.
    """

    genes: tuple[str, ...]
    layer: str | None
    support: Support
    batch_key: str | None
    categorical_covariate_keys: tuple[str, ...]
    continuous_covariate_keys: tuple[str, ...]
    size_factor_key: str | None
    categories: tuple[tuple[str, ...], ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    log_size_offset: float

    @classmethod
    def learn(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        support: Support = "counts",
        batch_key: str | None = None,
        categorical_covariate_keys: Sequence[str] = (),
        continuous_covariate_keys: Sequence[str] = (),
        size_factor_key: str | None = None,
        genes: np.ndarray | None = None,
    ) -> tuple["Schema", Counts]:
        """Check the data a model is built on; return what to remember of them and the counts.

        Parameters
        ----------
        genes
            (genes,) boolean mask of the genes to model; None takes all.

        Raises
        ------
        ValueError, KeyError, TypeError
            What is wrong with the data, where, and how to mend it.
        """
        check_adata(adata)
        names = adata.var_names.astype(str) if genes is None else adata.var_names[genes].astype(str)
        _check_unique(names, "var_names", "adata.var_names_make_unique()")
        for given in (categorical_covariate_keys, continuous_covariate_keys):
            if isinstance(given, str):
                raise TypeError(f"Covariate keys are a list of columns; found the text {given!r}: pass [{given!r}].")
        keys: list[str | None] = [batch_key, *categorical_covariate_keys]
        categories = tuple(("all",) if key is None else _categories(adata, key) for key in keys)
        numbers = [_numbers(adata, key) for key in continuous_covariate_keys]
        rows = _read_rows(adata, layer, support, names)
        offset = 0.0
        if size_factor_key is not None:
            mean_total = rows.gene_sums(lambda x: x).sum() / len(rows)
            offset = float(np.log(mean_total) - np.log(_size_factors(adata, size_factor_key).mean()))
        schema = cls(
            genes=tuple(names),
            layer=layer,
            support=support,
            batch_key=batch_key,
            categorical_covariate_keys=tuple(categorical_covariate_keys),
            continuous_covariate_keys=tuple(continuous_covariate_keys),
            size_factor_key=size_factor_key,
            categories=categories,
            means=tuple(float(v.mean()) for v in numbers),
            scales=tuple(float(v.std()) or 1.0 for v in numbers),
            log_size_offset=offset,
        )
        return schema, schema._assemble(adata, rows)

    def read(self, adata: AnnData) -> Counts:
        """Counts of new data, read as the training data were: genes in the model's order, known categories only.

        Raises
        ------
        ValueError, KeyError
            What is wrong with the data, where, and how to mend it.
        """
        check_adata(adata)
        return self._assemble(adata, _read_rows(adata, self.layer, self.support, self.genes))

    def code_of_batch(self, batch: str) -> int:
        """Number of a batch known by name."""
        return _position(str(batch), self.categories[0], "batch", self.batch_key)

    def positions_of_genes(self, gene_list: Iterable[str]) -> np.ndarray:
        """Columns of the genes named, in the order asked."""
        if isinstance(gene_list, str):
            raise TypeError(f"gene_list is a list of gene names; found the text {gene_list!r}: pass [{gene_list!r}].")
        asked = [str(gene) for gene in gene_list]
        index = pd.Index(self.genes).get_indexer(asked)
        _check_known_genes(
            [gene for gene, at in zip(asked, index, strict=True) if at < 0], self.genes, "gene_list names"
        )
        return index

    def columns_of(self, codes: np.ndarray) -> dict[str, Any]:
        """Columns of `obs` for codes (cells, 1 + categorical covariates), continuous covariates at their means."""
        keys = (self.batch_key, *self.categorical_covariate_keys)
        categorical = {
            key: pd.Categorical.from_codes(codes[:, column], categories=list(self.categories[column]))
            for column, key in enumerate(keys)
            if key is not None
        }
        means = zip(self.continuous_covariate_keys, self.means, strict=True)
        return {**categorical, **{key: np.full(len(codes), mean) for key, mean in means}}

    def _assemble(self, adata: AnnData, rows: Rows) -> Counts:
        keys = [self.batch_key, *self.categorical_covariate_keys]
        codes = np.zeros((adata.n_obs, len(keys)), dtype=np.int64)
        for column, (key, known) in enumerate(zip(keys, self.categories, strict=True)):
            if key is not None:
                codes[:, column] = _codes(adata, key, known)
        continuous = np.zeros((adata.n_obs, len(self.means)), dtype=np.float32)
        for column, key in enumerate(self.continuous_covariate_keys):
            continuous[:, column] = (_numbers(adata, key) - self.means[column]) / self.scales[column]
        log_size = None
        if self.size_factor_key is not None:
            factors = _size_factors(adata, self.size_factor_key)
            log_size = (np.log(factors) + self.log_size_offset).astype(np.float32)
        return Counts.of(
            rows,
            codes=codes,
            n_levels=tuple(map(len, self.categories)),
            continuous=continuous,
            log_size=log_size,
            nonnegative=self.support != "real",
        )


def mask_of_genes(adata: AnnData, mask_var: str | np.ndarray) -> np.ndarray:
    """(genes,) boolean mask from the name of a column of `var` or from an array."""
    check_adata(adata)
    what = "mask_var"
    if isinstance(mask_var, str):
        if mask_var not in adata.var:
            raise KeyError(_Text(f"adata.var has no column {mask_var!r}.{_did_you_mean(mask_var, adata.var.columns)}"))
        what, mask_var = f"adata.var[{mask_var!r}]", adata.var[mask_var].to_numpy()
    mask = np.asarray(mask_var)
    if mask.dtype != bool or mask.shape != (adata.n_vars,):
        raise ValueError(
            f"{what} has dtype {mask.dtype} and shape {mask.shape}; expected {adata.n_vars} booleans, one a gene."
        )
    if not mask.any():
        raise ValueError(f"{what} selects none of {adata.n_vars} genes; at least one is needed.")
    return mask


# ------------------------------------------------------------------------------------------------------------ columns


def labels_of(groupby: Any, obs: pd.DataFrame, names: pd.Index) -> pd.Series:
    """Labels of the cells `names`, none missing: a column of `obs` by its name, or labels in the order of the cells."""
    if not obs.index.equals(names):
        raise ValueError("The cells of the AnnData have changed since the model was built: pass adata.")
    if isinstance(groupby, str):
        return _column(obs, groupby)
    if isinstance(groupby, pd.Series) and not groupby.index.equals(obs.index):
        raise ValueError("groupby is a Series whose index is not the names of the cells, in their order.")
    labels = pd.Series(groupby, index=obs.index) if np.shape(groupby) == (len(obs),) else None
    if labels is None:
        raise ValueError(
            f"groupby has shape {np.shape(groupby)}; expected a column of adata.obs or a label for each of "
            f"{len(obs)} cells."
        )
    return _column(pd.DataFrame({"groupby": labels}), "groupby")


def _column(obs: pd.DataFrame, key: str) -> pd.Series:
    if key not in obs:
        raise KeyError(_Text(f"adata.obs has no column {key!r}.{_did_you_mean(key, obs.columns)}"))
    column = obs[key]
    missing = column.isna().to_numpy()
    if missing.any():
        raise ValueError(
            f"adata.obs[{key!r}] has no value for {missing.sum()} of {len(obs)} cells, such as "
            f"{_names(obs.index[missing])}. Fill them in, or leave those cells out: "
            f"adata[adata.obs[{key!r}].notna()].copy()."
        )
    return column


def _categories(adata: AnnData, key: str) -> tuple[str, ...]:
    return tuple(str(c) for c in pd.Categorical(_column(adata.obs, key)).remove_unused_categories().categories)


def _codes(adata: AnnData, key: str, known: tuple[str, ...]) -> np.ndarray:
    """(cells,) position of each cell's category among the known ones."""
    categorical = pd.Categorical(_column(adata.obs, key))
    present = set(categorical.codes)
    lookup = np.array(
        [
            _position(str(name), known, "category", key) if code in present else -1
            for code, name in enumerate(categorical.categories)
        ]
    )
    return lookup[categorical.codes]


def _position(name: str, known: tuple[str, ...], what: str, key: str | None) -> int:
    if name in known:
        return known.index(name)
    where = f" of {key!r}" if key is not None else " (the model was built without batch_key)"
    raise ValueError(
        f"Unknown {what} {name!r}{where}; the model knows {_names(known, 20)}.{_did_you_mean(name, known, listed=True)}"
    )


def _numbers(adata: AnnData, key: str) -> np.ndarray:
    column = _column(adata.obs, key)
    try:
        values = column.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"adata.obs[{key!r}] is not numeric (dtype {column.dtype}); a continuous covariate holds numbers. "
            f"Pass it in categorical_covariate_keys instead, or convert it."
        ) from None
    if not np.isfinite(values).all():
        bad = ~np.isfinite(values)
        raise ValueError(
            f"adata.obs[{key!r}] is infinite for {bad.sum()} cells, such as {_names(adata.obs_names[bad])}."
        )
    return values


def _size_factors(adata: AnnData, key: str) -> np.ndarray:
    values = _numbers(adata, key)
    bad = values <= 0
    if bad.any():
        raise ValueError(
            f"adata.obs[{key!r}] holds size factors that are not positive: {values[bad][0]:g} at cell "
            f"{adata.obs_names[bad][0]!r} ({bad.sum()} in all). Size factors multiply the expected counts: "
            "leave those cells out, or compute them again."
        )
    return values


# ------------------------------------------------------------------------------------------------------------- matrix


def _read_rows(adata: AnnData, layer: str | None, support: Support, genes: Sequence[str]) -> Rows:
    """All cells, the genes named in that order, checked, in memory of its own. In passing little else is taken."""
    columns = _columns_of(adata, genes)
    parts = []
    for start, block in _blocks(adata, layer):
        if columns is not None:
            block = block[:, columns]
        if not block.has_canonical_format:
            block = block.astype(np.float64)  # a copy
            block.sum_duplicates()
        if wrong := _wrong_values(block.data, support):
            raise ValueError(_wrong_value_message(adata, layer, support, start, block, wrong, genes))
        if np.count_nonzero(block.data) < len(block.data):
            block = block.copy()
            block.eliminate_zeros()
        parts.append(Rows.of(block, counts=support != "real"))
    rows = Rows.joined(parts)
    if support == "counts":
        _check_empty_cells(adata, rows)
    return rows


def _columns_of(adata: AnnData, genes: Sequence[str]) -> np.ndarray | None:
    """Where the genes stand in the AnnData; None when they are its own, in its order."""
    names = adata.var_names.astype(str)
    if len(names) == len(genes) and (names == np.asarray(genes)).all():
        return None
    _check_unique(names, "var_names", "adata.var_names_make_unique()")
    at = names.get_indexer(pd.Index(genes))
    _check_known_genes(
        [g for g, i in zip(genes, at, strict=True) if i < 0], names, "The model needs genes that adata lacks:"
    )
    return at


def _blocks(adata: AnnData, layer: str | None) -> Iterator[tuple[int, sp.csr_matrix]]:
    """The matrix as CSR blocks of whole rows, in order: (first row, block). One block when it is sparse in memory."""
    if layer is not None and layer not in adata.layers:
        raise KeyError(_Text(f"adata.layers has no {layer!r}.{_did_you_mean(layer, adata.layers)}"))
    backed = adata.isbacked and layer is None and not adata.is_view  # anndata makes no view of a view of a file
    matrix: Any = None if backed else (adata.X if layer is None else adata.layers[layer])
    if matrix is None and not backed:
        hint = f"pass layer= one of {_names(adata.layers)}" if adata.layers else "put the counts there"
        raise ValueError(f"adata.X is None; {hint}.")
    if sp.issparse(matrix):
        yield 0, sp.csr_matrix(matrix)
        return
    rows = max(1, BLOCK_BYTES // (8 * adata.n_vars))
    for start in range(0, adata.n_obs, rows):
        stop = min(start + rows, adata.n_obs)
        block = adata[start:stop].X if backed else np.asarray(matrix[start:stop])
        if not sp.issparse(block) and block.dtype.kind in "iuf":  # scipy knows neither float16 nor other byte orders
            native = np.float32 if block.dtype == np.float16 else block.dtype.newbyteorder("=")
            block = block.astype(native, copy=False)
        yield start, sp.csr_matrix(block)


def _wrong_values(values: np.ndarray, support: Support) -> tuple[int, int] | None:
    """Where the first value lies that is not what the likelihood is about, and how many do. Every one is looked at."""
    first: int | None = None
    n = 0
    for start in range(0, len(values) if values.dtype != bool else 0, BLOCK):
        wrong = _are_wrong(values[start : start + BLOCK], support)
        if found := np.count_nonzero(wrong):
            first, n = (start + int(wrong.argmax()) if first is None else first), n + int(found)
    return None if first is None else (first, n)


def _are_wrong(values: np.ndarray, support: Support) -> np.ndarray:
    if support == "real":
        return ~(np.abs(values) <= np.finfo(np.float32).max)
    if support == "binary":
        return (values != 0) & (values != 1)
    if np.issubdtype(values.dtype, np.integer):
        return (values < 0) | (values > MAX_COUNT)
    return ~((values >= 0) & (values <= MAX_COUNT) & (np.floor(values) == values))


def _wrong_value_message(adata, layer, support, start, block, wrong, genes) -> str:
    at, n_wrong = wrong
    row = int(np.searchsorted(block.indptr, at, side="right")) - 1
    value, cell, gene = block.data[at], adata.obs_names[start + row], genes[block.indices[at]]
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    found = f"{value:g} at cell {str(cell)!r}, gene {str(gene)!r} ({n_wrong} such values in all)"
    if start or block.shape[0] < adata.n_obs:
        found = found.replace(" in all)", " in this block of cells)")
    if support == "real":
        return f"{where} holds a value that is not finite: {found}. Mend or remove it before building the model."
    if support == "binary":
        return (
            f"{where} holds values other than 0 and 1: {found}. gene_likelihood='bernoulli' models 0/1 data: "
            "binarise first, or choose gene_likelihood='zinb' for counts."
        )
    if np.isfinite(value) and value > MAX_COUNT:
        return f"{where} holds a count above 2**24 = {MAX_COUNT}: {found}. Is this matrix really counts of molecules?"
    what = "negative values" if value < 0 else "values that are not counts"
    candidates = [n for n in [None, *adata.layers] if n != layer and _holds_counts(adata, n)]
    hint = "No other layer of adata holds counts: go back to the raw matrix, before sc.pp.normalize_total and log1p."
    if candidates:
        first = "adata.X" if candidates[0] is None else f"adata.layers[{candidates[0]!r}]"
        hint = f"{first} holds counts: pass layer={candidates[0]!r}."
    elif adata.raw is not None and not _wrong_values(_stored(adata.raw.X), "counts"):
        hint = "adata.raw holds counts: use adata.raw.to_adata() (with adata.obs)."
    return f"{where} holds {what}: {found}. sccvae models raw counts. {hint}"


def _holds_counts(adata: AnnData, layer: str | None) -> bool:
    if layer is None and adata.X is None:
        return False
    return not any(_wrong_values(block.data, "counts") for _, block in _blocks(adata, layer))


def _stored(matrix) -> np.ndarray:
    return matrix.data if sp.issparse(matrix) else np.asarray(matrix).ravel()


# ------------------------------------------------------------------------------------------------------------- checks


def check_adata(adata: AnnData) -> None:
    """Raise unless it is an AnnData that holds cells and genes."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"Expected an AnnData; found {type(adata).__name__}. Wrap a matrix as anndata.AnnData(matrix).")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"adata holds {adata.n_obs} cells and {adata.n_vars} genes; both must be at least 1.")


def _check_unique(names: pd.Index, what: str, fix: str) -> None:
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        raise ValueError(f"adata.{what} are not unique: {_names(twice)} appear more than once. Call {fix} first.")


def _check_known_genes(missing: list[str], known: Iterable[str], what: str) -> None:
    if missing:
        known = [str(k) for k in known]
        raise ValueError(
            f"{what} {len(missing)} unknown gene{'s' if len(missing) > 1 else ''}: {_names(missing)}."
            f"{_did_you_mean(missing[0], known, listed=True)} Genes are matched by name."
        )


def _check_empty_cells(adata: AnnData, rows: Rows) -> None:
    empty = np.diff(rows.indptr) == 0
    if empty.any():
        raise ValueError(
            f"{empty.sum()} of {adata.n_obs} cells have no counts in the genes modelled, such as "
            f"{_names(adata.obs_names[empty])}. Remove them first: sc.pp.filter_cells(adata, min_counts=1)."
        )


class _Text(str):
    """A message that KeyError shows as it is, without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _names(names: Iterable[str], most: int = 3) -> str:
    names = [str(n) for n in names]
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _did_you_mean(name: str, known: Iterable[str], *, listed: bool = False) -> str:
    known = [str(k) for k in known]
    close = get_close_matches(str(name), known, n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    return "" if listed else f" There is {_names(known, 20) or 'none'}."
