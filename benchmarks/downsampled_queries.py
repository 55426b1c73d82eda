"""Codes of cells that a model was not trained on, at their own depth and shallower: `thinning` on and off.

    SCCVAE_DATA=FOLDER python benchmarks/downsampled_queries.py [--sets cortex pbmc_3tech hematopoiesis_paul15]
        [--thinning 0 0.5 0.8] [--kept 1 0.5 0.25 0.1] [--seeds 0 1 2] [--scvi-seeds] [--out ROWS.jsonl]

A fifth of the cells is held out, drawn anew with each seed. Of their counts of the 2,000 most variable genes each
molecule is kept with a probability (`kept`), and the model of the others embeds them:

accuracy   of a vote on the cell's type among its 15 nearest of the cells trained on
agreement  1 - (mean squared distance from the code at full depth) / (variance of those codes)
elbo       held-out evidence lower bound, nats per cell; of sccvae alone: scvi-tools' bounds another model

`--scvi-seeds 0` adds `scvi.model.SCVI` by its defaults, to their end. One thread; tables hold means over seeds.
"""

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from pseudotime import chosen, log_normalised
from rows import Log, default_out

import sccvae
from sccvae.corruption import Thinning

UNITS = {"accuracy": "1", "agreement": "1", "elbo": "nats per cell"}


def trained(adata: ad.AnnData, seed: int, thinning: float | None):
    """A model of the cells; of scvi-tools where there is no `thinning`."""
    batch_key = "batch" if "batch" in adata.obs else None
    if thinning is None:
        import scvi

        scvi.settings.seed = seed
        scvi.model.SCVI.setup_anndata(adata, batch_key=batch_key)
        model = scvi.model.SCVI(adata)
        model.train(accelerator="cpu", enable_progress_bar=False)
    else:
        model = sccvae.SCCVAE(adata, batch_key=batch_key, thinning=thinning, seed=seed, device="cpu")
        model.train(progress_bar=False)
    return model


def shallower(adata: ad.AnnData, kept: float, rng: np.random.Generator) -> ad.AnnData:
    return adata.copy() if kept == 1 else ad.AnnData(Thinning(kept)(adata.X.tocsr(), rng), adata.obs, adata.var)


def measure(name: str, seed: int, thinning: float | None, depths: list[float]) -> Iterator[dict]:
    from sklearn.neighbors import KNeighborsClassifier

    adata = sccvae.datasets.load(name)
    adata = adata[:, chosen(log_normalised(adata), "2000")].copy()
    rng = np.random.default_rng(seed)
    new = np.isin(np.arange(adata.n_obs), rng.permutation(adata.n_obs)[: adata.n_obs // 5])
    rest, held = adata[~new].copy(), adata[new].copy()
    model = trained(rest, seed, thinning)
    vote = KNeighborsClassifier(15).fit(model.get_latent_representation(), rest.obs["cell_type"])
    whole = model.get_latent_representation(held)
    for kept in depths:
        cells = shallower(held, kept, rng)
        z = model.get_latent_representation(cells)
        yield {
            "set": name,
            "method": "scvi-tools" if thinning is None else f"thinning={thinning:g}",
            "seed": seed,
            "kept": kept,
            "accuracy": float((vote.predict(z) == cells.obs["cell_type"]).mean()),
            "agreement": float(1 - ((z - whole) ** 2).sum() / ((whole - whole.mean(0)) ** 2).sum()),
            "elbo": None if thinning is None else model.get_elbo(cells),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["cortex", "pbmc_3tech", "hematopoiesis_paul15"])
    parser.add_argument("--thinning", nargs="*", type=float, default=[0.0, 0.5, 0.8])
    parser.add_argument("--kept", nargs="+", type=float, default=[1.0, 0.5, 0.25, 0.1])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--scvi-seeds", nargs="*", type=int, default=[], help="of scvi-tools; none leaves it out")
    parser.add_argument(
        "--out", type=Path, default=default_out(__file__), help="file to append the rows to (default: %(default)s)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # scvi-tools and Scanpy warn of much that is meant here
    runs = [(seed, share) for seed in options.seeds for share in options.thinning]
    runs += [(seed, None) for seed in options.scvi_seeds]
    log = Log(__file__, options.out, UNITS, threads=1, peers=["scvi-tools"])
    rows: list[dict] = []
    for name in options.sets:
        for seed, thinning in runs:
            new = list(measure(name, seed, thinning, options.kept))
            rows += new
            for row in new:
                found = {measure: row[measure] for measure in UNITS}
                log.add(found, data_set=name, method=row["method"], seeds=[seed], kept=row["kept"])
            print(*new, sep="\n", flush=True)
    frame = pd.DataFrame(rows)
    for what, digits in {"accuracy": 3, "agreement": 2, "elbo": 1}.items():
        wide = frame.pivot_table(index=["set", "method"], columns="kept", values=what, sort=False)
        print(f"\n{what}\n{wide.round(digits).to_string()}")


if __name__ == "__main__":
    main()
