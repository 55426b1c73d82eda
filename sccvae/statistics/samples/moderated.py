"""Moderated t-statistics of linear models, with precision weights for the noise of counts.

The variance of each gene is shrunken towards that of all genes (Smyth 2004, https://doi.org/10.2202/1544-6115.1027).
Weights follow from a variance of 1 / (expected count + 1) + phi on the log scale (Law et al. 2014,
https://doi.org/10.1186/gb-2014-15-2-r29); phi, the variation between samples, is common to all genes.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import digamma, ndtri, polygamma, stdtr

from sccvae.statistics.samples.design import Design

TINY = 1e-300
AT_ONCE = 2**22  # entries of the orthogonal bases that are in memory at once


class Effects(NamedTuple):
    """Estimates of the effect of the group for each gene, in log2 units.

    Attributes
    ----------
    estimate, error
        (..., genes) effect of group 1 over group 2; its moderated standard error.
    degrees
        Degrees of freedom of the standard errors, prior ones included.
    """

    estimate: np.ndarray
    error: np.ndarray
    degrees: float

    @property
    def z(self) -> np.ndarray:
        """Return standard normal scores with the p-values of the moderated t-statistics."""
        below = stdtr(self.degrees, -np.abs(self.estimate / self.error))
        return np.sign(self.estimate) * np.abs(ndtri(np.maximum(below, TINY)))

    @property
    def normal_error(self) -> np.ndarray:
        """Return standard errors for which ``estimate / error`` is `z`."""
        z = np.abs(self.z)
        sure = z > 1e-6
        return np.where(sure, np.abs(self.estimate) / np.where(sure, z, 1), self.error)


def trigamma_inverse(x: float) -> float:
    """Return y with trigamma(y) = x, by Newton's method."""
    y = 0.5 + 1 / x
    for _ in range(50):
        value = polygamma(1, y)
        step = value * (1 - value / x) / polygamma(2, y)
        y += step
        if -step / y < 1e-8:
            break
    return float(y)


def fit_f_dist(variance: np.ndarray, degrees: int) -> tuple[float, float]:
    """Fit the scaled F distribution of residual variances, (genes,): prior degrees of freedom, prior variance.

    By moments of the log variances (Smyth 2004, section 6.2). The degrees are infinite if the variances of genes do not
    differ more than by chance.
    """
    floor = 1e-8 * max(float(np.median(variance)), TINY)
    logs = np.log(np.maximum(variance, floor)) - digamma(degrees / 2) + np.log(degrees / 2)
    centre, spread = logs.mean(), (logs.var(ddof=1) if len(logs) > 1 else 0.0) - polygamma(1, degrees / 2)
    if spread <= 1e-8:
        return np.inf, float(np.exp(centre))
    half = trigamma_inverse(spread)
    return float(2 * half), float(np.exp(centre + digamma(half) - np.log(half)))


def moderated(estimate: np.ndarray, variance: np.ndarray, degrees: int, scale: np.ndarray) -> Effects:
    """Moderate residual variances, (genes,), and return the effects; `scale` is the error of a unit variance."""
    prior, common = fit_f_dist(variance, degrees)
    if np.isinf(prior):
        shrunken, total = np.full_like(variance, common), 1e6
    else:
        shrunken, total = (prior * common + degrees * variance) / (prior + degrees), min(degrees + prior, 1e6)
    return Effects(estimate, np.sqrt(np.maximum(shrunken, TINY)) * scale, total)


class Fitted(NamedTuple):
    """A linear model of each gene, in orthogonal coordinates.

    Attributes
    ----------
    effects
        Moderated estimates.
    residuals
        (degrees, genes): coordinates of the residuals, independent with one variance for each gene.
    scale
        (genes,): error of the effect for a unit variance.
    """

    effects: Effects
    residuals: np.ndarray
    scale: np.ndarray


