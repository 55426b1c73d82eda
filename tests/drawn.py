"""A history and a diagnosis to draw: from numbers, not from a training, which differs in its last digits."""

from __future__ import annotations

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
