"""The autoencoders without a prior: corruption as stated, walkback's law, and chains with a known answer."""

from __future__ import annotations

import itertools
import json

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from helpers import generator, same_state, small_architecture, small_counts, state_of, support_of
from scipy import stats
from sklearn.datasets import load_digits

import sccvae
from sccvae import Autoencoder, DenoisingAutoencoder, ModelFileError
from sccvae.corruption import (
    GaussianNoise,
    GeneDropout,
    SaltAndPepper,
    Thinning,
    described,
    processes_for,
    understood,
)
from sccvae.modules.autoencoders import (
    Denoiser,
    Reconstructor,
    gathered,
    matrix_of,
    noise_start,
    numpy_generator,
    with_values,
)

NARROW = {"n_hidden": 16, "n_latent": 4}
QUIET = {"progress_bar": False}
SIGMAS = 5  # a right answer fails a bound of so many standard errors once in two million


def matrix(values) -> sp.csr_matrix:
    m = sp.csr_matrix(np.asarray(values, dtype=np.float32))
    for array in (m.data, m.indices, m.indptr):
        array.setflags(write=False)  # as those of Counts are
    return m


def close(values, mean, variance):
    """The mean of draws lies within so many standard errors of `mean`."""
    assert abs(np.mean(values) - mean) < SIGMAS * np.sqrt(variance / np.size(values))


def denoiser(counts, corruption, continuation=0.5, seed=0, **choices) -> Denoiser:
    choices = {"library": "observed", "dropout_rate": 0.0, **choices}
    net = Denoiser(
        small_architecture(counts, **choices),
        torch.Generator().manual_seed(seed),
        corruption=corruption,
        continuation=continuation,
    )
    net.start_from(counts)
    return net


# ----------------------------------------------------------------------------------------------------------- corruption


@pytest.mark.parametrize(("kept", "count"), [(0.3, 7), (0.6, 1), (0.9, 200)])
def test_thinning_is_binomial(kept, count):
    x = matrix(np.full((400, 100), count))
    draws = Thinning(kept)(x, np.random.default_rng(1))
    values = draws.toarray().ravel()
    close(values, kept * count, count * kept * (1 - kept))
    spread = stats.binom(count, kept)
    fourth = float(spread.stats("k")) * spread.var() ** 2 + 3 * spread.var() ** 2
    close((values - kept * count) ** 2, spread.var(), fourth - spread.var() ** 2)
    observed = np.bincount(values.astype(int), minlength=count + 1)
    likely = spread.pmf(np.arange(count + 1)) * values.size > 20
    expected = spread.pmf(np.arange(count + 1))[likely] * values.size
    chi2 = ((observed[likely] - expected) ** 2 / expected).sum()
    assert chi2 < stats.chi2(max(likely.sum() - 1, 1)).ppf(1 - 1e-6)


def test_gene_dropout_loses_whole_counts_of_single_genes():
    x = matrix(np.random.default_rng(0).integers(0, 5, (300, 200)))
    y = GeneDropout(0.3)(x, np.random.default_rng(1))
    lost = (y.toarray() == 0) & (x.toarray() > 0)
    np.testing.assert_array_equal(y.toarray()[~lost], x.toarray()[~lost])
    detected = x.toarray() > 0
    close(lost[detected], 0.3, 0.3 * 0.7)
    per_gene = lost.sum(0) / detected.sum(0)  # genes are hit alike, cells too
    assert np.abs(per_gene - 0.3).max() < SIGMAS * np.sqrt(0.21 / detected.sum(0).min())


def test_gaussian_noise_is_added_to_zeros_too():
    x = np.zeros((300, 200))
    x[:, :100] = 3
    noise = GaussianNoise(0.5)(matrix(x), np.random.default_rng(2)).toarray() - x
    for part in (noise[:, :100], noise[:, 100:]):
        close(part, 0, 0.25)
        close(part**2, 0.25, 2 * 0.25**2)
    assert stats.kstest(noise.ravel() / 0.5, "norm").pvalue > 1e-6


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_salt_and_pepper_flips_half_of_what_it_hits(rate):
    x = np.random.default_rng(0).integers(2, size=(300, 200))
    y = SaltAndPepper(rate)(matrix(x), np.random.default_rng(3)).toarray()
    assert set(np.unique(y)) == {0, 1}
    for value in (0, 1):
        close(y[x == value] != value, rate / 2, rate / 2 * (1 - rate / 2))


