"""`tl.denoise`: the columns are the draws' means and quantiles, intervals hold most of the truth."""

from __future__ import annotations

import re

import numpy as np
import pytest
import scanpy as sc
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

import sccvae
from sccvae import tl


def columns_of(adata, genes, ending=""):
    return adata.obs[[f"{gene}_denoised{ending}" for gene in genes]].to_numpy()


def test_columns_are_those_of_the_draws(adata, model):
    before, genes = adata.copy(), ["gene7", "gene3"]
    tl.denoise(adata, model, genes, interval=0.8, n_samples=30, transform_batch="all", seed=4)
    scale = float(np.median(model.get_latent_library_size()))
    draws = model.get_normalized_expression(
        gene_list=genes, transform_batch="all", library_size=scale, n_samples=30, return_mean=False, seed=4
    )
    assert draws.shape == (30, 120, 2)
    np.testing.assert_allclose(columns_of(adata, genes), draws.mean(0), rtol=1e-6)
    # The interval: each draw times a gamma variable, from the counts expected in the 20 nearest cells by definition.
    parameters, z = model.get_likelihood_parameters(), model.get_latent_representation()
    kept = 1 - parameters["dropout"]
    expected = parameters["mean"] * kept
    variance = expected * (1 + parameters["mean"] * (parameters["dropout"] + 1 / parameters["dispersions"]))
    positions = [adata.var_names.get_loc(gene) for gene in genes]
    nearest = np.argsort(cdist(z, z), axis=1)[:, :20]
    n = (expected[nearest].sum(1) ** 2 / variance[nearest].sum(1))[:, positions]
    rng = np.random.default_rng(4)
    shaken = draws * np.stack([rng.standard_gamma(0.5 + n) / (0.5 + n) for _ in draws])
    for ending, tail in (("_lower", 0.1), ("_upper", 0.9)):
        found, by_definition = columns_of(adata, genes, ending), np.quantile(shaken, tail, axis=0)
        assert np.median(np.abs(np.log(found / by_definition))) < 0.25  # other random numbers, 30 draws
        assert abs(np.median(np.log(found / by_definition))) < 0.05
    new = [f"{gene}_denoised{ending}" for gene in genes for ending in ("", "_lower", "_upper")]
    assert list(adata.obs) == [*before.obs, *new]
    assert adata.obs[new].dtypes.eq(np.float32).all()
    assert (adata.X != before.X).nnz == 0
    assert not adata.uns
    # In the units of the layers that tl.integrate writes, whose z is the mean and not drawn.
    at_mean = model.get_normalized_expression(gene_list=genes, transform_batch="all", library_size=scale)
    np.testing.assert_allclose(columns_of(adata, genes).mean(0), at_mean.mean(0), rtol=0.25)


def test_draws_and_their_mean_agree(model):
    options = {"gene_list": ["gene1", "gene0"], "transform_batch": "all", "n_samples": 5, "chunk_size": 50, "seed": 2}
    for library in (1.0, "latent", "observed"):
        draws = model.get_normalized_expression(library_size=library, return_mean=False, **options)
        mean = model.get_normalized_expression(library_size=library, **options).to_numpy()
        np.testing.assert_allclose(draws.mean(0), mean, rtol=1e-5)
    assert draws.std(0).min() > 0
    out = np.empty((5, 120, 2), dtype=np.float32)
    assert model.get_normalized_expression(library_size="observed", return_mean=False, out=out, **options) is out
    np.testing.assert_array_equal(out, draws)
    with pytest.raises(ValueError, match="return_mean=False returns samples: pass their number as n_samples"):
        model.get_normalized_expression(return_mean=False)
    with pytest.raises(ValueError, match=re.escape("expected (n_samples, cells, genes) = (5, 120, 2)")):
        model.get_normalized_expression(return_mean=False, out=out[0], **options)


