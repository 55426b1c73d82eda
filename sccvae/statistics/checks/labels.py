"""Labels of a batch that do not fit its cells: a column that was shifted, or cells that were sorted anew.

For each batch, the label of each cell is predicted by multinomial profiles (sums of counts by label), from the other
batches, and from the other half of the same batch. The agreement with the given labels is Cohen's kappa: 1 where all
agree, 0 where as many agree as by chance. Names that differ between batches agree within them, and are left alone.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from sccvae.statistics.checks.group_sums import sums_by_group
from sccvae.validation.wording import listed_names, warn

LEAST_CELLS = 50  # with a label, of a batch that is compared
PRIOR_COUNTS = 50.0  # of the profile of all cells, added to that of each label
LEAST_AGREEMENT = 0.5  # of that of the other batches
LEAST_SIGNAL = 0.2  # agreement of the other batches below which labels are not about expression


def kappa(predicted: np.ndarray, given: np.ndarray) -> float:
    """Compute the agreement beyond chance, over that which is possible; 0 without cells."""
    if not len(given):
        return 0.0
    size = int(max(predicted.max(), given.max())) + 1
    shares = [np.bincount(x, minlength=size) / len(x) for x in (predicted, given)]
    chance = float(shares[0] @ shares[1])
    return (float((predicted == given).mean()) - chance) / max(1 - chance, 1e-9)


def agreement(counts: sp.csr_matrix, labels: np.ndarray, batches: np.ndarray, seed: int) -> np.ndarray:
    """Return how far the labels of each batch can be predicted, (batches,): the larger of two kappas.

    Parameters
    ----------
    counts
        (cells, genes).
    labels
        (cells,) numbers of the labels; -1 for none.
    batches
        (cells,) numbers of the batches.

    Returns
    -------
    NaN for batches with fewer than `LEAST_CELLS` labels.
    """
    n_batches, n_labels = int(batches.max()) + 1, int(labels.max()) + 1
    fold = np.random.default_rng(seed).integers(2, size=len(labels))
    known = np.flatnonzero(labels >= 0)
    total = sums_by_group(counts, labels, n_labels)
    prior = PRIOR_COUNTS * total.sum(0) / max(total.sum(), 1)

    def predicted(cells: np.ndarray, profiles: np.ndarray) -> np.ndarray:
        size = profiles.sum(1)
        score = counts[cells] @ np.log(np.maximum(profiles + prior, 1e-12) / (size + PRIOR_COUNTS)[:, None]).T
        score[:, size == 0] = -np.inf
        return score.argmax(1)

    found = np.full(n_batches, np.nan)
    for batch in range(n_batches):
        cells = known[batches[known] == batch]
        if len(cells) < LEAST_CELLS:
            continue
        halves = [cells[fold[cells] == k] for k in (0, 1)]
        sums = [sums_by_group(counts[half], labels[half], n_labels) for half in halves]
        others = total - sums[0] - sums[1]
        within = np.concatenate([predicted(halves[k], sums[1 - k]) for k in (0, 1)])
        shared = cells[others.sum(1)[labels[cells]] > 0]
        by_others = predicted(shared, others)
        found[batch] = max(kappa(within, labels[np.concatenate(halves)]), kappa(by_others, labels[shared]))
    return found


def contradicted(found: np.ndarray) -> np.ndarray:
    """Return the batches whose agreement is below half of the median of the others, from (batches,) agreements.

    None where the labels of the other batches do not agree with the expression either.
    """
    compared = np.flatnonzero(np.isfinite(found))
    if len(compared) < 2:
        return np.zeros(0, dtype=int)
    others = np.array([np.median(found[compared[compared != k]]) for k in compared])
    return compared[(found[compared] < LEAST_AGREEMENT * others) & (others >= LEAST_SIGNAL)]


def warn_of(found: np.ndarray, batches: np.ndarray, names: Sequence[str], key: str) -> None:
    """Warn of the labels in the column `key` of some batches, from (batches,) agreements."""
    wrong, right = max(float(found[batches].max()), 0.0), float(np.nanmedian(np.delete(found, batches)))
    where = listed_names([str(names[k]) for k in batches])
    warn(
        f"The values of {key!r} in {where} do not fit the cells: beyond chance, {wrong:.0%} of them agree with the "
        f"expression, in other batches {right:.0%}. The model is trained without them. Look whether they were mixed up."
    )
