"""Simulated data: moments agree with the truth kept beside the counts; blocks, seeds and the user's random state."""

from __future__ import annotations

import random

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from sccvae.metrics.embedding import batch_entropy, knn_accuracy
from sccvae.simulate import simulate


@pytest.fixture(scope="module")
def adata():
    return simulate(3000, 300, seed=1)


@pytest.fixture(scope="module")
def mean(adata):
    """Mean of the negative binomial part: (cells, genes)."""
    return adata.layers["rho"].astype(float) * adata.obs["library"].to_numpy()[:, None]


def test_form(adata):
    assert adata.shape == (3000, 300)
    assert sp.issparse(adata.X)
    assert adata.X.format == "csr"
    assert adata.X.dtype == np.float32
    assert adata.X.has_sorted_indices
    assert np.all(adata.X.data == np.rint(adata.X.data))
    assert adata.X.data.min() >= 1
    assert adata.X.sum(1).min() >= 1
    assert list(adata.obs["batch"].cat.categories) == ["batch_0", "batch_1", "batch_2"]
    assert len(adata.obs["cell_type"].cat.categories) == 6
    assert adata.obs["gradient"].between(0, 1).all()
    assert {name: layer.dtype for name, layer in adata.layers.items() if name is not None} == dict.fromkeys(
        ("rho", "rho_corrected", "dropout"), np.float32
    )


def test_truth_is_normalised(adata):
    for name in ("rho", "rho_corrected"):
        np.testing.assert_allclose(adata.layers[name].sum(1), 1, rtol=1e-5)
        assert adata.layers[name].min() >= 0
    assert abs(adata.layers["dropout"].mean() - 0.1) < 0.01
    z = adata.obsm["z"]
    assert np.abs(z.mean(0)).max() < 0.15
    assert abs(z.var(0).mean() - 1) < 0.1


def test_means_agree_with_truth(adata, mean):
    keep, theta = 1 - adata.layers["dropout"].astype(float), adata.var["theta"].to_numpy()
    expected = keep * mean
    variance = keep * (mean + mean**2 * (1 + 1 / theta)) - expected**2
    scores = (np.asarray(adata.X.sum(0)).ravel() - expected.sum(0)) / np.sqrt(variance.sum(0))
    assert np.abs(scores).max() < 5
    assert abs(scores.mean()) < 4 / np.sqrt(len(scores))
    assert abs((scores**2).mean() - 1) < 0.4
    # Second moments, which tell theta: the sum over all entries, weighted so that no gene decides alone.
    squares = (adata.X.toarray() - expected) ** 2 / variance
    assert abs(squares.mean() - 1) < 0.05


def test_zeros_agree_with_truth(adata, mean):
    dropout, theta = adata.layers["dropout"].astype(float), adata.var["theta"].to_numpy()
    zero = dropout + (1 - dropout) * (theta / (theta + mean)) ** theta
    observed = adata.n_obs * adata.n_vars - adata.X.nnz
    assert abs(observed - zero.sum()) < 5 * np.sqrt((zero * (1 - zero)).sum())
    by_gene = (adata.n_obs - adata.X.getnnz(0) - zero.sum(0)) / np.sqrt((zero * (1 - zero)).sum(0) + 1e-3)
    assert np.abs(by_gene).max() < 5


def test_library_agrees_with_parameters(adata):
    parameters, log_library = adata.uns["simulate"], np.log(adata.obs["library"])
    for b, batch in enumerate(adata.obs["batch"].cat.categories):
        own = log_library[adata.obs["batch"] == batch]
        sd = parameters["log_library_sd"][b]
        assert abs(own.mean() - parameters["log_library_mean"][b]) < 4 * sd / np.sqrt(len(own))
        assert abs(own.std() / sd - 1) < 4 / np.sqrt(2 * len(own))
    assert abs(np.exp(parameters["log_library_mean"] + parameters["log_library_sd"] ** 2 / 2).mean() - 300) < 1e-6


@pytest.mark.parametrize("n_genes", [1000, 2000])
def test_zeros_by_default(n_genes):
    counts = simulate(500, n_genes, keep_truth=False).X
    assert 0.85 < 1 - counts.nnz / np.prod(counts.shape) < 0.95


