"""Arrays in new files: filled in any chunks, they hold the rows; what fails leaves no file."""

from __future__ import annotations

import errno
import os
import resource
import signal

import numpy as np
import pytest

import sccvae
from sccvae.io import arrays


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
@pytest.mark.parametrize("shape", [(50, 7), (3, 50, 7), (1, 1), (0, 7)])
def test_rows_in_any_chunks(tmp_path, monkeypatch, suffix, shape):
    monkeypatch.setattr(arrays, "_CHUNK", 7 * 8)
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    with arrays.new_array(tmp_path / f"rho{suffix}", shape, np.dtype(np.float32)) as array:
        assert tuple(array.shape) == shape
        for start, stop in ((0, 3), (3, 4), (4, 30), (30, 50)):
            rows = slice(min(start, shape[-2]), min(stop, shape[-2]))
            array[rows if len(shape) == 2 else (slice(None), rows)] = values[..., rows, :]
    found = arrays.opened(tmp_path / f"rho{suffix}")
    np.testing.assert_array_equal(found[:], values)


def test_rows_out_of_order_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="rows from 5 on came out of order; expected 0"):  # noqa: SIM117
        with arrays.new_array(tmp_path / "rho.zarr", (9, 2), np.dtype(np.float32)) as array:
            array[5:7] = np.ones((2, 2))
    assert os.listdir(tmp_path) == []


def test_expression_goes_into_files(model, adata, tmp_path):
    expected = model.get_normalized_expression(adata, return_numpy=True)
    for name in ("rho.npy", "rho.zarr"):
        found = model.get_normalized_expression(adata, out=tmp_path / name)
        np.testing.assert_array_equal(found[:], expected)
        again = model.get_normalized_expression(adata, gene_list=["gene3"], out=str(tmp_path / name))  # replaces it
        np.testing.assert_array_equal(again[:], expected[:, [3]])
    samples = {"n_samples": 2, "return_mean": False, "indices": [4, 2]}
    found = model.get_normalized_expression(adata, out=tmp_path / "samples.zarr", **samples)
    np.testing.assert_array_equal(found[:], model.get_normalized_expression(adata, **samples))
    with pytest.raises(
        ValueError, match=r"out is .*rho\.csv; expected an array, or a path that ends in \.npy or \.zarr"
    ):
        model.get_normalized_expression(adata, out=tmp_path / "rho.csv")
    with pytest.raises(FileNotFoundError, match="The folder of the output does not exist"):
        model.get_normalized_expression(adata, out=tmp_path / "missing" / "rho.npy")


def test_a_full_disk_is_an_error_and_not_a_crash(tmp_path):
    """The limit of the size of a file stands in for a full disk."""
    adata = sccvae.simulate.simulate(300, 100, keep_truth=False, seed=0)
    model = sccvae.SCCVAE(adata, n_hidden=16)
    model.train(max_epochs=1, progress_bar=False)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"rho\.npy") as caught:
            model.get_normalized_expression(out=tmp_path / "rho.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == []
