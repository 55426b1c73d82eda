"""Numbers and switches that users hand over: taken as what they are, or refused by their name.

Whole numbers may be written as floats (10.0, as R hands over 10) and be numpy's; a bool or a text is no number. What is
refused is named with its value and with what is expected: TypeError for what is no number, ValueError for one that
makes no sense, NaN and infinity among them.
"""

from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
MOST = 2**31 - 1  # of what there is to make: more cells, genes, draws or steps than that are a slip
ANY = 2**63 - 1  # of limits, such as `max_cells`, where a huge number means all there is, and of seeds
SEEDS = 2**32 - 1  # the highest seed that scikit-learn, UMAP and Scanpy take
FLOAT32 = 1e30  # of factors that float32 arrays are multiplied by: results stay finite


def flag(name: str, value: Any) -> bool:
    """The value as a bool. Raises TypeError for all else: Python takes any text, 'no' too, for true."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}; expected True or False.")
    return bool(value)


def real(name: str, value: Any, expected: str = "a number") -> float:
    """The value as a float. Raises TypeError unless it is a number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; expected {expected}.")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is beyond 1e308; expected {expected}.") from None


def finite(
    name: str,
    value: Any,
    expected: str,
    *,
    least: float = -np.inf,
    most: float = np.inf,
    above: float = -np.inf,
    below: float = np.inf,
) -> float:
    """The value as a float, if it is finite and inside the limits, the last two of which are left out themselves."""
    read = real(name, value, expected)
    if not (np.isfinite(read) and least <= read <= most and above < read < below):
        raise ValueError(f"{name} is {value}; expected {expected}.")
    return read


def whole(name: str, value: Any, *, least: int | None = None, most: int | None = None) -> int:
    """The value as an int; 10.0 is one, as R hands over 10. Raises TypeError, or ValueError for a fraction.

    `least` and `most` are the limits, themselves allowed.
    """
    if not real(name, value, "a whole number").is_integer():
        raise ValueError(f"{name} is {value}; expected a whole number.")
    if least is not None and value < least:
        raise ValueError(f"{name} is {value}; expected at least {least}.")
    if most is not None and value > most:
        raise ValueError(f"{name} is {value}; expected at most {most}.")
    return int(value)


def positive(name: str, value: Any, *, most: int = MOST) -> int:
    """The value as an int, if it is a whole number of at least 1."""
    return whole(name, value, least=1, most=most)


def limit(name: str, value: Any, *, least: int = 1) -> int:
    """The value as an int, if it can limit something: a huge one stands for all there is."""
    return min(whole(name, value, least=least), ANY)


def unless_none(check: Callable[..., T], name: str, value: Any, *arguments: Any, **limits: Any) -> T | None:
    """What the check makes of the value; None stays None, where it has a meaning."""
    return None if value is None else check(name, value, *arguments, **limits)


def checked_seed(seed: Any, *, most: int = ANY) -> int:
    """The seed as a whole number, if it is one that generators take."""
    if (read := whole("seed", seed)) < 0:
        raise ValueError(f"seed is {read}; expected 0 or more.")
    if read > most:
        raise ValueError(f"seed is {read}; expected at most {most}.")
    return read


def checked_library_size(library_size: Any) -> float:
    """What expression is multiplied by, if it is a number of counts."""
    return finite("library_size", library_size, "counts per cell, above 0 and at most 1e30", above=0, most=FLOAT32)


def float_dtype(name: str, value: Any) -> np.dtype:
    """The dtype, if arrays of it hold fractions: float16, float32 or float64."""
    try:
        read = np.dtype(value)
    except TypeError:
        read = None
    if value is None or read is None or read.kind != "f":
        raise TypeError(f"{name} is {value!r}; expected 'float32', or another dtype of floating-point numbers.")
    return read


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of those known."""
    if value not in (known := tuple(known)):
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}.")
