"""Demonstration for `sccvae demo`: integrate, score and plot three simulated batches."""

import os

import numpy as np
import scanpy as sc

from sccvae import metrics, pl, simulate, tl
from sccvae.io import anndata_files, files
from sccvae.statistics.seeded_scanpy import seeded


def run(folder: str | os.PathLike, *, n_cells: int = 3000, n_genes: int = 1000, seed: int = 0) -> str:
    """Integrate a simulated data set; write `integrated.h5ad` and `integration.png` to `folder`.

    Returns
    -------
    A text table of scores before (50 principal components of log-normalised counts) and after integration, and of the
    correlation of expression with the truth.
    """
    folder = files.path_of(folder, "folder")
    folder.mkdir(parents=True, exist_ok=True)
    picture, cells = files.checked(folder / "integration.png"), anndata_files.checked(folder / "integrated.h5ad")
    adata = simulate.simulate(n_cells, n_genes, n_batches=3, n_types=6, seed=seed)
    tl.integrate(adata, batch_key="batch", seed=seed)

    before = sc.pp.normalize_total(adata, target_sum=1e4, copy=True)
    sc.pp.log1p(before)
    seeded(sc.pp.pca, before, n_comps=50, seed=seed)
    scores = [
        metrics.embedding_scores(z, labels=adata.obs["cell_type"], batches=adata.obs["batch"], seed=seed)
        for z in (before.obsm["X_pca"], adata.obsm["X_sccvae"])
    ]
    figure = pl.integration(adata, batch_key="batch", label_key="cell_type")
    with files.writing(picture) as part:
        figure.savefig(part, dpi=150)

    log_truth = np.log1p(1e4 * adata.layers["rho_corrected"])
    recovered = {
        "one cell's counts": _correlation(before.X.toarray(), log_truth),
        "sccvae, batch-corrected": _correlation(np.log1p(1e4 * _rows(adata.layers["sccvae_corrected"])), log_truth),
    }
    anndata_files.write(adata, cells)
    lines = [
        f"{adata.n_obs:,} simulated cells, {adata.n_vars:,} genes, 3 batches, 6 cell types along a branching tree",
        "",
    ]
    lines += [f"{'':<24}{'PCA':>8}{'sccvae':>8}"]
    lines += [f"{name:<24}{scores[0][name]:>8.3f}{scores[1][name]:>8.3f}" for name in scores[0]]
    lines += ["", "correlation with the true expression, without its batch effect (median over cells)"]
    lines += [f"{name:<24}{value:>8.3f}" for name, value in recovered.items()]
    lines += ["", f"written: {folder / 'integrated.h5ad'}, {folder / 'integration.png'}"]
    return "\n".join(lines)


def _rows(x: np.ndarray) -> np.ndarray:
    return x / x.sum(1, keepdims=True)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the median over cells of the correlation between two (cells, genes) arrays."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return float(np.median((a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))))
