"""Cells in files are integrated into a new file, with what `tl.integrate` writes into an AnnData in memory."""

from __future__ import annotations

import os

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sccvae
from sccvae import tl
from sccvae.data import matrix

OPTIONS = {"model_options": {"n_hidden": 16, "n_latent": 3}, "train_options": {"max_epochs": 1, "progress_bar": False}}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, tmp_path):
    """13 cells at once, in an empty working folder."""
    monkeypatch.setattr(matrix, "BLOCK_BYTES", 8 * 60 * 13)
    monkeypatch.setattr("sccvae.data.sources.BLOCK_BYTES", 8 * 60 * 13)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cells(adata):
    """The cells in two files, with columns of several types."""
    adata.obs["note"] = [None if k % 3 else f"n{k % 2}" for k in range(120)]
    adata[:50].copy().write_h5ad("a.h5ad")
    adata[50:].copy().write_zarr("b.zarr")
    return adata


def read(path):
    return ad.read_h5ad(path) if str(path).endswith(".h5ad") else ad.read_zarr(path)


def layers_of(adata):
    """Names of the layers, without None, by which anndata 0.13 means X."""
    return sorted(name for name in adata.layers if name is not None)


@pytest.mark.parametrize("out", ["new.h5ad", "new.zarr"])
def test_a_new_file_has_what_is_written_in_memory(cells, out):
    expected = tl.integrate(cells, batch_key="batch", copy=True, **OPTIONS)
    assert tl.integrate(["a.h5ad", "b.zarr"], batch_key="batch", out=out, **OPTIONS) is None
    found = read(out)
    assert found.var["sccvae_modelled"].tolist() == expected.var["sccvae_modelled"].tolist()
    np.testing.assert_array_equal(found.X.toarray(), cells.X.toarray())
    np.testing.assert_allclose(found.obsm["X_sccvae"], expected.obsm["X_sccvae"], atol=1e-5)
    np.testing.assert_allclose(found.obs["sccvae_library"], expected.obs["sccvae_library"], rtol=1e-5)
    for layer in ("sccvae", "sccvae_corrected"):
        np.testing.assert_allclose(found.layers[layer], expected.layers[layer], rtol=1e-4)
    assert found.uns["sccvae"].keys() == expected.uns["sccvae"].keys()
    assert found.obs_names.tolist() == cells.obs_names.tolist()
    assert found.obs["note"].isna().tolist() == cells.obs["note"].isna().tolist()
    assert found.obs["note"].dropna().astype(str).tolist() == cells.obs["note"].dropna().astype(str).tolist()
    for key in ("batch", "age"):
        assert found.obs[key].astype(str).tolist() == cells.obs[key].astype(str).tolist()


def test_a_trained_model_is_applied_to_a_file(cells):
    model = sccvae.SCCVAE(cells, batch_key="batch", n_hidden=16, n_latent=3)
    model.train(max_epochs=1, progress_bar=False)
    tl.store("b.zarr", model, key_added="vae", out="new.h5ad")
    found = read("new.h5ad")
    np.testing.assert_allclose(found.obsm["X_vae"], model.get_latent_representation()[50:], atol=1e-5)
    backed = ad.read_h5ad("a.h5ad", backed="r")
    tl.store(backed, model, out="backed.zarr", expression=False)
    found = read("backed.zarr")
    assert layers_of(found) == []
    np.testing.assert_allclose(found.obsm["X_sccvae"], model.get_latent_representation()[:50], atol=1e-5)


def test_counts_in_a_layer(cells):
    cells.layers["counts"], cells.X = cells.X.copy(), cells.X * 0.5
    cells.write_h5ad("layer.h5ad")
    tl.integrate("layer.h5ad", batch_key="batch", layer="counts", out="new.h5ad", **OPTIONS)
    np.testing.assert_array_equal(read("new.h5ad").X.toarray(), cells.layers["counts"].toarray())


def test_a_likelihood_without_library_size(cells):
    options = {**OPTIONS, "model_options": {**OPTIONS["model_options"], "gene_likelihood": "poisson"}}
    tl.integrate("a.h5ad", batch_key="batch", mask_var=None, out="counts.h5ad", **options)
    assert "sccvae_modelled" not in read("counts.h5ad").var
    options["model_options"]["gene_likelihood"] = "normal"
    tl.integrate("a.h5ad", batch_key="batch", out="real.h5ad", **options)
    assert "sccvae_library" not in read("real.h5ad").obs


def test_large_expression_is_left_out_unless_asked_for(cells, monkeypatch):
    monkeypatch.setattr("sccvae.tl.stored.MAX_LAYER_BYTES", 1000)
    with pytest.warns(UserWarning, match="Expression was left out, since it would take more than 2 GiB"):
        tl.integrate("a.h5ad", batch_key="batch", out="new.h5ad", **OPTIONS)
    assert layers_of(read("new.h5ad")) == []
    tl.integrate("a.h5ad", batch_key="batch", out="new.h5ad", expression=True, **OPTIONS)
    assert layers_of(read("new.h5ad")) == ["sccvae", "sccvae_corrected"]


def test_bad_places_are_refused_before_training(cells, monkeypatch):
    monkeypatch.setattr(sccvae.SCCVAE, "train", None)
    with pytest.raises(ValueError, match=r"The output would replace a\.h5ad, which is read, or a part of it"):
        tl.integrate(["a.h5ad", "b.zarr"], out="a.h5ad")
    with pytest.raises(ValueError, match=r"expected a name that ends in \.h5ad or \.zarr"):
        tl.integrate("a.h5ad", out="new.csv")
    with pytest.raises(TypeError, match="adata is a path; expected an AnnData to write into"):
        tl.integrate("a.h5ad")
    cells.var["highly_variable"] = ~cells.var["highly_variable"]
    cells.write_h5ad("c.h5ad")
    with pytest.raises(ValueError, match=r"var\['highly_variable'\] is not the same in all files"):
        tl.integrate(["a.h5ad", "c.h5ad"], out="new.h5ad")


def test_an_error_on_the_way_leaves_no_file(cells, monkeypatch):
    model = sccvae.SCCVAE(cells, batch_key="batch", n_hidden=16, n_latent=3)
    model.train(max_epochs=1, progress_bar=False)
    cells.obs["batch"] = cells.obs["batch"].astype(str).where(np.arange(120) < 100, "new")
    cells.write_h5ad("other.h5ad")
    before = set(os.listdir())
    with pytest.raises(ValueError, match="Unknown category 'new'"):
        tl.store("other.h5ad", model, out="new.h5ad")
    assert set(os.listdir()) == before


def test_obs_of_the_files_is_a_table_in_memory(cells):
    model = sccvae.SCCVAE(["a.h5ad", "b.zarr"], batch_key="batch", n_hidden=16)
    assert isinstance(model.adata.obs, pd.DataFrame)
    assert model.adata.X is None
