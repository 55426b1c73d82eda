import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sccvae
from sccvae import tl

SMALL = {"n_hidden": 16, "n_latent": 4}


def test_loadings_are_least_squares_of_the_decoded_log_expression(adata, model):
    tl.gene_programs(adata, model, n_programs=4)
    z, library = model.get_latent_representation(), float(np.median(model.get_latent_library_size()))
    decoded = [model.decode(z, batch=b, library_size=library).astype(float) for b in model.batches]
    y = np.mean([np.log2(part + 0.01) for part in decoded], axis=0)
    scores = adata.obsm["X_gene_programs"].astype(float)
    design = np.column_stack([np.ones(len(z)), scores])
    expected = np.linalg.lstsq(design, y, rcond=None)[0][1:].T
    np.testing.assert_allclose(adata.varm["gene_programs"], expected, atol=1e-4)
    np.testing.assert_allclose(np.cov(scores.T, bias=True), np.eye(4), atol=1e-4)
    of_programs = adata.uns["gene_programs"]["programs"]
    np.testing.assert_allclose(of_programs["variance"], (expected**2).sum(0) / y.var(0).sum(), rtol=1e-3)
    assert of_programs["program"].tolist() == [f"program_{k}" for k in range(1, 5)]


def test_one_batch_and_several(adata, model):
    loadings = {}
    for name, batch in (("a", "a"), ("b", "b"), ("both", ["a", "b"]), ("all", None)):
        tl.gene_programs(adata, model, batch=batch, n_programs=2)
        loadings[name] = adata.varm["gene_programs"].copy()
        assert adata.uns["gene_programs"]["batches"].tolist() == {"both": ["a", "b"], "all": ["a", "b", "c"]}.get(
            name, [name]
        )
    assert np.abs(loadings["a"] - loadings["b"]).max() > 1e-4
    with pytest.raises(ValueError, match="Unknown batch 'x' of 'batch'"):
        tl.gene_programs(adata, model, batch="x")
    with pytest.raises(ValueError, match=r"^batch is an empty list; expected the name of a batch"):
        tl.gene_programs(adata, model, batch=[])


def test_the_table_makes_sets_for_enrichment_tools_and_is_stored(adata, model, tmp_path):
    tl.gene_programs(adata, model, n_genes=5, key_added="mine")
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    assert read.uns["mine"]["stability_over"] == "resamples of cells"
    pd.testing.assert_frame_equal(read.uns["mine"]["programs"], adata.uns["mine"]["programs"], check_dtype=False)
    found = read.uns["mine"]["table"]
    sets = found.groupby(["program", "direction"], observed=True)["gene"].agg(list).to_dict()
    loadings = pd.DataFrame(read.varm["mine"], index=read.var_names)
    assert sets["program_1", "up"] == loadings[0].sort_values(ascending=False).index[:5].tolist()
    assert sets["program_2", "down"] == loadings[1].sort_values().index[:5].tolist()
    row = found.iloc[-1]
    assert row["loading"] == pytest.approx(loadings.loc[row["gene"], loadings.shape[1] - 1], rel=1e-5)


def test_genes_that_are_not_modelled_have_no_loading(adata, fit):
    model = fit(adata, mask_var="highly_variable")
    other = adata[:40, ::-1].copy()
    tl.gene_programs(adata, model, n_programs=2)
    np.testing.assert_array_equal(
        np.isfinite(adata.varm["gene_programs"]).all(1), adata.var["highly_variable"].to_numpy()
    )
    assert not np.isin(adata.uns["gene_programs"]["table"]["gene"], adata.var_names[1::2]).any()
    tl.gene_programs(other, model, n_programs=2)
    assert np.isnan(other.varm["gene_programs"][0]).all() != other.var["highly_variable"].iloc[0]


def test_stability_over_models_and_over_cells(adata, fit):
    first, second = (fit(adata, 5, seed=seed, batch_key="batch") for seed in (0, 1))
    tl.gene_programs(adata, first, models=[first])
    np.testing.assert_allclose(adata.uns["gene_programs"]["programs"]["stability"], 1)
    assert adata.uns["gene_programs"]["stability_over"] == "models"
    tl.gene_programs(adata, first, models=[second], n_programs=3)
    one, mine = adata.uns["gene_programs"]["programs"]["stability"], adata.varm["gene_programs"].copy()
    tl.gene_programs(adata, second, n_programs=3)
    other = adata.varm["gene_programs"]
    expected = np.abs(np.corrcoef(mine.T, other.T)[:3, 3:]).max(1)
    np.testing.assert_allclose(one, expected, atol=1e-5)
    shuffled = fit(adata[:, ::-1].copy(), 2, batch_key="batch")  # genes in another order
    tl.gene_programs(adata, first, models=(second, shuffled))
    assert adata.uns["gene_programs"]["programs"]["stability"].between(0, 1).all()


def test_models_of_other_genes_and_data_without_counts_are_refused(adata, model, fit):
    with pytest.raises(TypeError, match=r"^models is of type SCCVAE; expected a list of trained SCCVAE\.$"):
        tl.gene_programs(adata, model, models=model)
    with pytest.raises(TypeError, match=r"^models\[0\] is of type str; expected a trained SCCVAE\.$"):
        tl.gene_programs(adata, model, models=["x"])
    with pytest.raises(ValueError, match=r"^models\[0\] is not trained"):
        tl.gene_programs(adata, model, models=[sccvae.SCCVAE(adata, **SMALL)])
    with pytest.raises(ValueError, match=r"^models\[0\] models 30 genes by 'zinb'; expected counts of the same 60"):
        tl.gene_programs(adata, model, models=[fit(adata, mask_var="highly_variable")])
    real = fit(adata, gene_likelihood="normal")
    with pytest.raises(ValueError, match="needs a count likelihood; found gene_likelihood='normal'"):
        tl.gene_programs(adata, real)


def test_a_sample_of_cells_is_decoded_and_all_have_scores(adata, model):
    tl.gene_programs(adata, model, max_cells=50, n_programs=2)
    few = adata.obsm["X_gene_programs"].copy()
    assert few.shape == (120, 2)
    tl.gene_programs(adata, model, n_programs=2)
    assert abs(np.corrcoef(few[:, 0], adata.obsm["X_gene_programs"][:, 0])[0, 1]) > 0.8


def test_simulated_programs_are_found():
    """Loadings agree with the slopes of the true log expression on the score of each program."""
    adata = sccvae.simulate.simulate(1500, 80, seed=0)
    model = sccvae.SCCVAE(adata, batch_key="batch")
    model.train(30, progress_bar=False)
    tl.gene_programs(adata, model)
    truth, scores = np.log2(np.asarray(adata.layers["rho_corrected"], float)), adata.obsm["X_gene_programs"]
    slopes = np.cov(scores.T, truth.T)[: scores.shape[1], scores.shape[1] :]
    agreement = [np.corrcoef(a, b)[0, 1] for a, b in zip(slopes, adata.varm["gene_programs"].T, strict=True)]
    assert min(agreement) > 0.8
