"""Published count matrices by name, offline first.

A data set is searched as ``NAME.h5ad`` in the folder of the environment variable ``SCCVAE_DATA``, then in the cache,
then at the authors' address. The cache is ``cache_dir=``, by default pooch's cache folder for sccvae. A file from the
authors is downloaded into ``CACHE/NAME/``, read, and cached as ``CACHE/NAME.h5ad``. All sources give an AnnData of the
same format: raw counts in ``X`` (CSR, float32), ``obs["cell_type"]`` and ``obs["batch"]`` as categoricals if known,
unique names, ``uns["provenance"]`` (strings). No third-party data is part of the package.

The SHA-256 of a downloaded file is compared with the known checksum of its source. Today the authors publish no
checksums. The checksum of the first download is therefore recorded with a warning, in ``CACHE/NAME/SHA256SUMS`` (in the
format of ``sha256sum``), and compared from then on; so is that of ``CACHE/NAME.h5ad``. Files that are listed in
``SCCVAE_DATA/SHA256SUMS`` are compared, too.
"""

from __future__ import annotations

import csv
import gzip
import logging
import os
import zlib
from array import array
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from sccvae.io import anndata_files, checksums, files

__all__ = ["cortex", "hematopoiesis", "load", "names", "paul15", "retina"]

logger = logging.getLogger("sccvae")
SUMS = "SHA256SUMS"  # checksums of a downloaded file and of its cached .h5ad


@dataclass(frozen=True)
class _Source:
    """Source of a published data set, and the reader of its file."""

    url: str
    filename: str
    paper: str
    note: str
    read: Callable[[Path], ad.AnnData]
    other_names: tuple[str, ...] = ()  # further names of prepared files of the same set
    sha256: str | None = None  # checksum of the file, if a trusted source has published one


def cortex(*, cache_dir: str | os.PathLike[str] | None = None) -> ad.AnnData:
    """Load mouse cortex and hippocampus: 3,005 cells of 7 classes, STRT-seq with molecular barcodes.

    From Zeisel et al. (2015), Science 347:1138, doi:10.1126/science.aaa1934.

    Parameters
    ----------
    cache_dir
        As for `load`, which also lists the errors.

    Returns
    -------
    AnnData
        Molecule counts (cells, genes), with alternative loci of a gene (``_loc2``) as separate genes. ``obs``:
        ``cell_type`` (level 1 class), ``level2class``, ``tissue``, ``group``, ``well``, ``chip`` (may serve as a batch;
        there is no ``batch``), ``sex``, ``age`` (days), ``diameter`` (micrometres), ``total_mRNA_mol`` (molecules over
        all genes). A prepared ``cortex.h5ad`` is returned unchanged and may have fewer genes or columns.

    Examples
    --------
    >>> from sccvae import datasets
    >>> adata = datasets.cortex()  # doctest: +SKIP
    >>> adata.obs["cell_type"].nunique()  # doctest: +SKIP
    7
    """
    return _fetch("cortex", cache_dir)


def hematopoiesis(*, cache_dir: str | os.PathLike[str] | None = None) -> ad.AnnData:
    """Load mouse bone marrow progenitors in steady state, a continuum without discrete cell types, inDrops.

    From Tusi et al. (2018), Nature 555:54, doi:10.1038/nature25741; GEO GSM2388072.

    Parameters
    ----------
    cache_dir
        As for `load`, which also lists the errors.

    Returns
    -------
    AnnData
        Molecule counts (cells, genes) of the cells that passed the authors' filter. ``obs``: ``batch`` (the library),
        ``barcode``, ``seq_run_id``. There is no ``cell_type``. Lopez et al. (2018) left out the library
        ``basal_bm1`` because of poor quality. Here it is included: ``adata[adata.obs["batch"] != "basal_bm1"]`` drops
        it.

    Examples
    --------
    >>> from sccvae import datasets
    >>> adata = datasets.hematopoiesis()  # doctest: +SKIP
    >>> "batch" in adata.obs  # doctest: +SKIP
    True
    """
    return _fetch("hematopoiesis", cache_dir)


