"""Files written whole or not at all: links, modes, devices, leftovers of killed runs, two writers, a full disk."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sccvae.io import files

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX files")


def write(path, text="new", **options) -> None:
    with files.writing(path, **options) as part:
        part.write_text(text)


def names(folder) -> list[str]:
    return sorted(os.listdir(folder))


def fails(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


# ------------------------------------------------------------------------------------------------ what is at the target


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real.txt").write_text("old")
    (tmp_path / "first").symlink_to("disk/real.txt")
    (tmp_path / "second").symlink_to(tmp_path / "first")
    write(tmp_path / "second")
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "disk" / "real.txt").read_text() == "new"
    assert names(tmp_path) == ["disk", "first", "second"]
    assert names(tmp_path / "disk") == ["real.txt"]


def test_a_link_to_a_file_that_is_not_there_yet_makes_it(tmp_path):
    (tmp_path / "link").symlink_to("real.txt")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(OSError, match="a link that leads to itself"):
        write(tmp_path / "link")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_a_file_that_was_there_keeps_its_mode(tmp_path, mode):
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(mode)
    write(tmp_path / "file")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_follows_the_umask_of_the_process(tmp_path, mask):
    code = f"import os; os.umask({mask}); from sccvae.io import files\n"
    code += "with files.writing('new') as p: p.write_text('x')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=300)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~mask


def test_nobody_else_reads_what_is_being_written(tmp_path):
    with files.writing(tmp_path / "secret") as part:
        part.write_text("new")
        assert stat.S_IMODE(part.parent.stat().st_mode) == 0o700


def test_writing_never_touches_the_umask_of_the_process(tmp_path, monkeypatch):
    def refuse(_):
        raise AssertionError("the umask was set")

    monkeypatch.setattr(os, "umask", refuse)
    write(tmp_path / "new")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root")
def test_the_owner_of_a_file_stays(tmp_path):
    (tmp_path / "file").write_text("old")
    os.chown(tmp_path / "file", 12345, 23456)
    write(tmp_path / "file")
    found = (tmp_path / "file").stat()
    assert (found.st_uid, found.st_gid) == (12345, 23456)


def test_what_is_no_regular_file_is_refused_and_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
    (tmp_path / "folder").mkdir()
    before = {name: (tmp_path / name).stat().st_mode for name in names(tmp_path)}
    for name, said in {"pipe": "a pipe", "socket": "a socket", "folder": "a folder"}.items():
        with pytest.raises(OSError, match=f"^The output is {said}: .*{name}; expected the name of a file"):
            write(tmp_path / name)
    with pytest.raises(FileExistsError, match="The report is a device: /dev/null; expected the name of a file"):
        files.checked("/dev/null", "report")
    assert {name: (tmp_path / name).stat().st_mode for name in names(tmp_path)} == before


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("", ValueError, "output is ''; expected the path"),
        ("a\0b", ValueError, r"output is 'a\\x00b'; expected the path"),
        (None, TypeError, "output is None; expected the path"),
        (3.5, TypeError, "output is 3.5; expected the path"),
        ("no/where", FileNotFoundError, "The folder of the output does not exist"),
        ("file/where", FileNotFoundError, "The folder of the output does not exist"),
        ("n" * 256, OSError, "File name too long"),
    ],
)
def test_what_is_no_place_for_a_file_is_told(tmp_path, monkeypatch, path, error, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(error, match=text):
        files.checked(path)
    assert names(tmp_path) == ["file"]


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    for name in ("n" * 255, "ñ" * 127, "*[a-z]?.txt"):
        write(tmp_path / name)
        assert (tmp_path / name).read_text() == "new"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_what_may_not_be_written_to_is_refused_before_the_work(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="The folder of the output cannot be written to"):
        files.checked(tmp_path / "locked" / "file")
    (tmp_path / "kept").write_text("old")
    (tmp_path / "kept").chmod(0o444)
    with pytest.raises(PermissionError, match="exists and is not writable"):
        files.checked(tmp_path / "kept")


def test_a_folder_where_nothing_can_be_made_is_refused_whatever_its_mode(tmp_path, monkeypatch):
    """As on a network's disk that root may not write to, or a full one."""
    monkeypatch.setattr("tempfile.mkdtemp", fails)
    with pytest.raises(OSError, match=r"The folder of the output cannot be written to \(No space left on device\)"):
        files.checked(tmp_path / "file")


# --------------------------------------------------------------------------------------------------------- what is left


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), MemoryError(), ValueError("no")])
def test_whatever_goes_wrong_the_target_stays_and_nothing_is_left(tmp_path, error):
    (tmp_path / "file").write_text("old")

    def fail():
        with files.writing(tmp_path / "file") as part:
            part.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("name", ["os.fsync", "os.replace", "shutil.copystat"])
def test_a_disk_that_is_full_at_any_step_is_named_with_the_target(tmp_path, monkeypatch, name):
    (tmp_path / "file").write_text("old")
    with monkeypatch.context() as patched:
        patched.setattr(name, fails)
        with pytest.raises(OSError, match=rf"\[Errno 28\] No space left on device: '{tmp_path / 'file'}'"):
            write(tmp_path / "file")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_full_disk_behind_another_error_is_found(tmp_path):
    def fail():
        with files.writing(tmp_path / "file"):
            try:
                fails()
            except OSError as error:
                raise RuntimeError("Unable to flush") from error

    with pytest.raises(OSError, match="No space left on device: "):
        fail()