@pytest.mark.parametrize("process", [Thinning(), GeneDropout(), GaussianNoise(), SaltAndPepper()])
def test_corruption_leaves_its_input_and_returns_a_clean_matrix(process):
    x = matrix(np.random.default_rng(0).integers(2, size=(40, 30)))
    before = x.toarray()
    y, again = (process(x, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(x.toarray(), before)
    assert (y != again).nnz == 0
    assert (process(x, np.random.default_rng(5)) != y).nnz > 0
    assert y.dtype == np.float32
    assert y.indices.dtype == np.int32
    assert (y.data != 0).all()
    assert y.has_canonical_format


def test_processes_are_applied_one_after_another():
    counts = small_counts(300, 60)
    net = denoiser(counts, (Thinning(0.5), GeneDropout(0.2)), gene_likelihood="nb")
    total = counts.matrix.sum()
    kept = [net.corrupt(counts.matrix, np.random.default_rng(k)).sum() / total for k in range(20)]
    # A molecule survives both with probability 0.4; a count x has variance 0.8 (0.25 x + 0.25 x^2) - 0.16 x^2.
    x = counts.matrix.data.astype(float)
    variance = (0.8 * (0.25 * x + 0.25 * x**2) - 0.16 * x**2).sum() / total**2
    close(kept, 0.4, variance)


def test_defaults_fit_the_data_and_survive_being_written_down():
    for support in ("counts", "real", "binary"):
        processes = processes_for(support, None)
        assert {p.support for p in processes} == {support}
        assert understood(json.loads(json.dumps(described(processes)))) == processes
    assert processes_for("counts", Thinning(0.1)) == (Thinning(0.1),)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Thinning(1.0), ValueError, "Thinning: kept is 1.0; expected a probability above 0 and below 1"),
        (lambda: GeneDropout(-0.1), ValueError, "GeneDropout: lost is -0.1"),
        (lambda: SaltAndPepper(0.0), ValueError, "SaltAndPepper: rate is 0.0"),
        (lambda: GaussianNoise(0.0), ValueError, "GaussianNoise: sd is 0.0; expected a standard deviation above 0"),
        (lambda: GaussianNoise(np.inf), ValueError, "GaussianNoise: sd is inf"),
        (lambda: processes_for("counts", SaltAndPepper()), ValueError, "for binary data; expected Thinning() or Gene"),
        (lambda: processes_for("real", "noise"), TypeError, "corruption has 'noise'; expected GaussianNoise()"),
        (lambda: processes_for("binary", []), ValueError, "corruption is empty; expected SaltAndPepper()"),
    ],
)
def test_errors_of_corruption_say_what_is_expected(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- walkback


def test_the_number_of_points_visited_is_geometric():
    counts = small_counts(2000, 10)
    net = denoiser(counts, (Thinning(0.7),), 0.5, gene_likelihood="poisson", n_hidden=4)
    points, cells = net.visit(counts.minibatch(slice(None)), np.random.default_rng(1))
    visits = np.bincount(cells, minlength=2000)
    assert points.n_cells == len(cells)
    assert visits.min() == 1
    close(visits, 2, 2)  # geometric with p = 0.5: mean 2, variance 2
    expected = 2000 * 0.5 ** np.arange(1, 7)
    observed = np.array([(visits == k).sum() for k in range(1, 7)])
    assert ((observed - expected) ** 2 / expected).sum() < stats.chi2(6).ppf(1 - 1e-6)


class Recorded(Thinning):
    """Thinning that keeps what it was given."""

    def __call__(self, x, rng):
        self.__dict__.setdefault("seen", []).append(x.toarray())
        return super().__call__(x, rng)


def test_a_walk_goes_on_from_samples_of_the_reconstruction(monkeypatch):
    counts = small_counts(64, 12)
    process = Recorded(0.5)
    net = denoiser(counts, (process,), 0.5, gene_likelihood="nb")
    asked = []

    def sample(decoded, log_library, rng):
        asked.append(log_library.numpy())
        return np.full(decoded.logits.shape, 100 + len(asked), dtype=np.float32)

    monkeypatch.setattr(net.likelihood, "sample", sample)
    points, cells = net.visit(counts.minibatch(slice(None)), np.random.default_rng(3))
    visits = np.bincount(cells, minlength=64)
    assert visits.max() >= 4
    np.testing.assert_array_equal(process.seen[0], counts.matrix.toarray())  # first the cells themselves
    firsts = np.r_[0, np.cumsum([len(x) for x in process.seen])]
    for step in range(1, visits.max()):
        on = np.flatnonzero(visits > step)
        np.testing.assert_array_equal(process.seen[step], np.full((len(on), 12), 100 + step))  # then samples alone
        np.testing.assert_array_equal(cells[firsts[step] : firsts[step + 1]], on)
        np.testing.assert_array_equal(asked[step - 1], counts.log_size[on])  # at the library size of the start
    corrupted = matrix_of(points).toarray()
    assert (corrupted[:64] <= counts.matrix.toarray()).all()
    assert (corrupted[64:] <= 100 + visits.max()).all()
    close(corrupted[64:128], 0.5 * 101, 25) if firsts[2] >= 128 else None


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "normal", "bernoulli"])
@pytest.mark.parametrize("continuation", [0.0, 0.5])
def test_every_point_is_to_give_back_the_cell_that_its_walk_began_at(likelihood, continuation):
    counts = small_counts(50, 15, support=support_of(likelihood), n_batches=2)
    processes = processes_for(support_of(likelihood), None)
    net = denoiser(counts, processes, continuation, gene_likelihood=likelihood)
    x = counts.minibatch(slice(None))
    elbo = net(x, generator(7))
    points, cells = net.visit(x, numpy_generator(generator(7)))
    assert (len(cells) > 60) == (continuation > 0)
    originals = counts.minibatch(cells)  # read from the data once more
    decoded = net.decoder(net.encoder(points)[0].mean, originals)
    value, dropouts = net.likelihood.log_prob(originals, decoded, originals.log_size)
    torch.testing.assert_close(elbo.reconstruction, value)
    torch.testing.assert_close(elbo.dropout_penalty, 0.05 * dropouts)
    assert not elbo.kl_z.any()
    assert not elbo.kl_l.any()
    torch.testing.assert_close(elbo.loss(0.3), -(value - 0.05 * dropouts).mean())


