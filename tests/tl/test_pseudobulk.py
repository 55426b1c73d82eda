"""Sums of each sample: values against pandas, inputs of each kind, design, expected counts, errors."""

from __future__ import annotations

import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import sccvae
from sccvae import tl

MODULE = sys.modules["sccvae.tl.pseudobulk"]  # as an attribute of `tl` it is the function


@pytest.fixture
def donors(adata) -> ad.AnnData:
    """Cells of 6 donors, 3 in each condition, in 4 kinds; donor d5 has no cell of kind z."""
    number = np.arange(adata.n_obs) % 6
    adata.obs["donor"] = pd.Categorical(np.array(["d3", "d1", "d2", "d6", "d4", "d5"])[number])
    adata.obs["condition"] = pd.Categorical(
        np.where(number < 3, "stim", "ctrl"), categories=["stim", "unused", "ctrl"], ordered=True
    )
    adata.obs["weight"] = np.array([60.5, 71, 82, np.nan, 54, 63])[number]
    adata.obs["several"] = np.where(np.arange(adata.n_obs) % 7 == 0, np.nan, 1.0)
    return adata[~((adata.obs["donor"] == "d5") & (adata.obs["kind"] == "z"))].copy()


def by_pandas(adata: ad.AnnData, keys: list[str]) -> pd.DataFrame:
    counts = pd.DataFrame(adata.X.toarray().astype(np.float64), columns=adata.var_names)
    return counts.groupby([adata.obs[key].to_numpy() for key in keys], observed=True).sum()


def test_the_sums_are_those_of_pandas_with_the_design_of_the_samples(donors):
    bulk = tl.pseudobulk(donors, "donor", "kind")
    expected = by_pandas(donors, ["kind", "donor"])
    np.testing.assert_array_equal(bulk.X, expected)
    assert bulk.obs_names.tolist() == [f"{donor}_{kind}" for kind, donor in expected.index]
    assert "d5_z" not in bulk.obs_names
    assert bulk.n_obs == 23
    assert bulk.obs.columns.tolist() == ["donor", "kind", "condition", "weight", "n_cells", "total_counts"]
    assert bulk.obs["condition"].cat.categories.tolist() == ["stim", "ctrl"]
    assert bulk.obs["condition"].cat.ordered
    cells = donors.obs.groupby(["kind", "donor"], observed=True).size()
    np.testing.assert_array_equal(bulk.obs["n_cells"], cells)
    np.testing.assert_array_equal(bulk.obs["total_counts"], expected.sum(axis=1))
    assert bulk.obs.loc["d3_w", "weight"] == 60.5
    assert np.isnan(bulk.obs.loc["d6_w", "weight"])
    pd.testing.assert_frame_equal(bulk.var, donors.var)


def test_without_types_there_is_a_row_for_each_sample(donors):
    bulk = tl.pseudobulk(donors, "donor")
    np.testing.assert_array_equal(bulk.X, by_pandas(donors, ["donor"]))
    assert bulk.obs_names.tolist() == ["d1", "d2", "d3", "d4", "d5", "d6"]
    assert bulk.X.dtype == np.float64
    assert (np.rint(bulk.X) == bulk.X).all()


def kinds_of_input(adata: ad.AnnData, path) -> dict[str, ad.AnnData]:
    found = {
        name: ad.AnnData(x, obs=adata.obs, var=adata.var)
        for name, x in {
            "dense": adata.X.toarray(),
            "integers": adata.X.toarray().astype(np.int32),
            "csc": adata.X.tocsc(),
            "csr_array": sp.csr_array(adata.X),
            "layer": None,
        }.items()
    }
    found["layer"].layers["counts"] = adata.X
    twice = ad.concat([adata, adata], label="copy", index_unique="-")
    twice.var = adata.var
    found["view"] = twice[twice.obs["copy"] == "1"]
    for form in ("csr", "csc", "array"):
        stored = adata.copy()
        stored.X = adata.X.toarray() if form == "array" else adata.X.asformat(form)
        stored.write_h5ad(path / f"{form}.h5ad")
        found[f"backed {form}"] = ad.read_h5ad(path / f"{form}.h5ad", backed="r")
    return found


def test_every_kind_of_input_gives_the_same_sums_and_stays_as_it_was(donors, tmp_path, monkeypatch, fingerprint):
    monkeypatch.setattr("sccvae.data.matrix.BLOCK_BYTES", 8 * 60 * 7)  # seven cells
    expected = tl.pseudobulk(donors, "donor", "kind")
    for name, given in kinds_of_input(donors, tmp_path).items():
        before = None if given.isbacked else fingerprint(given)
        found = tl.pseudobulk(given, "donor", "kind", layer="counts" if name == "layer" else None)
        np.testing.assert_array_equal(found.X, expected.X, err_msg=name)
        assert before is None or fingerprint(given) == before, name
        if given.isbacked:
            given.file.close()


