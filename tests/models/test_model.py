"""`SCCVAE`: reproducible, silent about everything global, and outputs that agree with each other and with the truth."""

from __future__ import annotations

import logging
import math
import os
import random
import re
import subprocess
import sys
import textwrap
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
import zarr
from helpers import warnings_are_errors
from scipy import stats
from scipy.special import logsumexp, softmax
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

import sccvae
from sccvae import simulate, tl
from sccvae.corruption import Thinning
from sccvae.inference import posterior
from sccvae.modules.networks import LEAST_L

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


# --------------------------------------------------------------------------------------------- reproducible, and silent


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(adata, fit):
    first, again, other = (fit(adata, 3, batch_key="batch", seed=seed) for seed in (1, 1, 2))
    z = first.get_latent_representation()
    np.testing.assert_array_equal(again.get_latent_representation(), z)
    timeless = [m.history.drop(columns="seconds") for m in (first, again)]
    pd.testing.assert_frame_equal(*timeless)
    assert np.abs(other.get_latent_representation() - z).max() > 0.01


@pytest.mark.slow
def test_the_process_that_compiles_has_the_bits_of_those_that_read_the_cache(tmp_path):
    code = """
        import sccvae
        cells = sccvae.simulate.simulate(256, 150, seed=0)
        model = sccvae.SCCVAE(cells, batch_key="batch", thinning=0.5, device="cpu")
        model.train(2, progress_bar=False)
        print(model.get_latent_representation().tobytes().hex(), model.get_normalized_expression().to_numpy().sum())
    """
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    options = {"capture_output": True, "text": True, "check": True, "env": environment}
    compiled, cached = (
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], **options).stdout for _ in range(2)
    )
    assert list(tmp_path.rglob("count_likelihood._cells*.nbc"))
    assert compiled == cached


def test_global_random_state_has_no_say(adata, fit):
    results = []
    for seed in (11, 12):
        np.random.seed(seed)  # noqa: NPY002  the state that must not matter
        torch.manual_seed(seed)
        random.seed(seed)
        results.append(fit(adata, 2, batch_key="batch").get_latent_representation())
    np.testing.assert_array_equal(*results)


def use_everything(adata):
    model = sccvae.SCCVAE(adata, batch_key="batch", n_hidden=8)
    model.train(2)
    model.get_normalized_expression(n_samples=2, transform_batch="all")
    model.posterior_predictive_sample()
    model.generate(5)
    model.get_elbo()
    model.get_marginal_ll(n_samples=2)
    sccvae.tl.store(adata, model)


def test_global_state_stays_as_it_was(adata, capsys):
    def state():
        return {
            "numpy": repr(np.random.get_state()),  # noqa: NPY002
            "torch": torch.get_rng_state().tolist(),
            "random": random.getstate(),
            "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
            "dtype": torch.get_default_dtype(),
            "grad": torch.is_grad_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "warnings": list(warnings.filters),
            "numpy errors": np.geterr(),
            "root": (logging.root.level, list(logging.root.handlers), logging.root.disabled),
            "logger": (logging.getLogger("sccvae").level, list(logging.getLogger("sccvae").handlers)),
        }

    before = state()
    use_everything(adata)
    after = state()
    for name, value in before.items():
        assert after[name] == value, name
    assert capsys.readouterr() == ("", "")


def test_nothing_is_logged_and_nothing_is_warned_of(adata, caplog):
    with warnings_are_errors():
        use_everything(adata)
    assert caplog.records == []


def test_every_output_is_deterministic(model):
    for _ in range(2):
        draws = [
            (
                model.get_latent_representation(),
                model.get_normalized_expression(n_samples=3, seed=4, return_numpy=True),
                model.posterior_predictive_sample(seed=4).toarray(),
                model.generate(20, seed=4).X.toarray(),
                model.get_elbo(return_mean=False, seed=4),
                model.get_reconstruction_error(return_mean=False, seed=4),
                model.get_marginal_ll(n_samples=3, return_mean=False, seed=4),
            )
            for _ in range(2)
        ]
        for first, again in zip(*draws, strict=True):
            np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    "draw",
    [
        lambda m, seed: m.get_normalized_expression(n_samples=2, seed=seed, return_numpy=True),
        lambda m, seed: m.posterior_predictive_sample(seed=seed).toarray(),
        lambda m, seed: m.generate(20, seed=seed).X.toarray(),
        lambda m, seed: m.get_elbo(return_mean=False, seed=seed),
        lambda m, seed: m.get_marginal_ll(n_samples=2, return_mean=False, seed=seed),
    ],
    ids=["expression", "predictive", "generate", "elbo", "marginal"],
)
def test_another_seed_gives_another_draw(model, draw):
    assert (draw(model, 1) != draw(model, 2)).any()


