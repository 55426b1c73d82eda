"""Diagnostics: what is wrong with a model is found and said, and nothing is where nothing is."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import sccvae
from sccvae.inference import posterior
from sccvae.simulate import simulate
from sccvae.statistics import diagnostics

SMALL = {"n_hidden": 32, "n_latent": 6}


def cells(**options) -> ad.AnnData:
    return simulate(500, 80, n_types=4, seed=1, keep_truth=False, **options)


def trained(adata, epochs=60, **options) -> sccvae.SCCVAE:
    model = sccvae.SCCVAE(adata, **{**SMALL, **options})
    model.train(epochs, progress_bar=False)
    return model


@pytest.fixture(scope="module")
def good() -> tuple[sccvae.SCCVAE, ad.AnnData]:
    """A model of the right kind, trained to the end; in cell number 300, counts and genes were shuffled."""
    adata = cells(mean_library=600)
    x = adata.X.toarray()
    x[300] = np.random.default_rng(0).permutation(x[300])
    adata.X = sp.csr_matrix(x)
    return trained(adata, 100, batch_key="batch"), adata


@pytest.fixture(scope="module")
def found(good) -> diagnostics.Diagnosis:
    return good[0].diagnose()


def test_a_good_model_passes(found):
    assert found.ok, str(found)
    assert found.warnings == []
    assert set(found.table.index) == set(diagnostics.EXPECTED)
    assert list(found.table.columns) == ["value", "expected", "ok", "sentence"]
    assert found.table.loc["zeros_inside", "value"] >= 0.9
    assert "training has converged" in found.table.loc["late_gain", "sentence"]
    assert "All 3 batches are mixed" in found.table.loc["batches_apart", "sentence"]


def test_arrays_of_a_diagnosis(good, found):
    model, adata = good
    mean, variance = model.get_latent_representation(return_variance=True)
    np.testing.assert_allclose(found.units["variance"], mean.var(0), rtol=1e-4)
    np.testing.assert_allclose(found.units["kl"], 0.5 * (mean**2 + variance - 1 - np.log(variance)).mean(0), rtol=1e-3)
    x = adata.X.toarray()
    np.testing.assert_allclose(found.genes["zeros"], (x == 0).mean(0), atol=1e-6)
    assert (found.genes["zeros_low"] <= found.genes["zeros_high"]).all()
    np.testing.assert_allclose(found.cells["log_size"], np.log(x.sum(1)), rtol=1e-5)
    np.testing.assert_allclose(found.cells["log_likelihood"], -model.get_reconstruction_error(return_mean=False))
    assert found.ranks.sum() == pytest.approx(1)
    pd.testing.assert_frame_equal(found.history, model.history)


def test_an_outlying_cell_is_named(found):
    assert found.cells["deviation"].idxmax() == "cell_300"
    assert found.cells.loc["cell_300", "unexplained"]
    assert "'cell_300'" in found.table.loc["unexplained_cells", "sentence"]
    assert found.cells["unexplained"].sum() <= 3


def test_texts(found):
    assert str(found).startswith("                 ")
    assert repr(found) == str(found)
    for sentence in found.sentences:
        assert f"- {sentence}" in str(found)
        assert sentence.endswith(".")
    html = found._repr_html_()
    assert html.count("<tr>") == len(found.table) + 1
    assert "&#x27;cell_300&#x27;" in html


def test_deterministic_and_nothing_written(good, found, fingerprint):
    model, adata = good
    before = fingerprint(adata)
    again = model.diagnose()
    pd.testing.assert_frame_equal(again.table, found.table)
    np.testing.assert_array_equal(again.ranks, found.ranks)
    assert fingerprint(adata) == before


def test_new_data_and_a_sample_of_cells(good):
    model, adata = good
    new = adata[:120, ::-1].copy()
    found = model.diagnose(new)
    assert list(found.cells.index) == list(new.obs_names)
    some = model.diagnose(max_cells=100)
    assert len(some.cells) == 100
    assert set(some.cells.index) <= set(adata.obs_names)
    assert some.batches["cells"].sum() == 100


def test_poisson_of_overdispersed_counts_fails_and_says_so():
    found = trained(cells(), batch_key="batch", gene_likelihood="poisson").diagnose()
    assert not found.table.loc[["zeros_inside", "variance_ratio"], "ok"].any()
    assert found.table.loc["zeros_inside", "value"] < 0.6
    assert "more zeros than the model expects" in found.table.loc["zeros_inside", "sentence"]
    assert "'nb' or 'zinb'" in found.table.loc["zeros_inside", "sentence"]
    assert "varies too little" in found.table.loc["variance_ratio", "sentence"]


@pytest.mark.parametrize("options", [{}, {"train_size": 1.0}])
def test_one_epoch_is_too_short(options):
    model = sccvae.SCCVAE(cells(), batch_key="batch", **SMALL)
    model.train(2 if options else 1, progress_bar=False, **options)
    found = model.diagnose()
    assert not found.table.loc["late_gain", "ok"]
    assert any("train longer" in sentence for sentence in found.warnings)
    assert ("training ELBO" if options else "held-out ELBO") in found.table.loc["late_gain", "sentence"]
    assert ("held_out_gap" in found.table.index) is not bool(options)


def test_collapse_is_noticed():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.dirichlet(np.ones(40)) * rng.lognormal(5, 0.3, (400, 1)))  # cells differ by chance alone
    found = trained(ad.AnnData(sp.csr_matrix(counts.astype(np.float32))), 100).diagnose()
    assert found.table.loc["active_units", "value"] == 0
    assert "The posterior has collapsed: 0 of 6" in found.warnings[0]
    assert "batches_apart" not in found.table.index


def test_batches_that_stay_apart_are_named():
    model = trained(cells(batch_strength=1.5))
    assert "batches_apart" not in model.diagnose().table.index
    found = model.diagnose(batch_key="batch")
    assert not found.table.loc["batches_apart", "ok"]
    assert found.table.loc["batches_apart", "value"] == 3
    sentence = found.table.loc["batches_apart", "sentence"]
    assert all(name in sentence for name in ("'batch_0'", "'batch_1'", "'batch_2'"))
    assert "pass their column as batch_key" in sentence


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli"])
def test_other_data_have_no_predictive_checks(likelihood):
    adata = cells()
    adata.X = adata.X.log1p() if likelihood == "normal" else (adata.X > 0).astype(np.float32)
    found = trained(adata, 5, batch_key="batch", gene_likelihood=likelihood).diagnose()
    assert found.genes is None
    assert found.ranks is None
    assert "zeros_inside" not in found.table.index
    assert np.isfinite(found.cells["deviation"]).all()


def test_errors(good):
    model, adata = good
    with pytest.raises(RuntimeError, match="The model is not trained yet"):
        sccvae.SCCVAE(adata, **SMALL).diagnose()
    with pytest.raises(KeyError, match=r"no column 'bach'\. Did you mean 'batch'"):
        model.diagnose(batch_key="bach")
    with pytest.raises(ValueError, match="n_samples is 0; expected at least 1"):
        model.diagnose(n_samples=0)
    with pytest.raises(ValueError, match=r"diagnose\(\) found 5 cells; expected at least 10"):
        model.diagnose(adata[:5].copy())


# ---------------------------------------------------------------------------------------------------------- the parts


def test_latent_units_in_closed_form():
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((4000, 3)) * [1.0, 0.05, 0.2]
    units = diagnostics.latent_units(mean, np.tile([0.5, 1.0, 2.0], (4000, 1)))
    assert units["active"].tolist() == [True, False, True]
    np.testing.assert_allclose(units["kl"], [0.5 * (0.5 - np.log(0.5)), 0.00125, 0.5 * (1.04 - np.log(2))], atol=0.02)


def test_the_divergence_told_is_that_from_the_models_own_prior(good, found):
    elbo_terms = -good[0].get_elbo() - good[0].get_reconstruction_error()
    told, from_standard = found.table.loc["kl_per_cell", "value"], found.units["kl"].sum()
    assert told < from_standard - 0.1  # a mixture lies nearer to the cells
    library = posterior.elbo_terms(good[0]._vae, good[0]._counts, seed=0)[2].mean()
    assert told + library == pytest.approx(elbo_terms, rel=1e-4)


def test_mixing_is_one_at_random_and_none_when_apart():
    rng = np.random.default_rng(0)
    batches = pd.Series(rng.choice(["a", "b", "c"], p=[0.7, 0.2, 0.1], size=2000))
    z = rng.standard_normal((2000, 4))
    np.testing.assert_allclose(diagnostics.batch_mixing(z, batches)["mixing"], 1, atol=0.05)
    apart = diagnostics.batch_mixing(z + 50 * (batches == "b").to_numpy()[:, None], batches)
    assert apart.loc["b", "mixing"] == 0
    assert apart.loc["b", "own"] == 1
    sentence = diagnostics.check_batches(apart, known=True)[0].sentence
    assert sentence.startswith("1 of 3 batches are separate in the embedding")
    assert "'b' (0%)" in sentence


def test_deviation_follows_the_library_size():
    rng = np.random.default_rng(0)
    log_size = rng.normal(8, 0.6, 3000)
    cost = np.exp(0.7 * log_size) * (1 + 0.05 * rng.standard_normal(3000))
    cost[[5, 17]] *= [1.5, 0.5]
    frame = diagnostics.unexplained_cells(-cost, log_size, pd.RangeIndex(3000))
    assert frame.index[frame["unexplained"]].tolist() == [5]
    assert frame["deviation"][17] < -5
    assert np.std(np.delete(frame["deviation"].to_numpy(), [5, 17])) == pytest.approx(1, abs=0.1)
    assert abs(np.corrcoef(frame["deviation"], log_size)[0, 1]) < 0.05


def test_running_median_against_the_definition():
    values = np.random.default_rng(0).random(50)
    expected = [np.median(values[max(0, min(i - 4, 41)) :][:9]) for i in range(50)]
    np.testing.assert_allclose(diagnostics._running_median(values, 9), expected)
    np.testing.assert_allclose(diagnostics._running_median(values[:5], 9), np.median(values[:5]))


def curve(validation, training=None):
    epochs = np.arange(1, len(validation) + 1)
    training = validation if training is None else training
    parts = [
        pd.DataFrame({"epoch": epochs, "split": s, "elbo": v})
        for s, v in (("training", training), ("validation", validation))
    ]
    return pd.concat(parts, ignore_index=True)


def test_training_judged_by_its_history():
    rising = {c.name: c for c in diagnostics.check_training(curve(np.linspace(-200, -100, 40)))}
    assert not rising["late_gain"].ok
    assert rising["late_gain"].value == pytest.approx(10 * (100 / 39) / 100)
    assert "the last 10 of 40 epochs" in rising["late_gain"].sentence
    flat = -100 - 50 * np.exp(-np.arange(40) / 3)
    assert all(check.ok for check in diagnostics.check_training(curve(flat)))
    by_heart = {c.name: c for c in diagnostics.check_training(curve(flat, flat + 30))}
    assert not by_heart["held_out_gap"].ok
    assert by_heart["held_out_gap"].value == pytest.approx(0.3, rel=1e-3)
    assert "is overfitted" in by_heart["held_out_gap"].sentence
    thinned = diagnostics.check_training(curve(flat, flat - 30), thinned=True)
    assert [check.name for check in thinned] == ["late_gain"]


def test_cells_that_were_seen_in_part_tell_nothing_of_what_was_learnt_by_heart():
    found = trained(cells(), batch_key="batch", thinning=0.5).diagnose()
    assert "late_gain" in found.table.index
    assert "held_out_gap" not in found.table.index
