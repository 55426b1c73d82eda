"""Several processes train the model of one: the same gradients, ends that are decided alike, and no process that hangs.

Processes that import torch take seconds to start, so that each set of them does several things (`together.py`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import sccvae

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
ROOT = Path(sccvae.__file__).parents[1]
TOGETHER = Path(__file__).with_name("together.py")
LIMIT = 120  # seconds; a process that hangs takes longer


def environment(**more) -> dict[str, str]:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in more.items()}


def started(folder, *tasks, size=2) -> list[subprocess.Popen]:
    """Processes with the variables of torchrun, without torchrun, which would end all after one of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, str(TOGETHER), str(folder), *map(str, tasks)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen(command, env=environment(RANK=rank, **shared), **pipes) for rank in range(size)]


def results(folder, *tasks, size=2) -> list[dict]:
    processes = started(folder, *tasks, size=size)
    try:
        texts = [process.communicate(timeout=LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * size, texts
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes found, one task after another."""
    folder = tmp_path_factory.mktemp("together")
    sccvae.simulate.simulate(90, 30, n_batches=2, seed=0).write_h5ad(folder / "cells.h5ad")
    return folder, results(folder, "gradient", "runs", "drift", "interrupted", "different", "outputs", "error")


def alone(monkeypatch, folder):
    """The module of the tasks, in this process."""
    monkeypatch.setattr(sys, "argv", ["", str(folder)])
    monkeypatch.setenv("RANK", "0")
    spec = importlib.util.spec_from_file_location("together", TOGETHER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("waits", [True, False])
def test_the_gradient_is_that_of_all_cells_in_one_process(found, waits, monkeypatch):
    together = alone(monkeypatch, found[0])
    gradient, total = together.one_step(np.arange(together.N_CELLS), waits, None)
    for rank in range(2):
        there = np.load(found[0] / f"gradient_{waits}_{rank}.npz")
        np.testing.assert_allclose(there["gradient"], gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max())
        np.testing.assert_allclose(there["total"], total, rtol=1e-5)
    assert np.count_nonzero(gradient) > 500


def test_runs_are_the_same_twice_and_in_all_processes(found, monkeypatch):
    first, second = found[1]
    assert first["twice"] == second["twice"]
    assert len(set(first["twice"])) == 1
    for name in ("small", "autoencoder"):
        assert first[name] == second[name]
    one = alone(monkeypatch, found[0]).trained(batch_size=32)  # with other noise
    np.testing.assert_allclose(first["history"], one.history["elbo"], rtol=0.1)


def test_weights_that_differ_are_made_equal_at_the_next_epoch(found):
    first, second = found[1]
    assert first["drift"] == second["drift"]


def test_an_interruption_of_one_process_ends_all_and_the_run_goes_on_to_the_bit(found):
    first, second = found[1]
    assert first["interrupted"] == second["interrupted"]
    assert first["interrupted"][1] == 2  # the fifth step is one of the second epoch
    assert first["resumed"] == second["resumed"] == first["twice"][0]


def test_what_ends_a_run_is_decided_alike(found):
    first, second = found[1]
    assert first["not finite"] == second["not finite"]
    for name, text in (
        ("data", "other batches or covariates"),
        ("epochs", "plan.max_epochs is 2 there, 3 here"),
        ("versions", "versions.torch is '2.0' there, '2.1' here"),
    ):
        assert first[name] == second[name]
        assert first[name].startswith("Disagreement: Processes 0 and 1 of 2 cannot train together: ")
        assert text in first[name]


def test_an_error_in_one_process_ends_all_with_its_text(found):
    first, second = found[1]
    assert second["error"] == "ValueError: a value of this process"
    assert first["error"] == "ConnectionError: Process 1 of 2 ended the run: ValueError: a value of this process"


def test_outputs_of_all_processes_are_in_one_file_in_the_order_of_the_cells(found):
    folder, (first, second) = found
    alone = anndata.read_h5ad(folder / "alone.h5ad")
    assert first["seen"] == second["seen"] == ["together.h5ad", "together.zarr"]
    for together in (anndata.read_h5ad(folder / "together.h5ad"), anndata.read_zarr(folder / "together.zarr")):
        pd.testing.assert_frame_equal(together.obs, alone.obs, rtol=1e-5)
        np.testing.assert_array_equal(together.X.toarray(), alone.X.toarray())
        np.testing.assert_allclose(together.obsm["X_sccvae"], alone.obsm["X_sccvae"], atol=1e-5)
        for layer in ("sccvae", "sccvae_corrected"):
            np.testing.assert_allclose(together.layers[layer], alone.layers[layer], rtol=1e-4)


def test_an_error_while_outputs_are_written_ends_all_and_leaves_no_file(tmp_path):
    sccvae.simulate.simulate(90, 30, n_batches=2, seed=0).write_h5ad(tmp_path / "cells.h5ad")
    first, second = results(tmp_path, "outputs_with_error")
    assert second["outputs"] == "ValueError: a value of this process"
    assert first["outputs"] == "ConnectionError: Process 1 of 2 ended the run: ValueError: a value of this process"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.json", "1.json", "cells.h5ad"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others(rank, tmp_path):
    processes, began = started(tmp_path, "killed", rank), time.monotonic()
    try:
        for process in processes:
            process.communicate(timeout=LIMIT)
    finally:
        for process in processes:
            process.kill()
    assert processes[rank].returncode == -9
    text = json.loads((tmp_path / f"{1 - rank}.json").read_text())["killed"]
    assert text.startswith("ConnectionError: One of 2 processes ended or cannot be reached: it was killed, or")
    assert time.monotonic() - began < LIMIT / 2


@pytest.mark.slow
def test_the_command_line_under_torchrun(adata, tmp_path):
    """One process writes and prints; a run of the same folder is returned at once."""
    adata.write_h5ad(tmp_path / "in.h5ad")
    options = ["-o", "out.h5ad", "--batch-key", "batch", "--max-epochs", "2", "--checkpoint", "run"]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sccvae", "integrate"]
    found = []
    for more in ([], [], ["--seed", "1", "--n-latent", "5"]):
        result = subprocess.run(
            [sys.executable, *command, "in.h5ad", *options, *more],
            env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("written: out.h5ad") == 1
        found.append(anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_sccvae"])
    np.testing.assert_array_equal(found[0], found[1])
    assert found[2].shape == (120, 5)
