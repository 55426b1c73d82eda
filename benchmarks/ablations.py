"""What each default is worth: one change at a time from the present defaults, and combinations, over sets and seeds.

    SCCVAE_DATA=FOLDER python benchmarks/ablations.py --referee REFEREE.py [--sets pbmc_3tech ...] [--out ROWS.jsonl]
        [--variants default n_hidden=512 n_hidden=512+n_latent=30 ...] [--seeds 0 1 2] [--genes 2000] [--threads 1]
    python benchmarks/ablations.py --table [--out ROWS.jsonl]

Runs every variant (all of GRID and COMBINATIONS by default; any of GRID joined by + is a combination) on every set
FOLDER/NAME.h5ad and seed, appends JSON rows for each, and prints the table of all rows. What is in --out already is
not made again; what makes a row the same is the set, genes, seed, threads and the *resolved* settings, so that rows
of earlier defaults are neither taken for today's nor mixed with them in the table. Changes of the code are not seen:
begin a new file. One process per set and seed reads the data and compiles once; a set of 1,500 cells takes about a
minute per row on one quiet core, half of it for the scIB scores.

REFEREE.py has the functions `load(path, n_genes, seed)` -> (AnnData of counts thinned to 80 %, the 20 % as CSR),
`scores(z, adata, held)`, `thinned_nll(mean, held)` and `expected(likelihood_parameters)`. Its scores:

thinned_nll, thinned_nll_rho   lower is better: held-out molecules under expected counts, under normalised expression
knn_corr, knn_acc, ari, nmi, bio, batch, total   higher is better; the last three need scib-metrics

Decide by the mean rank over sets and the columns of sets that became better and worse, never by one set.
"""

import argparse
import hashlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from rows import Log, default_out, gather
from rows import read as read_rows

# Settings by name: "model" and "train" are arguments of SCCVAE and SCCVAE.train, "steps" a number of steps instead of
# epochs, "start" a change of the network before training (a function below).
GRID: dict[str, dict] = {
    "default": {},
    **{f"n_hidden={n}": {"model": {"n_hidden": n}} for n in (128, 512)},
    **{f"n_latent={n}": {"model": {"n_latent": n}} for n in (10, 30)},
    **{f"n_layers={n}": {"model": {"n_layers": n}} for n in (2, 3)},
    **{f"dropout_rate={p}": {"model": {"dropout_rate": p}} for p in (0.0, 0.1, 0.2)},
    **{f"gene_likelihood={name}": {"model": {"gene_likelihood": name}} for name in ("nb", "poisson")},
    **{f"dropout_cost={cost}": {"model": {"dropout_cost": cost}} for cost in (0.0, 0.01, 0.06)},
    **{f"prior_components={n}": {"model": {"prior_components": n}} for n in (0, 10, 100)},
    **{f"batch_mixing={weight}": {"model": {"batch_mixing": weight}} for weight in (0.0, 1.0, 2.0, 3.0)},
    **{f"weight_precision={p}": {"model": {"weight_precision": p}} for p in (0.0, 30.0, 300.0)},
    **{f"thinning={share}": {"model": {"thinning": share}} for share in (0.2, 0.5, 0.8)},
    "dispersion=gene-batch": {"model": {"dispersion": "gene-batch"}},
    "library=observed": {"model": {"library": "observed"}},
    "encode_covariates=False": {"model": {"encode_covariates": False}},
    **{f"learning_rate={rate}": {"train": {"learning_rate": rate}} for rate in (2e-3, 8e-3)},
    **{f"kl_warmup={share}": {"train": {"kl_warmup": share}} for share in (0.0, 0.3)},
    **{f"steps={n}": {"steps": n} for n in (800, 2400)},
    "batch_size=256": {"train": {"batch_size": 256, "learning_rate": 5.7e-3}},  # the rate grows by sqrt(2)
    "batch_size=64": {"train": {"batch_size": 64, "learning_rate": 2.8e-3}},
    "weight_decay=1e-5": {"train": {"weight_decay": 1e-5}},
    **{f"train_size={share}": {"train": {"train_size": share}} for share in (0.9, 1.0)},
    "theta=1": {"start": "theta_of_1"},
    "theta=5": {"start": "theta_of_5"},
    "theta=moments": {"start": "theta_by_moments"},
    "decoder_dropout=0.1": {"start": "decoder_dropout"},
    "batch_norm": {"start": "batch_norm"},
}
COMBINATIONS = ("n_latent=10+n_hidden=128", "steps=2400+dropout_rate=0.2", "theta=5+gene_likelihood=nb")
LOWER = ("thinned_nll", "thinned_nll_rho", "fit_s")
SCORES = (*LOWER[:2], "knn_corr", "knn_acc", "ari", "nmi", "bio", "batch", "total", "fit_s")
UNITS = dict.fromkeys(SCORES, "1") | dict.fromkeys(LOWER[:2], "nats per cell") | {"elbo": "nats per cell"}
UNITS |= {"fit_s": "s", "score_s": "s", "epochs": "1", "failed": None}
PEERS = ("scib-metrics", "scvi-tools", "harmonypy")
WHAT = ("variant", "settings", "genes_asked", "threads", "cells", "genes")  # conditions of a row
DIGITS = {"thinned_nll": 2, "thinned_nll_rho": 2, "fit_s": 1}


