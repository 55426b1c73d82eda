"""A history, a diagnosis and mapped cells to draw: from numbers, not from a training: that differs in last digits."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

from sccvae.statistics import diagnostics


def history() -> pd.DataFrame:
    """Twenty epochs; validation is best at the 15th."""
    epoch = np.arange(1, 21)
    columns = {
        "elbo": -250 - 300 * np.exp(-epoch / 2.0),
        "reconstruction": -238 - 300 * np.exp(-epoch / 2.0),
        "kl_z": 11.0 + 4 / epoch,
        "kl_l": 1.0 - 1 / epoch,
        "learning_rate": np.linspace(1e-2, 1e-4, 20),
        "kl_weight": np.minimum(1, epoch / 5),
    }
    training = pd.DataFrame({"epoch": epoch, "split": "training", **columns})
    validation = training.assign(split="validation", elbo=training["elbo"] - 0.2 * (epoch - 15) ** 2)
    return pd.concat([training, validation], ignore_index=True)


def diagnosis() -> diagnostics.Diagnosis:
    """Drawn from numbers, not from a training, which differs in its last digits between machines."""
    rng = np.random.default_rng(0)
    n_cells, n_genes = 400, 150
    batches = pd.Series(np.array(["alpha", "beta", "gamma"])[rng.integers(3, size=n_cells)])
    mean = rng.standard_normal((n_cells, 6)) * [1, 1, 0.8, 0.5, 0.3, 0.02]
    mean[batches == "gamma", 0] += 8
    log_size = rng.normal(7, 0.4, n_cells)
    cost = np.exp(0.8 * log_size) * (1 + 0.05 * rng.standard_normal(n_cells))
    cost[7] *= 1.6
    expected = rng.lognormal(-1, 1.5, n_genes)
    zeros = np.exp(-np.log1p(expected))
    shown = np.clip(zeros + 0.03 * rng.standard_normal(n_genes), 0, 1)
    genes = pd.DataFrame(
        {
            "mean": expected * rng.lognormal(0, 0.1, n_genes),
            "variance": (expected + expected**2) * rng.lognormal(0, 0.2, n_genes),
            "zeros": shown,
            "model_mean": expected,
            "model_variance": expected + expected**2,
            "model_zeros": zeros,
            "zeros_low": zeros - 0.04,
            "zeros_high": zeros + 0.04,
        }
    )
    ranks = 1 + 0.5 * np.linspace(-1, 1, 20) ** 2
    variance = np.tile([0.1, 0.1, 0.2, 0.5, 0.9, 1.0], (n_cells, 1))
    return diagnostics.diagnosis(
        mean,
        variance,
        log_likelihood=-cost,
        kl=diagnostics.latent_units(mean, variance)["kl"].sum(),  # its mean over cells
        log_size=log_size,
        names=pd.RangeIndex(n_cells),
        genes=genes,
        ranks=ranks / ranks.sum(),
        batches=batches,
        batches_known=True,
        n_neighbors=30,
        history=history(),
    )


def mapped(n_cells: int = 300, n_labels: int = 3, seed: int = 0) -> ad.AnnData:
    """Cells of some kinds, the last of which no label stands for, with embedding, layout and what mapping writes."""
    rng = np.random.default_rng(seed)
    kinds = [f"kind {k} $x_{k}$" for k in range(n_labels + 1)]
    centres = 6 * np.random.default_rng(5).standard_normal((n_labels + 1, 4))
    kind = rng.integers(n_labels + 1, size=n_cells)
    z = (centres[kind] + rng.standard_normal((n_cells, 4))).astype(np.float32)
    wrong = (rng.random(n_cells) < 0.15) | (kind == n_labels)
    label = np.where(wrong, rng.integers(n_labels, size=n_cells), kind)
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical.from_codes(kind, kinds),
            "sccvae_label": pd.Categorical.from_codes(label, kinds[:-1]),
            "sccvae_probability": np.where(wrong, rng.uniform(0.4, 0.9, n_cells), rng.uniform(0.6, 1, n_cells)),
            "sccvae_novelty": np.where(kind == n_labels, rng.uniform(0.9, 1, n_cells), rng.uniform(0, 1, n_cells)),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    obs["sccvae_accepted"] = obs["sccvae_novelty"] <= 0.95
    return ad.AnnData(obs=obs, obsm={"X_sccvae": z, "X_umap": 2 * z[:, :2]})
