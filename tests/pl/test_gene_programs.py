import numpy as np
import pytest

import sccvae


@pytest.fixture
def analysed(adata, model):
    sccvae.tl.gene_programs(adata, model, n_programs=3)
    adata.obsm["X_umap"] = np.random.default_rng(0).standard_normal((120, 2))
    return adata


def test_bars_are_the_largest_loadings_and_colours_the_scores(analysed):
    figure = sccvae.pl.gene_programs(analysed, "program_2", n_genes=6)
    left, right = figure.axes[:2]
    loadings = analysed.varm["gene_programs"][:, 1]
    largest = np.argsort(-np.abs(loadings))[:6]
    np.testing.assert_allclose([bar.get_width() for bar in left.patches], np.sort(loadings[largest])[::-1])
    names = [text.get_text() for text in left.get_yticklabels()]
    assert names == analysed.var_names[largest[np.argsort(-loadings[largest])]].tolist()
    colours = {bar.get_facecolor() for bar in left.patches if bar.get_width() > 0}
    assert len(colours) == 1
    scores = np.asarray(right.collections[0].get_array())
    np.testing.assert_allclose(np.sort(scores), np.sort(analysed.obsm["X_gene_programs"][:, 1]))
    layout = right.collections[0].get_offsets()
    at = int(np.argmax(np.abs(analysed.obsm["X_gene_programs"][:, 1])))
    np.testing.assert_allclose(layout[-1], analysed.obsm["X_umap"][at])
    assert left.get_title(loc="left") == "program 2"
    assert right.get_title().startswith("variance ")


def test_programs_are_chosen_by_name_in_any_order(analysed):
    figure = sccvae.pl.gene_programs(analysed, ["program_3", "program_1"])
    assert [ax.get_title(loc="left") for ax in figure.axes[:4:2]] == ["program 3", "program 1"]
    assert [bool(ax.get_xlabel()) for ax in figure.axes[:4:2]] == [True, True]
    assert len(sccvae.pl.gene_programs(analysed).axes) == 7  # two for each program, and the colour bar


def test_genes_that_are_not_modelled_are_no_bars(adata, fit):
    sccvae.tl.gene_programs(adata, fit(adata, mask_var="highly_variable"), n_programs=1)
    adata.obsm["X_umap"] = np.zeros((120, 2))
    figure = sccvae.pl.gene_programs(adata, n_genes=100)
    assert len(figure.axes[0].patches) == adata.var["highly_variable"].sum()


def test_missing_results_are_one_sentence(adata, analysed):
    with pytest.raises(KeyError, match=r"adata has no result 'x'; expected that of sccvae\.tl\.gene_programs: run it"):
        sccvae.pl.gene_programs(analysed, key="x")
    with pytest.raises(KeyError, match=r"programs holds 'program_9'; adata\.uns\['gene_programs'\] has \['program_1',"):
        sccvae.pl.gene_programs(analysed, ["program_1", "program_9"])
    with pytest.raises(KeyError, match="programs holds an empty list"):
        sccvae.pl.gene_programs(analysed, [])
    with pytest.raises(KeyError, match="'X_tsne' is not in adata"):
        sccvae.pl.gene_programs(analysed, basis="X_tsne")
