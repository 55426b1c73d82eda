"""The mixture that is the prior of z: a normalised density, drawn from as it says, and learnt."""

import numpy as np
import pytest
import torch
from helpers import generator
from scipy import stats
from scipy.special import logsumexp

from sccvae.modules.distributions import FLOOR, SPREAD, Gaussian, MixturePrior, log_standard_normal


def a_mixture(n_components=4, n_latent=3, seed=0, dtype=torch.float64):
    """A mixture with uneven weights and variances."""
    prior = MixturePrior(n_components, n_latent, generator(seed)).to(dtype)
    with torch.no_grad():
        for w in prior.parameters():
            w.add_(0.7 * torch.randn(w.shape, generator=generator(seed + 1), dtype=dtype))
    return prior


def parts(prior):
    """Weights, means and standard deviations, in numpy."""
    logits, mean, log_variance = (w.detach().double().numpy() for w in prior.parameters())
    return np.exp(logits - logsumexp(logits)), mean, np.sqrt(np.exp(log_variance) + FLOOR)


def test_log_density_is_that_of_the_mixture():
    prior, z = a_mixture(), torch.randn(50, 3, generator=generator(5), dtype=torch.float64)
    weights, mean, sd = parts(prior)
    each = stats.norm.logpdf(z.numpy()[:, None], mean, sd).sum(2)
    np.testing.assert_allclose(prior.log_prob(z).detach(), logsumexp(each, axis=1, b=weights), rtol=1e-12)
    expected = stats.norm.logpdf(z).sum(1)
    np.testing.assert_allclose(log_standard_normal(z), expected, rtol=1e-12)
    np.testing.assert_allclose(
        prior.below_standard(z).detach(), expected - prior.log_prob(z).detach().numpy(), atol=1e-12
    )


def test_it_sums_to_one():
    x = torch.linspace(-15, 15, 20_001, dtype=torch.float64)[:, None]
    total = np.trapezoid(a_mixture(5, 1).log_prob(x).detach().exp(), x[:, 0])
    assert total == pytest.approx(1, abs=1e-9)


def test_draws_have_its_density():
    prior = a_mixture(4, 2, dtype=torch.float32)
    z, (weights, mean, sd) = prior.sample(20_000, np.random.default_rng(0)), parts(prior)
    assert z.dtype == np.float32
    assert z.shape == (20_000, 2)
    for d in range(2):
        cdf = lambda x, d=d: (weights * stats.norm.cdf(x[:, None], mean[:, d], sd[:, d])).sum(1)  # noqa: E731
        assert stats.kstest(z[:, d], cdf).pvalue > 1e-3
    covariance = (weights * (mean * mean[:, ::-1]).T)[0].sum() - np.prod(weights @ mean)
    assert np.cov(z.T)[0, 1] == pytest.approx(covariance, abs=0.05)


def test_it_begins_as_about_a_standard_normal():
    z = MixturePrior(200, 3, generator(0)).sample(20_000, np.random.default_rng(0))
    np.testing.assert_allclose(z.mean(0), 0, atol=4 * SPREAD / np.sqrt(200))
    np.testing.assert_allclose(z.var(0), 1, atol=0.15)


def test_the_divergence_from_it_is_that_from_the_standard_normal_plus_what_it_is_below():
    """One component in closed form, drawn often."""
    prior = a_mixture(1, 2)
    _, mean, sd = parts(prior)
    q = Gaussian(torch.tensor([0.3, -1.0]).double(), torch.tensor([0.4, 0.1]).double())
    many = Gaussian(*(t.expand(200_000, 2) for t in q))
    estimate = q.kl().sum() + prior.below_standard(many.sample(generator(3))).detach()
    exact = q.kl(Gaussian(torch.from_numpy(mean[0]), torch.from_numpy(sd[0] ** 2))).sum()
    assert abs(float(estimate.mean() - exact)) < 4 * float(estimate.std()) / np.sqrt(200_000)


def test_learning_finds_two_heaps():
    rng = np.random.default_rng(0)
    z = torch.from_numpy(np.r_[rng.normal(-2, 0.3, (300, 2)), rng.normal(1, 0.6, (100, 2))]).float()
    prior = MixturePrior(8, 2, generator(0))
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (loss := -prior.log_prob(z).mean()).backward()
        optimizer.step()
    truth = logsumexp(
        [np.log(w) + stats.norm.logpdf(z, m, s).sum(1) for w, m, s in ((0.75, -2, 0.3), (0.25, 1, 0.6))], axis=0
    )
    assert float(loss.detach()) == pytest.approx(-truth.mean(), abs=0.05)
    assert (prior.sample(5000, rng)[:, 0] < -0.5).mean() == pytest.approx(0.75, abs=0.03)
