"""Every public name has a docstring, a page in the API reference and an example, which runs; the site's texts hold.

The names are found by inspection, so that a new one is asked for all three. Building the site is `make docs`.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import os
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import sccvae

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the tests of a package without docs/")
MODELS = ("SCCVAE", "Autoencoder", "DenoisingAutoencoder")
PAGES = sorted(
    p for p in DOCS.rglob("*.md") if not {"_build", "project", "benchmarks"} & set(p.relative_to(DOCS).parts)
)


def public_names() -> dict[str, object]:
    """Every public name with what it stands for; methods and properties of the models, too."""
    found: dict[str, object] = {}
    for name in sccvae.__all__:
        thing = getattr(sccvae, name)
        if isinstance(thing, ModuleType):
            found |= {f"{name}.{inner}": getattr(thing, inner) for inner in thing.__all__}
            continue
        found[name] = thing
        if name in MODELS:
            for member in dir(thing):
                value = inspect.getattr_static(thing, member)
                if not member.startswith("_") and (callable(value) or isinstance(value, (property, classmethod))):
                    found[f"{name}.{member}"] = getattr(thing, member)
    return found


NAMES = public_names()


def examples(name: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(inspect.getdoc(NAMES[name]) or "")


def listed() -> set[str]:
    """Names in the autosummary tables of the API reference; a model's page has a table of its methods."""
    found = set()
    for page in (DOCS / "api").glob("*.md"):
        for table in re.findall(r"\.\. autosummary::\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            found |= set(re.findall(r"^   ([\w.]+)$", table, re.MULTILINE))
    template = (DOCS / "_templates" / "autosummary" / "class.rst").read_text(encoding="utf-8")
    for model in MODELS:
        assert f'"sccvae.{model}"' in template
    return found


def test_every_module_of_the_api_says_what_is_public():
    for name in sccvae.__all__:
        thing = getattr(sccvae, name)
        if isinstance(thing, ModuleType):
            assert len(thing.__all__) == len(set(thing.__all__)) > 0, name


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_a_docstring_and_an_example(name):
    assert inspect.getdoc(NAMES[name]), name
    assert examples(name), f"{name} has no example (>>>) in its docstring"


def test_every_public_name_has_a_page_and_no_page_is_of_something_else():
    assert listed() == {name for name in NAMES if name.split(".")[0] not in MODELS or name in MODELS}


# ------------------------------------------------------------------------------------------------- the examples run


def setup_of_examples() -> str:
    """The code at the head of the API reference: what examples of methods begin with."""
    text = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    return "".join(e.source for e in doctest.DocTestParser().get_examples(text.split("```python")[1].split("```")[0]))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The data of the examples, and a folder with a saved model of each class."""
    folder, code = tmp_path_factory.mktemp("models"), setup_of_examples()
    for name in MODELS:
        namespace: dict[str, object] = {}
        exec(code.replace("sccvae.SCCVAE(", f"sccvae.{name}("), namespace)
        namespace["model"].save(folder / name)
    return namespace["adata"], folder


def run(name: str, namespace: dict[str, object], *, skipped: bool = False) -> None:
    """Run the examples of a name; with `skipped`, those that are marked to be skipped as well."""
    test = doctest.DocTest(examples(name), namespace, name, None, None, None)
    for example in test.examples if skipped else ():
        example.options.pop(doctest.SKIP, None)
    report: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    assert result.failed == 0, "".join(report)


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs(name, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, _, member = name.partition(".")
    namespace: dict[str, object] = {"__name__": "__main__"}
    if model in MODELS and member:
        adata = models[0].copy()
        loaded = getattr(sccvae, model).load(models[1] / model, adata)
        namespace |= {"np": np, "sccvae": sccvae, "adata": adata, "model": loaded}
    run(name, namespace)


DOWNLOADED = {"datasets.load": "cortex", "datasets.cortex": "cortex", "datasets.paul15": "hematopoiesis_paul15"}
DOWNLOADED |= {"datasets.hematopoiesis": "hematopoiesis", "datasets.retina": "retina"}


def test_only_data_sets_are_left_out_of_the_examples():
    skipped = {name for name in NAMES if any(doctest.SKIP in e.options for e in examples(name))}
    assert skipped == set(DOWNLOADED)


@pytest.mark.parametrize(("name", "stem"), DOWNLOADED.items())
def test_the_example_of_a_data_set_runs_where_the_set_is(name, stem):
    file = Path(os.environ.get("SCCVAE_DATA", "")) / f"{stem}.h5ad"
    if "SCCVAE_DATA" not in os.environ or not file.is_file():
        pytest.skip(f"needs {stem}.h5ad in the folder that SCCVAE_DATA names")
    run(name, {}, skipped=True)


# ------------------------------------------------------------------------------------------------------- the texts


def test_no_line_of_prose_is_longer_than_120_characters():
    long = {
        f"{page.relative_to(DOCS.parent)}:{number}": len(line)
        for page in [*PAGES, *(DOCS.parent / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"))]
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 120 and not line.startswith("|")  # rows of tables
    }
    assert long == {}


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_the_code_of_a_page_is_python_and_names_what_there_is(page):
    """Blocks of a page parse, and every attribute of sccvae, of its modules and of `model` in them exists."""
    for block in python_blocks(page):
        code = "".join(e.source for e in doctest.DocTestParser().get_examples(block)) if ">>>" in block else block
        for node in ast.walk(ast.parse(code)):
            if not isinstance(node, ast.Attribute):
                continue
            *parts, last = ast.unparse(node).split(".") if re.fullmatch(r"[\w.]+", ast.unparse(node)) else ["", ""]
            if parts[:1] == ["sccvae"]:
                holder = sccvae
                for part in parts[1:]:
                    holder = getattr(holder, part)
                assert hasattr(holder, last), ast.unparse(node)
            elif parts == ["model"]:
                assert any(hasattr(getattr(sccvae, name), last) for name in MODELS), ast.unparse(node)


GUIDE = [DOCS / "start.md", DOCS / "scvi_tools.md", *(page for page in PAGES if page.parent.name == "guide")]


@pytest.fixture
def short_training(monkeypatch):
    """Models are trained for two epochs where nothing else is asked: the code is tried, not what comes of it."""
    for name in ("SCCVAE", "DenoisingAutoencoder"):
        kind = getattr(sccvae, name)

        def train(self, max_epochs=2, original=kind.train, **options):
            return original(self, max_epochs, **options)

        monkeypatch.setattr(kind, "train", train)


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.name)
def test_the_code_of_the_guide_runs(page, short_training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda *args, **kwargs: None)
    namespace: dict[str, object] = {}
    blocks = [] if page.name in ("start.md", "index.md") else python_blocks(DOCS / "guide" / "index.md")
    for block in [*blocks, *python_blocks(page)]:
        exec(compile(block, str(page), "exec"), namespace)


@pytest.fixture
def extension(monkeypatch):
    """Function: name -> a module that the site is made with; none of those asked for needs Sphinx."""
    monkeypatch.syspath_prepend(DOCS / "_ext")
    return importlib.import_module


REFERENCES = [
    (page.name, name, dict(re.findall(r"^:(\w+): (.*)$", options, re.MULTILINE)))
    for page in PAGES
    for name, options in re.findall(
        r"^```\{code-of\} ([\w.]+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
]


@pytest.mark.parametrize(("page", "name", "options"), REFERENCES)
def test_the_line_of_code_of_a_formula_is_there(page, name, options, extension):
    path, number, text = extension("lookup").source(name, **options)
    assert (Path(sccvae.__file__).parent.parent / path).is_file()
    assert number > 0
    assert text.strip()


def test_every_name_of_scvi_tools_has_a_row(extension):
    tables = extension("scvi_rows").tables()
    assert all(name and text for rows in tables.values() for name, text in rows)
    assert ("lr", "`learning_rate`") in tables["`train`"]
    assert dict(tables["`differential_expression`"])["use_observed_batches"].startswith("`batch_correction`: `True`")
    assert dict(tables["Constructor"])["latent_distribution"].startswith("Accepted as `'normal'`.")
