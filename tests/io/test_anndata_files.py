"""An AnnData on the disk: read back before it takes its name, in both formats; a disk that is too small."""

from __future__ import annotations

import os
import subprocess
import sys

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sccvae.io import anndata_files

READ = {".h5ad": ad.read_h5ad, ".zarr": ad.read_zarr}


def same(a: ad.AnnData, b: ad.AnnData) -> bool:
    """Whether two AnnData hold the same, but for texts that became categories."""
    for one, other in ((a.obs, b.obs), (a.var, b.var), (a.obsm["table"], b.obsm["table"])):
        pd.testing.assert_frame_equal(one.astype(str), other.astype(str), check_names=False)
    matrices = [lambda x: x.X, lambda x: x.raw.X, lambda x: x.obsm["z"], lambda x: x.obsp["near"]]
    matrices += [lambda x: x.varm["effect"], lambda x: x.layers["dense"], lambda x: x.layers["csc"]]
    for part in matrices:
        np.testing.assert_array_equal(*(m.toarray() if sp.issparse(m := part(x)) else m for x in (a, b)))
    return list(a.uns["nested"]["a"]["b"]) == list(b.uns["nested"]["a"]["b"]) and a.uns["text"] == b.uns["text"]


@pytest.fixture
def full(adata):
    """`adata` with something in every slot."""
    adata.raw = adata
    adata.layers["dense"] = adata.X.toarray()
    adata.layers["csc"] = adata.X.tocsc()
    adata.obsm["z"] = np.zeros((adata.n_obs, 3), dtype=np.float32)
    adata.obsm["table"] = pd.DataFrame({"a b": np.ones(adata.n_obs), "é": 2}, index=adata.obs_names)
    adata.obsp["near"] = sp.eye(adata.n_obs, format="csr")
    adata.varm["effect"] = np.ones((adata.n_vars, 2))
    adata.uns["nested"], adata.uns["text"] = {"a": {"b": np.arange(3)}, "nothing": None}, "t"
    return adata


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr", ".H5AD"])
def test_all_of_an_anndata_is_written_and_replaced(full, tmp_path, suffix):
    path = tmp_path / f"o{suffix}"
    anndata_files.write(full[:20].copy(), path)
    anndata_files.write(full, path)
    assert os.listdir(tmp_path) == [path.name]
    assert same(READ[suffix.lower()](path), full)


@pytest.mark.parametrize("name", ["o.h5", "o.txt", "o", "o.h5ad.gz", ".h5ad"])
def test_another_suffix_is_refused(adata, tmp_path, name):
    with pytest.raises(ValueError, match=r"expected a name that ends in \.h5ad or \.zarr"):
        anndata_files.write(adata, tmp_path / name)
    assert os.listdir(tmp_path) == []


def lose_a_matrix(file):
    del file["obsm/z"]


def put_another_beside(file):
    file["layers/other"] = np.ones(3)


def cut_a_matrix(file):
    del file["layers/dense"]
    file["layers/dense"] = np.ones((3, 3))


def cut_a_sparse_matrix(file):
    del file["X/indices"]
    file["X/indices"] = np.ones(3, dtype=np.int32)


def lose_a_column(file):
    del file["obsm/table/a b"]


def lose_a_column_of_obs(file):
    file["obs"].attrs["column-order"] = list(file["obs"].attrs["column-order"])[1:]


def damage_uns(file):
    file["uns/text"].attrs["encoding-type"] = "unheard-of"


def lose_raw(file):
    del file["raw"]


