"""Which data is this about: training data are told by content, labels come from `obs` as it is now, by name."""

from __future__ import annotations

import copy
import gc
import pickle

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from helpers import warnings_are_errors

import sccvae
from sccvae import tl

FEW = {"n_samples": 10, "batch_correction": False}
BY_NAME = "by the names of its cells alone"


@pytest.fixture
def trained(adata, fit):
    """A model of `adata`, which is at hand."""
    return fit(adata, 1, batch_key="batch")


@pytest.fixture
def others(adata, make_adata):
    """Other cells with the same names."""
    others = make_adata(seed=1)
    others.obs_names = adata.obs_names
    return others


def silent(call):
    with warnings_are_errors():
        return call()


# ---------------------------------------------------------------------------------------------------- told by content


def test_the_training_data_are_known(adata, trained):
    dense = adata.copy()
    dense.X = dense.X.toarray()
    reordered = adata[:, ::-1].copy()
    for same in (adata, adata.copy(), adata[:], dense, reordered):
        assert silent(lambda same=same: trained.source_of(same)) is None


def test_other_cells_are_not_though_they_have_the_same_names(adata, trained, others):
    one_count = adata.copy()
    one_count.X = one_count.X.copy()
    one_count.X.data[-1] += 1
    batches = adata.copy()
    batches.obs["batch"] = batches.obs["batch"].cat.rename_categories({"a": "b", "b": "a"})
    renamed, some = adata.copy(), adata[:50].copy()
    renamed.obs_names = [f"{name}-1" for name in renamed.obs_names]
    for other in (others, one_count, batches, renamed, some, adata[np.arange(119, -1, -1)].copy()):
        assert silent(lambda other=other: trained.source_of(other)) is other


def test_the_same_object_with_other_counts_is_other_data(adata, trained, others):
    assert trained.source_of(adata) is None
    adata.X = others.X
    adata.obs["batch"] = others.obs["batch"]
    assert trained.source_of(adata) is adata


def test_counts_beyond_a_byte_are_compared(adata, fit):
    adata.X = adata.X * 300
    model = fit(adata, 1)
    other = adata.copy()
    assert model.source_of(other) is None
    other.X.data[0] += 1
    assert model.source_of(other) is other


@pytest.mark.parametrize("how", ["normalised", "scaled", "gone", "layer"])
def test_where_counts_are_gone_names_tell_with_a_warning(adata, fit, how):
    if how == "layer":
        adata.layers["counts"] = adata.X.copy()
    model = fit(adata, 1, batch_key="batch", layer="counts" if how == "layer" else None)
    if how == "layer":
        del adata.layers["counts"]
    elif how == "gone":
        adata.X = None
    else:
        sc.pp.normalize_total(adata)
        sc.pp.log1p(adata)
        if how == "scaled":
            sc.pp.scale(adata)
    with pytest.warns(UserWarning, match=BY_NAME) as said:
        assert model.source_of(adata) is None
    assert len(said) == 1
    assert said[0].filename == __file__
    assert str(said[0].message).endswith("give other cells other obs_names.")


def test_normalised_cells_of_other_batches_are_refused(adata, trained):
    adata.obs["batch"] = "a"
    sc.pp.log1p(adata)
    with pytest.raises(ValueError, match=r"adata\.X holds values that are not counts"):
        tl.similarity(adata, trained)


def test_other_genes_give_the_usual_error(adata, trained):
    with pytest.raises(ValueError, match="adata lacks genes of the model: 1 unknown gene"):
        tl.similarity(adata[:, 1:].copy(), trained)


def test_empty_cells_give_the_usual_error(adata, trained):
    adata.X = adata.X.toarray()
    adata.X[0] = 0
    with pytest.raises(ValueError, match="1 of 120 cells have no counts"):
        tl.similarity(adata, trained)


def test_a_lost_column_is_taken_from_training_with_a_warning(adata, trained, others):
    expected = trained.get_latent_representation()
    del adata.obs["batch"], others.obs["batch"]
    with pytest.warns(UserWarning, match="adata.obs has no 'batch' any more.*restore the column"):
        tl.similarity(adata, trained)
    np.testing.assert_array_equal(adata.obsm["X_sccvae"], expected)
    with pytest.raises(KeyError, match=r"adata\.obs has no column 'batch'"):
        tl.similarity(others, trained)


