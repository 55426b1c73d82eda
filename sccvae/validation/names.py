"""Names: which of them files can hold as keys, which mean the same once they are text, what is matched by them.

What `tl` writes under a name (a key of `uns`, a column of `obs`) is a group or an array of that name in h5ad, a folder
in zarr. There "/" begins another folder, and some names are taken. Names that are values, as in `var_names`, are free.
"""

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

MOST_BYTES = 255  # of the name of a file or folder, so of a key in zarr
_AFFIXES = 55  # bytes that `tl` puts before and behind a key, as in X_draw_graph_KEY
_TAKEN = {"_index", "dtype", "zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}


def why_no_key(name: str) -> str | None:
    """Why h5ad or zarr cannot hold a key of that name; None if both can."""
    if name == "":
        return "it is empty"
    for letter, word in (("/", "'/'"), ("\\", "a backslash"), ("\0", "a null character")):
        if letter in name:
            return f"it holds {word}"
    if name in _TAKEN or name in (".", ".."):
        return "files use that name themselves"
    n_bytes = len(name.encode(errors="surrogatepass"))
    if n_bytes > MOST_BYTES:
        return f"it takes {n_bytes} bytes, and file names at most {MOST_BYTES}"
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return "it holds half of a surrogate pair"
    return None


def check_key(what: str, key: Any) -> None:
    """Raise unless the text can be a key, or part of one, in every file.

    Raises
    ------
    TypeError, ValueError
        It is no text, or h5ad or zarr cannot hold it.
    """
    if not isinstance(key, str):
        raise TypeError(f"{what} is {key!r}; expected a text, such as 'sccvae'.")
    why = why_no_key(key)
    n_bytes = len(key.encode(errors="surrogatepass"))
    if why is None and n_bytes > MOST_BYTES - _AFFIXES:
        why = f"it takes {n_bytes} bytes, and at most {MOST_BYTES - _AFFIXES} leave room for what is added to it"
    if why is not None:
        shown = repr(key) if len(key) <= 50 else f"{key[:47]!r}..."
        raise ValueError(f"{what} is {shown}, which .h5ad and .zarr files cannot hold as a key: {why}. Choose another.")


def distinct_texts(values: Iterable[Any], where: str) -> tuple[str, ...]:
    """The values as text.

    Raises
    ------
    ValueError
        Two of them are the same as text, such as 1 and "1".
    """
    seen: dict[str, Any] = {}
    for value in values:
        text = str(value)
        if text in seen:
            first, second = seen[text], value
            raise ValueError(
                f"{where} holds {first!r} ({type(first).__name__}) and {second!r} ({type(second).__name__}), which are "
                f"the same as text. Make them one, as by .astype(str), or give one of them another name."
            )
        seen[text] = value
    return tuple(seen)


def known_as(value: Any, known: Sequence[str]) -> str | None:
    """The known text that a value stands for: its own or, of a number, the one of the same value; None without one.

    So the number 0.0 and False stand for "0", and 1 for "1.0", where exactly one such text is known.
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
    """Whether the names are the same, in the same order, however pandas holds them."""
    return a.equals(b) or (len(a) == len(b) and bool((np.asarray(a, object) == np.asarray(b, object)).all()))


def in_order(values: pd.Series, names: pd.Index, what: str, of: str) -> pd.Series:
    """A Series in the order of the `names`, by its index and never by position.

    Raises
    ------
    ValueError
        The index does not hold the same names, or some name comes twice and the order differs; or it holds numbers in
        another order, which may be places as well as names.
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
        f"{what} is a Series whose index is not the names of the {of}, by which its values are matched. Pass "
        f"{what}.to_numpy() if they are in the order of the {of}."
    )


def has_names(given: Any) -> bool:
    """Whether the rows of a Series or DataFrame are called anything but 0, 1, 2, ..., as where nobody named them."""
    if not isinstance(given, pd.Series | pd.DataFrame):
        return False
    index = given.index
    return not (isinstance(index, pd.RangeIndex) and index.equals(pd.RangeIndex(len(index))))


def in_order_of_cells(z: Any, along: dict[str, Any]) -> dict[str, Any]:
    """What goes along the cells of `z`, in their order: a Series is matched by its index where `z` is a DataFrame.

    Raises
    ------
    ValueError
        A Series holds other names than `z`; or two of them have different orders and `z` has no names to tell.
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
                    f"{first[0]} and {name} are Series with different indices, and z has none to tell the order of its "
                    f"cells: pass {name}.loc[{first[0]}.index], or z as a DataFrame with the names of the cells."
                )
            first = first or (name, values)
    return along


def with_columns_of(x: Any, y: Any, names: tuple[str, str]) -> Any:
    """`y` with its columns in the order of those of `x`, by name, where both are DataFrames.

    Raises
    ------
    ValueError
        They have different columns.
    """
    if not (isinstance(x, pd.DataFrame) and isinstance(y, pd.DataFrame)) or same_names(x.columns, y.columns):
        return y
    if not (x.columns.is_unique and y.columns.is_unique) or set(x.columns) != set(y.columns):
        raise ValueError(
            f"{names[0]} and {names[1]} are DataFrames with different columns, which are matched by name. Keep those "
            "that both have, or pass .to_numpy() of both if they are the same in the same order."
        )
    return y[x.columns]
