"""Atomic writing of files and folders: models, h5ad, zarr, reports, figures.

Output is written into a part, the hidden folder ``.NAME.xxxxxxxx.part`` beside the target. The output is read back,
flushed to the disk and then renamed, so that a killed run leaves either the old or the new content. The part contains
a file that the writer locks. The lock ends with the process. The next write of the same name can therefore distinguish
parts of killed runs from those of other writers, and removes the parts of killed runs.
"""

import ctypes
import errno
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

IN_USE = ".in-use"  # the locked file in a writer's part
REPLACED = ".replaced"  # the target's old folder, on systems that cannot exchange two folders
_STALE = 24 * 3600.0  # seconds after which a part is abandoned, on systems without file locks
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_ZARR = {"zarr.json", ".zgroup", ".zmetadata", ".zattrs", ".zarray"}  # every zarr store has one of these files


# ------------------------------------------------------------------------------------------------------------- checks


def path_of(path: str | os.PathLike, what: str = "path") -> Path:
    """Return `path` as a Path; raise TypeError if it is not a path, ValueError if it is empty or has a null byte."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(
            f"{what} is {path!r}; expected the path of a file or folder, such as 'results/model'."
        ) from None
    if not text or "\0" in text:
        raise ValueError(f"{what} is {text!r}; expected the path of a file or folder, such as 'results/model'.")
    return Path(text)


def checked(path: str | os.PathLike, what: str = "output", *, folder: bool = False) -> Path:
    """Check, before computing, that a file (or a `folder`) can be written at `path`; return it with links resolved.

    Raises
    ------
    TypeError, ValueError
        `path` is not a path, or is empty.
    OSError
        `path` exists and is not a file (or a folder); or the parent folder does not exist or is not writable.
    """
    given = path_of(path, what)
    target = Path(os.path.realpath(given))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"The folder of the {what} does not exist: {target.parent}. Create it first.")
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None:
        _check_kind(given, mode, what, folder)
    if mode is not None and not os.access(target, os.W_OK):
        raise PermissionError(f"The {what} exists and is not writable: {given}. Change its mode, or the name.")
    check_writable(target.parent, f"folder of the {what}")
    return target


def check_apart(target: Path, inputs: Iterable[Path], what: str = "output") -> None:
    """Raise ValueError if a file at `target` would replace an input, or a file in the folder of one."""
    for path in inputs:
        same = path.resolve() == target.resolve() or (target.exists() and path.exists() and target.samefile(path))
        if same or (target.exists() and path.resolve() in target.resolve().parents):
            raise ValueError(f"The {what} would replace {path}, which is read, or a part of it: choose another name.")


def _check_kind(given: Path, mode: int, what: str, folder: bool) -> None:
    """Raise if the existing file or folder is of another kind than the output."""
    if stat.S_ISDIR(mode):
        if not folder:
            raise IsADirectoryError(f"The {what} is a folder: {given}; expected the name of a file.")
        names = set(os.listdir(given))
        if names and not names & _ZARR:
            raise FileExistsError(
                f"The {what} is a folder with other files than zarr's: {given}; expected a zarr store, an empty folder "
                "or a new name."
            )
    elif stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, f"The {what} is a link that leads to itself", str(given))
    elif folder or not stat.S_ISREG(mode):
        found = _KINDS.get(stat.S_IFMT(mode), "a file")
        raise FileExistsError(
            f"The {what} is {found}: {given}; expected the name of a {'folder' if folder else 'file'}."
        )


def check_writable(folder: Path, what: str) -> None:
    """Raise OSError unless a folder is writable, tested by a temporary folder: permissions alone are insufficient."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"The {what} cannot be written to: {folder}.")
    try:
        for left in Path(folder).glob(".sccvae.*.part"):  # of runs killed at the next line
            with suppress(OSError):
                os.rmdir(left)  # an empty folder alone
        tried = tempfile.mkdtemp(prefix=".sccvae.", suffix=".part", dir=folder)
        with suppress(FileNotFoundError):  # another run may have removed it
            os.rmdir(tried)
    except OSError as error:
        raise OSError(error.errno, f"The {what} cannot be written to ({error.strerror})", str(folder)) from None


# -------------------------------------------------------------------------------------------------------------- parts


