"""The building blocks: Gaussians against closed forms, layers against dense ones, private random streams."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from helpers import (
    COUNT_LIKELIHOODS,
    LIKELIHOOD_NAMES,
    few_steps,
    generator,
    minibatch_of,
    same_state,
    small_architecture,
    small_counts,
    small_vae,
    state_of,
    support_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from sccvae.data.counts import Minibatch
from sccvae.modules.architecture import check_choices
from sccvae.modules.networks import (
    Block,
    CovariateOffset,
    Decoder,
    Dropout,
    Encoder,
    Gaussian,
    Linear,
    SparseLinear,
    noise_of_units,
)
from sccvae.modules.vae import VAE

# ---------------------------------------------------------------------------------------------------------- Gaussians


def gaussian(mean, variance, dtype=torch.float64):
    return Gaussian(torch.as_tensor(mean, dtype=dtype), torch.as_tensor(variance, dtype=dtype))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(x=st.floats(-50, 50), mean=st.floats(-50, 50), log_variance=st.floats(-12, 8))
def test_gaussian_log_prob_equals_scipy(x, mean, log_variance):
    variance = math.exp(log_variance)
    ours = float(gaussian(mean, variance).log_prob(torch.tensor(x, dtype=torch.float64)))
    assert ours == pytest.approx(stats.norm.logpdf(x, mean, math.sqrt(variance)), rel=1e-12, abs=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(means=st.tuples(st.floats(-3, 3), st.floats(-3, 3)), log_variances=st.tuples(st.floats(-3, 2), st.floats(-3, 2)))
def test_gaussian_kl_is_the_integral_that_defines_it(means, log_variances):
    q, p = (stats.norm(m, math.exp(0.5 * v)) for m, v in zip(means, log_variances, strict=True))
    spread = 10 * q.std()
    integral, _ = integrate.quad(
        lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), q.mean() - spread, q.mean() + spread, limit=200
    )
    ours = gaussian(means[0], math.exp(log_variances[0])).kl(gaussian(means[1], math.exp(log_variances[1])))
    assert float(ours) == pytest.approx(integral, rel=1e-6, abs=1e-8)
    assert float(ours) >= -1e-12


def test_gaussian_kl_equals_torch_and_is_zero_only_from_itself():
    rng = np.random.default_rng(0)
    mean, prior_mean = rng.normal(0, 3, (2, 200))
    variance, prior_variance = rng.lognormal(0, 2, (2, 200))
    q, p = gaussian(mean, variance), gaussian(prior_mean, prior_variance)
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.mean, q.variance.sqrt()), torch.distributions.Normal(p.mean, p.variance.sqrt())
    )
    np.testing.assert_allclose(q.kl(p), reference, rtol=1e-9)
    assert (q.kl(p) > 0).all()
    assert float(q.kl(q).abs().max()) < 1e-12
    standard = gaussian(np.zeros(200), np.ones(200))
    np.testing.assert_allclose(q.kl(), q.kl(standard), rtol=1e-12)


def test_gaussian_kl_equals_monte_carlo():
    q, p = gaussian([0.5, -1.0], [0.3, 2.0]), gaussian([0.0, 0.5], [1.0, 0.7])
    n = 200_000
    many = Gaussian(q.mean.expand(n, 2), q.variance.expand(n, 2))
    x = many.sample(generator(1))
    ratio = q.log_prob(x) - p.log_prob(x)
    error = ratio.std(0) / math.sqrt(n)
    assert ((ratio.mean(0) - q.kl(p)).abs() < 4 * error).all()


def test_gaussian_samples_have_its_moments():
    n, mean, variance = 100_000, torch.tensor([-2.0, 0.0, 5.0]), torch.tensor([0.01, 1.0, 9.0])
    x = Gaussian(mean.expand(n, 3), variance.expand(n, 3)).sample(generator(2))
    assert ((x.mean(0) - mean).abs() < 4 * (variance / n).sqrt()).all()
    assert ((x.var(0) - variance).abs() < 4 * variance * math.sqrt(2 / n)).all()
    assert np.abs(np.corrcoef(x.T)[np.triu_indices(3, 1)]).max() < 4 / math.sqrt(n)
    for column in range(3):
        assert stats.kstest(x[:, column], stats.norm(mean[column], variance[column].sqrt()).cdf).pvalue > 1e-3


def test_gaussian_samples_depend_on_the_generator_alone():
    q = gaussian(np.zeros((4, 3)), np.ones((4, 3)))
    torch.manual_seed(1)
    first = q.sample(generator(5))
    torch.manual_seed(2)
    assert torch.equal(first, q.sample(generator(5)))
    assert not torch.equal(first, q.sample(generator(6)))
    source = generator(5)
    assert torch.equal(first, q.sample(source))
    assert not torch.equal(first, q.sample(source))


def test_gaussian_samples_are_reparameterised():
    """d sample / d mean = 1, d sample / d variance = noise / (2 sd)."""
    mean = torch.zeros(6, requires_grad=True)
    variance = torch.full((6,), 4.0, requires_grad=True)
    x = Gaussian(mean, variance).sample(generator(0))
    to_mean, to_variance = torch.autograd.grad(x.sum(), [mean, variance])
    np.testing.assert_allclose(to_mean, np.ones(6))
    np.testing.assert_allclose(to_variance, (x / 2 / (2 * 2)).detach(), rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------- layers


def test_linear_has_xavier_weights_and_no_bias():
    layer = Linear(300, 200, generator(0))
    bound = math.sqrt(6 / 500)
    assert layer.weight.abs().max() <= bound
    assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not layer.bias.any()
    assert torch.equal(layer.weight, Linear(300, 200, generator(0)).weight)
    assert not torch.equal(layer.weight, Linear(300, 200, generator(1)).weight)


def test_linear_is_an_affine_map():
    layer = Linear(3, 2, generator(0))
    layer.bias.data[:] = torch.tensor([1.0, -2.0])
    h = torch.randn(5, 3, generator=generator(1))
    expected = h.numpy() @ layer.weight.detach().numpy() + [1.0, -2.0]
    np.testing.assert_allclose(layer(h).detach(), expected, rtol=1e-5, atol=1e-6)


def test_linear_can_start_at_zero():
    layer = Linear(5, 4, generator(0), zero=True)
    assert not layer.weight.any()
    assert not layer.bias.any()


def test_sparse_linear_equals_the_dense_product_with_its_gradient():
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.4, (6, 11)).astype(float)
    dense[2] = 0
    x = minibatch_of(dense)
    layer = SparseLinear(11, 4, generator(0)).double()
    layer.bias.data.normal_(generator=generator(1))
    scale = torch.from_numpy(rng.lognormal(0, 1, 6))
    ours = layer(x, scale)
    reference = torch.log1p(torch.from_numpy(dense) * scale[:, None]) @ layer.weight + layer.bias
    np.testing.assert_allclose(ours.detach(), reference.detach(), rtol=1e-12)
    np.testing.assert_allclose(ours[2].detach(), layer.bias.detach(), rtol=1e-12)
    weights = torch.from_numpy(rng.standard_normal((6, 4)))
    ours_gradients = torch.autograd.grad((ours * weights).sum(), list(layer.parameters()))
    reference_gradients = torch.autograd.grad((reference * weights).sum(), list(layer.parameters()))
    for gradient, expected in zip(ours_gradients, reference_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-12)


def test_covariate_offset_equals_one_hot_columns():
    counts = small_counts(12, n_batches=4, covariates=True)
    x = counts.minibatch(slice(None))
    offset = CovariateOffset(counts.n_levels, 2, 5)
    for parameter in offset.parameters():
        parameter.data.normal_(generator=generator(3))
    h = torch.randn(12, 5, generator=generator(4))
    one_hot = [torch.nn.functional.one_hot(x.codes[:, k], n).float() for k, n in enumerate(counts.n_levels)]
    weights = torch.cat([*offset.levels, offset.slopes])
    expected = h + torch.cat([*one_hot, x.continuous], 1) @ weights
    np.testing.assert_allclose(offset(h, x).detach(), expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("n_levels", "n_continuous", "shapes"),
    [
        ((1,), 0, []),
        ((), 0, []),
        ((3,), 0, [(3, 7)]),
        ((1, 2), 0, [(2, 7)]),
        ((2, 1, 5), 3, [(3, 7), (2, 7), (5, 7)]),
    ],
)
def test_covariate_offset_has_no_more_weights_than_it_needs(n_levels, n_continuous, shapes):
    offset = CovariateOffset(n_levels, n_continuous, 7)
    assert sorted(tuple(p.shape) for p in offset.parameters()) == sorted(shapes)
    assert not any(p.any() for p in offset.parameters())


def test_covariate_offset_matches_columns_that_follow_a_covariate_of_one_level():
    """Levels are looked up by the column they belong to, not by their position among those kept."""
    codes = np.array([[0, 0, 1], [0, 1, 0]])
    x = Minibatch.of_covariates(codes, 0, 4)
    offset = CovariateOffset((1, 2, 2), 0, 1)
    offset.levels[0].data[:] = torch.tensor([[10.0], [20.0]])
    offset.levels[1].data[:] = torch.tensor([[1.0], [2.0]])
    np.testing.assert_array_equal(offset(torch.zeros(2, 1), x).detach(), [[12.0], [21.0]])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate):
    n = 100_000
    dropout = Dropout(rate)
    h = dropout(torch.full((n,), 3.0), generator(0))
    kept = h != 0
    assert abs(float(kept.float().mean()) - (1 - rate)) < 4 * math.sqrt(rate * (1 - rate) / n)
    np.testing.assert_allclose(h[kept], 3 / (1 - rate), rtol=1e-6)


def test_dropout_is_the_generators_and_only_in_training():
    h, dropout = torch.ones(50, 4), Dropout(0.4)
    assert torch.equal(dropout(h, generator(1)), dropout(h, generator(1)))
    assert not torch.equal(dropout(h, generator(1)), dropout(h, generator(2)))
    assert torch.equal(dropout.eval()(h, None), h)
    assert torch.equal(Dropout(0.0).train()(h, None), h)
    assert torch.equal(h, torch.ones(50, 4))


def test_noise_of_units_is_uniform_and_independent():
    noise = noise_of_units((400, 251), generator(3))  # a quarter of the last number drawn
    assert (noise.dtype, noise.shape) == (torch.int16, (400, 251))
    uniform = (noise.double().numpy().ravel() + 2**15) / 2**16
    assert stats.kstest(uniform, "uniform").pvalue > 0.01
    for lag in (1, 2, 3, 4, 251):  # those of one number drawn, of its neighbour, and of the cell above
        assert abs(np.corrcoef(uniform[:-lag], uniform[lag:])[0, 1]) < 4 / math.sqrt(uniform.size)


def test_a_rate_near_1_leaves_a_unit_in_65536():
    assert Dropout(1 - 1e-7).lowest == 2**15 - 1
    assert Dropout(0.0).lowest == -(2**15)


def test_block_normalises_each_cell_by_itself():
    block = Block(8, (1,), 0, 0.0)
    x = Minibatch.of_covariates(np.zeros((3, 1), dtype=np.int64), 0, 4)
    h = torch.randn(3, 8, generator=generator(0)) * torch.tensor([[1.0], [10.0], [100.0]]) + 5
    centred = h - h.mean(1, keepdim=True)
    expected = torch.relu(centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt())
    np.testing.assert_allclose(block(h, x, None).detach(), expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ encoder


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_encoder_shapes_and_where_it_starts(name):
    counts = small_counts(support=support_of(name), n_batches=2)
    vae = small_vae(counts, gene_likelihood=name)
    x = counts.minibatch(slice(None))
    q_z, q_l = vae.eval().encoder(x)
    assert q_z.mean.shape == q_z.variance.shape == (90, 3)
    np.testing.assert_allclose(q_z.variance.detach(), 1 + 1e-6, rtol=1e-6)
    if name in COUNT_LIKELIHOODS:
        assert torch.equal(q_l.mean, x.log_size)  # starts at the observed total, and sure of it
        np.testing.assert_allclose(q_l.variance.detach(), math.exp(-4), rtol=1e-6)
    else:
        assert q_l is None


def test_encoder_takes_log_counts_at_a_common_depth():
    """The first layer's input, by hand; twice the counts give the same cell and a library twice as large."""
    counts = small_counts(8)
    vae = small_vae(counts).eval()
    dense = counts.matrix.toarray()
    target = np.exp(np.log(dense.sum(1)).mean())
    scaled = np.log1p(dense / dense.sum(1, keepdims=True) * target)
    encoder = vae.encoder
    h = torch.tensor(scaled, dtype=torch.float32) @ encoder.first.weight + encoder.first.bias
    x = counts.minibatch(slice(None))
    expected = encoder.z(encoder.blocks[0](h, x, None))[:, : vae.architecture.n_latent]
    q_z, q_l = encoder(x)
    np.testing.assert_allclose(q_z.mean.detach(), expected.detach(), atol=1e-5)
    few_steps(vae, counts)
    vae.eval()
    q_z, q_l = encoder(x)
    double_z, double_l = encoder(
        x._replace(values=2 * x.values, log_total=x.log_total + math.log(2), log_size=x.log_size + math.log(2))
    )
    np.testing.assert_allclose(double_z.mean.detach(), q_z.mean.detach(), atol=1e-4)
    np.testing.assert_allclose(double_l.mean.detach(), q_l.mean.detach() + math.log(2), atol=1e-4)


