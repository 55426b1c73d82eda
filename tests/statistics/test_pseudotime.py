"""Pseudotime, layouts and trends: known orders and curves, closed forms, what is written, what goes wrong."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from scipy.stats import gamma, spearmanr

import sccvae
from sccvae import pl, tl
from sccvae.inference import posterior
from sccvae.statistics import trends
from sccvae.statistics.seeded_scanpy import seeded

# ------------------------------------------------------------------------------------------------------------ smoothing


def test_a_line_is_kept_as_it_is_to_both_ends():
    x = np.sort(np.random.default_rng(0).uniform(0, 2, 80))
    grid = np.linspace(x[0], x[-1], 11)
    curve = trends.Smoother(x, grid, 0.3)(np.column_stack([3 - 2 * x, np.full(80, 7.0)]), np.ones(80))
    np.testing.assert_allclose(curve, np.column_stack([3 - 2 * grid, np.full(11, 7.0)]), rtol=1e-9)


def test_each_point_is_weighted_least_squares_with_tricube_weights():
    rng = np.random.default_rng(1)
    x, y, w = rng.uniform(0, 1, 60), rng.normal(size=(60, 2)), rng.exponential(size=60)
    grid = np.array([0.0, 0.4, 1.1])
    found = trends.Smoother(x, grid, 0.5)(y, w)
    for point, row in zip(grid, found, strict=True):
        apart = x - point
        reach = 1.0001 * np.sort(np.abs(apart))[29]
        root = np.sqrt(w * np.maximum(1 - np.abs(apart / reach) ** 3, 0) ** 3)[:, None]
        fit = np.linalg.lstsq(root * np.column_stack([np.ones(60), apart]), root * y, rcond=None)[0]
        np.testing.assert_allclose(row, fit[0], rtol=1e-8)


def test_cells_at_one_place_have_a_mean_and_no_slope():
    y = np.arange(12.0)[:, None]
    found = trends.Smoother(np.zeros(12), np.zeros(1), 1.0)(y, np.ones(12))
    np.testing.assert_allclose(found, [[5.5]])


def test_effective_counts_are_sums_over_the_kernel_whatever_the_chunks():
    rng = np.random.default_rng(2)
    x, mean, variance = rng.uniform(size=50), rng.gamma(2, size=(50, 3)), rng.gamma(3, size=(50, 3))
    cells = [np.arange(0, 50, 2), np.arange(10, 50)]
    smoothers = [trends.Smoother(x[some], np.array([0.3, 0.6]), 0.4) for some in cells]
    chunks = [(slice(i, min(i + 13, 50)), mean[i : i + 13], variance[i : i + 13]) for i in range(0, 50, 13)]
    found = trends.effective_counts(chunks, cells, smoothers)
    for some, smoother, n in zip(cells, smoothers, found, strict=True):
        k = smoother.moments[0]
        np.testing.assert_allclose(n, (k @ mean[some]) ** 2 / (k**2 @ variance[some]), rtol=1e-12)


def test_the_band_is_that_of_a_gamma_mean_where_nothing_else_is_uncertain():
    cells, mean, variance = 400, 2.0, 2.0
    draw = np.full((cells, 1), 5.0)
    chunks = [(slice(0, cells), np.full((cells, 1), mean), np.full((cells, 1), variance))]
    x = np.linspace(0, 1, cells)
    found = trends.trends(
        lambda _: draw, chunks, x, [np.ones(cells, dtype=bool)], span=1.0, n_samples=2000, n_points=3
    )[0]
    k = trends.Smoother(x, found.grid, 1.0).moments[0]
    n = k.sum(1) ** 2 * mean**2 / ((k**2).sum(1) * variance)
    np.testing.assert_allclose(found.mean[:, 0], 5, rtol=2e-3)
    np.testing.assert_allclose(found.lower[:, 0], 5 * gamma.ppf(0.05, 0.5 + n) / (0.5 + n), rtol=2e-3)
    np.testing.assert_allclose(found.upper[:, 0], 5 * gamma.ppf(0.95, 0.5 + n) / (0.5 + n), rtol=2e-3)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"n_points": 1}, "n_points is 1; expected at least 2"),
        ({"span": 0}, "span is 0.0; expected a fraction in (0, 1]"),
        ({"level": 1}, "level is 1.0; expected a probability between 0 and 1"),
        ({"n_samples": 5}, "n_samples is 5; expected at least 20"),
        ({"lineages": [np.arange(40) < 5]}, "Lineage number 0 has 5 cells with a pseudotime; expected at least 10"),
    ],
)
def test_numbers_out_of_range_are_named(change, text):
    arguments = {"pseudotime": np.arange(40.0), "lineages": [np.ones(40, dtype=bool)], **change}
    with pytest.raises(ValueError, match=re.escape(text)):
        trends.trends(lambda _: np.ones((40, 1)), [], **arguments)


# ------------------------------------------------------------------------------------------------------------- gradient


def path(n_cells=150, seed=0):
    """Cells along a curve, in random order, with counts of genes that rise, fall and stay."""
    rng = np.random.default_rng(seed)
    t = rng.permutation(np.linspace(0, 1, n_cells))
    change = np.repeat([2.0, -2.0, 0.0], 20)
    level = np.exp(rng.normal(0, 0.5, 60) + change * (t[:, None] - 0.5))
    rho = level / level.sum(1, keepdims=True)
    obs = pd.DataFrame({"t": t, "part": pd.Categorical(np.where(t < 0.3, "early", "late"))})
    obs.index = [f"cell{i}" for i in range(n_cells)]
    counts = sp.csr_matrix(rng.poisson(600 * rho).astype(np.float32))
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(60)]))
    adata.obsm["X_sccvae"] = np.column_stack([np.cos(2 * t), np.sin(2 * t), 0.1 * rng.random(n_cells)])
    return adata, rho


def test_pseudotime_is_the_order_along_the_path():
    adata, _ = path()
    first = adata.obs_names[adata.obs["t"].argmin()]
    state = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    tl.gradient(adata, root=first, n_neighbors=10)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state  # noqa: NPY002
    assert adata.obs.loc[first, "sccvae_pseudotime"] == 0
    assert adata.obs["sccvae_pseudotime"].max() == 1
    assert spearmanr(adata.obs["sccvae_pseudotime"], adata.obs["t"])[0] > 0.99
    assert adata.obsm["X_sccvae_diffmap"].shape == (150, 14)
    assert np.isfinite(adata.obsm["X_draw_graph_sccvae"]).all()
    assert adata.uns["sccvae_gradient"]["root"] == first
    assert set(adata.obsp) == {"sccvae_neighbors_connectivities", "sccvae_neighbors_distances"}
    assert "neighbors" not in adata.uns
    again, _ = path()
    tl.gradient(again, root=first, n_neighbors=10)
    np.testing.assert_array_equal(again.obsm["X_draw_graph_sccvae"], adata.obsm["X_draw_graph_sccvae"])


def test_it_is_scanpys_pseudotime_on_the_graph_that_is_named():
    adata, _ = path()
    sc.pp.neighbors(adata, use_rep="X_sccvae", n_neighbors=12)
    adata.uns["iroot"] = 7
    sc.tl.diffmap(adata)
    sc.tl.dpt(adata)
    tl.gradient(adata, root=7, neighbors_key="neighbors", layout=None, key_added="mine")
    np.testing.assert_allclose(adata.obs["mine_pseudotime"], adata.obs["dpt_pseudotime"], rtol=1e-6)
    assert "X_draw_graph_mine" not in adata.obsm
    assert adata.uns["mine_gradient"]["layout"] == "none"
    sc.tl.dpt(adata, neighbors_key="neighbors")
    sc.tl.paga(adata, groups="part", neighbors_key="neighbors")


def test_a_category_stands_for_the_most_central_of_its_cells():
    adata, _ = path()
    tl.gradient(adata, root=("part", "early"), n_neighbors=10, layout=None)
    root = adata.uns["sccvae_gradient"]["root"]
    assert adata.obs.loc[root, "part"] == "early"
    assert 0.05 < adata.obs.loc[root, "t"] < 0.25
    assert adata.obs.loc[root, "sccvae_pseudotime"] == 0


def test_cells_that_no_path_reaches_have_no_pseudotime():
    adata, _ = path()
    apart = adata.obs["t"].to_numpy() > 0.7
    adata.obsm["X_sccvae"][apart] += 100
    with pytest.warns(UserWarning, match=r"No path leads from the root to 45 of 150 cells: their pseudotime is NaN"):
        tl.gradient(adata, root=int(adata.obs["t"].argmin()), n_neighbors=8, layout=None)
    np.testing.assert_array_equal(adata.obs["sccvae_pseudotime"].isna(), apart)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"root": "nobody"}, ValueError, "root='nobody' is not the name of a cell. Pass a name of adata.obs_names"),
        ({"root": 150}, ValueError, "root=150 is not the number of a cell; expected 0 to 39"),
        ({"root": 1.5}, ValueError, "root=1.5; expected the name of a cell, its number, or (column"),
        (
            {"root": ("part", "middle")},
            ValueError,
            "adata.obs['part'] has no cell of 'middle'; it has ['early', 'late']",
        ),
        ({"root": ("typo", "early")}, KeyError, "adata.obs has no column 'typo'"),
        ({"use_rep": "X_no"}, KeyError, "'X_no' is not in adata.obsm"),
        ({"neighbors_key": "none"}, KeyError, "adata.uns['none'] is not a graph of neighbours"),
    ],
)
def test_a_gradient_that_cannot_be_made_writes_nothing(change, error, text, fingerprint):
    adata, _ = path(40)
    before = fingerprint(adata)
    with pytest.raises(error, match=re.escape(text)):
        tl.gradient(adata, **{"root": 0, **change})
    assert fingerprint(adata) == before


# --------------------------------------------------------------------------------------------------------------- trends


@pytest.fixture(scope="module")
def trained():
    """Cells along a path, their true expression, a model of them. Shared: add keys, change nothing else."""
    adata, rho = path(600)
    model = sccvae.SCCVAE(adata, n_hidden=32, n_latent=4)
    model.train(40, progress_bar=False)
    return adata, rho, model


def test_bands_hold_most_of_the_true_trend_and_curves_are_near_it(trained):
    adata, rho, model = trained
    tl.trends(adata, model, list(adata.var_names), pseudotime="t", n_points=10)
    table = adata.uns["sccvae_trends"]
    assert list(table.columns) == ["lineage", "gene", "pseudotime", "mean", "lower", "upper"]
    assert len(table) == 60 * 10
    grid = table["pseudotime"].to_numpy()[:10]
    np.testing.assert_allclose(grid[[0, -1]], np.quantile(adata.obs["t"], [0.01, 0.99]))
    smoother = trends.Smoother(adata.obs["t"].to_numpy(), grid, 0.3)
    truth = 1e4 * smoother(rho, np.ones(600)).T
    mean, lower, upper = (table[c].to_numpy().reshape(60, 10) for c in ("mean", "lower", "upper"))
    assert ((lower <= mean) & (mean <= upper)).all()
    inside = ((lower <= truth) & (truth <= upper)).mean()
    assert 0.7 < inside < 0.995  # of bands of 90 %: what the decoder smooths away is not in them
    assert np.median(np.abs(mean / truth - 1)) < 0.15
    assert np.corrcoef(np.log(mean[:40]).ravel(), np.log(truth[:40]).ravel())[0, 1] > 0.95


def test_lineages_have_curves_of_their_own_cells(trained):
    adata, _, model = trained
    lineages = {"begin": ["early"], "whole": ["early", "late"]}
    tl.trends(adata, model, ["gene0", "gene30"], pseudotime="t", groupby="part", lineages=lineages, n_points=5,
              key_added="two")  # fmt: skip
    table = adata.uns["two"]
    assert table.groupby("lineage", sort=False).size().to_dict() == {"begin": 10, "whole": 10}
    assert table.loc[table["lineage"] == "begin", "pseudotime"].max() < 0.3
    assert table.loc[table["lineage"] == "whole", "pseudotime"].max() > 0.95
    only = adata[adata.obs["part"] == "early"].copy()
    tl.trends(only, model, ["gene0", "gene30"], pseudotime="t", n_points=5)
    first = table[table["lineage"] == "begin"]
    np.testing.assert_allclose(only.uns["sccvae_trends"]["mean"].to_numpy(), first["mean"].to_numpy(), rtol=0.1)


def test_the_seed_decides_and_a_file_keeps_the_table(trained, tmp_path):
    adata, _, model = trained
    for key, seed in (("a", 0), ("b", 0), ("c", 1)):
        tl.trends(adata, model, "gene3", pseudotime="t", n_points=4, n_samples=20, seed=seed, key_added=key)
    pd.testing.assert_frame_equal(adata.uns["a"], adata.uns["b"])
    assert (adata.uns["a"]["mean"] != adata.uns["c"]["mean"]).all()
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad").uns["a"]
    np.testing.assert_array_equal(back["upper"], adata.uns["a"]["upper"])


def assert_the_same(found, expected, where):
    """Every leaf of what `uns`, `obsp`, ... hold, by value; files turn tuples and lists into arrays."""
    if isinstance(expected, Mapping):
        assert set(found) == set(expected), where
        for key, value in expected.items():
            assert_the_same(found[key], value, f"{where}/{key}")
    elif sp.issparse(expected):
        assert (found != expected).nnz == 0, where
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(pd.DataFrame(found), expected, check_column_type=False)
    elif isinstance(expected, (list, tuple)) and len({np.shape(part) for part in expected}) > 1:
        for number, (part, of_expected) in enumerate(zip(found, expected, strict=True)):
            assert_the_same(part, of_expected, f"{where}/{number}")
    else:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected), err_msg=where)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_files_keep_all_that_the_analysis_wrote(trained, tmp_path, kind):
    adata, _, model = trained
    adata = adata[:150].copy()
    tl.gradient(adata, root=("part", "early"))
    tl.similarity(adata, model, dense=True, n_neighbors=12)
    tl.gradient(adata, root="cell3", neighbors_key="sccvae_similarity", layout=None, key_added="posterior")
    tl.hierarchy(adata, "part")
    tl.hierarchy(adata, method="ward", key_added="cells")
    lineages = {"all": ["early", "late"], "late": ["late"]}
    tl.trends(adata, model, ["gene1", "gene30"], groupby="part", lineages=lineages, n_samples=20)
    tl.denoise(adata, model, "gene1", n_samples=20)
    if kind == "h5ad":
        adata.write_h5ad(tmp_path / "a")
        back = ad.read_h5ad(tmp_path / "a")
    else:
        adata.write_zarr(tmp_path / "a")
        back = ad.read_zarr(tmp_path / "a")
    pd.testing.assert_frame_equal(back.obs, adata.obs)
    assert {"sccvae_gradient", "posterior_gradient", "dendrogram_part", "cells", "sccvae_trends"} <= set(back.uns)
    for place in ("obsm", "obsp", "uns"):
        assert_the_same(dict(getattr(back, place)), dict(getattr(adata, place)), place)
    # What goes on from a file: our plots and functions, and Scanpy's.
    pl.gradient(back, label_key="part", show=False)
    pl.trends(back, show=False)
    pl.similarity(back, "part", show=False)
    sc.pl.dendrogram(back, "part", show=False)
    sc.tl.paga(back, groups="part", neighbors_key="sccvae_neighbors")
    tl.gradient(back, root="cell3", neighbors_key="sccvae_similarity", layout=None, key_added="again")
    np.testing.assert_allclose(back.obs["again_pseudotime"], adata.obs["posterior_pseudotime"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"pseudotime": "when"}, KeyError, "adata.obs has no column 'when': sccvae.tl.gradient(adata, root=...) makes"),
        ({"genes": ["gene0", "Gata1"]}, ValueError, "gene_list names 1 unknown gene: 'Gata1'"),
        ({"lineages": {"x": ["early"]}}, ValueError, "lineages names groups: pass groupby"),
        ({"lineages": {"x": ["mid"]}, "groupby": "part"}, ValueError, "Lineage 'x' names 'mid', which is not in"),
        ({"pseudotime": "few"}, ValueError, "Lineage 'all cells' has 3 cells with a pseudotime; expected at least 10"),
    ],
)
def test_trends_that_cannot_be_drawn_are_named(trained, change, error, text):
    adata, _, model = trained
    adata = adata.copy()
    adata.obs["few"] = np.where(np.arange(600) < 3, 0.5, np.nan)
    with pytest.raises(error, match=re.escape(text)):
        tl.trends(adata, model, **{"genes": ["gene0"], "pseudotime": "t", **change})


def test_models_without_counts_have_no_trends(adata, fit):
    model = fit(adata, 1, gene_likelihood="poisson")
    assert model.likelihood.support == "counts"
    adata.X = adata.X.log1p()
    model = fit(adata, 1, gene_likelihood="normal")
    adata.obs["t"] = np.linspace(0, 1, adata.n_obs)
    with pytest.raises(
        ValueError,
        match="trends needs a count likelihood; found gene_likelihood='normal', expected 'zinb', 'nb' or 'poisson'",
    ):
        tl.trends(adata, model, ["gene0"], pseudotime="t")


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_moments_of_counts_are_those_of_the_likelihood(adata, fit, likelihood):
    model = fit(adata, 2, batch_key="batch", gene_likelihood=likelihood)
    given = model.get_likelihood_parameters()
    pi, theta = given.get("dropout", 0), given.get("dispersions", np.inf)
    expected = given["mean"] * (1 - pi)
    variance = expected * (1 + given["mean"] * (pi + 1 / theta))
    for draw, mean, weight in posterior.count_moments(model._vae, model._cells(None, None)[0], 50):
        np.testing.assert_allclose(mean.cpu(), expected[draw.rows], rtol=1e-5)
        np.testing.assert_allclose((mean / weight).cpu(), variance[draw.rows], rtol=1e-4)


def test_seeded_knows_both_names_of_a_seed():
    def old(adata, random_state=None):
        adata["seed"] = random_state
        random.seed(99)

    def new(adata, rng=None):
        adata["rng"] = rng

    found: dict[str, int] = {}
    before = random.getstate()
    seeded(old, found, seed=3)
    seeded(new, found, seed=4)
    assert found == {"seed": 3, "rng": 4}
    assert random.getstate() == before
