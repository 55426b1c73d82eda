"""Counts are read wherever they are stored; what holds none is named, with the way out."""

from __future__ import annotations

import re

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from anndata.io import sparse_dataset
from lazy import Chunked, in_h5, in_zarr, with_matrix

import sccvae
from sccvae.data import matrix
from sccvae.data.blocks import blocks_of, rows_of
from sccvae.data.schema import Schema

FORMS = {"dense": lambda m: m.toarray(), "csr": sp.csr_matrix, "csc": sp.csc_matrix, "csr_array": sp.csr_array}
ROWS = {"all": slice(None), "slice": slice(10, 90), "odd": np.random.default_rng(0).permutation(120)[:70]}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """13 cells at once."""
    monkeypatch.setattr(matrix, "BLOCK_BYTES", 8 * 60 * 13)


def read(adata, **options):
    return Schema.learn(adata, **options)[1].matrix.toarray()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("place", ["X", "layer"])
@pytest.mark.parametrize("form", ["dense", "csr", "csc"])
@pytest.mark.parametrize("stored", [in_h5, in_zarr])
def test_counts_in_a_file(adata, tmp_path, stored, form, place, rows):
    counts, stored = adata.X.toarray(), stored(tmp_path, FORMS[form](adata.X))
    adata.X = np.full(adata.shape, 0.5)
    if place == "X":
        lying = ad.AnnData(stored, obs=adata.obs, var=adata.var)
    else:
        lying = adata
        lying.layers["counts"] = stored
    options = {} if place == "X" else {"layer": "counts"}
    part = lying if rows == "all" else lying[ROWS[rows]]
    np.testing.assert_array_equal(read(part, **options), counts[ROWS[rows]])


