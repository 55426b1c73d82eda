"""Packs hold the counts as they were; damaged, stale and other ones are refused; nothing is left half-written."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import sccvae
from sccvae.data import packs
from sccvae.data.counts import Counts
from sccvae.data.packed_rows import PackedRows
from sccvae.data.packs import Collector
from sccvae.data.stored_arrays import Appended, StoredArray, ahead

OPTIONS = {"batch_key": "batch", "seed": 0, "n_hidden": 16, "n_latent": 3}


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """A simulated file in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    adata = sccvae.simulate.simulate(150, 40, n_batches=2, mean_library=80, keep_truth=False, seed=0)
    adata.write_h5ad("cells.h5ad")
    return adata


def rows_of(matrix, *, budget=0, folder=None, size=7, counts=True):
    collector = Collector(matrix.shape[1], counts=counts, budget=budget, folder=folder)
    for start in range(0, matrix.shape[0], size):
        collector.add(matrix[start : start + size])
    return collector.finished()


# -------------------------------------------------------------------------------------------------------- stored arrays


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_a_stored_array_is_the_array(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 200, 1000).astype(dtype)
    appended = Appended(dtype, tmp_path, "values.bin")
    for part in np.array_split(values, 7):
        appended.append(part)
    for stored in (appended.finished(), StoredArray.opened(tmp_path / "values.bin", dtype, 1000)):
        assert (len(stored), stored.dtype, stored.nbytes) == (1000, values.dtype, values.nbytes)
        for at in (slice(None), slice(3, 900), slice(10, 4), slice(5, 100, 3), slice(-10, None)):
            np.testing.assert_array_equal(stored[at], values[at])
        for at in ([], [5], [3, 4, 5], [9, 3, 4, 5, 999, 0], range(1000)):
            np.testing.assert_array_equal(stored[np.array(at, dtype=int)], values[np.array(at, dtype=int)])


def test_a_file_that_was_cut_is_an_error(tmp_path):
    appended = Appended(np.uint8, tmp_path, "values.bin")
    appended.append(np.arange(100, dtype=np.uint8))
    stored = appended.finished()
    os.truncate(tmp_path / "values.bin", 60)
    np.testing.assert_array_equal(stored[:60], np.arange(60))
    with pytest.raises(OSError, match=r"The counts end early in .*values\.bin: the file was cut short"):
        stored[50:70]
    with pytest.raises(ValueError, match=r"values\.bin has 60 bytes; expected 100. It is damaged"):
        StoredArray.opened(tmp_path / "values.bin", np.uint8, 100)


def test_models_with_counts_in_a_file_are_copied_and_pickled(cells):
    kept = sccvae.SCCVAE("cells.h5ad", memory_budget=0, cache_dir="cells.pack", **OPTIONS)._counts.stored
    again = pickle.loads(pickle.dumps(kept))
    assert again.in_file
    assert again.same_as(kept)
    temporary = sccvae.SCCVAE(cells, memory_budget=0, **OPTIONS)._counts.stored
    assert copy.deepcopy(temporary).same_as(kept)
    with pytest.raises(
        TypeError, match="are in a temporary file, so it cannot be sent to another process: save the model"
    ):
        pickle.dumps(temporary)


# ----------------------------------------------------------------------------------------------------------- collection


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("large", ["none", "some", "first", "last"])
def test_rows_are_the_same_in_memory_and_in_files(tmp_path, large, counts):
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.5, (40, 30)).astype(np.float64)
    rows = {"none": slice(0), "some": slice(5, 6), "first": slice(0, 8), "last": slice(30, 40)}[large]
    dense[rows] *= 400
    matrix = sp.csr_matrix(dense)
    memory = PackedRows.of(matrix, counts=counts)
    (tmp_path / "kept").mkdir()
    for found in (
        rows_of(matrix, counts=counts),
        rows_of(matrix, counts=counts, budget=500),
        rows_of(matrix, counts=counts, budget=1e9),
        rows_of(matrix, counts=counts, budget=1e9, folder=tmp_path / "kept"),
    ):
        assert found.same_as(memory)
        np.testing.assert_array_equal(found.csr(np.array([39, 3, 3, 17])).toarray(), dense[[39, 3, 3, 17]])
        np.testing.assert_array_equal(found.csr(slice(4, 25)).toarray(), dense[4:25])
        np.testing.assert_allclose(found.gene_sums(lambda x: x), dense.sum(0))
        np.testing.assert_allclose(found.row_sums(np.sqrt), np.sqrt(dense).sum(1), rtol=1e-6)
    assert found.in_file
    assert not rows_of(matrix, budget=1e9).in_file


