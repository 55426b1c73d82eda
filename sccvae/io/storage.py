"""Saved models: a folder with `weights.safetensors` and `model.json`, neither of which can execute code.

The header of the weights has a copy of `model.json`, which includes a checksum of the arrays. Therefore one rename
replaces a model, and damage in either file is detected by comparison of the two copies.

A save that is killed between its two renames leaves the old weights beside the new `model.json`. The new text has the
checksum of the old text (`replaces`), by which the interrupted save is recognised; the old model is then read. Models
of sccvae 0.1.0 have neither checksum, and are read without.
"""

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
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
_HEADER = 9 * LARGEST // 4  # bytes of the header of the weights, where quotes and line ends take two bytes each
_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int16: "I16", torch.int32: "I32"}
Arrays = dict[str, tuple[str, tuple[int, ...]]]  # name -> safetensors' name of the dtype, shape


class ModelFileError(ValueError):
    """Error for a folder without a readable model.

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
    """Check, before computing, that a model can be saved at `path`; return the folder with links resolved.

    Raises
    ------
    FileExistsError
        The folder contains a model and `overwrite` is False, or the path is a file.
    TypeError, ValueError, OSError
        `path` is not a path, or is not writable.
    """
    folder = files.path_of(path)
    real = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; save() writes a folder. Choose another path.")
    if (folder / WEIGHTS).exists() and not overwrite:
        raise FileExistsError(f"{folder} already contains a model; pass overwrite=True to replace it.")
    if folder.is_dir():
        for name in (WEIGHTS, DESCRIPTION):
            files.checked(folder / name, "model")
        return real
    if os.path.lexists(real):
        raise FileExistsError(f"{folder} is a broken link; expected a folder or a new path. Choose another path.")
    above = next(parent for parent in real.parents if os.path.lexists(parent))
    if not above.is_dir():
        raise NotADirectoryError(f"{above} is a file; expected a folder, to contain {folder}. Choose another path.")
    files.check_writable(above, "folder of the model")
    return real


def save(
    path: str | os.PathLike, tensors: dict[str, torch.Tensor], description: dict[str, Any], *, overwrite: bool
) -> None:
    """Write a model folder, replacing an existing model only if `overwrite`.

    Raises
    ------
    FileExistsError, TypeError, ValueError, OSError
        As `check_place`; and ValueError for parameters that `load` would reject, OSError if the disk is full.
    """
    folder = check_place(path, overwrite=overwrite)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _check_finite(contiguous)
    made = [each for each in (folder, *folder.parents) if not each.exists()]  # innermost first
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with files.alone_in(folder), files.named_if_full(folder):
            check_place(folder, overwrite=overwrite)  # another process may have saved here meanwhile
            _write(folder, contiguous, description)
    except BaseException:
        for each in made:
            with suppress(OSError):  # another process may have written into the folder
                each.rmdir()
        raise


def _write(folder: Path, tensors: dict[str, torch.Tensor], description: dict[str, Any]) -> None:
    sums = {"sha256": checksum(tensors), "replaces": _replaced(folder / WEIGHTS)}
    text = json.dumps({"format": FORMAT, "versions": versions(), **sums, **description}, indent=1, allow_nan=False)
    if len(text) > LARGEST:
        raise ValueError(f"The description of the model takes {len(text):,} bytes; load() reads at most {LARGEST:,}.")
    weights, readable = (Path(os.path.realpath(folder / name)) for name in (WEIGHTS, DESCRIPTION))
    with files.part_beside(readable) as one, files.part_beside(weights) as other:
        described, stored = one / readable.name, other / weights.name
        described.write_text(text, encoding="utf-8")
        save_arrays(tensors, stored, text, weights)
        os.chmod(stored, described.stat().st_mode)  # safetensors restricts the file to its owner
        with Saved.opened(folder, stored) as saved:
            saved.check({name: (_DTYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items()})
            saved.tensors()
        files.put(described, readable)
        files.put(stored, weights)  # from here on load() returns the new model
    for name in (WEIGHTS, DESCRIPTION):
        (folder / f"{name}.part").unlink(missing_ok=True)  # left by a killed save of sccvae 0.1.0


def save_arrays(tensors: dict[str, torch.Tensor], part: Path, text: str, target: Path) -> None:
    """Write arrays to the file `part`, with a text in its header; OSError names the target."""
    try:
        save_file(tensors, part, metadata={"model": text})
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        raise OSError(int(found[1]) if found else None, str(error), str(target)) from error


def checksum(tensors: dict[str, torch.Tensor]) -> str:
    """Compute the SHA-256 of the arrays: names, dtypes, shapes, bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].numpy()
        found.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _replaced(weights: Path) -> str | None:
    """Return the SHA-256 of the text in the header of the weights to replace; None without weights."""
    try:
        with Saved.opened(weights.parent, weights) as saved:
            return saved.text_checksum
    except (ModelFileError, OSError):
        return None


