"""Diagnostics of a trained model: does it fit, did it train long enough, what does it leave unexplained.

Arrays in, tables and sentences out; no model is known here. Each check is a number, what is expected of it, and a
sentence. `predictive_checks` holds the counts against what the model would draw for the same cells.
"""

from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np
import pandas as pd

from sccvae.validation.wording import shortened

ACTIVE = 0.01  # variance of posterior means above which a latent unit is active (Burda et al. 2016, section 5.2)
UNEXPLAINED = 4.0  # robust standard deviations

# What is expected of each check: (lowest, highest) of the numbers that raise no concern.
EXPECTED: dict[str, tuple[float, float]] = {
    "active_units": (2, np.inf),
    "kl_per_cell": (0.5, np.inf),
    "late_gain": (-np.inf, 0.003),
    "held_out_gap": (-np.inf, 0.15),
    "zeros_inside": (0.9, 1),
    "variance_ratio": (0.8, 1.3),
    "coverage_90": (0.87, 0.97),
    "batches_apart": (0, 0),
    "unexplained_cells": (0, 0.01),
}
APART = 0.3  # mixing below which a batch is named


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """What `SCCVAE.diagnose` found; `pl.diagnostics` draws it.

    Attributes
    ----------
    table
        A row per check that applies: ``value``, ``expected`` (in words), ``ok``, ``sentence``.
    units
        A row per latent unit: ``variance`` of the posterior means, ``kl`` (nats per cell), ``active``.
    genes
        A row per gene, counts only: ``mean``, ``variance``, ``zeros`` (share of cells) of the data; the same of the
        model as ``model_mean``, ``model_variance``, ``model_zeros``; ``zeros_low``, ``zeros_high``, its 95 % interval.
    ranks
        (20,) share of counts in each twentieth of their predictive distributions, about 0.05 each where they are
        calibrated; None where the likelihood is not of counts.
    batches
        A row per batch: ``cells``, ``own`` (mean share of its own among its cells' neighbours), ``random`` (the same if
        cells were mixed at random), ``mixing`` (1 as random, 0 none).
    cells
        A row per cell: ``log_size``, ``log_likelihood`` (nats), ``deviation`` (in robust standard deviations from cells
        of its library size, positive where it is explained worse), ``unexplained``.
    history
        ELBO per epoch and split, as of the model.
    """

    table: pd.DataFrame
    units: pd.DataFrame
    genes: pd.DataFrame | None
    ranks: np.ndarray | None
    batches: pd.DataFrame | None
    cells: pd.DataFrame
    history: pd.DataFrame

    @property
    def sentences(self) -> list[str]:
        """What was found, a sentence per check."""
        return self.table["sentence"].tolist()

    @property
    def warnings(self) -> list[str]:
        """The sentences of the checks that are not as expected."""
        return self.table.loc[~self.table["ok"], "sentence"].tolist()

    @property
    def ok(self) -> bool:
        """Whether all checks are as expected."""
        return bool(self.table["ok"].all())

    def __str__(self) -> str:
        shown = self.table.assign(value=self.table["value"].map(_number), ok=np.where(self.table["ok"], "ok", "LOOK"))
        return f"{shown[['value', 'expected', 'ok']].to_string()}\n\n" + "\n".join(f"- {s}" for s in self.sentences)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{'✓' if row.ok else '✗'}</td><th>{escape(str(row.Index))}</th><td>{_number(row.value)}</td>"
            f"<td>{escape(row.expected)}</td><td style='text-align:left'>{escape(row.sentence)}</td></tr>"
            for row in self.table.itertuples()
        )
        head = "".join(f"<th>{name}</th>" for name in ("", "check", "value", "expected", "in words"))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"


class Check(NamedTuple):
    """One row of the table."""

    name: str
    value: float
    sentence: str

    @property
    def ok(self) -> bool:
        """Whether the value is as expected."""
        low, high = EXPECTED[self.name]
        return bool(low <= self.value <= high)

    @property
    def expected(self) -> str:
        """The expectation in words."""
        low, high = EXPECTED[self.name]
        if low == high:
            return f"{low:g}"
        if np.isinf(high):
            return f"at least {low:g}"
        return f"at most {high:g}" if np.isinf(low) or low == 0 else f"{low:g} to {high:g}"


