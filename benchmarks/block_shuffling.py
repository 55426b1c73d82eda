"""Held-out ELBO of training from a file, where cells are mixed within windows of blocks, beside training in memory.

    SCCVAE_DATA=FOLDER python benchmarks/block_shuffling.py [--sets simulated pbmc_8donors ...] [--windows 8 64]
        [--seeds 0 1 2] [--cells 50000] [--genes 500] [--threads 1] [--out ROWS.jsonl]

A window has 1/8 or 1/64 of the cells, in 150 blocks of neighbouring cells, as of 260,000 or 2,100,000 cells by default.
Cells are in the order of their batches, simulated ones also of their types, which is the worst order for blocks. All
else is as by default. `elbo` is the highest held-out ELBO of the run.
"""

import argparse

import numpy as np
from minibatch_size import cells_of
from rows import Log, default_out

UNITS = {"elbo": "nats per cell"}
SETS = ("simulated", "pbmc_8donors", "hematopoiesis_spring")
BLOCKS = 150  # in a window


def in_order(adata):
    """The cells in the order of their batches and types."""
    keys = [adata.obs[key].astype(str).to_numpy() for key in ("cell_type", "batch") if key in adata.obs]
    return adata[np.lexsort(keys)].copy()


def measure(adata, parts: int | None, seed: int) -> float:
    """Train once in memory, or from a file with `parts` windows."""
    from sccvae import SCCVAE
    from sccvae.data import counts

    model = SCCVAE(adata, batch_key="batch", seed=seed, memory_budget=None if parts is None else 0)
    if parts is not None:
        counts._WINDOW_CELLS = max(adata.n_obs // parts, 128)
        counts._BLOCK_BYTES = model._counts.stored.nbytes / adata.n_obs * counts._WINDOW_CELLS / BLOCKS
    model.train(progress_bar=False)
    return float(model.history.query("split == 'validation'")["elbo"].max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--windows", nargs="+", type=int, default=(8, 64), help="in all cells")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", default=default_out(__file__), help="file to append the rows to (default: %(default)s)"
    )
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    log = Log(__file__, args.out, UNITS, threads=args.threads)
    for name in args.sets:
        adata = in_order(cells_of(name, args))
        called = f"simulated, {args.cells:,} cells" if name == "simulated" else name
        for seed in args.seeds:
            for parts in (None, *args.windows):
                variant = "in memory" if parts is None else f"windows of 1/{parts}"
                elbo = measure(adata, parts, seed)
                print(f"{called}, seed {seed}, {variant}: {elbo:.2f}", flush=True)
                conditions = {"variant": variant, "cells": adata.n_obs, "genes": adata.n_vars}
                log.add({"elbo": elbo}, data_set=called, method="sccvae", seeds=[seed], **conditions)


if __name__ == "__main__":
    main()
