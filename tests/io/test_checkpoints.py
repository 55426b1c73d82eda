"""A checkpoint is written completely or not at all, and is read only if nothing in it has changed."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from sccvae.io import checkpoints, storage

TENSORS = {"a": torch.arange(6.0).view(2, 3).t(), "noise": torch.arange(3, dtype=torch.uint8), "none": torch.zeros(0)}
TENSORS["losses"] = torch.tensor([1.0, float("nan")])
RUN = {"kind": "SCCVAE", "numbers": {"big": 2**127, "half": 0.5}, "names": ["x", "y"]}


def test_what_was_written_is_read(tmp_path):
    folder = checkpoints.checked(tmp_path / "new" / "folder")
    assert not checkpoints.holds(folder)
    for _ in range(2):
        checkpoints.write(folder, TENSORS, RUN)
    with checkpoints.opened(folder, "SCCVAE") as (saved, run):
        tensors = saved.tensors(finite=False)
    assert run == RUN | {"names": ("x", "y")}
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(tensors[name], tensor, equal_nan=True, rtol=0, atol=0)
    assert os.listdir(folder) == [checkpoints.NAME]


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoints.write(tmp_path, TENSORS, RUN)

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(storage, "save_arrays", full)
    with pytest.raises(OSError, match=checkpoints.NAME):
        checkpoints.write(tmp_path, {}, RUN)
    monkeypatch.undo()
    with checkpoints.opened(tmp_path, "SCCVAE") as (saved, _):
        assert saved.arrays.keys() == TENSORS.keys()
    assert os.listdir(tmp_path) == [checkpoints.NAME]


@pytest.mark.parametrize("path", ["", 3, "\0"])
def test_a_path_is_checked(path):
    with pytest.raises((TypeError, ValueError), match="checkpoint is"):
        checkpoints.checked(path)


def test_every_changed_byte_is_an_error(tmp_path):
    """In the header, in its description and in the arrays."""
    checkpoints.write(tmp_path, TENSORS, RUN)
    path, content = tmp_path / checkpoints.NAME, (tmp_path / checkpoints.NAME).read_bytes()
    begin = content.index(b'\\"run\\"')
    for at in (0, 9, begin + 12, begin + 40, len(content) - 1):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(storage.ModelFileError), checkpoints.opened(tmp_path, "SCCVAE") as (saved, _):
            saved.tensors(finite=False)
