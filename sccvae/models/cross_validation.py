"""Molecular cross-validation of settings (Batson, Royer & Webber 2019, https://doi.org/10.1101/786269).

The molecules of every cell are split at random into two parts. A model trained on one part predicts the other, and the
Poisson loss measures the error. The sampling noise of the two parts is independent, so overfitting increases the loss,
and no ground truth is needed. The expected loss is lowest at the true rates, so models with different likelihoods are
comparable. Expected counts of a cell are scaled to its held-out molecules: settings are compared by the composition of
cells. If depth counted as well, an inferred library size would have a higher loss than the observed one, because it
leaves out the overdispersion of the cell, which both parts have in common.
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
_FIXED = {"self", "adata", "layer", "mask_var", "round_counts", "seed", "progress_bar"}  # the same in all settings
_LEAST = 1e-10  # expected molecules: a softmax may round to 0, and its loss would be infinite
CHUNK = 2**22  # values of expected counts at once


def thin(counts: sp.csr_matrix, kept: float, rng: np.random.Generator) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Split molecules at random into two parts, (cells, genes) each: with probability `kept` into the first."""
    first = Thinning(kept)(counts, rng)
    second = sp.csr_matrix(counts - first)
    second.eliminate_zeros()
    return first, second


def poisson_loss(expected: np.ndarray, counts: sp.csr_matrix) -> np.ndarray:
    """Poisson negative log-likelihood summed over genes, (cells,), in nats; `expected` is (cells, genes)."""
    rate, stored = np.maximum(expected.astype(np.float64), _LEAST), counts.tocoo()
    terms = gammaln(stored.data + 1.0) - stored.data * np.log(rate[stored.row, stored.col])
    return rate.sum(1) + np.bincount(stored.row, terms, minlength=counts.shape[0])


def held_out_loss(held: sp.csr_matrix, expected: Callable[[np.ndarray], np.ndarray]) -> float:
    """Mean over cells of the Poisson loss of held-out counts, (cells, genes).

    `expected` is a function from numbers of cells to their expected counts, up to a factor for each cell. It is called
    for one chunk of cells at a time.
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
    """Mean of the counts at the posterior means, zero inflation included, (cells, genes)."""
    said = model.get_likelihood_parameters(indices=cells)
    return said["mean"] * (1 - said["dropout"]) if "dropout" in said else said["mean"]


def _mean_profile(counts: sp.csr_matrix, cells: np.ndarray) -> np.ndarray:
    """Sum of the counts over all cells as the prediction for every cell, (cells, genes)."""
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
    """Train every setting on the same thinned counts; return a row for each, as `sccvae.cross_validate` describes.

    Parameters
    ----------
    counts, obs, genes
        Checked counts (cells, genes), annotation of the cells, names of the genes.
    settings
        Name -> arguments of the class and of its `train`.
    """
    n_splits, kept, seed = _checked(n_splits, kept, seed, settings)
    progress_bar = flag("progress_bar", progress_bar)
    split_options = {name: _sorted_out(model_class, name, options) for name, options in settings.items()}
    counts, var = counts.astype(np.float32, copy=False), pd.DataFrame(index=pd.Index(genes))
    for name, (options, _) in split_options.items():  # finds errors in the last setting before training
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
        full = np.diff(first.indptr) > 0  # a cell without molecules cannot be trained on
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
    """Table with a row per setting, best first: means, standard errors, splits; `losses` is (settings, splits)."""
    losses = losses.loc[losses.mean(axis=1).sort_values(kind="stable").index]
    excess = losses - losses.iloc[0]  # on the same molecules, so that noise common to all settings cancels

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
    """Sort options into arguments of the class and arguments of its `train`."""
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
    """Check the three numbers and the names of the settings."""
    if (n_splits := whole("n_splits", n_splits, most=MOST)) < 1:
        raise ValueError(f"n_splits is {n_splits}; expected at least 1, and at least 2 for standard errors.")
    kept = finite("kept", kept, "a fraction of the molecules in (0, 1), such as 0.8", above=0, below=1)
    if not settings:
        raise ValueError("settings is empty: expected at least one, name -> options, such as {'default': {}}.")
    if BASELINE in settings:
        raise ValueError(f"A setting is called {BASELINE!r}, the name of the baseline: rename it.")
    return n_splits, kept, checked_seed(seed)
