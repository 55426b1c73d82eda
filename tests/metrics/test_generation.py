"""Scores of a generator of counts: closed forms, brute force, generators whose faults are known, errors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import warnings_are_errors
from scipy.integrate import quad
from scipy.stats import entropy, norm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from sccvae.metrics import distances, generation
from sccvae.metrics.generation import (
    gene_agreement,
    log_normalized,
    principal_components,
    score_generator,
    summaries,
    two_sample_auc,
)

SPARSE = [sp.csr_matrix, sp.csr_array, sp.csc_array, sp.coo_matrix]
_RNG = np.random.default_rng(0)
_PROFILES = _RNG.dirichlet(np.full(80, 0.5), size=3)


def cells(n, seed, *, shares=(0.4, 0.4, 0.2), theta=1.0, depth=200):
    """Negative binomial counts of three kinds of cells, 80 genes, whose genes go by threes."""
    rng = np.random.default_rng([*np.atleast_1d(seed), 1])
    kind = rng.choice(3, size=n, p=shares)
    rate = _PROFILES[kind] * rng.lognormal(np.log(depth), 0.3, (n, 1))
    rate = rate * (1 if theta == np.inf else rng.gamma(theta, 1 / theta, (n, 80)))
    return rng.poisson(rate)


# ------------------------------------------------------------------------------------------------------------- features


def test_log_normalized_by_hand():
    x = np.array([[1, 3, 0], [0, 0, 0], [0, 0, 7]])
    expected = [[np.log1p(25), np.log1p(75), 0], [0, 0, 0], [0, 0, np.log1p(100)]]
    assert log_normalized(x, total=100) == pytest.approx(np.array(expected))
    assert np.expm1(log_normalized(x)).sum(1) == pytest.approx([1e4, 0, 1e4])


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
def test_log_normalized_keeps_sparse_counts_sparse(kind, dtype):
    x = cells(20, 0).astype(dtype)
    result = log_normalized(kind(x))
    assert isinstance(result, sp.csr_array)
    assert result.dtype == np.float64
    assert result.nnz == (x > 0).sum()
    assert result.toarray() == pytest.approx(log_normalized(x))


def test_entries_stored_twice_are_added():
    twice = sp.csr_matrix(([1.0, 2.0, 1.0], [1, 0, 1], [0, 3]), shape=(1, 2))
    assert log_normalized(twice).toarray() == pytest.approx(log_normalized([[2, 2]]))
    assert summaries(twice) == pytest.approx(summaries([[2, 2]]))
    assert twice.data.tolist() == [1, 2, 1]


def test_stored_zeros_are_zeros():
    x = cells(30, 0)
    stored = sp.csr_matrix(x + 1)
    stored.data -= 1
    assert stored.nnz == x.size
    assert summaries(stored) == pytest.approx(summaries(x))
    pd.testing.assert_frame_equal(gene_agreement(stored, stored[:20]), gene_agreement(x, x[:20]))


def test_summaries_by_brute_force():
    x = cells(30, 1)
    x[4] = 0
    result = summaries(x)
    for cell, found in zip(np.delete(x, 4, axis=0), np.delete(result, 4, axis=0), strict=True):
        assert found == pytest.approx(
            [
                np.log1p(cell.sum()),
                np.mean(cell == 0),
                np.mean(cell[cell > 0] == 1),
                cell.max() / cell.sum(),
                np.log1p(cell.var()),
                entropy(cell / cell.sum()),
            ]
        )
    assert result[4].tolist() == [0, 1, 0, 0, 0, 0]
    for kind in SPARSE:
        assert summaries(kind(x)) == pytest.approx(result)


@pytest.mark.parametrize("n_components", [5, 80])
def test_principal_components_are_those_of_all_cells(n_components):
    real, generated = log_normalized(cells(70, 0)), log_normalized(cells(50, 1))
    both = np.vstack([real, generated])
    u, s, _ = np.linalg.svd(both - both.mean(0), full_matrices=False)
    expected = (u * s)[:, :n_components]
    for a, b in ((real, generated), (sp.csr_matrix(real), sp.csr_array(generated)), (real, sp.csc_array(generated))):
        found = np.vstack(principal_components(a, b, n_components=n_components))
        assert found.shape == expected.shape
        assert np.abs(found) == pytest.approx(np.abs(expected), abs=1e-6)  # up to sign
    assert len(principal_components(real, generated)[0]) == 70


# ------------------------------------------------------------------------------------------------------ two-sample test


def test_auc_of_one_distribution_is_a_half():
    found = [two_sample_auc(cells(100, [s, 0]), cells(150, [s, 1]), seed=s, n_components=10) for s in range(5)]
    assert abs(np.mean(found) - 0.5) < 0.05
    assert all(abs(auc - 0.5) < 0.15 for auc in found)


def test_auc_of_far_samples_is_one():
    x = np.random.default_rng(0).normal(size=(60, 3))
    assert two_sample_auc(x, x + 20) == 1
    assert two_sample_auc(sp.csr_matrix(cells(60, 0)), 40 + cells(60, 1), n_components=5) == 1


def test_auc_of_shifted_gaussians_in_closed_form():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1500, 1)), rng.normal(1.0, 1.0, size=(1500, 1))
    assert two_sample_auc(x, y) == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.035)


def test_auc_of_a_wider_gaussian_in_closed_form():
    """No line parts N(0, 1) from N(0, 9); the best score is |x|, with P(|3 u| > |v|) = 1 - 2 atan(1/3) / pi."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1000, 1)), 3 * rng.normal(size=(1000, 1))
    best = quad(lambda v: 2 * norm.pdf(v) * 2 * norm.sf(v / 3), 0, np.inf)[0]
    assert best == pytest.approx(1 - 2 * np.arctan(1 / 3) / np.pi)
    assert two_sample_auc(x, y) == pytest.approx(best, abs=0.035)
    linear = cross_val_score(LogisticRegression(), np.vstack([x, y]), np.repeat([0, 1], 1000), scoring="roc_auc")
    assert linear.mean() < 0.6


