"""Which cells a user means: numbers, a mask, a slice -> numbers of cells."""

from typing import Any

import numpy as np
import pandas as pd

from sccvae.validation.names import in_order

_EXPECTED = "expected a mask or numbers of cells"
_BY_NAME = "adata.obs_names.get_indexer"
_FEW = 10  # cells, up to which zeros and ones may be meant as numbers of cells


def numbers_of_cells(index: Any, what: str, n_cells: int, names: pd.Index | None = None) -> np.ndarray:
    """Numbers of the cells chosen, (chosen,) from 0 to `n_cells` - 1, in the order given, any more than once.

    Parameters
    ----------
    index
        Numbers of cells (negative ones count from the end), a boolean for each cell, or a slice. A boolean Series is
        matched by its index, which holds the names of the cells.
    what
        Name of the argument, for messages.
    names
        Names of the cells; None where they are not known.

    Raises
    ------
    TypeError, ValueError
        What was found, and how to choose cells.
    """
    if isinstance(index, slice):
        return _of_slice(index, what, n_cells)
    if isinstance(index, tuple) and len(index) == 1 and np.ndim(index[0]) == 1:
        index = index[0]  # as np.where(...) returns it
    if isinstance(index, str):
        raise TypeError(
            f"{what} is the text {index!r}; pass a mask or numbers of cells, such as (adata.obs['type'] == 'T').values "
            f"or, for names, {_BY_NAME}([...])."
        )
    values = _array(index, what)
    if values.dtype == bool:
        return np.flatnonzero(_mask(index, values, what, n_cells, names))
    if values.ndim == 0 and values.dtype.kind in "iu":
        values = values[None]
    if values.ndim == 1 and values.size == 0:
        return np.zeros(0, dtype=np.intp)
    if (
        values.ndim == 1
        and values.dtype.kind == "f"
        and (values == np.floor(values)).all()
        and (abs(values) < 2**53).all()
    ):
        values = values.astype(np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise TypeError(f"{what} has dtype {values.dtype} and shape {values.shape}; {_EXPECTED}.{_hint(values, what)}")
    outside = (values < -n_cells) | (values >= n_cells)
    if outside.any():
        raise ValueError(
            f"{what} holds cell number {values[outside][0]}; there are {n_cells} cells, from 0 to {n_cells - 1}."
        )
    if len(values) == n_cells > _FEW and set(np.unique(values).tolist()) == {0, 1}:
        raise ValueError(
            f"{what} holds {n_cells} zeros and ones, one for each cell: a mask is of booleans. Pass "
            f"np.asarray({what}).astype(bool)."
        )
    return values.astype(np.intp) % n_cells


def _of_slice(index: slice, what: str, n_cells: int) -> np.ndarray:
    try:
        return np.arange(n_cells)[index]
    except (TypeError, ValueError):
        raise TypeError(
            f"{what} is {index}; a slice takes numbers of cells, such as slice(0, 100). For names: {_BY_NAME}([...])."
        ) from None


def _array(index: Any, what: str) -> np.ndarray:
    """What was given as an array; what pandas can leave out or Python mixes is told apart from numbers and booleans."""
    if isinstance(index, set | frozenset | dict) or hasattr(index, "__next__"):
        raise TypeError(
            f"{what} is a {type(index).__name__}, which has no order; {_EXPECTED}: pass a list or an array."
        )
    try:
        values = np.asarray(index)
    except (TypeError, ValueError):  # rows of different lengths, or an object of another kind
        raise TypeError(f"{what} is a {type(index).__name__} that makes no array; {_EXPECTED}.") from None
    if values.dtype != object:
        return values
    missing = np.asarray(pd.isna(values))
    if missing.any():
        raise ValueError(
            f"{what} has no value for {missing.sum()} of {missing.size} cells; {_EXPECTED}. Fill them in, such as "
            f"{what}.fillna(False)."
        )
    kinds = {
        bool if isinstance(v, bool | np.bool_) else int if isinstance(v, int | np.integer) else None
        for v in values.flat
    }
    if kinds == {bool} or kinds == {int}:
        try:
            return values.astype(kinds.pop())
        except OverflowError:
            raise ValueError(f"{what} holds a number that no cell has; {_EXPECTED}.") from None
    return values


def _mask(index: Any, mask: np.ndarray, what: str, n_cells: int, names: pd.Index | None) -> np.ndarray:
    """(cells,) booleans in the order of the cells."""
    if mask.shape != (n_cells,):
        raise ValueError(f"{what} is a mask of shape {mask.shape}; expected a boolean for each of {n_cells} cells.")
    if not isinstance(index, pd.Series) or names is None:
        return mask
    return in_order(pd.Series(mask, index=index.index), names, what, "cells").to_numpy()


def _hint(values: np.ndarray, what: str) -> str:
    """How to come from what was given to numbers of cells."""
    if values.dtype.kind in "SUT" or any(isinstance(value, str) for value in values.flat):
        return f" For names of cells: {_BY_NAME}({what})."
    if values.ndim == 2:
        return f" Of a matrix take one column: np.where({what}[:, 0])[0]."
    return ""
