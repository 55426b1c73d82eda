import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from matplotlib.collections import PathCollection

import sccvae


@pytest.fixture
def adata():
    adata = sccvae.simulate.simulate(300, 40, seed=0)
    adata.obs["stim"] = np.where(adata.obs["batch"] == "batch_0", "ctrl", "drug")
    return adata


def test_the_table_counts_the_cells_of_each_combination(adata):
    with pytest.warns(UserWarning, match="no batch holds both 'ctrl' and 'drug'"):
        table = sccvae.tl.confounding_table(adata, "batch", "stim", "cell_type")
    assert table.to_numpy().sum() == 300
    cells = (adata.obs["batch"] == "batch_1") & (adata.obs["cell_type"] == "type_2")
    assert table.loc[("batch_1", "drug"), "type_2"] == cells.sum()
    assert len(table.attrs["warnings"]) == 1


def test_crossed_columns_give_no_warning_and_one_column_of_numbers(adata):
    adata.obs["sex"] = np.where(np.arange(300) % 2, "f", "m")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = sccvae.tl.confounding_table(adata, "batch", "sex")
    assert table.columns.tolist() == ["cells"]
    assert table["cells"].sum() == 300


def test_bad_columns_are_one_sentence(adata):
    with pytest.raises(ValueError, match="name 'batch' twice; expected different columns"):
        sccvae.tl.confounding_table(adata, "batch", "batch")
    with pytest.raises(KeyError, match="'donor'"):
        sccvae.tl.confounding_table(adata, "donor")
    adata.obs.loc[adata.obs_names[:3], "stim"] = None
    with pytest.raises(ValueError, match="no value for 3 of 300 cells"):
        sccvae.tl.confounding_table(adata, "batch", "stim")


def treated(n_cells=600, seed=0):
    """Cells of eight donors, four of them with a drug that halves the counts of four genes, and doubles four."""
    adata = sccvae.simulate.simulate(n_cells, 50, seed=seed)
    rng = np.random.default_rng(seed)
    donor = rng.integers(0, 8, n_cells)
    x = adata.X.toarray()
    changed = np.argsort(-x.sum(0))[8:16]
    for genes, cells in ((changed[::2], donor % 2 == 1), (changed[1::2], donor % 2 == 0)):
        x[np.ix_(cells, genes)] = rng.binomial(x[np.ix_(cells, genes)].astype(int), 0.5)
    adata.X = sp.csr_matrix(x.astype(np.float32))
    adata.obs["donor"] = [f"donor_{k}" for k in donor]
    adata.obs["drug"] = np.where(donor % 2 == 1, "drug", "none")
    adata.uns["changed"] = changed
    return adata


@pytest.fixture(scope="module")
def tested():
    adata = treated()
    sccvae.tl.split_counts(adata, seed=1)
    model = sccvae.SCCVAE(adata, layer="split_fit", batch_key="donor", condition_key="drug")
    model.train(max_epochs=100, progress_bar=False)
    sccvae.tl.condition_effect(adata, model, "drug", "none", by="cell_type", held_out="split_held_out", n_samples=5)
    return adata, model


def test_the_two_layers_add_up_to_the_counts_and_have_about_the_fraction():
    adata = treated(100)
    sccvae.tl.split_counts(adata, fraction=0.3, key_added="a")
    assert (adata.layers["a_fit"] + adata.layers["a_held_out"] != adata.X).nnz == 0
    assert 0.28 < adata.layers["a_fit"].sum() / adata.X.sum() < 0.32


def test_the_effect_is_a_layer_with_an_interval_around_it(tested):
    adata, _ = tested
    effect, low, high = (adata.layers[f"condition_effect{ending}"] for ending in ("", "_low", "_high"))
    assert (low < effect).all()
    assert (effect < high).all()
    changed = adata.uns["changed"]
    found = effect.mean(0)
    assert np.allclose(found[changed[::2]], -1, atol=0.6)
    assert np.allclose(found[changed[1::2]], 1, atol=0.6)
    assert np.abs(np.delete(found, changed)).mean() < 0.3


def test_types_and_regions_are_tested_over_samples(tested):
    adata, _ = tested
    by_label, names = adata.uns["condition_effect"]["by_label"], adata.var_names[adata.uns["changed"]]
    assert set(by_label["label"]) == set(adata.obs["cell_type"])
    assert by_label[by_label["gene"].isin(names)]["is_de_fdr_0.05"].mean() > 0.6
    assert by_label[~by_label["gene"].isin(names)]["is_de_fdr_0.05"].mean() < 0.05
    regions = adata.uns["condition_effect"]["regions"]
    assert (regions.loc[names, "padj"] < 0.05).sum() >= 6
    assert (regions.drop(names)["padj"] < 0.05).mean() < 0.05
    cells = np.asarray(adata.obsm["condition_effect_regions"].sum(0)).ravel()
    assert np.array_equal(cells, regions.loc[adata.var_names, "cells"])
    one = by_label.iloc[0]
    of_type = (adata.obs["cell_type"] == one["label"]).to_numpy()
    assert np.isclose(one["effect"], adata.to_df("condition_effect").loc[of_type, one["gene"]].mean(), atol=1e-5)


def test_an_effect_can_be_written_to_a_file_and_read(tested, tmp_path):
    import anndata

    adata, _ = tested
    adata.write_h5ad(tmp_path / "x.h5ad")
    again = anndata.read_h5ad(tmp_path / "x.h5ad")
    assert again.uns["condition_effect"]["by_label"].equals(adata.uns["condition_effect"]["by_label"])


