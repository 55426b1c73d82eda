"""Conversion of a user's selection of cells (numbers, a mask, a slice) to numbers of cells."""

from typing import Any

import numpy as np
import pandas as pd

from sccvae.validation.names import in_order

_EXPECTED = "expected a mask or numbers of cells"
_BY_NAME = "adata.obs_names.get_indexer"
_FEW = 10  # cells, up to which zeros and ones are accepted as numbers of cells


def numbers_of_cells(index: Any, what: str, n_cells: int, names: pd.Index | None = None) -> np.ndarray:
    """Return numbers of the chosen cells, (chosen,) from 0 to `n_cells` - 1, in the given order, with repeats.

    Parameters
    ----------
    index
        Numbers of cells (negative ones count from the end), a boolean for each cell, or a slice. A boolean Series is
        matched by its index of cell names.
    what
        Name of the argument in messages.
    names
        Names of the cells; None if unknown.

    Raises
    ------
    TypeError, ValueError
        The selection is invalid; the message has the value found and a fix.
    """
    if isinstance(index, slice):
        return _of_slice(index, what, n_cells)
    if isinstance(index, tuple) and len(index) == 1 and np.ndim(index[0]) == 1:
        index = index[0]  # the result of np.where(...)
    if isinstance(index, str):
        raise TypeError(
            f"{what} is the text {index!r}; {_EXPECTED}, such as (adata.obs['type'] == 'T').values or, for names, "
            f"{_BY_NAME}([...])."
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
            f"{what} has cell number {values[outside][0]}; expected numbers from 0 to {n_cells - 1}, for {n_cells} "
            "cells."
        )
    if len(values) == n_cells > _FEW and set(np.unique(values).tolist()) == {0, 1}:
        raise ValueError(
            f"{what} has {n_cells} zeros and ones, one for each cell; expected booleans for a mask. Pass "
            f"np.asarray({what}).astype(bool)."
        )
    return values.astype(np.intp) % n_cells


def _of_slice(index: slice, what: str, n_cells: int) -> np.ndarray:
    try:
        return np.arange(n_cells)[index]
    except (TypeError, ValueError):
        raise TypeError(
            f"{what} is {index}; expected a slice of numbers of cells, such as slice(0, 100). For names: "
            f"{_BY_NAME}([...])."
        ) from None


def _array(index: Any, what: str) -> np.ndarray:
    """Convert a selection to an array; raise for missing values, and restore the dtype of objects of one type."""
    if isinstance(index, set | frozenset | dict) or hasattr(index, "__next__"):
        raise TypeError(
            f"{what} is a {type(index).__name__}, which has no order; {_EXPECTED}: pass a list or an array."
        )
    try:
        values = np.asarray(index)
    except (TypeError, ValueError):  # rows of different lengths, or an object of another type
        raise TypeError(f"{what} is a {type(index).__name__}, which is not an array; {_EXPECTED}.") from None
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
            raise ValueError(f"{what} has a number beyond int64; {_EXPECTED}.") from None
    return values


def _mask(index: Any, mask: np.ndarray, what: str, n_cells: int, names: pd.Index | None) -> np.ndarray:
    """Return the mask in the order of the cells, (cells,) booleans."""
    if mask.shape != (n_cells,):
        raise ValueError(f"{what} is a mask of shape {mask.shape}; expected a boolean for each of {n_cells} cells.")
    if not isinstance(index, pd.Series) or names is None:
        return mask
    return in_order(pd.Series(mask, index=index.index), names, what, "cells").to_numpy()


def _hint(values: np.ndarray, what: str) -> str:
    """Return advice for a conversion of the given values to numbers of cells."""
    if values.dtype.kind in "SUT" or any(isinstance(value, str) for value in values.flat):
        return f" For names of cells: {_BY_NAME}({what})."
    if values.ndim == 2:
        return f" For a matrix, pass one column: np.where({what}[:, 0])[0]."
    return ""
