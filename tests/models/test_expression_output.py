"""Normalised expression, library sizes and their arguments."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import torch
import zarr

from sccvae import tl
from sccvae.inference import posterior
from sccvae.modules.networks import LEAST_L


def test_expression_is_a_table_with_names(adata, model):
    frame = model.get_normalized_expression()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.index) == list(adata.obs_names)
    assert list(frame.columns) == list(adata.var_names)
    assert (frame.dtypes == np.float32).all()
    np.testing.assert_allclose(frame.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(frame, model.get_normalized_expression(return_numpy=True))


@pytest.mark.parametrize("as_index", [list, pd.Index, np.array, tuple])
def test_gene_list_keeps_its_order_and_repetitions(model, as_index):
    genes = ["gene40", "gene2", "gene59", "gene2"]
    frame = model.get_normalized_expression(gene_list=as_index(genes))
    assert list(frame.columns) == genes
    whole = model.get_normalized_expression()
    for position, gene in enumerate(genes):
        np.testing.assert_array_equal(frame.iloc[:, position], whole[gene])


@pytest.mark.parametrize(
    ("genes", "error", "text"),
    [
        (["gene1", "gen2", "xyz"], ValueError, "gene_list names 2 unknown genes: 'gen2', 'xyz'. Did you mean 'gene"),
        ("gene1", TypeError, "gene_list is the text 'gene1'; expected a list of gene names: pass ['gene1']."),
    ],
)
def test_unknown_genes_are_an_error(model, genes, error, text):
    with pytest.raises(error, match=re.escape(text)):
        model.get_normalized_expression(gene_list=genes)


def test_transform_batch(adata, model):
    def get(batch):
        return model.get_normalized_expression(transform_batch=batch, return_numpy=True)

    single = {name: get(name) for name in "abc"}
    for name in "abc":
        own = (adata.obs["batch"] == name).to_numpy()
        np.testing.assert_allclose(get(None)[own], single[name][own], rtol=1e-5)
        assert np.abs(single[name][~own] - get(None)[~own]).max() > 1e-3
    np.testing.assert_allclose(get("all"), (single["a"] + single["b"] + single["c"]) / 3, rtol=1e-5)
    np.testing.assert_allclose(get(["c", "a"]), (single["a"] + single["c"]) / 2, rtol=1e-5)
    np.testing.assert_array_equal(get(["b"]), single["b"])


def test_transform_batch_of_an_unknown_batch(model):
    with pytest.raises(
        ValueError, match=r"^Unknown batch 'd' of 'batch'; expected one of the training data: 'a', 'b', 'c'\.$"
    ):
        model.get_normalized_expression(transform_batch="d")


def test_batches_without_batch_key_have_no_names_to_choose(adata, fit):
    model = fit(adata)
    np.testing.assert_array_equal(
        model.get_normalized_expression(transform_batch="all"), model.get_normalized_expression()
    )
    with pytest.raises(ValueError, match="built without batch_key"):
        model.get_normalized_expression(transform_batch="a")


@pytest.mark.parametrize("batch", [1, np.int64(1), "1", [1], np.array([1])], ids=repr)
def test_batches_of_an_integer_column_are_named_by_number_or_text(adata, fit, batch):
    adata.obs["batch"] = adata.obs["batch"].cat.codes.astype(int)
    model = fit(adata, batch_key="batch")
    expected = model.get_normalized_expression(transform_batch="1", return_numpy=True)
    np.testing.assert_array_equal(model.get_normalized_expression(transform_batch=batch, return_numpy=True), expected)


def test_library_size_scales_the_rows(adata, model):
    rho = model.get_normalized_expression(return_numpy=True)
    for size, expected in [
        (1e4, 1e4),
        (2, 2),
        ("latent", model.get_latent_library_size()[:, None]),
        ("observed", np.asarray(adata.X.sum(1))),
    ]:
        scaled = model.get_normalized_expression(library_size=size, return_numpy=True)
        np.testing.assert_allclose(scaled, rho * expected, rtol=1e-4)


def test_latent_library_sizes_are_near_the_totals(adata, model):
    library = model.get_latent_library_size()
    totals = np.asarray(adata.X.sum(1)).ravel()
    assert (library.shape, library.dtype) == ((120,), np.float32)
    assert np.corrcoef(np.log(library), np.log(totals))[0, 1] > 0.9
    assert 0.8 < np.median(library / totals) < 1.25


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_latent_library_sizes_are_bounded_from_below_in_all_outputs_alike(adata, fit, likelihood):
    model, totals = fit(adata, 2, batch_key="batch", gene_likelihood=likelihood), np.asarray(adata.X.sum(1)).ravel()
    with torch.no_grad():
        model._vae.encoder.library.bias[0] = -3.0  # a twentieth of the molecules seen
    library = model.get_latent_library_size()
    np.testing.assert_allclose(library, np.exp(LEAST_L) * totals, rtol=1e-5)
    np.testing.assert_allclose(model.get_likelihood_parameters()["mean"].sum(1), library, rtol=1e-4)
    np.testing.assert_allclose(model.get_normalized_expression(library_size="latent").sum(1), library, rtol=1e-4)
    np.testing.assert_allclose(model.get_reconstruction().sum(1), library, rtol=1e-4)
    tl.store(adata, model, expression=False)
    np.testing.assert_array_equal(adata.obs["sccvae_library"], library)
    cells = model.generate(2000, prior="aggregate", seed=1)
    assert np.median(cells.obs["sccvae_library"]) == pytest.approx(np.median(library), rel=0.1)
    q = torch.tensor(np.log(library))
    prior = model._vae.library_prior(model._counts.minibatch(slice(None)))
    _, _, kl_l = posterior.elbo_terms(model._vae, model._counts, seed=0)
    least = ((q - prior.mean).square() / (2 * prior.variance)).numpy()  # what is left of the KL without its variance
    assert (kl_l >= least - 1e-4).all()


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli"])
def test_no_library_size_where_there_is_no_library(layered, fit, likelihood):
    layer = {"normal": "lognorm", "bernoulli": "binary"}[likelihood]
    model = fit(layered, gene_likelihood=likelihood, layer=layer)
    with pytest.raises(ValueError, match=f"gene_likelihood='{likelihood}' has no library size"):
        model.get_latent_library_size()
    assert "sccvae_library" not in model.generate(4).obs


def test_observed_library_is_the_total_count(adata, fit):
    totals = np.asarray(adata.X.sum(1)).ravel()
    np.testing.assert_allclose(fit(adata, library="observed").get_latent_library_size(), totals, rtol=1e-5)


def test_means_over_samples_approach_the_expectation(model):
    few, many, other = (
        model.get_normalized_expression(n_samples=n, seed=seed, return_numpy=True)
        for n, seed in [(1, 0), (200, 0), (200, 1)]
    )
    assert np.abs(many - other).mean() < 0.3 * np.abs(few - many).mean()
    np.testing.assert_allclose(many.sum(1), 1, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtype_of_expression(model, dtype):
    values = model.get_normalized_expression(dtype=dtype, return_numpy=True)
    assert values.dtype == dtype
    np.testing.assert_allclose(values, model.get_normalized_expression(return_numpy=True), atol=1e-3)


@pytest.mark.parametrize("kind", ["ndarray", "memmap", "zarr"])
def test_out_is_filled_chunk_by_chunk_and_returned(model, tmp_path, kind):
    make = {
        "ndarray": lambda: np.full((120, 3), np.nan),
        "memmap": lambda: np.memmap(tmp_path / "out", dtype="float32", mode="w+", shape=(120, 3)),
        "zarr": lambda: zarr.create_array(str(tmp_path / "out.zarr"), shape=(120, 3), chunks=(17, 2), dtype="float32"),
    }
    out = make[kind]()
    genes = ["gene5", "gene0", "gene9"]
    given = model.get_normalized_expression(out=out, gene_list=genes, chunk_size=13, transform_batch="all")
    assert given is out
    expected = model.get_normalized_expression(gene_list=genes, transform_batch="all")
    np.testing.assert_allclose(np.asarray(out[:]), expected, rtol=1e-4)


def test_out_of_another_shape_is_refused(model):
    with pytest.raises(ValueError, match=r"out has shape \(60, 120\); expected \(cells, genes\) = \(120, 60\)"):
        model.get_normalized_expression(out=np.zeros((60, 120)))


@pytest.mark.parametrize("chunk_size", [1, 7, 120, 1000])
def test_chunk_size_does_not_matter(model, chunk_size):
    whole = model.get_normalized_expression(return_numpy=True)
    part = model.get_normalized_expression(return_numpy=True, chunk_size=chunk_size)
    np.testing.assert_allclose(part, whole, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    "indices",
    [[3, 1, 1], np.array([119, 0]), range(4), np.arange(120) % 5 == 0, [-1]],
    ids=["list", "array", "range", "mask", "negative"],
)
def test_indices_choose_cells(adata, model, indices):
    at = np.arange(120)[indices]
    frame = model.get_normalized_expression(indices=indices)
    assert list(frame.index) == list(adata.obs_names[at])
    whole = model.get_normalized_expression().to_numpy()
    np.testing.assert_allclose(frame, whole[at], rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(
        model.get_latent_library_size(adata, indices=indices), model.get_latent_library_size()[at], rtol=1e-5
    )
    assert model.get_likelihood_parameters(indices=indices)["mean"].shape == (len(at), 60)
    assert model.get_marginal_ll(indices=indices, return_mean=False, n_samples=2).shape == (len(at),)


def test_indices_may_be_a_column_of_booleans(adata, model):
    z = model.get_latent_representation(indices=adata.obs["batch"] == "a")
    np.testing.assert_allclose(z, model.get_latent_representation()[adata.obs["batch"] == "a"], rtol=1e-4, atol=1e-6)


def test_no_cells_asked_no_cells_given(model):
    assert model.get_latent_representation(indices=np.zeros(120, dtype=bool)).shape == (0, 4)
    assert model.get_normalized_expression(indices=[]).shape == (0, 60)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"indices": np.ones(5, dtype=bool)}, "120"),
        ({"indices": np.ones(200, dtype=bool)}, "120"),
        ({"indices": [500]}, "500"),
        ({"n_samples": 0}, "n_samples"),
        ({"n_samples": -1}, "n_samples"),
        ({"chunk_size": -1}, "chunk_size"),
        ({"transform_batch": []}, "batch"),
        ({"library_size": "laten"}, "library_size"),
    ],
    ids=[
        "short_mask", "long_mask", "no_such_cell", "no_samples", "negative_samples", "negative_chunk", "no_batches",
        "misspelt_library",
    ],
)  # fmt: skip
def test_arguments_that_mean_nothing_are_errors_and_not_garbage(model, options, word):
    with pytest.raises((ValueError, IndexError), match=word):
        model.get_normalized_expression(**options)
