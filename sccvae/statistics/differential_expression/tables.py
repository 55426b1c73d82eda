"""Tables of genes: one row for each gene and comparison."""

import numpy as np
import pandas as pd
from scipy.special import expit, log_ndtr, ndtr

from sccvae.statistics.differential_expression import probability
from sccvae.statistics.differential_expression.expression import log_fold_changes, pseudocount, with_counts
from sccvae.statistics.differential_expression.groups import Design, Group, Options, all_others


def describe_samples(lfc: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns that summarise (samples, genes) posterior samples of the log fold change."""
    return {
        "lfc_mean": lfc.mean(0),
        "lfc_median": np.median(lfc, axis=0),
        "lfc_std": lfc.std(0),
        "lfc_min": lfc.min(0),
        "lfc_max": lfc.max(0),
    }


def change(
    lfc: np.ndarray, delta: float | None, decoded: np.ndarray | None = None, abundance: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return columns `proba_de`, `proba_not_de`, `bayes_factor`, `delta` from samples of the log fold change.

    `bayes_factor` is the log odds of `proba_de`. The probabilities use mean and standard deviation of the samples, not
    the fraction above delta, which would be 1 for all genes with strong evidence.

    Parameters
    ----------
    lfc
        (samples, genes), given the counts.
    delta
        Threshold; None fits it.
    decoded, abundance
        (samples, genes), of the decoder alone, and (genes,) numbers of counts, to order the genes by both. None leaves
        the decoder out.
    """
    mean = lfc.mean(0)
    delta = probability.fit_delta(mean) if delta is None else delta
    odds = _odds(mean, lfc.std(0), delta)
    if decoded is not None and abundance is not None:
        mean, sd = decoded.mean(0), decoded.std(0)
        error = probability.widths(mean - np.median(mean), abundance)
        odds = probability.pooled(odds, _odds(mean, np.maximum(error, sd), delta))
    return {
        "proba_de": expit(odds),
        "proba_not_de": expit(-odds),
        "bayes_factor": odds,
        "delta": np.full(len(odds), delta),
    }


def _odds(mean: np.ndarray, sd: np.ndarray, delta: float) -> np.ndarray:
    """Return log odds of a change beyond delta, for estimates with normal errors, (genes,) each."""
    sd = np.maximum(sd, 1e-3)
    return probability.log_odds(*probability.probability_of_change(mean, sd, delta, probability.fit_prior(mean, sd)))


def vanilla(lfc: np.ndarray) -> dict[str, np.ndarray]:
    """Return columns `proba_m1` = P(h_1 > h_2), `proba_m2` = P(h_1 <= h_2), and their log ratio `bayes_factor`."""
    z = lfc.mean(0) / np.maximum(lfc.std(0), 1e-3)
    return {"proba_m1": ndtr(z), "proba_m2": ndtr(-z), "bayes_factor": log_ndtr(z) - log_ndtr(-z)}


def compare(group1: Group, group2: Group, genes: pd.Index, options: Options, rng: np.random.Generator) -> pd.DataFrame:
    """Compare two groups: one row per gene, sorted by evidence; columns as in `SCCVAE.differential_expression`."""
    samples1, samples2, scale1, scale2 = with_counts(group1, group2, rng)
    eps = pseudocount(group1, group2) if options.pseudocount is None else options.pseudocount
    lfc = log_fold_changes(samples1, samples2, eps)
    if options.mode == "change":
        decoded = log_fold_changes(group1.samples, group2.samples, eps)
        columns = change(lfc, options.delta, decoded, group1.raw + group2.raw)
    else:
        columns = vanilla(lfc)
    columns |= describe_samples(lfc) | {"scale1": scale1, "scale2": scale2}
    for name, field in (("raw_mean", "raw"), ("non_zeros_proportion", "detected")):
        for number, group in enumerate((group1, group2), 1):
            columns[f"{name}{number}"] = getattr(group, field) / group.n_cells
    if options.mode == "change":
        columns |= {"pseudocounts": np.full(len(genes), eps), "delta": columns.pop("delta")}
        order = np.lexsort((-np.abs(columns["lfc_mean"]), -columns["bayes_factor"]))
        found = probability.expected_fdr(columns["proba_not_de"])
        columns[f"is_de_fdr_{options.fdr_target}"] = found <= options.fdr_target
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
