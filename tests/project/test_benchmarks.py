"""Benchmarks start at all, write rows, and the documents hold the tables of these rows: no speed is tested."""

import importlib
import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from sccvae import simulate
from sccvae.data.counts import split

FOLDER = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the folder benchmarks of the repository")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    adata = simulate.simulate(600, 30, seed=0)
    held_out = split(adata.obs["batch"].cat.codes.to_numpy(), 0.9, np.random.default_rng(0))[1]
    adata.obs["held_out_0"] = np.isin(np.arange(600), held_out)
    adata.write_h5ad(path := tmp_path_factory.mktemp("cells") / "cells.h5ad")
    return path


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory of a process is read in /proc")
@pytest.mark.parametrize(("measure", "found"), [("epoch", "epoch_s"), ("inference", "latent")])
def test_a_child_of_against_scvi_measures_sccvae(cells, measure, found):
    task = {"measure": measure, "method": "sccvae", "path": str(cells), "seed": 0, "cap": None, "threads": 1}
    command = [sys.executable, str(FOLDER / "against_scvi.py"), "--child", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))[found] > 0


@pytest.fixture
def rows(monkeypatch):
    """The module `rows` of the benchmarks."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("rows")


def test_rows_say_what_was_measured_where_and_with_which_versions(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py", "--referee", "/some/where/referee.py", "--out", "y", "--seeds", "0"])
    log = rows.Log("x.py", tmp_path / "new/x.jsonl", {"ari": "1", "elbo": "nats per cell"}, threads=2, peers=["none"])
    log.add({"ari": 0.5, "elbo": float("nan")}, data_set="cortex", method="sccvae", seeds=[3], genes=30)
    first, second = rows.read(tmp_path / "new/x.jsonl")
    assert first["script"] == "benchmarks/x.py"
    assert first["arguments"] == ["--referee", "referee.py", "--seeds", "0"]
    assert (first["data_set"], first["method"], first["seeds"]) == ("cortex", "sccvae", [3])
    assert (first["measure"], first["value"], first["unit"]) == ("ari", 0.5, "1")
    assert (second["measure"], second["value"], second["unit"]) == ("elbo", None, "nats per cell")
    assert first["conditions"] == {"genes": 30}
    assert datetime.fromisoformat(first["date"]).tzinfo is not None
    assert first["machine"].keys() == {"processor", "cores", "memory_gib", "system", "gpu", "threads"}
    assert first["machine"]["threads"] == 2
    assert {"python", "numpy", "torch", "scanpy", "sccvae", "sccvae_git", "none"} <= first["versions"].keys()
    assert first["versions"]["numpy"] == np.__version__
    assert first["versions"]["none"] is None


def test_rows_are_appended_and_gathered_into_measurements(rows, tmp_path):
    out = tmp_path / "x.jsonl"
    for seed in (0, 1):
        log = rows.Log("x.py", out, {"ari": "1", "nmi": "1"})
        log.add({"ari": 0.5, "nmi": 0.1 * seed}, data_set="cortex", method="scvi", seeds=[seed], genes=30)
    out.write_text(out.read_text() + '{"cut sh')
    found = rows.gather(rows.read(out))
    assert [(row["set"], row["method"], row["seed"], row["ari"], row["nmi"], row["genes"]) for row in found] == [
        ("cortex", "scvi", 0, 0.5, 0.0, 30),
        ("cortex", "scvi", 1, 0.5, 0.1, 30),
    ]


def test_a_measure_without_a_unit_is_an_error_and_writes_nothing(rows, tmp_path):
    log = rows.Log("x.py", tmp_path / "x.jsonl", {"ari": "1"})
    with pytest.raises(KeyError):
        log.add({"ari": 0.5, "nmi": 0.1}, data_set="cortex", method="scvi")
    assert rows.read(tmp_path / "x.jsonl") == []


SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name not in ("rows.py", "tables.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_writes_its_rows_beside_the_others_by_default(script):
    text = (FOLDER / script).read_text()
    assert "default_out(__file__)" in text
    assert "Log(__file__" in text


@pytest.fixture
def tables(monkeypatch):
    """The module `tables` of the benchmarks."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("tables")


def marked(tables) -> dict[str, list[str]]:
    """Names of the tables in the documents, each with the documents that hold it."""
    found: dict[str, list[str]] = {}
    for path in tables.documents():
        for mark in tables.MARK.finditer(path.read_text()):
            found.setdefault(mark["name"], []).append(path.name)
    return found


def test_tables_in_the_documents_are_what_the_rows_give(tables):
    stale = [path.name for path in tables.documents() if tables.filled(path.read_text()) != path.read_text()]
    assert not stale, f"{stale} hold tables that were edited, or rows that are newer: run `make tables`."


def test_an_edited_table_is_seen(tables):
    document = (tables.ROOT / "docs/experiments/weight-prior.md").read_text()
    assert tables.filled(document.replace("432.4", "432.5")) == document


