"""An AnnData written block by block is that of all blocks together; other blocks and full disks are errors."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sccvae.io import in_blocks

READ = {".h5ad": ad.read_h5ad, ".zarr": ad.read_zarr}


def cells(n: int = 50, kind: str = "b") -> ad.AnnData:
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(0.5, (n, 7)).astype(np.float32))
    obs = pd.DataFrame(
        {"x": rng.random(n), "kind": pd.Categorical([kind] * n, ["a", kind])}, index=[f"é{i}" for i in range(n)]
    )
    layers, obsm = {"l": counts.toarray() + 1}, {"z": rng.random((n, 3)).astype(np.float32)}
    found = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=list("abcdefg")), layers=layers, obsm=obsm)
    found.varm["v"], found.uns["nested"] = np.ones((7, 2)), {"a": [1, 2], "b": "text"}
    return found


def parts(whole: ad.AnnData, *edges: int) -> list[ad.AnnData]:
    ends = [0, *edges, whole.n_obs]
    found = []
    for first, last in pairwise(ends):
        part = whole[first:last].copy()
        part.obs["kind"] = part.obs["kind"].cat.set_categories(whole.obs["kind"].cat.categories)
        found.append(part)
    return found


@pytest.mark.parametrize("rows", [4, 7, 2**20])
@pytest.mark.parametrize("suffix", READ)
def test_other_files_follow_the_blocks(tmp_path, monkeypatch, suffix, rows):
    """Layers are copied as they are compressed where chunks meet, and otherwise read."""
    whole = cells()
    monkeypatch.setattr(in_blocks, "_DENSE", 7 * rows)
    first, second, third = parts(whole, 28, 36)
    copied, copy_chunks = [], in_blocks._copy_chunks
    monkeypatch.setattr(in_blocks, "_copy_chunks", lambda *given: (copied.append(1), copy_chunks(*given))[1])
    in_blocks.write([second], one := tmp_path / f"one{suffix}")
    in_blocks.write(parts(third, 3), two := tmp_path / f"two{suffix}")
    monkeypatch.setattr(in_blocks, "_MOST", whole.X[:30].nnz)
    in_blocks.write([first], path := tmp_path / f"o{suffix}", more=iter([one, two]))
    found = READ[suffix](path)
    assert len(copied) == ({4: 2, 7: 1}.get(rows, 0) if suffix == ".h5ad" else 0)
    for a, b in ((found.X, whole.X), (found.obsm["z"], whole.obsm["z"]), (found.layers["l"], whole.layers["l"])):
        np.testing.assert_array_equal(*(m.toarray() if sp.issparse(m) else m for m in (a, b)))
    pd.testing.assert_frame_equal(found.obs, whole.obs)
    assert found.X.indptr.dtype == np.int64


@pytest.mark.parametrize("suffix", READ)
def test_numbers_become_the_texts_that_they_stand_for(tmp_path, suffix):
    """Also those of other files; the categories are those that occur, in order."""
    whole, names = cells(), ["z", "y", "x", "w", "v"]
    whole.obs["why"] = np.random.default_rng(1).integers(4, size=50)
    first, second, third = parts(whole, 20, 35)
    in_blocks.write([third], other := tmp_path / f"other{suffix}")
    texts = {"why": lambda numbers: [names[k] for k in numbers]}
    in_blocks.write([first, second], path := tmp_path / f"o{suffix}", more=iter([other]), texts=texts)
    expected = whole.obs.assign(why=pd.Categorical([names[k] for k in whole.obs["why"]]))
    pd.testing.assert_frame_equal(READ[suffix](path).obs, expected)


@pytest.mark.parametrize("suffix", READ)
def test_other_files_with_other_categories_are_refused(tmp_path, suffix):
    in_blocks.write([cells(kind="c")], other := tmp_path / f"other{suffix}")
    with pytest.raises(ValueError, match="Files have different columns of obs or categories"):
        in_blocks.write([cells()], tmp_path / f"o{suffix}", more=[other])
    assert os.listdir(tmp_path) == [other.name]


@pytest.mark.parametrize("edges", [(), (1, 20), (0, 13, 13, 49)])
@pytest.mark.parametrize("suffix", READ)
def test_blocks_are_written_as_one(tmp_path, suffix, edges):
    whole, path = cells(), tmp_path / f"o{suffix}"
    in_blocks.write(parts(whole, *edges), path)
    in_blocks.write(iter(parts(whole, *edges)), path)  # in place of a file
    found = READ[suffix](path)
    assert os.listdir(tmp_path) == [path.name]
    for one, other in ((found.X, whole.X), (found.obsm["z"], whole.obsm["z"]), (found.layers["l"], whole.layers["l"])):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(*(m.toarray() if sp.issparse(m) else m for m in (one, other)))
    for name in ("data", "indices", "indptr"):
        assert getattr(found.X, name).dtype == getattr(whole.X, name).dtype
    pd.testing.assert_frame_equal(found.obs, whole.obs)
    pd.testing.assert_frame_equal(found.var, whole.var)
    np.testing.assert_array_equal(found.varm["v"], whole.varm["v"])
    assert found.uns["nested"]["b"] == "text"


def test_many_values_have_positions_of_64_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(in_blocks, "_MOST", 100)
    whole = cells()
    in_blocks.write(parts(whole, 10, 20), tmp_path / "o.h5ad")
    found = ad.read_h5ad(tmp_path / "o.h5ad")
    assert found.X.indptr.dtype == np.int64
    np.testing.assert_array_equal(found.X.toarray(), whole.X.toarray())


@pytest.mark.parametrize("suffix", READ)
def test_blocks_that_differ_leave_the_old_file(tmp_path, suffix):
    path = tmp_path / f"o{suffix}"
    in_blocks.write([cells()], path)
    dense = cells()
    dense.X = dense.X.toarray()
    for other, message in ((cells(kind="c"), "Blocks have different columns"), (dense, "expected CSR")):
        with pytest.raises(ValueError, match=message):
            in_blocks.write([cells(), other], path)
    assert READ[suffix](path).n_obs == 50
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), OSError(28, "full")])
@pytest.mark.parametrize("suffix", READ)
def test_an_error_between_blocks_leaves_nothing(tmp_path, suffix, error):
    def blocks():
        yield cells()
        raise error

    with pytest.raises(type(error)):
        in_blocks.write(blocks(), tmp_path / f"o{suffix}")
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_not_as_it_was_written_does_not_take_the_name(tmp_path, monkeypatch):
    original = in_blocks._write

    def damaged(*given):
        lengths = original(*given)
        with in_blocks.anndata_files.opened(given[1], "r+") as group:
            group["obsm/z"].resize(3, axis=0)
        return lengths

    monkeypatch.setattr(in_blocks, "_write", damaged)
    with pytest.raises(ValueError, match=r"o\.h5ad cannot be read back, so it was not written .*obsm/z has length 3"):
        in_blocks.write([cells()], tmp_path / "o.h5ad")
    assert os.listdir(tmp_path) == []


LIMITED = """
import resource, sys
from sccvae import simulate
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, resource.RLIM_INFINITY))
try:
    simulate.simulate(100_000, 300, out=sys.argv[1])
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs limits on the size of files")
def test_a_full_disk_is_one_sentence_with_the_path(tmp_path):
    path = tmp_path / "o.h5ad"
    code = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(code, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"[Errno 27] File too large: '{path}'\n"
    assert done.stderr == ""
    assert os.listdir(tmp_path) == []
