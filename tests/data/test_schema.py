"""Every way in gives the same `Counts`; every bad input gives an error that names what, where, and the way out."""

from __future__ import annotations

import re
from importlib.metadata import version

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from packaging.version import Version

import sccvae
from sccvae.data import matrix
from sccvae.data.schema import Schema

CONTAINERS = {
    "dense": lambda m: m.toarray(),
    "dense_fortran": lambda m: np.asfortranarray(m.toarray()),
    "csr_matrix": sp.csr_matrix,
    "csc_matrix": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
}


def unsorted_indices(matrix):
    """The same CSR matrix with the stored values of each row in reverse order."""
    order = np.concatenate(
        [np.arange(b - 1, a - 1, -1) for a, b in zip(matrix.indptr, matrix.indptr[1:], strict=False)]
    )
    return sp.csr_matrix((matrix.data[order], matrix.indices[order], matrix.indptr), shape=matrix.shape)


def duplicate_entries(matrix):
    """The same CSR matrix with every count stored as (count - 1) and 1: zeros and two entries per place."""
    data = np.stack([matrix.data - 1, np.ones_like(matrix.data)], axis=1).ravel()
    return sp.csr_matrix((data, np.repeat(matrix.indices, 2), 2 * matrix.indptr), shape=matrix.shape)


def explicit_zeros(matrix):
    """The same CSR matrix with every zero stored."""
    dense = matrix.toarray()
    n, g = dense.shape
    return sp.csr_matrix((dense.ravel(), np.tile(np.arange(g), n), np.arange(0, n * g + 1, g)), shape=(n, g))


def wide_indices(matrix):
    """The same CSR matrix with 64-bit indices."""
    matrix = matrix.copy()
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    return matrix


ODD = {f.__name__: f for f in (unsorted_indices, duplicate_entries, explicit_zeros, wide_indices)}


def learn(adata, **options):
    return Schema.learn(adata, batch_key="batch", **options)[1]


