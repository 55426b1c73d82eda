"""Shared wording of error messages: quoted and shortened lists of names, and suggestions of similar names."""

import sys
import warnings
from collections.abc import Iterable
from difflib import get_close_matches


class Text(str):
    """Message that KeyError shows unchanged, without quotes."""

    def __repr__(self) -> str:
        return str(self)


def listed_names(names: Iterable[str], most: int = 3) -> str:
    """Return the first names in quotes, and the number of further names."""
    names = [str(n) for n in names]
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def listed(names: Iterable[object], most: int = 20) -> str:
    """Return the names in list notation, with at most `most` names, and the number of further names."""
    texts = [str(n) for n in names]
    shown = ", ".join(repr(shortened(text)) for text in texts[:most])
    return f"[{shown}]" + (f" and {len(texts) - most:,} more" if len(texts) > most else "")


def shortened(name: object, most: int = 60) -> str:
    """Return a name, shortened to `most` characters."""
    text = str(name)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def did_you_mean(name: str, known: Iterable[str], *, listed: bool = False) -> str:
    """Return a suggestion of the known name most similar to an unknown one; else the known names, unless `listed`."""
    known = [str(k) for k in known]
    close = get_close_matches(str(name), known, n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    return "" if listed else f" There is {listed_names(known, 20) or 'none'}."


def warn(message: str) -> None:
    """Issue a warning that refers to the calling line outside the package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "sccvae":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level + 1)
