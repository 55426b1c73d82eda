"""Differential abundance with known truth: `sccvae.tl.differential_abundance` beside simpler tests and peers.

    SCCVAE_DATA=FOLDER python benchmarks/abundance.py [--kinds simulated null signal] [--methods sccvae t wilcoxon]
        [--repeats 400] [--kept 0.5 0.2] [--splits 5] [--latent Z.npy] [--scvi-epochs N] [--out ROWS.jsonl]

simulated  Cells of 8 kinds in samples of two arms, 3, 4 or 8 in each. Log fractions vary between samples with standard
           deviation tau (0.6 to 1.4 times tau, by kind). Nothing differs, or the fourth kind (a tenth of the cells) is
           halved in one arm.
null       pbmc_8donors: its donors are dealt into arms of four, in all 35 ways. Nothing differs between arms by design.
           The splits share donors, so that numbers over splits vary more than 35 independent splits would.
signal     The same, some splits: of the cells of one type, a fraction (`--kept`) is kept in one arm, each type in turn.

Methods by label, each with Benjamini-Hochberg over the labels: `sccvae`; `sccvae, median` with relative_to="median";
`t`, Student's t test of the log odds of fractions; `wilcoxon`, of the fractions; `cells`, a chi-squared test with cells
as units. By cell: `sccvae, neighbourhoods`, and `scvi` of scvi-tools if it is importable. scvi-tools has no test. Its
score of a cell is the log ratio of the mean densities of the two arms. A data set takes it a minute.

All neighbourhoods are of one latent representation, by `SCCVAE(adata, batch_key="batch")` with its defaults, trained on
all cells. It is not trained anew where cells are left out. `--latent` reads it from a file, or writes it there.

below_05, below_01   fraction of all p-values below 0.05 and 0.01
some_call            fraction of data sets with an adjusted p-value below 0.05
called               fraction of labels, or of cells, that are called; `others_called`: of those that did not change
found                fraction of the labels, or of the cells, that changed, which are called in the right direction
auroc                of the log fold change, for cells of the type that changed against all others
bias                 of the log2 fold change of the odds
"""

import argparse
import itertools
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from rows import Log, default_out
from scipy import stats

KEY = "differential_abundance"
LABEL_METHODS = ("sccvae", "sccvae, median", "t", "wilcoxon", "cells")
CELL_METHODS = ("sccvae, neighbourhoods", "scvi")
BASE = np.array([0.3, 0.25, 0.15, 0.1, 0.08, 0.06, 0.04, 0.02])
MEASURES = ("below_05", "below_01", "some_call", "called", "others_called", "found", "auroc")
UNITS = dict.fromkeys(MEASURES, "1") | {"bias": "log2", "seconds": "s"}


# Each returns p-values and log2 fold changes of the labels, for counts, (labels, samples), and the mask of one arm.


