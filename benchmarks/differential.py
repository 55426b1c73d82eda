"""Differential expression with known truth: sccvae beside scvi-tools (where importable) and Wilcoxon's test of Scanpy.

    python benchmarks/differential.py [--kinds groups confounded types rest] [--repeats 10]
        [--methods sccvae wilcoxon scvi] [--cells 600] [--genes 1000] [--delta 0.25] [--out ROWS.jsonl]

Each repeat simulates anew, trains sccvae and scvi-tools by their defaults on the CPU, and compares two groups, or each
group with all others, as users do to find markers:

groups       Negative binomial counts of two groups in two batches that hold them alike; 30 % of the genes change by
             0.5 to 2 log2 units, up or down, the others not at all.
confounded   The same, but 70 % of one group and 30 % of the other come from the first batch.
types        `sccvae.simulate`, three batches: the cells of one type and those of another; a gene has changed if the
             log2 ratio of its true mean expression, without batch effects, exceeds `--delta`. Most genes have.
rest         `sccvae.simulate`, three batches, 13 types, each with the rest; 3,000 cells x 2,000 genes, whatever
             `--cells` and `--genes` say. A gene has changed as in `types`.

Prints means over the repeats (and groups): area under the precision-recall curve of the ranking (`auprc`); among the
genes called at a false discovery rate of 0.05, the share that did not change (`fdp`, with its largest value), and the
share of the changed genes that are called (`power`); seconds to train, to compare, and for each group compared. sccvae
ranks by `bayes_factor`, scvi-tools by `proba_de` (`mode="change"`, `batch_correction=True`), Wilcoxon's test by the
size of its score.
docs/benchmarks.md shows the last table.
"""

import argparse
import time
import warnings
from importlib.util import find_spec

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from rows import Log, default_out


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
    adata.varm["changed"] = pd.DataFrame({"a": changed}, index=adata.var_names)
    return adata


def types(seed: int, n_cells: int, n_genes: int, *, n_types: int, delta: float, rest: bool) -> ad.AnnData:
    """Cells along a branching gradient; the groups are two sister types, or every type (`rest`)."""
    from sccvae import simulate

    adata = simulate.simulate(n_cells, n_genes, n_types=n_types, seed=seed)
    rho = adata.layers["rho_corrected"].astype(np.float64)
    if rest:
        adata.obs["group"] = adata.obs["cell_type"]
        pairs = [(group, None) for group in adata.obs["group"].cat.categories]
    else:
        names = adata.obs["cell_type"].astype(str).map({"type_1": "a", "type_2": "b"}).fillna("other")
        adata.obs["group"], pairs = names.astype("category"), [("a", "b")]
    changed = {}
    for group, other in pairs:
        first = (adata.obs["group"] == group).to_numpy()
        second = ~first if other is None else (adata.obs["group"] == other).to_numpy()
        changed[group] = np.abs(np.log2(rho[first].mean(0) / rho[second].mean(0))) > delta
    adata.varm["changed"] = pd.DataFrame(changed, index=adata.var_names)
    for layer in list(adata.layers):
        if layer is not None:  # anndata 0.13 counts `X` among the layers
            del adata.layers[layer]
    return adata


# Each returns, for each group compared, the score and the call of each gene; seconds to train and to compare.


def by_sccvae(adata: ad.AnnData, other: str | None, delta: float, seed: int) -> tuple[dict, float, float]:
    import sccvae

    start = time.perf_counter()
    model = sccvae.SCCVAE(adata, batch_key="batch", seed=seed, device="cpu")
    model.train(progress_bar=False)
    trained = time.perf_counter()
    groups = list(adata.varm["changed"])
    table = model.differential_expression(groupby="group", group1=groups, group2=other, delta=delta, seed=seed)
    seconds = time.perf_counter() - trained
    found = {group: part[["bayes_factor", "is_de_fdr_0.05"]] for group, part in table.groupby("group1")}
    return found, trained - start, seconds