# --------------------------------------------------------------------------------------------------------- every option


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


# ----------------------------------------------------------------------------------------------------------- expression


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


# ---------------------------------------------------------------------------------------------------------------- draws


def test_posterior_predictive_sample(adata, model):
    one = model.posterior_predictive_sample(seed=1)
    assert sp.issparse(one)
    assert (one.format, one.dtype, one.shape) == ("csr", np.float32, (120, 60))
    assert (one.data == np.rint(one.data)).all()
    assert one.data.min() >= 1
    several = model.posterior_predictive_sample(n_samples=40)
    assert several.shape == (40, 120, 60)
    assert abs(several.mean() / adata.X.mean() - 1) < 0.15
    parameters = model.get_likelihood_parameters()
    expected = (parameters["mean"] * (1 - parameters["dropout"])).mean(0)
    assert np.corrcoef(np.log(several.mean((0, 1)) + 0.01), np.log(expected + 0.01))[0, 1] > 0.97


def test_generated_cells_have_batches_in_proportion_and_names(adata, fit):
    some = adata[(adata.obs["batch"] != "c") | (np.arange(120) % 4 == 0)].copy()
    model = fit(some, 3, batch_key="batch", categorical_covariate_keys=["donor"])
    new = model.generate(4000)
    assert isinstance(new, ad.AnnData)
    assert list(new.obs_names[:2]) == ["generated-0", "generated-1"]
    assert new.obs_names.is_unique
    assert list(new.var_names) == list(adata.var_names)
    assert list(new.obs["batch"].cat.categories) == ["a", "b", "c"]
    for key in ("batch", "donor"):
        found, expected = (frame[key].value_counts(normalize=True).sort_index() for frame in (new.obs, some.obs))
        np.testing.assert_allclose(found, expected, atol=0.03)
    assert sp.issparse(new.X)
    assert (new.X.format, new.X.dtype) == ("csr", np.float32)
    assert (new.X.data == np.rint(new.X.data)).all()
    z = new.obsm["X_sccvae"]
    assert z.shape == (4000, 4)
    assert abs(z.mean()) < 0.05
    assert abs(z.std() - 1) < 0.05


def test_generated_library_sizes_follow_the_batch(adata, model):
    new = model.generate(3000)
    for batch in "abc":
        real = np.log(np.asarray(adata.X.sum(1)).ravel()[adata.obs["batch"] == batch])
        drawn = np.log(new.obs["sccvae_library"][new.obs["batch"] == batch])
        np.testing.assert_allclose([drawn.mean(), drawn.std()], [real.mean(), real.std()], atol=0.04)
        totals = np.asarray(new.X.sum(1)).ravel()[new.obs["batch"] == batch]
        assert 0.85 < totals.mean() / np.exp(drawn).mean() < 1.02


@pytest.mark.parametrize(("batch", "found"), [("b", {"b"}), (["a", "c"], {"a", "c"}), ("all", {"a", "b", "c"})])
def test_generate_in_the_batches_asked(model, batch, found):
    assert set(model.generate(200, batch=batch).obs["batch"]) == found


def test_generate_in_an_unknown_batch(model):
    with pytest.raises(
        ValueError, match=r"Unknown batch 'd' of 'batch'; expected one of the training data: 'a', 'b', 'c'"
    ):
        model.generate(3, batch="d")


def test_generate_no_batch_at_all_is_an_error(model):
    with pytest.raises(ValueError, match="batch"):
        model.generate(3, batch=[])


@pytest.mark.parametrize("n_cells", [0, -1])
def test_generate_no_cells_is_an_error(model, n_cells):
    with pytest.raises(ValueError, match="n_cells"):
        model.generate(n_cells)


