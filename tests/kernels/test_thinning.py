"""Molecules left out by the compiled loop: binomial numbers of them, from a stream of its own."""

import numpy as np
import pytest
from scipy import stats

from sccvae.kernels.cpu import thinning
from sccvae.kernels.cpu.thinning import ONE_BY_ONE

pytestmark = pytest.mark.loops

SHARES = np.array([0.05, 0.3, 0.5, 0.95], np.float32)


def thinned(values, hidden, seed=7):
    """What is left of `values`, (cells, genes), and its totals."""
    values = np.asarray(values, np.float32)
    seen, totals = np.full(values.size, np.nan, np.float32), np.full(len(values), np.nan, np.float32)
    indptr = np.arange(len(values) + 1) * values.shape[1]
    thinning.thin(np.uint64(seed), indptr, values.ravel(), np.asarray(hidden, np.float32), seen, totals)
    return seen.reshape(values.shape), totals


@pytest.mark.parametrize("n", [1, 2, 5, 30, ONE_BY_ONE - 1])
def test_few_molecules_are_left_out_binomially(n):
    seen, _ = thinned(np.full((len(SHARES), 40_000), n), SHARES, seed=n)
    for share, left in zip(SHARES, seen, strict=True):
        found = np.bincount((n - left).astype(int), minlength=n + 1)
        expected = stats.binom.pmf(np.arange(n + 1), n, share) * left.size
        often = expected > 10
        merged = [np.r_[counts[often], counts[~often].sum() + 1e-9] for counts in (found, expected)]
        assert stats.chisquare(*merged, sum_check=False).pvalue > 1e-4


@pytest.mark.parametrize("n", [ONE_BY_ONE, 1000, 2**20])
def test_many_are_left_out_as_many_on_average_and_as_unevenly(n):
    seen, _ = thinned(np.full((len(SHARES), 40_000), n), SHARES, seed=n)
    for share, left in zip(SHARES.astype(float), n - seen.astype(np.float64), strict=True):
        sd = np.sqrt(n * share * (1 - share))
        assert left.mean() == pytest.approx(n * share, abs=5 * sd / np.sqrt(left.size))
        assert left.std() == pytest.approx(sd, rel=0.03)
        assert stats.skew(left) == pytest.approx(0, abs=0.3)
        assert (left >= 0).all()
        assert (left <= n).all()


def test_whole_molecules_are_left_out_and_totals_are_sums():
    values = np.random.default_rng(0).integers(1, 200, (5, 300)) + 0.25  # a fraction of a molecule stays
    seen, totals = thinned(values, [0.0, 0.2, 0.5, 0.9, 0.0])
    np.testing.assert_array_equal(seen[[0, 4]], values[[0, 4]].astype(np.float32))
    np.testing.assert_array_equal((values - seen) % 1, 0)
    assert (seen[1:4] < values[1:4]).any(1).all()
    np.testing.assert_allclose(totals, seen.sum(1, dtype=np.float64), rtol=1e-6)


def test_the_seed_alone_decides():
    values, hidden = np.full((3, 500), 4), np.full(3, 0.5)
    first, again, other = (thinned(values, hidden, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5
    assert abs(np.corrcoef(first[0], first[1])[0, 1]) < 0.2  # cells do not repeat each other
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.1


def test_the_stream_is_splitmix64():
    """The first numbers after the seed 1234567, as published with the generator."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    found = [thinning._uniform(np.uint64(1234567), i) for i in range(5)]
    np.testing.assert_array_equal(found, [(z >> 11) * 2.0**-53 for z in known])


def test_cells_without_counts():
    seen, totals = thinned(np.zeros((2, 0)), [0.5, 0.5])
    assert seen.size == 0
    np.testing.assert_array_equal(totals, 0)
