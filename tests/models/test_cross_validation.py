"""Molecular cross-validation: thinning, the loss against scipy, known truth wins, absurd settings lose, errors."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

import sccvae
from sccvae.models import cross_validation as cv

QUICK = {"n_hidden": 64, "n_latent": 8, "max_epochs": 60}


@pytest.fixture(scope="module")
def truth():
    """Expected counts (cells, genes) of 500 simulated cells of 8 types, and Poisson counts drawn from them."""
    adata = sccvae.simulate.simulate(500, 100, n_types=8, dropout=0, batch_strength=0.3, mean_library=1000, seed=1)
    rates = adata.obs["library"].to_numpy()[:, None] * adata.layers["rho"].astype(np.float64)
    adata.X = sp.csr_matrix(np.random.default_rng(0).poisson(rates).astype(np.float32))
    return adata, rates


def test_molecules_are_dealt_into_two_parts(truth):
    counts = truth[0].X
    kept, held = cv.thin(counts, 0.8, np.random.default_rng(0))
    assert (kept + held != counts).nnz == 0
    assert kept.data.min() > 0
    assert held.data.min() > 0
    n = float(counts.sum())
    assert kept.sum() == pytest.approx(0.8 * n, abs=4 * np.sqrt(0.16 * n))
    # Parts of Poisson counts are independent: around their means they do not correlate.
    residuals = [
        (part.toarray() - share * truth[1]) / np.sqrt(share * truth[1]) for part, share in ((kept, 0.8), (held, 0.2))
    ]
    assert np.mean(residuals[0] * residuals[1]) == pytest.approx(0, abs=4 / np.sqrt(residuals[0].size))


def test_poisson_loss_is_that_of_scipy():
    rng = np.random.default_rng(0)
    rates = rng.gamma(1, 2, (7, 5))
    counts = rng.poisson(rates)
    expected = -stats.poisson.logpmf(counts, rates).sum(1)
    np.testing.assert_allclose(cv.poisson_loss(rates, sp.csr_matrix(counts)), expected)
    assert np.isfinite(cv.poisson_loss(np.zeros((1, 2)), sp.csr_matrix([[1, 0]]))).all()


def test_held_out_loss_scales_to_the_depth_of_each_cell(monkeypatch):
    rng = np.random.default_rng(1)
    rates, counts = rng.gamma(1, 2, (50, 4)), rng.poisson(3, (50, 4))
    scaled = rates / rates.sum(1, keepdims=True) * counts.sum(1, keepdims=True)
    expected = -stats.poisson.logpmf(counts, scaled).sum(1).mean()
    asked = []

    def said(cells):
        asked.append(len(cells))
        return 17 * rates[cells]  # a factor does not matter

    assert cv.held_out_loss(sp.csr_matrix(counts), said) == pytest.approx(expected)
    monkeypatch.setattr(cv, "CHUNK", 4 * 16)
    assert cv.held_out_loss(sp.csr_matrix(counts), said) == pytest.approx(expected)
    assert asked == [50, 16, 16, 16, 2]


def test_expected_counts_leave_dropouts_out(model):
    said = model.get_likelihood_parameters(indices=[3, 5])
    expected = said["mean"] * (1 - said["dropout"])
    np.testing.assert_allclose(cv.expected_counts(model, np.array([3, 5])), expected)


def test_true_rates_have_the_lowest_loss(truth):
    """Of the truth, the truth with errors, the mean profile, and the noisy counts themselves."""
    adata, rates = truth
    first, held = cv.thin(adata.X, 0.8, np.random.default_rng(3))
    rng = np.random.default_rng(4)
    wrong = {
        "10 % off": rates * np.exp(rng.normal(0, 0.1, rates.shape)),
        "mean profile": np.repeat(rates.mean(0, keepdims=True), len(rates), axis=0),
        "counts": first.toarray() + 0.1,
        "no batch effect": rates.sum(1, keepdims=True) * adata.layers["rho_corrected"],
    }
    best = cv.held_out_loss(held, lambda cells: rates[cells])
    for name, guess in wrong.items():
        assert cv.held_out_loss(held, lambda cells, guess=guess: guess[cells]) > best, name
    # The loss of the truth is what it should be: that of Poisson draws.
    again = np.random.default_rng(5).poisson(0.2 * rates)
    assert best == pytest.approx(cv.held_out_loss(sp.csr_matrix(again), lambda cells: rates[cells]), rel=0.02)


@pytest.fixture(scope="module")
def table(truth):
    settings = {"one dimension": {"n_latent": 1}, "default": {}, "one epoch": {"max_epochs": 1}}
    return sccvae.cross_validate(truth[0], settings, batch_key="batch", options=QUICK, n_splits=2, progress_bar=False)


def test_absurd_settings_lose(truth, table):
    assert table.index.name == "setting"
    assert list(table.index[:2]) == ["default", "one dimension"]
    assert list(table.index[2:]) == ["mean profile", "one epoch"]
    assert table["best"].tolist() == [True, False, False, False]
    assert (table["excess"][1:] > 5 * table["excess_se"][1:]).all()
    # The best of them comes near the truth, from above.
    _, held = cv.thin(truth[0].X, 0.8, np.random.default_rng([0, 0]))
    best = cv.held_out_loss(held, lambda cells: truth[1][cells])
    gap = table.loc["mean profile", "split_1"] - best
    assert 0 < table.loc["default", "split_1"] - best < 0.5 * gap


def test_the_table_holds_means_and_standard_errors(table):
    losses = table[["split_1", "split_2"]].to_numpy()
    np.testing.assert_allclose(table["loss"], losses.mean(1))
    np.testing.assert_allclose(table["loss_se"], stats.sem(losses, axis=1))
    excess = losses - losses[0]
    np.testing.assert_allclose(table["excess"], excess.mean(1), atol=1e-12)
    np.testing.assert_allclose(table["excess_se"], stats.sem(excess, axis=1), atol=1e-12)
    assert table.loc["mean profile", "seconds"] == 0
    assert (table.loc[["default", "one epoch"], "seconds"] > 0).all()


def test_what_is_held_out_is_what_the_model_was_not_trained_on(truth):
    """By hand, with the public interface."""
    adata = truth[0]
    options = {"n_hidden": 16, "n_latent": 4, "library": "observed"}
    table = sccvae.cross_validate(adata, {"a": {"max_epochs": 2}}, options=options, n_splits=1, kept=0.7, seed=5)
    first, held = cv.thin(adata.X, 0.7, np.random.default_rng([5, 0]))
    model = sccvae.SCCVAE(ad.AnnData(first, var=adata.var), seed=5, **options)
    model.train(2, progress_bar=False)
    said = model.get_likelihood_parameters()
    mean = said["mean"] * (1 - said["dropout"])
    mean *= np.asarray(held.sum(1)) / mean.sum(1, keepdims=True)
    assert table.loc["a", "loss"] == pytest.approx(-stats.poisson.logpmf(held.toarray(), mean).sum(1).mean(), rel=1e-5)
    assert np.isnan(table.loc["a", "loss_se"])


def test_a_model_cross_validates_its_own_settings(adata, fingerprint):
    before = fingerprint(adata)
    choices = {"n_hidden": (16, 24), "n_latent": 3, "gene_likelihood": "nb", "categorical_covariate_keys": ["donor"]}
    model = sccvae.SCCVAE(
        adata, batch_key="batch", size_factor_key="size_factor", mask_var="highly_variable", **choices
    )
    model.train(1, progress_bar=False)
    latent = model.get_latent_representation()
    table = model.cross_validate({"wider": {"n_hidden": 20}}, options={"max_epochs": 2}, n_splits=2, seed=1)
    assert set(table.index) == {"this model", "wider", "mean profile"}
    np.testing.assert_array_equal(model.get_latent_representation(), latent)
    assert fingerprint(adata) == before
    same = {"this model": choices | {"size_factor_key": "size_factor"}}
    same["wider"] = same["this model"] | {"n_hidden": 20}
    whole = sccvae.cross_validate(
        adata, same, batch_key="batch", mask_var="highly_variable", options={"max_epochs": 2}, n_splits=2, seed=1
    )
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), whole.drop(columns="seconds"))


def test_layers_and_cells_that_lose_all_molecules(adata):
    adata.layers["counts"] = adata.X.copy()
    one = sp.lil_matrix(adata.X)
    one[7] = 0
    one[7, 3] = 1  # one molecule: in some split it is held out, and the cell with it
    adata.layers["counts"], adata.X = one.tocsr(), np.log1p(adata.X)
    splits = [cv.thin(adata.layers["counts"], 0.5, np.random.default_rng([0, i]))[0][7].sum() for i in range(6)]
    assert {0, 1} == set(splits)
    options = {"n_hidden": 8, "n_latent": 2, "max_epochs": 1}
    table = sccvae.cross_validate(adata, {"a": {}}, layer="counts", options=options, n_splits=6, kept=0.5)
    assert table.notna().all(axis=None)


def test_errors(adata, model, tmp_path):
    def says(text, settings, error=ValueError, **options):
        with pytest.raises(error, match=text):
            sccvae.cross_validate(adata, settings, **options)

    says("settings is empty", {})
    says("n_splits is 0; expected at least 1", {"a": {}}, n_splits=0)
    says(r"kept is 1; expected a fraction of the molecules in \(0, 1\)", {"a": {}}, kept=1)
    says("A setting is called 'mean profile'", {"mean profile": {}})
    says(
        "Setting 'b' names an unknown option 'n_laten'.*n_latent.*or of its train: .*max_epochs",
        {"a": {}, "b": {"n_laten": 3}},
    )
    says("Setting 'a' names 'layer', which is the same for all settings", {"a": {"layer": "counts"}})
    says("Setting 'a' names 'seed', which is the same for all settings", {"a": {"seed": 3}})
    says("Setting 'b': gene_likelihood='normal' is not of counts", {"a": {}, "b": {"gene_likelihood": "normal"}})
    says("adata.obs has no column 'bach'", {"a": {}}, KeyError, batch_key="bach")
    with pytest.raises(ValueError, match="A setting is called 'this model'"):
        model.cross_validate({"this model": {}})
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"loaded without data: load it as SCCVAE\.load"):
        sccvae.SCCVAE.load(tmp_path / "model").cross_validate()
