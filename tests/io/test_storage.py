"""Saved models: bit-identical when read again, whole or not there at all, and never executed."""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import warnings_are_errors
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

import sccvae
from sccvae import SCCVAE, ModelFileError

WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"

MODELS = {
    "plain": {},
    "batch": {"batch_key": "batch"},
    "gene_batch_two_layers": {"batch_key": "batch", "dispersion": "gene-batch", "n_layers": 2},
    "gene_cell_observed": {"dispersion": "gene-cell", "library": "observed"},
    "nb": {"gene_likelihood": "nb"},
    "poisson": {"gene_likelihood": "poisson"},
    "normal": {"gene_likelihood": "normal"},
    "covariates": {
        "batch_key": "batch",
        "categorical_covariate_keys": ["donor", "kind"],
        "continuous_covariate_keys": ["age"],
        "size_factor_key": "size_factor",
        "encode_covariates": True,
    },
    "mask_and_layer": {"mask_var": "highly_variable", "layer": "counts", "batch_key": "batch"},
}


@pytest.fixture
def saved(model, tmp_path):
    """Folder with the shared model."""
    model.save(tmp_path / "model")
    return tmp_path / "model"


def answers(model, adata) -> list[np.ndarray]:
    return [
        model.get_latent_representation(adata),
        model.get_normalized_expression(adata, transform_batch="all", return_numpy=True),
        model.get_elbo(adata, return_mean=False),
        model.posterior_predictive_sample(adata).toarray(),
        model.generate(30).X.toarray(),
        model.generate(30, prior="aggregate").X.toarray(),
        *model.get_likelihood_parameters(adata).values(),
    ]


def rewrite(folder, change):
    """Change the description in both of its places: the JSON file and the header of the weights."""
    with safe_open(folder / WEIGHTS, framework="pt") as handle:
        description = json.loads(handle.metadata()["model"])
    assert json.loads((folder / DESCRIPTION).read_text()) == description
    change(description)
    text = json.dumps(description)
    (folder / DESCRIPTION).write_text(text)
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"model": text})


# ----------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_answers_with_the_same_bits(adata, fit, tmp_path, name):
    adata.layers["counts"] = adata.X.copy()
    model = fit(adata, 2, **MODELS[name])
    model.save(tmp_path / "model")
    loaded = SCCVAE.load(tmp_path / "model")
    for found, expected in zip(answers(loaded, adata), answers(model, adata), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert loaded.describe()["parameters"] == model.describe()["parameters"]
    assert list(loaded.gene_names) == list(model.gene_names)
    assert loaded.batches == model.batches


def test_a_loaded_model_has_no_data_unless_given(adata, model, saved):
    loaded = SCCVAE.load(saved)
    assert "no data" in repr(loaded)
    with pytest.raises(ValueError, match=r"loaded without data: pass adata, here or as SCCVAE\.load\(path, adata\)"):
        loaded.get_latent_representation()
    with pytest.raises(RuntimeError, match=r"to continue training, load it as SCCVAE\.load\(path, adata\)"):
        loaded.train(1)
    loaded = SCCVAE.load(saved, adata)
    assert repr(loaded) == repr(model)
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())


def test_a_model_saved_without_its_aggregate_posterior_needs_data_for_it(adata, saved):
    """As models were before it was stored, and before there were checksums."""
    rewrite(saved, lambda description: [description.pop(name) for name in ("sha256", "replaces")])
    tensors = load_file(saved / WEIGHTS)
    with safe_open(saved / WEIGHTS, "pt") as handle:
        metadata = handle.metadata()
    stored = {name for name in tensors if name.startswith("aggregate.")}
    assert stored == {"aggregate.weights", "aggregate.means", "aggregate.factors"}
    save_file({name: t for name, t in tensors.items() if name not in stored}, saved / WEIGHTS, metadata=metadata)
    old = SCCVAE.load(saved)
    assert old.generate(3).n_obs == 3
    with pytest.raises(
        ValueError, match=r"saved without its aggregate posterior .* load it as SCCVAE.load\(path, adata\)"
    ):
        old.generate(3, prior="aggregate")
    assert SCCVAE.load(saved, adata).generate(3, prior="aggregate").n_obs == 3


