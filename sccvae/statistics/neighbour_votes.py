"""Labels by the vote of nearest neighbours."""

import numpy as np


def vote(z: np.ndarray, labels: np.ndarray, z_new: np.ndarray, n_neighbours: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of a vote, (new cells, labels), and the names of the labels.

    Neighbours weigh by a Gaussian of their distance, whose width is the mean distance of a cell's neighbours.

    Parameters
    ----------
    z, labels
        (cells, n), (cells,): the reference.
    z_new
        (new cells, n).
    """
    from sklearn.neighbors import NearestNeighbors

    names, codes = np.unique(labels, return_inverse=True)
    n_neighbours = min(n_neighbours, len(z))
    distance, at = NearestNeighbors(n_neighbors=n_neighbours).fit(z).kneighbors(z_new)
    weight = np.exp(-0.5 * (distance / np.maximum(distance.mean(1, keepdims=True), 1e-9)) ** 2)
    shares = np.zeros((len(z_new), len(names)))
    for k in range(n_neighbours):
        np.add.at(shares, (np.arange(len(shares)), codes[at[:, k]]), weight[:, k])
    return shares / shares.sum(1, keepdims=True), names
