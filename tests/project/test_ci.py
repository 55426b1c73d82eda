"""What must pass before a change is taken: which failures count, and what is said of what was left out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / ".ci"
pytestmark = pytest.mark.skipif(not CI.is_dir(), reason="needs the folder .ci of the repository")

# Stands for make: writes down what it was asked for; fails where it is told to.
MAKE = """#!/bin/sh
echo "make $*"
case "$*" in $FAILS) echo "no room"; exit 2;; esac
"""


@pytest.fixture
def ci(tmp_path):
    """Function: (what fails, is there a Python?) -> what `.ci/run` came to; its make and its Python do nothing."""

    def run(fails: str = "nothing", there: bool = True) -> subprocess.CompletedProcess:
        (tmp_path / ".ci").mkdir()
        shutil.copy(CI / "run", tmp_path / ".ci/run")
        for name, text in ((".ci/interpreter", f"#!/bin/sh\nexit {int(not there)}\n"), ("make", MAKE)):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        environment = {k: v for k, v in os.environ.items() if k != "SCCVAE_DATA"}
        environment |= {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "FAILS": fails}
        return subprocess.run(
            ["bash", tmp_path / ".ci/run"], env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    return run


def test_all_runs_and_the_pinned_tests_come_last(ci):
    found = ci()
    assert found.returncode == 0
    lines = found.stdout.splitlines()
    assert "Newest libraries tested with python3.13." in lines
    assert lines[-1] == "make test"
    asked = [line for line in lines if line.startswith("make")]
    targets = [line.split()[-1] for line in asked]
    assert targets == ["lint", "demo", "docs", "test", "test"]  # the installation is silent
    assert "NEWEST=1" in asked[3]
    named = [word for word in asked[3].split() if word.startswith("tests/")]
    assert named
    assert [name for name in named if not (CI.parent / name).exists()] == []


def test_without_that_python_the_newest_libraries_are_left_out_in_words(ci):
    found = ci(there=False)
    assert found.returncode == 0
    assert "Newest libraries left out: there is no python3.13 on this machine." in found.stdout
    assert "NEWEST" not in found.stdout
    assert found.stdout.splitlines()[-1] == "make test"


def test_libraries_that_cannot_be_installed_are_left_out_in_words(ci):
    found = ci(fails="*environment")
    assert found.returncode == 0
    assert "no room\nNewest libraries left out: they cannot be installed for python3.13 here" in found.stdout
    assert found.stdout.splitlines()[-1] == "make test"


@pytest.mark.parametrize("fails", ["*NEWEST=1*test", "test", "lint", "demo", "docs"])
def test_what_fails_fails(ci, fails):
    found = ci(fails=fails)
    assert found.returncode != 0
    assert found.stdout.splitlines()[-1] == "no room"


def test_a_python_is_found_by_name():
    found = subprocess.run([CI / "interpreter", sys.executable], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, f"{sys.executable}\n")
    found = subprocess.run([CI / "interpreter", "python9.9"], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (1, "")
    assert "There is no python9.9 that runs." in found.stderr
