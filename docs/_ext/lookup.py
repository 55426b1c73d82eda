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


def find(name: str) -> list[Any]:
    """The functions, classes or methods of this name, such as `VAE.forward`, each in the module that defines it."""
    first, *rest = name.split(".")
    found = {}
    for holder in modules():
        thing = vars(holder).get(first)
        thing = inspect.unwrap(thing) if callable(thing) else None
        thing = getattr(thing, "py_func", thing)  # of a compiled function, what was compiled
        if thing is None or getattr(thing, "__module__", None) != holder.__name__:
            continue
        for part in rest:
            thing = inspect.getattr_static(thing, part)
            thing = inspect.unwrap(getattr(thing, "fget", None) or getattr(thing, "__func__", thing))
        found[id(thing)] = thing
    return list(found.values())


def part_of(lines: list[str], first: str | None, last: str | None) -> tuple[int, int] | None:
    """Where the lines from the one with `first` to the one with `last` begin and end."""
    if first is None:
        return 0, len(lines)
    begin = next((i for i, line in enumerate(lines) if first in line), None)
    if begin is None or last is None:
        return None if begin is None else (begin, begin + 1)
    end = next((i + 1 for i, line in enumerate(lines) if i >= begin and last in line), None)
    return None if end is None else (begin, end)


def source(name: str, first: str | None = None, last: str | None = None) -> tuple[str, int, str]:
    """File of the package, number of the first line, and lines of an object: see `part_of`.

    Where several objects have the name, it is the one that has such lines.
    """
    found = []
    for thing in find(name):
        lines, number = inspect.getsourcelines(thing)
        if (part := part_of(lines, first, last)) is not None:
            path = Path(inspect.getsourcefile(thing)).resolve().relative_to(PACKAGE.parent)
            text = inspect.cleandoc("\n" + "".join(lines[slice(*part)]))
            found.append((path.as_posix(), number + part[0], text))
    if len(found) != 1:
        between = "" if first is None else f" with lines from {first!r}" + ("" if last is None else f" to {last!r}")
        raise LookupError(f"{len(found)} objects of sccvae are called {name!r}{between}; expected one.")
    return found[0]
