"""Real data sets, where `SCCVAE_DATA` names a folder that holds them: a few epochs must find what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
from sklearn.decomposition import TruncatedSVD
from sklearn.neighbors import NearestNeighbors

import sccvae

pytestmark = pytest.mark.slow


def neighbours(space: np.ndarray) -> np.ndarray:
    """(cells, 15): the nearest other cells of each cell."""
    return NearestNeighbors(n_neighbors=16).fit(space).kneighbors(space, return_distance=False)[:, 1:]


def accuracy(near: np.ndarray, labels) -> float:
    """Share of cells whose label is the most frequent one of their neighbours."""
    codes = labels.astype("category").cat.codes.to_numpy()
    return float(np.mean([np.bincount(codes[row]).argmax() == code for row, code in zip(near, codes, strict=True)]))


def mixing(near: np.ndarray, batch) -> float:
    """Entropy of the batches among a cell's neighbours, mean over cells, as a share of its value without batches."""
    codes = batch.astype("category").cat.codes.to_numpy()
    n = codes.max() + 1
    shares = np.stack([np.bincount(row, minlength=n) for row in codes[near]]) / near.shape[1]
    overall = np.bincount(codes, minlength=n) / len(codes)
    entropy = lambda p: -(p * np.log(np.where(p > 0, p, 1))).sum(-1)  # noqa: E731
    return float(entropy(shares).mean() / entropy(overall))


def principal_components(adata) -> np.ndarray:
    totals = np.asarray(adata.X.sum(1))
    return TruncatedSVD(20, random_state=0).fit_transform(adata.X.multiply(1e4 / totals).tocsr().log1p())


def trained(adata, epochs: int, **options) -> sccvae.SCCVAE:
    model = sccvae.SCCVAE(adata, **options)
    model.train(epochs, progress_bar=False)
    return model


def check(model, adata) -> np.ndarray:
    """Properties every trained model has; returns the embedding."""
    z = model.get_latent_representation()
    assert z.shape == (adata.n_obs, 20)
    assert np.isfinite(z).all()
    held_out = model.history.query("split == 'validation'")["elbo"]
    assert held_out.iloc[-1] > held_out.iloc[0]
    rho = model.get_normalized_expression(indices=range(50), return_numpy=True, transform_batch="all")
    np.testing.assert_allclose(rho.sum(1), 1, rtol=1e-4)
    return z


def test_cortex(real):
    adata = real("cortex")
    z = check(trained(adata, 10), adata)
    assert accuracy(neighbours(z), adata.obs["cell_type"]) > 0.85


def test_markers_of_cortex(real):
    """Textbook markers among the first 1,000 genes of the set are called, and up in their class."""
    adata = real("cortex")[:, :1000].copy()
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()
    table = trained(adata, 10).differential_expression(groupby="cell_type")
    assert table["group1"].nunique() == 7
    markers = {
        "interneurons": ["Gad1", "Gad2", "Slc32a1", "Pvalb", "Sst", "Npy", "Reln", "Dlx1"],
        "astrocytes_ependymal": ["Atp1b2", "Cspg5"],
        "pyramidal SS": ["Rasgrf2"],
    }
    for cell_type, genes in markers.items():
        found = table[table["group1"] == cell_type].loc[genes]
        assert found["is_de_fdr_0.05"].all(), cell_type
        assert (found["lfc_median"] > 0.5).all(), cell_type
        others = table[(table["group1"] != cell_type) & table.index.isin(genes)]
        assert (others["lfc_median"] < 0).mean() > 0.7
    best = table[(table["group1"] == "interneurons") & (table["lfc_median"] > 0)].index
    assert set(best[:5]) >= {"Gad1", "Gad2"}


def sides(adata, n: int = 20) -> list[set[str]]:
    """The genes with the largest loadings of each program, for each sign."""
    loadings = adata.varm["gene_programs"].T
    return [set(adata.var_names[np.argsort(-sign * values)[:n]]) for values in loadings for sign in (1, -1)]


