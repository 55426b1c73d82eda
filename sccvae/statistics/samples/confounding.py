"""Which of batch, condition and label can be told apart, from the numbers of cells alone."""

import numpy as np
import pandas as pd

from sccvae.validation.wording import listed_names

SHARED = 0.05  # batches that hold less than this fraction of each group do not connect the groups


def apart(counts: np.ndarray) -> list[tuple[int, int]]:
    """Return the pairs of groups that no batch connects, from (batches, groups) numbers of cells.

    Groups are connected if they share a batch, or if both are connected with a third group: then the effect of each
    batch can be estimated. A batch connects groups of which it holds at least 5 % of the cells.
    """
    held = counts >= np.maximum(SHARED * counts.sum(0), 1)
    group = np.arange(counts.shape[1])
    for row in held:
        joined = np.flatnonzero(row)
        if len(joined) > 1:
            group[np.isin(group, group[joined])] = group[joined].min()
    filled = counts.sum(0) > 0
    return [
        (i, j)
        for i in range(len(group))
        for j in range(i + 1, len(group))
        if filled[i] and filled[j] and group[i] != group[j]
    ]


def sentence_of_groups(names: tuple[str, str], counts: np.ndarray, batches: list[str], what: str) -> str | None:
    """Return a warning if two groups of cells share no batch, (batches, 2) numbers of cells; else None."""
    if not apart(counts):
        return None
    where = [listed_names([b for b, n in zip(batches, column, strict=True) if n > 0]) for column in counts.T]
    return (
        f"{what}: {names[0]} and {names[1]} share no batch ({names[0]} lies in {where[0]}; {names[1]} in {where[1]}), "
        "and the correction for batches can remove the difference between them. Compare the samples of each group with "
        "differential_expression(sample_key=...), or fit a model whose batch_key is not nested in the groups."
    )


def sentence_of_labels(labels: pd.Categorical, batches: pd.Series, what: str) -> str | None:
    """Return a warning if two of the labels of cells share no batch; else None."""
    counts = pd.crosstab(batches.to_numpy(), labels)
    pairs = apart(counts.to_numpy())
    if not pairs:
        return None
    pair = counts.iloc[:, list(pairs[0])]
    first, second = map(str, pair.columns)
    return sentence_of_groups((first, second), pair.to_numpy(), [str(name) for name in pair.index], what)


def sentences(table: pd.DataFrame, batch: str, condition: str | None, label: str | None) -> list[str]:
    """Return a sentence for each pair of batch, condition and label that the cells do not tell apart.

    Parameters
    ----------
    table
        A row for each combination that has cells: columns with these names, and `cells`, their number.
    batch, condition, label
        Names of the columns; None where there is none.
    """
    found = []
    if condition is not None:
        found += _of_conditions(_pivot(table, batch, condition), batch, condition)
    if label is not None:
        found += _of_labels(_pivot(table, batch, label), batch, label)
    if condition is not None and label is not None:
        by = _pivot(table, condition, label)
        alone = [str(name) for name in by.columns[(by > 0).sum(0) == 1]]
        if alone and len(by) > 1:
            found.append(
                f"Cells with {label!r} {listed_names(alone)} occur in one value of {condition!r} only: differences "
                "between conditions cannot be estimated for them."
            )
    return found


def _of_conditions(by: pd.DataFrame, batch: str, condition: str) -> list[str]:
    if by.shape[1] < 2:
        return [f"{condition!r} has one value, {str(by.columns[0])!r}: there is nothing to compare."]
    pairs = apart(by.to_numpy())
    if not pairs:
        return []
    if len(by) == by.shape[1]:
        return [
            f"Each value of {condition!r} is one batch of {batch!r}: no method tells the effect of the condition from "
            "that of the batch. Several batches of each condition are needed."
        ]
    first, second = pairs[0]
    return [
        f"Batches of {batch!r} lie within values of {condition!r}: no batch holds both {str(by.columns[first])!r} and "
        f"{str(by.columns[second])!r}. The correction for batches also removes the effect of the condition. Compare "
        f"conditions with differential_expression(sample_key={batch!r})."
    ]


def _of_labels(by: pd.DataFrame, batch: str, label: str) -> list[str]:
    alone = by.columns[(by > 0).sum(0) == 1]
    if len(by) < 2 or not len(alone):
        return []
    where = {str(by.index[by[name] > 0][0]) for name in alone}
    return [
        f"Cells with {label!r} {listed_names(map(str, alone))} lie in one batch only ({listed_names(sorted(where))}): "
        "the correction for batches may draw them to other types. Look at diagnose() after the fit."
    ]


def _pivot(table: pd.DataFrame, rows: str, columns: str) -> pd.DataFrame:
    return table.groupby([rows, columns], observed=True)["cells"].sum().unstack(fill_value=0)
