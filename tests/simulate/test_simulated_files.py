"""Simulated files hold the cells of the same call in memory; memory is bounded, and killed runs leave nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from sccvae import simulate
from sccvae.simulate import simulation

READ = {".h5ad": ad.read_h5ad, ".zarr": ad.read_zarr}
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def assert_same(found: ad.AnnData, expected: ad.AnnData) -> None:
    for name in ("data", "indices", "indptr"):
        one, other = (getattr(a.X, name) for a in (found, expected))
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    pd.testing.assert_frame_equal(found.var, expected.var)
    np.testing.assert_array_equal(found.obsm["z"], expected.obsm["z"])
    np.testing.assert_array_equal(found.varm["batch_effect"], expected.varm["batch_effect"])
    found_uns, uns = (a.uns["simulate"] for a in (found, expected))
    assert found_uns.keys() == uns.keys()
    assert all(np.array_equal(found_uns[key], uns[key]) for key in uns)
    found_layers, layers = ({k: v for k, v in a.layers.items() if k is not None} for a in (found, expected))
    assert found_layers.keys() == layers.keys()
    assert all(np.array_equal(found_layers[key], layers[key]) for key in layers)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(simulation, "_TOGETHER", 512 * 40)


@pytest.mark.parametrize("truth", [None, False, True])
@pytest.mark.parametrize("suffix", READ)
def test_a_file_holds_the_cells_of_the_call_in_memory(tmp_path, suffix, truth):
    path = simulate.simulate(1300, 40, seed=2, keep_truth=truth, out=tmp_path / f"o{suffix}")
    assert path == tmp_path / f"o{suffix}"
    assert_same(READ[suffix](path), simulate.simulate(1300, 40, seed=2, keep_truth=bool(truth)))


@pytest.mark.parametrize("suffix", READ)
def test_several_files_hold_consecutive_cells(tmp_path, suffix):
    paths = simulate.simulate(1300, 40, seed=2, out=str(tmp_path / f"o{suffix}"), n_files=11)
    assert [path.name for path in paths] == [f"o_{i:02d}{suffix}" for i in range(11)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in paths]
    whole, first = simulate.simulate(1300, 40, seed=2, keep_truth=False), 0
    for path in paths:
        found = READ[suffix](path)
        assert abs(found.n_obs - 1300 / 11) < 1
        expected = whole[first : first + found.n_obs].copy()
        for name in ("batch", "cell_type"):  # anndata drops those without cells from a part
            expected.obs[name] = expected.obs[name].cat.set_categories(whole.obs[name].cat.categories)
        assert_same(found, expected)
        first += found.n_obs
    assert first == 1300


def test_one_file_of_several_has_a_number(tmp_path):
    (path,) = simulate.simulate(10, 40, out=tmp_path / "o.h5ad", n_files=1)
    assert path.name == "o_0.h5ad"


@pytest.mark.parametrize("threads", ["1", "3"])
def test_cells_do_not_depend_on_threads(monkeypatch, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert simulation._n_threads(40) == int(threads)
    assert_same(simulate.simulate(1300, 40, seed=2), _SINGLE)


_SINGLE = simulate.simulate(1300, 40, seed=2)


def test_many_genes_are_sampled_by_fewer_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert simulation._n_threads(2000) == 16
    assert simulation._n_threads(1_000_000) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert 1 <= simulation._n_threads(2000) <= 16


def test_threads_of_blas_are_as_before_after_the_last_simulation():
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    parameters = simulation._Simulation.of(_SINGLE.uns["simulate"], keep_truth=False)
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        first, second = (parameters.cells(0, 1300, 512) for _ in range(2))
        next(first)
        next(second)
        assert set(threads()) == {1}
        first.close()
        assert set(threads()) == {1}
        list(second)
        assert threads() == before
        with pytest.raises(ValueError, match="n_cells"):
            simulate.simulate(0, 40)
        assert threads() == before


def test_results_are_in_order_and_errors_reach_the_caller():
    def slow(i: int) -> int:
        time.sleep(0.01 * (i % 3 == 0))
        if i == 20:
            raise MemoryError
        return i

    assert list(simulation._in_order(slow, range(19), 3)) == list(range(19))
    found = simulation._in_order(slow, range(100), 3)
    with pytest.raises(MemoryError):
        list(found)
    found = simulation._in_order(slow, range(19), 3)
    next(found)
    found.close()  # ends the threads


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_files": 2}, ValueError, "n_files is 2, but out is None; expected the name of a file"),
        ({"out": "o.h5ad", "n_files": 0}, ValueError, "n_files is 0; expected at least 1"),
        ({"out": "o.h5ad", "n_files": 11}, ValueError, "n_files is 11; expected at most 10"),
        ({"out": "o.h5ad", "n_files": 1.5}, ValueError, "n_files is 1.5; expected a whole number"),
        ({"out": "o.csv"}, ValueError, r"The out is o\.csv; expected a name that ends in \.h5ad or \.zarr"),
        ({"out": 3}, TypeError, "out is 3; expected the path"),
        ({"out": "nowhere/o.h5ad"}, FileNotFoundError, "The folder of the out does not exist"),
        ({"keep_truth": "no"}, TypeError, "keep_truth is 'no'; expected True or False"),
    ],
)
def test_errors(options, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        simulate.simulate(10, 40, **options)
    assert os.listdir(tmp_path) == []


PEAK = """
import json, resource, sys
from sccvae import simulate
from sccvae.simulate import simulation
simulation._TOGETHER = 2**20
found = []
for n_cells in (2_000, 60_000):
    simulate.simulate(n_cells, 100, n_latent=5, out=sys.argv[1])
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
print(json.dumps(found + ["torch" in sys.modules]))
"""


@LINUX
@pytest.mark.parametrize("suffix", READ)
def test_memory_does_not_grow_with_the_cells(tmp_path, suffix):
    """60,000 cells take 12 MiB of counts and 14 MiB of names and columns: less than half of it is added."""
    code = [sys.executable, "-c", PEAK, str(tmp_path / f"o{suffix}")]
    done = subprocess.run(code, capture_output=True, text=True, timeout=300, check=True)
    small, large, torch = json.loads(done.stdout)
    assert large - small < 13
    assert not torch


KILLED = """
import sys
from sccvae import simulate
print("ready", flush=True)
simulate.simulate(10_000_000, 50, out=sys.argv[1])
"""


@pytest.mark.parametrize("suffix", READ)
def test_a_killed_run_leaves_nothing_under_the_name(tmp_path, suffix):
    path = tmp_path / f"o{suffix}"
    code = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(code, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        deadline = time.monotonic() + 60
        while not any(tmp_path.glob(f".o{suffix}.*.part/o{suffix}")) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    assert len(os.listdir(tmp_path)) == 1  # the part of the killed run
    simulate.simulate(10, 40, out=path)
    assert os.listdir(tmp_path) == [path.name]
