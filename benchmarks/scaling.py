"""Time and memory of training against the number of cells, sccvae beside scvi-tools, as a figure.

    python benchmarks/scaling.py [--cells 1000 3000 ...] [--threads 1] [--steps 200] [--out ROWS.jsonl]
        [--figure docs/scaling.png] [--draw]

Simulated counts, 2,000 genes, about 95 % zeros; the same network, split and batch size for both (see
docs/benchmarks.md). Each measurement has a process of its own; the order of methods alternates. Seconds are those of a
training epoch without validation, the second of two, because compilation and caches belong to the first. Memory is the
highest resident memory above that after imports and reading the data.

--steps ends scvi-tools' epochs after so many steps, of which the first is left out, and scales its seconds up to a
whole epoch: its steps cost the same all along, and its memory is at its highest within the first. With 200 all sizes
take some eight minutes on one core, without it a quarter of an hour. sccvae always trains for two whole epochs.

Appends every measurement to --out; --draw only draws what is there. Needs Linux, and a Python with sccvae and
scvi-tools.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time

import against_scvi as base
import numpy as np
from rows import FOLDER, Log, default_out, gather, read

CELLS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000)
LABELS = {"sccvae": ("sccvae", "#0072B2", "o"), "scvi": ("scvi-tools", "#D55E00", "s")}


def prepare(path: str, cells: int, **_) -> dict:
    """Write the first `cells` simulated cells, which are the same whatever their number, to `path`."""
    from sccvae import simulate
    from sccvae.data.counts import split

    adata = simulate.simulate(cells, 2000, n_batches=2, mean_library=200.0, keep_truth=False, seed=0)
    codes = adata.obs["batch"].cat.codes.to_numpy()
    adata.obs["held_out_0"] = np.isin(range(cells), split(codes, 0.9, np.random.default_rng(0))[1])
    adata.write_h5ad(path)
    return {"counts_mb": 2 * adata.X.data.nbytes / 2**20}


def scale(method: str, adata, steps: int | None, **_) -> dict:
    """Seconds of the second epoch, and memory added."""
    before = base.resident_mb()
    model = base.make(method, adata, 0, **base.NETWORK)
    if method == "sccvae":
        base.train(method, model, adata, 0, 2)
        seconds = float(model.history.query("split == 'training'")["seconds"].iloc[-1])
    else:
        from lightning.pytorch.callbacks import LambdaCallback

        ends: list[float] = []  # of all steps
        clock = LambdaCallback(on_train_batch_end=lambda *_: ends.append(time.perf_counter()))
        n_steps = -(-int((~adata.obs["held_out_0"]).sum()) // base.BATCH_SIZE)
        base.train(method, model, adata, 0, 2, callbacks=[clock], limit_train_batches=min(steps or n_steps, n_steps))
        seconds = n_steps * float(np.mean(np.diff(ends[len(ends) // 2 :])))
    return {"epoch_s": seconds, "added_mb": base.peak_mb() - before}


def draw(rows: list[dict], path: str) -> None:
    """Medians over repeats against the number of cells: seconds per epoch, microseconds per cell, and memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = (
        ("seconds per epoch", lambda r: r["epoch_s"]),
        ("microseconds per cell and epoch", lambda r: 1e6 * r["epoch_s"] / (0.9 * r["cells"])),
        ("memory added by training, MiB", lambda r: r["added_mb"]),
    )
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, (title, value) in zip(axes, panels, strict=True):
        for method, (label, color, marker) in LABELS.items():
            of_method = [r for r in rows if r["method"] == method]
            cells = sorted({r["cells"] for r in of_method})
            medians = [statistics.median(value(r) for r in of_method if r["cells"] == n) for n in cells]
            axis.plot(cells, medians, marker=marker, color=color, label=label)
        axis.set(xscale="log", xlabel="cells", title=title)
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    counts = {r["cells"]: r["counts_mb"] for r in rows}
    axes[2].plot(sorted(counts), [counts[n] for n in sorted(counts)], "k:", label="the counts themselves")
    for axis in axes[1:]:
        axis.set_ylim(bottom=0)
    figure.legend(*axes[2].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    threads = "thread" if rows[0]["threads"] == 1 else "threads"
    figure.suptitle(f"2,000 genes, 95 % zeros, {rows[0]['processor']}, {rows[0]['threads']} {threads}")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", type=int, default=CELLS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--steps", type=int, help="steps of an epoch of scvi-tools (default: all)")
    parser.add_argument(
        "--out", default=default_out(__file__), help="file to append the rows to (default: %(default)s)"
    )
    parser.add_argument("--figure", default=FOLDER.parent / "docs/scaling.png")
    parser.add_argument("--draw", action="store_true", help="draw what --out holds")
    args = parser.parse_args()
    if not args.draw:
        measure(args)
    draw([row for row in gather(read(args.out)) if row["date"]], args.figure)


def measure(args) -> None:
    log = Log(__file__, args.out, base.UNITS, threads=args.threads, peers=base.PEERS)
    with tempfile.TemporaryDirectory() as folder:
        for cells in args.cells:
            path = f"{folder}/{cells}.h5ad"
            about = base.ask(script=__file__, measure="prepare", path=path, cells=cells)
            for repeat in range(args.repeats if about else 0):
                for method in base.BOTH[:: -1 if repeat % 2 else 1]:
                    task = {"measure": "scale", "method": method, "path": path, "steps": args.steps}
                    result = base.ask(args.threads, script=__file__, **task)
                    if result is None:
                        continue
                    row = {"cells": cells, "method": method, "repeat": repeat, **about, **result}
                    print(json.dumps(row), flush=True)
                    conditions = {"cells": cells, "genes": 2000, "threads": args.threads, "repeat": repeat}
                    conditions |= {"steps": args.steps if method == "scvi" else None}
                    log.add(about | result, data_set="simulated", method=method, seeds=[0], **conditions)


if __name__ == "__main__":
    if "--child" in sys.argv:
        base.child(json.loads(sys.argv[sys.argv.index("--child") + 1]), (prepare, scale))
    else:
        main()
