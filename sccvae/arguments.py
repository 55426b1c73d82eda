"""Numbers and switches that users hand over: taken as what they are, or refused by their name."""

from numbers import Real
from typing import Any

import numpy as np


def flag(name: str, value: Any) -> bool:
    """The value as a bool. Raises TypeError for all else: Python takes any text, 'no' too, for true."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}; expected True or False.")
    return bool(value)


def real(name: str, value: Any, expected: str = "a number") -> float:
    """The value as a float. Raises TypeError unless it is a number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; expected {expected}.")
    return float(value)


def whole(name: str, value: Any) -> int:
    """The value as an int; 10.0 is one, as R hands over 10. Raises TypeError, or ValueError for a fraction."""
    if not real(name, value, "a whole number").is_integer():
        raise ValueError(f"{name} is {value}; expected a whole number.")
    return int(value)


def check_positive(**numbers: int | None) -> None:
    """Raise unless all numbers given are whole and at least 1."""
    for name, number in numbers.items():
        if number is not None and whole(name, number) < 1:
            raise ValueError(f"{name} is {number}; expected at least 1.")


def checked_seed(seed: int) -> int:
    """The seed as a whole number, if it is one that generators take."""
    if (number := whole("seed", seed)) < 0:
        raise ValueError(f"seed is {number}; expected 0 or more.")
    return number