def assert_same_counts(found, expected):
    assert found.matrix.has_canonical_format
    assert (found.stored.values != 0).all()
    for name in ("values", "genes", "indptr", "large_at", "large"):
        array, other = getattr(found.stored, name), getattr(expected.stored, name)
        assert (array.dtype, array.flags.writeable) == (other.dtype, False)
        np.testing.assert_array_equal(array, other, err_msg=name)
    for name in ("codes", "continuous", "log_size", "log_total", "log_factorial"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
        assert not getattr(found, name).flags.writeable
    assert found.n_levels == expected.n_levels


def message_of(error, call, *arguments, **options) -> str:
    """Text of the exception, which must be of exactly that class."""
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    assert type(caught.value) is error
    return str(caught.value)


# ------------------------------------------------------------------------------------------ every form of the same data


@pytest.mark.parametrize("place", ["X", "layer"])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint16"])
def test_container_and_dtype_do_not_matter(adata, container, dtype, place):
    expected = learn(adata)
    matrix = CONTAINERS[container](adata.X.astype(dtype))
    if place == "X":
        adata.X = matrix
        assert_same_counts(learn(adata), expected)
    else:
        adata.layers["counts"], adata.X = matrix, np.full(adata.shape, 0.5)
        assert_same_counts(learn(adata, layer="counts"), expected)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_view_is_read_as_its_copy(adata, container):
    adata.X = CONTAINERS[container](adata.X)
    cells, genes = np.random.default_rng(0).permutation(120)[:70], np.random.default_rng(1).permutation(60)[:40]
    view = adata[cells][:, genes]
    expected = learn(view.copy())
    assert view.is_view
    assert_same_counts(learn(view), expected)
    assert view.is_view
    np.testing.assert_array_equal(expected.matrix.toarray(), np.asarray(adata.to_df())[cells][:, genes])


@pytest.mark.parametrize("container", ["csr_matrix", "csr_array"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_but_valid_csr_is_brought_into_canonical_form(adata, odd, container):
    expected = learn(adata)
    matrix = CONTAINERS[container](ODD[odd](adata.X))
    adata.X = matrix
    stored = [array.copy() for array in (matrix.data, matrix.indices, matrix.indptr)]
    assert_same_counts(learn(adata), expected)
    for array, before in zip((adata.X.data, adata.X.indices, adata.X.indptr), stored, strict=True):
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("likelihood", ["zinb", "bernoulli"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_booleans_are_zeros_and_ones(adata, container, likelihood):
    binary = adata.X.astype(bool)
    support = {"zinb": "counts", "bernoulli": "binary"}[likelihood]
    adata.X = binary.astype(np.float32)
    expected = learn(adata, support=support)
    adata.X = CONTAINERS[container](binary)
    assert_same_counts(learn(adata, support=support), expected)


@pytest.mark.parametrize("kind", [bool, np.float32])
def test_duplicate_entries_of_binary_data_do_not_become_twos(adata, kind):
    twice = sp.csr_matrix((np.ones(3, dtype=kind), [0, 0, 3], [0, 2, 3]), shape=(2, 60))
    try:
        counts = learn(ad.AnnData(twice, obs=adata.obs[:2], var=adata.var), support="binary")
    except ValueError as error:
        assert "other than 0 and 1" in str(error)  # noqa: PT017  either of two answers is right
    else:
        np.testing.assert_array_equal(counts.matrix.data, [1, 1])


@pytest.mark.parametrize("dtype", ["float16", ">f4", ">i4", "uint8", "longdouble"])
def test_rare_dtypes_of_a_dense_matrix(adata, dtype):
    expected = learn(adata)
    adata.X = adata.X.toarray().astype(dtype)
    assert_same_counts(learn(adata), expected)


def test_read_only_memory_will_do(adata, tmp_path):
    expected = learn(adata)
    np.save(tmp_path / "counts.npy", adata.X.toarray())
    adata.X = np.load(tmp_path / "counts.npy", mmap_mode="r")
    assert_same_counts(learn(adata), expected)


@pytest.mark.parametrize("rows", ["all", "view", "odd_view", "view_of_genes"])
@pytest.mark.parametrize("container", ["dense", "csr_matrix", "csc_matrix", *sorted(ODD)])
def test_backed_files_are_read_block_by_block(adata, tmp_path, monkeypatch, container, rows):
    if (container, rows) == ("dense", "view_of_genes") and Version(version("anndata")) < Version("0.12"):
        pytest.skip("anndata 0.11 cannot read it: its X raises TypeError")
    monkeypatch.setattr(matrix, "BLOCK_BYTES", 8 * 60 * 13)  # 13 rows at once
    part = {
        "all": slice(None),
        "view": slice(10, 90),
        "odd_view": np.random.default_rng(0).permutation(120)[:70],
        "view_of_genes": (np.arange(0, 120, 2), np.arange(5, 50, 3)),
    }[rows]
    expected = learn(adata[part].copy())
    adata.X = {**CONTAINERS, **ODD}[container](adata.X)
    adata.write_h5ad(tmp_path / "counts.h5ad")
    backed = ad.read_h5ad(tmp_path / "counts.h5ad", backed="r")
    assert_same_counts(learn(backed if rows == "all" else backed[part]), expected)
    backed.file.close()


def test_backed_files_with_counts_in_a_layer_and_a_subset_of_genes(adata, tmp_path):
    genes = adata.var["highly_variable"].to_numpy()
    expected = learn(adata, genes=genes)
    adata.layers["counts"] = adata.X.copy()
    adata.write_h5ad(tmp_path / "counts.h5ad")
    backed = ad.read_h5ad(tmp_path / "counts.h5ad", backed="r")
    assert_same_counts(learn(backed, layer="counts", genes=genes), expected)
    assert_same_counts(learn(backed, genes=genes), expected)
    backed.file.close()


def test_a_dense_matrix_in_several_blocks_is_read_whole(adata, monkeypatch):
    expected = learn(adata)
    adata.X = adata.X.toarray()
    monkeypatch.setattr(matrix, "BLOCK_BYTES", 8 * 60 * 50)
    assert_same_counts(learn(adata), expected)


def test_counts_are_a_copy(adata):
    counts = learn(adata)
    before = counts.matrix.toarray()
    adata.X.data[:] = 77
    adata.obs["batch"] = "a"
    np.testing.assert_array_equal(counts.matrix.toarray(), before)
    assert set(counts.codes[:, 0]) == {0, 1, 2}


@pytest.mark.parametrize("top", [200, 300, 70_000])
def test_counts_take_a_byte_each_and_a_large_one_among_them_stays_what_it_is(adata, monkeypatch, top):
    monkeypatch.setattr(matrix, "BLOCK_BYTES", 8 * adata.n_vars * 7)  # 7 cells a block, the large count in one of them
    dense = adata.X.toarray()
    dense[-1, -1] = top
    adata.X = dense
    counts = learn(adata)
    assert (counts.stored.values.dtype, counts.stored.genes.dtype) == (np.uint8, np.uint16)
    np.testing.assert_array_equal(counts.matrix.toarray(), dense)


def test_real_values_keep_their_sign(adata):
    adata.X = np.random.default_rng(0).normal(size=adata.shape)
    counts = learn(adata, support="real")
    np.testing.assert_array_equal(counts.matrix.toarray(), adata.X.astype(np.float32))
    assert not counts.log_total.any()


# -------------------------------------------------------------------------------------- what goes along with the counts


@pytest.mark.parametrize(
    ("column", "names"),
    [
        (["b", "a", "b", "c"], ("a", "b", "c")),
        ([10, 9, 10, 2], ("2", "9", "10")),
        ([True, False, True, True], ("False", "True")),
        (pd.Categorical(["b", "a", "b", "c"], categories=["z", "c", "b", "a", "y"]), ("c", "b", "a")),
        (pd.Categorical([3, 1, 3, 2], categories=[3, 2, 1, 0], ordered=True), ("3", "2", "1")),
        (pd.array(["b", "a", "b", "c"], dtype="string"), ("a", "b", "c")),
    ],
    ids=["text", "int", "bool", "unused_categories", "int_categories", "string_dtype"],
)
def test_columns_of_any_type_become_categories(make_adata, column, names):
    adata = make_adata(4)
    adata.obs["batch"] = column
    model = sccvae.SCCVAE(adata, batch_key="batch", n_hidden=4)
    assert model.batches == names
    codes = learn(adata).codes[:, 0]
    assert [names[code] for code in codes] == [str(value) for value in column]


def test_categorical_and_continuous_covariates(adata):
    counts = learn(adata, categorical_covariate_keys=["donor", "kind"], continuous_covariate_keys=["age"])
    assert counts.n_levels == (3, 2, 4)
    np.testing.assert_array_equal(counts.codes[:, 1], pd.Categorical(adata.obs["donor"]).codes)
    np.testing.assert_array_equal(counts.codes[:, 2], adata.obs["kind"].cat.codes)
    np.testing.assert_allclose([counts.continuous.mean(), counts.continuous.std()], [0, 1], atol=1e-6)


def test_a_constant_covariate_is_zero_and_not_nan(adata):
    adata.obs["age"] = 7
    assert not learn(adata, continuous_covariate_keys=["age"]).continuous.any()


def test_size_factors_are_scaled_to_the_counts(adata):
    counts = learn(adata, size_factor_key="size_factor")
    factors, totals = adata.obs["size_factor"].to_numpy(), adata.X.sum(1)
    np.testing.assert_allclose(np.exp(counts.log_size), factors / factors.mean() * totals.mean(), rtol=1e-5)
    np.testing.assert_allclose(np.exp(counts.log_total), np.asarray(totals).ravel(), rtol=1e-5)


# ------------------------------------------------------------------------------------------------ values that are wrong


BAD_VALUES = {
    1.386: "holds values that are not counts: 1.386",
    -2.0: "holds negative values: -2",
    float("nan"): "holds values that are not counts: nan",
    float("inf"): "holds values that are not counts: inf",
    float("-inf"): "holds negative values: -inf",
    2.0**24 + 2: "holds a count above 2**24 = 16777216: 1.67772e+07",
}


@pytest.mark.parametrize("place", ["X", "layer"])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("value", BAD_VALUES, ids=str)
def test_one_bad_value_at_the_very_end_is_found_and_named(adata, container, value, place):
    dense = adata.X.toarray()
    dense[-1, -1] = value
    matrix = CONTAINERS[container](sp.csr_matrix(dense))
    if place == "X":
        adata.X, options, where = matrix, {}, "adata.X"
    else:
        adata.layers["mine"], options, where = matrix, {"layer": "mine"}, "adata.layers['mine']"
        adata.X = None
    text = message_of(ValueError, sccvae.SCCVAE, adata, **options)
    assert text.startswith(f"{where} {BAD_VALUES[value]} at cell {adata.obs_names[-1]!r}, gene 'gene59' (1 such value")


@pytest.mark.parametrize("container", ["dense", "csr_matrix", "csc_matrix"])
def test_a_bad_value_in_the_last_block_of_a_backed_file(adata, tmp_path, monkeypatch, container):
    monkeypatch.setattr(matrix, "BLOCK_BYTES", 8 * 60 * 13)
    dense = adata.X.toarray()
    dense[-1, -1] = 0.5
    adata.X = CONTAINERS[container](sp.csr_matrix(dense))
    adata.write_h5ad(tmp_path / "counts.h5ad")
    backed = ad.read_h5ad(tmp_path / "counts.h5ad", backed="r")
    text = message_of(ValueError, sccvae.SCCVAE, backed)
    backed.file.close()
    assert f"0.5 at cell {adata.obs_names[-1]!r}, gene 'gene59'" in text


@pytest.mark.parametrize(("dtype", "value"), [("int64", -1), ("int32", 2**24 + 1), ("int64", 2**40)])
def test_integers_are_checked_too(adata, dtype, value):
    dense = adata.X.toarray().astype(dtype)
    dense[-1, -1] = value
    adata.X = dense
    text = message_of(ValueError, sccvae.SCCVAE, adata)
    assert f"at cell {adata.obs_names[-1]!r}, gene 'gene59' (1 such value" in text
    assert ("negative values: -1" if value < 0 else "above 2**24 = 16777216") in text


def test_the_largest_count_allowed_is_two_to_the_24(adata):
    adata.X[-1, -1] = 2.0**24
    assert learn(adata).matrix[-1, -1] == 2**24


def test_duplicate_entries_that_sum_to_more_than_the_largest_count(adata):
    big = sp.csr_matrix((np.float32([2**24, 2**24, 1]), [0, 0, 1], [0, 2, 3]), shape=(2, 60))
    small = ad.AnnData(big, obs=adata.obs[:2], var=adata.var)
    assert "holds a count above 2**24" in message_of(ValueError, sccvae.SCCVAE, small)


def test_the_first_of_several_bad_values_is_named_and_all_are_counted(adata):
    adata.X = np.log1p(adata.X.toarray())
    stored = adata.X[adata.X > 0]
    row, column = np.argwhere(adata.X > 0)[0]
    text = message_of(ValueError, sccvae.SCCVAE, adata)
    assert f"{stored[0]:g} at cell {adata.obs_names[row]!r}, gene 'gene{column}' ({len(stored)} such values" in text


def test_a_layer_that_holds_counts_is_proposed(adata):
    adata.layers["wrong"], adata.layers["counts"] = adata.X * 0.3, adata.X.copy()
    adata.X = adata.X.log1p()
    text = message_of(ValueError, sccvae.SCCVAE, adata)
    assert text.endswith("expected raw counts. adata.layers['counts'] holds counts: pass layer='counts'.")
    assert "adata.layers['counts'] holds counts" in message_of(ValueError, sccvae.SCCVAE, adata, layer="wrong")


def test_x_is_proposed_where_it_holds_the_counts(adata):
    adata.layers["lognorm"] = adata.X.log1p()
    text = message_of(ValueError, sccvae.SCCVAE, adata, layer="lognorm")
    assert text.endswith("adata.X holds counts: pass layer=None.")


def test_raw_is_proposed_where_it_holds_the_counts(adata):
    adata.raw = adata
    adata.X = adata.X.log1p()
    assert message_of(ValueError, sccvae.SCCVAE, adata).endswith(
        "adata.raw holds counts: use adata.raw.to_adata() (with adata.obs)."
    )


def test_where_nothing_holds_counts_the_way_back_is_named(adata):
    adata.X = adata.X.log1p()
    adata.raw = adata
    text = message_of(ValueError, sccvae.SCCVAE, adata)
    assert "No other layer of adata holds counts: use the raw matrix from before sc.pp.normalize_total" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_real_values_must_be_finite(adata, value):
    dense = adata.X.toarray()
    dense[7, 3] = value
    adata.X = dense
    text = message_of(ValueError, sccvae.SCCVAE, adata, gene_likelihood="normal")
    assert text.startswith(f"adata.X holds a value that is not finite: {value:g} at cell {adata.obs_names[7]!r}")


def test_real_values_must_be_finite_in_single_precision(adata):
    dense = adata.X.toarray().astype(np.float64)
    dense[7, 3] = 1e300
    adata.X = dense
    assert "not finite" in message_of(ValueError, sccvae.SCCVAE, adata, gene_likelihood="normal")


def test_binary_values_must_be_zeros_and_ones(adata):
    text = message_of(ValueError, sccvae.SCCVAE, adata, gene_likelihood="bernoulli")
    assert text.startswith("adata.X holds values other than 0 and 1: ")
    assert "choose gene_likelihood='zinb' for counts" in text


def test_cells_without_counts_are_counted_and_named(adata):
    adata.X = sp.diags(np.isin(np.arange(120), [3, 50, 60, 119], invert=True).astype(np.float32)) @ adata.X
    text = message_of(ValueError, sccvae.SCCVAE, adata)
    first = ", ".join(repr(adata.obs_names[i]) for i in (3, 50, 60))
    assert text == (
        f"4 of 120 cells have no counts in the genes modelled, such as {first} and 1 more; expected at least one count "
        "per cell. Remove them first: sc.pp.filter_cells(adata, min_counts=1)."
    )


def test_cells_without_counts_in_the_genes_of_the_mask(adata):
    mask = np.zeros(60, dtype=bool)
    mask[0] = True
    n = int((adata.X[:, 0].toarray() == 0).sum())
    assert message_of(ValueError, sccvae.SCCVAE, adata, mask_var=mask).startswith(f"{n} of 120 cells have no counts")


@pytest.mark.parametrize(("likelihood", "scale"), [("normal", 1.0), ("bernoulli", 0.0)])
def test_cells_of_zeros_are_fine_where_there_is_no_library(adata, likelihood, scale):
    adata.X = sp.csr_matrix(adata.shape) if scale == 0 else adata.X
    assert learn(adata, support={"normal": "real", "bernoulli": "binary"}[likelihood]).matrix.shape == (120, 60)


# -------------------------------------------------------------------------------- keys, shapes and names that are wrong


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_key": "bach"}, "adata.obs has no column 'bach'. Did you mean 'batch'?"),
        ({"categorical_covariate_keys": ["doner"]}, "adata.obs has no column 'doner'. Did you mean 'donor'?"),
        ({"continuous_covariate_keys": ["ages"]}, "adata.obs has no column 'ages'. Did you mean 'age'?"),
        ({"size_factor_key": "size_factors"}, "adata.obs has no column 'size_factors'. Did you mean 'size_factor'?"),
        ({"layer": "conts"}, "adata.layers has no 'conts'. Did you mean 'counts'?"),
        ({"mask_var": "higly_variable"}, "adata.var has no column 'higly_variable'. Did you mean 'highly_variable'?"),
        (
            {"batch_key": "Q"},
            "adata.obs has no column 'Q'. There is 'batch', 'kind', 'donor', 'age', 'size_factor'.",
        ),
    ],
)
def test_unknown_keys_are_answered_with_the_nearest(adata, options, text):
    adata.layers["counts"] = adata.X.copy()
    assert message_of(KeyError, sccvae.SCCVAE, adata, **options) == text


def test_an_unknown_layer_where_there_is_none(adata):
    assert message_of(KeyError, sccvae.SCCVAE, adata, layer="q") == "adata.layers has no 'q'. There is none."


@pytest.mark.parametrize("option", ["batch_key", "categorical_covariate_keys", "continuous_covariate_keys"])
@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_missing_values_in_a_column_are_counted_and_named(adata, option, missing):
    column = adata.obs["age"].astype(object) if option.startswith("continuous") else adata.obs["donor"].astype(object)
    column.iloc[[2, 5]] = missing
    adata.obs["column"] = column
    key = "column" if option == "batch_key" else ["column"]
    text = message_of(ValueError, sccvae.SCCVAE, adata, **{option: key})
    assert text.startswith(
        f"adata.obs['column'] has no value for 2 of 120 cells, such as {adata.obs_names[2]!r}, {adata.obs_names[5]!r};"
    )
    assert "adata[adata.obs['column'].notna()].copy()" in text


@pytest.mark.parametrize("option", ["categorical_covariate_keys", "continuous_covariate_keys"])
def test_a_text_is_not_a_list_of_keys(adata, option):
    text = message_of(TypeError, sccvae.SCCVAE, adata, **{option: "donor"})
    assert "are the text 'donor'; expected a list of columns" in text
    assert "['donor']" in text


def test_a_continuous_covariate_holds_numbers(adata):
    text = message_of(TypeError, sccvae.SCCVAE, adata, continuous_covariate_keys=["donor"])
    assert text.startswith(f"adata.obs['donor'] is not numeric (dtype {adata.obs['donor'].dtype})")
    assert "categorical_covariate_keys" in text


def test_a_continuous_covariate_is_finite(adata):
    adata.obs.iloc[4, adata.obs.columns.get_loc("age")] = np.inf
    text = message_of(ValueError, sccvae.SCCVAE, adata, continuous_covariate_keys=["age"])
    assert text == f"adata.obs['age'] is infinite for 1 cells, such as {adata.obs_names[4]!r}; expected finite numbers."


@pytest.mark.parametrize("value", [0.0, -1.5])
def test_size_factors_are_positive(adata, value):
    adata.obs.iloc[9, adata.obs.columns.get_loc("size_factor")] = value
    text = message_of(ValueError, sccvae.SCCVAE, adata, size_factor_key="size_factor")
    assert f"the size factor {value:g} at cell {adata.obs_names[9]!r} (1 such cells); expected positive" in text


def test_gene_names_are_unique(adata):
    adata.var_names = ["twice" if i in (3, 7) else name for i, name in enumerate(adata.var_names)]
    assert message_of(ValueError, sccvae.SCCVAE, adata) == (
        "adata.var_names are not unique: 'twice' appear more than once. Call adata.var_names_make_unique() first."
    )


def test_cell_names_need_not_be_unique(adata, fit):
    adata.obs_names = ["same"] * 120
    assert set(fit(adata).get_normalized_expression().index) == {"same"}


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (np.ones(59, dtype=bool), "mask_var has dtype bool and shape (59,); expected 60"),
        (np.ones((60, 1), dtype=bool), "mask_var has dtype bool and shape (60, 1); expected 60"),
        (np.ones(60, dtype=int), "mask_var has dtype int64 and shape (60,); expected 60"),
        (["gene1", "gene2"], "mask_var has dtype <U5 and shape (2,); expected 60"),
        (np.zeros(60, dtype=bool), "mask_var selects none of 60 genes; expected at least one."),
        ("none", "adata.var['none'] selects none of 60 genes; expected at least one."),
        ("text", "adata.var['text'] has dtype object and shape (60,); expected 60"),
    ],
    ids=["short", "two_dimensional", "integers", "names", "empty", "empty_column", "column_of_text"],
)
def test_a_mask_is_one_boolean_per_gene(adata, mask, text):
    adata.var["none"], adata.var["text"] = False, "True"
    assert message_of(ValueError, sccvae.SCCVAE, adata, mask_var=mask).startswith(text)


@pytest.mark.parametrize("as_array", [False, True])
def test_a_mask_chooses_the_genes_of_the_model(adata, as_array):
    mask = adata.var["highly_variable"].to_numpy() if as_array else "highly_variable"
    model = sccvae.SCCVAE(adata, mask_var=mask, n_hidden=4)
    assert list(model.gene_names) == [f"gene{i}" for i in range(0, 60, 2)]


@pytest.mark.parametrize("shape", [(0, 60), (120, 0), (0, 0)])
def test_there_are_cells_and_genes(adata, shape):
    text = message_of(ValueError, sccvae.SCCVAE, adata[: shape[0], : shape[1]].copy())
    assert text == f"adata has {shape[0]} cells and {shape[1]} genes; expected at least 1 of each."


@pytest.mark.parametrize("layers", [{}, {"counts": 1}])
def test_x_may_be_none_only_with_a_layer(adata, layers):
    expected = learn(adata)
    for name in layers:
        adata.layers[name] = adata.X.copy()
    adata.X = None
    text = message_of(ValueError, sccvae.SCCVAE, adata)
    assert text.startswith("adata.X is None")
    if layers:
        assert "pass layer= one of 'counts'" in text
        assert_same_counts(learn(adata, layer="counts"), expected)
    else:
        assert not re.search(r"one of \.", text)


@pytest.mark.parametrize("thing", [np.ones((3, 4)), sp.csr_matrix((3, 4)), pd.DataFrame({"a": [1]}), [], None])
@pytest.mark.parametrize("options", [{}, {"mask_var": "highly_variable"}], ids=["plain", "mask"])
def test_only_an_anndata_will_do(thing, options):
    text = message_of(TypeError, sccvae.SCCVAE, thing, **options)
    assert text.startswith(f"adata is a {type(thing).__name__}; expected an AnnData.")


# ---------------------------------------------------------------------------------------------- new data, trained model


@pytest.mark.parametrize("container", CONTAINERS)
def test_genes_of_new_data_are_matched_by_name(adata, model, container):
    expected = model.get_latent_representation(adata)
    order = np.random.default_rng(3).permutation(60)
    extra = ad.AnnData(
        np.full((120, 5), 1000.0, dtype=np.float32), var=pd.DataFrame(index=[f"new{i}" for i in range(5)])
    )
    new = ad.AnnData(sp.hstack([extra.X, adata.X[:, order]]).tocsr(), obs=adata.obs.copy())
    new.var_names = [*extra.var_names, *adata.var_names[order]]
    new.X = CONTAINERS[container](new.X)
    np.testing.assert_array_equal(model.get_latent_representation(new), expected)
    frame = model.get_normalized_expression(new)
    pd.testing.assert_frame_equal(frame, model.get_normalized_expression(adata))
    assert list(frame.columns) == list(adata.var_names)


def test_missing_genes_are_counted_and_named(adata, model):
    adata.var_names = [name if i > 3 else f"{name}_old" for i, name in enumerate(adata.var_names)]
    text = message_of(ValueError, model.get_latent_representation, adata)
    assert text.startswith("adata lacks genes of the model: 4 unknown genes: 'gene0', 'gene1', 'gene2' and 1 more.")
    assert text.endswith("Genes are matched by name.")


def test_unknown_batches_are_named_with_the_known_ones(adata, model):
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories({"b": "B7"})
    text = message_of(ValueError, model.get_latent_representation, adata)
    assert text.startswith(
        "Unknown category 'B7' of 'batch'; expected one of the training data: 'a', 'b', 'c'. Train on data with"
    )


def test_an_unused_category_of_new_data_is_no_unknown_batch(adata, model):
    expected = model.get_latent_representation(adata)
    adata.obs["batch"] = (
        adata.obs["batch"].cat.add_categories(["never"]).cat.reorder_categories(["never", "c", "a", "b"])
    )
    np.testing.assert_array_equal(model.get_latent_representation(adata), expected)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda a: a.obs.__delitem__("batch"), KeyError, "adata.obs has no column 'batch'."),
        (lambda a: setattr(a, "X", a.X * 0.5), ValueError, "adata.X holds values that are not counts: "),
        (lambda a: setattr(a, "X", a.X * 0), ValueError, "120 of 120 cells have no counts in the genes modelled"),
    ],
    ids=["no_batch", "not_counts", "empty_cells"],
)
def test_new_data_are_checked_as_the_training_data_were(adata, model, change, error, text):
    change(adata)
    assert message_of(error, model.get_latent_representation, adata).startswith(text)


