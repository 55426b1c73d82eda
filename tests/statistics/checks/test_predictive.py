"""Posterior predictive checks: against scipy, against exact distributions, against draws."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import few_steps, small_counts, small_vae
from scipy import stats

from sccvae.inference import posterior
from sccvae.modules.count_distribution import CountDistribution
from sccvae.statistics.checks.predictive import BINS, predictive_check, zero_interval


def parameters(likelihood: str, shape=(7, 5), seed=0) -> CountDistribution:
    rng = np.random.default_rng(seed)
    theta = None if likelihood == "poisson" else rng.lognormal(0, 1, shape if likelihood == "per cell" else shape[1])
    return CountDistribution(rng.lognormal(0, 1, shape), theta, rng.random(shape) if likelihood == "zinb" else None)


def reference_cdf(p: CountDistribution, x):
    if p.theta is None:
        value = stats.poisson.cdf(x, p.mean)
    else:
        value = stats.nbinom.cdf(x, p.theta, p.theta / (p.theta + p.mean))
    return value if p.dropout is None else np.where(x < 0, 0, p.dropout + (1 - p.dropout) * value)


@pytest.mark.parametrize("likelihood", ["poisson", "nb", "zinb", "per cell"])
def test_parameters_against_scipy(likelihood):
    p = parameters(likelihood)
    for x in (-1, 0, 1, 4, 30):
        np.testing.assert_allclose(p.cdf(np.full(p.mean.shape, x)), reference_cdf(p, x), rtol=1e-9)
    np.testing.assert_allclose(p.zero(), reference_cdf(p, 0), rtol=1e-9)
    support = np.arange(4000)
    mass = np.diff(np.stack([reference_cdf(p, x) for x in range(-1, 4000)]), axis=0)
    first, second = p.moments()
    np.testing.assert_allclose(first, np.tensordot(support, mass, 1), rtol=1e-6)
    np.testing.assert_allclose(second, np.tensordot(support**2, mass, 1), rtol=1e-6)
    cells, genes = np.array([3, 0]), np.array([4, 1, 2])
    np.testing.assert_allclose(p.part(cells, genes).zero(), p.zero()[np.ix_(cells, genes)])


def exact_interval(zero: np.ndarray) -> tuple[int, int]:
    """Central 95 % interval of a sum of independent 0/1 variables, by convolution."""
    mass = np.ones(1)
    for p in zero:
        mass = np.convolve(mass, [1 - p, p])
    cdf = np.cumsum(mass)
    return int(np.searchsorted(cdf, 0.025)), int(np.searchsorted(cdf, 0.975))


@pytest.mark.parametrize("level", [0.002, 0.05, 0.5, 0.95, 0.999])
def test_zero_interval_against_the_exact_distribution(level):
    rng = np.random.default_rng(3)
    zero = stats.beta.rvs(4 * level, 4 * (1 - level), size=(400, 6), random_state=rng)
    low, high = zero_interval((1 - zero).sum(0), ((1 - zero) ** 2).sum(0), 400)
    exact = np.array([exact_interval(column) for column in zero.T]).T
    assert np.abs(low - exact[0]).max() <= 1
    assert np.abs(high - exact[1]).max() <= 1


def test_zero_interval_of_genes_that_are_always_or_never_there():
    np.testing.assert_array_equal(zero_interval(np.array([0.0, 50.0]), np.array([0.0, 50.0]), 50), [[50, 0], [50, 0]])


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("likelihood", ["poisson", "nb", "zinb"])
def test_counts_drawn_from_the_parameters_pass(likelihood, dtype):
    rng = np.random.default_rng(5)
    p = parameters(likelihood, (900, 60))
    rate = p.mean if p.theta is None else rng.gamma(p.theta, p.mean / p.theta)
    x = rng.poisson(rate) * (1 if p.dropout is None else rng.random(rate.shape) >= p.dropout)
    matrix, names = sp.csr_matrix(x.astype(dtype)), pd.Index([f"g{i}" for i in range(60)])
    rows = [slice(0, 500), slice(500, 900)]
    chunks = [
        (r, CountDistribution(p.mean[r], p.theta, None if p.dropout is None else p.dropout[r]))
        for r in rows
        for _ in range(2)
    ]
    genes, ranks = predictive_check(iter(chunks), matrix, names, n_samples=2, seed=0)
    inside = (genes["zeros"] >= genes["zeros_low"]) & (genes["zeros"] <= genes["zeros_high"])
    assert inside.mean() > 0.9
    assert len(ranks) == BINS
    assert stats.chisquare(ranks * 400 * 60).pvalue > 1e-3
    np.testing.assert_allclose(genes["mean"], x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(genes["variance"], x.var(0), rtol=1e-6)
    np.testing.assert_allclose(genes["zeros"], (x == 0).mean(0), rtol=1e-6)
    np.testing.assert_allclose(genes["model_zeros"], p.zero().mean(0), rtol=1e-6)
    first, second = p.moments()
    np.testing.assert_allclose(genes["model_variance"], second.mean(0) - first.mean(0) ** 2, rtol=1e-6)
    assert list(genes.index) == list(names)


def test_counts_that_vary_more_have_a_hollow_histogram():
    rng = np.random.default_rng(6)
    mean = np.full((600, 40), 4.0)
    matrix = sp.csr_matrix(rng.poisson(rng.gamma(0.5, 8.0, mean.shape)).astype(np.float32))
    stream = iter([(slice(0, 600), CountDistribution(mean, None, None))])
    genes, ranks = predictive_check(stream, matrix, pd.RangeIndex(40), n_samples=1, seed=0)
    assert (genes["zeros"] > genes["zeros_high"]).all()
    assert min(ranks[0], ranks[-1]) > 3 * ranks[5:15].max()


@pytest.mark.parametrize("choices", [{}, {"gene_likelihood": "poisson"}, {"dispersion": "gene-cell"}])
def test_parameters_of_a_model_are_those_of_its_draws(choices):
    """Means over many draws agree with samples of the model itself."""
    counts = small_counts(40, n_batches=2)
    vae = small_vae(counts, **choices)
    few_steps(vae, counts)
    stream = list(posterior.count_distributions(vae, counts, n_samples=300, seed=1))
    assert len(stream) == 300
    zero = np.mean([p.zero() for _, p in stream], axis=0)
    mean = np.mean([p.moments()[0] for _, p in stream], axis=0)
    draws = np.stack([posterior.predictive(vae, counts, seed=[0, k]).toarray() for k in range(400)])
    error = np.sqrt(zero * (1 - zero) / 400) + 1e-3
    assert np.abs(((draws == 0).mean(0) - zero) / error).max() < 5
    assert abs(draws.mean() / mean.mean() - 1) < 0.05


def test_the_same_however_cells_are_cut():
    counts = small_counts(90)
    vae = small_vae(counts)
    few_steps(vae, counts)
    p = next(q for _, q in posterior.count_distributions(vae, counts, n_samples=1, seed=1))
    names = pd.RangeIndex(counts.n_genes)
    whole = predictive_check(iter([(slice(0, 90), p)]), counts.matrix, names, n_samples=1, seed=0)[0]
    parts = [
        (slice(i, i + 30), CountDistribution(p.mean[i : i + 30], p.theta, p.dropout[i : i + 30])) for i in (0, 30, 60)
    ]
    pd.testing.assert_frame_equal(predictive_check(iter(parts), counts.matrix, names, n_samples=1, seed=0)[0], whole)
