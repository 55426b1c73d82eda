"""Integration with known cell types: all of them, half of them, some of them wrong.

    SCCVAE_DATA=FOLDER python benchmarks/labels.py --referee REFEREE.py [--sets pbmc_3tech ...] [--seeds 0]
        [--methods sccvae scanvi] [--labels all half ...] [--out ROWS.jsonl]
    python benchmarks/labels.py --table [--out ROWS.jsonl]

Every embedding is scored against the true cell types. LABELS is what a method is given:

none          no labels: sccvae by its defaults; of scanvi the SCVI model that SCANVI begins with
all, half     the true labels of all cells, of a random half
shuffled-P    P % of the labels wrong: each is replaced by the label of a random cell of another type
merged-P      all cells of one type have the label of the type nearest to it (correlation of mean log-normalised
              profiles): that type whose fraction is nearest to P %
one-batch-P   as shuffled-P, but all P % of the cells lie in one batch, the smallest that holds so many

scanvi is SCVI by its defaults, then `SCANVI.from_scvi_model` and 20 epochs with 100 cells of each label, as its
tutorial has it. The SCVI model is trained once for a set and seed. Cells, genes and scores are those of
`ablations.py`, which describes REFEREE.py; bio, batch, total are the scores of scib-metrics. One thread. What is in
--out is not measured again.
"""

import argparse
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from ablations import load_referee
from rows import Log, default_out, gather
from rows import read as read_rows

SETS = ("pbmc_3tech", "celllines_5plates", "hematopoiesis_paul15")
SHARES = (5, 10, 20)
LABELS = ("none", "all", "half", *(f"{kind}-{p}" for kind in ("shuffled", "merged", "one-batch") for p in SHARES))
UNITS = dict.fromkeys(("bio", "batch", "total", "ari", "nmi", "knn_acc"), "1") | {"fit_s": "s"}
PEERS = ("scib-metrics", "scvi-tools")
GENES = 2000


def given(adata, labels: str, seed: int) -> pd.Series:
    """The column of labels that a method is given; None is a cell without a label."""
    truth, rng = adata.obs["cell_type"].astype(str), np.random.default_rng([seed, 31])
    column, (kind, _, share) = truth.astype(object), labels.rpartition("-")
    if labels == "half":
        column[rng.permutation(len(truth))[: len(truth) // 2]] = None
    elif kind == "merged":
        sizes = truth.value_counts(normalize=True)
        merged = (sizes - int(share) / 100).abs().idxmin()
        column[truth == merged] = nearest(adata, truth, merged)
    elif kind in ("shuffled", "one-batch"):
        wrong = int(len(truth) * int(share) / 100)
        sizes = adata.obs["batch"].value_counts()
        batch = sizes[sizes >= wrong].idxmin() if kind == "one-batch" else None
        candidates = np.flatnonzero(adata.obs["batch"] == batch) if batch is not None else np.arange(len(truth))
        for i in rng.choice(candidates, wrong, replace=False):
            column.iloc[i] = rng.choice(truth[truth != truth.iloc[i]])
    return column


def nearest(adata, truth: pd.Series, of: str) -> str:
    """The type whose mean log-normalised profile correlates most with that of a type."""
    import scanpy as sc

    work = sc.AnnData(adata.X.copy(), obs=pd.DataFrame({"type": truth}, index=adata.obs_names))
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    profiles = pd.DataFrame({t: np.asarray(work.X[(truth == t).to_numpy()].mean(0)).ravel() for t in truth.unique()})
    return profiles.corr()[of].drop(of).idxmax()


def of_sccvae(adata, seed: int) -> Callable:
    import sccvae

    sccvae.SCCVAE(sccvae.simulate.simulate(200, 40, seed=0), batch_key="batch").train(1, progress_bar=False)

    def embed(labels: pd.Series | None) -> np.ndarray:
        adata.obs["given"] = labels
        model = sccvae.SCCVAE(adata, batch_key="batch", labels_key=None if labels is None else "given", seed=seed)
        model.train(progress_bar=False)
        return model.get_latent_representation()

    return embed


def of_scanvi(adata, seed: int) -> Callable:
    import scvi

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {"enable_progress_bar": False, "logger": None}
    scvi.settings.seed = seed
    adata.obs["given"] = "Unknown"
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch", labels_key="given")
    start = scvi.model.SCVI(adata)
    start.train(check_val_every_n_epoch=None, **quiet)

    def embed(labels: pd.Series | None) -> np.ndarray:
        if labels is None:
            return start.get_latent_representation()
        scvi.settings.seed = seed
        adata.obs["given"] = labels.fillna("Unknown").astype("category")
        model = scvi.model.SCANVI.from_scvi_model(start, "Unknown", labels_key="given", adata=adata)
        model.train(max_epochs=20, n_samples_per_label=100, **quiet)
        return model.get_latent_representation()

    return embed


METHODS = {"sccvae": of_sccvae, "scanvi": of_scanvi}


def table(rows: list[dict]) -> pd.DataFrame:
    """Means over seeds of the scores of each set, method and labels."""
    frame = pd.DataFrame(rows)
    frame["labels"] = pd.Categorical(frame["labels"], [name for name in LABELS if name in set(frame["labels"])])
    scores = [score for score in UNITS if score in frame]
    found = frame.groupby(["set", "labels", "method"], observed=True)[scores]
    return found.mean().round(3).assign(seeds=found.size())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--referee", type=Path, help="file with the functions load and scores")
    parser.add_argument("--out", type=Path, default=default_out(__file__), help="JSON lines (default: %(default)s)")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--labels", nargs="+", choices=LABELS, default=list(LABELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--table", action="store_true", help="print the table of the rows there are, and stop")
    options = parser.parse_args()
    if not options.table and (options.referee is None or "SCCVAE_DATA" not in os.environ):
        parser.error("--referee and the environment variable SCCVAE_DATA say where the scores and the sets are.")
    done = {(r["set"], r["method"], r["labels"], r["seed"]) for r in gather(read_rows(options.out))}
    asked = [(n, s, m) for s in options.seeds for m in options.methods for n in options.sets]
    for name, seed, method in asked if not options.table else ():
        missing = [labels for labels in options.labels if (name, method, labels, seed) not in done]
        if not missing:
            continue
        import torch

        torch.set_num_threads(1)
        referee = load_referee(options.referee)
        adata, held = referee.load(str(Path(os.environ["SCCVAE_DATA"]) / f"{name}.h5ad"), GENES, seed)
        log = Log(__file__, options.out, UNITS, threads=1, peers=PEERS)
        embed = METHODS[method](adata, seed)
        for labels in missing:
            column, started = None if labels == "none" else given(adata, labels, seed), time.perf_counter()
            z = embed(column)
            scores = {"fit_s": time.perf_counter() - started} | referee.scores(z, adata, held)
            found = {key: round(value, 5) for key, value in scores.items() if key in UNITS}
            log.add(found, data_set=name, method=method, seeds=[seed], labels=labels, cells=adata.n_obs)
            print(name, method, labels, seed, found, flush=True)
    if rows := gather(read_rows(options.out)):
        print(table(rows).to_string())


if __name__ == "__main__":
    main()
