"""Defaults on sets of other kinds: few cells, few molecules, few or all genes, other batches.

    SCCVAE_DATA=FOLDER python benchmarks/other_datasets.py --referee REFEREE.py [--out ROWS.jsonl]
        [--regimes cortex_400_cells ...] [--methods sccvae scvi scvi-nb] [--seeds 0]
    python benchmarks/other_datasets.py --table [--out ROWS.jsonl]

No default was chosen on any of REGIMES: each is one of the sets that defaults were chosen on, cut until it is of
another kind. Of counts split 80/20 cells are drawn, or molecules, so that a regime's held-out molecules belong to its
cells; genes that fewer than two cells have are left out. A row that is in --out already is not made again. One thread;
each row has a process of its own, in which what compiles once is not timed. The six sets themselves are regimes, too,
but not by default: they are the table of integration in docs/benchmarks.md.

REFEREE.py has the functions of `ablations.py`, and METHODS: of each method a function of an AnnData and of an object
with `seed` and `threads` that returns the embedding and, or None, a function that returns normalised expression and
expected counts. Its scores are explained in `ablations.py`.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from ablations import PEERS, UNITS, load_referee
from rows import Log, default_out, gather
from rows import read as read_rows

GENES = 2000
# set; how many cells, what share of the molecules, how many genes, which column of obs holds the batches
REGIMES: dict[str, dict[str, Any]] = {
    "cortex_400_cells": {"name": "cortex", "cells": 400},
    "spring_400_cells": {"name": "hematopoiesis_spring", "cells": 400},
    "8donors_1000_cells": {"name": "pbmc_8donors", "cells": 1000},
    "celllines_300_cells": {"name": "celllines_5plates", "cells": 300},
    "cortex_shallow": {"name": "cortex", "kept": 0.1},
    "3tech_shallow": {"name": "pbmc_3tech", "kept": 0.1},
    "celllines_shallow": {"name": "celllines_5plates", "kept": 0.1},
    "cortex_300_genes": {"name": "cortex", "genes": 300},
    "paul15_all_genes": {"name": "hematopoiesis_paul15", "genes": 10**6},
    "celllines_all_genes": {"name": "celllines_5plates", "genes": 10**6},
    "cortex_tissues": {"name": "cortex", "batches": "tissue"},
    "cortex_chips": {"name": "cortex", "batches": "chip"},
    "paul15_plates": {"name": "hematopoiesis_paul15", "batches": "plate"},
}
WHOLE = ("cortex", "pbmc_3tech", "celllines_5plates", "hematopoiesis_paul15", "hematopoiesis_spring", "pbmc_8donors")
CHOICES = REGIMES | {name: {"name": name} for name in WHOLE}
SCORES = ("thinned_nll", "thinned_nll_rho", "knn_corr", "knn_acc", "ari", "nmi", "bio", "batch", "total", "fit_s")


def cut(referee, folder: Path, regime: str, seed: int):
    """The counts to train on and those held out."""
    how = CHOICES[regime]
    adata, held = referee.load(str(folder / f"{how['name']}.h5ad"), how.get("genes", GENES), seed)
    rng = np.random.default_rng(seed)
    if "batches" in how:
        adata.obs["batch"] = adata.obs[how["batches"]].astype(str).astype("category")
    for counts in (adata.X, held):
        counts.data = rng.binomial(counts.data.astype(np.int64), how.get("kept", 1)).astype(np.float32)
        counts.eliminate_zeros()
    drawn = np.sort(rng.permutation(adata.n_obs)[: how.get("cells", adata.n_obs)])
    cells = drawn[np.asarray(adata.X[drawn].sum(1)).ravel() > 0]
    genes = np.asarray((adata.X[cells] > 0).sum(0)).ravel() >= 2
    return adata[cells][:, genes].copy(), held[cells][:, genes]


def measure(referee, folder: Path, regime: str, method: str, seed: int) -> dict:
    adata, held = cut(referee, folder, regime, seed)
    if method.startswith("scvi"):
        import scvi  # noqa: F401
    elif method == "sccvae":
        import sccvae

        warm = sccvae.SCCVAE(sccvae.simulate.simulate(200, 40, seed=0), batch_key="batch")
        warm.train(1, progress_bar=False)
    started = time.perf_counter()
    z, expressions = referee.METHODS[method](adata, SimpleNamespace(seed=seed, threads=1))
    row = {"regime": regime, "method": method, "seed": seed, "cells": adata.n_obs, "genes": adata.n_vars}
    row["fit_s"] = time.perf_counter() - started
    if expressions is not None:
        rho, counts = expressions()
        row |= {"thinned_nll": referee.thinned_nll(counts, held), "thinned_nll_rho": referee.thinned_nll(rho, held)}
    return row | referee.scores(z, adata, held)


def read(path: Path) -> list[dict]:
    """The measurements of the file, without those that were copied from a text."""
    return [row for row in gather(read_rows(path)) if row["date"]]


def table(rows: list[dict]) -> pd.DataFrame:
    """Means over seeds, each regime's methods together."""
    frame = pd.DataFrame(rows)
    known = [score for score in SCORES if score in frame]
    return frame.groupby(["regime", "method"])[["cells", "genes", *known]].mean().round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--referee", type=Path, help="file with the functions load, scores, thinned_nll, and METHODS")
    parser.add_argument(
        "--out", type=Path, default=default_out(__file__), help="JSON lines to go on with (default: %(default)s)"
    )
    parser.add_argument("--regimes", nargs="+", choices=CHOICES, default=list(REGIMES))
    parser.add_argument("--methods", nargs="+", default=["sccvae", "scvi", "scvi-nb"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--table", action="store_true", help="print the table of the rows there are, and stop")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.table and (options.referee is None or "SCCVAE_DATA" not in os.environ):
        parser.error("--referee and the environment variable SCCVAE_DATA say where the scores and the sets are.")
    if options.work:
        (regime,), (method,), (seed,) = options.regimes, options.methods, options.seeds
        row = measure(load_referee(options.referee), Path(os.environ["SCCVAE_DATA"]), regime, method, seed)
        found = {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items() if k in UNITS}
        conditions = {name: row[name] for name in ("regime", "cells", "genes")}
        log = Log(__file__, options.out, UNITS, threads=1, peers=PEERS)
        log.add(found, data_set=regime, method=method, seeds=[seed], **conditions)
        return
    done = {(row["regime"], row["method"], row["seed"]) for row in read(options.out)}
    asked = [(r, m, s) for s in options.seeds for r in options.regimes for m in options.methods]
    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "NUMBA")}
    for regime, method, seed in asked if not options.table else ():
        if (regime, method, seed) in done:
            continue
        which = ["--regimes", regime, "--methods", method, "--seeds", str(seed)]
        command = [sys.executable, __file__, "--work", "--referee", str(options.referee), "--out", str(options.out)]
        ended = subprocess.run([*command, *which], env=os.environ | one_thread, capture_output=True, text=True)
        print(regime, method, seed, "" if ended.returncode == 0 else f"failed\n{ended.stderr[-1000:]}", flush=True)
    if rows := read(options.out):
        print(table(rows).to_string())


if __name__ == "__main__":
    main()