def test_the_result_is_written_and_names_are_distinct(donors, tmp_path):
    donors.obs["kind"] = donors.obs["kind"].cat.rename_categories({"w": "1_w"})
    donors.obs["donor"] = donors.obs["donor"].cat.rename_categories({"d1": "d", "d2": "d_1"})
    bulk = tl.pseudobulk(donors, "donor", "kind")
    bulk.obs["kind"] = bulk.obs["kind"].cat.rename_categories({"1_w": "w"})
    assert bulk.obs_names.is_unique
    bulk.write_h5ad(tmp_path / "bulk.h5ad")
    again = ad.read_h5ad(tmp_path / "bulk.h5ad")
    np.testing.assert_array_equal(again.X, bulk.X)
    assert again.obs["condition"].cat.categories.tolist() == ["stim", "ctrl"]
    donors.obs["donor"], donors.obs["kind"] = "a_b", "c"
    donors.obs.iloc[:50, donors.obs.columns.get_indexer(["donor", "kind"])] = ["a", "b_c"]
    assert tl.pseudobulk(donors, "donor", "kind").obs_names.is_unique


def test_expected_counts_are_summed_in_blocks(adata, model, monkeypatch):
    adata.obs["donor"] = adata.obs["donor"].astype("category")
    parameters = model.get_likelihood_parameters()
    expected = pd.DataFrame(parameters["mean"] * (1 - parameters["dropout"]))
    expected = expected.groupby(adata.obs["donor"].to_numpy()).sum()
    monkeypatch.setattr(MODULE, "BLOCK", 60 * 11)  # eleven cells
    bulk = tl.pseudobulk(adata, "donor", model=model)
    np.testing.assert_allclose(bulk.layers["sccvae_expected"], expected, rtol=1e-5)
    assert "sccvae_modelled" not in bulk.var
    new = adata[::2].copy()
    new.obs_names = "new_" + new.obs_names
    found = tl.pseudobulk(new, "donor", model=model).layers["sccvae_expected"]
    parameters = model.get_likelihood_parameters(new)
    expected = pd.DataFrame(parameters["mean"] * (1 - parameters["dropout"]))
    np.testing.assert_allclose(found, expected.groupby(new.obs["donor"].to_numpy()).sum(), rtol=1e-5)


def test_genes_outside_the_model_have_no_expectation_and_its_layer_is_read(adata, fit):
    adata.layers["counts"] = adata.X.copy()
    fitted = fit(adata, layer="counts", mask_var="highly_variable")
    adata.X = adata.X * 0.5
    bulk = tl.pseudobulk(adata, "donor", "kind", model=fitted)
    inside = adata.var["highly_variable"].to_numpy()
    np.testing.assert_array_equal(bulk.var["sccvae_modelled"], inside)
    assert np.isfinite(bulk.layers["sccvae_expected"][:, inside]).all()
    assert np.isnan(bulk.layers["sccvae_expected"][:, ~inside]).all()
    np.testing.assert_array_equal(bulk.X.sum(), adata.layers["counts"].sum())


def test_bad_input_is_named(donors, adata, fit):
    with pytest.raises(KeyError, match=r"adata.obs has no column 'doner'. Did you mean 'donor'"):
        tl.pseudobulk(donors, "doner")
    donors.obs["gap"] = donors.obs["donor"].astype(object).where(np.arange(donors.n_obs) >= 3)
    with pytest.raises(ValueError, match=r"adata.obs\['gap'\] has no value for 3 of 115 cells.*leave those cells out"):
        tl.pseudobulk(donors, "gap")
    with pytest.raises(ValueError, match=r"adata.obs\['gap'\] has no value for 3 of 115 cells"):
        tl.pseudobulk(donors, "donor", "gap")
    with pytest.raises(TypeError, match=r"by is a list; expected the name of a column of adata.obs"):
        tl.pseudobulk(donors, "donor", ["kind"])
    with pytest.raises(TypeError, match=r"sample_key is a NoneType; expected the name"):
        tl.pseudobulk(donors, None)
    with pytest.raises(ValueError, match=r"sample_key and by are both 'donor'; expected two columns"):
        tl.pseudobulk(donors, "donor", "donor")
    with pytest.raises(ValueError, match=r"by is 'n_cells', which is a column of the result; expected another name"):
        tl.pseudobulk(donors, "donor", "n_cells")
    with pytest.raises(TypeError, match=r"^model is 'kind'; expected a trained SCCVAE"):
        tl.pseudobulk(donors, "donor", model="kind")
    with pytest.raises(TypeError, match=r"no argument 'copy': the sums are a new AnnData"):
        tl.pseudobulk(donors, "donor", copy=True)
    donors.layers["half"] = donors.X * 0.5
    with pytest.raises(ValueError, match=r"not counts.*expected raw counts.*adata.X holds counts: pass layer=None"):
        tl.pseudobulk(donors, "donor", layer="half")
    del donors.layers["half"]
    donors.X = donors.X * 1.7
    with pytest.raises(ValueError, match=r"expected raw counts.*round them first, by np.rint"):
        tl.pseudobulk(donors, "donor")
    gaussian = fit(adata, gene_likelihood="normal")
    with pytest.raises(ValueError, match=r"needs a count likelihood; found gene_likelihood='normal'"):
        tl.pseudobulk(adata, "donor", model=gaussian)


def test_normalised_values_are_refused(donors):
    import scanpy as sc

    sc.pp.normalize_total(donors)
    sc.pp.log1p(donors)
    with pytest.raises(ValueError, match=r"values that are not counts"):
        sccvae.tl.pseudobulk(donors, "donor")