def test_a_model_saved_before_there_were_these_has_none_of_them(adata, fit, tmp_path):
    model = fit(adata, 2, batch_key="batch", prior_components=0, batch_mixing=0.0, weight_precision=0.0)
    model.save(tmp_path / "model")

    def age(description):
        for name in ("prior_components", "batch_mixing", "weight_precision", "thinning"):
            del description["architecture"][name]

    rewrite(tmp_path / "model", age)
    old = SCCVAE.load(tmp_path / "model", adata)
    np.testing.assert_array_equal(old.get_latent_representation(), model.get_latent_representation())
    assert old.get_elbo() == model.get_elbo()
    assert old.describe()["parameters"]["prior_components"] == 0
    old.train(1, progress_bar=False)
    model.train(1, progress_bar=False)
    np.testing.assert_array_equal(old.get_latent_representation(), model.get_latent_representation())


def test_an_aggregate_posterior_of_another_model_is_refused(saved):
    tensors = load_file(saved / WEIGHTS)
    with safe_open(saved / WEIGHTS, "pt") as handle:
        metadata = handle.metadata()
    save_file(
        tensors | {"aggregate.means": tensors["aggregate.means"][:, 1:].clone()}, saved / WEIGHTS, metadata=metadata
    )
    with pytest.raises(ModelFileError, match=r"'aggregate.means' has shape \(1, 4\), expected .* by the description"):
        SCCVAE.load(saved)


def test_training_goes_on_as_if_nothing_had_happened(adata, fit, tmp_path):
    model = fit(adata, 2, batch_key="batch")
    model.save(tmp_path / "model")
    loaded = SCCVAE.load(str(tmp_path / "model"), adata)
    for each in (model, loaded):
        each.train(2, progress_bar=False)
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())
    assert list(loaded.history["epoch"]) == [1, 1, 2, 2, 3, 3, 4, 4]
    pd.testing.assert_frame_equal(loaded.history.drop(columns="seconds"), model.history.drop(columns="seconds"))


def test_history_and_number_of_epochs_survive(model, saved):
    loaded = SCCVAE.load(saved)
    pd.testing.assert_frame_equal(loaded.history, model.history)
    assert repr(loaded).splitlines()[-1] == repr(model).splitlines()[-1]
    assert "trained for 5 epochs" in repr(loaded)


def test_loading_data_that_do_not_fit(adata, saved):
    with pytest.raises(ValueError, match="adata lacks genes of the model: 20 unknown genes: 'gene40'") as caught:
        SCCVAE.load(saved, adata[:, :40])
    assert not isinstance(caught.value, ModelFileError)


def test_an_untrained_model_is_saved_as_such(adata, tmp_path):
    SCCVAE(adata, n_hidden=4).save(tmp_path / "model")
    loaded = SCCVAE.load(tmp_path / "model", adata)
    with pytest.raises(RuntimeError, match="not trained yet"):
        loaded.get_latent_representation()
    loaded.train(1, progress_bar=False)
    assert np.isfinite(loaded.get_elbo())


def test_names_that_are_not_ascii_survive(adata, fit, tmp_path):
    adata.var_names = [f"gén-{i}-遺伝子" for i in range(60)]
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories({"a": "Zürich", "b": 'quote"d', "c": "new\nline"})
    model = fit(adata, batch_key="batch")
    model.save(tmp_path / "mödel with space")
    loaded = SCCVAE.load(tmp_path / "mödel with space")
    assert loaded.batches == ("Zürich", 'quote"d', "new\nline")
    np.testing.assert_array_equal(loaded.get_latent_representation(adata), model.get_latent_representation())


def test_loading_leaves_the_global_random_state(saved):
    before = torch.get_rng_state()
    SCCVAE.load(saved)
    assert torch.equal(torch.get_rng_state(), before)


CELLS = json.loads((Path(__file__).parents[1] / "models" / "0.1.0" / "cells.json").read_text())


@pytest.mark.parametrize("kind", CELLS["codes"])
def test_models_of_sccvae_0_1_0_are_read(kind):
    """Saved by that version, without checksums; the codes of the cells beside them are its own, too."""
    counts = np.array(CELLS["counts"], dtype=np.float32)
    var = pd.DataFrame(index=[f"gene{i}" for i in range(20)])
    adata = ad.AnnData(counts, obs=pd.DataFrame(CELLS["obs"], index=[f"cell{i}" for i in range(40)]), var=var)
    model = getattr(sccvae, kind).load(Path(__file__).parents[1] / "models" / "0.1.0" / kind, adata)
    np.testing.assert_allclose(model.get_latent_representation(), CELLS["codes"][kind], rtol=1e-4, atol=1e-5)
    assert model.history["epoch"].max() == 2