def test_points_carry_their_own_totals_and_the_cell_its_covariates():
    counts = small_counts(30, 15, n_batches=3)
    x, cells = counts.minibatch(slice(None)), np.array([4, 4, 29, 0])
    picked = gathered(x, cells)
    for name, found in picked._asdict().items():
        expected = getattr(counts.minibatch(cells), name)
        assert torch.equal(found, expected) if isinstance(found, torch.Tensor) else found == expected, name
    thinned = Thinning(0.4)(counts.matrix[cells], np.random.default_rng(0))
    thinned = sp.vstack([sp.csr_matrix((1, 15), dtype=np.float32), thinned[1:]], format="csr")
    changed = with_values(picked, thinned)
    np.testing.assert_array_equal(changed.dense().numpy(), thinned.toarray())
    np.testing.assert_allclose(changed.log_total[1:].exp(), thinned.toarray()[1:].sum(1), rtol=1e-6)
    assert torch.equal(changed.log_size, picked.log_size)
    assert torch.equal(changed.codes, picked.codes)
    net = denoiser(counts, (Thinning(),), gene_likelihood="nb")
    assert torch.isfinite(net.encoder(changed)[0].mean).all()  # a cell that lost everything can be encoded


def test_walking_uses_no_dropout_of_hidden_units_and_leaves_training_on():
    counts = small_counts(40, 15)
    nets = [denoiser(counts, (Thinning(),), gene_likelihood="nb", dropout_rate=rate) for rate in (0.0, 0.5)]
    points = []
    for net in nets:
        net.train()
        points.append(net.visit(counts.minibatch(slice(None)), np.random.default_rng(0))[0].dense())
        assert net.training
    assert torch.equal(*points)


