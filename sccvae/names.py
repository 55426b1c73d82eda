"""Names: which of them files can hold as keys, and which mean the same once they are text.

What `tl` writes under a name (a key of `uns`, a column of `obs`) is a group or an array of that name in h5ad, a folder
in zarr. There "/" begins another folder, and some names are taken. Names that are values, as in `var_names`, are free.
"""

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np

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