@pytest.mark.parametrize(
    "cells", [np.arange(119, -1, -1), np.array([5]), np.arange(3, 40, 4)], ids=["all", "one", "some"]
)
def test_some_cells_in_any_order_give_the_rows_of_the_whole(adata, model, cells):
    whole = model.get_latent_representation(adata)
    np.testing.assert_allclose(model.get_latent_representation(adata[cells]), whole[cells], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.get_latent_representation(indices=cells), whole[cells], rtol=1e-4, atol=1e-6)
    rho = model.get_normalized_expression(adata, return_numpy=True)
    part = model.get_normalized_expression(adata[cells], return_numpy=True)
    np.testing.assert_allclose(part, rho[cells], rtol=1e-4, atol=1e-8)


def test_covariates_of_new_data_are_scaled_as_the_training_data_were(adata, fit):
    keys = {"continuous_covariate_keys": ["age"], "size_factor_key": "size_factor", "encode_covariates": True}
    model = fit(adata, batch_key="batch", categorical_covariate_keys=["donor"], **keys)
    whole = model.get_latent_representation()
    np.testing.assert_allclose(model.get_latent_representation(adata[:7]), whole[:7], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.get_latent_library_size(adata[:7]), model.get_latent_library_size()[:7], rtol=1e-5)


def test_the_model_reads_the_layer_it_was_trained_on(adata, fit):
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    model = fit(adata, layer="counts")
    np.testing.assert_array_equal(model.get_latent_representation(adata), model.get_latent_representation())
    del adata.layers["counts"]
    assert (
        message_of(KeyError, model.get_latent_representation, adata) == "adata.layers has no 'counts'. There is none."
    )


