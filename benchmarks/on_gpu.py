"""All figures of a GPU in one run: steps, a default run, outputs, and two processes; prints a table.

    python benchmarks/on_gpu.py [--device cuda] [--measures steps run outputs processes] [--cells 1000000]
        [--genes 2000] [--out ROWS.jsonl]

`bash benchmarks/on_gpu.sh` runs the GPU tests first. `--device cpu` does all of it on the CPU with 3,000 cells of 200
genes, to see that it works. Cells are simulated, about 95 % zeros, the same for all measures.

steps      Milliseconds per step and cells per second, of 128 and of 1,024 cells, from counts that are resident on the
           device and from counts that are streamed to it, without validation. On the CPU no step is recorded.
run        `train()` by default, and with 128 cells per step, and with counts streamed: seconds, held-out ELBO.
outputs    Cells per second of the embedding, and of normalised expression of 20,000 cells.
processes  `train(2)` of a fifth of the cells in two processes on one card, through gloo, beside one process: seconds.
           Left out where this version has no training in several processes.
"""

import argparse
import functools
import importlib.util
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
from rows import Log, default_out

MEASURES = ("steps", "run", "outputs", "processes")
UNITS = {"step_ms": "ms", "step_cells": "cells per s", "fit_s": "s", "epoch_s": "s", "elbo": "nats per cell"}
UNITS |= {"epochs": "1", "latent": "cells per s", "expression": "cells per s", "two_s": "s", "one_s": "s"}
SMALL = {"cells": 3000, "genes": 200}  # on the CPU
STEPS, WARM = 200, 60


@functools.cache
def simulated(n_cells: int, n_genes: int):
    from sccvae import simulate

    return simulate.simulate(n_cells, n_genes, mean_library=200.0, n_batches=2, keep_truth=False, seed=0)


def made(args):
    """Model of simulated cells, not trained."""
    from sccvae import SCCVAE

    return SCCVAE(simulated(args.cells, args.genes), batch_key="batch", seed=0, device=args.device)


@contextmanager
def loading(kind: str | None):
    """Let training take minibatches from counts that are "resident" or "streamed", whatever fits; None: by default."""
    from sccvae.data.gpu.device_loading import DeviceCounts
    from sccvae.data.gpu.streaming import StreamedCounts
    from sccvae.training import steps

    before, source = steps.minibatches_on, {"resident": DeviceCounts, "streamed": StreamedCounts}
    if kind is not None:
        steps.minibatches_on = lambda device, counts: source[kind](counts, device)
    try:
        yield
    finally:
        steps.minibatches_on = before


def wait(device) -> None:
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def steps_of(model, kind: str, size: int, args) -> dict:
    """Time of a step of `size` cells, after those in which it is compiled and recorded."""
    import torch

    from sccvae.training import steps
    from sccvae.training.optimizer import Adam

    vae, noise = model._vae.train(), torch.Generator(model.device).manual_seed(0)
    optimizer = Adam([w for w in vae.parameters() if w.requires_grad], clip=50.0)
    n_steps, n_warm = (STEPS, WARM) if args.device != "cpu" else (5, 3)
    order = np.random.default_rng(0).permutation(args.cells)
    starts = [k * size % (args.cells - size + 1) for k in range(n_warm + n_steps)]
    with loading(kind):
        minibatches, step = steps.steps(vae, model._counts, optimizer, noise, "mixed", 1)
        for k, x in enumerate(minibatches([order[start : start + size] for start in starts])):
            if k == n_warm:
                wait(args.device)
                started = time.perf_counter()
            step(x, 1.0, optimizer.numbers(1e-4), False)
        wait(args.device)
    seconds = (time.perf_counter() - started) / n_steps
    return {"step_ms": 1e3 * seconds, "step_cells": size / seconds}


def run_of(kind: str | None, args, **options) -> tuple[dict, object]:
    """Time and result of a run; and the model."""
    model, started = made(args), time.perf_counter()
    with loading(kind):
        model.train(progress_bar=False, **options)
    found = {"fit_s": time.perf_counter() - started, "epochs": int(model.history["epoch"].max())}
    found["elbo"] = float(model.history.query("split == 'validation'")["elbo"].max())
    found["epoch_s"] = float(model.history.query("split == 'training'")["seconds"].iloc[-1])
    return found, model


