"""`tl.map_query` and `tl.transfer_labels`: what is written, what is replaced, and what is refused."""

from __future__ import annotations

import inspect
from functools import partialmethod

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from helpers import warnings_are_errors

import sccvae
from sccvae import tl
from sccvae.data import matrix
from sccvae.tl import results

SMALL = {"n_hidden": 16, "n_latent": 4}
QUICK = {"max_epochs": 3, "progress_bar": False}
COLUMNS = [f"sccvae_{name}" for name in ("label", "probability", "novelty", "accepted", "reason")]


def halves(make_adata) -> tuple[ad.AnnData, ad.AnnData]:
    """Cells of two batches, and of the third."""
    adata = make_adata()
    del adata.var["highly_variable"]
    new = (adata.obs["batch"] == "c").to_numpy()
    return adata[~new].copy(), adata[new].copy()


@pytest.fixture(scope="module")
def models(make_adata):
    """The reference with labels, the same without, and the cells of both."""
    known, _ = halves(make_adata)
    found = [sccvae.SCCVAE(known, batch_key="batch", labels_key=key, **SMALL) for key in ("kind", None)]
    for model in found:
        model.train(**QUICK)
    return *found, known


@pytest.fixture
def query(make_adata):
    return halves(make_adata)[1]


def test_everything_promised_is_written_and_nothing_else(models, query):
    before = query.copy()
    with warnings_are_errors():
        assert tl.map_query(query, models[0]) is None
    assert {*query.obsm} == {"X_sccvae"}
    assert [column for column in query.obs if column not in before.obs] == COLUMNS
    assert {*query.uns} == {"sccvae"}
    assert not {key for key in query.layers if key is not None}
    assert list(query.var) == list(before.var)
    assert (query.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(query.obs[before.obs.columns], before.obs)
    assert query.obsm["X_sccvae"].shape == (40, 4)
    assert list(query.obs["sccvae_label"].cat.categories) == ["w", "x", "y", "z"]
    assert query.obs["sccvae_accepted"].dtype == bool
    assert isinstance(query.obs["sccvae_reason"].dtype, pd.CategoricalDtype)
    assert ((query.obs["sccvae_reason"] == "") == query.obs["sccvae_accepted"]).all()
    assert query.obs[["sccvae_probability", "sccvae_novelty"]].min().min() >= 0
    assert set(query.uns["sccvae"]) == {"parameters", "history", "versions", "mapping"}
    assert query.uns["sccvae"]["mapping"] == {
        "n_cells": 40, "known_batches": [], "new_batches": ["c"], "trained": True
    }  # fmt: skip


def test_what_is_written_is_what_the_model_says(models, query):
    mapped = sccvae.SCCVAE.load_query_data(query, models[0])
    mapped.train(progress_bar=False)
    expected = mapped.predict(seed=3)
    tl.map_query(query, models[0], seed=3)
    np.testing.assert_array_equal(query.obsm["X_sccvae"], mapped.get_latent_representation())
    for name in ("label", "probability", "novelty", "accepted", "reason"):
        np.testing.assert_array_equal(query.obs[f"sccvae_{name}"].astype(expected[name].dtype), expected[name])


def test_a_folder_is_the_model_in_it(models, query, tmp_path):
    models[0].save(tmp_path / "model")
    expected = tl.map_query(query, models[0], copy=True)
    for folder in (tmp_path / "model", str(tmp_path / "model")):
        found = tl.map_query(query, folder, copy=True)
        np.testing.assert_array_equal(found.obsm["X_sccvae"], expected.obsm["X_sccvae"])
        pd.testing.assert_frame_equal(found.obs, expected.obs)
    assert not query.obsm


def test_a_copy_by_keyword_leaves_the_query(models, query, fingerprint):
    before = fingerprint(query)
    found = tl.map_query(query=query, model=models[0], copy=True)
    assert "X_sccvae" in found.obsm
    assert fingerprint(query) == before


def test_no_such_folder_and_what_is_no_model(models, query, tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        tl.map_query(query, tmp_path / "none")
    with pytest.raises(TypeError, match=r"model, the second argument, is 'none'; expected a trained SCCVAE"):
        tl.map_query(query, "none")
    with pytest.raises(TypeError, match="model is of type AnnData; expected a trained SCCVAE"):
        tl.map_query(query, query)
    with pytest.raises(RuntimeError, match=r"The model is not trained yet: call train\(\) first\."):
        tl.map_query(query, sccvae.SCCVAE(models[2], **SMALL))
    assert not query.obsm


def test_without_labels(models, query):
    for model, options in ((models[0], {"labels": False}), (models[1], {})):
        found = tl.map_query(query, model, copy=True, **options)
        assert list(found.obs) == list(query.obs)
        assert found.obsm["X_sccvae"].shape == (40, 4)


def test_without_training_the_offsets_are_the_mean_ones(models, query):
    tl.map_query(query, models[0], train=False)
    expected = sccvae.SCCVAE.load_query_data(query, models[0]).get_latent_representation()
    np.testing.assert_array_equal(query.obsm["X_sccvae"], expected)
    assert query.uns["sccvae"]["mapping"]["trained"] is False
    trained = tl.map_query(query, models[0], copy=True)
    assert np.abs(trained.obsm["X_sccvae"] - expected).max() > 1e-4


def test_cells_of_known_batches_keep_their_embedding(models):
    model, _, known = models
    again = tl.map_query(known[:30], model, copy=True)
    np.testing.assert_array_equal(again.obsm["X_sccvae"], model.get_latent_representation(known[:30].copy()))
    assert again.uns["sccvae"]["mapping"] == {
        "n_cells": 30, "known_batches": ["a", "b"], "new_batches": [], "trained": False
    }  # fmt: skip


def test_another_column_of_batches(models, query):
    query.obs["experiment"] = query.obs.pop("batch").astype(str) + "_2"
    with pytest.raises(KeyError, match=r"adata\.obs has no column 'batch'"):
        tl.map_query(query, models[0])
    tl.map_query(query, models[0], batch_key="experiment")
    assert query.uns["sccvae"]["mapping"]["new_batches"] == ["c_2"]


def test_results_of_an_earlier_run_are_replaced(models, query):
    tl.integrate(query, model_options=SMALL, train_options=QUICK)
    assert {"sccvae", "sccvae_corrected"} <= set(query.layers)
    tl.map_query(query, models[0])
    assert not {key for key in query.layers if key is not None}
    assert "sccvae_library" not in query.obs
    assert set(COLUMNS) <= set(query.obs)
    once = query.copy()
    tl.map_query(query, models[0])
    pd.testing.assert_frame_equal(query.obs, once.obs)
    tl.map_query(query, models[1])
    assert not set(COLUMNS) & set(query.obs)
    tl.map_query(query, models[0])
    tl.integrate(query, model_options=SMALL, train_options=QUICK)
    assert not set(COLUMNS) & set(query.obs)


def test_a_column_of_the_user_with_such_a_name_stays(models, query):
    tl.map_query(query, models[1])
    query.obs["sccvae_label"] = "mine"
    tl.map_query(query, models[1])
    assert set(query.obs["sccvae_label"]) == {"mine"}


def test_two_mappings_side_by_side(models, query):
    tl.map_query(query, models[0])
    tl.map_query(query, models[0], key_added="mean", train=False)
    assert {*query.obsm} == {"X_sccvae", "X_mean"}
    assert {"sccvae_label", "mean_label"} <= set(query.obs)


def test_columns_that_the_model_reads_are_kept(make_adata):
    known, _ = halves(make_adata)
    known.obs = known.obs.rename(columns={"kind": "mine_label"})
    with pytest.raises(ValueError, match=r"adata\.obs\['mine_label'\], read by the model, would be lost"):
        tl.integrate(known, labels_key="mine_label", key_added="mine", model_options=SMALL, train_options=QUICK)
    model = sccvae.SCCVAE(known, batch_key="batch", labels_key="mine_label", **SMALL)
    model.train(**QUICK)
    with pytest.raises(ValueError, match="would be lost"):
        tl.transfer_labels(known, model, key_added="mine")
    query = known[:20].copy()
    tl.map_query(query, model, key_added="mine")  # the labels of new cells take no part
    tl.map_query(query, model, key_added="mine")
    assert "mine_probability" in query.obs


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key_added": "a/b"}, ValueError, "key_added is 'a/b'"),
        ({"labels": "no"}, TypeError, r"^labels is 'no'; expected True or False"),
        ({"train": 1}, TypeError, r"^train is 1; expected True or False"),
        ({"copy": "no"}, TypeError, r"^copy is 'no'; expected True or False"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"batch_key": "bach"}, KeyError, "Did you mean 'batch'"),
    ],
)
def test_bad_arguments(models, query, options, error, message, fingerprint):
    before = fingerprint(query)
    with pytest.raises(error, match=message):
        tl.map_query(query, models[0], **options)
    assert fingerprint(query) == before


