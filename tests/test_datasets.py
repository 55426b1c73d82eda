"""Data sets by name: the parsers on small files in the authors' formats, the order of places, the errors."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sccvae import datasets

PUBLISHED = ["cortex", "hematopoiesis", "paul15", "retina"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, request):
    """Every download fails as it does on a machine without network; prepared files are hidden but where asked for."""
    import pooch

    def offline(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", offline)
    if "real" not in request.fixturenames:
        monkeypatch.delenv("SCCVAE_DATA", raising=False)


@pytest.fixture
def real():
    """Names of the real sets at hand."""
    if not os.environ.get("SCCVAE_DATA"):
        pytest.skip("SCCVAE_DATA is unset: it names the folder of the real count matrices")
    return [path.stem for path in Path(os.environ["SCCVAE_DATA"]).glob("*.h5ad")]


def counts(n_cells: int, n_genes: int) -> np.ndarray:
    return np.random.default_rng(0).poisson(0.7, (n_cells, n_genes)).astype(np.float32)


def prepared(path: Path, value: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    adata = ad.AnnData(sp.csr_matrix(np.full((2, 3), value, dtype=np.float32)))
    adata.obs["batch"] = ["a", "b"]
    adata.write_h5ad(path)
    return path


def write_cortex(cache: Path, *, trailing: str = "", newline: str = "\n") -> np.ndarray:
    x = counts(5, 4)  # (cells, genes)
    cells = ["1772071015_C02", "1772071017_G12", "1772071017_A05", "1772067065_B09", "1772067065_H06"]
    header = {
        "tissue": ["sscortex", "sscortex", "ca1hippocampus", "sscortex", "ca1hippocampus"],
        "group #": ["1", "1", "2", "9", "9"],
        "total mRNA mol": ["21580", "21748", "31642", "32916", "21531"],
        "well": ["11", "95", "33", "42", "48"],
        "sex": ["1", "-1", "-1", "1", "0"],
        "age": ["21", "20", "20", "21", "25"],
        "diameter": ["0", "9.56", "11.1", "11.7", "11"],
        "cell_id": cells,
        "level1class": ["interneurons", "interneurons", "pyramidal SS", "endothelial-mural", "endothelial-mural"],
        "level2class": ["Int10", "Int10", "S1PyrL4", "Vend2", "(none)"],
    }
    lines = ["\t".join(["", key, *values]) + trailing for key, values in header.items()]
    lines.append("\t" * 6)  # a row of empty fields stands between the header and the genes
    for gene, row in zip(["Tspan12", "Tshz1", "Fnbp1l_loc2", "NA"], x.T.astype(int), strict=True):
        lines.append("\t".join([gene, "3", *map(str, row)]) + trailing)
    path = cache / "cortex" / "expression_mRNA_17-Aug-2014.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes((newline.join(lines) + newline).encode())
    return x


def write_hematopoiesis(cache: Path, *, passed: tuple[int, ...] = (1, 0, 1, 1)) -> np.ndarray:
    x = counts(4, 3)
    lines = ["cell_id,barcode,library_id,seq_run_id,pass_filter,0610007L01Rik,Gata1,Mpo"]
    for i, (row, ok) in enumerate(zip(x.astype(int), passed, strict=True)):
        about = [f"bBM_{i}", "ACGT-AAAA", f"basal_bm{i % 2 + 1}", "seq_run1", str(ok)]
        lines.append(",".join([*about, *map(str, row)]))
    path = cache / "hematopoiesis" / "GSM2388072_basal_bone_marrow.raw_umifm_counts.csv.gz"
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt") as file:
        file.write("\n".join(lines) + "\n")
    return x


def write_retina(cache: Path, *, cluster: tuple[int, ...] = (0, 1, 14, 2), n_genes: int = 3) -> np.ndarray:
    h5py = pytest.importorskip("h5py")
    x = counts(4, n_genes)
    path = cache / "retina" / "retina.loom"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["matrix"] = x.T.astype(np.float64)  # (genes, cells), doubles as loompy writes them
        file["row_attrs/Gene"] = np.array([f"GENE{i}".encode() for i in range(n_genes)])
        file["col_attrs/ClusterID"] = np.array(cluster, dtype=float)[:, None]
        file["col_attrs/BatchID"] = np.array([0.0, 1.0, 1.0, 0.0])[:, None]
    return x


def write_paul15(cache: Path) -> np.ndarray:
    h5py = pytest.importorskip("h5py")
    x = counts(3, 4)
    path = cache / "paul15" / "paul15.h5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["data.debatched"] = x.T
        file["data.debatched_rownames"] = np.array([b"Gata1", b"Mpo;Mpo2", b"Pf4", b"Uninformative"])
        file["data.debatched_colnames"] = np.array([b"W31105", b"W31106", b"W31107"])
        file["cluster.id"] = np.array([[7], [19], [1]])
        file["info.genes_strings"] = np.array([b"Gata1", b"Mpo", b"Pf4", b"42065"])
    return x


def check_form(adata: ad.AnnData) -> None:
    assert sp.issparse(adata.X)
    assert adata.X.format == "csr"
    assert adata.X.dtype == np.float32
    assert (adata.X.data >= 0).all()
    assert (adata.X.data == np.round(adata.X.data)).all()
    assert adata.var_names.is_unique
    assert adata.obs_names.is_unique
    for key in {"batch", "cell_type"} & set(adata.obs):
        assert isinstance(adata.obs[key].dtype, pd.CategoricalDtype)
    provenance = adata.uns["provenance"]
    assert provenance
    assert all(isinstance(value, str) for value in provenance.values())


@pytest.mark.parametrize("trailing", ["", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_cortex_reads_the_authors_text(tmp_path, trailing, newline):
    x = write_cortex(tmp_path, trailing=trailing, newline=newline)
    adata = datasets.cortex(cache_dir=tmp_path)
    check_form(adata)
    np.testing.assert_array_equal(adata.X.toarray(), x)
    assert list(adata.var_names) == ["Tspan12", "Tshz1", "Fnbp1l_loc2", "NA"]
    assert adata.obs_names[0] == "1772071015_C02"
    assert list(adata.obs["cell_type"][:3]) == ["interneurons", "interneurons", "pyramidal SS"]
    assert list(adata.obs["level2class"])[-1] == "(none)"
    assert list(adata.obs["chip"].cat.categories) == ["1772067065", "1772071015", "1772071017"]
    assert list(adata.obs["total_mRNA_mol"]) == [21580, 21748, 31642, 32916, 21531]
    assert list(adata.obs["sex"]) == [1, -1, -1, 1, 0]
    assert list(adata.obs["diameter"]) == [0, 9.56, 11.1, 11.7, 11]
    assert "batch" not in adata.obs


def test_hematopoiesis_keeps_the_cells_that_pass(tmp_path):
    x = write_hematopoiesis(tmp_path)
    adata = datasets.hematopoiesis(cache_dir=tmp_path)
    check_form(adata)
    np.testing.assert_array_equal(adata.X.toarray(), x[[0, 2, 3]])
    assert list(adata.obs_names) == ["bBM_0", "bBM_2", "bBM_3"]
    assert list(adata.obs["batch"]) == ["basal_bm1", "basal_bm1", "basal_bm2"]
    assert list(adata.var_names) == ["0610007L01Rik", "Gata1", "Mpo"]
    assert "pass_filter" not in adata.obs


@pytest.mark.parametrize("n_genes", [3, 1100])  # one and several slabs of genes
def test_retina_reads_loom(tmp_path, n_genes):
    x = write_retina(tmp_path, n_genes=n_genes)
    adata = datasets.retina(cache_dir=tmp_path)
    check_form(adata)
    np.testing.assert_array_equal(adata.X.toarray(), x)
    assert list(adata.obs["cell_type"]) == ["RBC", "MG", "BC8_9", "BC5A"]
    assert list(adata.obs["batch"]) == ["0", "1", "1", "0"]
    assert adata.var_names[2] == "GENE2"


def test_paul15_is_read_by_scanpy_and_its_settings_stay(tmp_path):
    sc = pytest.importorskip("scanpy")
    before = sc.settings.datasetdir.resolve()
    x = write_paul15(tmp_path)
    adata = datasets.paul15(cache_dir=tmp_path)
    check_form(adata)
    np.testing.assert_array_equal(adata[:, ["Gata1", "Mpo", "Pf4"]].X.toarray(), x[:, :3])
    assert list(adata.obs["paul15_clusters"]) == ["7MEP", "19Lymph", "1Ery"]
    assert list(adata.obs["cell_type"]) == ["MEP", "Lymph", "Ery"]
    assert sc.settings.datasetdir == before


def test_a_set_read_once_stays_in_the_cache(tmp_path):
    write_hematopoiesis(tmp_path)
    first = datasets.load("hematopoiesis", cache_dir=tmp_path)
    for raw in (tmp_path / "hematopoiesis").iterdir():
        raw.unlink()
    second = datasets.load("hematopoiesis", cache_dir=str(tmp_path))
    check_form(second)
    assert (first.X != second.X).nnz == 0
    pd.testing.assert_frame_equal(first.obs, second.obs, check_names=False)
    assert dict(first.uns["provenance"]) == dict(second.uns["provenance"])
    assert len(second.uns["provenance"]["sha256"]) == 64
    assert [path.name for path in tmp_path.glob("hematopoiesis.h5ad*")] == ["hematopoiesis.h5ad"]


def test_a_first_download_is_recorded_with_a_warning_and_compared_from_then_on(tmp_path, caplog):
    write_hematopoiesis(tmp_path)
    first = datasets.load("hematopoiesis", cache_dir=tmp_path)
    folder, file = tmp_path / "hematopoiesis", datasets._SOURCES["hematopoiesis"].filename
    digest = first.uns["provenance"]["sha256"]
    assert f"the authors publish no checksum. Its SHA-256, {digest}, is recorded" in caplog.text
    lines = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert lines[file] == digest
    assert set(lines) == {file, "../hematopoiesis.h5ad"}
    caplog.clear()
    datasets.load("hematopoiesis", cache_dir=tmp_path)
    (tmp_path / "hematopoiesis.h5ad").unlink()
    datasets.load("hematopoiesis", cache_dir=tmp_path)  # from the file, which is as it was
    assert caplog.text == ""
    (tmp_path / "hematopoiesis.h5ad").unlink()
    with gzip.open(folder / file, "at") as handle:
        handle.write("bBM_9,ACGT,basal_bm1,seq_run1,1,1,1,1\n")
    with pytest.raises(
        ValueError, match=rf"{file} has changed: its SHA-256 is .*; expected {digest}\. Delete the file"
    ):
        datasets.load("hematopoiesis", cache_dir=tmp_path)


def test_a_prepared_file_in_the_cache_is_compared_with_its_record(tmp_path, caplog):
    write_hematopoiesis(tmp_path)
    datasets.load("hematopoiesis", cache_dir=tmp_path)
    prepared(tmp_path / "hematopoiesis.h5ad", 9)
    with pytest.raises(ValueError, match=r"hematopoiesis\.h5ad has changed: .* delete the file's line in .*SHA256SUMS"):
        datasets.load("hematopoiesis", cache_dir=tmp_path)
    (tmp_path / "hematopoiesis" / "SHA256SUMS").unlink()
    caplog.clear()
    assert datasets.load("hematopoiesis", cache_dir=tmp_path).X.max() == 9
    assert "is used without verification: there is no checksum to compare" in caplog.text


def test_a_list_of_checksums_in_the_folder_is_heeded(tmp_path, monkeypatch):
    monkeypatch.setenv("SCCVAE_DATA", str(tmp_path))
    path = prepared(tmp_path / "mine.h5ad", 2)
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest().upper()} *mine.h5ad\n")
    assert datasets.load("mine").X.max() == 2
    prepared(path, 3)
    with pytest.raises(ValueError, match=r"mine\.h5ad has changed"):
        datasets.load("mine")


@pytest.mark.parametrize("known", [True, False])
def test_a_download_is_compared_with_the_checksum_that_is_known(tmp_path, monkeypatch, caplog, known):
    import pooch

    write_hematopoiesis(tmp_path / "there")
    (file,) = (tmp_path / "there" / "hematopoiesis").iterdir()

    def download(self, url, output_file, pooch_, check_only=False):
        Path(output_file).write_bytes(file.read_bytes())

    digest = hashlib.sha256(file.read_bytes()).hexdigest() if known else "0" * 64
    source = dataclasses.replace(datasets._SOURCES["hematopoiesis"], sha256=digest)
    monkeypatch.setitem(datasets._SOURCES, "hematopoiesis", source)
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)
    if known:
        assert datasets.load("hematopoiesis", cache_dir=tmp_path / "cache").n_obs == 3
        assert "publish no checksum" not in caplog.text
    else:
        with pytest.raises(
            ValueError, match=f"is not the expected file: its SHA-256 is not {digest}. The download was deleted"
        ):
            datasets.load("hematopoiesis", cache_dir=tmp_path / "cache")
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", [None, 3, ["cortex"], b"cortex"])
def test_a_name_that_is_no_text_is_told(name):
    with pytest.raises(TypeError, match=r"^name is .*; expected the name of a data set, such as 'cortex'\.$"):
        datasets.load(name)
    with pytest.raises(ValueError, match="cache_dir is ''; expected the path"):
        datasets.load("cortex", cache_dir="")


def test_a_cache_that_cannot_be_written_still_gives_the_data(tmp_path, monkeypatch):
    write_hematopoiesis(tmp_path)

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(ad.AnnData, "write_h5ad", full)
    assert datasets.hematopoiesis(cache_dir=tmp_path).n_obs == 3
    assert not (tmp_path / "hematopoiesis.h5ad").exists()


def test_the_cache_comes_before_the_download(tmp_path):
    prepared(tmp_path / "retina.h5ad", 7)
    assert datasets.retina(cache_dir=tmp_path).X.max() == 7


def test_the_default_cache_is_poochs(tmp_path, monkeypatch):
    import pooch

    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    prepared(tmp_path / "sccvae" / "cortex.h5ad", 3)
    assert datasets.cortex().X.max() == 3


def test_the_folder_comes_before_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCCVAE_DATA", str(tmp_path / "folder"))
    prepared(tmp_path / "folder" / "retina.h5ad", 1)
    prepared(tmp_path / "cache" / "retina.h5ad", 7)
    prepared(tmp_path / "cache" / "cortex.h5ad", 7)
    for adata in (datasets.retina(cache_dir=tmp_path / "cache"), datasets.load("retina", cache_dir=tmp_path / "cache")):
        check_form(adata)
        assert adata.X.max() == 1
        assert adata.uns["provenance"]["file"] == "retina.h5ad"
    assert datasets.cortex(cache_dir=tmp_path / "cache").X.max() == 7


def test_paul15_takes_either_name_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SCCVAE_DATA", str(tmp_path))
    prepared(tmp_path / "hematopoiesis_paul15.h5ad", 2)
    assert datasets.paul15(cache_dir=tmp_path / "cache").X.max() == 2
    prepared(tmp_path / "paul15.h5ad", 5)
    assert datasets.paul15(cache_dir=tmp_path / "cache").X.max() == 5
    assert datasets.load("hematopoiesis_paul15").X.max() == 2


def test_names_are_the_published_and_the_prepared(tmp_path, monkeypatch):
    assert datasets.names() == PUBLISHED
    monkeypatch.setenv("SCCVAE_DATA", str(tmp_path))
    prepared(tmp_path / "pbmc_3tech.h5ad")
    prepared(tmp_path / "cortex.h5ad")
    (tmp_path / "README.md").write_text("no set")
    assert datasets.names() == ["cortex", "hematopoiesis", "paul15", "pbmc_3tech", "retina"]
    assert datasets.load("pbmc_3tech").n_obs == 2


def test_dense_and_repeated_names_are_brought_to_the_one_form(tmp_path, monkeypatch):
    monkeypatch.setenv("SCCVAE_DATA", str(tmp_path))
    adata = ad.AnnData(np.array([[1.0, 0.0], [0.0, 2.0]]))
    adata.var_names = ["a", "b"]
    adata.obs["cell_type"] = ["x", "y"]
    adata.write_h5ad(tmp_path / "mine.h5ad")
    loaded = datasets.load("mine")
    check_form(loaded)
    np.testing.assert_array_equal(loaded.X.toarray(), adata.X)


@pytest.mark.parametrize("name", PUBLISHED)
def test_offline_says_what_to_fetch_and_where_to_put_it(tmp_path, name):
    with pytest.raises(FileNotFoundError) as caught:
        datasets.load(name, cache_dir=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"The data set '{name}' is not on this machine and could not be downloaded (ConnectionE")
    assert "Download https://" in message
    assert f"save it as {tmp_path / name}" in message
    assert f"put a prepared {name}.h5ad into the folder" in message
    assert "SCCVAE_DATA" in message
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert not list(tmp_path.rglob("*.h5ad*"))


def test_a_web_page_in_place_of_the_file_is_named(tmp_path):
    for name, file in {"cortex": "expression_mRNA_17-Aug-2014.txt", "retina": "retina.loom"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("<!doctype html>\n<html><body>Not here</body></html>\n")
        with pytest.raises(ValueError, match=f"{file} is not the file expected from https://.*delete it and try again"):
            datasets.load(name, cache_dir=tmp_path)
        assert not (tmp_path / f"{name}.h5ad").exists()


def test_a_file_cut_short_is_named(tmp_path):
    write_cortex(tmp_path / "text")
    text = tmp_path / "text" / "cortex" / "expression_mRNA_17-Aug-2014.txt"
    text.write_text(text.read_text()[:-6])
    with pytest.raises(ValueError, match=r"the row of 'NA' ends after . counts, expected 5"):
        datasets.cortex(cache_dir=tmp_path / "text")
    write_hematopoiesis(tmp_path / "zip")
    (zipped,) = (tmp_path / "zip" / "hematopoiesis").iterdir()
    zipped.write_bytes(zipped.read_bytes()[:-20])
    with pytest.raises(ValueError, match="may be incomplete"):
        datasets.hematopoiesis(cache_dir=tmp_path / "zip")


def test_no_cell_that_passes_and_unknown_clusters_are_errors(tmp_path):
    write_hematopoiesis(tmp_path, passed=(0, 0, 0, 0))
    with pytest.raises(ValueError, match="no row of counts"):
        datasets.hematopoiesis(cache_dir=tmp_path)
    write_retina(tmp_path, cluster=(0, 1, 15, 2))
    with pytest.raises(ValueError, match="is not the file expected"):
        datasets.retina(cache_dir=tmp_path)


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan, np.inf])
def test_values_that_are_not_counts_are_named(tmp_path, monkeypatch, value):
    monkeypatch.setenv("SCCVAE_DATA", str(tmp_path))
    prepared(tmp_path / "logged.h5ad", value)
    with pytest.raises(ValueError, match=f"logged.h5ad .* X has {value:.6g} at cell '0', gene '0'"):
        datasets.load("logged")


def test_a_broken_h5ad_is_named(tmp_path):
    (tmp_path / "cortex.h5ad").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"cortex.h5ad is not an h5ad file .* delete it if it is a cached copy"):
        datasets.cortex(cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("cortx", "Did you mean 'cortex'"),
        ("Retina", "Did you mean 'retina'"),
        ("hematopoiesis_paul15", "Did you mean 'hematopoiesis' or 'paul15'"),
        ("zebrafish", "Available: cortex, hematopoiesis, paul15, retina"),
        ("", "Available: cortex, hematopoiesis, paul15, retina"),
        ("../secret", "Available: cortex, hematopoiesis, paul15, retina"),
    ],
)
def test_unknown_names(wrong, hint):
    with pytest.raises(ValueError, match=hint) as caught:
        datasets.load(wrong)
    assert str(caught.value).startswith(f"There is no data set {wrong!r}.")
    assert ("Did you mean" in str(caught.value)) == hint.startswith("Did")


def test_a_folder_that_does_not_exist_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SCCVAE_DATA", str(tmp_path / "nowhere"))
    for call in (datasets.names, datasets.cortex, lambda: datasets.load("cortex")):
        with pytest.raises(FileNotFoundError, match=r"SCCVAE_DATA is .*nowhere'; expected an existing folder"):
            call()


def test_real_sets_have_the_one_form(real):
    for name in real:
        check_form(datasets.load(name))


@pytest.mark.parametrize(
    ("name", "shape", "n_batches", "n_types"),
    [
        ("cortex", (3005, 1000), None, 7),
        ("hematopoiesis_paul15", (2660, 3451), 2, 7),
        ("hematopoiesis_spring", (4790, 21619), 4, None),
        ("pbmc_3tech", (1500, 1764), 3, 9),
        ("celllines_5plates", (909, 12653), 3, 5),
        ("pbmc_8donors", (12261, 1287), 8, 8),
    ],
)
def test_real_sets_as_described(real, name, shape, n_batches, n_types):
    if name not in real:
        pytest.skip(f"{name}.h5ad is not in the folder SCCVAE_DATA")
    adata = datasets.load(name)
    assert adata.shape == shape
    for key, n in {"batch": n_batches, "cell_type": n_types}.items():
        assert (adata.obs[key].nunique() if key in adata.obs else None) == n


def test_real_paul15_is_found_under_its_prepared_name(real):
    if "hematopoiesis_paul15" not in real:
        pytest.skip("hematopoiesis_paul15.h5ad is not in the folder SCCVAE_DATA")
    assert datasets.paul15().n_vars == 3451
