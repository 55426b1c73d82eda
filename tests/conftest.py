"""What several test files share: a small AnnData, a quickly trained model, a fingerprint, the real data sets."""

from __future__ import annotations

import hashlib
import os
import sys
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numba
import numpy as np
import pandas as pd
import pytest
import python_form
import scipy.sparse as sp
import torch

import sccvae

LIBRARIES = (
    "anndata",
    "scanpy",
    "pandas",
    "numpy",
    "scipy",
    "torch",
    "numba",
    "h5py",
    "zarr",
    "scikit-learn",
    "matplotlib",
)
if numba.config.DISABLE_JIT:
    python_form.install()
torch.set_num_threads(1)  # the models here are small; on a busy machine threads would only wait for one another
SMALL = {"n_hidden": 16, "n_latent": 4}


def pytest_report_header() -> str:
    """What is tested with what."""
    return f"sccvae {sccvae.__version__} with " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


@pytest.fixture(autouse=True)
def no_figure_is_left_to_the_next_test():
    """Scanpy's plots stay open; tests of ours count open figures, whichever test came before."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def _make_adata(n_cells: int = 120, n_genes: int = 60, seed: int = 0) -> ad.AnnData:
    """Counts of 4 kinds of cells in 3 batches, with a column of `obs` for every kind of key."""
    rng = np.random.default_rng(seed)
    kind, batch = np.arange(n_cells) % 4, np.arange(n_cells) % 3
    profiles = rng.dirichlet(np.full(n_genes, 0.5), size=4) + 0.1 / n_genes
    effects = np.exp(0.5 * rng.standard_normal((3, n_genes)))
    rho = profiles[kind] * effects[batch]
    library = rng.lognormal(np.log([80, 100, 150])[batch], 0.2)
    counts = rng.poisson(rho / rho.sum(1, keepdims=True) * library[:, None])
    order = rng.permutation(n_cells)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(np.array(["a", "b", "c"])[batch]),
            "kind": pd.Categorical(np.array(["w", "x", "y", "z"])[kind]),
            "donor": np.array(["d1", "d2"])[rng.integers(2, size=n_cells)],
            "age": rng.normal(40, 10, n_cells),
            "size_factor": library / library.mean(),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame({"highly_variable": np.arange(n_genes) % 2 == 0}, index=[f"gene{i}" for i in range(n_genes)])
    return ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)[order].copy()


_TEMPLATE = _make_adata()


def _bytes_of(value) -> bytes:
    """Everything that a user could see change in a matrix, a table, or a nest of them."""
    if value is None:
        return b"None"
    if sp.issparse(value):
        parts = [value.data, value.indices, value.indptr] if hasattr(value, "indptr") else [value.toarray()]
        return type(value).__name__.encode() + b"".join(map(_bytes_of, parts))
    if isinstance(value, pd.DataFrame):
        dtypes = [f"{name}:{dtype!r}" for name, dtype in value.dtypes.items()]
        return (repr(dtypes) + repr(list(value.index)) + value.to_csv()).encode()
    if isinstance(value, np.ndarray):
        content = repr(value.tolist()).encode() if value.dtype.hasobject else np.ascontiguousarray(value).tobytes()
        return f"{value.dtype}{value.shape}".encode() + content
    if hasattr(value, "items"):
        return b"".join(str(key).encode() + _bytes_of(item) for key, item in value.items())
    return repr(value).encode()


@pytest.fixture(scope="session")
def fingerprint():
    """Function: AnnData -> text that changes when any part of it changes."""

    def of(adata: ad.AnnData) -> str:
        names = ("layers", "obsm", "varm", "obsp", "varp", "uns")
        parts = [adata.X, adata.obs, adata.var, *(dict(getattr(adata, name)) for name in names)]
        parts += [] if adata.raw is None else [adata.raw.X, adata.raw.var]
        return hashlib.sha256(b"|".join(map(_bytes_of, parts))).hexdigest()

    return of


@pytest.fixture(scope="session")
def make_adata():
    """Function: (n_cells, n_genes, seed) -> AnnData of counts."""
    return _make_adata


@pytest.fixture
def adata() -> ad.AnnData:
    """120 cells x 60 genes of counts (CSR, float32) in 3 batches; a copy of its own for each test."""
    return _TEMPLATE.copy()


@pytest.fixture(scope="session")
def fit():
    """Function: (adata, epochs, **options) -> a small trained model."""

    def fit(adata: ad.AnnData, epochs: int = 1, **options) -> sccvae.SCCVAE:
        model = sccvae.SCCVAE(adata, **{**SMALL, **options})
        model.train(epochs, progress_bar=False)
        return model

    return fit


@pytest.fixture(scope="session")
def model(fit) -> sccvae.SCCVAE:
    """A model of `adata` with its batches, trained for 5 epochs. Shared: ask it, but do not train or change it."""
    return fit(_TEMPLATE.copy(), 5, batch_key="batch")


@pytest.fixture(scope="session")
def real():
    """Function: name -> real data set `$SCCVAE_DATA/NAME.h5ad`; skips the test where there is none."""

    def read(name: str) -> ad.AnnData:
        folder = os.environ.get("SCCVAE_DATA")
        if not folder:
            pytest.skip("needs real data: set SCCVAE_DATA to a folder that holds them as NAME.h5ad")
        path = Path(folder) / f"{name}.h5ad"
        if not path.is_file():
            pytest.skip(f"needs the real data set {name!r}: SCCVAE_DATA holds no {path.name}")
        return ad.read_h5ad(path)

    return read
