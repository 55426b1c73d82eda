"""Differential expression: groups, probabilities against brute force and known truth, decisions, and the method."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import few_steps, small_counts, small_vae
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm

import sccvae
from sccvae.inference import posterior
from sccvae.statistics.differential_expression import expression, groups, probability, tables

OPTIONS = groups.Options(mode="change", delta=0.25, pseudocount=None, fdr_target=0.05)
COLUMNS = [
    "proba_de", "proba_not_de", "bayes_factor", "lfc_mean", "lfc_median", "lfc_std", "lfc_min", "lfc_max",
    "scale1", "scale2", "raw_mean1", "raw_mean2", "non_zeros_proportion1", "non_zeros_proportion2", "pseudocounts",
    "delta", "is_de_fdr_0.05",
]  # fmt: skip


def group(n_genes: int = 6, seed: int = 0, n_cells: int = 40, n_batches: int = 2, n_draws: int = 30) -> groups.Group:
    rng = np.random.default_rng(seed)
    level = rng.gamma(1, 1 / n_genes, n_genes)
    expected = rng.gamma(2, 20, (n_batches, n_genes))
    return groups.Group(
        n_cells=n_cells,
        samples=(level * rng.lognormal(0, 0.05, (n_draws, n_genes))).astype(np.float32),
        observed=rng.poisson(expected).astype(float),
        expected=expected,
        library=1000.0 * n_cells,
        raw=rng.poisson(100 * level).astype(float) + 1,
        detected=rng.integers(1, n_cells, n_genes),
    )


# ------------------------------------------------------------------------------------------------------------- groups


LABELS = np.array(["b", "a", "c", "a", "b", "b"])


@pytest.mark.parametrize(
    ("group1", "group2", "names", "cells", "pairs"),
    [
        (None, None, ("a", "b", "c"), [[1, 3], [0, 4, 5], [2]], [(0, None), (1, None), (2, None)]),
        ("b", None, ("a", "b", "c"), [[1, 3], [0, 4, 5], [2]], [(1, None)]),
        (["c", "a", "c"], "b", ("c", "a", "b"), [[2], [1, 3], [0, 4, 5]], [(0, 2), (1, 2)]),
        (None, "a", ("b", "c", "a"), [[0, 4, 5], [2], [1, 3]], [(0, 2), (1, 2)]),
    ],
)
def test_groups_by_label(group1, group2, names, cells, pairs):
    design = groups.by_label(LABELS, group1, group2)
    assert design.names == names
    assert [list(c) for c in design.cells] == cells
    assert design.pairs == pairs


def test_labels_keep_the_order_of_their_categories_and_may_be_numbers():
    ordered = pd.Categorical(LABELS, categories=["c", "unused", "b", "a"])
    assert groups.by_label(ordered, None, None).names == ("c", "b", "a")
    assert groups.by_label(np.array([2, 1, 2]), 2, 1).names == ("2", "1")


@pytest.mark.parametrize(
    ("idx1", "idx2", "first", "second"),
    [
        ([3, 1], [0, 2], [1, 3], [0, 2]),
        (np.array([True, False, False, True]), None, [0, 3], [1, 2]),
        ([-1], np.array([True, False, True, False]), [3], [0, 2]),
        ([1, 1, 2], [0], [1, 2], [0]),
    ],
)
def test_groups_by_cells(idx1, idx2, first, second):
    design = groups.by_cells(idx1, idx2, 4)
    assert [list(c) for c in design.cells] == [first, second]
    assert (design.names, design.pairs) == ((), [(0, 1)])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((LABELS, "d", None, None, None), ValueError, "group1 'd' is unknown; the groups are 'a', 'b', 'c'."),
        ((LABELS, "a", "e", None, None), ValueError, "group2 'e' is unknown; the groups are"),
        ((pd.Categorical(LABELS, ["a", "b", "c", "d"]), "d", None, None, None), ValueError, "group1 'd' has no cells;"),
        ((LABELS, "a", "a", None, None), ValueError, "group1 and group2 are both 'a'; expected two different groups."),
        ((LABELS, [], None, None, None), ValueError, "group1 is an empty list;"),
        ((["a"] * 6, None, None, None, None), ValueError, "groupby has one group, 'a'; expected"),
        ((LABELS, None, None, [0], None), ValueError, "groupby and idx1 or idx2 both select the cells;"),
        ((None, "a", None, [0], None), ValueError, "group1 and group2 need groupby, which is None; pass"),
        ((None, None, None, None, None), ValueError, "groupby, idx1 and idx2 are all None; expected"),
        ((None, None, None, None, [0]), ValueError, "groupby, idx1 and idx2 are None except idx2; expected"),
        (
            (None, None, None, [True, False], None),
            ValueError,
            "idx1 is a mask of shape (2,); expected a boolean for each of 6",
        ),
        ((None, None, None, [0], np.zeros(6, bool)), ValueError, "idx2 contains no cells; expected at least one."),
        ((None, None, None, [], None), ValueError, "idx1 contains no cells;"),
        ((None, None, None, range(6), None), ValueError, "idx1 contains all 6 cells; expected fewer"),
        ((None, None, None, [0, 1], [1, 0]), ValueError, "idx1 and idx2 contain the same 2 cells;"),
        ((None, None, None, [0, 1], [1, 2]), ValueError, "idx1 and idx2 share 1 cells, such as number 1;"),
        (
            (None, None, None, [6], None),
            ValueError,
            "idx1 has cell number 6; expected numbers from 0 to 5, for 6 cells.",
        ),
        ((None, None, None, [0.5], None), TypeError, "idx1 has dtype float64 and shape (1,);"),
        ((None, None, None, "kind == 'x'", None), TypeError, "idx1 is the text \"kind == 'x'\"; expected a mask"),
    ],
)
def test_groups_that_cannot_be_compared_are_named(arguments, error, text):
    with pytest.raises(error, match="^" + re.escape(text)):
        groups.design_of(*arguments, 6)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"mode": "three"}, "mode is 'three'; expected one of 'change', 'vanilla'."),
        ({"delta": -0.1}, "delta is -0.1; expected a log2 fold change of 0 or more"),
        ({"delta": float("nan")}, "delta is nan;"),
        ({"pseudocount": -1.0}, "pseudocount is -1.0; expected an expression of 0 or more"),
        ({"fdr_target": 0.0}, "fdr_target is 0.0; expected a fraction in (0, 1)"),
    ],
)
def test_options_out_of_range_are_named(change, text):
    options = {"mode": "change", "delta": None, "pseudocount": None, "fdr_target": 0.1}
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        groups.Options(**{**options, **change})


def test_a_union_less_one_group_is_the_union_of_the_others():
    three = [group(seed=seed, n_cells=10 * (seed + 1)) for seed in range(3)]
    rest, expected = groups.Group.union(three).without(three[1]), groups.Group.union([three[0], three[2]])
    weights = np.array([10, 30]) / 40
    samples = weights[0] * three[0].samples.astype(float) + weights[1] * three[2].samples
    np.testing.assert_allclose(rest.samples, samples, rtol=1e-12)
    for name in ("n_cells", "samples", "observed", "expected", "library", "raw", "detected"):
        np.testing.assert_allclose(getattr(rest, name), getattr(expected, name), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(expected.raw, three[0].raw + three[2].raw)


# ------------------------------------------------------------------------------------------------------------ samples


@pytest.mark.parametrize("batch_sd", [0.0, 0.3, 2.0])
def test_count_evidence_is_generalised_least_squares(batch_sd):
    """Against matrices: a_k with a normal prior, u_b integrated out, from (O - E) / E with variance 1 / E."""
    a, b = group(seed=1, n_batches=3), group(seed=2, n_batches=3)
    found = expression.count_evidence(a, b, trust=7.0, batch_sd=batch_sd)
    design = np.kron(np.ones((3, 1)), np.eye(2))  # (batch and group, group)
    for gene in range(6):
        e = np.stack([a.expected[:, gene], b.expected[:, gene]], axis=1).ravel()
        o = np.stack([a.observed[:, gene], b.observed[:, gene]], axis=1).ravel()
        weight = np.linalg.inv(np.diag(1 / e) + batch_sd**2 * np.kron(np.eye(3), np.ones((2, 2))))
        information = design.T @ weight @ design
        shift = np.linalg.solve(information + 7 * np.eye(2), design.T @ weight @ ((o - e) / e))
        covariance = np.linalg.inv(information + 0.5 * np.eye(2))
        expected = [*shift, covariance[0, 0], covariance[1, 1], covariance[0, 1]]
        np.testing.assert_allclose(found[:, gene], expected, rtol=1e-8)


def test_groups_that_share_no_batch_are_no_surer_than_batch_effects_allow():
    """With any number of counts, their difference keeps twice the variance of a batch effect."""
    apart = np.array([[1e7], [0.0]])
    a, b = group(1), group(1)
    a, b = (groups.Group(**{**vars(g), "observed": e, "expected": e}) for g, e in ((a, apart), (b, apart[::-1])))
    _, _, variance1, variance2, covariance = expression.count_evidence(a, b, batch_sd=0.3)[:, 0]
    assert variance1 + variance2 - 2 * covariance == pytest.approx(2 * 0.3**2 / (1 + 0.5 * 0.3**2), rel=1e-3)
    together = np.array([[1e7], [1e7]])
    a, b = (groups.Group(**{**vars(g), "observed": together, "expected": together}) for g in (a, b))
    _, _, variance1, variance2, covariance = expression.count_evidence(a, b, batch_sd=0.3)[:, 0]
    assert variance1 + variance2 - 2 * covariance < 1e-6


def test_posterior_draws_have_the_moments_of_the_evidence():
    a, b = group(seed=3, n_draws=40_000), group(seed=4, n_draws=40_000)
    samples1, samples2, mean1, mean2 = expression.with_counts(a, b, np.random.default_rng(0))
    shift1, shift2, variance1, variance2, covariance = expression.count_evidence(a, b)
    log1, log2 = (np.log(s) - np.log(g.samples) for s, g in ((samples1, a), (samples2, b)))
    np.testing.assert_allclose(log1.mean(0), shift1, atol=0.02)
    np.testing.assert_allclose(log2.mean(0), shift2, atol=0.02)
    np.testing.assert_allclose(log1.var(0), variance1, rtol=0.05)
    np.testing.assert_allclose(log2.var(0), variance2, rtol=0.05)
    np.testing.assert_allclose(((log1 - shift1) * (log2 - shift2)).mean(0), covariance, atol=0.003)
    np.testing.assert_allclose(mean1, a.samples.mean(0) * np.exp(shift1), rtol=1e-6)
    np.testing.assert_allclose(mean2, b.samples.mean(0) * np.exp(shift2), rtol=1e-6)


def test_pseudocount_is_a_count_of_the_smaller_group_or_what_unseen_genes_get():
    a, b = group(), group(n_cells=20)
    assert expression.pseudocount(a, b) == pytest.approx(1 / 20_000)
    samples = np.array([[0.5, 0.1, 0.02, 0.04], [0.3, 0.1, 0.04, 0.06]])
    a = groups.Group(**{**vars(group(4)), "samples": samples, "raw": np.array([9.0, 1, 0, 0])})
    b = groups.Group(**{**vars(group(4)), "raw": np.ones(4)})
    assert expression.pseudocount(a, b) == pytest.approx(np.quantile([0.03, 0.05], 0.9))
    assert expression.pseudocount(b, a) == expression.pseudocount(a, b)


def test_log_fold_changes():
    lfc = expression.log_fold_changes(np.array([[4.0, 0.0]]), np.array([[1.0, 0.0]]), 0.0)
    np.testing.assert_array_equal(lfc, [[2.0, 0.0]])
    lfc = expression.log_fold_changes(np.array([[0.03]]), np.array([[0.0]]), 0.01)
    np.testing.assert_allclose(lfc, [[2.0]])


# -------------------------------------------------------------------------------------------------------- probability


def estimates(n_genes: int, seed: int = 0, share: float = 0.3, centre: float = 0.0):
    """True log fold changes, a share of which are not `centre`, and their estimates with standard errors."""
    rng = np.random.default_rng(seed)
    truth = centre + np.where(rng.random(n_genes) < share, rng.normal(0, 1.2, n_genes), 0.0)
    sd = rng.uniform(0.05, 0.6, n_genes)
    return truth, rng.normal(truth, sd), sd


def test_probability_of_change_is_an_integral_over_the_posterior():
    prior = probability.Prior(-0.1, np.array([0.5, 0.2, 0.3]), np.array([0.0, 0.3, 1.5]))
    mean, sd, delta = np.array([0.02, 0.5, -1.4, 3.0]), np.array([0.3, 0.2, 0.7, 0.4]), 0.25
    found, error = probability.probability_of_change(mean, sd, delta, prior)
    for gene, (m, s) in enumerate(zip(mean, sd, strict=True)):

        def density(x, m=m, s=s):
            return norm.pdf(m, x, s) * sum(
                w * norm.pdf(x, -0.1, v) for w, v in zip(prior.weights[1:], prior.scales[1:], strict=True)
            )

        def mass(low, high, density=density):
            return quad(density, low, high, limit=200)[0]

        at_centre = 0.5 * norm.pdf(m, -0.1, s)
        low, high = -0.1 - delta, delta  # about 0 and about the centre
        inside, outside = at_centre + mass(low, high), mass(-8, low) + mass(high, 8)
        assert found[gene] == pytest.approx(outside / (inside + outside), rel=1e-5)
        assert error[gene] == pytest.approx(inside / (inside + outside), rel=1e-5)


def test_small_errors_are_exact_where_one_minus_the_probability_would_be_zero():
    prior = probability.Prior(0.0, np.array([0.5, 0.5]), np.array([0.0, 2.0]))
    _, error = probability.probability_of_change(np.array([4.0, 6.0]), np.array([0.2, 0.2]), 0.25, prior)
    log_odds = norm.logpdf(np.array([4.0, 6.0]), 0, 0.2) - norm.logpdf(np.array([4.0, 6.0]), 0, np.hypot(0.2, 2))
    assert (error > 0).all()
    # Mass of the wide component within delta adds to that of the null, which is much of it.
    assert (np.log(error) >= log_odds - 1e-9).all()
    np.testing.assert_allclose(np.log(error), log_odds, rtol=0.15)


def test_the_prior_finds_the_share_and_the_size_of_changes():
    _, mean, sd = estimates(5000, centre=-0.15)
    prior = probability.fit_prior(mean, sd)
    assert prior.centre == pytest.approx(-0.15, abs=0.02)
    assert prior.weights.sum() == pytest.approx(1)
    assert prior.weights @ prior.scales**2 == pytest.approx(0.3 * 1.2**2, rel=0.1)
    assert prior.weights[prior.scales < 0.1].sum() == pytest.approx(0.7, abs=0.1)


def test_genes_that_follow_most_others_have_not_changed():
    """A few genes that take up more of the counts lower the shares of all: no discovery, and no loss of the few."""
    truth, mean, sd = estimates(3000, seed=3, share=0.1, centre=-0.6)
    lfc = mean + sd * np.random.default_rng(2).standard_normal((100, 3000))
    called = probability.expected_fdr(1 - tables.change(lfc, 0.25)["proba_de"]) <= 0.05
    assert called[np.abs(truth + 0.6) < 0.25].sum() <= 0.05 * called.sum()
    assert called[truth > 1].mean() > 0.9


def test_few_genes_do_not_choose_the_centre():
    assert abs(probability.fit_prior(np.array([2.0]), np.array([0.1])).centre) < 0.25


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("centre", [0.0, -0.12])
def test_probabilities_are_calibrated_on_samples_with_known_truth(share, centre):
    """Of the genes given about p, a share p has changed; of those called, the expected share is false."""
    truth, mean, sd = estimates(4000, seed=1, share=share, centre=centre)
    lfc = mean + sd * np.random.default_rng(2).standard_normal((100, 4000))
    result = tables.change(lfc, 0.25)
    changed, proba = (truth > 0.25) | (truth < centre - 0.25), result["proba_de"]
    for low, high in [(0, 0.2), (0.2, 0.8), (0.8, 0.99), (0.99, 1.01)]:
        chosen = (proba >= low) & (proba < high)
        if chosen.sum() >= 50:
            wobble = 4 * np.sqrt(0.25 / chosen.sum()) if low == 0.2 else 4 * np.sqrt(0.05 / chosen.sum())
            assert changed[chosen].mean() == pytest.approx(proba[chosen].mean(), abs=wobble)
    called = probability.expected_fdr(1 - proba) <= 0.05
    assert (called & ~changed).sum() <= 0.08 * max(called.sum(), 1)
    assert called[changed].mean() > 0.4 if share else called.sum() <= 2


def test_columns_of_change_are_consistent():
    _, mean, sd = estimates(500)
    lfc = mean + sd * np.random.default_rng(2).standard_normal((100, 500))
    result = tables.change(lfc, 0.25)
    odds = np.exp(result["bayes_factor"])
    np.testing.assert_allclose(result["proba_de"], odds / (1 + odds), atol=1e-9)
    assert (tables.change(lfc, 1.0)["proba_de"] <= result["proba_de"] + 1e-12).all()
    np.testing.assert_allclose(tables.change(-lfc, 0.25)["proba_de"], result["proba_de"], atol=1e-6)


def test_vanilla_agrees_with_the_share_of_samples():
    rng = np.random.default_rng(0)
    lfc = rng.normal([0.5, -0.2, 0.0, 12.0], [0.4, 0.4, 1.0, 0.5], (20_000, 4))
    result = tables.vanilla(lfc)
    np.testing.assert_allclose(result["proba_m1"], (lfc > 0).mean(0), atol=0.01)
    np.testing.assert_allclose(result["proba_m1"] + result["proba_m2"], 1)
    odds = np.log(result["proba_m1"][:3] / result["proba_m2"][:3])
    np.testing.assert_allclose(result["bayes_factor"][:3], odds, rtol=1e-6)
    assert 250 < result["bayes_factor"][3] < 350  # where proba_m2 is 0 in floating point: z = 24


def test_delta_lies_where_changed_and_unchanged_genes_are_as_frequent():
    rng = np.random.default_rng(0)
    mean = np.concatenate([rng.normal(0, 0.1, 4000), rng.normal(0, 1.5, 1000)])
    odds = 0.8 / 0.2 * 1.5 / 0.1
    expected = np.sqrt(2 * np.log(odds) / (1 / 0.1**2 - 1 / 1.5**2))
    assert probability.fit_delta(mean) == pytest.approx(expected, rel=0.1)
    assert probability.fit_delta(mean / 100) == probability.SMALLEST_DELTA
    assert np.isfinite(probability.fit_delta(np.zeros(5)))
    lfc = mean + 0.05 * rng.standard_normal((50, 5000))
    fitted = tables.change(lfc, None)["proba_de"]
    np.testing.assert_array_equal(fitted, tables.change(lfc, probability.fit_delta(lfc.mean(0)))["proba_de"])


def test_expected_false_discovery_rate_by_hand():
    error = np.array([0.2, 0.01, 0.5, 0.03, 0.02])
    expected = [0.26 / 4, 0.01, 0.76 / 5, 0.06 / 3, 0.03 / 2]
    np.testing.assert_allclose(probability.expected_fdr(error), expected)
    np.testing.assert_array_equal(probability.expected_fdr(error) <= 0.05, [False, True, False, True, True])
    np.testing.assert_array_equal(probability.expected_fdr(error) <= 0.07, [True, True, False, True, True])


def test_genes_of_the_same_error_are_called_together_or_not_at_all():
    error = np.array([0.0, 0.1, 0.1, 0.1])
    np.testing.assert_allclose(probability.expected_fdr(error), [0, 0.075, 0.075, 0.075])


@pytest.mark.parametrize("spread", [4, 100])
def test_evidence_of_the_decoder_reorders_genes_and_keeps_the_mean_probability(spread):
    rng = np.random.default_rng(0)
    odds, decoded = rng.normal(0, spread, 500), rng.normal(-1, 4, 500)
    found = probability.pooled(odds, decoded)
    seen = 2 * np.maximum(decoded, 0)
    assert np.array_equal(np.argsort(found), np.argsort(odds + seen))
    given = odds + np.minimum(seen, probability.MOST_AGREEMENT)
    assert np.isclose(expit(found).mean(), expit(given).mean(), atol=1e-6)
    np.testing.assert_allclose(probability.pooled(odds, -np.abs(decoded)), odds, atol=1e-5)
    far = np.array([650.0, -650.0, 0.0])
    np.testing.assert_allclose(probability.pooled(far, np.zeros(3)), far, atol=1e-3)


def test_the_width_is_that_of_genes_of_similar_abundance_that_did_not_change():
    rng = np.random.default_rng(1)
    abundance = np.repeat([10.0, 1000.0], 2000)
    truth = np.where(abundance > 100, 0.05, 0.4)
    estimates = rng.normal(0, truth)
    estimates[::20] += 3
    found = probability.widths(estimates, abundance)
    np.testing.assert_allclose(found[[0, -1]], truth[[0, -1]], rtol=0.1)


# ------------------------------------------------------------------------------------------------------------- tables


def test_a_table_by_brute_force():
    a, b = group(n_genes=40, seed=5), group(n_genes=40, seed=6)
    genes = pd.Index([f"g{i}" for i in range(40)])
    table = tables.compare(a, b, genes, OPTIONS, np.random.default_rng(3))
    samples1, samples2, mean1, mean2 = expression.with_counts(a, b, np.random.default_rng(3))
    eps = expression.pseudocount(a, b)
    assert list(table.columns) == COLUMNS
    assert (np.diff(table["bayes_factor"]) <= 0).all()
    for i in np.random.default_rng(0).permutation(40):
        row, lfc = (
            table.loc[f"g{i}"],
            [np.log2((x + eps) / (y + eps)) for x, y in zip(samples1[:, i], samples2[:, i], strict=True)],
        )
        found = [row[f"lfc_{name}"] for name in ("mean", "median", "std", "min", "max")]
        np.testing.assert_allclose(found, [np.mean(lfc), np.median(lfc), np.std(lfc), min(lfc), max(lfc)], rtol=1e-9)
        np.testing.assert_allclose([row["scale1"], row["scale2"]], [mean1[i], mean2[i]])
        assert row["raw_mean1"] == a.raw[i] / 40
        assert row["non_zeros_proportion2"] == b.detected[i] / 40
    errors = 1 - table["proba_de"].to_numpy(dtype=float)
    assert list(table["is_de_fdr_0.05"]) == [errors[: i + 1].mean() <= 0.05 for i in range(40)]
    assert 0 < table["is_de_fdr_0.05"].sum() < 40


def test_a_given_pseudocount_is_used():
    a, b = group(seed=5), group(seed=6)
    options = groups.Options(mode="change", delta=0.25, pseudocount=100.0, fdr_target=0.2)
    table = tables.compare(a, b, pd.Index(range(6)), options, np.random.default_rng(3))
    assert np.abs(table["lfc_mean"]).max() < 0.1
    assert "is_de_fdr_0.2" in table


def test_swapped_groups_give_the_opposite_change():
    a, b = group(n_genes=50, seed=5), group(n_genes=50, seed=6)
    genes, rng = pd.Index(range(50)), np.random.default_rng
    forth, back = (tables.compare(*pair, genes, OPTIONS, rng(0)).loc[genes] for pair in ((a, b), (b, a)))
    np.testing.assert_allclose(forth["lfc_mean"], -back["lfc_mean"], atol=0.3)
    assert np.corrcoef(forth["lfc_mean"], -back["lfc_mean"])[0, 1] > 0.99
    np.testing.assert_allclose(forth[["scale1", "scale2"]], back[["scale2", "scale1"]])


# ----------------------------------------------------------------------------------- what a model says of groups


@pytest.fixture(scope="module")
def trained():
    """A narrow VAE and 90 cells in 3 batches."""
    counts = small_counts(n_batches=3)
    vae = small_vae(counts)
    few_steps(vae, counts, n_steps=20)
    return vae, counts


ASK = {"max_cells": 3000, "chunk_size": None, "seed": 0}


def test_both_groups_are_decoded_in_the_same_batches(trained, monkeypatch):
    """Whatever batches their cells come from: here, each group from one batch only."""
    vae, counts = trained
    cells = [np.flatnonzero(counts.codes[:, 0] == batch) for batch in (0, 2)]
    decoded: list[list[int]] = []
    forward = vae.decoder.forward

    def watched(z, x, *options, **more):
        decoded.append(x.codes[:, 0].tolist())
        return forward(z, x, *options, **more)

    monkeypatch.setattr(vae.decoder, "forward", watched)
    for batches, expected in (([0, 1, 2], [{0, 1, 2}] * 2), ([None], [{0}, {2}])):
        for of_group, wanted in zip(cells, expected, strict=True):
            decoded.clear()
            posterior.group_expression(vae, counts, [of_group], batches, 20, **ASK)
            drawn = [code for call in decoded[:-1] for code in call]  # the last call is of the counts' expectations
            assert set(drawn) == wanted
            assert {drawn.count(batch) for batch in wanted} == {len(drawn) / len(wanted)}
            assert set(decoded[-1]) == set(counts.codes[of_group, 0])


def test_batch_correction_removes_what_the_decoder_adds_to_a_batch(trained):
    """The same cells once in one batch, once in another: equal if corrected, apart by the decoder's offsets if not."""
    vae, counts = trained
    twice = counts[np.concatenate([np.arange(90), np.arange(90)])]
    codes = np.repeat([0, 1], 90)[:, None]
    twice = type(counts).of(twice.stored, codes=codes, n_levels=(3,))
    cells = [np.arange(90), np.arange(90, 180)]
    levels = vae.decoder.offset.levels[0]
    before = levels.detach().clone()
    try:
        levels.data[0, ::2] += 1.0  # every other gene doubles and more in the first batch
        apart, together = (
            posterior.group_expression(vae, twice, cells, batches, 50, **ASK) for batches in ([None], [0, 1, 2])
        )
    finally:
        levels.data.copy_(before)

    def difference(groups):
        return np.abs(np.log(groups[0].samples.mean(0)) - np.log(groups[1].samples.mean(0)))

    assert difference(together).max() < 0.1
    even, odd = difference(apart)[::2], difference(apart)[1::2]
    assert abs(np.median(even) + np.median(odd) - 1) < 0.2  # what the softmax takes from one it gives to the other


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
@pytest.mark.parametrize("by_batch", [True, False])
def test_counts_and_expectations_by_brute_force(likelihood, by_batch):
    counts = small_counts(n_batches=2)
    vae = small_vae(counts, gene_likelihood=likelihood)
    few_steps(vae, counts)
    of_group = np.arange(5, 60)
    batches = [0, 1] if by_batch else [None]
    found = posterior.group_expression(vae, counts, [of_group], batches, 10, **{**ASK, "chunk_size": 16})[0]
    parameters = posterior.likelihood_parameters(vae, counts[of_group])
    x, mean = counts.matrix[of_group].toarray(), parameters["mean"].astype(float)
    dropout, theta = parameters.get("dropout", 0.0), parameters.get("dispersions", np.inf)
    expectation = mean * (1 - dropout)
    variance = (1 - dropout) * (mean + mean**2 / theta) + dropout * (1 - dropout) * mean**2  # of the mixture with 0
    weight = expectation / variance
    for batch in range(2 if by_batch else 1):
        rows = counts.codes[of_group, 0] == batch if by_batch else np.ones(55, dtype=bool)
        np.testing.assert_allclose(found.observed[batch], (weight * x)[rows].sum(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.expected[batch], (weight * expectation)[rows].sum(0), rtol=1e-4)
    np.testing.assert_array_equal(found.raw, x.sum(0))
    np.testing.assert_array_equal(found.detected, (x > 0).sum(0))


def test_draws_of_a_group_are_a_bayesian_bootstrap_over_its_cells(trained):
    vae, counts = trained
    cells = np.arange(60)
    found = posterior.group_expression(vae, counts, [cells], [0, 1, 2], 4000, **ASK)[0]
    repeats = 6  # so that a thousand are decoded: 60 cells x 3 batches x 6
    parts = posterior.expression(vae, counts[cells], 1.0, None, posterior.Request([0, 1, 2], repeats, seed=5))
    rho = np.concatenate([part for _, part in parts]).astype(float)
    np.testing.assert_allclose(found.samples.sum(1), 1, rtol=1e-4)
    np.testing.assert_allclose(found.samples.mean(0), rho.mean(0), rtol=0.1)
    # Dirichlet(1, ..., 1) weights on n cells: variance of a mean is the variance over the cells / (n + 1).
    np.testing.assert_allclose(found.samples.std(0), rho.std(0) / np.sqrt(61), rtol=0.5)
    ratio = found.samples.std(0) / (rho.std(0) / np.sqrt(61))
    assert np.median(ratio) == pytest.approx(1, abs=0.1)


def test_a_large_group_is_represented_by_some_of_its_cells(trained):
    vae, counts = trained
    whole = posterior.group_expression(vae, counts, [np.arange(90)], [0], 20, **ASK)[0]
    part = posterior.group_expression(vae, counts, [np.arange(90)], [0], 20, **{**ASK, "max_cells": 45})[0]
    assert part.n_cells == 90
    assert part.expected.sum() == pytest.approx(whole.expected.sum() / 2, rel=0.25)
    assert part.library == pytest.approx(whole.library, rel=0.25)
    np.testing.assert_array_equal(part.raw, whole.raw)  # needs no decoder, so all cells count
    with pytest.raises(ValueError, match=r"^n_samples is 9; expected at least 10"):
        posterior.group_expression(vae, counts, [np.arange(90)], [0], 9, **ASK)


# --------------------------------------------------------------------------------------------------------- the method


def test_each_group_against_the_rest(adata, model):
    table = model.differential_expression(adata, groupby="kind")
    assert list(table.columns) == [*COLUMNS, "comparison", "group1", "group2"]
    assert list(table["comparison"].unique()) == ["w vs Rest", "x vs Rest", "y vs Rest", "z vs Rest"]
    assert set(table["group2"]) == {"Rest"}
    x, kind = adata.X.toarray(), adata.obs["kind"].to_numpy()
    for name, part in table.groupby("group1"):
        assert sorted(part.index) == sorted(model.gene_names)
        assert (np.diff(part["bayes_factor"]) <= 0).all()
        inside = pd.DataFrame(x, columns=adata.var_names)[kind == name]
        outside = pd.DataFrame(x, columns=adata.var_names)[kind != name]
        np.testing.assert_allclose(part["raw_mean1"], inside.mean()[part.index], rtol=1e-6)
        np.testing.assert_allclose(part["raw_mean2"], outside.mean()[part.index], rtol=1e-6)
        np.testing.assert_allclose(part["non_zeros_proportion2"], (outside > 0).mean()[part.index])


def test_groups_by_label_column_and_cells_agree(adata, model):
    """The same two groups, asked for in every way: the same numbers up to the noise of sampling."""
    kind = adata.obs["kind"]
    by_column = model.differential_expression(adata, groupby="kind", group1="x", group2="z")
    assert set(by_column["comparison"]) == {"x vs z"}
    own_obs = model.differential_expression(groupby="kind", group1="x", group2="z")
    by_labels = model.differential_expression(groupby=kind.to_numpy(), group1="x", group2="z")
    by_series = model.differential_expression(groupby=kind, group1="x", group2="z")
    masks = model.differential_expression(idx1=kind == "x", idx2=np.flatnonzero(kind == "z"))
    assert list(masks.columns) == COLUMNS
    for other in (own_obs, by_labels, by_series):
        pd.testing.assert_frame_equal(by_column, other)
    pd.testing.assert_frame_equal(by_column[COLUMNS], masks)


def test_columns_added_after_the_model_was_built_are_seen(make_adata, fit):
    adata = make_adata()
    model = fit(adata, 1)
    adata.obs["later"] = np.where(np.arange(120) < 50, "p", "q")
    table = model.differential_expression(groupby="later", group1="p", group2="q")
    np.testing.assert_allclose(
        table["raw_mean1"], adata.X[:50].toarray().mean(0)[model.gene_names.get_indexer(table.index)]
    )
    adata.obs.index = [f"new{i}" for i in range(120)]
    with pytest.raises(ValueError, match=r"^The cells of the AnnData have changed since the model was built"):
        model.differential_expression(groupby="later")
    assert len(model.differential_expression(idx1=range(50))) == 60  # cells by number need no names


def test_a_model_of_a_view_keeps_no_view(make_adata, fit):
    adata = make_adata()
    view = adata[:, :30]
    model = fit(view, 1)
    assert type(model._obs) is pd.DataFrame
    assert model._obs is not adata.obs
    assert len(model.differential_expression(groupby="kind", group1="w")) == 30
    bare = make_adata()
    bare.obs = bare.obs[[]]
    assert len(fit(bare[:, :30], 1).differential_expression(idx1=range(50))) == 30


def test_the_seed_decides_and_nothing_is_changed(adata, model, fingerprint):
    before = fingerprint(adata)
    ask = {"groupby": "kind", "group1": "w", "n_samples": 30}
    first, again, other = (model.differential_expression(adata, **ask, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert np.abs(first["lfc_mean"] - other["lfc_mean"][first.index]).max() > 1e-3
    assert fingerprint(adata) == before
    chunked = model.differential_expression(adata, **ask, seed=1, chunk_size=7)
    np.testing.assert_allclose(chunked["raw_mean1"][first.index], first["raw_mean1"])
    assert np.corrcoef(chunked["lfc_mean"][first.index], first["lfc_mean"])[0, 1] > 0.98


def test_a_comparison_does_not_depend_on_the_others_asked_for(model):
    alone = model.differential_expression(groupby="kind", group1="y")
    together = model.differential_expression(groupby="kind")
    pd.testing.assert_frame_equal(alone, together[together["group1"] == "y"])


def test_a_loaded_model_needs_data(adata, model, tmp_path):
    model.save(tmp_path / "m")
    loaded = sccvae.SCCVAE.load(tmp_path / "m")
    with pytest.raises(ValueError, match="pass adata"):
        loaded.differential_expression(groupby="kind")
    expected = model.differential_expression(adata, groupby="kind", group1="x")
    pd.testing.assert_frame_equal(loaded.differential_expression(adata, groupby="kind", group1="x"), expected)
    with_data = sccvae.SCCVAE.load(tmp_path / "m", adata)
    pd.testing.assert_frame_equal(with_data.differential_expression(groupby="kind", group1="x"), expected)


def test_vanilla_and_fitted_delta(model):
    ask = {"groupby": "kind", "group1": "w", "group2": "x"}
    table = model.differential_expression(**ask, mode="vanilla")
    assert list(table.columns[:3]) == ["proba_m1", "proba_m2", "bayes_factor"]
    assert not [name for name in table if name.startswith("is_de")]
    assert (np.diff(table["bayes_factor"]) <= 0).all()
    assert (np.sign(table["bayes_factor"]) == np.sign(table["lfc_mean"])).all()
    fitted, given = (model.differential_expression(**ask, delta=delta)["proba_de"] for delta in (None, 0.25))
    assert np.abs(fitted - given[fitted.index]).max() > 0.01


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"groupby": "kin"}, KeyError, "adata.obs has no column 'kin'. Did you mean 'kind'?"),
        ({"groupby": "kind", "group1": "v"}, ValueError, "group1 'v' is unknown; the groups are 'w', 'x', 'y', 'z'."),
        ({"groupby": ["a", "b"]}, ValueError, "groupby has shape (2,); expected a column of adata.obs or a label"),
        ({"groupby": pd.Series(["a"] * 120)}, ValueError, "groupby is a Series whose index is not the names"),
        ({"groupby": [None, *["a"] * 119]}, ValueError, "adata.obs['groupby'] has no value for 1 of 120 cells"),
        ({"idx1": np.ones(7, dtype=bool)}, ValueError, "idx1 is a mask of shape (7,)"),
        ({}, ValueError, "groupby, idx1 and idx2 are all None; expected cells to compare"),
        ({"groupby": "kind", "mode": "t"}, ValueError, "mode is 't'"),
        ({"groupby": "kind", "max_cells": 0}, ValueError, "max_cells is 0"),
        ({"groupby": "kind", "n_samples": 2}, ValueError, "n_samples is 2"),
    ],
)
def test_wrong_questions_are_answered_in_sentences(model, options, error, text):
    with pytest.raises(error, match="^" + re.escape(text)):
        model.differential_expression(**options)


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli"])
def test_models_without_counts_have_no_fold_changes(adata, fit, likelihood):
    adata.X = sp.csr_matrix(adata.X > 0, dtype=np.float32) if likelihood == "bernoulli" else adata.X.log1p()
    model = fit(adata, 1, gene_likelihood=likelihood)
    with pytest.raises(ValueError, match=f"needs a count likelihood; found gene_likelihood='{likelihood}'"):
        model.differential_expression(groupby="kind")