def by_t(n: np.ndarray, arm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    log_odds = np.log((n + 0.5) / (n.sum(0) - n + 0.5))
    change = (log_odds[:, arm].mean(1) - log_odds[:, ~arm].mean(1)) / np.log(2)
    return stats.ttest_ind(log_odds[:, arm], log_odds[:, ~arm], axis=1).pvalue, change


def by_wilcoxon(n: np.ndarray, arm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    fractions = n / n.sum(0)
    return stats.mannwhitneyu(fractions[:, arm], fractions[:, ~arm], axis=1).pvalue, by_t(n, arm)[1]


def by_cells(n: np.ndarray, arm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sums = np.array([n[:, arm].sum(1), n[:, ~arm].sum(1)])
    total = sums.sum(1, keepdims=True)
    p = [stats.chi2_contingency(np.array([one, total[:, 0] - one]), correction=False).pvalue for one in sums.T]
    odds = np.log2(sums / (total - sums))
    return np.array(p), odds[0] - odds[1]


def by_sccvae(n: np.ndarray, arm: np.ndarray, *, median: bool = False) -> tuple[np.ndarray, np.ndarray]:
    from sccvae.statistics.samples import abundance

    totals, design = np.broadcast_to(n.sum(0), n.shape), np.c_[np.ones(len(arm)), arm.astype(float)]
    found = abundance.effects_of(n, totals, design, abundance.median_offset(n, totals, design) if median else None)
    return found.pval, found.lfc


TESTS: dict[str, Callable] = {
    "sccvae": by_sccvae,
    "sccvae, median": lambda n, arm: by_sccvae(n, arm, median=True),
    "t": by_t,
    "wilcoxon": by_wilcoxon,
    "cells": by_cells,
}


# Each returns the log fold change of each cell and, if there is a test, the adjusted p-value and p-values.


def by_neighbourhoods(adata: ad.AnnData) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    import sccvae

    sccvae.tl.differential_abundance(adata, "batch", "arm")
    lfc, padj = (adata.obs[f"{KEY}_{name}"].to_numpy() for name in ("lfc", "padj"))
    return lfc, padj, adata.uns[KEY]["pval"].to_numpy()


class Scvi:
    """scVI, trained once on all cells."""

    def __init__(self, adata: ad.AnnData, epochs: int | None):
        import scvi

        scvi.settings.seed = 0
        self.adata = ad.AnnData(adata.X, obs=adata.obs[["batch"]], var=adata.var)
        scvi.model.SCVI.setup_anndata(self.adata, batch_key="batch")
        self.model = scvi.model.SCVI(self.adata)
        self.model.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False)

    def __call__(self, adata: ad.AnnData) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Compare the arms at each cell."""
        some = self.adata[adata.obs_names].copy()
        self.model.differential_abundance(some, sample_key="batch")
        log_density = some.obsm["da_log_probs"]
        arm = adata.obs.groupby("batch", observed=True)["arm"].first().loc[log_density.columns] == "stim"
        density = log_density.to_numpy()
        mean = [np.logaddexp.reduce(density[:, mask], axis=1) for mask in (arm.to_numpy(), ~arm.to_numpy())]
        return (mean[0] - mean[1]) / np.log(2), None, None


# ------------------------------------------------------------------------------------------------------------- data


def simulated(rng: np.random.Generator, n_each: int, tau: float, halved: bool) -> np.ndarray:
    """Cells of each kind and sample, (kinds, samples)."""
    n_samples = 2 * n_each
    sizes = rng.lognormal(np.log(1500), 0.5, n_samples).astype(int) + 30
    spread = tau * rng.uniform(0.6, 1.4, (len(BASE), 1))
    log = np.log(BASE)[:, None] + spread * rng.standard_normal((len(BASE), n_samples))
    log[3, n_each:] -= np.log(2) * halved
    fractions = np.exp(log) / np.exp(log).sum(0)
    return np.array([rng.multinomial(sizes[s], fractions[:, s]) for s in range(n_samples)]).T.astype(float)


def donors(latent: Path | None, wanted: bool) -> ad.AnnData:
    """pbmc_8donors, with the latent representation if it is `wanted`."""
    import os

    adata = ad.read_h5ad(Path(os.environ["SCCVAE_DATA"]) / "pbmc_8donors.h5ad")
    if wanted and latent is not None and latent.is_file():
        adata.obsm["X_sccvae"] = np.load(latent)
    elif wanted:
        import sccvae

        model = sccvae.SCCVAE(adata, batch_key="batch", device="cpu")
        model.train(progress_bar=False)
        adata.obsm["X_sccvae"] = model.get_latent_representation()
        if latent is not None:
            np.save(latent, adata.obsm["X_sccvae"])
    return adata


def arms() -> list[np.ndarray]:
    """All ways to deal eight donors into arms of four, as masks of the second arm."""
    return [~np.isin(np.arange(8), (0, *rest)) for rest in itertools.combinations(range(1, 8), 3)]


def with_arm(adata: ad.AnnData, arm: np.ndarray, kind: str | None = None, kept: float = 1.0) -> ad.AnnData:
    """Return the cells with their arm; of one type, only a fraction is kept in the second arm."""
    second = arm[adata.obs["batch"].cat.codes.to_numpy()]
    left = np.ones(adata.n_obs, dtype=bool)
    if kind is not None:
        of_kind = np.flatnonzero(second & (adata.obs["cell_type"] == kind).to_numpy())
        rng = np.random.default_rng(0)
        left[rng.choice(of_kind, round((1 - kept) * len(of_kind)), replace=False)] = False
    result = adata[left].copy()
    result.obs["arm"] = pd.Categorical(np.where(second[left], "stim", "ctrl"), categories=["ctrl", "stim"])
    return result


# --------------------------------------------------------------------------------------------------------- measures


def of_labels(test: Callable, n: np.ndarray, arm: np.ndarray, changed: int | None, truth: float = 0.0) -> dict:
    """Measures of one data set by label."""
    start = time.perf_counter()
    p, lfc = test(n, arm)
    seconds, called = time.perf_counter() - start, stats.false_discovery_control(p) < 0.05
    if changed is None:
        shares = {"below_05": (p < 0.05).mean(), "below_01": (p < 0.01).mean(), "some_call": float(called.any())}
        return shares | {"called": called.mean(), "seconds": seconds}
    found = {"found": float(called[changed] and lfc[changed] * truth > 0), "bias": lfc[changed] - truth}
    return found | {"others_called": np.delete(called, changed).mean(), "seconds": seconds}


def of_cells(method: Callable, adata: ad.AnnData, kind: str | None) -> dict:
    """Measures of one data set by cell."""
    from sklearn.metrics import roc_auc_score

    start = time.perf_counter()
    lfc, padj, p = method(adata)
    row = {"seconds": time.perf_counter() - start}
    called = None if padj is None else padj < 0.05
    if kind is None:
        if called is None:
            return row
        return row | {
            "below_05": (p < 0.05).mean(), "below_01": (p < 0.01).mean(), "some_call": float(called.any()),
            "called": called.mean(),
        }  # fmt: skip
    changed = (adata.obs["cell_type"] == kind).to_numpy()
    row["auroc"] = roc_auc_score(changed, -lfc)
    if called is not None:
        row |= {"found": (called & (lfc < 0))[changed].mean(), "others_called": called[~changed].mean()}
    return row


def counts_of(adata: ad.AnnData) -> np.ndarray:
    return pd.crosstab(adata.obs["cell_type"], adata.obs["batch"]).to_numpy(dtype=float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["simulated", "null", "signal"])
    methods = [*LABEL_METHODS, *CELL_METHODS]
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods)
    parser.add_argument("--repeats", type=int, default=400, help="simulations of each setting")
    parser.add_argument("--kept", nargs="+", type=float, default=[0.5, 0.2])
    parser.add_argument("--splits", type=int, default=5, help="splits of `signal`; `null` has all 35")
    parser.add_argument("--latent", type=Path)
    parser.add_argument("--scvi-epochs", type=int)
    parser.add_argument(
        "--out", default=default_out(__file__), help="file to append the rows to (default: %(default)s)"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = [name for name in options.methods if name != "scvi" or find_spec("scvi")]
    log = Log(__file__, options.out, UNITS, peers=["scvi-tools"])
    for kind in options.kinds:
        frame = pd.DataFrame(simulations(chosen, options) if kind == "simulated" else real(kind, chosen, options))
        settings = [name for name in ("n_each", "tau", "halved", "kept") if name in frame]
        table = frame.drop(columns="type", errors="ignore").groupby(["method", *settings], sort=False).mean()
        for key, row in table.iterrows():
            method, *values = key if isinstance(key, tuple) else (key,)
            conditions = dict(zip(settings, values, strict=True))
            data_set = "simulated, samples" if kind == "simulated" else "pbmc_8donors"
            n_sets = int((frame["method"] == method).sum() / (table.index.get_level_values(0) == method).sum())
            found = {name: float(value) for name, value in row.items() if value == value}
            seeds = [0] if kind == "simulated" else []
            log.add(found, data_set=data_set, method=method, seeds=seeds, kind=kind, data_sets=n_sets, **conditions)
        print(f"\n{kind}\n{table.round(3).to_string()}", flush=True)
        if "type" in frame:
            by_type = frame.groupby(["method", "kept", "type"], sort=False)[["found", "others_called"]].mean()
            print(by_type.round(3).to_string(), flush=True)


def simulations(methods: list[str], options: argparse.Namespace) -> list[dict]:
    rows = []
    for n_each, tau, halved in itertools.product((3, 4, 8), (0.1, 0.3, 0.6), (False, True)):
        rng, arm = np.random.default_rng(0), np.arange(2 * n_each) >= n_each
        for _ in range(options.repeats):
            n = simulated(rng, n_each, tau, halved)
            for method in methods:
                if method in TESTS:
                    row = of_labels(TESTS[method], n, arm, 3 if halved else None, -1.0)
                    rows.append({"method": method, "n_each": n_each, "tau": tau, "halved": halved, **row})
    return rows


def real(kind: str, methods: list[str], options: argparse.Namespace) -> list[dict]:
    adata, rows = donors(options.latent, CELL_METHODS[0] in methods), []
    cell_methods: dict[str, Callable] = {"sccvae, neighbourhoods": by_neighbourhoods}
    if "scvi" in methods:
        cell_methods["scvi"] = Scvi(adata, options.scvi_epochs)
    some = arms()[:: 35 // options.splits][: options.splits]
    types = list(adata.obs["cell_type"].cat.categories)
    settings = [(None, 1.0)] if kind == "null" else list(itertools.product(types, options.kept))
    for (changed, kept), arm in itertools.product(settings, arms() if kind == "null" else some):
        cells = with_arm(adata, arm, changed, kept)
        setting = {} if changed is None else {"type": changed, "kept": kept}
        for method in methods:
            if method in TESTS:
                at = None if changed is None else types.index(changed)
                row = of_labels(TESTS[method], counts_of(cells), arm, at, np.log2(kept))
            else:
                row = of_cells(cell_methods[method], cells, changed)
            rows.append({"method": method, **setting, **row})
    return rows


if __name__ == "__main__":
    main()
