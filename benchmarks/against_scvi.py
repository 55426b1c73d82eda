"""Time and memory of sccvae beside scvi-tools: same cells, genes, split, batch size and threads, in one run.

    SCCVAE_DATA=FOLDER python benchmarks/against_scvi.py [--sets spring_2000 ...] [--threads 1 2]
        [--measures epoch quality memory inference] [--repeats 3] [--out ROWS.jsonl] [--cap EPOCHS] [--device cuda]

Needs a Python with sccvae and scvi-tools, and a FOLDER with hematopoiesis_spring.h5ad and pbmc_8donors.h5ad. Each
measurement has a process of its own, on the CPU or with `--device cuda` on a GPU (without bare products and memory,
which are of the CPU); the order of methods alternates. Prints medians over the repeats, and appends every measurement
to --out. docs/benchmarks.md defines all precisely. In short, with one network for
both (128 hidden units, 10 latent dimensions, 1 layer, ZINB, observed library size) except in `quality`:

epoch      Seconds per training epoch without validation, the first dropped; milliseconds per step, beside the step's
           bare matrix products through torch: of the decoder's two heads, and of the whole network taken as dense.
           `sccvae-full` is sccvae with precision="full": products of float32, as scvi-tools' are.
quality    scvi-tools by its defaults, and tuned (early stopping, lr 4e-3, KL warm-up of 10 epochs): its best held-out
           ELBO, and when. sccvae by its defaults, but the observed library size: when it reaches that ELBO.
memory     Highest resident memory above that after imports and reading the data: training, and (another process)
           normalised expression. Needs Linux.
inference  Cells per second: latent space, and normalised expression.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
import warnings
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from rows import Log, default_out

SETS = {  # name: (file in $SCCVAE_DATA or None for the simulation, genes to keep or None for all)
    "spring_2000": ("hematopoiesis_spring.h5ad", 2000),
    "spring_8000": ("hematopoiesis_spring.h5ad", 8000),
    "pbmc_8donors": ("pbmc_8donors.h5ad", None),
    "simulated": (None, None),
}
BOTH, OURS = ("sccvae", "scvi"), {"sccvae": "mixed", "sccvae-full": "full"}  # and the precision
METHODS = {
    "epoch": (*BOTH, "sccvae-full", "floor"),
    "quality": (*BOTH, "scvi-tuned"),
    "memory": BOTH,
    "inference": BOTH,
}
TABLE = {  # measure: what its numbers are
    "epoch": {"epoch_s": "seconds per epoch", "step_ms": "ms per step"},
    "memory": {"train_mb": "MiB added by training", "total_mb": "MiB in all, training"}
    | {"expression_mb": "MiB added by normalised expression", "array_mb": "MiB of the array alone"},
    "inference": {"latent": "cells per s, latent space", "expression": "cells per s, normalised expression"},
}
NETWORK = {"n_hidden": 128, "n_latent": 10, "n_layers": 1, "gene_likelihood": "zinb", "encode_covariates": False}
UNITS = {"epoch_s": "s", "step_ms": "ms", "steps": "1", "floor_decoder_ms": "ms", "floor_all_ms": "ms"}
UNITS |= {"best_elbo": "nats per cell", "best_s": "s", "best_epoch": "1", "curve": None, "failed": None}
UNITS |= {f"{what}_mb": "MiB" for what in ("train", "total", "counts", "expression", "array", "added")}
UNITS |= {"latent": "cells per s", "expression": "cells per s"}
PEERS = ("scvi-tools", "lightning")
BATCH_SIZE, EPOCHS, CAP_OF_SIMULATED = 128, 4, 3


def prepare(name: str, path: str, repeats: int, **_) -> dict:
    """Write the set `name` to `path`, with the held-out cells of every repeat in `obs`; return its description."""
    import anndata as ad
    import scanpy as sc

    from sccvae import simulate
    from sccvae.data.counts import split

    file, n_genes = SETS[name]
    if file is None:
        adata = simulate.simulate(100_000, 2000, n_batches=2, mean_library=200.0, keep_truth=False, seed=0)
    else:
        adata = ad.read_h5ad(Path(os.environ["SCCVAE_DATA"]) / file)
    adata.X = adata.X.tocsr().astype(np.float32)
    adata = ad.AnnData(adata.X, obs={"batch": adata.obs["batch"].astype(str).to_numpy()})
    if n_genes is not None:  # scanpy's default choice of genes
        ranked = adata.copy()
        sc.pp.normalize_total(ranked, target_sum=1e4)
        sc.pp.log1p(ranked)
        sc.pp.highly_variable_genes(ranked, n_top_genes=n_genes)
        adata = adata[:, ranked.var["highly_variable"]].copy()
    sc.pp.filter_cells(adata, min_counts=1)
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    codes = adata.obs["batch"].cat.codes.to_numpy()
    for seed in range(repeats):
        adata.obs[f"held_out_{seed}"] = np.isin(range(len(codes)), split(codes, 0.9, np.random.default_rng(seed))[1])
    adata.write_h5ad(path)
    zeros = round(1 - adata.X.nnz / (adata.n_obs * adata.n_vars), 4)
    return {"cells": adata.n_obs, "genes": adata.n_vars, "zeros": zeros}


def make(method: str, adata, seed: int, **network):
    """Model of `adata`, with the observed library size, which is scvi-tools' default."""
    if method in OURS:
        import sccvae

        return sccvae.SCCVAE(adata, batch_key="batch", library="observed", seed=seed, **network)
    import scvi

    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    return scvi.model.SCVI(adata, **network)


