"""What the processes of `test_processes` do: `python together.py FOLDER TASK ...`; results go to FOLDER/RANK.json."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import small_counts, small_vae

import sccvae
from sccvae.kernels.reference import for_device
from sccvae.training import steps as steps_module
from sccvae.training.optimizer import Adam
from sccvae.training.processes import Processes, processes_of

CPU = torch.device("cpu")
N_CELLS = 40
FOLDER, RANK = Path(sys.argv[1]), int(os.environ["RANK"])
FOUND: dict[str, Any] = {}


def data(seed: int = 0):
    return sccvae.simulate.simulate(90, 30, n_batches=2, seed=seed)


def made(adata=None, **options):
    return sccvae.SCCVAE(data() if adata is None else adata, batch_key="batch", n_hidden=16, n_latent=3, **options)


def bits(model) -> str:
    weights = b"".join(w.numpy().tobytes() for w in model._vae.state_dict().values())
    history = model.history.drop(columns="seconds").to_csv().encode()
    return hashlib.sha256(weights + history).hexdigest()


def trained(epochs: int = 3, adata=None, **choices):
    model = made(adata)
    model.train(epochs, **{"batch_size": 16, "progress_bar": False, **choices})
    return model


def failing(at: int, what):
    """Let `what` be called in place of the message of a step."""
    add, calls = Processes.add, []

    def add_or_fail(self, *given):
        calls.append(1)
        if len(calls) == at:
            what()
        return add(self, *given)

    Processes.add = add_or_fail  # type: ignore[method-assign]
    return add


def gradient() -> None:
    """Gradient of one step, with the noise of each cell given by its place in the minibatch."""
    for waits in (True, False):
        together = processes_of(CPU)
        assert together is not None
        taken, total = one_step(np.arange(N_CELLS), waits, together)
        np.savez(FOLDER / f"gradient_{waits}_{RANK}.npz", gradient=taken, total=total)


def one_step(cells: np.ndarray, waits: bool, together: Processes | None):
    """Entries of the gradient, and loss and sums of the terms, of a step on `cells`."""
    counts = small_counts(N_CELLS, n_batches=2)
    vae = small_vae(counts, kernels=for_device(CPU), dropout_rate=0.0).train()
    n_weights, n_columns = len(list(vae.parameters())), len(vae.columns)
    optimizer = Adam(list(vae.parameters()), clip=1e9, room=together.room(n_columns, n_weights) if together else 0)
    minibatches, take = steps_module.steps(vae, counts, optimizer, torch.Generator(), "full", 1, together)
    parts = [cells] if together is None else together.parts([cells])
    (x,) = minibatches(parts)
    rows = [int(np.flatnonzero(cells == cell)[0]) for cell in parts[0]]
    table, randn = np.random.default_rng(0).standard_normal((4, N_CELLS, 30)).astype(np.float32), torch.randn

    def given(n, *shape, **_):
        numbers = torch.from_numpy(table[len(shape)][rows])
        return numbers[:, : shape[0]].contiguous() if shape else numbers[:, 0].contiguous()

    torch.randn = given  # type: ignore[assignment]
    try:
        loss, terms = take(x, 0.5, optimizer.numbers(1e-3), waits)
    finally:
        torch.randn = randn
    return optimizer.arrays[1].numpy().copy(), np.append(loss.item(), terms.numpy())


def runs() -> None:
    """Train twice; with a last minibatch of few cells; with fewer cells in a minibatch than processes."""
    FOUND["twice"] = [bits(trained()), bits(trained())]
    FOUND["history"] = trained().history["elbo"].tolist()
    FOUND["small"] = bits(trained(1, data()[:31].copy(), batch_size=1))
    FOUND["autoencoder"] = bits_of_autoencoder()


def drift() -> None:
    """Change the weights of one process, as a processor that rounds differently does."""
    add = Processes.add

    def changed(self, optimizer, *given):
        if RANK == 1 and optimizer.n_steps == 2:
            optimizer.arrays[0].add_(1e-6)
        return add(self, optimizer, *given)

    Processes.add = changed  # type: ignore[method-assign]
    FOUND["drift"] = bits(trained(train_size=1.0))
    Processes.add = add  # type: ignore[method-assign]


def bits_of_autoencoder() -> str:
    model = sccvae.Autoencoder(data(), n_hidden=16, n_latent=3)
    model.train(2, batch_size=16, progress_bar=False)
    return bits(model)


def interrupted() -> None:
    """Interrupt one process, with a checkpoint; then go on."""
    add = Processes.add
    if RANK == 1:
        failing(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    model = trained(checkpoint=FOLDER / "run", checkpoint_every=2)
    Processes.add = add  # type: ignore[method-assign]
    FOUND["interrupted"] = [bits(model), len(model.history)]
    FOUND["resumed"] = bits(sccvae.SCCVAE.resume(FOLDER / "run", data(), progress_bar=False))
    try:
        trained(learning_rate=1e30, gradient_clip=float("inf"))
    except sccvae.TrainingError as error:
        FOUND["not finite"] = str(error)


def said(what) -> str:
    try:
        what()
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return "nothing"


def different() -> None:
    """Other data, other versions, other arguments, in one process."""
    from sccvae.io import storage

    FOUND["data"] = said(lambda: trained(adata=data(seed=RANK)))
    FOUND["epochs"] = said(lambda: trained(2 + RANK))
    versions = storage.versions
    storage.versions = lambda: versions() | {"torch": f"2.{RANK}"}  # type: ignore[assignment]
    FOUND["versions"] = said(trained)
    storage.versions = versions  # type: ignore[assignment]


def error() -> None:
    """Raise an error in process 1, which stays alive for a while."""

    def what():
        raise ValueError("a value of this process")

    if RANK == 1:
        failing(4, what)
    FOUND["error"] = said(trained)


def outputs() -> None:
    """Integrate a file together; process 0 also alone."""
    from sccvae import tl
    from sccvae.io import in_blocks

    source = FOLDER / "cells.h5ad"
    in_blocks._DENSE = 30 * 8  # 8 cells are a chunk of a layer
    train = {"max_epochs": 1, "batch_size": 16, "progress_bar": False}
    given = {"batch_key": "batch", "train_options": train, "model_options": {"n_hidden": 16, "n_latent": 3}}
    for out in ("together.h5ad", "together.zarr"):
        tl.integrate(source, out=FOLDER / out, **given)
    FOUND["seen"] = sorted(path.name for path in FOLDER.glob("together*"))
    model = made(source)
    model.train(**train)
    if RANK == 0:
        tl.store(source, model, out=FOLDER / "alone.h5ad")


def outputs_with_error() -> None:
    """Integrate a file together, with an error in process 1 while it writes its cells."""
    from sccvae import tl
    from sccvae.io import in_blocks
    from sccvae.tl import results

    def fail(*_):
        raise ValueError("a value of this process")

    in_blocks._DENSE = 30 * 8
    if RANK == 1:
        results.write = fail
    train = {"max_epochs": 1, "progress_bar": False}
    given = {"batch_key": "batch", "train_options": train, "out": FOLDER / "failed.h5ad"}
    FOUND["outputs"] = said(lambda: tl.integrate(FOLDER / "cells.h5ad", **given))


def killed() -> None:
    """Kill the process named on the command line."""
    if int(sys.argv[-1]) == RANK:
        failing(4, lambda: os.kill(os.getpid(), signal.SIGKILL))
    FOUND["killed"] = said(trained)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for task in sys.argv[2:]:
        if not task.isdigit():
            globals()[task]()
    (FOLDER / f"{RANK}.json").write_text(json.dumps(FOUND))
