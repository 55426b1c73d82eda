"""Fractional counts, as of RSEM, Salmon or Smart-seq2: rounded when asked, refused with both ways on when not."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import sccvae
from sccvae.data import matrix
from sccvae.data.schema import Schema

RAW = "use the raw matrix from before sc.pp.normalize_total and log1p."
ROUND = "pass round_counts=True when the model is built (command line: --round-counts)"


@pytest.fixture
def fractional(adata):
    """`adata` with expected counts that are whole only when rounded."""
    noise = np.random.default_rng(0).uniform(-0.4, 0.4, adata.X.nnz)
    adata.layers["whole"] = adata.X.copy()
    adata.X = adata.X.astype(np.float64)
    adata.X.data += noise
    return adata


def learn(adata, **options):
    return Schema.learn(adata, round_counts=True, **options)[1].matrix.toarray()


@pytest.mark.parametrize("blocks", [2**26, 8 * 60 * 7])
@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, sp.csr_array, lambda m: m.toarray()])
@pytest.mark.parametrize("dtype", ["float32", "float64", "longdouble"])
def test_values_are_rounded(fractional, form, dtype, blocks, monkeypatch):
    monkeypatch.setattr(matrix, "BLOCK_BYTES", blocks)
    fractional.X = form(fractional.X.astype(dtype))
    before = fractional.copy()
    np.testing.assert_array_equal(learn(fractional), fractional.layers["whole"].toarray())
    np.testing.assert_array_equal(np.asarray(fractional.to_df()), np.asarray(before.to_df()))


def test_halves_go_to_the_even_number_and_duplicates_are_added_first(adata):
    values = sp.csr_matrix(([0.5, 1.5, 2.5, 0.3, 0.3], [0, 1, 2, 3, 3], [0, 5]), shape=(1, 60))
    adata = adata[:1].copy()
    adata.X = values
    assert learn(adata)[0, :4].tolist() == [0, 2, 2, 1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.2, "adata.X holds negative values: -0.2"),
        (np.nan, "adata.X holds values that are not counts: nan"),
        (np.inf, "adata.X holds values that are not counts: inf"),
        (2.0**24 + 2, "adata.X holds a count above 2**24"),
    ],
)
def test_what_is_no_expected_count_stays_refused(fractional, value, text):
    fractional.X.data[-1] = value
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        learn(fractional)


def test_a_cell_that_is_empty_once_rounded_is_named(fractional):
    fractional.X = fractional.X.toarray()
    fractional.X[5] = 0.4
    with pytest.raises(ValueError, match=r"^1 of 120 cells have no counts .* once they are rounded, such as 'cell\d+'"):
        learn(fractional)


@pytest.mark.parametrize("model_class", [sccvae.SCCVAE, sccvae.Autoencoder, sccvae.DenoisingAutoencoder])
def test_new_data_and_saved_models_round_alike(fractional, model_class, tmp_path):
    whole = fractional.copy()
    whole.X = fractional.layers["whole"]
    model = model_class(fractional, round_counts=True, n_hidden=8, n_latent=3)
    model.train(1, progress_bar=False)
    expected = model.get_latent_representation()
    same = model_class(whole, n_hidden=8, n_latent=3)
    same.train(1, progress_bar=False)
    np.testing.assert_array_equal(same.get_latent_representation(), expected)
    model.save(tmp_path / "model")
    for held in (model, model_class.load(tmp_path / "model"), model_class.load(tmp_path / "model", fractional)):
        for data in (fractional, whole):
            np.testing.assert_array_equal(held.get_latent_representation(data), expected)


def test_integrate_rounds_and_leaves_the_matrix_alone(fractional):
    before = fractional.X.copy()
    options = {"model_options": {"n_hidden": 8}, "train_options": {"max_epochs": 1, "progress_bar": False}}
    sccvae.tl.integrate(fractional, round_counts=True, **options)
    assert (before != fractional.X).nnz == 0
    assert fractional.uns["sccvae"]["parameters"]["round_counts"] is True
    expected = fractional.obsm["X_sccvae"]
    options["model_options"]["round_counts"] = True  # this way, too
    sccvae.tl.integrate(fractional, **options)
    np.testing.assert_array_equal(fractional.obsm["X_sccvae"], expected)


def test_the_picture_before_integration_is_of_the_rounded_counts(fractional, monkeypatch):
    monkeypatch.setattr(sccvae.pl.embedding, "umap", lambda representation, **_: representation[:, :2])
    options = {"model_options": {"n_hidden": 8}, "train_options": {"max_epochs": 1, "progress_bar": False}}
    sccvae.tl.integrate(fractional, batch_key="batch", mask_var=None, round_counts=True, **options)
    whole = fractional.copy()
    whole.X = fractional.layers["whole"]
    drawn = []
    for adata in (fractional, whole):
        points = sccvae.pl.integration(adata, show=False).axes[0].collections[0].get_offsets()
        drawn.append(np.asarray(points))
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-4)


def test_cross_validation_rounds(fractional):
    settings, options = {"a": {"n_hidden": 8}}, {"max_epochs": 1}
    table = sccvae.cross_validate(fractional, settings, options=options, n_splits=1, round_counts=True)
    expected = sccvae.cross_validate(fractional, settings, options=options, n_splits=1, layer="whole")
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), expected.drop(columns="seconds"))
    model = sccvae.SCCVAE(fractional, round_counts=True, n_hidden=8)
    assert model.cross_validate(options=options, n_splits=1).shape[0] == 2
    with pytest.raises(ValueError, match="names 'round_counts', which is the same for all settings"):
        sccvae.cross_validate(fractional, {"a": {"round_counts": True}}, round_counts=True)


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli"])
def test_only_counts_are_rounded(adata, likelihood):
    with pytest.raises(ValueError, match=r"round_counts is True for .* data; expected False, or counts"):
        sccvae.SCCVAE(adata, gene_likelihood=likelihood, round_counts=True)


def test_the_switch_is_true_or_false(adata):
    with pytest.raises(TypeError, match="round_counts is 'no'; expected True or False"):
        sccvae.SCCVAE(adata, round_counts="no")


# --------------------------------------------------------------------------------------------------- how it is refused


def refused(adata, **options) -> str:
    with pytest.raises(ValueError, match="values that are not counts") as caught:
        sccvae.SCCVAE(adata, **options)
    return str(caught.value)


def test_expected_counts_are_told_how_to_be_rounded_first(fractional):
    del fractional.layers["whole"]
    fractional.X = fractional.X * 10
    text = refused(fractional)
    assert text.endswith(f"{RAW} If these are expected counts, as of RSEM, Salmon or Smart-seq2: {ROUND}.")


@pytest.mark.parametrize("how", ["log", "log of few genes", "totals"])
def test_what_looks_normalised_is_sent_back_to_the_raw_matrix(adata, how):
    totals = np.asarray(adata.X.sum(1))
    normalised = sp.csr_matrix(adata.X.multiply(1e4 / totals))
    adata.X = normalised if how == "totals" else normalised.log1p()
    mask = adata.var["highly_variable"].to_numpy() if how == "log of few genes" else None
    text = refused(adata, mask_var=mask)
    assert text.endswith(
        f"{RAW} These look normalised; only if they are expected counts, as of RSEM or Salmon, {ROUND}."
    )


def test_one_fraction_among_counts(adata):
    adata.X.data[3] = 1.5
    assert refused(adata).endswith(ROUND + ".")


def test_where_counts_lie_elsewhere_they_are_named_first(fractional):
    fractional.X = fractional.X * 10
    assert "adata.layers['whole'] holds counts: pass layer='whole'. If these are expected counts" in refused(fractional)


def test_missing_values_are_told_where_they_come_from(adata):
    for likelihood in ("zinb", "normal", "bernoulli"):
        wrong = adata.copy()
        wrong.X = np.minimum(adata.X.toarray(), 1)
        wrong.X[2, 3] = np.nan
        with pytest.raises(ValueError, match=r"nan at cell .* often come from anndata\.concat\(\.\.\., join='outer'\)"):
            sccvae.SCCVAE(wrong, gene_likelihood=likelihood)
