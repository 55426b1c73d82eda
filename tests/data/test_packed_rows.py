"""`PackedRows` against scipy: what is stored narrow comes back as it was, and sums are those of the dense matrix."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import gammaln

from sccvae.data import packed_rows
from sccvae.data.packed_rows import PackedRows, log_factorials

CELLS = [np.array([5, 0, 5, 19]), np.array([3]), np.zeros(0, int), np.arange(20)[::-1]]
SLICES = [slice(None), slice(2, 9), slice(19, 40), slice(40, 50), slice(7, 7), slice(1, 18, 3)]


@pytest.fixture(params=["small", "some large", "mostly large"])
def dense(request):
    """20 cells x 7 genes of counts, a cell without any; a byte holds all of them, most, or few."""
    rng = np.random.default_rng(0)
    values = rng.poisson(0.7, (20, 7)).astype(np.float64)
    values[3] = 0
    values[2, :2] = 253, 254
    if request.param == "some large":
        values[5, :3], values[11, 2], values[19, 6] = [255, 256, 2**24], 65_536, 300
    if request.param == "mostly large":
        values *= 1000
    return values


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_what_is_stored_comes_back(dense, dtype):
    rows = PackedRows.of(sp.csr_matrix(dense.astype(dtype)))
    assert rows.values.dtype == (np.float32 if (dense > 254).sum() > 10 else np.uint8)
    assert len(rows.large) == ((dense > 254).sum() if rows.values.dtype == np.uint8 else 0)
    assert rows.genes.dtype == np.uint16
    found = rows.csr()
    np.testing.assert_array_equal(found.toarray(), dense)
    assert (found.dtype, found.indices.dtype, len(rows), rows.n_genes) == (np.float32, np.int32, 20, 7)


def test_it_shares_no_memory_with_the_matrix():
    matrix = sp.csr_matrix(np.eye(3, dtype=np.uint8))
    narrow, matrix = PackedRows.of(matrix), matrix.astype(np.float32)
    real = PackedRows.of(matrix, counts=False)
    for array in (matrix.data, matrix.indices, matrix.indptr):
        array[:] = 0
    for rows in (narrow, real):
        np.testing.assert_array_equal(rows.csr().toarray(), np.eye(3))


@pytest.mark.parametrize(("n_genes", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.int32)])
def test_the_last_of_many_genes_is_still_told(n_genes, dtype):
    rows = PackedRows.of(sp.csr_matrix((np.float32([1, 2]), [0, n_genes - 1], [0, 2]), shape=(1, n_genes)))
    assert rows.genes.dtype == dtype
    assert rows.wide().genes.tolist() == [0, n_genes - 1]
    assert rows.gene_sums(lambda x: x)[-1] == 2


def test_three_bytes_for_each_small_count(dense):
    rows = PackedRows.of(sp.csr_matrix(np.minimum(dense, 254)))
    assert sum(getattr(rows, n).nbytes for n in ("values", "genes", "large_at", "large")) == 3 * np.count_nonzero(dense)


@pytest.mark.parametrize("block", [1, 5, 2**16])
@pytest.mark.parametrize("cells", [*CELLS, *SLICES], ids=repr)
def test_rows_taken_are_those_of_the_matrix(dense, cells, block, monkeypatch):
    monkeypatch.setattr(packed_rows, "BLOCK", block)  # shorter than some rows, or than all
    rows = PackedRows.of(sp.csr_matrix(dense))
    narrow, wide = rows.take(cells), rows.wide(cells)
    for part in (narrow, wide):
        np.testing.assert_array_equal(part.csr().toarray(), dense[cells])
        assert part.indptr.dtype == np.int64
    assert (narrow.values.dtype, narrow.genes.dtype) == (rows.values.dtype, rows.genes.dtype)
    assert (wide.values.dtype, wide.genes.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(rows.csr(cells).toarray(), dense[cells])
    wide.values[:] = 0
    narrow.values[:] = 0
    narrow.large[:] = 0
    np.testing.assert_array_equal(rows.csr().toarray(), dense)


@pytest.mark.parametrize("block", [1, 5, 2**16])
def test_sums_over_rows_and_genes_are_those_of_the_dense_matrix(dense, block, monkeypatch):
    monkeypatch.setattr(packed_rows, "BLOCK", block)
    rows = PackedRows.of(sp.csr_matrix(dense))
    np.testing.assert_array_equal(rows.row_sums(lambda x: x), dense.sum(1))
    np.testing.assert_allclose(rows.row_sums(log_factorials), gammaln(dense + 1).sum(1), rtol=1e-12)
    np.testing.assert_array_equal(rows.gene_sums(lambda x: x.astype(float) ** 2), (dense**2).sum(0))


@pytest.mark.parametrize(("large", "dtype"), [(1, np.uint8), (3, np.float32)])
def test_blocks_of_cells_joined_are_one_beneath_the_other(large, dtype):
    blocks = np.split(np.arange(20.0).reshape(5, 4), [2, 3])
    blocks[0][0, :large], blocks[2][1, -1] = 300, 70_000
    blocks[1][0, :large] = 1000
    rows = PackedRows.joined([PackedRows.of(sp.csr_matrix(block)) for block in blocks])
    np.testing.assert_array_equal(rows.csr().toarray(), np.concatenate(blocks))
    np.testing.assert_array_equal(rows.csr(np.array([4, 2, 0])).toarray(), np.concatenate(blocks)[[4, 2, 0]])
    assert rows.values.dtype == dtype
    assert PackedRows.joined([rows]) is rows


def test_real_values_are_float32_whatever_they_look_like():
    matrix = sp.csr_matrix([[-1.5, 0], [2, -3]])
    rows = PackedRows.of(matrix, counts=False)
    assert rows.values.dtype == np.float32
    np.testing.assert_array_equal(rows.csr().toarray(), matrix.toarray())
