"""Columns of `obs` -> labels, codes and numbers, checked."""

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae.wording import Text, did_you_mean, listed_names


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
    column = one_column(obs, key)
    missing = column.isna().to_numpy()
    if missing.any():
        raise ValueError(
            f"adata.obs[{key!r}] has no value for {missing.sum()} of {len(obs)} cells, such as "
            f"{listed_names(obs.index[missing])}. Fill them in, or leave those cells out: "
            f"adata[adata.obs[{key!r}].notna()].copy()."
        )
    return column


def one_column(table: pd.DataFrame, key: Any, what: str = "obs") -> pd.Series:
    """The column of `obs` or `var` that has a name."""
    if not isinstance(key, Hashable):
        raise TypeError(f"{key!r} is no name of a column of adata.{what}: pass one name, such as 'batch'.")
    if key not in table:
        raise KeyError(Text(f"adata.{what} has no column {key!r}.{did_you_mean(str(key), table.columns)}"))
    column = table[key]
    if not isinstance(column, pd.Series | pd.DataFrame):
        raise TypeError(f"adata was read lazily: adata.{what} is not in memory. Pass adata.to_memory().")
    if isinstance(column, pd.DataFrame):
        raise ValueError(
            f"adata.{what} has {column.shape[1]} columns called {key!r}. Keep or rename one of them, such as "
            f"adata.{what} = adata.{what}.loc[:, ~adata.{what}.columns.duplicated()]."
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
    new = what == "category"  # in the cells that are read
    raise ValueError(
        f"Unknown {what} {name!r}{where}; the model knows {listed_names(known, 20)}."
        f"{did_you_mean(name, known, listed=True)}"
        + (f" Train on data that hold it, or give those cells a known one in adata.obs[{key!r}]." if new else "")
    )


def numbers_of(adata: AnnData, key: str) -> np.ndarray:
    """(cells,) float64: a column of finite numbers."""
    column = column_of(adata.obs, key)
    dtype = column.cat.categories.dtype if isinstance(column.dtype, pd.CategoricalDtype) else column.dtype
    if dtype.kind in "mM":
        raise TypeError(
            f"adata.obs[{key!r}] holds times (dtype {column.dtype}); expected numbers. Choose a unit, such as days: "
            f"(adata.obs[{key!r}] - adata.obs[{key!r}].min()) / pd.Timedelta('1D')."
        )
    try:
        if dtype.kind == "c":
            raise TypeError
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
