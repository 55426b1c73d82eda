"""Training runs of `SCCVAE`: length, arguments, interruption, small data."""

from __future__ import annotations

import logging
import math
import re

import numpy as np
import pytest

import sccvae
from sccvae import simulate
from sccvae.corruption import Thinning


def test_training_again_goes_on(adata, fit):
    model = fit(adata, 3, batch_key="batch")
    z = model.get_latent_representation()
    model.train(2, progress_bar=False)
    assert list(model.history.query("split == 'training'")["epoch"]) == [1, 2, 3, 4, 5]
    assert (model.history.query("epoch > 3")["kl_weight"] == 1).all()
    assert np.abs(model.get_latent_representation() - z).max() > 1e-4
    assert "trained for 5 epochs" in repr(model)


def test_early_stopping_ends_the_run_and_keeps_the_best_epoch(adata):
    model = sccvae.SCCVAE(adata, n_hidden=32)
    model.train(500, patience=3, learning_rate=0.03, kl_warmup=0.0, progress_bar=False)
    held_out = model.history.query("split == 'validation'").set_index("epoch")["elbo"]
    assert held_out.index[-1] == held_out.idxmax() + 3 < 500
    assert f"holds epoch {held_out.idxmax()}, validation ELBO {held_out.max():.1f}" in repr(model)


@pytest.mark.parametrize(("n_cells", "epochs"), [(900, 171), (4_096, 38), (12_000, 35), (50_000, 13), (180_000, 5)])
def test_number_of_epochs_by_default(adata, monkeypatch, n_cells, epochs):
    plans = []
    monkeypatch.setattr("sccvae.models.base.split", lambda *_: (np.arange(n_cells), np.arange(10)))
    monkeypatch.setattr("sccvae.models.plan.fit", lambda *a, **_: plans.append(a[4]))
    sccvae.SCCVAE(adata, n_hidden=4).train()
    assert [plan.max_epochs for plan in plans] == [epochs]


@pytest.mark.parametrize(
    "options",
    [{"max_epochs": 0}, {"max_epochs": -1}, {"batch_size": 0}, {"learning_rate": -1.0}, {"train_size": 0}],
    ids=str,
)
def test_training_arguments_out_of_range_are_named(adata, options):
    model = sccvae.SCCVAE(adata, n_hidden=4)
    with pytest.raises(ValueError, match=next(iter(options))):
        model.train(**{"max_epochs": 1, "progress_bar": False, **options})


def test_mixed_precision_fits_as_well_as_full_precision(monkeypatch):
    monkeypatch.setattr("sccvae.training.gradients.bfloat16_is_fast", lambda: True)  # on any processor
    adata, elbos = simulate.simulate(800, 200, seed=0), {}
    for precision in ("full", "mixed"):
        model = sccvae.SCCVAE(adata, batch_key="batch", n_hidden=64, device="cpu")
        model.train(30, precision=precision, progress_bar=False)
        elbos[precision] = model.get_elbo()
    assert elbos["mixed"] != elbos["full"]
    assert elbos["mixed"] == pytest.approx(elbos["full"], rel=1e-3)


def test_an_unknown_precision_is_named(adata):
    with pytest.raises(ValueError, match=r"precision is 'half'; expected one of 'mixed', 'full'\."):
        sccvae.SCCVAE(adata, n_hidden=4).train(1, precision="half")


def test_with_molecules_hidden_in_training_shallow_cells_are_embedded_better():
    """New cells of which a third of the molecules are left: their bound, and how near they stay to their own codes."""
    cells = sccvae.simulate.simulate(1200, 150, seed=0)
    new = np.arange(cells.n_obs) % 4 == 0
    shallow = cells[new].copy()
    shallow.X = Thinning(0.3)(shallow.X.tocsr(), np.random.default_rng(0))
    bounds, agreement = {}, {}
    for share in (0.0, 0.8):
        model = sccvae.SCCVAE(cells[~new].copy(), batch_key="batch", thinning=share, n_hidden=64, n_latent=8)
        model.train(50, progress_bar=False)
        z, found = (model.get_latent_representation(of) for of in (cells[new].copy(), shallow))
        bounds[share] = model.get_elbo(shallow)
        agreement[share] = 1 - ((z - found) ** 2).sum() / ((z - z.mean(0)) ** 2).sum()
    assert bounds[0.8] > bounds[0.0] + 0.3
    assert agreement[0.8] > agreement[0.0] + 0.01


