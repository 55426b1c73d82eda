"""Diagnostics of a trained model: goodness of fit, convergence, batch mixing, unexplained cells.

Arrays in, tables and sentences out; no function takes a model. Each check has a value, an expected range and a
sentence. `checks.predictive` compares the counts with the model's posterior predictive distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np
import pandas as pd

from sccvae.validation.wording import shortened

ACTIVE = 0.01  # variance of posterior means above which a latent unit is active (Burda et al. 2016, section 5.2)
UNEXPLAINED = 4.0  # robust standard deviations

# Expected range of each check, (lowest, highest).
EXPECTED: dict[str, tuple[float, float]] = {
    "active_units": (2, np.inf),
    "kl_per_cell": (0.5, np.inf),
    "late_gain": (-np.inf, 0.003),
    "held_out_gap": (-np.inf, 0.15),
    "zeros_inside": (0.9, 1),
    "variance_ratio": (0.8, 1.3),
    "coverage_90": (0.87, 0.97),
    "batches_apart": (0, 0),
    "neighbours_kept": (0.85, np.inf),
    "kinds_drawn": (0, 0),
    "markers_kept": (0.75, np.inf),
    "unexplained_cells": (0, 0.01),
}
OF_MAPPED: dict[str, tuple[float, float]] = {  # of cells that were mapped onto a reference
    "new_cells": (0, 0.2),
    "missing_genes": (0, 0.3),
    "depth": (1 / 3, np.inf),
    "offsets": (0, 3),
}
APART = 0.3  # mixing below which a batch is listed as separate


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """Result of `SCCVAE.diagnose`; `pl.diagnostics` plots it.

    Attributes
    ----------
    table
        A row per check that applies: ``value``, ``expected`` (in words), ``ok``, ``sentence``.
    units
        A row per latent unit: ``variance`` of the posterior means, ``kl`` (nats per cell), ``active``.
    genes
        A row per gene, counts only: ``mean``, ``variance``, ``zeros`` (fraction of cells) of the data; ``model_mean``,
        ``model_variance``, ``model_zeros`` of the model; ``zeros_low``, ``zeros_high``, the model's 95 % interval.
    ranks
        (20,) fraction of counts in each twentieth of their predictive distributions, about 0.05 each where the model is
        calibrated; None where the likelihood is not of counts.
    batches
        A row per batch: ``cells``, ``own`` (mean fraction of its cells' neighbours from the same batch), ``random``
        (that fraction under random mixing), ``mixing`` (1 as under random mixing, 0 none).
    cells
        A row per cell: ``log_size``, ``log_likelihood`` (nats), ``deviation`` (robust standard deviations from cells
        of similar library size, positive for a worse fit), ``unexplained``.
    history
        ELBO per epoch and split: the model's ``history``; of a mapped model the part on the new cells, perhaps empty.
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
        """Return the findings, a sentence per check."""
        return self.table["sentence"].tolist()

    @property
    def warnings(self) -> list[str]:
        """Return the sentences of the checks outside their expected ranges."""
        return self.table.loc[~self.table["ok"], "sentence"].tolist()

    @property
    def ok(self) -> bool:
        """Return whether all checks are within their expected ranges."""
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
    """One check: a row of `Diagnosis.table`."""

    name: str
    value: float
    sentence: str

    @property
    def ok(self) -> bool:
        """Return whether the value is within its expected range."""
        low, high = (EXPECTED | OF_MAPPED)[self.name]
        return bool(low <= self.value <= high)

    @property
    def expected(self) -> str:
        """Return the expected range in words."""
        low, high = (EXPECTED | OF_MAPPED)[self.name]
        if low == high:
            return f"{low:g}"
        if np.isinf(high):
            return f"at least {low:g}"
        return f"at most {high:g}" if np.isinf(low) or low == 0 else f"{low:g} to {high:g}"


def table_of(checks: list[Check]) -> pd.DataFrame:
    """Return a table of the checks, a row per check."""
    rows = [(float(check.value), check.expected, check.ok, check.sentence) for check in checks]
    index = pd.Index([check.name for check in checks], name="check")
    return pd.DataFrame(rows, index=index, columns=["value", "expected", "ok", "sentence"])


# ------------------------------------------------------------------------------------------------------- latent units


def latent_units(mean: np.ndarray, variance: np.ndarray) -> pd.DataFrame:
    """Compute variance of the posterior means, KL(q || N(0, 1)) in nats per cell, and activity of each latent unit.

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
    """Check for posterior collapse; `kl` is the divergence from the prior in nats per cell."""
    active, total = int(units["active"].sum()), len(units)
    if active == 0 or kl < EXPECTED["kl_per_cell"][0]:
        text = (
            f"The posterior has collapsed: {active} of {total} latent units are active, with {kl:.2g} nats per cell. "
            "The embedding carries no information about the cells. Train with more steps or a longer kl_warmup; where "
            "cells differ by chance alone, a collapsed posterior is correct."
        )
    elif active < 2:
        text = f"One of {total} latent units is active ({kl:.1f} nats per cell): the embedding is a line."
    else:
        text = f"{active} of {total} latent units are active, with {kl:.1f} nats per cell in total."
        idle = total - active
        text += f" The {idle} inactive unit{'s do' if idle > 1 else ' does'} no harm." if idle else ""
    kl_text = f"The divergence of posterior from prior is {kl:.1f} nats per cell."
    return [Check("active_units", active, text), Check("kl_per_cell", kl, kl_text)]


# ----------------------------------------------------------------------------------------------------------- training


def check_training(history: pd.DataFrame, *, thinned: bool = False) -> list[Check]:
    """Check whether training stopped too early, and how far the ELBO of training cells exceeds that of held-out cells.

    Parameters
    ----------
    history
        A row per epoch and split, with columns ``epoch``, ``split`` and ``elbo`` (nats per cell).
    thinned
        Whether the encoder read thinned counts of training cells: their ELBO then does not measure overfitting.
    """
    curves = {split: rows.set_index("epoch")["elbo"] for split, rows in history.groupby("split", sort=False)}
    judged = curves.get("validation", curves["training"])
    whose = "held-out" if "validation" in curves else "training"
    last, n_epochs = float(judged.iloc[-1]), len(judged)
    # Reference: the ELBO before the last quarter of epochs; for a single epoch, its mean over the steps.
    before = float(judged.iloc[-1 - max(1, n_epochs // 4)] if n_epochs > 1 else curves["training"].iloc[0])
    gain = (last - before) / max(abs(last), 1e-9)
    stopped = gain > EXPECTED["late_gain"][1]
    span = f"the last {n_epochs // 4} of {n_epochs} epochs" if n_epochs >= 8 else "the last epoch"
    moved = f"{'rose' if gain > 0 else 'fell'} by {abs(gain):.2%} to {last:.1f} nats per cell"
    text = f"Over {span} the {whose} ELBO {moved}: "
    text += (
        "it was still rising, so train longer (train() continues from here; the default number of epochs takes 1,200 "
        "to 5,000 steps)."
        if stopped
        else "training has converged."
    )
    checks = [Check("late_gain", gain, text)]
    if "validation" in curves and not thinned:
        best = judged.idxmax()
        gap = float(curves["training"][best] - judged[best])
        relative = gap / max(abs(float(judged[best])), 1e-9)
        text = (
            f"In the best epoch, {best}, the ELBO of training cells is {gap:.1f} nats above that of held-out cells "
            f"({relative:.1%}): "
            if gap > 0
            else f"In the best epoch, {best}, the ELBO of held-out cells is no lower than that of training cells: "
        )
        too_wide = relative > EXPECTED["held_out_gap"][1]
        more = "a higher weight_precision or dropout_rate"
        advice = f"the model is overfitted. Use more cells, fewer genes, or {more}."
        checks.append(Check("held_out_gap", relative, text + (advice if too_wide else "the model is not overfitted.")))
    return checks


# --------------------------------------------------------------------------------------------------- predictive checks


def check_predictive(genes: pd.DataFrame, ranks: np.ndarray) -> list[Check]:
    """Check zero fractions, variances and calibration against the posterior predictive distribution."""
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
    varying = genes[(genes["mean"] >= min(0.05, genes["mean"].median())) & (genes["variance"] > 0)]
    if not varying.empty:
        ratio = float((varying["model_variance"] / varying["variance"]).median())
        low, high = EXPECTED["variance_ratio"]
        text = f"In the median gene the model's variance over cells is {ratio:.2f} times that of the data"
        text += ": it varies too little, as a Poisson model of overdispersed counts does" if ratio < low else ""
        text += ": it varies too much" if ratio > high else ""
        checks.append(Check("variance_ratio", ratio, text + "."))
    coverage = float(ranks[1:-1].sum())  # without the lowest and the highest twentieth
    low, high = EXPECTED["coverage_90"]
    text = f"90% prediction intervals contain {coverage:.0%} of the counts"
    text += ": they are too narrow" if coverage < low else ": they are too wide" if coverage > high else ""
    return [*checks, Check("coverage_90", coverage, text + ".")]


# ------------------------------------------------------------------------------------------------------------ batches


def batch_mixing(z: np.ndarray, batches: pd.Series, n_neighbors: int = 50) -> pd.DataFrame:
    """Compute the mixing of each batch among nearest neighbours, relative to random mixing; see `Diagnosis`.

    Parameters
    ----------
    z
        Embedding, (cells, dimensions).
    batches
        (cells,) batch of each cell.
    n_neighbors
        Number of nearest other cells per cell.
    """
    from sklearn.neighbors import NearestNeighbors

    categories = pd.Categorical(batches).remove_unused_categories()
    codes, n_cells = np.asarray(categories.codes), len(z)
    neighbours = NearestNeighbors(n_neighbors=min(n_neighbors, n_cells - 1)).fit(z).kneighbors(return_distance=False)
    own = (codes[neighbours] == codes[:, None]).mean(1)
    size = np.bincount(codes)
    fractions, random = np.bincount(codes, own) / size, (size - 1) / max(n_cells - 1, 1)
    mixing = (1 - fractions) / np.where(random < 1, 1 - random, 1)
    names = pd.Index([str(c) for c in categories.categories], name="batch")
    return pd.DataFrame({"cells": size, "own": fractions, "random": random, "mixing": mixing}, index=names)


def check_batches(batches: pd.DataFrame, *, known: bool) -> list[Check]:
    """Check for batches that are separate in the embedding.

    `known` is True if the batches are the model's own, from batch_key.
    """
    apart = batches[batches["mixing"] < APART].sort_values("mixing")
    worst = batches["mixing"].idxmin()
    if apart.empty:
        text = (
            f"All {len(batches)} batches are mixed: the least mixed, {shortened(worst)!r}, has "
            f"{batches.loc[worst, 'mixing']:.0%} of the neighbours from other batches expected under random mixing."
        )
    else:
        listed = ", ".join(f"{shortened(name)!r} ({row['mixing']:.0%})" for name, row in apart.iloc[:5].iterrows())
        listed += f" and {len(apart) - 5} more" if len(apart) > 5 else ""
        text = (
            f"{len(apart)} of {len(batches)} batches are separate in the embedding, with few of the neighbours from "
            f"other batches expected under random mixing: {listed}. "
        )
        text += (
            "Check whether they contain other cell types, which should be separate; if not, train longer."
            if known
            else "The model was not given these batches: pass their column as batch_key to remove their effect."
        )
    return [Check("batches_apart", len(apart), text)]


# -------------------------------------------------------------------------------------------------------------- cells


def unexplained_cells(log_likelihood: np.ndarray, log_size: np.ndarray, names: pd.Index) -> pd.DataFrame:
    """Compute how far the fit of each cell deviates from that of cells of similar library size.

    Parameters
    ----------
    log_likelihood
        (cells,) E_q[log p(x | z, l)], nats.
    log_size
        (cells,) log total counts; all equal where the data are not counts.
    names
        Names of the cells.

    Notes
    -----
    The negative log-likelihood grows with the library size. A parabola in logs models this trend; it is fitted again
    without outliers. Deviations from the trend are measured in robust standard deviations (1.4826 times the median
    absolute deviation) of the 101 or more cells of most similar library size.
    """
    loss, size = -np.asarray(log_likelihood, dtype=np.float64), np.asarray(log_size, dtype=np.float64)
    loss = np.log(loss) if (loss > 0).all() else loss
    size = size - size.mean()
    degree = min(2, len(np.unique(size)) - 1)
    keep = np.ones(len(loss), dtype=bool)
    for _ in range(3):
        rest = loss - np.polyval(np.polyfit(size[keep], loss[keep], degree), size)
        rest = rest - np.median(rest)
        keep = np.abs(rest) <= 4 * 1.4826 * np.median(np.abs(rest)) + 1e-12
    order = np.argsort(size, kind="stable")
    spread = np.empty_like(rest)
    spread[order] = _running_median(np.abs(rest[order]), max(101, len(loss) // 20))
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
    """Compute the median of the `width` values around each value; windows at the ends are shifted inwards."""
    width = min(width | 1, len(values))
    middle = pd.Series(values).rolling(width).median().to_numpy()[width - 1 :]
    return middle[np.clip(np.arange(len(values)) - width // 2, 0, len(middle) - 1)]


def check_cells(cells: pd.DataFrame) -> list[Check]:
    """Check for cells with a much worse fit than cells of similar library size."""
    worst = cells[cells["unexplained"]].sort_values("deviation", ascending=False)
    fraction = len(worst) / len(cells)
    if worst.empty:
        text = "No cell has a much worse fit than others of similar library size."
    else:
        listed = ", ".join(repr(shortened(name)) for name in worst.index[:5]) + (
            f" and {len(worst) - 5:,} more" if len(worst) > 5 else ""
        )
        text = (
            f"{len(worst):,} of {len(cells):,} cells ({fraction:.1%}) have a much worse fit than others of similar "
            f"library size, worst first: {listed}. Check whether they are doublets, dying cells or a rare cell type."
        )
    return [Check("unexplained_cells", fraction, text)]


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
    more: Sequence[Check] = (),
) -> Diagnosis:
    """Run all checks that apply, and return a `Diagnosis`; `more` are checks that were made before.

    Parameters are those of the functions above; `genes` and `ranks` come from `predictive_check`. `kl`, (cells,), is
    the divergence of each cell's posterior from the prior of z.
    """
    units, cells = latent_units(mean, variance), unexplained_cells(log_likelihood, log_size, names)
    checks = check_units(units, float(np.mean(kl)))
    checks += check_training(history, thinned=thinned) if len(history) else []
    if genes is not None and ranks is not None:
        checks += check_predictive(genes, ranks)
    mixing = None
    if batches.nunique() > 1:
        mixing = batch_mixing(mean, batches, n_neighbors)
        checks += check_batches(mixing, known=batches_known)
    checks += [*check_cells(cells), *more]
    return Diagnosis(table_of(checks), units, genes, ranks, mixing, cells, history)
