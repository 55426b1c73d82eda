"""Comparison of two groups of samples: sums of counts in, one value for each gene out."""

from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from sccvae.statistics.samples import evidence, moderated
from sccvae.statistics.samples.design import Design, whitening

LEAST_COUNTS = 10  # of a gene in all rows together; genes with fewer are not tested
PRIOR_COUNT = 2.0  # of the tests: ratios of few counts are shrunken
SMALL_COUNT = 0.5  # of the estimates: less biased
SCORES = 40_000  # null scores, about
MARGIN = 1.5  # by which the error that samples share is enlarged: its distribution over genes is not normal
LEAST_DEGREES = 3  # residual degrees of freedom from which the other evidence is used


class Sums(NamedTuple):
    """Sums over the cells of each row, (rows, genes) each: counts, expected counts, counts of the samples' other cells.

    `others` is None if the group of the other cells is unknown; then `expected` is the other evidence.
    """

    observed: np.ndarray
    expected: np.ndarray
    others: np.ndarray | None


class Result(NamedTuple):
    """Result of a comparison, (genes,) each.

    Attributes
    ----------
    pval
        p-value of an effect; 1 for genes that were not tested.
    error
        Posterior probability that there is no effect; 1 for genes that were not tested, 0 if none was computed.
    lfc, lfc_se
        log2 fold change of group 1 over group 2, and its standard error.
    low, high
        95 % interval of the fold change.
    tested
        Whether the gene was tested.
    """

    pval: np.ndarray
    error: np.ndarray
    lfc: np.ndarray
    lfc_se: np.ndarray
    low: np.ndarray
    high: np.ndarray
    tested: np.ndarray


def compare(sums: Sums, design: Design, *, seed: int) -> Result:
    """Test each gene for an effect of the group.

    Significance comes from the variation between samples: a moderated t-statistic of the log sums. The other evidence
    enters by a mixture (`evidence`). p-values are ranks among scores of rotated residuals, which have no effect. With
    fewer than `LEAST_DEGREES` residual degrees of freedom they are those of the moderated t-test.
    """
    n_genes = sums.observed.shape[1]
    totals = np.maximum(sums.observed.sum(1), 1.0)
    tested = sums.observed.sum(0) >= LEAST_COUNTS
    one = np.ones(n_genes)
    if tested.sum() < 2:
        return Result(one, one, one * 0, one * np.nan, one * np.nan, one * np.nan, np.zeros(n_genes, dtype=bool))
    observed = sums.observed[:, tested]
    y = moderated.log_expression(observed, PRIOR_COUNT)
    weights = moderated.precision_weights(y, observed, totals, design)
    white = whitening(design, moderated.residuals_of(y, design))
    own = moderated.fit(y, design, weights, white)
    plain = moderated.fit(moderated.log_expression(observed, SMALL_COUNT), design, weights, white).effects
    if design.degrees < LEAST_DEGREES:
        pval, error = 2 * stdtr(own.effects.degrees, -np.abs(own.effects.estimate / own.effects.error)), 0 * own.scale
        lfc, lfc_se = plain.estimate, plain.error
    else:
        pval, error, lfc, lfc_se = _with_other_evidence(sums, tested, design, own, plain, white, seed)
    half = stdtrit(plain.degrees, 0.975) * lfc_se

    def every(values: np.ndarray, untested: float) -> np.ndarray:
        result = np.full(n_genes, untested)
        result[tested] = values
        return result

    return Result(
        pval=every(pval, 1.0),
        error=every(error, 1.0),
        lfc=every(lfc, 0.0),
        lfc_se=every(lfc_se, np.nan),
        low=every(lfc - half, np.nan),
        high=every(lfc + half, np.nan),
        tested=tested,
    )


def _other_expression(sums: Sums, tested: np.ndarray) -> np.ndarray:
    """Return log2 expression in the other evidence, (rows, genes)."""
    if sums.others is not None:
        return moderated.log_expression(sums.others[:, tested], SMALL_COUNT)
    expected = sums.expected / np.maximum(sums.expected.sum(1, keepdims=True), 1e-12)
    return moderated.centred(np.log2(expected[:, tested] * 1e6 + 1e-3), sums.observed[:, tested])


