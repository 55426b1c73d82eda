"""Finds objects of the package by name alone, wherever their file is. Used by the site and by its tests."""

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

import sccvae

PACKAGE = Path(sccvae.__file__).resolve().parent


def modules() -> list[Any]:
    """Every module of the package but the program."""
    names = [m.name for m in pkgutil.walk_packages(sccvae.__path__, "sccvae.")]
    return [importlib.import_module(name) for name in names if not name.endswith("__main__")]


def module(name: str) -> Any:
    """The module whose last name is this one."""
    found = [m for m in modules() if m.__name__.split(".")[-1] == name]
    if len(found) != 1:
        raise LookupError(f"{len(found)} modules of sccvae are called {name!r}; expected one.")
    return found[0]


def find(name: str) -> Any:
    """The function, class or method of this name, such as `VAE.forward`, in the module that defines it."""
    first, *rest = name.split(".")
    found = {}
    for holder in modules():
        thing = inspect.unwrap(getattr(holder, first)) if callable(getattr(holder, first, None)) else None
        thing = getattr(thing, "py_func", thing)  # of a compiled function, what was compiled
        if thing is not None and getattr(thing, "__module__", None) == holder.__name__:
            found[id(thing)] = thing
    if len(found) != 1:
        raise LookupError(f"{len(found)} objects of sccvae are called {first!r}; expected one.")
    (thing,) = found.values()
    for part in rest:
        thing = inspect.getattr_static(thing, part)
        thing = inspect.unwrap(getattr(thing, "fget", None) or getattr(thing, "__func__", thing))
    return thing


def source(name: str, first: str | None = None, last: str | None = None) -> tuple[str, int, str]:
    """File of the package, number of the first line, and lines of an object; from the line with `first` to `last`."""
    thing = find(name)
    lines, number = inspect.getsourcelines(thing)
    begin, end = 0, len(lines)
    if first is not None:
        begin = next((i for i, line in enumerate(lines) if first in line), -1)
        if begin < 0:
            raise LookupError(f"No line of {name} holds {first!r}.")
        end = begin + 1
    if last is not None:
        end = next((i + 1 for i, line in enumerate(lines) if i >= begin and last in line), -1)
        if end < 0:
            raise LookupError(f"No line of {name} from {first!r} on holds {last!r}.")
    path = Path(inspect.getsourcefile(thing)).resolve().relative_to(PACKAGE.parent)
    return path.as_posix(), number + begin, inspect.cleandoc("\n" + "".join(lines[begin:end]))