def test_an_untrained_model_compares_nothing(adata):
    with pytest.raises(RuntimeError, match="not trained"):
        sccvae.SCCVAE(adata).differential_expression(groupby="kind")


@pytest.mark.parametrize("likelihood", ["nb", "poisson"])
def test_other_likelihoods_of_counts_and_covariates(adata, fit, likelihood):
    options = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]}
    model = fit(adata, 2, batch_key="batch", gene_likelihood=likelihood, **options)
    table = model.differential_expression(groupby="kind", group1="w", group2="y")
    assert np.isfinite(table[COLUMNS[:-1]].to_numpy(dtype=float)).all()
    observed = np.log2((table["raw_mean1"] + 0.05) / (table["raw_mean2"] + 0.05))
    assert np.corrcoef(table["lfc_mean"], observed)[0, 1] > 0.6


# ------------------------------------------------------------------------------------------------- against known truth


@pytest.fixture(scope="module")
def two_groups():
    """Two groups of 200 cells, unevenly spread over two batches; 60 of 300 genes change by 0.8 to 2 log2 units."""
    rng = np.random.default_rng(7)
    changed = np.arange(300) < 60
    lfc = np.where(changed, rng.choice([-1, 1], 300) * rng.uniform(0.8, 2, 300), 0.0)
    kind = np.repeat([0, 1], 200)
    batch = (rng.random(400) < np.array([0.35, 0.65])[kind]).astype(int)
    rate = rng.lognormal(0, 1, 300) * 2 ** (lfc * kind[:, None]) * np.exp(0.4 * rng.standard_normal((2, 300)))[batch]
    mean = rate / rate.sum(1, keepdims=True) * rng.lognormal(np.log(600), 0.3, (400, 1))
    counts = rng.poisson(rng.gamma(2, mean / 2)).astype(np.float32)
    obs = pd.DataFrame({"kind": np.array(["a", "b"])[kind], "batch": np.array(["s", "t"])[batch]})
    adata = ad.AnnData(sp.csr_matrix(counts), obs=obs.set_index(obs.index.astype(str)))
    model = sccvae.SCCVAE(adata, batch_key="batch", n_hidden=64, n_latent=8)
    model.train(40, progress_bar=False)
    return model, pd.Series(lfc, adata.var_names), adata


