"""New cells mapped onto a reference, and labelled: accuracy, calibration, new kinds, mixing, seconds.

    SCCVAE_DATA=FOLDER python benchmarks/mapping.py --referee REFEREE.py [--parts tasks missing donors simulated]
        [--methods sccvae logreg pca-knn scvi-arches scanvi-arches] [--seeds 0] [--out ROWS.jsonl]
    python benchmarks/mapping.py --table [--out ROWS.jsonl]

One batch is the query, all others are the reference.

tasks      TASKS: a technology or plate as query; with a type left out of the reference, whose cells are to be found
donors     each donor of pbmc_8donors as query
simulated  5,000 cells of 20 batches and 25 kinds in a hierarchy, whose batches differ in depth and composition: three
           batches as queries, the shallowest, the deepest and one between
missing    the query of the first three tasks without 0, 10, 30, 50 % of its genes, left out or filled with zeros

REFEREE.py is called as `python REFEREE.py DATA.h5ad --query BATCH [--drop TYPE] METHOD --seed SEED --out ROW` and
writes JSON with the measures of UNITS. `missing` takes reference and query from its `load(path, query, drop, n_genes)`.
acc and f1 are over cells whose type the reference holds. knn_mix: fraction of reference cells among the 15 neighbours
of a query cell over that in all cells. same_ref: largest change of the reference's embedding. A process and one
thread for each row. What is in --out is not measured again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from ablations import load_referee
from rows import Log, default_out, gather
from rows import read as read_rows

TASKS = {
    "5p": ("pbmc_3tech", "5p", None),
    "3pv1": ("pbmc_3tech", "3pv1", None),
    "p3": ("celllines_5plates", "sc_celseq2_5cl_p3", None),
    "5p without B": ("pbmc_3tech", "5p", "B"),
    "p3 without H838": ("celllines_5plates", "sc_celseq2_5cl_p3", "H838"),
}
DONORS = ("101", "107", "1015", "1016", "1039", "1244", "1256", "1488")
SIMULATED = ("batch_0", "batch_10", "batch_19")  # by depth
MISSING = (0.0, 0.1, 0.3, 0.5)
METHODS = ("sccvae", "logreg", "pca-knn", "scvi-arches", "scanvi-arches")
UNITS = dict.fromkeys(("acc", "f1", "ece", "novel_auc", "novel_found", "known_kept", "knn_mix", "same_ref"), "1")
UNITS |= {"ref_s": "s", "map_s": "s"}
PEERS = ("scvi-tools", "scikit-learn")
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "NUMBA")}


def hierarchy(seed: int = 0, n_batches: int = 20, cells: int = 250, genes: int = 1500):
    """Counts of 25 kinds, five in each of five branches: negative binomial, theta 3."""
    import anndata

    rng = np.random.default_rng(seed)
    log_profile = np.repeat(rng.normal(-1, 1.5, genes)[None], 25, axis=0)
    for branch in range(5):
        log_profile[5 * branch : 5 * branch + 5, rng.permutation(genes)[:150]] += rng.normal(0, 1, 150)
    for kind in range(25):
        log_profile[kind, rng.permutation(genes)[:40]] += rng.normal(0, 1, 40)
    counts, obs = [], []
    for batch, depth in enumerate(np.geomspace(400, 4000, n_batches)):
        kinds = rng.choice(25, cells, p=rng.dirichlet(np.full(25, 1.0)))
        rate = np.exp(log_profile[kinds] + rng.normal(0, 0.3, genes))
        mean = rate / rate.sum(1, keepdims=True) * depth * rng.lognormal(0, 0.3, (cells, 1))
        counts.append(rng.poisson(rng.gamma(3, mean / 3)))
        obs += [{"batch": f"batch_{batch}", "cell_type": f"branch_{k // 5} kind_{k % 5}"} for k in kinds]
    x = sp.csr_matrix(np.concatenate(counts).astype(np.float32))
    table = pd.DataFrame(obs, index=[f"cell_{i}" for i in range(len(obs))])
    return anndata.AnnData(x, obs=table, var=pd.DataFrame(index=[f"gene_{i}" for i in range(genes)]))


def asked_for(options) -> list[tuple]:
    """What is to be measured: part, label, set, query, type left out, method, seed, fraction of genes missing."""
    found: list[tuple] = []
    for seed in options.seeds:
        for method in options.methods:
            if "tasks" in options.parts:
                found += [("tasks", label, *task, method, seed, None) for label, task in TASKS.items()]
            if "donors" in options.parts:
                found += [("donors", d, "pbmc_8donors", d, None, method, seed, None) for d in DONORS]
            if "simulated" in options.parts:
                found += [("simulated", b, "simulated", b, None, method, seed, None) for b in SIMULATED]
        if "missing" in options.parts:
            for label, task in list(TASKS.items())[:3]:
                found += [("missing", label, *task, how, seed, m) for m in MISSING for how in ("left out", "zeros")]
    return found


def of_referee(options, path: Path, query: str, drop: str | None, method: str, seed: int) -> dict | None:
    """One row of the referee; None, and its error printed, if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        row = Path(folder) / "row.jsonl"
        command = [sys.executable, str(options.referee), str(path), method, "--query", query, "--seed", str(seed)]
        command += ["--out", str(row), *(["--drop", drop] if drop else [])]
        ended = subprocess.run(command, env=os.environ | ONE_THREAD, capture_output=True, text=True)
        if row.is_file():
            return json.loads(row.read_text())
    print(ended.stdout[-500:], ended.stderr[-500:], file=sys.stderr)
    return None


