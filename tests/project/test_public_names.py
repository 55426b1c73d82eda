"""Public names of the package, and what `tl` and `pl` may use of a model."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import sccvae

PACKAGE = Path(sccvae.__file__).parent


def test_type_checkers_see_the_names_that_python_sees():
    """mypy and editors read the imports under TYPE_CHECKING; Python reads `_MODULES`."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "written `name as name`, which re-exports it"
            seen[alias.name] = f"sccvae.{alias.name}" if node.module == "sccvae" else node.module
    assert seen == sccvae._MODULES


def test_every_public_name_is_found_where_the_table_says():
    assert sccvae.__all__ == sorted(sccvae._MODULES)
    assert set(dir(sccvae)) == {*sccvae.__all__, "__version__"}
    for name, home in sccvae._MODULES.items():
        module, value = import_module(home), getattr(sccvae, name)
        assert value is module if home == f"sccvae.{name}" else value is getattr(module, name)


def test_a_star_import_brings_every_name():
    code = "from sccvae import *; print(SCCVAE.__module__, tl.__name__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert found.stdout.split() == ["sccvae.models.sccvae", "sccvae.tl"]


def private_attributes(tree: ast.AST) -> set[str]:
    """Attributes beginning with one underscore that are read of anything but `self` and `cls`."""
    return {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__")
        if ast.unparse(node.value) not in ("self", "cls")
    }


def test_tl_and_pl_use_public_attributes_alone():
    """What they do with a model, or with anything else, a third party can do, too."""
    example = "model._vae.x; self._y; a.b(model)._cells; model.__class__"
    assert private_attributes(ast.parse(example)) == {"model._vae", "a.b(model)._cells"}
    for room in ("tl", "pl"):
        for path in (PACKAGE / room).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert private_attributes(ast.parse(text)) == set(), path
            assert "getattr(model" not in text
            assert "vars(model" not in text
