"""Differential abundance: numbers of cells of each kind, compared between samples of two conditions.

Of the N_s cells of sample s, n_s are of one kind. A hierarchical model has two sources of variance, the sampling of
cells and the differences between samples of one condition, which are normal on the scale of log odds:

    n_s ~ Binomial(N_s, expit(theta_s)),   theta_s ~ Normal(x_s beta + o_s, tau^2)
    D(beta) = sum_s min_theta [2 log(p(n_s | n_s / N_s) / p(n_s | expit(theta))) + (theta - x_s beta - o_s)^2 / tau^2]

tau is the same for all kinds. A factor sigma^2 adapts the variance to one kind. It is the residual deviance D over its
degrees of freedom, moderated over kinds (Smyth 2004, https://doi.org/10.2202/1544-6115.1027). Kinds of outlying
variance are moderated less (Phipson et al. 2016, https://doi.org/10.1214/16-AOAS920). The test is the quasi-likelihood
F test: the difference of D without and with the condition, over sigma^2 (Lund et al. 2012,
https://doi.org/10.1515/1544-6115.1826). edgeR and Milo use this test with a negative binomial variance. One sample with
many cells of a kind changes a mean more than a mean of log odds.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.special import digamma, expit, polygamma, xlogy

from sccvae.statistics.samples.moderated import trigamma_inverse

STEPS = 50  # of Newton's method
FAR = 20.0  # largest absolute log odds: of a kind that one condition lacks, the estimate has no limit
PRIOR = 0.5  # cells added for fold changes, divided among samples in proportion to their cells
WIDEST = 3.0  # largest tau, in natural-log units


class Effects(NamedTuple):
    """Effect of the condition on each kind, arrays (kinds,).

    Attributes
    ----------
    lfc, lower, upper
        Log2 fold change of the odds, and the ends of its confidence interval.
    pval
        Two-sided p-value.
    """

    lfc: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    pval: np.ndarray


class _Fit(NamedTuple):
    """Fit of all kinds: coefficients, (kinds, coefficients); theta and its linear predictor, (kinds, samples)."""

    beta: np.ndarray
    theta: np.ndarray
    eta: np.ndarray


def effects_of(
    n: np.ndarray, totals: np.ndarray, design: np.ndarray, median: "Offset | None" = None, level: float = 0.95
) -> Effects:
    """Test the last column of the design.

    Parameters
    ----------
    n
        (kinds, samples) cells of each kind.
    totals
        (kinds, samples) cells among which those of the kind were counted, at least 1.
    design
        (samples, coefficients) of full rank, with fewer coefficients than samples.
    median
        The median kind, if effects are relative to it.
    level
        Probability of the confidence intervals.
    """
    n, totals = (np.asarray(values, dtype=np.float64) for values in (n, totals))
    df = design.shape[0] - design.shape[1]
    offset, taken = (0.0, 0.0) if median is None else median
    tau = deviation_between_samples(n, totals, design, offset)
    full = _fit(n, totals, design, offset, tau)
    residual = _deviance(n, totals, full, tau)
    gain = np.maximum(_deviance(n, totals, _fit(n, totals, design[:, :-1], offset, tau), tau) - residual, 0)
    scale, df_total = moderated(residual / (df * (1 - taken)), df)
    information = _variance(totals, full.theta)
    weights = information / (1 + tau**2 * information)
    scale = np.maximum(scale, (weights / information).mean(1))  # the sampling of cells alone
    ratio = gain / scale
    pval = stats.f.sf(ratio, 1, df_total)
    added = PRIOR * totals / totals.mean(1, keepdims=True)
    lfc = _fit(n + added, totals + 2 * added, design, offset, tau).beta[:, -1]
    # The interval agrees with the F test; for an effect near 0 its width is that of Wald's.
    wald = np.sqrt(np.linalg.pinv(_normal(design, weights))[:, -1, -1] * scale)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where((np.abs(lfc) > 1e-2) & (ratio > 1e-4), np.abs(lfc) / np.sqrt(ratio), wald)
    reach = stats.t.ppf((1 + level) / 2, df_total) * error / np.log(2)
    lfc = lfc / np.log(2)
    return Effects(lfc, lfc - reach, lfc + reach, pval)


def deviation_between_samples(
    n: np.ndarray, totals: np.ndarray, design: np.ndarray, offset: np.ndarray | float = 0.0
) -> float:
    """Return tau: the median over kinds of the mean squared residuals is then the one that the model expects."""
    df = design.shape[0] - design.shape[1]
    expected, tau = stats.chi2.ppf(0.5, df) / df, 0.3
    for _ in range(8):
        fit = _fit(n, totals, design, offset, tau)
        information = _variance(totals, fit.theta)
        squares = (fit.theta - fit.eta + (n - totals * expit(fit.theta)) / information) ** 2
        low, high = 0.0, WIDEST
        while high - low > 1e-4:
            middle = (low + high) / 2
            found = np.median((squares / (1 / information + middle**2)).sum(1) / df)
            low, high = (middle, high) if found > expected else (low, middle)
        if abs(tau - low) < 1e-3:
            break
        tau = low
    return tau


def moderated(raw: np.ndarray, df: int) -> tuple[np.ndarray, np.ndarray]:
    """Return moderated variances and their degrees of freedom, (kinds,) each, by limma's empirical Bayes estimate.

    Parameters
    ----------
    raw
        (kinds,) variances.
    df
        Their degrees of freedom.
    """
    n = len(raw)
    if n < 3:
        return raw, np.full(n, float(df))
    log = np.log(np.maximum(raw, 1e-5 * max(float(np.median(raw)), 1e-12))) - digamma(df / 2) + np.log(df / 2)
    spread = log.var(ddof=1) - polygamma(1, df / 2)
    pooled = float((n - 1) * df)  # n - 1, because fractions sum to 1
    prior = min(2 * trigamma_inverse(spread), pooled) if spread > 0 else pooled
    centre = np.exp(log.mean() + digamma(prior / 2) - np.log(prior / 2))
    priors = _less_for_outliers(raw / centre, df, prior)
    return (df * raw + priors * centre) / (df + priors), np.minimum(df + priors, pooled)


def _less_for_outliers(ratio: np.ndarray, df: int, prior: float) -> np.ndarray:
    """Return prior degrees of freedom, (kinds,), lower for variances that are too large for the prior."""
    n = len(ratio)
    tail = np.maximum(stats.f.sf(ratio, df, prior), 1e-300)
    order = np.argsort(tail, kind="stable")
    typical = np.minimum(tail[order] / ((np.arange(n) + 0.5) / n), 1)  # the probability of no outlier
    if typical.min() == 1:
        return np.full(n, prior)
    lowest = min(prior, np.log(0.5) / np.log(tail.min()) * prior)
    again = max(float(stats.f.sf(ratio.max(), df, lowest)), 1e-300)
    lowest = min(lowest, np.log(0.5) / np.log(again) * lowest)
    result = np.empty(n)
    result[order] = np.maximum.accumulate(typical * prior + (1 - typical) * lowest)
    return result


def _fit(n: np.ndarray, totals: np.ndarray, design: np.ndarray, offset: np.ndarray | float, tau: float) -> _Fit:
    """Minimise D over beta, by Newton's method: dD/d eta = -2 (n - N p), d2D/d eta2 = 2 / (1 / (N p q) + tau^2)."""
    eta = np.log((n + 0.5) / (totals - n + 0.5))
    theta, ridge = eta, 1e-9 * np.eye(design.shape[1])
    for step in range(STEPS):
        information = _variance(totals, theta)
        weights = information / (1 + tau**2 * information)
        response = eta - offset
        if step:
            response = response + (n - totals * expit(theta)) / weights
        right = np.einsum("sp,fs->fp", design, weights * response)
        beta = np.linalg.solve(_normal(design, weights) + ridge, right[..., None])[..., 0]
        new = np.clip(beta @ design.T + offset, -FAR, FAR)
        change = np.clip(new - eta, -2, 2) if step else new - eta
        eta = eta + change
        theta = _theta(n, totals, eta, tau, theta)
        if step and np.abs(change).max() < 1e-7:
            break
    return _Fit(beta, theta, eta)


