"""`sccvae.tl`: what is written to an AnnData, that Scanpy goes on from there, and that files keep it."""

from __future__ import annotations

import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from helpers import warnings_are_errors

import sccvae
from sccvae import tl

QUICK = {
    "model_options": {"n_hidden": 16, "n_latent": 4},
    "train_options": {"max_epochs": 2, "progress_bar": False},
}


@pytest.fixture
def plain(adata):
    """`adata` without a column of highly variable genes."""
    del adata.var["highly_variable"]
    return adata


def test_everything_promised_is_written_and_nothing_else(plain):
    before = plain.copy()
    assert tl.integrate(plain, batch_key="batch", **QUICK) is None
    assert {*plain.obsm} == {"X_sccvae"}
    assert {key for key in plain.layers if key is not None} == {"sccvae", "sccvae_corrected"}
    assert {*plain.obs} - {*before.obs} == {"sccvae_library"}
    assert {*plain.uns} == {"sccvae"}
    assert list(plain.var) == list(before.var)
    assert (plain.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(plain.obs[before.obs.columns], before.obs)
    assert plain.obsm["X_sccvae"].shape == (120, 4)
    assert plain.obsm["X_sccvae"].dtype == np.float32
    assert plain.layers["sccvae"].dtype == np.float32
    assert set(plain.uns["sccvae"]) == {"parameters", "history", "versions", "expression_library_size"}
    assert plain.uns["sccvae"]["parameters"]["batch_key"] == "batch"


def test_what_is_written_is_what_the_model_says(plain):
    model = sccvae.SCCVAE(plain, batch_key="batch", seed=3, **QUICK["model_options"])
    model.train(**QUICK["train_options"])
    tl.integrate(plain, batch_key="batch", seed=3, **QUICK)
    library = model.get_latent_library_size()
    scale = float(np.median(library))
    np.testing.assert_array_equal(plain.obsm["X_sccvae"], model.get_latent_representation())
    np.testing.assert_array_equal(plain.obs["sccvae_library"], library)
    assert plain.uns["sccvae"]["expression_library_size"] == scale
    for key, batch in [("sccvae", None), ("sccvae_corrected", "all")]:
        expected = model.get_normalized_expression(transform_batch=batch, library_size=scale)
        np.testing.assert_array_equal(plain.layers[key], expected)
        np.testing.assert_allclose(plain.layers[key].sum(1), scale, rtol=1e-4)
    assert np.abs(plain.layers["sccvae"] - plain.layers["sccvae_corrected"]).max() > 0.01


def test_store_writes_the_same_for_new_data(plain, fit):
    model = fit(plain, 2, batch_key="batch")
    order = np.random.default_rng(0).permutation(60)
    new = plain[:50, order].copy()
    tl.store(new, model, key_added="new")
    np.testing.assert_allclose(new.obsm["X_new"], model.get_latent_representation()[:50], rtol=1e-4, atol=1e-6)
    expected = model.get_normalized_expression(new, gene_list=list(new.var_names)).to_numpy()
    np.testing.assert_allclose(new.layers["new"] / new.uns["new"]["expression_library_size"], expected, rtol=1e-4)


def test_without_batch_key(plain):
    tl.integrate(plain, **QUICK)
    np.testing.assert_array_equal(plain.layers["sccvae"], plain.layers["sccvae_corrected"])
    assert "batch_key" not in plain.uns["sccvae"]["parameters"]


def test_key_added_and_two_runs_side_by_side(plain):
    tl.integrate(plain, batch_key="batch", **QUICK)
    first = plain.obsm["X_sccvae"].copy()
    tl.integrate(plain, batch_key="batch", key_added="vae", seed=7, **QUICK)
    assert {*plain.obsm} == {"X_sccvae", "X_vae"}
    assert {*plain.layers} - {None} == {"sccvae", "sccvae_corrected", "vae", "vae_corrected"}
    assert {"sccvae_library", "vae_library"} <= {*plain.obs}
    assert plain.uns["vae"]["parameters"]["seed"] == 7
    np.testing.assert_array_equal(plain.obsm["X_sccvae"], first)
    assert np.abs(plain.obsm["X_vae"] - first).max() > 0.01


def test_running_again_replaces_and_gives_the_same(plain):
    tl.integrate(plain, batch_key="batch", **QUICK)
    first = plain.copy()
    tl.integrate(plain, batch_key="batch", **QUICK)
    np.testing.assert_array_equal(plain.obsm["X_sccvae"], first.obsm["X_sccvae"])
    np.testing.assert_array_equal(plain.layers["sccvae"], first.layers["sccvae"])


def test_copy_leaves_the_input(adata, fingerprint):
    before = fingerprint(adata)
    result = tl.integrate(adata, batch_key="batch", copy=True, **QUICK)
    assert fingerprint(adata) == before
    assert isinstance(result, ad.AnnData)
    assert "X_sccvae" in result.obsm
    result.X.data[:] = 0
    assert fingerprint(adata) == before


def test_copy_is_no_text(plain):
    with pytest.raises(TypeError, match=r"^copy is 'no'; expected True or False\.$"):
        tl.integrate(plain, batch_key="batch", copy="no", **QUICK)
    assert not plain.obsm


def test_counts_in_a_layer(plain):
    expected = tl.integrate(plain, batch_key="batch", copy=True, **QUICK)
    plain.layers["counts"] = plain.X.copy()
    plain.X = plain.X.log1p()
    tl.integrate(plain, batch_key="batch", layer="counts", **QUICK)
    np.testing.assert_array_equal(plain.obsm["X_sccvae"], expected.obsm["X_sccvae"])
    np.testing.assert_array_equal(plain.layers["sccvae"], expected.layers["sccvae"])


def test_default_mask_is_the_highly_variable_genes(adata):
    chosen = adata.var_names[adata.var["highly_variable"]]
    tl.integrate(adata, batch_key="batch", **QUICK)
    assert {*adata.obsm} == {"X_sccvae"}
    assert {*adata.var} == {"highly_variable", "sccvae_modelled"}
    np.testing.assert_array_equal(adata.var["sccvae_modelled"], adata.var["highly_variable"])
    for key in ("sccvae", "sccvae_corrected"):
        assert adata.layers[key].dtype == np.float32
        known = np.isfinite(adata.layers[key])
        np.testing.assert_array_equal(known, np.tile(adata.var["highly_variable"], (120, 1)))
    assert sc.get.obs_df(adata, [chosen[0]], layer="sccvae_corrected").notna().all(axis=None)
    sc.pl.violin(adata, [chosen[0]], groupby="kind", layer="sccvae_corrected", show=False)
    assert adata.uns["sccvae"]["parameters"]["n_genes"] == 30


@pytest.mark.parametrize(
    ("mask", "n_genes"),
    [(None, 60), ("highly_variable", 30), ("all", 60), ("array", 7)],
)
def test_mask_var(adata, mask, n_genes):
    adata.var["all"] = True
    given = np.arange(60) < 7 if mask == "array" else mask
    if mask == "array":
        adata = adata[np.asarray(adata.X[:, :7].sum(1)).ravel() > 0].copy()
    tl.integrate(adata, batch_key="batch", mask_var=given, **QUICK)
    assert np.isfinite(adata.layers["sccvae"]).all(0).sum() == n_genes
    assert ("sccvae_modelled" in adata.var) == (n_genes < 60)
    assert adata.uns["sccvae"]["parameters"]["n_genes"] == n_genes


def test_with_a_mask_layers_hold_what_the_model_says(adata, fit):
    model = fit(adata, 1, batch_key="batch", mask_var="highly_variable")
    order = np.random.default_rng(0).permutation(60)
    new = adata[:, order].copy()
    tl.store(new, model)
    chosen = new.var_names[new.var["highly_variable"]]
    scale = new.uns["sccvae"]["expression_library_size"]
    expected = model.get_normalized_expression(new, transform_batch="all", library_size=scale, gene_list=chosen)
    found = new[:, chosen].layers["sccvae_corrected"]
    np.testing.assert_array_equal(found, expected.to_numpy())


def test_with_a_mask_what_layers_have_no_room_for_goes_to_obsm(adata, fit, monkeypatch, tmp_path):
    model = fit(adata, 1, batch_key="batch", mask_var="highly_variable")
    tl.store(adata, model)
    expected = adata.layers["sccvae_corrected"][:, adata.var["sccvae_modelled"]]
    monkeypatch.setattr(tl.integration, "MAX_LAYER_BYTES", 2 * 4 * 120 * 45)
    with pytest.warns(
        UserWarning, match=r"went to adata.obsm\['sccvae'\] .*adata\[:, adata.var\['sccvae_modelled'\]\]"
    ):
        tl.store(adata, model)
    assert {*adata.layers} - {None} == set()  # what was there would be of another run
    assert type(adata.obsm["sccvae"]) is np.ndarray
    np.testing.assert_array_equal(adata.obsm["sccvae_corrected"], expected)
    adata.write_h5ad(tmp_path / "narrow.h5ad")
    narrow = ad.read_h5ad(tmp_path / "narrow.h5ad")
    narrow = narrow[:, narrow.var["sccvae_modelled"]].copy()
    narrow.layers["sccvae_corrected"] = narrow.obsm["sccvae_corrected"]
    sc.pl.violin(narrow, [narrow.var_names[0]], groupby="kind", layer="sccvae_corrected", show=False)
    tl.store(adata, model, expression=True)
    assert {*adata.layers} - {None} == {"sccvae", "sccvae_corrected"}
    monkeypatch.setattr(tl.integration, "MAX_LAYER_BYTES", 2 * 4 * 120 * 29)
    with pytest.warns(UserWarning, match="Expression was left out"):
        tl.store(adata, model)
    assert {*adata.obsm} == {"X_sccvae"}
    assert {*adata.layers} - {None} == set()


def test_what_another_run_left_under_the_key_goes_and_nothing_else(adata, fit):
    adata.layers["sccvae"] = adata.X.copy()  # a user's own, until the key is written over
    tl.store(adata, fit(adata, 1, mask_var="highly_variable"), expression=False)
    assert {*adata.layers} - {None} == {"sccvae"}
    tl.store(adata, fit(adata, 1, mask_var="highly_variable"))
    tl.store(adata, fit(adata, 1), expression=False)
    assert {*adata.layers} - {None} == set()
    assert "sccvae_modelled" not in adata.var
    assert adata.obsm["X_sccvae"].shape == (120, 4)


@pytest.mark.parametrize("mask", [..., None])
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_files_keep_everything(adata, tmp_path, mask, suffix):
    adata.obs["age_group"] = "x"
    options = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"], **QUICK["model_options"]}
    tl.integrate(adata, batch_key="batch", mask_var=mask, model_options=options, train_options=QUICK["train_options"])
    path = tmp_path / f"integrated.{suffix}"
    if suffix == "h5ad":
        adata.write_h5ad(path)
        again = ad.read_h5ad(path)
    else:
        adata.write_zarr(path)
        again = ad.read_zarr(path)
    np.testing.assert_array_equal(again.obsm["X_sccvae"], adata.obsm["X_sccvae"])
    for key in ("sccvae", "sccvae_corrected"):
        np.testing.assert_array_equal(again.layers[key], adata.layers[key])
    found, expected = again.uns["sccvae"], adata.uns["sccvae"]
    for column in expected["history"]:
        np.testing.assert_array_equal(found["history"][column], expected["history"][column])
    assert dict(found["versions"]) == expected["versions"]
    assert set(found["parameters"]) == set(expected["parameters"])
    assert list(found["parameters"]["n_levels"]) == [3, 2]
    assert list(found["parameters"]["categorical_covariate_keys"]) == ["donor"]
    assert found["parameters"]["n_latent"] == 4
    np.testing.assert_allclose(found["parameters"]["means"], [adata.obs["age"].mean()])


@pytest.mark.slow  # scanpy compiles its own kernels
def test_scanpy_goes_on(plain):
    tl.integrate(plain, batch_key="batch", **{**QUICK, "train_options": {"max_epochs": 60, "progress_bar": False}})
    sc.pp.neighbors(plain, use_rep="X_sccvae", n_neighbors=10)
    sc.tl.leiden(plain, flavor="igraph", n_iterations=2, directed=False)
    assert plain.obsp["connectivities"].shape == (120, 120)
    assert 1 <= plain.obs["leiden"].nunique() < 40
    sc.pp.log1p(plain, layer="sccvae_corrected")
    sc.tl.rank_genes_groups(plain, "kind", layer="sccvae_corrected")
    assert len(plain.uns["rank_genes_groups"]["names"]) == 60


@pytest.mark.parametrize("expression", [None, True, False])
def test_matrices_above_two_gibibytes_are_left_out_unless_asked(plain, monkeypatch, expression):
    monkeypatch.setattr(tl.integration, "MAX_LAYER_BYTES", 2 * 4 * 120 * 60 - 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tl.integrate(plain, batch_key="batch", expression=expression, **QUICK)
    assert ("sccvae" in plain.layers) == (expression is True)
    assert ("sccvae_corrected" in plain.layers) == (expression is True)
    assert "X_sccvae" in plain.obsm
    ours = [w for w in caught if "Expression was left out" in str(w.message)]
    assert len(ours) == (expression is None)
    if ours:
        assert "more than 2 GiB" in str(ours[0].message)
        assert "expression=True" in str(ours[0].message)


@pytest.mark.parametrize("through", ["integrate", "store"])
def test_the_warning_points_at_the_users_line(plain, fit, monkeypatch, through):
    model = fit(plain)
    monkeypatch.setattr(tl.integration, "MAX_LAYER_BYTES", 1)
    with pytest.warns(UserWarning, match="Expression was left out") as caught:
        tl.integrate(plain, **QUICK) if through == "integrate" else tl.store(plain, model)
    assert caught[0].filename == __file__


def test_matrices_of_just_two_gibibytes_are_stored(plain, monkeypatch):
    monkeypatch.setattr(tl.integration, "MAX_LAYER_BYTES", 2 * 4 * 120 * 60)
    with warnings_are_errors():
        tl.integrate(plain, batch_key="batch", **QUICK)
    assert plain.layers["sccvae"].shape == (120, 60)


def test_the_limit_is_two_gibibytes():
    assert tl.integration.MAX_LAYER_BYTES == 2**31


def test_a_view_becomes_a_copy_of_its_own(plain, fingerprint):
    before = fingerprint(plain)
    cells = np.random.default_rng(0).permutation(120)[:80]
    expected = plain[cells].copy()
    tl.integrate(expected, batch_key="batch", **QUICK)
    view = plain[cells]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tl.integrate(view, batch_key="batch", **QUICK)
    assert not view.is_view
    assert fingerprint(plain) == before
    np.testing.assert_array_equal(view.obsm["X_sccvae"], expected.obsm["X_sccvae"])
    np.testing.assert_array_equal(view.layers["sccvae_corrected"], expected.layers["sccvae_corrected"])
    np.testing.assert_array_equal(view.obs["sccvae_library"], expected.obs["sccvae_library"])


@pytest.mark.parametrize("container", ["csr", "dense"])
def test_a_backed_file_is_integrated_in_memory_and_stays_as_it_was(plain, tmp_path, container):
    plain.X = plain.X.toarray() if container == "dense" else plain.X
    expected = tl.integrate(plain, batch_key="batch", copy=True, **QUICK)
    path = tmp_path / "counts.h5ad"
    plain.write_h5ad(path)
    content = path.read_bytes()
    backed = ad.read_h5ad(path, backed="r")
    tl.integrate(backed, batch_key="batch", **QUICK)
    np.testing.assert_array_equal(backed.obsm["X_sccvae"], expected.obsm["X_sccvae"])
    np.testing.assert_array_equal(backed.layers["sccvae"], expected.layers["sccvae"])
    assert backed.isbacked
    backed.file.close()
    assert path.read_bytes() == content


def test_a_copy_of_a_backed_file_is_refused_before_training_or_made_in_memory(plain, tmp_path, monkeypatch):
    plain.write_h5ad(tmp_path / "counts.h5ad")
    backed = ad.read_h5ad(tmp_path / "counts.h5ad", backed="r")
    trained = []
    monkeypatch.setattr(sccvae.SCCVAE, "train", _counting(sccvae.SCCVAE.train, trained))
    try:
        result = tl.integrate(backed, batch_key="batch", copy=True, **QUICK)
    except ValueError as error:
        assert "to_memory" in str(error) or "copy" in str(error)  # noqa: PT017  either of two answers is right
        assert not trained
    else:
        assert "X_sccvae" in result.obsm
        assert "X_sccvae" not in backed.obsm
    finally:
        backed.file.close()


def _counting(function, calls):
    def counted(*arguments, **options):
        calls.append(1)
        return function(*arguments, **options)

    return counted


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli"])
def test_likelihoods_without_a_library(plain, likelihood):
    plain.X = sp.csr_matrix(plain.X > 0, dtype=np.float32) if likelihood == "bernoulli" else plain.X.log1p()
    options = {"gene_likelihood": likelihood, **QUICK["model_options"]}
    tl.integrate(plain, batch_key="batch", model_options=options, train_options=QUICK["train_options"])
    assert "sccvae_library" not in plain.obs
    assert plain.uns["sccvae"]["expression_library_size"] == 1.0
    assert np.isfinite(plain.layers["sccvae"]).all()


def test_options_reach_the_model_and_its_training(plain):
    tl.integrate(
        plain,
        model_options={"n_latent": 7, "n_hidden": 9, "gene_likelihood": "nb"},
        train_options={"max_epochs": 3, "train_size": 1.0, "progress_bar": False},
    )
    assert plain.obsm["X_sccvae"].shape == (120, 7)
    parameters = plain.uns["sccvae"]["parameters"]
    assert (parameters["n_hidden"], parameters["gene_likelihood"]) == (9, "nb")
    assert len(plain.uns["sccvae"]["history"]) == 3


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"batch_key": "bach"}, KeyError, "adata.obs has no column 'bach'. Did you mean 'batch'?"),
        ({"mask_var": "hvg"}, KeyError, "adata.var has no column 'hvg'."),
        ({"mask_var": np.ones(3, dtype=bool)}, ValueError, "mask_var has dtype bool and shape (3,)"),
        ({"layer": "counts"}, KeyError, "adata.layers has no 'counts'."),
        ({"model_options": {"n_latent": 0}}, ValueError, "n_latent is 0"),
        ({"train_options": {"train_size": 2}}, ValueError, "train_size is 2"),
    ],
    ids=["batch_key", "mask_name", "mask_shape", "layer", "model_option", "train_option"],
)
def test_a_failed_run_writes_nothing(adata, fingerprint, options, error, text):
    before = fingerprint(adata)
    with pytest.raises(error, match="^" + re.escape(text)):
        tl.integrate(adata, **options)
    assert fingerprint(adata) == before


