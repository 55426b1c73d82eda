"""What stands beside the package: workflows, hooks, citation and constraints agree with pyproject.toml and Makefile."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import sccvae

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="needs the folder .github of the repository")


def read(name):
    return (ROOT / name).read_text()


PROJECT = tomllib.loads(read("pyproject.toml"))["project"] if WORKFLOWS else {}
TARGETS = set(re.search(r"^\.PHONY: (.*)$", read("Makefile"), re.MULTILINE)[1].split()) if WORKFLOWS else ()


def workflow(name):
    """The workflow as a dictionary; YAML reads the key `on` as true."""
    content = yaml.safe_load(read(f".github/workflows/{name}"))
    return {("on" if key is True else key): value for key, value in content.items()}


def constraints(name):
    """Package -> version."""
    return dict(line.split("==") for line in read(name).splitlines() if not line.startswith("#"))


def python_versions(value):
    """Every value of a key `python` or `python-version` below."""
    if isinstance(value, list):
        return set().union(*map(python_versions, value))
    if not isinstance(value, dict):
        return set()
    found = {value[key] for key in ("python", "python-version") if key in value}
    return found.union(*map(python_versions, value.values())) - {"${{ matrix.python }}"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_step_is_a_pinned_action_or_a_make_target(path):
    content = workflow(path.name)
    assert content["permissions"] == {"contents": "read"}
    assert "group" in content["concurrency"]
    for job in content["jobs"].values():
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])
                assert re.search(re.escape(step["uses"]) + r" # v\d+\.\d+\.\d+\n", path.read_text())
            else:
                asked = re.fullmatch(r"make ([\w-]+)( \$\{\{ matrix\.options \}\})?", step["run"])
                assert asked, step["run"]
                assert asked[1] in TARGETS


def test_tests_run_on_the_python_versions_of_the_classifiers():
    named = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    matrix = workflow("test.yml")["jobs"]["test"]["strategy"]["matrix"]["include"]
    assert {row["python"] for row in matrix if not row["options"]} == named
    for path in WORKFLOWS:
        assert python_versions(workflow(path.name)) <= named
    lowest = min(named, key=lambda version: int(version.partition(".")[2]))
    assert PROJECT["requires-python"] == f">={lowest}"
    options = {row["options"]: row["python"] for row in matrix}
    assert options["OLDEST=1"] == lowest
    for option in filter(None, options):
        assert f"{option.partition('=')[0]} ?=" in read("Makefile")


def test_a_release_needs_a_tag_and_a_smoke_test_and_no_password():
    release = workflow("release.yml")
    assert release["on"] == {"push": {"tags": ["v*"]}}
    build, publish = release["jobs"]["build"], release["jobs"]["publish"]
    assert [step["run"] for step in build["steps"] if "run" in step] == ["make tag", "make smoke"]
    assert publish["needs"] == "build"
    assert publish["environment"] == "release"
    assert publish["permissions"] == {"id-token": "write"}
    assert "permissions" not in build
    for path in WORKFLOWS:
        assert not re.search(r"secrets|password:|token:(?! write)", path.read_text())


def test_a_tag_is_taken_if_it_is_the_version_and_the_changelog_has_it(tmp_path):
    (tmp_path / "sccvae").mkdir()
    (tmp_path / "sccvae/__init__.py").write_text('__version__ = "1.2.0"  # a comment with a "word"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n")

    def tag(name):
        command = [
            "make",
            "--silent",
            f"--makefile={ROOT}/Makefile",
            "tag",
            "FOUND=python3",
            "TORCH=torch",
            f"TAG={name}",
        ]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0

    assert not tag("v1.2.0")  # no section
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [1.2.0] - 2027-01-01\n")
    assert tag("v1.2.0")
    assert not tag("v1.3.0")
    assert not tag("1.2.0")


def test_the_oldest_constraints_are_the_lower_bounds():
    oldest = constraints("constraints-oldest.txt")
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        (specifier,) = requirement.specifier
        assert specifier.operator == ">="
        assert re.sub(r"(\.0)+$", "", oldest[requirement.name]) == re.sub(r"(\.0)+$", "", specifier.version), text


def test_the_hooks_are_the_versions_of_the_constraints():
    pinned = constraints("constraints.txt")
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        for requirement in hook.get("additional_dependencies", ()):
            name, version = requirement.split("==")
            assert pinned.get(name, version) == version
        if hook["language"] == "system":
            assert hook["entry"].removeprefix("make ") in TARGETS


def test_the_citation_names_this_version_and_the_paper_of_the_model():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == sccvae.__version__
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert f"https://doi.org/{citation['references'][0]['doi']}" in read("README.md")


@pytest.mark.parametrize("name", ["bug", "question", "feature"])
def test_an_issue_form_has_a_label_for_each_field(name):
    form = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{name}.yml"))
    assert {"name", "description", "body"} <= set(form)
    for field in form["body"]:
        assert field["attributes"]["label"]
    assert len({field["id"] for field in form["body"]}) == len(form["body"])
