"""Tests over donors with known truth: pbmc_8donors, whose donors are dealt into two arms.

    SCCVAE_DATA=FOLDER python benchmarks/donors.py --referee DONORS.py [--parts between paired only sizes]
        [--methods sccvae-replicates pb-moderated pb-t pb-deseq2] [--seeds 0] [--null 35] [--signal 5]
        [--data FILE.h5ad] [--out ROWS.jsonl]
    SCCVAE_DATA=FOLDER python benchmarks/donors.py --parts permuted [--permutations 1000] [--figure FILE.png]
    python benchmarks/donors.py --table [--out ROWS.jsonl]

between   four donors against four: nothing differs (`--null` splits), or a tenth of the genes differ by a log2 fold
          change of 1 (`--signal` splits)
paired    the cells of each donor are dealt into both arms; at most 10 null splits
only      genes differ in the cells of one type alone, each type in turn; two splits
sizes     log2 fold changes of 0.5 and 2, of a tenth; a share of .02 and .3 of the genes, of 1; three splits
permuted  p-values of `differential_expression(sample_key=)` where nothing differs: 16 simulated donors, dealt into two
          arms of 8 again and again, and the cells of each of the eight real donors. Of each permutation, the p-value
          of a gene drawn at random; the figure has their quantiles, and the 95 % range of those of uniform numbers

DONORS.py deals, thins, and measures. It has `main`, `sums` and the class `Method`, to which this script adds
`pb-moderated`: the moderated t-test (Smyth 2004) on log sums over donors, without the model. Rows have its measures:
any: fraction of (split, type) with a call; fdp: fraction of false calls; tpr: fraction of the changed genes called;
auprc: of the order; lfc_bias: towards 0 if negative; elsewhere: fraction of genes called in types without effect. One
thread. What is in --out is not measured again.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from ablations import load_referee
from rows import Log, default_out, gather
from rows import read as read_rows

METHODS = ("sccvae-replicates", "pb-moderated", "pb-t", "pb-deseq2")
TYPES = ("B cells", "CD14+ Monocytes", "CD4 T cells", "CD8 T cells", "FCGR3A+ Monocytes", "NK cells")
SCORES = ("calls", "any", "fdp", "tpr", "auprc", "elsewhere")
UNITS = dict.fromkeys(SCORES, "1") | {"lfc_err": "log2", "lfc_bias": "log2", "seconds": "s", "p_values": None}
SETTING = ("part", "kind", "design", "lfc", "share", "only", "splits")
LEVELS = (0.001, 0.01, 0.05, 0.1, 0.5)


def with_moderated(referee):
    """The class of methods, with `pb-moderated` besides."""

    class Method(referee.Method):
        def pseudobulk(self, part, arm):
            if self.name != "pb-moderated":
                return super().pseudobulk(part, arm)
            from scipy.special import stdtr
            from scipy.stats import false_discovery_control

            from sccvae.statistics.samples import moderated
            from sccvae.statistics.samples.comparison import LEAST_COUNTS, PRIOR_COUNT
            from sccvae.statistics.samples.design import design_of

            dense, table = referee.sums(part, arm)
            enough = dense.sum(0) >= LEAST_COUNTS
            groups = np.where(table["arm"] == "a1", 1, 2)
            design = design_of(pd.factorize(table["donor"])[0], groups)
            effects = moderated.fit(moderated.log_expression(dense[:, enough], PRIOR_COUNT), design).effects
            score, call, lfc = np.full(part.n_vars, -1.0), np.zeros(part.n_vars, bool), np.zeros(part.n_vars)
            p = 2 * stdtr(effects.degrees, -np.abs(effects.estimate / effects.error))
            score[enough], call[enough], lfc[enough] = -p, false_discovery_control(p) < 0.05, effects.estimate
            return score, call, lfc

    return Method


def settings(options) -> list[dict]:
    """What is measured: the arguments of a call of the referee, and the part it belongs to."""
    usual = {"design": "between", "lfc": 1.0, "share": 0.1, "only": None, "null": 0}
    found = []
    for part in options.parts:
        if part == "between":
            found.append(usual | {"part": part, "null": options.null, "signal": options.signal})
        elif part == "paired":
            changed = {"design": part, "null": min(options.null, 10), "signal": options.signal}
            found.append(usual | {"part": part, **changed})
        elif part == "only":
            found += [usual | {"part": part, "only": name, "signal": 2} for name in TYPES]
        elif part == "sizes":
            found += [usual | {"part": part, "signal": 3, "lfc": lfc} for lfc in (0.5, 2.0)]
            found += [usual | {"part": part, "signal": 3, "share": share} for share in (0.02, 0.3)]
    return found


def of_referee(referee, path: Path, method: str, seed: int, setting: dict) -> list[dict]:
    """The rows of one call of the referee: one for the null splits, one for those with a signal."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.jsonl"
        words = [str(path), method, "--seed", str(seed), "--out", str(out)]
        for name in ("design", "lfc", "share", "only", "null", "signal"):
            words += [f"--{name}", str(setting[name])] if setting[name] is not None else []
        before, sys.argv = sys.argv, ["donors.py", *words]
        try:
            referee.main()
        finally:
            sys.argv = before
        return [json.loads(line) for line in out.read_text().splitlines()]


