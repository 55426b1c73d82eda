"""Distances between posteriors, neighbours, hierarchies: against torch, scikit-learn and scipy; Scanpy goes on."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from scipy.cluster import hierarchy as sch
from scipy.spatial.distance import cdist, pdist, squareform
from sklearn.neighbors import NearestNeighbors
from torch.distributions import Independent, Normal, kl_divergence

import sccvae
from sccvae import tl
from sccvae.statistics import posterior_distances

METRICS = ("euclidean", "wasserstein", "symmetric_kl")


def posteriors(n_cells=60, n_latent=5, seed=0):
    rng = np.random.default_rng(seed)
    mean = 10 + rng.normal(size=(n_cells, n_latent))
    return mean.astype(np.float32), rng.lognormal(-2, 1, (n_cells, n_latent)).astype(np.float32)


def by_definition(mean, variance, metric):
    """All distances, pair by pair."""
    mean, variance = mean.astype(float), variance.astype(float)
    if metric == "euclidean":
        return cdist(mean, mean)
    if metric == "wasserstein":  # of diagonal Gaussians: tr(A + B - 2 sqrt(AB)) + |m1 - m2|^2
        trace = variance[:, None] + variance[None] - 2 * np.sqrt(variance[:, None] * variance[None])
        return np.sqrt(((mean[:, None] - mean[None]) ** 2 + trace).sum(-1).clip(0))
    q = Independent(Normal(torch.tensor(mean)[:, None], torch.tensor(variance)[:, None].sqrt()), 1)
    p = Independent(Normal(torch.tensor(mean)[None], torch.tensor(variance)[None].sqrt()), 1)
    return (kl_divergence(q, p) + kl_divergence(p, q)).clamp(min=0).sqrt().numpy()


# ------------------------------------------------------------------------------------------------------------ distances


@pytest.mark.parametrize("metric", METRICS)
def test_distances_are_those_of_the_definition(metric, monkeypatch):
    monkeypatch.setattr(posterior_distances, "BLOCK_BYTES", 8 * 60 * 7)  # blocks of 7 rows, the last one shorter
    mean, variance = posteriors()
    rows, parts = zip(*posterior_distances.blocks(mean, variance, metric=metric), strict=True)
    assert [r.stop - r.start for r in rows] == [7] * 8 + [4]
    found = np.vstack(parts)
    np.testing.assert_allclose(found, by_definition(mean, variance, metric), rtol=1e-7, atol=1e-6)
    assert (np.diag(found) == 0).all()
    dense = posterior_distances.matrix(mean, variance, metric=metric)
    assert dense.dtype == np.float32
    np.testing.assert_allclose(dense, found, rtol=1e-6)


def test_the_root_of_symmetric_kl_is_mahalanobis_at_one_variance():
    mean, _ = posteriors()
    variance = np.full_like(mean, 0.25)
    np.testing.assert_allclose(
        posterior_distances.matrix(mean, variance, metric="symmetric_kl"), cdist(mean, mean) / 0.5, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_are_the_nearest_of_all(metric, monkeypatch):
    monkeypatch.setattr(posterior_distances, "BLOCK_BYTES", 8 * 60 * 7)
    mean, variance = posteriors()
    found = posterior_distances.neighbours(mean, variance, 6, metric=metric)
    expected = by_definition(mean, variance, metric)
    np.fill_diagonal(expected, np.inf)
    assert found.shape == (60, 60)
    assert (np.diff(found.indptr) == 6).all()
    np.testing.assert_array_equal(found.indices.reshape(60, 6), np.argsort(expected, axis=1)[:, :6])
    np.testing.assert_allclose(found.data.reshape(60, 6), np.sort(expected, axis=1)[:, :6], rtol=1e-7)


@pytest.mark.parametrize("metric", METRICS)
def test_duplicates_are_neighbours_at_distance_zero_and_never_the_cell_itself(metric):
    mean, variance = posteriors(20)
    mean[10:], variance[10:] = mean[:10], variance[:10]
    found = posterior_distances.neighbours(mean, variance, 3, metric=metric)
    nearest = found.indices.reshape(20, 3)
    np.testing.assert_array_equal(nearest[:, 0], (np.arange(20) + 10) % 20)
    np.testing.assert_allclose(found.data.reshape(20, 3)[:, 0], 0, atol=1e-6)
    assert (nearest != np.arange(20)[:, None]).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"metric": "cosine"}, "metric is 'cosine'; expected one of 'euclidean', 'wasserstein', 'symmetric_kl'"),
        ({"n_neighbors": 60}, "n_neighbors is 60 for 60 cells; expected"),
        ({"n_neighbors": 0}, "n_neighbors is 0 for 60 cells; expected at least 1"),
        ({"variance": None}, "variance is None; expected an array for metric='wasserstein'"),
        ({"variance": np.zeros((60, 5))}, "variance has shape (60, 5); expected numbers above 0 of shape (60, 5)"),
        ({"variance": np.ones((60, 4))}, "variance has shape (60, 4); expected numbers above 0 of shape (60, 5)"),
        ({"mean": np.full((60, 5), np.nan)}, "mean has shape (60, 5); expected finite numbers"),
    ],
)
def test_wrong_posteriors_are_named(change, text):
    mean, variance = posteriors()
    arguments = {"mean": mean, "variance": variance, "n_neighbors": 5, **change}
    with pytest.raises(ValueError, match=re.escape(text)):
        posterior_distances.neighbours(**arguments)


# ------------------------------------------------------------------------------------------------------------ hierarchy


def test_distances_between_groups(monkeypatch):
    monkeypatch.setattr(posterior_distances, "BLOCK_BYTES", 8 * 40 * 9)
    rng = np.random.default_rng(1)
    points, codes = rng.normal(size=(40, 3)), np.arange(40) % 4
    codes[:3] = -1  # cells of no group
    distances = cdist(points, points)
    groups = [points[codes == k] for k in range(4)]
    average = posterior_distances.group_distances(distances, codes, method="average")
    centres = np.array([group.mean(0) for group in groups])
    expected = np.array([[cdist(a, b).mean() for b in groups] for a in groups])
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(average, expected, rtol=1e-12)
    ward = posterior_distances.group_distances(distances, codes, method="ward")
    np.testing.assert_allclose(ward, cdist(centres, centres), atol=1e-7)


def test_a_group_without_cells_is_named():
    with pytest.raises(ValueError, match=r"codes has no cell of group number 1; expected codes without gaps"):
        posterior_distances.group_distances(np.zeros((3, 3)), np.array([0, 2, 2]))


@pytest.mark.parametrize("method", ["average", "ward"])
def test_linkage_is_that_of_scipy(method):
    points = np.random.default_rng(2).normal(size=(25, 3))
    distances = pdist(points)
    found = posterior_distances.linkage(squareform(distances), method=method, optimal_ordering=False)
    np.testing.assert_allclose(found, sch.linkage(points, method), rtol=1e-10)


@pytest.mark.parametrize(
    ("n", "method", "text"),
    [(1, "average", "distances has 1 items; expected at least 2"), (3, "median", "method is 'median'; expected one")],
)
def test_a_hierarchy_that_cannot_be_made(n, method, text):
    with pytest.raises(ValueError, match=text):
        posterior_distances.linkage(np.zeros((n, n)), method=method)


# --------------------------------------------------------------------------------------------------------- into AnnData


@pytest.fixture(scope="module")
def compared(make_adata, fit):
    """AnnData with the graph and the matrix of a model's posteriors. Shared: do not change it."""
    adata = make_adata()
    model = fit(adata, 8, batch_key="batch")
    tl.similarity(adata, model, n_neighbors=10, dense=True)
    return adata, model


