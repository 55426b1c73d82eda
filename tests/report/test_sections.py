"""The report: a page that parses, holds all it shows, and says what the data and the model say."""

from __future__ import annotations

import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from web_page import Page

import sccvae
from sccvae import metrics, report
from sccvae.__main__ import main
from sccvae.report import sections
from sccvae.simulate import simulate

mpl.use("Agg")

NASTY = '<script>alert("x")</script> & co'


def trained(**options) -> tuple[sccvae.SCCVAE, object]:
    adata = simulate(240, 50, n_types=3, n_batches=2, keep_truth=False, seed=3)
    adata.obs["batch"] = pd.Categorical(np.where(adata.obs["batch"] == "batch_0", NASTY, "b<i>1</i>"))
    adata.obs["alone"] = np.where(adata.obs["batch"] == NASTY, "here", np.arange(adata.n_obs) % 2)
    model = sccvae.SCCVAE(adata, batch_key="batch", n_hidden=16, n_latent=4, **options)
    model.train(1, progress_bar=False)
    return model, adata


@pytest.fixture(scope="module")
def made() -> tuple[sccvae.SCCVAE, object]:
    return trained()


@pytest.fixture(scope="module")
def text(made, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    made[0].report(path, label_key="cell_type", title=NASTY)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def test_the_page_has_every_section(page):
    names = ["summary", "data", "embedding", "scores", "training", "diagnostics", "model"]
    assert page.sections() == names
    assert [a["href"] for tag, a in page.tags if tag == "a"] == [f"#{name}" for name in names]


def test_nothing_comes_from_elsewhere_and_nothing_runs(text, page):
    without_data = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"(?:https?:)?//|url\(|@import|javascript:", without_data)
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert "src" not in attributes or tag == "img"
    assert {tag for tag, a in page.tags if "href" in a} == {"a"}


def test_a_browser_is_told_to_load_and_run_nothing(page):
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert [tag for tag, _ in page.tags].index("style") > [a.get("content") for _, a in page.tags].index(policy)


def test_every_figure_is_a_picture_of_something(page):
    figures = page.figures()
    assert set(figures) == {"UMAP of the cells", "Loss curves of the training", "Diagnostics of the model"}
    for name, pixels in figures.items():
        assert min(pixels.shape[:2]) > 400, name
        assert len(np.unique(pixels[..., :3] @ [1, 256, 65536])) > 50, name


def test_text_of_the_data_is_escaped(text, page):
    assert "<script" not in text
    assert "<i>" not in text
    assert page.text.count(NASTY) >= 3  # title, heading, batch
    assert "b<i>1</i>" in page.text


def test_what_the_page_says_is_true(made, page):
    model, adata = made
    sizes = {row[0]: row[1] for row in page.rows if len(row) == 4}
    assert sizes[NASTY] == str((adata.obs["batch"] == NASTY).sum())
    assert sizes["type_1"] == str((adata.obs["cell_type"] == "type_1").sum())
    z = model.get_latent_representation()
    scores = metrics.embedding_scores(z, labels=adata.obs["cell_type"], batches=adata.obs["batch"])
    shown = {row[0]: row[2] for row in page.rows if len(row) == 3}
    assert set(scores) == set(sections.SCORES)
    for name, value in scores.items():
        assert shown[sections.SCORES[name][0]] == f"{value:.3f}"
    for sentence in model.diagnose().sentences:
        assert sentence in page.text
    assert "train longer" in page.text
    assert "240 cells and 50 genes were modelled" in page.text
    assert "There are 240 cells" in page.text
    values = {row[0]: row[1] for row in page.rows if len(row) == 3}
    for name, value in model.describe()["parameters"].items():
        assert values[name] == (", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))


def test_the_anndata_stays_as_it_was(made, fingerprint, tmp_path):
    model, adata = made
    before = fingerprint(adata)
    model.report(tmp_path / "report.html", label_key="alone", max_cells=150)
    assert fingerprint(adata) == before
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Found in one batch only, so that cell type and batch are confounded: '0', '1', 'here'." in page.text
    assert "A random sample of 150 cells." in page.text


def test_other_data_without_batches(tmp_path):
    adata = simulate(120, 30, keep_truth=False)
    adata.X = (adata.X > 0).astype(np.float32)
    model = sccvae.SCCVAE(adata, n_hidden=8, n_latent=2, gene_likelihood="bernoulli")
    model.train(1, progress_bar=False)
    model.report(tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.sections() == ["summary", "data", "embedding", "training", "diagnostics", "model"]
    assert len(page.figures()) == 3
    assert "are zero" not in page.text
    assert "Integration of 120 cells and 30 genes" in page.text


def test_a_good_model_is_called_good():
    table = pd.DataFrame({"ok": [True], "sentence": ["Fine."]})
    adata = simulate(600, 10, keep_truth=False)
    html = sections._summary(adata, type("D", (), {"table": table}), [], "batch", None)
    assert "every check below is as expected" in html
    assert "Concerns" not in html
    assert sections._notes(adata.obs, "batch", "cell_type") == []


def test_small_batches_are_noted():
    obs = pd.DataFrame({"batch": ["a"] * 600 + ["b"] * 20})
    assert sections._notes(obs, "batch", None) == [
        "Batches of fewer than 50 cells cannot be aligned with confidence: 'b'."
    ]


def test_a_failure_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    report.write(path, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        report.write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_errors(made, tmp_path):
    model, adata = made
    with pytest.raises(IsADirectoryError, match=r"is a folder; expected the name of a file, such as 'report.html'"):
        model.report(tmp_path)
    with pytest.raises(FileNotFoundError, match="The folder of the report does not exist"):
        model.report(tmp_path / "none" / "report.html")
    with pytest.raises(KeyError, match=r"no column 'cell_typ'\. Did you mean 'cell_type'"):
        model.report(tmp_path / "report.html", label_key="cell_typ")
    with pytest.raises(ValueError, match="max_cells is 0; expected at least 1"):
        model.report(tmp_path / "report.html", max_cells=0)
    with pytest.raises(RuntimeError, match="not trained yet"):
        sccvae.SCCVAE(adata).report(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- the command line


def test_on_the_command_line(made, tmp_path, capsys):
    model, adata = made
    adata.write_h5ad(tmp_path / "counts.h5ad")
    model.save(tmp_path / "model")
    arguments = ["report", str(tmp_path / "model"), str(tmp_path / "counts.h5ad"), "-o", str(tmp_path / "report.html")]
    assert main([*arguments, "--label-key", "cell_type", "--title", "Ours"]) == 0
    assert capsys.readouterr().out.endswith(f"written: {tmp_path / 'report.html'}\n")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Ours" in page.words
    assert "scores" in page.sections()


def test_errors_of_the_command_line_come_first(made, tmp_path, capsys):
    model, adata = made
    adata.write_h5ad(tmp_path / "counts.h5ad")
    model.save(tmp_path / "model")
    arguments = ["report", str(tmp_path / "model"), str(tmp_path / "counts.h5ad"), "-o"]
    assert main([*arguments, str(tmp_path)]) == 1
    assert "The output is a folder" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "r.html"), "--label-key", "kind"]) == 1
    assert "adata.obs has no column 'kind'" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none"), *arguments[2:], str(tmp_path / "r.html")]) == 1
    assert "No sccvae model in" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()