def paul15(*, cache_dir: str | os.PathLike[str] | None = None) -> ad.AnnData:
    """Load mouse myeloid progenitors: 2,730 cells and 3,451 informative genes, MARS-seq, read by Scanpy.

    From Paul et al. (2015), Cell 163:1663, doi:10.1016/j.cell.2015.11.013; GEO GSE72857.

    Parameters
    ----------
    cache_dir
        As for `load`, which also lists the errors.

    Returns
    -------
    AnnData
        Molecule counts (cells, genes). ``obs``: ``paul15_clusters`` (19 clusters), ``cell_type`` (the cluster without
        its number). There is no ``batch`` in Scanpy's file. A file ``hematopoiesis_paul15.h5ad`` in ``SCCVAE_DATA`` is
        used, too, and returned unchanged.

    Examples
    --------
    >>> from sccvae import datasets
    >>> adata = datasets.paul15()  # doctest: +SKIP
    >>> "cell_type" in adata.obs  # doctest: +SKIP
    True
    """
    return _fetch("paul15", cache_dir)


def retina(*, cache_dir: str | os.PathLike[str] | None = None) -> ad.AnnData:
    """Load mouse retinal bipolar cells: 15 clusters in 2 batches, Drop-seq.

    From Shekhar et al. (2016), Cell 166:1308, doi:10.1016/j.cell.2016.07.054; GEO GSE81904.

    Parameters
    ----------
    cache_dir
        As for `load`, which also lists the errors.

    Returns
    -------
    AnnData
        Molecule counts (cells, genes), as prepared by Lopez et al. (2018). ``obs``: ``batch``, ``cell_type``.

    Examples
    --------
    >>> from sccvae import datasets
    >>> adata = datasets.retina()  # doctest: +SKIP
    >>> "cell_type" in adata.obs  # doctest: +SKIP
    True
    """
    return _fetch("retina", cache_dir)


def names() -> list[str]:
    """List the names for `load`: the published data sets, and the h5ad files in the folder ``SCCVAE_DATA``.

    Returns
    -------
    list of str
        Names in alphabetical order.

    Raises
    ------
    FileNotFoundError
        If ``SCCVAE_DATA`` is a folder that does not exist.

    Examples
    --------
    >>> from sccvae import datasets
    >>> "cortex" in datasets.names()
    True
    """
    return sorted({*_SOURCES, *_prepared()})