@pytest.mark.parametrize("name", ["normal", "bernoulli"])
def test_encoder_takes_other_values_as_they_are(name):
    counts = small_counts(8, support=support_of(name))
    vae = small_vae(counts, gene_likelihood=name).eval()
    encoder, x = vae.encoder, counts.minibatch(slice(None))
    h = x.dense() @ encoder.first.weight + encoder.first.bias
    expected = encoder.z(encoder.blocks[0](h, x, None))[:, : vae.architecture.n_latent]
    np.testing.assert_allclose(encoder(x)[0].mean.detach(), expected.detach(), atol=1e-5)


def test_encoder_variances_are_bounded_whatever_the_weights():
    counts = small_counts(8)
    vae = small_vae(counts).eval()
    for bias, z_bounds, l_bounds in ((1e4, math.exp(8), math.exp(4)), (-1e4, math.exp(-12), math.exp(-12))):
        vae.encoder.z.bias.data[vae.architecture.n_latent :] = bias
        vae.encoder.library.bias.data[1] = bias
        q_z, q_l = vae.encoder(counts.minibatch(slice(None)))
        np.testing.assert_allclose(q_z.variance.detach(), z_bounds + 1e-6, rtol=1e-5)
        np.testing.assert_allclose(q_l.variance.detach(), l_bounds, rtol=1e-5)


