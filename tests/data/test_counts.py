"""`Counts` and `Minibatch` against plain numpy; split and shuffle as properties over many inputs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaln

from sccvae.data.counts import Counts, Minibatch, shuffled, split
from sccvae.data.packed_rows import PackedRows


@pytest.fixture
def dense():
    """20 cells x 7 genes; small counts, counts beyond the table of log-factorials, and a cell without any."""
    rng = np.random.default_rng(0)
    values = rng.poisson(0.7, (20, 7)) + 1000.0 * (rng.random((20, 7)) < 0.1)
    values[3] = 0
    values[4, :3] = [256, 257, 2**24]
    return values.astype(np.float32)


@pytest.fixture
def counts(dense):
    codes = np.stack([np.arange(20) % 3, np.arange(20) % 2], axis=1)
    continuous = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
    return Counts.of(PackedRows.of(sp.csr_matrix(dense)), codes=codes, n_levels=(3, 2), continuous=continuous)


def test_totals_and_log_factorials_agree_with_their_definitions(counts, dense):
    seen = np.arange(20) != 3
    np.testing.assert_allclose(counts.log_total[seen], np.log(dense.sum(1, dtype=float)[seen]), rtol=1e-6)
    np.testing.assert_allclose(counts.log_factorial, gammaln(dense.astype(float) + 1).sum(1), rtol=1e-6)
    np.testing.assert_array_equal(counts.log_size, counts.log_total)
    assert counts.log_factorial[3] == 0
    assert (len(counts), counts.n_genes, counts.n_levels) == (20, 7, (3, 2))


@pytest.mark.parametrize("power", [1, 2])
def test_gene_means_agree_with_their_definition(counts, dense, power):
    np.testing.assert_allclose(counts.gene_means(power), (dense.astype(float) ** power).mean(0), rtol=1e-12)


def test_real_values_have_neither_totals_nor_factorials():
    counts = Counts.of(
        PackedRows.of(sp.csr_matrix(np.float32([[-1.5, 0], [2.5, -3]])), counts=False), nonnegative=False
    )
    np.testing.assert_array_equal([counts.log_total, counts.log_factorial, counts.log_size], np.zeros((3, 2)))
    np.testing.assert_array_equal(counts.codes, [[0], [0]])


@pytest.mark.parametrize("name", ["codes", "continuous", "log_size", "log_total", "log_factorial"])
def test_arrays_are_read_only(counts, name):
    with pytest.raises(ValueError, match="read-only"):
        getattr(counts, name)[0] = 1


@pytest.mark.parametrize("name", ["values", "genes", "indptr", "large_at", "large"])
def test_stored_values_are_read_only(counts, name):
    with pytest.raises(ValueError, match="read-only"):
        getattr(counts.stored, name)[0] = 1


def test_the_matrix_is_float32_and_its_own(counts, dense):
    matrix = counts.matrix
    assert (matrix.dtype, matrix.indices.dtype, matrix.has_canonical_format) == (np.float32, np.int32, True)
    np.testing.assert_array_equal(matrix.toarray(), dense)
    matrix.data[:] = 0
    np.testing.assert_array_equal(counts.matrix.toarray(), dense)


def test_attributes_cannot_be_replaced(counts):
    with pytest.raises(AttributeError, match="cannot assign"):
        counts.n_levels = (1,)


@pytest.mark.parametrize("cells", [np.array([5, 0, 5, 19]), np.array([3]), slice(2, 9), np.arange(20)[::-1]], ids=repr)
def test_minibatch_holds_the_cells_asked_in_their_order(counts, dense, cells):
    x = counts.minibatch(cells)
    np.testing.assert_array_equal(x.dense().numpy(), dense[cells])
    assert x.n_cells == len(dense[cells])
    assert x.n_genes == 7
    for name in ("codes", "continuous", "log_total", "log_size", "log_factorial"):
        np.testing.assert_array_equal(getattr(x, name).numpy(), getattr(counts, name)[cells])
    assert (x.indptr.dtype, x.codes.dtype, x.values.dtype) == (torch.int64, torch.int64, torch.float32)


def test_minibatches_gathered_many_at_a_time_are_the_minibatches_one_by_one(counts):
    groups = [*shuffled(np.arange(20), 1, np.random.default_rng(0)), np.array([2, 9, 4]), np.array([3, 3])]
    found = list(counts.minibatches(groups))
    assert len(found) == 22
    for x, cells in zip(found, groups, strict=True):
        for part, expected in zip(x, counts.minibatch(cells), strict=True):
            assert part == expected if isinstance(part, int) else torch.equal(part, expected)


def test_minibatch_has_memory_of_its_own(counts, dense):
    x = counts.minibatch(slice(0, 20))
    for tensor in x:
        if isinstance(tensor, torch.Tensor):
            tensor.zero_()
    np.testing.assert_array_equal(counts.minibatch(slice(0, 20)).dense().numpy(), dense)
    assert counts.log_factorial.max() > 0


def test_minibatch_in_another_precision_and_batch(counts):
    x = counts.minibatch(np.arange(4)).to(torch.device("cpu"), torch.float64)
    assert {x.values.dtype, x.log_total.dtype, x.continuous.dtype} == {torch.float64}
    assert {x.indptr.dtype, x.codes.dtype} == {torch.int64}
    assert not x.genes.is_floating_point()
    there = x.with_level(0, 2)
    np.testing.assert_array_equal(there.codes.numpy(), [[2, 0], [2, 1], [2, 0], [2, 1]])
    np.testing.assert_array_equal(x.codes.numpy(), [[0, 0], [1, 1], [2, 0], [0, 1]])


def test_minibatch_of_covariates_alone():
    x = Minibatch.of_covariates(np.array([[1, 0], [2, 1]]), n_continuous=3, n_genes=5)
    np.testing.assert_array_equal(x.dense().numpy(), np.zeros((2, 5)))
    np.testing.assert_array_equal(x.codes.numpy(), [[1, 0], [2, 1]])
    np.testing.assert_array_equal(x.continuous.numpy(), np.zeros((2, 3)))


def test_subset_of_counts(counts, dense):
    part = counts[np.array([7, 2])]
    np.testing.assert_array_equal(part.matrix.toarray(), dense[[7, 2]])
    np.testing.assert_array_equal(part.codes, counts.codes[[7, 2]])
    np.testing.assert_array_equal(part.log_factorial, counts.log_factorial[[7, 2]])
    assert part.n_levels == (3, 2)


@pytest.mark.parametrize("size", [1, 6, 20, 100])
def test_chunks_cover_all_cells_in_order(counts, dense, size):
    chunks = list(counts.chunks(size))
    np.testing.assert_array_equal(np.concatenate([x.dense().numpy() for _, x in chunks]), dense)
    np.testing.assert_array_equal(np.concatenate([np.arange(20)[rows] for rows, _ in chunks]), np.arange(20))
    assert max(x.n_cells for _, x in chunks) == min(size, 20)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_chunks_of_chosen_cells_keep_their_order(counts, dense, size):
    cells = np.array([7, 2, 19, 0])
    chunks = list(counts.chunks(size, cells))
    np.testing.assert_array_equal(np.concatenate([x.dense().numpy() for _, x in chunks]), dense[cells])
    np.testing.assert_array_equal(np.concatenate([cells[places] for places, _ in chunks]), cells)
    assert max(x.n_cells for _, x in chunks) == min(size, 4)


def test_library_prior_is_the_moments_of_each_batch():
    matrix = sp.csr_matrix(np.float32([[10], [1000], [7], [7], [50]]))
    counts = Counts.of(PackedRows.of(matrix), codes=np.array([[0], [0], [1], [1], [2]]), n_levels=(4,))
    mean, variance = counts.library_prior()
    np.testing.assert_allclose(mean[:3], [np.log([10, 1000]).mean(), np.log(7), np.log(50)], rtol=1e-6)
    overall = np.log([10, 1000, 7, 7, 50]).var()
    np.testing.assert_allclose(variance, [np.log([10, 1000]).var(), overall, overall, overall], rtol=1e-5)


def test_library_prior_of_cells_with_one_and_the_same_total_keeps_some_variance():
    _, variance = Counts.of(PackedRows.of(sp.csr_matrix(np.full((5, 1), 9.0)))).library_prior()
    np.testing.assert_allclose(variance, [1e-2])


@given(
    batch=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    train_size=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_split_parts_the_cells_and_each_batch_alike(batch, train_size, seed):
    batch = np.array(batch)
    train, validation = split(batch, train_size, np.random.default_rng(seed))
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(len(batch)))
    for cells in (train, validation):
        assert (np.diff(cells) > 0).all()
    for code in np.unique(batch):
        n, n_train = (batch == code).sum(), (batch[train] == code).sum()
        assert n_train >= 1
        assert abs(n_train - n * train_size) <= max(0.5 + 1e-9, 1 - n * train_size + 1e-9)


def test_split_is_random_with_its_seed():
    batch = np.zeros(100, dtype=int)
    first, again, other = (split(batch, 0.9, np.random.default_rng(seed))[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert len(first) == 10
    assert set(first) != set(other)


@pytest.mark.parametrize("train_size", [0, -0.1, 1.1, float("nan")])
def test_split_refuses_a_share_that_is_none(train_size):
    with pytest.raises(
        ValueError, match=r"train_size is .*; expected a fraction of the cells in \(0, 1\], such as 0.9"
    ):
        split(np.zeros(4, dtype=int), train_size, np.random.default_rng(0))


@given(n=st.integers(1, 300), batch_size=st.integers(1, 150), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_an_epoch_is_every_cell_once_in_minibatches_of_nearly_equal_size(n, batch_size, seed):
    cells = np.arange(n) * 3
    minibatches = shuffled(cells, batch_size, np.random.default_rng(seed))
    sizes = [len(m) for m in minibatches]
    np.testing.assert_array_equal(np.sort(np.concatenate(minibatches)), cells)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-n // batch_size)


def test_no_minibatch_of_a_single_cell_is_left_over():
    assert [len(m) for m in shuffled(np.arange(129), 128, np.random.default_rng(0))] == [65, 64]