def test_the_memory_that_is_free_is_bounded_by_limits():
    assert 0 < packs.free_memory() < 2**50
    script = (
        "import resource; from sccvae.data import packs; "
        "taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); "
        "resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, taken + 2**28)); print(packs.free_memory())"
    )
    free = int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)
    assert 2**27 < free <= 2**28


# --------------------------------------------------------------------------------------------------------- minibatches


@pytest.fixture
def in_file(monkeypatch):
    """300 cells in a file, read in blocks of about 5 cells and windows of about 60."""
    matrix = sp.csr_matrix(np.random.default_rng(0).poisson(0.5, (300, 40)).astype(np.float64))
    counts = Counts.of(rows_of(matrix))
    per_cell = counts.stored.nbytes / 300
    monkeypatch.setattr("sccvae.data.counts._BLOCK_BYTES", 5.5 * per_cell)
    monkeypatch.setattr("sccvae.data.counts._WINDOW_BYTES", 60.5 * per_cell)
    return counts


def test_every_cell_is_in_one_minibatch(in_file):
    cells = np.setdiff1d(np.arange(300), [3, 77, 150])
    groups = in_file.shuffled(cells, 16, np.random.default_rng(1))
    np.testing.assert_array_equal(np.sort(np.concatenate(groups)), cells)
    assert {len(group) for group in groups} <= {15, 16}
    again = in_file.shuffled(cells, 16, np.random.default_rng(1))
    other = in_file.shuffled(cells, 16, np.random.default_rng(2))
    assert all(map(np.array_equal, groups, again))
    assert not all(map(np.array_equal, groups, other))