def with_missing_genes(
    referee, path: Path, query: str, seed: int, wanted: list[tuple[float, str]]
) -> Iterator[tuple[float, str, dict]]:
    """Yield scores of the query without a fraction of its genes, which are left out or zeros; one reference for all."""
    import sccvae

    reference, cells = referee.load(str(path), query, None, 2000)
    model = sccvae.SCCVAE(reference, batch_key="batch", labels_key="cell_type", seed=seed)
    model.train(progress_bar=False)
    truth = cells.obs["cell_type"].to_numpy()
    known = np.isin(truth, reference.obs["cell_type"].unique())
    genes = np.random.default_rng([seed, 7]).permutation(cells.n_vars)
    for missing, how in wanted:
        left_out = genes[: round(missing * len(genes))]
        part = cells[:, np.setdiff1d(genes, left_out)].copy() if how == "left out" else cells.copy()
        if how == "zeros":
            kept = np.isin(np.arange(len(genes)), left_out, invert=True)
            part.X = (part.X @ sp.diags(kept.astype(np.float32))).tocsr()
        del part.obs["cell_type"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            mapped = sccvae.SCCVAE.load_query_data(part, model, least_genes=0.3)
        mapped.train(progress_bar=False)
        yield missing, how, scores(truth[known], mapped.predict()[known])


def scores(truth: np.ndarray, table: pd.DataFrame) -> dict:
    from sklearn.metrics import f1_score

    label, accepted = table["label"].to_numpy(), table["accepted"].to_numpy()
    f1 = f1_score(truth, label, average="macro", labels=np.unique(truth))
    return {"acc": float((label == truth).mean()), "f1": float(f1), "known_kept": float(accepted.mean())}


def table(rows: list[dict]) -> pd.DataFrame:
    """Means over seeds; of donors and simulated batches over these, too."""
    frame = pd.DataFrame(rows)
    over_queries = frame["part"].isin(["donors", "simulated"])
    frame["query"] = frame["query"].where(~over_queries, "mean of all")
    scores = [score for score in UNITS if score in frame]
    found = frame.groupby(["part", "query", "missing", "method"], dropna=False)[scores]
    return found.mean().round(3).assign(rows=found.size())


def measure(options, log: Log, asked: list[tuple], folder: Path) -> None:
    gone: dict[tuple, list[tuple[float, str]]] = {}
    for part, label, name, query, drop, method, seed, missing in asked:
        path = folder / f"{name}.h5ad" if name == "simulated" else Path(os.environ["SCCVAE_DATA"]) / f"{name}.h5ad"
        if name == "simulated" and not path.exists():
            hierarchy().write_h5ad(path)
        if part == "missing":
            gone.setdefault((label, path, query, seed), []).append((missing, method))
            continue
        row = of_referee(options, path, query, drop, method, seed)
        if row is not None:
            found = {key: value for key, value in row.items() if key in UNITS}
            log.add(found, data_set=name, method=method, seeds=[seed], part=part, query=label, missing=None)
            print(part, label, method, seed, found, flush=True)
    referee = load_referee(options.referee) if gone else None
    for (label, path, query, seed), wanted in gone.items():
        for missing, how, found in with_missing_genes(referee, path, query, seed, wanted):
            log.add(found, data_set=path.stem, method=how, seeds=[seed], part="missing", query=label, missing=missing)
            print("missing", label, missing, how, seed, found, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--referee", type=Path, help="script with the methods, and the function load")
    parser.add_argument("--out", type=Path, default=default_out(__file__), help="JSON lines (default: %(default)s)")
    parts = ("tasks", "missing", "donors", "simulated")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--table", action="store_true", help="print the table of the rows there are, and stop")
    options = parser.parse_args()
    if not options.table and (options.referee is None or "SCCVAE_DATA" not in os.environ):
        parser.error("--referee and the environment variable SCCVAE_DATA say where the methods and the sets are.")
    if not options.table:
        rows = gather(read_rows(options.out))
        done = {(r["part"], r["query"], r["method"], r["seed"], r["missing"]) for r in rows}
        asked = [a for a in asked_for(options) if (*a[:2], *a[5:]) not in done]
        with tempfile.TemporaryDirectory() as folder:
            measure(options, Log(__file__, options.out, UNITS, threads=1, peers=PEERS), asked, Path(folder))
    if rows := gather(read_rows(options.out)):
        print(table(rows).to_string())


if __name__ == "__main__":
    main()
