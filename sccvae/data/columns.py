"""Conversion of columns of `obs` to checked labels, codes and numbers."""

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae.validation.names import distinct_texts, in_order, known_as, same_names
from sccvae.validation.wording import Text, did_you_mean, listed_names

MOST_STANDARD = 1e6  # standard deviations: much larger covariates overflow float32 in the networks
MOST_LOG_SIZE = 30.0  # absolute log library size: more than 1e13 counts, or fewer than one in 1e13 cells


def labels_of(groupby: Any, obs: pd.DataFrame, names: pd.Index, what: str = "groupby") -> pd.Series:
    """Return labels of the cells `names`, none missing, distinct as text.

    Parameters
    ----------
    groupby
        The name of a column of `obs`; a Series indexed by the names of the cells, in any order; or labels in the order
        of the cells.
    what
        Name of the argument in messages.
    """
    if isinstance(groupby, str):
        if not same_names(obs.index, names):
            raise ValueError("The cells of the AnnData have changed since the model was built: pass adata.")
        labels, where = column_of(obs, groupby), f"adata.obs[{groupby!r}]"
    else:
        if isinstance(groupby, pd.Series):
            groupby = in_order(groupby, names, what, "cells")
        if np.shape(groupby) != (len(names),):
            raise ValueError(
                f"{what} has shape {np.shape(groupby)}; expected a column of adata.obs or a label for each of "
                f"{len(names)} cells."
            )
        values = groupby.array if isinstance(groupby, pd.Series) else groupby
        labels, where = column_of(pd.DataFrame({what: pd.Series(values, index=names)}), what), what
    if labels.dtype.kind not in "biufM":  # numbers of one dtype always differ as text
        distinct_texts(pd.unique(labels), where)
    return labels


def column_of(obs: pd.DataFrame, key: str) -> pd.Series:
    """Return a column of `obs`; raise if values are missing."""
    column = one_column(obs, key)
    missing = column.isna().to_numpy()
    if missing.any():
        raise ValueError(
            f"adata.obs[{key!r}] has no value for {missing.sum()} of {len(obs)} cells, such as "
            f"{listed_names(obs.index[missing])}; expected a value for each cell. Fill them in, or leave those cells "
            f"out: adata[adata.obs[{key!r}].notna()].copy()."
        )
    return column


def one_column(table: pd.DataFrame, key: Any, what: str = "obs") -> pd.Series:
    """Return the column of `obs` or `var` with the given name."""
    if not isinstance(key, Hashable):
        raise TypeError(f"{key!r} is not a name of a column of adata.{what}; expected one name, such as 'batch'.")
    if key not in table:
        raise KeyError(Text(f"adata.{what} has no column {key!r}.{did_you_mean(str(key), table.columns)}"))
    column = table[key]
    if not isinstance(column, pd.Series | pd.DataFrame):
        raise TypeError(f"adata was read lazily; expected adata.{what} in memory. Pass adata.to_memory().")
    if isinstance(column, pd.DataFrame):
        raise ValueError(
            f"adata.{what} has {column.shape[1]} columns called {key!r}; expected one. Keep one or rename, such as "
            f"adata.{what} = adata.{what}.loc[:, ~adata.{what}.columns.duplicated()]."
        )
    return column


def categories_of(adata: AnnData, key: str) -> tuple[str, ...]:
    """Return the categories of a column that occur in cells, as text."""
    return distinct_texts(_categorical(adata, key).categories, f"adata.obs[{key!r}]")


def codes_of(adata: AnnData, key: str, known: tuple[str, ...], advice: str = "") -> np.ndarray:
    """Return the position of each cell's category among the known categories, (cells,).

    `advice` ends the message on an unknown category.
    """
    categorical = _categorical(adata, key)
    distinct_texts(categorical.categories, f"adata.obs[{key!r}]")
    advice = f" Train on data with this category, or assign a known one in adata.obs[{key!r}].{advice}"
    places = [position_of(name, known, "category", key, advice) for name in categorical.categories]
    return np.array(places)[categorical.codes]


def label_names_of(adata: AnnData, key: str, unlabeled: Any) -> tuple[str, ...]:
    """Return the labels in a column that has missing values, as text and without `unlabeled`; at least two."""
    categorical = _labels(adata, key)
    names = tuple(name for name in distinct_texts(categorical.categories, f"adata.obs[{key!r}]") if name != unlabeled)
    if unlabeled is not None and len(names) == len(categorical.categories):
        raise ValueError(
            f"unlabeled is {unlabeled!r}, and no cell has it in adata.obs[{key!r}]; expected the value of cells without"
            f" a label, one of {listed_names(names, 20)}, or None: missing values are cells without a label."
        )
    if len(names) < 2:
        found = f"one label, {names[0]!r}" if names else "no label: all values are missing"
        raise ValueError(
            f"adata.obs[{key!r}] has {found}; expected at least two labels. Without labels, leave labels_key out."
        )
    return names


def label_codes_of(adata: AnnData, key: str, known: tuple[str, ...]) -> np.ndarray:
    """Return the number of each cell's label among the known ones, (cells,); -1 for missing and other values."""
    categorical = _labels(adata, key)
    texts = distinct_texts(categorical.categories, f"adata.obs[{key!r}]")
    found = np.array([known.index(name) if name in known else -1 for name in texts] + [-1])
    return found[categorical.codes]


