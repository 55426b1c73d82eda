"""Lists of checksums, as `sha256sum` writes and reads them."""

from __future__ import annotations

import hashlib
import shutil
import subprocess

import pytest

from sccvae.io import checksums


def test_a_list_is_written_file_by_file_and_compared(tmp_path):
    (tmp_path / "sub").mkdir()
    a, b, sums = tmp_path / "sub" / "a name.txt", tmp_path / "b.txt", tmp_path / "sub" / "SHA256SUMS"
    for path in (a, b):
        path.write_text(path.name)
        assert not checksums.agrees(path, sums)
        checksums.record(path, sums)
        assert checksums.agrees(path, sums)
    expected = {"a name.txt": a, "../b.txt": b}
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}" for name, path in expected.items()]
    assert sums.read_text().splitlines() == lines
    b.write_text("other")
    with pytest.raises(ValueError, match=rf"{b} has changed: its SHA-256 is \w+; expected \w+\. Delete the file"):
        checksums.agrees(b, sums)
    assert checksums.agrees(a, sums)
    checksums.record(b, sums)
    assert checksums.agrees(b, sums)
    assert len(sums.read_text().splitlines()) == 2


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_sha256sum_reads_it(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    checksums.record(tmp_path / "a.txt", tmp_path / "SHA256SUMS")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True)


@pytest.mark.parametrize("text", ["", "\n\n", "nonsense\n", "\xff\x00"])
def test_a_list_of_nothing_knows_nothing(tmp_path, text):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "SHA256SUMS").write_bytes(text.encode("latin-1"))
    assert not checksums.agrees(tmp_path / "a.txt", tmp_path / "SHA256SUMS")
