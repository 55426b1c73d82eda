"""Every operation of every table against the reference, whose gradients are autograd's, in the same precision."""

import numpy as np
import pytest
import torch
from helpers import minibatch_of, threads

from sccvae.kernels.cpu.operations import CPU
from sccvae.kernels.table import Heads, Operations, Rows
from sccvae.training.reference import REFERENCE
from sccvae.training.workspace import Workspace

TABLES = {"cpu": CPU}
N_CELLS, N_GENES, N_HIDDEN, N_LATENT = 11, 37, 19, 4


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cells():
    rng = np.random.default_rng(0)
    return minibatch_of(rng.poisson(0.7, (N_CELLS, N_GENES)), torch.float32)


def rows(n_rows, n, seed=0, own=False):
    row = torch.arange(N_CELLS) if own else torch.arange(N_CELLS) % n_rows
    return Rows(0.3 * normal(N_CELLS if own else n_rows, n, seed=seed), row, own)


def multiply(table, keep):
    a, b = normal(N_CELLS, N_HIDDEN), normal(N_HIDDEN, N_GENES, seed=1)
    out = normal(N_CELLS, N_GENES, seed=2)
    return [table.multiply(a, b, torch.empty(N_CELLS, N_GENES)), table.multiply(a, b, out, add=True)]


def sum_rows(table, keep):
    table.sum_rows(normal(N_CELLS, N_GENES), out := torch.empty(N_GENES))
    return [out]


def encode(table, keep, scaled=True):
    x, grad_weight = cells(), torch.empty(N_GENES, N_HIDDEN)
    out, saved = table.encode(keep, x, torch.linspace(0.5, 2, N_CELLS) if scaled else None, normal(N_GENES, N_HIDDEN))
    out = out.clone()
    table.encode_backward(saved, normal(N_CELLS, N_HIDDEN, seed=1), grad_weight)
    return [out, grad_weight]


def block(table, keep, rate=0.3):
    noise = torch.randint(-(2**15), 2**15, (N_CELLS, N_HIDDEN), generator=torch.Generator().manual_seed(0))
    bias, norm = rows(3, N_HIDDEN), [1 + 0.1 * normal(N_HIDDEN, seed=2), normal(N_HIDDEN, seed=3)]
    given = (normal(N_CELLS, N_HIDDEN, seed=4), bias, *norm, noise.to(torch.int16), -12000, rate)
    out, saved = table.block(keep, *given)
    out, grads = out.clone(), [torch.empty(N_HIDDEN) for _ in range(2)]
    return [out, *table.block_backward(keep, saved, normal(N_CELLS, N_HIDDEN, seed=5), *grads), *grads]


def gaussian(table, keep, kl_weight=0.7):
    head = 2 * normal(N_CELLS, 2 * N_LATENT)
    prior = normal(N_CELLS, seed=1), torch.linspace(0.5, 2, N_CELLS)
    given = (head, (-1.5, 1.0, 1e-3), normal(N_CELLS, seed=2), *prior, normal(N_CELLS, N_LATENT, seed=3))
    sample, variance, kl, saved = table.gaussian(keep, *given)
    found = [t.clone() for t in (sample, variance, kl)]
    return [*found, table.gaussian_backward(keep, saved, normal(N_CELLS, N_LATENT, seed=4), kl_weight)]


def mixture_prior(table, keep):
    prior = [normal(5), normal(5, N_LATENT, seed=1), 0.5 * normal(5, N_LATENT, seed=2)]
    grads = [torch.empty_like(t) for t in prior]
    return [*table.mixture_prior(keep, normal(N_CELLS, N_LATENT, seed=3), *prior, 1e-3, 0.4, *grads), *grads]


def labelled_prior(table, keep, labels=None):
    prior = [normal(5), normal(5, N_LATENT, seed=1), 0.5 * normal(5, N_LATENT, seed=2), normal(5, 3, seed=4)]
    grads = [torch.empty_like(t) for t in prior]
    labels = torch.arange(N_CELLS) % 4 - 1 if labels is None else labels
    given = (normal(N_CELLS, N_LATENT, seed=3), *prior, labels, 1e-3, 0.4, 1.7)
    return [*table.labelled_prior(keep, *given, *grads), *grads]


