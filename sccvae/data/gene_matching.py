"""Matching of the genes of new data to the genes of a model: by name, Ensembl identifier, or name without letter case.

Names are compared as text. Genes of other species (orthologs) and former names of genes do not match.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sccvae.data.columns import one_column
from sccvae.validation.arguments import finite
from sccvae.validation.wording import listed_names, shortened

_ENSEMBL = r"^(ENS[A-Z]*G\d{11})(?:\.\d+)?$"  # the group is the identifier without version


class _Way(NamedTuple):
    """Way of comparing names."""

    by: str
    one: str  # the same in the singular, for sentences
    key: Callable[[pd.Series], pd.Series]  # genes match if their keys are equal


def _without_version(names: pd.Series) -> pd.Series:
    return names.str.strip().str.replace(_ENSEMBL, r"\1", regex=True)


_NAMES = _Way("names", "name", lambda names: names)
_WITHOUT_VERSION = _Way("Ensembl identifiers without version", "Ensembl identifier without version", _without_version)
_WITHOUT_CASE = _Way(
    "names without letter case", "name without letter case", lambda names: names.str.strip().str.casefold()
)
_SINGULAR = {way.by: way.one for way in (_NAMES, _WITHOUT_VERSION, _WITHOUT_CASE)}


@dataclass(frozen=True, eq=False)
class Matched:
    """Genes of a model, found among the genes of new data.

    Attributes
    ----------
    at
        Column of each gene of the model in the new data, (genes of the model,) int64; -1 if the gene is missing.
    by
        What was compared, such as "names" or "Ensembl identifiers without version".
    missing
        Names of the missing genes.
    unused
        Number of genes of the new data that the model does not have.
    """

    at: np.ndarray
    by: str
    missing: tuple[str, ...]
    unused: int

    @property
    def share(self) -> float:
        """Fraction of the genes of the model that were found."""
        return (len(self.at) - len(self.missing)) / len(self.at)

    def describe(self) -> str:
        """Return one or two sentences for users: genes found, genes missing, genes not used."""
        n, n_missing = len(self.at), len(self.missing)
        if n_missing == 0:
            found = "The gene" if n == 1 else f"All {n:,} genes"
        else:
            found = f"{n - n_missing:,} of {n:,} genes"
        text = f"{found} of the model {'was' if n == 1 else 'were'} found by {_SINGULAR.get(self.by, self.by)}"
        if n_missing:
            such, are = "such as " if n_missing > 3 else "", "is" if n_missing == 1 else "are"
            text += f"; {n_missing:,} {are} missing, {such}{_and(self.missing[:3])}, and {are} left out"
        if self.unused:
            further = f"{self.unused:,} genes" if self.unused > 1 else "1 gene"
            text += f". {further} of the data {'are' if self.unused > 1 else 'is'} not in the model and not used"
        return f"{text}."


def match(var: pd.DataFrame, known: Sequence[str], *, gene_key: str | None = None, least: float = 0.5) -> Matched:
    """Find the genes of a model among the genes of new data.

    Three ways are tried: exact names; Ensembl identifiers without version, if the model has some; names without letter
    case. The last two ignore spaces around names. The first way that finds the most genes is used. Ways are compared by
    the number of genes with exactly one match, and then by the number of genes with any match.

    Parameters
    ----------
    var
        Table of the genes of the new data, whose index has their names.
    known
        Names of the genes of the model, in its order.
    gene_key
        Column of `var` with identifiers, in place of the index. Genes without a value match nothing.
    least
        Smallest fraction of the genes of the model that has to be found.

    Raises
    ------
    KeyError
        `var` has no column `gene_key`.
    ValueError
        Too few genes are found, or a gene matches two genes by the way that is used.
    """
    least = finite("least", least, "a fraction of the genes of the model, in [0, 1]", least=0, most=1)
    identifiers = _texts(var.index if gene_key is None else one_column(var, gene_key, "var"))
    best = _best(identifiers, _texts(known))
    if best.n_found == 0 or best.n_found < _smallest(least, len(known)):
        raise ValueError(_too_few(best, var, gene_key, least))
    _check_ambiguous(best, var, gene_key)
    return Matched(best.at, best.way.by, tuple(best.known[best.at < 0]), int(np.count_nonzero(best.of_new < 0)))


# --------------------------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True, eq=False)
class _Compared:
    """Matches of all genes by one way. A key is a text that stands for a gene in a comparison."""

    way: _Way
    new: pd.Series  # identifiers, (new genes,)
    known: pd.Series  # identifiers, (genes of the model,)
    of_new: np.ndarray  # number of the key of each new gene among those of the model, or -1
    of_known: np.ndarray  # number of the key of each gene of the model

    @classmethod
    def by(cls, way: _Way, new: pd.Series, known: pd.Series) -> "_Compared":
        """Compare names by one way."""
        of_known, keys = pd.factorize(way.key(known))
        of_new = pd.Index(keys, dtype=object).get_indexer(pd.Index(way.key(new), dtype=object))
        return cls(way, new, known, np.where(new == "", -1, of_new), of_known)

    @property
    def at(self) -> np.ndarray:
        """First column that matches each gene of the model, or -1."""
        first = np.full(len(self.of_known), -1, dtype=np.int64)  # of each key
        columns = np.flatnonzero(self.of_new >= 0)[::-1]
        first[self.of_new[columns]] = columns
        return first[self.of_known]

    @property
    def n_columns(self) -> np.ndarray:
        """Number of columns that match each gene of the model."""
        return np.bincount(self.of_new[self.of_new >= 0], minlength=len(self.of_known))[self.of_known]

    @property
    def n_equal(self) -> np.ndarray:
        """Number of genes of the model with the key of each."""
        return np.bincount(self.of_known)[self.of_known]

    @property
    def n_found(self) -> int:
        """Number of genes of the model with a match."""
        return int(np.count_nonzero(self.n_columns))

    @property
    def n_clear(self) -> int:
        """Number of genes of the model with one match, which no other gene of the model has."""
        return int(np.count_nonzero((self.n_columns == 1) & (self.n_equal == 1)))


def _best(new: pd.Series, known: pd.Series) -> _Compared:
    """Return the first comparison that finds the most genes."""
    best = _Compared.by(_NAMES, new, known)
    if best.n_clear == len(known):
        return best
    ensembl = known.str.strip().str.match(_ENSEMBL).any()
    for way in (_WITHOUT_VERSION, _WITHOUT_CASE) if ensembl else (_WITHOUT_CASE,):
        found = _Compared.by(way, new, known)
        if (found.n_clear, found.n_found) > (best.n_clear, best.n_found):
            best = found
    return best


def _texts(values: Any) -> pd.Series:
    """Return identifiers as text, "" for genes without one."""
    values = np.asarray(values, dtype=object)
    # Whole numbers in a column with NaN are floats: 7157.0 is the identifier 7157.
    whole = [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in values]
    texts = pd.Series(whole, dtype=object)
    return texts.mask(pd.isna(values) | (texts.str.strip() == ""), "")


# --------------------------------------------------------------------------------------------------------------- errors


def _smallest(least: float, n: int) -> int:
    """Return the smallest number of genes that is the fraction `least` of n."""
    return math.ceil(round(least * n, 6))  # 0.1 * 30 is above 3


def _where(gene_key: str | None) -> str:
    return "adata.var_names" if gene_key is None else f"adata.var[{gene_key!r}]"


def _too_few(best: _Compared, var: pd.DataFrame, gene_key: str | None, least: float) -> str:
    """Return the error message for too few genes: names of both sides, and a column with more genes."""
    where, n = _where(gene_key), len(best.known)
    others = best.new[(best.of_new < 0) & (best.new != "")].unique()
    advice = _advice(best, var, gene_key)
    if best.n_found == 0:
        return (
            f"{where} and the model have no gene in common: {where} has {listed_names(others) or 'no names'}, the "
            f"model {listed_names(best.known)}; expected the same identifiers: {advice}."
        )
    but = f", but {listed_names(others)}" if len(others) else ""
    return (
        f"{where} has {best.n_found:,} of {n:,} genes of the model (not {listed_names(best.known[best.at < 0])}{but}); "
        f"expected at least {_smallest(least, n):,} (least_genes={least:g}): {advice}."
    )


def _advice(best: _Compared, var: pd.DataFrame, gene_key: str | None) -> str:
    """Return advice: the index or the column of `var` with most genes of the model, if it has more than were found."""
    names = [name for name in var.columns[~var.columns.duplicated(keep=False)] if isinstance(name, str)]
    columns = {name: var[name] for name in names if var[name].dtype != bool}
    found, key = best.n_found, gene_key
    for name, values in ({None: var.index} | columns).items():
        n = found if name == gene_key else _best(_texts(values), best.known).n_clear
        if n > found:
            found, key = n, name
    if found > best.n_found:
        which = "since adata.var_names has" if key is None else "the column of adata.var that has"
        return f"pass gene_key={key!r}, {which} {found:,}"
    smaller = ", or a smaller least_genes=" if best.n_found else ""
    return f"pass in gene_key= the name of a column of adata.var with identifiers as in the model{smaller}"


def _check_ambiguous(found: _Compared, var: pd.DataFrame, gene_key: str | None) -> None:
    """Raise if a gene of the new data matches several genes of the model, or the reverse."""
    where, by = _where(gene_key), f"by {found.way.one}; expected one"
    equal = np.flatnonzero((found.n_equal > 1) & (found.n_columns > 0))
    if len(equal):
        same, column = found.known[found.of_known == found.of_known[equal[0]]], found.at[equal[0]]
        raise ValueError(
            f"{found.new[column]!r} in {where} matches {len(same)} genes of the model, {listed_names(same)}, {by}. "
            f"Write such names as in the model.{_in_all(len(equal))}"
        )
    several = np.flatnonzero(found.n_columns > 1)
    if len(several):
        columns = np.flatnonzero(found.of_new == found.of_known[several[0]])
        if gene_key is None:
            those = [f"{found.new[i]!r} (column {i})" for i in columns]
            fix = "Rename or remove all but one."
        else:
            those = [f"{found.new[i]!r} (gene {str(var.index[i])!r})" for i in columns]
            fix = "Set all but one to None, or remove those genes."
        shown = ", ".join(those[:3]) + (f" and {len(those) - 3} more" if len(those) > 3 else "")
        raise ValueError(
            f"{shown} in {where} match the same gene of the model, {found.known[several[0]]!r}, {by}. {fix}"
            f"{_in_all(len(several))}"
        )


def _in_all(n: int) -> str:
    return f" There are {n:,} such genes of the model." if n > 1 else ""


def _and(names: Sequence[str]) -> str:
    """Return the names as text, such as "A, B and C"."""
    shown = [shortened(name) for name in names]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
