"""The five observation models: log-probability against scipy, and samples against the distribution they claim."""

import numpy as np
import pytest
import torch
from helpers import COUNT_LIKELIHOODS, LIKELIHOOD_NAMES, minibatch_of, small_values, support_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from sccvae.modules.likelihoods import LIKELIHOODS, Decoded

LIBRARY = np.array([6.0, 30.0])  # of the two kinds of cells that are drawn from below
RHO = np.array([[0.2, 0.5, 0.3], [0.05, 0.15, 0.8]])
DROPOUT = np.array([[-1.0, 0.5, -3.0], [0.0, -2.0, 1.0]])
THETA = {"gene": np.array([0.4, 2.0, 30.0]), "cell": np.array([[0.4, 2.0, 30.0], [5.0, 0.7, 1.5]])}


def decoded_of(name, theta, n_each=1, dtype=torch.float64):
    """Decoded and log library of `n_each` cells of the first kind, then as many of the second."""
    repeat = lambda a: torch.tensor(np.repeat(a, n_each, axis=0), dtype=dtype)  # noqa: E731
    likelihood = LIKELIHOODS[name]
    log_theta = torch.tensor(np.log(THETA["gene"]), dtype=dtype) if theta == "gene" else repeat(np.log(THETA["cell"]))
    logits = np.log(RHO) if likelihood.has_library else 4 * RHO - 1
    return Decoded(
        repeat(logits + 0.7),
        log_theta if likelihood.has_dispersion else None,
        repeat(DROPOUT) if likelihood.has_dropout else None,
    ), repeat(np.log(LIBRARY)) if likelihood.has_library else None


def reference_log_prob(name, theta, x, kind, gene):
    """Log-probability by scipy of values `x` of a gene in cells of a kind."""
    mean = LIBRARY[kind] * RHO[kind, gene]
    dispersion = THETA["gene"][gene] if theta == "gene" else THETA["cell"][kind, gene]
    logit = 4 * RHO[kind, gene] - 1 + 0.7
    nb = lambda: stats.nbinom.logpmf(x, dispersion, dispersion / (dispersion + mean))  # noqa: E731
    if name == "poisson":
        return stats.poisson.logpmf(x, mean)
    if name == "nb":
        return nb()
    if name == "zinb":
        lost = special.expit(DROPOUT[kind, gene])
        kept = np.log1p(-lost) + nb()
        return np.where(x == 0, np.logaddexp(np.log(lost), kept), kept)
    if name == "normal":
        return stats.norm.logpdf(x, logit, dispersion)
    return stats.bernoulli.logpmf(x, special.expit(logit))


def values_of(name, shape, seed=0):
    rng = np.random.default_rng(seed)
    if name == "normal":
        return rng.normal(1, 2, shape)
    return rng.integers(2, size=shape) if name == "bernoulli" else rng.poisson(rng.gamma(0.5, 10, shape))