def test_a_minibatch_has_cells_of_many_blocks(in_file):
    groups = in_file.shuffled(np.arange(300), 16, np.random.default_rng(1))
    blocks = [len(np.unique(group // 5)) for group in groups]
    assert np.mean(blocks) > 7  # of the 12 in a window; without mixing it would be 4
    neighbours = [np.corrcoef(group[:-1], group[1:])[0, 1] for group in groups]
    assert abs(np.mean(neighbours)) < 0.2


def test_minibatches_from_a_file_are_those_in_memory(in_file):
    memory = Counts.of(PackedRows.of(in_file.matrix))
    groups = in_file.shuffled(np.arange(300), 16, np.random.default_rng(1))
    found, expected = list(in_file.minibatches(groups)), list(memory.minibatches(groups))
    assert len(found) == len(expected) == len(groups)
    for a, b in zip(found, expected, strict=True):
        for name, value in a._asdict().items():
            np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)
    assert list(in_file.minibatches([])) == []


def test_reading_ahead_gives_errors_on_and_ends_early():
    def items():
        yield 1
        raise OSError("gone")

    read = ahead(items())
    assert next(read) == 1
    with pytest.raises(OSError, match="gone"):
        next(read)
    endless = ahead(iter(int, 1))
    assert next(endless) == 0
    endless.close()


@pytest.mark.parametrize("options", [{}, {"gene_likelihood": "poisson", "batch_mixing": 0.0}], ids=str)
def test_training_from_a_file_is_reproducible_and_as_good(cells, options):
    def trained(**more):
        model = sccvae.SCCVAE("cells.h5ad", **OPTIONS, **options, **more)
        model.train(max_epochs=30, progress_bar=False)
        return model

    memory, first, second = trained(), trained(memory_budget=0), trained(memory_budget=0)
    assert first._counts.stored.in_file
    np.testing.assert_array_equal(first.get_latent_representation(), second.get_latent_representation())
    assert first.get_elbo() == pytest.approx(memory.get_elbo(), rel=0.02)
    np.testing.assert_array_equal(first.get_latent_representation(cells), first.get_latent_representation("cells.h5ad"))


# --------------------------------------------------------------------------------------------------------------- packs


def test_a_pack_is_the_data(cells):
    path = sccvae.pack("cells.h5ad", "cells.pack")
    assert path == Path("cells.pack")
    models = {
        "memory": sccvae.SCCVAE(cells, **OPTIONS),
        "pack": sccvae.SCCVAE("cells.pack", **OPTIONS),
        "in file": sccvae.SCCVAE("cells.pack", memory_budget=0, **OPTIONS),
    }
    assert [model._counts.stored.in_file for model in models.values()] == [False, False, True]
    for model in models.values():
        model.train(max_epochs=2, progress_bar=False)
        assert model._counts.stored.same_as(models["memory"]._counts.stored)
    z = models["memory"].get_latent_representation()
    np.testing.assert_array_equal(models["pack"].get_latent_representation(), z)
    np.testing.assert_array_equal(models["memory"].get_latent_representation(path), z)
    pd.testing.assert_frame_equal(models["pack"].adata.obs, cells.obs)
    some = [f"gene_{k}" for k in range(35, 1, -1)]
    mask = np.isin(cells.var_names, some)
    for options in ({"genes": some}, {"mask_var": mask}):
        of_pack, of_data = (sccvae.SCCVAE(given, **OPTIONS, **options) for given in ("cells.pack", cells))
        assert of_pack._counts.stored.same_as(of_data._counts.stored)
    assert sccvae.SCCVAE("cells.pack", gene_likelihood="normal", **OPTIONS)._counts.stored.values.dtype == np.float32
    with pytest.raises(ValueError, match="holds values other than 0 and 1"):
        sccvae.SCCVAE("cells.pack", gene_likelihood="bernoulli", **OPTIONS)


def test_a_pack_keeps_layer_and_rounding(cells):
    cells.layers["raw"], cells.X = cells.X * 1.1, cells.X * 0.5
    cells.write_h5ad("layer.h5ad")
    sccvae.pack("layer.h5ad", "layer.pack", layer="raw", round_counts=True, genes=cells.var_names[:30])
    model = sccvae.SCCVAE("layer.pack", **OPTIONS)
    model.train(max_epochs=1, progress_bar=False)
    assert model.gene_names.tolist() == cells.var_names[:30].tolist()
    expected = np.rint(cells[:, :30].layers["raw"].toarray())
    np.testing.assert_array_equal(model._counts.matrix.toarray(), expected)
    np.testing.assert_array_equal(model.get_latent_representation(cells), model.get_latent_representation())
    with pytest.raises(ValueError, match=r"layer\.pack holds the counts of layer 'raw'; found layer='other'"):
        sccvae.SCCVAE("layer.pack", layer="other", **OPTIONS)


def test_a_kept_pack_is_used_again_and_a_stale_one_is_refused(cells):
    def model(given="cells.h5ad", **options):
        return sccvae.SCCVAE(given, cache_dir="kept", **OPTIONS, **options)

    first = model()
    written = os.stat("kept/pack.json").st_mtime_ns
    assert model()._counts.stored.same_as(first._counts.stored)
    assert os.stat("kept/pack.json").st_mtime_ns == written
    with pytest.raises(ValueError, match=r"cache_dir 'kept' holds other data \(40 genes, such as 'gene_0'"):
        model(genes=["gene_1", "gene_2"])
    with pytest.raises(ValueError, match=r"holds other data \(layer None, round_counts False, counts\)"):
        model(round_counts=True)
    cells.write_h5ad("other.h5ad")
    with pytest.raises(ValueError, match=r"holds other data \(of 'cells.h5ad'\): choose another cache_dir, or delete"):
        model("other.h5ad")
    with pytest.raises(ValueError, match="holds other data"):
        model(cells)
    cells[:100].copy().write_h5ad("cells.h5ad")
    for use in (model, lambda: sccvae.SCCVAE("kept")):
        with pytest.raises(ValueError, match=r"kept was made from .*cells\.h5ad, which has changed since: delete the"):
            use()


def test_views_of_one_backed_file_are_not_taken_for_each_other(cells):
    backed = ad.read_h5ad("cells.h5ad", backed="r")
    whole = sccvae.SCCVAE(backed, cache_dir="whole", **OPTIONS)
    again = sccvae.SCCVAE(backed, cache_dir="whole", **OPTIONS)
    assert again._counts.stored.same_as(whole._counts.stored)
    sccvae.SCCVAE(backed[:100], cache_dir="part", **OPTIONS)
    with pytest.raises(ValueError, match="holds other data"):
        sccvae.SCCVAE(backed[50:], cache_dir="part", **OPTIONS)


def test_an_anndata_is_kept_once_and_not_taken_for_another(cells):
    sccvae.SCCVAE(cells, cache_dir="kept", **OPTIONS)
    with pytest.raises(ValueError, match=r"holds other data \(of an AnnData, which cannot be compared with others\)"):
        sccvae.SCCVAE(cells, cache_dir="kept", **OPTIONS)
    assert sccvae.SCCVAE("kept", **OPTIONS)._counts.stored.same_as(sccvae.SCCVAE(cells, **OPTIONS)._counts.stored)


def test_packs_are_not_written_over_anything(cells):
    sccvae.pack("cells.h5ad", "cells.pack")
    Path("folder").mkdir()
    Path("folder/notes.txt").touch()
    Path("empty").mkdir()
    for out in ("cells.pack", "folder", "cells.h5ad"):
        with pytest.raises(FileExistsError, match=f"{out} exists; expected a new name, or an empty folder"):
            sccvae.pack("cells.h5ad", out)
    with pytest.raises(FileNotFoundError, match="The folder of the pack does not exist"):
        sccvae.pack("cells.h5ad", "missing/cells.pack")
    with pytest.raises(ValueError, match="is a pack; expected it alone"):
        sccvae.SCCVAE(["cells.pack", "cells.h5ad"])
    assert packs.is_pack(sccvae.pack("cells.pack", "empty"))


@pytest.mark.parametrize("name", ["genes.bin", "values.bin", "indptr.bin", "cells.h5ad", "pack.json"])
@pytest.mark.parametrize("how", ["cut", "changed", "missing"])
def test_a_damaged_pack_is_refused(cells, name, how):
    path = sccvae.pack("cells.h5ad", "cells.pack") / name
    whole = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif name == "pack.json":
        path.write_text(json.dumps({**json.loads(whole), "format": 9}))
    else:
        for at in range(0, len(whole), 50):
            whole[at] ^= 255
        path.write_bytes(whole)
    expected = (ValueError, FileNotFoundError) if name == "pack.json" else ValueError
    with pytest.raises(expected, match=r"cells\.pack"):
        sccvae.SCCVAE("cells.pack", **OPTIONS)


def test_bad_values_leave_no_pack(cells):
    cells.X[5, 3] = 0.5
    cells.write_h5ad("bad.h5ad")
    with pytest.raises(ValueError, match=r"bad\.h5ad: adata\.X holds values that are not counts"):
        sccvae.pack("bad.h5ad", "bad.pack")
    with pytest.raises(ValueError, match="not counts"):
        sccvae.SCCVAE("bad.h5ad", cache_dir="bad.pack")
    assert sorted(os.listdir()) == ["bad.h5ad", "cells.h5ad"]


def test_a_full_disk_is_one_sentence(cells, monkeypatch):
    """The limit of the size of a file stands in for a full disk."""
    big = sccvae.simulate.simulate(600, 300, mean_library=2000, keep_truth=False, seed=0)
    big.write_h5ad("big.h5ad")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"There is no space left for the counts in .*: pass cache_dir"):
            sccvae.SCCVAE("big.h5ad", memory_budget=0)
        with pytest.raises(OSError, match=r"File too large: '.*big\.pack'") as caught:
            sccvae.pack("big.h5ad", "big.pack")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert not [name for name in os.listdir() if "pack" in name]


@pytest.mark.slow
def test_a_killed_run_leaves_no_pack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sccvae.simulate.simulate(20_000, 400, keep_truth=False, out="cells.h5ad")
    script = "import sccvae; print('begin', flush=True); sccvae.pack('cells.h5ad', 'cells.pack')"
    rng = np.random.default_rng(0)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(rng.uniform(0.2, 4))
        process.kill()
        process.wait()
        if packs.is_pack(Path("cells.pack")):
            break
    if not packs.is_pack(Path("cells.pack")):
        sccvae.pack("cells.h5ad", "cells.pack")
    assert sorted(os.listdir()) == ["cells.h5ad", "cells.pack"]  # the next run removed what was left
    assert sccvae.SCCVAE("cells.pack").adata.n_obs == ad.read_h5ad("cells.h5ad", backed="r").n_obs