# ------------------------------------------------------------------------------------------- the user's data stay whole


def everything(model, adata, new):
    """Every output of a model, for the training data and for new data; yields after each."""
    model.train(1, progress_bar=False)
    yield
    for data in (None, new):
        model.get_latent_representation(data, return_variance=True)
        model.get_normalized_expression(data, transform_batch="all", n_samples=2, library_size="latent")
        yield
        model.get_latent_library_size(data)
        model.get_likelihood_parameters(data)
        yield
        model.posterior_predictive_sample(data, indices=[0, 3], n_samples=2)
        yield
        model.get_elbo(data)
        model.get_reconstruction_error(data)
        model.get_marginal_ll(data, n_samples=2)
        yield
    model.generate(10)
    model.describe()
    repr(model)
    yield


@pytest.mark.parametrize("container", [*CONTAINERS, *ODD])
def test_the_users_anndata_is_never_changed(adata, fingerprint, container):
    adata.X = {**CONTAINERS, **ODD}[container](adata.X)
    adata.layers["other"] = adata.X.copy()
    adata.obsm["X_pca"] = np.ones((120, 2))
    adata.uns["a"] = {"b": np.arange(3)}
    before = fingerprint(adata)
    model = sccvae.SCCVAE(
        adata, batch_key="batch", categorical_covariate_keys=["donor"], continuous_covariate_keys=["age"], n_hidden=8
    )
    assert fingerprint(adata) == before
    for _ in everything(model, adata, adata):
        assert fingerprint(adata) == before