def train(method: str, model, adata, seed: int, epochs: int | None, **options) -> None:
    """Train on the cells of repeat `seed` that are not held out."""
    held_out = adata.obs[f"held_out_{seed}"].to_numpy()
    cells, others = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    if method in OURS:
        from sccvae.data.counts import split

        found = split(model._counts.codes[:, 0], 0.9, np.random.default_rng(seed))  # as SCCVAE.train does
        model.train(epochs, batch_size=BATCH_SIZE, train_size=0.9, precision=OURS[method], progress_bar=False)
    else:
        parts = {"external_indexing": [cells, others, np.array([], dtype=int)]}
        options |= {"datasplitter_kwargs": parts, "enable_progress_bar": False}
        model.train(epochs, batch_size=BATCH_SIZE, **options)
        found = model.train_indices, model.validation_indices
    if not (np.array_equal(found[0], cells) and np.array_equal(found[1], others)):
        raise AssertionError(f"{method} does not split the cells as it should.")


def make_clock() -> tuple:
    """Lightning callback and the times, a list per event, that it will fill."""
    from lightning.pytorch.callbacks import LambdaCallback

    times: dict = {event: [] for event in ("on_train_epoch_end", "on_validation_start", "on_validation_end")}
    return LambdaCallback(**{e: lambda *_, at=at: at.append(time.perf_counter()) for e, at in times.items()}), times