def measure(options, log: Log, path: Path) -> None:
    done = {
        (row["method"], row["seed"], *(row[name] for name in SETTING))
        for row in gather(read_rows(options.out))
        if row["part"] != "permuted"
    }
    referee = load_referee(options.referee)
    referee.Method = with_moderated(referee)
    for seed in options.seeds:
        for setting in settings(options):
            for method in options.methods:
                asked = [kind for kind in ("null", "signal") if setting[kind]]
                keys = [
                    {name: setting.get(name) for name in SETTING} | {"kind": kind, "splits": setting[kind]}
                    for kind in asked
                ]
                if all((method, seed, *key.values()) in done for key in keys):
                    continue
                for row in of_referee(referee, path, method, seed, setting):
                    key = next(key for key in keys if key["kind"] == row["kind"])
                    found = {name: row[name] for name in UNITS if name in row}
                    log.add(found, data_set=path.stem, method=method, seeds=[seed], **key)


def permuted(options, log: Log) -> None:
    """p-values of random genes, a row for each design with as many as there are permutations."""
    import sccvae

    rng = np.random.default_rng(0)
    simulated = sccvae.simulate.simulate(3200, 500, n_batches=16, n_types=4, seed=0)
    real = load_referee(options.referee).cells_of(str(options.data), 60, rng)
    for name, adata, sample, kind in (
        ("simulated", simulated, "batch", "type_1"),
        ("real", real, "donor", "CD4 T cells"),
    ):
        adata.obs["type"] = adata.obs["cell_type"].astype(str)
        model = sccvae.SCCVAE(adata, batch_key=sample)
        model.train(progress_bar=False)
        samples, rows = adata.obs[sample].astype(str).to_numpy(), np.flatnonzero(adata.obs["type"] == kind)
        found, started = [], time.perf_counter()
        for _ in range(options.permutations):
            if name == "simulated":
                first = np.isin(samples, rng.permutation(np.unique(samples))[:8])
            else:
                first = np.zeros(adata.n_obs, bool)
                for one in np.unique(samples):
                    own = rng.permutation(rows[samples[rows] == one])
                    first[own[: len(own) // 2]] = True
            table = model.differential_expression(
                idx1=rows[first[rows]], idx2=rows[~first[rows]], sample_key=sample, seed=int(rng.integers(2**31))
            )
            found.append(float(rng.choice(table.loc[table["raw_mean1"] + table["raw_mean2"] > 0, "pval"])))
        ordered = [round(p, 6) for p in sorted(found)]
        seconds = (time.perf_counter() - started) / options.permutations
        key = dict.fromkeys(SETTING) | {"part": "permuted", "design": "between" if name == "simulated" else "paired"}
        data_set = "simulated, 16 donors" if name == "simulated" else options.data.stem
        log.add(
            {"p_values": ordered, "seconds": seconds}, data_set=data_set, method="sccvae-replicates", seeds=[0], **key
        )
        below = {level: float(np.mean(np.array(found) <= level)) for level in LEVELS}
        print(data_set, "fraction of p-values at most", below, f"{seconds:.2f} s each", flush=True)


def draw(rows: list[dict], path: Path) -> None:
    """Quantiles of p-values against those of uniform numbers, with their 95 % range."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from scipy.stats import beta

    chosen = list({row["set"]: row for row in rows if row["part"] == "permuted"}.values())
    figure, axes = plt.subplots(1, len(chosen), figsize=(3.6 * len(chosen), 3.4), squeeze=False, layout="constrained")
    for ax, row in zip(axes[0], chosen, strict=True):
        p = np.array(row["p_values"])
        n, rank = len(p), np.arange(1, len(p) + 1)
        expected = rank / (n + 1)
        ax.fill_between(expected, *beta.ppf([[0.025], [0.975]], rank, n + 1 - rank), color="0.85", linewidth=0)
        ax.plot(expected, expected, color="0.5", linewidth=0.8)
        ax.plot(expected, p, ".", markersize=3, color="#0072b2")
        ax.set(xscale="log", yscale="log", xlim=(0.5 / n, 1), ylim=(0.2 / n, 1))
        ax.set(
            title=f"{row['set']}, {row['design']}", xlabel="quantile of uniform numbers", ylabel="quantile of p-values"
        )
    figure.savefig(path, dpi=150)


def table(rows: list[dict]) -> pd.DataFrame:
    """Means over seeds, and over types for the part `only`."""
    frame = pd.DataFrame([row for row in rows if row["part"] != "permuted"])
    frame["only"] = frame["only"].where(frame["only"].isna(), "each")
    scores = [score for score in UNITS if score in frame and score != "p_values"]
    found = frame.groupby(["part", "lfc", "share", "kind", "method"], dropna=False)[scores]
    return found.mean().round(4).assign(rows=found.size())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--referee", type=Path, help="script with main, sums and Method")
    parser.add_argument("--data", type=Path, help="default: pbmc_8donors.h5ad in SCCVAE_DATA")
    parser.add_argument("--out", type=Path, default=default_out(__file__), help="JSON lines (default: %(default)s)")
    parts = ("between", "paired", "only", "sizes", "permuted")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--null", type=int, default=35)
    parser.add_argument("--signal", type=int, default=5)
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--figure", type=Path, help="draw the permutations that are in --out")
    parser.add_argument("--table", action="store_true", help="print the table of the rows there are, and stop")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if not options.table:
        if options.referee is None or (options.data is None and "SCCVAE_DATA" not in os.environ):
            parser.error("--referee and the environment variable SCCVAE_DATA say where the measures and the set are.")
        import torch

        torch.set_num_threads(1)
        options.data = options.data or Path(os.environ["SCCVAE_DATA"]) / "pbmc_8donors.h5ad"
        log = Log(__file__, options.out, UNITS, threads=1, peers=["pydeseq2"])
        measure(options, log, options.data)
        if "permuted" in options.parts:
            permuted(options, log)
    if rows := gather(read_rows(options.out)):
        if options.figure:
            draw(rows, options.figure)
        if any(row["part"] != "permuted" for row in rows):
            print(table(rows).to_string())


if __name__ == "__main__":
    main()
