"""Held-out ELBO and time of training against the number of cells in a minibatch, at equal numbers of epochs.

    SCCVAE_DATA=FOLDER python benchmarks/minibatch_size.py [--sets simulated pbmc_8donors ...] [--sizes 128 1024 ...]
        [--seeds 0 1 2] [--epochs N] [--cells 100000] [--genes 500] [--threads 1] [--out ROWS.jsonl]

`simulated` has --cells cells and --genes genes; other sets are files of FOLDER, of which the 2,000 most variable genes
are taken. Everything but the minibatch is as by default: epochs by the number of cells (--epochs: another number),
learning rate, split. For one seed all sizes have the same held-out cells. `elbo` is the highest held-out ELBO of the
run, `fit_s` the seconds of `train`. --device cuda measures on a GPU.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
from rows import Log, default_out

UNITS = {"elbo": "nats per cell", "fit_s": "s", "steps": "1", "epochs": "1"}
SETS = ("simulated", "pbmc_8donors", "hematopoiesis_spring")
GENES = 2000  # most variable, of a file with more


def cells_of(name: str, args):
    """AnnData of a set, with counts in X."""
    import anndata as ad
    import scanpy as sc

    from sccvae import simulate

    if name == "simulated":
        return simulate.simulate(args.cells, args.genes, n_batches=2, keep_truth=False, seed=0)
    adata = ad.read_h5ad(Path(os.environ["SCCVAE_DATA"]) / f"{name}.h5ad")
    adata = ad.AnnData(adata.X.tocsr().astype(np.float32), obs={"batch": adata.obs["batch"].astype(str).to_numpy()})
    if adata.n_vars > GENES:
        ranked = sc.pp.log1p(sc.pp.normalize_total(adata, target_sum=1e4, copy=True), copy=True)
        sc.pp.highly_variable_genes(ranked, n_top_genes=GENES)
        adata = adata[:, ranked.var["highly_variable"]].copy()
    sc.pp.filter_cells(adata, min_counts=1)
    return adata


def measure(adata, size: int, seed: int, epochs: int | None, device: str) -> dict:
    """Train once."""
    from sccvae import SCCVAE

    model = SCCVAE(adata, batch_key="batch", seed=seed, device=device)
    started = time.perf_counter()
    model.train(epochs, batch_size=size, progress_bar=False)
    seconds, n_epochs = time.perf_counter() - started, int(model.history["epoch"].max())
    n_steps = n_epochs * -(-len(model._split(0.95)[0]) // size)
    elbo = float(model.history.query("split == 'validation'")["elbo"].max())
    return {"elbo": elbo, "fit_s": seconds, "steps": n_steps, "epochs": n_epochs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--sizes", nargs="+", type=int, default=(128, 256, 512, 1024))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--epochs", type=int, help="of each run (default: by the number of cells)")
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--out", default=default_out(__file__), help="file to append the rows to (default: %(default)s)"
    )
    args = parser.parse_args()
    import torch

    from sccvae import SCCVAE, simulate

    torch.set_num_threads(args.threads)
    SCCVAE(simulate.simulate(200, 40), batch_key="batch").train(1, progress_bar=False)  # what compiles once
    log = Log(__file__, args.out, UNITS, threads=args.threads, gpu=args.device != "cpu")
    for name in args.sets:
        adata = cells_of(name, args)
        called = f"simulated, {args.cells:,} cells" if name == "simulated" else name
        called += f", {args.epochs} epochs" if args.epochs else ""
        for seed in args.seeds:
            for size in args.sizes:
                found = measure(adata, size, seed, args.epochs, args.device)
                print(f"{called}, seed {seed}, {size} cells a step: {found}", flush=True)
                conditions = {"variant": f"{size} cells", "cells": adata.n_obs, "genes": adata.n_vars}
                log.add(found, data_set=called, method="sccvae", seeds=[seed], **conditions)


if __name__ == "__main__":
    main()