@pytest.mark.parametrize(("n_cells", "rate"), [(20, 0.1), (2000, 0.1), (4000, 0.05)])
def test_dropout_by_default(n_cells, rate):
    cells = sccvae.simulate.simulate(n_cells, 20, seed=0)
    assert sccvae.SCCVAE(cells)._vae.architecture.dropout_rate == rate
    assert sccvae.SCCVAE(cells, dropout_rate=0.2)._vae.architecture.dropout_rate == 0.2
    assert sccvae.SCCVAE(cells, dropout_rate=0.0)._vae.architecture.dropout_rate == 0.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n_hidden": 0}, "n_hidden is 0; expected a whole number of at least 1."),
        ({"n_latent": -2}, "n_latent is -2; expected a whole number of at least 1."),
        ({"n_layers": 0}, "n_layers is 0; expected a whole number of at least 1."),
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0; expected a fraction of the units in [0, 1)."),
        ({"thinning": 1}, "thinning is 1.0; expected a fraction of the molecules in [0, 1)."),
        ({"dropout_cost": -1}, "dropout_cost is -1.0; expected nats per drop-out, 0 or more."),
        ({"prior_components": -3}, "prior_components is -3; expected Gaussians, 0 or more."),
        ({"batch_mixing": -1}, "batch_mixing is -1.0; expected nats per nat, 0 or more."),
        ({"weight_precision": -1}, "weight_precision is -1.0; expected a finite number, 0 or more."),
        ({"gene_likelihood": "zip"}, "gene_likelihood is 'zip'; expected one of 'zinb', 'nb', 'poisson', 'normal'"),
        ({"dispersion": "cell"}, "dispersion is 'cell'; expected one of 'gene', 'gene-batch', 'gene-cell'."),
        ({"library": "log"}, "library is 'log'; expected one of 'lognormal', 'observed'."),
    ],
)
def test_model_arguments_out_of_range_are_named(adata, options, text):
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        sccvae.SCCVAE(adata, **options)


@pytest.mark.parametrize("name", ["n_hidden", "n_latent", "n_layers", "prior_components", "seed"])
def test_whole_arguments_of_the_model_are_not_cut_to_whole_numbers(adata, name):
    with pytest.raises(ValueError, match=f"^{name} is 2.5; expected a whole number.$"):
        sccvae.SCCVAE(adata, **{name: 2.5})
    with pytest.raises(TypeError, match=f"^{name} is 'two'; expected a whole number.$"):
        sccvae.SCCVAE(adata, **{name: "two"})


@pytest.mark.parametrize("name", ["dropout_rate", "dropout_cost", "batch_mixing", "weight_precision", "thinning"])
def test_arguments_of_the_model_that_are_no_numbers_are_named(adata, name):
    with pytest.raises(TypeError, match=f"^{name} is 'auto'; expected a number.$"):
        sccvae.SCCVAE(adata, **{name: "auto"})


def test_switches_are_no_text(adata):
    with pytest.raises(TypeError, match=r"^encode_covariates is 'no'; expected True or False\.$"):
        sccvae.SCCVAE(adata, encode_covariates="no")
    model = sccvae.SCCVAE(adata)
    with pytest.raises(TypeError, match=r"^early_stopping is 'no'; expected True or False\.$"):
        model.train(1, early_stopping="no")
    with pytest.raises(TypeError, match=r"^progress_bar is 'no'; expected True or False\.$"):
        model.train(1, progress_bar="no")
    assert model.history.empty


def test_switches_of_the_outputs_are_no_text(adata, fit):
    model = fit(adata, 1, batch_key="batch")
    for output, names in {
        model.get_latent_representation: ("return_variance",),
        model.get_normalized_expression: ("return_mean", "return_numpy"),
        model.get_elbo: ("return_mean",),
        model.get_reconstruction_error: ("return_mean",),
        model.get_marginal_ll: ("return_mean",),
    }.items():
        for name in names:
            with pytest.raises(TypeError, match=f"^{name} is 'no'; expected True or False\\.$"):
                output(**{name: "no"})


def test_whole_numbers_may_come_as_floats_as_from_r(adata):
    a, b = (sccvae.SCCVAE(adata, n_latent=n, n_hidden=8 * n, seed=n) for n in (3, 3.0))
    assert a._vae.architecture == b._vae.architecture
    assert type(b._vae.architecture.n_latent) is type(b._seed) is int


def test_a_device_that_torch_does_not_know_is_named(adata):
    with pytest.raises(ValueError, match=r"^device is 'gpu'; expected 'auto', 'cpu', 'cuda' or another"):
        sccvae.SCCVAE(adata, device="gpu")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_epochs": 0}, "max_epochs is 0; expected more than 0."),
        ({"batch_size": -1}, "batch_size is -1; expected more than 0."),
        ({"n_draws": 0}, "n_draws is 0; expected more than 0."),
        ({"patience": 0}, "patience is 0; expected more than 0."),
        ({"learning_rate": math.nan}, "learning_rate is nan; expected more than 0."),
        ({"gradient_clip": 0.0}, "gradient_clip is 0.0; expected more than 0."),
        ({"kl_warmup": 2}, "kl_warmup is 2.0; expected a fraction of the run in [0, 1]."),
        ({"kl_warmup": -0.1}, "kl_warmup is -0.1; expected a fraction of the run in [0, 1]."),
        ({"weight_decay": -1e-3}, "weight_decay is -0.001; expected a finite number, 0 or more."),
        ({"weight_decay": math.inf}, "weight_decay is inf; expected a finite number, 0 or more."),
        ({"precision": "half"}, "precision is 'half'; expected one of 'mixed', 'full'."),
    ],
)
def test_arguments_of_training_out_of_range_are_named(adata, options, text):
    model = sccvae.SCCVAE(adata, n_hidden=4)
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        model.train(**{"max_epochs": 1, **options})
    assert model.history.empty