# ---------------------------------------------------------------------------------------------- changes of the network


def theta_of(theta: float, model) -> None:
    model._vae.decoder.log_dispersion.data.fill_(float(np.log(theta)))


def theta_by_moments(model) -> None:
    """Theta from mean and variance of the counts scaled to the median library size."""
    import torch

    counts = model._counts
    scaled = counts.matrix.multiply(np.exp(np.median(counts.log_total) - counts.log_total)[:, None]).tocsr()
    mean = np.asarray(scaled.mean(0)).ravel()
    variance = np.asarray(scaled.power(2).mean(0)).ravel() - mean**2
    theta = np.clip(mean**2 / np.maximum(variance - mean, 1e-8), 0.1, 100)
    model._vae.decoder.log_dispersion.data.copy_(torch.from_numpy(np.log(theta)))


def decoder_dropout(model) -> None:
    for block in model._vae.decoder.blocks:
        block.dropout.rate = 0.1


def batch_norm(model) -> None:
    from torch import nn

    for part in (model._vae.encoder, model._vae.decoder):
        for block in part.blocks:
            block.norm = nn.BatchNorm1d(block.norm.normalized_shape[0], momentum=0.01, eps=1e-3)


STARTS: dict[str, Callable] = {f.__name__: f for f in (theta_by_moments, decoder_dropout, batch_norm)}
STARTS |= {f"theta_of_{theta}": partial(theta_of, theta) for theta in (1, 5)}


# ----------------------------------------------------------------------------------------------------------- variants


def variant(name: str) -> dict:
    """The settings of a name of GRID, or of several joined by +."""
    joined: dict = {"model": {}, "train": {}, "steps": None, "start": []}
    for part in name.split("+"):
        if part not in GRID:
            raise SystemExit(f"There is no variant {part!r}; there are {', '.join(GRID)}, and these joined by +.")
        settings = GRID[part]
        for key in ("model", "train"):
            twice = joined[key].keys() & settings.get(key, {}).keys()
            if twice:
                raise SystemExit(f"{name!r} sets {', '.join(sorted(twice))} twice.")
            joined[key].update(settings.get(key, {}))
        joined["steps"] = settings.get("steps", joined["steps"])
        joined["start"] += [settings["start"]] if "start" in settings else []
    return joined


def signature(name: str) -> str:
    """Ten hexadecimal digits that change when any resolved setting of a variant does, the defaults included."""
    from sccvae import SCCVAE

    resolved = variant(name)
    for key, function in (("model", SCCVAE.__init__), ("train", SCCVAE.train)):
        parameters = inspect.signature(function).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        resolved[key] = {**{k: v for k, v in defaults.items() if k not in ("seed", "device")}, **resolved[key]}
    resolved["train"]["batch_size"] = resolved["train"]["batch_size"] or 128  # of so few cells
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:10]


def key_of(row: dict) -> tuple:
    """What makes two rows the same measurement."""
    return tuple(row[k] for k in ("set", "variant", "settings", "seed", "genes_asked", "threads"))


# --------------------------------------------------------------------------------------------------------------- rows


