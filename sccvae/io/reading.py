"""Reading of an AnnData from a path, for the command line: recognition of formats, advice for unsupported ones."""

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata

_HOW = "Convert it to .h5ad first"


def read(path: Path) -> anndata.AnnData:
    """Read counts: .h5ad, .zarr (a folder or a zip), the .h5 files and folders of 10x Cell Ranger.

    The format is recognised by content, not by name. Duplicate gene names of 10x files get the suffixes -1, -2, ..., by
    `adata.var_names_make_unique()`.

    Raises
    ------
    ValueError
        The format is not supported; the message has its name and a conversion to .h5ad.
    OSError
        The file does not exist or is not readable.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise ValueError(f"{path} is empty; expected a file with counts. Copy or download it again.")
    if _is_hdf5(path):
        return _read_hdf5(path)
    if start[:2] == b"PK":
        return _read_zip(path)
    raise ValueError(_told(path, start))


def _read_folder(path: Path) -> anndata.AnnData:
    if any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")):
        return _checked(path, "a zarr store", lambda: anndata.io.read_zarr(path))
    matrices = sorted(p for p in path.iterdir() if p.name.endswith(("matrix.mtx", "matrix.mtx.gz")))
    if len(matrices) == 1:
        prefix = matrices[0].name.removesuffix(".gz").removesuffix("matrix.mtx")
        return _checked(path, "a folder of 10x", lambda: _scanpy().read_10x_mtx(path, prefix=prefix or None))
    if len(matrices) > 1:
        raise ValueError(
            f"{path} has {len(matrices)} matrices, such as {matrices[0].name}; expected one. {_HOW}, one by one: "
            f"sc.read_10x_mtx({str(path)!r}, prefix=...), anndata.concat, .write_h5ad('counts.h5ad')."
        )
    inside = [p for pattern in ("*.h5ad", "*_bc_matrix.h5", "*_bc_matrix") for p in sorted(path.glob(pattern))]
    hint = f" Do you mean {inside[0]}?" if inside else ""
    raise FileNotFoundError(
        f"There is no file {path}. The folder of that name has neither a zarr store nor the matrix.mtx of 10x.{hint}"
    )


def _read_hdf5(path: Path) -> anndata.AnnData:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            names = set(file)
            genomes = {name for name in names if isinstance(file[name], h5py.Group) and "barcodes" in file[name]}
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(cannot_be_read(path, "an HDF5 file", error)) from error
    if {"X", "obs", "var"} & names and not {"row_attrs", "mod"} & names:
        return _checked(path, "", lambda: anndata.read_h5ad(path))
    if genomes:
        return _checked(path, "a file of 10x", lambda: _scanpy().read_10x_h5(path))
    source = repr(str(path))
    if "mod" in names:
        raise ValueError(f"{path} is a MuData. {_HOW}: mudata.read_h5mu({source})['rna'].write_h5ad('counts.h5ad').")
    if {"row_attrs", "col_attrs"} & names:
        raise ValueError(f"{path} is a loom file. {_HOW}: sc.read_loom({source}).write_h5ad('counts.h5ad').")
    if {"assays", "cell.names"} <= names:
        raise ValueError(f"{path} is an h5Seurat file. {_HOW} in R: SeuratDisk::Convert({source}, dest = 'h5ad').")
    listed = ", ".join(sorted(names)[:5]) or "nothing"
    raise ValueError(f"{path} is an HDF5 file with {listed}; expected an .h5ad or a 10x file.")


def _read_zip(path: Path) -> anndata.AnnData:
    import zipfile

    import zarr

    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except zipfile.BadZipFile as error:
        raise ValueError(cannot_be_read(path, "a zip file", error)) from error
    if not {"zarr.json", ".zgroup", ".zattrs"} & set(names):
        if "[Content_Types].xml" in names:
            raise ValueError(
                f"{path} is a spreadsheet, which may convert gene names to dates. {_HOW} from text: "
                "sc.read_csv('counts.csv').write_h5ad('counts.h5ad')."
            )
        raise ValueError(f"{path} is a zip file without a zarr store at its top: unzip it, and pass the file inside.")

    def stored() -> anndata.AnnData:
        store = zarr.storage.ZipStore(str(path), mode="r")
        try:
            return anndata.io.read_zarr(zarr.open_group(store, mode="r"))
        finally:
            store.close()

    return _checked(path, "a zipped zarr store", stored)


def _checked(path: Path, what: str, call: Callable[[], anndata.AnnData]) -> anndata.AnnData:
    """Call a reader, with gene names made unique for 10x and errors that name the file."""
    try:
        if "10x" not in what:
            return call()
        with warnings.catch_warnings(record=True):  # of names that are not unique, which are made unique below
            adata = call()
    except PermissionError:
        raise
    except Exception as error:  # damaged files cause errors of any type
        raise ValueError(cannot_be_read(path, what, error)) from error
    adata.var_names_make_unique()
    return adata


def cannot_be_read(path: Path, what: str, error: Exception) -> str:
    """Return the error message for a damaged file; `what` is the format, or empty."""
    named = f", {what}," if what else ""
    return (
        f"{path}{named} cannot be read as an AnnData ({error}). "
        "The file may be damaged or incomplete: copy or download it again."
    )


def _told(path: Path, start: bytes) -> str:
    """Return the error message for an unsupported file: its format and a conversion."""
    source, packed = repr(str(path)), start[:2] == b"\x1f\x8b"
    if packed:
        try:
            with gzip.open(path) as file:
                start = file.read(512)
        except (OSError, EOFError) as error:
            return cannot_be_read(path, "a gzip file", error)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        return f"{path} is a compressed HDF5 file: unpack it with gunzip, and pass the result."
    if (
        start[:5] in (b"RDX2\n", b"RDX3\n")
        or start[:2] in (b"X\n", b"A\n")
        or {".rds", ".rda", ".rdata"} & set(suffixes)
    ):
        return (
            f"{path} is a file of R. {_HOW} in R: zellkonverter::writeH5AD(as.SingleCellExperiment(x), 'counts.h5ad')."
        )
    if start[257:262] == b"ustar" or {".tar", ".tgz"} & set(suffixes):
        return f"{path} is an archive: unpack it with tar -xf, and pass the folder or file inside."
    if start[:14] == b"%%MatrixMarket" or ".mtx" in suffixes:
        return (
            f"{path} is a matrix without names. Pass its folder, if barcodes.tsv and features.tsv are there, too. "
            f"Else {_HOW.lower()}: sc.read_mtx({source}).T, with obs_names and var_names, .write_h5ad('counts.h5ad')."
        )
    if {".csv", ".tsv", ".txt", ".tab"} & set(suffixes) or _is_text(start):
        line = start.split(b"\n")[0]
        delimiter = "" if line.count(b",") > line.count(b"\t") else ", delimiter='\\t'"
        return (
            f"{path} is a text table, and whether its rows are cells or genes is unknown. {_HOW}: "
            f"sc.read_csv({source}{delimiter}).write_h5ad('counts.h5ad'), with .T before .write_h5ad if rows are genes."
        )
    return (
        f"{path} cannot be read as an AnnData; expected .h5ad, .zarr or a 10x file. The file may be damaged: copy or "
        "download it again."
    )


def _is_text(start: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\r\n" for byte in start)


def _is_hdf5(path: Path) -> bool:
    import h5py

    return bool(h5py.is_hdf5(path))


def _scanpy() -> Any:
    import scanpy

    return scanpy
