"""Files as training data: several are one set, read in blocks, and what is wrong with one is named with its path."""

from __future__ import annotations

import re
import shutil

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from lazy import Chunked, with_matrix

import sccvae
from sccvae.data import matrix
from sccvae.data.sources import open_source

OPTIONS = {"batch_key": "batch", "seed": 0, "n_hidden": 16, "n_latent": 3}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """13 cells at once."""
    monkeypatch.setattr(matrix, "BLOCK_BYTES", 8 * 60 * 13)


@pytest.fixture
def plain(adata):
    """120 cells x 60 genes in three batches."""
    return ad.AnnData(adata.X.copy(), obs=adata.obs[["batch"]].copy(), var=pd.DataFrame(index=adata.var_names))


@pytest.fixture
def files(plain, tmp_path):
    """The cells in an .h5ad and a .zarr."""
    plain[:50].copy().write_h5ad(tmp_path / "a.h5ad")
    plain[50:].copy().write_zarr(tmp_path / "b.zarr")
    return [tmp_path / "a.h5ad", str(tmp_path / "b.zarr")]


def counts_of(given, **options):
    return sccvae.SCCVAE(given, **OPTIONS, **options)._counts.matrix.toarray()


def test_several_files_are_one_set(plain, files):
    model = sccvae.SCCVAE(files, **OPTIONS)
    same = sccvae.SCCVAE(plain, **OPTIONS)
    for each in (model, same):
        each.train(max_epochs=2, progress_bar=False)
    np.testing.assert_array_equal(model.get_latent_representation(), same.get_latent_representation())
    np.testing.assert_array_equal(model.get_latent_representation(files), same.get_latent_representation())
    assert model.adata.obs_names.tolist() == plain.obs_names.tolist()
    assert model.batches == same.batches
    table = model.differential_expression(files, groupby="batch", n_samples=20)
    pd.testing.assert_frame_equal(table, same.differential_expression(groupby="batch", n_samples=20))


@pytest.mark.parametrize("form", ["dense", "csr", "csc"])
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.parametrize("layer", [None, "counts"])
def test_every_form_of_a_file(plain, tmp_path, form, suffix, layer):
    forms = {"dense": lambda m: m.toarray(), "csr": sp.csr_matrix, "csc": sp.csc_matrix}
    expected = plain.X.toarray()
    stored = forms[form](plain.X)
    if layer is None:
        plain.X = stored
    else:
        plain.X, plain.layers[layer] = np.full(plain.shape, 0.5), stored
    path = tmp_path / f"cells.{suffix}"
    plain.write_h5ad(path) if suffix == "h5ad" else plain.write_zarr(path)
    np.testing.assert_array_equal(counts_of(path, layer=layer), expected)
    np.testing.assert_array_equal(counts_of([str(path)], layer=layer, memory_budget=0), expected)


@pytest.mark.parametrize("cells", [range(0, 120), range(0, 50), range(17, 93), range(50, 51), range(119, 120)])
def test_a_range_of_the_cells_is_read(plain, files, tmp_path, cells):
    expected = plain.X.toarray()
    forms = {"dense": plain.X.toarray(), "csr": plain.X, "csc": plain.X.tocsc(), "lazy": Chunked(plain.X, (7, 60))}
    given = [files, *(with_matrix(plain, form) for form in forms.values())]
    plain.X = plain.X.tocsc()
    plain.write_h5ad(tmp_path / "csc.h5ad")
    for each in [*given, tmp_path / "csc.h5ad", sccvae.pack(files, tmp_path / "a.pack")]:
        with open_source(each) as source:
            blocks = list(source.blocks(None, cells))
        assert blocks[0][0].start == cells.start
        assert blocks[-1][0].stop == cells.stop
        np.testing.assert_array_equal(sp.vstack([x for _, x in blocks]).toarray(), expected[cells.start : cells.stop])


def test_a_backed_anndata_and_its_file_are_alike(plain, tmp_path):
    plain.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    np.testing.assert_array_equal(counts_of(backed), counts_of(tmp_path / "cells.h5ad"))


def test_a_dask_array_goes_into_a_file_beyond_the_budget(plain):
    lazy = Chunked(sp.csr_matrix(plain.X), (7, 60))
    np.testing.assert_array_equal(counts_of(with_matrix(plain, lazy), memory_budget=100), plain.X.toarray())


