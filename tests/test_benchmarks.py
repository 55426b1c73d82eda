"""Benchmarks start at all: what each says of a machine is not tested."""

import importlib
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from sccvae import simulate
from sccvae.data import split

FOLDER = Path(__file__).parent.parent / "benchmarks"


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
