"""Names: what they mean, and that files keep all that `tl` writes, whatever genes, groups and keys are called."""

from __future__ import annotations

import os
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import warnings_are_errors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sccvae
from sccvae import tl
from sccvae.__main__ import main
from sccvae.validation.names import check_key, distinct_texts, known_as, why_no_key

LONG = bool(os.environ.get("SCCVAE_LONG"))
QUICK = {"max_epochs": 1, "progress_bar": False}
SMALL = {"n_hidden": 4, "n_latent": 2, "prior_components": 2}
FEW = {"n_samples": 10, "batch_correction": False}
VALUES = [  # any of them may be the name of a gene, a group, a batch
    "a", "a/b", "a|b", "/", "a/", "/a", "//", " ", "  a ", ".", "..", "a.", ".a", "a\\b", "'", '"', "1", "1.0", "True",
    "é", "e\u0301", "日本", "😀", "\n", "\t", "_index", "index", "names", "dtype", "all", "rest", "nan", "None", "f0",
    "zarr.json", ".zattrs", ".zgroup", "__a", "%2F", "c", "c/0", "x" * 150, "y" * 300,
]  # fmt: skip
BAD_KEYS = ["", "a/b", "/", "a/", "/a", ".", "..", "a\\b", "a\0b", "_index", "dtype", "zarr.json", ".zattrs", "x" * 300]
GOOD_KEYS = ["k", " ", " k ", "k.k", ".k", "'", '"', "1", "é", "日本", "a|b", "None", "x" * 200]


# ------------------------------------------------------------------------------------------------------ what names mean


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_files_cannot_hold_is_named(key):
    assert why_no_key(key) is not None
    with pytest.raises(ValueError, match=r"^key_added is .*; expected a key for \.h5ad and \.zarr files: ") as error:
        check_key("key_added", key)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("key", GOOD_KEYS)
def test_other_keys_are_taken(key):
    assert why_no_key(key) is None
    check_key("key_added", key)


@pytest.mark.parametrize("key", [None, 1, b"k", ["k"]])
def test_a_key_is_text(key):
    with pytest.raises(TypeError, match=r"key_added is .*; expected a text, such as 'sccvae'"):
        check_key("key_added", key)


def test_a_key_leaves_room_for_what_is_added_to_it():
    check_key("key_added", "é" * 100)
    with pytest.raises(ValueError, match="it takes 202 bytes, and at most 200 are allowed"):
        check_key("key_added", "é" * 101)


@pytest.mark.parametrize("values", [[1, "1"], ["1", 2, 1], [True, "True"], ["nan", float("nan")], [1.0, "1.0"]])
def test_values_that_are_the_same_as_text_are_refused(values):
    with pytest.raises(ValueError, match=r"^here has .* and .*, which are equal as text; .* Merge them"):
        distinct_texts(values, "here")


def test_values_that_differ_as_text_are_taken_in_their_order():
    assert distinct_texts(["b", 1, "1.0", None, " b"], "here") == ("b", "1", "1.0", "None", " b")


@pytest.mark.parametrize(
    ("value", "known", "found"),
    [
        ("a", ("a", "b"), "a"),
        (0.0, ("0", "1"), "0"),
        (np.float32(1), ("0", "1"), "1"),
        (False, ("0", "1"), "0"),
        (np.True_, ("0", "1"), "1"),
        (1, ("0.0", "1.0"), "1.0"),
        (1, ("False", "True"), "True"),
        (1, ("1", "1.0"), "1"),
        (True, ("1", "1.0"), None),  # either
        ("0.0", ("0", "1"), None),  # text may be a name: "01" is not "1"
        (1, ("01", "2"), None),
        (0.5, ("0", "1"), None),
        (float("nan"), ("0", "1"), None),
        (float("inf"), ("0", "1"), None),
    ],
)
def test_a_number_stands_for_the_known_text_of_its_value(value, known, found):
    assert known_as(value, known) == found


# ------------------------------------------------------------------------------------------------------- what is stored


