"""Figures' arguments: data of another type are one sentence."""

import inspect

import pytest

from sccvae import pl

DATA = [name for name in pl.__all__ if "model" not in inspect.signature(getattr(pl, name)).parameters]


@pytest.mark.parametrize("name", DATA)
def test_another_type_than_the_data_is_named(name):
    first, *others = (
        p.name for p in inspect.signature(getattr(pl, name)).parameters.values() if p.default is inspect.Parameter.empty
    )
    others = [other for other in others if other != "kwargs"]
    with pytest.raises(TypeError, match=rf"^{first} is of type int; expected .+\.$"):
        getattr(pl, name)(3, **dict.fromkeys(others, 3))


def test_a_missing_argument_is_python_s_own_message():
    with pytest.raises(TypeError, match=r"images\(\) missing 1 required keyword-only argument: 'shape'"):
        pl.images({"cells": [[1]]})
