"""Wording that error messages share: names in quotes, not too many of them, and the nearest known one."""

import sys
import warnings
from collections.abc import Iterable
from difflib import get_close_matches


class Text(str):
    """A message that KeyError shows as it is, without quotes."""

    def __repr__(self) -> str:
        return str(self)


def listed_names(names: Iterable[str], most: int = 3) -> str:
    """The first names in quotes, and how many more there are."""
    names = [str(n) for n in names]
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def listed(names: Iterable[object], most: int = 20) -> str:
    """The names as a list shows them, the first ones where there are many, and how many more there are."""
    texts = [str(n) for n in names]
    shown = ", ".join(repr(shortened(text)) for text in texts[:most])
    return f"[{shown}]" + (f" and {len(texts) - most:,} more" if len(texts) > most else "")


def shortened(name: object, most: int = 60) -> str:
    """A name, cut where it is very long."""
    text = str(name)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def did_you_mean(name: str, known: Iterable[str], *, listed: bool = False) -> str:
    """The known name nearest to an unknown one; else, unless they were `listed` already, the known names."""
    known = [str(k) for k in known]
    close = get_close_matches(str(name), known, n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    return "" if listed else f" There is {listed_names(known, 20) or 'none'}."


def warn(message: str) -> None:
    """Warn of the line outside the package that led here, however deep."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "sccvae":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level + 1)