def cells(genes: list[str], groups: list[str], batches: list[str], label="kind", batch="batch") -> ad.AnnData:
    """A few cells with these names; each group and batch has some."""
    n, rng = max(60, 4 * len(groups), 4 * len(batches)), np.random.default_rng(0)
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n)])
    obs[label] = pd.Categorical(np.array(groups, object)[np.arange(n) % len(groups)], categories=groups)
    obs[batch] = pd.Categorical(np.array(batches, object)[rng.permutation(n) % len(batches)], categories=batches)
    counts = rng.poisson(3, (n, len(genes))) + 1.0
    return ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=genes))


def everything(adata, genes, key="k", mask=None, label="kind", batch="batch", **covariates) -> sccvae.SCCVAE:
    """Run every function of `tl` that writes."""
    model = sccvae.SCCVAE(adata, batch_key=batch, mask_var=mask, **covariates, **SMALL)
    model.train(**QUICK)
    tl.store(adata, model, key_added=key)
    tl.rank_genes_groups(adata, model, groupby=label, key_added=f"{key}_ranked", de_options=FEW)
    tl.denoise(adata, model, genes[:2], n_samples=20, key_added=key)
    tl.similarity(adata, model, n_neighbors=5, dense=True, use_rep=f"X_{key}", key_added=f"{key}_near")
    tl.hierarchy(adata, label, key=f"{key}_near", key_added=f"{key}_tree")
    tl.hierarchy(adata, key=f"{key}_near", key_added=f"{key}_leaves")
    tl.gradient(adata, root=0, use_rep=f"X_{key}", n_neighbors=5, n_dcs=3, layout=None, key_added=key)
    lineages = {group: [group] for group in adata.obs[label].cat.categories if (adata.obs[label] == group).sum() > 11}
    adata.obs["when"] = np.linspace(0, 1, adata.n_obs)
    options = {"groupby": label, "lineages": lineages} if lineages else {}
    tl.trends(
        adata, model, genes[:2], pseudotime="when", n_points=5, n_samples=20, key_added=f"{key}_trends", **options
    )
    return model


def assert_same(found, expected, where="") -> None:
    """What was read is what was written, but for the kinds of containers."""
    if isinstance(expected, pd.DataFrame):
        assert list(found.columns) == list(expected.columns), where
        assert list(found.index) == list(expected.index), where
        for column in expected:
            assert_same(found[column].to_numpy(), expected[column].to_numpy(), f"{where}[{column!r}]")
    elif hasattr(expected, "keys"):
        assert set(found.keys()) - {None} == set(expected.keys()) - {None}, where
        for key in set(expected.keys()) - {None}:
            assert_same(found[key], expected[key], f"{where}[{key!r}]")
    elif getattr(expected, "dtype", None) is not None and expected.dtype.names:
        assert found.dtype.names == expected.dtype.names, where
        for name in expected.dtype.names:
            assert list(found[name]) == list(expected[name]), (where, name)
    elif sp.issparse(expected):
        assert (found != expected).nnz == 0, where
    else:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected), err_msg=where)


def assert_files_keep(adata, folder, suffixes=("h5ad", "zarr")) -> None:
    """Both kinds of file give back all that is there, without a word of anndata on the names."""
    for suffix in suffixes:
        path = folder / f"kept.{suffix}"
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*[Ss]lash")  # an error from anndata 0.13 on
            getattr(adata, f"write_{suffix}")(path)
        again = getattr(ad, f"read_{suffix}")(path)
        for place in ("obs", "var", "uns", "obsm", "obsp", "layers"):
            assert_same(getattr(again, place), getattr(adata, place), f"{suffix}: {place}")


def test_files_keep_every_result_whatever_genes_groups_and_batches_are_called(tmp_path):
    adata = cells(VALUES, VALUES[:8], VALUES[8:10])
    with pytest.warns(
        UserWarning, match=r"pts, were left out, since files cannot hold columns called 'a/b', '/', 'a/'"
    ):
        everything(adata, ["a/b", "."])
    assert {"a|b_k", "a|b_k_lower", "._k_upper"} <= set(adata.obs)
    assert adata.uns["k_ranked"]["names"].dtype.names == tuple(VALUES[:8])
    assert "pts" not in adata.uns["k_ranked"]
    assert_files_keep(adata, tmp_path)


