"""The compiled passes between products, against torch in float64."""

import numpy as np
import pytest
import torch
from helpers import double, threads
from scipy.special import softmax

from sccvae.kernels.cpu import layers
from sccvae.modules.networks import Dropout

f32 = np.float32

pytestmark = pytest.mark.loops


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("n_genes", [3, 4, 9])
def test_the_sparse_product_in_blocks_of_genes_in_any_order(n_genes, n_threads):
    n_hidden, rng = layers.BLOCK // 4, np.random.default_rng(n_genes)  # blocks of four genes
    counts = rng.poisson(0.8, (5, n_genes)) * (np.arange(5)[:, None] != 2)  # a cell without molecules
    stored = [rng.permutation(np.flatnonzero(row)).astype(np.int32) for row in counts]
    genes, indptr = np.concatenate(stored), np.cumsum([0, *map(len, stored)])
    weight, scale = rng.normal(size=(n_genes, n_hidden)).astype(f32), rng.uniform(1, 3, 5).astype(f32)
    values, out = np.empty(len(genes), f32), np.full((5, n_hidden), np.nan, f32)
    cells = np.repeat(np.arange(5), np.diff(indptr))
    with threads(n_threads):
        layers.encode((indptr, genes, counts[cells, genes].astype(f32), scale, weight, values, out))
    factor = np.log1p(scale.astype(float)[:, None] * counts)
    np.testing.assert_allclose(values, factor[cells, genes], rtol=1e-6)
    np.testing.assert_allclose(out, factor @ weight.astype(float), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("n_hidden", [1, 7, 64])
def test_block(n_hidden, rate):
    rng = np.random.default_rng(0)
    n, rows = 11, 3
    normal = lambda *shape: rng.standard_normal(shape).astype(f32)  # noqa: E731
    a, bias, gamma, beta, grad_out = (
        normal(n, n_hidden),
        normal(rows, n_hidden),
        *normal(2, n_hidden),
        normal(n, n_hidden),
    )
    row, noise = rng.integers(rows, size=n), rng.integers(-(2**15), 2**15, size=(n, n_hidden), dtype=np.int16)
    kept, scale, out, lowest = np.empty_like(a), np.empty(n, f32), np.empty_like(a), Dropout(rate).lowest
    layers.block(a, bias, row, gamma, beta, noise, lowest, f32(rate), kept, scale, out)
    found = [np.full_like(t, np.nan) for t in (a, bias, gamma, beta)]
    layers.block_gradient(grad_out, out, f32(rate), gamma, row, kept, scale, *(found[i] for i in (0, 1, 2, 3)))

    inputs = double(a, bias, gamma, beta)
    h = torch.relu(torch.nn.functional.layer_norm(inputs[0] + inputs[1][row], (n_hidden,), *inputs[2:]))
    expected = h * torch.from_numpy(noise >= lowest) / (1 - rate)
    np.testing.assert_allclose(out, expected.detach(), rtol=2e-4, atol=2e-5)
    gradients = torch.autograd.grad(expected, inputs, torch.from_numpy(grad_out).double())
    for ours, reference in zip(found, gradients, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=2e-3, atol=5e-5)


def test_block_does_not_hide_what_is_not_a_number():
    a, ones, row = np.ones((2, 4), f32), np.ones((1, 4), f32), np.zeros(2, np.int64)
    a[1, 2] = np.nan
    normal, scale, out = np.empty_like(a), np.empty(2, f32), np.empty_like(a)
    layers.block(a, ones, row, ones[0], ones[0], np.empty((0, 0), np.int16), 0, f32(0), normal, scale, out)
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()


@pytest.mark.parametrize("segments", [[(0, 4), (4, 10)], [(0, 4)], [(4, 10)], [(3, 4), (6, 7)], []])
def test_a_step_of_adam_moves_the_segments_of_its_part_alone(segments):
    arrays, shares = np.ones((5, 10), f32), (f32(0.1), f32(0.001), f32(0.5))
    starts, stops = np.array(segments, np.int64).reshape(-1, 2).T
    given = (starts.copy(), stops.copy(), np.zeros(len(starts), f32), *arrays)
    layers._adam(2, 5, *given, f32(0.1), f32(1), *shares, f32(0), f32(1))
    weights, *_, average = arrays
    moved = [2 <= k < 5 and any(first <= k < last for first, last in segments) for k in range(10)]
    assert [w != 1 for w in weights] == moved
    np.testing.assert_allclose(average, (1 + weights) / 2, rtol=1e-6)


@pytest.mark.parametrize("add", [False, True])
def test_expression_over_a_wide_range_of_logits(add):
    rng = np.random.default_rng(3)
    logits, bias = (10 * rng.standard_normal(shape).astype(f32) for shape in ((7, 33), (3, 33)))
    row, factor = rng.integers(3, size=7), rng.gamma(2, 1, 7).astype(f32)
    before = rng.random((7, 33)).astype(f32)
    out = before.copy()
    layers.expression((logits, bias, row, factor, add, out))
    expected = factor[:, None] * softmax(logits.astype(float) + bias[row].astype(float), axis=1)
    np.testing.assert_allclose(out, expected + before if add else expected, rtol=2e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_expression_of_a_row_that_is_not_finite_is_no_number(bad):
    logits, row = np.zeros((2, 5), f32), np.zeros(2, np.int64)
    logits[0, 3] = bad
    out = np.zeros_like(logits)
    layers.expression((logits, np.zeros((1, 5), f32), row, np.ones(2, f32), False, out))
    assert np.isnan(out[0]).all()
    np.testing.assert_allclose(out[1], 0.2, rtol=1e-6)
