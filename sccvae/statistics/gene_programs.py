"""Gene programs: rotated directions of the latent space, and the genes that they move.

Let y be the log2 expression of a cell, decoded from its latent representation z. The loadings of a direction are the
slopes of y on z by least squares, for one standard deviation of z along the direction.

These slopes are a mean of the decoder's Jacobian. Between two cells, y changes by dz, the difference of z, times the
mean Jacobian on the line from one z to the other. Least squares over cells equals least squares over pairs of cells.
The slopes are therefore the Jacobian averaged over the lines between all pairs of cells, with weights dz dz^T. The
Jacobian averaged over the cells themselves is smaller: expression changes most between cell types, where few cells are.

Directions are scaled so that scores have a variance of 1 and are uncorrelated. Results then do not depend on the basis
of z, which is arbitrary. The leading directions are rotated by varimax (Kaiser 1958,
https://doi.org/10.1007/BF02289233): each gene has a large loading on few of them. The rotation is orthogonal, so that
the squared loadings of a gene still sum to the variance that is explained.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

ENOUGH = 0.98  # of the variance that all directions explain: as many directions are kept
RESAMPLES = 3  # of the cells, for the stability
LEAST_VARIANCE = 1e-10  # of z, whose scale is about 1: less is rounding
RELATIVE = 1e-8  # least variance of a direction of z, relative to the largest
ITERATIONS, TOLERANCE = 500, 1e-10  # of varimax


@dataclass(frozen=True)
class Programs:
    """Programs by decreasing variance; scores of cells are ``(z - centre) @ axes``."""

    loadings: np.ndarray  # (genes, programs), log2 fold change for a standard deviation of the score
    fraction: np.ndarray  # (programs,), of the variance of y over cells and genes
    centre: np.ndarray  # (n_latent,)
    axes: np.ndarray  # (n_latent, programs)


def programs(
    z: np.ndarray,
    expression: Iterable[tuple[slice, np.ndarray]],
    n_programs: int | None = None,
    weights: np.ndarray | None = None,
    *,
    strict: bool = True,
) -> list[Programs]:
    """Find gene programs, once for each set of weights.

    Parameters
    ----------
    z
        (cells, n_latent) latent representation.
    expression
        (rows, y) for all cells, chunk by chunk: log2 expression, (cells of the chunk, genes).
    n_programs
        Number of programs; None takes the fewest that explain `ENOUGH` of what all directions explain.
    weights
        (sets, cells) weights of the cells, of which the first set decides about `n_programs`; None takes one set, of 1.
    strict
        Raise if there are fewer directions than `n_programs`; else take as many as there are.

    Raises
    ------
    ValueError
        The cells do not differ in z; or they differ in fewer directions than `n_programs`.
    """
    weights = np.ones((1, len(z))) if weights is None else weights
    middle = z.mean(0, dtype=np.float64)
    design = np.column_stack([np.ones(len(z)), z - middle])  # centred, which loses fewer digits
    weighted = weights[:, None, :] * design.T  # (sets, 1 + n_latent, cells)
    rows_of_sets = weighted.reshape(-1, len(z))
    products: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0
    for rows, y in expression:
        y = y.astype(np.float64)
        products = products + rows_of_sets[:, rows] @ y
        squares = squares + weights[:, rows] @ (y**2).sum(1)
    cross = np.reshape(products, (*weighted.shape[:2], -1)) / weights.sum(1)[:, None, None]
    total = np.asarray(squares) / weights.sum(1) - (cross[:, 0] ** 2).sum(1)  # variance of y, over all genes
    moments = weighted @ design / weights.sum(1)[:, None, None]
    most = min(_rank(_covariance(moments[0])), cross.shape[2])
    if most == 0:
        raise ValueError("gene_programs found cells with one latent representation; expected cells that differ.")
    if n_programs is not None and not strict:
        n_programs = min(n_programs, most)
    if n_programs is not None and n_programs > most:
        raise ValueError(f"n_programs is {n_programs}; expected at most {most}, the directions in which cells vary.")
    found: list[Programs] = []
    for moment, of_set, variance in zip(moments, cross, total, strict=True):
        mean, covariance = moment[0, 1:], _covariance(moment)
        with_y = of_set[1:] - np.outer(mean, of_set[0])
        if found:  # a resample of few cells can have fewer directions
            n_programs = min(found[0].loadings.shape[1], _rank(covariance))
        found.append(_programs(covariance, with_y, float(variance), n_programs, middle + mean))
    return found


def _programs(
    covariance: np.ndarray, with_y: np.ndarray, total: float, n_programs: int | None, centre: np.ndarray
) -> Programs:
    """Find programs from the covariance of z and that of z with y, (n_latent, genes); `total` is the variance of y."""
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = variances[::-1], directions[:, ::-1]
    rank = _rank(covariance)
    white = directions[:, :rank] / np.sqrt(variances[:rank])  # (n_latent, directions): z to scores of variance 1
    slopes = with_y.T @ white
    u, sizes, turned = np.linalg.svd(slopes, full_matrices=False)
    if n_programs is None:
        explained = np.cumsum(sizes**2)
        n_programs = int((explained < ENOUGH * explained[-1]).sum()) + 1
    loadings, axes = u[:, :n_programs] * sizes[:n_programs], white @ turned[:n_programs].T
    rotation = varimax(loadings)
    rotation = rotation * np.where(((loadings @ rotation) ** 3).sum(0) < 0, -1.0, 1.0)  # the longer tail is positive
    loadings, axes = loadings @ rotation, axes @ rotation
    explained = (loadings**2).sum(0)
    order = np.argsort(-explained, kind="stable")
    fraction = explained / total if total > 0 else np.zeros(n_programs)
    return Programs(loadings[:, order], fraction[order], centre, axes[:, order])


def _covariance(moment: np.ndarray) -> np.ndarray:
    """Return the covariance of z from the mean of the products of 1 and z, (1 + n_latent, 1 + n_latent)."""
    return moment[1:, 1:] - np.outer(moment[0, 1:], moment[0, 1:])


def _rank(covariance: np.ndarray) -> int:
    """Return the number of directions in which cells vary."""
    variances = np.linalg.eigvalsh(covariance)
    return int((variances > max(LEAST_VARIANCE, RELATIVE * variances[-1])).sum())


def varimax(loadings: np.ndarray) -> np.ndarray:
    """Return the orthogonal matrix, (k, k), that maximises the variance of the squared loadings, (genes, k)."""
    rotation, before = np.eye(loadings.shape[1]), 0.0
    for _ in range(ITERATIONS):
        turned = loadings @ rotation
        left, sizes, right = np.linalg.svd(loadings.T @ (turned**3 - turned * (turned**2).mean(0)))
        rotation = left @ right
        if sizes.sum() <= before * (1 + TOLERANCE):
            break
        before = sizes.sum()
    return rotation


def resampled(n_cells: int, seed: int) -> np.ndarray:
    """Return weights of the cells, (1 + RESAMPLES, cells): 1, then how often resamples hold each cell."""
    rng = np.random.default_rng(seed)
    draws = [np.bincount(rng.integers(n_cells, size=n_cells), minlength=n_cells) for _ in range(RESAMPLES)]
    return np.vstack([np.ones(n_cells), *draws])


def stability(loadings: np.ndarray, others: Iterable[np.ndarray]) -> np.ndarray:
    """Return how well other sets of programs reproduce each program, (programs,), in [0, 1].

    It is the largest absolute correlation of its loadings with those of another program, averaged over the sets. Where
    loadings do not vary over genes it is 0.
    """
    best = [np.abs(_standardised(loadings).T @ _standardised(other)).max(1, initial=0.0) for other in others]
    return np.minimum(np.mean(best, axis=0), 1.0)


def _standardised(loadings: np.ndarray) -> np.ndarray:
    """Centre the columns and scale them to length 1; constant columns become 0."""
    centred = loadings - loadings.mean(0)
    length = np.linalg.norm(centred, axis=0)
    constant = length <= 1e-12 * np.linalg.norm(loadings, axis=0)
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, length))


def table(loadings: np.ndarray, genes: pd.Index, names: list[str], n_genes: int) -> pd.DataFrame:
    """Make a table of the genes of each program: `program`, `direction`, `gene`, `loading`, `rank`.

    Of each direction, "up" or "down", it has the `n_genes` genes of that sign with the largest absolute loadings.
    """
    parts = []
    for name, values in zip(names, loadings.T, strict=True):
        for direction, signed in (("up", values), ("down", -values)):
            order = np.argsort(-signed, kind="stable")[:n_genes]
            order = order[signed[order] > 0]
            columns = {"gene": genes[order], "loading": values[order], "rank": np.arange(1, len(order) + 1)}
            parts.append(pd.DataFrame({"program": name, "direction": direction, **columns}))
    return pd.concat(parts, ignore_index=True)
