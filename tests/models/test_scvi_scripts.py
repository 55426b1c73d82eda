"""Scripts written for scvi-tools: they run, or are told in a sentence what to change."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import re

import anndata
import numpy as np
import pandas as pd
import pytest

import sccvae
from sccvae.models import signatures
from sccvae.models.scvi_tools import scvi_names
from sccvae.models.scvi_tools.scvi_attributes import ATTRIBUTES, PACKAGE
from sccvae.statistics.differential_expression import groups as differential_expression
from sccvae.statistics.differential_expression.probability import SMALLEST_DELTA

SMALL = {"n_hidden": 16, "n_latent": 4}
MODELS = (sccvae.SCCVAE, sccvae.Autoencoder, sccvae.DenoisingAutoencoder)


@pytest.fixture
def plan(model, monkeypatch):
    """Function: arguments of `train` -> their `Plan`, and how many cells are held out; nothing is fitted."""
    untrained = copy.copy(model)
    untrained._rows = []

    def of(*args, **arguments):
        seen = []
        monkeypatch.setattr(
            "sccvae.models.plan.fit", lambda vae, counts, cells, held_out, plan, *_, **__: seen.extend([plan, held_out])
        )
        untrained.train(*args, progress_bar=False, **arguments)
        return seen[0], len(seen[1])

    return of


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"early_stopping_patience": 7}, {"patience": 7}),
        ({"plan_kwargs": {"lr": 1e-3, "weight_decay": 1e-6}}, {"learning_rate": 1e-3, "weight_decay": 1e-6}),
        ({"plan_kwargs": {}}, {}),
        ({"plan_kwargs": None}, {}),
        ({"plan_kwargs": {"n_epochs_kl_warmup": 5}}, {"kl_warmup": 0.25}),
        ({"plan_kwargs": {"n_epochs_kl_warmup": None}}, {"kl_warmup": 0.0}),
        (
            {"plan_kwargs": {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 8}, "batch_size": 30},
            {"kl_warmup": 0.1, "batch_size": 30},
        ),
        ({"plan_kwargs": {"max_kl_weight": 1.0, "reduce_lr_on_plateau": False, "optimizer": "Adam"}}, {}),
        ({"lr": 2e-3}, {"learning_rate": 2e-3}),
        ({"check_val_every_n_epoch": 1}, {}),
        ({"check_val_every_n_epoch": 10}, {}),
        ({"check_val_every_n_epoch": None}, {}),
        ({"accelerator": "cpu", "devices": 1}, {}),
        ({"accelerator": "auto", "devices": "auto"}, {}),
        ({"use_gpu": False}, {}),
        ({"use_gpu": None}, {}),
        ({"validation_size": 0.2}, {"train_size": 0.8}),
        ({"train_size": 0.9, "validation_size": 0.1}, {"train_size": 0.9}),
        ({"train_size": 0.9, "validation_size": None}, {"train_size": 0.9}),
        ({"train_size": None, "batch_size": None}, {}),
        ({"shuffle_set_split": True, "load_sparse_tensor": True, "datasplitter_kwargs": {"drop_last": False}}, {}),
        ({"datasplitter_kwargs": {"validation_size": 0.2}}, {"train_size": 0.8}),
        ({"early_stopping": True, "early_stopping_monitor": "elbo_validation", "early_stopping_min_delta": 0.0}, {}),
        ({"trainer_config": {"early_stopping_patience": 3, "patience": None}}, {"patience": 3}),
        ({"logger": None, "enable_checkpointing": False, "simple_progress_bar": True, "callbacks": []}, {}),
        ({"gradient_clip_val": 10}, {"gradient_clip": 10}),
    ],
)  # fmt: skip
def test_train_takes_what_means_the_same(plan, theirs, ours):
    theirs = {
        k: {n: v for n, v in x.items() if n != "patience"} if k == "trainer_config" else x for k, x in theirs.items()
    }
    assert plan(20, **theirs) == plan(20, **ours)
    assert plan(max_epochs=20, **theirs) == plan(20, **ours)


def test_a_warm_up_in_epochs_is_a_share_of_the_default_run_as_well(plan):
    default, _ = plan()
    assert plan(plan_kwargs={"n_epochs_kl_warmup": 10})[0].kl_warmup == pytest.approx(10 / default.max_epochs)


def test_the_progress_bar_by_its_other_name(model):
    with pytest.raises(TypeError, match=r"^progress_bar is 'no'; expected True or False\.$"):
        copy.copy(model).train(1, enable_progress_bar="no")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"patienc": 3}, "has no argument 'patienc'. Did you mean 'patience'?"),
        ({"qqq": 3}, "has no argument 'qqq'. There is 'max_epochs', 'batch_size', 'train_size',"),
        ({"plan_kwargs": {"lrr": 1}}, "among the plan_kwargs that have a meaning here. Did you mean 'lr'?"),
        ({"plan_kwargs": {"zz": 1}}, "'zz' is not among the plan_kwargs that have a meaning here. Leave it out."),
        ({"plan_kwargs": 3}, "cannot take plan_kwargs=3. Expected a dictionary"),
        ({"plan_kwargs": {"max_kl_weight": 0.5}}, "max_kl_weight=0.5: The weight of the KL divergence rises to 1"),
        ({"plan_kwargs": {"reduce_lr_on_plateau": True}}, "The learning rate falls to a hundredth"),
        ({"plan_kwargs": {"n_epochs_kl_warmup": 400}}, "The run has 2 epochs, and batch_mixing begins when"),
        ({"plan_kwargs": {"n_steps_kl_warmup": 400}}, "The run has 2 steps"),
        ({"plan_kwargs": {"lr": 1}, "learning_rate": 1}, "was given learning_rate twice, once as 'plan_kwargs'"),
        ({"patience": 1, "early_stopping_patience": 1}, "was given patience twice, once as 'early_stopping_patience'"),
        ({"train_size": 0.5, "validation_size": 0.2}, "train_size=0.5: the two make 1. To keep cells for a test"),
        ({"accelerator": "gpu"}, "This model is on 'cpu', and trains there. The device is chosen before: SCCVAE("),
        ({"use_gpu": True}, "This model is on 'cpu'"),
        ({"use_gpu": 0}, "This model is on 'cpu'"),
        ({"devices": 2}, "cannot take devices=2. A model trains on the one device"),
        ({"devices": [0, 1]}, "A model trains on the one device"),
        ({"early_stopping_monitor": "train_loss"}, "Early stopping uses the held-out ELBO"),
        ({"early_stopping_min_delta": 0.1}, "Any higher held-out ELBO is a better epoch"),
        ({"shuffle_set_split": False}, "Cells are held out at random"),
        ({"logger": object()}, "What a run records is in model.history"),
        ({"callbacks": [print]}, "Training has no callbacks"),
        ({"enable_checkpointing": True}, "Training keeps the best epoch"),
        ({"datasplitter_kwargs": {"external_indexing": [np.arange(3)]}}, "Cells are held out at random"),
    ],
)  # fmt: skip
def test_train_says_what_it_cannot_do(model, arguments, text):
    with pytest.raises(TypeError, match=r"^SCCVAE\.train\(\) .*" + re.escape(text)):
        copy.copy(model).train(2, **arguments)


def test_numbers_that_are_not_used_must_be_numbers(model):
    with pytest.raises(ValueError, match=r"^check_val_every_n_epoch is 0; expected at least 1\.$"):
        copy.copy(model).train(1, check_val_every_n_epoch=0)
    with pytest.raises(TypeError, match=r"^validation_size is 'a'"):
        copy.copy(model).train(1, validation_size="a")
    with pytest.raises(ValueError, match=r"^batch_size is -1; expected at least 1\.$"):
        model.get_latent_representation(batch_size=-1)


def test_arguments_by_position_are_counted(adata, model):
    with pytest.raises(TypeError, match=r"^SCCVAE\.train\(\) takes max_epochs by position, and 2 were given\."):
        model.train(400, True)
    with pytest.raises(TypeError, match=r"^SCCVAE\(\) takes adata by position, and 3 were given\. Name the others"):
        sccvae.SCCVAE(adata, 128, 10)


def test_autoencoders_have_no_warm_up(adata):
    model = sccvae.Autoencoder(adata, **SMALL)
    model.train(1, progress_bar=False, early_stopping_patience=5, plan_kwargs={"lr": 1e-3}, accelerator="cpu")
    with pytest.raises(TypeError, match=r"^Autoencoder\.train\(\) .* no KL divergence, so nothing to warm up"):
        model.train(1, plan_kwargs={"n_epochs_kl_warmup": 5})
    with pytest.raises(TypeError, match=r"This model is on 'cpu'.*: Autoencoder\(adata, device="):
        model.train(1, accelerator="gpu")


# -------------------------------------------------------------------------------------------------------- constructors


@pytest.mark.parametrize("model_class", MODELS)
def test_keys_that_are_none_as_in_setup_anndata(adata, model_class):
    keys = dict.fromkeys(("layer", "batch_key", "labels_key", "size_factor_key"))
    model = model_class(adata, categorical_covariate_keys=None, continuous_covariate_keys=None, **keys, **SMALL)
    assert model._schema.categorical_covariate_keys == model._schema.continuous_covariate_keys == ()


def test_integrate_hands_names_on(adata):
    options = {"categorical_covariate_keys": None, "use_observed_lib_size": True, **SMALL}
    train_options = {"max_epochs": 1, "early_stopping_patience": 5, "plan_kwargs": {"lr": 1e-3}}
    sccvae.tl.integrate(adata, model_options=options, train_options=train_options)
    assert adata.uns["sccvae"]["parameters"]["library"] == "observed"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"use_observed_lib_size": True}, {"library": "observed"}),
        ({"use_observed_lib_size": False}, {"library": "lognormal"}),
        ({"use_layer_norm": "both", "use_batch_norm": "none", "deeply_inject_covariates": True}, {}),
        ({"latent_distribution": "normal", "log_variational": True, "batch_representation": "one-hot"}, {}),
        ({"use_gpu": False, "registry": None, "extra_encoder_kwargs": {}}, {"device": "cpu"}),
    ],
)
def test_the_constructor_takes_what_means_the_same(adata, theirs, ours):
    assert sccvae.SCCVAE(adata, **theirs)._vae.architecture == sccvae.SCCVAE(adata, **ours)._vae.architecture


@pytest.mark.parametrize(
    ("model_class", "arguments", "text"),
    [
        (sccvae.Autoencoder, {"unlabeled_category": "x"}, "Autoencoder() cannot take unlabeled_category='x'. Only SC"),
        (sccvae.SCCVAE, {"use_batch_norm": "both"}, "SCCVAE() cannot take use_batch_norm='both'. Layer norm follows"),
        (sccvae.SCCVAE, {"use_layer_norm": "none"}, "SCCVAE() cannot take use_layer_norm='none'. Layer norm follows"),
        (sccvae.SCCVAE, {"latent_distribution": "ln"}, "SCCVAE() cannot take latent_distribution='ln'. The distri"),
        (sccvae.SCCVAE, {"log_variational": False}, "SCCVAE() cannot take log_variational=False. The encoder always"),
        (sccvae.SCCVAE, {"deeply_inject_covariates": False}, "SCCVAE() cannot take deeply_inject_covariates=False."),
        (sccvae.SCCVAE, {"n_batch": 3}, "SCCVAE() cannot take n_batch=3. It is read from adata"),
        (sccvae.SCCVAE, {"use_observed_lib_size": "no"}, "SCCVAE() cannot take use_observed_lib_size='no'. Exp"),
        (sccvae.SCCVAE, {"use_observed_lib_size": True, "library": "observed"}, "SCCVAE() was given library twice"),
        (sccvae.SCCVAE, {"batchkey": "batch"}, "SCCVAE() has no argument 'batchkey'. Did you mean 'batch_key'?"),
        (sccvae.Autoencoder, {"categorical_covariate_keys": ["donor"]}, "Autoencoder() cannot take categorical_"),
        (sccvae.Autoencoder, {"use_observed_lib_size": False}, "Autoencoder() cannot take use_observed_lib_"),
        (sccvae.DenoisingAutoencoder, {"labels_key": "kind"}, "DenoisingAutoencoder() cannot take labels_key='kind'."),
    ],
)  # fmt: skip
def test_the_constructor_says_what_it_cannot_do(adata, model_class, arguments, text):
    with pytest.raises(TypeError, match="^" + re.escape(text)):
        model_class(adata, **arguments)


# ------------------------------------------------------------------------------------------------------------- outputs


def test_adata_and_indices_by_position(adata, model):
    cells = np.array([4, 2, 9])
    np.testing.assert_array_equal(
        model.get_latent_representation(adata, cells), model.get_latent_representation(adata, indices=cells)
    )
    table = model.get_normalized_expression(adata, cells, "b", ["gene3", "gene1"], 1e4)
    named = model.get_normalized_expression(
        adata, indices=cells, transform_batch="b", gene_list=["gene3", "gene1"], library_size=1e4
    )
    pd.testing.assert_frame_equal(table, named)
    assert model.get_elbo(adata, cells) == model.get_elbo(adata, indices=cells)
    assert model.get_reconstruction_error(adata, cells) == model.get_reconstruction_error(adata, indices=cells)
    assert model.get_marginal_ll(adata, cells, 2) == model.get_marginal_ll(adata, indices=cells, n_samples=2)
    for output in ("get_latent_library_size", "get_likelihood_parameters", "posterior_predictive_sample"):
        assert getattr(model, output)(adata, cells) is not None
    assert model.get_reconstruction(adata, cells).shape == (3, 60)
    pd.testing.assert_frame_equal(
        model.differential_expression(adata, "kind", "w", "x"),
        model.differential_expression(adata, groupby="kind", group1="w", group2="x"),
    )


@pytest.mark.parametrize("output", [name for name in dir(sccvae.SCCVAE) if name.startswith("get_")])
def test_every_output_takes_how_many_cells_at_once(model, output):
    first = getattr(model, output)(batch_size=50, silent=True, dataloader=None)
    second = getattr(model, output)()
    if isinstance(first, dict):
        first, second = first["mean"], second["mean"]
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_moments_by_their_other_name(model):
    for theirs, ours in zip(
        model.get_latent_representation(return_dist=True, give_mean=True, mc_samples=5000),
        model.get_latent_representation(return_variance=True),
        strict=True,
    ):
        np.testing.assert_array_equal(theirs, ours)
    with pytest.raises(TypeError, match=r"mean, variance = get_latent_representation\(return_variance=True\)\.$"):
        model.get_latent_representation(give_mean=False)


def test_expression_as_scvi_tools_asks_for_it(model):
    asked = {"n_samples_overall": None, "weights": "uniform", "return_numpy": None, "batch_size": 64, "silent": True}
    pd.testing.assert_frame_equal(model.get_normalized_expression(**asked), model.get_normalized_expression())
    assert model.get_marginal_ll(n_mc_samples=2) == model.get_marginal_ll(n_samples=2)
    assert model.get_likelihood_parameters(n_samples=1, give_mean=True).keys() == {"mean", "dispersions", "dropout"}
    assert model.get_latent_library_size(give_mean=True).shape == (120,)


def test_an_observed_library_size_is_no_draw(adata, fit):
    observed = fit(adata, library="observed").get_latent_library_size(give_mean=False)
    np.testing.assert_allclose(observed, np.asarray(adata.X.sum(1)).ravel(), rtol=1e-5)


@pytest.mark.parametrize(
    ("output", "arguments", "text"),
    [
        ("get_normalized_expression", {"n_samples_overall": 10}, "The number of samples per cell is n_samples"),
        ("get_normalized_expression", {"weights": "importance"}, "All samples have the same weight"),
        ("get_normalized_expression", {"genes": ["gene1"]}, "has no argument 'genes'. Did you mean 'gene_list'?"),
        ("get_latent_library_size", {"give_mean": False}, "The inferred size is the median of q(l|x)"),
        ("get_likelihood_parameters", {"n_samples": 5}, "Parameters are those at the posterior means"),
        ("get_elbo", {"dataloader": object()}, "Pass the cells as adata, an AnnData or the path of a file."),
        ("save", {"path": "m", "save_anndata": True}, "A model is saved without its data: leave it out, and write"),
        ("save", {"path": "m", "prefix": "a"}, "Each model has a folder of its own"),
        ("generate", {"n_cels": 3}, "has no argument 'n_cels'. Did you mean 'n_cells'?"),
        ("differential_expression", {"change_fn": max}, "The test is of the log2 fold change"),
        ("differential_expression", {"batchid1": ["a"]}, "Both groups are decoded in all batches"),
        ("differential_expression", {"filter_outlier_cells": True}, "All cells of a group are used"),
        ("differential_expression", {"weights": "importance"}, "All samples have the same weight"),
        ("differential_expression", {"all_stats": False}, "The table always has the statistics of counts"),
        ("differential_expression", {"n_samples_overall": 100}, "Groups are compared by the means of all their cells"),
        ("differential_expression", {"groupy": "kind"}, "has no argument 'groupy'. Did you mean 'groupby'?"),
    ],
)  # fmt: skip
def test_outputs_say_what_they_cannot_do(model, output, arguments, text):
    with pytest.raises(TypeError, match=rf"^SCCVAE\.{output}\(\) .*" + re.escape(text)):
        getattr(model, output)(**arguments)


def test_a_model_is_saved_and_loaded_by_their_names(adata, model, tmp_path):
    model.save(dir_path=tmp_path / "m", save_anndata=False, prefix=None)
    ways = ({"accelerator": "cpu"}, {"accelerator": "auto", "device": "auto"}, {"use_gpu": False, "backup_url": None})
    for way in ways:
        loaded = sccvae.SCCVAE.load(dir_path=tmp_path / "m", adata=adata, **way)
        np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())
        assert loaded.device.type == "cpu"
    with pytest.raises(TypeError, match=r"^SCCVAE\.load\(\) cannot take prefix='a'\."):
        sccvae.SCCVAE.load(tmp_path / "m", prefix="a")
    with pytest.raises(TypeError, match=r"^SCCVAE\.load\(\) has no argument 'adta'\. Did you mean 'adata'\?$"):
        sccvae.SCCVAE.load(tmp_path / "m", adta=adata)


# --------------------------------------------------------------------------------------------- differential expression


def test_the_table_is_named_as_in_scvi_tools(model):
    table = model.differential_expression(
        groupby="kind", silent=True, batch_size=50, all_stats=True, weights="uniform", filter_outlier_cells=False,
        pseudocounts=1e-3, batchid1=None, batchid2=None, use_observed_batches=False, mode="change", delta=0.3,
    )  # fmt: skip
    for kind in "wxyz":
        assert len(table[table.comparison == f"{kind} vs Rest"]) == 60
    assert set(table.group2) == {"Rest"}
    np.testing.assert_allclose(table.proba_not_de, 1 - table.proba_de, atol=1e-12)
    assert set(table.pseudocounts) == {1e-3}
    assert set(table.delta) == {0.3}
    fitted = model.differential_expression(groupby="kind", group1="w", delta=None)
    assert fitted.delta.nunique() == fitted.pseudocounts.nunique() == 1
    assert fitted.delta.iloc[0] >= SMALLEST_DELTA
    vanilla = model.differential_expression(groupby="kind", group1="w", mode="vanilla")
    assert not {"proba_not_de", "delta", "pseudocounts"} & set(vanilla.columns)


@pytest.mark.parametrize("rest", ["Rest", "rest"])
def test_all_other_cells_may_be_asked_for_by_name(model, rest):
    asked = model.differential_expression(groupby="kind", group1="w", group2=rest)
    pd.testing.assert_frame_equal(asked, model.differential_expression(groupby="kind", group1="w"))


@pytest.mark.parametrize("label", ["Rest", "rest"])
def test_a_group_called_rest_is_told_from_all_other_cells(model, label):
    labels = np.array(["A", label, "C"])[np.arange(120) % 3]
    against_label = model.differential_expression(groupby=labels, group1="A", group2=label)
    against_all = model.differential_expression(groupby=labels, group1="A")
    assert set(against_label.comparison) == {f"A vs {label}"}
    assert set(against_all.comparison) == {"A vs Rest (all other cells)"}
    assert set(against_all.group2) == {"Rest (all other cells)"}
    assert (against_all.raw_mean2 != against_label.raw_mean2[against_all.index]).any()
    again = model.differential_expression(groupby=labels, group1="A", group2="Rest (all other cells)")
    pd.testing.assert_frame_equal(again, against_all)
    with pytest.raises(ValueError, match="is unknown; the groups are"):
        model.differential_expression(groupby=labels, group1="A", group2=label.swapcase())


def test_names_of_all_other_cells_differ_from_every_group():
    assert differential_expression.all_others(["a", "b"]) == "Rest"
    assert differential_expression.all_others(["REST"]) == "Rest (all other cells)"
    assert (
        differential_expression.all_others(["rest", "Rest (all other cells)"])
        == "Rest (all other cells) (all other cells)"
    )


def test_a_batch_that_the_model_does_not_know(adata, fit):
    model = fit(adata, batch_key="batch", encode_covariates=False)
    new = adata[:5].copy()
    new.obs["batch"] = "new"
    advice = "Train on data with this category, or assign a known one in adata.obs['batch']."
    with pytest.raises(ValueError, match=r"^Unknown category 'new' of 'batch'; .* " + re.escape(advice)):
        model.get_latent_representation(new)
    new.obs["batch"] = "a"
    assert model.get_latent_representation(new).shape == (5, 4)


# ---------------------------------------------------------------------------------------------- history and attributes


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("elbo_train", "model.history[model.history['split'] == 'training']['elbo'], of which scvi-tools keeps the"),
        ("elbo_validation", "model.history[model.history['split'] == 'validation']['elbo'], of which scvi-tools keeps"),
        ("reconstruction_loss_train", "model.history[model.history['split'] == 'training']['reconstruction']"),
        ("kl_local_validation", "model.history[model.history['split'] == 'validation'][['kl_z', 'kl_l']], whose sum"),
        ("train_loss_epoch", "model.history[model.history['split'] == 'training']['elbo'], of which it is the"),
        ("validation_loss", "model.history[model.history['split'] == 'validation']['elbo'], of which it is the"),
        ("elbow", "Did you mean 'elbo'?"),
        ("", "There is 'epoch', 'split', 'elbo'"),
    ],
)  # fmt: skip
def test_the_history_tells_where_to_look(model, key, text):
    with pytest.raises(KeyError) as caught:
        model.history[key]
    assert str(caught.value).startswith(f"history has no column {key!r}.")
    assert text in str(caught.value)
    if "model.history" in text:
        expression = re.search(r"(model\.history\[.*?\]+)[,.]", str(caught.value)).group(1)
        assert len(eval(expression, {"model": model})) == 5


def test_the_history_is_an_ordinary_table(model, adata, tmp_path):
    history = model.history
    assert type(history) is pd.DataFrame
    assert history.get("elbo_train") is None
    assert "elbo_train" not in history
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(history)), history)
    pd.testing.assert_frame_equal(copy.deepcopy(history), history)
    assert history.to_csv().startswith(",epoch,split,elbo")
    assert set(history.groupby("split")["elbo"].max().index) == {"training", "validation"}
    history["new"] = 1
    assert history["new"].sum() == len(history) == 10
    adata.uns["history"] = history
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert list(anndata.read_h5ad(tmp_path / "a.h5ad").uns["history"].columns) == list(history.columns)


@pytest.mark.parametrize("name", sorted(set(ATTRIBUTES) - {"adata"}))
def test_attributes_that_are_not_there_say_what_there_is(model, name):
    for owner in (model, sccvae.SCCVAE):
        assert not hasattr(owner, name)
        with pytest.raises(AttributeError, match=rf"^SCCVAE has no '{name}'\. [A-Z].*[.]$"):
            getattr(owner, name)
    assert name not in dir(model)


def test_setup_is_refused_by_the_class(adata):
    with pytest.raises(
        AttributeError, match=r"Pass its keys to the constructor: Autoencoder\(adata, layer=..., batch_key"
    ):
        sccvae.Autoencoder.setup_anndata(adata, batch_key="batch")
    with pytest.raises(AttributeError, match=r"^type object 'SCCVAE' has no attribute 'nonsense'$"):
        sccvae.SCCVAE.nonsense  # noqa: B018


def test_other_attributes_are_missed_as_ever(model):
    with pytest.raises(AttributeError, match=r"^'SCCVAE' object has no attribute 'trian'$") as caught:
        model.trian()
    assert caught.value.name == "trian"
    assert caught.value.obj is model


@pytest.mark.parametrize("name", PACKAGE)
def test_names_of_the_package(name):
    with pytest.raises(AttributeError, match=rf"^module 'sccvae' has no attribute '{name}'\. [A-Z].*[.]$"):
        getattr(sccvae, name)


def test_the_data_of_a_model_are_those_at_hand(adata, fit, tmp_path):
    model = fit(adata)
    assert model.adata is adata
    model.save(tmp_path / "m")
    assert sccvae.SCCVAE.load(tmp_path / "m", adata).adata is adata
    text = r"^SCCVAE has no 'adata'\. A model keeps counts, not the AnnData"
    for other in (sccvae.SCCVAE.load(tmp_path / "m"), copy.deepcopy(model), fit(adata.copy())):
        gc.collect()
        with pytest.raises(AttributeError, match=text):
            other.adata  # noqa: B018
        assert not hasattr(other, "adata")


def test_whether_a_model_is_trained(adata, model):
    assert model.is_trained is True
    assert sccvae.SCCVAE(adata, **SMALL).is_trained is False


# ---------------------------------------------------------------------------------------------------------- the tables


def public(model_class) -> dict[str, object]:
    found = {name: inspect.getattr_static(model_class, name) for name in dir(model_class) if not name.startswith("_")}
    methods = {name: getattr(value, "__func__", value) for name, value in found.items()} | {
        "__init__": model_class.__init__
    }
    return {name: value for name, value in methods.items() if inspect.isfunction(value)}


@pytest.mark.parametrize("model_class", MODELS)
def test_methods_keep_their_signature_and_their_docstring(model_class):
    methods = public(model_class)
    assert {"__init__", "train", "save", "load", "get_latent_representation"} <= set(methods)
    for name, method in methods.items():
        assert method.__wrapped__ is not method
        assert inspect.signature(method) == inspect.signature(method.__wrapped__)
        assert inspect.getfullargspec(method).varkw is inspect.getfullargspec(method).varargs is None
        assert (method.__name__, method.__doc__) == (name, method.__wrapped__.__doc__)
        assert method.__annotations__ == method.__wrapped__.__annotations__


def test_no_name_of_theirs_is_one_of_ours():
    for name, method in public(sccvae.SCCVAE).items():
        ours = dict(inspect.signature(method).parameters)
        shared = set(scvi_names.table_of(name, ours)) & set(ours)
        of_autoencoders = {"labels_key", "categorical_covariate_keys", "continuous_covariate_keys", "size_factor_key"}
        assert shared <= of_autoencoders | {"weight_decay"}, name  # of plan_kwargs


def test_whatever_is_asked_the_answer_is_a_sentence(model):
    """Every entry, given what nobody can mean: it does not matter, it is handed on by our name, or it is refused."""
    refused: dict[str, str] = {}
    for name, method in public(sccvae.SCCVAE).items():
        ours = {k: v for k, v in inspect.signature(method).parameters.items() if k not in ("self", "cls")}
        for theirs, entry in scvi_names.table_of(name, ours).items():
            value = object()
            try:
                found = entry(scvi_names.Asked(theirs, value, model, {}, ours))
            except (scvi_names.Refused, TypeError) as why:
                refused[theirs] = str(why)
            else:
                assert set(found) <= set(ours), theirs
    assert len(refused) > 60
    for theirs, why in refused.items():
        assert why[0].isupper() or why.startswith(f"{theirs} is <object"), theirs
        assert why.endswith("."), theirs
        for sentence in re.split(r"(?<=[a-z)])[.:] ", why):
            assert len(sentence.split()) <= 25, theirs


def test_names_that_none_stands_for_have_another_default():
    for name, arguments in scvi_names.UNSET.items():
        for parameter in arguments:
            assert inspect.signature(getattr(sccvae.SCCVAE, name)).parameters[parameter].default is not None


def test_a_method_that_takes_anything_is_left_alone():
    def method(self, **options):
        return options

    assert signatures.understands_scvi(method) is method


def test_models_are_copied_and_pickled(model):
    expected = model.get_latent_representation(indices=[1])
    for other in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.get_latent_representation(indices=[1]), expected)


# ---------------------------------------------------------------------------------------------- the user guide's script

THEIRS = """
from scvi.model import SCVI
sc.pp.filter_genes(adata, min_counts=3)
adata.layers["counts"] = adata.X.copy()
sc.pp.normalize_total(adata, target_sum=1e4)
sc.pp.log1p(adata)
adata.raw = adata
sc.pp.highly_variable_genes(adata, n_top_genes=50, subset=True)
keys = {"categorical_covariate_keys": ["batch"], "continuous_covariate_keys": ["mito"]}
SCVI.setup_anndata(adata, layer="counts", **keys)
model = SCVI(adata)
str(model)
model.train(max_epochs=2, check_val_every_n_epoch=1, plan_kwargs={"lr": 2e-3}, accelerator="cpu", devices=1)
model.save(folder, overwrite=True)
model = SCVI.load(folder, adata=adata)
adata.obsm["X_scVI"] = model.get_latent_representation()
subset = adata[adata.obs.cell_type == first]
of_subset = model.get_latent_representation(subset)
denoised = model.get_normalized_expression(subset, library_size=1e4)
denoised.iloc[:5, :5]
adata.layers["scvi_normalized"] = model.get_normalized_expression(library_size=10e4)
sc.pp.neighbors(adata, use_rep="X_scVI", n_neighbors=20)
sc.tl.umap(adata, min_dist=0.3)
pair = model.differential_expression(groupby="cell_type", group1=first, group2=second)
pair.head()
table = model.differential_expression(groupby="cell_type")
markers = {}
for name in adata.obs.cell_type.cat.categories:
    found = table.loc[table.comparison == f"{name} vs Rest"]
    sizes.append(len(found))
    found = found[found.lfc_mean > 0]
    found = found[found["bayes_factor"] > 3]
    found = found[found["non_zeros_proportion1"] > 0.1]
    markers[name] = found.index.tolist()[:3]
