"""Checkpoints: a folder with one file, `checkpoint.safetensors`, which cannot execute code.

The file holds arrays and, in its header, a description as JSON with a checksum of the arrays. It is written beside the
old one and renamed. Therefore a process that is killed at any moment leaves one complete checkpoint.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sccvae.io import files, storage

NAME, FORMAT = "checkpoint.safetensors", 1


def checked(path: str | os.PathLike) -> Path:
    """Check, before computing, that checkpoints can be written to a folder, and make it; return it.

    Raises
    ------
    TypeError, ValueError, OSError
        `path` is not a path, is a file, or is not writable.
    """
    folder = files.path_of(path, "checkpoint")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"checkpoint is {str(folder)!r}, a file; expected a folder or a new path.")
    folder.mkdir(parents=True, exist_ok=True)
    files.checked(folder / NAME, "checkpoint")
    return folder


def holds(folder: Path) -> bool:
    """Return whether there is a checkpoint in a folder."""
    return (folder / NAME).is_file()


def write(folder: Path, tensors: dict[str, torch.Tensor], description: dict[str, Any]) -> None:
    """Replace the checkpoint in a folder.

    Raises
    ------
    OSError
        The folder cannot be written to, or the disk is full. The old checkpoint is kept.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    head = {"format": storage.FORMAT, "checkpoint": FORMAT, "sha256": storage.checksum(contiguous)}
    text = json.dumps(head | {"run_sha256": _checksum(description), "run": description}, allow_nan=False)
    with files.writing(folder / NAME, "checkpoint") as part:
        storage.save_arrays(contiguous, part, text, folder / NAME)


@contextmanager
def opened(path: str | os.PathLike, kind: str) -> Iterator[tuple[storage.Saved, dict[str, Any]]]:
    """Yield the file and the description of a run of the class `kind`; wrong contents become a `ModelFileError`.

    Raises
    ------
    FileNotFoundError
        There is no checkpoint in the folder.
    ModelFileError
        The checkpoint is damaged, has another format, or is of another class.
    """
    folder = files.path_of(path, "checkpoint")
    if not holds(folder):
        raise FileNotFoundError(f"No checkpoint in {folder}: expected a folder that train(checkpoint=...) wrote to.")
    with storage.Saved.opened(folder, folder / NAME) as saved:
        if (found := saved.description.get("checkpoint")) != FORMAT:
            raise storage.ModelFileError(
                f"{folder / NAME} has checkpoint format {found}; this version of sccvae reads format {FORMAT}. "
                "Go on with the version that wrote the file."
            )
        with storage.incomplete_is_damaged(folder, "a complete checkpoint"):
            run = saved.description["run"]
            if saved.description["run_sha256"] != _checksum(run):
                raise ValueError("the description has changed since it was written: its SHA-256 differs")
            if (found := run["kind"]) != kind:
                raise storage.ModelFileError(
                    f"{folder} holds a run of {found}; expected {kind}: go on with {found}.resume()."
                )
            yield saved, run


def _checksum(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()
