"""The report on mapped cells: what is shown of the mapping, and what is left out with a sentence."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from web_page import Page

import sccvae
from sccvae.__main__ import main
from sccvae.simulate import simulate

mpl.use("Agg")
SMALL = {"n_hidden": 16, "n_latent": 4, "prior_components": 6}
HEAD = ["Label", "Cells", "Accepted", "Median probability", "Reasons of those not accepted"]


@pytest.fixture(scope="module")
def parts():
    """Cells of two batches of the reference, without one cell type, and of a third."""
    adata = simulate(360, 50, n_types=3, n_batches=3, keep_truth=False, seed=3)
    new = (adata.obs["batch"] == "batch_2").to_numpy()
    known = adata[~new & (adata.obs["cell_type"] != "type_2").to_numpy()].copy()
    return known, adata[new].copy()


@pytest.fixture(scope="module")
def reference(parts):
    model = sccvae.SCCVAE(parts[0], batch_key="batch", labels_key="cell_type", **SMALL)
    model.train(20, batch_size=32, progress_bar=False)
    return model


def page_of(model, folder, **options) -> Page:
    model.report(folder / "report.html", **options)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_a_mapped_model_in_memory(parts, reference, tmp_path):
    mapped = sccvae.SCCVAE.load_query_data(parts[1], reference)
    mapped.train(progress_bar=False)
    page = page_of(mapped, tmp_path, label_key="cell_type")
    names = ["summary", "data", "mapping", "embedding", "scores", "training", "diagnostics", "model"]
    assert page.sections() == names
    assert set(page.figures()) == {
        "Mapped cells", "UMAP of the cells", "Loss curves of the training", "Diagnostics of the model"
    }  # fmt: skip
    assert page.text.count(f"Mapping of {parts[1].n_obs} cells and 50 genes") == 2
    assert "The reference has 2 batches: 'batch_0', 'batch_1'. New: 'batch_2'. Offsets of new" in page.text
    assert "were adapted in" in page.text
    assert "grey: each is at the weighted mean of its 15 nearest cells" in page.text
    assert "epochs go on from those of the reference" in page.text
    assert "with fewer than 500" not in page.text
    table = mapped.predict()
    assert f"The labels of {table['accepted'].sum()} of {len(table)} cells" in page.text
    at = page.rows.index(HEAD)
    for label, n, kept, _, reasons in page.rows[at + 1 : at + 1 + table["label"].nunique()]:
        some = table[table["label"] == label]
        assert n == str(len(some))
        assert kept == f"{some['accepted'].mean():.0%}"
        assert sum(int(part.rpartition(": ")[2]) for part in reasons.split("; ") if part) == (~some["accepted"]).sum()
    checks = mapped.diagnose().table.loc[["new_cells", "missing_genes", "depth", "offsets"], "sentence"]
    assert all(page.text.count(sentence) >= 2 for sentence in checks)


def test_a_folder_without_the_cells_of_the_reference_and_no_training(parts, reference, tmp_path):
    reference.save(tmp_path / "reference")
    mapped = sccvae.SCCVAE.load_query_data(parts[1], tmp_path / "reference")
    page = page_of(mapped, tmp_path)
    assert "training" not in page.sections()
    assert set(page.figures()) == {"Mapped cells", "UMAP of the cells", "Diagnostics of the model"}
    assert "The cells of the reference are not here, so that new cells are shown without them" in page.text
    assert "Two principal components of the new cells' embedding." in page.text
    assert "true ones" not in page.text
    assert "because they were not adapted" in page.text


def test_a_folder_with_the_cells_of_the_reference(parts, reference, tmp_path):
    reference.save(tmp_path / "reference", with_reference=True)
    mapped = sccvae.SCCVAE.load_query_data(parts[0][:60].copy(), tmp_path / "reference")
    page = page_of(mapped, tmp_path)
    assert "All cells are of known batches, so that nothing was adapted." in page.text
    assert "not here" not in page.text
    assert "which are grey" in page.text


def test_a_model_without_labels(parts, tmp_path):
    model = sccvae.SCCVAE(parts[0], batch_key="batch", **SMALL)
    model.train(1, progress_bar=False)
    page = page_of(sccvae.SCCVAE.load_query_data(parts[1], model), tmp_path, label_key="cell_type")
    assert "The reference has no labels, so that new cells get none." in page.text
    assert "Mapped cells" in page.figures()
    model.save(tmp_path / "model")
    page = page_of(sccvae.SCCVAE.load_query_data(parts[1], tmp_path / "model"), tmp_path)
    assert "Mapped cells" not in page.figures()
    assert "shown without them" in page.text


def test_missing_genes_are_no_zeros_of_the_page(parts, reference, tmp_path, capsys):
    part = parts[1][:, 10:].copy()
    with pytest.warns(UserWarning, match="10 are missing"):
        mapped = sccvae.SCCVAE.load_query_data(part, reference)
    mapped.save(tmp_path / "mapped")
    part.write_h5ad(tmp_path / "query.h5ad")
    arguments = [str(tmp_path / name) for name in ("mapped", "query.h5ad")]
    assert main(["report", *arguments, "-o", str(tmp_path / "r.html")]) == 0
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    zeros = 1 - part.X.getnnz() / np.prod(part.shape)
    assert f"{part.n_obs} cells and 40 genes were modelled" in page.text
    assert f"{zeros:.1%} of all entries are zero" in page.text
    assert "10 of 50 genes of the reference are missing" in page.text
