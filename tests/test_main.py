"""The command line: what it writes, what it says, and what it leaves behind when something is wrong."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import site
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import torch
from safetensors import SafetensorError

import sccvae
from sccvae import demo
from sccvae.__main__ import main

QUICK = ["--max-epochs", "1", "--n-latent", "4"]


@pytest.fixture
def counts(adata, tmp_path):
    """Path of an .h5ad file with `adata` without highly variable genes."""
    adata.layers["counts"] = adata.X.copy()
    adata.layers["lognorm"] = adata.X.log1p()
    adata.var["mine"] = adata.var.pop("highly_variable")
    adata.write_h5ad(tmp_path / "counts.h5ad")
    return tmp_path / "counts.h5ad"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "integrated.h5ad"


def run_module(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sccvae", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def refused(capsys, *arguments) -> str:
    """Run with bad input; return the one line on stderr."""
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sccvae: error: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    assert "Traceback" not in captured.err
    return captured.err.removeprefix("sccvae: error: ").rstrip("\n")


def test_integrate_writes_what_the_function_writes(counts, output, capsys):
    assert main(["integrate", str(counts), "-o", str(output), "--batch-key", "batch", *QUICK]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("SCCVAE on 120 cells, 60 genes, 3 batches ('batch')")
    assert captured.out.endswith(f"written: {output}\n")
    assert captured.err == ""
    written = ad.read_h5ad(output)
    expected = ad.read_h5ad(counts)
    sccvae.tl.integrate(expected, batch_key="batch", model_options={"n_latent": 4}, train_options={"max_epochs": 1})
    np.testing.assert_array_equal(written.obsm["X_sccvae"], expected.obsm["X_sccvae"])
    for key in ("sccvae", "sccvae_corrected"):
        np.testing.assert_array_equal(written.layers[key], expected.layers[key])
    np.testing.assert_array_equal(written.obs["sccvae_library"], expected.obs["sccvae_library"])
    assert (written.X != expected.X).nnz == 0
    assert written.uns["sccvae"]["parameters"]["batch_key"] == "batch"


def test_python_dash_m_in_a_process_of_its_own(counts, output):
    result = run_module("integrate", counts, "-o", output, "--batch-key", "batch", "--no-expression", *QUICK)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith(f"written: {output}\n")
    written = ad.read_h5ad(output)
    assert written.obsm["X_sccvae"].shape == (120, 4)
    assert "sccvae" not in written.layers


def test_python_dash_m_with_bad_input(counts, output):
    result = run_module("integrate", counts, "-o", output, "--batch-key", "bach")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == "sccvae: error: adata.obs has no column 'bach'. Did you mean 'batch'?\n"
    assert not output.exists()


def test_all_options_together(counts, output, tmp_path):
    options = ["--layer", "counts", "--mask-var", "mine", "--key-added", "vae", "--likelihood", "nb", "--seed", "5"]
    folder = tmp_path / "model"
    arguments = ["integrate", str(counts), "--output", str(output), "--save-model", str(folder), "--device", "cpu"]
    assert main([*arguments, *options, *QUICK]) == 0
    written = ad.read_h5ad(output)
    assert set(written.obsm) == {"X_vae"}
    assert {"vae", "vae_corrected"} <= set(written.layers)
    assert written.var["vae_modelled"].sum() == 30
    parameters = written.uns["vae"]["parameters"]
    assert (parameters["gene_likelihood"], parameters["seed"], parameters["n_genes"]) == ("nb", 5, 30)
    model = sccvae.SCCVAE.load(folder, written, device="cpu")
    np.testing.assert_array_equal(model.get_latent_representation(), written.obsm["X_vae"])
    assert main([*arguments, *options, *QUICK]) == 0  # both results are replaced without a question


def test_fractions_are_rounded_when_asked(adata, tmp_path, output, capsys):
    adata.X = adata.X + adata.X * 0.01
    adata.write_h5ad(tmp_path / "rsem.h5ad")
    arguments = ["integrate", tmp_path / "rsem.h5ad", "-o", output, "--mask-var", "all", *QUICK]
    assert "--round-counts" in refused(capsys, *arguments)
    assert main([*map(str, arguments), "--round-counts"]) == 0
    written = ad.read_h5ad(output)
    assert written.uns["sccvae"]["parameters"]["round_counts"]
    np.testing.assert_array_equal(written.X.toarray(), adata.X.toarray())  # the table itself stays as it is


@pytest.mark.parametrize(("mask", "n_genes"), [([], 30), (["--mask-var", "all"], 60)])
def test_highly_variable_genes_are_the_default(adata, tmp_path, output, mask, n_genes):
    adata.write_h5ad(tmp_path / "hvg.h5ad")
    assert main(["integrate", str(tmp_path / "hvg.h5ad"), "-o", str(output), *mask, *QUICK]) == 0
    assert ad.read_h5ad(output).uns["sccvae"]["parameters"]["n_genes"] == n_genes


def test_the_same_seed_gives_the_same_file_content(counts, tmp_path):
    results = []
    for name, seed in [("a", "1"), ("b", "1"), ("c", "2")]:
        path = tmp_path / f"{name}.h5ad"
        assert main(["integrate", str(counts), "-o", str(path), "--seed", seed, *QUICK]) == 0
        results.append(ad.read_h5ad(path).obsm["X_sccvae"])
    np.testing.assert_array_equal(results[0], results[1])
    assert np.abs(results[0] - results[2]).max() > 0.01


def test_the_input_may_be_the_output(counts):
    assert main(["integrate", str(counts), "-o", str(counts), *QUICK]) == 0
    assert ad.read_h5ad(counts).obsm["X_sccvae"].shape == (120, 4)


def test_the_input_stays_as_it_was(counts, output):
    before = counts.read_bytes()
    assert main(["integrate", str(counts), "-o", str(output), *QUICK]) == 0
    assert counts.read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_the_output_has_the_permissions_of_any_new_file(counts, output, tmp_path):
    (tmp_path / "plain").touch()
    assert main(["integrate", str(counts), "-o", str(output), *QUICK]) == 0
    assert stat.S_IMODE(output.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--batch-key", "bach"], "adata.obs has no column 'bach'. Did you mean 'batch'?"),
        (["--layer", "conts"], "adata.layers has no 'conts'. Did you mean 'counts'?"),
        (["--layer", "lognorm"], "adata.layers['lognorm'] holds values that are not counts: "),
        (["--mask-var", "hvg"], "adata.var has no column 'hvg'. There is 'mine'."),
        (["--n-latent", "0"], "n_latent is 0; expected a whole number of at least 1."),
        (["--max-epochs", "0"], "max_epochs is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--device", "abacus"], "abacus"),
        pytest.param(
            ["--device", "cuda"], "CUDA", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
        ),
    ],
    ids=lambda value: "_".join(value).strip("-") if isinstance(value, list) else None,
)
def test_bad_options_are_answered_in_one_line(counts, output, tmp_path, capsys, options, text):
    assert text in refused(capsys, "integrate", counts, "-o", output, *options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts.h5ad"]


def no_file(path):
    return f"There is no file {path}."


def a_folder(path):
    path.mkdir()
    return f"There is no file {path}."


def an_empty_file(path):
    path.touch()
    return ""


def a_text(path):
    path.write_text("cell,gene\n1,2\n")
    return ""


def half_a_file(path):
    ad.AnnData(np.ones((500, 50), dtype=np.float32)).write_h5ad(path)
    path.write_bytes(path.read_bytes()[:20_000])
    return ""


def hdf5_without_anndata(path):
    with h5py.File(path, "w") as file:
        file["numbers"] = np.arange(3)
    return ""


def an_anndata_with_a_broken_part(path):
    ad.AnnData(np.ones((5, 4), dtype=np.float32), layers={"a": np.ones((5, 4))}).write_h5ad(path)
    with h5py.File(path, "a") as file:
        file["layers/a"].attrs["encoding-type"] = "unheard-of"
    return ""


@pytest.mark.parametrize(
    "make",
    [no_file, a_folder, an_empty_file, a_text, half_a_file, hdf5_without_anndata, an_anndata_with_a_broken_part],
    ids=lambda make: make.__name__,
)
def test_what_is_no_anndata_file_is_answered_in_one_line(tmp_path, output, capsys, make):
    path = tmp_path / "input.h5ad"
    text = make(path)
    assert refused(capsys, "integrate", path, "-o", output, *QUICK).startswith(text)
    assert not output.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda a: setattr(a, "X", a.X.log1p()),
        lambda a: setattr(a, "X", a.X * 0),
        lambda a: setattr(a, "var_names", ["same"] * 60),
    ],
    ids=["log", "zero", "duplicate_genes"],
)
def test_data_that_are_no_counts_are_answered_in_one_line(adata, tmp_path, output, capsys, change):
    change(adata)
    adata.write_h5ad(tmp_path / "bad.h5ad")
    refused(capsys, "integrate", tmp_path / "bad.h5ad", "-o", output, *QUICK)
    assert not output.exists()


def test_an_output_in_no_folder_is_found_out_before_training(counts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sccvae.SCCVAE, "train", _never)
    text = refused(capsys, "integrate", counts, "-o", tmp_path / "no" / "where.h5ad")
    assert text == f"The folder of the output does not exist: {tmp_path / 'no'}. Create it first."


def test_an_output_that_is_a_folder_is_found_out_before_training(counts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sccvae.SCCVAE, "train", _never)
    (tmp_path / "folder").mkdir()
    assert "folder" in refused(capsys, "integrate", counts, "-o", tmp_path / "folder")


def test_a_place_for_the_model_that_is_a_file_is_found_out_before_training(counts, output, capsys, monkeypatch):
    monkeypatch.setattr(sccvae.SCCVAE, "train", _never)
    assert "is a file" in refused(capsys, "integrate", counts, "-o", output, "--save-model", counts)
    assert not output.exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user without rights to every folder")
def test_a_folder_that_cannot_be_written_to_is_found_out_before_training(counts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sccvae.SCCVAE, "train", _never)
    (tmp_path / "locked").mkdir(mode=0o500)
    text = refused(capsys, "integrate", counts, "-o", tmp_path / "locked" / "out.h5ad")
    assert text.startswith("The folder of the output cannot be written to")


@pytest.mark.parametrize("there", [False, True], ids=["new", "existing"])
def test_a_write_that_fails_leaves_no_half_file(counts, output, tmp_path, capsys, monkeypatch, there):
    if there:
        output.write_text("what was there")

    def half(self, path, **_):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ad.AnnData, "write_h5ad", half)
    assert "No space left on device" in refused(capsys, "integrate", counts, "-o", output, *QUICK)
    names = ["counts.h5ad", "integrated.h5ad"] if there else ["counts.h5ad"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    if there:
        assert output.read_text() == "what was there"


def test_an_interrupted_write_leaves_no_half_file(counts, output, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ad.AnnData, "write_h5ad", interrupted)
    assert main(["integrate", str(counts), "-o", str(output), *QUICK]) == 130
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "sccvae: interrupted\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts.h5ad"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["-o", "o.txt"], "The output is o.txt; expected a name that ends in .h5ad or .zarr."),
        (["-o", "o"], "The output is o; expected a name that ends in .h5ad or .zarr."),
        (["-o", ""], "output is ''; expected the path of a file or folder"),
        (["-o", "pipe.h5ad"], "The output is a pipe: pipe.h5ad; expected the name of a file."),
        (["-o", "dev.h5ad"], "The output is a device: dev.h5ad; expected the name of a file."),
        (["-o", "folder.h5ad"], "The output is a folder: folder.h5ad; expected the name of a file."),
        (["-o", "folder.zarr"], "The output is a folder with other files than zarr's: folder.zarr;"),
        (["-o", "counts.h5ad/o.h5ad"], "The folder of the output does not exist: "),
        (["-o", "o.h5ad", "--save-model", ""], "path is ''; expected the path of a file or folder"),
        (["-o", "o.h5ad", "--save-model", "counts.h5ad"], "counts.h5ad is a file; save() writes a folder."),
        (["-o", "o.h5ad", "--save-model", "counts.h5ad/m"], "is a file; expected a folder, to contain counts.h5ad/m."),
        (["-o", "o.h5ad", "--save-model", "counts.h5ad/a/m"], "expected a folder, to contain counts.h5ad/a/m."),
        (["-o", "o.h5ad", "--save-model", "odd"], "The model is a folder: odd/weights.safetensors;"),
        (["-o", "o.zarr", "--save-model", "o.zarr"], "--save-model is o.zarr, inside the output or equal to it;"),
        (["-o", "o.zarr", "--save-model", "o.zarr/m"], "--save-model is o.zarr/m, inside the output or equal to it;"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)  # fmt: skip
@pytest.mark.skipif(os.name != "posix", reason="POSIX files")
def test_every_path_is_checked_before_the_training(counts, tmp_path, capsys, monkeypatch, options, text):
    monkeypatch.setattr(sccvae.SCCVAE, "train", _never)
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.h5ad")
    os.symlink("/dev/null", "dev.h5ad")
    for folder in ("folder.h5ad", "folder.zarr/more", "odd/weights.safetensors"):
        os.makedirs(folder)
    before = sorted(map(str, tmp_path.rglob("*")))
    assert text in refused(capsys, "integrate", "counts.h5ad", *options)
    assert sorted(map(str, tmp_path.rglob("*"))) == before


@pytest.mark.skipif(os.name != "posix", reason="POSIX files")
def test_an_output_that_is_a_link_stays_one_and_keeps_the_mode_of_its_target(counts, tmp_path):
    (tmp_path / "disk.h5ad").write_text("old")
    (tmp_path / "disk.h5ad").chmod(0o600)
    (tmp_path / "link.h5ad").symlink_to("disk.h5ad")
    assert main(["integrate", str(counts), "-o", str(tmp_path / "link.h5ad"), *QUICK]) == 0
    assert (tmp_path / "link.h5ad").is_symlink()
    assert ad.read_h5ad(tmp_path / "disk.h5ad").obsm["X_sccvae"].shape == (120, 4)
    assert stat.S_IMODE((tmp_path / "disk.h5ad").stat().st_mode) == 0o600


def test_a_suffix_of_zarr_writes_zarr(counts, tmp_path):
    path = tmp_path / "o.zarr"
    for n_latent in ("3", "4"):
        assert main(["integrate", str(counts), "-o", str(path), "--max-epochs", "1", "--n-latent", n_latent]) == 0
        assert ad.read_zarr(path).obsm["X_sccvae"].shape == (120, int(n_latent))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["counts.h5ad", "o.zarr"]


def test_the_model_is_saved_before_the_output_is_written(counts, output, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ad.AnnData, "write_h5ad", full)
    said = refused(capsys, "integrate", counts, "-o", output, "--save-model", tmp_path / "m", *QUICK)
    assert said == f"[Errno 28] No space left on device: '{output}'"
    assert sccvae.SCCVAE.load(tmp_path / "m", ad.read_h5ad(counts)).get_latent_representation().shape == (120, 4)


def test_a_model_that_cannot_be_saved_is_answered_in_one_line(counts, output, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("sccvae.io.storage.save_file", full)
    said = refused(capsys, "integrate", counts, "-o", output, "--save-model", tmp_path / "m", *QUICK)
    assert said == f"[Errno 28] No space left on device: '{tmp_path / 'm'}'"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts.h5ad"]


@pytest.mark.parametrize("said", ["Unable to allocate 40.0 GiB for an array", ""])
def test_too_little_memory_is_answered_in_one_line(counts, output, capsys, monkeypatch, said):
    def greedy(*_, **__):
        raise MemoryError(said)

    monkeypatch.setattr(sccvae.SCCVAE, "train", greedy)
    assert refused(capsys, "integrate", counts, "-o", output) == f"not enough memory: {said or 'none is left'}"


def test_a_report_does_not_take_the_place_of_the_data_or_the_model(counts, output, tmp_path, capsys):
    model = tmp_path / "m"
    assert main(["integrate", str(counts), "-o", str(output), "--save-model", str(model), *QUICK]) == 0
    capsys.readouterr()
    for path in (counts, model / "weights.safetensors", model / "model.json"):
        before = path.read_bytes()
        assert "The output would replace" in refused(capsys, "report", model, counts, "-o", path)
        assert path.read_bytes() == before


@pytest.fixture
def reference(adata, tmp_path):
    """Folder of a model of two batches with labels, and the path of the cells of the third."""
    del adata.var["highly_variable"]
    new = (adata.obs["batch"] == "c").to_numpy()
    adata[new].copy().write_h5ad(tmp_path / "query.h5ad")
    model = sccvae.SCCVAE(adata[~new].copy(), batch_key="batch", labels_key="kind", n_hidden=16, n_latent=4)
    model.train(2, progress_bar=False)
    model.save(tmp_path / "model")
    return tmp_path / "model", tmp_path / "query.h5ad"


def test_map_writes_what_the_function_writes(reference, tmp_path, capsys):
    model, query = reference
    for options, more in (([], {}), (["--no-train", "--key-added", "vae"], {"train": False, "key_added": "vae"})):
        path = tmp_path / "mapped.h5ad"
        assert main(["map", str(model), str(query), "-o", str(path), "--seed", "3", *options]) == 0
        captured = capsys.readouterr()
        assert captured.out.endswith(f"mapped: 40 cells\nwritten: {path}\n")
        assert captured.err == ""
        written, expected = ad.read_h5ad(path), ad.read_h5ad(query)
        sccvae.tl.map_query(expected, model, seed=3, **more)
        key = more.get("key_added", "sccvae")
        np.testing.assert_array_equal(written.obsm[f"X_{key}"], expected.obsm[f"X_{key}"])
        for name in ("label", "probability", "novelty", "accepted", "reason"):
            assert (written.obs[f"{key}_{name}"] == expected.obs[f"{key}_{name}"]).all()
        assert list(written.uns[key]["mapping"]["new_batches"]) == ["c"]
        assert (written.X != expected.X).nnz == 0


def test_map_takes_another_column_of_batches_and_zarr(reference, tmp_path):
    model, query = reference
    adata = ad.read_h5ad(query)
    adata.obs["run"] = "r1"
    del adata.obs["batch"]
    adata.write_h5ad(query)
    output = tmp_path / "mapped.zarr"
    assert main(["map", str(model), str(query), "-o", str(output), "--batch-key", "run", "--device", "cpu"]) == 0
    assert list(ad.read_zarr(output).uns["sccvae"]["mapping"]["new_batches"]) == ["r1"]


def test_map_of_a_file_larger_than_memory(reference, tmp_path, capsys, monkeypatch):
    model, query = reference
    assert main(["map", str(model), str(query), "-o", str(tmp_path / "whole.h5ad")]) == 0
    monkeypatch.setattr("sccvae.data.packs.free_memory", lambda: 0)
    assert main(["map", str(model), str(query), "-o", str(tmp_path / "blocks.h5ad")]) == 0
    assert capsys.readouterr().out.endswith(f"written: {tmp_path / 'blocks.h5ad'}\n")
    whole, blocks = ad.read_h5ad(tmp_path / "whole.h5ad"), ad.read_h5ad(tmp_path / "blocks.h5ad")
    np.testing.assert_allclose(blocks.obsm["X_sccvae"], whole.obsm["X_sccvae"], atol=1e-4)
    assert "sccvae_reason" in blocks.obs


def test_map_with_bad_paths_computes_nothing(reference, tmp_path, capsys, monkeypatch):
    model, query = reference
    monkeypatch.setattr(sccvae.SCCVAE, "load_query_data", None)
    output, before = tmp_path / "mapped.h5ad", query.read_bytes()
    assert refused(capsys, "map", tmp_path / "m", query, "-o", output) == f"There is no file {tmp_path / 'm'}."
    assert refused(capsys, "map", model, tmp_path / "q", "-o", output) == f"There is no file {tmp_path / 'q'}."
    assert "would replace" in refused(capsys, "map", model, query, "-o", query)
    linked = tmp_path / "linked.h5ad"
    linked.symlink_to(query)
    assert refused(capsys, "map", model, query, "-o", linked) == (
        f"The output would replace {query}, which is read, or a part of it: choose another name."
    )
    assert query.read_bytes() == before
    model.rename(tmp_path / "model.zarr")
    found = refused(capsys, "map", tmp_path / "model.zarr", query, "-o", tmp_path / "model.zarr")
    assert "expected a zarr store, an empty folder or a new name" in found
    assert "mapped.txt" in refused(capsys, "map", tmp_path / "model.zarr", query, "-o", tmp_path / "mapped.txt")
    found = refused(capsys, "map", tmp_path / "model.zarr", query, "-o", output, "--key-added", "a/b")
    assert found.startswith("--key-added is 'a/b'")
    assert not output.exists()


def test_map_of_a_query_that_does_not_fit(reference, tmp_path, capsys):
    model, query = reference
    output = tmp_path / "mapped.h5ad"
    assert "Did you mean 'batch'" in refused(capsys, "map", model, query, "-o", output, "--batch-key", "bach")
    sccvae.Autoencoder(ad.read_h5ad(query), n_hidden=8).save(tmp_path / "other")
    assert "Autoencoder" in refused(capsys, "map", tmp_path / "other", query, "-o", output)
    assert not output.exists()


def test_integrate_with_labels(counts, output, tmp_path, capsys):
    arguments = ["integrate", str(counts), "-o", str(output), "--no-expression", *QUICK]
    assert main([*arguments, "--labels-key", "kind", "--unlabeled", "w"]) == 0
    written = ad.read_h5ad(output)
    assert list(written.obs["sccvae_label"].cat.categories) == ["x", "y", "z"]
    assert {"sccvae_probability", "sccvae_novelty", "sccvae_accepted", "sccvae_reason"} <= set(written.obs)
    assert written.uns["sccvae"]["parameters"]["unlabeled"] == "w"
    capsys.readouterr()
    assert refused(capsys, *arguments, "--unlabeled", "w").startswith("--unlabeled is a value of the column")
    assert "no cell has it" in refused(capsys, *arguments, "--labels-key", "kind", "--unlabeled", "v")


def test_integrate_with_a_condition(counts, output, capsys):
    arguments = ["integrate", str(counts), "-o", str(output), *QUICK]
    assert main([*arguments, "--batch-key", "batch", "--condition-key", "kind"]) == 0
    assert ad.read_h5ad(output).uns["sccvae"]["parameters"]["condition_key"] == "kind"
    capsys.readouterr()
    assert "so is batch_key" in refused(capsys, *arguments, "--batch-key", "kind", "--condition-key", "kind")


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("during", ["train", "write_h5ad"])
def test_sigterm_ends_the_run_and_leaves_nothing(counts, output, tmp_path, capsys, monkeypatch, during):
    def ended(self, part=None, **_):
        if during == "write_h5ad":
            part.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sccvae.SCCVAE if during == "train" else ad.AnnData, during, ended)
    assert main(["integrate", str(counts), "-o", str(output), *QUICK]) == 143
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "sccvae: terminated\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts.h5ad"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_main_runs_in_a_thread_that_hears_no_signals(counts, output):
    found = []
    thread = threading.Thread(target=lambda: found.append(main(["integrate", str(counts), "-o", str(output), *QUICK])))
    thread.start()
    thread.join()
    assert found == [0]


def _never(*_, **__):
    raise AssertionError("the training must not have begun")


# ----------------------------------------------------------------------------------------------------------------- help


def test_help_shows_an_example_that_parses(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["integrate", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "example: sccvae integrate counts.h5ad -o integrated.h5ad --batch-key batch" in text
    for option in ("--batch-key", "--layer", "--mask-var", "--likelihood", "--seed", "--save-model", "--device"):
        assert option in text
    assert "default: None" not in text
    assert "default: False" not in text
    assert "==SUPPRESS==" not in text


def test_the_example_of_the_help_runs(adata, tmp_path, monkeypatch):
    adata.write_h5ad(tmp_path / "counts.h5ad")
    monkeypatch.chdir(tmp_path)
    example = ["integrate", "counts.h5ad", "-o", "integrated.h5ad", "--batch-key", "batch"]
    assert main([*example, "--max-epochs", "1"]) == 0
    assert (tmp_path / "integrated.h5ad").is_file()


def test_a_demonstration_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo.simulate, "simulate", _never)
    (tmp_path / "demo" / "integration.png").mkdir(parents=True)
    (tmp_path / "file").touch()
    assert "is a folder" in refused(capsys, "demo", tmp_path / "demo")
    assert "file" in refused(capsys, "demo", tmp_path / "file")
    assert "folder is ''" in refused(capsys, "demo", "")


@pytest.mark.slow
def test_demo_integrates_scores_and_draws(tmp_path, capsys, monkeypatch):
    small = functools.partial(demo.run, n_cells=400, n_genes=120)
    monkeypatch.setattr(demo, "run", small)
    quick = functools.partial(sccvae.tl.integrate, train_options={"max_epochs": 5})
    monkeypatch.setattr(demo.tl, "integrate", quick)
    assert main(["demo", str(tmp_path / "demo")]) == 0
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"integrated.h5ad", "integration.png"}
    adata = ad.read_h5ad(tmp_path / "demo" / "integrated.h5ad")
    assert (adata.shape, adata.obsm["X_sccvae"].shape) == ((400, 120), (400, 20))
    assert (tmp_path / "demo" / "integration.png").read_bytes().startswith(b"\x89PNG")
    captured = capsys.readouterr()
    assert captured.out.startswith("400 simulated cells, 120 genes, 3 batches, 6 cell types")
    assert re.search(r"\d\.\d\d", captured.out)
    assert "nan" not in captured.out


def test_several_files_are_integrated_in_blocks(adata, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    adata[:50].copy().write_h5ad("a.h5ad")
    adata[50:].copy().write_zarr("b.zarr")
    options = ["--batch-key", "batch", "--mask-var", "all", *QUICK]
    assert main(["pack", "a.h5ad", "b.zarr", "-o", "atlas.pack"]) == 0
    assert capsys.readouterr().out == "written: atlas.pack\n"
    assert main(["integrate", "a.h5ad", "b.zarr", "-o", "files.h5ad", "--save-model", "model", *options]) == 0
    assert main(["integrate", "atlas.pack", "-o", "pack.zarr", "--memory-budget", "0", *options]) == 0
    adata.write_h5ad("whole.h5ad")
    assert main(["integrate", "whole.h5ad", "-o", "whole_out.h5ad", *options]) == 0
    whole, files, pack = ad.read_h5ad("whole_out.h5ad"), ad.read_h5ad("files.h5ad"), ad.read_zarr("pack.zarr")
    np.testing.assert_array_equal(files.obsm["X_sccvae"], whole.obsm["X_sccvae"])
    np.testing.assert_allclose(files.layers["sccvae_corrected"], whole.layers["sccvae_corrected"], rtol=1e-4)
    np.testing.assert_array_equal(files.X.toarray(), adata.X.toarray())
    assert pack.obsm["X_sccvae"].shape == (120, 4)
    assert files.obs_names.tolist() == pack.obs_names.tolist() == adata.obs_names.tolist()
    model = sccvae.SCCVAE.load("model", ["a.h5ad", "b.zarr"])
    np.testing.assert_array_equal(model.get_latent_representation(), files.obsm["X_sccvae"])
    capsys.readouterr()
    assert main(["integrate", "a.h5ad", "b.zarr", "-o", "b.zarr", *options]) == 1
    assert "The output would replace b.zarr" in capsys.readouterr().err
    assert main(["pack", "a.h5ad", "-o", "atlas.pack"]) == 1
    assert "atlas.pack exists; expected a new name" in capsys.readouterr().err


def test_a_file_that_does_not_fit_into_memory_is_integrated_in_blocks(counts, tmp_path, monkeypatch):
    monkeypatch.setattr("sccvae.data.packs.free_memory", lambda: 1000)
    monkeypatch.setattr("sccvae.__main__._read", None)
    assert main(["integrate", str(counts), "-o", str(tmp_path / "out.zarr"), "--batch-key", "batch", *QUICK]) == 0
    assert ad.read_zarr(tmp_path / "out.zarr").obsm["X_sccvae"].shape == (120, 4)


def test_simulate_writes_what_the_function_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["-n", "300", "--n-genes", "30", "--n-batches", "2", "--mean-library", "50", "--seed", "3"]
    assert main(["simulate", "-o", "cells.h5ad", *arguments]) == 0
    assert capsys.readouterr().out == "written: cells.h5ad\n"
    expected = sccvae.simulate.simulate(300, 30, n_batches=2, mean_library=50, seed=3)
    assert (ad.read_h5ad("cells.h5ad").X != expected.X).nnz == 0
    assert main(["simulate", "-o", "cells.zarr", *arguments, "--n-files", "2"]) == 0
    assert capsys.readouterr().out == "written: cells_0.zarr cells_1.zarr\n"
    assert refused(capsys, "simulate", "-n", 0, "-o", "cells.h5ad") == "n_cells is 0; expected at least 1."


def test_generate_writes_cells_of_a_saved_model(counts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        main(["integrate", str(counts), "-o", "x.h5ad", "--batch-key", "batch", "--save-model", "model", *QUICK]) == 0
    )
    capsys.readouterr()
    arguments = ["-n", "30", "--batch", "a", "b", "--library-size", "200", "--seed", "3", "--store-truth"]
    assert main(["generate", "model", "-o", "new.h5ad", *arguments]) == 0
    assert capsys.readouterr().out.endswith("written: new.h5ad\n")
    new = ad.read_h5ad("new.h5ad")
    model = sccvae.SCCVAE.load("model")
    expected = model.generate(30, batch=["a", "b"], library_size=200.0, store_truth=True, seed=3)
    assert (new.X != expected.X).nnz == 0
    np.testing.assert_array_equal(new.layers["expected"], expected.layers["expected"])
    assert main(["generate", "model", "-o", "like.zarr", "--like", str(counts), "--library-size", "c"]) == 0
    assert ad.read_zarr("like.zarr").n_obs == 120
    capsys.readouterr()
    assert refused(capsys, "generate", "model", "-o", "new.h5ad").startswith("n_cells is None; expected a number")
    assert refused(capsys, "generate", "model", "-o", str(counts), "--like", str(counts)).startswith(
        "The output would replace"
    )


def test_top_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "integrate" in text
    assert "demo" in text


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"sccvae {sccvae.__version__}\n"


NOT_INSTALLED = """
import sys
from pathlib import Path
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
import sccvae
assert Path(sccvae.__file__).parent == Path("sccvae").resolve(), sccvae.__file__
try:
    raise SystemExit(f"sccvae {version('sccvae')} is installed")
