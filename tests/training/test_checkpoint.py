"""A run that goes on from a checkpoint ends in the bits of a run that was never interrupted."""

from __future__ import annotations

import os
import signal
import threading
import time

import anndata
import numpy as np
import pandas as pd
import pytest
from helpers import same_state
from tqdm import tqdm

import sccvae
from sccvae import SCCVAE, Autoencoder, DenoisingAutoencoder
from sccvae.__main__ import main
from sccvae.io import checkpoints
from sccvae.training import steps

SMALL = {"n_hidden": 16, "n_latent": 4, "device": "cpu"}
EVERY_OPTION = {  # class, arguments of the class, arguments of `train`
    "step by hand": (SCCVAE, {}, {}),
    "autograd likelihood": (SCCVAE, {"dispersion": "gene-cell", "gene_likelihood": "nb"}, {}),
    "thinning, dropout": (SCCVAE, {"thinning": 0.5, "dropout_rate": 0.2, "n_layers": 2}, {}),
    "two samples": (SCCVAE, {}, {"n_draws": 2, "weight_decay": 0.1}),
    "early stopping": (SCCVAE, {}, {"patience": 1, "learning_rate": 0.05}),
    "no held-out cells": (SCCVAE, {}, {"train_size": 1.0, "gradient_clip": float("inf")}),
    "autoencoder": (Autoencoder, {}, {}),
    "denoising": (DenoisingAutoencoder, {}, {}),
}


class Killed(BaseException):
    """In place of a SIGKILL."""


def trained(adata, kind=SCCVAE, options=None, epochs=5, **choices):
    model = kind(adata, batch_key="batch", **SMALL, **(options or {}))
    model.train(epochs, **{"batch_size": 32, "progress_bar": False, **choices})
    return model


def killed(monkeypatch, after: int, adata, folder, *arguments, every=2, **choices) -> None:
    """Train until so many checkpoints were written."""
    write, written = checkpoints.write, []

    def counted(*given):
        write(*given)
        written.append(given)
        if len(written) == after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write", counted)
        with pytest.raises(Killed):
            trained(adata, *arguments, checkpoint=folder, checkpoint_every=every, **choices)


def check_same(a, b) -> None:
    assert same_state(a._vae.state_dict(), b._vae.state_dict())
    pd.testing.assert_frame_equal(
        a.history.drop(columns="seconds"), b.history.drop(columns="seconds"), check_exact=True
    )
    assert a._best_epoch == b._best_epoch
    np.testing.assert_array_equal(a.get_latent_representation(), b.get_latent_representation())


@pytest.mark.parametrize("name", EVERY_OPTION)
def test_a_run_goes_on_to_the_bit(name, adata, tmp_path, monkeypatch):
    kind, options, choices = EVERY_OPTION[name]
    whole = trained(adata, kind, options, **choices)
    for after in (1, 4, 6):  # in the first epoch, at an end of one, in the second half
        killed(monkeypatch, after, adata, tmp_path / str(after), kind, options, **choices)
        check_same(kind.resume(tmp_path / str(after), adata, device="cpu"), whole)
        assert os.listdir(tmp_path / str(after)) == [checkpoints.NAME]


def test_steps_by_hand_and_by_autograd_are_both_tried(adata, monkeypatch):
    used, gradients_of = [], steps.gradients_of
    monkeypatch.setattr(
        steps, "gradients_of", lambda *given: (used.append(found := gradients_of(*given)), found)[1]
    )  # fmt: skip
    for name in ("step by hand", "denoising"):
        kind, options, choices = EVERY_OPTION[name]
        trained(adata, kind, options, 1, **choices)
    assert [type(each).__name__ for each in used] == ["ManualStep", "Autograd"]


def test_checkpoints_do_not_change_the_run_and_a_run_that_has_ended_is_returned(adata, tmp_path, monkeypatch):
    whole = trained(adata)
    check_same(trained(adata, checkpoint=tmp_path, checkpoint_every=3), whole)
    monkeypatch.setattr(steps, "gradients_of", None)  # no step is taken
    check_same(SCCVAE.resume(tmp_path, adata, device="cpu"), whole)


