"""The worked examples of `docs/contributing` run, and say truly how many places they touch."""

import re
from pathlib import Path

import pytest

from sccvae.modules import latent_terms, likelihoods, networks, vae

PAGES = sorted((Path(__file__).parents[2] / "docs" / "contributing").glob("add_*.md"))
pytestmark = pytest.mark.skipif(not PAGES, reason="the tests of a package without docs/")


@pytest.fixture
def put_back(monkeypatch):
    """What the examples replace is put back."""
    for module, name in ((latent_terms, "TERMS"), (vae, "TERMS"), (networks, "CovariateOffset")):
        monkeypatch.setattr(module, name, getattr(module, name))
    before = dict(likelihoods.LIKELIHOODS)
    yield
    likelihoods.LIKELIHOODS.clear()
    likelihoods.LIKELIHOODS.update(before)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_worked_example_runs(page, put_back):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)


def test_there_is_a_page_for_each():
    assert [page.stem for page in PAGES] == ["add_a_back_end", "add_a_covariate", "add_a_likelihood", "add_a_term"]
    index = (PAGES[0].parent / "index.md").read_text(encoding="utf-8")
    assert all(f"({page.name})" in index for page in PAGES)