def test_every_function_answers_for_the_cells_given(trained, others):
    renamed = others.copy()
    renamed.obs_names = [f"other{i}" for i in range(120)]  # what nobody takes for the training data
    for cells in (others, renamed):
        tl.store(cells, trained)
        tl.similarity(cells, trained, key_added="near", use_rep="X_near", n_neighbors=5)
        tl.denoise(cells, trained, ["gene1"], n_samples=20)
        tl.rank_genes_groups(cells, trained, groupby="kind", de_options=FEW)
        cells.obs["when"] = np.linspace(0, 1, 120)
        tl.trends(cells, trained, "gene1", pseudotime="when", n_samples=20)
    np.testing.assert_array_equal(others.obsm["X_sccvae"], trained.get_latent_representation(others))
    for key in ("X_sccvae", "X_near"):
        np.testing.assert_array_equal(others.obsm[key], renamed.obsm[key])
    for column in ("gene1_denoised", "gene1_denoised_upper", "sccvae_library"):
        np.testing.assert_array_equal(others.obs[column], renamed.obs[column])
    np.testing.assert_array_equal(others.obsp["near_distances"].toarray(), renamed.obsp["near_distances"].toarray())
    pd.testing.assert_frame_equal(others.uns["sccvae_trends"], renamed.uns["sccvae_trends"])
    found, expected = (cells.uns["rank_genes_groups"] for cells in (others, renamed))
    assert found["scores"].tolist() == expected["scores"].tolist()


def test_a_loaded_model_tells_the_data_that_it_was_given(adata, trained, others, tmp_path):
    trained.save(tmp_path / "m")
    loaded = sccvae.SCCVAE.load(tmp_path / "m", others)
    assert loaded.source_of(others) is None
    assert loaded.source_of(adata) is adata
    assert sccvae.SCCVAE.load(tmp_path / "m").source_of(adata) is adata


def test_an_embedding_of_another_model_stays_and_is_said(adata, trained, fit):
    tl.similarity(adata, trained)
    first = adata.obsm["X_sccvae"].copy()
    other = fit(adata, 1, batch_key="batch", seed=5)
    silent(lambda: trained.source_of(adata))
    with pytest.warns(UserWarning, match=r"adata.obsm\['X_sccvae'\] is not the model's embedding of these cells"):
        tl.similarity(adata, other, key_added="second")
    np.testing.assert_array_equal(adata.obsm["X_sccvae"], first)


def test_an_autoencoder_is_asked_itself(adata):
    model = sccvae.Autoencoder(adata, n_hidden=8, n_latent=2)
    model.train(1, progress_bar=False)
    tl.similarity(adata, model, metric="euclidean")
    np.testing.assert_array_equal(adata.obsm["X_sccvae"], model.get_latent_representation())


def test_a_graph_whose_matrices_are_gone_is_named(adata, trained):
    tl.similarity(adata, trained)
    del adata.obsp["sccvae_similarity_distances"]
    with pytest.raises(KeyError, match=r"names 'sccvae_similarity_distances', which adata.obsp lacks"):
        tl.gradient(adata, root=0, neighbors_key="sccvae_similarity")


# ------------------------------------------------------------------------------------------------- obs as it is now


def test_columns_of_a_table_put_in_place_are_seen(adata, trained):
    adata.obs["half"] = np.where(np.arange(120) < 60, "x", "y")
    adata.obs = adata.obs.assign(half=np.where(np.arange(120) < 60, "u", "v"))
    assert set(trained.differential_expression(groupby="half", **FEW).group1) == {"u", "v"}
    adata.obs = adata.obs.join(pd.DataFrame({"more": ["a", "b"] * 60}, index=adata.obs_names))
    assert set(trained.differential_expression(groupby="more", **FEW).group1) == {"a", "b"}
    trained.diagnose(batch_key="more", n_samples=2, n_neighbors=5)


def test_denoise_leaves_the_table_in_place(adata, trained):
    table = adata.obs
    before = table.copy()
    silent(lambda: tl.denoise(adata, trained, list(adata.var_names[:40]), n_samples=20))
    tl.denoise(adata, trained, list(adata.var_names[:40]), n_samples=20)
    assert adata.obs is table
    assert len(table.columns) == len(before.columns) + 120
    pd.testing.assert_frame_equal(table[before.columns], before)
    assert set(table.dtypes.iloc[-120:]) == {np.dtype(np.float32)}

    def add():
        table["leiden"] = ["0", "1"] * 60

    silent(add)  # pandas says where a table is slow
    assert set(trained.differential_expression(groupby="leiden", **FEW).group1) == {"0", "1"}


def test_denoise_of_a_view_writes_to_the_view(adata, trained):
    view = adata[:50]
    with pytest.warns(ad.ImplicitModificationWarning):
        tl.denoise(view, trained, ["gene1", "gene2"], n_samples=20)
    assert not view.is_view
    assert {"gene1_denoised", "gene2_denoised_upper"} <= set(view.copy().obs)
    assert "gene1_denoised" not in adata.obs