def table_of(checks: list[Check]) -> pd.DataFrame:
    """A row per check."""
    rows = [(float(check.value), check.expected, check.ok, check.sentence) for check in checks]
    index = pd.Index([check.name for check in checks], name="check")
    return pd.DataFrame(rows, index=index, columns=["value", "expected", "ok", "sentence"])


# ------------------------------------------------------------------------------------------------------- latent units


def latent_units(mean: np.ndarray, variance: np.ndarray) -> pd.DataFrame:
    """A row per latent unit: variance of the posterior means, KL(q || N(0, 1)) in nats per cell, whether it is active.

    Parameters
    ----------
    mean, variance
        Of q(z|x), (cells, n_latent) each.
    """
    mean, variance = np.asarray(mean, dtype=np.float64), np.asarray(variance, dtype=np.float64)
    kl = 0.5 * (mean**2 + variance - 1 - np.log(variance)).mean(0)
    spread = mean.var(0)
    names = pd.RangeIndex(mean.shape[1], name="unit")
    return pd.DataFrame({"variance": spread, "kl": kl, "active": spread > ACTIVE}, index=names)


def check_units(units: pd.DataFrame, kl: float) -> list[Check]:
    """Whether the KL divergence from the prior, in nats per cell, has collapsed."""
    active, total = int(units["active"].sum()), len(units)
    if active == 0 or kl < EXPECTED["kl_per_cell"][0]:
        text = (
            f"The posterior has collapsed: {active} of {total} latent units are active and they hold {kl:.2g} nats per "
            "cell, so the embedding says nothing about the cells. Train with more steps or a longer kl_warmup; where "
            "cells differ by chance alone, this is the right answer."
        )
    elif active < 2:
        text = f"One of {total} latent units is active ({kl:.1f} nats per cell): the embedding is a line."
    else:
        text = f"{active} of {total} latent units are active; together they hold {kl:.1f} nats per cell."
        idle = total - active
        text += f" The {'one' if idle == 1 else idle} left idle cost{'s' if idle == 1 else ''} nothing." if idle else ""
    kl_text = f"The divergence of posterior from prior is {kl:.1f} nats per cell."
    return [Check("active_units", active, text), Check("kl_per_cell", kl, kl_text)]


# ----------------------------------------------------------------------------------------------------------- training


