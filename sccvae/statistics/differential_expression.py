"""Bayesian differential expression: from posterior samples of two groups' mean expression to a table of genes.

Arrays in, tables out; no function takes a model. For groups A and B and gene g (Boyeau et al. 2019,
https://doi.org/10.1101/794289; Boyeau et al. 2023, https://doi.org/10.1073/pnas.2209124120):

    h_A     mean normalised expression of the cells of A, both groups decoded in the same batches
    LFC   = log2(h_A + eps) - log2(h_B + eps)
    change: proba_de = P(|LFC| > delta, and LFC more than delta from the centre of most genes);  vanilla: P(h_A > h_B)
    called: as many genes, most probable first, as keep the mean of 1 - proba_de at the false discovery rate

Groups are compared by their means. Differences of random pairs of cells would mostly be differences within a group.
Three corrections calibrate the probabilities:

1. The decoder's parameters are estimates, and the posterior of z does not include their uncertainty. The counts of
   each group and batch are compared with the decoder's expectation, and the means carry the noise of the counts
   (`count_evidence`).
2. Where group and batch are confounded, a residual batch effect may separate the groups. Each batch therefore has a
   random effect; only comparisons within batches are free of this effect.
3. Most genes change little. The distribution of changes is fitted to all genes (`fit_prior`), as in adaptive shrinkage
   (Stephens 2017, https://doi.org/10.1093/biostatistics/kxw041).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from scipy.special import log_ndtr, ndtr

from sccvae.validation.arguments import finite, unless_none
from sccvae.validation.cells import numbers_of_cells
from sccvae.validation.names import distinct_texts, known_as

Mode = Literal["change", "vanilla"]
TRUST = 10.0  # prior counts of the decoder's mean: a gene with fewer counts mostly keeps the decoder's mean
BATCH_SD = 0.3  # log units of expression: standard deviation of residual batch effects
SMALLEST_DELTA = 0.1  # log2 units: lower bound of a threshold fitted to the data


# ------------------------------------------------------------------------------------------------------------- groups


@dataclass(frozen=True)
class Options:
    """Options of a comparison; see `SCCVAE.differential_expression`."""

    mode: Mode
    delta: float | None
    pseudocount: float | None
    fdr_target: float

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode is {self.mode!r}; expected one of {', '.join(map(repr, get_args(Mode)))}.")
        for name, unit in (("delta", "a log2 fold change"), ("pseudocount", "an expression")):
            expected = f"{unit} of 0 or more, or None to take it from the data"
            unless_none(finite, name, getattr(self, name), expected, least=0)
        finite("fdr_target", self.fdr_target, "a fraction in (0, 1), such as 0.05", above=0, below=1)


class Design(NamedTuple):
    """Cells of each group, and the pairs of groups to compare."""

    names: tuple[str, ...]  # of the groups; empty for groups from idx1 and idx2
    cells: list[np.ndarray]  # numbers of the cells of each group, sorted
    pairs: list[tuple[int, int | None]]  # positions of the groups compared; None stands for all other groups


def design_of(
    labels: Any, group1: Any, group2: Any, idx1: Any, idx2: Any, n_cells: int, names: pd.Index | None = None
) -> Design:
    """Return the groups, from labels (`by_label`) or from cells (`by_cells`)."""
    if labels is not None:
        if idx1 is not None or idx2 is not None:
            raise ValueError("groupby and idx1 or idx2 both select the cells; pass either groupby, or idx1 and idx2.")
        return by_label(labels, group1, group2)
    if group1 is not None or group2 is not None:
        raise ValueError("group1 and group2 need groupby, which is None; pass groupby, a column of adata.obs.")
    if idx1 is None:
        found = "all None" if idx2 is None else "None except idx2"
        raise ValueError(
            f"groupby, idx1 and idx2 are {found}; expected cells to compare: pass groupby, a column of adata.obs, or "
            "idx1."
        )
    return by_cells(idx1, idx2, n_cells, names)


def by_label(labels: Any, group1: str | Sequence[str] | None, group2: str | None) -> Design:
    """Return groups of cells with the same label.

    Parameters
    ----------
    labels
        (cells,) labels without missing values; a categorical keeps the order of its categories.
    group1
        Label or labels to compare; None takes all.
    group2
        Label of the reference group. None compares each group with all other cells; so does "Rest", unless "Rest" is
        itself a label.
    """
    categorical = pd.Categorical(labels).remove_unused_categories()
    names = distinct_texts(categorical.categories, "groupby")
    if len(names) < 2:
        raise ValueError(f"groupby has one group, {names[0]!r}; expected at least two groups of cells.")
    asked: Any = names if group1 is None else (group1,) if np.isscalar(group1) else group1
    chosen = [known_as(name, names) or str(name) for name in asked]
    second = None if group2 is None else known_as(group2, names) or str(group2)
    every = tuple(map(str, pd.Categorical(labels).categories))
    if second not in every and second in {others := all_others(names), others.lower()}:
        second = None
    for what, name in [("group1", name) for name in chosen] + ([] if second is None else [("group2", second)]):
        if name not in names:
            listed = ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
            found = "has no cells" if name in every else "is unknown"
            raise ValueError(f"{what} {name!r} {found}; the groups are {listed}.")
    if second is not None and group1 is None:
        chosen = [name for name in names if name != second]
    if not chosen:
        raise ValueError("group1 is an empty list; expected at least one group, or None for all groups.")
    if second in chosen:
        raise ValueError(f"group1 and group2 are both {second!r}; expected two different groups.")
    needed = names if second is None else (*dict.fromkeys(chosen), second)
    cells = [np.flatnonzero(categorical.codes == names.index(name)) for name in needed]
    other = None if second is None else needed.index(second)
    return Design(needed, cells, [(needed.index(name), other) for name in dict.fromkeys(chosen)])


def all_others(names: Sequence[str]) -> str:
    """Return the name of the group of all other cells: "Rest" as in scvi-tools, unless another group has that name."""
    known, name = {str(name).lower() for name in names}, "Rest"
    while name.lower() in known:
        name = f"{name} (all other cells)"
    return name


def by_cells(idx1: Any, idx2: Any, n_cells: int, names: pd.Index | None = None) -> Design:
    """Return two groups of cells, given in the forms of `numbers_of_cells`; for idx2=None the second is the rest."""
    chosen = [
        None if index is None else np.unique(numbers_of_cells(index, what, n_cells, names))
        for what, index in (("idx1", idx1), ("idx2", idx2))
    ]
    for what, numbers in zip(("idx1", "idx2"), chosen, strict=True):
        if numbers is not None and len(numbers) == 0:
            raise ValueError(f"{what} contains no cells; expected at least one.")
    first, second = chosen
    assert first is not None
    second = np.setdiff1d(np.arange(n_cells), first) if second is None else second
    if len(second) == 0:
        raise ValueError(f"idx1 contains all {n_cells} cells; expected fewer, so that a second group remains.")
    if np.array_equal(first, second):
        raise ValueError(f"idx1 and idx2 contain the same {len(first)} cells; expected two different groups.")
    both = np.intersect1d(first, second)
    if len(both):
        raise ValueError(
            f"idx1 and idx2 share {len(both)} cells, such as number {both[0]}; expected disjoint groups: remove them "
            "from one."
        )
    return Design((), [first, second], [(0, 1)])


@dataclass(frozen=True)
class Group:
    """Expression of a group of cells: posterior samples of the mean, observed and expected counts.

    Attributes
    ----------
    n_cells
        Number of cells in the group.
    samples
        (samples, genes) posterior samples of the mean normalised expression over the group's cells.
    observed, expected
        (batches, genes) counts of the group's cells in each batch, and the decoder's expectation of them, both weighted
        by the precision of a count: mean over variance.
    library
        Sum of the library sizes of all cells of the group, in counts.
    raw, detected
        (genes,) sum of the group's counts; number of cells with a nonzero count.
    """

    n_cells: int
    samples: np.ndarray
    observed: np.ndarray
    expected: np.ndarray
    library: float
    raw: np.ndarray
    detected: np.ndarray

    @classmethod
    def union(cls, groups: Iterable["Group"]) -> "Group":
        """Return the union of groups."""
        return _combine([(group, 1) for group in groups])

    def without(self, part: "Group") -> "Group":
        """Return this union of groups without one of them."""
        return _combine([(self, 1), (part, -1)])


def _combine(groups: list[tuple[Group, int]]) -> Group:
    n_cells = sum(sign * group.n_cells for group, sign in groups)

    def total(name: str) -> Any:
        values = (sign * np.asarray(getattr(group, name), dtype=np.float64) for group, sign in groups)
        return np.maximum(sum(values), 0)  # differences may round below zero

    samples = sum(sign * group.n_cells * group.samples.astype(np.float64) for group, sign in groups)
    sums = {name: total(name) for name in ("observed", "expected", "library", "raw", "detected")}
    return Group(n_cells=n_cells, samples=np.maximum(samples / n_cells, 0), **sums)


# ------------------------------------------------------------------------------------------------------------ samples


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


# -------------------------------------------------------------------------------------------------------- probability


class Prior(NamedTuple):
    """Prior of the log fold changes of all genes: a mixture of normals about one centre."""

    centre: float
    weights: np.ndarray  # (components,)
    scales: np.ndarray  # (components,) standard deviations, the first 0


def fit_prior(mean: np.ndarray, sd: np.ndarray, *, n_scales: int = 12, n_steps: int = 100) -> Prior:
    """Fit the prior of the log fold changes by EM to their estimates, (genes,), with standard errors (genes,).

    The centre is the location of most genes. It differs from 0 where few genes take up so many counts that the fraction
    of all others falls. A prior with the weight of ten genes keeps the centre near 0, so that few genes do not
    determine it. Of more than 5,000 genes, an evenly spaced subset is used, which is as accurate.
    """
    every = -(-len(mean) // 5000)
    mean, sd = mean[::every], sd[::every]
    centre = float(np.median(mean)) * len(mean) / (len(mean) + 10)
    scales = np.concatenate([[0.0], np.geomspace(0.05, max(2 * np.abs(mean - centre).max(), 0.1), n_scales)])
    weights, precision = np.full(len(scales), 1 / len(scales)), 1 / (sd[:, None] ** 2 + scales**2)  # (genes, scales)
    for _ in range(n_steps):
        responsibility = _responsibilities(mean, Prior(centre, weights, scales), precision)
        before, weights = weights, responsibility.mean(0)
        pull = (responsibility * precision).sum(1)
        centre = float(pull @ mean / (pull.sum() + 10 * pull.mean()))
        if np.abs(weights - before).max() < 1e-3:
            break
    return Prior(centre, weights, scales)


def _responsibilities(mean: np.ndarray, prior: Prior, precision: np.ndarray) -> np.ndarray:
    """Compute the posterior probability of each mixture component, (genes, scales).

    `precision`, (genes, scales), is that of an estimate under each component.
    """
    result = (-0.5 * (mean - prior.centre) ** 2)[:, None] * precision
    np.exp(result - result.max(1, keepdims=True), out=result)
    result *= np.sqrt(precision) * prior.weights
    return result / np.maximum(result.sum(1, keepdims=True), 1e-300)


def probability_of_change(
    mean: np.ndarray, sd: np.ndarray, delta: float, prior: Prior
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the probabilities that a gene has changed and has not, (genes,), for estimates with normal errors.

    A gene is unchanged within `delta` of 0, of the prior's centre, or between 0 and the centre: where few genes take
    up many counts, the fractions of all others fall, and a gene that follows most others has not changed. The second
    probability is computed separately from the first, so that small values are exact.
    """
    precision = 1 / (sd[:, None] ** 2 + prior.scales**2)
    responsibility = _responsibilities(mean, prior, precision)
    weight = prior.scales**2 * precision  # of the estimate, against the centre
    centre = prior.centre + weight * (mean[:, None] - prior.centre)
    spread = np.maximum(np.sqrt(weight) * sd[:, None], 1e-9)
    above = (centre - max(0.0, prior.centre) - delta) / spread
    below = (min(0.0, prior.centre) - delta - centre) / spread
    change = (responsibility * (ndtr(above) + ndtr(below))).sum(1)
    inside = np.maximum(ndtr(-np.maximum(above, below)) - ndtr(np.minimum(above, below)), 0)
    return change, (responsibility * inside).sum(1)


