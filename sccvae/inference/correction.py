"""Checks for over-correction of a trained model: see `statistics.checks.correction`."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sccvae.data.counts import Counts
from sccvae.inference import posterior
from sccvae.kernels.parallel import alone
from sccvae.modules.vae import VAE
from sccvae.statistics.checks import correction as correction_checks
from sccvae.statistics.diagnostics import Check

MOST_CELLS, MOST_BATCHES, LEAST_GENES = 5000, 10, 10  # that are checked; that expression is decoded in; of a model


@alone()
def checks(
    vae: VAE, counts: Counts, genes: pd.Index, names: Sequence[str], batch_mixing: float, seed: int
) -> list[Check]:
    """Check whether the correction for batches removed differences between cells; none if batches are too small.

    Parameters
    ----------
    genes, names
        Names of the genes, and of the batches.
    batch_mixing
        That of the model, for the advice.
    """
    if counts.n_genes < LEAST_GENES:
        return []
    rng = np.random.default_rng(seed)
    if len(counts) > MOST_CELLS:
        counts = counts[np.sort(rng.choice(len(counts), MOST_CELLS, replace=False))]
    batches = counts.codes[:, 0]
    matrix = counts.matrix.astype(np.float64)
    logged = correction_checks.log_profiles(matrix)
    clusters = correction_checks.cluster_batches(correction_checks.halves(matrix, seed), batches, seed)
    if len(np.unique(clusters.batch)) < 2:
        return []
    table = correction_checks.compared(logged, batches, posterior.latent(vae, counts), clusters)
    present = np.unique(batches)
    some = present if len(present) <= MOST_BATCHES else np.sort(rng.choice(present, MOST_BATCHES, replace=False))
    corrected = np.zeros((len(table), counts.n_genes))
    request = posterior.Request(tuple(map(int, some)))
    for rows, rho in posterior.expression(vae, counts, 1.0, None, request):
        known = clusters.label[rows] >= 0
        np.add.at(corrected, clusters.label[rows][known], rho[known])
    table["markers"] = correction_checks.markers_kept(logged, clusters, corrected / table[["cells"]].to_numpy())
    examples = correction_checks.examples_of(logged, clusters, genes)
    return correction_checks.checks_of_correction(table, list(names), examples, batch_mixing)