def test_effects_too_large_for_layers_are_tables_of_the_genes_asked_for(tested, monkeypatch):
    adata, model = tested
    monkeypatch.setattr("sccvae.tl.conditions.MAX_LAYER_BYTES", 3 * 4 * adata.n_obs * 10)
    genes = list(adata.var_names[[7, 3]])
    options = {"by": "cell_type", "n_samples": 5, "gene_list": genes, "key_added": "some", "copy": True}
    found = sccvae.tl.condition_effect(adata, model, "drug", "none", **options)
    assert "some" not in found.layers
    for ending in ("", "_low", "_high"):
        whole = adata.to_df(f"condition_effect{ending}")[genes]
        np.testing.assert_allclose(found.obsm[f"some{ending}"][genes], whole, rtol=1e-5, atol=1e-5)
    figure = sccvae.pl.condition_effect(found, genes[0], key="some", basis="z")
    colours = figure.axes[0].collections[-1].get_array()
    assert np.allclose(np.sort(colours), np.sort(found.obsm["some"][genes[0]]))
    with pytest.raises(ValueError, match=r"effects of 50 genes in 600 cells, .* name fewer genes in gene_list"):
        sccvae.tl.condition_effect(adata, model, "drug", "none")


def test_what_is_no_condition_is_one_sentence(tested):
    adata, model = tested
    effect = sccvae.tl.condition_effect
    with pytest.raises(KeyError, match="'new' is not in"):
        effect(adata, model, "drug", "none", held_out="new")
    with pytest.raises(ValueError, match="expected two different conditions"):
        effect(adata, model, "drug", "drug")
    with pytest.raises(ValueError, match="Unknown condition 'dose' of 'drug'"):
        effect(adata, model, "dose", "none")
    with pytest.raises(ValueError, match="expected at least 2, for intervals"):
        effect(adata, model, "drug", "none", n_samples=1)
    plain = sccvae.SCCVAE(adata, layer="split_fit", batch_key="donor")
    plain.train(max_epochs=1, progress_bar=False)
    with pytest.raises(ValueError, match="train one with condition_key="):
        effect(adata, plain, "drug", "none")
    normalised = adata.copy()
    normalised.X = normalised.X * 0.5
    with pytest.raises(ValueError, match="expected raw counts"):
        sccvae.tl.split_counts(normalised)


def test_a_comparison_of_groups_that_share_no_batch_names_the_way_out(tested):
    _, model = tested
    with pytest.warns(UserWarning, match="share no batch"):
        model.differential_expression(groupby="drug", group1="drug", group2="none", n_samples=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.differential_expression(groupby="cell_type", group1="type_1", n_samples=10)
        model.differential_expression(groupby="drug", group1="drug", n_samples=10, batch_correction=False)


def test_genes_are_ranked_over_samples_in_the_format_of_scanpy(tested):
    import scanpy as sc

    adata, model = tested
    adata = adata.copy()
    options = {"sample_key": "donor"}
    sccvae.tl.rank_genes_groups(adata, model, groupby="drug", groups=["drug"], reference="none", de_options=options)
    table = sc.get.rank_genes_groups_df(adata, "drug").set_index("names")
    expected = model.differential_expression(groupby="drug", group1="drug", group2="none", sample_key="donor")
    assert np.allclose(table.loc[expected.index, "pvals"], expected["pval"])
    assert np.allclose(table.loc[expected.index, "pvals_adj"], expected["padj"])
    assert np.allclose(table.loc[expected.index, "logfoldchanges"], expected["lfc_mean"], atol=1e-6)
    with pytest.raises(ValueError, match="Scanpy's format has no cell types"):
        sccvae.tl.rank_genes_groups(adata, model, groupby="drug", de_options=options | {"by": "cell_type"})


def test_the_volcano_of_a_comparison_over_samples_shows_p_values(tested):
    _, model = tested
    table = model.differential_expression(groupby="drug", group1="drug", group2="none", sample_key="donor")
    ax = sccvae.pl.volcano(table).axes[0]
    assert ax.get_ylabel() == "-log10 p-value over samples"
    drawn = np.concatenate([points.get_offsets() for points in ax.collections])
    assert np.allclose(np.sort(drawn[:, 1]), np.sort(-np.log10(table["pval"])))
    with pytest.raises(ValueError, match="several rows of a gene"):
        sccvae.pl.volcano(table.loc[table.index.repeat(2)])


def test_the_figure_of_an_effect_shows_cells_genes_and_samples(tested):
    adata, _ = tested
    gene = adata.var_names[adata.uns["changed"][1]]
    cells, genes, samples = sccvae.pl.condition_effect(adata, gene, basis="z").axes[:3]
    colours = cells.collections[-1].get_array()
    assert np.allclose(np.sort(colours), np.sort(adata.to_df("condition_effect")[gene]))
    table = adata.uns["condition_effect"]["by_label"]
    label = table[table["gene"] == gene].sort_values("pval")["label"].iloc[0]
    assert genes.get_title() == label
    drawn = [part for part in samples.collections if isinstance(part, PathCollection)]  # others are lines of means
    points = np.concatenate([of_level.get_offsets() for of_level in drawn])
    assert len(points) == 8
    rows = (adata.obs["cell_type"] == label) & (adata.obs["donor"] == "donor_1")
    counts = adata[rows.to_numpy()].X.toarray()
    rate = 1e4 * counts[:, adata.var_names.get_loc(gene)].sum() / counts.sum()
    assert np.isclose(points[:, 1], rate).any()
    for options, message in (({"key": "x"}, "no result 'x'"), ({"label": "x"}, "no label 'x'")):
        with pytest.raises(KeyError, match=message):
            sccvae.pl.condition_effect(adata, gene, basis="z", **options)
    with pytest.raises(KeyError, match="no gene 'x'"):
        sccvae.pl.condition_effect(adata, "x", basis="z")
