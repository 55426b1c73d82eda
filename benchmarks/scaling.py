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

    python benchmarks/scaling.py --large [--cells 100000 1000000 5000000] [--genes 1000] [--folder SCRATCH] [--limit 2]

measures sccvae alone on files that need not fit in memory, each part in a process whose memory is limited to --limit
GiB, by a control group (as root) or else by its address space: packing a simulated .h5ad (`sccvae.pack`), a training
epoch on the pack, and the embedding. Cells per second, bytes of the pack, and highest resident memory. Counts may take
a quarter of the limit (`held_mb`: what they take of it). Files are written to --folder, and kept. Then prints what 50
million cells need, from the slopes between the two largest sizes.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

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


# ------------------------------------------------------------------------------------------------ larger than memory

GROUP = "sccvae-scaling"
CONTROL = {"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"}  # versions 1 and 2
LARGE = (100_000, 1_000_000, 5_000_000)
UNITS = base.UNITS | dict.fromkeys(("pack_cells", "train_cells", "embed_cells", "simulate_cells"), "cells per s")
UNITS |= {
    "pack_mb": "MiB",
    "train_mb": "MiB",
    "held_mb": "MiB",
    "pack_bytes": "bytes",
    "limited_by": None,
    "open_s": "s",
}


def limit_memory(n_bytes: int) -> str:
    """Limit the memory of this process; return by what."""
    import resource

    for folder, name in CONTROL.items():
        group = Path(folder) / GROUP
        try:
            if (Path(folder) / "cgroup.procs").exists():
                group.mkdir(exist_ok=True)
                (group / name).write_text(str(n_bytes))
                (group / "cgroup.procs").write_text(str(os.getpid()))
                return "control group"
        except OSError:
            continue
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + n_bytes, resource.RLIM_INFINITY))
    return "address space"


def simulated(path: str, cells: int, genes: int, **_) -> dict:
    from sccvae import simulate

    started = time.perf_counter()
    simulate.simulate(cells, genes, n_batches=2, mean_library=genes / 10, seed=0, out=path)
    return {"simulate_cells": cells / (time.perf_counter() - started)}


def packed(path: str, pack: str, cells: int, limit: int, **_) -> dict:
    """Time and memory of packing a file."""
    import sccvae
    import sccvae.models.sccvae  # torch is not timed

    kind, started = limit_memory(limit), time.perf_counter()
    if hasattr(sccvae, "pack"):
        sccvae.pack(path, pack)
    else:
        sccvae.SCCVAE(path, batch_key="batch", memory_budget=limit / 4, cache_dir=pack, device="cpu")
    seconds = time.perf_counter() - started
    n_bytes = sum(file.stat().st_size for file in Path(pack).rglob("*"))
    return {"pack_cells": cells / seconds, "pack_bytes": n_bytes, "pack_mb": base.peak_mb(), "limited_by": kind}


def trained(pack: str, cells: int, limit: int, threads: int, **_) -> dict:
    """Time and memory of one epoch on a pack, and of the embedding."""
    import torch

    import sccvae

    torch.set_num_threads(threads)
    small = sccvae.SCCVAE(sccvae.simulate.simulate(200, 40), batch_key="batch", device="cpu")
    small.train(1, progress_bar=False)  # what compiles and loads once is not timed
    limit_memory(limit)
    started = time.perf_counter()
    model = sccvae.SCCVAE(pack, batch_key="batch", memory_budget=limit / 4, device="cpu")
    opened = time.perf_counter()
    model.train(1, progress_bar=False)
    seconds = float(model.history.query("split == 'training'")["seconds"].iloc[-1])
    started, opened = time.perf_counter(), opened - started
    model.get_latent_representation()
    rows = model._counts.stored
    found = {"open_s": opened, "train_cells": 0.95 * cells / seconds}
    found["held_mb"] = 0.0 if rows.in_file else rows.nbytes / 2**20
    return found | {"embed_cells": cells / (time.perf_counter() - started), "train_mb": base.peak_mb()}