@pytest.mark.parametrize("name", ["mapped.h5ad", "mapped.zarr"])
def test_files_keep_it(models, query, tmp_path, name):
    tl.map_query(query, models[0])
    path, is_zarr = tmp_path / name, name.endswith("zarr")
    (query.write_zarr if is_zarr else query.write_h5ad)(path)
    again = (ad.read_zarr if is_zarr else ad.read_h5ad)(path)
    pd.testing.assert_frame_equal(again.obs[COLUMNS], query.obs[COLUMNS], check_categorical=False)
    assert list(again.uns["sccvae"]["mapping"]["new_batches"]) == ["c"]
    assert again.uns["sccvae"]["mapping"]["trained"]
    tl.map_query(again, models[0])  # what was read is known as an earlier run


@pytest.fixture
def small_blocks(monkeypatch):
    """13 cells at once."""
    monkeypatch.setattr(matrix, "BLOCK_BYTES", 8 * 60 * 13)
    monkeypatch.setattr("sccvae.data.sources.BLOCK_BYTES", 8 * 60 * 13)


@pytest.mark.parametrize("name", ["mapped.h5ad", "mapped.zarr"])
def test_a_file_is_mapped_block_by_block(models, query, tmp_path, small_blocks, name):
    """Of few cells all are read for the offsets, and results are those in memory."""
    query.obs["note"] = [None if k % 3 else "text" for k in range(query.n_obs)]
    query[:15].copy().write_h5ad(tmp_path / "a.h5ad")
    query[15:].copy().write_zarr(tmp_path / "b.zarr")
    models[0].save(tmp_path / "model")
    tl.map_query([tmp_path / "a.h5ad", tmp_path / "b.zarr"], tmp_path / "model", out=tmp_path / name)
    found = (ad.read_zarr if name.endswith("zarr") else ad.read_h5ad)(tmp_path / name)
    expected = tl.map_query(query, models[0], copy=True)
    assert found.obs_names.equals(query.obs_names)
    assert (found.X != query.X).nnz == 0
    np.testing.assert_allclose(found.obsm["X_sccvae"], expected.obsm["X_sccvae"], atol=1e-4)
    assert list(found.obs) == list(expected.obs)
    for column in ("novelty", "probability"):  # samples of z differ between blocks
        np.testing.assert_allclose(found.obs[f"sccvae_{column}"], expected.obs[f"sccvae_{column}"], atol=0.15)
    assert ((found.obs["sccvae_reason"] == "") == found.obs["sccvae_accepted"]).all()
    mapping = found.uns["sccvae"]["mapping"]
    assert mapping["n_cells"] == 40
    assert list(mapping["new_batches"]) == ["c"]
    assert mapping["trained"]


