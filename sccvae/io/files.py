"""Files and folders written whole or not at all: models, h5ad, zarr, reports, figures.

What is written goes into a part, the hidden folder ``.NAME.xxxxxxxx.part`` beside the target. It is read back, flushed
to the disk and only then renamed, so that a run that is killed leaves the old content or the new. The part holds a
file that its writer keeps locked. The lock ends with the process, so the next write of the same name knows the parts
of killed runs from those of other writers, and removes them.
"""

import ctypes
import errno
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

IN_USE = ".in-use"  # the file that a writer keeps locked, in its part
REPLACED = ".replaced"  # the folder that was at the target, where the system cannot swap two of them
_STALE = 24 * 3600.0  # seconds until a part is taken for left over where files cannot be locked
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_ZARR = {"zarr.json", ".zgroup", ".zmetadata", ".zattrs", ".zarray"}  # one of them is at the top of every zarr store


# ------------------------------------------------------------------------------------------------------------- checks


def path_of(path: str | os.PathLike, what: str = "path") -> Path:
    """The path that is meant. Raises TypeError where it is none, ValueError where it is empty or no name of a file."""
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
    """Where `path` leads, links followed, if a file (or a `folder`) can be written there: asked before the work.

    Raises
    ------
    TypeError, ValueError
        `path` is no path, or empty.
    OSError
        There is something else; or the folder that is to hold it does not exist or cannot be written to.
    """
    given = path_of(path, what)
    target = Path(os.path.realpath(given))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"The folder of the {what} does not exist: {target.parent}.")
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None:
        _check_kind(given, mode, what, folder)
    if mode is not None and not os.access(target, os.W_OK):
        raise PermissionError(f"The {what} is there and may not be written to: {given}. Change its mode or the name.")
    check_writable(target.parent, f"folder of the {what}")
    return target


def _check_kind(given: Path, mode: int, what: str, folder: bool) -> None:
    """Refuse what is there and is not what is to be written."""
    if stat.S_ISDIR(mode):
        if not folder:
            raise IsADirectoryError(f"The {what} is a folder: {given}; expected the name of a file.")
        names = set(os.listdir(given))
        if names and not names & _ZARR:
            raise FileExistsError(f"The {what} is a folder with other things than zarr: {given}. Choose another name.")
    elif stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, f"The {what} is a link that leads to itself", str(given))
    elif folder or not stat.S_ISREG(mode):
        found = _KINDS.get(stat.S_IFMT(mode), "a file")
        raise FileExistsError(
            f"The {what} is {found}: {given}; expected the name of a {'folder' if folder else 'file'}."
        )


def check_writable(folder: Path, what: str) -> None:
    """Raise OSError unless files can be made in a folder; one is made and removed, for rights alone do not tell."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"The {what} cannot be written to: {folder}.")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".sccvae.", suffix=".part", dir=folder))
    except OSError as error:
        raise OSError(error.errno, f"The {what} cannot be written to ({error.strerror})", str(folder)) from None


# -------------------------------------------------------------------------------------------------------------- parts


@contextmanager
def writing(path: str | os.PathLike, what: str = "output", *, folder: bool = False) -> Iterator[Path]:
    """Give a path to write to; what is there at the end of the block takes the place of `path` in one step.

    The name is that of the target, so that its suffix tells the format. Links are followed; an existing file keeps its
    mode, a new one takes what the process's umask leaves. Whatever goes wrong, the target stays as it was.

    Raises
    ------
    TypeError, ValueError, OSError
        As `checked`; and OSError with the path where the disk is full.
    """
    target = checked(path, what, folder=folder)
    with named_if_full(target), part_beside(target) as parts:
        part = parts / target.name
        yield part
        put(part, target)


@contextmanager
def named_if_full(target: Path) -> Iterator[None]:
    """Turn what libraries say of a full disk into an OSError that names the target."""
    try:
        yield
    except Exception as error:
        code = _full(error)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(target)) from error


def _full(error: BaseException | None) -> int | None:
    """The number of the error if the disk, a quota or a limit on file size is behind it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error.errno
        if (told := re.search(r"\berrno = (\d+)", str(error))) and int(told[1]) in _FULL:  # as HDF5 tells it
            return int(told[1])
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def part_beside(target: Path) -> Iterator[Path]:
    """Give a new folder beside `target`, of this writer alone, and remove it; first those of killed runs."""
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
    """Give a finished part the rights of the target, flush it to the disk, and let it take the target's place."""
    with suppress(FileNotFoundError):
        _keep_rights(target, part)
    _flush(part)
    if part.is_dir() and target.is_dir():
        if not _exchange(part, target):  # the best that is left: two steps, of which `_clear` mends the first
            os.rename(target, part.parent / REPLACED)
            os.rename(part, target)
    else:
        os.replace(part, target)
    _flush_folder(target.parent)


