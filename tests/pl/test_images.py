"""Figures compared with stored pictures of them; and that the comparison sees what it should and nothing else."""

from __future__ import annotations

import sys
from importlib.metadata import version

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from drawn import diagnosis, history, mapped
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pictures import DPI, TOLERANCE, assert_looks_as_stored, difference, pixels, rendered

import sccvae
from sccvae import pl, tl
from sccvae.simulate import simulate

mpl.use("Agg")


@pytest.fixture
def cells(monkeypatch):
    """Cells whose layouts are given: UMAP differs between its versions and between machines."""
    adata = simulate(300, 40, n_types=4, keep_truth=False)
    adata.obsm["X_sccvae"] = adata.obsm["z"]
    shift = 3.0 * adata.obs["batch"].cat.codes.to_numpy()[:, None]
    monkeypatch.setattr(
        "sccvae.pl.embedding.pca_of_counts", lambda adata, layer, some, **_: (adata.obsm["z"] + shift)[some]
    )
    monkeypatch.setattr("sccvae.pl.embedding.umap", lambda representation, seed: np.asarray(representation)[:, :2])
    return adata


def test_history(tmp_path):
    assert_looks_as_stored(pl.history(history()), "history", tmp_path)


def test_diagnostics(tmp_path):
    assert_looks_as_stored(pl.diagnostics(diagnosis()), "diagnostics", tmp_path)


def test_integration(cells, tmp_path):
    figure = pl.integration(cells, batch_key="batch", label_key="cell_type", history=history())
    assert_looks_as_stored(figure, "integration", tmp_path)


def test_mapping(tmp_path):
    figure = pl.mapping(mapped(), reference=mapped(seed=1), truth="kind")
    assert_looks_as_stored(figure, "mapping", tmp_path)


def test_similarity(cells, tmp_path):
    tl.hierarchy(cells, "cell_type", use_rep="X_sccvae")
    assert_looks_as_stored(pl.similarity(cells, "cell_type", use_rep="X_sccvae"), "similarity", tmp_path)


def test_gradient(cells, tmp_path):
    """Pseudotime and layout are given: force-directed layouts differ between machines."""
    cells.obs["sccvae_pseudotime"] = np.linspace(0, 1, cells.n_obs)
    cells.obsm["X_draw_graph_sccvae"] = cells.obsm["z"][:, :2]
    cells.uns["sccvae_gradient"] = {"root": cells.obs_names[5]}
    assert_looks_as_stored(pl.gradient(cells, label_key="cell_type"), "gradient", tmp_path)


def test_trends(tmp_path):
    time = np.linspace(0, 1, 30)
    parts = [
        pd.DataFrame({"lineage": lineage, "gene": gene, "pseudotime": time, "mean": mean, "lower": 0.8 * mean,
                      "upper": 1.3 * mean})
        for k, lineage in enumerate(["erythroid", "myeloid"])
        for j, gene in enumerate(["Gata1", "Klf1", "Mpo", "Elane", "Cebpe"])
        for mean in [1 + j + np.exp(3 * (time if k == j % 2 else 0.3 * time))]
    ]  # fmt: skip
    assert_looks_as_stored(pl.trends(pd.concat(parts, ignore_index=True)), "trends", tmp_path)


def test_volcano(tmp_path):
    rng = np.random.default_rng(0)
    change = np.r_[rng.normal(0, 0.2, 300), rng.normal(2, 0.7, 20), rng.normal(-2, 0.7, 20)]
    odds = np.r_[rng.normal(-2, 1, 300), rng.uniform(5, 60, 40)]
    table = pd.DataFrame({"lfc_median": change, "bayes_factor": odds, "is_de_fdr_0.05": odds > 3})
    table.index = [f"Gene{i}" for i in range(340)]
    assert_looks_as_stored(pl.volcano(table), "volcano", tmp_path)


# Scanpy lays the dot plot out itself: a picture for each of its releases that was looked at.
DOTPLOTS = {"1.11": "dotplot", "1.12": "dotplot_scanpy_1.12"}


def test_dotplot(cells, tmp_path):
    release = ".".join(version("scanpy").split(".")[:2])
    if release not in DOTPLOTS:
        pytest.skip(f"no picture of Scanpy {release}'s dot plot is stored")
    cells.layers["sccvae"] = cells.X.toarray() + 0.5
    figure = pl.dotplot(
        cells, {"some": cells.var_names[:4].tolist(), "more": cells.var_names[4:7].tolist()}, "cell_type"
    )
    assert_looks_as_stored(figure, DOTPLOTS[release], tmp_path)


def test_score_table(cells, tmp_path):
    scores = tl.score_integration(
        cells, batch_key="batch", label_key="cell_type", use_rep=["X_sccvae", "z"], scib=False
    )
    assert_looks_as_stored(pl.score_table(scores), "score_table", tmp_path)