def test_the_fingerprint_sees_a_change(adata, fingerprint):
    before = fingerprint(adata)
    assert fingerprint(adata.copy()) == before
    adata.X.data[-1] += 1
    assert fingerprint(adata) != before
    adata.X.data[-1] -= 1
    adata.uns["x"] = 1
    assert fingerprint(adata) != before


# ---------------------------------------------------------------------------------------- names that come twice, layers


def with_twins(adata, names):
    """`adata` with more genes, called `names`."""
    more = ad.AnnData(np.full((120, len(names)), 5.0, dtype=np.float32), obs=adata.obs)
    more.var_names = names
    joined = ad.concat([adata, more], axis=1)
    joined.obs = adata.obs.copy()
    return joined


def test_genes_that_the_model_does_not_know_may_come_twice(adata, model):
    new = with_twins(adata, ["MATR3", "MATR3", "MATR3"])
    expected = model.get_latent_representation(adata)
    np.testing.assert_array_equal(model.get_latent_representation(new), expected)
    shuffled = new[:, np.random.default_rng(0).permutation(63)]
    np.testing.assert_array_equal(model.get_latent_representation(shuffled), expected)


def test_genes_that_the_model_asks_for_may_not(adata, model):
    text = message_of(ValueError, model.get_latent_representation, with_twins(adata, ["gene7", "MATR3", "MATR3"]))
    assert text.startswith("adata.var_names are not unique: 'gene7' appear more than once.")