@pytest.mark.parametrize(
    "damage",
    [lose_a_matrix, put_another_beside, cut_a_matrix, cut_a_sparse_matrix, lose_a_column, lose_a_column_of_obs,
     damage_uns, lose_raw],
    ids=lambda damage: damage.__name__,
)  # fmt: skip
def test_a_file_that_is_not_as_it_was_written_does_not_take_the_name(full, tmp_path, monkeypatch, damage):
    path = tmp_path / "o.h5ad"
    path.write_text("old")
    write = ad.AnnData.write_h5ad

    def damaged(self, part, **options):
        write(self, part, **options)
        with h5py.File(part, "a") as file:
            damage(file)

    monkeypatch.setattr(ad.AnnData, "write_h5ad", damaged)
    with pytest.raises(ValueError, match=rf"The output {path} cannot be read back, so it was not written \(\w+: "):
        anndata_files.write(full, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["o.h5ad"]


def test_a_key_that_hdf5_takes_for_a_path_does_not_destroy_the_file(adata, tmp_path):
    path = tmp_path / "o.h5ad"
    anndata_files.write(adata, path)
    before = path.read_bytes()
    adata.obsm["X_a/b"] = np.ones((adata.n_obs, 2))
    with pytest.raises(ValueError, match=r"a/b|slash"):
        anndata_files.write(adata, path)
    assert path.read_bytes() == before


# ---------------------------------------------------------------------------------------------------------- little room


def test_a_file_that_might_not_fit_is_written_by_a_child(full, tmp_path, monkeypatch):
    monkeypatch.setattr(anndata_files, "_free_bytes", lambda _: 1000)
    writers, write = [], ad.AnnData.write_h5ad
    monkeypatch.setattr(ad.AnnData, "write_h5ad", lambda *a, **k: [writers.append(os.getpid()), write(*a, **k)])
    anndata_files.write(full, tmp_path / "o.h5ad")
    assert same(ad.read_h5ad(tmp_path / "o.h5ad"), full)
    assert writers == []  # not in this process


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (OSError(28, "No space"), OSError, r"\[Errno 28\] No space left on device: '.*o.h5ad'"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (MemoryError("8 GiB"), MemoryError, "8 GiB"),
        (TypeError("what"), TypeError, "what"),
        (RuntimeError("Unable to flush"), ValueError, "Unable to flush"),
    ],
)
def test_what_a_child_raises_is_raised(adata, tmp_path, monkeypatch, error, kind, text):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(anndata_files, "_free_bytes", lambda _: 1000)
    monkeypatch.setattr(ad.AnnData, "write_h5ad", fail)
    with pytest.raises(kind, match=text):
        anndata_files.write(adata, tmp_path / "o.h5ad")
    assert os.listdir(tmp_path) == []


def test_a_child_that_dies_is_told(adata, tmp_path, monkeypatch):
    monkeypatch.setattr(anndata_files, "_free_bytes", lambda _: 1000)
    monkeypatch.setattr(ad.AnnData, "write_h5ad", lambda *_, **__: os.kill(os.getpid(), 9))
    with pytest.raises(OSError, match="The writing process ended with status 9"):
        anndata_files.write(adata, tmp_path / "o.h5ad")


LIMITED = """
import resource, sys
from sccvae.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))  # by way of Python's own end, where HDF5 crashed
"""


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "saved"), [(4_000, False), (500_000, True)])
def test_a_limit_on_file_size_ends_in_one_line(adata, tmp_path, limit, saved):
    """As a full disk does: status 1, no crash, nothing half-written, and the model is saved first."""
    big = ad.AnnData(sp.csr_matrix(np.tile(adata.X.toarray(), (20, 1))))
    big.obs_names_make_unique()
    big.write_h5ad(tmp_path / "in.h5ad")
    (tmp_path / "o.h5ad").write_text("old")
    command = ["integrate", "in.h5ad", "-o", "o.h5ad", "--max-epochs", "1", "--save-model", "m", "--n-latent", "4"]
    command = [sys.executable, "-c", LIMITED, str(limit), *command]
    # The limit would be that of coverage's file, too.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    named = "o.h5ad" if saved else "m"
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"sccvae: error: [Errno 27] File too large: '{tmp_path / named}'\n"
    assert sorted(os.listdir(tmp_path)) == sorted(["in.h5ad", "o.h5ad"] + ["m"] * saved)
    assert (tmp_path / "o.h5ad").read_text() == "old"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk")
@pytest.mark.parametrize("name", ["o.h5ad", "o.zarr"])
def test_a_full_disk_ends_in_one_line(adata, tmp_path, name):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", disk], check=False).returncode:
        pytest.skip("this system lets nobody mount")
    try:
        adata.write_h5ad(tmp_path / "in.h5ad")
        command = [sys.executable, "-m", "sccvae", "integrate", "in.h5ad", "-o", f"disk/{name}", "--max-epochs", "1"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        left = os.listdir(disk)
    finally:
        subprocess.run(["umount", disk], check=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"sccvae: error: [Errno 28] No space left on device: '{disk / name}'\n"
    assert left == []
