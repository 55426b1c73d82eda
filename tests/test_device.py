"""Counts on a device: the same minibatches as on the CPU, and no waiting for the device within an epoch."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from helpers import same_state, small_counts, small_vae, state_of
from test_train import TRAIN, VALIDATION, run

from sccvae import device, train
from sccvae.adam import Adam
from sccvae.data import Counts, shuffled
from sccvae.kernels import PLAIN, for_device
from sccvae.stored import Rows

CPU = torch.device("cpu")
CUDA = pytest.param(
    torch.device("cuda"),
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)


def assert_same(found, expected):
    for name, value in expected._asdict().items():
        if isinstance(value, torch.Tensor):
            other = getattr(found, name).cpu()
            assert other.dtype == value.dtype, name
            np.testing.assert_array_equal(other, value, err_msg=name)
        else:
            assert getattr(found, name) == value, name


@pytest.mark.parametrize("where", [CPU, CUDA])
@pytest.mark.parametrize("batch_size", [1, 7, 90])
def test_resident_minibatches_equal_those_of_the_cpu(where, batch_size):
    counts = small_counts(90, n_batches=3, covariates=True)
    groups = shuffled(np.arange(90), batch_size, np.random.default_rng(0))
    found = list(device.Resident(counts, where).minibatches(groups))
    assert len(found) == len(groups)
    for x, expected in zip(found, counts.minibatches(groups), strict=True):
        assert x.values.device.type == where.type
        assert_same(x, expected)


def test_resident_minibatches_with_cells_that_have_no_counts():
    dense = np.zeros((5, 4), dtype=np.float32)
    dense[1, 2], dense[3] = 3, (1, 0, 2, 5)
    counts = Counts.of(Rows.of(sp.csr_matrix(dense)))
    groups = [np.array([0, 2]), np.array([3, 0, 1]), np.array([4])]
    for x, cells in zip(device.Resident(counts, CPU).minibatches(groups), groups, strict=True):
        np.testing.assert_array_equal(x.dense(), dense[cells])
        assert_same(x, counts.minibatch(cells))


def test_on_the_cpu_the_counts_give_their_minibatches_themselves():
    counts = small_counts(10)
    assert device.minibatches_on(CPU, counts) == counts.minibatches


def test_memory_is_that_of_the_values_on_the_device_whatever_they_take_in_memory():
    counts = small_counts(50)
    x = counts.minibatch(slice(None))
    expected = sum(t.numel() * t.element_size() for t in (x.indptr, x.genes, x.values, x.codes, x.continuous))
    assert device._bytes(counts) == expected
    assert counts.stored.values.nbytes < x.values.numel() * x.values.element_size()


def test_training_does_not_depend_on_where_minibatches_are_gathered(monkeypatch):
    counts, states = small_counts(90, n_batches=2), []
    for source in (lambda _, counts: counts.minibatches, lambda where, c: device.Resident(c, where).minibatches):
        monkeypatch.setattr(train, "minibatches_on", source)
        vae = small_vae(counts)
        run(vae, counts)
        states.append(state_of(vae))
    assert same_state(*states)


@pytest.mark.parametrize("where", [CUDA])
@pytest.mark.parametrize("fits", [True, False])
def test_counts_stay_on_the_gpu_if_they_fit(where, fits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9 if fits else 10, 10**9))
    counts, groups = small_counts(90), [np.arange(30), np.arange(60, 90)]
    source = device.minibatches_on(where, counts)
    assert isinstance(getattr(source, "__self__", None), device.Resident) == fits
    for x, expected in zip(source(groups), counts.minibatches(groups), strict=True):
        assert x.values.is_cuda
        assert_same(x, expected)


@pytest.mark.parametrize("thinning", [0.0, 0.5])
@pytest.mark.parametrize("where", [CUDA])
def test_an_epoch_never_waits_for_the_gpu(where, thinning):
    """Steps as in `fit`, with every synchronisation an error; and the loss equals that of the CPU."""
    counts = small_counts(90, n_batches=2)
    vae = small_vae(counts, dropout_rate=0.0, thinning=thinning, kernels=for_device(where)).to(where).train()
    weights = list(vae.parameters())
    optimizer = Adam(weights, clip=50.0)
    noise, source = torch.Generator(where).manual_seed(0), device.minibatches_on(where, counts)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x in source([TRAIN, VALIDATION]):
            loss = vae(x, noise).loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)


@pytest.mark.parametrize("where", [CUDA])
def test_a_gpu_computes_the_elbo_of_the_cpu(where):
    counts = small_counts(90, n_batches=2)
    vae = small_vae(counts, kernels=PLAIN).eval()
    x = counts.minibatch(np.arange(90))
    with torch.no_grad():
        q_z, _ = vae.encoder(x)
        here = vae.likelihood.log_prob(x, vae.decoder(q_z.mean, x), x.log_size)[0]
        vae, x = vae.to(where), x.to(where)
        q_z, _ = vae.encoder(x)
        there = vae.likelihood.log_prob(x, vae.decoder(q_z.mean, x), x.log_size)[0]
    np.testing.assert_allclose(there.cpu(), here, rtol=1e-4)
