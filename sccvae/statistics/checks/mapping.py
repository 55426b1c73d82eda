"""Checks of cells that were mapped onto a reference, for `diagnostics`."""

import numpy as np

from sccvae.statistics.diagnostics import Check
from sccvae.validation.wording import listed_names


def check_new_cells(p_values: np.ndarray, rate: float, labels: np.ndarray | None) -> Check:
    """Check how many cells are less likely than a fraction `rate` of the reference's.

    Of their `labels`, if given, that with the most such cells is named.
    """
    new = p_values < rate
    sentence = f"{new.mean():.0%} of the cells are unlike the reference, where {rate:.0%} are expected."
    if labels is not None and new.any():
        names, at = np.unique(labels, return_inverse=True)
        n_new, n = np.bincount(at, new), np.bincount(at)
        worst = int((n_new - rate * n).argmax())  # the most cells above those expected
        fraction = n_new / n
        sentence += f" Among cells labelled {names[worst]} they are {fraction[worst]:.0%}."
    return Check("new_cells", float(new.mean()), sentence)


def check_missing_genes(missing: np.ndarray | None, names: np.ndarray) -> Check:
    """Check the fraction of the reference's genes that the cells lack, (genes,) bool; None means that none is."""
    if missing is None or not missing.any():
        return Check("missing_genes", 0.0, "The cells have all genes of the reference.")
    found = listed_names(names[missing])
    text = f"{missing.sum():,} of {len(missing):,} genes of the reference are missing, such as {found}: "
    return Check("missing_genes", float(missing.mean()), text + "labels and novelty are less certain.")


def check_depth(log_total: np.ndarray, log_reference: float) -> Check:
    """Check the median total count of the cells relative to the reference's."""
    ratio = float(np.exp(np.median(log_total) - log_reference))
    sentence = f"The median cell has {ratio:.2g} times the molecules of the reference's."
    if ratio < 1 / 3:
        sentence += " Labels are less certain; train the reference with thinning=0.8 for such cells."
    return Check("depth", ratio, sentence)


def check_offsets(levels: np.ndarray, n_known: int, batches: list[str]) -> Check | None:
    """Check how far the offsets of new batches, (batches, n), are from those of the known ones, in their spread."""
    known = levels[:n_known]
    spread = float(np.sqrt(((known - known.mean(0)) ** 2).sum(1).mean()))
    if n_known < 2 or spread == 0 or len(levels) == n_known:
        return None
    far = np.sqrt(((levels[n_known:] - known.mean(0)) ** 2).sum(1)) / spread
    worst = int(far.argmax())
    sentence = (
        f"The offsets of batch {batches[n_known + worst]} are {far[worst]:.2g} times as large as those of known ones."
    )
    if far[worst] > 3:
        sentence += " It differs strongly from the reference: look at the labels with care."
    return Check("offsets", float(far[worst]), sentence)