# ------------------------------------------------------------------------------------------------------ what is on disk


def test_the_folder_holds_two_files_and_no_pickle(saved):
    assert sorted(path.name for path in saved.iterdir()) == [DESCRIPTION, WEIGHTS]
    for path in saved.iterdir():
        content = path.read_bytes()
        assert content.lstrip().startswith(b"{") or content[8:9] == b"{"  # JSON, or a length and then JSON
        assert not content.startswith(b"PK")
        assert b"__reduce__" not in content
    length = struct.unpack("<Q", (saved / WEIGHTS).read_bytes()[:8])[0]
    assert length < (saved / WEIGHTS).stat().st_size
    description = json.loads((saved / DESCRIPTION).read_text(encoding="utf-8"))
    assert description["format"] == 1
    assert description["versions"]["sccvae"] == sccvae.__version__


def test_loading_executes_nothing(saved, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a pickle was read")

    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, refuse)
    assert SCCVAE.load(saved).gene_names[0] == "gene0"


def test_no_data_are_saved(adata, fit, tmp_path):
    adata.obs_names = [f"secret-{i}" for i in range(120)]
    fit(adata, batch_key="batch").save(tmp_path / "model")
    assert b"secret" not in b"".join(path.read_bytes() for path in (tmp_path / "model").iterdir())


def test_a_model_is_not_overwritten_unless_asked(adata, model, saved, fit):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    other = fit(adata, 1, seed=5)
    with pytest.raises(FileExistsError, match=r"already contains a model; pass overwrite=True to replace it\."):
        other.save(saved)
    with pytest.raises(TypeError, match=r"^overwrite is 'no'; expected True or False\.$"):
        other.save(saved, overwrite="no")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    other.save(saved, overwrite=True)
    np.testing.assert_array_equal(
        SCCVAE.load(saved).get_latent_representation(adata), other.get_latent_representation()
    )


def test_a_file_is_not_a_place_for_a_folder(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match=r"is a file; save\(\) writes a folder"):
        model.save(tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_parents_are_made_and_strangers_in_the_folder_are_left_alone(model, tmp_path):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    model.save(folder)
    model.save(tmp_path / "c" / "d" / "e")
    assert (folder / "notes.txt").read_text() == "mine"
    assert SCCVAE.load(tmp_path / "c" / "d" / "e").gene_names[0] == "gene0"


@pytest.mark.parametrize("path", ["", None, 3, "a\0b"])
def test_what_is_no_path_is_told(model, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for call in (model.save, SCCVAE.load):
        with pytest.raises((ValueError, TypeError), match=r"^path is .*; expected the path of a file or folder"):
            call(path)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="POSIX files")
def test_modes_and_links_of_a_model_stay(model, saved, tmp_path):
    (tmp_path / "disk").mkdir()
    (saved / WEIGHTS).rename(tmp_path / "disk" / "w")
    (saved / WEIGHTS).symlink_to("../disk/w")
    (saved / DESCRIPTION).chmod(0o600)
    before = (tmp_path / "disk" / "w").stat().st_ino
    (tmp_path / "link").symlink_to("model")
    model.save(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (saved / WEIGHTS).is_symlink()
    assert (tmp_path / "disk" / "w").stat().st_ino != before
    assert stat.S_IMODE((saved / DESCRIPTION).stat().st_mode) == 0o600
    assert os.listdir(tmp_path / "disk") == ["w"]
    assert SCCVAE.load(saved).gene_names[0] == "gene0"


@pytest.mark.skipif(os.name != "posix", reason="POSIX files")
def test_a_new_model_follows_the_umask(saved, tmp_path):
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "plain", *saved.iterdir()]}
    assert len(modes) == 1


def test_a_save_removes_what_killed_saves_of_0_1_0_left(model, saved):
    for name in (WEIGHTS, DESCRIPTION):
        (saved / f"{name}.part").write_text("half")
    model.save(saved, overwrite=True)
    assert sorted(os.listdir(saved)) == [DESCRIPTION, WEIGHTS]