def test_gene_means_are_heavy_tailed(adata):
    means = adata.layers["rho"].mean(0)
    assert means.mean() > 2 * np.median(means)


def test_types_lie_along_a_tree(adata):
    tree = adata.uns["simulate"]
    for child, parent in enumerate(tree["tree_parent"]):
        if parent >= 0:
            np.testing.assert_allclose(tree["tree_start"][child], tree["tree_end"][parent])
    assert 0.7 < knn_accuracy(adata.obsm["z"], adata.obs["cell_type"]) < 0.95  # neighbours blend into one another
    assert batch_entropy(adata.obsm["z"], adata.obs["batch"]) > 0.96
    root = adata.obs["gradient"].to_numpy() < 0.2
    assert set(adata.obs["cell_type"][root]) == {"type_0"}


def test_batches_move_expression(adata):
    assert np.abs(np.log(adata.layers["rho"] / adata.layers["rho_corrected"])).mean() > 0.2
    np.testing.assert_allclose(adata.varm["batch_effect"].std(), 0.5, rtol=0.1)


@pytest.mark.parametrize("options", [{"batch_strength": 0.0}, {"n_batches": 1}])
def test_no_batch_effect(options):
    adata = simulate(300, 50, **options)
    np.testing.assert_allclose(adata.layers["rho"], adata.layers["rho_corrected"], rtol=1e-4)
    assert not adata.varm["batch_effect"].any()


def test_no_dropout():
    assert not simulate(300, 50, dropout=0).layers["dropout"].any()


def test_empty_cells_get_a_molecule():
    totals = np.asarray(simulate(500, 50, mean_library=0.5).X.sum(1)).ravel()
    assert totals.min() == 1
    assert (totals == 1).mean() > 0.5


def test_more_types_than_dimensions():
    adata = simulate(300, 50, n_types=9, n_latent=2)
    assert adata.obsm["z"].shape == (300, 2)


def test_same_seed_same_data():
    first, again, other = (simulate(300, 50, seed=seed) for seed in (3, 3, 4))
    assert (first.X != again.X).nnz == 0
    assert first.obs.equals(again.obs)
    assert (first.X != other.X).nnz > 0
    assert not np.array_equal(first.var["theta"], other.var["theta"])


def test_cells_do_not_depend_on_those_that_follow():
    small, large = simulate(300, 50), simulate(700, 50)
    assert (large.X[:300] != small.X).nnz == 0
    assert small.var.equals(large.var)
    np.testing.assert_array_equal(small.obsm["z"], large.obsm["z"][:300])
    np.testing.assert_array_equal(small.layers["rho_corrected"], large.layers["rho_corrected"][:300])
    assert small.obs.equals(large.obs.iloc[:300])


def test_blocks_differ():
    z = simulate(600, 50).obsm["z"]
    assert len(np.unique(z, axis=0)) == 600


def test_truth_can_be_left_out():
    slim, full = simulate(300, 50, keep_truth=False), simulate(300, 50)
    assert not [name for name in slim.layers if name is not None]
    assert (slim.X != full.X).nnz == 0


def test_random_state_is_left_alone():
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    simulate(100, 20)
    assert python_state == random.getstate()
    assert all(np.array_equal(a, b) for a, b in zip(numpy_state, np.random.get_state(), strict=True))  # noqa: NPY002


def test_round_trip(tmp_path):
    adata = simulate(100, 20)
    adata.write_h5ad(tmp_path / "simulated.h5ad")
    again = ad.read_h5ad(tmp_path / "simulated.h5ad")
    assert (again.X != adata.X).nnz == 0
    assert again.uns["simulate"]["n_cells"] == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_cells": 0}, "^n_cells is 0; expected at least 1"),
        ({"n_genes": 1}, "^n_genes is 1; expected at least 2"),
        ({"n_types": 2.5}, "^n_types is 2.5; expected a whole number"),
        ({"seed": -1}, "^seed is -1; expected 0 or more"),
        ({"dropout": 1.0}, r"^dropout is 1.0; expected a probability in \[0, 1\)"),
        ({"batch_strength": -0.1}, "^batch_strength is -0.1; expected a number from 0 to 10"),
        ({"mean_library": 0}, "^mean_library is 0; expected molecules per cell"),
        ({"mean_library": float("nan")}, "^mean_library is nan; expected molecules per cell"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        simulate(**options)
