"""Differential expression with known truth: sccvae beside scvi-tools (where importable) and Wilcoxon's test of Scanpy.

    python benchmarks/differential.py [--kinds groups confounded types] [--repeats 10] [--methods sccvae wilcoxon scvi]
        [--cells 600] [--genes 1000] [--delta 0.25] [--out rows.csv]

Each repeat simulates anew, trains sccvae and scvi-tools by their defaults on the CPU, and compares two groups:

groups       Negative binomial counts of two groups in two batches that hold them alike; 30 % of the genes change by
             0.5 to 2 log2 units, up or down, the others not at all.
confounded   The same, but 70 % of one group and 30 % of the other come from the first batch.
types        `sccvae.simulate`, three batches: the cells of one type and those of another; a gene has changed if the
             log2 ratio of its true mean expression, without batch effects, exceeds `--delta`. Most genes have.

Prints means over the repeats: area under the precision-recall curve of the ranking (`auprc`); among the genes called
at a false discovery rate of 0.05, the share that did not change (`fdp`, with its largest value), and the share of the
changed genes that are called (`power`); seconds to train and seconds to compare. sccvae ranks by `bayes_factor`,
scvi-tools by `proba_de` (`mode="change"`, `batch_correction=True`), Wilcoxon's test by the size of its score.
README.md beside this file shows the last table.
"""

import argparse
import time
import warnings
from importlib.util import find_spec

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp


def two_groups(seed: int, n_cells: int, n_genes: int, *, first_batch: tuple[float, float]) -> ad.AnnData:
    """Two groups of negative binomial counts; `first_batch` is the share of each group that is in the first batch."""
    rng = np.random.default_rng(seed)
    changed = rng.random(n_genes) < 0.3
    lfc = np.where(changed, rng.choice([-1, 1], n_genes) * rng.uniform(0.5, 2.0, n_genes), 0.0)
    group = rng.integers(2, size=n_cells)
    batch = (rng.random(n_cells) >= np.array(first_batch)[group]).astype(int)
    base, effect = rng.lognormal(0, 1.5, n_genes), np.exp(0.3 * rng.standard_normal((2, n_genes)))
    rate = base * 2.0 ** (lfc * group[:, None]) * effect[batch]
    mean = rate / rate.sum(1, keepdims=True) * rng.lognormal(np.log(1500), 0.3, (n_cells, 1))
    theta = rng.lognormal(np.log(2), 0.5, n_genes)
    counts = rng.poisson(rng.gamma(theta, mean / theta)).astype(np.float32)
    obs = pd.DataFrame({"group": np.array(["b", "a"])[group], "batch": np.array(["s", "t"])[batch]})
    adata = ad.AnnData(sp.csr_matrix(counts), obs=obs.set_index(obs.index.astype(str)).astype("category"))
    adata.var["changed"] = changed
    return adata


def two_types(seed: int, n_cells: int, n_genes: int, *, delta: float) -> ad.AnnData:
    """Cells along a branching gradient; the groups are two sister types."""
    from sccvae import simulate

    adata = simulate.simulate(2 * n_cells, n_genes, seed=seed)
    types = adata.obs["cell_type"].to_numpy()
    adata.obs["group"] = pd.Categorical(np.where(types == "type_1", "a", np.where(types == "type_2", "b", "other")))
    rho = adata.layers["rho_corrected"].astype(np.float64)
    lfc = np.log2(rho[adata.obs["group"] == "a"].mean(0) / rho[adata.obs["group"] == "b"].mean(0))
    adata.var["changed"] = np.abs(lfc) > delta
    for layer in list(adata.layers):
        del adata.layers[layer]
    return adata


def by_sccvae(adata: ad.AnnData, delta: float, seed: int) -> tuple[pd.Series, pd.Series, float, float]:
    import sccvae

    start = time.perf_counter()
    model = sccvae.SCCVAE(adata, batch_key="batch", seed=seed, device="cpu")
    model.train(progress_bar=False)
    trained = time.perf_counter()
    table = model.differential_expression(groupby="group", group1="a", group2="b", delta=delta, seed=seed)
    seconds = time.perf_counter() - trained
    return table["bayes_factor"], table["is_de_fdr_0.05"], trained - start, seconds


def by_scvi(adata: ad.AnnData, delta: float, seed: int) -> tuple[pd.Series, pd.Series, float, float]:
    import scvi

    scvi.settings.seed = seed
    start = time.perf_counter()
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
    trained = time.perf_counter()
    table = model.differential_expression(
        groupby="group", group1="a", group2="b", mode="change", delta=delta, batch_correction=True, silent=True
    )
    seconds = time.perf_counter() - trained
    return table["proba_de"], table["is_de_fdr_0.05"], trained - start, seconds


def by_wilcoxon(adata: ad.AnnData, delta: float, seed: int) -> tuple[pd.Series, pd.Series, float, float]:
    import scanpy as sc

    start = time.perf_counter()
    adata = adata.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.tl.rank_genes_groups(adata, "group", groups=["a"], reference="b", method="wilcoxon")
    table = sc.get.rank_genes_groups_df(adata, "a").set_index("names")
    return table["scores"].abs(), table["pvals_adj"] < 0.05, 0.0, time.perf_counter() - start


KINDS = {
    "groups": lambda seed, cells, genes, delta: two_groups(seed, cells, genes, first_batch=(0.5, 0.5)),
    "confounded": lambda seed, cells, genes, delta: two_groups(seed, cells, genes, first_batch=(0.7, 0.3)),
    "types": lambda seed, cells, genes, delta: two_types(seed, cells, genes, delta=delta),
}
METHODS = {"sccvae": by_sccvae, "scvi": by_scvi, "wilcoxon": by_wilcoxon}


def measure(kind: str, method: str, seed: int, options: argparse.Namespace) -> dict:
    """One row of the result."""
    from sklearn.metrics import average_precision_score

    adata = KINDS[kind](seed, options.cells, options.genes, options.delta)
    score, called, train, compare = METHODS[method](adata, options.delta, seed)
    genes, changed = adata.var_names, adata.var["changed"].to_numpy()
    called = called.loc[genes].to_numpy()
    return {
        "kind": kind,
        "method": method,
        "seed": seed,
        "auprc": average_precision_score(changed, score.loc[genes].to_numpy()),
        "fdp": (called & ~changed).sum() / max(called.sum(), 1),
        "power": called[changed].mean(),
        "train_s": train,
        "compare_s": compare,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--cells", type=int, default=600, help="cells of two groups; `types` has twice as many")
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--delta", type=float, default=0.25)
    parser.add_argument("--out", help="file for the rows behind the table, as CSV")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # scvi-tools and Scanpy warn of much that is meant here
    methods = [method for method in options.methods if method != "scvi" or find_spec("scvi")]
    if len(methods) < len(options.methods):
        print("scvi-tools is not installed here, and left out.")
    rows = []
    for kind in options.kinds:
        for seed in range(options.repeats):
            rows += [measure(kind, method, seed, options) for method in methods]
            if options.out:
                pd.DataFrame(rows).to_csv(options.out, index=False)
        frame = pd.DataFrame(rows).query("kind == @kind").drop(columns=["kind", "seed"])
        table = frame.groupby("method", sort=False).mean()
        table.insert(2, "fdp_max", frame.groupby("method")["fdp"].max())
        print(f"\n{kind}: {options.repeats} simulations\n{table.round(3).to_string()}", flush=True)


if __name__ == "__main__":
    main()
