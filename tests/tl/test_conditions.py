import warnings

import numpy as np
import pytest

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
