"""Speed of training in several processes (torchrun) beside one process with as many threads, and of checkpoints.

    python benchmarks/processes.py [--cells 4000] [--batch-sizes 128 256 512] [--repeats 5] [--out ROWS.jsonl]

Simulated counts, 2,000 genes, about 90 % zeros. Three settings in turn: one process with one thread, one process with
two threads, two processes with one thread each. `batch_size` is that of each process. Each measurement starts its own
processes, which train ten epochs at each batch size. The first epoch is left out, because compilation belongs to it.
`cells_per_s` are the training cells over the mean of two medians: of epochs with a frozen zero-inflation head (2 to 5),
and of epochs without (6 to 10). `best_cells_per_s` takes the fastest epochs in place of the medians, for machines that
do something else as well. `cpu_s` are the processor seconds of one process for an epoch. Two processes also measure
gloo's all_reduce of a gradient alone (2,080,904 entries), and one process the time of a checkpoint. The script prints
medians over repeats, and the ratios to one process with one thread.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from rows import Log, default_out

SETTINGS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread": (2, 1)}
UNITS = {
    "cells_per_s": "cells/s",
    "best_cells_per_s": "cells/s",
    "cpu_s": "s",
    "all_reduce_ms": "ms",
    "checkpoint_s": "s",
    "checkpoint_mb": "MB",
}
EPOCHS, N_WEIGHTS = 10, 2_080_904


def child(cells: int, sizes: list[int]) -> list[dict]:
    """Measure in this process, which may be one of several."""
    import torch

    import sccvae

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    adata = sccvae.simulate.simulate(cells, 2000, n_batches=2, mean_library=1000.0, keep_truth=False, seed=0)
    found = []
    for size in sizes:
        model = sccvae.SCCVAE(adata, batch_key="batch", device="cpu")
        cpu = time.process_time()
        model.train(EPOCHS, batch_size=size, early_stopping=False, progress_bar=False)
        cpu = (time.process_time() - cpu) / EPOCHS
        seconds = model.history.query("split == 'training'")["seconds"].tolist()
        halves, n_train = (seconds[1 : EPOCHS // 2], seconds[EPOCHS // 2 :]), len(model._split(0.95)[0])
        usual, best = (sum(map(which, halves)) / 2 for which in (statistics.median, min))
        result = {"cells_per_s": n_train / usual, "best_cells_per_s": n_train / best, "cpu_s": cpu}
        found.append({"batch_size": size, **result})
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        found.append({"all_reduce_ms": all_reduce_ms()})
    else:
        found.append(checkpoint(model))
    return found


def all_reduce_ms() -> float:
    import torch
    import torch.distributed as dist

    message, times = torch.ones(N_WEIGHTS), []
    for _ in range(20):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(message)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def checkpoint(model) -> dict:
    """Seconds and size of a checkpoint, the median of five in two epochs."""
    from sccvae.io import checkpoints

    write, times, sizes = checkpoints.write, [], []

    def timed(folder, *given):
        began = time.perf_counter()
        write(folder, *given)
        times.append(time.perf_counter() - began)
        sizes.append((folder / checkpoints.NAME).stat().st_size / 1e6)

    checkpoints.write = timed
    with tempfile.TemporaryDirectory(dir=".") as folder:
        model.train(2, batch_size=512, checkpoint=folder, checkpoint_every=3, progress_bar=False)
    return {"checkpoint_s": statistics.median(times[:-1]), "checkpoint_mb": max(sizes)}


def measure(setting: str, args) -> list[dict]:
    """Start the processes of a setting; return what process 0 found."""
    n_processes, n_threads = SETTINGS[setting]
    command = [__file__, "--child", json.dumps([args.cells, args.batch_sizes])]
    if n_processes > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": str(n_threads)}
    result = subprocess.run([sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def show(found: dict[tuple, list[float]]) -> None:
    """Print medians, and ratios of speeds to the first setting."""
    for (measured, setting, size), values in sorted(found.items(), key=str):
        median, ratio = statistics.median(values), ""
        if measured.endswith("cells_per_s"):
            ratio = f"{median / statistics.median(found[measured, next(iter(SETTINGS)), size]):.2f} x"
        print(f"{measured:16} {setting:22} {size or '':>5} {median:10.3f} {ratio}  of {len(values)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=4000)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[128, 256, 512])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--out", default=default_out(__file__), help="file to append the rows to (default: %(default)s)"
    )
    args, found = parser.parse_args(), {}
    logs = {setting: Log(__file__, args.out, UNITS, threads=t) for setting, (_, t) in SETTINGS.items()}
    for repeat in range(args.repeats):
        for setting in list(SETTINGS)[:: -1 if repeat % 2 else 1]:
            for result in measure(setting, args):
                size = result.pop("batch_size", None)
                conditions = {"cells": args.cells, "genes": 2000, "batch_size": size, "repeat": repeat}
                logs[setting].add(result, data_set="simulated", method=setting, seeds=[0], **conditions)
                for measured, value in result.items():
                    found.setdefault((measured, setting, size), []).append(value)
    show(found)


if __name__ == "__main__":
    if "--child" in sys.argv:
        answer = child(*json.loads(sys.argv[sys.argv.index("--child") + 1]))
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(answer), flush=True)
    else:
        main()
