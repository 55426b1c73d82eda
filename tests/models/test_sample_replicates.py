"""`differential_expression` with samples as replicates: designs, tables and messages of a trained model."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import sccvae

N = 640


@pytest.fixture(scope="module")
def adata():
    """Eight donors in two conditions, one half of each donor's cells treated; ten genes up in condition b."""
    cells = sccvae.simulate.simulate(N, 60, seed=0)
    donor = np.arange(N) % 8
    cells.obs["donor"] = [f"d{number}" for number in donor]
    cells.obs["condition"] = np.where(donor < 4, "a", "b")
    cells.obs["treated"] = np.where(np.arange(N) // 8 % 2, "yes", "no")
    cells.obs["sex"] = np.where(donor % 2, "m", "f")
    cells.obs["kind"] = np.where(np.arange(N) % 3, "x", "y")
    dense = cells.X.toarray()
    rng = np.random.default_rng(0)
    for column, level, genes in (("condition", "a", slice(0, 10)), ("treated", "no", slice(10, 20))):
        lower = (cells.obs[column] == level).to_numpy()
        dense[lower, genes] = rng.binomial(dense[lower, genes].astype(int), 0.25)
    cells.X = type(cells.X)(dense)
    return cells


@pytest.fixture(scope="module")
def model(adata):
    model = sccvae.SCCVAE(adata, batch_key="donor", n_hidden=16, n_latent=4)
    model.train(max_epochs=5, progress_bar=False)
    return model


def test_genes_that_differ_between_donors_are_found(model):
    table = model.differential_expression(groupby="condition", group1="b", group2="a", sample_key="donor")
    assert next(name for name in table.columns if name.startswith("is_de")) == "is_de_fdr_0.05"
    called = table.index[table["is_de_fdr_0.05"]]
    true = [f"gene_{k}" for k in range(10)]
    assert len(set(called) & set(true)) >= 5
    assert len(set(called) - set(true)) <= 2
    assert (table.loc[sorted(set(called) & set(true)), "lfc_mean"] > 1).all()
    assert (table[["n_samples1", "n_samples2"]] == 4).all(axis=None)
    assert table["pval"].is_monotonic_increasing
    assert ((table["lfc_low"] <= table["lfc_mean"]) & (table["lfc_mean"] <= table["lfc_high"])).all()
    assert (table["padj"] >= table["pval"]).all()


def test_samples_in_both_groups_are_paired(adata, model):
    yes = (adata.obs["treated"] == "yes").to_numpy()
    table = model.differential_expression(idx1=yes, idx2=~yes, sample_key="donor")
    assert (table[["n_samples1", "n_samples2"]] == 8).all(axis=None)
    assert len(set(table.index[:10]) & {f"gene_{k}" for k in range(10, 20)}) >= 7


def test_the_table_follows_the_samples_and_not_the_order_of_the_cells(adata, model):
    order = np.random.default_rng(1).permutation(N)
    options = {"groupby": "condition", "group1": "b", "sample_key": "donor"}
    plain = model.differential_expression(**options)
    mixed = model.differential_expression(adata[order].copy(), **options).loc[plain.index]
    np.testing.assert_allclose(mixed["pval"], plain["pval"], rtol=1e-4)
    labels = model.differential_expression(**options | {"sample_key": adata.obs["donor"]})
    np.testing.assert_array_equal(labels["pval"], plain["pval"])


def test_each_cell_type_in_one_call(model):
    options = {"groupby": "condition", "group1": "b", "group2": "a", "sample_key": "donor"}
    table = model.differential_expression(**options, by="kind")
    assert table.groupby("kind").size().to_dict() == {"x": 60, "y": 60}
    every = model.differential_expression(**options, by="kind", adjust="all")
    np.testing.assert_array_equal(every["pval"], table["pval"])
    assert not np.array_equal(every["padj"], table["padj"])


def test_covariates_are_adjusted_for(model):
    options = {"groupby": "condition", "group1": "b", "group2": "a", "sample_key": "donor"}
    plain, adjusted = (model.differential_expression(**options, **more) for more in ({}, {"covariates": ["sex"]}))
    assert not np.array_equal(plain["pval"], adjusted["pval"])
    np.testing.assert_array_equal(model.differential_expression(**options, covariates=[])["pval"], plain["pval"])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"sample_key": "dono"}, KeyError, r"adata.obs has no column 'dono'.*did you mean 'donor'"),
        ({"sample_key": "condition"}, ValueError, r"group 1 has 1 sample with.*expected at least two.*Without"),
        ({"covariates": ["sex"]}, ValueError, r"covariates needs sample_key, which is None; pass sample_key"),
        ({"by": "kind"}, ValueError, r"by needs sample_key, which is None; pass sample_key"),
        ({"sample_key": "donor", "covariates": "sex"}, TypeError, r"covariates is 'sex'; expected a list of columns"),
        ({"sample_key": "donor", "covariates": ["kind"]}, ValueError, r"sample 'd0' has 2 values of 'kind'; expected"),
        ({"sample_key": "donor", "covariates": ["condition"]}, ValueError, r"'condition' and the groups are collinear"),
        ({"sample_key": "donor", "adjust": "none"}, ValueError, r"adjust is 'none'; expected one of 'within', 'all'"),
    ],
)
def test_what_cannot_be_tested_is_refused_with_the_reason(model, options, error, text):
    with pytest.raises(error, match=f"(?i){text}"):
        model.differential_expression(groupby="condition", **options)


@pytest.mark.parametrize("n", [2, 3])
def test_few_samples_are_tested_with_a_warning(adata, model, n):
    donor = adata.obs["donor"].str[1:].astype(int)
    with pytest.warns(UserWarning, match=rf"the groups have {n} and {n} samples; expected four or more.*fold change"):
        table = model.differential_expression(idx1=donor < n, idx2=(donor >= 4) & (donor < 4 + n), sample_key="donor")
    assert table["pval"].between(0, 1).all()
    assert (table["n_samples1"] == n).all()


def test_four_samples_in_each_group_raise_no_warning(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.differential_expression(groupby="condition", sample_key="donor")


def test_samples_partly_in_both_groups_are_used_together(adata, model):
    donor, yes = adata.obs["donor"].str[1:].astype(int), adata.obs["treated"] == "yes"
    first, second = yes & (donor < 6), ~yes & (donor >= 2)
    table = model.differential_expression(idx1=first, idx2=second, sample_key="donor")
    assert (table[["n_samples1", "n_samples2"]] == 6).all(axis=None)
    assert len(set(table.index[:10]) & {f"gene_{k}" for k in range(10, 20)}) >= 4