def fit(y: np.ndarray, design: Design, weights: np.ndarray | None = None, white: np.ndarray | None = None) -> Fitted:
    """Fit the linear model of a design to log expression, (rows, genes).

    Parameters
    ----------
    weights
        (genes, rows) square roots of the precisions; None weighs all rows alike.
    white
        (rows, rows) matrix that decorrelates the rows, after weighting.
    """
    full = np.column_stack([design.nuisance, design.group])
    n, p = full.shape
    if weights is None:
        coordinates, scale = _orthogonal(full[None], y.T, white)
    else:
        size = max(AT_ONCE // n**2, 1)
        parts = [
            _orthogonal(full * some[:, :, None], values * some, white)
            for some, values in ((weights[k : k + size], y.T[k : k + size]) for k in range(0, len(weights), size))
        ]
        coordinates, scale = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    estimate, residuals = coordinates[:, p - 1] * scale, coordinates[:, p:].T
    variance = (residuals**2).sum(0) / (n - p)
    return Fitted(moderated(estimate, variance, n - p, np.abs(scale)), residuals, np.abs(scale))


def _orthogonal(design: np.ndarray, values: np.ndarray, white: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return values in the orthogonal basis of a design, (genes, rows), and the scale of its last column, (genes,).

    `design` has shape (genes or 1, rows, columns), `values` (genes, rows).
    """
    if white is not None:
        design, values = white @ design, values @ white.T
    q, r = np.linalg.qr(design, mode="complete")
    last = design.shape[2] - 1
    scale = np.broadcast_to(1 / r[:, last, last], len(values))
    return (values @ q[0] if len(q) == 1 else np.einsum("gnd,gn->gd", q, values)), scale


def rotated(fitted: Fitted, directions: np.ndarray) -> Effects:
    """Return effects of contrasts that no group has: directions within the residuals, (rotations, degrees).

    Each direction is orthogonal to the groups and to the covariates, so that true effects do not enter (Langsrud 2005,
    https://doi.org/10.1007/s11222-005-4789-5; permuting the labels of equal groups gives such directions, too).
    """
    squares, degrees = (fitted.residuals**2).sum(0), len(fitted.residuals) - 1
    parts = []
    for along in directions @ fitted.residuals:
        variance = np.maximum(squares - along**2, 0) / degrees
        effects = moderated(along * fitted.scale, variance, degrees, fitted.scale)
        parts.append(Effects(effects.estimate, effects.normal_error, effects.degrees))
    estimate, error = (np.stack([getattr(part, name) for part in parts]) for name in ("estimate", "error"))
    return Effects(estimate, error, np.inf)


def residuals_of(y: np.ndarray, design: Design) -> np.ndarray:
    """Return the residuals of the unweighted linear model, (rows, genes)."""
    basis, _ = np.linalg.qr(np.column_stack([design.nuisance, design.group]))
    return y - basis @ (basis.T @ y)


def log_expression(sums: np.ndarray, prior_count: float) -> np.ndarray:
    """Compute log2 counts per million of sums, (rows, genes), after adding `prior_count` at the mean depth.

    The median over the better expressed half of genes is made equal in all rows: a few genes that change much would
    otherwise shift the fractions of all others.
    """
    total = np.maximum(sums.sum(1, keepdims=True), 1.0)
    return centred(np.log2((sums + prior_count * total / total.mean()) / total * 1e6), sums)


def centred(y: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Make medians of log expression, (rows, genes), over the better expressed half of genes equal."""
    level = sums.mean(0)
    most = level >= np.quantile(level, 0.5)
    return y - np.median((y - y.mean(0))[:, most], axis=1, keepdims=True)


def precision_weights(y: np.ndarray, sums: np.ndarray, totals: np.ndarray, design: Design) -> np.ndarray:
    """Compute square roots of precision weights, (genes, rows), mean square 1 for each gene.

    Parameters
    ----------
    y, sums
        (rows, genes) log2 expression and counts.
    totals
        (rows,) counts of all genes.
    """
    expected = np.maximum(totals[:, None] * (sums.sum(0) / totals.sum()), 0.25)
    noise = 1 / (expected + 1)
    variance = ((residuals_of(y, design) * np.log(2)) ** 2).sum(0) / design.degrees
    mean = noise.mean(0)
    precise = mean <= max(0.1, float(np.quantile(mean, 0.2)))
    phi = max(float(np.median((variance - mean)[precise])), 0.01)
    weights = (1 / np.sqrt(noise + phi)).T
    return weights / np.sqrt((weights**2).mean(1, keepdims=True))