sc.tl.dendrogram(adata, groupby="cell_type", use_rep="X_scVI")
sc.pl.dotplot(adata, markers, groupby="cell_type", dendrogram=True, use_raw=True, standard_scale="var", show=False)
sc.pl.heatmap(adata, markers, groupby="cell_type", layer="scvi_normalized", dendrogram=True, show=False)
"""
CHANGED = {
    "from scvi.model import SCVI": "from sccvae import SCCVAE as SCVI",
    'SCVI.setup_anndata(adata, layer="counts", **keys)': "",
    "model = SCVI(adata)": 'model = SCVI(adata, layer="counts", **keys)',
}  # fmt: skip


@pytest.mark.slow
def test_the_script_of_the_user_guide_runs_with_two_lines_changed(tmp_path):
    """The import apart: the keys of the line that is dropped go into the line that makes the model."""
    import scanpy as sc

    adata = sccvae.simulate.simulate(300, 60, seed=0)
    adata.obs["mito"] = np.random.default_rng(0).random(300)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype("category")
    first, second = adata.obs.cell_type.cat.categories[:2]
    lines = THEIRS.strip().splitlines()
    assert all(lines.count(line) == 1 for line in CHANGED)
    script = "\n".join(CHANGED.get(line, line) for line in lines)
    scope = {"adata": adata, "sc": sc, "folder": tmp_path / "m", "first": first, "second": second, "sizes": []}
    exec(script, scope)
    adata, model = scope["adata"], scope["model"]
    n_types = adata.obs.cell_type.nunique()
    assert scope["sizes"] == [adata.n_vars] * n_types
    assert set(scope["pair"].comparison) == {f"{first} vs {second}"}
    assert sum(map(len, scope["markers"].values())) > 0
    assert adata.obsm["X_scVI"].shape == (adata.n_obs, model._vae.architecture.n_latent)
    assert scope["of_subset"].shape[0] == len(scope["denoised"]) == (adata.obs.cell_type == first).sum()
    np.testing.assert_allclose(adata.layers["scvi_normalized"].sum(1), 1e5, rtol=1e-4)