def check_training(history: pd.DataFrame, *, thinned: bool = False) -> list[Check]:
    """Whether training stopped too early, and how much better cells seen in training are explained than others.

    Parameters
    ----------
    history
        A row per epoch and split, with columns ``epoch``, ``split`` and ``elbo`` (nats per cell).
    thinned
        Whether the encoder saw training cells in part: their ELBO then tells nothing of what was learnt by heart.
    """
    curves = {split: rows.set_index("epoch")["elbo"] for split, rows in history.groupby("split", sort=False)}
    judged = curves.get("validation", curves["training"])
    whose = "held-out" if "validation" in curves else "training"
    last, n_epochs = float(judged.iloc[-1]), len(judged)
    # The quarter before the end; in a single epoch, from its mean over the steps to its end.
    before = float(judged.iloc[-1 - max(1, n_epochs // 4)] if n_epochs > 1 else curves["training"].iloc[0])
    gain = (last - before) / max(abs(last), 1e-9)
    stopped = gain > EXPECTED["late_gain"][1]
    span = f"the last {n_epochs // 4} of {n_epochs} epochs" if n_epochs >= 8 else "the last epoch"
    moved = f"{'rose' if gain > 0 else 'fell'} by {abs(gain):.2%} to {last:.1f} nats per cell"
    text = f"Over {span} the {whose} ELBO {moved}: "
    text += (
        "it was still rising, so train longer (train() goes on from here; the default number of epochs makes 1,200 to "
        "5,000 steps)."
        if stopped
        else "training had come to its end."
    )
    checks = [Check("late_gain", gain, text)]
    if "validation" in curves and not thinned:
        best = judged.idxmax()
        gap = float(curves["training"][best] - judged[best])
        share = gap / max(abs(float(judged[best])), 1e-9)
        text = (
            f"In the best epoch, {best}, the ELBO of training cells is {gap:.1f} nats above that of held-out cells "
            f"({share:.1%}): "
            if gap > 0
            else f"In the best epoch, {best}, held-out cells are explained no worse than training cells: "
        )
        too_wide = share > EXPECTED["held_out_gap"][1]
        more = "a higher weight_precision or dropout_rate"
        advice = f"the model learns cells by heart. Take more cells, fewer genes, or {more}."
        checks.append(
            Check("held_out_gap", share, text + (advice if too_wide else "what was learnt holds for others."))
        )
    return checks


# --------------------------------------------------------------------------------------------------- predictive checks


def check_predictive(genes: pd.DataFrame, ranks: np.ndarray) -> list[Check]:
    """Zero fractions, variances and calibration in words."""
    above, below = genes["zeros"] > genes["zeros_high"], genes["zeros"] < genes["zeros_low"]
    inside = 1 - float((above | below).mean())
    text = f"The zero fraction of {inside:.0%} of the genes lies inside the model's 95% interval"
    if inside < EXPECTED["zeros_inside"][0]:
        text += f": {above.sum():,} genes have more zeros than the model expects, {below.sum():,} fewer. "
        text += (
            "Either training was too short, or counts vary more than the likelihood allows: try "
            "gene_likelihood='nb' or 'zinb'."
            if above.sum() > below.sum()
            else "The model underestimates these genes, or spreads their counts too widely: train longer, or compare "
            "with gene_likelihood='nb'."
        )
    checks = [Check("zeros_inside", inside, text.removesuffix(".") + ".")]
    told = genes[(genes["mean"] >= min(0.05, genes["mean"].median())) & (genes["variance"] > 0)]
    if not told.empty:  # else no gene varies
        ratio = float((told["model_variance"] / told["variance"]).median())
        low, high = EXPECTED["variance_ratio"]
        text = f"In the median gene the model's variance over cells is {ratio:.2f} times that of the data"
        text += ": it varies too little, as a Poisson model of overdispersed counts does" if ratio < low else ""
        text += ": it varies too much" if ratio > high else ""
        checks.append(Check("variance_ratio", ratio, text + "."))
    coverage = float(ranks[1:-1].sum())  # without the lowest and the highest twentieth
    low, high = EXPECTED["coverage_90"]
    text = f"90% prediction intervals hold {coverage:.0%} of the counts"
    text += ": they are too narrow" if coverage < low else ": they are too wide" if coverage > high else ""
    return [*checks, Check("coverage_90", coverage, text + ".")]


# ------------------------------------------------------------------------------------------------------------ batches


def batch_mixing(z: np.ndarray, batches: pd.Series, n_neighbors: int = 50) -> pd.DataFrame:
    """A row per batch: how much of it lies among cells of others, beside random mixing; see `Diagnosis`.

    Parameters
    ----------
    z
        Embedding, (cells, dimensions).
    batches
        (cells,) batch of each cell.
    n_neighbors
        Nearest other cells to look at.
    """
    from sklearn.neighbors import NearestNeighbors

    categories = pd.Categorical(batches).remove_unused_categories()
    codes, n_cells = np.asarray(categories.codes), len(z)
    neighbours = NearestNeighbors(n_neighbors=min(n_neighbors, n_cells - 1)).fit(z).kneighbors(return_distance=False)
    own = (codes[neighbours] == codes[:, None]).mean(1)
    size = np.bincount(codes)
    shares, random = np.bincount(codes, own) / size, (size - 1) / max(n_cells - 1, 1)
    mixing = (1 - shares) / np.where(random < 1, 1 - random, 1)
    names = pd.Index([str(c) for c in categories.categories], name="batch")
    return pd.DataFrame({"cells": size, "own": shares, "random": random, "mixing": mixing}, index=names)


def check_batches(batches: pd.DataFrame, *, known: bool) -> list[Check]:
    """Which batches stay apart; `known` says whether the model was given them."""
    apart = batches[batches["mixing"] < APART].sort_values("mixing")
    worst = batches["mixing"].idxmin()
    if apart.empty:
        text = (
            f"All {len(batches)} batches are mixed: the least, {shortened(worst)!r}, has "
            f"{batches.loc[worst, 'mixing']:.0%} of the foreign neighbours that random mixing would give."
        )
    else:
        listed = ", ".join(f"{shortened(name)!r} ({row['mixing']:.0%})" for name, row in apart.iloc[:5].iterrows())
        listed += f" and {len(apart) - 5} more" if len(apart) > 5 else ""
        text = (
            f"{len(apart)} of {len(batches)} batches lie apart, with few of the foreign neighbours that random mixing "
            f"would give: {listed}. "
        )
        text += (
            "Look whether they hold other kinds of cells, which should lie apart; if not, train longer."
            if known
            else "The model was not given these batches: pass their column as batch_key to remove their effect."
        )
    return [Check("batches_apart", len(apart), text)]


# -------------------------------------------------------------------------------------------------------------- cells


def unexplained_cells(log_likelihood: np.ndarray, log_size: np.ndarray, names: pd.Index) -> pd.DataFrame:
    """A row per cell: how much worse its counts are explained than those of cells of its library size.

    Parameters
    ----------
    log_likelihood
        (cells,) E_q[log p(x | z, l)], nats.
    log_size
        (cells,) log total counts; all alike where the data are not counts.
    names
        Names of the cells.

    Notes
    -----
    The larger a cell, the more nats its counts cost. So the cost is followed along the library size (a parabola in
    logs, fitted again without what lies far off), and deviations from it are measured in robust standard deviations
    (1.4826 times the median absolute deviation) of the 101 or more cells of most similar library size.
    """
    cost, size = -np.asarray(log_likelihood, dtype=np.float64), np.asarray(log_size, dtype=np.float64)
    cost = np.log(cost) if (cost > 0).all() else cost
    size = size - size.mean()
    degree = min(2, len(np.unique(size)) - 1)
    keep = np.ones(len(cost), dtype=bool)
    for _ in range(3):
        rest = cost - np.polyval(np.polyfit(size[keep], cost[keep], degree), size)
        rest = rest - np.median(rest)
        keep = np.abs(rest) <= 4 * 1.4826 * np.median(np.abs(rest)) + 1e-12
    order = np.argsort(size, kind="stable")
    spread = np.empty_like(rest)
    spread[order] = _running_median(np.abs(rest[order]), max(101, len(cost) // 20))
    deviation = rest / np.maximum(1.4826 * spread, 1e-9)
    return pd.DataFrame(
        {
            "log_size": np.asarray(log_size),
            "log_likelihood": np.asarray(log_likelihood),
            "deviation": deviation,
            "unexplained": deviation > UNEXPLAINED,
        },
        index=names,
    )


def _running_median(values: np.ndarray, width: int) -> np.ndarray:
    """Median of the `width` values around each, of as many at the ends."""
    width = min(width | 1, len(values))
    middle = pd.Series(values).rolling(width).median().to_numpy()[width - 1 :]
    return middle[np.clip(np.arange(len(values)) - width // 2, 0, len(middle) - 1)]


def check_cells(cells: pd.DataFrame) -> list[Check]:
    """Which cells the model does not explain."""
    worst = cells[cells["unexplained"]].sort_values("deviation", ascending=False)
    share = len(worst) / len(cells)
    if worst.empty:
        text = "No cell is explained much worse than others of its library size."
    else:
        listed = ", ".join(repr(shortened(name)) for name in worst.index[:5]) + (
            f" and {len(worst) - 5:,} more" if len(worst) > 5 else ""
        )
        text = (
            f"{len(worst):,} of {len(cells):,} cells ({share:.1%}) are explained much worse than others of their "
            f"library size, worst first: {listed}. Look whether they are doublets, dying cells or a kind that is rare."
        )
    return [Check("unexplained_cells", share, text)]


# ---------------------------------------------------------------------------------------------------------- altogether


def diagnosis(
    mean: np.ndarray,
    variance: np.ndarray,
    *,
    log_likelihood: np.ndarray,
    kl: np.ndarray,
    log_size: np.ndarray,
    names: pd.Index,
    genes: pd.DataFrame | None,
    ranks: np.ndarray | None,
    batches: pd.Series,
    batches_known: bool,
    n_neighbors: int,
    history: pd.DataFrame,
    thinned: bool = False,
) -> Diagnosis:
    """All checks that apply; parameters as of the functions above, `genes` and `ranks` of `predictive_check`.

    `kl`, (cells,), is the divergence of each cell's posterior from the prior of z.
    """
    units, cells = latent_units(mean, variance), unexplained_cells(log_likelihood, log_size, names)
    checks = [*check_units(units, float(np.mean(kl))), *check_training(history, thinned=thinned)]
    if genes is not None and ranks is not None:
        checks += check_predictive(genes, ranks)
    mixing = None
    if batches.nunique() > 1:
        mixing = batch_mixing(mean, batches, n_neighbors)
        checks += check_batches(mixing, known=batches_known)
    checks += check_cells(cells)
    return Diagnosis(table_of(checks), units, genes, ranks, mixing, cells, history)
