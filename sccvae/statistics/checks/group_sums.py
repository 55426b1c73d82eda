"""Sums of cells by group."""

import numpy as np
import scipy.sparse as sp


def sums_by_group(matrix: sp.csr_matrix, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Return the sums over the cells of each group, (groups, genes); cells of group -1 are left out.

    Parameters
    ----------
    matrix
        (cells, genes).
    group
        (cells,) number of the group.
    """
    taken = np.flatnonzero(group >= 0)
    member = sp.csr_matrix((np.ones(len(taken)), (group[taken], taken)), shape=(n_groups, len(group)))
    return np.asarray((member @ matrix).todense())