def load(name: str, *, cache_dir: str | os.PathLike[str] | None = None) -> ad.AnnData:
    """Load a data set by name: a published one, or ``NAME.h5ad`` in the folder ``SCCVAE_DATA``.

    Parameters
    ----------
    name
        One of `names`.
    cache_dir
        Folder of downloaded files. Default: pooch's cache folder for sccvae.

    Returns
    -------
    AnnData
        Raw counts in ``X`` (cells, genes), CSR, float32.

    Raises
    ------
    FileNotFoundError
        If the data set is not on this machine and cannot be downloaded.
    ValueError
        If the name is unknown, the file is not the expected one or has another checksum, or it has values that are not
        counts.
    TypeError
        If the name is not a text.

    Examples
    --------
    >>> from sccvae import datasets
    >>> adata = datasets.load("cortex")  # doctest: +SKIP
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}; expected the name of a data set, such as 'cortex'.")
    known = names()
    if name not in known:
        near = [k for k in known if name and (k in name or name in k)]
        near += [k for k in get_close_matches(name.lower(), known, cutoff=0.5) if k not in near]
        hint = f"Did you mean {' or '.join(repr(k) for k in near[:3])}? " if near else ""
        raise ValueError(
            f"There is no data set {name!r}. {hint}Available: {', '.join(known)}; "
            "and a file NAME.h5ad in the folder of the environment variable SCCVAE_DATA is available as NAME; "
            "data/README.md describes how to create the files for the tutorials."
        )
    return _fetch(name, cache_dir) if name in _SOURCES else _read_prepared(_prepared()[name])


def _prepared() -> dict[str, Path]:
    """Return the path of each ``NAME.h5ad`` in the folder ``SCCVAE_DATA``, by name; empty if the variable is unset."""
    value = os.environ.get("SCCVAE_DATA")
    folder = Path(value).expanduser() if value else None
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(
            f"The environment variable SCCVAE_DATA is {value!r}; expected an existing folder. "
            "Correct it, or unset it to use the cache and the authors' addresses."
        )
    return {path.stem: path for path in folder.glob("*.h5ad")} if folder else {}


def _fetch(name: str, cache_dir: str | os.PathLike[str] | None) -> ad.AnnData:
    source, prepared = _SOURCES[name], _prepared()
    for stem in (name, *source.other_names):
        if stem in prepared:
            return _read_prepared(prepared[stem])
    if cache_dir is None:
        import pooch

        cache_dir = pooch.os_cache("sccvae")
    cache = files.path_of(cache_dir, "cache_dir").expanduser()
    cached, sums = cache / f"{name}.h5ad", cache / name / SUMS
    if cached.is_file():
        if not checksums.agrees(cached, sums):
            logger.warning("%s is used without verification: there is no checksum to compare.", cached)
        return _read_h5ad(cached)
    adata = _download(name, source, cache)
    with suppress(OSError, ValueError):  # without a writable cache, the next call downloads the file again
        anndata_files.write(adata, cached)
        checksums.record(cached, sums)
    return adata


def _download(name: str, source: _Source, cache: Path) -> ad.AnnData:
    import pooch

    raw = cache / name / source.filename
    try:
        pooch.retrieve(source.url, known_hash=source.sha256, fname=raw.name, path=raw.parent)
    except ValueError as error:
        raise ValueError(
            f"{source.url} is not the expected file: its SHA-256 is not {source.sha256}. The download was deleted."
        ) from error
    except OSError as error:  # errors of requests are OSErrors, too
        raise FileNotFoundError(
            f"The data set {name!r} is not on this machine and could not be downloaded ({type(error).__name__}). "
            f"Download {source.url} by other means and save it as {raw}, or put a prepared {name}.h5ad into the folder "
            "of the environment variable SCCVAE_DATA."
        ) from error
    recorded = checksums.agrees(raw, raw.parent / SUMS)
    try:
        adata = _normalise(source.read(raw))
    except (ValueError, LookupError, OSError, EOFError, csv.Error, zlib.error) as error:
        raise ValueError(
            f"{raw} is not the file expected from {source.url} ({type(error).__name__}: {error}). "
            "The download may be incomplete, or a web page in place of the file: delete it and try again."
        ) from error
    file = {"source": source.url, "file": source.filename, "sha256": pooch.file_hash(str(raw))}
    if not recorded:
        with suppress(OSError):
            checksums.record(raw, raw.parent / SUMS)
        if source.sha256 is None:
            what = "%s: the authors publish no checksum. Its SHA-256, %s, is recorded and compared from now on."
            logger.warning(what, raw, file["sha256"])
    adata.uns["provenance"] = file | {"paper": source.paper, "licence": "not stated", "note": source.note}
    return adata


def _read_h5ad(path: Path) -> ad.AnnData:
    try:
        adata = _normalise(ad.read_h5ad(path))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not an h5ad file with raw counts in X ({type(error).__name__}: {error}). "
            "Replace the file; delete it if it is a cached copy, which is then created again."
        ) from error
    adata.uns.setdefault("provenance", {"file": path.name})
    return adata


def _read_prepared(path: Path) -> ad.AnnData:
    """Read a data set in the folder ``SCCVAE_DATA``."""
    checksums.agrees(path, path.parent / SUMS)
    return _read_h5ad(path)


def _normalise(adata: ad.AnnData) -> ad.AnnData:
    """Convert a data set to the common format: CSR float32 counts, unique names, categorical batch and cell_type."""
    counts = adata.X.tocsr() if sp.issparse(adata.X) else sp.csr_matrix(adata.X)
    wrong = np.flatnonzero(~(np.isfinite(counts.data) & (counts.data >= 0) & (counts.data == np.floor(counts.data))))
    if wrong.size:
        cell = adata.obs_names[np.searchsorted(counts.indptr, wrong[0], side="right") - 1]
        gene = adata.var_names[counts.indices[wrong[0]]]
        raise ValueError(f"X has {counts.data[wrong[0]]:.6g} at cell {cell!r}, gene {gene!r}; expected counts")
    adata.X = counts.astype(np.float32, copy=False)
    adata.obs_names_make_unique()
    adata.var_names_make_unique()
    for key in ("batch", "cell_type"):
        if key in adata.obs:
            adata.obs[key] = pd.Categorical(adata.obs[key])
    return adata


def _read_counts(rows: Iterable[list[str]], start: int, n_counts: int) -> tuple[list[list[str]], sp.csr_matrix]:
    """Split rows of text into the fields before `start` and the counts after, without storing zeros."""
    about: list[list[str]] = []
    data, indices, indptr = array("f"), array("i"), [0]
    for row in rows:
        fields = row[start : start + n_counts]
        if len(fields) < n_counts:
            raise ValueError(f"the row of {row[0]!r} ends after {len(fields)} counts, expected {n_counts}")
        found = [i for i, field in enumerate(fields) if field != "0"]
        indices.extend(found)
        data.extend(float(fields[i]) for i in found)
        indptr.append(len(indices))
        about.append(row[:start])
    if not about:
        raise ValueError("the file has no row of counts")
    counts = sp.csr_matrix((np.array(data), np.array(indices), indptr), shape=(len(about), n_counts))
    counts.eliminate_zeros()  # zeros written as 0.0
    return about, counts


def _read_cortex(path: Path) -> ad.AnnData:
    """Read a table with genes in rows: name, cluster number, counts; header rows: empty field, key, values of cells."""
    header: dict[str, list[str]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file, delimiter="\t")
        for first in lines:
            if first and first[0].strip():
                break
            if len(first) > 1 and first[1].strip():
                header[first[1].strip()] = [value.strip() for value in first[2:]]
        cells = [cell for cell in header["cell_id"] if cell]
        genes, counts = _read_counts(filter(None, chain([first], lines)), 2, len(cells))
    obs = pd.DataFrame(index=cells)
    obs["cell_type"] = pd.Categorical(header["level1class"][: len(cells)])
    for key in ("level2class", "tissue", "group #", "well"):
        obs[key.removesuffix(" #")] = pd.Categorical(header[key][: len(cells)])
    obs["chip"] = pd.Categorical([cell.split("_")[0] for cell in cells])
    for key in ("sex", "age", "diameter", "total mRNA mol"):
        obs[key.replace(" ", "_")] = pd.to_numeric(header[key][: len(cells)], errors="coerce")
    return ad.AnnData(counts.T.tocsr(), obs=obs, var=pd.DataFrame(index=[gene for gene, _ in genes]))


def _read_hematopoiesis(path: Path) -> ad.AnnData:
    """Read a table with cells in rows: five columns of annotations, then a column per gene."""
    columns = ["cell_id", "barcode", "library_id", "seq_run_id", "pass_filter"]
    with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        if header[:5] != columns:
            raise ValueError(f"the first columns are {header[:5]}, expected {columns}")
        passed = (row for row in lines if row and float(row[4]) == 1)
        about, counts = _read_counts(passed, 5, len(header) - 5)
    obs = pd.DataFrame(about, columns=columns).set_index("cell_id").drop(columns="pass_filter")
    obs = obs.rename(columns={"library_id": "batch"}).astype({"seq_run_id": "category"})
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=header[5:]))


def _read_paul15(path: Path) -> ad.AnnData:
    import scanpy as sc

    folder = sc.settings.datasetdir
    try:
        sc.settings.datasetdir = path.parent.parent  # where Scanpy searches paul15/paul15.h5
        adata = sc.datasets.paul15()
    finally:
        sc.settings.datasetdir = folder  # restored, as an absolute path
    adata.obs["cell_type"] = [cluster.lstrip("0123456789") for cluster in adata.obs["paul15_clusters"]]
    return adata


def _read_retina(path: Path) -> ad.AnnData:
    """Read a loom file: HDF5 with ``matrix`` (genes, cells) and one array per attribute of rows and columns."""
    import h5py

    types = ["RBC", "MG", "BC5A", "BC7", "BC6", "BC5C", "BC1A", "BC3B", "BC1B", "BC2", "BC5D", "BC3A", "BC5B", "BC4"]
    types += ["BC8_9"]  # the authors' names, in order of ClusterID
    with h5py.File(path, "r") as file:
        genes = [g.decode() if isinstance(g, bytes) else str(g) for g in file["row_attrs/Gene"][()].ravel()]
        cluster = file["col_attrs/ClusterID"][()].ravel().astype(float).astype(int)
        batch = file["col_attrs/BatchID"][()].ravel().astype(float).astype(int)
        matrix = file["matrix"]  # (genes, cells)
        steps = range(0, len(genes), 512)
        counts = sp.vstack([sp.csr_matrix(matrix[i : i + 512].astype(np.float32)) for i in steps]).T.tocsr()
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(len(cluster))])
    obs["batch"] = pd.Categorical(batch.astype(str))
    obs["cell_type"] = pd.Categorical.from_codes(cluster, types)
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes))


_SOURCES = {
    "cortex": _Source(
        "https://storage.googleapis.com/linnarsson-lab-www-blobs/blobs/cortex/expression_mRNA_17-Aug-2014.txt",
        "expression_mRNA_17-Aug-2014.txt",
        "Zeisel et al. 2015, Science 347:1138, doi:10.1126/science.aaa1934 (GSE60361)",
        "every gene of the authors' file; cell_type = level1class; chip = first part of cell_id",
        _read_cortex,
    ),
    "hematopoiesis": _Source(
        "https://www.ncbi.nlm.nih.gov/geo/download/?acc=GSM2388072&format=file&file="
        "GSM2388072%5Fbasal%5Fbone%5Fmarrow%2Eraw%5Fumifm%5Fcounts%2Ecsv%2Egz",
        "GSM2388072_basal_bone_marrow.raw_umifm_counts.csv.gz",
        "Tusi et al. 2018, Nature 555:54, doi:10.1038/nature25741 (GSE89754)",
        "cells with pass_filter 1; batch = library_id; library basal_bm1 included",
        _read_hematopoiesis,
    ),
    "paul15": _Source(
        "https://falexwolf.de/data/paul15.h5",
        "paul15.h5",
        "Paul et al. 2015, Cell 163:1663, doi:10.1016/j.cell.2015.11.013 (GSE72857)",
        "as scanpy.datasets.paul15 reads it; cell_type = paul15_clusters without the number",
        _read_paul15,
        other_names=("hematopoiesis_paul15",),
    ),
    "retina": _Source(
        "https://github.com/YosefLab/scVI-data/raw/master/retina.loom",
        "retina.loom",
        "Shekhar et al. 2016, Cell 166:1308, doi:10.1016/j.cell.2016.07.054 (GSE81904)",
        "as prepared for Lopez et al. 2018; batch = BatchID; cell_type = name of ClusterID",
        _read_retina,
    ),
}
