"""The floor plan is kept: who imports whom, what importing the package does, and how long things may grow."""

from __future__ import annotations

import ast
import functools
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sccvae

PACKAGE = Path(sccvae.__file__).parent
# Files by name, such as "models/base". A room is a folder, or a file beside them.
FILES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}

# Each room and the rooms that it may import; nothing else. Read downwards: what is imported comes first.
ARROWS = {
    "__init__": set(),
    "validation": set(),
    "kernels": set(),
    "io": {"__init__"},
    "simulate": {"io", "validation"},
    "corruption": {"validation"},
    "data": {"io", "validation"},
    "statistics": {"validation"},
    "metrics": {"__init__", "validation"},
    "generation": {"metrics"},
    "datasets": {"io"},
    "modules": {"corruption", "data", "kernels", "validation"},
    "training": {"data", "kernels", "modules"},
    "inference": {"data", "kernels", "modules", "statistics"},
    "pl": {"data", "metrics", "statistics", "validation"},
    "report": {"io", "metrics", "pl", "validation"},
    "models": {
        *("corruption", "data", "inference", "io", "kernels", "modules"),
        *("report", "statistics", "training", "validation"),
    },
    "tl": {"data", "io", "metrics", "models", "statistics", "validation"},
    "demo": {"io", "metrics", "pl", "simulate", "statistics", "tl"},
    "command_line": set(),
    "__main__": {"__init__", "command_line", "data", "demo", "io", "simulate", "tl", "validation"},
}
FLOORS, MOST_ARROWS, MOST_ENTRIES = 8, 60, 12
# Imported when they are first used: numba takes half a second.
COMPILED = {name for name in FILES if name.startswith("kernels/cpu/") and not name.endswith("/__init__")}
COMPILED |= {"modules/offset_table", "training/manual_step", "training/term_gradients"}
LEAVES = {"generation", "metrics", "pl", "report", "datasets", "simulate"}
PROGRAMS = {"demo", "__main__"}  # nobody imports them, except the second the first, inside a function
KNOW_ANNDATA = {"models", "tl", "io", "__main__", *LEAVES}  # and those files that read one:
KNOW_ANNDATA |= {f"data/{name}" for name in ("columns", "matrix", "origin", "packs", "schema", "sources")}
FIVE_FILES = ("data/counts", "modules/networks", "modules/likelihoods", "modules/vae", "training/loop")


def room_of(file: str) -> str:
    return file.split("/")[0]


ROOMS = {room_of(name) for name in FILES}


def file_of(imported: str) -> str | None:
    """The file of the package that an imported name such as "sccvae.models.base.BaseModel" stands in."""
    parts = imported.split(".")
    if parts[0] != "sccvae":
        return None
    for k in range(len(parts), 1, -1):
        name = "/".join(parts[1:k])
        if name in FILES:
            return name
        if f"{name}/__init__" in FILES:
            return f"{name}/__init__"
    return "__init__"


def imports(tree: ast.AST, *, type_checking: bool = False) -> list[tuple[str, bool]]:
    """Every imported module with its parts, and whether it is imported when the file is (not inside a function)."""
    found = []

    def walk(node, at_import):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test) and not type_checking:
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "relative import"
                found.extend((f"{child.module}.{alias.name}", at_import) for alias in child.names)
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            walk(child, at_import and not inside)

    walk(tree, True)
    return found


def internal(room: str) -> set[str]:
    """Rooms that a room imports, anywhere in it; files of one room may import each other."""
    files = [file_of(imported) for name in FILES if room_of(name) == room for imported, _ in imports(TREES[name])]
    return {room_of(file) for file in files if file} - {room}


def external(name: str, *, at_import: bool) -> set[str]:
    """Top-level packages that a module imports: when it is imported itself, or anywhere in it."""
    return {imported.split(".")[0] for imported, early in imports(TREES[name]) if early or not at_import}


def functions(tree: ast.AST):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


# --------------------------------------------------------------------------------------------------------------- arrows


def test_every_room_is_on_the_plan():
    assert set(ARROWS) == ROOMS


@pytest.mark.parametrize("room", ARROWS)
def test_a_room_imports_only_what_it_may(room):
    assert internal(room) <= ARROWS[room]


