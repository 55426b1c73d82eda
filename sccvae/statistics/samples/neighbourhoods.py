"""Neighbourhoods of cells in a latent representation, as in Milo.

Milo is described by Dann et al. 2022 (https://doi.org/10.1038/s41587-021-01033-z).
Representatives are random cells, each moved to the cell nearest to the median of its neighbours. A neighbourhood is the
cells nearest to a representative. Neighbourhoods overlap, so their tests are not independent.
"""

from typing import NamedTuple

import numpy as np


class Neighbourhoods(NamedTuple):
    """Neighbourhoods of cells.

    Attributes
    ----------
    cells
        (neighbourhoods,) numbers of the representative cells.
    members
        (neighbourhoods, neighbours) numbers of the cells of each, the representative included.
    reach
        (neighbourhoods,) distance to the farthest member.
    nearest
        (cells,) neighbourhood whose representative is nearest to the cell.
    """

    cells: np.ndarray
    members: np.ndarray
    reach: np.ndarray
    nearest: np.ndarray

    def counts(self, codes: np.ndarray, n_groups: int) -> np.ndarray:
        """Count the members of each group, (neighbourhoods, groups), for the numbers of the cells' groups."""
        n, groups = len(self.cells), codes[self.members]
        places = (np.arange(n)[:, None] * n_groups + groups).ravel()
        return np.bincount(places, minlength=n * n_groups).reshape(n, n_groups)


def neighbourhoods(z: np.ndarray, n_cells: int, n_neighbours: int, *, seed: int) -> Neighbourhoods:
    """Choose representatives among `n_cells` random cells, and their nearest cells.

    Parameters
    ----------
    z
        (cells, dimensions) latent representation.
    """
    from sklearn.neighbors import NearestNeighbors

    z = np.ascontiguousarray(z, dtype=np.float32)
    rng = np.random.default_rng(seed)
    start = np.sort(rng.choice(len(z), min(n_cells, len(z)), replace=False))
    search = NearestNeighbors(n_neighbors=n_neighbours).fit(z)
    medians = np.median(z[search.kneighbors(z[start], return_distance=False)], axis=1)
    cells = np.unique(search.kneighbors(medians, 1, return_distance=False))
    distances, members = search.kneighbors(z[cells])
    nearest = NearestNeighbors(n_neighbors=1).fit(z[cells]).kneighbors(z, return_distance=False)[:, 0]
    return Neighbourhoods(cells, members, distances[:, -1], nearest)
