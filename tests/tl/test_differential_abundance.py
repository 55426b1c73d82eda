"""`tl.differential_abundance`: known changes by label and by neighbourhood, what is written, designs, errors."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sccvae import tl

KEY = "differential_abundance"


def cells_of(n_samples: int = 8, kept: float = 0.2, seed: int = 0, n_cells: int = 4000) -> ad.AnnData:
    """Cells of four kinds in `n_samples` samples of two conditions; "stim" keeps a fraction of the cells of kind y."""
    rng = np.random.default_rng(seed)
    log = np.log([0.4, 0.3, 0.2, 0.1]) + 0.15 * rng.standard_normal((n_samples, 4))
    fractions = np.exp(log) / np.exp(log).sum(1, keepdims=True)
    sample = rng.integers(n_samples, size=n_cells)
    kind = (rng.random((n_cells, 1)) > fractions[sample].cumsum(1)).sum(1)
    stim = sample >= n_samples // 2
    left = ~(stim & (kind == 2) & (rng.random(n_cells) >= kept))
    sample, kind, stim = sample[left], kind[left], stim[left]
    obs = pd.DataFrame(
        {
            "sample": pd.Categorical([f"s{s}" for s in sample]),
            "condition": pd.Categorical(np.where(stim, "stim", "ctrl")),
            "kind": pd.Categorical(np.array(list("wxyz"))[kind]),
            "age": 30.0 + sample % 4,
            "sex": np.where(sample % 2, "f", "m"),
        },
        index=[f"cell{i}" for i in range(len(sample))],
    )
    adata = ad.AnnData(sp.csr_matrix((len(sample), 3), dtype=np.float32), obs=obs)
    adata.obsm["X_sccvae"] = 6 * np.eye(4)[kind] + rng.standard_normal((len(sample), 4))
    return adata


@pytest.fixture
def cells() -> ad.AnnData:
    return cells_of()


def test_by_label_the_kind_that_changed_is_found(cells):
    assert tl.differential_abundance(cells, "sample", "condition", "kind") is None
    table = cells.uns[KEY].set_index("label")
    assert table.index.tolist() == ["w", "x", "y", "z"]
    assert (table["group1"] == "stim").all()
    assert (table["group2"] == "ctrl").all()
    assert table["padj"].idxmin() == "y"
    assert table.loc["y", "padj"] < 1e-3
    assert table.loc["y", "lfc"] < -1.8
    assert table.loc["y", "lfc_upper"] < 0
    counts = pd.crosstab(cells.obs["kind"], cells.obs["sample"])
    fractions = counts / counts.sum()
    np.testing.assert_allclose(table["fraction1"], fractions.iloc[:, 4:].mean(axis=1))
    np.testing.assert_allclose(table["fraction2"], fractions.iloc[:, :4].mean(axis=1))
    np.testing.assert_array_equal(table["n_cells1"], counts.iloc[:, 4:].sum(axis=1))
    assert (table[["n_samples1", "n_samples2"]] == 4).all(axis=None)
    assert cells.uns[f"{KEY}_params"]["by"] == "kind"
    assert not [column for column in cells.obs if column.startswith(KEY)]


def test_fractions_of_others_grow_and_a_reference_corrects_it():
    """Of "y" nothing is left in one condition of many samples: all other fractions grow, their numbers do not."""
    cells = cells_of(n_samples=16, kept=0.05, n_cells=16_000)
    found = {}
    for relative_to in (None, "w", "median"):
        tl.differential_abundance(cells, "sample", "condition", "kind", relative_to=relative_to)
        found[relative_to] = cells.uns[KEY].set_index("label")
    assert (found[None].loc[["w", "x", "z"], "lfc"] > 0.15).all()
    for relative_to in ("w", "median"):
        assert found[relative_to]["padj"].idxmin() == "y"
        assert (found[relative_to].drop(index="y")["lfc"].abs() < 0.3).all()
    assert found["w"].index.tolist() == ["x", "y", "z"]
    np.testing.assert_allclose(found["w"]["fraction1"], found[None].loc[["x", "y", "z"], "fraction1"])


def test_by_neighbourhood_cells_of_the_kind_are_found(cells, tmp_path):
    tl.differential_abundance(cells, "sample", "condition")
    table, of_cells = cells.uns[KEY], cells.obs[[f"{KEY}_lfc", f"{KEY}_padj"]]
    assert (of_cells.dtypes == np.float32).all()
    called, is_y = (of_cells[f"{KEY}_padj"] < 0.05).to_numpy(), (cells.obs["kind"] == "y").to_numpy()
    assert called[is_y].mean() > 0.9
    assert called[~is_y].mean() < 0.08  # their fractions grow
    assert (of_cells.loc[called & ~is_y, f"{KEY}_lfc"] > 0).mean() > 0.7
    assert of_cells.loc[is_y, f"{KEY}_lfc"].median() < -1.5
    assert (table["padj"] >= table["pval"]).all()
    assert set(table["cell"]) <= set(cells.obs_names)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(again.uns[KEY], table, check_dtype=False)
    kept = table.copy()
    tl.differential_abundance(cells, "sample", "condition", relative_to="median")
    assert not np.allclose(cells.uns[KEY]["lfc"], kept["lfc"])
    tl.differential_abundance(cells, "sample", "condition", "kind")  # columns of an earlier call are removed
    assert not [column for column in cells.obs if column.startswith(KEY)]


def test_without_an_effect_little_is_found():
    calls = []
    for seed in range(12):
        cells = cells_of(kept=1.0, seed=seed, n_cells=1500)
        tl.differential_abundance(cells, "sample", "condition")
        of_cells = cells.uns[KEY]["padj"] < 0.05
        tl.differential_abundance(cells, "sample", "condition", "kind")
        calls.append([of_cells.any(), (cells.uns[KEY]["padj"] < 0.05).any()])
    assert (np.sum(calls, axis=0) <= 2).all()


def test_two_of_several_conditions_are_chosen_and_other_cells_get_nothing(cells):
    cells.obs["condition"] = cells.obs["condition"].astype(str)
    cells.obs.loc[cells.obs["sample"] == "s7", "condition"] = "other"
    with pytest.raises(ValueError, match=r"has 3 values; expected two to compare. Pass condition= and reference=.*oth"):
        tl.differential_abundance(cells, "sample", "condition")
    tl.differential_abundance(cells, "sample", "condition", condition="ctrl", reference="stim")
    other = cells.obs["condition"] == "other"
    assert cells.obs.loc[other, f"{KEY}_lfc"].isna().all()
    assert cells.obs.loc[~other, f"{KEY}_lfc"].notna().all()
    assert (cells.uns[KEY]["n_samples2"] == 3).all()
    assert cells.obs.loc[cells.obs["kind"] == "y", f"{KEY}_lfc"].median() > 1.5


def test_the_reference_is_the_first_category_unless_it_is_named(cells):
    lfc = {}
    for reference in (None, "ctrl", "stim"):
        tl.differential_abundance(cells, "sample", "condition", "kind", reference=reference)
        lfc[reference] = cells.uns[KEY]["lfc"].to_numpy()
    np.testing.assert_array_equal(lfc[None], lfc["ctrl"])
    np.testing.assert_allclose(lfc["stim"], -lfc["ctrl"], atol=0.03)
    cells.obs["condition"] = (cells.obs["condition"] == "stim").astype(int)
    tl.differential_abundance(cells, "sample", "condition", "kind", condition=0)
    np.testing.assert_allclose(cells.uns[KEY]["lfc"], lfc["stim"])


def test_covariates_explain_samples_and_pairs_are_used():
    """Donors differ more than conditions; the same donors are in both conditions."""
    rng = np.random.default_rng(0)
    rows = []
    for donor in range(4):
        odds = rng.normal(0, 1.2)
        for condition, shift in (("ctrl", 0.0), ("stim", 0.7)):
            p = 1 / (1 + np.exp(-odds - shift - rng.normal(0, 0.05)))
            rows += [(f"d{donor}", condition, kind) for kind in np.where(rng.random(600) < p, "a", "b")]
    obs = pd.DataFrame(rows, columns=["donor", "condition", "kind"])
    obs["sample"] = obs["donor"] + obs["condition"]
    obs.index = obs.index.astype(str)
    adata = ad.AnnData(sp.csr_matrix((len(obs), 1), dtype=np.float32), obs=obs)
    tl.differential_abundance(adata, "sample", "condition", "kind")
    without = adata.uns[KEY]
    tl.differential_abundance(adata, "sample", "condition", "kind", covariates="donor")
    paired = adata.uns[KEY]
    assert without["pval"].min() > 0.1
    assert paired["pval"].max() < 0.01
    assert paired["lfc"].iloc[0] == pytest.approx(0.7 / np.log(2), abs=0.2)
    assert adata.uns[f"{KEY}_params"]["covariates"] == ["donor"]
    with pytest.raises(ValueError, match=r"sample_key is 'donor', and 4 of its samples, such as 'd0', lie in both con"):
        tl.differential_abundance(adata, "donor", "condition", "kind")


def test_numbers_and_categories_are_covariates(cells):
    tl.differential_abundance(cells, "sample", "condition", "kind", covariates=["age", "sex"])
    assert cells.uns[KEY].set_index("label")["padj"].idxmin() == "y"
    cells.obs["dose"] = (cells.obs["condition"] == "stim") * 2.5
    with pytest.raises(ValueError, match=r"covariates is \['dose'\], and the condition follows from them"):
        tl.differential_abundance(cells, "sample", "condition", "kind", covariates=["dose"])
    with pytest.raises(ValueError, match=r"make 10 coefficients for 8 samples; expected fewer"):
        tl.differential_abundance(cells, "sample", "condition", "kind", covariates=["sample", "age"])
    with pytest.raises(ValueError, match=r"covariates has 'kind', of which sample 's\d' has several values; expected"):
        tl.differential_abundance(cells, "sample", "condition", "kind", covariates=["kind"])
    with pytest.raises(KeyError, match=r"has no column 'sexx'. Did you mean 'sex'"):
        tl.differential_abundance(cells, "sample", "condition", "kind", covariates=["sexx"])


def test_views_and_labels_without_cells(cells):
    view = cells[cells.obs["kind"] != "z"]
    with pytest.warns(ad.ImplicitModificationWarning):
        tl.differential_abundance(view, "sample", "condition", "kind")
    assert view.uns[KEY]["label"].tolist() == ["w", "x", "y"]
    assert KEY not in cells.uns


def one_level(cells):
    cells.obs["condition"] = "ctrl"


def no_replicates(cells):
    cells.obs["condition"] = np.where(cells.obs["sample"] == "s3", "stim", "ctrl")


def gap(cells):
    cells.obs["condition"] = cells.obs["condition"].astype(object).where(np.arange(cells.n_obs) > 4)


def not_finite(cells):
    cells.obsm["X_sccvae"][3, 1] = np.nan


def no_latent(cells):
    del cells.obsm["X_sccvae"]


@pytest.mark.parametrize(
    ("change", "options", "error", "text"),
    [
        (one_level, {}, ValueError, r"obs\['condition'\] has one value, 'ctrl'; expected two conditions"),
        (no_replicates, {}, ValueError, r"'stim' has one sample, 's3'; expected at least two.*Without replicates"),
        (gap, {}, ValueError, r"adata.obs\['condition'\] has no value for 5 of \d+ cells"),
        (not_finite, {}, ValueError, r"values that are not finite; expected finite numbers"),
        (no_latent, {}, KeyError, r"'X_sccvae' is not in adata.obsm.*makes 'X_sccvae'. To test labels, pass by="),
        (None, {"sample_key": "donor"}, KeyError, r"adata.obs has no column 'donor'"),
        (None, {"condition_key": 3}, TypeError, r"condition_key is a int; expected the name"),
        (None, {"reference": "stimm"}, ValueError, r"reference is 'stimm'; expected a value of adata.obs\['condition"),
        (None, {"condition": "stim", "reference": "stim"}, ValueError, r"condition and reference are both 'stim'"),
        (None, {"relative_to": "w"}, ValueError, r"relative_to is 'w' without by; expected None or 'median'"),
        (None, {"by": "kind", "relative_to": "v"}, ValueError, r"relative_to is 'v'; expected None, 'median', or a la"),
        (None, {"by": "condition"}, None, None),
        (None, {"n_neighbors": 4000}, ValueError, r"n_neighbors is 4000; expected fewer than \d+, the number of cells"),
        (None, {"key_added": "a/b"}, ValueError, r"key_added is 'a/b'; expected a key"),
    ],
)
def test_bad_input_is_named(cells, change, options, error, text):
    if change is not None:
        change(cells)
    arguments = {"sample_key": "sample", "condition_key": "condition", **options}
    if error is None:
        tl.differential_abundance(cells, **arguments)
        assert np.isfinite(cells.uns[KEY]["pval"]).all()
        return
    with pytest.raises(error, match=text):
        tl.differential_abundance(cells, **arguments)
    assert KEY not in cells.uns


def test_labels_that_cannot_be_compared_are_named(cells):
    cells.obs["same"] = "a"
    with pytest.raises(ValueError, match=r"by is 'same', and all cells have the label 'a'; expected at least two"):
        tl.differential_abundance(cells, "sample", "condition", "same")
    few = cells[~((cells.obs["kind"] == "z") & (cells.obs["sample"] == "s5"))].copy()
    with pytest.raises(ValueError, match=r"relative_to is 'z', of which sample 's5' has no cell; expected a label"):
        tl.differential_abundance(few, "sample", "condition", "kind", relative_to="z")


def test_donors_dealt_at_random_do_not_differ(real):
    adata = real("pbmc_8donors")
    adata.obs["arm"] = np.where(adata.obs["batch"].isin(["101", "107", "1244", "1256"]), "ctrl", "stim")
    tl.differential_abundance(adata, "batch", "arm", "cell_type")
    assert (adata.uns[KEY]["padj"] > 0.05).all()