@pytest.mark.parametrize("chunks", [(7, 60), (50, 60), (120, 60), (7, 11), (1, 1)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_counts_in_a_dask_array(adata, form, chunks):
    counts = adata.X.toarray()
    lazy = Chunked(FORMS[form](adata.X), chunks)
    np.testing.assert_array_equal(read(with_matrix(adata, lazy)), counts)
    n_across = -(-60 // chunks[1])
    assert sum(n for n, _ in lazy.computed) == 120 * n_across  # every chunk once
    if chunks[0] < 13:
        assert {n for n, _ in lazy.computed[:-n_across]} <= {13 // chunks[0] * chunks[0]}


@pytest.mark.parametrize("stored", [in_h5, in_zarr, lambda _, m: Chunked(m, (7, 60))], ids=["h5", "zarr", "dask"])
def test_new_data_may_lie_anywhere(adata, model, tmp_path, stored):
    new = with_matrix(adata, stored(tmp_path, sp.csr_matrix(adata.X)))
    np.testing.assert_array_equal(model.get_latent_representation(new), model.get_latent_representation(adata))


def test_dask_agrees_with_its_stand_in(adata):
    array = pytest.importorskip("dask.array")
    matrix, counts = adata.X, adata.X.toarray()
    for form in FORMS:
        for chunks in [(7, 60), (7, 11)]:
            lazy = array.from_array(FORMS[form](matrix), chunks=chunks, asarray=False)
            adata.X = adata.layers["counts"] = lazy
            np.testing.assert_array_equal(read(adata), counts)
            np.testing.assert_array_equal(read(adata, layer="counts"), counts)


@pytest.mark.parametrize("form", ["dense", "csr", "csc"])
@pytest.mark.parametrize("stored", [in_h5, in_zarr, lambda _, m: Chunked(m, (7, 60))], ids=["h5", "zarr", "dask"])
def test_some_rows_wherever_they_are(adata, tmp_path, stored, form):
    cells = np.array([2, 3, 50, 119])
    found = rows_of(stored(tmp_path, FORMS[form](adata.X)), "adata.X", cells)
    np.testing.assert_array_equal(found.toarray(), adata.X.toarray()[cells])


def test_blocks_may_have_dtypes_of_their_own(adata):
    class Changing(Chunked):
        def compute(self):
            return super().compute().astype([np.int16, np.float64, bool][len(self.computed) % 3])

        def __getitem__(self, where):
            return Changing(self.matrix[where], (10**9, 10**9), self.computed)

    dense = np.minimum(adata.X.toarray(), 1)
    dense[-1, -1] = 1
    lazy = Changing(dense, (7, 60))
    np.testing.assert_array_equal(read(with_matrix(adata, lazy)), dense)


@pytest.mark.parametrize("n", [0, 3, 100])
def test_chunks_that_are_not_of_the_size_they_claim(adata, n):
    class Longer(Chunked):
        def __getitem__(self, where):
            return Chunked(self.matrix[:n], (10**9, 10**9))

    with pytest.raises(ValueError, match=re.escape("adata.X, a Longer, gives rows of shape")):
        read(with_matrix(adata, Longer(adata.X, (110, 60))))


def test_a_file_that_was_closed_is_named(adata, tmp_path):
    adata.write_h5ad(tmp_path / "counts.h5ad")
    file = h5py.File(tmp_path / "counts.h5ad")
    lying = ad.AnnData(sparse_dataset(file["X"]), obs=adata.obs, var=adata.var)
    file.close()
    with pytest.raises(ValueError, match=r"adata\.X, a .*, cannot be read .*adata = adata\.to_memory\(\)"):
        sccvae.SCCVAE(lying)


def test_a_backed_file_without_x(adata, tmp_path):
    adata.layers["counts"], adata.X = adata.X.copy(), None
    adata.write_h5ad(tmp_path / "counts.h5ad")
    backed = ad.read_h5ad(tmp_path / "counts.h5ad", backed="r")
    with pytest.raises(ValueError, match=re.escape("adata.X is None; pass layer= one of 'counts'.")):
        sccvae.SCCVAE(backed)
    np.testing.assert_array_equal(read(backed, layer="counts"), adata.layers["counts"].toarray())
    backed.file.close()


def test_integrate_makes_no_copy_of_a_file(adata, tmp_path, monkeypatch):
    lying = ad.AnnData(in_h5(tmp_path, adata.X), obs=adata.obs, var=adata.var)
    monkeypatch.setattr(sccvae.SCCVAE, "train", None)
    with pytest.raises(ValueError, match=r"pass adata\.to_memory\(\) to integrate in place of a copy"):
        sccvae.tl.integrate(lying, copy=True)


# -------------------------------------------------------------------------------------------------- what is no number

NO_NUMBERS = {
    "complex": (lambda x: x + 1j, "adata.X has complex numbers (dtype complex64); expected real numbers"),
    "objects": (lambda x: x.astype(object), "adata.X has dtype object, like a table with columns of several types;"),
    "text": (lambda x: x.astype("U4"), "adata.X has text (dtype <U4); expected numbers"),
    "bytes": (lambda x: x.astype("S4"), "adata.X has text (dtype |S4); expected numbers"),
    "times": (lambda x: x.astype("M8[s]"), "adata.X has dtype datetime64[s]; expected one number"),
    "structured": (lambda x: x.astype([("a", "f4")]), "adata.X has dtype [('a', '<f4')]; expected one number"),
    "sparse complex": (lambda x: sp.csr_matrix(x + 1j), "adata.X has complex numbers (dtype complex64)"),
}


@pytest.mark.parametrize("likelihood", ["zinb", "normal", "bernoulli"])
@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_is_no_number_is_named(adata, kind, likelihood):
    change, text = NO_NUMBERS[kind]
    wrong = ad.AnnData(change(adata.X.toarray()), obs=adata.obs, var=adata.var)
    with pytest.raises(TypeError, match="^" + re.escape(text)):
        sccvae.SCCVAE(wrong, gene_likelihood=likelihood)


def test_complex_numbers_in_odd_order_are_not_cut_to_real_ones():
    matrix = sp.csr_matrix(np.ones((30, 9)) + 3j)
    matrix.has_canonical_format = False
    with pytest.raises(TypeError, match="complex"):
        sccvae.SCCVAE(ad.AnnData(matrix))


def test_the_cure_for_objects_is_named_and_what_stands_in_the_way(adata):
    wrong = adata.X.toarray().astype(object)
    adata.layers["a"] = wrong
    with pytest.raises(TypeError, match=re.escape("adata.layers['a'] = adata.layers['a'].astype('float32').")):
        sccvae.SCCVAE(adata, layer="a")
    wrong[3, 4] = "many"
    with pytest.raises(TypeError, match=r"\(such as 'many', which is not a number\)"):
        sccvae.SCCVAE(with_matrix(adata, wrong))


def test_a_masked_array(adata):
    dense = adata.X.toarray()
    adata.X = np.ma.masked_array(dense, mask=np.zeros(dense.shape, bool))
    np.testing.assert_array_equal(read(adata), dense)
    adata.X = np.ma.masked_array(dense, mask=dense == 1)
    with pytest.raises(ValueError, match=r"adata\.X is a masked array with masked values.*adata\.X\.filled\(0\)"):
        read(adata)


def test_an_object_layer_beside_the_matrix_is_only_a_layer_without_counts(adata):
    adata.layers["text"] = adata.X.toarray().astype("U4")
    adata.X = adata.X * 0.3
    with pytest.raises(ValueError, match="No other layer of adata holds counts"):
        sccvae.SCCVAE(adata)


# ----------------------------------------------------------------------------------------- sparse matrices that are odd


def test_values_after_the_last_row_are_left_out(adata):
    """scipy keeps them, and slices of columns with them write past their end."""
    expected = adata.X.copy()
    adata.X.data = np.append(adata.X.data, [7, 7]).astype(np.float32)
    adata.X.indices = np.append(adata.X.indices, [0, 0]).astype(np.int32)
    np.testing.assert_array_equal(read(adata), expected.toarray())
    mask = adata.var["highly_variable"].to_numpy()
    np.testing.assert_array_equal(read(adata, genes=mask), expected.toarray()[:, mask])


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, sp.csr_array])
@pytest.mark.parametrize("damage", ["beyond", "below", "backwards", "too short"])
def test_a_damaged_sparse_matrix_is_named(adata, form, damage):
    adata.X = form(adata.X)
    if damage == "backwards":
        adata.X.indptr[5] = adata.X.indptr[7] + 1
    elif damage == "too short":
        adata.X.data = adata.X.data[:-3]
    else:
        adata.X.indices[-1] = {"beyond": 120, "below": -1}[damage]
    with pytest.raises(ValueError, match=r"adata\.X is a damaged sparse matrix"):
        sccvae.SCCVAE(adata)


@pytest.mark.parametrize("form", ["coo", "lil", "dok", "bsr", "dia"])
def test_sparse_matrices_that_anndata_would_not_take(adata, form):
    found = np.vstack([b.toarray() for _, b in blocks_of(adata.X.asformat(form), "m", adata.shape, 2**20)])
    np.testing.assert_array_equal(found, adata.X.toarray())


@pytest.mark.parametrize("dtype", ["float16", "longdouble", ">f4", ">i8", "uint64", "bool"])
def test_rare_dtypes_of_a_dense_matrix_in_a_layer(adata, dtype):
    dense = np.minimum(adata.X.toarray(), 1 if dtype == "bool" else 60_000)
    dense[0, 0] = 1 if dtype == "bool" else 300
    adata.layers["a"] = dense.astype(dtype)
    np.testing.assert_array_equal(read(adata, layer="a"), dense)


# ------------------------------------------------------------------------------------------------- not read, not at all


def test_an_anndata_that_was_read_lazily_says_how_to_load_it(adata, model):
    class Dataset2D:
        """What `anndata.experimental.read_lazy` has in place of a table."""

    adata._obs = Dataset2D()
    for call in (sccvae.SCCVAE, model.get_latent_representation, sccvae.tl.integrate):
        with pytest.raises(TypeError, match=r"read lazily: adata\.obs is a Dataset2D.* Pass adata\.to_memory\(\)"):
            call(adata)


def test_read_lazy_itself(adata, model, tmp_path):
    pytest.importorskip("xarray")
    adata.write_h5ad(tmp_path / "counts.h5ad")
    lazy = ad.experimental.read_lazy(tmp_path / "counts.h5ad")
    with pytest.raises(TypeError, match="read lazily"):
        sccvae.tl.similarity(lazy)
    np.testing.assert_array_equal(model.get_latent_representation(lazy), model.get_latent_representation(adata))


def test_functions_that_write_into_an_anndata_say_so_of_a_path():
    with pytest.raises(TypeError, match=r"Read the file first: sc\.read_h5ad\('counts\.h5ad'\)"):
        sccvae.tl.similarity("counts.h5ad")
    with pytest.raises(TypeError, match=r"^adata is a path; expected an AnnData to write into\. .*out='new\.h5ad'"):
        sccvae.tl.integrate("counts.h5ad")


class MuData:
    mod = {"prot": None, "rna": None}  # noqa: RUF012


class Raw:
    pass


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        (
            MuData(),
            "MuData; expected an AnnData. Pass the modality with gene counts, such as mdata['rna']; modalities: 'prot'",
        ),
        (Raw(), "Raw; expected an AnnData. Pass adata.raw.to_adata()"),
        ([1, 2], "list; expected an AnnData. Join several first: anndata.concat("),
        (np.ones((2, 2)), "ndarray; expected an AnnData. Wrap a matrix as anndata.AnnData(matrix)."),
    ],
    ids=["mudata", "raw", "list", "matrix"],
)
def test_what_to_pass_instead(model, thing, text):
    for call in (sccvae.SCCVAE, sccvae.tl.integrate, model.get_latent_representation):
        with pytest.raises(TypeError, match="^" + re.escape("adata is a " + text)):
            call(thing)
