"""Correlation of genes, and posterior predictive samples of some genes in one batch, against brute force."""

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import SIGMAS, few_steps, small_counts, small_vae
from scipy.stats import spearmanr

from sccvae.inference import correlation
from sccvae.inference.correlation import correlated, denoised
from sccvae.inference.posterior import Request, decode


def trained(**choices):
    counts = small_counts(40, n_batches=2)
    vae = small_vae(counts, **choices)
    few_steps(vae, counts, 20)
    vae.eval()
    return vae, counts


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
@pytest.mark.parametrize("n", [7, 40_000])
def test_correlations_are_those_of_scipy_and_numpy(kind, n):
    rng = np.random.default_rng(0)
    samples = np.exp(rng.standard_normal((5, 5)) @ rng.standard_normal((5, n))).astype(np.float32)
    samples[0, : n // 2] = 0  # ties
    expected = spearmanr(samples.T)[0] if kind == "spearman" else np.corrcoef(samples.astype(np.float64))
    np.testing.assert_allclose(correlated(samples, kind), expected, atol=1e-6)


def test_genes_that_do_not_vary_have_no_correlation():
    samples = np.array([[1, 2, 3], [4, 4, 4], [3, 2, 1]], dtype=np.float32)
    expected = [[1, np.nan, -1], [np.nan] * 3, [-1, np.nan, 1]]
    np.testing.assert_allclose(correlated(samples, "spearman"), expected)


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
def test_denoised_samples_are_gamma_with_the_mean_of_the_expression(dispersion):
    """Mean and second moment over many samples of z, against the rates and dispersions at other samples of z."""
    vae, counts = trained(dispersion=dispersion)
    some, genes, n = counts[np.arange(3)], np.array([5, 2]), 4000
    found = denoised(vae, some, genes, 1, 1000.0, n_samples=n, seed=0).reshape(2, -1, 3).astype(np.float64)
    rate, second = [], []
    for draw in decode(vae, some, Request((1,), n, 99)):
        m = 1000 * draw.decoded.logits.double().softmax(1)[:, genes].numpy()
        theta = draw.decoded.log_dispersion.detach().double().exp().numpy()
        theta = np.broadcast_to(theta, draw.decoded.logits.shape)
        rate.append(m.T)
        second.append((m**2 * (1 + 1 / theta[:, genes])).T)
    for power, expected in ((1, np.array(rate)), (2, np.array(second))):
        values = found**power
        error = np.sqrt(values.var(1) / n + expected.var(0) / n)
        np.testing.assert_array_less(np.abs(values.mean(1) - expected.mean(0)), SIGMAS * error)


def test_poisson_has_no_noise_but_that_of_z():
    vae, counts = trained(gene_likelihood="poisson")
    found = denoised(vae, counts, np.array([3]), None, 10.0, n_samples=1, seed=4)
    seed = int(np.random.default_rng(4).integers(2**62))
    expected = [10 * d.decoded.logits.softmax(1)[:, 3].numpy() for d in decode(vae, counts, Request((None,), 1, seed))]
    np.testing.assert_allclose(found[0], np.concatenate(expected), rtol=1e-5)


def test_the_table_is_averaged_over_batches_and_has_the_genes_asked_for(model):
    options = {"n_samples": 3, "seed": 1, "gene_list": ["gene7", "gene3", "gene9"]}
    tables = {b: model.get_feature_correlation_matrix(transform_batch=b, **options) for b in ("a", "b", None)}
    both = model.get_feature_correlation_matrix(transform_batch=["a", "b"], **options)
    np.testing.assert_allclose(both, (tables["a"] + tables["b"]) / 2)
    assert both.index.tolist() == both.columns.tolist() == options["gene_list"]
    np.testing.assert_array_equal(np.diag(both), 1)
    np.testing.assert_array_equal(both, both.T)
    assert np.abs(tables["a"] - tables[None]).to_numpy().max() > 1e-4
    whole = model.get_feature_correlation_matrix(n_samples=3, correlation_type="pearson")
    assert whole.shape == (60, 60)
    assert whole.abs().to_numpy().max() <= 1


def test_the_table_does_not_depend_on_the_size_factor_or_on_scvi_tools_batch_size(model):
    expected = model.get_feature_correlation_matrix(n_samples=2)
    theirs = model.get_feature_correlation_matrix(
        None, None, 2, batch_size=7, rna_size_factor=10, transform_batch=None, correlation_type="spearman", silent=True
    )
    np.testing.assert_allclose(theirs, expected, atol=1e-6)
    assert not np.allclose(model.get_feature_correlation_matrix(n_samples=2, seed=1), expected, atol=1e-3)


def test_what_cannot_be_correlated_is_refused(model, layered, fit, monkeypatch):
    with pytest.raises(ValueError, match=r"^correlation_type is 'kendall'; expected one of 'spearman', 'pearson'\.$"):
        model.get_feature_correlation_matrix(correlation_type="kendall")
    with pytest.raises(ValueError, match="needs a count likelihood; found gene_likelihood='normal'"):
        fit(layered, gene_likelihood="normal", layer="lognorm").get_feature_correlation_matrix()
    monkeypatch.setattr(correlation, "MOST_BYTES", 200_000)
    text = r"^n_samples=10 of 60 genes in 120 cells would take 0\.0 GiB; expected at most 0: take fewer samples, name"
    with pytest.raises(ValueError, match=text):
        model.get_feature_correlation_matrix()
    assert model.get_feature_correlation_matrix(gene_list=["gene3", "gene4"]).shape == (2, 2)


def test_posterior_predictive_samples_in_one_batch(adata, model):
    cells = adata.obs["batch"] == "a"
    samples = [model.posterior_predictive_sample(indices=cells, transform_batch=b).toarray() for b in (None, "a", "b")]
    np.testing.assert_array_equal(*samples[:2])
    assert (samples[1] != samples[2]).mean() > 0.1
    many = model.posterior_predictive_sample(transform_batch="a", n_samples=200)
    rho = model.get_normalized_expression(transform_batch="a", n_samples=50, library_size="latent", return_numpy=True)
    dropout = model.get_likelihood_parameters()["dropout"]
    assert np.corrcoef(many.mean((0, 1)), (rho * (1 - dropout)).mean(0))[0, 1] > 0.99
    for names in (["a", "b"], "all"):
        with pytest.raises(
            ValueError, match=r"^transform_batch stands for [23] batches; expected the name of one, bec"
        ):
            model.posterior_predictive_sample(transform_batch=names)
    with pytest.raises(ValueError, match="'x'"):
        model.posterior_predictive_sample(transform_batch="x")


def test_posterior_predictive_samples_of_some_genes_are_columns_of_all(model):
    genes = ["gene9", "gene3"]
    at = model.gene_names.get_indexer(genes)
    some = model.posterior_predictive_sample(gene_list=genes)
    assert sp.issparse(some)
    assert some.format == "csr"
    np.testing.assert_array_equal(some.toarray(), model.posterior_predictive_sample().toarray()[:, at])
    several = model.posterior_predictive_sample(gene_list=genes, n_samples=2, batch_size=64)
    np.testing.assert_array_equal(several, model.posterior_predictive_sample(n_samples=2)[:, :, at])