def load_referee(path: Path):
    """The module at `path`."""
    specification = importlib.util.spec_from_file_location("referee", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def measure(referee, adata, held, name: str, seed: int) -> dict:
    """Fit one variant on the thinned counts; its scores and seconds."""
    from sccvae import SCCVAE

    settings = variant(name)
    options = dict(settings["train"])
    if settings["steps"] is not None:
        defaults = {p.name: p.default for p in inspect.signature(SCCVAE.train).parameters.values()}
        size, share = ({**defaults, **options}[name] for name in ("batch_size", "train_size"))
        options["max_epochs"] = max(1, round(settings["steps"] * (size or 128) / (share * adata.n_obs)))
    started = time.perf_counter()
    model = SCCVAE(adata, batch_key="batch" if "batch" in adata.obs else None, seed=seed, **settings["model"])
    for start in settings["start"]:
        STARTS[start](model)
    model.train(progress_bar=False, **options)
    row = {"fit_s": time.perf_counter() - started, "epochs": int(model.history["epoch"].max())}
    validation = model.history.query("split == 'validation'")["elbo"]
    row["elbo"] = float(validation.max())  # NaN where no cells are held out
    row["thinned_nll"] = referee.thinned_nll(referee.expected(model.get_likelihood_parameters()), held)
    row["thinned_nll_rho"] = referee.thinned_nll(model.get_normalized_expression(return_numpy=True), held)
    started = time.perf_counter()
    row.update(referee.scores(model.get_latent_representation(), adata, held))
    row["score_s"] = time.perf_counter() - started
    return row


def work(arguments) -> None:
    """All missing variants of one set and seed, in this process."""
    import torch

    import sccvae

    torch.set_num_threads(arguments.threads)
    warm = sccvae.SCCVAE(sccvae.simulate.simulate(200, 40, seed=0), batch_key="batch")
    warm.train(1, progress_bar=False)  # what compiles and loads once is not timed
    referee = load_referee(arguments.referee)
    (name,), (seed,) = arguments.sets, arguments.seeds
    adata, held = referee.load(str(arguments.data / f"{name}.h5ad"), arguments.genes, seed)
    log = Log(__file__, arguments.out, UNITS, threads=arguments.threads, peers=PEERS, gpu=True)
    for which in arguments.variants:
        row = {
            "set": name, "variant": which, "settings": signature(which), "seed": seed, "genes_asked": arguments.genes,
            "threads": arguments.threads, "cells": adata.n_obs, "genes": adata.n_vars,
        }  # fmt: skip
        try:
            row.update(measure(referee, adata, held, which, seed))
        except sccvae.TrainingError as error:
            row["failed"] = str(error)
        found = {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items() if k in UNITS}
        log.add(found, data_set=name, method="sccvae", seeds=[seed], **{what: row[what] for what in WHAT})
        what = row.get("failed") or f"{row['fit_s']:.0f} s to fit, {row['score_s']:.0f} s to score"
        print(f"{name}, seed {seed}, {which}: {what}", flush=True)


def read(path: Path) -> list[dict]:
    """The measurements so far; of those made twice the later. A line cut short by a kill is left out."""
    found = [row for row in gather(read_rows(path)) if all(what in row for what in (*WHAT, "seed"))]
    return list({key_of(row): row for row in found}.values())


def missing(arguments, name: str, seed: int) -> list[str]:
    """Variants without a row for a set and seed."""
    done = {key_of(row) for row in read(arguments.out)}
    rest = (seed, arguments.genes, arguments.threads)
    return [which for which in arguments.variants if (name, which, signature(which), *rest) not in done]


# -------------------------------------------------------------------------------------------------------------- table


def current(rows: list[dict], genes: int, threads: int) -> pd.DataFrame:
    """The rows made with the settings that the names have today."""
    known = {row["variant"] for row in rows if all(part in GRID for part in row["variant"].split("+"))}
    signatures = {name: signature(name) for name in known}
    kept = [row for row in rows if signatures.get(row["variant"]) == row["settings"]]
    kept = [row for row in kept if (row["genes_asked"], row["threads"]) == (genes, threads)]
    return pd.DataFrame([row for row in kept if "failed" not in row])


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per variant: the mean rank over sets for each score, and on how many sets it is better or worse.

    Sets are ranked by the means over seeds, among the variants that were measured on all sets. Better and worse than
    the default, seed by seed, by more than the standard error of the mean difference.
    """
    scores = [score for score in SCORES if score in frame]
    means = frame.groupby(["set", "variant"])[scores].mean().unstack("set")
    whole = means.index[frame.groupby("variant")["set"].nunique() == frame["set"].nunique()]
    result: dict[str, pd.Series] = {}
    for score in scores:
        of_sets = means.loc[whole, score].dropna(axis=1, how="all")
        sign = 1 if score in LOWER else -1
        result[f"{score} rank"] = (sign * of_sets).rank().mean(axis=1)
        differences = _differences(frame, score) * -sign
        mean, error = differences.mean(axis=1), differences.sem(axis=1)
        for what, sets in (("better", mean > error), ("worse", mean < -error)):
            result[f"{score} {what}"] = sets.groupby("variant").sum().reindex(whole).fillna(0).astype(int)
    return pd.DataFrame(result).sort_values(f"{scores[0]} rank")


def _differences(frame: pd.DataFrame, score: str) -> pd.DataFrame:
    """Score minus that of the default: rows (variant, set), columns seeds."""
    values = frame.pivot_table(index=["variant", "set"], columns="seed", values=score)
    if "default" not in values.index.get_level_values("variant"):
        return values.iloc[:0]
    default = values.loc["default"].reindex(values.index.get_level_values("set"))
    return values - default.to_numpy()


def markdown(frame: pd.DataFrame) -> str:
    """The summary, then for each set means and standard errors over seeds."""
    ranks = summary(frame)
    scores = [score for score in SCORES if score in frame]
    lines = [
        f"Mean rank over {frame['set'].nunique()} sets (1 is best); in brackets, on how many of them it is better and "
        "worse than the default by more than a standard error.\n",
        _row(["variant", *scores]),
        _row(["---"] * (1 + len(scores))),
    ]
    for name, row in ranks.iterrows():
        cells = [f"{row[f'{s} rank']:.1f} (+{row[f'{s} better']:.0f} -{row[f'{s} worse']:.0f})" for s in scores]
        lines.append(_row([str(name), *cells]))
    for set_name, part in frame.groupby("set"):
        of_set = [score for score in scores if part[score].notna().any()]
        lines += [f"\n{set_name}: mean ± standard error over seeds\n", _row(["variant", "seeds", *of_set])]
        lines.append(_row(["---"] * (2 + len(of_set))))
        for name, rows in part.groupby("variant"):
            cells = []
            for score in of_set:
                digits, error = DIGITS.get(score, 3), rows[score].sem()
                spread = "" if np.isnan(error) else f" ± {error:.{digits}f}"
                cells.append(f"{rows[score].mean():.{digits}f}{spread}")
            lines.append(_row([str(name), str(len(rows)), *cells]))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


# --------------------------------------------------------------------------------------------------------------- main


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--referee", type=Path, help="file with the functions load, scores, thinned_nll, expected")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SCCVAE_DATA"), help="folder (default: $SCCVAE_DATA)"
    )
    parser.add_argument(
        "--out", type=Path, default=default_out(__file__), help="JSON lines to go on with (default: %(default)s)"
    )
    parser.add_argument("--sets", nargs="+", help="names of files in the folder (default: all)")
    parser.add_argument("--variants", nargs="+", default=[*GRID, *COMBINATIONS], help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of the rows there are, and stop")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name in arguments.variants:
        variant(name)
    if not arguments.table:
        if arguments.referee is None or not arguments.referee.is_file():
            parser.error(f"--referee is {arguments.referee}: expected the path of a Python file.")
        if arguments.data is None or not Path(arguments.data).is_dir():
            parser.error(f"--data is {arguments.data}: expected a folder of .h5ad files; or set SCCVAE_DATA.")
        arguments.data = Path(arguments.data)
        there = sorted(path.stem for path in arguments.data.glob("*.h5ad"))
        arguments.sets = arguments.sets or there
        unknown = sorted(set(arguments.sets) - set(there))
        if unknown or not there:
            parser.error(
                f"{arguments.data} has no {', '.join(unknown) or 'sets'}: it has {', '.join(there) or 'none'}."
            )
    return arguments


def main() -> None:
    arguments = parsed()
    if arguments.work:
        work(arguments)
        return
    threads = {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
    for seed in [] if arguments.table else arguments.seeds:
        for name in arguments.sets:
            todo = missing(arguments, name, seed)
            if todo:
                command = [sys.executable, __file__, "--work", "--referee", arguments.referee, "--data", arguments.data]
                command += ["--out", arguments.out, "--sets", name, "--seeds", seed, "--genes", arguments.genes]
                command += ["--threads", arguments.threads, "--variants", *todo]
                done = subprocess.run([str(c) for c in command], env={**os.environ, **threads}, check=False)
                if done.returncode:
                    print(f"{name}, seed {seed}: stopped with status {done.returncode}", file=sys.stderr)
    frame = current(read(arguments.out), arguments.genes, arguments.threads)
    print(markdown(frame) if len(frame) else "There are no rows yet.")


if __name__ == "__main__":
    main()