# -------------------------------------------------------------------------------------------------------- known answers


def test_a_fixed_scale_makes_the_loss_the_squared_error():
    counts = small_counts(40, 9, support="real")
    architecture = small_architecture(counts, gene_likelihood="normal", library="observed", dropout_rate=0.0)
    net = Reconstructor(architecture, generator(), scale=1.0)
    net.start_from(counts)
    x = counts.minibatch(slice(None))
    elbo = net(x, generator())
    mean = net.decoder(net.encoder(x)[0].mean, x).logits
    error = (x.dense() - mean).square().sum(1)
    torch.testing.assert_close(elbo.value, -0.5 * error - 4.5 * np.log(2 * np.pi))
    elbo.loss().backward()
    assert net.decoder.log_dispersion.grad is None
    assert {name for name, w in net.named_parameters() if w.grad is None} == {"decoder.log_dispersion"}


def test_the_code_is_the_encoders_mean_and_no_noise_comes_in():
    counts = small_counts(30, 12)
    net = denoiser(counts, (Thinning(),), 0.0, gene_likelihood="nb")
    x = counts.minibatch(slice(None))
    first, second = (Reconstructor.forward(net, x, generator(seed)).value for seed in (0, 1))
    assert torch.equal(first, second)


def real_adata(values) -> ad.AnnData:
    return ad.AnnData(np.asarray(values, dtype=np.float32))


def test_an_autoencoder_of_two_codes_finds_the_plane_that_the_data_lie_near():
    """x = 3 + W c + 0.2 noise, c 2-dimensional: codes of the right number leave the noise, too few leave far more."""
    rng = np.random.default_rng(0)
    weights, codes = np.linalg.qr(rng.standard_normal((10, 2)))[0].T * 2, rng.standard_normal((1200, 2))
    x = 3 + codes @ weights + 0.2 * rng.standard_normal((1200, 10))
    fresh = 3 + rng.standard_normal((400, 2)) @ weights + 0.2 * rng.standard_normal((400, 10))
    errors = {}
    for n_latent in (1, 2):
        model = Autoencoder(
            real_adata(x), gene_likelihood="normal", scale=1.0, n_latent=n_latent, n_hidden=64, dropout_rate=0.0
        )
        model.train(30, learning_rate=1e-2, **QUIET)
        errors[n_latent] = float(((model.get_reconstruction(real_adata(fresh)) - fresh) ** 2).sum(1).mean())
    floor = 8 * 0.2**2  # what lies off the plane: the residual of the true principal components
    assert floor * 0.9 < errors[2] < 1.6 * floor
    assert errors[1] > 4 * floor


@pytest.fixture(scope="module")
def gaussian():
    """A denoising autoencoder of N(1, diag(1, 0.25)), corrupted by noise of standard deviation 1."""
    x = np.array([1, 1]) + np.random.default_rng(0).standard_normal((3000, 2)) * np.array([1, 0.5])
    model = DenoisingAutoencoder(
        real_adata(x), gene_likelihood="normal", corruption=GaussianNoise(1.0), walkback=False, n_hidden=64, n_latent=4
    )
    model.train(40, learning_rate=5e-3, **QUIET)
    return model


def test_denoising_a_gaussian_gives_the_posterior_mean_and_variance(gaussian):
    """x | x~ is normal: mean 1 + s^2 (x~ - 1) / (s^2 + 1), variance s^2 / (s^2 + 1)."""
    grid = np.array(list(itertools.product([0, 0.5, 1, 1.5, 2], repeat=2)))
    found = gaussian.get_reconstruction(real_adata(grid))
    shrunk = np.array([0.5, 0.2])
    np.testing.assert_allclose(found, 1 + shrunk * (grid - 1), atol=0.15)
    variance = gaussian._vae.decoder.log_dispersion.detach().exp().cpu().numpy()[0] ** 2
    np.testing.assert_allclose(variance, shrunk, rtol=0.1)


