"""Saved models: a folder with `weights.safetensors` and `model.json`. Nothing in it can execute.

The text of `model.json` also travels in the header of the weights, and holds a checksum of the weights' bytes. So one
rename replaces a model, and the two copies of the text check each other: what is damaged in either file is told.

A save that is killed between its two renames leaves the old weights beside the new text. That text says which model it
replaces (`replaces`, the checksum of the old text), so it is known for what it is, and the old model is read. Models
of sccvae 0.1.0 have neither checksum; they are read without.
"""

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sccvae import __version__
from sccvae.io import files

WEIGHTS, DESCRIPTION, FORMAT = "weights.safetensors", "model.json", 1
LARGEST = 40_000_000  # bytes of a description: a million names of genes
_HEADER = 9 * LARGEST // 4  # of the header of the weights, where each quote and each end of line takes two bytes
_DTYPES = {torch.float32: "F32", torch.float64: "F64"}
Arrays = dict[str, tuple[str, tuple[int, ...]]]  # name -> safetensors' name of the dtype, shape


class ModelFileError(ValueError):
    """A folder that does not hold a readable model.

    Examples
    --------
    >>> import pathlib
    >>> import sccvae
    >>> pathlib.Path("damaged").mkdir()
    >>> for name in ("model.json", "weights.safetensors"):
    ...     _ = pathlib.Path("damaged", name).write_text("damaged")
    >>> try:
    ...     model = sccvae.SCCVAE.load("damaged")
    ... except sccvae.ModelFileError:
    ...     print("The model cannot be read.")
    The model cannot be read.
    """


# --------------------------------------------------------------------------------------------------------------- write


def check_place(path: str | os.PathLike, *, overwrite: bool) -> Path:
    """The folder of a model, links followed, if one can be saved there: asked before the work.

    Raises
    ------
    FileExistsError
        The folder holds a model and `overwrite` is False, or the path is a file.
    TypeError, ValueError, OSError
        `path` is no path, or cannot be written to.
    """
    folder = files.path_of(path)
    real = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; save() writes a folder. Choose another path.")
    if (folder / WEIGHTS).exists() and not overwrite:
        raise FileExistsError(f"{folder} already holds a model; pass overwrite=True to replace it.")
    if folder.is_dir():
        for name in (WEIGHTS, DESCRIPTION):
            files.checked(folder / name, "model")
        return real
    if os.path.lexists(real):
        raise FileExistsError(f"{folder} is a link that leads nowhere. Choose another path.")
    above = next(parent for parent in real.parents if os.path.lexists(parent))
    if not above.is_dir():
        raise NotADirectoryError(f"{above} is a file; there can be no folder {folder}. Choose another path.")
    files.check_writable(above, "folder of the model")
    return real


def save(
    path: str | os.PathLike, tensors: dict[str, torch.Tensor], description: dict[str, Any], *, overwrite: bool
) -> None:
    """Write a model folder, replacing an earlier model there only when `overwrite`.

    Raises
    ------
    FileExistsError, TypeError, ValueError, OSError
        As `check_place`; and ValueError for weights that `load` would refuse, OSError where the disk is full.
    """
    folder = check_place(path, overwrite=overwrite)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _check_finite(contiguous)
    made = [each for each in (folder, *folder.parents) if not each.exists()]  # from the inside
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with files.alone_in(folder), files.named_if_full(folder):
            check_place(folder, overwrite=overwrite)  # another may have saved here meanwhile
            _write(folder, contiguous, description)
    except BaseException:
        for each in made:
            with suppress(OSError):  # it holds something by now
                each.rmdir()
        raise


def _write(folder: Path, tensors: dict[str, torch.Tensor], description: dict[str, Any]) -> None:
    sums = {"sha256": _checksum(tensors), "replaces": _replaced(folder / WEIGHTS)}
    text = json.dumps({"format": FORMAT, "versions": versions(), **sums, **description}, indent=1, allow_nan=False)
    if len(text) > LARGEST:
        raise ValueError(f"The description of the model takes {len(text):,} bytes; load() reads at most {LARGEST:,}.")
    weights, readable = (Path(os.path.realpath(folder / name)) for name in (WEIGHTS, DESCRIPTION))
    with files.part_beside(readable) as one, files.part_beside(weights) as other:
        described, stored = one / readable.name, other / weights.name
        described.write_text(text, encoding="utf-8")
        try:
            save_file(tensors, stored, metadata={"model": text})
        except SafetensorError as error:
            found = re.search(r"os error (\d+)", str(error))
            raise OSError(int(found[1]) if found else None, str(error), str(weights)) from error
        os.chmod(stored, described.stat().st_mode)  # safetensors leaves it to the owner alone
        with _Saved.opened(folder, stored) as saved:
            saved.check({name: (_DTYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items()})
            saved.tensors()
        files.put(described, readable)
        files.put(stored, weights)  # from here on the new model is what load() returns
    for name in (WEIGHTS, DESCRIPTION):
        (folder / f"{name}.part").unlink(missing_ok=True)  # of a save by sccvae 0.1.0 that was killed


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the arrays: names, dtypes, shapes, bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].numpy()
        found.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _replaced(weights: Path) -> str | None:
    """SHA-256 of the text in the header of weights that are to be replaced, if there are some."""
    try:
        with _Saved.opened(weights.parent, weights) as saved:
            return saved.text_checksum
    except (ModelFileError, OSError):
        return None