def test_file_and_folder_are_flushed_to_the_disk(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def note(handle):
        flushed.append(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    write(tmp_path / "file")
    assert flushed == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]


def test_the_next_write_removes_what_killed_runs_left(tmp_path):
    (tmp_path / ".o.txt.abcd1234.part").write_text("a file, as 0.1.0 left it")
    (tmp_path / ".o.txt.xxxx.part").mkdir()
    (tmp_path / ".o.txt.xxxx.part" / "o.txt").write_text("half")
    (tmp_path / ".o.txt.empty000.part").mkdir()
    kept = [".o.txt.part", ".other.abcd1234.part", ".o.txt.two.words.part", "o.txt.abcd1234.part"]
    for name in kept:
        (tmp_path / name).touch()
    write(tmp_path / "o.txt")
    assert names(tmp_path) == sorted([*kept, "o.txt"])


def test_a_run_that_is_killed_leaves_a_part_that_the_next_one_removes(tmp_path):
    code = "import os; from sccvae.io import files\nwith files.writing('o.txt'): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, timeout=300)
    (left,) = names(tmp_path)
    assert re.fullmatch(r"\.o\.txt\.\w{8}\.part", left)
    write(tmp_path / "o.txt")
    assert names(tmp_path) == ["o.txt"]


def test_two_writers_leave_each_others_parts_alone(tmp_path):
    """In one process, and in two: the second begins and ends while the first is writing."""
    code = "from sccvae.io import files\nwith files.writing('o.txt') as p: p.write_text('second')"
    with files.writing(tmp_path / "o.txt") as first:
        first.write_text("first")
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=300)
        assert (tmp_path / "o.txt").read_text() == "second"
        write(tmp_path / "o.txt", "third")
        assert first.read_text() == "first"
    assert (tmp_path / "o.txt").read_text() == "first"
    assert names(tmp_path) == ["o.txt"]


def test_many_writers_at_once_all_succeed(tmp_path):
    errors: list[BaseException] = []

    def many(text):
        try:
            for _ in range(20):
                write(tmp_path / "o.txt", text)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=many, args=(str(i) * 1000,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (tmp_path / "o.txt").read_text() in {str(i) * 1000 for i in range(4)}
    assert names(tmp_path) == ["o.txt"]


def test_where_files_cannot_be_locked_age_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(files.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    for name in ("young000", "old00000"):
        (tmp_path / f".o.txt.{name}.part").mkdir()
        (tmp_path / f".o.txt.{name}.part" / files.IN_USE).touch()
    os.utime(tmp_path / ".o.txt.old00000.part", (0, 0))
    write(tmp_path / "o.txt")
    assert names(tmp_path) == [".o.txt.young000.part", "o.txt"]


# -------------------------------------------------------------------------------------------------------------- folders


def fill(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / ".zgroup").write_text("{}")
    (folder / "a").mkdir()
    (folder / "a" / "0").write_text(text)


@pytest.mark.parametrize("can_swap", [True, False])
def test_a_folder_takes_the_place_of_a_folder(tmp_path, monkeypatch, can_swap):
    if not can_swap:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    fill(tmp_path / "real", "old")
    (tmp_path / "real" / "old_only").touch()
    (tmp_path / "real").chmod(0o700)
    (tmp_path / "o.zarr").symlink_to("real")
    with files.writing(tmp_path / "o.zarr", folder=True) as part:
        fill(part, "new")
        assert (tmp_path / "o.zarr" / "a" / "0").read_text() == "old"
    assert names(tmp_path) == ["o.zarr", "real"]
    assert names(tmp_path / "o.zarr") == [".zgroup", "a"]
    assert (tmp_path / "o.zarr" / "a" / "0").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o700


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_folders_are_swapped_in_one_step(tmp_path):
    fill(tmp_path / "a", "a")
    fill(tmp_path / "b", "b")
    assert files._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "a" / "0").read_text() == "b"
    assert (tmp_path / "b" / "a" / "0").read_text() == "a"
    with pytest.raises(FileNotFoundError):
        files._exchange(tmp_path / "a", tmp_path / "nowhere")


def test_where_folders_cannot_be_swapped_the_next_write_brings_the_old_one_back_first(tmp_path):
    part = tmp_path / ".o.zarr.abcd1234.part"
    part.mkdir()
    fill(part / files.REPLACED, "old")
    with files.writing(tmp_path / "o.zarr", folder=True):
        assert (tmp_path / "o.zarr" / "a" / "0").read_text() == "old"
        assert not part.exists()
        (tmp_path / "o.zarr").rename(tmp_path / "kept")
        fill(next(tmp_path.glob(".o.zarr.*.part")) / "o.zarr", "new")
    assert names(tmp_path) == ["kept", "o.zarr"]


def test_a_folder_with_other_things_and_a_file_are_no_place_for_zarr(tmp_path):
    (tmp_path / "o.zarr").mkdir()
    assert files.checked(tmp_path / "o.zarr", folder=True) == tmp_path / "o.zarr"  # an empty one will do
    (tmp_path / "o.zarr" / "thesis.txt").touch()
    (tmp_path / "f.zarr").touch()
    with pytest.raises(FileExistsError, match=r"is a folder with other files than zarr's: .*o\.zarr"):
        files.checked(tmp_path / "o.zarr", folder=True)
    with pytest.raises(FileExistsError, match=r"The output is a file: .*f.zarr; expected the name of a folder\."):
        files.checked(tmp_path / "f.zarr", folder=True)


def test_the_folder_of_a_run_that_was_killed_while_it_tried_the_place_is_removed(tmp_path):
    left, other = tmp_path / ".sccvae.abcd1234.part", tmp_path / ".sccvae.efgh5678.part"
    left.mkdir()
    other.mkdir()
    (other / "mine").touch()  # not empty: not one of those
    files.check_writable(tmp_path, "output")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name]
