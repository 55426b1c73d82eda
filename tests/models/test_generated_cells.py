"""Posterior predictive samples and generated cells."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import EVERY_OPTION

import sccvae


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


# ------------------------------------------------------------------------------------- cells like others, depth, truth


def test_cells_like_given_ones_resemble_them(model, adata):
    every = model.get_latent_representation()
    far = ((every[:, None] - every) ** 2).sum(2)
    few = adata[np.sort(np.unravel_index(far.argmax(), far.shape))]
    new = model.generate(4001, like=few, seed=2)
    z, (mean, variance) = new.obsm["X_sccvae"], model.get_latent_representation(few, return_dist=True)
    nearest = ((z[:, None] - mean) ** 2).sum(2).argmin(1)
    assert nearest[:2000].mean() + 0.5 < nearest[2001:].mean()  # 2,000 or 2,001 cells like the first come first
    for drawn, centre, spread in zip((z[:2000], z[2001:]), mean, variance, strict=True):
        np.testing.assert_allclose(drawn.mean(0), centre, atol=5 * np.sqrt(spread.max() / 2000))
        np.testing.assert_allclose(drawn.var(0), spread, rtol=0.2)
    assert set(new.obs["batch"]) == set(few.obs["batch"].astype(str))
    assert np.abs(np.log(new.obs["sccvae_library"].mean() / few.X.sum(1).mean())) < 0.3
    one_each = model.generate(like=adata[:7], batch="b")
    assert one_each.n_obs == 7
    assert set(one_each.obs["batch"]) == {"b"}
    again = model.generate(like=adata[:7], batch="b")
    assert (one_each.X != again.X).nnz == 0


def test_the_depth_of_new_cells_is_a_number_numbers_or_that_of_a_batch(model):
    new = model.generate(600, library_size=500.0)
    np.testing.assert_allclose(new.obs["sccvae_library"], 500, rtol=1e-5)
    assert 0.8 < np.asarray(new.X.sum(1)).mean() / 500 < 1.05
    each = np.geomspace(50, 5000, 600)
    np.testing.assert_allclose(model.generate(600, library_size=each).obs["sccvae_library"], each, rtol=1e-5)
    as_b = model.generate(3000, batch="a", library_size="b").obs
    b = model.generate(3000, batch="b").obs["sccvae_library"]
    assert set(as_b["batch"]) == {"a"}
    assert abs(np.log(as_b["sccvae_library"]).mean() - np.log(b).mean()) < 0.05


def test_covariates_of_new_cells_may_be_combined_anew(adata, fit):
    some = adata.copy()
    some.obs["age"] = np.linspace(20, 60, some.n_obs)
    options = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]}
    model = fit(some[(some.obs["batch"] != "a") | (some.obs["donor"] == "d1")].copy(), 2, batch_key="batch", **options)
    donors = list(some.obs["donor"].astype("category").cat.categories)
    new = model.generate(20, batch="a", covariates={"donor": donors[-1], "age": 33.0})
    assert set(new.obs["batch"]) == {"a"}
    assert set(new.obs["donor"]) == {donors[-1]}
    assert (new.obs["age"] == 33).all()
    young, old = (model.generate(20, covariates={"age": age}, library_size=1e4, seed=3).X for age in (20.0, 60.0))
    assert (young != old).nnz > 0
    alternating = model.generate(4, covariates={"donor": [donors[0], donors[1]] * 2}).obs["donor"]
    assert alternating.tolist() == [donors[0], donors[1]] * 2


def test_the_truth_of_new_cells_is_what_counts_were_drawn_from(labelled):
    new = labelled.generate(3000, store_truth=True, library_size=800.0, label="type_1")
    expected = new.layers["expected"]
    assert expected.dtype == np.float32
    assert abs(new.X.sum() / expected.sum() - 1) < 0.02
    np.testing.assert_allclose(np.asarray(new.X.mean(0)).ravel(), expected.mean(0), rtol=0.25, atol=0.3)
    assert set(new.obs["cell_type"]) == {"type_1"}
    found = labelled.generate(500, store_truth=True).obs["cell_type"]
    assert list(found.cat.categories) == list(labelled.describe()["parameters"]["labels"])
    assert found.nunique() > 1


@pytest.fixture(scope="module")
def labelled():
    cells = sccvae.simulate.simulate(400, 40, n_types=3, seed=0)
    model = sccvae.SCCVAE(cells, batch_key="batch", labels_key="cell_type")
    model.train(20, progress_bar=False)
    return model


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_new_cells_go_to_a_file_block_by_block(model, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("sccvae.models.outputs.generation.PER_BLOCK", 64)
    options = {"seed": 5, "store_truth": True, "prior": "aggregate"}
    assert model.generate(150, out=tmp_path / f"new.{suffix}", **options) is None
    read = ad.read_h5ad if suffix == "h5ad" else ad.read_zarr
    stored, whole = read(tmp_path / f"new.{suffix}"), model.generate(150, **options)
    assert (stored.X != whole.X).nnz == 0
    np.testing.assert_array_equal(stored.layers["expected"], whole.layers["expected"])
    np.testing.assert_array_equal(stored.obsm["X_sccvae"], whole.obsm["X_sccvae"])
    assert stored.obs_names.tolist() == whole.obs_names.tolist()
    assert stored.obs["batch"].astype(str).tolist() == whole.obs["batch"].astype(str).tolist()


def test_what_cannot_be_generated_is_one_sentence(model, adata, labelled):
    for options, message in (
        ({}, "n_cells is None; expected a number of cells, or cells to resemble"),
        ({"n_cells": 5, "library_size": -3.0}, "library_size is -3; expected numbers above 0"),
        ({"n_cells": 5, "library_size": [1.0, 2.0]}, r"shape \(2,\); expected a number, or one for each"),
        ({"n_cells": 5, "library_size": "x"}, "Unknown batch 'x'"),
        (
            {"n_cells": 5, "covariates": {"batch": "a"}},
            r"has 'batch'; expected covariates of the model, .*: pass the batch as batch=",
        ),
        ({"n_cells": 5, "covariates": {"sex": "f"}}, "covariates has 'sex'; expected covariates"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**options)
    with pytest.raises((ValueError, KeyError), match="gene"):
        model.generate(like=adata[:, :30])
    with pytest.raises(ValueError, match="Unknown label 'x'"):
        labelled.generate(5, label="x")
    with pytest.raises(ValueError, match="label and like both say which cells"):
        labelled.generate(5, label="type_1", like=adata)