def test_the_graph_is_written_as_scanpy_writes_it(compared):
    adata, model = compared
    mean, variance = model.get_latent_representation(return_variance=True)
    about = adata.uns["sccvae_similarity"]
    assert about["connectivities_key"] == "sccvae_similarity_connectivities"
    assert about["distances_key"] == "sccvae_similarity_distances"
    assert about["params"] == {
        "n_neighbors": 10,
        "method": "umap",
        "random_state": 0,
        "metric": "euclidean",
        "use_rep": "X_sccvae",
        "posterior_distance": "symmetric_kl",
    }
    np.testing.assert_array_equal(adata.obsm["X_sccvae"], mean)
    expected = by_definition(mean, variance, "symmetric_kl")
    np.testing.assert_allclose(adata.obsp["sccvae_similarity_matrix"], expected, rtol=1e-4, atol=1e-4)
    np.fill_diagonal(expected, np.inf)
    graph = adata.obsp["sccvae_similarity_distances"]
    assert (np.diff(graph.indptr) == 9).all()
    np.testing.assert_allclose(
        np.sort(graph.data.reshape(120, 9), axis=1), np.sort(expected, axis=1)[:, :9], rtol=1e-4, atol=1e-5
    )
    weights = adata.obsp["sccvae_similarity_connectivities"]
    assert abs(weights - weights.T).max() < 1e-6
    assert 0 < weights.data.min() <= weights.data.max() <= 1


