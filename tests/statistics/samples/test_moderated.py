"""Moderated t-statistics, held against direct computations in float64."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special, stats

from sccvae.statistics.samples import moderated
from sccvae.statistics.samples.design import design_of

BETWEEN = np.arange(8), np.repeat([1, 2], 4)
PAIRED = np.repeat(np.arange(5), 2), np.tile([1, 2], 5)


@pytest.fixture
def y():
    rng = np.random.default_rng(0)
    return rng.standard_normal((10, 3000)) * np.sqrt(0.3 * 5 / rng.chisquare(5, 3000))


def test_the_prior_of_variances_solves_its_moment_equations():
    rng = np.random.default_rng(1)
    variance = 0.4 * rng.f(6, 8, 20_000)
    prior, common = moderated.fit_f_dist(variance, 6)
    logs = np.log(variance)
    spread = logs.var(ddof=1) - special.polygamma(1, 3)
    half = optimize.brentq(lambda d: special.polygamma(1, d) - spread, 0.01, 1e4)
    np.testing.assert_allclose(prior, 2 * half, rtol=1e-6)
    e = (logs - special.digamma(3) + np.log(3)).mean()
    np.testing.assert_allclose(common, np.exp(e + special.digamma(half) - np.log(half)), rtol=1e-6)
    np.testing.assert_allclose((prior, common), (8, 0.4), rtol=0.1)


def test_equal_variances_are_replaced_by_one():
    variance = np.random.default_rng(2).chisquare(6, 5000) / 6
    prior, common = moderated.fit_f_dist(variance, 6)
    assert prior > 100
    np.testing.assert_allclose(common, 1, rtol=0.05)


@pytest.mark.parametrize("which", ["between", "paired"])
def test_moderated_t_is_the_textbook_one(y, which):
    design = design_of(*(BETWEEN if which == "between" else PAIRED))
    y = y[: len(design.group)]
    first, second = y[design.group == 1], y[design.group == 0]
    if which == "between":
        variance, scale = (first.var(0, ddof=1) + second.var(0, ddof=1)) / 2, np.sqrt(1 / 2)
    else:
        variance, scale = (first - second).var(0, ddof=1) / 2, np.sqrt(2 / 5)
    prior, common = moderated.fit_f_dist(variance, design.degrees)
    shrunken = (prior * common + design.degrees * variance) / (prior + design.degrees)
    effects = moderated.fit(y, design).effects
    np.testing.assert_allclose(effects.estimate, first.mean(0) - second.mean(0), atol=1e-12)
    np.testing.assert_allclose(effects.error, np.sqrt(shrunken) * scale, rtol=1e-9)
    np.testing.assert_allclose(effects.degrees, design.degrees + prior)
    t = effects.estimate / effects.error
    np.testing.assert_allclose(2 * stats.norm.sf(np.abs(effects.z)), 2 * stats.t.sf(np.abs(t), effects.degrees))


def test_weights_and_covariates_are_those_of_least_squares(y):
    design = design_of(*BETWEEN, pd.DataFrame({"age": [1.0, 3.0, 2.0, 5.0, 4.0, 9.0, 7.0, 8.0]}))
    weights = np.random.default_rng(3).uniform(0.5, 2, (20, 8))
    effects = moderated.fit(y[:8, :20], design, weights).effects
    full = np.column_stack([design.nuisance, design.group])
    for gene in range(20):
        direct, *_ = np.linalg.lstsq(full * weights[gene, :, None], y[:8, gene] * weights[gene], rcond=None)
        np.testing.assert_allclose(effects.estimate[gene], direct[-1], rtol=1e-9)


def test_true_effects_do_not_enter_rotated_residuals(y):
    design = design_of(*BETWEEN)
    changed = y[:8] + np.outer(design.group, np.linspace(-5, 5, 3000))
    directions = np.random.default_rng(4).standard_normal((3, design.degrees))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    plain, with_effect = (moderated.rotated(moderated.fit(values, design), directions) for values in (y[:8], changed))
    np.testing.assert_allclose(plain.estimate, with_effect.estimate, atol=1e-10)
    z = (plain.estimate / plain.error).ravel()
    np.testing.assert_allclose([np.mean(np.abs(z) > 1.96), np.mean(np.abs(z) > 2.576)], [0.05, 0.01], rtol=0.25)


def test_depth_and_a_few_large_genes_do_not_shift_the_others():
    rng = np.random.default_rng(5)
    mean = rng.uniform(50, 500, 200)
    sums = rng.poisson(mean * np.array([1, 3, 0.5, 2])[:, None]).astype(float)
    sums[:2, 0] += 50 * mean.sum()
    log = moderated.log_expression(sums, 2.0)
    assert np.abs(np.median(log[:, 1:] - log[:, 1:].mean(0), axis=1)).max() < 0.1


def test_rows_with_few_counts_weigh_less():
    rng = np.random.default_rng(6)
    depth = np.array([1, 1, 1, 0.1, 1, 1, 1, 0.1])
    sums = rng.poisson(20 * depth[:, None] * np.ones((8, 300))).astype(float)
    design = design_of(*BETWEEN)
    log = moderated.log_expression(sums, 2.0)
    weights = moderated.precision_weights(log, sums, sums.sum(1), design)
    np.testing.assert_allclose((weights**2).mean(1), 1)
    assert weights[:, [3, 7]].max() < weights[:, [0, 1, 2, 4, 5, 6]].min()