def test_an_anndata_read_lazily(plain, tmp_path):
    pytest.importorskip("dask.array")
    pytest.importorskip("xarray")
    for path in (tmp_path / "cells.h5ad", tmp_path / "cells.zarr"):
        plain.write_h5ad(path) if path.suffix == ".h5ad" else plain.write_zarr(path)
        lazy = ad.experimental.read_lazy(path)
        np.testing.assert_array_equal(counts_of(lazy), plain.X.toarray())


@pytest.mark.skipif(zarr.__version__ < "3", reason="shards need zarr 3")
def test_a_collection_of_sharded_zarr_is_one_set(plain, tmp_path):
    group = zarr.open_group(str(tmp_path / "atlas.zarr"), mode="w", zarr_format=3)
    for k, cells in enumerate((slice(0, 40), slice(40, 120))):
        ad.io.write_elem(group, f"dataset_{k}", plain[cells].copy())
        x = group[f"dataset_{k}"]["X"]
        for name in ("data", "indices"):
            values = x[name][:]
            del x[name]
            x.create_array(name, shape=values.shape, dtype=values.dtype, chunks=(64,), shards=(256,))[:] = values
    np.testing.assert_array_equal(counts_of(tmp_path / "atlas.zarr"), plain.X.toarray())
    shutil.move(tmp_path / "atlas.zarr/dataset_1", tmp_path / "atlas.zarr/dataset_10")
    with open_source(tmp_path / "atlas.zarr") as source:
        assert [part.name[-9:] for part in source.parts] == ["dataset_0", "ataset_10"]


@pytest.mark.filterwarnings("ignore:Element '/obs' was written without encoding metadata")
def test_files_of_an_earlier_format_are_read(plain, tmp_path):
    plain.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        del file["obs"].attrs["encoding-type"]  # as in files of anndata before 0.7
        del file["obs"].attrs["encoding-version"]
    np.testing.assert_array_equal(counts_of(tmp_path / "cells.h5ad"), plain.X.toarray())


# ------------------------------------------------------------------------------------------------------ genes and cells


def test_genes_are_matched_by_name(plain, tmp_path):
    other = plain[50:, ::-1].copy()
    other = other[:, :-5].copy()  # lacks the first five
    plain[:50].copy().write_h5ad(tmp_path / "a.h5ad")
    other.write_h5ad(tmp_path / "b.h5ad")
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    model = sccvae.SCCVAE(paths, **OPTIONS)
    assert model.gene_names.tolist() == plain.var_names[5:].tolist()
    np.testing.assert_array_equal(model._counts.matrix.toarray(), plain.X.toarray()[:, 5:])
    with pytest.raises(ValueError, match=r"^.*b\.h5ad has other genes than .*a\.h5ad: 'gene0', 'gene1', 'gene2' and 2"):
        sccvae.SCCVAE(paths, join="exact", **OPTIONS)
    with pytest.raises(ValueError, match="join is 'outer'; expected"):
        sccvae.SCCVAE(paths, join="outer", **OPTIONS)
    chosen = [f"gene{k}" for k in range(59, 9, -1)]
    for given, budget in ((paths, None), (plain, None), (paths, 0)):
        model = sccvae.SCCVAE(given, genes=chosen, memory_budget=budget, **OPTIONS)
        assert model.gene_names.tolist() == chosen
        np.testing.assert_array_equal(model._counts.matrix.toarray(), plain[:, chosen].X.toarray())


def test_a_mask_that_differs_between_files_is_named(plain, tmp_path):
    for name, on in (("a", 40), ("b", 40), ("c", 30)):
        plain.var["highly_variable"] = np.arange(60) < on
        plain.write_h5ad(tmp_path / f"{name}.h5ad")
    a, b, c = (tmp_path / f"{name}.h5ad" for name in "abc")
    assert sccvae.SCCVAE([a, b], mask_var="highly_variable", **OPTIONS).gene_names.size == 40
    with pytest.raises(
        ValueError, match=r"var\['highly_variable'\] is not the same in all files, though .*a\.h5ad has"
    ):
        sccvae.SCCVAE([a, c], mask_var="highly_variable", **OPTIONS)


