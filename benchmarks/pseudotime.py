"""Diffusion pseudotime in the latent space against a published one: sccvae beside PCA and scvi-tools, in one run.

    SCCVAE_DATA=FOLDER python benchmarks/pseudotime.py [--methods sccvae pca scvi] [--genes 2000 all]
        [--neighbors 10 15 30] [--seeds 0 1 2] [--scvi-seeds 0] [--scvi-epochs N] [--out ROWS.jsonl]

hematopoiesis_paul15, 2,660 cells: `obs["pseudotime_tradeSeq"]` is the authors' of tradeSeq (Slingshot on a UMAP). Each
number is the Spearman correlation with it of `sccvae.tl.gradient`'s pseudotime on the method's embedding, over all
cells. The cells, the genes, the root and the number of neighbours k are the same for all methods.

sccvae       `SCCVAE(adata, batch_key="batch")` by its defaults: 20 latent dimensions
denoised     the same models: 50 principal components of the log of their expression, decoded in both batches
pca          50 principal components of log-normalised counts, as Scanpy makes them; knows no batches
scvi         `scvi.model.SCVI`, batch_key="batch", its defaults to their end (400 epochs here): 10 latent dimensions

`--genes 2000` takes the genes that vary most (Scanpy's default, on log-normalised counts), `all` all 3,451. Roots:

published    the cell at which the published pseudotime begins: the order is compared, not the choice of the root
medoid       of the multipotent progenitors (the authors' cluster 7MEP), the cell nearest to all others of them, in
             log-normalised counts of all genes
progenitors  10 of the progenitors at random, each in turn: the mean of their correlations

`within` is the mean of the correlations inside two lineages, both from the progenitors: megakaryocytes and red cells;
all white cells. It asks for the order along each branch alone; `spearman` also asks which of the two is longer, a
matter of the layout that the published pseudotime was read from, and of the root. `given_depth` is the partial
correlation given the total counts of the cells, which the published pseudotime follows (0.79): progenitors have few.

Tables hold means over seeds, and the smallest and largest over seeds and numbers of neighbours.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from rows import Log, default_out
from scipy.stats import spearmanr

import sccvae

METHODS = ("sccvae", "denoised", "pca", "scvi")
MEASURES = ("spearman", "given_depth", "within")
UNITS = dict.fromkeys(MEASURES, "1") | {"train_s": "s"}
STEM = "Multipotent progenitors"
LINEAGES = ((STEM, "Megakaryocytes", "Erythrocyte"), (STEM, "GMP", "Basophils", "Monocytes", "Neutrophils"))


def log_normalised(adata: ad.AnnData) -> ad.AnnData:
    import scanpy as sc

    log = ad.AnnData(adata.X.copy(), obs=adata.obs[[]], var=adata.var[[]])
    sc.pp.normalize_total(log, target_sum=1e4)
    sc.pp.log1p(log)
    return log


def chosen(log: ad.AnnData, genes: str) -> np.ndarray:
    """Mask of genes."""
    import scanpy as sc

    if genes == "all":
        return np.ones(log.n_vars, dtype=bool)
    return sc.pp.highly_variable_genes(log, n_top_genes=int(genes), inplace=False)["highly_variable"].to_numpy()


def roots_of(adata: ad.AnnData, log: ad.AnnData) -> dict[str, list[str]]:
    """Names of the cells that are roots, by the rule that chose them."""
    from sklearn.metrics import pairwise_distances

    stem = np.flatnonzero(adata.obs["cell_type"] == STEM)
    between = pairwise_distances(log.X[stem].toarray())
    drawn = np.random.default_rng(0).choice(stem, 10, replace=False)
    numbers = {
        "published": [adata.obs["pseudotime_tradeSeq"].argmin()],
        "medoid": [stem[between.sum(1).argmin()]],
        "progenitors": drawn,
    }
    return {rule: [str(name) for name in adata.obs_names[cells]] for rule, cells in numbers.items()}


def train(method: str, adata: ad.AnnData, seed: int, options: argparse.Namespace):
    """A trained model with its embedding in `adata.obsm["X_rep"]`; None for PCA."""
    import scanpy as sc

    if method == "pca":
        sc.pp.pca(adata, n_comps=50, layer="log", key_added="X_rep")
        return None
    if method == "scvi":
        import scvi

        scvi.settings.seed = seed
        scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
        model = scvi.model.SCVI(adata)
        model.train(max_epochs=options.scvi_epochs, accelerator="cpu", enable_progress_bar=False)
    else:
        model = sccvae.SCCVAE(adata, batch_key="batch", seed=seed, device="cpu")
        model.train(progress_bar=False)
    adata.obsm["X_rep"] = model.get_latent_representation()
    return model


def agreement(found: pd.Series, obs: pd.DataFrame) -> tuple[float, float, float]:
    """Spearman correlation with the published pseudotime, the same given the cells' depths, its mean in lineages."""

    def over(cells: np.ndarray, given: str | None = None) -> float:
        ours, theirs = found[cells], obs.loc[cells, "pseudotime_tradeSeq"]
        if given is None:
            return spearmanr(ours, theirs, nan_policy="omit")[0]
        r = spearmanr(np.column_stack([ours, theirs, obs.loc[cells, given]]))[0]
        return (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))

    known = found.notna().to_numpy()
    within = np.mean([over(obs["cell_type"].isin(of).to_numpy()) for of in LINEAGES])
    return over(known), over(known, "depth"), float(within)


