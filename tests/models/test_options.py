"""Every option of `SCCVAE` trains, and its outputs agree with the data."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import EVERY_OPTION


@pytest.mark.parametrize("name", EVERY_OPTION)
def test_every_option_trains_and_answers(layered, fit, name):
    options = EVERY_OPTION[name]
    model = fit(layered, 1, **options)
    n_genes = 30 if name == "mask" else 60
    z, variance = model.get_latent_representation(return_variance=True)
    assert z.shape == variance.shape == (120, 4)
    assert np.isfinite(z).all()
    assert (variance > 0).all()
    rho = model.get_normalized_expression(layered, transform_batch="all", return_numpy=True)
    assert rho.shape == (120, n_genes)
    assert np.isfinite(rho).all()
    if model.likelihood.support == "counts":
        np.testing.assert_allclose(rho.sum(1), 1, rtol=1e-5)
    numbers = model.history.drop(columns="split")
    if "batch_penalty" in numbers:  # of training alone
        assert numbers.pop("batch_penalty").notna().tolist() == [True, False]
    assert np.isfinite(numbers.to_numpy(dtype=float)).all()
    assert model.get_marginal_ll(n_samples=20) > model.get_elbo()
    assert model.generate(7).shape == (7, n_genes)
    assert model.posterior_predictive_sample(indices=[1, 2, 3]).shape == (3, n_genes)


@pytest.mark.parametrize("name", EVERY_OPTION)
def test_training_raises_the_elbo(layered, fit, name):
    model = fit(layered, 15, **EVERY_OPTION[name])
    elbo = model.history.query("split == 'training'")["elbo"]
    assert elbo.iloc[-1] > elbo.iloc[0]


@pytest.mark.parametrize(
    ("name", "keys", "constant"),
    [
        ("batch", {"mean", "dispersions", "dropout"}, True),
        ("gene_batch", {"mean", "dispersions", "dropout"}, False),
        ("gene_cell", {"mean", "dispersions", "dropout"}, False),
        ("nb", {"mean", "dispersions"}, True),
        ("poisson", {"mean"}, None),
        ("normal", {"mean", "scale"}, True),
        ("normal_gene_cell", {"mean", "scale"}, False),
        ("bernoulli", {"mean"}, None),
    ],
)
def test_likelihood_parameters(layered, fit, name, keys, constant):
    model = fit(layered, 2, **EVERY_OPTION[name])
    parameters = model.get_likelihood_parameters()
    assert set(parameters) == keys
    for key, values in parameters.items():
        assert values.shape == (120, 60)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert key == "mean" or (values > 0).all()
    if constant is not None:
        (spread,) = keys & {"dispersions", "scale"}
        assert (np.ptp(parameters[spread], axis=0) == 0).all() == constant
    if "dropout" in keys:
        assert parameters["dropout"].max() < 1
    if name == "gene_batch":
        for batch in "abc":
            assert (np.ptp(parameters["dispersions"][layered.obs["batch"] == batch], axis=0) == 0).all()
    if model.likelihood.has_library:
        expected = model.get_normalized_expression(library_size="latent", return_numpy=True)
        np.testing.assert_allclose(parameters["mean"], expected, rtol=1e-4)
    if name == "bernoulli":
        assert (parameters["mean"] > 0).all()
        assert (parameters["mean"] < 1).all()


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_expected_counts_agree_with_the_counts(adata, fit, likelihood):
    model = fit(adata, 60, batch_key="batch", gene_likelihood=likelihood)
    parameters = model.get_likelihood_parameters()
    expected = (parameters["mean"] * (1 - parameters.get("dropout", 0))).mean(0)
    observed = np.asarray(adata.X.mean(0)).ravel()
    common = observed > 0.3
    assert common.sum() > 20
    assert np.corrcoef(np.log(expected[common]), np.log(observed[common]))[0, 1] > 0.95
    assert abs(expected.sum() / observed.sum() - 1) < 0.06


def test_expected_zeros_and_ones_agree_with_the_data(layered, fit):
    model = fit(layered, 150, batch_key="batch", gene_likelihood="bernoulli", layer="binary")
    observed = np.asarray(layered.layers["binary"].mean(0)).ravel()
    np.testing.assert_allclose(model.get_likelihood_parameters()["mean"].mean(0), observed, atol=0.08)


def test_expected_real_values_agree_with_the_data(layered, fit):
    model = fit(layered, 60, batch_key="batch", gene_likelihood="normal", layer="lognorm")
    observed = np.asarray(layered.layers["lognorm"].mean(0)).ravel()
    np.testing.assert_allclose(model.get_normalized_expression().mean(0), observed, atol=0.25)