def test_cells_filtered_since_are_said(adata, trained):
    adata._inplace_subset_obs(np.arange(120) > 5)
    adata.obs["new"] = "x"
    said = "The cells of the AnnData have changed since the model was built"
    for call in (
        lambda: trained.differential_expression(groupby="new"),
        lambda: trained.diagnose(batch_key="kind"),
        lambda: trained.cross_validate(n_splits=1, progress_bar=False),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_a_column_of_a_copy_is_found_by_passing_it(adata, trained):
    copied = adata.copy()
    copied.obs["leiden"] = ["0", "1"] * 60
    with pytest.raises(KeyError, match=r"adata.obs has no column 'leiden'.*if a copy of it has the column, pass that"):
        trained.differential_expression(groupby="leiden")
    assert set(trained.differential_expression(copied, groupby="leiden", **FEW).group1) == {"0", "1"}


def test_the_table_outlives_its_anndata(adata, fit):
    adata.obs["extra"] = ["0", "1"] * 60
    model = fit(adata[:], 1)  # of a view that nobody holds
    gc.collect()
    assert set(model.differential_expression(groupby="extra", **FEW).group1) == {"0", "1"}


def test_copies_and_other_processes_get_the_table(adata, trained):
    adata.obs["extra"] = ["0", "1"] * 60
    for other in (copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
        assert set(other.differential_expression(groupby="extra", **FEW).group1) == {"0", "1"}
        assert set(copy.deepcopy(other)._obs) == set(adata.obs)


# --------------------------------------------------------------------------------------------- by name, not by position


def test_a_series_of_labels_is_matched_by_name(adata, trained):
    kind = adata.obs["kind"]
    shuffled = kind.iloc[np.random.default_rng(0).permutation(120)]
    expected = trained.differential_expression(groupby="kind", group1="w", **FEW)
    pd.testing.assert_frame_equal(trained.differential_expression(groupby=shuffled, group1="w", **FEW), expected)
    pd.testing.assert_frame_equal(trained.differential_expression(adata, groupby=shuffled, group1="w", **FEW), expected)
    options = {"n_samples": 2, "n_neighbors": 5}
    by_name = trained.diagnose(batch_key=shuffled, **options).table
    pd.testing.assert_frame_equal(by_name, trained.diagnose(batch_key=kind, **options).table)


@pytest.mark.parametrize("how", ["positions", "some", "others"])
def test_a_series_of_other_names_is_refused(adata, trained, how):
    kind = adata.obs["kind"]
    given = {
        "positions": kind.reset_index(drop=True),
        "some": kind.iloc[:-1],
        "others": kind.rename(lambda name: f"{name}-1"),
    }[how]
    for what, call in (
        ("groupby", lambda: trained.differential_expression(groupby=given)),
        ("batch_key", lambda: trained.diagnose(adata, batch_key=given)),
    ):
        with pytest.raises(ValueError, match=rf"^{what} is a Series whose index is not the names of the cells"):
            call()


def test_a_series_over_cells_with_repeated_names_must_be_in_their_order(adata, fit):
    adata.obs_names = ["a", *adata.obs_names[1:-1], "a"]
    model = fit(adata, 1)
    model.differential_expression(groupby=adata.obs["kind"], **FEW)
    with pytest.raises(ValueError, match="groupby is a Series whose index"):
        model.differential_expression(groupby=adata.obs["kind"].iloc[::-1], **FEW)


def test_names_that_are_numbers_match_as_text(adata, fit):
    adata.obs_names = [str(i) for i in range(120)]
    model = fit(adata, 1)
    by_position = model.differential_expression(groupby=adata.obs["kind"].to_numpy(), group1="w", **FEW)
    by_number = model.differential_expression(groupby=adata.obs["kind"].reset_index(drop=True), group1="w", **FEW)
    pd.testing.assert_frame_equal(by_number, by_position)


def test_a_mask_of_genes_is_matched_by_name(adata):
    mask = adata.var["highly_variable"]
    model = sccvae.SCCVAE(adata, mask_var=mask.iloc[::-1], n_hidden=8)
    assert list(model.gene_names) == list(adata.var_names[mask])
    with pytest.raises(ValueError, match="mask_var is a Series whose index is not the names of the genes"):
        sccvae.SCCVAE(adata, mask_var=mask.reset_index(drop=True))


def test_only_names_of_columns_are_taken_where_they_are_written_down(adata, trained):
    with pytest.raises(TypeError, match=r"groupby is a Series; expected the name of a column of adata.obs"):
        tl.rank_genes_groups(adata, trained, groupby=adata.obs["kind"])
    with pytest.raises(TypeError, match="label_key is a Series; expected the name of a column"):
        trained.report("page.html", label_key=adata.obs["kind"])