@pytest.mark.parametrize(
    "name", ["batch", "no_batch", "categorical", "continuous", "size_factors", "normal", "bernoulli"]
)
def test_the_model_accepts_the_cells_it_generated(layered, fit, name):
    options = {k: v for k, v in EVERY_OPTION[name].items() if k != "layer"}
    layered.X = layered.layers[EVERY_OPTION[name]["layer"]] if "layer" in EVERY_OPTION[name] else layered.X
    model = fit(layered, 2, **options)
    new = model.generate(300)
    assert model.get_latent_representation(new).shape == (300, 4)
    assert np.isfinite(model.get_elbo(new))


@pytest.fixture(scope="module")
def uneven(fit):
    """Kinds of cells that differ in size, of which batch `a` has two and batch `b` the other two; a model of them."""
    rng = np.random.default_rng(0)
    kind = np.arange(800) % 4
    profiles = rng.dirichlet(np.ones(40), size=4)
    library = rng.lognormal(np.log([60, 150, 150, 400])[kind], 0.1)
    counts = rng.poisson(profiles[kind] * library[:, None]).astype(np.float32)
    obs = pd.DataFrame({"batch": np.array(["a", "b"])[kind // 2], "kind": kind}, index=[f"c{i}" for i in range(800)])
    real = ad.AnnData(sp.csr_matrix(counts), obs=obs)
    return real, fit(real, 60, batch_key="batch", gene_likelihood="poisson", n_hidden=32), profiles


def nearest_kind(cells, profiles) -> np.ndarray:
    """The kind under whose profile the counts of each cell are likeliest."""
    return (cells.X @ np.log(profiles + 1e-4).T).argmax(1)


def test_the_aggregate_prior_keeps_kinds_to_their_batches_and_sizes(uneven):
    real, model, profiles = uneven
    new = model.generate(2000, prior="aggregate", seed=1)
    kind, batch = nearest_kind(new, profiles), new.obs["batch"].to_numpy()
    assert (nearest_kind(real, profiles) == real.obs["kind"]).mean() > 0.99
    assert np.isin(kind[batch == "a"], (0, 1)).mean() > 0.93
    assert np.isin(kind[batch == "b"], (2, 3)).mean() > 0.93
    np.testing.assert_allclose(np.bincount(kind, minlength=4) / 2000, 0.25, atol=0.05)
    for k in range(4):
        drawn, there = (np.log(np.asarray(x.X.sum(1)).ravel()) for x in (new[kind == k], real[real.obs["kind"] == k]))
        assert abs(np.median(drawn) - np.median(there)) < 0.15
    # The model's own prior knows nothing of it.
    plain = model.generate(2000, seed=1)
    assert np.isin(nearest_kind(plain, profiles)[(plain.obs["batch"] == "a").to_numpy()], (0, 1)).mean() < 0.9


def test_the_aggregate_prior_is_nearer_to_the_data(uneven):
    real, model, _ = uneven
    scores = {
        prior: sccvae.generation.two_sample_auc(
            *(sccvae.generation.log_normalized(x, total=150) for x in (real.X, model.generate(800, prior=prior).X))
        )
        for prior in ("normal", "aggregate")
    }
    assert scores["aggregate"] < 0.72 < scores["normal"] - 0.1


def test_aggregate_draws_are_the_same_for_the_same_seed(uneven):
    _, model, _ = uneven
    one, same, other = (model.generate(50, prior="aggregate", seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.X.toarray(), same.X.toarray())
    np.testing.assert_array_equal(one.obsm["X_sccvae"], same.obsm["X_sccvae"])
    assert not np.array_equal(one.X.toarray(), other.X.toarray())
    assert set(model.generate(50, prior="aggregate", batch="b").obs["batch"]) == {"b"}


@pytest.mark.parametrize(
    "name", ["batch", "no_batch", "categorical", "continuous", "size_factors", "normal", "bernoulli"]
)
def test_the_aggregate_prior_of_every_kind_of_model(layered, fit, name):
    options = {k: v for k, v in EVERY_OPTION[name].items() if k != "layer"}
    layered.X = layered.layers[EVERY_OPTION[name]["layer"]] if "layer" in EVERY_OPTION[name] else layered.X
    model = fit(layered, 2, **options)
    new = model.generate(40, prior="aggregate")
    assert new.obsm["X_sccvae"].shape == (40, 4)
    assert np.isfinite(model.get_elbo(new))


def test_training_on_fits_the_aggregate_prior_anew(adata, fit):
    model = fit(adata, 2)
    first = model.generate(20, prior="aggregate").obsm["X_sccvae"]
    model.train(3, progress_bar=False)
    mean, sd = model.get_latent_representation().mean(0), model.get_latent_representation().std(0)
    second = model.generate(2000, prior="aggregate").obsm["X_sccvae"]
    assert not np.allclose(first, second[:20])
    np.testing.assert_allclose(second.mean(0), mean, atol=0.1 + 0.1 * sd.max())


def test_an_unknown_prior_is_an_error(model):
    with pytest.raises(ValueError, match="prior is 'vamp'; expected one of 'normal', 'aggregate'"):
        model.generate(3, prior="vamp")


def test_decode_gives_the_normalised_expression_of_codes(adata, fit):
    model = fit(adata, 2, batch_key="batch", categorical_covariate_keys=["donor"], continuous_covariate_keys=["age"])
    z = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    rho = model.decode(z, batch="b")
    np.testing.assert_allclose(rho.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(model.decode(z, batch="b", library_size=50), 50 * rho, rtol=1e-5)
    # The donor that is commonest in the batch, at the mean age.
    donors = adata.obs["donor"][adata.obs["batch"] == "c"].value_counts()
    cells = adata[:3].copy()
    cells.obs = cells.obs.assign(batch="c", donor=donors.idxmax(), age=adata.obs["age"].mean())
    z = model.get_latent_representation(cells)
    np.testing.assert_allclose(
        model.decode(z, batch="c"), model.get_normalized_expression(cells, return_numpy=True), rtol=2e-3, atol=1e-6
    )


def test_generated_cells_look_like_real_cells(adata, fit):
    model = fit(adata, 60, batch_key="batch")
    new = model.generate(2000)
    real, drawn = (np.asarray(a.X.mean(0)).ravel() for a in (adata, new))
    assert np.corrcoef(np.log1p(real), np.log1p(drawn))[0, 1] > 0.9
    assert abs(drawn.sum() / real.sum() - 1) < 0.15
    assert abs((new.X != 0).mean() - (adata.X != 0).mean()) < 0.05


# ------------------------------------------------------------------------------------------------------ goodness of fit


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


# ------------------------------------------------------------------------------------------------------------- training


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
    monkeypatch.setattr("sccvae.models.base.fit", lambda *a, **_: plans.append(a[4]))
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
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0; expected a share of the units in [0, 1)."),
        ({"thinning": 1}, "thinning is 1.0; expected a share of the molecules in [0, 1)."),
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
    check, calls = sccvae.training.loop._check_finite, []

    def fail_in_the_third_epoch(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise sccvae.TrainingError("The model holds the weights of the last good epoch.")
        check(*arguments)

    monkeypatch.setattr("sccvae.training.loop._check_finite", fail_in_the_third_epoch)
    model = sccvae.SCCVAE(adata, n_hidden=8)
    with pytest.raises(sccvae.TrainingError):
        model.train(5, progress_bar=False)
    assert np.isfinite(model.get_latent_representation()).all()
    assert model.history["epoch"].max() == 2


def test_ctrl_c_ends_the_run_and_keeps_what_was_learnt(adata, monkeypatch, caplog):
    check, calls = sccvae.training.loop._check_finite, []

    def interrupt_in_the_third_epoch(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        check(*arguments)

    monkeypatch.setattr("sccvae.training.loop._check_finite", interrupt_in_the_third_epoch)
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


# ---------------------------------------------------------------------------------------------------------------- looks


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


# --------------------------------------------------------------------------------------------------- the truth is found


@pytest.fixture(scope="module")
def recovered():
    """Simulated cells with their truth, and a model trained on their counts alone."""
    adata = simulate.simulate(1500, 200, n_types=4, mean_library=500, seed=3)
    model = sccvae.SCCVAE(adata, batch_key="batch", n_hidden=128, n_latent=10)
    model.train(40, progress_bar=False)
    return adata, model


@pytest.mark.parametrize(("batch", "layer"), [(None, "rho"), ("all", "rho_corrected")])
def test_normalised_expression_is_near_the_truth(recovered, batch, layer):
    adata, model = recovered
    truth = adata.layers[layer]
    found = model.get_normalized_expression(transform_batch=batch, return_numpy=True)
    shares = adata.X.toarray() / np.asarray(adata.X.sum(1))
    assert np.corrcoef(np.log(found + 1e-5).ravel(), np.log(truth + 1e-5).ravel())[0, 1] > 0.95
    assert np.abs(found - truth).mean() < 0.5 * np.abs(shares - truth).mean()


def neighbours(space: np.ndarray, obs: pd.DataFrame) -> tuple[float, float]:
    """Share of cells of the type that most of their 15 neighbours have; share of neighbours of the cell's own batch."""
    near = NearestNeighbors(n_neighbors=16).fit(space).kneighbors(space, return_distance=False)[:, 1:]
    types, batches = obs["cell_type"].cat.codes.to_numpy(), obs["batch"].cat.codes.to_numpy()
    votes = np.array([np.bincount(types[row]).argmax() for row in near])
    return (votes == types).mean(), (batches[near] == batches[:, None]).mean()


def test_cell_types_lie_apart_and_batches_together(recovered):
    adata, model = recovered
    found, same_batch = neighbours(model.get_latent_representation(), adata.obs)
    best, by_chance = neighbours(adata.obsm["z"], adata.obs)
    shares = adata.X.toarray() / np.asarray(adata.X.sum(1))
    _, uncorrected = neighbours(np.log1p(shares * 500), adata.obs)
    assert found > 0.9 * best
    assert uncorrected > by_chance + 0.1
    assert same_batch - by_chance < 0.4 * (uncorrected - by_chance)


@pytest.mark.slow
def test_dispersions_are_near_the_truth():
    """Of genes with enough counts to tell. What the embedding leaves unexplained counts as noise: a little too low."""
    adata = sccvae.simulate.simulate(1500, 120, mean_library=2000.0, dropout=0.05, n_types=4, seed=1)
    model = sccvae.SCCVAE(adata, batch_key="batch", n_hidden=64, n_latent=10)
    model.train(40, progress_bar=False)
    expressed = np.asarray(adata.X.mean(0)).ravel() > 1
    fitted = model.get_likelihood_parameters(indices=[0])["dispersions"][0, expressed]
    truth = adata.var["theta"].to_numpy()[expressed]
    assert expressed.sum() > 50
    assert stats.spearmanr(fitted, truth).statistic > 0.7
    assert 0.5 < np.median(fitted / truth) < 1.2


# --------------------------------------------------------------------------------------------------------------- digits


def mixture_of_bernoullis(train, test, k, rng) -> np.ndarray:
    """Log-likelihood of each row of `test` under k products of Bernoullis fitted to `train` by EM."""
    share = rng.dirichlet(np.ones(k), size=len(train))
    for _ in range(100):
        weight, ones = share.mean(0), (share.T @ train + 0.5) / (share.sum(0)[:, None] + 1)
        joint = train @ np.log(ones).T + (1 - train) @ np.log1p(-ones).T + np.log(weight)
        share = softmax(joint, axis=1)
    return logsumexp(test @ np.log(ones).T + (1 - test) @ np.log1p(-ones).T + np.log(weight), axis=1)


def test_the_bernoulli_model_explains_unseen_digits_better_than_a_mixture():
    pixels, _ = load_digits(return_X_y=True)
    binary = np.random.default_rng(0).permutation((pixels >= 8).astype(np.float32))
    train, test = binary[:1400], binary[1400:]
    rng = np.random.default_rng(1)
    independent = mixture_of_bernoullis(train, test, 1, rng).mean()
    ones = (train.sum(0) + 0.5) / (len(train) + 1)
    assert independent == pytest.approx((test * np.log(ones) + (1 - test) * np.log1p(-ones)).sum(1).mean(), abs=1e-4)
    mixture = max(mixture_of_bernoullis(train, test, 10, rng).mean() for _ in range(3))
    model = sccvae.SCCVAE(ad.AnnData(train), gene_likelihood="bernoulli", n_latent=10, n_hidden=128)
    model.train(60, batch_size=100, progress_bar=False)
    ours = model.get_marginal_ll(ad.AnnData(test), n_samples=100)
    assert model.get_elbo(ad.AnnData(test)) < ours  # a lower bound
    assert ours > mixture + 1 > independent + 4
