import numpy as np
import pytest
import scipy.sparse as sp

from sccvae.statistics.samples import regions


def cells(seed=0, n=800, genes=30, local=0.0):
    """Cells of eight samples, whose first quarter changes in the first gene by `local`; molecules in two parts."""
    rng = np.random.default_rng(seed)
    sample, where = rng.integers(0, 8, n), np.arange(n) < n // 4
    arms = (sample % 2).astype(float)
    rate = np.full((n, genes), 1.0) * rng.lognormal(0, 0.1, (8, genes))[sample]
    rate[where & (arms == 1), 0] *= 2.0**local
    counts = rng.poisson(rng.gamma(2.0, rate / 2.0)[None], (2, n, genes))
    effect = rng.normal(0, 0.1, (n, genes))
    effect[where, 0] += local
    return effect, [sp.csc_matrix(c.astype(float)) for c in counts], sample, arms


def test_the_region_of_a_local_effect_is_where_it_is():
    effect, counts, sample, arms = cells(local=2.0)
    columns, inside = regions.tested(effect, counts, np.full(800, 30.0), sample, arms)
    assert inside[0, :200].mean() > 0.6
    assert inside[0, 200:].mean() < 0.1
    assert columns["cells"][0] == inside[0].sum()
    assert np.isclose(columns["lfc_mean"][0], 2, atol=0.6)
    assert columns["padj"][0] < 1e-3
    assert (columns["padj"][1:] > 0.05).all()


def test_p_values_without_effects_are_uniform():
    found = []
    for seed in range(12):
        effect, counts, sample, arms = cells(seed)
        found.append(regions.tested(effect, counts, np.full(800, 30.0), sample, arms)[0]["pval"])
    found = np.concatenate(found)
    assert abs((found < 0.05).mean() - 0.05) < 0.03
    assert abs((found < 0.5).mean() - 0.5) < 0.08


def test_cells_of_neither_condition_are_in_no_region_and_genes_without_molecules_are_not_tested():
    effect, counts, sample, arms = cells()
    arms[:100] = np.nan
    counts[1] = sp.csc_matrix(counts[1].toarray() * (np.arange(30) > 0))
    columns, inside = regions.tested(effect, counts, np.full(800, 30.0), sample, arms)
    assert not inside[:, :100].any()
    assert np.isnan(columns["pval"][0])
    assert np.isfinite(columns["pval"][1:]).all()


def test_the_expected_error_is_that_of_molecules_and_of_samples():
    few, many = np.array([[2.0, 9.0, 9.0, 9.0]]), np.array([[9.0, 9.0, 9.0, 9.0]])
    arm = np.array([0, 0, 1, 1])
    assert regions.expected_error(few, np.array([99.0]), arm) == np.inf
    expected = np.sqrt(2 * (1 / (40 / 4) + regions.SCATTER**2) / 2)
    assert regions.expected_error(many, np.array([40.0]), arm)[0] == pytest.approx(expected)
