"""Streamed minibatches are those of resident counts; threads end, errors reach the caller, and nothing hangs."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from helpers import CPU, CUDA, run, same_state, small_counts, small_vae, state_of

import sccvae
from sccvae import simulate
from sccvae.data.counts import Counts, shuffled
from sccvae.data.gpu import streaming
from sccvae.data.gpu.device_loading import DeviceCounts, loading_of
from sccvae.data.gpu.streaming import StreamedCounts
from sccvae.data.packed_rows import PackedRows
from sccvae.kernels.reference import PLAIN, for_device
from sccvae.training import loop, steps


def counts_of(dense, **options) -> Counts:
    return Counts.of(PackedRows.of(sp.csr_matrix(np.asarray(dense, dtype=np.float32)), **options))


def sparse_counts(n: int = 90, *, large: bool = False, all_stored: bool = False) -> Counts:
    """Counts of cells with and without values, few of them far longer, stored as bytes unless `large`."""
    rng = np.random.default_rng(0)
    dense = rng.poisson(5 if all_stored else 0.03, (n, 40)).astype(np.float32)
    dense[3], dense[5, :30] = 0, 7
    if large:
        dense[7, 3] = 300
    counts = counts_of(dense)
    codes = rng.integers(0, 3, (n, 2))
    return replace(counts, codes=codes, n_levels=(3, 3), continuous=rng.random((n, 2), dtype=np.float32))


KINDS = {
    "sparse": sparse_counts(),
    "sparse, large": sparse_counts(large=True),
    "all, as bytes": sparse_counts(all_stored=True),
    "all, large": sparse_counts(large=True, all_stored=True),
    "real": counts_of(np.random.default_rng(0).normal(size=(90, 7)), counts=False),
    "small": small_counts(90, n_batches=3, covariates=True),
}


def loading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sccvae-loading"]


def copied(x):
    return x._replace(**{name: v.clone() for name, v in x._asdict().items() if isinstance(v, torch.Tensor)})


def assert_equal(found, expected):
    """Every field, also its type, to the bit."""
    for name, value in expected._asdict().items():
        other = getattr(found, name)
        if isinstance(value, torch.Tensor):
            assert other.dtype == value.dtype, name
            assert other.shape == value.shape, name
            assert torch.equal(other.cpu(), value.cpu()), name
        else:
            assert other == value, name


@pytest.mark.parametrize("where", [CPU, CUDA])
@pytest.mark.parametrize("batch_size", [1, 7, 32, 90])
@pytest.mark.parametrize("name", KINDS)
def test_streamed_minibatches_are_those_of_resident_counts(name, batch_size, where):
    counts = KINDS[name]
    streamed, resident = StreamedCounts(counts, where), DeviceCounts(counts, where)
    assert streamed.stores_all == (name in ("all, as bytes", "all, large", "real", "small"))
    for epoch in range(2):  # the arrays are used again
        groups = shuffled(np.arange(90), batch_size, np.random.default_rng(epoch))
        found = [copied(streamed.minibatch(cells)) for cells in streamed.cells(groups)]
        assert len(found) == len(groups)
        for x, expected in zip(found, resident(groups), strict=True):
            assert_equal(x, expected)
    assert loading_threads() == []


def test_minibatches_asked_for_at_once_do_not_share_memory():
    counts, groups = KINDS["sparse"], np.split(np.arange(90), 6)
    for x, expected in zip(list(StreamedCounts(counts, CPU)(groups)), DeviceCounts(counts, CPU)(groups), strict=True):
        assert_equal(x, expected)


def test_the_arrays_have_few_lengths_and_are_padded_with_an_entry_that_is_left_out():
    counts = KINDS["sparse"]
    streamed = StreamedCounts(counts, CPU)
    lengths = np.sort(np.diff(counts.stored.indptr))[::-1]
    kinds = set()
    for seed in range(20):
        groups = shuffled(np.arange(90), 10, np.random.default_rng(seed))
        for cells, group in zip(streamed.cells(groups), groups, strict=True):
            n, n_stored = cells.kind
            n_nonzero = int(np.diff(counts.stored.indptr)[group].sum())
            assert n == len(group)
            assert n_nonzero <= n_stored <= streamed.most(n) == lengths[:n].sum()
            kinds.add(cells.kind)
            arrays = streamed.layout(cells.kind).arrays(cells.data.numpy())
            assert (arrays["at"][n_nonzero:] == n * 40).all()
            assert (arrays["values"][n_nonzero:] == 0).all()
            assert (arrays["values"][:n_nonzero] > 0).all()
            assert np.array_equal(arrays["codes"], counts.codes[group])
    assert len(kinds) <= streaming._STEPS


def test_arrays_are_no_larger_than_all_values():
    for name, counts in KINDS.items():
        streamed = StreamedCounts(counts, CPU)
        per_value = {"all, as bytes": 1, "small": 1}.get(name, 4)
        fixed = 90 * (8 * counts.codes.shape[1] + 8 + 12 + 4 * counts.continuous.shape[1])
        n_bytes = streamed.layout((90, streamed.most(90))).n_bytes
        assert n_bytes - fixed <= 90 * counts.n_genes * per_value, name


def test_every_array_begins_where_its_type_may():
    for counts in KINDS.values():
        streamed = StreamedCounts(counts, CPU)
        for n in (1, 3, 90):
            for _, kind, _, at in streamed.layout(streamed.kind_of(n, 5))._places():
                assert at.start % np.dtype(kind).itemsize == 0


def test_a_minibatch_without_values_and_repeated_cells():
    counts = counts_of(np.eye(4)[[0, 0, 1]] * [[0], [1], [1]])
    groups = [np.array([0]), np.array([0, 0]), np.array([1, 1]), np.array([2, 1, 2, 1, 2, 1])]
    for x, expected in zip(StreamedCounts(counts, CPU)(groups), DeviceCounts(counts, CPU)(groups), strict=True):
        assert_equal(x, expected)


def test_larger_groups_take_larger_arrays_and_smaller_ones_do_not():
    streamed = StreamedCounts(KINDS["sparse"], CPU)
    sizes = []
    for n in (10, 30, 10):
        groups = np.split(np.arange(90), 90 // n)
        for x, expected in zip(streamed(groups), DeviceCounts(KINDS["sparse"], CPU)(groups), strict=True):
            assert_equal(x, expected)
        sizes.append(len(streamed._here[0]))
    assert sizes[0] < sizes[1] == sizes[2]


# ------------------------------------------------------------------------------------------------------------- threads


class Failing:
    """Counts of which a minibatch raises an error, or that stop early."""

    def __init__(self, counts: Counts, at: int, error: BaseException | None):
        self.counts, self.at, self.error = counts, at, error

    def __getattr__(self, name):
        return getattr(self.counts, name)

    def __len__(self):
        return len(self.counts)

    def minibatches(self, groups):
        yield from self.counts.minibatches(groups[: self.at])
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize("error", [OSError("the disk"), MemoryError(), KeyboardInterrupt()])
def test_an_error_of_the_thread_reaches_the_caller(at, error):
    found: list = []
    streamed = StreamedCounts(Failing(KINDS["sparse"], at, error), CPU)
    with pytest.raises(type(error)):
        found.extend(streamed.cells(np.split(np.arange(90), 6)))
    assert len(found) == at
    assert loading_threads() == []


def test_too_few_minibatches_are_an_error():
    streamed = StreamedCounts(Failing(KINDS["sparse"], 2, None), CPU)
    with pytest.raises(RuntimeError, match="fewer minibatches than groups"):
        list(streamed.cells(np.split(np.arange(90), 6)))


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_the_thread_ends_where_the_reader_stops(taken):
    streamed = StreamedCounts(KINDS["sparse"], CPU)
    cells = streamed.cells(np.split(np.arange(90), 30))
    for _ in range(taken):
        next(cells)
    assert len(loading_threads()) == (taken > 0)
    cells.close()
    assert loading_threads() == []
    assert len(list(streamed.cells(np.split(np.arange(90), 30)))) == 30  # and can be read again


def test_the_thread_ends_where_the_reader_fails():
    def read():
        for k, _ in enumerate(StreamedCounts(KINDS["sparse"], CPU).cells(np.split(np.arange(90), 30))):
            if k == 4:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
    assert loading_threads() == []


def test_no_more_than_the_arrays_are_filled_ahead(monkeypatch):
    filled: list[int] = []
    original = StreamedCounts._write
    monkeypatch.setattr(StreamedCounts, "_write", lambda self, x, arrays: filled.append(0) or original(self, x, arrays))
    for k, _ in enumerate(StreamedCounts(KINDS["sparse"], CPU).cells(np.split(np.arange(90), 30))):
        assert k < len(filled) <= k + 1 + streaming._BUFFERS


# ------------------------------------------------------------------------------------------------------------- training


def as_on_a_gpu(monkeypatch, source, *, recorded: bool = True, kinds: list | None = None):
    """Let `fit` take steps on the CPU as it takes them on a GPU, from resident or from streamed counts."""
    original = steps.steps

    def those_of_a_gpu(vae, counts, *choices):
        loaded, (_, step) = source(counts, CPU), original(vae, counts, *choices)
        if not recorded:
            return loaded, step
        return loaded.cells, steps.recorded(step, loaded, choices[1], steps.LARGEST)

    monkeypatch.setattr(loop, "steps", those_of_a_gpu)
    monkeypatch.setattr(steps, "cuda_graph", lambda work, noise: (kinds.append(0) if kinds is not None else 0) or work)


@pytest.mark.parametrize("recorded", [True, False])
def test_training_does_not_depend_on_streaming(monkeypatch, recorded):
    counts, states = small_counts(90, n_batches=2), []
    for source in (DeviceCounts, StreamedCounts):
        vae = small_vae(counts, kernels=PLAIN)
        as_on_a_gpu(monkeypatch, source, recorded=recorded)
        run(vae, counts)
        states.append(state_of(vae))
    assert same_state(*states)


def test_a_step_is_recorded_for_few_kinds(monkeypatch):
    kinds: list = []
    as_on_a_gpu(monkeypatch, StreamedCounts, kinds=kinds)
    counts = sparse_counts()
    counts = replace(counts, codes=np.zeros((90, 1), np.int64), n_levels=(1,), continuous=np.zeros((90, 0), np.float32))
    run(small_vae(counts, kernels=PLAIN), counts, max_epochs=8)
    assert 0 < len(kinds) <= 2 * 2 * streaming._STEPS


@pytest.mark.parametrize("error", [KeyboardInterrupt(), loop.TrainingError("x")])
def test_no_thread_outlives_a_run_that_ends_early(monkeypatch, error):
    as_on_a_gpu(monkeypatch, StreamedCounts)
    taken: list[int] = []

    def record(work, noise):
        def fails():
            taken.append(0)
            if len(taken) == 3:
                raise error
            return work()

        return fails

    monkeypatch.setattr(steps, "cuda_graph", record)
    counts = small_counts(90)
    vae = small_vae(counts, kernels=PLAIN)
    if isinstance(error, KeyboardInterrupt):
        assert run(vae, counts, max_epochs=10).stopped == "interrupted"
    else:
        with pytest.raises(loop.TrainingError):
            run(vae, counts, max_epochs=10)
    assert loading_threads() == []


def test_a_run_says_where_the_counts_were():
    for found, expected in ((StreamedCounts, "streamed"), (DeviceCounts, "resident")):
        source = found(KINDS["small"], CPU)
        assert loading_of(source.cells) == loading_of(source) == ""  # on the CPU there is no other
        source.device = torch.device("cuda")
        assert loading_of(source.cells) == loading_of(source) == expected
    assert loading_of(KINDS["small"].minibatches) == ""


@pytest.mark.parametrize("source", [DeviceCounts, StreamedCounts])
def test_counts_in_a_file_give_the_same_minibatches(tmp_path, source):
    adata = simulate.simulate(300, 40, keep_truth=False)
    models = [sccvae.SCCVAE(adata, batch_key="batch", memory_budget=budget) for budget in (1e9, 0)]
    kept, stored = (model._counts for model in models)
    assert stored.stored.in_file
    groups = shuffled(np.arange(300), 32, np.random.default_rng(0))
    for x, expected in zip(source(stored, CPU)(groups), source(kept, CPU)(groups), strict=True):
        assert_equal(x, expected)
    cells = StreamedCounts(stored, CPU).cells(groups)
    next(cells)
    cells.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("sccvae-loading", "sccvae-reader"))]


def test_the_model_says_where_the_counts_were(adata, fit, monkeypatch):
    model = fit(adata, 1)
    assert "counts" not in repr(model).splitlines()[2]
    as_on_a_gpu(monkeypatch, StreamedCounts)
    monkeypatch.setattr(loop, "loading_of", lambda minibatches: minibatches.__self__.loading)
    model.train(1, progress_bar=False)
    assert repr(model).splitlines()[2].endswith("weights on cpu, counts streamed")


# ------------------------------------------------------------------------------------------------------------ on a GPU


@pytest.mark.parametrize("where", [CUDA])
def test_a_gpu_computes_the_same_from_streamed_and_from_resident_counts(where, monkeypatch):
    """Every weight to the last bit: counts, order and noise are the same."""
    counts, states = small_counts(90, n_batches=2), []
    for free in (10**9, 10):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10**9))
        vae = small_vae(counts, kernels=for_device(where)).to(where)
        progress = run(vae, counts, n_draws=2)
        assert progress.loading == ("resident" if free > 10 else "streamed")
        states.append(state_of(vae))
    assert same_state(*states)


@pytest.mark.parametrize("where", [CUDA])
def test_many_streamed_minibatches_are_never_overwritten_while_they_are_read(where):
    """Slow steps on the device, fast copies: each minibatch is read long after the next ones were asked for."""
    rng = np.random.default_rng(0)
    counts = counts_of(rng.poisson(0.05, (4096, 2000)))
    streamed, resident = StreamedCounts(counts, where), DeviceCounts(counts, where)
    groups = shuffled(np.arange(4096), 64, rng)
    found = []
    for cells in streamed.cells(groups):
        torch.cuda._sleep(2_000_000)  # cycles, about a millisecond
        found.append(streamed.minibatch(cells).values.clone())
    for values, expected in zip(found, resident(groups), strict=True):
        assert torch.equal(values, expected.values)


@pytest.mark.parametrize("where", [CUDA])
def test_streaming_never_waits_for_the_gpu(where):
    counts = KINDS["sparse"]
    streamed = StreamedCounts(counts, where)
    list(streamed.cells(np.split(np.arange(90), 6)))  # allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        for cells in streamed.cells(np.split(np.arange(90), 6)):
            streamed.minibatch(cells)
    finally:
        torch.cuda.set_sync_debug_mode("default")