@pytest.mark.parametrize("thing", [np.ones((3, 4)), None, []], ids=["array", "None", "list"])
def test_only_an_anndata_will_do(thing):
    with pytest.raises(TypeError, match=f"^adata is a {type(thing).__name__}; expected an AnnData"):
        tl.integrate(thing)


# --------------------------------------------------------------------------------------------------- rank_genes_groups


@pytest.fixture(scope="module")
def ranked(make_adata, fit):
    """Normalised data, as they are when plots are made, with the ranking of a model that was built on the counts."""
    adata = make_adata(160, 80)
    del adata.var["highly_variable"]
    model = fit(adata, 20, batch_key="batch")
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    tl.rank_genes_groups(adata, model, groupby="kind")
    return adata, model


def test_ranking_is_what_the_model_says(ranked):
    adata, model = ranked
    table = model.differential_expression(groupby="kind")
    for kind in "wxyz":
        expected = table[table["group1"] == kind]
        found = sc.get.rank_genes_groups_df(adata, kind).set_index("names")
        assert (np.diff(found["scores"]) <= 0).all()
        found = found.loc[expected.index]
        np.testing.assert_allclose(found["logfoldchanges"], expected["lfc_median"], rtol=1e-5)
        np.testing.assert_allclose(found["pvals"], 1 - expected["proba_de"], atol=1e-9)
        np.testing.assert_array_equal(found["pvals_adj"] <= 0.05, expected["is_de_fdr_0.05"])
        np.testing.assert_array_equal(np.sign(found["scores"]), np.sign(expected["lfc_median"]))
        np.testing.assert_allclose(np.exp(-found["scores"].abs()), found["pvals"], rtol=1e-3, atol=1e-30)
        np.testing.assert_allclose(found["pct_nz_group"], expected["non_zeros_proportion1"])
        np.testing.assert_allclose(found["pct_nz_reference"], expected["non_zeros_proportion2"])
        assert 0 < expected["is_de_fdr_0.05"].sum() < 80