@contextmanager
def writing(path: str | os.PathLike, what: str = "output", *, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to, whose content replaces `path` in one step at the end of the block.

    The temporary path has the name of the target, so that its suffix determines the format. Links are followed. An
    existing file keeps its mode; the mode of a new one follows the process's umask. After an error the target is
    unchanged.

    Raises
    ------
    TypeError, ValueError, OSError
        As `checked`; and OSError with the path if the disk is full.
    """
    target = checked(path, what, folder=folder)
    with named_if_full(target), part_beside(target) as parts:
        part = parts / target.name
        yield part
        put(part, target)


@contextmanager
def named_if_full(target: Path) -> Iterator[None]:
    """Convert errors of libraries about a full disk to an OSError with the path of the target."""
    try:
        yield
    except Exception as error:
        code = _full(error)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(target)) from error


def _full(error: BaseException | None) -> int | None:
    """Return the error number if a full disk, a quota or a limit on file size caused the error; else None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error.errno
        if (found := re.search(r"\berrno = (\d+)", str(error))) and int(found[1]) in _FULL:  # HDF5's messages
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def part_beside(target: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `target`, then remove it; folders of killed runs are removed first."""
    prefix = _prefix(target.name)
    for name in os.listdir(target.parent):
        if name.startswith(prefix) and re.fullmatch(r"\w+\.part", name[len(prefix) :]):
            _clear(target.parent / name, target)
    folder, lock = _locked(target)
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def put(part: Path, target: Path) -> None:
    """Replace the target by a finished part: copy the target's permissions, flush to the disk, and rename."""
    with suppress(FileNotFoundError):
        _keep_rights(target, part)
    _flush(part)
    if part.is_dir() and target.is_dir():
        if not _exchange(
            part, target
        ):  # not atomic: `_clear` undoes the first rename if the run is killed before the second
            os.rename(target, part.parent / REPLACED)
            os.rename(part, target)
    else:
        os.replace(part, target)
    _flush_folder(target.parent)


def _prefix(name: str) -> str:
    """Return the prefix of the names of parts, shortened because the system limits the length of names."""
    return f".{os.fsdecode(os.fsencode(name)[:200])}."


def _locked(target: Path) -> tuple[Path, int]:
    """Create a part; return its folder and the handle of its locked file."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(target.name), suffix=".part", dir=target.parent))
        with suppress(FileNotFoundError):  # another writer may remove the part before its file is locked
            lock = os.open(folder / IN_USE, os.O_RDWR | os.O_CREAT, 0o600)
            _lock(lock)
            if os.path.exists(folder / IN_USE):
                return folder, lock
            os.close(lock)


def _lock(handle: int, *, wait: bool = True) -> bool | None:
    """Lock an open file until it is closed; return False if another process has the lock, None without file locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, AttributeError):
        return None
    return True


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder against other callers of this function, on systems that can lock folders."""
    with ExitStack() as stack, suppress(OSError):  # some systems cannot open folders
        handle = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, handle)
        _lock(handle)
        stack = stack.pop_all()
    with stack:
        yield


def _clear(part: Path, target: Path) -> None:
    """Remove a part that no process writes to any more, if permissions allow."""
    options = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    with suppress(OSError):
        if part.is_dir() and not part.is_symlink():  # O_CREAT: the writer may not have created its lock yet
            handle = os.open(part / IN_USE, options | os.O_CREAT, 0o600)
        else:
            handle = os.open(part, options)  # a file: a part of sccvae 0.1.0
        try:
            free = _lock(handle, wait=False)
            if free or (free is None and time.time() - part.stat().st_mtime > _STALE):
                if (part / REPLACED).is_dir() and not target.exists():
                    os.rename(part / REPLACED, target)  # killed between the two steps of `put`
                _remove(part)
        finally:
            os.close(handle)


def _remove(part: Path) -> None:
    if part.is_file():
        part.unlink(missing_ok=True)
    for _ in range(5):  # threads of a writer may still add files
        shutil.rmtree(part, ignore_errors=True)
        if not part.exists():
            return
        time.sleep(0.1)


def _keep_rights(old: Path, new: Path) -> None:
    """Copy owner, group, mode and access lists of an existing file to its replacement."""
    before = old.stat()
    for owner in ((-1, before.st_gid), (before.st_uid, -1)):
        with suppress(PermissionError, AttributeError):  # users without the right; Windows
            os.chown(new, *owner)
    shutil.copystat(old, new)
    os.utime(new)
    if new.stat().st_gid != before.st_gid:  # a different group must not get the permissions of the old one
        mode = stat.S_IMODE(before.st_mode)
        os.chmod(new, (mode & ~0o070) | ((mode & 0o007) << 3))


def _flush(part: Path) -> None:
    """Flush a file, or all files of a folder, to the disk."""
    if part.is_dir():
        for folder, _, names in os.walk(part):
            for name in names:
                _flush(Path(folder) / name)
            _flush_folder(Path(folder))
        return
    with part.open("rb+") as handle:
        os.fsync(handle.fileno())


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, on systems that support it."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two paths atomically, which Python has no function for; return False if the system cannot."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of Linux
    if swap(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))