@pytest.mark.parametrize("encode_covariates", [False, True])
def test_encoder_sees_covariates_only_if_asked(encode_covariates):
    counts = small_counts(n_batches=3, covariates=True)
    vae = small_vae(counts, encode_covariates=encode_covariates)
    few_steps(vae, counts, n_steps=5)
    x = counts.minibatch(slice(None))
    elsewhere = x.with_level(0, 1)
    older = x._replace(continuous=x.continuous + 1)
    here, there, later = (vae.eval().encoder(cells)[0].mean.detach() for cells in (x, elsewhere, older))
    own = x.codes[:, 0] == 1
    assert torch.equal(here[own], there[own])
    assert torch.equal(here, there) != encode_covariates
    assert torch.equal(here, later) != encode_covariates


# ------------------------------------------------------------------------------------------------------------ decoder


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_decoder_has_the_heads_that_the_likelihood_needs(name, dispersion):
    counts = small_counts(10, n_batches=2)
    a = small_architecture(counts, gene_likelihood=name, dispersion=dispersion)
    decoded = Decoder(a, generator(0)).eval()(torch.randn(10, 3, generator=generator(1)), counts.minibatch(slice(None)))
    assert decoded.logits.shape == (10, 24)
    if name in ("zinb", "nb", "normal"):
        assert decoded.log_dispersion.shape == ((24,) if dispersion == "gene" else (10, 24))
        assert (decoded.log_dispersion == 0.5).all()
    else:
        assert decoded.log_dispersion is None
    if name == "zinb":
        np.testing.assert_allclose(decoded.dropout.detach(), -3.0)
    else:
        assert decoded.dropout is None