def outputs_of(model, args) -> dict:
    """Cells per second of outputs."""
    found, some = {}, np.arange(min(20_000, args.cells))
    for name, output, cells in (
        ("latent", model.get_latent_representation, np.arange(args.cells)),
        ("expression", lambda indices: model.get_normalized_expression(indices=indices, return_numpy=True), some),
    ):
        output(indices=some[:500])
        started = time.perf_counter()
        output(indices=cells)
        found[name] = len(cells) / (time.perf_counter() - started)
    return found


def train_two_epochs(args) -> None:
    """Print the seconds of two epochs, in one of the processes that torchrun started, or alone."""
    import torch

    from sccvae import SCCVAE, simulate

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        torch.distributed.init_process_group("gloo")  # nccl refuses two processes on one card
    SCCVAE(simulate.simulate(200, 40), device=args.device).train(1, progress_bar=False)  # what compiles and loads once
    model, started = made(args), time.perf_counter()
    model.train(2, progress_bar=False, batch_size=1024)
    if int(os.environ.get("RANK", 0)) == 0:
        print("RESULT " + json.dumps(time.perf_counter() - started), flush=True)


def processes(args) -> dict:
    """Seconds of two epochs in one and in two processes on one card."""
    found = {}
    n_cells = args.cells if args.device == "cpu" else args.cells // 5
    more = ["--device", args.device, "--cells", str(n_cells), "--genes", str(args.genes), "--child"]
    for name, n in (("one_s", 1), ("two_s", 2)):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)] if n > 1 else []
        done = subprocess.run([sys.executable, *launch, __file__, *more], capture_output=True, text=True)
        results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if done.returncode or not results:
            print(f"{n} processes failed:\n{done.stderr[-2000:]}", file=sys.stderr)
            continue
        found[name] = json.loads(results[-1].removeprefix("RESULT "))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--measures", nargs="+", default=MEASURES, choices=MEASURES)
    parser.add_argument("--cells", type=int)
    parser.add_argument("--genes", type=int)
    parser.add_argument("--out", default=default_out(__file__), help="file to append rows to (default: %(default)s)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.cells = args.cells or (SMALL["cells"] if args.device == "cpu" else 1_000_000)
    args.genes = args.genes or (SMALL["genes"] if args.device == "cpu" else 2000)
    train_two_epochs(args) if args.child else measure(args)


def measure(args) -> None:
    log = Log(__file__, args.out, UNITS, gpu=args.device != "cpu")
    shown: list[tuple[str, str, dict]] = []

    def note(what: str, found: dict, **conditions) -> None:
        shown.append((what, " ".join(str(c) for c in conditions.values() if c is not None), found))
        print(*shown[-1], flush=True)
        conditions |= {"device": args.device, "cells": args.cells, "genes": args.genes, "part": what}
        log.add(found, data_set="simulated", method="sccvae", seeds=[0], **conditions)

    if "steps" in args.measures:
        model = made(args)
        for size in (128, 1024):
            for kind in ("resident", "streamed"):
                note("steps", steps_of(model, kind, size, args), batch_size=size, loading=kind)
    if {"run", "outputs"} & set(args.measures):
        found, model = run_of(None, args)
        note("run", found, batch_size=None, loading=model._loading or None)
        if "outputs" in args.measures:
            note("outputs", outputs_of(model, args))
    if "run" in args.measures:
        note("run", run_of(None, args, batch_size=128)[0], batch_size=128, loading=None)
        note("run", run_of("streamed", args)[0], batch_size=None, loading="streamed")
    if "processes" in args.measures:
        if importlib.util.find_spec("sccvae.training.processes") is None:
            print("This version has no training in several processes: left out.")
        else:
            note("processes", processes(args), batch_size=1024)
    print(f"\n{args.device}, {args.cells:,} cells x {args.genes:,} genes\n")
    for what, how, found in shown:
        print(f"{what:<10}{how:<18}" + "".join(f"  {name} {value:,.6g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