def test_auc_sees_lost_correlations():
    """Each gene by itself is as it should be; only which cells have it together is not."""
    rng = np.random.default_rng(0)
    real, other = log_normalized(cells(200, 0)), log_normalized(cells(200, 1))
    shuffled = np.column_stack([rng.permutation(gene) for gene in other.T])
    assert two_sample_auc(real, shuffled) > 0.9
    assert two_sample_auc(real, other) < 0.6


def test_auc_needs_both_classifiers():
    """Trees alone see a fine comb (kernels: 0.53); kernels see another covariance better than trees (0.74)."""
    rng = np.random.default_rng(0)
    comb = (np.floor(10 * rng.random((400, 1))) + rng.random((400, 1)) / 2) / 10
    assert two_sample_auc(rng.random((400, 1)), comb) > 0.62
    rotation = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    turned = rng.normal(size=(300, 10)) * np.linspace(0.4, 1.6, 10) @ rotation
    assert two_sample_auc(rng.normal(size=(300, 10)), turned) > 0.77


def test_auc_of_copies_is_below_a_half():
    x = log_normalized(cells(100, 0))
    assert two_sample_auc(x, x) < 0.3


def test_auc_does_not_depend_on_units_or_scale_of_few_features():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(150, 2)), rng.normal(0.7, 1, size=(150, 2))
    units = np.array([1e5, 1e-5])
    assert two_sample_auc(x * units + 3, y * units + 3) == pytest.approx(two_sample_auc(x, y), abs=0.02)


def test_features_are_fitted_on_the_training_part_alone():
    seen, unseen = cells(60, 0).astype(float), cells(40, 1).astype(float)
    for n_components in (10, 80):  # principal components; standardised features
        a, b = generation._reduced(seen, unseen, n_components, 0)
        a2, b2 = generation._reduced(seen, 100 * unseen, n_components, 0)
        assert np.array_equal(a, a2)
        assert not np.allclose(b, b2)
        assert a.mean(0) == pytest.approx(0, abs=1e-9)
        assert a.shape == (60, n_components)