def epoch(method: str, adata, seed: int, **_) -> dict:
    if method == "floor":
        return floors(adata.n_vars)
    model = make(method, adata, seed, **NETWORK)
    if method in OURS:
        train(method, model, adata, seed, EPOCHS)
        seconds = model.history.query("split == 'training'")["seconds"].tolist()[1:]
    else:
        clock, times = make_clock()
        train(method, model, adata, seed, EPOCHS, callbacks=[clock])
        seconds = np.diff(times["on_train_epoch_end"]).tolist()
    n_steps = -(-int((~adata.obs[f"held_out_{seed}"]).sum()) // BATCH_SIZE)
    return {"epoch_s": (s := statistics.median(seconds)), "step_ms": 1e3 * s / n_steps, "steps": n_steps}


def floors(n_genes: int, repeats: int = 50) -> dict:
    """Milliseconds of the bare matrix products of a step of scvi-tools' default network."""
    import torch

    b, h, z = BATCH_SIZE, NETWORK["n_hidden"], NETWORK["n_latent"]

    def layer(n_in, n_out, by_input=True):  # forward, gradient of the weights, gradient of the input
        x, weight, by_output = torch.randn(b, n_in), torch.randn(n_in, n_out), torch.randn(b, n_out)
        products = [(x, weight), (x.T, by_output)] + [(by_output, weight.T)] * by_input
        return [(left, right, torch.empty(len(left), right.shape[1])) for left, right in products]

    heads = layer(h, n_genes) + layer(h, n_genes)
    others = layer(n_genes, h, by_input=False) + layer(h, z) + layer(h, z) + layer(z, h)
    result = {}
    for name, products in {"decoder": heads, "all": heads + others}.items():
        multiply = lambda: [torch.mm(left, right, out=out) for left, right, out in products]  # noqa: B023, E731
        result[f"floor_{name}_ms"] = 1e3 * statistics.median(timeit.repeat(multiply, number=1, repeat=repeats + 5)[5:])
    return result


def quality(method: str, adata, seed: int, cap: int | None, **_) -> dict:
    started = time.perf_counter()
    model = make(method, adata, seed)
    constructed = time.perf_counter() - started
    if method == "sccvae":
        train(method, model, adata, seed, None)
        seconds = constructed + model.history.groupby("epoch")["seconds"].sum().cumsum().to_numpy()
        elbo = model.history.query("split == 'validation'")["elbo"].to_numpy()
    else:
        options = {"check_val_every_n_epoch": 1}
        if method == "scvi-tuned":
            options |= {"early_stopping": True, "plan_kwargs": {"lr": 4e-3, "n_epochs_kl_warmup": 10}}
        clock, times = make_clock()
        train(method, model, adata, seed, cap, callbacks=[clock], **options)
        elbo = -model.history["elbo_validation"].to_numpy(dtype=float).ravel()  # unweighted, whatever the KL weight
        begun, ended = np.array(times["on_validation_start"]), np.array(times["on_validation_end"])
        seconds = ended - started - (np.cumsum(ended - begun) if method == "scvi" else 0.0)
    best = int(elbo.argmax())
    curve = [[round(float(s), 3), round(float(e), 3)] for s, e in zip(seconds, elbo, strict=True)]
    return {"best_elbo": curve[best][1], "best_s": curve[best][0], "best_epoch": best + 1, "curve": curve}


def memory(method: str, adata, seed: int, path: str, **_) -> dict:
    before = resident_mb()
    model = make(method, adata, seed, **NETWORK)
    train(method, model, adata, seed, 3)
    peak = peak_mb()
    model.save(f"{path}.{method}", overwrite=True)
    return {"train_mb": peak - before, "total_mb": peak, "counts_mb": (adata.X.data.nbytes * 2) / 2**20}


def expression_memory(method: str, adata, path: str, **_) -> dict:
    kind = sys.modules["sccvae"].SCCVAE if method == "sccvae" else sys.modules["scvi"].model.SCVI
    model = kind.load(f"{path}.{method}", adata)
    model.get_latent_representation(indices=np.arange(500))
    forget_peak()
    before = resident_mb()
    array = model.get_normalized_expression(return_numpy=True)
    return {"expression_mb": peak_mb() - before, "array_mb": array.nbytes / 2**20}


def inference(method: str, adata, seed: int, **_) -> dict:
    model = make(method, adata, seed, **NETWORK)
    train(method, model, adata, seed, 1)
    row, expression = {}, partial(model.get_normalized_expression, return_numpy=True)
    for name, output in (("latent", model.get_latent_representation), ("expression", expression)):
        output(indices=np.arange(500))
        started = time.perf_counter()
        output()
        row[name] = adata.n_obs / (time.perf_counter() - started)
    return row


def peak_mb() -> float:
    """Highest resident memory of this process since `forget_peak`, MiB."""
    return _status("VmHWM")


def resident_mb() -> float:
    """DeviceCounts memory of this process, MiB."""
    return _status("VmRSS")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) / 2**10


def child(task: dict, functions: tuple) -> None:
    """Do one task in this process, by one of the functions, and print its result as the last line."""
    warnings.filterwarnings("ignore")
    function = {f.__name__: f for f in functions}[task.pop("measure")]
    if "method" in task:
        import anndata as ad
        import torch

        torch.set_num_threads(task["threads"])
        ours = task["method"] in OURS
        for module in ["sccvae.models.sccvae", "numba"] if ours else {"floor": []}.get(task["method"], ["scvi"]):
            importlib.import_module(module)
        if ours:
            sys.modules["numba"].njit(lambda x: x)(0)  # it imports half of itself at its first call
        task["adata"] = ad.read_h5ad(task["path"])
        forget_peak()
    print("RESULT " + json.dumps(function(**task)), flush=True)