def test_cells_of_one_name_are_told_apart_by_file(plain, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    for path in ("a.h5ad", "b.h5ad", "x/a.h5ad", "y/a.h5ad"):
        plain[:20].copy().write_h5ad(tmp_path / path)
    names = plain.obs_names[:20]
    with open_source([tmp_path / "a.h5ad", tmp_path / "b.h5ad"]) as source:
        assert source.frame.obs_names.tolist() == [f"{file}:{cell}" for file in "ab" for cell in names]
    with open_source([tmp_path / "x/a.h5ad", tmp_path / "y/a.h5ad"]) as source:
        assert source.frame.obs_names.tolist() == [f"{file}:{cell}" for file in ("x/a", "y/a") for cell in names]


def test_categories_of_files_are_united(plain, tmp_path):
    plain.obs["donor"] = pd.Categorical(["d1"] * 50 + ["d2"] * 70)
    plain[:50].copy().write_h5ad(tmp_path / "a.h5ad")
    plain[50:].copy().write_h5ad(tmp_path / "b.h5ad")
    model = sccvae.SCCVAE([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], batch_key="donor", n_hidden=16)
    assert model.batches == ("d1", "d2")
    assert model.adata.obs["donor"].dtype == "category"


# ------------------------------------------------------------------------------------------------------------ bad input


def test_what_is_wrong_with_a_file_is_one_sentence_with_its_path(plain, files, tmp_path):
    def refused(error, text, given=files, **options):
        with pytest.raises(error, match=text):
            sccvae.SCCVAE(given, **{**OPTIONS, **options})

    refused(FileNotFoundError, "There is no file missing.h5ad; expected an AnnData, or the path", "missing.h5ad")
    refused(ValueError, r"a\.h5ad is given twice", [files[0], files[0]])
    refused(TypeError, "expected an AnnData", [plain, plain])
    other = ad.AnnData(plain.X, obs=plain.obs[[]])
    other.var_names = plain.var_names
    other.write_h5ad(tmp_path / "no_batch.h5ad")
    refused(KeyError, r"no_batch\.h5ad: adata\.obs has no column 'batch'", [*files, tmp_path / "no_batch.h5ad"])
    other.var_names = [f"other_{name}" for name in plain.var_names]
    other.obs["batch"] = "x"
    other.write_h5ad(tmp_path / "genes.h5ad")
    refused(ValueError, r"have no gene in common: the first has 'gene0', .* the second 'other_gene0'",
            [*files, tmp_path / "genes.h5ad"])  # fmt: skip
    plain.X[3, 4] = 0.5
    plain.write_h5ad(tmp_path / "fraction.h5ad")
    what = r"fraction\.h5ad: adata\.X holds values that are not counts: 0\.5 at cell 'cell\d+', gene 'gene4'"
    refused(ValueError, what, [files[0], tmp_path / "fraction.h5ad"])
    plain.X[3] = 0
    plain.write_h5ad(tmp_path / "empty.h5ad")
    refused(ValueError, r"empty\.h5ad: 1 of 120 cells have no counts", tmp_path / "empty.h5ad")
    refused(ValueError, "mask_var and genes both choose", mask_var="x", genes=["gene1"])
    refused(TypeError, "genes is the text 'gene1'", genes="gene1")
    refused(ValueError, "genes has 'gene1' twice", genes=["gene1", "gene1"])
    refused(ValueError, "genes names 1 unknown gene: 'nope'", genes=["gene1", "nope"])
    refused(ValueError, "genes is an empty list", genes=[])
    refused(ValueError, "memory_budget is -1; expected bytes of memory", memory_budget=-1)
    refused(TypeError, "memory_budget is '2 GiB'; expected bytes of memory", memory_budget="2 GiB")
    refused(TypeError, "cache_dir is 3; expected the path", cache_dir=3)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_truncated_file_is_named(plain, tmp_path, share):
    plain.write_h5ad(tmp_path / "cut.h5ad")
    whole = (tmp_path / "cut.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"cut\.h5ad.* cannot be read .*damaged or incomplete"):
        sccvae.SCCVAE(tmp_path / "cut.h5ad", **OPTIONS)


def test_a_damaged_chunk_is_named(plain, tmp_path):
    plain.write_zarr(tmp_path / "cut.zarr")
    chunk = max((tmp_path / "cut.zarr/X/data").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:10])
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "cut.zarr")) + r": .* cannot be read"):
        sccvae.SCCVAE(tmp_path / "cut.zarr", **OPTIONS)


def test_a_file_by_genes_that_does_not_fit_says_what_to_do(plain, tmp_path, monkeypatch):
    plain.X = sp.csc_matrix(plain.X)
    plain.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr("sccvae.data.blocks.free_memory", lambda: 1000)
    with pytest.raises(MemoryError, match=r"stored gene by gene \(CSC\).*adata\.X = adata\.X\.tocsr\(\)"):
        sccvae.SCCVAE(tmp_path / "cells.h5ad", **OPTIONS)