def test_euclidean_similarity_is_scanpys_own_graph(make_adata):
    adata = make_adata()
    adata.obsm["X_sccvae"] = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
    tl.similarity(adata, metric="euclidean", n_neighbors=12, key_added="ours")
    sc.pp.neighbors(adata, n_neighbors=12, use_rep="X_sccvae", key_added="theirs")
    for what in ("distances", "connectivities"):
        ours, theirs = adata.obsp[f"ours_{what}"], adata.obsp[f"theirs_{what}"]
        assert ours.nnz == theirs.nnz
        np.testing.assert_allclose(ours.toarray(), theirs.toarray(), atol=1e-4)
    assert adata.uns["ours"]["params"] == {**adata.uns["theirs"]["params"], "posterior_distance": "euclidean"}


def test_scanpy_goes_on_from_the_graph(compared):
    adata = compared[0].copy()
    key = "sccvae_similarity"
    sc.tl.leiden(adata, neighbors_key=key, flavor="igraph", n_iterations=2, directed=False)
    assert adata.obs["leiden"].nunique() > 1
    sc.tl.umap(adata, neighbors_key=key)
    figure = sc.pl.umap(adata, color="leiden", neighbors_key=key, edges=True, return_fig=True)
    assert len(figure.axes) >= 1
    sc.tl.diffmap(adata, neighbors_key=key)
    adata.uns["iroot"] = 3
    sc.tl.dpt(adata, neighbors_key=key)
    assert adata.obs["dpt_pseudotime"].iloc[3] == 0
    sc.tl.paga(adata, groups="kind", neighbors_key=key)
    assert adata.uns["paga"]["connectivities"].shape == (4, 4)


@pytest.mark.slow
def test_ingest_maps_new_cells_onto_our_embedding(make_adata, fit, monkeypatch):
    from pynndescent import rp_trees

    make_forest = rp_trees.make_forest
    # Scanpy 1.11 hands on a number of trees that pynndescent 0.7 leaves open.
    monkeypatch.setattr(rp_trees, "make_forest", lambda x, k, n_trees, *more: make_forest(x, k, n_trees or 1, *more))
    reference, query = make_adata(), make_adata(60, seed=0)
    model = fit(reference, 8, batch_key="batch")
    tl.store(query, model)
    tl.similarity(reference, model, n_neighbors=10)
    sc.tl.umap(reference, neighbors_key="sccvae_similarity")
    sc.tl.ingest(query, reference, obs="kind", embedding_method="umap", neighbors_key="sccvae_similarity")
    assert query.obsm["X_umap"].shape == (60, 2)
    nearest = NearestNeighbors(n_neighbors=10).fit(reference.obsm["X_sccvae"])
    votes = reference.obs["kind"].to_numpy()[nearest.kneighbors(query.obsm["X_sccvae"], return_distance=False)]
    expected = pd.DataFrame(votes).mode(axis=1)[0].to_numpy()
    assert (query.obs["kind"].to_numpy() == expected).mean() > 0.7  # theirs is an approximate search


def test_new_data_are_compared_by_their_own_counts(compared, make_adata):
    _, model = compared
    new = make_adata(50, seed=3)
    new.obs_names = [f"new{i}" for i in range(50)]
    tl.similarity(new, model, metric="wasserstein", n_neighbors=5, dense=True)
    mean, variance = model.get_latent_representation(new, return_variance=True)
    np.testing.assert_allclose(
        new.obsp["sccvae_similarity_matrix"], by_definition(mean, variance, "wasserstein"), rtol=1e-4, atol=1e-4
    )


def test_dendrogram_of_groups_where_scanpy_looks_for_it(compared):
    adata = compared[0].copy()
    tl.hierarchy(adata, "kind")
    ours = adata.uns["dendrogram_kind"]
    distances = adata.obsp["sccvae_similarity_matrix"].astype(float)
    kinds = [np.flatnonzero(adata.obs["kind"] == kind) for kind in "wxyz"]
    mean = np.array([[distances[np.ix_(a, b)].mean() for b in kinds] for a in kinds])
    np.fill_diagonal(mean, 0)
    np.testing.assert_allclose(ours["distances"], mean, rtol=1e-6)
    np.testing.assert_allclose(
        ours["linkage"], sch.linkage(squareform(mean, checks=False), "average", optimal_ordering=True), rtol=1e-6
    )
    sc.tl.dendrogram(adata, "kind", use_rep="X_sccvae", key_added="theirs")
    assert set(adata.uns["theirs"]) - set(ours) == {"correlation_matrix"}
    assert [adata.obs["kind"].cat.categories[i] for i in ours["categories_idx_ordered"]] == ours["categories_ordered"]
    assert sc.pl.dendrogram(adata, "kind", show=False) is not None
    shown = sc.pl.dotplot(adata, ["gene0", "gene1"], "kind", dendrogram=True, return_fig=True)
    shown.make_figure()
    rows = [label.get_text() for label in shown.ax_dict["mainplot_ax"].get_yticklabels()]
    assert rows == ours["categories_ordered"]


