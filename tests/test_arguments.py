import math
from fractions import Fraction

import numpy as np
import pytest

from sccvae.arguments import check_positive, checked_seed, flag, real, whole


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
    check_positive(a=1, b=None, c=2.0)
    with pytest.raises(ValueError, match=r"^b is 0; expected at least 1\.$"):
        check_positive(a=1, b=0)
    with pytest.raises(ValueError, match=r"^b is 1\.5; expected a whole number\.$"):
        check_positive(b=1.5)


def test_seeds():
    assert checked_seed(0) == 0
    assert checked_seed(np.int64(7)) == 7
    with pytest.raises(ValueError, match=r"^seed is -1; expected 0 or more\.$"):
        checked_seed(-1)