def _theta(n: np.ndarray, totals: np.ndarray, eta: np.ndarray, tau: float, start: np.ndarray) -> np.ndarray:
    """Return theta, which minimises D for given eta: n - N p(theta) = (theta - eta) / tau^2; Newton's method."""
    if tau == 0:
        return eta
    theta = start
    for _ in range(STEPS):
        p = expit(theta)
        slope = totals * p * (1 - p) + 1 / tau**2
        change = np.clip((n - totals * p - (theta - eta) / tau**2) / slope, -2, 2)
        theta = theta + change
        if np.abs(change).max() < 1e-9:
            break
    return theta


def _variance(totals: np.ndarray, theta: np.ndarray) -> np.ndarray:
    p = expit(theta)
    return np.maximum(totals * p * (1 - p), 1e-8)


def _normal(design: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the matrices of the normal equations, (kinds, coefficients, coefficients)."""
    return np.einsum("sp,fs,sq->fpq", design, weights, design)


def _deviance(n: np.ndarray, totals: np.ndarray, fit: _Fit, tau: float) -> np.ndarray:
    """Return D of each kind, (kinds,)."""
    p = expit(fit.theta)
    r = n / totals
    binomial = totals * (xlogy(r, r / p) + xlogy(1 - r, (1 - r) / (1 - p)))
    between = (fit.theta - fit.eta) ** 2 / tau**2 if tau > 0 else 0
    return (2 * binomial + between).sum(1)


def adjusted(pval: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Adjust p-values for the false discovery rate (Benjamini & Hochberg 1995), with the weights of their hypotheses.

    Weights as in Benjamini & Hochberg 1997 give the fraction of the total weight that is false, in expectation.
    """
    weights = np.ones(len(pval)) if weights is None else weights
    order = np.argsort(pval, kind="stable")
    found = pval[order] * weights.sum() / np.cumsum(weights[order])
    result = np.empty(len(pval))
    result[order] = np.minimum(np.minimum.accumulate(found[::-1])[::-1], 1)
    return result


class Offset(NamedTuple):
    """Log odds of the median kind in each sample, up to a constant, and the fraction of variance that each kind loses.

    Attributes
    ----------
    values
        (samples,) natural-log units.
    taken
        (kinds,) leverage of the kind: the residuals of the kind are smaller by this fraction of their variance.
    """

    values: np.ndarray
    taken: np.ndarray


def median_offset(n: np.ndarray, totals: np.ndarray, design: np.ndarray) -> Offset:
    """Return the log odds of the median kind in each sample.

    They are the weighted medians over kinds of each coefficient, by least squares, and the weighted means of the
    residuals of each sample. The median of the log odds of a sample itself would vary more.
    """
    log_odds = np.log((n + 0.5) / (totals - n + 0.5))
    tau = deviation_between_samples(n, totals, design)
    precision = 1 / ((1 / (n + 0.5) + 1 / (totals - n + 0.5)).mean(1) + tau**2)
    beta = np.linalg.lstsq(design, log_odds.T, rcond=None)[0]
    shift = np.average(log_odds.T - design @ beta, axis=1, weights=precision)
    values = design[:, 1:] @ _weighted_median(beta[1:], np.sqrt(precision)) + shift
    return Offset(values, precision / precision.sum())


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the median of each row, (rows,), for the weights of the columns, interpolated between values."""
    order = np.argsort(values, axis=1, kind="stable")
    below = np.cumsum(weights[order], axis=1) - weights[order] / 2
    ordered, half = np.take_along_axis(values, order, axis=1), weights.sum() / 2
    return np.array([np.interp(half, b, v) for b, v in zip(below, ordered, strict=True)])
