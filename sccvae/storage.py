"""Saved models: a folder with `weights.safetensors` and `model.json`. Nothing in it can execute.

The text of `model.json` also travels in the header of the weights, so that one rename replaces a model: a save that is
killed leaves the old model or the new one, never weights of one with the description of the other.
"""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sccvae import __version__

WEIGHTS, DESCRIPTION, FORMAT = "weights.safetensors", "model.json", 1


class ModelFileError(ValueError):
    """A folder that does not hold a readable model."""


def save(folder: Path, tensors: dict[str, torch.Tensor], description: dict[str, Any], *, overwrite: bool) -> None:
    """Write a model folder, replacing an earlier model there only when `overwrite`.

    Raises
    ------
    FileExistsError
        The folder holds a model and `overwrite` is False, or the path is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; save() writes a folder. Choose another path.")
    if (folder / WEIGHTS).exists() and not overwrite:
        raise FileExistsError(f"{folder} already holds a model; pass overwrite=True to replace it.")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, "versions": versions(), **description}, indent=1, allow_nan=False)
    weights, readable = folder / (WEIGHTS + ".part"), folder / (DESCRIPTION + ".part")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, weights, metadata={"model": text})
    readable.write_text(text, encoding="utf-8")
    for part in (weights, readable):
        with part.open("rb+") as handle:
            os.fsync(handle.fileno())
    os.replace(readable, folder / DESCRIPTION)
    os.replace(weights, folder / WEIGHTS)  # from here on the new model is what load() returns


def load(folder: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights (on the CPU) and description of a saved model of the class `kind`.

    Raises
    ------
    FileNotFoundError
        There is no model at that path.
    ModelFileError
        The folder is damaged, was written by something else, or holds a model of another class.
    """
    for name in (WEIGHTS, DESCRIPTION):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"No sccvae model in {folder}: {name} is missing. Expected a folder written by {kind}.save()."
            )
    _parse((folder / DESCRIPTION).read_bytes(), folder / DESCRIPTION)
    try:
        with safe_open(folder / WEIGHTS, framework="pt", device="cpu") as handle:
            text = (handle.metadata() or {}).get("model", "")
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{folder / WEIGHTS} is damaged or not a safetensors file ({error}).") from error
    description = _parse(text.encode(), folder / WEIGHTS)
    found = description.get("kind", "SCCVAE")  # models saved before there were others do not say
    if found != kind:
        raise ModelFileError(f"{folder} holds a model of {found}, not of {kind}: read it with {found}.load().")
    return tensors, description


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn what goes wrong while a description is understood into a `ModelFileError`."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelFileError(
            f"{folder} does not hold a whole sccvae model ({type(error).__name__}: {reason})."
        ) from error


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    try:
        description = _tuples(json.loads(text))
        version = description["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFileError(
            f"{path} does not describe an sccvae model; it is damaged or was made by another program."
        ) from error
    if version != FORMAT:
        raise ModelFileError(
            f"{path} is of format {version}; this version of sccvae reads format {FORMAT}. Upgrade sccvae to read it."
        )
    return description


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, which the model's immutable parts are made of."""
    if isinstance(value, dict):
        return {key: _tuples(v) for key, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def versions() -> dict[str, str]:
    """Versions of Python and the packages that decide what a model does."""
    packages = {name: version(name) for name in ("torch", "anndata", "numpy")}
    return {"python": platform.python_version(), "sccvae": __version__, **packages}
