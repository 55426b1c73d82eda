"""Groups of cells to compare: options, designs, and what is summed over the cells of a group."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from sccvae.validation.arguments import finite, unless_none
from sccvae.validation.cells import numbers_of_cells
from sccvae.validation.names import distinct_texts, known_as

Mode = Literal["change", "vanilla"]


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
