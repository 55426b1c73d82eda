r"""Distances between posteriors q(z|x) of cells: nearest neighbours, distance matrices, hierarchical clusters.

Arrays in, arrays out. A cell is the Gaussian :math:`\mathcal N(m, \mathrm{diag}\, v)`, `mean` and `variance` (cells,
dimensions) each. Distances between two cells are

- ``euclidean``: :math:`|m_1 - m_2|`, as in `scanpy.pp.neighbors`; the variance is not used;
- ``wasserstein``: :math:`W_2 = \sqrt{|m_1 - m_2|^2 + |\sqrt{v_1} - \sqrt{v_2}|^2}`,
  the 2-Wasserstein distance (Givens & Shortt 1984; for diagonal covariances, where it is the Euclidean distance
  between the points :math:`(m, \sqrt v)`);
- ``symmetric_kl``: :math:`\sqrt J`, :math:`J = \mathrm{KL}(q_1|q_2) + \mathrm{KL}(q_2|q_1)` in nats
  (Jeffreys 1946). The square root is taken because J grows like a squared distance: between posteriors of equal
  variance, J is :math:`|m_1 - m_2|^2 / v`.

Distances are exact, computed in float64 in blocks of rows: memory is bounded by `BLOCK_BYTES` and the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import scipy.sparse as sp

from sccvae.validation.arguments import whole

Metric = Literal["euclidean", "wasserstein", "symmetric_kl"]
Linkage = Literal["average", "ward"]
BLOCK_BYTES = 64 * 2**20


def neighbours(
    mean: np.ndarray, variance: np.ndarray | None, n_neighbors: int, *, metric: Metric = "wasserstein"
) -> sp.csr_matrix:
    """Compute the distances from each cell to its nearest neighbours, nearest first.

    Parameters
    ----------
    mean, variance
        Of q(z|x), (cells, dimensions) each; `variance` may be None for ``metric="euclidean"``.
    n_neighbors
        Number of neighbours per cell, without the cell itself.

    Returns
    -------
    (cells, cells) CSR, float64; `n_neighbors` entries in each row, a cell itself never among them. Distances of 0 to
    duplicates are stored.

    Raises
    ------
    ValueError
        Invalid shapes or values of the posterior; more neighbours than other cells; an unknown metric.
    """
    mean, variance = _checked(mean, variance, metric)
    n_cells = len(mean)
    if not 1 <= (n_neighbors := whole("n_neighbors", n_neighbors)) < n_cells:
        raise ValueError(
            f"n_neighbors is {n_neighbors} for {n_cells} cells; expected at least 1 and fewer than the number of cells."
        )
    if metric == "symmetric_kl":
        nearest, distances = np.empty((n_cells, n_neighbors), dtype=np.int64), np.empty((n_cells, n_neighbors))
        for rows, block in blocks(mean, variance, metric=metric):
            block[np.arange(len(block)), np.arange(n_cells)[rows]] = np.inf
            some = np.argpartition(block, n_neighbors - 1, axis=1)[:, :n_neighbors]
            values = np.take_along_axis(block, some, axis=1)
            order = np.argsort(values, axis=1, kind="stable")
            nearest[rows], distances[rows] = (np.take_along_axis(a, order, axis=1) for a in (some, values))
    else:
        from sklearn.neighbors import NearestNeighbors

        points = _points(mean, variance, metric)
        distances, nearest = NearestNeighbors(n_neighbors=n_neighbors).fit(points).kneighbors()
    starts = np.arange(0, n_cells * n_neighbors + 1, n_neighbors)
    return sp.csr_matrix((distances.ravel(), nearest.ravel(), starts), shape=(n_cells, n_cells))


def blocks(
    mean: np.ndarray, variance: np.ndarray | None, *, metric: Metric = "wasserstein"
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (rows, distances of these cells to all cells, (rows, cells) float64), in order."""
    mean, variance = _checked(mean, variance, metric)
    n_cells = len(mean)
    step = max(1, BLOCK_BYTES // (8 * n_cells))
    if metric == "symmetric_kl":
        assert variance is not None
        # 2 J = sum of (v1 + m1^2) / v2 + (v2 + m2^2) / v1 - 2 m1 m2 / v2 - 2 m1 m2 / v1 + m1^2 / v1 + m2^2 / v2 - 2
        mean = mean - mean.mean(0)
        precision, second = 1 / variance, variance + mean**2
        left = np.hstack([second, precision, mean, mean * precision])
        right = np.hstack([precision, second, -2 * mean * precision, -2 * mean]).T
        own = (mean**2 * precision - 1).sum(1)
        for start in range(0, n_cells, step):
            rows = slice(start, min(start + step, n_cells))
            twice = left[rows] @ right + own[rows, None] + own
            here = np.arange(rows.start, rows.stop)
            twice[here - start, here] = 0  # exactly; rounding would leave a small value
            yield rows, np.sqrt(np.maximum(twice, 0, out=twice) / 2)
    else:
        from scipy.spatial.distance import cdist

        points = _points(mean, variance, metric)
        for start in range(0, n_cells, step):
            rows = slice(start, min(start + step, n_cells))
            yield rows, cdist(points[rows], points)


def matrix(mean: np.ndarray, variance: np.ndarray | None, *, metric: Metric = "wasserstein") -> np.ndarray:
    """Compute the distances between all pairs of cells, (cells, cells) float32."""
    result = np.empty((len(mean), len(mean)), dtype=np.float32)
    for rows, block in blocks(mean, variance, metric=metric):
        result[rows] = block
    return result


# ------------------------------------------------------------------------------------------------------------ hierarchy


def group_distances(distances: np.ndarray, codes: np.ndarray, *, method: Linkage = "average") -> np.ndarray:
    r"""Compute the distances between groups of cells, (groups, groups).

    ``average``: the mean distance over pairs of one cell from each group. ``ward``: the distance between the groups'
    centres, from distances alone:
    :math:`D^2_{ab} = \overline{d^2_{ab}} - (\overline{d^2_{aa}} + \overline{d^2_{bb}}) / 2`.
    The formula is exact for Euclidean distances; for other metrics negative values are set to 0.

    Parameters
    ----------
    distances
        Between all cells, (cells, cells).
    codes
        Number of each cell's group, from 0, (cells,); each group has at least one cell. Cells of -1 belong to no group.
    """
    n_groups = int(codes.max()) + 1
    member = (codes[:, None] == np.arange(n_groups)).astype(np.float64)
    size, total = member.sum(0), np.zeros((n_groups, n_groups))
    if not size.all():
        raise ValueError(f"codes has no cell of group number {int(np.argmin(size))}; expected codes without gaps.")
    power = 2 if method == "ward" else 1
    step = max(1, BLOCK_BYTES // (8 * len(codes)))
    for start in range(0, len(codes), step):
        rows = slice(start, start + step)
        total += member[rows].T @ (distances[rows].astype(np.float64) ** power @ member)
    mean = total / np.outer(size, size)
    if method == "ward":
        within = np.diag(mean) / 2
        mean = np.sqrt(np.maximum(mean - within[:, None] - within, 0))
    mean = (mean + mean.T) / 2
    np.fill_diagonal(mean, 0)
    return mean


def linkage(distances: np.ndarray, *, method: Linkage = "average", optimal_ordering: bool = True) -> np.ndarray:
    """Compute hierarchical clusters in the format of `scipy.cluster.hierarchy.linkage`, (items - 1, 4).

    Parameters
    ----------
    distances
        Between all items, (items, items), symmetric.
    optimal_ordering
        Order leaves so that adjacent leaves are similar (Bar-Joseph et al. 2001); slow for thousands of leaves.

    Raises
    ------
    ValueError
        Fewer than two items, or an unknown method.
    """
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    if method not in get_args(Linkage):
        raise ValueError(f"method is {method!r}; expected one of {', '.join(map(repr, get_args(Linkage)))}.")
    if len(distances) < 2:
        raise ValueError(f"distances has {len(distances)} items; expected at least 2 for a hierarchy.")
    return hierarchy.linkage(squareform(distances, checks=False), method, optimal_ordering=optimal_ordering)


# -------------------------------------------------------------------------------------------------------------- details


def _checked(mean: np.ndarray, variance: np.ndarray | None, metric: Metric) -> tuple[np.ndarray, np.ndarray | None]:
    """Return mean and variance as float64, or raise if they are not posteriors that the metric can compare."""
    if metric not in get_args(Metric):
        raise ValueError(f"metric is {metric!r}; expected one of {', '.join(map(repr, get_args(Metric)))}.")
    mean = np.asarray(mean, dtype=np.float64)
    if mean.ndim != 2 or not np.isfinite(mean).all():
        raise ValueError(f"mean has shape {mean.shape}; expected finite numbers, (cells, dimensions).")
    if metric == "euclidean":
        return mean, None
    if variance is None:
        raise ValueError(
            f"variance is None; expected an array for metric={metric!r}: pass variance, or metric='euclidean'."
        )
    variance = np.asarray(variance, dtype=np.float64)
    if variance.shape != mean.shape or not (np.isfinite(variance) & (variance > 0)).all():
        raise ValueError(f"variance has shape {variance.shape}; expected numbers above 0 of shape {mean.shape}.")
    return mean, variance


def _points(mean: np.ndarray, variance: np.ndarray | None, metric: Metric) -> np.ndarray:
    """Return points whose Euclidean distances equal those of the metric."""
    return mean if metric == "euclidean" or variance is None else np.hstack([mean, np.sqrt(variance)])
