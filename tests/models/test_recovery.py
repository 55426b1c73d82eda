"""Known truth is recovered: simulated cells, digits."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import logsumexp, softmax
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

import sccvae
from sccvae import simulate


@pytest.fixture(scope="module")
def recovered():
    """Simulated cells with their truth, and a model trained on their counts alone."""
    adata = simulate.simulate(1500, 200, n_types=4, mean_library=500, seed=3)
    model = sccvae.SCCVAE(adata, batch_key="batch", n_hidden=128, n_latent=10)
    model.train(40, progress_bar=False)
    return adata, model


@pytest.mark.parametrize(("batch", "layer"), [(None, "rho"), ("all", "rho_corrected")])
def test_normalised_expression_is_near_the_truth(recovered, batch, layer):
    adata, model = recovered
    truth = adata.layers[layer]
    found = model.get_normalized_expression(transform_batch=batch, return_numpy=True)
    shares = adata.X.toarray() / np.asarray(adata.X.sum(1))
    assert np.corrcoef(np.log(found + 1e-5).ravel(), np.log(truth + 1e-5).ravel())[0, 1] > 0.95
    assert np.abs(found - truth).mean() < 0.5 * np.abs(shares - truth).mean()


def neighbours(space: np.ndarray, obs: pd.DataFrame) -> tuple[float, float]:
    """Share of cells of the type that most of their 15 neighbours have; share of neighbours of the cell's own batch."""
    near = NearestNeighbors(n_neighbors=16).fit(space).kneighbors(space, return_distance=False)[:, 1:]
    types, batches = obs["cell_type"].cat.codes.to_numpy(), obs["batch"].cat.codes.to_numpy()
    votes = np.array([np.bincount(types[row]).argmax() for row in near])
    return (votes == types).mean(), (batches[near] == batches[:, None]).mean()


def test_cell_types_lie_apart_and_batches_together(recovered):
    adata, model = recovered
    found, same_batch = neighbours(model.get_latent_representation(), adata.obs)
    best, by_chance = neighbours(adata.obsm["z"], adata.obs)
    shares = adata.X.toarray() / np.asarray(adata.X.sum(1))
    _, uncorrected = neighbours(np.log1p(shares * 500), adata.obs)
    assert found > 0.9 * best
    assert uncorrected > by_chance + 0.1
    assert same_batch - by_chance < 0.4 * (uncorrected - by_chance)


@pytest.mark.slow
def test_dispersions_are_near_the_truth():
    """Of genes with enough counts to tell. What the embedding leaves unexplained counts as noise: a little too low."""
    adata = sccvae.simulate.simulate(1500, 120, mean_library=2000.0, dropout=0.05, n_types=4, seed=1)
    model = sccvae.SCCVAE(adata, batch_key="batch", n_hidden=64, n_latent=10)
    model.train(40, progress_bar=False)
    expressed = np.asarray(adata.X.mean(0)).ravel() > 1
    fitted = model.get_likelihood_parameters(indices=[0])["dispersions"][0, expressed]
    truth = adata.var["theta"].to_numpy()[expressed]
    assert expressed.sum() > 50
    assert stats.spearmanr(fitted, truth).statistic > 0.7
    assert 0.5 < np.median(fitted / truth) < 1.2


def mixture_of_bernoullis(train, test, k, rng) -> np.ndarray:
    """Log-likelihood of each row of `test` under k products of Bernoullis fitted to `train` by EM."""
    share = rng.dirichlet(np.ones(k), size=len(train))
    for _ in range(100):
        weight, ones = share.mean(0), (share.T @ train + 0.5) / (share.sum(0)[:, None] + 1)
        joint = train @ np.log(ones).T + (1 - train) @ np.log1p(-ones).T + np.log(weight)
        share = softmax(joint, axis=1)
    return logsumexp(test @ np.log(ones).T + (1 - test) @ np.log1p(-ones).T + np.log(weight), axis=1)


def test_the_bernoulli_model_explains_unseen_digits_better_than_a_mixture():
    pixels, _ = load_digits(return_X_y=True)
    binary = np.random.default_rng(0).permutation((pixels >= 8).astype(np.float32))
    train, test = binary[:1400], binary[1400:]
    rng = np.random.default_rng(1)
    independent = mixture_of_bernoullis(train, test, 1, rng).mean()
    ones = (train.sum(0) + 0.5) / (len(train) + 1)
    assert independent == pytest.approx((test * np.log(ones) + (1 - test) * np.log1p(-ones)).sum(1).mean(), abs=1e-4)
    mixture = max(mixture_of_bernoullis(train, test, 10, rng).mean() for _ in range(3))
    model = sccvae.SCCVAE(ad.AnnData(train), gene_likelihood="bernoulli", n_latent=10, n_hidden=128)
    model.train(60, batch_size=100, progress_bar=False)
    ours = model.get_marginal_ll(ad.AnnData(test), n_samples=100)
    assert model.get_elbo(ad.AnnData(test)) < ours  # a lower bound
    assert ours > mixture + 1 > independent + 4
