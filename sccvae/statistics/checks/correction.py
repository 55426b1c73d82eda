"""Checks for over-correction: what each batch shows by itself, and what is left of it after the correction.

Cells of each batch are clustered by themselves, where no correction has touched them, by half of their molecules. The
other half tells what of it is not noise. After the correction

1. cells of a cluster should still be neighbours of each other within their batch;
2. a cluster that lies among cells of other batches should have their profile, but for what all clusters of the batch
   have in common: a kind that one batch alone holds, and that was drawn to another kind, has not;
3. genes that mark a cluster within its batch should mark it in the corrected expression.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sccvae.statistics.checks.group_sums import sums_by_group
from sccvae.statistics.diagnostics import EXPECTED, Check
from sccvae.validation.wording import listed_names, shortened

LEAST_CELLS = 100  # of a batch; fewer are not clustered
PER_CLUSTER, MOST_CLUSTERS = 60, 12  # cells of a cluster, about
SMALLEST = 15  # cells of a cluster
N_NEIGHBOURS = 15
N_GENES = 500  # most variable over clusters, by which profiles are compared
MIXED = 0.3  # mixing, relative to random mixing, from which a cluster counts as lying among other batches
ALIKE = 0.65  # correlation of profiles below which it is another kind
LESS_ALIKE, FEW_KEPT = 0.75, 0.75  # or below which it is, if it keeps so few of its neighbours
N_MARKERS, LEAST_CHANGE = 10, 1.0  # of a cluster; log2 units
KEPT = 1 / 3  # of a marker's fold change


class Clusters(NamedTuple):
    """Clusters of the cells of each batch by themselves.

    Attributes
    ----------
    label
        (cells,) number of the cluster; -1 in batches that are too small.
    batch
        (clusters,) number of the batch.
    agreement
        (clusters,) fraction of a cell's neighbours in its batch that are of its cluster, in principal components of the
        other half of the molecules.
    """

    label: np.ndarray
    batch: np.ndarray
    agreement: np.ndarray


def log_profiles(counts: sp.csr_matrix) -> sp.csr_matrix:
    """Return log1p of the counts scaled to the median total, (cells, genes)."""
    total = np.asarray(counts.sum(1)).ravel()
    scaled = sp.diags(np.median(total[total > 0]) / np.maximum(total, 1)) @ counts
    return scaled.log1p().tocsr()


def halves(counts: sp.csr_matrix, seed: int) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Return `log_profiles` of two halves of the molecules, (cells, genes) each."""
    first = counts.copy()
    first.data = np.random.default_rng(seed).binomial(counts.data.astype(np.int64), 0.5).astype(float)
    return log_profiles(first), log_profiles((counts - first).tocsr())


def cluster_batches(parts: tuple[sp.csr_matrix, sp.csr_matrix], batches: np.ndarray, seed: int) -> Clusters:
    """Cluster the cells of each batch by k-means on their own principal components.

    Parameters
    ----------
    parts
        Log profiles, (cells, genes) each, of the two halves of the molecules.
    batches
        (cells,) numbers of the batches.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    label, agreement = np.full(len(batches), -1), []
    batch: list[int] = []
    for number in np.unique(batches):
        cells = np.flatnonzero(batches == number)
        if len(cells) < LEAST_CELLS:
            continue
        components = min(20, parts[0].shape[1] - 1, len(cells) - 1)
        pca = PCA(components, svd_solver="arpack", random_state=seed)
        z, again = (pca.fit_transform(part[cells]) for part in parts)
        k = int(np.clip(len(cells) // PER_CLUSTER, 3, MOST_CLUSTERS))
        found = KMeans(k, n_init=5, random_state=seed).fit_predict(z)
        same = own_neighbours(again, found)
        for cluster in range(k):
            inside = found == cluster
            if inside.sum() >= SMALLEST:
                label[cells[inside]] = len(batch)
                batch.append(number)
                agreement.append(same[inside].mean())
    return Clusters(label, np.array(batch, dtype=int), np.array(agreement))


def own_neighbours(z: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the fraction of each cell's neighbours with its label, (cells,)."""
    from sklearn.neighbors import NearestNeighbors

    n = min(N_NEIGHBOURS, len(z) - 1)
    at = NearestNeighbors(n_neighbors=n).fit(z).kneighbors(return_distance=False)
    return (labels[at] == labels[:, None]).mean(1)


