"""The command line's files: counts in whatever form, or a sentence that says what the file is and what to do."""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import zipfile
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

import sccvae
from sccvae.__main__ import main
from sccvae.io.reading import read

NAMES = ["MATR3"] * 3 + [f"gene{i}" for i in range(3, 60)]
UNIQUE = ["MATR3", "MATR3-1", "MATR3-2"]


def cellranger(path, adata, *, legacy=False, antibodies=0):
    """A file as Cell Ranger writes it, before version 3 or since."""
    counts, kinds = adata.X.astype("int32"), ["Gene Expression"] * (60 - antibodies) + ["Antibody Capture"] * antibodies
    with h5py.File(path, "w") as file:
        group = file.create_group("hg19" if legacy else "matrix")
        group["data"], group["indices"] = counts.data, counts.indices.astype("int64")
        group["indptr"], group["shape"] = counts.indptr.astype("int64"), np.array([60, 120], dtype="int32")
        group["barcodes"] = np.array(adata.obs_names, dtype="S")
        if legacy:
            group["genes"], group["gene_names"] = np.array(adata.var_names, dtype="S"), np.array(NAMES, dtype="S")
            return
        columns = {"id": adata.var_names, "name": NAMES, "feature_type": kinds, "genome": ["GRCh38"] * 60}
        for name, column in columns.items():
            group[f"features/{name}"] = np.array(column, dtype="S")
        group["features/_all_tag_keys"] = np.array(["genome"], dtype="S")


def folder_of_10x(path, adata, *, prefix="", legacy=False):
    path.mkdir(exist_ok=True)
    ending, opened = ("", open) if legacy else (".gz", gzip.open)
    with opened(path / f"{prefix}matrix.mtx{ending}", "wb") as file:
        scipy.io.mmwrite(file, sp.coo_matrix(adata.X.T.astype(int)))
    table = pd.DataFrame({"id": adata.var_names, "name": NAMES})
    if not legacy:
        table["kind"] = "Gene Expression"
    name = f"{prefix}{'genes' if legacy else 'features'}.tsv{ending}"
    table.to_csv(path / name, sep="\t", header=False, index=False)
    pd.Series(adata.obs_names).to_csv(path / f"{prefix}barcodes.tsv{ending}", header=False, index=False)


def zarr_zip(path, adata):
    folder = path.with_name("inside.zarr")
    adata.write_zarr(folder)
    with zipfile.ZipFile(path, "w") as file:
        for part in folder.rglob("*"):
            if part.is_file():
                file.write(part, part.relative_to(folder))


