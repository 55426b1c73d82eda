"""Tables of comparisons between groups of samples, for one or several kinds of cells."""

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit
from scipy.stats import false_discovery_control

from sccvae.statistics.differential_expression.groups import Design as Groups
from sccvae.statistics.differential_expression.groups import all_others
from sccvae.statistics.differential_expression.probability import expected_fdr
from sccvae.statistics.samples.comparison import Result, Sums, compare
from sccvae.statistics.samples.design import FEW, LEAST_CELLS, Design, design_of
from sccvae.validation.wording import warn

TOLERANCE = 1.5  # the expected rate of the mixture is the less exact one
Adjust = Literal["within", "all"]


class Units(NamedTuple):
    """Sums over the cells of the same kind, sample and group.

    Attributes
    ----------
    kind, sample, group
        (units,) numbers; group -1 stands for cells that no group holds.
    n_cells
        (units,) cells.
    observed, expected, detected
        (units, genes) counts; the model's expectation of them, 0 where the group is -1; cells with a nonzero count.
    """

    kind: np.ndarray
    sample: np.ndarray
    group: np.ndarray
    n_cells: np.ndarray
    observed: np.ndarray
    expected: np.ndarray
    detected: np.ndarray


class Rows(NamedTuple):
    """Rows of a comparison: a sample in a group each, with sums over its cells; see `Units`."""

    sample: np.ndarray
    arm: np.ndarray  # 1 or 2
    n_cells: np.ndarray
    detected: np.ndarray
    sums: Sums


class Study(NamedTuple):
    """All that comparisons over samples are made of.

    Attributes
    ----------
    units
        Sums of the data.
    groups
        Groups of cells, and the pairs of them to compare.
    kinds
        Names of the kinds of cells; None if all cells are one kind.
    covariates
        A row for each sample; None without covariates.
    """

    units: Units
    groups: Groups
    kinds: tuple[str, ...] | None
    covariates: pd.DataFrame | None


def arms_of(units: Units, groups: Groups, pair: tuple[int, int | None]) -> np.ndarray:
    """Return the arm of each unit, (units,): 1 or 2, or 0 if the pair of groups does not hold its cells."""
    first, second = pair
    rest = (units.group >= 0) & (units.group != first) if second is None else units.group == second
    return np.where(units.group == first, 1, np.where(rest, 2, 0))


def rows_of(study: Study, kind: int, pair: tuple[int, int | None]) -> Rows:
    """Sum units of one kind over the samples of both arms, without rows of fewer than `LEAST_CELLS` cells."""
    units = study.units
    arm = arms_of(units, study.groups, pair)
    own = (units.kind == kind) & (arm > 0)
    key = units.sample * 3 + arm
    keys, at = np.unique(key[own], return_inverse=True)

    def total(values: np.ndarray) -> np.ndarray:
        result = np.zeros((len(keys), *values.shape[1:]))
        np.add.at(result, at, values[own])
        return result

    n_cells = total(units.n_cells)
    kept = n_cells >= LEAST_CELLS
    sample, side = keys // 3, keys % 3
    sums = Sums(
        total(units.observed)[kept],
        total(units.expected)[kept],
        _others(units, arm, own, sample[kept], side[kept]),
    )
    return Rows(sample[kept], side[kept], n_cells[kept], total(units.detected)[kept], sums)


def _others(units: Units, arm: np.ndarray, own: np.ndarray, sample: np.ndarray, side: np.ndarray) -> np.ndarray | None:
    """Sum the counts of the other cells of each row, (rows, genes); None if a row has none whose arm is known.

    The arm of cells outside the groups is known if their sample lies in one arm.
    """
    result = np.zeros((len(sample), units.observed.shape[1]))
    for row, (number, at) in enumerate(zip(sample, side, strict=True)):
        of_sample = (units.sample == number) & ~own
        in_both = (units.sample == number) & (arm == 3 - at)
        taken = of_sample & ((arm == at) if in_both.any() else (arm != 3 - at))
        if units.n_cells[taken].sum() < LEAST_CELLS:
            return None
        result[row] = units.observed[taken].sum(0)
    return result


class Compared(NamedTuple):
    """A comparison of one pair of groups in one kind of cells."""

    pair: tuple[int, int | None]
    kind: int
    rows: Rows
    design: Design
    result: Result


def _compared(study: Study, pair: tuple[int, int | None], kind: int, seed: int) -> Compared:
    rows = rows_of(study, kind, pair)
    covariates = None if study.covariates is None else study.covariates.iloc[rows.sample].reset_index(drop=True)
    design = design_of(rows.sample, rows.arm, covariates)
    return Compared(pair, kind, rows, design, compare(rows.sums, design, seed=seed))


