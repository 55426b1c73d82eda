"""Gene programs against brute force: least squares, lines between cells, rotations, resamples."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import few_steps, small_counts, small_vae

from sccvae.data.counts import Minibatch
from sccvae.statistics import gene_programs
from sccvae.statistics.gene_programs import programs, resampled, stability, table, varimax


def chunks(y, size=7):
    return ((slice(i, i + size), y[i : i + size]) for i in range(0, len(y), size))


@pytest.fixture
def sparse():
    """z, y and the true loadings of four programs with effects on other genes each, in a skewed basis of z."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((500, 4))
    scores = scores - scores.mean(0)
    scores = scores @ np.linalg.inv(np.linalg.cholesky(np.cov(scores.T, bias=True))).T
    loadings = np.zeros((40, 4))
    for k, size in enumerate((4.0, 3.0, 2.0, 1.0)):
        loadings[10 * k : 10 * k + 10, k] = size * rng.uniform(0.5, 1, 10)
    loadings[0, 0] *= -1
    z = scores @ rng.standard_normal((4, 4)) + rng.standard_normal(4)
    return z, scores @ loadings.T + rng.standard_normal(40), loadings, scores


def test_sparse_programs_are_found_in_any_basis_of_z(sparse):
    z, y, loadings, scores = sparse
    (found,) = programs(z, chunks(y))
    np.testing.assert_allclose(found.loadings, loadings, atol=1e-6)
    np.testing.assert_allclose((z - found.centre) @ found.axes, scores, atol=1e-6)
    np.testing.assert_allclose(found.fraction, (loadings**2).sum(0) / (loadings**2).sum())


def test_programs_sum_to_the_fit_of_least_squares_whatever_the_chunks():
    rng = np.random.default_rng(1)
    z, y = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 3)), rng.standard_normal((60, 9))
    (found,) = programs(z, chunks(y), 3)
    design = np.column_stack([np.ones(60), z])
    fit = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    scores = (z - found.centre) @ found.axes
    np.testing.assert_allclose(scores @ found.loadings.T + y.mean(0), fit, atol=1e-10)
    np.testing.assert_allclose(scores.T @ scores / 60, np.eye(3), atol=1e-10)
    assert found.fraction.sum() == pytest.approx(fit.var(0).sum() / y.var(0).sum())
    assert (np.diff(found.fraction) <= 0).all()
    assert ((found.loadings**3).sum(0) > 0).all()
    (other,) = programs(z, [(slice(None), y)], 3)
    np.testing.assert_allclose(other.loadings, found.loadings, atol=1e-12)


def test_slopes_are_the_jacobian_averaged_over_the_lines_between_cells():
    """By the sum over all pairs of cells of the mean Jacobian on the line, times dz dz^T, in float64."""
    counts = small_counts()
    vae = small_vae(counts)
    few_steps(vae, counts, 30)
    vae.double().eval()
    z = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 3)))
    x = Minibatch.of_covariates(np.zeros((1, 1), dtype=np.int64), 0, counts.n_genes)
    x = x._replace(continuous=x.continuous.double())

    def y(point):
        logits = vae.decoder(point[None], x, only_logits=True).logits[0]
        return torch.log2(50 * torch.softmax(logits, 0) + 0.01)

    with torch.no_grad():
        (found,) = programs(z.numpy(), [(slice(None), torch.stack([y(point) for point in z]).numpy())], 3)
    numerator, denominator = np.zeros((counts.n_genes, 3)), np.zeros((3, 3))
    nodes = (torch.arange(3000, dtype=torch.float64) + 0.5) / 3000
    jacobian = torch.func.vmap(torch.func.jacrev(y))
    for a, b in itertools.combinations(z, 2):
        on_line = jacobian(a + nodes[:, None] * (b - a)).mean(0).detach().numpy()
        outer = np.outer(b - a, b - a)
        numerator += on_line @ outer
        denominator += outer
    expected = numerator @ np.linalg.inv(denominator)
    np.testing.assert_allclose(found.loadings @ found.axes.T, expected, atol=5e-4 * np.abs(expected).max())