@pytest.mark.parametrize("start", ["data", "noise"])
def test_the_chain_of_a_gaussian_has_its_mean_and_variance(gaussian, start):
    x = gaussian.generate(3000, steps=20, start=start, seed=1).X.toarray()
    np.testing.assert_allclose(x.mean(0), 1, atol=0.15)
    np.testing.assert_allclose(x.var(0), [1, 0.25], rtol=0.2)
    assert abs(np.corrcoef(x.T)[0, 1]) < 0.1


PATTERNS = np.array(list(itertools.product([0, 1], repeat=3)), dtype=np.float32)
SHARES = np.array([0.40, 0.02, 0.02, 0.06, 0.02, 0.06, 0.02, 0.40])  # the bits nearly agree


def shares_of(x) -> np.ndarray:
    return np.bincount((x @ [4, 2, 1]).astype(int), minlength=8) / len(x)


def distance(p, q) -> float:
    """Total variation."""
    return 0.5 * float(np.abs(p - q).sum())


def leading(transitions) -> np.ndarray:
    """The distribution that a transition matrix leaves as it is."""
    values, vectors = np.linalg.eig(transitions.T)
    vector = vectors[:, np.argmax(values.real)].real
    return vector / vector.sum()


def corruption_matrix(rate) -> np.ndarray:
    """C(x~ | x) of salt and pepper, (x, x~)."""
    differ = np.abs(PATTERNS[:, None] - PATTERNS[None]).sum(2)
    return (rate / 2) ** differ * (1 - rate / 2) ** (3 - differ)


def reconstruction_matrix(ones) -> np.ndarray:
    """p(x | x~) of independent bits with the probabilities `ones`, (x~, bits): (x~, x)."""
    return np.prod(np.where(PATTERNS[None] == 1, ones[:, None], 1 - ones[:, None]), axis=2)


def stationary(model) -> np.ndarray:
    """Of a model's chain over the 8 patterns, exactly."""
    ones = model.get_reconstruction(real_adata(PATTERNS)).astype(float)
    return leading(corruption_matrix(model.corruption[0].rate) @ reconstruction_matrix(ones))


def ideal(rate, continuation, data) -> np.ndarray:
    """Stationary distribution of the best network there can be: each bit's posterior given a point that was visited.

    Points are visited as sum_k (1 - p) p^(k - 1) (C P)^(k - 1) C says, where P is the answer itself: a fixed point.
    """
    corrupt, back = corruption_matrix(rate), np.eye(8)
    for _ in range(300):
        walk = np.linalg.inv(np.eye(8) - continuation * corrupt @ back) * (1 - continuation)
        joint = data[:, None] * (walk @ corrupt)
        back = reconstruction_matrix((joint / joint.sum(0)).T @ PATTERNS)
    return leading(corrupt @ back)


RATE = 0.1


@pytest.fixture(scope="module")
def bits():
    """Denoising autoencoders of 3-bit patterns: as good as untrained, trained without walkback, and with it."""
    x = PATTERNS[np.random.default_rng(0).choice(8, size=2000, p=SHARES)]
    models = {}
    for name, epochs, rate in (("untrained", 1, 1e-9), ("corrupted once", 25, 1e-2), ("walkback", 25, 1e-2)):
        models[name] = DenoisingAutoencoder(
            real_adata(x),
            gene_likelihood="bernoulli",
            corruption=SaltAndPepper(RATE),
            walkback=name == "walkback",
            n_hidden=32,
            n_latent=4,
        )
        models[name].train(epochs, learning_rate=rate, **QUIET)
    return models, shares_of(x)