def test_with_a_mask_only_the_genes_chosen_are_unique(adata):
    mask = np.r_[np.arange(60) % 2 == 0, [False, False]]
    new = with_twins(adata, ["gene1", "gene4"])  # one is not chosen, and one is, but not this
    counts = learn(new, genes=mask)
    np.testing.assert_array_equal(counts.matrix.toarray(), adata.X.toarray()[:, mask[:60]])
    mask[-1] = True
    assert "'gene4' appear more than once" in message_of(ValueError, learn, new, genes=mask)


def test_a_model_of_a_layer_says_where_new_data_hold_their_counts(adata, fit):
    adata.layers["counts"] = adata.X.copy()
    model = fit(adata, layer="counts")
    new = adata.copy()
    del new.layers["counts"]
    text = message_of(KeyError, model.get_latent_representation, new)
    assert text.endswith("adata.X holds counts: adata.layers['counts'] = adata.X.copy().")
    new.layers["counts"] = new.X.copy()
    np.testing.assert_array_equal(model.get_latent_representation(new), model.get_latent_representation())


def test_a_model_of_x_says_how_to_put_the_counts_of_a_layer_there(adata, model):
    expected = model.get_latent_representation(adata)
    adata.layers["counts"], adata.X = adata.X, adata.X.log1p()
    assert "adata.layers['counts'] holds counts: adata.X = adata.layers['counts']." in message_of(
        ValueError, model.get_latent_representation, adata
    )
    adata.X = None
    assert "adata.X = adata.layers['counts']." in message_of(ValueError, model.get_latent_representation, adata)
    adata.X = adata.layers["counts"]
    np.testing.assert_array_equal(model.get_latent_representation(adata), expected)