def _with_other_evidence(
    sums: Sums,
    tested: np.ndarray,
    design: Design,
    own: moderated.Fitted,
    plain: moderated.Effects,
    white: np.ndarray | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return p-values, probabilities of no effect, fold changes and their errors, (tested genes,) each."""
    rng = np.random.default_rng(seed)
    other = moderated.fit(_other_expression(sums, tested), design, None, white)
    n_rotations = int(np.clip(SCORES // len(own.scale), 4, 40))
    directions = rng.standard_normal((n_rotations, design.degrees))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    real = own.effects, other.effects
    null = moderated.rotated(own, directions), moderated.rotated(other, directions)
    scaled = [fitted.residuals / fitted.effects.error for fitted in (own, other)]
    rho = float((scaled[0] * scaled[1]).sum() / np.sqrt((scaled[0] ** 2).sum() * (scaled[1] ** 2).sum()))
    shared = np.zeros(len(own.scale))
    if sums.others is None:
        shared = evidence.shared_error(real[1], sums.observed[:, tested].sum(0))
    found, without = _sources(real, null, shared, rho, rng)
    mixture = evidence.fit(found, float(np.median(shared)))
    posterior = evidence.posterior(found, mixture)
    pval = evidence.p_values(posterior.log_odds, evidence.posterior(without, mixture).log_odds)
    error = evidence.no_effect(posterior.log_odds)
    if sums.others is None:
        return pval, error, plain.estimate, plain.error
    return pval, error, *_combined(plain, real[1], rho, posterior.same)


def _sources(
    real: tuple[moderated.Effects, moderated.Effects],
    null: tuple[moderated.Effects, moderated.Effects],
    shared: np.ndarray,
    rho: float,
    rng: np.random.Generator,
) -> tuple[evidence.Sources, evidence.Sources]:
    """Return both sources with errors that fit the null scores: of the data, and without effects.

    The error that all samples share, (genes,), is that of the same chance differences as the own error.
    """
    errors = real[0].normal_error, real[1].normal_error
    covariance, null_covariance = (np.minimum(shared**2, 0.9 * error**2) for error in (errors[0], null[0].error))
    slope = null_covariance / null[0].error ** 2
    shared = MARGIN * shared
    left = np.sqrt(np.maximum(shared**2 - slope * null_covariance, 0))
    leaked = null[1].estimate + slope * null[0].estimate + left * rng.standard_normal(null[0].estimate.shape)
    other_error, null_error = np.hypot(errors[1], shared), np.hypot(null[1].error, shared)
    if not shared.any():
        covariance, null_covariance = rho * errors[0] * errors[1], rho * null[0].error * null[1].error
    # A heavier or lighter centre of the null scores than that of a normal rescales the errors.
    factors = [
        max(float(np.quantile(np.abs(x / s), 0.9)) / 1.6449, 0.5)
        for x, s in ((null[0].estimate, null[0].error), (leaked, null_error))
    ]
    both = factors[0] * factors[1]
    return (
        evidence.Sources(
            real[0].estimate, real[1].estimate, factors[0] * errors[0], factors[1] * other_error, both * covariance
        ),
        evidence.Sources(
            null[0].estimate, leaked, factors[0] * null[0].error, factors[1] * null_error, both * null_covariance
        ),
    )


def _combined(
    own: moderated.Effects, other: moderated.Effects, rho: float, same: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Combine both estimates where effects are the same, with the probability `same`; return them with errors."""
    covariance = rho * own.error * other.error
    variance = own.error**2 + other.error**2 - 2 * covariance
    share = np.clip((other.error**2 - covariance) / variance, 0, 1)
    pooled = share * own.estimate + (1 - share) * other.estimate
    error2 = (share * own.error) ** 2 + ((1 - share) * other.error) ** 2 + 2 * share * (1 - share) * covariance
    lfc = same * pooled + (1 - same) * own.estimate
    spread = same * (1 - same) * (pooled - own.estimate) ** 2
    return lfc, np.sqrt(same * error2 + (1 - same) * own.error**2 + spread)