def _labels(adata: AnnData, key: str) -> pd.Categorical:
    column = one_column(adata.obs, key)
    if column.dtype.kind == "f":
        raise TypeError(
            f"adata.obs[{key!r}] has decimal numbers (dtype {column.dtype}); expected labels, as text or categories. "
            f"Of whole numbers make text: adata.obs[{key!r}] = adata.obs[{key!r}].astype('Int64').astype('string')."
        )
    return pd.Categorical(column).remove_unused_categories()


def _categorical(adata: AnnData, key: str) -> pd.Categorical:
    return pd.Categorical(column_of(adata.obs, key)).remove_unused_categories()


def position_of(name: Any, known: tuple[str, ...], what: str, key: str | None, advice: str = "") -> int:
    """Return the position of a name among the known names, matched by `known_as`; raise, with advice, if unknown."""
    if (found := known_as(name, known)) is not None:
        return known.index(found)
    name = str(name)
    where = f" of {key!r}" if key is not None else " (the model was built without batch_key)"
    raise ValueError(
        f"Unknown {what} {name!r}{where}; expected one of the training data: {listed_names(known, 20)}."
        f"{did_you_mean(name, known, listed=True)}{advice}"
    )


def numbers_of(adata: AnnData, key: str) -> np.ndarray:
    """Return a column of finite numbers, (cells,) float64."""
    column = column_of(adata.obs, key)
    dtype = column.cat.categories.dtype if isinstance(column.dtype, pd.CategoricalDtype) else column.dtype
    if dtype.kind in "mM":
        raise TypeError(
            f"adata.obs[{key!r}] has times (dtype {column.dtype}); expected numbers. Choose a unit, such as days: "
            f"(adata.obs[{key!r}] - adata.obs[{key!r}].min()) / pd.Timedelta('1D')."
        )
    try:
        if dtype.kind == "c":
            raise TypeError
        values = column.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"adata.obs[{key!r}] is not numeric (dtype {column.dtype}); expected numbers for a continuous covariate. "
            f"Pass the column in categorical_covariate_keys instead, or convert it."
        ) from None
    if not np.isfinite(values).all():
        bad = ~np.isfinite(values)
        raise ValueError(
            f"adata.obs[{key!r}] is infinite for {bad.sum()} cells, such as {listed_names(adata.obs_names[bad])}; "
            "expected finite numbers."
        )
    return values


def moments_of(values: np.ndarray, dtype: Any) -> tuple[float, float]:
    """Compute mean and standard deviation of numbers of any magnitude; 1 replaces a deviation due to rounding alone.

    `dtype` is the dtype of the stored numbers: 0.1 in every cell has a standard deviation of 1e-17.
    """
    largest = float(np.abs(values).max(initial=0))
    unit = 1.0 if largest == 0 or 1e-100 < largest < 1e100 else largest  # else squares underflow or overflow
    mean, spread = float((values / unit).mean()) * unit, float((values / unit).std()) * unit
    kind = np.dtype(getattr(dtype, "numpy_dtype", dtype) if pd.api.types.is_numeric_dtype(dtype) else "f8")
    rounding = max(1e-12, 8 * float(np.finfo(kind).eps)) if kind.kind == "f" else 1e-12
    return mean, spread if spread > rounding * largest else 1.0


def standardised(values: np.ndarray, mean: float, scale: float, where: str, names: pd.Index) -> np.ndarray:
    """Standardise numbers by mean and standard deviation of the training data, (cells,); errors name `where`."""
    with np.errstate(over="ignore"):
        far = (values - mean) / scale
    bad = ~(np.abs(far) <= MOST_STANDARD)
    if bad.any():
        raise ValueError(
            f"{where} is {values[bad][0]:g} at cell {names[bad][0]!r}, more than {MOST_STANDARD:g} times "
            f"{scale:g} from {mean:g}, the mean of the training data ({bad.sum()} such cells); expected numbers of the "
            "same quantity and unit as in the training data."
        )
    return far


def log_sizes(adata: AnnData, key: str, offset: float) -> np.ndarray:
    """Compute log library sizes, (cells,): log size factors plus `offset`, which scales them to total counts."""
    factors = size_factors_of(adata, key)
    log_size = np.log(factors) + offset
    bad = np.abs(log_size) > MOST_LOG_SIZE
    if bad.any():
        raise ValueError(
            f"adata.obs[{key!r}] has the size factor {factors[bad][0]:g} at cell {adata.obs_names[bad][0]!r}, which, "
            f"relative to the others, corresponds to {np.exp(log_size[bad][0]):.3g} counts ({bad.sum()} such cells); "
            "expected size factors in proportion to the depth of the cells: compute them again."
        )
    return log_size


def size_factors_of(adata: AnnData, key: str) -> np.ndarray:
    """Return size factors, a column of positive numbers, (cells,) float64."""
    values = numbers_of(adata, key)
    bad = values <= 0
    if bad.any():
        raise ValueError(
            f"adata.obs[{key!r}] has the size factor {values[bad][0]:g} at cell {adata.obs_names[bad][0]!r} "
            f"({bad.sum()} such cells); expected positive numbers, because size factors multiply the expected counts: "
            "leave those cells out, or compute them again."
        )
    return values
