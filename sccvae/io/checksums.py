"""Checksums of files in a list in the format of the program ``sha256sum``."""

import hashlib
import os
from pathlib import Path

from sccvae.io import files


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def agrees(path: Path, sums: Path) -> bool:
    """Return whether the list `sums` has the file; raise ValueError if its checksum differs."""
    known = _read(sums).get(os.path.relpath(path, sums.parent))
    if known is not None and (found := sha256(path)) != known:
        raise ValueError(
            f"{path} has changed: its SHA-256 is {found}; expected {known}. Delete the file if it is damaged, to "
            f"create it again; if the change is intended, delete the file's line in {sums}."
        )
    return known is not None


def record(path: Path, sums: Path) -> None:
    """Record the file's checksum in the list `sums`, replacing an earlier one."""
    known = _read(sums) | {os.path.relpath(path, sums.parent): sha256(path)}
    with files.writing(sums) as part:
        part.write_text("".join(f"{found}  {name}\n" for name, found in known.items()), encoding="utf-8")


def _read(sums: Path) -> dict[str, str]:
    """Read checksums by file, relative to the folder of `sums`."""
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines() if sums.is_file() else []
    pairs = [pair for pair in (line.split(maxsplit=1) for line in lines) if len(pair) == 2]
    return {name.removeprefix("*"): found.lower() for found, name in pairs}