def fit_delta(mean: np.ndarray) -> float:
    """Estimate the threshold at which a gene is as likely to have changed as not, from (genes,) log fold changes.

    Two normals about the median, one narrow and one wide, are fitted by EM. delta is the distance at which both are
    equally likely, at least `SMALLEST_DELTA`.
    """
    x = np.abs(mean - np.median(mean))
    start = max(np.quantile(x, 0.5), 1e-3), max(np.quantile(x, 0.95), 2e-3), 0.2
    narrow, wide, fraction = two_normals(x, *start, n_steps=500)
    odds = (1 - fraction) * wide / (fraction * narrow)
    return max(SMALLEST_DELTA, float(np.sqrt(max(2 * np.log(odds), 0) / (1 / narrow**2 - 1 / wide**2))))


def two_normals(
    x: np.ndarray, narrow: float, wide: float, fraction: float, *, n_steps: int
) -> tuple[float, float, float]:
    """Fit a narrow and a wide normal about 0 by EM: their standard deviations, and the fraction of the wide one.

    Parameters
    ----------
    x
        (genes,) absolute values.
    narrow, wide, fraction
        Where EM begins.
    """
    for _ in range(n_steps):
        ratio = np.exp(np.clip(0.5 * x**2 * (1 / narrow**2 - 1 / wide**2), 0, 700))
        from_wide = 1 / (1 + (1 - fraction) * wide / (fraction * narrow * ratio))
        fraction = float(np.clip(from_wide.mean(), 1e-6, 1 - 1e-6))
        narrow = max(float(np.sqrt(np.average(x**2, weights=1 - from_wide + 1e-12))), 1e-3)
        wide = max(float(np.sqrt(np.average(x**2, weights=from_wide + 1e-12))), 2 * narrow)
    return narrow, wide, fraction


