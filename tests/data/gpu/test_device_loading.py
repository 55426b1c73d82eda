"""Counts on a device: the same minibatches as on the CPU, and no waiting for the device within an epoch."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from helpers import CPU, CUDA, run, same_state, small_counts, small_vae, state_of

from sccvae.data.counts import Counts, shuffled
from sccvae.data.gpu import device_loading
from sccvae.data.packed_rows import PackedRows
from sccvae.kernels.reference import PLAIN
from sccvae.training import steps


def assert_same(found, expected):
    """The same cells, be every entry of `found` stored or only what is not zero."""
    np.testing.assert_array_equal(found.dense().cpu(), expected.dense())
    assert found.genes.dtype == expected.genes.dtype
    found, expected = found._asdict(), expected._asdict()
    for name in ("full", "values", "genes", *(("indptr",) if found["full"] else ())):
        del found[name], expected[name]
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype, name
            np.testing.assert_array_equal(found[name].cpu(), value, err_msg=name)
        else:
            assert found[name] == value, name


@pytest.mark.parametrize("where", [CPU, CUDA])
@pytest.mark.parametrize("batch_size", [1, 7, 90])
def test_resident_minibatches_equal_those_of_the_cpu(where, batch_size):
    counts = small_counts(90, n_batches=3, covariates=True)
    groups = shuffled(np.arange(90), batch_size, np.random.default_rng(0))
    found = list(device_loading.DeviceCounts(counts, where)(groups))
    assert len(found) == len(groups)
    for x, expected in zip(found, counts.minibatches(groups), strict=True):
        assert x.values.device.type == where.type
        assert_same(x, expected)
        assert torch.equal(x._replace(full=False).dense(), x.dense())  # for who does not look at `full`
        assert_same(x.repeated(2), expected.repeated(2))


@pytest.mark.parametrize("where", [CPU, CUDA])
def test_counts_are_moved_in_parts(where, monkeypatch):
    counts = small_counts(90, n_batches=3, covariates=True)
    monkeypatch.setattr(device_loading, "_MOVED", 7)
    found, expected = device_loading.DeviceCounts(counts, where).all, counts.minibatch(slice(None))
    for name, value in expected._asdict().items():
        if isinstance(value, torch.Tensor):
            assert getattr(found, name).dtype == value.dtype
            assert torch.equal(getattr(found, name).cpu(), value)
        else:
            assert getattr(found, name) == value


def test_resident_minibatches_with_cells_that_have_no_counts():
    dense = np.zeros((5, 4), dtype=np.float32)
    dense[1, 2], dense[3] = 3, (1, 0, 2, 5)
    counts = Counts.of(PackedRows.of(sp.csr_matrix(dense)))
    groups = [np.array([0, 2]), np.array([3, 0, 1]), np.array([4])]
    for x, cells in zip(device_loading.DeviceCounts(counts, CPU)(groups), groups, strict=True):
        np.testing.assert_array_equal(x.dense(), dense[cells])
        assert_same(x, counts.minibatch(cells))


def test_on_the_cpu_the_counts_give_their_minibatches_themselves():
    counts = small_counts(10)
    assert device_loading.minibatches_on(CPU, counts) == counts.minibatches


def test_memory_is_that_of_the_values_on_the_device_whatever_they_take_in_memory():
    counts = small_counts(50)
    x = counts.minibatch(slice(None))
    expected = sum(t.numel() * t.element_size() for t in (x.indptr, x.genes, x.values, x.codes, x.continuous))
    assert device_loading._bytes(counts) == expected
    assert counts.stored.values.nbytes < x.values.numel() * x.values.element_size()


def test_training_does_not_depend_on_where_minibatches_are_gathered(monkeypatch):
    counts, states = small_counts(90, n_batches=2), []
    for source in (
        lambda _, counts: counts.minibatches,
        lambda where, counts: device_loading.DeviceCounts(counts, where),
    ):
        monkeypatch.setattr(steps, "minibatches_on", source)
        vae = small_vae(counts, kernels=PLAIN)
        run(vae, counts)
        states.append(state_of(vae))
    assert same_state(*states)


@pytest.mark.parametrize("where", [CUDA])
@pytest.mark.parametrize("fits", [True, False])
def test_counts_stay_on_the_gpu_if_they_fit(where, fits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9 if fits else 10, 10**9))
    counts, groups = small_counts(90), [np.arange(30), np.arange(60, 90)]
    source = device_loading.minibatches_on(where, counts)
    assert isinstance(source, device_loading.DeviceCounts) == fits
    for x, expected in zip(source(groups), counts.minibatches(groups), strict=True):
        assert x.values.is_cuda
        assert_same(x, expected)


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


@pytest.mark.parametrize("size", [1, 31, 32, 100, 1000])
@pytest.mark.parametrize("n_cells", [0, 1, 31, 32, 33, 64, 95, 96, 500])
def test_chunks_begin_at_multiples_and_none_is_small(n_cells, size):
    rows = [*device_loading.chunks(n_cells, size)]
    assert np.concatenate([np.arange(n_cells)[some] for some in rows] or [np.zeros(0)]).tolist() == [*range(n_cells)]
    assert all(some.start % device_loading.TOGETHER == 0 for some in rows)
    lengths = [some.stop - some.start for some in rows]
    assert min(lengths, default=n_cells) >= min(n_cells, device_loading.TOGETHER)
    assert max(lengths, default=0) < max(size, device_loading.TOGETHER) + device_loading.TOGETHER
