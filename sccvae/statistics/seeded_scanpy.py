"""Calls of Scanpy's functions with a fixed seed, for all versions of Scanpy, that restore Python's random state."""

from collections.abc import Callable
from inspect import signature
from random import getstate, setstate
from typing import Any

from sccvae.validation.arguments import SEEDS, checked_seed


def seeded(function: Callable[..., Any], adata: Any, *, seed: int = 0, **arguments: Any) -> None:
    """Call a function of Scanpy with `seed`, which newer versions call `rng`.

    Layouts by igraph seed Python's own generator, so its state is restored afterwards.
    """
    name = "rng" if "rng" in signature(function).parameters else "random_state"
    seed, state = checked_seed(seed, most=SEEDS), getstate()
    try:
        function(adata, **{name: seed}, **arguments)
    finally:
        setstate(state)