def test_the_plan_has_no_circle_and_no_arrow_too_many():
    floors: dict[str, int] = {}
    for room, before in ARROWS.items():
        assert before - {"__init__"} <= set(floors), room
        if room != "__init__":  # the package itself, of which rooms read the version
            floors[room] = 1 + max((floors[other] for other in before - {"__init__"}), default=0)
    unused = {room: allowed - internal(room) for room, allowed in ARROWS.items() if allowed - internal(room)}
    assert unused == {}
    assert max(floors.values()) <= FLOORS
    assert sum(map(len, ARROWS.values())) <= MOST_ARROWS


def test_files_import_each_other_in_one_direction():
    """Also where the import stands inside a function."""
    before = {name: {file_of(imported) for imported, _ in imports(TREES[name])} - {None, name} for name in FILES}
    order = graphlib.TopologicalSorter(
        {name: {file for file in files if file != "__init__"} for name, files in before.items() if name != "__init__"}
    )
    order.prepare()  # raises where there is a circle


def test_a_room_has_at_most_twelve_entries_and_says_what_it_holds():
    folders = {path.parent for path in FILES.values()} - {PACKAGE}
    for folder in folders:
        entries = [path for path in folder.iterdir() if path.name not in ("__init__.py", "__pycache__")]
        assert len(entries) <= MOST_ENTRIES, folder
        said = ast.get_docstring(TREES[f"{folder.relative_to(PACKAGE).as_posix()}/__init__"])
        assert said, folder
        assert len(said.splitlines()) >= 3 or folder.name in ("tl", "pl"), folder


def test_the_drawing_in_architecture_md_is_this_plan():
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = dict(re.findall(r"^(\w+) +<- ([\w, ]+)$", text, re.MULTILINE))
    expected = {room: sorted(before - {"__init__"}) for room, before in ARROWS.items() if before - {"__init__"}}
    assert {room: sorted(before.split(", ")) for room, before in drawn.items()} == expected
    assert f" {sum(map(len, expected.values()))} arrows" in text


def test_the_core_imports_no_leaf_but_inside_a_function():
    for name in FILES:
        if room_of(name) not in LEAVES | PROGRAMS:
            early = {file_of(imported) or "" for imported, at_import in imports(TREES[name]) if at_import}
            assert not {room_of(file) for file in early} & (LEAVES | PROGRAMS), name


def test_programs_are_imported_inside_functions_only():
    early = {name: {i for i, at_import in imports(TREES[name]) if at_import} for name in FILES}
    for name, imported in early.items():
        assert not {i for i in imported if i.startswith(("sccvae.demo", "sccvae.__main__"))}, name
    assert not {i for i in early["__main__"] if i.startswith("sccvae")}  # --help answers at once


def test_the_compiled_kernels_are_imported_when_they_are_used():
    for name in set(FILES) - COMPILED:
        assert not {file_of(imported) for imported, at_import in imports(TREES[name]) if at_import} & COMPILED, name
        assert "numba" not in external(name, at_import=True)


@pytest.mark.parametrize("name", FILES)
def test_anndata_is_known_to_few(name):
    if not {name, room_of(name)} & KNOW_ANNDATA:
        assert "anndata" not in external(name, at_import=False)


@pytest.mark.parametrize("name", sorted(set(FILES) - PROGRAMS))
def test_scanpy_and_matplotlib_are_imported_inside_functions(name):
    assert not external(name, at_import=True) & {"scanpy", "matplotlib", "seaborn", "scvi", "pooch"}


def test_imports_are_read_as_python_reads_them():
    tree = ast.parse(
        "import a.b\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import t\n"
        "class C:\n    import c\n    def f(self):\n        from d import e\ntry:\n    import g\nexcept E:\n    pass\n"
    )
    assert imports(tree) == [
        ("a.b", True), ("typing.TYPE_CHECKING", True), ("c", True), ("d.e", False), ("g", True),
    ]  # fmt: skip
    assert ("t", True) in imports(tree, type_checking=True)


# -------------------------------------------------------------------------------------------------- what importing does

PROBE = """
import json, logging, random, sys, warnings
import numpy as np, torch
# Packages beneath add filters and loggers of their own when they are imported, so they come first.
import anndata, pandas, safetensors.torch, scipy.sparse, scipy.special, tqdm

def state():
    return {
        "numpy": repr(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "random": repr(random.getstate()),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "warnings": repr(warnings.filters),
        "root": [logging.root.level, repr(logging.root.handlers), logging.root.disabled],
        "errors": repr(np.geterr()),
        "dtype": repr(torch.get_default_dtype()),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "path": list(sys.path),
    }

before = state()
import sccvae
sccvae.SCCVAE, sccvae.tl  # imported when they are asked for
after = state()
changed = [name for name in before if before[name] != after[name]]
logger = logging.getLogger("sccvae")
print(json.dumps({
    "changed": changed,
    "loaded": [name for name in ("scanpy", "matplotlib", "sklearn", "pooch", "numba") if name in sys.modules],
    "logger": [logger.level, repr(logger.handlers), logger.propagate],
    "leaves": [name for name in ("metrics", "pl", "datasets", "simulate") if f"sccvae.{name}" in sys.modules],
}))
"""