def test_scanpy_plots_and_filters_the_ranking(ranked):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    adata = ranked[0].copy()
    sc.pp.pca(adata, n_comps=5)  # of which the plot makes its dendrogram
    shown = sc.pl.rank_genes_groups_dotplot(adata, n_genes=3, show=False)
    labels = [text.get_text() for text in shown["mainplot_ax"].get_xticklabels()]
    names = adata.uns["rank_genes_groups"]["names"]
    assert sorted(labels) == sorted(gene for kind in "wxyz" for gene in names[kind][:3])
    sc.pl.rank_genes_groups_dotplot(adata, n_genes=3, values_to_plot="logfoldchanges", show=False, dendrogram=False)
    sc.pl.rank_genes_groups(adata, n_genes=3, show=False)
    sc.pl.rank_genes_groups_heatmap(adata, n_genes=3, show=False, dendrogram=False)
    sc.tl.filter_rank_genes_groups(adata, min_fold_change=1)
    kept = pd.DataFrame(adata.uns["rank_genes_groups_filtered"]["names"])["w"].notna()
    assert 0 < kept.sum() < 80
    matplotlib.pyplot.close("all")


def test_ranking_against_one_group_survives_a_file(ranked, tmp_path):
    adata, model = ranked[0].copy(), ranked[1]
    options = {"groupby": "kind", "groups": ["x", "y"], "reference": "z", "n_genes": 7, "key_added": "de"}
    tl.rank_genes_groups(adata, model, **options, de_options={"delta": 0.5})
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    found = sc.get.rank_genes_groups_df(read, None, key="de")
    assert list(found["group"].unique()) == ["x", "y"]
    assert len(found) == 14
    assert read.uns["de"]["params"]["reference"] == "z"
    assert read.uns["de"]["params"]["delta"] == 0.5
    assert "pts_rest" not in read.uns["de"]
    pd.testing.assert_frame_equal(
        found[["names", "logfoldchanges"]],
        sc.get.rank_genes_groups_df(adata, None, key="de")[["names", "logfoldchanges"]],
    )