def test_a_run_is_killed_twice(adata, tmp_path, monkeypatch):
    killed(monkeypatch, 2, adata, tmp_path)
    write, written = checkpoints.write, []

    def second(*given):
        write(*given)
        written.append(given)
        if len(written) == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write", second)
        with pytest.raises(Killed):
            SCCVAE.resume(tmp_path, adata, device="cpu")
    check_same(SCCVAE.resume(tmp_path, adata, device="cpu"), trained(adata))


def test_a_second_call_of_train_goes_on_to_the_bit(adata, tmp_path, monkeypatch):
    def both(**choices):
        model = trained(adata)
        model.train(3, batch_size=32, progress_bar=False, **choices)
        return model

    whole, write, written = both(), checkpoints.write, []
    monkeypatch.setattr(checkpoints, "write", lambda *given: (write(*given), written.append(1)))
    both(checkpoint=tmp_path, checkpoint_every=5)
    monkeypatch.undo()
    assert len(written) == 3  # 12 steps, and the end

    def until_second(*given):
        write(*given)
        written.pop()
        if len(written) == 1:
            raise Killed

    monkeypatch.setattr(checkpoints, "write", until_second)
    with pytest.raises(Killed):
        both(checkpoint=tmp_path, checkpoint_every=5)
    monkeypatch.undo()
    check_same(SCCVAE.resume(tmp_path, adata, device="cpu"), whole)


def test_ctrl_c_keeps_the_best_epoch_and_the_checkpoint(adata, tmp_path, monkeypatch):
    write = checkpoints.write
    monkeypatch.setattr(checkpoints, "write", lambda *given: (write(*given), (_ for _ in ()).throw(KeyboardInterrupt)))
    model = trained(adata, checkpoint=tmp_path, checkpoint_every=10)
    monkeypatch.undo()
    assert model.history["epoch"].max() == 2  # 4 steps an epoch
    check_same(SCCVAE.resume(tmp_path, adata, device="cpu"), trained(adata))


def test_a_folder_with_a_run_that_has_not_ended_is_refused(adata, tmp_path, monkeypatch):
    killed(monkeypatch, 3, adata, tmp_path)
    with pytest.raises(FileExistsError, match=r"has not ended \(epoch 2 of 5\): go on with SCCVAE.resume\('.*delete"):
        trained(adata, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"other data or settings: plan.max_epochs is 5 there, 6 here\. Pass those"):
        trained(adata, epochs=6, checkpoint=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"architecture.n_layers is 1 there, 2 here"):
        trained(adata, SCCVAE, {"n_layers": 2}, checkpoint=tmp_path, resume=True)
    check_same(trained(adata, checkpoint=tmp_path, resume=True, checkpoint_every=2), trained(adata))
    again = trained(adata, epochs=2, checkpoint=tmp_path)  # a run that has ended is replaced
    check_same(SCCVAE.resume(tmp_path, adata, device="cpu"), again)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda a: a[:60].copy(), r"other number of cells \(120 there, 60 here\)\. Pass"),
        (lambda a: a[::-1].copy(), "other names of the cells"),
        (lambda a: a.obs.update(pd.DataFrame({"batch": ["a"] * 60}, a.obs_names[:60])) or a, "other batches"),
        (lambda a: setattr(a, "X", a.X * 2) or a, "other total counts"),
    ],
)
def test_other_data_are_refused(change, text, adata, tmp_path, monkeypatch):
    killed(monkeypatch, 1, adata, tmp_path)
    with pytest.raises(ValueError, match=rf"The data are not those of the run in .*{text}"):
        SCCVAE.resume(tmp_path, change(adata.copy()))