def average_precision(changed: np.ndarray) -> float:
    """Of genes in order: mean of the precision at each that has changed."""
    precision = np.cumsum(changed) / np.arange(1, len(changed) + 1)
    return float(precision[changed].mean())


def test_changed_genes_are_found_and_ranked_before_the_others(two_groups):
    import scanpy as sc

    model, lfc, adata = two_groups
    table = model.differential_expression(groupby="kind", group1="b", group2="a")
    changed = (lfc[table.index] != 0).to_numpy()
    called = table["is_de_fdr_0.05"].to_numpy()
    assert (called & ~changed).sum() <= 0.1 * called.sum()
    assert called[changed].mean() > 0.7
    assert (np.sign(table["lfc_mean"]) == np.sign(lfc[table.index]))[called & changed].all()
    assert np.corrcoef(table["lfc_mean"][changed], lfc[table.index][changed])[0, 1] > 0.95
    log = adata.copy()
    sc.pp.normalize_total(log)
    sc.pp.log1p(log)
    sc.tl.rank_genes_groups(log, "kind", groups=["b"], reference="a", method="wilcoxon")
    wilcoxon = sc.get.rank_genes_groups_df(log, "b").set_index("names")["scores"].abs().sort_values(ascending=False)
    assert average_precision(changed) > average_precision((lfc[wilcoxon.index] != 0).to_numpy())
    assert average_precision(changed) > 0.9


def test_batch_correction_is_no_text(two_groups):
    with pytest.raises(TypeError, match=r"^batch_correction is 'no'; expected True or False\.$"):
        two_groups[0].differential_expression(groupby="kind", group1="a", batch_correction="no")


def test_batches_are_told_from_groups(two_groups):
    """Batches differ in every gene: called unless corrected for, when cells are compared by batch alone."""
    model, lfc, _ = two_groups
    corrected, raw = (
        model.differential_expression(groupby="batch", group1="s", group2="t", batch_correction=correct)
        for correct in (True, False)
    )
    unchanged = lfc.index[lfc == 0]
    assert raw.loc[unchanged, "is_de_fdr_0.05"].mean() > 0.3
    assert corrected.loc[unchanged, "is_de_fdr_0.05"].mean() < 0.02