except PackageNotFoundError:
    pass
from sccvae.io import storage
from sccvae.__main__ import main
print(sccvae.__version__, storage.versions()["sccvae"])
main(["--version"])
"""


def test_a_source_folder_that_is_not_installed_has_a_version(tmp_path):
    """A copy of the package, and a folder of links to all that is installed but sccvae itself and its links to it."""
    source = Path(sccvae.__file__).parent
    shutil.copytree(source, tmp_path / "sccvae", ignore=shutil.ignore_patterns("__pycache__"))
    others = tmp_path / "others"
    others.mkdir()
    for folder in map(Path, site.getsitepackages()):
        for path in folder.iterdir() if folder.is_dir() else []:
            if not re.match("_?(editable_impl_)?sccvae", path.name) and not (others / path.name).exists():
                (others / path.name).symlink_to(path)
    found = subprocess.run(
        [sys.executable, "-S", "-c", NOT_INSTALLED],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(others)])},
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout.split("\n") == [
        f"{sccvae.__version__} {sccvae.__version__}",
        f"sccvae {sccvae.__version__}",
        "",
    ]


@pytest.mark.parametrize(
    "arguments",
    [[], ["integrate"], ["integrate", "x.h5ad"], ["nonsense"], ["integrate", "x", "-o", "y", "--likelihood", "zip"]],
    ids=["nothing", "no_input", "no_output", "no_such_command", "no_such_likelihood"],
)
def test_a_wrong_call_shows_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: sccvae")