def _identity(path: Path) -> tuple[int, ...]:
    """Return what tells a file from another of the same name."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _check_finite(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if not (finite := torch.isfinite(tensor)).all():
            raise ValueError(f"the weight {name!r} holds {int((~finite).sum())} values that are not finite")


# ---------------------------------------------------------------------------------------------------------------- read


class Saved(NamedTuple):
    """Saved weights; only the header is read until `tensors` is called."""

    folder: Path
    handle: Any  # of safetensors
    text: bytes
    description: dict[str, Any]

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, weights: Path) -> Iterator["Saved"]:
        """Open a file of weights and read its header, after a check of the header's size."""
        try:
            with ExitStack() as stack:
                before = None
                # safetensors opens the file twice, and another process may replace it in between.
                while before != (before := _identity(weights)):
                    stack.close()
                    _check_header(weights)
                    handle = stack.enter_context(safe_open(weights, framework="pt", device="cpu"))
                text = (handle.metadata() or {}).get("model", "").encode()
                yield cls(folder, handle, text, _parse(text, weights))
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"{weights} is damaged or not a safetensors file ({error}).") from error

    @property
    def text_checksum(self) -> str:
        """Return the SHA-256 of the text."""
        return hashlib.sha256(self.text).hexdigest()

    @property
    def arrays(self) -> Arrays:
        """Return dtype and shape of each array, from the header."""
        slices = {name: self.handle.get_slice(name) for name in self.handle.keys()}  # noqa: SIM118  not a dict
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}

    def check(self, expected: Arrays) -> None:
        """Raise ValueError unless the file has exactly the expected arrays."""
        check_arrays(self.arrays, expected)

    def tensors(self, *, finite: bool = True) -> dict[str, torch.Tensor]:
        """Read the arrays; raise ValueError unless their checksum agrees and, if asked, they are finite."""
        tensors = {name: self.handle.get_tensor(name) for name in self.handle.keys()}  # noqa: SIM118
        if "sha256" in self.description and self.description["sha256"] != checksum(tensors):
            raise ValueError("the weights have changed since they were saved: their SHA-256 differs")
        if finite:
            _check_finite(tensors)
        return tensors

    def agrees(self, readable: bytes, found: dict[str, Any]) -> bool:
        """Return whether `model.json`, its bytes `readable` and content `found`, belongs to these weights."""
        if readable == self.text or not {"sha256", "replaces"} & (self.description.keys() | found.keys()):
            return True
        return found.get("replaces") == self.text_checksum  # a save was killed before it replaced the weights


def check_arrays(found: Arrays, expected: Arrays) -> None:
    """Raise ValueError unless the arrays found are exactly the expected ones."""
    for name, (dtype, shape) in expected.items():
        if name not in found:
            raise ValueError(f"the weight {name!r} of shape {shape} is missing")
        if found[name][1] != shape:
            raise ValueError(f"the weight {name!r} has shape {found[name][1]}, expected {shape} by the description")
        if found[name][0] != dtype:
            raise ValueError(f"the weight {name!r} is of type {found[name][0]}, expected {dtype}")
    if unknown := [name for name in found if name not in expected]:
        raise ValueError(f"the weight {unknown[0]!r} is not one of the model described")


@contextmanager
def opened(path: str | os.PathLike, kind: str) -> Iterator[Saved]:
    """Yield the saved model of the class `kind`; errors inside the block become a `ModelFileError`.

    Raises
    ------
    FileNotFoundError
        There is no model at that path.
    ModelFileError
        The folder is damaged, was written by another program, or contains a model of another class.
    """
    folder = files.path_of(path)
    for name in (WEIGHTS, DESCRIPTION):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"No sccvae model in {folder}: {name} is missing. Expected a folder written by {kind}.save()."
            )
    with _agreeing(folder) as saved:
        found = saved.description.get("kind", "SCCVAE")  # early saved models lack the entry
        if found != kind:
            raise ModelFileError(f"{folder} contains a model of {found}; expected {kind}: read it with {found}.load().")
        with incomplete_is_damaged(folder, "a complete sccvae model"):
            yield saved


@contextmanager
def incomplete_is_damaged(folder: Path, what: str) -> Iterator[None]:
    """Convert errors of wrong contents inside the block to a `ModelFileError`."""
    try:
        yield
    except ModelFileError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        reason = reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"
        raise ModelFileError(f"{folder} does not contain {what} ({reason}).") from error


@contextmanager
def _agreeing(folder: Path) -> Iterator[Saved]:
    """Open both files, if they are of one model; retry, because a save may replace them between the two reads."""
    for _ in range(3):
        with Saved.opened(folder, folder / WEIGHTS) as saved:
            readable = _read(folder / DESCRIPTION)
            if saved.agrees(readable, _parse(readable, folder / DESCRIPTION)):
                yield saved
                return
    raise ModelFileError(
        f"{folder / DESCRIPTION} and {folder / WEIGHTS} describe two different models; expected both from one save. "
        "One of them is damaged or was replaced: copy both again."
    )


def _read(path: Path) -> bytes:
    with path.open("rb") as handle:
        text = handle.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ModelFileError(f"{path} takes {path.stat().st_size:,} bytes; a description takes at most {LARGEST:,}.")
    return text


def _check_header(weights: Path) -> None:
    """Raise for a header that is too large, or with anything but spaces after its last brace."""
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
            f"{path} does not describe an sccvae model; it is damaged or was written by another program."
        ) from error
    if type(version) is not int or version != FORMAT:
        raise ModelFileError(
            f"{path} has format {version}; this version of sccvae reads format {FORMAT}. Upgrade sccvae to read it."
        )
    return description


def _tuples(value: Any) -> Any:
    """Convert JSON's lists to tuples, because the model's immutable parts use tuples."""
    if isinstance(value, dict):
        return {key: _tuples(v) for key, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect a model's results."""
    packages = {name: version(name) for name in ("torch", "anndata", "numpy")}
    return {"python": platform.python_version(), "sccvae": __version__, **packages}