def test_clusters_of_cells_for_clustermap(compared):
    pytest.importorskip("seaborn")
    adata = compared[0].copy()
    tl.hierarchy(adata, method="ward", use_rep="X_sccvae")
    ours = adata.uns["hierarchy"]
    np.testing.assert_allclose(ours["linkage"][:, 2], sch.linkage(adata.obsm["X_sccvae"], "ward")[:, 2], rtol=1e-3)
    assert sorted(ours["order"]) == list(range(120))
    adata.X = adata.X.toarray()
    grid = sc.pl.clustermap(adata, obs_keys="kind", row_linkage=ours["linkage"], show=False)
    assert list(grid.dendrogram_row.reordered_ind) == list(ours["order"])


def test_files_keep_graph_and_trees(compared, tmp_path):
    adata = compared[0].copy()
    tl.hierarchy(adata, "kind")
    tl.hierarchy(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.obsp["sccvae_similarity_matrix"], adata.obsp["sccvae_similarity_matrix"])
    assert sc.pl.dendrogram(back, "kind", show=False) is not None
    sc.tl.diffmap(back, neighbors_key="sccvae_similarity")
    np.testing.assert_array_equal(back.uns["hierarchy"]["linkage"], adata.uns["hierarchy"]["linkage"])


def test_the_random_state_stays(make_adata):
    import random

    adata = make_adata()
    adata.obsm["X_sccvae"] = np.random.default_rng(0).normal(size=(120, 4))
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    tl.similarity(adata, metric="euclidean")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def broken(change):
    adata = sccvae.simulate.simulate(40, 20, seed=0, keep_truth=False)
    adata.obsm["X_sccvae"] = np.random.default_rng(0).normal(size=(40, 3))
    adata.obs["text"] = "a"
    adata.obs["gone"] = pd.Categorical(["a", "b"] * 20, categories=["a", "b", "c"])
    return change(adata)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda a: tl.similarity(a), ValueError, "metric='symmetric_kl' compares posteriors, and no model was given"),
        (lambda a: tl.similarity(a, metric="euclidean", use_rep="X_x"), KeyError, "'X_x' is not in adata.obsm"),
        (lambda a: tl.hierarchy(a, "cell_type"), KeyError, "'sccvae_similarity_matrix' is not in adata.obsp"),
        (lambda a: tl.hierarchy(a, "cell_type", use_rep="X_x"), KeyError, "'X_x' is not in adata.obsm"),
        (lambda a: tl.hierarchy(a, "typo", use_rep="X_sccvae"), KeyError, "adata.obs has no column 'typo'"),
        (lambda a: tl.hierarchy(a, "text", use_rep="X_sccvae"), ValueError, "adata.obs['text'] is not categorical"),
        (lambda a: tl.hierarchy(a, "gone", use_rep="X_sccvae"), ValueError, "categories without cells, such as 'c'"),
        (lambda a: tl.similarity(a.X, metric="euclidean"), TypeError, "AnnData"),
    ],
)
def test_what_cannot_be_compared_is_named(change, error, text):
    with pytest.raises(error, match=re.escape(text)):
        broken(change)


def test_matrices_are_for_twenty_thousand_cells(monkeypatch):
    assert tl.similarity.__module__ == "sccvae.tl.similarity"
    import sys

    room = sys.modules["sccvae.tl.similarity"]
    assert room.MAX_DENSE == 20_000
    monkeypatch.setattr(room, "MAX_DENSE", 39)
    with pytest.raises(ValueError, match="dense=True with 40 cells: distances of all pairs are stored for at most 39"):
        broken(lambda a: tl.similarity(a, metric="euclidean", dense=True))
    with pytest.raises(ValueError, match="40 cells: distances of all pairs are made for at most 39"):
        broken(lambda a: tl.hierarchy(a, "cell_type", use_rep="X_sccvae"))


def test_an_autoencoder_has_no_posterior(make_adata):
    adata = make_adata()
    model = sccvae.Autoencoder(adata, n_hidden=8, n_latent=2)
    model.train(1, progress_bar=False)
    with pytest.raises(ValueError, match="compares posteriors, and Autoencoder has none"):
        tl.similarity(adata, model)