def own_batch_excess(table, keep, copies=1):
    batch = torch.arange(N_CELLS) // 4
    mean = normal(N_CELLS, N_LATENT) + batch[:, None]
    return [*table.own_batch_excess(keep, mean, batch, copies, 3.0, 0.05, 6)]


def count_likelihood(table, keep, name="zinb", own=False, dtype=torch.float32):
    x, log_theta = cells(), None if name == "poisson" else rows(2, N_GENES, seed=1, own=own)
    pi = (normal(N_CELLS, N_GENES, seed=3).to(dtype), normal(N_GENES, seed=4)) if name == "zinb" else (None, None)
    heads = Heads(
        normal(N_CELLS, N_GENES, seed=2).to(dtype), rows(3, N_GENES, own=own), x.log_size.clone(), log_theta, *pi
    )
    weight = -torch.linspace(0.5, 1.5, N_CELLS) / N_CELLS
    return [t for t in table.count_likelihood(keep, x, heads, 0.2, weight) if t is not None]


def adam(table, keep):
    arrays = [normal(96, seed=k) for k in range(5)]
    arrays[3].abs_()
    segments = np.array([3, 40]), np.array([17, 96]), np.array([0.1, 0.0], np.float32)
    table.adam(segments, arrays, (0.1, 1.2, 0.1, 0.001, 0.3, 1e-4, 0.9))
    return arrays


CASES = {
    "multiply": [multiply],
    "sum_rows": [sum_rows],
    "encode": [encode, lambda table, keep: encode(table, keep, scaled=False)],
    "block": [block, lambda table, keep: block(table, keep, rate=0.0)],
    "gaussian": [gaussian, lambda table, keep: gaussian(table, keep, kl_weight=0.0)],
    "mixture_prior": [mixture_prior],
    "labelled_prior": [labelled_prior],
    "own_batch_excess": [own_batch_excess],
    "count_likelihood": [
        lambda table, keep, name=name, own=own: count_likelihood(table, keep, name, own)
        for name in ("zinb", "nb", "poisson")
        for own in (False, True)
    ],
    "adam": [adam],
}


def test_every_operation_has_a_case():
    assert set(CASES) | {"encode_backward", "block_backward", "gaussian_backward"} == set(Operations._fields)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("operation", CASES)
@pytest.mark.parametrize("table", TABLES)
def test_an_operation_is_that_of_the_reference(table, operation, n_threads):
    for case in CASES[operation]:
        with threads(n_threads):
            found = case(TABLES[table], Workspace())
        expected = case(REFERENCE, Workspace())
        assert len(found) == len(expected) > 0
        assert sum(bool(reference.any()) for reference in expected) >= len(expected) - 1  # NB has no inflated zeros
        for ours, reference in zip(found, expected, strict=True):
            scale = float(reference.abs().max())
            np.testing.assert_allclose(ours.float(), reference.float(), rtol=1e-3, atol=2e-5 * max(scale, 1))


@pytest.mark.parametrize("name", ["zinb", "nb", "poisson"])
def test_the_likelihood_reads_and_writes_bfloat16(name):
    found, expected = (count_likelihood(table, Workspace(), name, dtype=torch.bfloat16) for table in (CPU, REFERENCE))
    for ours, reference in zip(found, expected, strict=True):
        assert ours.dtype == reference.dtype
        np.testing.assert_allclose(ours.float(), reference.float(), rtol=1e-2, atol=1e-3)


def test_a_prior_of_cells_without_labels_is_that_without_labels():
    found = labelled_prior(CPU, Workspace(), torch.full((N_CELLS,), -1))
    expected = mixture_prior(CPU, Workspace())
    assert not found[1].any()  # penalty
    assert not found[-1].any()  # gradient by the logits of labels
    for ours, plain in zip([found[0], *found[2:-1]], expected, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)


def test_a_wrong_gradient_is_seen():
    wrong = CPU._replace(gaussian_backward=lambda *arguments: 1.01 * CPU.gaussian_backward(*arguments))
    found, expected = gaussian(wrong, Workspace())[-1], gaussian(REFERENCE, Workspace())[-1]
    assert not np.allclose(found, expected, rtol=1e-3, atol=2e-5)