def _prefix(name: str) -> str:
    """How the names of parts begin; cut, for a name may be as long as the system allows."""
    return f".{os.fsdecode(os.fsencode(name)[:200])}."


def _locked(target: Path) -> tuple[Path, int]:
    """A new part, and the open file in it that is locked while it is in use."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(target.name), suffix=".part", dir=target.parent))
        with suppress(FileNotFoundError):  # another writer has taken it for left over, before it was locked
            lock = os.open(folder / IN_USE, os.O_RDWR | os.O_CREAT, 0o600)
            _lock(lock)
            if os.path.exists(folder / IN_USE):
                return folder, lock
            os.close(lock)


def _lock(handle: int, *, wait: bool = True) -> bool | None:
    """Lock an open file until it is closed; False if another has locked it, None where files cannot be locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, AttributeError):
        return None
    return True


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other writers that ask for the same out of a folder, where folders can be locked."""
    with ExitStack() as stack, suppress(OSError):  # some systems do not open folders
        handle = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, handle)
        _lock(handle)
        stack = stack.pop_all()
    with stack:
        yield


def _clear(part: Path, target: Path) -> None:
    """Remove a part that no process is writing any more, as far as the system lets us."""
    options = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    with suppress(OSError):
        if part.is_dir() and not part.is_symlink():  # O_CREAT: its writer may not have come to lock it yet
            handle = os.open(part / IN_USE, options | os.O_CREAT, 0o600)
        else:
            handle = os.open(part, options)  # a file, as sccvae 0.1.0 left them
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
    for _ in range(5):  # a writer that runs in threads of its own may still add files
        shutil.rmtree(part, ignore_errors=True)
        if not part.exists():
            return
        time.sleep(0.1)


def _keep_rights(old: Path, new: Path) -> None:
    """Owner, group, mode and access lists of an existing file for the one that replaces it."""
    before = old.stat()
    for owner in ((-1, before.st_gid), (before.st_uid, -1)):
        with suppress(PermissionError, AttributeError):  # for those who may; not on Windows
            os.chown(new, *owner)
    shutil.copystat(old, new)
    os.utime(new)
    if new.stat().st_gid != before.st_gid:  # another group must not get the rights of the old one
        mode = stat.S_IMODE(before.st_mode)
        os.chmod(new, (mode & ~0o070) | ((mode & 0o007) << 3))


def _flush(part: Path) -> None:
    """Have the system put a file, or all files of a folder, on the disk."""
    if part.is_dir():
        for folder, _, names in os.walk(part):
            for name in names:
                _flush(Path(folder) / name)
            _flush_folder(Path(folder))
        return
    with part.open("rb+") as handle:
        os.fsync(handle.fileno())


def _flush_folder(folder: Path) -> None:
    """The same for the names in a folder, where the system knows how."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _exchange(a: Path, b: Path) -> bool:
    """Let two paths change places in one step, which Python has no function for; False where the system cannot."""
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
