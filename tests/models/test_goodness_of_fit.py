"""ELBO, marginal likelihood and the history of a run."""

from __future__ import annotations

import numpy as np
import pytest

import sccvae


def test_elbo_reconstruction_and_marginal_likelihood_agree(model):
    elbo, error = (f(return_mean=False) for f in (model.get_elbo, model.get_reconstruction_error))
    assert elbo.shape == error.shape == (120,)
    assert (-error > elbo).all()
    np.testing.assert_allclose([model.get_elbo(), model.get_reconstruction_error()], [elbo.mean(), error.mean()])
    averaged = np.mean([model.get_elbo(seed=seed) for seed in range(30)])
    one, few, many = (model.get_marginal_ll(n_samples=n) for n in (1, 10, 300))
    assert abs(one - averaged) < 1.5
    assert averaged < few < many
    assert model.get_marginal_ll(n_samples=5, return_mean=False).shape == (120,)


def test_expected_elbo_is_the_mean_of_one_sample_importance_weights(model):
    """log of a single importance weight is an unbiased estimate of the ELBO, so both means must agree."""
    elbo = np.mean([model.get_elbo(return_mean=False, seed=s) for s in range(200)], axis=0)
    weight = np.mean([model.get_marginal_ll(n_samples=1, return_mean=False, seed=s) for s in range(200)], axis=0)
    assert abs((elbo - weight).mean()) < 0.15


def test_history_is_tidy(model):
    history = model.history
    assert list(history.columns) == [
        "epoch", "split", "elbo", "reconstruction", "kl_z", "kl_l", "batch_penalty", "kl_weight", "learning_rate",
        "seconds",
    ]  # fmt: skip
    assert (history["batch_penalty"].notna() == (history["split"] == "training")).all()
    assert list(history["epoch"]) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert list(history["split"]) == ["training", "validation"] * 5
    np.testing.assert_allclose(history["elbo"], history["reconstruction"] - history["kl_z"] - history["kl_l"])
    assert (history[["kl_z", "kl_l", "seconds"]] >= 0).all().all()
    assert history["kl_weight"].between(0, 1).all()
    assert history["kl_weight"].iloc[-1] == 1
    history.loc[:, "elbo"] = 0.0
    assert (model.history["elbo"] != 0).all()


def test_without_validation_cells_history_has_training_rows_only(adata):
    model = sccvae.SCCVAE(adata, n_hidden=8)
    model.train(2, train_size=1.0, progress_bar=False)
    assert list(model.history["split"]) == ["training"] * 2


@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize("train_size", [1, 0.9])
def test_a_message_says_that_there_is_nothing_to_stop_by(adata, caplog, train_size, early_stopping):
    model = sccvae.SCCVAE(adata, n_hidden=8)
    model.train(3, train_size=train_size, early_stopping=early_stopping, patience=1, progress_bar=False)
    said = [record.getMessage() for record in caplog.records]
    expected = ["No cell is held out: early stopping is off, and the last epoch is kept."]
    assert said == (expected if train_size == 1 and early_stopping else [])
    assert train_size < 1 or model.history["epoch"].max() == 3
