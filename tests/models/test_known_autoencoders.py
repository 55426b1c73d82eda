"""Autoencoders against known answers: planes, Gaussians, Markov chains of bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers import SIGMAS, denoiser, generator, real_adata, small_architecture, small_counts

from sccvae import Autoencoder, DenoisingAutoencoder
from sccvae.corruption import (
    GaussianNoise,
    SaltAndPepper,
    Thinning,
)
from sccvae.modules.autoencoders import (
    Reconstructor,
)

QUIET = {"progress_bar": False}


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