def _check_finite(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if not (finite := torch.isfinite(tensor)).all():
            raise ValueError(f"the weight {name!r} holds {int((~finite).sum())} values that are not finite")


# ---------------------------------------------------------------------------------------------------------------- read


class _Saved(NamedTuple):
    """Saved weights, of which no more is read than the header until `tensors` is called."""

    folder: Path
    handle: Any  # of safetensors
    text: bytes
    description: dict[str, Any]

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, weights: Path) -> Iterator["_Saved"]:
        """Read the header of a file of weights, if its size makes sense."""
        _check_header(weights)
        try:
            with safe_open(weights, framework="pt", device="cpu") as handle:
                text = (handle.metadata() or {}).get("model", "").encode()
                yield cls(folder, handle, text, _parse(text, weights))
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"{weights} is damaged or not a safetensors file ({error}).") from error

    @property
    def text_checksum(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text).hexdigest()

    @property
    def arrays(self) -> Arrays:
        """Dtype and shape of each array, from the header."""
        slices = {name: self.handle.get_slice(name) for name in self.handle.keys()}  # noqa: SIM118  not a dict
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}

    def check(self, expected: Arrays) -> None:
        """Raise ValueError unless the file holds the arrays expected and no other."""
        found = self.arrays
        for name, (dtype, shape) in expected.items():
            if name not in found:
                raise ValueError(f"the weight {name!r} of shape {shape} is missing")
            if found[name][1] != shape:
                raise ValueError(f"the weight {name!r} has shape {found[name][1]}; the description makes it {shape}")
            if found[name][0] != dtype:
                raise ValueError(f"the weight {name!r} is of type {found[name][0]}, expected {dtype}")
        if unknown := [name for name in found if name not in expected]:
            raise ValueError(f"there is a weight {unknown[0]!r}, which the model described does not have")

    def tensors(self) -> dict[str, torch.Tensor]:
        """Read the arrays. Raises ValueError unless they are those that were saved, and finite."""
        tensors = {name: self.handle.get_tensor(name) for name in self.handle.keys()}  # noqa: SIM118
        if "sha256" in self.description and self.description["sha256"] != _checksum(tensors):
            raise ValueError("the weights are not those that were saved: their SHA-256 is another")
        _check_finite(tensors)
        return tensors

    def agrees(self, readable: bytes, found: dict[str, Any]) -> bool:
        """Whether `model.json`, its bytes and what they say, belongs to these weights."""
        if readable == self.text or not {"sha256", "replaces"} & (self.description.keys() | found.keys()):
            return True
        return found.get("replaces") == self.text_checksum  # a save was killed before it came to the weights


@contextmanager
def opened(path: str | os.PathLike, kind: str) -> Iterator[_Saved]:
    """Give the saved model of the class `kind`; what goes wrong while it is understood is a `ModelFileError`.

    Raises
    ------
    FileNotFoundError
        There is no model at that path.
    ModelFileError
        The folder is damaged, was written by something else, or holds a model of another class.
    """
    folder = files.path_of(path)
    for name in (WEIGHTS, DESCRIPTION):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"No sccvae model in {folder}: {name} is missing. Expected a folder written by {kind}.save()."
            )
    with _agreeing(folder) as saved:
        found = saved.description.get("kind", "SCCVAE")  # models saved before there were others do not say
        if found != kind:
            raise ModelFileError(f"{folder} holds a model of {found}, not of {kind}: read it with {found}.load().")
        try:
            yield saved
        except ModelFileError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            reason = reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"
            raise ModelFileError(f"{folder} does not hold a whole sccvae model ({reason}).") from error


@contextmanager
def _agreeing(folder: Path) -> Iterator[_Saved]:
    """Both files, if they are of one model; tried again, for a save may come between reading the two."""
    for _ in range(3):
        with _Saved.opened(folder, folder / WEIGHTS) as saved:
            readable = _read(folder / DESCRIPTION)
            if saved.agrees(readable, _parse(readable, folder / DESCRIPTION)):
                yield saved
                return
    raise ModelFileError(
        f"{folder / DESCRIPTION} and {folder / WEIGHTS} describe two different models: one of them is damaged or was "
        "replaced. Take both from one save."
    )


def _read(path: Path) -> bytes:
    with path.open("rb") as handle:
        text = handle.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ModelFileError(f"{path} takes {path.stat().st_size:,} bytes; a description takes at most {LARGEST:,}.")
    return text


def _check_header(weights: Path) -> None:
    """Refuse a header larger than a description makes it, or with anything but spaces behind its last brace."""
    with weights.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > _HEADER:
            raise ModelFileError(f"{weights} is damaged or not a safetensors file (a header of {length:,} bytes).")
        handle.seek(max(8, length))
        end = handle.read(8 + length - max(8, length))
    if not end.rstrip(b" ").endswith(b"}"):
        raise ModelFileError(f"{weights} is damaged or not a safetensors file (its header does not end).")


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    try:
        description = _tuples(json.loads(text))
        version = description["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFileError(
            f"{path} does not describe an sccvae model; it is damaged or was made by another program."
        ) from error
    if type(version) is not int or version != FORMAT:
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