def test_decoder_dispersion_per_batch_is_looked_up_by_batch():
    counts = small_counts(10, n_batches=3)
    decoder = Decoder(small_architecture(counts, dispersion="gene-batch"), generator(0))
    decoder.log_dispersion.data[:] = torch.tensor([0.0, 1.0, 2.0])[:, None]
    decoded = decoder(torch.zeros(10, 3), counts.minibatch(slice(None)), generator(1))
    np.testing.assert_array_equal(decoded.log_dispersion[:, 0].detach(), np.arange(10) % 3)


def test_decoder_depends_on_the_batch_once_trained():
    counts = small_counts(n_batches=3)
    vae = small_vae(counts)
    z, x = torch.zeros(90, 3), counts.minibatch(slice(None))
    logits = lambda x: vae.eval().decoder(z, x).logits.detach()  # noqa: E731
    assert torch.equal(logits(x), logits(x.with_level(0, 0)))  # offsets start at zero
    few_steps(vae, counts)
    own = x.codes[:, 0] == 0
    assert torch.equal(logits(x)[own], logits(x.with_level(0, 0))[own])
    assert (logits(x)[~own] != logits(x.with_level(0, 0))[~own]).any(1).all()


def test_decoder_reads_only_the_covariates_of_the_minibatch():
    counts = small_counts(n_batches=2, covariates=True)
    vae = small_vae(counts)
    few_steps(vae, counts)
    x = counts.minibatch(slice(None))
    bare = Minibatch.of_covariates(counts.codes.copy(), 2, counts.n_genes)._replace(continuous=x.continuous)
    z = torch.randn(90, 3, generator=generator(0))
    with torch.no_grad():
        for ours, same in zip(vae.eval().decoder(z, x), vae.decoder(z, bare), strict=True):
            assert torch.equal(ours, same)