def test_intervals_hold_the_truth_and_are_narrower_with_more_molecules():
    adata = sccvae.simulate.simulate(600, 80, n_batches=2, n_types=4, dropout=0, mean_library=300, seed=0)
    model = sccvae.SCCVAE(adata, batch_key="batch", gene_likelihood="nb", n_hidden=64, n_latent=10)
    model.train(80, progress_bar=False)
    genes = list(adata.var_names)
    tl.denoise(adata, model, genes, n_samples=50)
    scale = float(np.median(model.get_latent_library_size()))
    truth, lower, upper = (
        scale * adata.layers["rho"],
        columns_of(adata, genes, "_lower"),
        columns_of(adata, genes, "_upper"),
    )
    held = ((lower <= truth) & (truth <= upper)).mean()
    assert 0.85 < held < 0.95
    # Closer to the truth than the counts are, and surer in cells of many molecules than of few.
    counts = adata.X.toarray() / np.asarray(adata.X.sum(1)) * scale
    mean = columns_of(adata, genes)
    assert np.abs(mean - truth).mean() < 0.5 * np.abs(counts - truth).mean()
    depth, width = np.asarray(adata.X.sum(1)).ravel(), ((upper - lower) / mean).mean(1)
    test = spearmanr(depth, width)
    assert test.statistic < -0.1
    assert test.pvalue < 1e-3


@pytest.mark.parametrize("n_cells", [1, 2, 19])
def test_fewer_cells_than_neighbours_all_count(adata, model, n_cells):
    few = adata[:n_cells].copy()
    few.obs_names = [f"new{i}" for i in range(n_cells)]
    tl.denoise(few, model, ["gene5", "gene3"], n_samples=400)
    lower, mean, upper = (columns_of(few, ["gene5", "gene3"], ending) for ending in ("_lower", "", "_upper"))
    assert ((lower >= 0) & (lower < mean) & (mean < upper)).all()


def test_fewer_counts_nearby_leave_more_open(adata, model):
    genes = list(adata.var_names)
    tl.denoise(adata, model, genes)
    few = adata.copy()
    few.X = few.X.copy()
    few.obs_names = [f"few{i}" for i in range(few.n_obs)]
    few.X.data = np.random.default_rng(0).binomial(few.X.data.astype(int), 0.3).astype(np.float32)
    tl.denoise(few, model, genes)
    width = [np.log(columns_of(a, genes, "_upper") / columns_of(a, genes, "_lower")) for a in (adata, few)]
    assert np.median(width[1] - width[0]) > 0.2


def test_models_without_counts_have_draws_alone(adata, fit):
    adata.X = adata.X.log1p()
    model = fit(adata, 2, gene_likelihood="normal")
    tl.denoise(adata, model, "gene5", n_samples=20)
    draws = model.get_normalized_expression(gene_list=["gene5"], n_samples=20, return_mean=False)
    np.testing.assert_allclose(columns_of(adata, ["gene5"], "_upper"), np.quantile(draws, 0.95, axis=0), rtol=1e-5)


def test_scanpy_colours_by_it_and_new_data_are_read(adata, model):
    new = adata[:40, ::-1].copy()
    new.obs_names = [f"new{i}" for i in range(40)]
    tl.denoise(new, model, "gene5", key_added="smooth")
    tl.denoise(adata, model, "gene5", key_added="smooth")
    assert np.corrcoef(new.obs["gene5_smooth"], adata.obs["gene5_smooth"][:40])[0, 1] > 0.9
    assert sc.get.obs_df(new, ["gene5_smooth", "gene5_smooth_upper"]).shape == (40, 2)
    tl.denoise(new, model, "gene5", key_added="smooth", seed=1)  # replaced
    assert list(new.obs.columns).count("gene5_smooth") == 1


def test_errors(adata, model):
    with pytest.raises(ValueError, match="interval is 90; expected a probability"):
        tl.denoise(adata, model, "gene5", interval=90)
    with pytest.raises(ValueError, match="n_samples is 5; expected at least 20"):
        tl.denoise(adata, model, "gene5", n_samples=5)
    with pytest.raises(ValueError, match="genes is empty"):
        tl.denoise(adata, model, [])
    with pytest.raises(ValueError, match="gene_list names 1 unknown gene: 'gene500'"):
        tl.denoise(adata, model, "gene500")
    with pytest.raises(RuntimeError, match="not trained yet"):
        tl.denoise(adata, sccvae.SCCVAE(adata, n_hidden=8), "gene5")
    assert "gene5_denoised" not in adata.obs
