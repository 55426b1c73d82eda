"""Benchmarks start at all: what each says of a machine is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sccvae import simulate
from sccvae.data.counts import split

FOLDER = Path(__file__).parents[2] / "benchmarks"


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