def test_what_safetensors_says_of_a_disk_is_an_error_of_the_system(model, saved, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("sccvae.io.storage.save_file", full)
    for folder in (saved, tmp_path / "a" / "b"):
        with pytest.raises(OSError, match=f"No space left on device: '{folder}'"):
            model.save(folder, overwrite=True)
    assert sorted(os.listdir(saved)) == [DESCRIPTION, WEIGHTS]
    assert not (tmp_path / "a").exists()


# ------------------------------------------------------------------------------------------------ a save that is killed


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("there", [True, False], ids=["over_an_old_model", "in_an_empty_place"])
def test_a_save_that_is_killed_leaves_the_old_model_or_the_new_one(adata, model, tmp_path, fit, monkeypatch, at, there):
    folder, other = tmp_path / "model", fit(adata, 2, n_latent=3, seed=9)
    if there:
        model.save(folder)
    replace, calls = os.replace, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == at:
            raise KilledError
        replace(*arguments)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KilledError):
        other.save(folder, overwrite=True)
    monkeypatch.undo()

    try:
        loaded = SCCVAE.load(folder)
    except FileNotFoundError:
        assert not there
        other.save(folder)  # what cannot be read is not in the way, either
    else:
        expected = {5: model, 2: other}[len(loaded.history) // 2]
        assert there or expected is other
        for found, answer in zip(answers(loaded, adata), answers(expected, adata), strict=True):
            np.testing.assert_array_equal(found, answer)
        other.save(folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == [DESCRIPTION, WEIGHTS]
    np.testing.assert_array_equal(
        SCCVAE.load(folder).get_latent_representation(adata), other.get_latent_representation()
    )


@pytest.mark.parametrize(
    "name", ["sccvae.io.storage.save_file", "sccvae.io.storage.os.fsync", "pathlib.Path.write_text"]
)
def test_a_full_disk_leaves_the_old_model(adata, model, saved, fit, monkeypatch, name):
    other = fit(adata, 1, seed=9)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(name, full)
    with pytest.raises(OSError, match="No space left"):
        other.save(saved, overwrite=True)
    monkeypatch.undo()
    np.testing.assert_array_equal(
        SCCVAE.load(saved).get_latent_representation(adata), model.get_latent_representation()
    )


# ------------------------------------------------------------------------------------------------------ damaged folders


def flip_a_byte_of_the_header(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[8] ^= 0xFF
    (folder / WEIGHTS).write_bytes(content)


def cut(name, share):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return damage


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def foreign_weights(folder):
    save_file({"weight": torch.zeros(3)}, folder / WEIGHTS)


def lose_a_tensor(folder):
    with safe_open(folder / WEIGHTS, framework="pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(folder / WEIGHTS)
    del tensors["decoder.logits.bias"]
    save_file(tensors, folder / WEIGHTS, metadata=metadata)


def describe(change):
    return lambda folder: rewrite(folder, change)


def put(*path, value):
    def change(description):
        for key in path[:-1]:
            description = description[key]
        description[path[-1]] = value

    return describe(change)


NOT_DESCRIBED = "does not describe an sccvae model; it is damaged or was written by another program"
NOT_SAFE = "is damaged or not a safetensors file"
NOT_WHOLE = "does not contain a complete sccvae model"

DAMAGES = {
    "json_cut": (cut(DESCRIPTION, 0.5), NOT_DESCRIBED),
    "json_empty": (write(DESCRIPTION, b""), NOT_DESCRIBED),
    "json_not_text": (write(DESCRIPTION, b"\xff\xfe\x00garbage"), NOT_DESCRIBED),
    "json_a_list": (write(DESCRIPTION, b"[1, 2]"), NOT_DESCRIBED),
    "json_a_number": (write(DESCRIPTION, b"3"), NOT_DESCRIBED),
    "json_without_format": (write(DESCRIPTION, b"{}"), NOT_DESCRIBED),
    "json_nested_too_deep": (write(DESCRIPTION, b"[" * 100_000), NOT_DESCRIBED),
    "weights_cut_in_the_tensors": (cut(WEIGHTS, 0.7), NOT_SAFE),
    "weights_cut_in_the_header": (cut(WEIGHTS, 0.02), NOT_SAFE),
    "weights_empty": (write(WEIGHTS, b""), NOT_SAFE),
    "weights_a_pickle": (write(WEIGHTS, b"\x80\x04\x95\x10\x00\x00\x00" + b"x" * 50), NOT_SAFE),
    "weights_header_flipped": (flip_a_byte_of_the_header, NOT_SAFE),
    "weights_of_another_program": (foreign_weights, NOT_DESCRIBED),
    "a_tensor_is_lost": (lose_a_tensor, NOT_WHOLE),
    "other_shapes": (put("architecture", "n_hidden", value=17), NOT_WHOLE),
    "other_latent": (put("architecture", "n_latent", value=5), NOT_WHOLE),
    "more_genes": (put("architecture", "n_genes", value=61), NOT_WHOLE),
    "absurd_size": (put("architecture", "n_hidden", value=10**14), NOT_WHOLE),
    "more_absurd_size": (put("architecture", "n_hidden", value=10**30), NOT_WHOLE),
    "other_width_of_the_decoder": (put("architecture", "n_hidden", value=[16, 17]), NOT_WHOLE),
    "three_widths": (put("architecture", "n_hidden", value=[16, 16, 16]), NOT_WHOLE),
    "text_for_a_number": (put("architecture", "n_hidden", value="many"), NOT_WHOLE),
    "unknown_likelihood": (put("architecture", "gene_likelihood", value="zip"), NOT_WHOLE),
    "unknown_option": (put("architecture", "flux", value=1), NOT_WHOLE),
    "architecture_lost": (describe(lambda d: d.pop("architecture")), NOT_WHOLE),
    "schema_lost": (describe(lambda d: d.pop("schema")), NOT_WHOLE),
    "schema_half_lost": (describe(lambda d: d["schema"].pop("means")), NOT_WHOLE),
    "history_lost": (describe(lambda d: d.pop("history")), NOT_WHOLE),
    "history_no_list": (put("history", value=3), NOT_WHOLE),
    "fewer_genes_named": (describe(lambda d: d["schema"]["genes"].pop()), NOT_WHOLE),
    "fewer_batches_named": (describe(lambda d: d["schema"]["categories"][0].pop()), NOT_WHOLE),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_is_refused_with_one_clear_sentence(saved, name):
    damage, text = DAMAGES[name]
    damage(saved)
    with pytest.raises(ModelFileError, match=re.escape(text)) as caught:
        SCCVAE.load(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_newer_format_says_upgrade(saved):
    rewrite(saved, lambda description: description.update(format=2))
    with pytest.raises(ModelFileError, match=r"has format 2; this version of sccvae reads format 1\. Upgrade sccvae"):
        SCCVAE.load(saved)


def test_a_newer_format_need_not_look_like_ours(saved):
    (saved / DESCRIPTION).write_text('{"format": 2, "anything": []}')
    with pytest.raises(ModelFileError, match="Upgrade sccvae to read it"):
        SCCVAE.load(saved)


@pytest.mark.parametrize("missing", [WEIGHTS, DESCRIPTION, "both", "folder"])
def test_missing_files_are_named(saved, tmp_path, missing):
    for name in (WEIGHTS, DESCRIPTION):
        if missing in (name, "both"):
            (saved / name).unlink()
    folder = tmp_path / "nowhere" if missing == "folder" else saved
    name = DESCRIPTION if missing == DESCRIPTION else WEIGHTS
    with pytest.raises(FileNotFoundError, match=re.escape(f"No sccvae model in {folder}: {name} is missing")):
        SCCVAE.load(folder)


def test_a_path_to_a_file_of_the_model_is_answered(saved):
    with pytest.raises(FileNotFoundError, match=r"Expected a folder written by SCCVAE\.save\(\)"):
        SCCVAE.load(saved / WEIGHTS)


@pytest.mark.parametrize("device", ["nonsense", pytest.param("cuda", marks=pytest.mark.skipif(
    torch.cuda.is_available(), reason="there is a GPU"))])  # fmt: skip
def test_a_device_that_is_not_there_is_no_damage_to_the_model(saved, device):
    with pytest.raises((ValueError, RuntimeError), match=device if device == "nonsense" else "(?i)cuda") as caught:
        SCCVAE.load(saved, device=device)
    assert not isinstance(caught.value, ModelFileError)


def test_loading_warns_of_nothing(saved):
    with warnings_are_errors():
        SCCVAE.load(saved)
