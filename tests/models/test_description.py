"""How a model describes itself."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import sccvae

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


def test_repr_is_short_and_says_what_the_model_is(adata, model):
    text = repr(model)
    assert text.startswith("SCCVAE on 120 cells, 60 genes, 3 batches ('batch')\n")
    assert "zinb likelihood" in text
    assert "trained for 5 epochs" in text
    assert "not trained: call train()" in repr(sccvae.SCCVAE(adata))
    assert "1 batch\n" in repr(sccvae.SCCVAE(adata))


@pytest.mark.parametrize("name", EVERY_OPTION)
def test_repr_fits_on_a_terminal(layered, fit, name):
    layered.obs["batch_of_the_experiment_with_a_long_name"] = layered.obs["batch"]
    options = dict(EVERY_OPTION[name])
    if "batch_key" in options:
        options["batch_key"] = "batch_of_the_experiment_with_a_long_name"
    lines = repr(fit(layered, **options)).splitlines()
    assert len(lines) <= 8
    assert max(map(len, lines)) <= 100


def test_names_and_description(adata, model):
    assert list(model.gene_names) == list(adata.var_names)
    assert model.batches == ("a", "b", "c")
    assert model.device.type in {"cpu", "cuda"}
    description = model.describe()
    assert set(description) == {"parameters", "history", "versions"}
    assert description["parameters"]["n_latent"] == 4
    assert description["parameters"]["batch_key"] == "batch"
    assert description["versions"]["sccvae"] == sccvae.__version__
    pd.testing.assert_frame_equal(description["history"], model.history)
