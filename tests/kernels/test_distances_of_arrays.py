"""Compiled loops give the same bits wherever their arrays lie, if these are `APART`."""

from __future__ import annotations

import numpy as np
import pytest

from sccvae.kernels.cpu import latent, layers
from sccvae.kernels.cpu.vector_math import apart
from sccvae.kernels.table import APART

f32 = np.float32
NONE = np.zeros((0, 0), np.int16)


def laid_out(gap: int, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Copies of float32 arrays, one after another in one piece of memory."""
    memory, found, at = np.zeros(sum(a.size + gap for a in arrays) + gap, f32), [], gap
    for a in arrays:
        found.append(memory[at : at + a.size].reshape(a.shape))
        found[-1][:] = a
        at += a.size + gap
    return found


def bits_of(work, arrays: list[np.ndarray], gap: int, order: np.ndarray) -> bytes:
    """What `work` leaves in arrays that lie in a given order."""
    placed = laid_out(gap, [arrays[k] for k in order])
    found = [placed[int(np.flatnonzero(order == k)[0])] for k in range(len(arrays))]
    work(*found)
    return b"".join(a.tobytes() for a in found)


def block(rng, n):
    row = rng.integers(0, 3, 20)
    shapes = [(20, n), (3, n), (n,), (n,), (20, n), (20,), (20, n)]

    def work(a, bias, gamma, beta, normal, scale, out):
        layers.block(a, bias, row, gamma, beta, NONE, 0, f32(0), normal, scale, out)

    return work, [rng.normal(size=shape).astype(f32) for shape in shapes]


def block_gradient(rng, n):
    row = rng.integers(0, 3, 20)
    shapes = [(20, n), (20, n), (n,), (20, n), (20,), (20, n), (3, n), (n,), (n,)]

    def work(grad_out, out, gamma, normal, scale, *filled):
        layers.block_gradient(grad_out, out, f32(0), gamma, row, normal, scale, *filled)

    return work, [rng.normal(size=shape).astype(f32) for shape in shapes]


def mixture_prior(rng, n):
    shapes = [(4, n), (5,), (5, 4), (5, 4), (5, n), (n,), (4, n), (5,), (5, 4), (5, 4)]

    def work(z, logits, mean, log_variance, *filled):
        latent.mixture_prior(z, logits, mean, log_variance, f32(1e-3), f32(0.5), *filled)

    return work, [rng.normal(size=shape).astype(f32) for shape in shapes]


def own_batch_excess(rng, n):
    batch = rng.integers(0, 2, n)

    def work(z, value, gradient):
        gradient[:] = latent.own_batch_excess((z, batch, 1, f32(3), f32(0.05), 5, value))

    return work, [rng.normal(size=shape).astype(f32) for shape in ((4, n), (n,), (4, n))]


@pytest.mark.parametrize("n", [8, 16, 20, 33, 64, 130])
@pytest.mark.parametrize("operation", [block, block_gradient, mixture_prior, own_batch_excess])
def test_bits_do_not_depend_on_where_arrays_lie(operation, n):
    rng = np.random.default_rng(n)
    work, arrays = operation(rng, n)
    expected = bits_of(work, arrays, 5000, np.arange(len(arrays)))
    for _ in range(30):
        assert bits_of(work, arrays, APART, rng.permutation(len(arrays))) == expected


def test_new_arrays_are_apart():
    a = apart(3, 5)
    assert a.shape == (3, 5)
    assert a.dtype == f32
    begin = (a.__array_interface__["data"][0] - a.base.__array_interface__["data"][0]) // 4
    assert begin == APART
    assert a.base.size - begin - a.size == APART