def test_ranking_of_new_data_reads_their_own_counts(ranked, make_adata):
    new = make_adata(160, 80, 5)
    new.obs_names = [f"new{i}" for i in range(160)]
    tl.rank_genes_groups(new, ranked[1], groupby="kind", groups="w")
    expected = ranked[1].differential_expression(new, groupby="kind", group1="w")
    found = sc.get.rank_genes_groups_df(new, "w").set_index("names").loc[expected.index]
    np.testing.assert_allclose(found["logfoldchanges"], expected["lfc_median"], rtol=1e-5)
    sc.pp.log1p(new)
    with pytest.raises(ValueError, match=r"^adata\.X holds values that are not counts"):
        tl.rank_genes_groups(new, ranked[1], groupby="kind")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"groupby": "kin"}, KeyError, "adata.obs has no column 'kin'. Did you mean 'kind'?"),
        ({"groupby": "kind", "groups": ["v"]}, ValueError, "group1 'v' is unknown; the groups are 'w', 'x', 'y', 'z'."),
        ({"groupby": "kind", "reference": "v"}, ValueError, "group2 'v' is unknown;"),
        ({"groupby": "kind", "de_options": {"mode": "vanilla"}}, ValueError, "de_options has mode='vanilla';"),
    ],
)
def test_a_ranking_that_cannot_be_made_writes_nothing(ranked, options, error, text):
    adata = ranked[0].copy()
    with pytest.raises(error, match="^" + re.escape(text)):
        tl.rank_genes_groups(adata, ranked[1], key_added="other", **options)
    assert "other" not in adata.uns
