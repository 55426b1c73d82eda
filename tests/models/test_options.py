"""Every option of `SCCVAE` trains, and its outputs agree with the data."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

EVERY_OPTION = {
    "batch": {"batch_key": "batch"},
    "nb": {"batch_key": "batch", "gene_likelihood": "nb"},
    "poisson": {"batch_key": "batch", "gene_likelihood": "poisson"},
    "normal": {"batch_key": "batch", "gene_likelihood": "normal", "layer": "lognorm"},
    "bernoulli": {"batch_key": "batch", "gene_likelihood": "bernoulli", "layer": "binary"},
    "size_factors": {"batch_key": "batch", "size_factor_key": "size_factor"},
    "categorical": {"batch_key": "batch", "categorical_covariate_keys": ["donor", "kind"]},
    "continuous": {"batch_key": "batch", "continuous_covariate_keys": ["age"]},
    "covariates_without_batch": {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]},
    "encoder_not_told": {"batch_key": "batch", "continuous_covariate_keys": ["age"], "encode_covariates": False},
    "observed": {"batch_key": "batch", "library": "observed"},
    "gene_batch": {"batch_key": "batch", "dispersion": "gene-batch"},
    "gene_cell": {"batch_key": "batch", "dispersion": "gene-cell"},
    "nb_gene_batch": {"batch_key": "batch", "gene_likelihood": "nb", "dispersion": "gene-batch"},
    "normal_gene_cell": {"gene_likelihood": "normal", "layer": "lognorm", "dispersion": "gene-cell"},
    "normal_gene_batch": {"batch_key": "batch", "gene_likelihood": "normal", "dispersion": "gene-batch"},
    "two_layers": {"batch_key": "batch", "n_layers": 2, "encode_covariates": True},
    "standard_normal_prior": {"batch_key": "batch", "prior_components": 0},
    "batches_left_alone": {"batch_key": "batch", "batch_mixing": 0.0},
    "free_weights": {"batch_key": "batch", "weight_precision": 0.0},
    "no_dropout": {"dropout_rate": 0.0, "dropout_cost": 0.0},
    "thinned": {"batch_key": "batch", "thinning": 0.5},
    "mask": {"batch_key": "batch", "mask_var": "highly_variable"},
    "no_batch": {},
}


@pytest.fixture
def layered(adata):
    """`adata` with log-normalised values in layer `lognorm` and 0/1 values in layer `binary`."""
    adata.layers["binary"] = (adata.X > 0).astype(np.float32)
    adata.layers["lognorm"] = sp.csr_matrix(np.log1p(adata.X.toarray() / np.asarray(adata.X.sum(1)) * 100))
    return adata


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
