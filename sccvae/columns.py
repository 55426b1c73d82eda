"""Columns of `obs` -> labels, codes and numbers, checked."""

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae.wording import Text, did_you_mean, listed_names

MOST_STANDARD = 1e6  # standard deviations: float32 overflows in the networks far beyond, and nothing there is learnt
MOST_LOG_SIZE = 30.0  # of library sizes, up or down: more than 1e13 counts, or less than one in 1e13 cells


def labels_of(groupby: Any, obs: pd.DataFrame, names: pd.Index) -> pd.Series:
    """Labels of the cells `names`, none missing: a column of `obs` by its name, or labels in the order of the cells."""
    if not obs.index.equals(names):
        raise ValueError("The cells of the AnnData have changed since the model was built: pass adata.")
    if isinstance(groupby, str):
        return column_of(obs, groupby)
    if isinstance(groupby, pd.Series) and not groupby.index.equals(obs.index):
        raise ValueError("groupby is a Series whose index is not the names of the cells, in their order.")
    labels = pd.Series(groupby, index=obs.index) if np.shape(groupby) == (len(obs),) else None
    if labels is None:
        raise ValueError(
            f"groupby has shape {np.shape(groupby)}; expected a column of adata.obs or a label for each of "
            f"{len(obs)} cells."
        )
    return column_of(pd.DataFrame({"groupby": labels}), "groupby")


def column_of(obs: pd.DataFrame, key: str) -> pd.Series:
    """A column of `obs` without missing values."""
    if key not in obs:
        raise KeyError(Text(f"adata.obs has no column {key!r}.{did_you_mean(key, obs.columns)}"))
    column = obs[key]
    missing = column.isna().to_numpy()
    if missing.any():
        raise ValueError(
            f"adata.obs[{key!r}] has no value for {missing.sum()} of {len(obs)} cells, such as "
            f"{listed_names(obs.index[missing])}. Fill them in, or leave those cells out: "
            f"adata[adata.obs[{key!r}].notna()].copy()."
        )
    return column


def categories_of(adata: AnnData, key: str) -> tuple[str, ...]:
    """Categories of a column that some cell has, as text."""
    return tuple(str(c) for c in pd.Categorical(column_of(adata.obs, key)).remove_unused_categories().categories)


def codes_of(adata: AnnData, key: str, known: tuple[str, ...]) -> np.ndarray:
    """(cells,) position of each cell's category among the known ones."""
    categorical = pd.Categorical(column_of(adata.obs, key))
    present = set(categorical.codes)
    lookup = np.array(
        [
            position_of(str(name), known, "category", key) if code in present else -1
            for code, name in enumerate(categorical.categories)
        ]
    )
    return lookup[categorical.codes]


def position_of(name: str, known: tuple[str, ...], what: str, key: str | None) -> int:
    """Place of a name among the known ones."""
    if name in known:
        return known.index(name)
    where = f" of {key!r}" if key is not None else " (the model was built without batch_key)"
    raise ValueError(
        f"Unknown {what} {name!r}{where}; the model knows {listed_names(known, 20)}."
        f"{did_you_mean(name, known, listed=True)}"
    )


def numbers_of(adata: AnnData, key: str) -> np.ndarray:
    """(cells,) float64: a column of finite numbers."""
    column = column_of(adata.obs, key)
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
            f"adata.obs[{key!r}] is infinite for {bad.sum()} cells, such as {listed_names(adata.obs_names[bad])}."
        )
    return values


def moments_of(values: np.ndarray, dtype: Any) -> tuple[float, float]:
    """Mean and standard deviation of numbers of any magnitude; 1 in place of one that is nothing but rounding.

    `dtype` is what the numbers were stored as: 0.1 in every cell has a standard deviation of 1e-17.
    """
    largest = float(np.abs(values).max(initial=0))
    unit = 1.0 if largest == 0 or 1e-100 < largest < 1e100 else largest  # squares of others are 0 or infinite
    mean, spread = float((values / unit).mean()) * unit, float((values / unit).std()) * unit
    kind = np.dtype(getattr(dtype, "numpy_dtype", dtype) if pd.api.types.is_numeric_dtype(dtype) else "f8")
    rounding = max(1e-12, 8 * float(np.finfo(kind).eps)) if kind.kind == "f" else 1e-12
    return mean, spread if spread > rounding * largest else 1.0


def standardised(values: np.ndarray, mean: float, scale: float, key: str, names: pd.Index) -> np.ndarray:
    """(cells,) numbers in standard deviations from the mean, both of the training data."""
    with np.errstate(over="ignore"):
        far = (values - mean) / scale
    bad = ~(np.abs(far) <= MOST_STANDARD)
    if bad.any():
        raise ValueError(
            f"adata.obs[{key!r}] is {values[bad][0]:g} at cell {names[bad][0]!r}, more than {MOST_STANDARD:g} times "
            f"{scale:g} from {mean:g}, the mean of the training data ({bad.sum()} such cells); expected numbers of the "
            "same kind and unit as those that the model was trained on."
        )
    return far


def log_sizes(adata: AnnData, key: str, offset: float) -> np.ndarray:
    """(cells,) log library sizes: log size factors and what makes their mean the mean total count."""
    factors = size_factors_of(adata, key)
    log_size = np.log(factors) + offset
    bad = np.abs(log_size) > MOST_LOG_SIZE
    if bad.any():
        raise ValueError(
            f"adata.obs[{key!r}] holds the size factor {factors[bad][0]:g} at cell {adata.obs_names[bad][0]!r}, beside "
            f"others so different that it would stand for {np.exp(log_size[bad][0]):.3g} counts ({bad.sum()} such "
            "cells); expected size factors in proportion to the depth of the cells: compute them again."
        )
    return log_size


def size_factors_of(adata: AnnData, key: str) -> np.ndarray:
    """(cells,) float64: a column of positive numbers."""
    values = numbers_of(adata, key)
    bad = values <= 0
    if bad.any():
        raise ValueError(
            f"adata.obs[{key!r}] holds size factors that are not positive: {values[bad][0]:g} at cell "
            f"{adata.obs_names[bad][0]!r} ({bad.sum()} in all). Size factors multiply the expected counts: "
            "leave those cells out, or compute them again."
        )
    return values