def ask(threads: int = 1, script: str = __file__, device: str = "cpu", **task) -> dict | None:
    """What a child finds for a task; None, with its last words on stderr, if it fails."""
    command = [sys.executable, script, "--child", json.dumps(task | {"threads": threads})]
    environment = os.environ | {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "NUMBA")}
    if device == "cpu":  # both take a GPU if they see one
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not results:
        print(f"failed: {task}\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(results[-1].removeprefix("RESULT "))


def measure_set(name: str, args, folder: str) -> None:
    """All measurements of one set: rows to the file, tables to the screen."""
    path = f"{folder}/{name}.h5ad"
    about = ask(measure="prepare", name=name, path=path, repeats=args.repeats)
    if about is None:
        return
    cap = args.cap or (CAP_OF_SIMULATED if SETS[name][0] is None else None)
    shape = f"{about['cells']:,} cells x {about['genes']:,} genes, {about['zeros']:.1%} zeros"
    for threads, measure in product(args.threads, args.measures):
        log = Log(__file__, args.out, UNITS, threads=threads, peers=PEERS, gpu=args.device != "cpu")
        print(f"\n{name}: {shape}; threads: {threads}", flush=True)
        rows = []
        for seed in range(args.repeats):
            for method in METHODS[measure][:: -1 if seed % 2 else 1]:
                if method == "floor" and args.device != "cpu":
                    continue
                task = {"method": method, "path": path, "seed": seed, "cap": cap}
                task |= (where := {"threads": threads, "device": args.device})
                result = ask(measure=measure, **task)
                if result and measure == "memory":
                    result |= ask(measure="expression_memory", **task) or {}
                rows.append({"method": method, "repeat": seed, "failed": result is None, **(result or {})})
                conditions = about | where | {"part": measure, "cap": cap if measure == "quality" else None}
                found = {"failed": "no result"} if result is None else result
                log.add(found, data_set=name, method=method, seeds=[seed], **conditions)
        print(quality_table(rows, cap) if measure == "quality" else table(measure, rows), flush=True)


def median(rows: list[dict], method: str, key: str) -> float:
    values = [row[key] for row in rows if row["method"] == method and key in row]
    return statistics.median(values) if values else float("nan")


def line(what: str, ours: float, theirs: float, higher_is_better: bool) -> str:
    return f"  {what:<44}{ours:>12,.4g}{theirs:>14,.4g}{ours / theirs if higher_is_better else theirs / ours:>9.2f}x"


def table(measure: str, rows: list[dict]) -> str:
    """Medians of both, and how many times better sccvae is (below 1: worse)."""
    lines = [f"  {measure:<44}{'sccvae':>12}{'scvi-tools':>14}{'better':>10}"]
    for key, what in TABLE[measure].items():
        lines.append(line(what, *(median(rows, method, key) for method in BOTH), measure == "inference"))
    if measure == "epoch":
        full, scvi = (median(rows, method, "epoch_s") for method in ("sccvae-full", "scvi"))
        lines.append(line('  the same, sccvae by precision="full"', full, scvi, False))
        of_products = {"decoder": "decoder's 6 products", "all": "all products"}
        for key, what in of_products.items() if any(row["method"] == "floor" for row in rows) else ():
            floor = median(rows, "floor", f"floor_{key}_ms")
            ours, theirs = (median(rows, method, "step_ms") / floor for method in BOTH)
            lines.append(f"  {f'step / floor: {what}, {floor:.3g} ms':<44}{ours:>11.2f}x{theirs:>13.2f}x")
    return "\n".join(lines)


def quality_table(rows: list[dict], cap: int | None) -> str:
    """Medians of the seconds to the best ELBO of scvi-tools in the same repeat; infinite where never reached."""
    by = {(row["method"], row["repeat"]): row for row in rows if not row["failed"]}
    lines = [f"  {'quality':<44}{'sccvae':>12}{'scvi-tools':>14}{'better':>10}"]
    for method in METHODS["quality"][1:]:
        pairs = [(by["sccvae", k], row) for (m, k), row in by.items() if m == method and ("sccvae", k) in by]
        if not pairs:
            continue
        times = [next((s for s, elbo in a["curve"] if elbo >= b["best_elbo"]), float("inf")) for a, b in pairs]
        what = f"s to best ELBO of {method} ({np.isfinite(times).sum()}/{len(times)} get there)"
        lines.append(line(what, statistics.median(times), median(rows, method, "best_s"), False))
        ours, theirs = median(rows, "sccvae", "best_elbo"), median(rows, method, "best_elbo")
        lines.append(f"  {f'  best ELBO, nats per cell ({method})':<44}{ours:>12,.2f}{theirs:>14,.2f}")
    if cap:
        lines.append(f"  scvi-tools was stopped after {cap} epochs: not its final quality.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--measures", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--out", default=default_out(__file__), help="file to append the rows to (default: %(default)s)"
    )
    parser.add_argument("--cap", type=int, help="epochs of scvi-tools in `quality` (default: its own; simulated: 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(json.loads(args.child), (prepare, epoch, quality, memory, expression_memory, inference))
    if args.device != "cpu" and "memory" in args.measures:
        parser.error("memory is measured on the CPU alone; name other --measures")
    if any(SETS[name][0] for name in args.sets) and "SCCVAE_DATA" not in os.environ:
        parser.error("set SCCVAE_DATA to the folder of the data sets")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.sets:
            measure_set(name, args, folder)


if __name__ == "__main__":
    main()
