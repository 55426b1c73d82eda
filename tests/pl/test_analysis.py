"""Pictures of similarity, gradients, trends and changed genes: what is on the axes, and what cannot be drawn."""

from __future__ import annotations

import re
import warnings

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from sccvae import pl, tl
from sccvae.pl.style import palette, spread
from sccvae.simulate import simulate
from sccvae.statistics.posterior_distances import matrix

mpl.use("Agg")


def drawn(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def texts(ax):
    return [text.get_text() for text in ax.texts]


@pytest.fixture(scope="module")
def analysed():
    """Cells with a hierarchy, a gradient and layers. Shared: do not change it."""
    adata = simulate(200, 30, n_types=4, keep_truth=False, mean_library=100)
    adata.obsm["X_sccvae"] = adata.obsm["z"].copy()
    adata.layers["sccvae"] = adata.X.toarray() + 0.5
    tl.hierarchy(adata, "cell_type", use_rep="X_sccvae")
    tl.gradient(adata, root=0)
    return adata


# --------------------------------------------------------------------------------------------------------------- labels


def test_names_that_have_room_stay_and_others_share_it():
    np.testing.assert_allclose(spread(np.array([5.0, 1.0, 9.0]), 1, 0, 10), [5, 1, 9])
    np.testing.assert_allclose(spread(np.array([5.0, 5.0, 5.0]), 1, 0, 10), [4, 5, 6])
    np.testing.assert_allclose(spread(np.array([0.0, 0.1]), 1, 0, 10), [0, 1])
    np.testing.assert_allclose(spread(np.array([10.0, 9.9]), 1, 0, 10), [10, 9])
    np.testing.assert_allclose(spread(np.array([3.0, 1.0, 2.0]), 9, 0, 10), [10, 0, 5])
    assert len(spread(np.array([]), 1, 0, 1)) == 0


def test_spread_keeps_order_distance_and_bounds():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        given = rng.uniform(-2, 12, 15)
        found = spread(given, 0.6, 0, 10)
        assert (np.argsort(found) == np.argsort(given)).all()
        assert np.diff(np.sort(found)).min() > 0.6 - 1e-9
        assert 0 <= found.min() <= found.max() <= 10 + 1e-9


# ----------------------------------------------------------------------------------------------------------- similarity


def test_similarity_orders_cells_by_the_tree(analysed, fingerprint):
    before = fingerprint(analysed)
    figure = pl.similarity(analysed, "cell_type", use_rep="X_sccvae")
    assert isinstance(figure, Figure)
    assert fingerprint(analysed) == before
    ax = figure.axes[0]
    tree = analysed.uns["dendrogram_cell_type"]
    assert texts(ax) == tree["categories_ordered"]
    image = np.asarray(ax.images[0].get_array())
    assert image.shape == (200, 200)
    sizes = [int((analysed.obs["cell_type"] == name).sum()) for name in tree["categories_ordered"]]
    starts = np.cumsum([0, *sizes])
    distances = matrix(analysed.obsm["X_sccvae"], None, metric="euclidean")
    for name, first, last in zip(tree["categories_ordered"], starts[:-1], starts[1:], strict=True):
        cells = np.flatnonzero(analysed.obs["cell_type"] == name)
        block = distances[np.ix_(cells, cells)]
        np.testing.assert_allclose(
            np.sort(image[first:last, first:last], axis=None), np.sort(block, axis=None), rtol=1e-5
        )
    np.testing.assert_allclose(image, image.T, rtol=1e-5)
    tree_ax, bar_ax = ax.child_axes
    assert len(tree_ax.lines) == 3
    colours = dict(zip(analysed.obs["cell_type"].cat.categories, palette(4), strict=True))
    bars = [to_hex(patch.get_facecolor()).lower() for patch in bar_ax.patches]
    assert bars == [colours[name].lower() for name in tree["categories_ordered"]]
    assert figure.axes[1].get_ylabel() == "Euclidean distance in X_sccvae"
    assert drawn(figure).std() > 0


def test_similarity_of_a_sample_and_of_stored_distances(analysed):
    adata = analysed.copy()
    tl.similarity(adata, metric="euclidean", dense=True)
    few = pl.similarity(adata, "cell_type", max_cells=50)
    assert np.asarray(few.axes[0].images[0].get_array()).shape == (50, 50)
    assert few.axes[0].get_title() == "50 cells by cell_type"
    assert few.axes[1].get_ylabel() == "Euclidean distance of posterior means"


def test_similarity_that_cannot_be_drawn(analysed):
    with pytest.raises(KeyError, match=re.escape("'sccvae_similarity_matrix' is not in adata.obsp")):
        pl.similarity(analysed, "cell_type")
    with pytest.raises(KeyError, match=re.escape("run sccvae.tl.hierarchy(adata, 'batch') first")):
        pl.similarity(analysed, "batch", use_rep="X_sccvae")
    adata = analysed[analysed.obs["cell_type"] != analysed.obs["cell_type"].cat.categories[0]].copy()
    with pytest.raises(ValueError, match="have different groups, such as"):
        pl.similarity(adata, "cell_type", use_rep="X_sccvae")


# ------------------------------------------------------------------------------------------------------------- gradient


def test_gradient_shows_pseudotime_the_root_and_the_types(analysed, fingerprint):
    before = fingerprint(analysed)
    figure = pl.gradient(analysed, label_key="cell_type")
    assert fingerprint(analysed) == before
    first, second = figure.axes[:2]
    points = first.collections[1]
    order = np.random.default_rng(0).permutation(200)
    np.testing.assert_allclose(points.get_offsets(), analysed.obsm["X_draw_graph_sccvae"][order])
    np.testing.assert_allclose(points.get_array(), analysed.obs["sccvae_pseudotime"].to_numpy()[order])
    np.testing.assert_allclose(first.collections[2].get_offsets(), analysed.obsm["X_draw_graph_sccvae"][:1])
    names = [text.get_text() for text in second.get_legend().get_texts()]
    assert names == list(analysed.obs["cell_type"].cat.categories)
    assert second.get_xlabel() == "layout sccvae 1"
    assert len(pl.gradient(analysed, basis="z").axes) == 2  # cells and the colour bar
    ax = Figure().add_subplot()
    assert pl.gradient(analysed, ax=ax) is ax.figure
    assert drawn(figure).std() > 0


def test_gradient_without_pseudotime_layout_or_column(analysed):
    with pytest.raises(KeyError, match=re.escape("'x_pseudotime' is not in adata.obs: run sccvae.tl.gradient")):
        pl.gradient(analysed, key="x")
    with pytest.raises(KeyError, match=r"'X_nowhere' is not in adata.obsm"):
        pl.gradient(analysed, basis="X_nowhere")
    with pytest.raises(KeyError, match=r"'typo' is not a column of adata.obs"):
        pl.gradient(analysed, label_key="typo")


# --------------------------------------------------------------------------------------------------------------- trends


def table_of_trends():
    grid = np.linspace(0, 1, 5)
    parts = [
        pd.DataFrame({"lineage": lineage, "gene": gene, "pseudotime": grid, "mean": k + grid, "lower": k + grid - 0.1,
                      "upper": k + grid + 0.2})
        for k, (lineage, gene) in enumerate([("a", "G1"), ("a", "G2"), ("b", "G1"), ("b", "G2")])
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def test_trends_have_a_panel_for_each_gene_and_a_line_with_its_band_for_each_lineage():
    adata = ad.AnnData(obs=pd.DataFrame(index=["c"]), uns={"sccvae_trends": table_of_trends()})
    figure = pl.trends(adata)
    assert [ax.get_title() for ax in figure.axes] == ["G1", "G2"]
    np.testing.assert_allclose(figure.axes[1].lines[1].get_ydata(), 3 + np.linspace(0, 1, 5))
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(-0.1)
    assert band[:, 1].max() == pytest.approx(1.2)
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["a", "b"]
    some = pl.trends(table_of_trends(), ["G2"])
    assert [ax.get_title() for ax in some.axes] == ["G2"]
    assert drawn(some).std() > 0


def test_trends_that_are_not_there():
    adata = ad.AnnData(obs=pd.DataFrame(index=["c"]))
    with pytest.raises(KeyError, match=r"'sccvae_trends' is not in adata.uns: run sccvae.tl.trends"):
        pl.trends(adata)
    with pytest.raises(KeyError, match=re.escape("There is no trend of 'G3'; the table has ['G1', 'G2']")):
        pl.trends(table_of_trends(), "G3")
    with pytest.raises(ValueError, match=re.escape("The table lacks the columns ['upper']")):
        pl.trends(table_of_trends().drop(columns="upper"))


# -------------------------------------------------------------------------------------------------------------- ranking


def changed_genes():
    rng = np.random.default_rng(0)
    change = np.r_[rng.normal(0, 0.1, 40), 3, 2, -2]
    odds = np.r_[np.full(40, -2.0), 50, 20, 12]
    frame = pd.DataFrame({"lfc_median": change, "bayes_factor": odds, "is_de_fdr_0.05": odds > 0})
    return frame.set_axis([*(f"g{i}" for i in range(40)), "Up1", "Up2", "Down"])


def test_volcano_names_the_surest_genes_on_each_side():
    figure = pl.volcano(changed_genes(), n_names=1)
    ax = figure.axes[0]
    assert set(texts(ax)) == {"Up1", "Down"}
    rest, up, down = ax.collections
    assert [len(c.get_offsets()) for c in (rest, up, down)] == [40, 2, 1]
    np.testing.assert_allclose(np.asarray(up.get_offsets()), [[3, 50 / np.log(10)], [2, 20 / np.log(10)]], rtol=1e-6)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["not called (40)", "higher (2)", "lower (1)"]
    assert drawn(figure).std() > 0


def test_volcano_of_one_group_of_several():
    both = pd.concat([changed_genes().assign(group1=g, comparison=f"{g} vs Rest") for g in ("a", "b")])
    assert pl.volcano(both, "b").axes[0].get_title() == "b vs Rest"
    ax = Figure().add_subplot()
    assert pl.volcano(both, "a", ax=ax) is ax.figure
    with pytest.raises(
        ValueError, match=re.escape("The table compares several groups: name one, group=... of ['a', 'b']")
    ):
        pl.volcano(both)
    with pytest.raises(KeyError, match=r"The table has no group 'c'"):
        pl.volcano(both, "c")
    with pytest.raises(ValueError, match=re.escape("lacks the columns ['bayes_factor']")):
        pl.volcano(changed_genes().drop(columns="bayes_factor"))


def test_dots_have_the_colour_of_denoised_expression_and_the_size_of_detection(analysed, fingerprint, monkeypatch):
    import scanpy as sc

    given = {}
    original = sc.pl.dotplot

    def watched(adata, *args, **kwargs):
        given.update(kwargs, x=adata.X.copy())
        return original(adata, *args, **kwargs)

    monkeypatch.setattr(sc.pl, "dotplot", watched)
    before = fingerprint(analysed)
    genes = list(analysed.var_names[[3, 1, 4]])
    figure = pl.dotplot(analysed, {"first": genes[:2], "second": genes[2]}, "cell_type", dendrogram=True)
    assert isinstance(figure, Figure)
    assert fingerprint(analysed) == before
    np.testing.assert_array_equal(given["x"], analysed.layers["sccvae"][:, [3, 1, 4]])
    seen = pd.DataFrame(analysed.X[:, [3, 1, 4]].toarray() > 0, columns=genes)
    expected = seen.groupby(analysed.obs["cell_type"].to_numpy()).mean()
    assert list(given["dot_size_df"].index) == list(expected.index)
    np.testing.assert_allclose(given["dot_size_df"][genes], expected)
    assert drawn(figure).std() > 0


def test_dots_of_a_table_in_obsm_and_of_nothing(analysed):
    adata = analysed.copy()
    genes = list(adata.var_names[:2])
    adata.obsm["some"] = adata.to_df(layer="sccvae")[genes]
    assert isinstance(pl.dotplot(adata, genes, "cell_type", layer="some"), Figure)
    with pytest.raises(KeyError, match=re.escape("adata.obsm['some'] has no gene")):
        pl.dotplot(adata, [adata.var_names[5]], "cell_type", layer="some")
    with pytest.raises(KeyError, match=r"'none' is neither in adata.layers nor a table in adata.obsm"):
        pl.dotplot(adata, genes, "cell_type", layer="none")
    with pytest.raises(KeyError, match=r"'typo' is not a column of adata.obs"):
        pl.dotplot(adata, genes, "typo")


def test_dots_of_groups_that_share_no_batch_are_warned_of():
    adata = simulate(200, 30, n_types=2, keep_truth=False, mean_library=100)
    tl.integrate(adata, batch_key="batch", train_options={"max_epochs": 1})
    genes, batches = list(adata.var_names[:2]), adata.obs["batch"].astype(str)
    adata.obs["drug"] = np.where(batches == batches.iloc[0], "some", "none")
    with pytest.warns(UserWarning, match=r"dotplot: none and some share no batch .*sample_key"):
        pl.dotplot(adata, genes, "drug", layer="sccvae_corrected")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pl.dotplot(adata, genes, "drug")  # decoded in each cell's own batch
        pl.dotplot(adata, genes, "cell_type", layer="sccvae_corrected")