@pytest.fixture(scope="module")
def probe():
    """What `import sccvae` changed in a process of its own."""
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_import_changes_no_global_state(probe):
    assert probe["changed"] == []
    assert probe["logger"] == [0, "[]", True]


def test_import_loads_neither_scanpy_nor_matplotlib_nor_a_leaf(probe):
    assert probe["loaded"] == []
    assert probe["leaves"] == []


def test_leaves_are_imported_when_asked_for():
    for name in LEAVES & set(sccvae.__all__):
        assert getattr(sccvae, name).__name__ == f"sccvae.{name}"
    with pytest.raises(AttributeError, match="module 'sccvae' has no attribute 'nonsense'"):
        sccvae.nonsense  # noqa: B018
    assert all(hasattr(sccvae, name) for name in sccvae.__all__)


# ---------------------------------------------------------------------------------------------------------------- sizes


def length(name: str) -> int:
    """Lines of a file, without the examples in its docstrings, of which every public name has one."""
    examples = 0
    for node in ast.walk(TREES[name]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            before, _, section = (ast.get_docstring(node) or "").partition("\n\nExamples\n--------\n")
            if section:  # with the line before it, and the closing quotes where they else stand behind the only line
                examples += 3 + len(section.splitlines()) + ("\n" not in before)
    return len(FILES[name].read_text(encoding="utf-8").splitlines()) - examples


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_at_most_450_lines(name):
    assert length(name) <= 450


@pytest.mark.parametrize("name", FILES)
def test_a_function_is_at_most_60_lines(name):
    """Without its signature's and its docstring's lines, which users need at full length."""
    too_long = {}
    for function in functions(TREES[name]):
        body = function.body[1:] if ast.get_docstring(function) else function.body
        length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        if length > 60:
            too_long[function.name] = length
    assert too_long == {}


def test_a_training_step_is_read_in_five_files_of_fewer_than_1100_lines():
    assert sum(map(length, FIVE_FILES)) < 1100


# ---------------------------------------------------------------------------------------------------------- not allowed


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "word",
    ["pickle", "torch.load", "torch.save", "joblib", "eval(", "exec(", "manual_seed_all", "set_num_threads",
     "np.random.seed", "basicConfig", "simplefilter", "filterwarnings"],
)  # fmt: skip
def test_words_that_have_no_place_here(name, word):
    """Calls and names of the code; comments and docstrings may speak of them."""
    code = _code(name)
    code = code.replace(".eval(", ".evaluation_mode(")  # nn.Module.eval, which evaluates nothing
    if name == "kernels/parallel":
        code = code.replace("set_num_threads", "")  # it puts back what it changes: see test_parallel
    assert word not in code


@functools.cache
def _code(name: str) -> str:
    return ast.unparse(_without_docstrings(TREES[name]))


def _without_docstrings(tree: ast.AST) -> ast.AST:
    tree = ast.parse(ast.unparse(tree))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0] = ast.Pass()
    return tree


@pytest.mark.parametrize("name", FILES)
def test_no_global_generator_is_used(name):
    """Neither numpy's, nor torch's, nor Python's: every draw comes from a generator with the user's seed."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert not called.startswith("random."), called
            if called.startswith("np.random."):
                assert called.split(".")[2].split("(")[0] in {"default_rng", "SeedSequence", "Generator", "PCG64"}, (
                    called
                )
            if called in {
                "torch.manual_seed",
                "torch.seed",
                "torch.set_rng_state",
                "torch.rand_like",
                "torch.randn_like",
            }:
                pytest.fail(called)
            if called in {
                "torch.rand",
                "torch.randn",
                "torch.randint",
                "torch.randperm",
                "torch.normal",
                "torch.bernoulli",
                "torch.poisson",
            }:
                assert "generator" in {keyword.arg for keyword in node.keywords}, called


def test_no_utilities_drawer():
    drawers = {"common", "core", "misc"}
    assert not {name for name in FILES if "util" in name or "helper" in name or name.split("/")[-1] in drawers}