def test_auc_of_samples():
    x, y = log_normalized(cells(150, 0)), log_normalized(cells(220, 1, theta=np.inf))
    some = [two_sample_auc(x, y, n_components=5, max_cells=80, seed=seed) for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert two_sample_auc(x, y, n_components=5, max_cells=150) == two_sample_auc(x, y, n_components=5, max_cells=None)
    sparse = two_sample_auc(sp.csr_matrix(x), sp.csr_array(y), n_components=5)
    assert sparse == pytest.approx(two_sample_auc(x, y, n_components=5), abs=0.02)


# ---------------------------------------------------------------------------------------------------------------- genes


def test_gene_agreement_by_brute_force():
    x, y = cells(90, 0), cells(60, 1, theta=3.0)
    x[:, 3] = y[:, 3] = 0  # found in neither
    found = np.delete(np.arange(80), 3)
    one = 1 / 60

    def log_moments(counts, total):
        scaled = np.log1p(counts / counts.sum(1, keepdims=True) * total)
        return {
            "log_mean": np.log10(counts.mean(0) + one)[found],
            "log_variance": np.log10(counts.var(0, ddof=1) + one)[found],
            "zero_fraction": (counts == 0).mean(0)[found],
        }, scaled

    total = np.median(x.sum(1))
    (real, real_log), (new, new_log) = log_moments(x, total), log_moments(y, total)
    top = np.argsort(-real_log.var(0))[:20]
    pairs = np.triu_indices(20, 1)
    real["coexpression"] = np.corrcoef(real_log[:, top].T)[pairs]
    new["coexpression"] = np.corrcoef(new_log[:, top].T)[pairs]
    expected = pd.DataFrame(
        {name: [np.corrcoef(real[name], new[name])[0, 1], np.abs(real[name] - new[name]).mean()] for name in real},
        index=["correlation", "difference"],
    ).T
    pd.testing.assert_frame_equal(gene_agreement(x, y, n_top_genes=20), expected)
    for kind in SPARSE:
        pd.testing.assert_frame_equal(gene_agreement(kind(x), kind(y), n_top_genes=20), expected)


def test_gene_agreement_of_the_same_cells_in_another_order():
    x = cells(60, 0)
    agreement = gene_agreement(x, x[::-1])
    assert agreement["correlation"].tolist() == pytest.approx([1] * 4)
    assert agreement["difference"].tolist() == pytest.approx([0] * 4, abs=1e-9)


def test_gene_agreement_says_what_is_wrong():
    x = cells(400, 0) + 5
    rng = np.random.default_rng(0)
    tripled = gene_agreement(x, 3 * x)
    assert tripled["difference"]["log_mean"] == pytest.approx(np.log10(3), abs=1e-3)
    assert tripled["difference"]["log_variance"] == pytest.approx(2 * np.log10(3), abs=0.02)
    assert tripled["difference"]["coexpression"] == pytest.approx(0, abs=1e-9)  # after normalisation they are alike
    assert tripled["correlation"]["log_mean"] > 0.999
    x = cells(400, 0)
    shuffled = gene_agreement(x, np.column_stack([rng.permutation(gene) for gene in x.T]))
    genes = ["log_mean", "log_variance", "zero_fraction"]
    assert shuffled["difference"][genes].tolist() == pytest.approx([0] * 3, abs=1e-9)
    assert shuffled["correlation"]["coexpression"] < 0.5


def test_gene_agreement_without_variation():
    x = np.tile([1, 2, 3], (5, 1))
    agreement = gene_agreement(x, x)
    assert agreement["difference"].tolist() == [0, 0, 0, 0]
    assert agreement["correlation"][:1].tolist() == pytest.approx([1])
    assert agreement["correlation"][1:].isna().all()
    x, constant = cells(60, 0), np.tile(1 + np.arange(80) % 7, (60, 1))  # which correlates with nothing
    log = log_normalized(x, total=np.median(x.sum(1)))
    between = np.corrcoef(log[:, np.argsort(-log.var(0))[:9]].T)[np.triu_indices(9, 1)]
    assert gene_agreement(x, constant, n_top_genes=9)["difference"]["coexpression"] == pytest.approx(
        abs(between).mean()
    )
    assert np.isnan(gene_agreement([[1], [2]], [[1], [2]]).loc["coexpression"]).all()


# ------------------------------------------------------------------------------------------------------------ in one go


@pytest.fixture(scope="module")
def scored():
    """Generators whose faults are known."""
    real = cells(150, 0)
    noise = np.random.default_rng(3).poisson(2.5, (30, 80))
    generators = {
        "perfect": cells(150, 1),
        "one kind missing": cells(150, 2, shares=(0.5, 0.5, 0)),
        "a fifth noise": np.vstack([cells(120, 3), noise]),
        "poisson": cells(150, 4, theta=np.inf),
        "deeper": cells(150, 5, depth=400),
    }
    with warnings_are_errors():
        rows = {name: score_generator(real, x, n_components=10) for name, x in generators.items()}
    return pd.DataFrame(rows).T


def test_a_perfect_generator(scored):
    best = scored.loc["perfect"]
    assert best["auc_log"] == pytest.approx(0.5, abs=0.12)
    assert best["auc_summaries"] == pytest.approx(0.5, abs=0.12)
    assert best["mmd"] == pytest.approx(0, abs=0.005)
    assert best["mmd_p"] > 0.05
    assert best["precision"] > 0.8
    assert best["coverage"] == pytest.approx(0.97, abs=0.04)
    assert best["spurious"] < 0.06
    assert min(best[[name for name in scored if name.endswith("_correlation")]]) > 0.85
    assert max(best[[name for name in scored if name.endswith("_difference")]]) < 0.25


def test_every_fault_is_found_by_the_score_for_it(scored):
    best = scored.loc["perfect"]
    missing, noise, poisson, deeper = (scored.loc[name] for name in scored.index[1:])
    assert missing["coverage"] == pytest.approx(best["coverage"] - 0.2, abs=0.1)
    assert missing["precision"] > 0.8
    assert max(missing["mmd_p"], noise["mmd_p"]) < 0.05 < best["mmd_p"]
    assert noise["spurious"] == pytest.approx(0.2, abs=0.05)
    assert noise["precision"] < best["precision"] - 0.1
    assert min(poisson["auc_log"], poisson["auc_summaries"]) > 0.85
    assert poisson["log_variance_difference"] > 1.5 * best["log_variance_difference"]
    assert poisson["coexpression_difference"] > 1.5 * best["coexpression_difference"]
    assert poisson["log_variance_correlation"] > 0.9  # too even in every gene alike
    assert deeper["auc_summaries"] > 0.85
    assert deeper["coverage"] > missing["coverage"]


def test_score_generator_is_the_scores_of_the_functions():
    real, new = cells(60, 0), cells(60, 1)
    total = np.median(real.sum(1))
    log = log_normalized(real, total=total), log_normalized(new, total=total)
    near = principal_components(*log, n_components=5, seed=3)
    expected = {
        "auc_log": two_sample_auc(*log, n_components=5, seed=3),
        "auc_summaries": two_sample_auc(summaries(real), summaries(new), seed=3),
        "mmd": distances.mmd(*near, seed=3).value,
        "mmd_p": distances.mmd(*near, seed=3).p_value,
        "precision": distances.precision_coverage(*near).precision,
        "coverage": distances.precision_coverage(*near).coverage,
        "spurious": distances.spurious(*near),
        **{
            f"{name}_{kind}": gene_agreement(real, new).loc[name, kind]
            for name in ("log_mean", "log_variance", "zero_fraction", "coexpression")
            for kind in ("correlation", "difference")
        },
        "seconds_per_1000": 50.0,
    }
    found = score_generator(real, new, n_components=5, seconds=3, seed=3)
    assert found == pytest.approx(expected)
    assert list(found) == list(expected)
    assert all(type(value) is float for value in found.values())
    sparse = score_generator(sp.csr_matrix(real), sp.csr_array(new), n_components=5, seconds=3, seed=3)
    assert sparse == pytest.approx(expected, abs=0.03)


def test_score_generator_of_samples():
    real, new = sp.csr_matrix(cells(100, 0)), sp.csr_matrix(cells(70, 1))
    before, data = np.random.get_state(), real.data.copy()  # noqa: NPY002
    some = [score_generator(real, new, n_components=5, max_cells=40, seed=seed) for seed in (0, 0, 1)]
    assert some[0] == some[1]
    for name in ("auc_log", "auc_summaries", "mmd", "precision"):
        assert some[0][name] != some[2][name]
    assert some[0]["log_mean_difference"] == some[2]["log_mean_difference"]  # genes are compared in all cells
    assert all(np.array_equal(a, b) for a, b in zip(before, np.random.get_state(), strict=True))  # noqa: NPY002
    assert np.array_equal(real.data, data)


def test_scores_by_distance_are_found_here_too():
    for name in distances.__all__:
        assert getattr(generation, name) is getattr(distances, name)
        assert name in generation.__all__


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("score", [gene_agreement, score_generator])
def test_errors_of_counts(score):
    x = cells(20, 0).astype(float)
    with pytest.raises(ValueError, match=r"real has 80 columns but generated has 79; expected the same genes"):
        score(x, x[:, 1:])
    with pytest.raises(ValueError, match="real has no nonzero counts"):
        score(0 * x, x)
    y = x.copy()
    y[4, 1] = np.nan
    with pytest.raises(ValueError, match="generated has 1 NaN or infinite values, first in cell 4"):
        score(x, y)
    y[[4, 6], 1] = -1
    for bad in (y, sp.csr_matrix(y)):
        with pytest.raises(ValueError, match="real has 2 negative values, first in cell 4; expected counts"):
            score(bad, x)


def test_errors_of_features():
    with pytest.raises(ValueError, match="counts has 1 negative values, first in cell 1"):
        log_normalized([[1, 2], [3, -1]])
    with pytest.raises(ValueError, match="counts has 1 NaN or infinite values, first in cell 0"):
        summaries([[1, np.inf], [3, 1]])
    with pytest.raises(ValueError, match=r"counts has shape \(\) and dtype object; .* such as adata.X"):
        summaries(object())
    for total in (0, -1, np.nan):
        with pytest.raises(ValueError, match="expected counts per cell above 0"):
            log_normalized([[1]], total=total)
    with pytest.raises(ValueError, match="real and generated have identical cells only"):
        principal_components(np.ones((9, 60)), np.ones((9, 60)))
    with pytest.raises(ValueError, match="n_components is 0; expected at least 1"):
        principal_components(cells(9, 0), cells(9, 1), n_components=0)


def test_errors_of_few_cells():
    x = cells(20, 0)
    with pytest.raises(ValueError, match="generated has 4 cells; expected at least 5"):
        two_sample_auc(x, x[:4])
    with pytest.raises(ValueError, match="max_cells is 4; expected at least 5"):
        two_sample_auc(x, x, max_cells=4)
    with pytest.raises(ValueError, match="n_folds is 1 and n_components is 50; expected at least 2 and 1"):
        two_sample_auc(x, x, n_folds=1)
    with pytest.raises(ValueError, match="real has 5 cells; expected at least 6"):
        score_generator(x[:5], x)
    with pytest.raises(ValueError, match="max_cells is 5; expected at least 6"):
        score_generator(x, x, max_cells=5)
