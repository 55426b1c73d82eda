"""Corruption processes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import SIGMAS, close, denoiser, read_only, small_counts
from scipy import stats

from sccvae.corruption import (
    GaussianNoise,
    GeneDropout,
    SaltAndPepper,
    Thinning,
    described,
    processes_for,
    understood,
)


@pytest.mark.parametrize(("kept", "count"), [(0.3, 7), (0.6, 1), (0.9, 200)])
def test_thinning_is_binomial(kept, count):
    x = read_only(np.full((400, 100), count))
    draws = Thinning(kept)(x, np.random.default_rng(1))
    values = draws.toarray().ravel()
    close(values, kept * count, count * kept * (1 - kept))
    spread = stats.binom(count, kept)
    fourth = float(spread.stats("k")) * spread.var() ** 2 + 3 * spread.var() ** 2
    close((values - kept * count) ** 2, spread.var(), fourth - spread.var() ** 2)
    observed = np.bincount(values.astype(int), minlength=count + 1)
    likely = spread.pmf(np.arange(count + 1)) * values.size > 20
    expected = spread.pmf(np.arange(count + 1))[likely] * values.size
    chi2 = ((observed[likely] - expected) ** 2 / expected).sum()
    assert chi2 < stats.chi2(max(likely.sum() - 1, 1)).ppf(1 - 1e-6)


def test_gene_dropout_loses_whole_counts_of_single_genes():
    x = read_only(np.random.default_rng(0).integers(0, 5, (300, 200)))
    y = GeneDropout(0.3)(x, np.random.default_rng(1))
    lost = (y.toarray() == 0) & (x.toarray() > 0)
    np.testing.assert_array_equal(y.toarray()[~lost], x.toarray()[~lost])
    detected = x.toarray() > 0
    close(lost[detected], 0.3, 0.3 * 0.7)
    per_gene = lost.sum(0) / detected.sum(0)  # genes are hit alike, cells too
    assert np.abs(per_gene - 0.3).max() < SIGMAS * np.sqrt(0.21 / detected.sum(0).min())


def test_gaussian_noise_is_added_to_zeros_too():
    x = np.zeros((300, 200))
    x[:, :100] = 3
    noise = GaussianNoise(0.5)(read_only(x), np.random.default_rng(2)).toarray() - x
    for part in (noise[:, :100], noise[:, 100:]):
        close(part, 0, 0.25)
        close(part**2, 0.25, 2 * 0.25**2)
    assert stats.kstest(noise.ravel() / 0.5, "norm").pvalue > 1e-6


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_salt_and_pepper_flips_half_of_what_it_hits(rate):
    x = np.random.default_rng(0).integers(2, size=(300, 200))
    y = SaltAndPepper(rate)(read_only(x), np.random.default_rng(3)).toarray()
    assert set(np.unique(y)) == {0, 1}
    for value in (0, 1):
        close(y[x == value] != value, rate / 2, rate / 2 * (1 - rate / 2))


@pytest.mark.parametrize("process", [Thinning(), GeneDropout(), GaussianNoise(), SaltAndPepper()])
def test_corruption_leaves_its_input_and_returns_a_clean_matrix(process):
    x = read_only(np.random.default_rng(0).integers(2, size=(40, 30)))
    before = x.toarray()
    y, again = (process(x, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(x.toarray(), before)
    assert (y != again).nnz == 0
    assert (process(x, np.random.default_rng(5)) != y).nnz > 0
    assert y.dtype == np.float32
    assert y.indices.dtype == np.int32
    assert (y.data != 0).all()
    assert y.has_canonical_format


def test_processes_are_applied_one_after_another():
    counts = small_counts(300, 60)
    net = denoiser(counts, (Thinning(0.5), GeneDropout(0.2)), gene_likelihood="nb")
    total = counts.matrix.sum()
    kept = [net.corrupt(counts.matrix, np.random.default_rng(k)).sum() / total for k in range(20)]
    # A molecule survives both with probability 0.4; a count x has variance 0.8 (0.25 x + 0.25 x^2) - 0.16 x^2.
    x = counts.matrix.data.astype(float)
    variance = (0.8 * (0.25 * x + 0.25 * x**2) - 0.16 * x**2).sum() / total**2
    close(kept, 0.4, variance)


def test_defaults_fit_the_data_and_survive_being_written_down():
    for support in ("counts", "real", "binary"):
        processes = processes_for(support, None)
        assert {p.support for p in processes} == {support}
        assert understood(json.loads(json.dumps(described(processes)))) == processes
    assert processes_for("counts", Thinning(0.1)) == (Thinning(0.1),)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Thinning(1.0), ValueError, "Thinning: kept is 1.0; expected a probability above 0 and below 1"),
        (lambda: GeneDropout(-0.1), ValueError, "GeneDropout: lost is -0.1"),
        (lambda: SaltAndPepper(0.0), ValueError, "SaltAndPepper: rate is 0.0"),
        (lambda: GaussianNoise(0.0), ValueError, "GaussianNoise: sd is 0.0; expected a standard deviation above 0"),
        (lambda: GaussianNoise(np.inf), ValueError, "GaussianNoise: sd is inf"),
        (lambda: processes_for("counts", SaltAndPepper()), ValueError, "for binary data; expected Thinning() or Gene"),
        (lambda: processes_for("real", "noise"), TypeError, "corruption has 'noise'; expected GaussianNoise()"),
        (lambda: processes_for("binary", []), ValueError, "corruption is empty; expected SaltAndPepper()"),
    ],
)
def test_errors_of_corruption_say_what_is_expected(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)
