"""Data with nothing in them to tell apart: every output is finite, or one sentence says why there is none."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import sccvae
from sccvae import generation, metrics, tl

RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(3, (40, 12)) + (np.arange(12) == 0)
HALVES, ROWS = np.arange(40) // 2 % 2, np.arange(40)

SETS = {
    "one gene": (RNG.poisson(5, (40, 1)) + 1, ROWS % 2, HALVES),
    "one gene that is constant": (np.full((40, 1), 3), ROWS % 2, HALVES),
    "identical cells": (np.tile(np.arange(1, 13), (40, 1)), ROWS % 2, HALVES),
    "cells of one total": (RNG.multinomial(50, np.ones(12) / 12, size=40), ROWS % 2, HALVES),
    "cells of one count": (np.eye(12)[RNG.integers(12, size=40)], ROWS % 2, HALVES),
    "a batch of one total": (np.where(ROWS[:, None] % 2, COUNTS, 2), ROWS % 2, HALVES),
    "a group of one cell": (COUNTS, ROWS % 2, ROWS == 0),
    "a batch of one cell": (COUNTS, ROWS == 0, HALVES),
    "batches of one cell": (COUNTS, ROWS, HALVES),
    "batches that are groups": (COUNTS, HALVES, HALVES),
    "one batch, one group": (COUNTS, ROWS * 0, ROWS * 0),
    "huge counts": (COUNTS * 100_000, ROWS % 2, HALVES),
    "ten cells": (COUNTS[:10], ROWS[:10] % 2, HALVES[:10]),
}


def finite(x) -> bool:
    """Whether all numbers in an array or a table are."""
    if isinstance(x, pd.DataFrame):
        x = x.select_dtypes("number").to_numpy(dtype=float)
    return bool(np.isfinite(x.toarray() if sp.issparse(x) else np.asarray(x, dtype=float)).all())


@pytest.fixture(scope="module", params=SETS)
def held(request):
    """A set of that kind and a model of it."""
    counts, batch, kind = SETS[request.param]
    names = [f"c{i}" for i in range(len(counts))]
    obs = pd.DataFrame({"batch": np.asarray(batch).astype(str), "kind": np.asarray(kind).astype(str)}, index=names)
    var = pd.DataFrame(index=[f"g{i}" for i in range(counts.shape[1])])
    adata = ad.AnnData(sp.csr_matrix(counts, dtype=np.float32), obs=obs, var=var)
    model = sccvae.SCCVAE(adata, batch_key="batch", n_hidden=8, n_latent=3)
    model.train(2, progress_bar=False)
    return adata, model


def test_outputs_are_finite(held):
    adata, model = held
    assert finite(model.get_latent_representation())
    assert finite(model.get_normalized_expression(transform_batch="all"))
    assert finite(model.get_latent_library_size())
    assert np.isfinite([model.get_elbo(), model.get_marginal_ll(n_samples=3)]).all()
    assert finite(model.posterior_predictive_sample())
    assert all(finite(model.generate(20, prior=prior).X) for prior in ("normal", "aggregate"))
    tl.denoise(adata, model, "g0", n_samples=20)
    assert finite(adata.obs[["g0_denoised", "g0_denoised_lower", "g0_denoised_upper"]])


def test_diagnosis_is_finite(held):
    diagnosis = held[1].diagnose()
    assert all(finite(table) for table in (diagnosis.table, diagnosis.units, diagnosis.genes, diagnosis.cells))
    assert diagnosis.batches is None or finite(diagnosis.batches)
    assert "nan" not in str(diagnosis)


@pytest.mark.filterwarnings("ignore:Changing the sparsity structure", "ignore:Some cells have zero counts")
@pytest.mark.slow
@pytest.mark.parametrize("held", ["one gene that is constant", "identical cells"], indirect=True)
def test_figures_and_pages_are_drawn(held, tmp_path):
    adata, model = held
    sccvae.pl.diagnostics(model.diagnose()).savefig(tmp_path / "diagnostics.png", dpi=30)
    sccvae.pl.generation(adata, adata).savefig(tmp_path / "generation.png", dpi=30)
    model.report(tmp_path / "report.html", label_key="kind")
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("options", [{}, {"mode": "vanilla"}, {"delta": None}, {"pseudocount": 0.0}], ids=str)
def test_differential_expression_is_finite(held, options):
    adata, model = held
    if adata.obs["kind"].nunique() == 1:
        with pytest.raises(ValueError, match=r"^groupby has one group, '0'; expected at least two groups of cells\.$"):
            model.differential_expression(groupby="kind", n_samples=10, **options)
    else:
        assert finite(model.differential_expression(groupby="kind", n_samples=10, **options))


def test_trends_along_a_pseudotime_without_spread_are_finite(held):
    adata, model = held
    adata.obs["when"] = 0.1
    tl.trends(adata, model, ["g0"], pseudotime="when", n_samples=20, n_points=3)
    assert finite(adata.uns["sccvae_trends"])


def test_gene_programs_are_finite_or_one_sentence(held):
    adata, model = held
    try:
        tl.gene_programs(adata, model)
    except ValueError as error:
        assert str(error).startswith("gene_programs found cells with one latent representation; expected cells")  # noqa: PT017
        assert model.get_latent_representation().std(0).max() < 1e-4
    else:
        found = adata.uns["gene_programs"]
        assert finite(found["programs"])
        assert finite(found["table"])
        assert finite(adata.varm["gene_programs"])
        assert finite(adata.obsm["X_gene_programs"])


@pytest.mark.parametrize("spread", [0, 1e-17, 1e-300, 1e30, 1e300])
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_scores_of_embeddings_of_any_magnitude(spread):
    z = (0.1 if spread < 1 else 0) + spread * np.random.default_rng(1).standard_normal((60, 3))
    labels, batches = np.arange(60) % 3, np.arange(60) % 2
    assert all(map(np.isfinite, metrics.embedding_scores(z, labels=labels, batches=batches).values()))
    assert np.isfinite(metrics.batch_mixing_entropy(z, batches, 10)).all()


def test_scores_of_embeddings_do_not_depend_on_the_unit():
    z = np.random.default_rng(1).standard_normal((60, 3))
    labels, batches = np.arange(60) % 3, np.arange(60) % 2
    expected = metrics.embedding_scores(z, labels=labels, batches=batches)
    for unit in (1e-30, 1e30, 1e300):
        assert metrics.embedding_scores(z * unit, labels=labels, batches=batches) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"^z has 50 cells; expected at least 51, because scores use 50"):
        metrics.embedding_scores(z[:50], labels=labels[:50])


SCORES = {
    "two_sample_auc": lambda x, y: generation.two_sample_auc(x, y, n_folds=2),
    "mmd": lambda x, y: generation.mmd(x, y, n_permutations=5, bandwidth=1.0),
    "precision_coverage": generation.precision_coverage,
    "spurious": generation.spurious,
    "prior_fit": lambda x, y: generation.prior_fit(x, n_permutations=5),
}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("spread", [0, 1e-17, 1e-300, 1e30])
def test_scores_of_generated_cells_without_spread_or_far_away(score, spread):
    rng = np.random.default_rng(1)
    x, y = ((0.1 if spread < 1 else 0) + spread * rng.standard_normal((30, 3)) for _ in range(2))
    assert np.isfinite(SCORES[score](x, y)).all()


def test_noise_of_rounding_is_no_component_and_tells_nothing_apart():
    rng = np.random.default_rng(1)
    x, y = (0.1 + 1e-17 * rng.standard_normal((30, 3)) for _ in range(2))
    x[:, 0] += np.spacing(0.1)  # in the last digit
    assert generation.two_sample_auc(x, y, n_folds=2) == 0.5
    with pytest.raises(ValueError, match="have identical cells only, without principal components"):
        generation.principal_components(x, y)


@pytest.mark.parametrize("score", SCORES)
def test_numbers_whose_squares_are_infinite_are_named(score):
    x = np.random.default_rng(1).standard_normal((30, 3))
    x[4, 1] = 1e200
    with pytest.raises(ValueError, match=r"has 1 huge values, first in cell 4; expected numbers of at most 1e100"):
        SCORES[score](x, x)