def compared(logged: sp.csr_matrix, batches: np.ndarray, z: np.ndarray, clusters: Clusters) -> pd.DataFrame:
    """Compare each cluster with what is around it in the embedding.

    Returns
    -------
    A row for each cluster: `batch`, `cells`; `kept`, the agreement of neighbours in the embedding over that in
    principal components; `mixing`, the fraction of neighbours from other batches over that of random mixing; `alike`,
    the correlation of its profile with that of the nearest cells of other batches, each relative to those of the other
    clusters of the batch.
    """
    from sklearn.neighbors import NearestNeighbors

    n_clusters, n_genes = len(clusters.batch), logged.shape[1]
    every = NearestNeighbors(n_neighbors=min(2 * N_NEIGHBOURS, len(z) - 1)).fit(z).kneighbors(return_distance=False)
    foreign = (batches[every] != batches[:, None]).mean(1)
    own, across = np.zeros((2, n_clusters, n_genes))
    kept, mixing = np.zeros(n_clusters), np.zeros(n_clusters)
    for number in np.unique(clusters.batch):
        cells, others = np.flatnonzero(batches == number), np.flatnonzero(batches != number)
        same = own_neighbours(z[cells], clusters.label[cells])
        near = NearestNeighbors(n_neighbors=min(N_NEIGHBOURS, len(others))).fit(z[others]).kneighbors(z[cells])[1]
        for cluster in np.flatnonzero(clusters.batch == number):
            inside = clusters.label[cells] == cluster
            kept[cluster] = min(same[inside].mean() / max(clusters.agreement[cluster], 1e-9), 1)
            mixing[cluster] = foreign[cells[inside]].mean() / max(len(others) / (len(z) - 1), 1e-9)
            own[cluster] = np.asarray(logged[cells[inside]].mean(0)).ravel()
            across[cluster] = np.asarray(logged[others[near[inside].ravel()]].mean(0)).ravel()
    alike = np.ones(n_clusters)
    for number in np.unique(clusters.batch):
        of_batch = clusters.batch == number
        first, second = (x[of_batch] - x[of_batch].mean(0) for x in (own, across))
        genes = np.argsort(-first.var(0))[:N_GENES]
        alike[of_batch] = [np.corrcoef(a[genes], b[genes])[0, 1] for a, b in zip(first, second, strict=True)]
    sizes = np.bincount(clusters.label[clusters.label >= 0], minlength=n_clusters)
    return pd.DataFrame(
        {"batch": clusters.batch, "cells": sizes, "kept": kept, "mixing": mixing, "alike": np.nan_to_num(alike)}
    )


def is_drawn(table: pd.DataFrame) -> pd.Series:
    """Return which clusters, rows of `compared`, lie among cells of another kind."""
    other = (table["alike"] < ALIKE) | ((table["alike"] < LESS_ALIKE) & (table["kept"] < FEW_KEPT))
    return (table["mixing"] > MIXED) & other


def markers_kept(logged: sp.csr_matrix, clusters: Clusters, corrected: np.ndarray) -> np.ndarray:
    """Return the fraction of each cluster's markers that mark it in the corrected expression, (clusters,).

    Parameters
    ----------
    corrected
        (clusters, genes) mean corrected expression of the cells of each cluster.
    """
    n_clusters = len(clusters.batch)
    sizes = np.bincount(clusters.label[clusters.label >= 0], minlength=n_clusters)[:, None]
    plain = logged.copy()
    plain.data = np.expm1(plain.data)
    raw = sums_by_group(plain, clusters.label, n_clusters) / sizes
    corrected = corrected * np.median(raw.sum(1)) / corrected.sum(1, keepdims=True)
    found = np.ones(n_clusters)
    for cluster in range(n_clusters):
        rest = (clusters.batch == clusters.batch[cluster]) & (np.arange(n_clusters) != cluster)
        weights = sizes[rest] / sizes[rest].sum()
        floor = 0.05  # counts: genes below are not markers
        before, after = (np.log2((x[cluster] + floor) / ((x[rest] * weights).sum(0) + floor)) for x in (raw, corrected))
        markers = np.argsort(-before)[:N_MARKERS]
        markers = markers[before[markers] >= LEAST_CHANGE]
        if len(markers):
            found[cluster] = (after[markers] >= KEPT * before[markers]).mean()
    return found


def checks_of_correction(
    table: pd.DataFrame, names: list[str], examples: list[str], batch_mixing: float
) -> list[Check]:
    """Return the checks of a table of clusters, of `compared` with the column `markers`.

    Parameters
    ----------
    names
        Of the batches.
    examples
        Of each cluster, in words: its largest markers.
    batch_mixing
        Weight of the batch penalty of the model.
    """
    where = [f"{examples[k]} in batch {shortened(names[batch])!r}" for k, batch in enumerate(table["batch"])]
    kept, markers = (float(np.average(table[name], weights=table["cells"])) for name in ("kept", "markers"))
    worst, lost = int(table["kept"].argmin()), int(table["markers"].argmin())
    knob = (
        f"batch_mixing is {batch_mixing:g}; with 0 z is corrected by the model alone, 1.5 is the default, and with 4 "
        "batches are mixed as much as they can be. Set it lower to keep more"
    )
    text = (
        f"Of the neighbours of their own kind that a batch shows by itself, cells keep {kept:.0%}; the fewest, "
        f"{table['kept'].iloc[worst]:.0%}, those with {where[worst]}"
    )
    text += f". {knob}." if kept < EXPECTED["neighbours_kept"][0] else "."
    drawn = table[is_drawn(table)]
    said = "No kind of cells that one batch alone holds was drawn to other kinds."
    if len(drawn):
        first = int(drawn["alike"].idxmin())
        said = (
            f"{len(drawn)} group{'s' * (len(drawn) > 1)} of cells lie among cells of other batches with another "
            f"profile, first {table['cells'].iloc[first]} cells with {where[first]}: a kind that one batch alone holds "
            f"may have been drawn to others. {knob}."
        )
    vanish = f"{markers:.0%} of the genes that mark a kind within its batch mark it in the corrected expression, too"
    vanish += f"; the fewest, {table['markers'].iloc[lost]:.0%}, of cells with {where[lost]}."
    return [
        Check("neighbours_kept", kept, text),
        Check("kinds_drawn", float(len(drawn)), said),
        Check("markers_kept", markers, vanish),
    ]


def examples_of(logged: sp.csr_matrix, clusters: Clusters, genes: pd.Index) -> list[str]:
    """Return the three largest markers of each cluster, in words."""
    found = []
    for cluster, batch in enumerate(clusters.batch):
        inside, of_batch = clusters.label == cluster, np.isin(clusters.label, np.flatnonzero(clusters.batch == batch))
        change = np.asarray(logged[inside].mean(0) - logged[of_batch].mean(0)).ravel()
        found.append(listed_names(genes[np.argsort(-change)[:3]]))
    return found
