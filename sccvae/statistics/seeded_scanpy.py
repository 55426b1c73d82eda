"""Scanpy's functions with a fixed seed, whatever a version calls it, and with Python's random state as it was."""

from collections.abc import Callable
from inspect import signature
from random import getstate, setstate
from typing import Any

from sccvae.validation.arguments import SEEDS, checked_seed


def seeded(function: Callable[..., Any], adata: Any, *, seed: int = 0, **arguments: Any) -> None:
    """Call a function of Scanpy with `seed`, which newer versions call `rng`.

    Layouts by igraph seed Python's own generator: it is put back.
    """
    name = "rng" if "rng" in signature(function).parameters else "random_state"
    seed, state = checked_seed(seed, most=SEEDS), getstate()
    try:
        function(adata, **{name: seed}, **arguments)
    finally:
        setstate(state)