def correlations(adata: ad.AnnData, roots: dict, options: argparse.Namespace) -> Iterator[dict]:
    """Rows of the embedding `adata.obsm["X_rep"]`: all numbers of neighbours and roots."""
    import scanpy as sc

    for k in options.neighbors:
        sc.pp.neighbors(adata, n_neighbors=k, use_rep="X_rep", key_added="graph")
        for rule, cells in roots.items():
            found = []
            for cell in cells:
                sccvae.tl.gradient(
                    adata, root=cell, use_rep="X_rep", neighbors_key="graph", layout=None, key_added="trial"
                )
                found.append(agreement(adata.obs["trial_pseudotime"], adata.obs))
            means = dict(zip(MEASURES, np.mean(found, axis=0).tolist(), strict=True))
            apart = int(adata.obs["trial_pseudotime"].isna().sum())
            yield {"k": k, "root": rule, **means, "n_roots": len(cells), "apart": apart}


def measure(genes: str, method: str, seed: int, options: argparse.Namespace) -> list[dict]:
    import scanpy as sc

    adata = sccvae.datasets.load("hematopoiesis_paul15")
    log = log_normalised(adata)
    roots, mask = roots_of(adata, log), chosen(log, genes)
    adata.layers["log"], adata.obs["depth"] = log.X, np.asarray(adata.X.sum(1)).ravel()
    adata = adata[:, mask].copy()
    start = time.perf_counter()
    model = train(method, adata, seed, options)
    row = {"genes": genes, "n_genes": adata.n_vars, "seed": seed, "train_s": time.perf_counter() - start}
    rows = [row | {"method": method} | found for found in correlations(adata, roots, options)]
    if method == "sccvae" and "denoised" in options.methods:
        adata.layers["denoised"] = np.log1p(model.get_normalized_expression(transform_batch="all", library_size=1e4))
        sc.pp.pca(adata, n_comps=50, layer="denoised", key_added="X_rep")
        rows += [row | {"method": "denoised"} | found for found in correlations(adata, roots, options)]
    if method == "scvi":
        rows = [found | {"epochs": len(model.history["elbo_train"])} for found in rows]
    return rows


def table(rows: list[dict], what: str) -> str:
    frame = pd.DataFrame(rows)
    by = ["genes", "root", "method"]
    wide = frame.pivot_table(index=by, columns="k", values=what, sort=False)
    wide.columns = [f"k={k}" for k in wide.columns]
    groups = frame.groupby(by, sort=False)
    wide["smallest"], wide["largest"] = groups[what].min(), groups[what].max()
    wide["seeds"], wide["train_s"] = groups["seed"].nunique(), groups["train_s"].mean().round(1)
    return wide.round(3).sort_index(level=by[:2], sort_remaining=False).to_string()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--genes", nargs="+", default=["2000", "all"], help="numbers of variable genes, or all")
    parser.add_argument("--neighbors", nargs="+", type=int, default=[10, 15, 30])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of sccvae")
    parser.add_argument("--scvi-seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--scvi-epochs", type=int, help="default: its own number")
    parser.add_argument(
        "--out", type=Path, default=default_out(__file__), help="file to append the rows to (default: %(default)s)"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # scvi-tools and Scanpy warn of much that is meant here
    seeds = {"sccvae": options.seeds, "pca": [0], "scvi": options.scvi_seeds}
    if "scvi" in options.methods and not find_spec("scvi"):
        print("scvi-tools is not installed here, and left out.")
        del seeds["scvi"]
    if "denoised" in options.methods and "sccvae" not in options.methods:
        parser.error("denoised is what the models of sccvae say: name both.")
    log, rows = Log(__file__, options.out, UNITS, peers=["scvi-tools"]), []
    for genes in options.genes:
        for method, of_method in seeds.items():
            for seed in of_method if method in options.methods else []:
                new = measure(genes, method, seed, options)
                rows += new
                for row in new:
                    found = {name: row[name] for name in UNITS}
                    what = {name: value for name, value in row.items() if name not in (*UNITS, "method", "seed")}
                    log.add(found, data_set="hematopoiesis_paul15", method=row["method"], seeds=[seed], **what)
                best = {(row["k"], row["root"]): round(row["spearman"], 3) for row in new if row["method"] == method}
                print(f"{genes} genes, {method}, seed {seed}: {best}", flush=True)
    for what in MEASURES:
        print(f"\n{what}\n{table(rows, what)}")


if __name__ == "__main__":
    main()