def test_every_marker_has_an_end_and_every_table_a_document(tables):
    for path in tables.documents():
        text = path.read_text()
        assert text.count("<!-- table:") == text.count("<!-- end -->") == len(tables.MARK.findall(text)), path.name
    of_experiments = {f"experiments/{path.stem}" for path in (tables.RESULTS / "experiments").glob("*.jsonl")}
    assert marked(tables).keys() == tables.TABLES.keys() | of_experiments


def test_every_experiment_has_a_page_with_one_table_and_a_line_in_the_index(tables):
    folder = tables.ROOT / "docs/experiments"
    index = (folder / "README.md").read_text()
    for path in (tables.RESULTS / "experiments").glob("*.jsonl"):
        page = (folder / f"{path.stem}.md").read_text()
        assert page.startswith("# ")
        assert page.splitlines()[0].endswith("?")
        assert [mark["name"] for mark in tables.MARK.finditer(page)] == [f"experiments/{path.stem}"]
        assert page.count("**Conclusion.**") == 1
        assert index.count(f"]({path.stem}.md)") == 1
    linked = set(re.findall(r"\]\(([\w-]+)\.md\)", index))
    assert linked == {path.stem for path in folder.glob("*.md")} - {"README"}


def test_every_stored_row_says_what_it_is(rows):
    known = {"script", "arguments", "data_set", "method", "seeds", "conditions", *rows.VALUE, "date", "load"}
    known |= {"machine", "versions", "source", *rows.COPIED}
    files = sorted(rows.RESULTS.rglob("*.jsonl"))
    assert files
    for path in files:
        for row in rows.read(path):
            assert known - {"source", *rows.COPIED} <= row.keys() <= known, path.name
            assert row["date"] or row["source"], path.name
            assert isinstance(row["value"], int | float | list | None) or row["unit"] is None, path.name


def made(value, seed, *, git="a", date="2030-01-01", **changes) -> dict:
    row = {"script": "x", "arguments": [], "data_set": "cortex", "method": "sccvae", "seeds": [seed], "conditions": {}}
    row |= {"measure": "ari", "value": value, "unit": "1", "date": date, "load": 0, "machine": {"processor": "p"}}
    return row | {"versions": {"sccvae_git": git}} | changes


def test_a_cell_is_the_mean_over_seeds_of_the_newest_commit(tables):
    copied = made(0.1, 0, date=None, git=None, digits=4)
    old = made(0.3, 0, git="a", date="2029-01-01")
    new = [made(0.5, 0, git="b"), made(0.6, 1, git="b")]
    assert tables.text(tables.pick([copied], measure="ari")) == "0.1000"
    assert tables.text(tables.pick([copied, old], measure="ari")) == "0.300"
    assert tables.text(tables.pick([copied, old, *new], measure="ari", method="sccvae")) == "0.550"
    assert tables.text(tables.pick([copied], measure="nmi")) == ""
    assert tables.text(new, error=True) == "0.550 ± 0.050"


def test_of_times_the_median_is_shown(tables):
    timed = [made(value, 0, measure="epoch_s", unit="s") for value in (1.0, 2.0, 9.0)]
    assert tables.text(timed) == "2"


def test_the_best_of_a_group_is_bold_and_ties_are_all(tables):
    assert tables.embolden(["0.5", "", "0.7 ± 0.1", "0.7"], False) == ["0.5", "", "**0.7** ± 0.1", "**0.7**"]
    assert tables.embolden(["1,025", "983.9"], True) == ["1,025", "**983.9**"]
    assert tables.embolden(["0.5", ""], True) == ["0.5", ""]


def test_variants_of_an_experiment_stand_in_the_order_of_their_lines(tables):
    lines = (("a", ("0.1", "0.5")), ("b", ("0.1", "0.3", "0.5")), ("c", ("0", "0.1")))
    rows = [made(0.5, 0, data_set=name, method=m) for name, methods in lines for m in methods]
    assert tables.in_order(rows) == ["0", "0.1", "0.3", "0.5"]


def test_measured_variants_become_an_experiment(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    values = {("default", 0): 0.5, ("n_latent=30", 0): 0.6, ("default", 1): 0.7, ("n_latent=30", 1): 0.8}
    rows = [made(value, seed, conditions={"variant": variant}) for (variant, seed), value in values.items()]
    rows += [made(9.0, 0, measure="score_s", conditions={"variant": "default"})]
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert tables.table("experiments/x").splitlines() == [
        "| data set | measure | seeds | default | n_latent=30 |",
        "| --- | --- | --- | --- | --- |",
        "| cortex | ARI | 0, 1 | 0.600 | 0.700 |",
    ]


def test_the_page_on_running_names_every_script_and_is_short():
    text = (FOLDER / "README.md").read_text()
    assert all(f"### {script}" in text for script in SCRIPTS)
    assert len(text.splitlines()) < 120
