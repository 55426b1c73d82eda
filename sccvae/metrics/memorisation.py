"""Scores of copying: whether a generator repeats the cells that it was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from sccvae.metrics.distances import _centred, _kth_smallest, checked_pair

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sccvae.metrics.distances import Matrix


class Memorisation(NamedTuple):
    """Scores of copying; 0.5 for none.

    Attributes
    ----------
    nearer
        Probability that a generated cell is nearer to its nearest training cell than a held-out cell is. 1 for copies.
    membership
        AUC of a membership attack: a cell is taken for a training cell if a generated cell is near.
    error
        Standard error of both without copying, (1/12 (1/n + 1/m))^(1/2) for the smaller numbers n and m of cells.

    Examples
    --------
    >>> from sccvae import generation
    >>> generation.Memorisation(nearer=0.51, membership=0.5, error=0.02).membership
    0.5
    """

    nearer: float
    membership: float
    error: float


def memorisation(
    training: Matrix, held_out: Matrix, generated: Matrix, *, max_cells: int | None = 5_000, seed: int = 0
) -> Memorisation:
    """Compare distances of generated and held-out cells to the training cells, and a membership attack.

    A generator can score well because it repeats its data. Then its cells are nearer to the training cells than
    held-out cells are (`nearer`), and training cells are nearer to the generated ones than held-out cells are
    (`membership`, an attack after Hayes et al. 2019, https://doi.org/10.2478/popets-2019-0008).

    Parameters
    ----------
    training, held_out, generated
        Features, (cells, features) each, such as `principal_components` of `log_normalized` counts. Training and
        held-out cells come from one random split.
    max_cells
        Largest number of cells of each, sampled at random; ``None`` takes all. Time grows with its square.
    seed
        Seed of the random samples.

    Returns
    -------
    `nearer`, `membership` and their standard error. All are 0.5 for cells that are new draws from the distribution of
    the data. A generator whose cells are too far from all data has a `nearer` below 0.5.

    Raises
    ------
    ValueError
        The arrays do not match or are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from sccvae import generation
    >>> z = np.random.default_rng(0).normal(size=(300, 2))
    >>> generation.memorisation(z[:100], z[100:200], z[:100]).nearer  # copies of the training cells
    1.0
    """
    options: dict[str, Any] = {"max_cells": max_cells, "seed": seed}
    x, new = _centred(*checked_pair(training, generated, names=("training", "generated"), **options))
    _, other = _centred(*checked_pair(training, held_out, names=("training", "held_out"), **options))
    to_training = [_kth_smallest(cells, x, 1) for cells in (new, other)]
    to_generated = [_kth_smallest(cells, new, 1) for cells in (x, other)]
    sizes = [len(part) for part in (*to_training, *to_generated)]
    error = float(np.sqrt((1 / min(sizes[0], sizes[2]) + 1 / sizes[1]) / 12))
    return Memorisation(_nearer(*to_training), _nearer(*to_generated), error)


def _nearer(first: NDArray, second: NDArray) -> float:
    """Return the probability that a distance of the first is smaller than one of the second; equal ones count half."""
    return float(roc_auc_score(np.repeat([1, 0], [len(first), len(second)]), -np.concatenate([first, second])))