# ------------------------------------------------------------------------------------------ random streams and shapes


def global_random_state():
    numpy_state = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), [str(part) for part in numpy_state], random.getstate()


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_global_random_state_is_left_alone(name):
    """By the construction of the networks, and by forward and backward passes in train mode with dropout."""
    counts = small_counts(support=support_of(name), n_batches=2, covariates=True)
    before = global_random_state()
    vae = small_vae(counts, gene_likelihood=name, dropout_rate=0.5, n_layers=2, encode_covariates=True)
    few_steps(vae, counts)
    assert global_random_state() == before


def test_weights_depend_on_the_generator_alone():
    counts = small_counts(n_batches=2)
    a = small_architecture(counts, n_layers=2)
    torch.manual_seed(1)
    first = state_of(VAE(a, generator(3)))
    torch.manual_seed(2)
    assert same_state(first, state_of(VAE(a, generator(3))))
    assert not same_state(first, state_of(VAE(a, generator(4))))


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_number_of_layers(n_layers):
    """`n_layers` hidden layers in each network: weights of p(x|z) and q(z|x), counted by hand."""
    counts = small_counts()
    a = small_architecture(counts, n_layers=n_layers, gene_likelihood="poisson", library="observed")
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    genes, hidden, latent = 24, 16, 3
    between = (n_layers - 1) * hidden * (hidden + 1) + n_layers * 2 * hidden
    assert count(Encoder(a, generator(0))) == (genes + 1) * hidden + between + 2 * (hidden + 1) * latent
    assert count(Decoder(a, generator(0))) == (latent + 1) * hidden + between + (hidden + 1) * genes


