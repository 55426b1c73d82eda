"""Matrices that are not in memory, for tests: a stand-in for dask, and counts in files of h5py and zarr."""

from __future__ import annotations

import anndata as ad
import h5py
import numpy as np
import scipy.sparse as sp
import zarr
from anndata.io import sparse_dataset, write_elem


class Chunked:
    """What dask's array does, as far as it is asked: knows shape and chunks, gives slices, computes them.

    Like dask's it can be compared and sliced without being computed, and has no truth value.
    """

    def __init__(self, matrix, chunks, computed=None):
        self.matrix, self.computed = matrix, [] if computed is None else computed
        self.shape, self.dtype, self.ndim = matrix.shape, matrix.dtype, 2
        self.chunks = tuple(
            tuple(min(size, n - start) for start in range(0, n, size))
            for n, size in zip(matrix.shape, chunks, strict=True)
        )

    def __getitem__(self, rows_and_columns):
        return Chunked(self.matrix[rows_and_columns], (10**9, 10**9), self.computed)

    def __bool__(self):
        raise ValueError("The truth value of an array with more than one element is ambiguous.")

    def __array__(self, *_, **__):
        raise ValueError("The truth value of an array with more than one element is ambiguous.")

    def compute(self):
        self.computed.append(self.shape)
        return self.matrix


def with_matrix(adata: ad.AnnData, matrix) -> ad.AnnData:
    """A copy of `adata` whose `X` is `matrix`, even where AnnData does not know its class."""
    new = ad.AnnData(np.zeros(adata.shape, dtype=np.float32), obs=adata.obs.copy(), var=adata.var.copy())
    new._X = matrix
    if new.X is not matrix:  # anndata 0.13 keeps `X` among the layers, as None
        new.layers._data[None] = matrix
    return new


def in_h5(folder, matrix, name: str = "matrix"):
    """The matrix in an open HDF5 file, as `anndata` reads it without loading it."""
    file = h5py.File(folder / f"{name}.h5", "w")
    write_elem(file, "X", matrix)
    return sparse_dataset(file["X"]) if sp.issparse(matrix) else file["X"]


def in_zarr(folder, matrix, name: str = "matrix"):
    """The same in a zarr store."""
    group = zarr.open_group(folder / f"{name}.zarr", mode="w")
    write_elem(group, "X", matrix)
    return sparse_dataset(group["X"]) if sp.issparse(matrix) else group["X"]