def measure_large(args) -> list[dict]:
    """A row for each number of cells."""
    log, rows = Log(__file__, args.out, UNITS, threads=args.threads), []
    limit = int(args.limit * 2**30)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.folder or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for cells in args.cells or LARGE:
            path, pack = (folder / f"{cells}x{args.genes}{suffix}" for suffix in (".h5ad", ".pack"))
            task = {"path": str(path), "pack": str(pack), "cells": cells, "genes": args.genes, "limit": limit}
            row: dict = {"cells": cells}
            for part, made in (("simulated", path), ("packed", pack), ("trained", None)):
                if made is None or not made.exists():
                    found = base.ask(args.threads, script=__file__, measure=part, **task)
                    if found is None:
                        break
                    row |= found
            print(json.dumps(row), flush=True)
            conditions = {"part": "large", "cells": cells, "genes": args.genes, "limit_gib": args.limit}
            log.add({k: v for k, v in row.items() if k != "cells"}, data_set="simulated", method="sccvae", **conditions)
            rows.append(row)
    for folder in CONTROL:
        if (group := Path(folder) / GROUP).is_dir():
            group.rmdir()
    return rows


def on_paper(rows: list[dict], cells: int = 50_000_000, epochs: int = 5) -> str:
    """What so many cells need, from the slopes between the two largest sizes that were measured whole."""
    whole = [row for row in rows if {"pack_bytes", "train_mb"} <= row.keys()][-2:]
    if len(whole) < 2:
        return "Two sizes that were packed and trained are needed for what larger ones take."
    # Counts that were in memory are left out: beyond the budget they are in a file.
    whole = [row | {"train_mb": row["train_mb"] - row["held_mb"]} for row in whole]
    (small, large), n = whole, cells - whole[1]["cells"]
    more, names = large["cells"] - small["cells"], ("pack_bytes", "pack_mb", "train_mb")
    slope = {k: (large[k] - small[k]) / more for k in names}
    at = {k: large[k] + n * slope[k] for k in slope}
    hours = {k: cells / large[f"{k}_cells"] / 3600 for k in ("pack", "train", "embed")}
    total = hours["pack"] + epochs * hours["train"] + hours["embed"]
    return (
        f"On paper, {cells:,} cells: pack of {at['pack_bytes'] / 1e9:.1f} GB ({slope['pack_bytes']:.0f} bytes a cell); "
        f"memory {at['pack_mb'] / 1024:.1f} GiB to pack, {at['train_mb'] / 1024:.1f} GiB to train "
        f"({slope['train_mb'] * 2**20:.0f} bytes a cell); {hours['pack']:.1f} h to pack, {hours['train']:.1f} h an "
        f"epoch, {hours['embed']:.1f} h to embed; {epochs} epochs and both: {total:.1f} h on one machine as this one, "
        f"or a day on {max(1, -(-total // 24)):.0f}."
    )


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
    parser.add_argument("--cells", nargs="+", type=int)
    parser.add_argument("--large", action="store_true", help="sccvae alone, with limited memory")
    parser.add_argument("--genes", type=int, default=1000, help="with --large (default: %(default)s)")
    parser.add_argument("--folder", help="with --large: where files are written and kept (default: temporary)")
    parser.add_argument("--limit", type=float, default=2.0, help="with --large: GiB of memory (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--steps", type=int, help="steps of an epoch of scvi-tools (default: all)")
    parser.add_argument(
        "--out", default=default_out(__file__), help="file to append the rows to (default: %(default)s)"
    )
    parser.add_argument("--figure", default=FOLDER.parent / "docs/scaling.png")
    parser.add_argument("--draw", action="store_true", help="draw what --out holds")
    args = parser.parse_args()
    if args.large:
        print(on_paper(measure_large(args)))
        return
    if not args.draw:
        measure(args)
    draw(drawn(gather(read(args.out))), args.figure)


def drawn(rows: list[dict]) -> list[dict]:
    """Measured rows of both methods."""
    return [row for row in rows if row["date"] and row.get("part") != "large"]


def measure(args) -> None:
    log = Log(__file__, args.out, base.UNITS, threads=args.threads, peers=base.PEERS)
    with tempfile.TemporaryDirectory() as folder:
        for cells in args.cells or CELLS:
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
        base.child(json.loads(sys.argv[sys.argv.index("--child") + 1]), (prepare, scale, simulated, packed, trained))
    else:
        main()