def _all_compared(study: Study, seed: int) -> list[Compared]:
    """Make all comparisons; with kinds, those without enough samples are left out with a warning."""
    done, left_out = [], []
    for pair in study.groups.pairs:
        for kind in range(len(study.kinds or ("",))):
            try:
                done.append(_compared(study, pair, kind, seed))
            except ValueError as error:
                if study.kinds is None:
                    raise
                left_out.append((study.kinds[kind], error))
    if left_out:
        names = ", ".join(dict.fromkeys(repr(name) for name, _ in left_out))
        text = f"by: {names} cannot be tested, for example since {left_out[0][1]}"
        if not done:
            raise ValueError(f"{text} No kind of cells is left; expected at least one with enough samples.")
        warn(f"{text} They are left out of the table.")
    return done


def _warn_of_few(done: list[Compared]) -> None:
    """Warn if a group has two or three samples, and state which fold changes can be detected."""
    few = [one for one in done if min(one.design.n_samples) <= FEW and one.result.tested.any()]
    if not few:
        return
    one = min(few, key=lambda compared: min(compared.design.n_samples))
    error = float(np.nanmedian(one.result.lfc_se[one.result.tested]))
    least = stdtrit(max(one.design.degrees, 1) + 4.0, 1 - 0.0005) * error
    first, second = one.design.n_samples
    warn(
        f"sample_key: the groups have {first} and {second} samples; expected four or more. For half of the genes, "
        f"p < 0.001 needs a log2 fold change of about {least:.1f} or more; smaller changes are mostly missed. Add "
        "samples to detect them."
    )


def adjusted(pval: np.ndarray, error: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Adjust p-values for the false discovery rate, (tests,): 1 for genes that were not tested.

    The values of Benjamini & Hochberg 1995, but at least the expected false discovery rate of the mixture divided by
    `TOLERANCE`. p-values hold if no gene has an effect in any cells; the mixture allows for effects in other cells.
    """
    result = np.ones(len(pval))
    if tested.any():
        result[tested] = np.maximum(false_discovery_control(pval[tested]), expected_fdr(error[tested]) / TOLERANCE)
    return np.minimum(result, 1.0)


def table(study: Study, genes: pd.Index, *, by: str, adjust: Adjust, fdr_target: float, seed: int) -> pd.DataFrame:
    """Return all comparisons in one table, columns as in `SCCVAE.differential_expression`.

    Parameters
    ----------
    by
        Name of the column with the kind of cells.
    adjust
        `within`: adjust the p-values of each comparison and kind by themselves. `all`: all together.
    """
    done = _all_compared(study, seed)
    _warn_of_few(done)
    tests = [(one.result.pval, one.result.error, one.result.tested) for one in done]
    if adjust == "all":
        together = adjusted(*(np.concatenate(parts) for parts in zip(*tests, strict=True)))
        padj = np.split(together, len(done))
    else:
        padj = [adjusted(*test) for test in tests]
    parts = []
    for one, values in zip(done, padj, strict=True):
        part = _part(one, values, genes, fdr_target)
        if study.kinds is not None:
            part.insert(0, by, study.kinds[one.kind])
        if study.groups.names:
            first, second = one.pair
            names = study.groups.names
            name1, name2 = names[first], all_others(names) if second is None else names[second]
            part = part.assign(comparison=f"{name1} vs {name2}", group1=name1, group2=name2)
        parts.append(part)
    return pd.concat(parts)


def _part(one: Compared, padj: np.ndarray, genes: pd.Index, fdr_target: float) -> pd.DataFrame:
    """Return the table of one comparison, sorted by p-value."""
    result, rows = one.result, one.rows
    columns = {
        "pval": result.pval,
        "padj": padj,
        "lfc_mean": result.lfc,
        "lfc_se": result.lfc_se,
        "lfc_low": result.low,
        "lfc_high": result.high,
        f"is_de_fdr_{fdr_target}": result.tested & (padj <= fdr_target),
    }
    for number in (1, 2):
        of_arm = rows.arm == number
        cells, expected = rows.n_cells[of_arm].sum(), rows.sums.expected[of_arm].sum(0)
        columns[f"n_samples{number}"] = np.full(len(genes), one.design.n_samples[number - 1])
        columns[f"scale{number}"] = expected / max(expected.sum(), 1e-12)
        columns[f"raw_mean{number}"] = rows.sums.observed[of_arm].sum(0) / cells
        columns[f"non_zeros_proportion{number}"] = rows.detected[of_arm].sum(0) / cells
    order = np.lexsort((-np.abs(result.lfc), result.pval))
    return pd.DataFrame(columns, index=genes).iloc[order]