def test_folders_without_a_checkpoint_that_can_be_read(adata, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"No checkpoint in .*expected a folder that train"):
        SCCVAE.resume(tmp_path, adata)
    killed(monkeypatch, 1, adata, tmp_path)
    with pytest.raises(sccvae.ModelFileError, match="holds a run of SCCVAE; expected Autoencoder"):
        Autoencoder.resume(tmp_path, adata)
    path = tmp_path / checkpoints.NAME
    content = path.read_bytes()
    for changed, text in (
        (content[: len(content) // 2], "damaged"),
        (content[:-1] + bytes([content[-1] ^ 1]), "SHA-256 differs"),
        (content.replace(b'\\"step\\": 2', b'\\"step\\": 3'), "description has changed"),
        (content.replace(b'\\"checkpoint\\": 1', b'\\"checkpoint\\": 2'), "has checkpoint format 2; .* reads format 1"),
        (b"", "damaged"),
    ):
        assert changed != content
        path.write_bytes(changed)
        with pytest.raises(sccvae.ModelFileError, match=text):
            SCCVAE.resume(tmp_path, adata)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="a file; expected a folder"):
        trained(adata, checkpoint=tmp_path / "file")


def test_weights_that_are_not_finite_can_be_in_a_checkpoint(adata, tmp_path, monkeypatch):
    """They are found at the end of the epoch, as in a run that is not interrupted."""
    choices = {"learning_rate": 1e30, "gradient_clip": float("inf")}
    killed(monkeypatch, 1, adata, tmp_path, every=3, **choices)
    with pytest.raises(sccvae.TrainingError, match="epoch 1"):
        SCCVAE.resume(tmp_path, adata)


@pytest.mark.parametrize("value", [0, 2.5, "no"])
def test_checkpoint_every_is_checked(value, adata):
    with pytest.raises((ValueError, TypeError), match="checkpoint_every is"):
        trained(adata, checkpoint_every=value)


def test_the_command_line_begins_and_goes_on(adata, tmp_path, monkeypatch, capsys):
    adata.write_h5ad(tmp_path / "in.h5ad")

    def run(*more):
        given = [tmp_path / "in.h5ad", "-o", tmp_path / "out.h5ad", "--n-latent", 4, "--max-epochs", 3, *more]
        return main(["integrate", *map(str, given)])

    assert run() == 0
    whole = anndata.read_h5ad(tmp_path / "out.h5ad")
    state = ("--checkpoint", tmp_path / "run", "--checkpoint-every", 2)
    write = checkpoints.write
    monkeypatch.setattr(checkpoints, "write", lambda *given: (write(*given), (_ for _ in ()).throw(OSError("full"))))
    assert run(*state) == 1
    monkeypatch.undo()
    assert run(*state, "--seed", 1) == 1
    assert "seed is 0 there, 1 here" in capsys.readouterr().err
    for _ in range(2):  # to its end, and once more
        assert run(*state) == 0
        found = anndata.read_h5ad(tmp_path / "out.h5ad")
        np.testing.assert_array_equal(found.obsm["X_sccvae"], whole.obsm["X_sccvae"])
        np.testing.assert_array_equal(found.layers["sccvae"], whole.layers["sccvae"])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
def test_kills_at_random_moments_also_within_a_write(adata, tmp_path):
    """Twenty times SIGKILL; each process goes on from what the one before left."""
    tqdm.set_lock(threading.RLock())  # its own is shared with forked processes: one that is killed may hold it
    run = {"epochs": 400, "early_stopping": False}
    choices = {**run, "checkpoint": tmp_path, "checkpoint_every": 3, "resume": True}
    trained(adata, epochs=1)  # compiles
    rng, held, within = np.random.default_rng(0), False, 0
    for _ in range(20):
        number = os.fork()
        if number == 0:
            try:
                trained(adata, **choices)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0.03, 0.25))
        os.kill(number, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(number, 0)[1]), "the run ended before it was killed"
        within += any(name.endswith(".part") for name in os.listdir(tmp_path))
        assert checkpoints.holds(tmp_path) or not held
        held = checkpoints.holds(tmp_path)
    assert held
    assert within  # about every second kill is within a write
    check_same(trained(adata, **choices), trained(adata, **run))
    assert os.listdir(tmp_path) == [checkpoints.NAME]
