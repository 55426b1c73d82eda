"""Names: valid keys of files, uniqueness of names as text, matching of values by name.

A key that `tl` writes (a key of `uns`, a column of `obs`) is the name of a group or an array in h5ad, and of a folder
in zarr. There "/" separates folders, and some names are reserved. Names stored as values, as in `var_names`, are not
restricted.
"""

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

MOST_BYTES = 255  # longest name of a file or folder, and so of a key in zarr
_AFFIXES = 55  # bytes that `tl` adds to a key, as in X_draw_graph_KEY
_TAKEN = {"_index", "dtype", "zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}


def why_no_key(name: str) -> str | None:
    """Return the reason why h5ad or zarr cannot store a key of that name; None if both can."""
    if name == "":
        return "it is empty"
    for letter, word in (("/", "'/'"), ("\\", "a backslash"), ("\0", "a null character")):
        if letter in name:
            return f"it contains {word}"
    if name in _TAKEN or name in (".", ".."):
        return "the name is reserved in files"
    n_bytes = len(name.encode(errors="surrogatepass"))
    if n_bytes > MOST_BYTES:
        return f"it takes {n_bytes} bytes, and file names at most {MOST_BYTES}"
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return "it contains half of a surrogate pair"
    return None


def check_key(what: str, key: Any) -> None:
    """Raise unless the text can be a key, or part of one, in every file format.

    Raises
    ------
    TypeError, ValueError
        The key is not a text, or h5ad or zarr cannot store it.
    """
    if not isinstance(key, str):
        raise TypeError(f"{what} is {key!r}; expected a text, such as 'sccvae'.")
    why = why_no_key(key)
    n_bytes = len(key.encode(errors="surrogatepass"))
    if why is None and n_bytes > MOST_BYTES - _AFFIXES:
        why = f"it takes {n_bytes} bytes, and at most {MOST_BYTES - _AFFIXES} are allowed, since functions extend keys"
    if why is not None:
        shown = repr(key) if len(key) <= 50 else f"{key[:47]!r}..."
        raise ValueError(f"{what} is {shown}; expected a key for .h5ad and .zarr files: {why}. Choose another key.")


def distinct_texts(values: Iterable[Any], where: str) -> tuple[str, ...]:
    """Return the values as text.

    Raises
    ------
    ValueError
        Two values are equal as text, such as 1 and "1".
    """
    seen: dict[str, Any] = {}
    for value in values:
        text = str(value)
        if text in seen:
            first, second = seen[text], value
            raise ValueError(
                f"{where} has {first!r} ({type(first).__name__}) and {second!r} ({type(second).__name__}), which are "
                "equal as text; expected distinct names. Merge them, as by .astype(str), or rename one of them."
            )
        seen[text] = value
    return tuple(seen)


def known_as(value: Any, known: Sequence[str]) -> str | None:
    """Return the known text that matches a value as text or, for a number, by value; None without a match.

    The number 0.0 and False match "0", and 1 matches "1.0", if exactly one such text is known.
    """
    text = str(value)
    if text in known or not isinstance(value, Real | np.bool_):
        return text if text in known else None
    number = float(value)
    forms = {str(number)}
    if number.is_integer():
        forms |= {str(int(number))} | ({str(bool(number))} if number in (0, 1) else set())
    found = forms.intersection(known)
    return found.pop() if len(found) == 1 else None


def same_names(a: pd.Index, b: pd.Index) -> bool:
    """Return whether the names are equal and in the same order, for any dtype of the two indices."""
    return a.equals(b) or (len(a) == len(b) and bool((np.asarray(a, object) == np.asarray(b, object)).all()))


def in_order(values: pd.Series, names: pd.Index, what: str, of: str) -> pd.Series:
    """Reorder a Series to the order of `names`, by index and never by position.

    Raises
    ------
    ValueError
        The index has other names; or its order differs and names are duplicated, or are numbers, which may be positions
        as well as names.
    """
    if same_names(values.index, names):
        return values
    index, wanted = (pd.Index([str(name) for name in one]) for one in (values.index, names))
    if index.equals(wanted):
        return values
    numbers = values.index.dtype.kind in "iufb"
    if len(index) == len(wanted) and index.is_unique and wanted.is_unique and not numbers:
        at = index.get_indexer(wanted)
        if (at >= 0).all():
            return values.iloc[at]
    raise ValueError(
        f"{what} is a Series whose index is not the names of the {of}; expected these names, to match the values. Pass "
        f"{what}.to_numpy() if the values are in the order of the {of}."
    )


def has_names(given: Any) -> bool:
    """Return whether a Series or DataFrame has row names: an index other than the default 0, 1, 2, ...."""
    if not isinstance(given, pd.Series | pd.DataFrame):
        return False
    index = given.index
    return not (isinstance(index, pd.RangeIndex) and index.equals(pd.RangeIndex(len(index))))


def in_order_of_cells(z: Any, along: dict[str, Any]) -> dict[str, Any]:
    """Return annotations in the order of the cells of `z`; a Series is matched by index if `z` is a DataFrame.

    Raises
    ------
    ValueError
        A Series has other names than `z`; or two Series have different orders and `z` has no names.
    """
    if has_names(z):
        return {
            name: in_order(values, z.index, name, "cells") if isinstance(values, pd.Series) else values
            for name, values in along.items()
        }
    first: tuple[str, pd.Series] | None = None
    for name, values in along.items():
        if isinstance(values, pd.Series) and has_names(values):
            if first is not None and not same_names(values.index, first[1].index):
                raise ValueError(
                    f"{first[0]} and {name} are Series with different indices, and z has none; expected one order of "
                    f"cells: pass {name}.loc[{first[0]}.index], or z as a DataFrame with the names of the cells."
                )
            first = first or (name, values)
    return along


def with_columns_of(x: Any, y: Any, names: tuple[str, str]) -> Any:
    """Return `y` with its columns reordered by name to those of `x`, if both are DataFrames.

    Raises
    ------
    ValueError
        The DataFrames have different columns.
    """
    if not (isinstance(x, pd.DataFrame) and isinstance(y, pd.DataFrame)) or same_names(x.columns, y.columns):
        return y
    if not (x.columns.is_unique and y.columns.is_unique) or set(x.columns) != set(y.columns):
        raise ValueError(
            f"{names[0]} and {names[1]} are DataFrames with different columns; expected the same names, to match "
            "columns. Keep the common columns, or pass .to_numpy() of both if columns are in the same order."
        )
    return y[x.columns]