class LayersWithX(dict):
    """What anndata 0.13 has for layers: `X` is among them, as None."""

    def __init__(self, adata):
        super().__init__({None: adata.X, **dict(adata.layers)})


def test_x_is_no_layer(adata, monkeypatch):
    layers = LayersWithX(adata)
    monkeypatch.setattr(ad.AnnData, "layers", property(lambda self: layers))
    assert matrix.layer_names(adata) == []
    assert message_of(KeyError, sccvae.SCCVAE, adata, layer="q") == "adata.layers has no 'q'. There is none."
    for call in (lambda: sccvae.pl.embedding.pca_of_counts(adata, "q", np.arange(5)),):
        with pytest.raises(KeyError, match=re.escape("which has []")):
            call()


# --------------------------------------------------------------------------------------------------- columns and masks


def test_two_columns_of_one_name_are_named_wherever_they_are_read(adata, model):
    for key in ("batch", "age"):
        adata.obs = pd.concat([adata.obs, adata.obs[[key]]], axis=1)
    text = "adata.obs has 2 columns called '{}'; expected one. Keep one or rename"
    adata.obsm["X_sccvae"] = model.get_latent_representation()
    calls = {
        "batch": [
            lambda: sccvae.SCCVAE(adata, batch_key="batch"),
            lambda: sccvae.SCCVAE(adata, categorical_covariate_keys=["batch"]),
            lambda: model.get_latent_representation(adata),
            lambda: sccvae.tl.integrate(adata, batch_key="batch"),
            lambda: sccvae.tl.rank_genes_groups(adata, model, groupby="batch"),
            lambda: sccvae.tl.score_integration(adata, "batch", "kind", use_rep="X_sccvae"),
            lambda: sccvae.tl.hierarchy(adata, "batch"),
            lambda: sccvae.pl.integration(adata, batch_key="batch"),
        ],
        "age": [
            lambda: sccvae.SCCVAE(adata, continuous_covariate_keys=["age"]),
            lambda: sccvae.SCCVAE(adata, size_factor_key="age"),
            lambda: sccvae.tl.trends(adata, model, ["gene0"], pseudotime="age"),
        ],
    }
    for key, callings in calls.items():
        for call in callings:
            assert message_of(ValueError, call).startswith(text.format(key))
    adata.obs = adata.obs.loc[:, ~adata.obs.columns.duplicated()]  # the cure
    sccvae.SCCVAE(adata, batch_key="batch", continuous_covariate_keys=["age"])


def test_two_columns_of_var(adata):
    adata.var = pd.concat([adata.var, adata.var], axis=1)
    text = message_of(ValueError, sccvae.SCCVAE, adata, mask_var="highly_variable")
    assert text.startswith("adata.var has 2 columns called 'highly_variable';")


@pytest.mark.parametrize("key", [["batch"], {"batch"}, np.array(["batch"])], ids=["list", "set", "array"])
def test_a_key_is_one_name(adata, key):
    assert "is not a name of a column of adata.obs" in message_of(TypeError, sccvae.SCCVAE, adata, batch_key=key)


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (pd.to_datetime(np.arange(120), unit="D"), "has times"),
        (pd.to_datetime(np.arange(120), unit="D", utc=True), "has times"),
        (pd.to_timedelta(np.arange(120), unit="h"), "has times"),
        (pd.Categorical(pd.to_datetime(np.arange(120) % 3, unit="D")), "has times"),
        (np.arange(120) + 1j, "is not numeric"),
        (pd.Categorical(np.arange(120) + 1j), "is not numeric"),
        ((np.arange(120) + 1j).astype(object), "is not numeric"),
        (pd.period_range("2020", periods=120, freq="D"), "is not numeric"),
    ],
    ids=["datetime", "zone", "timedelta", "categories", "complex", "complex_categories", "complex_objects", "period"],
)
@pytest.mark.parametrize("option", ["continuous_covariate_keys", "size_factor_key"])
def test_times_and_complex_numbers_are_no_covariates(adata, column, text, option):
    adata.obs["when"] = column
    key = "when" if option == "size_factor_key" else ["when"]
    found = f"adata.obs['when'] {text} (dtype {adata.obs['when'].dtype})"  # pandas 3 counts times in another unit
    assert message_of(TypeError, sccvae.SCCVAE, adata, **{option: key}).startswith(found)


HALF = np.arange(60) % 2 == 0


@pytest.mark.parametrize(
    "column",
    [HALF.astype(object), pd.array(HALF, dtype="boolean"), HALF.astype(int), HALF.astype("f4"), pd.Categorical(HALF)],
    ids=["objects", "nullable", "integers", "floats", "categories"],
)
def test_a_column_of_var_that_is_clear_is_a_mask(adata, column):
    adata.var["mine"] = column
    assert list(sccvae.SCCVAE(adata, mask_var="mine", n_hidden=4).gene_names) == [f"gene{i}" for i in range(0, 60, 2)]


@pytest.mark.parametrize("mask", [HALF.tolist(), HALF.astype(object), pd.array(HALF, dtype="boolean")])
def test_booleans_in_any_array_are_a_mask(adata, mask):
    assert sccvae.SCCVAE(adata, mask_var=mask, n_hidden=4).gene_names[1] == "gene2"