@pytest.mark.parametrize("first", range(8, len(VALUES), 9))
def test_files_keep_the_groups(first, tmp_path):
    groups = VALUES[first : first + 9]
    adata = cells(["g", "h", "i"], groups, ["all", "rest"])
    model = sccvae.SCCVAE(adata, **SMALL)
    model.train(**QUICK)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tl.rank_genes_groups(adata, model, groupby="kind", de_options=FEW)
    no_column = [group for group in groups if why_no_key(group)]
    assert any("pts, were left out" in str(w.message) for w in said) == bool(no_column)
    assert ("pts" in adata.uns["rank_genes_groups"]) == (not no_column)
    assert_files_keep(adata, tmp_path)


@pytest.mark.parametrize("key", [" ", " k ", "k.k", ".k", "'", "1", "日本", "x" * 190])
def test_files_keep_the_keys_and_the_columns(key, tmp_path):
    """Columns of the input that files can hold, as keys of batch and covariates, and as groups."""
    adata = cells(["g", "h", "i"], ["a", "b"], ["x", "y"], label=f"{key}l", batch=key)
    adata.obs[f"{key}c"] = pd.Categorical(["u", "v"] * (adata.n_obs // 2))
    covariates = {"categorical_covariate_keys": [f"{key}c"], "continuous_covariate_keys": []}
    everything(adata, ["g"], key=key, label=f"{key}l", batch=key, **covariates)
    assert adata.uns[key]["parameters"]["batch_key"] == key
    assert_files_keep(adata, tmp_path)


@pytest.mark.parametrize("key", ["a/b", "", "..", "a\\b", "_index", None])
def test_every_function_refuses_a_key_that_files_cannot_hold(key, model, adata):
    del adata.var["highly_variable"]
    before = [list(getattr(adata, place)) for place in ("obs", "var", "uns", "obsm", "obsp", "layers")]
    calls = [
        lambda: tl.integrate(adata, key_added=key, train_options=QUICK),
        lambda: tl.store(adata, model, key_added=key),
        lambda: tl.denoise(adata, model, "gene1", key_added=key),
        lambda: tl.rank_genes_groups(adata, model, groupby="kind", key_added=key),
        lambda: tl.similarity(adata, model, key_added=key),
        lambda: tl.similarity(adata, model, use_rep=key),
        lambda: tl.gradient(adata, root=0, key_added=key),
        lambda: tl.trends(adata, model, "gene1", key_added=key),
    ]
    calls += [lambda: tl.hierarchy(adata, "kind", use_rep="z", key_added=key)] * (key is not None)
    for call in calls:
        with pytest.raises((ValueError, TypeError), match=r"expected a key for|expected a text"):
            call()
    assert [list(getattr(adata, place)) for place in ("obs", "var", "uns", "obsm", "obsp", "layers")] == before


def test_the_default_key_of_a_hierarchy_is_checked_too(adata):
    adata.obsm["z"] = np.random.default_rng(0).normal(size=(120, 2))
    adata.obs["my/type"] = adata.obs["kind"]
    with pytest.raises(ValueError, match=r"adata.uns\['dendrogram_my/type'\] could not be stored .* Pass key_added"):
        tl.hierarchy(adata, "my/type", use_rep="z")
    tl.hierarchy(adata, "my/type", use_rep="z", key_added="dendrogram_type")
    assert adata.uns["dendrogram_type"]["groupby"] == ["my/type"]


def test_what_the_model_reads_is_not_written_over(adata, model):
    adata.layers["counts"] = adata.X.copy()
    with pytest.raises(
        ValueError, match=r"key_added is 'counts', so adata.layers\['counts'\], read by the model, would be lost"
    ):
        tl.integrate(adata, layer="counts", key_added="counts", train_options=QUICK)
    adata.obs["k_library"] = adata.obs["size_factor"]
    with pytest.raises(ValueError, match=r"so adata.obs\['k_library'\], read by the model, would be lost"):
        tl.integrate(adata, key_added="k", model_options={"size_factor_key": "k_library"}, train_options=QUICK)
    assert "k" not in adata.uns


def test_genes_whose_columns_would_be_the_same_are_refused():
    adata = cells(["a/b", "a|b", "c", "z" * 250], ["x", "y"], ["1", "2"])
    model = sccvae.SCCVAE(adata, **SMALL)
    model.train(**QUICK)
    with pytest.raises(ValueError, match=r"genes holds 'a/b', 'a\|b', whose columns would have the same name"):
        tl.denoise(adata, model, ["a/b", "c", "a|b"])
    with pytest.raises(ValueError, match=r"The column of gene 'z+' could not be stored in a file: it takes 265 bytes"):
        tl.denoise(adata, model, ["z" * 250])
    assert list(adata.obs) == ["kind", "batch"]


@pytest.mark.parametrize(("group", "found"), [("", "has no name"), ("a\0b", "with a null character")])
def test_a_group_that_no_field_can_be_called_is_refused(model, adata, group, found):
    adata.obs["kind"] = adata.obs["kind"].cat.rename_categories({"w": group})
    with pytest.raises(ValueError, match=rf"^A group of adata.obs\['kind'\] .*{found}: rename it"):
        tl.rank_genes_groups(adata, model, groupby="kind")


def test_a_group_called_rest(model, adata):
    adata.obs["kind"] = adata.obs["kind"].cat.rename_categories({"w": "rest"})
    options = {"groupby": "kind", "groups": ["x"], "de_options": FEW}
    with pytest.warns(
        UserWarning, match=r"reference='rest' means all other cells, and reference=\['rest'\] that group"
    ):
        tl.rank_genes_groups(adata, model, **options, key_added="others")
    tl.rank_genes_groups(adata, model, **options, reference=["rest"], key_added="group")
    counts = adata.X.toarray()
    share = (counts[adata.obs["kind"] == "x"] > 0).mean(0)
    others = (counts[adata.obs["kind"] != "x"] > 0).mean(0)
    np.testing.assert_allclose(adata.uns["others"]["pts"]["x"], share)
    np.testing.assert_allclose(adata.uns["others"]["pts_rest"]["x"], others)
    assert "pts_rest" not in adata.uns["group"]
    assert adata.uns["group"]["params"]["reference"] == "rest"
    with pytest.raises(ValueError, match="reference names 2 groups; expected one, or 'rest'"):
        tl.rank_genes_groups(adata, model, **options, reference=["rest", "y"])


# ------------------------------------------------------------------------------------------- names that mean two things


def test_a_batch_called_all_is_that_batch(adata):
    adata.obs["batch"] = np.where(np.arange(120) % 2, "all", "other")
    with pytest.warns(UserWarning, match="A batch is called 'all'.*list.model.batches. means all of them") as said:
        model = sccvae.SCCVAE(adata, batch_key="batch", **SMALL)
    assert len(said) == 1
    assert said[0].filename == __file__
    model.train(**QUICK)
    assert set(model.generate(50, batch="all").obs["batch"]) == {"all"}
    own, mean = (
        model.get_normalized_expression(transform_batch=b, return_numpy=True) for b in ("all", ["all", "other"])
    )
    np.testing.assert_array_equal(own, model.get_normalized_expression(transform_batch=["all"], return_numpy=True))
    assert np.abs(own - mean).max() > 0
    tl.store(adata, model, expression=True)
    scale = adata.uns["sccvae"]["expression_library_size"]
    np.testing.assert_allclose(adata.layers["sccvae_corrected"], mean * scale, rtol=1e-5)
    adata.obs["when"] = np.linspace(0, 1, 120)
    tl.trends(adata, model, "gene1", pseudotime="when", n_samples=20, key_added="default")
    tl.trends(
        adata, model, "gene1", pseudotime="when", n_samples=20, transform_batch=["all", "other"], key_added="both"
    )
    pd.testing.assert_frame_equal(adata.uns["default"], adata.uns["both"])
    frame = model.differential_expression(groupby="kind", group1="w", n_samples=10)
    renamed = adata.copy()
    renamed.obs["batch"] = np.where(np.arange(120) % 2, "a", "other")
    plain = sccvae.SCCVAE(renamed, batch_key="batch", **SMALL)
    plain.train(**QUICK)
    np.testing.assert_allclose(
        frame["scale1"], plain.differential_expression(groupby="kind", group1="w", n_samples=10)["scale1"], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "key"),
    [(sccvae.SCCVAE, "sccvae_library"), (sccvae.DenoisingAutoencoder, "chain"), (sccvae.DenoisingAutoencoder, "step")],
)
def test_a_batch_column_that_generate_writes_is_refused(adata, kind, key):
    adata.obs[key] = adata.obs["batch"]
    with pytest.raises(ValueError, match=rf"^Batches or a covariate are in obs\['{key}'\], which generate\(\) writes"):
        kind(adata, batch_key=key)


def test_without_a_batch_called_all_nothing_is_said(adata):
    with warnings_are_errors():
        sccvae.SCCVAE(adata, **SMALL)
        adata.obs["batch"] = "all"
        sccvae.SCCVAE(adata, batch_key="batch", **SMALL)


@pytest.mark.parametrize("values", [[1, "1"], [True, "True"], ["1", 1, "2"]])
@pytest.mark.parametrize("what", ["batch_key", "categorical_covariate_keys"])
def test_categories_equal_as_text_are_refused(adata, what, values):
    adata.obs["mixed"] = np.array(values, dtype=object)[np.arange(120) % len(values)]
    with pytest.raises(ValueError, match=r"^adata.obs\['mixed'\] has .* and .*, which are equal as text"):
        sccvae.SCCVAE(adata, **{what: "mixed" if what == "batch_key" else ["mixed"]})


def test_categories_of_new_data_equal_as_text_are_refused(adata):
    adata.obs["mixed"] = np.where(np.arange(120) % 2, "1", "2")
    model = sccvae.SCCVAE(adata, batch_key="mixed", **SMALL)
    model.train(**QUICK)
    adata.obs["mixed"] = np.array(["1", 2, "2", 1], dtype=object)[np.arange(120) % 4]
    with pytest.raises(ValueError, match=r"^adata.obs\['mixed'\] has .* which are equal as text"):
        model.get_latent_representation(adata)


def test_labels_equal_as_text_are_refused(model, adata):
    mixed = np.array([1, "1", "2"], dtype=object)[np.arange(120) % 3]
    with pytest.raises(ValueError, match=r"^groupby has 1 \(int\) and '1' \(str\), which are equal as text"):
        model.differential_expression(adata, groupby=mixed, group1="1")
    adata.obs["mixed"], adata.obsm["z"] = mixed, np.zeros((120, 2))
    for call in (
        lambda: tl.rank_genes_groups(adata, model, groupby="mixed"),
        lambda: tl.gradient(adata, root=("mixed", "1"), use_rep="z"),
        lambda: tl.score_integration(adata, "batch", "mixed", use_rep="z"),
        lambda: model.diagnose(adata, batch_key="mixed"),
    ):
        with pytest.raises(ValueError, match=r"^adata.obs\['mixed'\] has .* which are equal as text"):
            call()


@pytest.mark.parametrize(("known", "new"), [([0, 1], [0.0, 1.0]), ([0, 1], [False, True]), ([0.0, 1.0], [0, 1])])
def test_numbers_of_new_data_stand_for_known_batches_of_their_value(adata, known, new):
    at = np.arange(120) % 2
    adata.obs["batch"] = np.array(known)[at]
    model = sccvae.SCCVAE(adata, batch_key="batch", **SMALL)
    model.train(**QUICK)
    expected = model.get_latent_representation()
    adata.obs["batch"] = np.array(new)[at]
    np.testing.assert_array_equal(model.get_latent_representation(adata), expected)
    by_name = model.get_normalized_expression(transform_batch=model.batches[1], return_numpy=True)
    np.testing.assert_array_equal(model.get_normalized_expression(transform_batch=new[1], return_numpy=True), by_name)
    assert set(model.generate(20, batch=new[1]).obs["batch"]) == {model.batches[1]}
    adata.obs["batch"] = np.array([str(value) + "x" for value in new])[at]
    with pytest.raises(ValueError, match="Unknown category"):
        model.get_latent_representation(adata)


def test_numbers_stand_for_groups_of_their_value(model, adata):
    adata.obs["cluster"] = (np.arange(120) % 3).astype(float)
    by_text = model.differential_expression(adata, groupby="cluster", group1="1.0", group2="2.0", n_samples=10)
    by_number = model.differential_expression(adata, groupby="cluster", group1=1, group2=2, n_samples=10)
    pd.testing.assert_frame_equal(by_text, by_number)
    tl.rank_genes_groups(adata, model, groupby="cluster", groups=[0], reference=2, de_options=FEW)
    assert adata.uns["rank_genes_groups"]["names"].dtype.names == ("0.0",)


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def counts(tmp_path):
    """Path of an .h5ad file whose genes have a slash, some of them highly variable."""
    adata = cells(["Trav1", "Trav1/2", "a", "b"], ["x", "y"], ["1", "2"])
    adata.var["highly_variable"] = [True, True, True, False]
    adata.write_h5ad(tmp_path / "counts.h5ad")
    return tmp_path / "counts.h5ad"


def run(counts, *more) -> int:
    return main(["integrate", str(counts), "-o", str(counts.with_name("out.h5ad")), "--max-epochs", "1", *more])


def test_the_command_line_writes_genes_with_a_slash(counts):
    assert run(counts, "--batch-key", "batch") == 0
    again = ad.read_h5ad(counts.with_name("out.h5ad"))
    assert list(again.var_names) == ["Trav1", "Trav1/2", "a", "b"]
    assert np.isnan(again.layers["sccvae_corrected"]).any(0).tolist() == [False, False, False, True]


@pytest.mark.parametrize("key", ["a/b", "../x", "", ".", "a\\b"])
def test_the_command_line_refuses_keys_before_it_reads(counts, capsys, key, monkeypatch):
    monkeypatch.setattr(ad, "read_h5ad", lambda *_: pytest.fail("read"))
    assert run(counts, "--key-added", key) == 1
    assert capsys.readouterr().err.startswith(
        f"sccvae: error: --key-added is {key!r}; expected a key for .h5ad and .zarr files"
    )
    assert not counts.with_name("out.h5ad").exists()


@pytest.mark.parametrize("columns", [["a", "a/b"], ["a/b", "a"]])
def test_the_command_line_refuses_names_of_the_input_before_training(counts, capsys, columns, monkeypatch):
    """Such a table can be in memory; that a file holds it takes another program, or an old anndata."""
    adata = ad.read_h5ad(counts)
    for column in columns:
        adata.obs[column] = 1.0
    monkeypatch.setattr("sccvae.__main__._read", lambda *_: adata)
    monkeypatch.setattr(sccvae.SCCVAE, "__init__", lambda *_, **__: pytest.fail("model"))
    assert run(counts) == 1
    said = capsys.readouterr().err
    assert "(adata.obs['a/b']: it contains '/'). Rename them first." in said
    assert said.startswith("sccvae: error: ")
    assert said.count("\n") == 1


def test_mask_var_all_means_one_thing(counts, capsys):
    adata = ad.read_h5ad(counts)
    adata.var["all"] = [True, False, True, True]
    adata.write_h5ad(counts)
    assert run(counts, "--mask-var", "all") == 1
    assert "--mask-var all means all genes, but var has a column 'all', too" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ any names

NAMES = st.one_of(st.sampled_from(VALUES), st.text(alphabet="/ .'\"01aé日|\\_-\n", min_size=1, max_size=6))
DISTINCT = st.lists(NAMES, min_size=2, max_size=5, unique=True)
KEYS = st.one_of(st.sampled_from(BAD_KEYS + GOOD_KEYS), st.text(alphabet="/ .'\"01aé日|\\_-", max_size=6))


def storable(name: str) -> bool:
    """Whether a column of the user's own can be called so at all."""
    return why_no_key(name) is None and len(name) < 200


@pytest.mark.slow
@settings(
    max_examples=1500 if LONG else 10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(DISTINCT, DISTINCT, DISTINCT, KEYS, st.tuples(NAMES, NAMES).filter(lambda n: n[0] != n[1]), st.booleans())
def test_any_names(tmp_path_factory, genes, groups, batches, key, columns, masked):
    """All that is written is read again from both kinds of file; or a sentence says what to rename."""
    label, batch = (column if storable(column) else default for column, default in zip(columns, "lb", strict=True))
    adata = cells(genes, groups, batches, label=label, batch=batch)
    mask = np.arange(len(genes)) > 0 if masked else None
    chosen = genes[1:2]
    refused = why_no_key(key) or len(key.encode()) > 180 or len(chosen[0] + key) > 220
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if refused:
            with pytest.raises(ValueError, match=r"expected a key|could not be stored in a file"):
                everything(adata, chosen, key=key, mask=mask, label=label, batch=batch)
            return
        everything(adata, chosen, key=key, mask=mask, label=label, batch=batch)
        assert_files_keep(adata, tmp_path_factory.mktemp("any"))
