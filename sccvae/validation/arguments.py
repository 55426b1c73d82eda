"""Validation of user-supplied numbers and flags.

Whole numbers may be floats (10.0, as R passes 10) or numpy's; a bool or a text is not a number. Messages have the name
of the argument, its value and the expectation. A value of another type raises TypeError; a number out of range, NaN or
infinity raises ValueError.
"""

from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
MOST = 2**31 - 1  # largest number of cells, genes, samples or steps: larger numbers are mistakes
ANY = 2**63 - 1  # largest seed, and largest limit, such as `max_cells`, where a huge number means no limit
SEEDS = 2**32 - 1  # largest seed of scikit-learn, UMAP and Scanpy
FLOAT32 = 1e30  # largest factor for float32 arrays: results stay finite


def flag(name: str, value: Any) -> bool:
    """Return the value as a bool; raise TypeError for other types, because any text, 'no' too, is true in Python."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}; expected True or False.")
    return bool(value)


def real(name: str, value: Any, expected: str = "a number") -> float:
    """Return the value as a float; raise TypeError unless it is a number."""
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
    """Return the value as a float if it is finite and within limits: `least` and `most` inclusive, others exclusive."""
    read = real(name, value, expected)
    if not (np.isfinite(read) and least <= read <= most and above < read < below):
        raise ValueError(f"{name} is {value}; expected {expected}.")
    return read


def whole(name: str, value: Any, *, least: int | None = None, most: int | None = None) -> int:
    """Return the value as an int; raise TypeError unless it is a number, ValueError for a fraction.

    10.0 is allowed, because R passes 10 as a float. `least` and `most` are inclusive limits.
    """
    if not real(name, value, "a whole number").is_integer():
        raise ValueError(f"{name} is {value}; expected a whole number.")
    if least is not None and value < least:
        raise ValueError(f"{name} is {value}; expected at least {least}.")
    if most is not None and value > most:
        raise ValueError(f"{name} is {value}; expected at most {most}.")
    return int(value)


def positive(name: str, value: Any, *, most: int = MOST) -> int:
    """Return the value as an int, if it is a whole number of at least 1."""
    return whole(name, value, least=1, most=most)


def limit(name: str, value: Any, *, least: int = 1) -> int:
    """Return the value as an int, for an argument that limits a number; huge values mean no limit."""
    return min(whole(name, value, least=least), ANY)


def unless_none(check: Callable[..., T], name: str, value: Any, *arguments: Any, **limits: Any) -> T | None:
    """Return the checked value, or None for None."""
    return None if value is None else check(name, value, *arguments, **limits)


def checked_seed(seed: Any, *, most: int = ANY) -> int:
    """Return the seed as an int, if it is within the range of random generators."""
    if (read := whole("seed", seed)) < 0:
        raise ValueError(f"seed is {read}; expected 0 or more.")
    if read > most:
        raise ValueError(f"seed is {read}; expected at most {most}.")
    return read


def checked_library_size(library_size: Any, name: str = "library_size") -> float:
    """Return the library size, a factor of normalised expression, if it is a number of counts."""
    return finite(name, library_size, "counts per cell, above 0 and at most 1e30", above=0, most=FLOAT32)


def float_dtype(name: str, value: Any) -> np.dtype:
    """Return the dtype, if it is floating-point: float16, float32 or float64."""
    try:
        read = np.dtype(value)
    except TypeError:
        read = None
    if value is None or read is None or read.kind != "f":
        raise TypeError(f"{name} is {value!r}; expected 'float32', or another dtype of floating-point numbers.")
    return read


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of the known values."""
    if value not in (known := tuple(known)):
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}.")