@pytest.mark.parametrize("seed", range(5))
def test_varimax_is_the_best_of_all_angles(seed):
    loadings = np.random.default_rng(seed).standard_normal((30, 2)) ** 3
    angle = np.linspace(0, np.pi, 2001)
    turns = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    best = ((loadings @ turns) ** 2).var(1).sum(1).max()
    rotation = varimax(loadings)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(2), atol=1e-12)
    assert ((loadings @ rotation) ** 2).var(0).sum() >= best * (1 - 1e-6)


def test_weights_are_repeated_cells(sparse):
    z, y, *_ = sparse
    y = y + np.random.default_rng(3).standard_normal(y.shape)
    weights = resampled(len(z), 5)
    assert (weights[0] == 1).all()
    np.testing.assert_array_equal(weights.sum(1), len(z))
    for found, weight in zip(programs(z, chunks(y), 4, weights), weights, strict=True):
        cells = np.repeat(np.arange(len(z)), weight.astype(int))
        (expected,) = programs(z[cells], [(slice(None), y[cells])], 4)
        np.testing.assert_allclose(found.loadings, expected.loadings, atol=1e-6)
        np.testing.assert_allclose(found.fraction, expected.fraction, atol=1e-9)


def test_as_many_directions_are_kept_as_explain_98_percent(sparse):
    z, y, loadings, _ = sparse
    (found,) = programs(z, chunks(y / np.where(np.arange(40) < 30, 1, 100)))
    assert found.loadings.shape == (40, 3)
    assert (loadings[30:] != 0).sum() == 10


def test_stability_is_the_best_correlation_averaged_over_sets():
    rng = np.random.default_rng(0)
    mine, first, second = rng.standard_normal((3, 20, 4))
    first[:, 2] = -3 * mine[:, 1] + 5
    expected = []
    for other in (first, second):
        expected.append([max(abs(np.corrcoef(a, b)[0, 1]) for b in other.T) for a in mine.T])
    found = stability(mine, [first, second])
    np.testing.assert_allclose(found, np.mean(expected, 0))
    assert stability(mine, [first])[1] == pytest.approx(1)
    np.testing.assert_array_equal(stability(np.full((5, 2), 0.1), [np.ones((5, 1))]), 0)
    np.testing.assert_array_equal(stability(mine, [np.empty((20, 0))]), 0)


def test_the_table_has_both_directions_in_order():
    found = table(np.array([[1.0, -1], [3, 0], [-2, 0]]), pd.Index(["a", "b", "c"]), ["p", "q"], 1)
    rows = [("p", "up", "b", 3.0, 1), ("p", "down", "c", -2.0, 1), ("q", "down", "a", -1.0, 1)]
    assert list(found.itertuples(index=False, name=None)) == rows


def test_cells_without_differences_are_one_sentence(sparse):
    z, y, *_ = sparse
    with pytest.raises(ValueError, match=r"^gene_programs found cells with one latent representation; expected cells"):
        programs(np.ones((5, 3)), chunks(y[:5]))
    flat = z[:, [0, 0, 1]]
    with pytest.raises(ValueError, match=r"^n_programs is 3; expected at most 2, the directions in which cells vary"):
        programs(flat, chunks(y), 3)
    assert programs(flat, chunks(y), 3, strict=False)[0].loadings.shape == (40, 2)


def test_resamples_of_few_cells_may_have_fewer_directions():
    rng = np.random.default_rng(0)
    weights = np.array([[1.0, 1, 1], [3, 0, 0], [0, 2, 1]])
    found = programs(rng.standard_normal((3, 4)), chunks(rng.standard_normal((3, 6))), 2, weights)
    assert [one.loadings.shape for one in found] == [(6, 2), (6, 0), (6, 1)]
    assert gene_programs.RESAMPLES == 3
