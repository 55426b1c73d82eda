"""Posterior samples of the mean expression of two groups: those of the decoder, corrected by the counts."""

import numpy as np

from sccvae.statistics.differential_expression.groups import Group

TRUST = 10.0  # prior counts of the decoder's mean: a gene with fewer counts mostly keeps the decoder's mean
BATCH_SD = 0.3  # log units of expression: standard deviation of residual batch effects


def pseudocount(group1: Group, group2: Group) -> float:
    """Return eps, the pseudocount added to both means before their ratio: expression indistinguishable from none.

    eps is the larger of one count in the smaller group, and the 90 % quantile of the decoded mean among genes without
    any count in a group. A gene with almost no expression in both groups therefore has no large fold change.
    """
    levels = [1 / max(group.library, 1.0) for group in (group1, group2)]
    for group in (group1, group2):
        unseen = group.raw == 0
        if unseen.any():
            levels.append(float(np.quantile(group.samples[:, unseen].mean(0), 0.9)))
    return max(levels)


def count_evidence(group1: Group, group2: Group, *, trust: float = TRUST, batch_sd: float = BATCH_SD) -> np.ndarray:
    """Estimate corrections of the decoder's means from the counts, with their (co)variances.

    In batch b and group k, the log of the true over the decoded mean is a_k + u_b, where u_b ~ N(0, batch_sd^2) is a
    residual batch effect. With O observed and E expected (weighted) counts, O - E has mean E (a_k + u_b) and variance E
    to first order. Generalised least squares give a_1, a_2. Batches with cells of both groups compare them directly;
    comparisons between batches carry the additional variance `batch_sd`^2.

    Returns
    -------
    (5, genes) in log units: a_1 and a_2, shrunken towards 0 by `trust` counts; variance of a_1, of a_2, their
    covariance. The variances are not shrunken: the decoder's means come from the same counts, and are no more precise.
    """
    t = batch_sd**2
    precision = np.zeros((3, group1.expected.shape[1]))  # of a_1, of a_2, minus the entry between them
    score = np.zeros((2, group1.expected.shape[1]))
    for o1, e1, o2, e2 in zip(group1.observed, group1.expected, group2.observed, group2.expected, strict=True):
        scale = 1 / (1 + t * (e1 + e2))
        precision += scale * np.stack([e1 * (1 + t * e2), e2 * (1 + t * e1), t * e1 * e2])
        d1, d2 = o1 - e1, o2 - e2
        score += scale * np.stack([d1 * (1 + t * e2) - d2 * t * e1, d2 * (1 + t * e1) - d1 * t * e2])
    own1, own2, between = precision[0] + trust, precision[1] + trust, precision[2]
    shift = np.stack([own2 * score[0] + between * score[1], between * score[0] + own1 * score[1]])
    shift /= own1 * own2 - between**2
    own1, own2 = precision[0] + 0.5, precision[1] + 0.5  # half a count keeps it finite where there are no counts
    covariance = np.stack([own2, own1, between]) / (own1 * own2 - between**2)
    return np.concatenate([np.clip(shift, -3, 3), covariance])


def with_counts(
    group1: Group, group2: Group, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return posterior samples of both means given the counts, (samples, genes) each, and both means, (genes,)."""
    shift1, shift2, variance1, variance2, covariance = count_evidence(group1, group2)
    noise1, noise2 = rng.standard_normal((2, *group1.samples.shape))
    sd1 = np.sqrt(variance1)
    noise2 *= np.sqrt(np.maximum(variance2 - covariance**2 / variance1, 0))
    noise2 += covariance / sd1 * noise1
    noise1 *= sd1
    mean1, mean2 = (g.samples.mean(0) * np.exp(a) for g, a in ((group1, shift1), (group2, shift2)))
    return group1.samples * np.exp(shift1 + noise1), group2.samples * np.exp(shift2 + noise2), mean1, mean2


def log_fold_changes(samples1: np.ndarray, samples2: np.ndarray, eps: float) -> np.ndarray:
    """Compute log2((h_1 + eps) / (h_2 + eps)) of (samples, genes) posterior samples."""
    tiny = np.finfo(np.float64).tiny
    return np.log2(np.maximum(samples1 + eps, tiny)) - np.log2(np.maximum(samples2 + eps, tiny))