def test_latent_scatter_and_images(tmp_path):
    rng = np.random.default_rng(0)
    codes = {f"epoch {k}": k * rng.standard_normal((200, 2)) for k in (1, 2)}
    figure = pl.latent_scatter(codes, labels=np.array(list("abcd") * 50), label_name="kind", prior=True)
    assert_looks_as_stored(figure, "latent_scatter", tmp_path)
    shades = np.linspace(0, 1, 64)
    rows = {"rising": np.stack([np.roll(shades, 8 * k) for k in range(8)]), "falling": np.tile(shades[::-1], (8, 1))}
    assert_looks_as_stored(pl.images(rows, shape=(8, 8)), "images", tmp_path)


def test_generation(cells, monkeypatch, tmp_path):
    module = sys.modules["sccvae.pl.generation"]  # the function of the same name hides it
    monkeypatch.setattr(module, "pca_of_counts", lambda adata, layer, some, **_: adata.X.toarray()[some])
    monkeypatch.setattr(module, "umap", lambda representation, seed: np.log1p(np.asarray(representation)[:, :2]))
    half = np.arange(cells.n_obs) % 2 == 0
    assert_looks_as_stored(pl.generation(cells[half].copy(), cells[~half].copy()), "generation", tmp_path)


def test_latent_grid_and_interpolation(tmp_path):
    adata = simulate(200, 40, n_types=3, n_batches=1, keep_truth=False)
    model = sccvae.SCCVAE(adata, n_hidden=16, n_latent=2)
    model.train(3, progress_bar=False)
    genes = adata.var_names[:2].tolist()
    assert_looks_as_stored(pl.latent_grid(model, gene_list=genes), "latent_grid", tmp_path)
    assert_looks_as_stored(pl.interpolation(model, 0, 1, gene_list=genes), "interpolation", tmp_path)


# ------------------------------------------------------------------------------------------------- of the comparison

FIGURES = {"history": lambda: pl.history(history()), "diagnostics": lambda: pl.diagnostics(diagnosis())}


def picture(figure):
    return pixels(rendered(figure))


@pytest.fixture(scope="module")
def whole():
    """Pictures as they should be, by name."""
    return {name: picture(figure()) for name, figure in FIGURES.items()}


@pytest.mark.parametrize("name", FIGURES)
def test_a_missing_panel_is_seen(whole, name):
    """Whichever it is, and though the layout stays: a white box in its place."""
    figure = FIGURES[name]()
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for i, axes in enumerate(figure.axes):
        box = axes.get_tightbbox(canvas.get_renderer())
        without, height = whole[name].copy(), len(whole[name])
        without[int(height - box.y1) : int(height - box.y0) + 1, int(box.x0) : int(box.x1) + 1] = 1
        assert difference(whole[name], without) > 1.5 * TOLERANCE, i


def test_a_missing_legend_is_seen(whole):
    figure = pl.history(history())
    figure.axes[0].get_legend().remove()
    assert difference(whole["history"], picture(figure)) > 1.5 * TOLERANCE


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("settings", [{"text.hinting": "none"}, {"text.antialiased": False}])
def test_how_text_is_drawn_is_not_seen(whole, name, settings):
    with mpl.rc_context(settings):
        other = picture(FIGURES[name]())
    assert not np.array_equal(other, whole[name])
    assert difference(whole[name], other) <= TOLERANCE / 2


@pytest.mark.parametrize("name", FIGURES)
def test_a_shift_by_a_pixel_is_not_seen(whole, name):
    assert difference(whole[name], whole[name]) == 0
    assert difference(whole[name], np.roll(whole[name], 1, axis=(0, 1))) <= TOLERANCE / 2


def test_another_size_is_seen(whole):
    assert difference(whole["history"], whole["history"][:-5]) == 1
    assert difference(whole["history"], whole["history"][:-1]) <= TOLERANCE


def test_what_a_failure_says(tmp_path, monkeypatch):
    figure = pl.history(history().query("split == 'training'"))
    with pytest.raises(AssertionError, match=r"of the picture 'history' differ .* SCCVAE_UPDATE_IMAGES=1"):
        assert_looks_as_stored(figure, "history", tmp_path)
    assert (tmp_path / "history.png").is_file()
    with pytest.raises(AssertionError, match=r"There is no .*none\.png: store it with SCCVAE_UPDATE_IMAGES=1"):
        assert_looks_as_stored(figure, "none", tmp_path)
    monkeypatch.setattr("pictures.FOLDER", tmp_path)
    monkeypatch.setenv("SCCVAE_UPDATE_IMAGES", "1")
    assert_looks_as_stored(figure, "new", tmp_path)
    monkeypatch.delenv("SCCVAE_UPDATE_IMAGES")
    assert_looks_as_stored(figure, "new", tmp_path)
