"""Columns of `obs` -> labels, codes and numbers, checked."""

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae.names import distinct_texts, in_order, known_as, same_names
from sccvae.wording import Text, did_you_mean, listed_names


def labels_of(groupby: Any, obs: pd.DataFrame, names: pd.Index, what: str = "groupby") -> pd.Series:
    """Labels of the cells `names`, none missing, no two the same as text.

    Parameters
    ----------
    groupby
        A column of `obs` by its name; a Series, whose index holds the names of the cells in any order; or labels in the
        order of the cells.
    what
        The argument, for messages.
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
    if labels.dtype.kind not in "biufM":  # numbers of one kind differ as text, too
        distinct_texts(pd.unique(labels), where)
    return labels


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
    return distinct_texts(_categorical(adata, key).categories, f"adata.obs[{key!r}]")


def codes_of(adata: AnnData, key: str, known: tuple[str, ...]) -> np.ndarray:
    """(cells,) position of each cell's category among the known ones."""
    categorical = _categorical(adata, key)
    distinct_texts(categorical.categories, f"adata.obs[{key!r}]")
    return np.array([position_of(name, known, "category", key) for name in categorical.categories])[categorical.codes]


def _categorical(adata: AnnData, key: str) -> pd.Categorical:
    return pd.Categorical(column_of(adata.obs, key)).remove_unused_categories()


def position_of(name: Any, known: tuple[str, ...], what: str, key: str | None) -> int:
    """Place among the known names of the one that is meant (`known_as`)."""
    if (found := known_as(name, known)) is not None:
        return known.index(found)
    name = str(name)
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