def test_offsets_are_adapted_to_some_cells_of_large_files(models, make_adata, tmp_path, small_blocks, monkeypatch):
    everything = make_adata()
    del everything.var["highly_variable"]
    everything.write_h5ad(tmp_path / "all.h5ad")
    monkeypatch.setattr("sccvae.tl.mapping.ADAPTED", 30)
    given, load = [], sccvae.SCCVAE.load_query_data.__func__
    kind = classmethod(lambda cls, adata, *a, **b: (given.append(adata), load(cls, adata, *a, **b))[1])
    monkeypatch.setattr(sccvae.SCCVAE, "load_query_data", kind)
    tl.map_query(tmp_path / "all.h5ad", models[0], out=tmp_path / "mapped.h5ad", labels=False)
    (some,) = given
    assert some.obs["batch"].value_counts().to_dict() == {"a": 10, "b": 10, "c": 10}
    assert (some.X != everything[some.obs_names].X).nnz == 0
    found = ad.read_h5ad(tmp_path / "mapped.h5ad")
    assert not set(COLUMNS) & set(found.obs)
    known = (everything.obs["batch"] != "c").to_numpy()
    expected = models[0].get_latent_representation(everything[known].copy())
    np.testing.assert_allclose(found.obsm["X_sccvae"][known], expected, atol=1e-4)


