import math
from fractions import Fraction

import numpy as np
import pytest

from sccvae.validation.arguments import (
    ANY,
    SEEDS,
    checked_seed,
    finite,
    flag,
    float_dtype,
    limit,
    positive,
    real,
    unless_none,
    whole,
)


@pytest.mark.parametrize("value", [3, 3.0, np.int32(3), np.float32(3), Fraction(3)])
def test_numbers_of_any_kind_are_taken(value):
    assert whole("n", value) == real("n", value) == 3
    assert type(whole("n", value)) is int
    assert type(real("n", value)) is float


@pytest.mark.parametrize("value", [True, np.False_])
def test_switches(value):
    assert flag("x", value) is bool(value)


@pytest.mark.parametrize("value", ["no", 0, 1, None, [True]])
def test_what_is_no_switch_is_named(value):
    with pytest.raises(TypeError, match=r"^x is .*; expected True or False\.$"):
        flag("x", value)


def test_whole_numbers_keep_all_their_digits():
    assert whole("seed", 2**62 + 1) == 2**62 + 1


@pytest.mark.parametrize("value", ["3", None, True, np.True_, [3], 3j])
def test_what_is_no_number_is_named(value):
    with pytest.raises(TypeError, match=r"^n is .*; expected a number\.$"):
        real("n", value)
    with pytest.raises(TypeError, match=r"^n is .*; expected a whole number\.$"):
        whole("n", value)


@pytest.mark.parametrize("value", [2.5, np.float64(0.1), math.inf, math.nan])
def test_fractions_are_no_whole_numbers(value):
    with pytest.raises(ValueError, match=rf"^n is {value}; expected a whole number\.$"):
        whole("n", value)


def test_positive_numbers():
    assert positive("a", 2.0) == 2
    with pytest.raises(ValueError, match=r"^b is 0; expected at least 1\.$"):
        positive("b", 0)
    with pytest.raises(ValueError, match=r"^b is 1\.5; expected a whole number\.$"):
        positive("b", 1.5)
    with pytest.raises(ValueError, match=r"^b is 10{30}; expected at most 2147483647\.$"):
        positive("b", 10**30)


def test_a_huge_limit_stands_for_all_there_is():
    assert limit("max_cells", 10**30) == ANY
    assert unless_none(limit, "max_cells", None) is None
    with pytest.raises(ValueError, match=r"^max_cells is 1; expected at least 2\.$"):
        unless_none(limit, "max_cells", 1, least=2)


def test_finite_numbers_and_their_limits():
    assert finite("x", np.float32(0.5), "a share", above=0, below=1) == 0.5
    for value in (0, 1, -2, math.nan, math.inf, 10**400):
        with pytest.raises(ValueError, match=r"^x is .*; expected a share\.$"):
            finite("x", value, "a share", above=0, below=1)
    with pytest.raises(TypeError, match=r"^x is '0\.5'; expected a share\.$"):
        finite("x", "0.5", "a share")


@pytest.mark.parametrize("dtype", ["float32", np.float16, np.dtype("f8"), float])
def test_dtypes_that_hold_fractions(dtype):
    assert float_dtype("dtype", dtype) == np.dtype(dtype)


@pytest.mark.parametrize("dtype", ["int32", bool, "complex64", "O", "no", None, 3])
def test_dtypes_that_hold_none_are_named(dtype):
    with pytest.raises(
        TypeError, match=r"^dtype is .*; expected 'float32', or another dtype of floating-point numbers"
    ):
        float_dtype("dtype", dtype)


def test_seeds():
    assert checked_seed(0) == 0
    assert checked_seed(np.int64(7)) == 7
    with pytest.raises(ValueError, match=r"^seed is -1; expected 0 or more\.$"):
        checked_seed(-1)
    with pytest.raises(ValueError, match=r"^seed is 10{30}; expected at most 9223372036854775807\.$"):
        checked_seed(10**30)
    with pytest.raises(ValueError, match=r"^seed is 4294967296; expected at most 4294967295\.$"):
        checked_seed(2**32, most=SEEDS)