@pytest.mark.parametrize("start", ["data", "noise"])
def test_a_chain_samples_its_stationary_distribution(bits, start):
    model = bits[0]["walkback"]
    exact = stationary(model)
    found = shares_of(model.generate(4000, steps=100, start=start, seed=2).X.toarray())
    assert (np.abs(found - exact) < SIGMAS * np.sqrt(exact * (1 - exact) / 4000)).all()


@pytest.mark.parametrize(("name", "continuation"), [("corrupted once", 0.0), ("walkback", 0.5)])
def test_training_finds_the_best_chain_there_is(bits, name, continuation):
    """Bits drawn one by one, given a corrupted pattern, cannot restore all of their agreement: no network can."""
    models, data = bits
    best = ideal(RATE, continuation, data)
    assert distance(stationary(models[name]), best) < 0.05
    assert distance(stationary(models["untrained"]), best) > 0.3
    other = ideal(RATE, 0.5 - continuation, data)
    assert distance(stationary(models[name]), other) > distance(stationary(models[name]), best)


def test_training_brings_the_samples_to_the_distribution_of_the_data(bits):
    models, data = bits
    far, near, walked = (
        distance(shares_of(model.generate(4000, steps=100, seed=3).X.toarray()), data) for model in models.values()
    )
    assert far > 0.4
    assert near < 0.1
    assert walked < 0.2


def test_thinned_chains_give_the_same_distribution_as_many_chains(bits):
    model = bits[0]["walkback"]
    cells = model.generate(4000, steps=100, thin=5, n_chains=100, seed=4)
    exact = stationary(model)
    # Neighbours on a chain are correlated: a tenth as many independent cells is a safe count.
    assert (np.abs(shares_of(cells.X.toarray()) - exact) < SIGMAS * np.sqrt(exact * (1 - exact) / 400)).all()


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


# ------------------------------------------------------------------------------------------------------ what users hold


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


# --------------------------------------------------------------------------------------------------------------- pixels


@pytest.fixture(scope="module")
def digits():
    """1,797 handwritten digits of 8 x 8 pixels: grey in X, black and white in a layer."""
    images = load_digits()
    adata = real_adata(images.data / 16)
    adata.layers["binary"] = (adata.X > 0.5).astype(np.float32)
    return adata


@pytest.mark.parametrize(("likelihood", "layer"), [("bernoulli", "binary"), ("normal", None)])
def test_sccvae_is_the_plain_variational_autoencoder_of_digits(digits, likelihood, layer):
    model = sccvae.SCCVAE(digits, layer=layer, gene_likelihood=likelihood, n_latent=8, n_hidden=128)
    model.train(15, batch_size=100, **QUIET)
    elbo = model.history.query("split == 'validation'")["elbo"].to_numpy()
    data = digits.X if layer is None else digits.layers[layer]
    frequencies = np.clip(data.mean(0), 1e-3, 1 - 1e-3)
    if likelihood == "bernoulli":  # without codes: each pixel by itself
        alone = (data * np.log(frequencies) + (1 - data) * np.log(1 - frequencies)).sum(1).mean()
        assert elbo[-1] > alone + 3
    assert elbo[-1] > elbo[0]
    new = model.generate(20)
    assert isinstance(new, ad.AnnData)
    assert new.shape == (20, 64)
    assert likelihood == "normal" or set(np.unique(new.X.toarray())) == {0, 1}
    error = ((model.get_reconstruction() - data) ** 2).mean()
    assert error < 0.8 * data.var(0).mean()


def test_denoising_restores_digits_that_salt_and_pepper_has_hit(digits):
    model = DenoisingAutoencoder(
        digits, layer="binary", gene_likelihood="bernoulli", corruption=SaltAndPepper(0.4), n_hidden=64
    )
    model.train(10, batch_size=100, **QUIET)
    hit = ad.AnnData(model.corrupt(seed=1), var=digits.var, layers={"binary": model.corrupt(seed=1)})
    wrong = np.abs(hit.X.toarray() - digits.layers["binary"]).mean()
    restored = np.abs(np.round(model.get_reconstruction(hit)) - digits.layers["binary"]).mean()
    assert abs(wrong - 0.2) < 0.01
    assert restored < 0.75 * wrong