def test_files_need_another_file_to_write(models, query, tmp_path):
    query.write_h5ad(path := tmp_path / "query.h5ad")
    with pytest.raises(TypeError, match=r"query is a path; expected an AnnData to write into. Of files, name the new"):
        tl.map_query(path, models[0])
    with pytest.raises(ValueError, match="The output would replace"):
        tl.map_query(path, models[0], out=path)
    with pytest.raises(KeyError, match=r"adata\.obs has no column 'bach'"):
        tl.map_query(path, models[0], batch_key="bach", out=tmp_path / "new.h5ad")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["query.h5ad"]


# ---------------------------------------------------------------------------------------------------- transfer_labels


def test_labels_of_the_model_are_transferred(models, query):
    model, _, known = models
    known = known.copy()
    tl.transfer_labels(known, model)
    assert list(known.obs)[-5:] == COLUMNS
    assert not known.obsm
    assert not known.uns
    np.testing.assert_array_equal(known.obs["sccvae_probability"], model.predict()["probability"])
    mapped = sccvae.SCCVAE.load_query_data(query, model)
    tl.transfer_labels(query, mapped, key_added="mine", seed=2)
    np.testing.assert_array_equal(query.obs["mine_probability"], mapped.predict(seed=2)["probability"])


def test_rates_are_passed_on(models):
    model, _, known = models
    rare = tl.transfer_labels(known, model, novelty_rate=0.5, copy=True)
    usual = tl.transfer_labels(known, model, novelty_rate=0.0, copy=True)
    assert rare.obs["sccvae_accepted"].sum() < usual.obs["sccvae_accepted"].sum()
    with pytest.raises(ValueError, match=r"novelty_rate is 2\.0; expected a fraction"):
        tl.transfer_labels(known, model, novelty_rate=2)


def test_labels_of_the_reference_are_transferred_by_neighbours(models):
    _, model, known = models
    known = known.copy()
    with pytest.raises(ValueError, match="The model has no labels"):
        tl.transfer_labels(known, model)
    tl.transfer_labels(known, model, reference_labels="kind")
    assert list(known.obs["sccvae_label"].cat.categories) == ["w", "x", "y", "z"]
    expected = model.predict(reference_labels="kind")
    np.testing.assert_array_equal(known.obs["sccvae_label"].astype(str), expected["label"].astype(str))


def test_a_new_batch_has_to_be_mapped_first(models, query):
    with pytest.raises(ValueError, match="Unknown category 'c' of 'batch'"):
        tl.transfer_labels(query, models[0])


def test_a_view_becomes_an_anndata_of_its_own(models):
    model, _, known = models
    view = known[:30]
    tl.transfer_labels(view, model)
    assert not view.is_view
    assert "sccvae_label" in view.obs
    assert "sccvae_label" not in known.obs


# ---------------------------------------------------------------------------------------------------------- integrate


