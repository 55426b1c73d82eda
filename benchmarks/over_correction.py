"""Checks for over-correction with known truth: a cell type that one batch alone holds, by weight of the batch penalty.

    SCCVAE_DATA=FOLDER python benchmarks/over_correction.py [--mixing 0 1.5 4 30] [--seeds 0] [--out ROWS.jsonl]
    python benchmarks/over_correction.py --table [--out ROWS.jsonl]

pbmc_3tech, whose three batches hold the same types. Each type in turn is taken out of all batches but one. `whole` has
all cells. A model by its defaults but for `batch_mixing` is trained on what is left; `drawn` is its embedding with 1.5,
in which each cell of the type has been moved to a random cell of another batch, of the type that is nearest: what a
correction does that draws the type entirely.

purity   fraction of the 15 neighbours of the type's cells, from all batches, that are of this type
alarm    1 if a group of cells of that batch, most of which are of the type, is reported as drawn (`kinds_drawn`)
false    number of groups that are reported, and hold another type
alike    least correlation of the profile of a group of the type with that of the cells around it;
         `others_alike`: the least of groups of other types that lie among other batches
kept     `neighbours_kept` of the group of the type; `total_kept`: of all groups

One thread. What is in --out is not measured again.
"""

import argparse
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from rows import Log, default_out, gather
from rows import read as read_rows

UNITS = dict.fromkeys(("purity", "alarm", "false", "kept", "total_kept", "alike", "others_alike"), "1")


def drawn(z: np.ndarray, types: np.ndarray, batches: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """The embedding with the cells of a type moved to those of the nearest type in other batches."""
    mine = types == kind
    others = ~mine & (batches != batches[mine][0])
    sizes = pd.Series(types[others]).value_counts()
    centres = {t: z[others & (types == t)].mean(0) for t in sizes.index[sizes >= 30]}
    nearest = min(centres, key=lambda t: float(((centres[t] - z[mine].mean(0)) ** 2).sum()))
    at = rng.choice(np.flatnonzero(others & (types == nearest)), mine.sum())
    moved = z.copy()
    moved[mine] = z[at] + 0.1 * z[others & (types == nearest)].std(0) * rng.standard_normal((mine.sum(), z.shape[1]))
    return moved


def checked(adata, z: np.ndarray, kind: str | None, seed: int) -> dict:
    """The measures of an embedding."""
    from sccvae.statistics.checks import correction

    types, batches = adata.obs["cell_type"].astype(str).to_numpy(), pd.Categorical(adata.obs["batch"]).codes
    matrix = adata.X.astype(np.float64).tocsr()
    logged = correction.log_profiles(matrix)
    clusters = correction.cluster_batches(correction.halves(matrix, seed), batches, seed)
    table = correction.compared(logged, batches, z, clusters)
    labels = [pd.Series(types[clusters.label == k]).mode().iloc[0] for k in range(len(table))]
    reported = correction.is_drawn(table).to_numpy()
    mine, of_type = np.array(labels) == kind, types == kind
    found = {
        "false": int((reported & ~mine).sum()),
        "total_kept": float(np.average(table["kept"], weights=table["cells"])),
    }
    alike, lying = table["alike"].to_numpy(), (table["mixing"] > correction.MIXED).to_numpy()
    found["others_alike"] = float(np.min(alike[lying & ~mine], initial=1))
    if kind is not None:
        found["alike"] = float(np.min(alike[mine], initial=1))
        found |= {
            "purity": float(correction.own_neighbours(z, of_type)[of_type].mean()),
            "alarm": float((reported & mine).any()),
        }
        found["kept"] = float(table["kept"][mine].min()) if mine.any() else None
    return found


def table(rows: list[dict]) -> pd.DataFrame:
    """Means over types and seeds."""
    frame = pd.DataFrame(rows)
    frame["whole"] = frame["type"] == "whole"
    found = frame.groupby(["whole", "method"])[[name for name in UNITS if name in frame]]
    return found.mean().round(3).assign(rows=found.size())


def measure(options, log: Log) -> None:
    import anndata

    import sccvae

    done = {(row["type"], row["seed"]) for row in gather(read_rows(options.out))}
    adata = anndata.read_h5ad(Path(os.environ["SCCVAE_DATA"]) / "pbmc_3tech.h5ad")
    batches = sorted(adata.obs["batch"].astype(str).unique())
    sizes = adata.obs.groupby(["cell_type", "batch"], observed=True).size().unstack(fill_value=0)
    types = [str(name) for name in sizes.index[(sizes >= 20).all(axis=1)]]
    for seed in options.seeds:
        for number, kind in enumerate(["whole", *types]):
            if (kind, seed) in done:
                continue
            keep = (adata.obs["cell_type"] != kind) | (adata.obs["batch"] == batches[(number + seed) % 3])
            part = adata[keep.to_numpy()].copy()
            embeddings = {}
            for mixing in options.mixing:
                model = sccvae.SCCVAE(part, batch_key="batch", batch_mixing=mixing, seed=seed)
                model.train(progress_bar=False)
                embeddings[f"batch_mixing {mixing:g}"] = model.get_latent_representation()
            name = None if kind == "whole" else kind
            if name is not None and 1.5 in options.mixing:
                columns = (part.obs[key].astype(str).to_numpy() for key in ("cell_type", "batch"))
                rng = np.random.default_rng(seed)
                embeddings["drawn"] = drawn(embeddings["batch_mixing 1.5"], *columns, name, rng)
            for method, z in embeddings.items():
                found = checked(part, z, name, seed)
                log.add(found, data_set="pbmc_3tech", method=method, seeds=[seed], type=kind)
                print(kind, method, seed, found, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixing", nargs="+", type=float, default=[0, 1.5, 4, 30])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=default_out(__file__), help="JSON lines (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="print the table of the rows there are, and stop")
    options = parser.parse_args()
    if not options.table:
        if "SCCVAE_DATA" not in os.environ:
            parser.error("the environment variable SCCVAE_DATA says where the set is.")
        import torch

        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        measure(options, Log(__file__, options.out, UNITS, threads=1))
    if rows := gather(read_rows(options.out)):
        print(table(rows).to_string())


if __name__ == "__main__":
    main()