MARKERS = {
    "cortex": {
        "interneurons": ["Gad1", "Gad2", "Slc32a1", "Slc6a1", "Dlx1", "Lhx6"],
        "interneurons with somatostatin": ["Sst", "Npy", "Cort", "Nxph1", "Crhbp"],
        "microglia": ["Mafb", "Lgmn", "Rgs10", "Apbb1ip", "Csk", "Sla", "Ctsd"],
        "astrocytes": ["Atp1b2", "Cspg5", "Ntrk2", "Enho", "Slc1a4"],
    },
    "hematopoiesis_paul15": {
        "erythroid": ["Hba-a2", "Car1", "Car2", "Gypa"],
        "neutrophils": ["Mpo", "Elane", "Prtn3"],
        "monocytes": ["Irf8", "Csf1r", "Ly86"],
        "megakaryocytes": ["Pf4", "Itga2b"],
        "basophils": ["Prss34", "Mcpt8"],
    },
}


@pytest.mark.parametrize(("name", "batch_key"), [("cortex", None), ("hematopoiesis_paul15", "batch")])
def test_gene_programs_hold_published_markers(real, name, batch_key):
    """At least two markers of each cell type are among the 20 largest loadings of one side of a program."""
    adata = real(name)
    model = trained(adata, 10, batch_key=batch_key)
    sccvae.tl.gene_programs(adata, model)
    found = {kind: max(len(side & set(genes)) for side in sides(adata)) for kind, genes in MARKERS[name].items()}
    assert min(found.values()) >= 2, found
    assert (adata.uns["gene_programs"]["programs"]["stability"][:3] > 0.9).all()


def test_pbmc_3tech(real):
    adata = real("pbmc_3tech")
    model = trained(adata, 25, batch_key="batch")
    near, near_pca = neighbours(check(model, adata)), neighbours(principal_components(adata))
    assert accuracy(near, adata.obs["cell_type"]) > 0.85
    assert mixing(near, adata.obs["batch"]) > 1.2 * mixing(near_pca, adata.obs["batch"])
    assert set(model.batches) == set(adata.obs["batch"])
    # Two of its cells are nine tenths immunoglobulins; without a bound they were given a third of their counts.
    ratio = model.get_latent_library_size() / np.asarray(adata.X.sum(1)).ravel()
    assert (ratio > 0.8).all()
    assert (ratio < 1.25).all()


def test_hematopoiesis_paul15(real):
    adata = real("hematopoiesis_paul15")
    near = neighbours(check(trained(adata, 6, batch_key="batch"), adata))
    by_chance = adata.obs["cell_type"].value_counts(normalize=True).max()
    assert accuracy(near, adata.obs["cell_type"]) > by_chance + 0.25


def test_hematopoiesis_spring(real):
    adata = real("hematopoiesis_spring")
    totals = np.asarray(adata.X.sum(0)).ravel()
    mask = np.zeros(adata.n_vars, dtype=bool)
    mask[np.argsort(totals)[-2000:]] = True
    model = trained(adata, 1, batch_key="batch", mask_var=mask)
    assert list(model.gene_names) == list(adata.var_names[mask])
    z = model.get_latent_representation()
    assert z.shape == (4790, 20)
    assert np.isfinite(z).all()
    assert np.isfinite(model.get_elbo())


def test_the_whole_way_from_file_to_clusters(real):
    adata = real("pbmc_3tech")
    sccvae.tl.integrate(adata, batch_key="batch", train_options={"max_epochs": 15, "progress_bar": False})
    sc.pp.neighbors(adata, use_rep="X_sccvae")
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False)
    clusters = adata.obs.groupby("leiden", observed=True)["cell_type"]
    purity = clusters.agg(lambda kinds: kinds.value_counts().iloc[0]).sum() / adata.n_obs
    assert 4 <= adata.obs["leiden"].nunique() <= 30
    assert purity > 0.8