def test_integrate_with_labels(make_adata, tmp_path):
    known, _ = halves(make_adata)
    known.obs["some"] = known.obs["kind"].astype(str).where(np.arange(known.n_obs) % 2 == 0, "Unknown")
    known.write_h5ad(tmp_path / "cells.h5ad")
    options = {"batch_key": "batch", "labels_key": "some", "unlabeled": "Unknown"}
    options |= {"model_options": SMALL, "train_options": QUICK}
    tl.integrate(known, **options)
    assert set(COLUMNS) <= set(known.obs)
    assert known.obs["sccvae_label"].notna().all()
    assert list(known.obs["sccvae_label"].cat.categories) == ["w", "x", "y", "z"]
    assert known.uns["sccvae"]["parameters"]["labels_key"] == "some"
    tl.integrate(str(tmp_path / "cells.h5ad"), out=tmp_path / "out.h5ad", **options)
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    assert [column for column in found.obs if column in COLUMNS] == COLUMNS
    reason = found.obs["sccvae_reason"]
    assert isinstance(reason.dtype, pd.CategoricalDtype)
    assert reason.equals(pd.Series(pd.Categorical(reason.astype(str)), reason.index, name="sccvae_reason"))
    assert ((reason == "") == found.obs["sccvae_accepted"]).all()
    assert (reason.astype(str) == known.obs["sccvae_reason"].astype(str)).mean() > 0.9
    np.testing.assert_allclose(found.obs["sccvae_novelty"], known.obs["sccvae_novelty"], atol=1e-3)
    assert (found.obs["sccvae_label"].astype(str) == known.obs["sccvae_label"].astype(str)).mean() > 0.95
    with pytest.raises(ValueError, match="unlabeled is 'unknown', and no cell has it"):
        tl.integrate(known, **{**options, "unlabeled": "unknown"})


@pytest.mark.parametrize("name", ["out.h5ad", "out.zarr"])
def test_reasons_in_files_are_those_in_memory(models, tmp_path, monkeypatch, name):
    """Blocks of a few cells have different reasons."""
    model, _, known = models
    rates = {"novelty_rate": 0.3, "error_rate": 0.6}
    monkeypatch.setattr(sccvae.SCCVAE, "predict", partialmethod(sccvae.SCCVAE.predict, **rates))
    monkeypatch.setattr("sccvae.data.sources.BLOCK_BYTES", 4000)
    tables, write_labels = [], results.write_labels
    monkeypatch.setattr(results, "write_labels", lambda *a, **b: (tables.append(a[1]), write_labels(*a, **b))[1])
    tl.store(known, model, out=tmp_path / name, expression=False)
    found = (ad.read_zarr if name.endswith("zarr") else ad.read_h5ad)(tmp_path / name)
    assert len({frozenset(table["reason"]) for table in tables}) > 1
    expected = pd.concat(tables)["reason"].astype("category").rename("sccvae_reason")
    pd.testing.assert_series_equal(found.obs["sccvae_reason"], expected, check_index_type=False)
    assert list(found.obs)[-5:] == COLUMNS
    tl.store(found, model)  # what was read is known as an earlier run
    assert list(found.obs).count("sccvae_reason") == 1


def test_reasons_have_numbers_that_depend_on_the_labels_alone():
    labels = ["a", "b and c", "b", "c and between a and b"]
    reasons = ["", "new kind", "few molecules", "few shared genes", "between b and c and between a and b"]
    reasons += ["between b and c and b", "between a and b and c"]
    first = [0, 1, 2, 3, 2, 1, 0]
    table = pd.DataFrame({"label": pd.Categorical.from_codes(first, labels), "reason": reasons})
    numbers = results.reason_numbers(table)
    assert results.reasons_of(numbers, labels) == reasons
    assert len(set(numbers)) == 7
    np.testing.assert_array_equal(results.reason_numbers(table[3:]), numbers[3:])


def test_rates_are_those_of_predict():
    of = {function: inspect.signature(function).parameters for function in (tl.transfer_labels, sccvae.SCCVAE.predict)}
    for name in ("novelty_rate", "error_rate", "reference_labels", "seed"):
        first, second = (parameters[name].default for parameters in of.values())
        assert first == second, name
