"""`Autoencoder` and `DenoisingAutoencoder` as users hold them."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch
from helpers import same_state, state_of
from scipy import stats

import sccvae
from sccvae import Autoencoder, DenoisingAutoencoder, ModelFileError
from sccvae.corruption import (
    GaussianNoise,
)
from sccvae.modules.autoencoders import (
    noise_start,
)

NARROW = {"n_hidden": 16, "n_latent": 4}


QUIET = {"progress_bar": False}


SIGMAS = 5  # a right answer fails a bound of so many standard errors once in two million


def close(values, mean, variance):
    """The mean of draws lies within so many standard errors of `mean`."""
    assert abs(np.mean(values) - mean) < SIGMAS * np.sqrt(variance / np.size(values))


@pytest.fixture(scope="module")
def cells():
    adata = sccvae.simulate.simulate(240, 40, seed=0)
    adata.layers["lognorm"], adata.layers["binary"] = adata.X.log1p(), (adata.X > 0).astype(np.float32)
    return adata


@pytest.fixture(scope="module")
def fitted(cells):
    """A model of each class on counts in batches."""
    models = {}
    for cls in (Autoencoder, DenoisingAutoencoder):
        models[cls.__name__] = cls(cells, batch_key="batch", **NARROW)
        models[cls.__name__].train(3, **QUIET)
    return models


CLASSES = ("Autoencoder", "DenoisingAutoencoder")


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    ("likelihood", "layer"),
    [("nb", None), ("poisson", None), ("zinb", None), ("normal", "lognorm"), ("bernoulli", "binary")],
)
def test_outputs_have_their_shapes_and_ranges(cells, kind, likelihood, layer):
    model = getattr(sccvae, kind)(cells, layer=layer, gene_likelihood=likelihood, **NARROW)
    model.train(2, **QUIET)
    assert model.get_latent_representation().shape == (240, 4)
    assert model.get_latent_representation(cells[:9]).shape == (9, 4)
    mean = model.get_reconstruction(indices=[3, 1])
    z = model.get_latent_representation(indices=[3, 1])
    library = 1.0
    if likelihood in ("nb", "poisson", "zinb"):
        totals = np.asarray(cells.X.sum(1)).ravel()[[3, 1]]
        np.testing.assert_allclose(mean.sum(1), totals, rtol=1e-4)
        library = totals[0]
    np.testing.assert_allclose(model.decode(z, library_size=library)[0], mean[0], rtol=2e-4, atol=1e-5)
    new = model.generate(11)
    assert isinstance(new, ad.AnnData)
    assert new.shape == (11, 40)
    assert list(new.var_names) == list(cells.var_names)
    assert list(new.obs_names[:2]) == ["generated-0", "generated-1"]
    assert new.obsm["X_sccvae"].shape == (11, 4)
    values = new.X.toarray()
    assert np.isfinite(values).all()
    assert likelihood == "normal" or (values == np.round(values)).all()
    assert likelihood != "bernoulli" or values.max() == 1
    assert ("sccvae_library" in new.obs) == (layer is None)
    assert {"epoch", "split", "elbo", "reconstruction", "learning_rate", "seconds"} == set(model.history.columns)
    sccvae.pl.history(model.history)


@pytest.mark.parametrize("kind", CLASSES)
def test_training_raises_the_log_likelihood_of_held_out_cells(cells, kind):
    model = getattr(sccvae, kind)(cells, **NARROW)
    model.train(15, learning_rate=1e-2, **QUIET)
    held_out = model.history.query("split == 'validation'")["reconstruction"].to_numpy()
    assert held_out[-1] > held_out[0] + 2
    np.testing.assert_array_equal(model.history["elbo"], model.history["reconstruction"])


@pytest.mark.parametrize("kind", CLASSES)
def test_a_seed_fixes_everything_and_the_global_state_is_not_touched(cells, kind, fingerprint):
    before, numpy_state, torch_state = fingerprint(cells), repr(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    models = []
    for seed in (5, 5, 6):
        models.append(getattr(sccvae, kind)(cells, batch_key="batch", dropout_rate=0.2, seed=seed, **NARROW))
        models[-1].train(2, **QUIET)
    same, other = (same_state(state_of(models[0]._vae), state_of(m._vae)) for m in models[1:])
    assert same
    assert not other
    draws = [m.generate(20, seed=seed) for m, seed in ((models[0], 1), (models[1], 1), (models[0], 2))]
    assert (draws[0].X != draws[1].X).nnz == 0
    assert (draws[0].X != draws[2].X).nnz > 0
    assert fingerprint(cells) == before
    assert repr(np.random.get_state()) == numpy_state  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_loaded_model_generates_the_same(cells, fitted, kind, tmp_path):
    model, options = fitted[kind], {"start": "noise"} if kind == "DenoisingAutoencoder" else {}
    model.save(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["model.json", "weights.safetensors"]
    bare = getattr(sccvae, kind).load(tmp_path / "model")
    np.testing.assert_array_equal(model.generate(30, **options).X.toarray(), bare.generate(30, **options).X.toarray())
    np.testing.assert_array_equal(bare.get_latent_representation(cells), model.get_latent_representation())
    assert repr(bare) == repr(model).replace("240 cells", "no data")
    full = getattr(sccvae, kind).load(tmp_path / "model", cells)
    np.testing.assert_array_equal(model.generate(30).X.toarray(), full.generate(30).X.toarray())
    full.train(1, **QUIET)
    assert full.history["epoch"].max() == 4


def test_options_are_saved(cells, tmp_path):
    model = DenoisingAutoencoder(
        cells, layer="lognorm", gene_likelihood="normal", corruption=GaussianNoise(0.7), scale=0.5, continuation=0.3,
        **NARROW,
    )  # fmt: skip
    model.train(2, **QUIET)
    model.save(tmp_path / "model")
    loaded = DenoisingAutoencoder.load(tmp_path / "model", cells)
    assert loaded.corruption == (GaussianNoise(0.7),)
    assert loaded._vae.continuation == 0.3
    for m in (model, loaded):
        m.train(1, **QUIET)
        sd = m._vae.decoder.log_dispersion.detach().exp().cpu()
        np.testing.assert_array_equal(sd, np.full((1, 40), np.float32(0.5)))
    assert same_state(state_of(model._vae), state_of(loaded._vae))


@pytest.mark.parametrize("kind", CLASSES)
def test_loading_the_wrong_class_says_so(fitted, kind, tmp_path):
    fitted[kind].save(tmp_path / "model")
    for other in {"SCCVAE", *CLASSES} - {kind}:
        with pytest.raises(ModelFileError) as caught:
            getattr(sccvae, other).load(tmp_path / "model")
        assert f"contains a model of {kind}; expected {other}: read it with {kind}.load()." in str(caught.value)


def test_an_sccvae_is_not_read_as_an_autoencoder(cells, tmp_path):
    sccvae.SCCVAE(cells, **NARROW).save(tmp_path / "model")
    with pytest.raises(ModelFileError, match="contains a model of SCCVAE; expected Autoencoder"):
        Autoencoder.load(tmp_path / "model")


def test_a_chain_keeps_batch_and_library_size(cells, fitted):
    model = fitted["DenoisingAutoencoder"]
    new = model.generate(240, steps=25, seed=3)
    totals = np.asarray(cells.X.sum(1)).ravel()
    np.testing.assert_allclose(np.sort(new.obs["sccvae_library"]), np.sort(totals), rtol=1e-5)  # each cell once
    assert new.obs["batch"].value_counts().to_dict() == cells.obs["batch"].value_counts().to_dict()
    found = np.asarray(new.X.sum(1)).ravel()
    # After 25 steps the totals are still what the library sizes say: had they walked, nothing would be left of them.
    assert stats.spearmanr(found, new.obs["sccvae_library"]).statistic > 0.5
    assert abs(np.log(found.mean() / totals.mean())) < 0.1


@pytest.mark.parametrize("start", ["data", "noise"])
def test_chains_of_one_batch(cells, fitted, start):
    new = fitted["DenoisingAutoencoder"].generate(50, steps=2, start=start, batch=cells.obs["batch"].iloc[0])
    assert set(new.obs["batch"]) == {cells.obs["batch"].iloc[0]}


def test_chains_share_the_cells_evenly(fitted):
    new = fitted["DenoisingAutoencoder"].generate(11, steps=3, thin=2, n_chains=4)
    assert new.obs["chain"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert new.obs["step"].tolist() == [3, 5, 7] * 3 + [3, 5]
    one = fitted["DenoisingAutoencoder"].generate(4, steps=3, n_chains=4)
    first = new[new.obs["step"] == 3]
    np.testing.assert_array_equal(first.X.toarray(), one.X.toarray())  # the same chains, looked at more often
    np.testing.assert_array_equal(first.obsm["X_sccvae"], one.obsm["X_sccvae"])
    assert fitted["DenoisingAutoencoder"].generate(3, steps=1, n_chains=9).n_obs == 3


def test_many_chains_walk_in_chunks(fitted, monkeypatch):
    monkeypatch.setattr("sccvae.inference.posterior.chunk_of", lambda n_genes, device: 7)
    new = fitted["DenoisingAutoencoder"].generate(45, steps=2, thin=1, n_chains=20)
    assert new.obs["chain"].tolist() == sorted(new.obs["chain"])
    assert new.obs["chain"].value_counts().tolist() == [3] * 5 + [2] * 15
    assert fitted["Autoencoder"].decode(fitted["Autoencoder"].sample_codes(20), batch="batch_0").shape == (20, 40)


def test_noise_knows_nothing_of_the_data():
    rng = np.random.default_rng(0)
    counts = noise_start("counts", np.log(np.repeat([50.0, 500.0], 200)), 100, rng).toarray()
    close(counts[:200], 0.5, 0.5)
    close(counts[200:], 5, 5)
    real = noise_start("real", np.zeros(200), 100, rng).toarray()
    close(real, 0, 1)
    close(real**2, 1, 2)
    binary = noise_start("binary", np.zeros(200), 100, rng).toarray()
    assert set(np.unique(binary)) == {0, 1}
    close(binary, 0.5, 0.25)


def test_corrupt_draws_from_the_process(cells, fitted):
    model = fitted["DenoisingAutoencoder"]
    corrupted = model.corrupt(seed=1)
    assert (corrupted.toarray() <= cells.X.toarray()).all()
    assert 0.3 < corrupted.sum() / cells.X.sum() < 0.5  # half of the molecules, then 0.8 of the genes
    assert (model.corrupt(seed=1) != corrupted).nnz == 0


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda a, d, x: Autoencoder(x).generate(3), RuntimeError, "not trained yet: call train() first"),
        (
            lambda a, d, x: Autoencoder(x, gene_likelihood="squared"),
            ValueError,
            "gene_likelihood is 'squared'; expected",
        ),
        (lambda a, d, x: Autoencoder(x, scale=1.0), ValueError, "scale is for gene_likelihood='normal'; found 'nb'"),
        (
            lambda a, d, x: Autoencoder(x, layer="lognorm", gene_likelihood="normal", scale=0.0),
            ValueError,
            "scale is 0.0; expected a standard deviation above 0",
        ),
        (lambda a, d, x: Autoencoder(x, layer="lognorm"), ValueError, "adata.X holds counts"),
        (lambda a, d, x: Autoencoder(x, seed=-1), ValueError, "seed is -1; expected 0 or more"),
        (lambda a, d, x: a.train(0), ValueError, "max_epochs is 0; expected more than 0"),
        (lambda a, d, x: a.decode(np.zeros((2, 3))), ValueError, "z has shape (2, 3); expected finite codes"),
        (lambda a, d, x: a.decode(np.full((2, 4), np.nan)), ValueError, "expected finite codes"),
        (lambda a, d, x: a.decode(np.zeros((2, 4))), ValueError, "say which to decode in: batch='"),
        (lambda a, d, x: a.decode(np.zeros((2, 4)), batch="z"), ValueError, "'z'"),
        (lambda a, d, x: a.decode(np.zeros((2, 4)), library_size=0), ValueError, "library_size is 0; expected counts"),
        (lambda a, d, x: a.generate(3, codes="mean"), ValueError, "codes is 'mean'; expected one of 'fitted', 'prior'"),
        (lambda a, d, x: d.generate(3, start="cells"), ValueError, "start is 'cells'; expected one of 'data', 'noise'"),
        (lambda a, d, x: d.generate(3, steps=0), ValueError, "steps is 0; expected at least 1"),
        (lambda a, d, x: d.generate(0), ValueError, "n_cells is 0; expected at least 1"),
        (lambda a, d, x: DenoisingAutoencoder(x, walkback="no"), TypeError, "walkback is 'no'; expected True or False"),
        (lambda a, d, x: a.train(1, early_stopping=1), TypeError, "early_stopping is 1; expected True or False"),
        (lambda a, d, x: DenoisingAutoencoder(x, continuation=1.0), ValueError, "continuation is 1.0; expected a prob"),
        (
            lambda a, d, x: DenoisingAutoencoder(x, corruption=GaussianNoise()),
            ValueError,
            "GaussianNoise(sd=0.5), which is for real data; expected Thinning() or GeneDropout() of sccvae.corruption",
        ),
    ],
)
def test_errors_read_well(cells, fitted, call, error, text):
    with pytest.raises(error) as caught:
        call(fitted["Autoencoder"], fitted["DenoisingAutoencoder"], cells)
    assert text in str(caught.value)


def test_without_data_a_chain_says_how_to_start(fitted, tmp_path):
    fitted["DenoisingAutoencoder"].save(tmp_path / "model")
    bare = DenoisingAutoencoder.load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"DenoisingAutoencoder\.load\(path, adata\), or pass start='noise'"):
        bare.generate(3)
    with pytest.raises(
        RuntimeError, match=r"to continue training, load it as DenoisingAutoencoder\.load\(path, adata\)"
    ):
        bare.train(1)


def test_the_gaussian_of_the_codes_is_theirs(fitted):
    model = fitted["Autoencoder"]
    z = model.get_latent_representation()
    np.testing.assert_allclose(model._vae.code_mean.cpu(), z.mean(0), rtol=1e-4, atol=1e-5)
    factor = model._vae.code_factor.cpu().numpy()
    np.testing.assert_allclose(factor @ factor.T, np.cov(z.T, bias=True), rtol=1e-3, atol=1e-4 * z.var())
    draws = model.sample_codes(20_000, seed=1)
    sd = np.sqrt(np.diag(factor @ factor.T))
    assert (np.abs(draws.mean(0) - z.mean(0)) < SIGMAS * sd / np.sqrt(20_000)).all()
    np.testing.assert_allclose(draws.std(0), sd, rtol=SIGMAS / np.sqrt(40_000))
    prior = model.sample_codes(20_000, codes="prior", seed=1)
    assert np.abs(np.cov(prior.T) - np.eye(4)).max() < SIGMAS * np.sqrt(2 / 20_000)
