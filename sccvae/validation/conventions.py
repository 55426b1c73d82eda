"""Conventions of all functions of `tl` and `pl`, as in Scanpy: copies, seeds, figures, and the argument `model`.

The decorator `scanpy_like` implements these conventions, according to the signature of the function.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sccvae.validation.arguments import flag, whole
from sccvae.validation.docstrings import filled

P = ParamSpec("P")
R = TypeVar("R")

ANY_MODEL = ("SCCVAE", "Autoencoder", "DenoisingAutoencoder")
SEEDS = ("random_state", "rng")  # Scanpy's names for `seed`, older and newer
# Arguments of Scanpy's functions without a counterpart here, and their replacements.
INSTEAD = {
    "save": "the figure is returned: figure.savefig('figure.pdf')",
    "return_fig": "the figure is always returned",
    "inplace": "results are written to adata; copy=True returns a copy with them",
    "ax": "the function draws several panels and returns their figure, with the panels in figure.axes",
    "figsize": "the figure is returned: figure.set_size_inches(width, height)",
    "dpi": "the figure is returned: figure.savefig('figure.png', dpi=300)",
}


def scanpy_like(
    *, kinds: tuple[str, ...] = (), folders: bool = False, instead: Mapping[str, str] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function of `tl` or `pl`.

    - ``random_state=`` and ``rng=`` are synonyms of ``seed=``.
    - ``copy=True`` makes the function write to a copy of its first argument, which is returned.
    - ``model`` must be a trained model of the classes `kinds`; otherwise a TypeError states the value found. With
      `folders`, the folder of a saved model is possible, too.
    - ``show`` must be a bool, ``ax`` one matplotlib Axes.
    - Scanpy's arguments without a counterpart, `INSTEAD` and `instead`, raise a TypeError with their replacement.
    - Paragraphs that docstrings share are filled in: see `sccvae.validation.docstrings`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        filled(function)
        known = signature(function).parameters
        open_ended = any(p.kind is Parameter.VAR_KEYWORD for p in known.values())
        refused = {**INSTEAD, **(instead or {})}
        if open_ended:  # Scanpy checks the arguments that are passed on
            refused = {word: refused[word] for word in ("save", "return_fig")}
        refused = {word: why for word, why in refused.items() if word not in known}
        name, first = function.__name__, next(iter(known))

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs = _with_seed(name, kwargs, "seed" in known)
            for word in refused.keys() & kwargs.keys():
                raise TypeError(f"{name}() has no argument {word!r}: {refused[word]}.")
            if kinds:
                _check_model(name, known, kinds, args, kwargs, folders=folders)
            if kwargs.get("show") is not None:
                flag("show", kwargs["show"])
            if kwargs.get("ax") is not None and "ax" in known and not hasattr(kwargs["ax"], "get_figure"):
                found = type(kwargs["ax"]).__name__
                raise TypeError(f"ax is of type {found}; expected one matplotlib Axes, as from plt.subplots().")
            if "copy" not in known or not flag("copy", kwargs.pop("copy", False)):
                return function(*args, **kwargs)
            adata: Any = args[0] if args else kwargs.get(first)
            if not hasattr(adata, "isbacked"):
                return function(*args, **kwargs)  # raises an error with its expectation
            if adata.isbacked or not all(map(_can_be_copied, (adata.X, *(adata.layers[key] for key in adata.layers)))):
                raise ValueError(
                    f"copy is True, but {first} is backed by a file: pass {first}.to_memory() to {name} in place of a "
                    "copy."
                )
            adata = adata.copy()
            if args:
                function(adata, *args[1:], **kwargs)
            else:
                function(**{**kwargs, first: adata})  # type: ignore[call-arg]
            return adata

        return call

    return decorate


def _can_be_copied(matrix: Any) -> bool:
    """Return whether a matrix is in memory; `AnnData.copy` fails for datasets of files."""
    return matrix is None or hasattr(matrix, "copy")


def _with_seed(name: str, kwargs: dict[str, Any], seeded: bool) -> dict[str, Any]:
    """Return the arguments with Scanpy's name of the seed replaced by `seed`."""
    given = [word for word in ("seed", *SEEDS) if word in kwargs]
    if not set(given) & set(SEEDS):
        return kwargs
    if not seeded:
        raise TypeError(f"{name}() has no argument {given[0]!r}: the function uses no random numbers.")
    if len(given) > 1:
        raise TypeError(f"{name}() got {given[0]} and {given[1]}, which are synonyms: pass seed alone.")
    rest = {word: value for word, value in kwargs.items() if word != given[0]}
    value = kwargs[given[0]]
    if hasattr(value, "random") or hasattr(value, "bit_generator"):
        raise TypeError(f"{given[0]} is a {type(value).__name__}; expected a whole number, as in seed=0.")
    return {**rest, "seed": whole(given[0], value)}


def _check_model(
    name: str,
    known: Mapping[str, Parameter],
    kinds: tuple[str, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    folders: bool,
) -> None:
    """Raise unless the model is a trained model of the classes `kinds`, or if `folders` a path."""
    position = list(known).index("model")
    required = [p for p in known.values() if p.default is Parameter.empty and p.kind is not Parameter.VAR_KEYWORD]
    named = {p.name for p in required} | {"model"}
    call = ", ".join(
        f"{p.name}=..." if p.kind is Parameter.KEYWORD_ONLY else p.name for p in known.values() if p.name in named
    )
    usage = f"{name}({call})"
    default = known["model"].default
    model = args[position] if len(args) > position else kwargs.get("model", default)
    if model is Parameter.empty:
        raise TypeError(f"{name}() was given no model: {usage}.")
    if model is None and default is None:
        return
    expected = f"expected a trained {' or '.join(kinds)}"
    if isinstance(model, str | os.PathLike):
        is_path = isinstance(model, os.PathLike) or os.sep in model or Path(model).is_dir()
        if is_path and folders:
            return
        if is_path:
            load = f"model = sccvae.{kinds[0]}.load({os.fspath(model)!r})"
            raise TypeError(f"model is the path {os.fspath(model)!r}; {expected}. Load it first: {load}.")
        place = f", the {('first', 'second')[position]} argument," if position < 2 else ""
        raise TypeError(f"model{place} is {model!r}; {expected}: {usage}.")
    if isinstance(model, type):
        raise TypeError(f"model is the class {model.__name__}; {expected}, an instance of the class.")
    if getattr(model, "kind", None) not in kinds:
        raise TypeError(f"model is of type {type(model).__name__}; {expected}: {usage}.")
    model._check_trained()