def by_scvi(adata: ad.AnnData, other: str | None, delta: float, seed: int) -> tuple[dict, float, float]:
    import scvi

    scvi.settings.seed = seed
    start = time.perf_counter()
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
    trained = time.perf_counter()
    options = {"mode": "change", "delta": delta, "batch_correction": True, "silent": True}
    groups = list(adata.varm["changed"])
    table = model.differential_expression(groupby="group", group1=groups, group2=other, **options)
    seconds = time.perf_counter() - trained
    found = {group: part[["proba_de", "is_de_fdr_0.05"]] for group, part in table.groupby("group1")}
    return found, trained - start, seconds


def by_wilcoxon(adata: ad.AnnData, other: str | None, delta: float, seed: int) -> tuple[dict, float, float]:
    import scanpy as sc

    start = time.perf_counter()
    adata, groups = adata.copy(), list(adata.varm["changed"])
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.tl.rank_genes_groups(adata, "group", groups=groups, reference=other or "rest", method="wilcoxon")
    found = {}
    for group in groups:
        table = sc.get.rank_genes_groups_df(adata, group).set_index("names")
        found[group] = pd.DataFrame({"score": table["scores"].abs(), "called": table["pvals_adj"] < 0.05})
    return found, 0.0, time.perf_counter() - start


KINDS = {
    "groups": lambda seed, cells, genes, delta: two_groups(seed, cells, genes, first_batch=(0.5, 0.5)),
    "confounded": lambda seed, cells, genes, delta: two_groups(seed, cells, genes, first_batch=(0.7, 0.3)),
    "types": lambda seed, cells, genes, delta: types(seed, 2 * cells, genes, n_types=6, delta=delta, rest=False),
    "rest": lambda seed, cells, genes, delta: types(seed, 3000, 2000, n_types=13, delta=delta, rest=True),
}
UNITS = dict.fromkeys(("auprc", "fdp", "fdp_max", "power"), "1")
UNITS |= dict.fromkeys(("train_s", "compare_s", "s_per_group"), "s")
METHODS = {"sccvae": by_sccvae, "scvi": by_scvi, "wilcoxon": by_wilcoxon}


def measure(kind: str, method: str, seed: int, options: argparse.Namespace) -> dict:
    """One row of the result."""
    from sklearn.metrics import average_precision_score

    adata = KINDS[kind](seed, options.cells, options.genes, options.delta)
    found, train, compare = METHODS[method](adata, None if kind == "rest" else "b", options.delta, seed)
    scores = []
    for group, changed in adata.varm["changed"].items():
        score, called = found[group].loc[adata.var_names].to_numpy().T
        called, changed = called.astype(bool), changed.to_numpy()
        scores.append(
            {
                "auprc": average_precision_score(changed, score.astype(float)),
                "fdp": (called & ~changed).sum() / max(called.sum(), 1),
                "power": called[changed].mean(),
            }
        )
    frame = pd.DataFrame(scores)
    row = {"kind": kind, "method": method, "seed": seed, **frame.mean(), "fdp_max": frame["fdp"].max()}
    return row | {"train_s": train, "compare_s": compare, "s_per_group": compare / len(scores)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--cells", type=int, default=600, help="cells of two groups; `types` has twice as many")
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--delta", type=float, default=0.25)
    parser.add_argument(
        "--out", default=default_out(__file__), help="file to append the rows to (default: %(default)s)"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # scvi-tools and Scanpy warn of much that is meant here
    methods = [method for method in options.methods if method != "scvi" or find_spec("scvi")]
    if len(methods) < len(options.methods):
        print("scvi-tools is not installed here, and left out.")
    log, rows = Log(__file__, options.out, UNITS, peers=["scvi-tools"]), []
    conditions = {name: getattr(options, name) for name in ("cells", "genes", "delta")}
    for kind in options.kinds:
        for seed in range(options.repeats):
            for method in methods:
                rows.append(row := measure(kind, method, seed, options))
                found = {name: row[name] for name in UNITS}
                log.add(found, data_set=f"simulated, {kind}", method=method, seeds=[seed], **conditions)
        frame = pd.DataFrame(rows).query("kind == @kind").drop(columns=["kind", "seed"])
        table = frame.groupby("method", sort=False).mean()
        table["fdp_max"] = frame.groupby("method")["fdp_max"].max()
        print(f"\n{kind}: {options.repeats} simulations\n{table.round(3).to_string()}", flush=True)


if __name__ == "__main__":
    main()
