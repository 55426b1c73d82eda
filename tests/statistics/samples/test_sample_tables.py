"""Comparisons and tables of samples, on simulated sums with known effects."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sccvae.statistics.differential_expression.groups import Design as Groups
from sccvae.statistics.samples import tables
from sccvae.statistics.samples.comparison import Sums, compare
from sccvae.statistics.samples.design import design_of

GENES = 600


def counts(rng, mean, n_rows, effect, spread=0.2):
    """Sums of `n_rows` samples per arm, the first half of rows with the log2 effect."""
    change = np.zeros((2 * n_rows, GENES))
    change[:n_rows] = effect
    noise = spread * rng.standard_normal((2 * n_rows, GENES))
    depth = rng.uniform(0.5, 1.5, (2 * n_rows, 1))
    return rng.poisson(mean * depth * 2 ** (change + noise)).astype(float)


def simulated(seed, effect, other_effect, n_rows=4):
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(3, 1, GENES)
    own, others = counts(rng, mean, n_rows, effect), counts(rng, 5 * mean, n_rows, other_effect)
    return Sums(own, own + 1.0, others), design_of(np.arange(2 * n_rows), np.repeat([1, 2], n_rows))


@pytest.fixture(scope="module")
def effect():
    result = np.zeros(GENES)
    result[:60] = np.where(np.arange(60) % 2, 1.2, -1.2)
    return result


def test_p_values_have_their_level_without_effects():
    pval, calls = [], 0
    for seed in range(12):
        result = compare(*simulated(seed, 0, 0), seed=0)
        pval.append(result.pval[result.tested])
        calls += (tables.adjusted(result.pval, result.error, result.tested) <= 0.05).any()
    pval = np.concatenate(pval)
    for level in (0.1, 0.01):
        np.testing.assert_allclose((pval < level).mean(), level, rtol=0.35)
    assert calls <= 2


def test_global_effects_are_found_with_the_other_cells(effect):
    sums, design = simulated(1, effect, effect)
    result = compare(sums, design, seed=0)
    called = tables.adjusted(result.pval, result.error, result.tested) <= 0.05
    true = effect != 0
    assert called[true].mean() > 0.8
    assert (called & ~true).sum() <= 0.1 * called.sum()
    assert abs(((result.lfc - effect) * np.sign(effect))[true].mean()) < 0.1
    assert len(np.unique(result.pval[called])) == called.sum()


def test_effects_of_the_other_cells_alone_are_not_called(effect):
    result = compare(*simulated(2, 0, effect), seed=0)
    assert (tables.adjusted(result.pval, result.error, result.tested) <= 0.05).mean() < 0.005


def test_intervals_hold_the_truth(effect):
    inside = []
    for seed in range(4):
        result = compare(*simulated(10 + seed, effect, effect), seed=0)
        inside.append(((result.low <= effect) & (effect <= result.high))[result.tested].mean())
    assert 0.9 < np.mean(inside) <= 1


def test_the_p_value_with_few_samples_is_that_of_the_t_test(effect):
    sums, design = simulated(3, effect, effect, n_rows=2)
    result = compare(sums, design, seed=0)
    assert design.degrees == 2
    assert (result.error == 0).all() or set(np.unique(result.error)) <= {0.0, 1.0}
    assert result.pval[result.tested].min() > 0


def test_genes_with_hardly_any_count_are_not_tested():
    sums, design = simulated(4, 0, 0)
    sums.observed[:, :3] = 0
    sums.observed[0, 1] = 9
    result = compare(sums, design, seed=0)
    assert not result.tested[:3].any()
    np.testing.assert_array_equal(result.pval[:3], 1)
    np.testing.assert_array_equal(result.lfc[:3], 0)


def units_of(sums, kinds=1):
    n = len(sums.observed)
    one = np.arange(n)
    repeated = [np.tile(one, kinds), np.tile(np.repeat([0, 1], n // 2), kinds)]
    stacked = np.tile(sums.observed, (kinds, 1))
    return tables.Units(
        np.repeat(np.arange(kinds), n), *repeated, np.full(n * kinds, 20), stacked, stacked + 1, np.minimum(stacked, 20)
    )


def test_tables_adjust_within_a_kind_or_over_all(effect):
    sums, _ = simulated(5, effect, effect)
    study = tables.Study(units_of(sums, 2), Groups(("a", "b"), [], [(0, 1)]), ("x", "y"), None)
    genes = pd.Index([f"g{k}" for k in range(GENES)])
    within, every = (
        tables.table(study, genes, by="type", adjust=adjust, fdr_target=0.05, seed=0) for adjust in ("within", "all")
    )
    assert within.shape == every.shape == (2 * GENES, within.shape[1])
    assert list(within.columns[:3]) == ["type", "pval", "padj"]
    assert within["comparison"].unique().tolist() == ["a vs b"]
    np.testing.assert_array_equal(within["pval"], every["pval"])
    for name in ("x", "y"):
        part = within[within["type"] == name]
        assert part["pval"].is_monotonic_increasing
        np.testing.assert_array_equal(part["is_de_fdr_0.05"], part["padj"] <= 0.05)


def test_kinds_without_enough_samples_are_left_out_with_a_warning():
    sums, _ = simulated(6, 0, 0)
    units = units_of(sums, 2)
    units.n_cells[8:12] = 2
    study = tables.Study(units, Groups((), [], [(0, 1)]), ("x", "y"), None)
    with pytest.warns(UserWarning, match=r"^by: 'y' cannot be tested, for example since .*left out of the table"):
        found = tables.table(study, pd.RangeIndex(GENES), by="type", adjust="within", fdr_target=0.05, seed=0)
    assert found["type"].unique().tolist() == ["x"]
    units.n_cells[:4] = 2
    with pytest.raises(ValueError, match="No kind of cells is left; expected at least one with enough samples"):
        tables.table(study, pd.RangeIndex(GENES), by="type", adjust="within", fdr_target=0.05, seed=0)


def test_other_cells_of_a_paired_design_are_those_of_the_same_arm():
    rng = np.random.default_rng(7)
    observed = rng.poisson(20, (24, GENES)).astype(float)
    kind, sample, group = np.repeat([0, 1], 12), np.tile(np.repeat(np.arange(6), 2), 2), np.tile([0, 1], 12)
    units = tables.Units(kind, sample, group, np.full(24, 30), observed, observed, observed)
    rows = tables.rows_of(tables.Study(units, Groups((), [], [(0, 1)]), ("x", "y"), None), 0, (0, 1))
    np.testing.assert_array_equal(rows.sums.observed, observed[:12])
    np.testing.assert_array_equal(rows.sums.others, observed[12:])
    outside = units._replace(group=np.where(kind == 1, -1, group))
    rows = tables.rows_of(tables.Study(outside, Groups((), [], [(0, 1)]), ("x", "y"), None), 0, (0, 1))
    assert rows.sums.others is None  # their arm is unknown