@pytest.mark.parametrize("theta", ["gene", "cell"])
@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_log_prob_equals_scipy(name, theta):
    x = values_of(name, (40, 3))
    decoded, log_library = decoded_of(name, theta, n_each=20)
    value, dropouts = LIKELIHOODS[name]().log_prob(minibatch_of(x), decoded, log_library)
    entries = [reference_log_prob(name, theta, x[:, g], np.repeat([0, 1], 20), g) for g in range(3)]
    assert value.shape == dropouts.shape == (40,)
    np.testing.assert_allclose(value, np.sum(entries, axis=0), rtol=1e-9)
    expected = np.repeat(special.expit(DROPOUT).sum(1), 20) if name == "zinb" else np.zeros(40)
    np.testing.assert_allclose(dropouts, expected, rtol=1e-12)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(logits=st.lists(st.floats(-30, 30), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_bernoulli_equals_scipy_at_any_logit(logits, seed):
    x = np.random.default_rng(seed).integers(2, size=(1, len(logits)))
    logits = np.array([logits])
    value, _ = LIKELIHOODS["bernoulli"]().log_prob(minibatch_of(x), Decoded(torch.tensor(logits), None, None), None)
    exact = np.where(x == 1, special.log_expit(logits), special.log_expit(-logits)).sum()
    assert float(value) == pytest.approx(exact, rel=1e-12, abs=2e-8)  # torch's softplus is the identity above 20


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(x=st.floats(-1e4, 1e4), mean=st.floats(-1e4, 1e4), log_sigma=st.floats(-6, 6), per_cell=st.booleans())
def test_normal_equals_scipy_anywhere(x, mean, log_sigma, per_cell):
    spread = torch.tensor([log_sigma, 0.3], dtype=torch.float64)
    decoded = Decoded(torch.tensor([[mean, 1.0]], dtype=torch.float64), spread[None] if per_cell else spread, None)
    value, _ = LIKELIHOODS["normal"]().log_prob(minibatch_of([[x, 0.0]]), decoded, None)
    exact = stats.norm.logpdf([x, 0.0], [mean, 1.0], np.exp([log_sigma, 0.3])).sum()
    assert float(value) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("name", ["normal", "bernoulli"])
def test_single_precision_is_finite_and_equals_double_precision(name):
    """The count likelihoods have the same test, entry by entry, in test_kernels."""
    rng = np.random.default_rng(3)
    logits = rng.uniform(-30, 30, (50, 8)).astype(np.float32)
    x = np.round(logits + rng.normal(0, 3, logits.shape)) if name == "normal" else rng.integers(2, size=logits.shape)
    log_sigma = rng.uniform(-4, 4, 8).astype(np.float32)
    results = {}
    for dtype in (torch.float32, torch.float64):
        leaves = [torch.tensor(logits, dtype=dtype, requires_grad=True)]
        if name == "normal":
            leaves.append(torch.tensor(log_sigma, dtype=dtype, requires_grad=True))
        decoded = Decoded(leaves[0], leaves[1] if name == "normal" else None, None)
        value, _ = LIKELIHOODS[name]().log_prob(minibatch_of(x, dtype), decoded, None)
        assert value.dtype == dtype
        results[dtype] = [value.detach().double(), *(g.double() for g in torch.autograd.grad(value.sum(), leaves))]
    for single, double in zip(results[torch.float32], results[torch.float64], strict=True):
        assert torch.isfinite(single).all()
        np.testing.assert_allclose(single, double, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("theta", ["gene", "cell"])
@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_gradcheck(name, theta):
    decoded, log_library = decoded_of(name, theta, n_each=2)
    x = minibatch_of(values_of(name, (4, 3)))
    leaves = [t.requires_grad_() for t in (*decoded, log_library) if t is not None]

    def value_of(*leaves):
        rest = iter(leaves)
        heads = Decoded(*[next(rest) if head is not None else None for head in decoded])
        return LIKELIHOODS[name]().log_prob(x, heads, next(rest, None))[0]

    assert torch.autograd.gradcheck(value_of, leaves, eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_mean_is_that_of_the_distribution(name):
    """Mean from the probabilities; of the counts before drop-out, for zinb."""
    decoded, log_library = decoded_of(name, "cell")
    mean = LIKELIHOODS[name]().mean(decoded, log_library).numpy()
    x = np.arange(3000)
    for kind in range(2):
        for gene in range(3):
            if name == "normal":
                expected = 4 * RHO[kind, gene] - 0.3
            elif name == "bernoulli":
                expected = np.exp(reference_log_prob(name, "cell", np.ones(1), kind, gene)[0])
            else:
                before = "nb" if name == "zinb" else name
                expected = (x * np.exp(reference_log_prob(before, "cell", x, kind, gene))).sum()
            assert mean[kind, gene] == pytest.approx(expected, rel=1e-6), (kind, gene)


@pytest.mark.parametrize("name", COUNT_LIKELIHOODS)
def test_expression_is_the_softmax_and_free_of_the_library(name):
    decoded, _ = decoded_of(name, "gene")
    np.testing.assert_allclose(LIKELIHOODS[name]().expression(decoded), RHO, rtol=1e-12)


@pytest.mark.parametrize("name", ["normal", "bernoulli"])
def test_expression_is_the_mean_where_there_is_no_library(name):
    decoded, _ = decoded_of(name, "gene")
    assert torch.equal(LIKELIHOODS[name]().expression(decoded), LIKELIHOODS[name]().mean(decoded, None))


# ------------------------------------------------------------------------------------------------------------ samples


def chi_square_p_value(draws, probability):
    """P-value of `draws` under `probability` (of 0, 1, ...), values pooled until 10 draws are expected of each bin."""
    expected = len(draws) * probability
    observed = np.bincount(draws.astype(int), minlength=len(probability))[: len(probability)]
    edges, mass = [0], 0.0
    for k, e in enumerate(expected):
        mass += e
        if mass >= 10:
            edges.append(k + 1)
            mass = 0.0
    edges = edges[:-1]  # the last bin takes the tail
    observed, expected = (np.add.reduceat(v, edges) for v in (observed, expected))
    expected[-1] += len(draws) - expected.sum()
    observed[-1] += len(draws) - observed.sum()
    return stats.chisquare(observed, expected).pvalue


@pytest.mark.parametrize("theta", ["gene", "cell"])
@pytest.mark.parametrize("name", COUNT_LIKELIHOODS)
def test_samples_follow_the_distribution(name, theta):
    n = 20_000
    decoded, log_library = decoded_of(name, theta, n_each=n)
    draws = LIKELIHOODS[name]().sample(decoded, log_library, np.random.default_rng(11))
    assert draws.shape == (2 * n, 3)
    assert draws.dtype == np.float32
    for kind in range(2):
        for gene in range(3):
            probability = np.exp(reference_log_prob(name, theta, np.arange(2000), kind, gene))
            p_value = chi_square_p_value(draws[kind * n : (kind + 1) * n, gene], probability)
            assert p_value > 1e-3, (kind, gene)


def test_the_chi_square_test_sees_a_dispersion_that_is_ten_percent_off():
    mean, theta = 6.0, 2.0
    draws = np.random.default_rng(0).negative_binomial(theta, theta / (theta + mean), 20_000)
    x = np.arange(2000)
    assert chi_square_p_value(draws, stats.nbinom.pmf(x, theta, theta / (theta + mean))) > 1e-2
    wrong = 1.1 * theta
    assert chi_square_p_value(draws, stats.nbinom.pmf(x, wrong, wrong / (wrong + mean))) < 1e-4


@pytest.mark.parametrize("theta", ["gene", "cell"])
def test_normal_samples_follow_the_distribution(theta):
    n = 20_000
    decoded, _ = decoded_of("normal", theta, n_each=n)
    draws = LIKELIHOODS["normal"]().sample(decoded, None, np.random.default_rng(5))
    assert draws.dtype == np.float32
    for kind in range(2):
        for gene in range(3):
            sigma = THETA["gene"][gene] if theta == "gene" else THETA["cell"][kind, gene]
            part = draws[kind * n : (kind + 1) * n, gene]
            assert stats.kstest(part, stats.norm(4 * RHO[kind, gene] - 0.3, sigma).cdf).pvalue > 1e-3, (kind, gene)
            assert part.std() == pytest.approx(sigma, rel=0.02)


def test_bernoulli_samples_are_ones_as_often_as_they_should():
    n = 20_000
    decoded, _ = decoded_of("bernoulli", "gene", n_each=n)
    draws = LIKELIHOODS["bernoulli"]().sample(decoded, None, np.random.default_rng(6))
    assert set(np.unique(draws)) == {0.0, 1.0}
    probability = special.expit(4 * RHO - 0.3)
    ones = draws.reshape(2, n, 3).sum(1)
    assert np.all(np.abs(ones - n * probability) < 4 * np.sqrt(n * probability * (1 - probability)))


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_log_prob_of_own_samples_is_minus_the_entropy_on_average(name):
    """Ties sampling, mean and log-probability together: a mismatch of any two shows."""
    n = 4000
    decoded, log_library = decoded_of(name, "cell", n_each=n)
    draws = LIKELIHOODS[name]().sample(decoded, log_library, np.random.default_rng(8)).astype(float)
    value, _ = LIKELIHOODS[name]().log_prob(minibatch_of(draws), decoded, log_library)
    for kind in range(2):
        entropy = 0.0
        for gene in range(3):
            if name == "normal":
                entropy += stats.norm(0, THETA["cell"][kind, gene]).entropy()
                continue
            x = np.arange(2 if name == "bernoulli" else 2000)
            log_p = reference_log_prob(name, "cell", x, kind, gene)
            entropy -= np.sum(np.exp(log_p) * np.where(log_p > -700, log_p, 0))
        part = value[kind * n : (kind + 1) * n].numpy()
        assert abs(part.mean() + entropy) < 4 * part.std() / np.sqrt(n), kind


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_samples_depend_on_the_generator_alone(name):
    decoded, log_library = decoded_of(name, "gene", n_each=30)
    sample = LIKELIHOODS[name]().sample
    first, again, other = (sample(decoded, log_library, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("theta", [1e-6, 1e8])
def test_samples_at_extreme_dispersions_are_finite_counts(theta):
    logits = torch.log(torch.tensor([[1e-12, 1.0, 1e7]], dtype=torch.float64)).expand(500, -1)
    log_library = torch.full((500,), float(np.log(1e7 + 1)), dtype=torch.float64)
    decoded = Decoded(logits, torch.full((3,), float(np.log(theta)), dtype=torch.float64), None)
    draws = LIKELIHOODS["nb"]().sample(decoded, log_library, np.random.default_rng(0))
    assert np.isfinite(draws).all()
    assert (draws >= 0).all()
    assert draws[:, 0].sum() == 0
    if theta > 1:
        assert draws[:, 2].mean() == pytest.approx(1e7, rel=1e-3)


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_log_prob_is_highest_near_the_parameters_that_made_the_data(name):
    """At data with the structure of cells, a step away from the maximum in the logits lowers log p."""
    x = small_values(300, 12, support_of(name))
    mean = x.mean(0)
    log_library = torch.tensor(np.log(np.maximum(x.sum(1), 1))) if LIKELIHOODS[name].has_library else None
    fitted = {"normal": mean, "bernoulli": special.logit(np.clip(mean, 1e-3, 1 - 1e-3))}.get(name, np.log(mean + 1e-3))
    log_dispersion = torch.tensor(np.log(x.std(0)) if name == "normal" else np.zeros(12))
    dropout = torch.full((300, 12), -6.0, dtype=torch.float64)

    def total(logits):
        likelihood = LIKELIHOODS[name]()
        decoded = Decoded(
            torch.tensor(np.tile(logits, (300, 1))),
            log_dispersion if likelihood.has_dispersion else None,
            dropout if likelihood.has_dropout else None,
        )
        return float(likelihood.log_prob(minibatch_of(x), decoded, log_library)[0].sum())

    step = np.where(np.arange(12) % 2, 1.0, -1.0)
    assert total(fitted) > total(fitted + step) + 50
    assert total(fitted) > total(fitted - step) + 50


def test_what_each_likelihood_asks_for():
    """(support, library, dispersion, drop-out): the table in the heading of the module."""
    asked = {name: (lk.support, lk.has_library, lk.has_dispersion, lk.has_dropout) for name, lk in LIKELIHOODS.items()}
    assert asked == {
        "zinb": ("counts", True, True, True),
        "nb": ("counts", True, True, False),
        "poisson": ("counts", True, False, False),
        "normal": ("real", False, True, False),
        "bernoulli": ("binary", False, False, False),
    }
    assert all(lk.name == name for name, lk in LIKELIHOODS.items())