WRITERS = {
    "counts.h5ad": lambda path, adata: adata.write_h5ad(path),
    "h5ad under another name.h5": lambda path, adata: adata.write_h5ad(path),
    "counts.zarr": lambda path, adata: adata.write_zarr(path),
    "counts.zarr.zip": zarr_zip,
    "filtered_feature_bc_matrix.h5": cellranger,
    "filtered_gene_bc_matrices.h5": lambda path, adata: cellranger(path, adata, legacy=True),
    "filtered_feature_bc_matrix": folder_of_10x,
    "with a prefix": lambda path, adata: folder_of_10x(path, adata, prefix="GSM1_"),
    "hg19": lambda path, adata: folder_of_10x(path, adata, legacy=True),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_read(adata, tmp_path, name, recwarn):
    WRITERS[name](tmp_path / name, adata)
    recwarn.clear()
    found = read(tmp_path / name)
    np.testing.assert_array_equal(sp.csr_matrix(found.X).toarray(), adata.X.toarray())
    assert list(found.obs_names) == list(adata.obs_names)
    if "counts" in name or "h5ad" in name:
        assert list(found.var_names) == list(adata.var_names)
    else:
        assert list(found.var_names) == UNIQUE + NAMES[3:]
    assert not [w for w in recwarn if "not unique" in str(w.message)]


def test_other_features_of_10x_are_left_out(adata, tmp_path):
    cellranger(tmp_path / "a.h5", adata, antibodies=5)
    assert read(tmp_path / "a.h5").shape == (120, 55)


@pytest.mark.parametrize("name", ["counts.zarr", "filtered_feature_bc_matrix.h5"])
def test_integrate_and_report_read_alike(adata, tmp_path, name, capsys, monkeypatch):
    WRITERS[name](tmp_path / name, adata)
    output, model = tmp_path / "out.h5ad", tmp_path / "model"
    quick = ["--max-epochs", "1", "--n-latent", "3", "--mask-var", "all", "--save-model", str(model)]
    assert main(["integrate", str(tmp_path / name), "-o", str(output), *quick]) == 0
    assert ad.read_h5ad(output).obsm["X_sccvae"].shape == (120, 3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sccvae.SCCVAE, "report", lambda self, path, **_: Path(path).write_text(str(len(self._counts))))
    assert main(["report", str(model), str(tmp_path / name), "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == "120"


# ------------------------------------------------------------------------------------------------ what is not read here


def hdf5(*names):
    def write(path, adata):
        with h5py.File(path, "w") as file:
            for name in names:
                file.create_group(name)

    return write


def packed(name, write):
    def write_packed(path, adata):
        write(path.with_name(name), adata)
        path.write_bytes(gzip.compress(path.with_name(name).read_bytes()))

    return write_packed


def cut(write, n):
    def write_cut(path, adata):
        write(path, adata)
        path.write_bytes(path.read_bytes()[:n])

    return write_cut


def archive(path, adata):
    folder_of_10x(path.with_name("folder"), adata)
    with tarfile.open(path, "w:gz") as file:
        file.add(path.with_name("folder"), "folder")


def spreadsheet(path, adata):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("[Content_Types].xml", "")


def table(separator):
    return lambda path, adata: adata.to_df().to_csv(path, sep=separator)


def two_samples(path, adata):
    for prefix in ("a_", "b_"):
        folder_of_10x(path, adata, prefix=prefix)


def outs(path, adata):
    path.mkdir()
    cellranger(path / "raw_feature_bc_matrix.h5", adata)


REFUSED = {
    "t.csv": (table(","), "its rows are cells or genes is unknown. Convert it to .h5ad first: sc.read_csv("),
    "t.csv.gz": (table(","), "sc.read_csv('{}').write_h5ad('counts.h5ad'), with .T before .write_h5ad if rows are g"),
    "t.tsv.gz": (table("\t"), "sc.read_csv('{}', delimiter='\\t').write_h5ad('counts.h5ad')"),
    "no ending": (table("\t"), "sc.read_csv('{}', delimiter='\\t')"),
    "a.h5ad.gz": (packed("a.h5ad", WRITERS["counts.h5ad"]), "is a compressed HDF5 file: unpack it with gunzip"),
    "empty.h5ad": (lambda path, _: path.touch(), "is empty"),
    "half.h5ad": (cut(WRITERS["counts.h5ad"], 20_000), "The file may be damaged or incomplete: copy or download"),
    "half.h5": (cut(cellranger, 5_000), "The file may be damaged or incomplete"),
    "half.zip": (cut(zarr_zip, 5_000), "a zip file, cannot be read as an AnnData"),
    "half.csv.gz": (cut(lambda p, _: p.write_bytes(gzip.compress(os.urandom(999))), 300), "The file may be damaged"),
    "10x without features.h5": (hdf5("matrix/barcodes"), "a file of 10x, cannot be read as an AnnData"),
    "a.loom": (hdf5("row_attrs", "col_attrs", "matrix"), "is a loom file. Convert it to .h5ad first: sc.read_loom("),
    "a.h5mu": (hdf5("mod", "obs", "var"), "Convert it to .h5ad first: mudata.read_h5mu('{}')['rna'].write_h5ad("),
    "a.h5seurat": (hdf5("assays", "cell.names"), "SeuratDisk::Convert('{}', dest = 'h5ad')"),
    "other.h5": (hdf5("numbers"), "is an HDF5 file with numbers; expected an .h5ad or a 10x file."),
    "a.rds": (lambda path, _: path.write_bytes(gzip.compress(b"X\n\0\0")), "zellkonverter::writeH5AD"),
    "a.tar.gz": (archive, "is an archive: unpack it with tar -xf"),
    "a.xlsx": (spreadsheet, "is a spreadsheet"),
    "matrix.mtx": (lambda p, a: scipy.io.mmwrite(p, a.X), "Pass its folder, if barcodes.tsv and features.tsv are"),
    "two samples": (two_samples, "has 2 matrices, such as a_matrix.mtx.gz"),
    "outs": (outs, "Do you mean {}/raw_feature_bc_matrix.h5?"),
    "folder": (lambda path, _: path.mkdir(), "has neither a zarr store nor the matrix.mtx of 10x"),
    "bytes": (lambda path, _: path.write_bytes(bytes(range(256))), "expected .h5ad, .zarr or a 10x file"),
    "link": (lambda path, _: path.symlink_to("nowhere"), "There is no file {}."),
    "pipe": (lambda path, _: os.mkfifo(path), "There is no file {}."),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_file_is_and_what_to_do(adata, tmp_path, name, capsys):
    write, text = REFUSED[name]
    path = tmp_path / name
    write(path, adata)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(text.format(path))) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert main(["integrate", str(path), "-o", str(tmp_path / "out.h5ad"), "--max-epochs", "1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("sccvae: error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("name", "call"), [("t.csv", "sc.read_csv"), ("t.tsv.gz", "sc.read_csv")])
def test_the_call_that_is_named_helps(adata, tmp_path, name, call, monkeypatch):
    """What the sentence says is run as it stands."""
    import scanpy as sc

    path = tmp_path / name
    REFUSED[name][0](path, adata)
    with pytest.raises(ValueError, match="rows are cells or genes") as caught:
        read(path)
    said = re.search(rf"{re.escape(call)}\(.*?\)\.write_h5ad\('counts\.h5ad'\)", str(caught.value)).group()
    monkeypatch.chdir(tmp_path)
    eval(said, {"sc": sc})
    np.testing.assert_array_equal(read(tmp_path / "counts.h5ad").X, adata.X.toarray())