@pytest.mark.parametrize("missing", [np.nan, None, pd.NA])
def test_a_mask_with_gaps_is_told_how_to_fill_them(adata, missing):
    adata.var["mine"] = HALF.astype(object)
    adata.var.loc[["gene3", "gene4"], "mine"] = missing
    text = message_of(ValueError, sccvae.SCCVAE, adata, mask_var="mine")
    assert "without a value for 2 genes; expected 60 booleans" in text
    cure = "adata.var['mine'] = adata.var['mine'].fillna(False).astype(bool)"
    assert cure in text
    with pd.option_context("future.no_silent_downcasting", True):
        exec(cure, {"adata": adata})
    assert sccvae.SCCVAE(adata, mask_var="mine", n_hidden=4).gene_names[2] == "gene6"


def test_zeros_and_ones_in_an_array_may_be_numbers_of_genes(adata):
    text = message_of(ValueError, sccvae.SCCVAE, adata, mask_var=HALF.astype(int))
    assert text.endswith("Convert zeros and ones: mask_var.astype(bool).")


def test_a_mask_that_carries_names_goes_by_them(adata):
    mask = pd.Series(HALF, index=adata.var_names)
    shuffled = mask.sample(frac=1, random_state=0)
    assert list(sccvae.SCCVAE(adata, mask_var=shuffled, n_hidden=4).gene_names) == list(adata.var_names[HALF])
    text = message_of(ValueError, sccvae.SCCVAE, adata, mask_var=pd.Series(HALF))
    assert text.startswith("mask_var is a Series whose index is not the names of the genes")


def test_size_factors_mean_nothing_to_real_values(adata):
    adata.X = -adata.X.toarray()
    schema, counts = Schema.learn(adata, support="real", size_factor_key="size_factor")
    assert schema.log_size_offset == 0
    assert np.isfinite(counts.log_size).all()


# --------------------------------------------------------------------------------------------- numbers of any magnitude


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "Float64", "Float32", "int64", "bool", "object"])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e9 / 3, 1e300, 1e-300])
def test_covariates_without_spread_whatever_the_rounding(adata, value, dtype):
    with np.errstate(over="ignore"):
        column = pd.Series(np.full(120, value), index=adata.obs_names).astype(dtype.replace("object", "float64"))
    if not np.isfinite(column.to_numpy(dtype=float)).all():
        pytest.skip("the dtype holds no such number")
    adata.obs["c"] = column.astype(dtype)
    schema, counts = Schema.learn(adata, continuous_covariate_keys=["c"])
    assert schema.scales == (1.0,)
    assert np.abs(counts.continuous).max() <= 1e-6 * max(1, min(abs(value), 1e6))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_covariates_that_differ_by_rounding_alone_have_no_spread(adata, dtype):
    third = np.array([1, 3], dtype=dtype) * np.array(0.1, dtype=dtype)
    adata.obs["c"] = np.where(np.arange(120) % 2, third[1], third.dtype.type(0.3)).astype(dtype)
    assert Schema.learn(adata, continuous_covariate_keys=["c"])[0].scales == (1.0,)


@pytest.mark.parametrize("unit", [1.0, 1e30, 1e-30, 1e300, 1e-300, 1e-310])
def test_covariates_of_any_magnitude_are_standardised(adata, unit):
    values = np.random.default_rng(0).normal(3, 0.5, 120)
    adata.obs["c"] = values * unit
    schema, counts = Schema.learn(adata, continuous_covariate_keys=["c"])
    np.testing.assert_allclose(counts.continuous[:, 0], (values - values.mean()) / values.std(), rtol=1e-4, atol=1e-5)
    assert np.isfinite([*schema.means, *schema.scales]).all()


def test_small_differences_of_large_numbers_are_spread(adata):
    adata.obs["c"] = 1.7e9 + np.arange(120) % 2  # seconds
    schema, _ = Schema.learn(adata, continuous_covariate_keys=["c"])
    assert schema.scales == pytest.approx((0.5,))


@pytest.mark.parametrize(("scale", "value"), [(1, 1e300), (1, -1e40), (1, 1e9), (0, 1e9), (1e-30, 1.0)])
def test_covariates_far_from_those_of_training_are_named(adata, scale, value):
    adata.obs["c"] = scale * np.arange(120.0)
    schema, _ = Schema.learn(adata, continuous_covariate_keys=["c"])
    adata.obs.iloc[5, adata.obs.columns.get_loc("c")] = value
    name = adata.obs_names[5]
    message = rf"adata\.obs\['c'\] is {re.escape(f'{value:g}')} at cell '{name}', more than 1e\+06 times .*; expected"
    with pytest.raises(ValueError, match=message):
        schema.read(adata)


@pytest.mark.parametrize("unit", [1.0, 1e30, 1e-30, 1e300, 1e-300])
def test_size_factors_of_any_unit_give_the_same(adata, unit):
    expected = Schema.learn(adata, size_factor_key="size_factor")[1].log_size
    adata.obs["size_factor"] *= unit
    np.testing.assert_allclose(Schema.learn(adata, size_factor_key="size_factor")[1].log_size, expected, atol=1e-5)


@pytest.mark.parametrize("value", [1e300, 1e-300])
def test_a_size_factor_beyond_all_others_is_named(adata, value):
    schema, _ = Schema.learn(adata, size_factor_key="size_factor")
    adata.obs.iloc[7, adata.obs.columns.get_loc("size_factor")] = value
    message = rf"has the size factor {re.escape(f'{value:g}')} at cell '{adata.obs_names[7]}'.*expected size factors"
    with pytest.raises(ValueError, match=message):
        schema.read(adata)
