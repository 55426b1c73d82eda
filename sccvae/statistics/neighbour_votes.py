"""Labels and positions of new cells, from their nearest neighbours."""

import numpy as np

N_NEIGHBOURS = 15


def vote(
    z: np.ndarray, labels: np.ndarray, z_new: np.ndarray, n_neighbours: int = N_NEIGHBOURS
) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of a vote, (new cells, labels), and the names of the labels.

    Parameters
    ----------
    z, labels
        (cells, n), (cells,): the reference.
    z_new
        (new cells, n).
    """
    names, codes = np.unique(labels, return_inverse=True)
    at, weight = _weighted(z, z_new, n_neighbours)
    shares = np.zeros((len(z_new), len(names)))
    for k in range(at.shape[1]):
        np.add.at(shares, (np.arange(len(shares)), codes[at[:, k]]), weight[:, k])
    return shares / shares.sum(1, keepdims=True), names


def placed(z: np.ndarray, layout: np.ndarray, z_new: np.ndarray, n_neighbours: int = N_NEIGHBOURS) -> np.ndarray:
    """Return the weighted means of the positions of each new cell's neighbours, (new cells, 2).

    Parameters
    ----------
    z, layout
        (cells, n), (cells, 2): the reference, and its positions.
    z_new
        (new cells, n).
    """
    at, weight = _weighted(z, z_new, n_neighbours)
    return np.einsum("ck,ckd->cd", weight / weight.sum(1, keepdims=True), layout[at])


def _weighted(z: np.ndarray, z_new: np.ndarray, n_neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest neighbours of new cells, and their weights, (new cells, neighbours) each.

    Neighbours weigh by a Gaussian of their distance, whose width is the mean distance of a cell's neighbours.
    """
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=min(n_neighbours, len(z))).fit(z)
    distance, at = nearest.kneighbors(z_new)
    return at, np.exp(-0.5 * (distance / np.maximum(distance.mean(1, keepdims=True), 1e-9)) ** 2)