def test_two_widths_are_the_encoders_and_the_decoders():
    counts = small_counts()
    wide, narrow, apart = (small_architecture(counts, n_hidden=n, n_layers=2) for n in (7, 5, (7, 5)))
    assert (wide.widths, apart.widths) == ((7, 7), (7, 5))
    shapes = lambda network: [tuple(p.shape) for p in network.parameters()]  # noqa: E731
    assert shapes(Encoder(apart, generator(0))) == shapes(Encoder(wide, generator(0)))
    assert shapes(Decoder(apart, generator(0))) == shapes(Decoder(narrow, generator(0)))


@pytest.mark.parametrize(
    ("choice", "value", "message"),
    [
        ("n_hidden", 0, "n_hidden is 0"),
        ("n_hidden", (4, 0), r"n_hidden is \(4, 0\); expected a whole number of at least 1"),
        ("n_latent", -1, "n_latent is -1"),
        ("n_layers", 0, "n_layers is 0"),
        ("dropout_rate", 1.0, "dropout_rate is 1.0"),
        ("dropout_rate", -0.1, "dropout_rate is -0.1"),
        ("thinning", 1.0, r"thinning is 1.0; expected a fraction of the molecules in \[0, 1\)."),
        ("thinning", -0.1, "thinning is -0.1"),
        ("thinning", math.nan, "thinning is nan"),
        ("dropout_cost", -1.0, "dropout_cost is -1.0; expected nats per drop-out, 0 or more."),
        ("prior_components", -1, "prior_components is -1; expected Gaussians, 0 or more."),
        ("batch_mixing", -0.5, "batch_mixing is -0.5; expected nats per nat, 0 or more."),
        ("batch_mixing", float("nan"), "batch_mixing is nan; expected nats per nat, 0 or more."),
        ("weight_precision", -1.0, "weight_precision is -1.0; expected a finite number, 0 or more."),
        ("weight_precision", math.inf, "weight_precision is inf; expected a finite number, 0 or more."),
    ],
)
def test_architecture_refuses_what_cannot_be(choice, value, message):
    with pytest.raises(ValueError, match=message):
        small_architecture(small_counts(8), **{choice: value})


def test_check_choices_names_the_alternatives():
    check_choices(gene_likelihood="zinb", dispersion="gene-batch", library="observed")
    with pytest.raises(ValueError, match=r"gene_likelihood is 'zinbb'; expected one of 'zinb', 'nb', 'poisson'"):
        check_choices(gene_likelihood="zinbb")
    with pytest.raises(ValueError, match=r"dispersion is 'gene-label'.*'gene-cell'"):
        check_choices(dispersion="gene-label")


@pytest.mark.parametrize(("name", "library"), list(itertools.product(LIKELIHOOD_NAMES, ["lognormal", "observed"])))
def test_library_is_inferred_only_for_counts_with_a_lognormal_prior(name, library):
    a = small_architecture(small_counts(8), gene_likelihood=name, library=library)
    inferred = name in COUNT_LIKELIHOODS and library == "lognormal"
    assert a.infers_library == inferred
    assert (Encoder(a, generator(0)).library is not None) == inferred
