"""The penalty for batches that lie apart: against its formula in float64, and what it does and leaves alone."""

import math

import numpy as np
import pytest
import torch
from helpers import threads

from sccvae.kernels.cpu import latent
from sccvae.modules import batch_penalty
from sccvae.modules.batch_penalty import NEIGHBOURS, SMOOTHING, WIDTH, expected_share, own_batch_excess


def codes(n_cells=40, n=3, n_batches=3, seed=0):
    """Codes, float64, of batches that lie apart a little, and the batches."""
    rng = np.random.default_rng(seed)
    batch = rng.integers(n_batches, size=n_cells)
    return rng.standard_normal((n_cells, n)) + 0.7 * batch[:, None], batch


def of_arrays(z, batch, copies=1):
    return own_batch_excess(torch.from_numpy(z), torch.from_numpy(batch), copies)


def bandwidths(z, copies):
    """For each cell the squared distances at which its kernel is 1, and that over which it falls by a factor e."""
    result = []
    for i in range(len(z)):
        square = sorted(((z[i] - z[j]) ** 2).sum() for j in range(len(z)) if j // copies != i // copies)
        last = square[min(NEIGHBOURS, len(square)) - 1]
        result.append((square[0], max(last - square[0], 1e-6) / WIDTH))
    return result


def reference(z, batch, kernels, copies=1):
    """Cell by cell, with bandwidths that are given: no gradient goes through these."""
    result = []
    for i, (first, scale) in enumerate(kernels):
        others = [j for j in range(len(z)) if j // copies != i // copies]
        weight = {j: math.exp((first - ((z[i] - z[j]) ** 2).sum()) / scale) for j in others}
        share = sum(weight[j] for j in others if batch[j] == batch[i]) / sum(weight.values())
        expected = sum(batch[j] == batch[i] for j in others) / len(others)
        smooth = (share + SMOOTHING * expected) / (1 + SMOOTHING)
        result.append(max(0.0, math.log(smooth / expected)) if expected else 0.0)
    return np.array(result)


@pytest.mark.parametrize(
    ("n_cells", "n_batches", "copies"), [(40, 3, 1), (9, 2, 1), (30, 2, 2), (4, 2, 1), (40, 20, 1)]
)
def test_it_is_the_formula(n_cells, n_batches, copies):
    z, batch = codes(n_cells // copies, n_batches=n_batches)
    z, batch = np.repeat(z, copies, 0), np.repeat(batch, copies)
    z += 1e-3 * (np.arange(n_cells) % copies)[:, None]  # dropout tells copies apart
    found, expected = of_arrays(z, batch, copies), reference(z, batch, bandwidths(z, copies), copies)
    assert (expected > 0).any()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("copies", [1, 2])
def test_its_gradient_is_that_of_the_formula_at_fixed_bandwidths(copies):
    z, batch = codes(24, 2, 2)
    batch = np.repeat(batch[::copies], copies)
    kernels, step = bandwidths(z, copies), 1e-6
    variable = torch.from_numpy(z).requires_grad_()
    own_batch_excess(variable, torch.from_numpy(batch), copies).sum().backward()
    for i, d in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[i, d] += step
        down[i, d] -= step
        slope = (reference(up, batch, kernels, copies) - reference(down, batch, kernels, copies)).sum() / (2 * step)
        assert float(variable.grad[i, d]) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize(("n_cells", "n_batches", "copies"), [(5, 2, 1), (128, 4, 1), (30, 2, 2)])
@pytest.mark.parametrize("n", [1, 20])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_compiled_it_is_the_same(n_cells, n, n_batches, copies, n_threads):
    z, batch = codes(n_cells, n, n_batches)
    batch[:2] = n_batches  # beside a batch of two cells
    variable = torch.from_numpy(z).requires_grad_()
    expected = own_batch_excess(variable, torch.from_numpy(batch), copies)
    expected.sum().backward()
    z32, value = np.ascontiguousarray(z.T, np.float32), np.full(n_cells, np.nan, np.float32)
    numbers = copies, np.float32(WIDTH), np.float32(SMOOTHING), min(NEIGHBOURS, n_cells - copies)
    with threads(n_threads):
        by_z = latent.own_batch_excess((z32, batch, *numbers, value)).T
    assert (value > 0).any()
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(by_z, variable.grad, rtol=0, atol=1e-3 * float(variable.grad.abs().max()))


def test_batches_apart_cost_the_log_of_what_is_expected_and_mixed_ones_next_to_nothing():
    rng = np.random.default_rng(0)
    batch = np.repeat([0, 1], [200, 100])
    z = rng.standard_normal((300, 4))
    apart = of_arrays(z + 1000 * batch[:, None], batch)
    expected = np.where(batch == 0, 199 / 299, 99 / 299)
    np.testing.assert_allclose(apart, np.log((1 + SMOOTHING * expected) / (1 + SMOOTHING) / expected), rtol=1e-9)
    assert float(of_arrays(z, batch).mean()) < 0.2 * float(apart.mean())


def test_nothing_pulls_a_kind_of_cells_that_one_batch_alone_has():
    rng = np.random.default_rng(1)
    lone, shared = 100 + rng.standard_normal((30, 3)), rng.standard_normal((90, 3))
    batch = np.r_[np.zeros(30, int), np.arange(90) % 3]
    shared += 0.8 * (np.arange(90) % 3)[:, None]  # batches lie apart in the others
    z = torch.from_numpy(np.r_[lone, shared]).requires_grad_()
    own_batch_excess(z, torch.from_numpy(batch)).sum().backward()
    assert float(z.grad[30:].abs().max()) > 0.01
    assert float(z.grad[:30].abs().max()) < 1e-9


def test_steps_against_the_gradient_mix_batches():
    z, batch = codes(120, 2, 2)
    z[:, 0] += 2 * batch
    z = torch.from_numpy(z).requires_grad_()
    batch = torch.from_numpy(batch)
    before = float(own_batch_excess(z, batch).mean().detach())
    for _ in range(100):
        (by_z,) = torch.autograd.grad(own_batch_excess(z, batch).sum(), z)
        z = (z - 0.1 * by_z).detach().requires_grad_()
    assert float(own_batch_excess(z, batch).mean().detach()) < 0.5 * before


def test_it_depends_on_neither_scale_nor_place_nor_order():
    z, batch = codes()
    order = np.random.default_rng(2).permutation(len(z))
    expected = of_arrays(z, batch)
    np.testing.assert_allclose(of_arrays(7 * z + 3, batch), expected, rtol=1e-9)
    np.testing.assert_allclose(of_arrays(z[order], 2 - batch[order]), expected[order], rtol=1e-9)


@pytest.mark.parametrize("batch", [[0] * 20, [0] * 19 + [1]], ids=["one batch", "and a cell of another"])
def test_without_two_batches_of_several_cells_nothing_is_charged(batch):
    z = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = own_batch_excess(z, torch.tensor(batch))
    value.sum().backward()
    value = value.detach()
    assert float(value[-1]) == 0
    assert float(value.max()) < math.log(20 / 18)
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize(("n_cells", "copies"), [(1, 1), (2, 1), (4, 2)])
def test_too_few_cells_to_compare(n_cells, copies):
    z = torch.randn(n_cells, 2).requires_grad_()
    value = own_batch_excess(z, torch.arange(n_cells) // copies, copies)
    value.sum().backward()
    assert value.tolist() == [0.0] * n_cells
    assert not z.grad.any()


def test_expected_share_leaves_out_the_cell_itself():
    batch = torch.tensor([0, 0, 0, 0, 1, 1])
    np.testing.assert_allclose(expected_share(batch), [3 / 5] * 4 + [1 / 5] * 2)
    np.testing.assert_allclose(expected_share(batch, 2), [2 / 4] * 4 + [0] * 2)


def test_cells_in_one_place_have_finite_gradients():
    z = torch.zeros(20, 2, requires_grad=True)
    own_batch_excess(z, torch.arange(20) % 2).sum().backward()
    assert torch.isfinite(z.grad).all()
    assert batch_penalty.NEIGHBOURS < 20
