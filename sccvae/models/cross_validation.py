"""Molecular cross-validation (Batson, Royer & Webber 2019, https://doi.org/10.1101/786269): which settings fit best.

The molecules of every cell are dealt into two parts at random. A model trained on one says what it expects of the
other, and the Poisson loss tells how far off it is. Sampling noise of the two parts is independent, so noise that was
learnt costs rather than helps, and no truth is needed. The loss is lowest in expectation at the true rates, so models
of different likelihoods compare. What is expected of a cell is scaled to the molecules held out of it: settings are
judged by the composition of cells. Judged by depth as well, an inferred library size would lose against the observed
one for leaving out the overdispersion of this very cell, which both parts share.
"""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.special import gammaln
from tqdm import tqdm

from sccvae.corruption import Thinning
from sccvae.validation.arguments import MOST, checked_seed, finite, flag, whole

BASELINE = "mean profile"
_FIXED = {"self", "adata", "layer", "mask_var", "round_counts", "seed", "progress_bar"}  # alike in all, or not theirs
_LEAST = 1e-10  # expected molecules: a softmax may round to 0, whose loss would be infinite
CHUNK = 2**22  # values of expected counts at once


def thin(counts: sp.csr_matrix, kept: float, rng: np.random.Generator) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Deal molecules into two parts, each (cells, genes): with probability `kept` into the first."""
    first = Thinning(kept)(counts, rng)
    second = sp.csr_matrix(counts - first)
    second.eliminate_zeros()
    return first, second


def poisson_loss(expected: np.ndarray, counts: sp.csr_matrix) -> np.ndarray:
    """(cells,) -log Poisson(counts; expected), summed over genes, in nats; `expected` is (cells, genes)."""
    rate, stored = np.maximum(expected.astype(np.float64), _LEAST), counts.tocoo()
    terms = gammaln(stored.data + 1.0) - stored.data * np.log(rate[stored.row, stored.col])
    return rate.sum(1) + np.bincount(stored.row, terms, minlength=counts.shape[0])


def held_out_loss(held: sp.csr_matrix, expected: Callable[[np.ndarray], np.ndarray]) -> float:
    """Mean over cells of the Poisson loss of held-out counts, (cells, genes).

    `expected` returns what is expected of the cells numbered, up to a factor for each cell: a chunk is asked at a time.
    """
    total, n_cells = 0.0, held.shape[0]
    size = max(1, CHUNK // held.shape[1])
    for start in range(0, n_cells, size):
        cells = np.arange(start, min(start + size, n_cells))
        some, said = held[cells], expected(cells).astype(np.float64)
        said *= np.asarray(some.sum(1, dtype=np.float64)) / said.sum(1, keepdims=True)
        total += poisson_loss(said, some).sum()
    return total / n_cells


def expected_counts(model: Any, cells: np.ndarray) -> np.ndarray:
    """(cells, genes) mean of the counts at the posterior means, drop-out included."""
    said = model.get_likelihood_parameters(indices=cells)
    return said["mean"] * (1 - said["dropout"]) if "dropout" in said else said["mean"]


def _mean_profile(counts: sp.csr_matrix, cells: np.ndarray) -> np.ndarray:
    """(cells, genes) the same guess for every cell: all are alike."""
    return np.repeat(np.asarray(counts.sum(0, dtype=np.float64)), len(cells), axis=0)


def compare(
    model_class: type[Any],
    counts: sp.csr_matrix,
    obs: pd.DataFrame,
    genes: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    *,
    n_splits: int,
    kept: float,
    seed: int,
    progress_bar: bool,
) -> pd.DataFrame:
    """Train every setting on the same thinned counts; a row for each, as described in `sccvae.cross_validate`.

    Parameters
    ----------
    counts, obs, genes
        Checked counts (cells, genes), what is known of the cells, names of the genes.
    settings
        Name -> arguments of the class and of its `train`.
    """
    n_splits, kept, seed = _checked(n_splits, kept, seed, settings)
    progress_bar = flag("progress_bar", progress_bar)
    split_options = {name: _sorted_out(model_class, name, options) for name, options in settings.items()}
    counts, var = counts.astype(np.float32, copy=False), pd.DataFrame(index=pd.Index(genes))
    for name, (options, _) in split_options.items():  # a typing error in the last setting is found before hours of work
        if options.get("gene_likelihood") in ("normal", "bernoulli"):
            raise ValueError(
                f"Setting {name!r}: gene_likelihood={options['gene_likelihood']!r} is not of counts, and molecular "
                "cross-validation holds out molecules. Take 'zinb', 'nb' or 'poisson'."
            )
        model_class(AnnData(counts, obs=obs, var=var), **options)
    losses = pd.DataFrame(index=[*settings, BASELINE], columns=range(1, n_splits + 1), dtype=float)
    seconds = dict.fromkeys(losses.index, 0.0)
    bar = tqdm(total=n_splits * len(settings), desc="Cross-validation", disable=None if progress_bar else True)
    for number in range(n_splits):
        first, held = thin(counts, kept, np.random.default_rng([seed, number]))
        full = np.diff(first.indptr) > 0  # a cell left without molecules cannot be trained on
        first, held = first[full], held[full]
        losses.loc[BASELINE, number + 1] = held_out_loss(held, partial(_mean_profile, first))
        for name, (options, training) in split_options.items():
            started = time.perf_counter()
            model = model_class(AnnData(first, obs=obs[full], var=var), **options, seed=seed + number)
            model.train(**training, progress_bar=False)
            seconds[name] += time.perf_counter() - started
            losses.loc[name, number + 1] = held_out_loss(held, partial(expected_counts, model))
            bar.update()
    bar.close()
    return summary(losses).assign(seconds=pd.Series(seconds))


def summary(losses: pd.DataFrame) -> pd.DataFrame:
    """Losses (settings, splits) -> a row per setting, best first: means, standard errors, then the splits."""
    losses = losses.loc[losses.mean(axis=1).sort_values(kind="stable").index]
    excess = losses - losses.iloc[0]  # of the same molecules, so what all settings share drops out

    def standard_error(table: pd.DataFrame) -> pd.Series:
        return table.std(axis=1, ddof=1) / np.sqrt(table.shape[1])

    table = pd.DataFrame(
        {
            "loss": losses.mean(axis=1),
            "loss_se": standard_error(losses),
            "excess": excess.mean(axis=1),
            "excess_se": standard_error(excess),
            "best": np.arange(len(losses)) == 0,
        }
    )
    return table.join(losses.add_prefix("split_")).rename_axis("setting")


def _sorted_out(model_class: type[Any], name: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the class, and those of its training."""
    own, training = (set(inspect.signature(f).parameters) - _FIXED for f in (model_class.__init__, model_class.train))
    for option in options:
        if option in _FIXED:
            raise ValueError(
                f"Setting {name!r} names {option!r}, which is the same for all settings: pass it to cross_validate."
            )
        if option not in own | training:
            raise ValueError(
                f"Setting {name!r} names an unknown option {option!r}. Expected arguments of {model_class.__name__}: "
                f"{', '.join(sorted(own))}; or of its train: {', '.join(sorted(training))}."
            )
    return {k: v for k, v in options.items() if k in own}, {k: v for k, v in options.items() if k in training}


def _checked(
    n_splits: int, kept: float, seed: int, settings: Mapping[str, Mapping[str, Any]]
) -> tuple[int, float, int]:
    """The three numbers, if they and the names of the settings make sense."""
    if (n_splits := whole("n_splits", n_splits, most=MOST)) < 1:
        raise ValueError(f"n_splits is {n_splits}; expected at least 1, and at least 2 for standard errors.")
    kept = finite("kept", kept, "a share of the molecules in (0, 1), such as 0.8", above=0, below=1)
    if not settings:
        raise ValueError("settings is empty: expected at least one, name -> options, such as {'default': {}}.")
    if BASELINE in settings:
        raise ValueError(
            f"A setting is called {BASELINE!r}, the name of the row that all are compared with: rename it."
        )
    return n_splits, kept, checked_seed(seed)
