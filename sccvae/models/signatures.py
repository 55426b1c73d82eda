"""Translation of scvi-tools' arguments and attributes, and errors for unknown ones.

Every public method of a model is wrapped once, when its class is made. A call with known arguments passes through. An
unknown argument is looked up in `scvi_tools.scvi_names`; if it is not there, the error names the nearest known one.
"""

import inspect
import reprlib
from collections.abc import Callable, Mapping
from functools import wraps
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pandas as pd

from sccvae.models.scvi_tools import scvi_names
from sccvae.models.scvi_tools.scvi_attributes import ATTRIBUTES, of_history
from sccvae.validation.docstrings import PARAGRAPHS, filled, with_paragraphs
from sccvae.validation.wording import Text, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])


def understands_scvi(function: F) -> F:
    """Make a method take scvi-tools' names of its arguments as well; its signature stays as it is.

    Paragraphs that docstrings share are filled in: see `sccvae.validation.docstrings`.
    """
    filled(function)
    signature = inspect.signature(function)
    ours = dict(signature.parameters)
    if not ours or any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in ours.values()):
        return function
    del ours[next(iter(ours))]  # the model, or its class
    by_position = [name for name, p in ours.items() if p.kind is not p.KEYWORD_ONLY]
    known, most = ours.keys(), len(by_position) + 1
    unset = scvi_names.UNSET.get(function.__name__, ())

    @wraps(function)
    def method(*args: Any, **given: Any) -> Any:
        for name in unset:
            if name in given and given[name] is None:
                del given[name]
        if not given.keys() <= known or len(args) > most:
            given = _translated(function.__name__, args, given, ours, by_position)
        return function(*args, **given)

    method.__signature__ = signature  # type: ignore[attr-defined]  # for tools that do not unwrap functions
    return cast(F, method)


def _translated(
    method: str, args: tuple[Any, ...], given: dict[str, Any], ours: Mapping[str, Any], by_position: list[str]
) -> dict[str, Any]:
    """Translate the given arguments into our names. Raises TypeError for an unknown one."""
    model, values = args[0], args[1:]
    kind = (model if isinstance(model, type) else type(model)).__name__
    label = f"{kind}()" if method == "__init__" else f"{kind}.{method}()"
    if len(values) > len(by_position):
        known = f"takes {', '.join(by_position)}" if by_position else "takes nothing"
        raise TypeError(
            f"{label} {known} by position, and {len(values)} were given. Name the others, as in name=value."
        )
    named = {name: value for name, value in given.items() if name in ours}
    table = scvi_names.table_of(method, ours)
    for name in [name for name in given if name not in ours]:
        value = given[name]
        if name not in table:
            raise TypeError(f"{label} has no argument {name!r}.{did_you_mean(name, ours)}")
        if value is None:  # means "not given" in scvi-tools
            continue
        beside = dict(zip(by_position, values, strict=False)) | named
        try:
            found = table[name](scvi_names.Asked(name, value, model, beside, ours))
        except scvi_names.Refused as why:
            raise TypeError(f"{label} cannot take {name}={reprlib.repr(value)}. {why}") from None
        for own in found:
            if own not in ours:
                raise TypeError(f"{label} cannot take {name}={reprlib.repr(value)}. It means {own}, which is not here.")
            if own in beside and not (own == "device" and beside[own] == "auto"):
                raise TypeError(f"{label} was given {own} twice, once as {name!r}: leave one out.")
        named |= found
    return named


def with_history(frame: pd.DataFrame) -> pd.DataFrame:
    """Make the history of a model name the right column in the error for one of scvi-tools.

    Only the lookup of its columns is replaced. It stays a DataFrame, because a subclass could not be written to h5ad.
    """
    columns = frame.columns

    def get_loc(key: Any) -> Any:
        try:
            return type(columns).get_loc(columns, key)
        except KeyError:
            hint = of_history(key)
            hint = did_you_mean(key, columns) if hint is None else f" {hint}"
            raise KeyError(Text(f"history has no column {key!r}.{hint}")) from None

    columns.get_loc = get_loc
    return frame


class Understanding(type):
    """Metaclass of the models: wraps public methods, fills docstrings in, explains missing attributes."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> "Understanding":
        """Make the class: public methods wrapped, its docstring's paragraphs filled in."""
        namespace["__doc__"] = with_paragraphs(namespace.get("__doc__"), PARAGRAPHS)
        for key, value in namespace.items():
            if key.startswith("_") and key != "__init__":
                continue
            if isinstance(value, FunctionType):
                namespace[key] = understands_scvi(value)
            elif isinstance(value, classmethod):
                namespace[key] = classmethod(understands_scvi(value.__func__))
        return super().__new__(cls, name, bases, namespace, **options)

    if not TYPE_CHECKING:  # mypy would take any name for an attribute

        def __getattr__(cls, name: str) -> Any:
            raise missing(cls, name, f"type object {cls.__name__!r} has no attribute {name!r}", cls)


def missing(kind: type, name: str, text: str, of: Any) -> AttributeError:
    """AttributeError in Python's words, or, for an attribute of scvi-tools, with the replacement."""
    if name in ATTRIBUTES:
        text = f"{kind.__name__} has no {name!r}. {ATTRIBUTES[name].format(kind=kind.__name__)}"
    return AttributeError(text, name=name, obj=of)