def expected_fdr(error: np.ndarray) -> np.ndarray:
    """Compute the expected fraction of false discoveries if a gene and all more probable ones are called, (genes,).

    Parameters
    ----------
    error
        (genes,) posterior probability that calling the gene is wrong, 1 - proba_de. Ties are called together.
    """
    order = np.argsort(error, kind="stable")
    ranked = error[order]
    running = np.cumsum(ranked) / np.arange(1, len(error) + 1)
    last = np.searchsorted(ranked, ranked, side="right") - 1
    result = np.empty(len(error))
    result[order] = running[last]
    return result


# ------------------------------------------------------------------------------------------------------------- tables


def describe_samples(lfc: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns that summarise (samples, genes) posterior samples of the log fold change."""
    return {
        "lfc_mean": lfc.mean(0),
        "lfc_median": np.median(lfc, axis=0),
        "lfc_std": lfc.std(0),
        "lfc_min": lfc.min(0),
        "lfc_max": lfc.max(0),
    }


def change(lfc: np.ndarray, delta: float | None) -> dict[str, np.ndarray]:
    """Return columns `proba_de`, `proba_not_de`, `bayes_factor`, `delta` from (samples, genes) log fold changes.

    `bayes_factor` is the log odds of `proba_de`. The probabilities use mean and standard deviation of the samples, not
    the fraction above delta, which would be 1 for all genes with strong evidence.
    """
    mean, sd = lfc.mean(0), np.maximum(lfc.std(0), 1e-3)
    prior = fit_prior(mean, sd)
    delta = fit_delta(mean) if delta is None else delta
    proba, error = probability_of_change(mean, sd, delta, prior)
    proba = np.where(sure := error < 0.5, 1 - error, proba)
    return {
        "proba_de": proba,
        "proba_not_de": np.where(sure, error, 1 - proba),
        "bayes_factor": np.log(np.maximum(proba, 1e-300)) - np.log(np.maximum(error, 1e-300)),
        "delta": np.full(len(proba), delta),
    }


def vanilla(lfc: np.ndarray) -> dict[str, np.ndarray]:
    """Return columns `proba_m1` = P(h_1 > h_2), `proba_m2` = P(h_1 <= h_2), and their log ratio `bayes_factor`."""
    z = lfc.mean(0) / np.maximum(lfc.std(0), 1e-3)
    return {"proba_m1": ndtr(z), "proba_m2": ndtr(-z), "bayes_factor": log_ndtr(z) - log_ndtr(-z)}


def compare(group1: Group, group2: Group, genes: pd.Index, options: Options, rng: np.random.Generator) -> pd.DataFrame:
    """Compare two groups: one row per gene, sorted by evidence; columns as in `SCCVAE.differential_expression`."""
    samples1, samples2, scale1, scale2 = with_counts(group1, group2, rng)
    eps = pseudocount(group1, group2) if options.pseudocount is None else options.pseudocount
    lfc = log_fold_changes(samples1, samples2, eps)
    columns = change(lfc, options.delta) if options.mode == "change" else vanilla(lfc)
    columns |= describe_samples(lfc) | {"scale1": scale1, "scale2": scale2}
    for name, field in (("raw_mean", "raw"), ("non_zeros_proportion", "detected")):
        for number, group in enumerate((group1, group2), 1):
            columns[f"{name}{number}"] = getattr(group, field) / group.n_cells
    if options.mode == "change":
        columns |= {"pseudocounts": np.full(len(genes), eps), "delta": columns.pop("delta")}
        order = np.lexsort((-np.abs(columns["lfc_mean"]), -columns["bayes_factor"]))
        error = np.exp(-np.logaddexp(0, columns["bayes_factor"]))
        columns[f"is_de_fdr_{options.fdr_target}"] = expected_fdr(error) <= options.fdr_target
    else:
        order = np.argsort(-columns["bayes_factor"], kind="stable")
    return pd.DataFrame(columns, index=genes).iloc[order]


def tables(groups: list[Group], design: Design, genes: pd.Index, options: Options, *, seed: int) -> pd.DataFrame:
    """Return all comparisons of a design in one table; named groups add columns comparison, group1 and group2."""
    whole = Group.union(groups) if any(second is None for _, second in design.pairs) else None
    parts, others = [], all_others(design.names)
    for first, second in design.pairs:
        other = groups[second] if second is not None else whole.without(groups[first])  # type: ignore[union-attr]
        rng = np.random.default_rng([seed, first, len(groups) if second is None else second])
        part = compare(groups[first], other, genes, options, rng)
        if design.names:
            name1, name2 = design.names[first], others if second is None else design.names[second]
            part = part.assign(comparison=f"{name1} vs {name2}", group1=name1, group2=name2)
        parts.append(part)
    return pd.concat(parts)
