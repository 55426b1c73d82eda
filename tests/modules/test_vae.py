"""The evidence lower bound: against exact values, against its own formula, and with every weight in play."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from helpers import (
    COUNT_LIKELIHOODS,
    LIKELIHOOD_NAMES,
    few_steps,
    generator,
    small_architecture,
    small_counts,
    small_vae,
    state_of,
    support_of,
)
from scipy import special, stats
from torch import nn

from sccvae.data.counts import Counts
from sccvae.data.packed_rows import PackedRows
from sccvae.inference.posterior import elbo_terms, marginal_log_likelihood
from sccvae.kernels.reference import FUSED, PLAIN
from sccvae.modules.batch_penalty import own_batch_excess
from sccvae.modules.likelihoods import Decoded
from sccvae.modules.networks import Gaussian
from sccvae.modules.vae import VAE, Elbo

# ------------------------------------------------------------------------ a linear-Gaussian model, known in closed form


class LinearDecoder(nn.Module):
    """x ~ Normal(z W + b, sigma^2): then x is Normal(b, W' W + sigma^2) and z|x is normal, too."""

    def __init__(self, weight, bias, log_sigma):
        super().__init__()
        self.weight, self.bias, self.log_sigma = weight, bias, log_sigma

    def forward(self, z, x, generator=None):
        return Decoded(z @ self.weight + self.bias, self.log_sigma, None)


class LinearEncoder(nn.Module):
    """The exact posterior of `LinearDecoder` when W W' is diagonal; its mean and variance can be put off."""

    def __init__(self, decoder, shift=0.0, widening=1.0):
        super().__init__()
        precision = torch.exp(-2 * decoder.log_sigma)  # (genes,)
        self.variance = 1 / (1 + (decoder.weight.square() * precision).sum(1))  # (latent,)
        self.to_mean = (decoder.weight * precision).T * self.variance
        self.bias, self.shift, self.widening = decoder.bias, shift, widening

    def forward(self, x, generator=None):
        mean = (x.dense() - self.bias) @ self.to_mean + self.shift
        return Gaussian(mean, (self.variance * self.widening).expand_as(mean)), None


@pytest.fixture(scope="module")
def linear_case():
    """Function: (dtype, **encoder) -> VAE; the counts of 25 cells drawn from it; and their exact log p(x)."""
    rng = np.random.default_rng(0)
    n_cells, n_genes, n_latent = 25, 7, 2
    log_sigma = rng.normal(-0.5, 0.3, n_genes)
    sigma = np.exp(log_sigma)
    # W diag(1 / sigma^2) W' is diagonal: the columns of an orthogonal matrix, stretched
    weight = (np.linalg.qr(rng.standard_normal((n_genes, n_latent)))[0] * [2.0, 0.8]).T * sigma
    bias = rng.standard_normal(n_genes)
    covariance = weight.T @ weight + np.diag(sigma**2)
    values = rng.multivariate_normal(bias, covariance, n_cells).astype(np.float32)
    counts = Counts.of(PackedRows.of(sp.csr_matrix(values), counts=False), nonnegative=False)
    exact = stats.multivariate_normal(bias, covariance).logpdf(values)

    def make(dtype, **encoder):
        a = small_architecture(counts, gene_likelihood="normal", n_latent=n_latent)
        vae = VAE(a, generator(0))
        vae.decoder = LinearDecoder(*(torch.tensor(v, dtype=dtype) for v in (weight, bias, log_sigma)))
        vae.encoder = LinearEncoder(vae.decoder, **encoder)
        return vae.to(dtype).eval()

    return make, counts, exact


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_elbo_with_the_exact_posterior_is_log_p_for_every_draw(linear_case, seed):
    """log p(x|z) + log p(z) - log q(z|x) = log p(x) whatever z; the ELBO takes the KL in closed form instead."""
    make, counts, exact = linear_case
    vae, x = make(torch.float64), counts.minibatch(slice(None)).to("cpu", torch.float64)
    q_z, _ = vae.encoder(x)
    z = q_z.sample(generator(seed))
    reconstruction, _ = vae.likelihood.log_prob(x, vae.decoder(z, x), None)
    prior = Gaussian(torch.zeros_like(z), torch.ones_like(z))
    log_weight = reconstruction + prior.log_prob(z).sum(1) - q_z.log_prob(z).sum(1)
    np.testing.assert_allclose(log_weight, exact, rtol=1e-9)


def many_elbos(vae, counts, n_draws):
    """Mean over draws of each cell's ELBO, and its standard error."""
    x = counts.minibatch(np.repeat(np.arange(len(counts)), n_draws)).to("cpu", torch.float64)
    values = vae(x, generator(0)).value.view(len(counts), n_draws).numpy()
    return values.mean(1), values.std(1) / math.sqrt(n_draws)


def test_elbo_with_the_exact_posterior_is_log_p_on_average(linear_case):
    make, counts, exact = linear_case
    elbo, error = many_elbos(make(torch.float64), counts, 2000)
    assert error.max() < 0.1
    assert (np.abs(elbo - exact) < 4.5 * error).all()


def test_elbo_falls_short_of_log_p_by_the_kl_to_the_posterior(linear_case):
    """With a wrong q, log p(x) - ELBO = KL(q || p(z|x)), which is known here."""
    make, counts, exact = linear_case
    vae, x = make(torch.float64, shift=0.3, widening=2.0), counts.minibatch(slice(None)).to("cpu", torch.float64)
    gap = vae.encoder(x)[0].kl(make(torch.float64).encoder(x)[0]).sum(1).numpy()
    elbo, error = many_elbos(vae, counts, 4000)
    assert gap.min() > 10 * error.max()  # so that the test below tells ELBO from log p(x)
    assert (np.abs(elbo + gap - exact) < 4.5 * error).all()


def test_marginal_log_likelihood_with_the_exact_posterior_is_exact_with_one_draw(linear_case):
    make, counts, exact = linear_case
    np.testing.assert_allclose(
        marginal_log_likelihood(make(torch.float32), counts, n_samples=1, seed=3), exact, atol=2e-4
    )


def test_marginal_log_likelihood_converges_to_the_exact_value_from_below(linear_case):
    make, counts, exact = linear_case
    vae = make(torch.float32, shift=0.2, widening=1.5)
    single, some, many = (marginal_log_likelihood(vae, counts, n_samples=n, seed=0) for n in (1, 30, 1500))
    np.testing.assert_allclose(many, exact, atol=0.15)
    assert abs((many - exact).mean()) < 0.03
    assert single.mean() < some.mean() - 0.1 < exact.mean() - 0.1


# --------------------------------------------------------------------------------------------- the bound on real models


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_elbo_is_below_the_marginal_log_likelihood(name):
    counts = small_counts(60, support=support_of(name), n_batches=2)
    vae = small_vae(counts, gene_likelihood=name)
    few_steps(vae, counts, n_steps=20)
    terms = np.mean([elbo_terms(vae, counts, seed=seed) for seed in range(100)], axis=0)
    elbo = terms[0] - terms[1] - terms[2]
    marginal = marginal_log_likelihood(vae, counts, n_samples=1000, seed=0)
    assert marginal.mean() > elbo.mean() + 0.05
    assert (marginal > elbo).mean() > 0.8
    assert marginal.mean() < elbo.mean() + 30  # a bound, not just any number below


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
@pytest.mark.parametrize("library", ["lognormal", "observed"])
def test_elbo_is_its_formula(name, library):
    """Every term again, with torch.distributions and scipy in place of the model's own code."""
    counts = small_counts(support=support_of(name), n_batches=3)
    vae = small_vae(counts, gene_likelihood=name, library=library, dropout_cost=0.2)
    few_steps(vae, counts, n_steps=5)
    vae.eval().double()
    x = counts.minibatch(slice(None)).to("cpu", torch.float64)
    with torch.no_grad():
        elbo = vae(x, generator(4))
        noise = generator(4)
        q_z, q_l = vae.encoder(x)
        z = q_z.mean + q_z.variance.sqrt() * torch.randn(90, 3, generator=noise, dtype=torch.float64)
        normal = torch.distributions.Normal
        kl_z = torch.distributions.kl_divergence(normal(q_z.mean, q_z.variance.sqrt()), normal(0, 1)).sum(1)
        log_l, kl_l = x.log_size, torch.zeros(90)
        assert (q_l is not None) == (name in COUNT_LIKELIHOODS and library == "lognormal")
        if q_l is not None:
            log_l = q_l.mean + q_l.variance.sqrt() * torch.randn(90, generator=noise, dtype=torch.float64)
            batch = x.codes[:, 0]
            prior = normal(vae.library_mean[batch], vae.library_variance[batch].sqrt())
            kl_l = torch.distributions.kl_divergence(normal(q_l.mean, q_l.variance.sqrt()), prior)
            assert float(kl_l.min()) > 0
        logits, log_dispersion, dropout = (None if t is None else t.numpy() for t in vae.decoder(z, x))
    dense, lost = counts.matrix.toarray().astype(np.float64), 0.0
    if name == "normal":
        entries = stats.norm.logpdf(dense, logits, np.exp(log_dispersion))
    elif name == "bernoulli":
        entries = stats.bernoulli.logpmf(dense, special.expit(logits))
    else:
        mean = special.softmax(logits, axis=1) * np.exp(log_l.numpy())[:, None]
        theta = None if name == "poisson" else np.exp(log_dispersion)
        entries = (
            stats.poisson.logpmf(dense, mean)
            if theta is None
            else stats.nbinom.logpmf(dense, theta, theta / (theta + mean))
        )
        if name == "zinb":
            lost = special.expit(dropout)
            entries = np.log(np.where(dense == 0, lost, 0) + (1 - lost) * np.exp(entries))
    np.testing.assert_allclose(elbo.reconstruction, entries.sum(1), rtol=1e-6)
    np.testing.assert_allclose(elbo.kl_z, kl_z, rtol=1e-9)
    np.testing.assert_allclose(elbo.kl_l, kl_l, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(elbo.dropout_penalty, 0.2 * np.sum(lost * np.ones_like(dense), axis=1), rtol=1e-9)
    np.testing.assert_allclose(elbo.value, entries.sum(1) - kl_z.numpy() - kl_l.numpy(), rtol=1e-6)


def test_loss_weighs_only_the_kl_of_z_and_charges_dropouts():
    elbo = Elbo(*(torch.tensor(v) for v in ([-10.0, -20.0], [2.0, 4.0], [0.5, 1.5], [0.25, 0.75])))
    np.testing.assert_allclose(elbo.value, [-12.5, -25.5])
    assert float(elbo.loss()) == pytest.approx(15 + 3 + 1 + 0.5)
    assert float(elbo.loss(0.1)) == pytest.approx(15 + 0.3 + 1 + 0.5)


def test_dropout_cost_is_no_part_of_the_bound():
    counts = small_counts()
    free, charged = (small_vae(counts, dropout_cost=cost).eval() for cost in (0.0, 0.5))
    x = counts.minibatch(slice(None))
    with torch.no_grad():
        free, charged = free(x, generator(1)), charged(x, generator(1))
    np.testing.assert_allclose(charged.reconstruction, free.reconstruction, rtol=1e-5)
    assert not free.dropout_penalty.any()
    np.testing.assert_allclose(charged.dropout_penalty, 0.5 * 24 * special.expit(-3), rtol=1e-5)
    assert float(charged.loss() - free.loss()) == pytest.approx(0.5 * 24 * special.expit(-3), rel=1e-3)


def test_batches_apart_are_charged_in_training_and_are_no_part_of_the_bound():
    counts = small_counts(n_batches=3)
    x = counts.minibatch(slice(None))
    free, charged = (small_vae(counts, batch_mixing=weight, dropout_rate=0.0).train() for weight in (0.0, 2.5))
    q_z, _ = charged.encoder(x)
    with torch.no_grad():
        expected = 2.5 * own_batch_excess(q_z.mean, x.codes[:, 0])
        one, other = free(x, generator(1)), charged(x, generator(1))
    assert (expected > 0.1).any()
    assert one.penalties == ()
    ((term, nats),) = other.penalties
    assert term is charged.batch_penalty
    np.testing.assert_array_equal(nats, expected)
    np.testing.assert_array_equal(other.value, one.value)
    assert float(other.loss() - one.loss()) == pytest.approx(float(expected.mean()), rel=1e-3)
    assert float(other.loss(0.99)) == float(one.loss(0.99))  # not before the KL weight is 1
    with torch.no_grad():
        assert charged.eval()(x, generator(1)).penalties == ()


def test_one_batch_is_not_charged():
    counts = small_counts()
    assert small_vae(counts, batch_mixing=9.0).train()(counts.minibatch(slice(None)), generator(1)).penalties == ()


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_the_weights_of_the_heads_have_a_prior(name):
    counts = small_counts(n_batches=3, support=support_of(name))
    vae = small_vae(counts, gene_likelihood=name, weight_precision=70.0)
    found = {w: p for (w, _), p in zip(vae.named_parameters(), vae.precisions(), strict=True) if p}
    heads = ["decoder.logits.weight"] * (name in COUNT_LIKELIHOODS) + ["decoder.dropout.weight"] * (name == "zinb")
    assert found == dict.fromkeys(heads, 70.0)
    assert not any(small_vae(counts, gene_likelihood=name).precisions())


def test_the_kl_of_z_is_from_the_mixture():
    """Its mean over draws of z, against log q(z|x) - log p(z) over other draws."""
    counts = small_counts(6)
    vae = small_vae(counts, prior_components=5)
    few_steps(vae, counts, n_steps=20)
    vae.eval()
    x = counts.minibatch(slice(None))
    with torch.no_grad():
        (q_z, _), source = vae.encoder(x), generator(1)
        ours = torch.stack([vae(x, source).kl_z for _ in range(2000)])
        z = [q_z.sample(source) for _ in range(2000)]
        plain = torch.stack([q_z.log_prob(draw).sum(1) - vae.log_prior(draw) for draw in z])
    error = ((ours.var(0) + plain.var(0)) / 2000).sqrt()
    assert ((ours.mean(0) - plain.mean(0)).abs() < 4.5 * error).all()
    assert float((ours.mean(0) - q_z.kl().sum(1)).abs().max()) > 0.05  # the prior has moved away from N(0, I)


# ---------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("covariates", ["none", "decoded", "encoded"])
@pytest.mark.parametrize("library", ["lognormal", "observed"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_every_parameter_receives_a_gradient(name, dispersion, library, covariates):
    counts = small_counts(
        40,
        12,
        support=support_of(name),
        n_batches=1 if covariates == "none" else 2,
        covariates=covariates != "none",
    )
    vae = small_vae(
        counts,
        gene_likelihood=name,
        dispersion=dispersion,
        library=library,
        encode_covariates=covariates == "encoded",
        n_layers=2,
        n_hidden=8,
    )
    few_steps(vae, counts, n_steps=2)  # heads that start at zero block the gradient of the layers below at first
    vae.zero_grad(set_to_none=True)
    vae(counts.minibatch(slice(None)), generator(1)).loss().backward()
    for parameter_name, parameter in vae.named_parameters():
        assert parameter.grad is not None, f"the loss does not use {parameter_name}"
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.abs().max() > 1e-7, f"{parameter_name} receives no gradient"


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_gradient_of_the_loss_equals_finite_differences(name):
    """Along random directions in all weights at once, drop-out noise, draws and the cost of drop-outs included."""
    counts = small_counts(20, 10, support=support_of(name), n_batches=2, covariates=True)
    vae = small_vae(counts, gene_likelihood=name, dispersion="gene-batch", dropout_cost=0.3)
    few_steps(vae, counts)
    vae.double()
    x = counts.minibatch(slice(None)).to("cpu", torch.float64)
    parameters = list(vae.parameters())
    loss = lambda: vae(x, generator(9)).loss(0.6)  # noqa: E731
    gradients = torch.autograd.grad(loss(), parameters)
    source = generator(1)
    for _ in range(4):
        direction = [torch.randn(p.shape, generator=source, dtype=torch.float64) for p in parameters]
        slope = float(sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)))
        ends = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                for p, d in zip(parameters, direction, strict=True):
                    p += step * d
                ends.append(float(loss()))
            for p, d in zip(parameters, direction, strict=True):
                p += 1e-6 * d
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_fused_and_plain_kernels_make_the_same_model(name, dispersion):
    """The same loss and gradients within float32 rounding, from the same weights and noise."""
    counts = small_counts(40, 53, support=support_of(name), n_batches=2, covariates=True)
    results = []
    for kernels in (PLAIN, FUSED):
        vae = small_vae(counts, gene_likelihood=name, dispersion=dispersion, kernels=kernels)
        if results:
            vae.load_state_dict(results[0][0])
        else:
            few_steps(vae, counts)
        weights = state_of(vae)
        vae.zero_grad(set_to_none=True)
        loss = vae(counts.minibatch(slice(None)), generator(1)).loss()
        loss.backward()
        results.append((weights, loss.item(), {n: p.grad for n, p in vae.named_parameters()}))
    (_, plain_loss, plain_gradients), (_, fused_loss, fused_gradients) = results
    assert fused_loss == pytest.approx(plain_loss, rel=1e-5)
    for parameter_name, expected in plain_gradients.items():
        error = (fused_gradients[parameter_name] - expected).abs().max()
        assert error <= 1e-4 * expected.abs().max() + 1e-6, parameter_name


# -------------------------------------------------------------------------------------------------------- minibatches


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_a_minibatch_of_one_cell_trains(name):
    counts = small_counts(support=support_of(name), n_batches=2, covariates=True)
    vae = small_vae(counts, gene_likelihood=name, dropout_rate=0.3).train()
    before = state_of(vae)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    losses = []
    for step in range(40):
        loss = vae(counts.minibatch(np.array([7])), generator(step)).loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(t).all() for t in vae.state_dict().values())
    assert not torch.equal(before["decoder.logits.weight"], vae.decoder.logits.weight)


@pytest.mark.parametrize("training", [True, False], ids=["train mode", "eval mode"])
@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_encoding_and_decoding_of_a_cell_do_not_depend_on_its_neighbours(name, training):
    counts = small_counts(30, support=support_of(name), n_batches=3, covariates=True)
    vae = small_vae(counts, gene_likelihood=name, dropout_rate=0.0, encode_covariates=True, n_layers=2)
    few_steps(vae, counts)
    vae.train(training)
    z = torch.randn(30, 3, generator=generator(0))
    with torch.no_grad():
        x = counts.minibatch(slice(None))
        together, decoded = vae.encoder(x), vae.decoder(z, x)
        for cells in (np.array([4]), np.array([29, 4, 11])):
            x = counts.minibatch(cells)
            q_z, q_l = vae.encoder(x)
            np.testing.assert_allclose(q_z.mean, together[0].mean[cells], atol=1e-5)
            np.testing.assert_allclose(q_z.variance, together[0].variance[cells], rtol=1e-5)
            if q_l is not None:
                np.testing.assert_allclose(q_l.mean, together[1].mean[cells], rtol=1e-5)
            np.testing.assert_allclose(vae.decoder(z[cells], x).logits, decoded.logits[cells], atol=1e-5)
    assert float(together[0].mean.std(0).min()) > 1e-2  # cells differ at all


def test_forward_depends_on_the_generator_alone():
    counts = small_counts()
    vae = small_vae(counts, dropout_rate=0.5).train()
    x = counts.minibatch(slice(None))
    with torch.no_grad():
        first, again, other = (vae(x, generator(seed)).value for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# -------------------------------------------------------------------------------------------- what the encoder sees


def noted(vae, monkeypatch):
    """The minibatches that the networks of `vae` are given from now on, by network."""
    given = {"encoder": [], "likelihood": []}
    for name, owner, method in (("encoder", vae.encoder, "forward"), ("likelihood", vae.likelihood, "log_prob")):
        original, seen = getattr(owner, method), given[name]
        monkeypatch.setattr(owner, method, lambda x, *rest, f=original, seen=seen: seen.append(x) or f(x, *rest))
    return given


@pytest.mark.parametrize("kernels", [PLAIN, FUSED], ids=["plain", "fused"])
@pytest.mark.parametrize("name", COUNT_LIKELIHOODS)
def test_in_training_the_encoder_sees_part_of_the_molecules_and_the_likelihood_all(name, kernels, monkeypatch):
    counts = small_counts(60)
    vae, x = small_vae(counts, gene_likelihood=name, thinning=0.8, kernels=kernels), counts.minibatch(slice(None))
    given = noted(vae, monkeypatch)
    vae.train()(x, generator())
    vae.eval()(x, generator())
    (seen, all_of_it), total = given["encoder"], x.dense().sum(1)
    assert all_of_it is x
    assert all(whole is x for whole in given["likelihood"])
    share = seen.dense().sum(1) / total
    assert (seen.values <= x.values).all()
    assert ((share < 1).float().mean() > 0.9) & (share.mean() > 0.4) & (share.mean() < 0.8)
    np.testing.assert_allclose(seen.log_total.exp(), seen.dense().sum(1).clamp_min(1), rtol=1e-5)
    assert torch.equal(seen.log_size, x.log_size)


@pytest.mark.parametrize("name", ["normal", "bernoulli"])
def test_values_that_are_not_counts_have_no_molecules(name, monkeypatch):
    counts = small_counts(support=support_of(name))
    vae, x = small_vae(counts, gene_likelihood=name, thinning=0.8).train(), counts.minibatch(slice(None))
    given = noted(vae, monkeypatch)
    vae(x, generator())
    assert given["encoder"] == [x]


# ------------------------------------------------------------------------------------------------- where it starts from


def test_start_from_sets_the_library_prior_to_each_batchs_moments():
    """Batches of 50, 39 and a single cell, which takes the variance over all cells."""
    values = small_counts(90).matrix
    batch = np.repeat([0, 1, 2], [50, 39, 1])
    values = sp.csr_matrix(values.multiply(np.where(batch == 1, 4, 1)[:, None]), dtype=np.float32)
    counts = Counts.of(PackedRows.of(values), codes=batch[:, None], n_levels=(3,))
    vae = small_vae(counts)
    log_total = np.log(values.toarray().sum(1))
    for code in range(2):
        assert float(vae.library_mean[code]) == pytest.approx(log_total[batch == code].mean(), rel=1e-5)
        assert float(vae.library_variance[code]) == pytest.approx(log_total[batch == code].var(), rel=1e-4)
    assert float(vae.library_mean[2]) == pytest.approx(log_total[-1], rel=1e-5)
    assert float(vae.library_variance[2]) == pytest.approx(log_total.var(), rel=1e-4)
    assert float(vae.library_mean[1] - vae.library_mean[0]) == pytest.approx(np.log(4), abs=0.3)
    prior = vae.library_prior(counts.minibatch(np.array([89, 0])))
    assert torch.equal(prior.mean, vae.library_mean[[2, 0]])
    assert torch.equal(prior.variance, vae.library_variance[[2, 0]])


def test_start_from_keeps_the_variance_positive_when_all_cells_have_one_total():
    matrix = sp.csr_matrix(np.full((10, 4), 3, dtype=np.float32))
    vae = small_vae(Counts.of(PackedRows.of(matrix)))
    assert float(vae.library_mean[0]) == pytest.approx(math.log(12), rel=1e-6)
    assert float(vae.library_variance[0]) > 1e-4
    assert torch.isfinite(vae(Counts.of(PackedRows.of(matrix.copy())).minibatch(slice(None)), generator(0)).value).all()


@pytest.mark.parametrize("name", COUNT_LIKELIHOODS)
def test_start_from_sets_the_decoders_bias_to_the_mean_profile(name):
    counts = small_counts()
    vae = small_vae(counts, gene_likelihood=name)
    per_gene = counts.matrix.toarray().sum(0) + 0.5
    np.testing.assert_allclose(torch.softmax(vae.decoder.logits.bias, 0).detach(), per_gene / per_gene.sum(), rtol=1e-5)
    assert float(vae.encoder.log_target) == pytest.approx(counts.log_total.mean(), rel=1e-6)


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
def test_start_from_sets_mean_and_spread_of_real_values(dispersion):
    counts = small_counts(support="real", n_batches=2)
    vae = small_vae(counts, gene_likelihood="normal", dispersion=dispersion).eval()
    dense = counts.matrix.toarray()
    np.testing.assert_allclose(vae.decoder.logits.bias.detach(), dense.mean(0), rtol=1e-4, atol=1e-5)
    log_sigma = vae.decoder(torch.zeros(90, 3), counts.minibatch(slice(None))).log_dispersion
    np.testing.assert_allclose(log_sigma.exp().detach().expand(90, -1), np.tile(dense.std(0), (90, 1)), rtol=1e-3)


def test_start_from_sets_the_log_odds_of_binary_values():
    counts = small_counts(support="binary")
    vae = small_vae(counts, gene_likelihood="bernoulli")
    mean = np.clip(counts.matrix.toarray().mean(0), 0.5 / 90, 1 - 0.5 / 90)
    np.testing.assert_allclose(torch.sigmoid(vae.decoder.logits.bias).detach(), mean, rtol=1e-4)


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_the_start_is_a_good_one(name):
    """What start_from sets explains the cells better than a step away from it, in either direction."""
    counts = small_counts(support=support_of(name), n_batches=2)
    vae = small_vae(counts, gene_likelihood=name).eval()
    vae.decoder.logits.weight.data.zero_()  # leave only what start_from has set
    x, step = counts.minibatch(slice(None)), torch.tensor([1.0, -1.0]).repeat(12)
    values = []
    with torch.no_grad():
        for stride in (0, 1, -2):
            vae.decoder.logits.bias += stride * step
            values.append(float(vae(x, generator(0)).reconstruction.mean()))
    assert values[0] > max(values[1:]) + 1
