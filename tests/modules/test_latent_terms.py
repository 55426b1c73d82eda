"""Terms of the latent space: the mixture prior, the batch penalty, and how the model finds a new one."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import generator, run, small_counts, small_vae
from scipy import stats
from scipy.special import logsumexp

from sccvae.kernels.reference import FUSED, PLAIN
from sccvae.modules import latent_terms
from sccvae.modules import vae as vae_module
from sccvae.modules.distributions import Gaussian, log_standard_normal
from sccvae.modules.latent_terms import FLOOR, SPREAD, TERMS, BatchPenalty, LabelledPrior, LatentTerm, MixturePrior


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
    np.testing.assert_allclose(prior(None, z, None).detach(), expected - prior.log_prob(z).detach().numpy(), atol=1e-12)


def a_labelled_prior():
    prior = LabelledPrior(4, 3, generator(0), 3, 2.5).double()
    with torch.no_grad():
        for w in prior.parameters():
            w.add_(0.7 * torch.randn(w.shape, generator=generator(1), dtype=torch.float64))
    return prior


def test_the_joint_density_of_z_and_label():
    prior, z = a_labelled_prior(), torch.randn(50, 3, generator=generator(5), dtype=torch.float64)
    pi = np.exp(prior.log_label_weights.detach().numpy())
    pi /= pi.sum(1, keepdims=True)
    mean, log_variance = (w.detach().numpy() for w in (prior.mean, prior.log_variance))
    logits = prior.log_weights.detach().numpy()
    each = stats.norm.logpdf(z.numpy()[:, None], mean, np.sqrt(np.exp(log_variance) + FLOOR)).sum(2)
    each += logits - logsumexp(logits)
    joint = logsumexp(each[:, :, None] + np.log(pi), axis=1)  # (cells, labels)
    standard, marginal = stats.norm.logpdf(z.numpy()).sum(1), logsumexp(each, axis=1)
    np.testing.assert_allclose(logsumexp(joint, axis=1), marginal, rtol=1e-12)
    labels = np.arange(50) % 4 - 1
    x = SimpleNamespace(labels=torch.from_numpy(labels))
    expected = np.where(labels < 0, marginal, joint[np.arange(50), labels])
    np.testing.assert_allclose(prior(None, z, x).detach(), standard - expected, atol=1e-12)
    np.testing.assert_allclose(prior.penalty(z, x).detach(), 2.5 * (marginal - expected), atol=1e-12)
    found = prior.label_probabilities(z).detach().numpy()
    np.testing.assert_allclose(found, np.exp(joint - marginal[:, None]), rtol=1e-10)


def test_a_sample_of_a_label_is_of_its_components():
    prior = LabelledPrior(6, 2, generator(0), 3, 1.0)
    with torch.no_grad():
        prior.mean.data.copy_(torch.arange(6.0)[:, None].expand(6, 2) * 100)
        prior.label_logits.mul_(100)
    z = prior.sample(200, np.random.default_rng(0), label=1)
    assert set(np.round(z[:, 0] / 100).astype(int)) == {1, 4}
    assert prior.weights(1).sum().item() == pytest.approx(1)


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
    estimate = q.kl().sum() + prior(None, many.sample(generator(3)), None).detach()
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


class Shrink(LatentTerm):
    """A penalty that someone adds: the mean square of z, and of the spread of q, with a parameter of its own."""

    name = "shrink"

    def __init__(self, n_latent):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((n_latent,), 0.5))

    @classmethod
    def of(cls, architecture, generator):
        return cls(architecture.n_latent)

    def forward(self, q, z, x):
        return (self.weight * (z.square() + q.mean.abs() + q.variance)).sum(1)


class ShrinkInBound(Shrink):
    """The same as a part of the bound."""

    name, in_bound = "shrink_in_bound", True


@pytest.fixture(params=[Shrink, ShrinkInBound])
def added(request, monkeypatch):
    """A term that a line in the table adds to every model."""
    table = (*TERMS, request.param)
    for module in (latent_terms, vae_module):
        monkeypatch.setattr(module, "TERMS", table)
    return request.param


def test_the_terms_of_a_model_are_those_that_its_architecture_asks_for():
    vae = small_vae(small_counts(n_batches=2), prior_components=3, batch_mixing=2.0)
    assert [type(term) for term in vae.terms] == [MixturePrior, BatchPenalty]
    assert vae.columns == ("reconstruction", "kl_z", "kl_l", "batch_penalty")
    assert {name.split(".")[0] for name in vae.state_dict()} >= {"prior"}
    assert small_vae(small_counts(n_batches=1), batch_mixing=2.0).terms == []


@pytest.mark.parametrize("kernels", [PLAIN, FUSED], ids=["plain", "fused"])
def test_a_new_term_is_a_class_and_a_line(added, kernels):
    """It is in the loss and in the history, and the step by hand gives it to autograd."""
    counts = small_counts(90, n_batches=2)
    vae = small_vae(counts, kernels=kernels, prior_components=3, batch_mixing=2.0)
    term = vae.get_submodule(added.name)
    x = counts.minibatch(slice(0, 20))
    vae.train()
    elbo, plain = (model(x, generator(1)) for model in (vae, without(vae, added)))
    nats = elbo.kl_z - plain.kl_z if added.in_bound else dict(elbo.penalties)[term]
    assert (nats > 0).all()
    for kl_weight in (0.3, 1.0):
        expected = plain.loss(kl_weight) + term.scale(kl_weight) * nats.mean()
        torch.testing.assert_close(elbo.loss(kl_weight), expected)
    before = term.weight.detach().clone()
    rows = run(vae, counts, max_epochs=3).rows
    assert (term.weight != before).all()
    training = [row for row in rows if row["split"] == "training"]
    if not added.in_bound:
        assert training[-1]["shrink"] > 0
        assert all("shrink" not in row for row in rows if row["split"] == "validation")


def without(vae, kind):
    """The same model without a term."""
    other = copy.deepcopy(vae)
    setattr(other, kind.name, None)
    return other


@pytest.mark.parametrize(("kl_weight", "scale"), [(0.5, 0.0), (1.0, 1.0)])
def test_a_penalty_begins_when_the_kl_weight_is_one(kl_weight, scale):
    for weight in (kl_weight, torch.tensor(kl_weight)):
        assert float(BatchPenalty(2.0).scale(weight)) == scale
        assert float(a_mixture().scale(weight)) == kl_weight