def test_encoder_and_decoder_of_different_width(adata, tmp_path, fit):
    model = fit(adata, n_hidden=(6, 10))
    assert "1 x 6 and 10 hidden" in repr(model)
    assert "1 x 6 hidden" in repr(sccvae.SCCVAE(adata, n_hidden=6)) == repr(sccvae.SCCVAE(adata, n_hidden=(6, 6)))
    assert model.describe()["parameters"]["n_hidden"] == [6, 10]
    model.save(tmp_path / "model")
    loaded = sccvae.SCCVAE.load(tmp_path / "model", adata)
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())
    np.testing.assert_array_equal(loaded.get_normalized_expression(), model.get_normalized_expression())


@pytest.mark.parametrize("n_hidden", [(8,), (8, 8, 8), [], np.array([8, 8, 8])])
def test_widths_are_one_or_two(adata, n_hidden):
    found = re.escape(str(tuple(map(int, n_hidden))))
    with pytest.raises(ValueError, match=rf"^n_hidden is {found}; expected one width, or two: of encoder and of dec"):
        sccvae.SCCVAE(adata, n_hidden=n_hidden)


@pytest.mark.parametrize("kind", [list, np.array])
def test_widths_as_any_sequence(adata, kind):
    model = sccvae.SCCVAE(adata, n_hidden=kind([8, 12]))
    assert model._vae.architecture == sccvae.SCCVAE(adata, n_hidden=(8, 12))._vae.architecture


@pytest.mark.parametrize("name", ["seed", "n_hidden", "n_latent", "n_layers"])
def test_numpy_integers_are_integers(adata, tmp_path, fit, name):
    value = {"seed": 3, "n_hidden": 6, "n_latent": 3, "n_layers": 1}[name]
    model, expected = (fit(adata, **{name: kind(value)}) for kind in (np.int64, int))
    z = expected.get_latent_representation()
    np.testing.assert_array_equal(model.get_latent_representation(), z)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(sccvae.SCCVAE.load(tmp_path / "model").get_latent_representation(adata), z)


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: m.get_latent_representation(),
        lambda m: m.get_normalized_expression(),
        lambda m: m.get_latent_library_size(),
        lambda m: m.get_likelihood_parameters(),
        lambda m: m.posterior_predictive_sample(),
        lambda m: m.generate(3),
        lambda m: m.get_elbo(),
        lambda m: m.get_reconstruction_error(),
        lambda m: m.get_marginal_ll(),
    ],
    ids=["latent", "expression", "library", "parameters", "predictive", "generate", "elbo", "error", "marginal"],
)
def test_a_model_without_training_gives_no_outputs(adata, ask):
    with pytest.raises(RuntimeError, match=r"^The model is not trained yet: call train\(\) first\.$"):
        ask(sccvae.SCCVAE(adata, n_hidden=4))


def test_after_a_failed_run_the_model_answers_with_its_last_good_epoch(adata, monkeypatch):
    check, calls = sccvae.training.loop.check_finite, []

    def fail_in_the_third_epoch(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise sccvae.TrainingError("The model holds the weights of the last good epoch.")
        check(*arguments)

    monkeypatch.setattr("sccvae.training.loop.check_finite", fail_in_the_third_epoch)
    model = sccvae.SCCVAE(adata, n_hidden=8)
    with pytest.raises(sccvae.TrainingError):
        model.train(5, progress_bar=False)
    assert np.isfinite(model.get_latent_representation()).all()
    assert model.history["epoch"].max() == 2


def test_ctrl_c_ends_the_run_and_keeps_what_was_learnt(adata, monkeypatch, caplog):
    check, calls = sccvae.training.loop.check_finite, []

    def interrupt_in_the_third_epoch(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        check(*arguments)

    monkeypatch.setattr("sccvae.training.loop.check_finite", interrupt_in_the_third_epoch)
    model = sccvae.SCCVAE(adata, n_hidden=8)
    with caplog.at_level(logging.WARNING, logger="sccvae"):
        model.train(5, kl_warmup=0.0, progress_bar=False)
    assert model.history["epoch"].max() == 2
    assert [record.getMessage() for record in caplog.records] == [
        "Interrupted: the model holds the weights of epoch 2."
    ]
    assert np.isfinite(model.get_elbo())


@pytest.mark.parametrize("shape", [(1, 60), (2, 60), (120, 1), (40, 2)])
def test_the_smallest_data_sets_train(make_adata, fit, shape):
    adata = make_adata()[: shape[0], : shape[1]].copy()
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()
    model = fit(adata, 2, batch_key="batch")
    assert np.isfinite(model.get_latent_representation()).all()
    assert np.isfinite(model.get_elbo())


def test_minibatches_larger_than_the_data_and_of_one_cell(adata):
    for batch_size in (1000, 1):
        model = sccvae.SCCVAE(adata, n_hidden=8, batch_key="batch")
        model.train(1, batch_size=batch_size, progress_bar=False)
        assert np.isfinite(model.get_elbo())
