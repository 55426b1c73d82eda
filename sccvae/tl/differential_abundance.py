"""Differential abundance between conditions, by label or by neighbourhood of the latent representation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae.data.columns import labels_of, one_column
from sccvae.data.matrix import check_adata
from sccvae.statistics.samples import abundance
from sccvae.statistics.samples.neighbourhoods import Neighbourhoods, neighbourhoods
from sccvae.validation.arguments import MOST, checked_seed, finite, unless_none, whole
from sccvae.validation.conventions import scanpy_like
from sccvae.validation.names import check_key, known_as
from sccvae.validation.wording import listed, listed_names

MEDIAN = "median"
MOST_NEIGHBOURHOODS = 2_000  # by default
LEAST_NEIGHBOURS, PER_SAMPLE, COVER = 100, 10, 5  # of a neighbourhood: cells, cells per sample, neighbourhoods per cell


@scanpy_like()
def differential_abundance(
    adata: AnnData,
    sample_key: str,
    condition_key: str,
    by: str | None = None,
    *,
    condition: str | None = None,
    reference: str | None = None,
    relative_to: str | None = None,
    covariates: str | Sequence[str] = (),
    use_rep: str = "X_sccvae",
    n_neighbors: int | None = None,
    n_neighborhoods: int | None = None,
    interval: float = 0.95,
    key_added: str = "differential_abundance",
    copy: bool = False,
    seed: int = 0,
) -> AnnData | None:
    """Test whether samples of one condition hold more or fewer cells of a kind than samples of another.

    With `by`, a kind is a label, such as a cell type. Without it, kinds are neighbourhoods of the latent
    representation, as in Milo (Dann et al. 2022, https://doi.org/10.1038/s41587-021-01033-z). The units of the test are
    samples, not cells: a quasi-likelihood F test of a binomial model with differences between samples, which
    `sccvae.statistics.samples.abundance` describes.

    Fractions sum to 1. If one kind grows, the fractions of all others shrink, without any change in their numbers.
    `relative_to` compares kinds with a kind, or with the median of kinds, that is assumed not to change. Numbers of
    cells alone cannot test the assumption.

    Parameters
    ----------
    adata
        Cells of all samples. Counts are not read.
    sample_key
        Column of `obs` with the sample of each cell, such as a donor or a mouse. At least two samples in a condition.
    condition_key
        Column of `obs` with the condition of each sample.
    by
        Column of `obs` with labels. None tests neighbourhoods.
    condition, reference
        Values of `condition_key` to compare, needed if there are more than two. Fold changes are of `condition` over
        `reference`. By default `reference` is the first category.
    relative_to
        None compares with all other cells. A label (with `by`) compares with the cells of the label. "median" compares
        with the median kind of each sample; a label of this name has precedence.
    covariates
        Columns of `obs` with properties of samples to adjust for, such as sex. For paired samples: the donor, and in
        `sample_key` the samples of the donor.
    use_rep
        Key of ``adata.obsm`` with the latent representation.
    n_neighbors
        Cells of a neighbourhood. None takes 100, or more: 10 for each sample, and so many that a cell is in 5
        neighbourhoods on average. It takes at most a fifth of the cells. Larger neighbourhoods find smaller effects,
        and mix kinds with fewer cells than a neighbourhood.
    n_neighborhoods
        Random cells from which neighbourhoods are made. None takes a tenth of the cells, at most 2,000. Some become
        the same neighbourhood, which is kept once.
    interval
        Probability of the confidence intervals.
    key_added
        Key of ``uns``, and prefix of columns of `obs`.
    {copy}
    seed
        Seed of the neighbourhoods.

    Returns
    -------
    None, or the copy. Written, with the default `key_added`:

    - ``uns["differential_abundance"]``: DataFrame with a row for each kind. `label`, or of neighbourhoods `cell`, the
      name of the representative cell, and `n_cells`. `group1` and `group2`, condition and reference. `fraction1` and
      `fraction2`, means over samples of the fraction of a sample's cells. `lfc`, log2 fold change of the odds, with
      `lfc_lower` and `lfc_upper`. `pval`. `padj`, adjusted by Benjamini-Hochberg, for neighbourhoods weighted by the
      inverse of their radius (Milo's spatial false discovery rate). `n_cells1`, `n_cells2`, `n_samples1`,
      `n_samples2`;
    - ``uns["differential_abundance_params"]``: the arguments;
    - without `by`, ``obs["differential_abundance_lfc"]`` and ``obs["differential_abundance_padj"]``, float32: those of
      the neighbourhood whose representative is nearest. NaN for cells of other conditions.

    Raises
    ------
    ValueError, KeyError, TypeError
        A condition has fewer than two samples; a sample lies in two conditions; there are not two conditions, or more
        and none was chosen; covariates cannot be told apart from the condition; a column or key is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(600, 30, n_batches=6, seed=0)
    >>> adata.obs["treated"] = adata.obs["batch"].isin(["batch_3", "batch_4", "batch_5"])
    >>> sccvae.tl.differential_abundance(adata, "batch", "treated", by="cell_type")
    >>> table = adata.uns["differential_abundance"]
    >>> table.shape, bool((table["padj"] < 0.05).any())
    ((6, 14), False)
    """
    check_adata(adata)
    check_key("key_added", key_added)
    seed = checked_seed(seed)
    n_neighbors = unless_none(whole, "n_neighbors", n_neighbors, least=2, most=MOST)
    n_neighborhoods = unless_none(whole, "n_neighborhoods", n_neighborhoods, least=2, most=MOST)
    interval = finite("interval", interval, "a probability in (0, 1), such as 0.95", above=0, below=1)
    names = [covariates] if isinstance(covariates, str) else list(covariates)
    samples = _samples(adata, sample_key, condition_key, condition, reference, names)
    params: dict[str, Any] = {
        "sample_key": sample_key, "condition_key": condition_key, "condition": samples.levels[0],
        "reference": samples.levels[1], "by": by, "relative_to": relative_to, "covariates": names or None,
    }  # fmt: skip
    columns = [f"{key_added}_lfc", f"{key_added}_padj"]
    if by is not None:
        table = _by_label(adata, by, samples, relative_to, interval)
        for column in columns if "use_rep" in adata.uns.get(f"{key_added}_params", {}) else ():
            if column in adata.obs:  # of an earlier call
                del adata.obs[column]
    else:
        z = _latent(adata, use_rep)[samples.cells]
        table, found = _by_neighbourhood(z, samples, relative_to, n_neighbors, n_neighborhoods, interval, seed)
        table.insert(0, "cell", adata.obs_names[samples.cells[found.cells]].astype(str))
        for column, name in zip(columns, ("lfc", "padj"), strict=True):
            values = np.full(adata.n_obs, np.nan, dtype=np.float32)
            values[samples.cells] = table[name].to_numpy()[found.nearest]
            adata.obs[column] = values
        params |= {"use_rep": use_rep, "n_neighbors": found.members.shape[1], "seed": seed}
    table.index = pd.RangeIndex(len(table)).astype(str)
    adata.uns[key_added] = table
    adata.uns[f"{key_added}_params"] = {name: value for name, value in params.items() if value is not None}
    return None


class Samples(NamedTuple):
    """Samples of the two conditions.

    Attributes
    ----------
    cells
        (cells,) numbers of the cells of these samples.
    codes
        (cells,) sample of each of these cells.
    names
        Names of the samples.
    first
        (samples,) whether a sample is of the condition; else it is of the reference.
    levels
        Names of the condition and of the reference.
    design
        (samples, coefficients), the condition in the last column.
    """

    cells: np.ndarray
    codes: np.ndarray
    names: tuple[str, ...]
    first: np.ndarray
    levels: tuple[str, str]
    design: np.ndarray


def _samples(
    adata: AnnData, sample_key: str, condition_key: str, condition: Any, reference: Any, covariates: list[str]
) -> Samples:
    """Check the samples and their conditions; see `differential_abundance`."""
    for what, key in (("sample_key", sample_key), ("condition_key", condition_key)):
        if not isinstance(key, str):
            raise TypeError(f"{what} is a {type(key).__name__}; expected the name of a column of adata.obs.")
    every, conditions = (
        pd.Categorical(labels_of(key, adata.obs, adata.obs_names, what)).remove_unused_categories()
        for what, key in (("sample_key", sample_key), ("condition_key", condition_key))
    )
    levels = _levels(conditions, condition_key, condition, reference)
    texts = np.asarray(conditions.categories.astype(str))[conditions.codes]
    cells = np.flatnonzero(np.isin(texts, levels))
    kept = every[cells].remove_unused_categories()
    names, first = tuple(map(str, kept.categories)), texts[cells] == levels[0]
    n_first = np.bincount(kept.codes[first], minlength=len(names))
    n_cells = np.bincount(kept.codes, minlength=len(names))
    both = np.flatnonzero((n_first > 0) & (n_first < n_cells))
    if len(both):
        raise ValueError(
            f"sample_key is {sample_key!r}, and {len(both)} of its samples, such as {names[both[0]]!r}, lie in both "
            f"conditions, {listed_names(levels)}; expected one condition for each sample. For paired samples make a "
            f"column of samples: adata.obs['sample'] = adata.obs[{sample_key!r}].astype(str) + '_' + "
            f"adata.obs[{condition_key!r}].astype(str). Pass it as sample_key, and covariates=[{sample_key!r}]."
        )
    of_first = n_first > 0
    for level, mask in zip(levels, (of_first, ~of_first), strict=True):
        if mask.sum() < 2:
            raise ValueError(
                f"condition {level!r} has one sample, {names[int(np.argmax(mask))]!r}; expected at least two in each "
                "condition. Without replicates, an effect of the condition cannot be told apart from the difference "
                "between any two samples. Add samples, or describe the fractions without a p-value."
            )
    start = np.unique(kept.codes, return_index=True)[1]
    design = [np.ones(len(names))]
    for name in covariates:
        design += _covariate(one_column(adata.obs, name).iloc[cells], kept.codes, start, name, names)
    design.append(of_first.astype(float))
    return Samples(cells, kept.codes, names, of_first, levels, _checked_design(np.array(design).T, covariates))


def _levels(conditions: pd.Categorical, key: str, condition: Any, reference: Any) -> tuple[str, str]:
    """Return the names of the condition and of the reference."""
    known = tuple(map(str, conditions.categories))
    if len(known) < 2:
        raise ValueError(f"adata.obs[{key!r}] has one value, {known[0]!r}; expected two conditions to compare.")
    given = {"condition": condition, "reference": reference}
    chosen = {what: None if value is None else known_as(value, known) for what, value in given.items()}
    for what, value in given.items():
        if value is not None and chosen[what] is None:
            raise ValueError(f"{what} is {value!r}; expected a value of adata.obs[{key!r}], one of {listed(known)}.")
    if None in chosen.values() and len(known) > 2:
        raise ValueError(
            f"adata.obs[{key!r}] has {len(known)} values; expected two to compare. Pass condition= and reference=, two "
            f"of {listed(known)}."
        )
    first, second = chosen["condition"], chosen["reference"]
    if first is None:
        second = known[0] if second is None else second
        first = known[1 - known.index(second)]
    elif second is None:
        second = known[1 - known.index(first)]
    if first == second:
        raise ValueError(f"condition and reference are both {first!r}; expected two of {listed(known)}.")
    return first, second


def _covariate(
    column: pd.Series, codes: np.ndarray, start: np.ndarray, key: str, names: tuple[str, ...]
) -> list[np.ndarray]:
    """Columns of the design for a property of samples: a standardised number, or indicators of categories."""
    values = labels_of(pd.Series(column.array, index=column.index), pd.DataFrame(), column.index, f"covariate {key!r}")
    numbers = pd.factorize(values)[0]
    differ = np.flatnonzero(numbers != numbers[start][codes])
    if len(differ):
        raise ValueError(
            f"covariates has {key!r}, of which sample {names[codes[differ[0]]]!r} has several values; expected one "
            "value for each sample."
        )
    of_samples = values.iloc[start]
    if of_samples.dtype.kind in "iuf":
        number = of_samples.to_numpy(dtype=np.float64)
        return [(number - number.mean()) / (number.std() or 1.0)]
    categories = pd.Categorical(of_samples).remove_unused_categories()
    return [(categories.codes == code).astype(float) for code in range(1, len(categories.categories))]


def _checked_design(design: np.ndarray, covariates: list[str]) -> np.ndarray:
    n_samples, n_columns = design.shape
    if n_columns >= n_samples:
        raise ValueError(
            f"covariates is {covariates}, which with the condition make {n_columns} coefficients for {n_samples} "
            "samples; expected fewer coefficients than samples. Leave covariates out."
        )
    if np.linalg.matrix_rank(design) < n_columns:
        raise ValueError(
            f"covariates is {covariates}, and the condition follows from them, or one covariate from the others; "
            "expected covariates that vary within conditions. Leave those out."
        )
    return design


def _by_label(adata: AnnData, by: str, samples: Samples, relative_to: str | None, interval: float) -> pd.DataFrame:
    labels = pd.Categorical(labels_of(by, adata.obs, adata.obs_names, "by").iloc[samples.cells])
    labels = labels.remove_unused_categories()
    names = tuple(map(str, labels.categories))
    if len(names) < 2:
        raise ValueError(f"by is {by!r}, and all cells have the label {names[0]!r}; expected at least two labels.")
    n = np.zeros((len(names), len(samples.names)))
    np.add.at(n, (labels.codes, samples.codes), 1)
    whole_sample = np.broadcast_to(n.sum(0), n.shape)
    totals, median, kept = whole_sample, None, np.ones(len(names), dtype=bool)
    if relative_to is not None and (known := known_as(relative_to, names)) is not None:
        at = names.index(known)
        if (n[at] == 0).any():
            raise ValueError(
                f"relative_to is {relative_to!r}, of which sample {samples.names[int(np.argmin(n[at]))]!r} has no "
                "cell; expected a label with cells in every sample. Choose another, or relative_to='median'."
            )
        kept[at] = False
        totals = n + n[at]
    elif relative_to == MEDIAN:
        median = abundance.median_offset(n, totals, samples.design)
    elif relative_to is not None:
        raise ValueError(
            f"relative_to is {relative_to!r}; expected None, 'median', or a label of adata.obs[{by!r}], one of "
            f"{listed(names)}."
        )
    effects = abundance.effects_of(n[kept], totals[kept], samples.design, median, interval)
    table = _table(n[kept], whole_sample[kept], samples, effects, abundance.adjusted(effects.pval))
    table.insert(0, "label", np.asarray(names, dtype=object)[kept])
    return table


def _by_neighbourhood(
    z: np.ndarray,
    samples: Samples,
    relative_to: str | None,
    n_neighbors: int | None,
    n_neighborhoods: int | None,
    interval: float,
    seed: int,
) -> tuple[pd.DataFrame, Neighbourhoods]:
    if relative_to not in (None, MEDIAN):
        raise ValueError(f"relative_to is {relative_to!r} without by; expected None or 'median'. Pass by= for a label.")
    n_cells, n_samples = len(z), len(samples.names)
    if n_neighborhoods is None:
        n_neighborhoods = min(MOST_NEIGHBOURHOODS, max(50, n_cells // 10))
    if n_neighbors is None:
        wanted = max(LEAST_NEIGHBOURS, PER_SAMPLE * n_samples, COVER * n_cells // n_neighborhoods)
        n_neighbors = min(wanted, max(2, n_cells // 5))
    elif n_neighbors >= n_cells:
        raise ValueError(f"n_neighbors is {n_neighbors}; expected fewer than {n_cells}, the number of cells.")
    found = neighbourhoods(z, n_neighborhoods, n_neighbors, seed=seed)
    n = found.counts(samples.codes, n_samples).astype(np.float64)
    totals = np.broadcast_to(np.bincount(samples.codes).astype(np.float64), n.shape)
    median = abundance.median_offset(n, totals, samples.design) if relative_to == MEDIAN else None
    effects = abundance.effects_of(n, totals, samples.design, median, interval)
    padj = abundance.adjusted(effects.pval, 1 / np.maximum(found.reach, 1e-12))
    table = _table(n, totals, samples, effects, padj)
    table.insert(0, "n_cells", n_neighbors)
    return table, found


def _table(
    n: np.ndarray, totals: np.ndarray, samples: Samples, effects: abundance.Effects, padj: np.ndarray
) -> pd.DataFrame:
    fractions, masks = n / totals, (samples.first, ~samples.first)
    columns: dict[str, Any] = {f"group{k}": level for k, level in enumerate(samples.levels, 1)}
    columns |= {f"fraction{k}": fractions[:, mask].mean(1) for k, mask in enumerate(masks, 1)}
    columns |= {"lfc": effects.lfc, "lfc_lower": effects.lower, "lfc_upper": effects.upper}
    columns |= {"pval": effects.pval, "padj": padj}
    columns |= {f"n_cells{k}": n[:, mask].sum(1).astype(np.int64) for k, mask in enumerate(masks, 1)}
    columns |= {f"n_samples{k}": int(mask.sum()) for k, mask in enumerate(masks, 1)}
    return pd.DataFrame(columns)


def _latent(adata: AnnData, use_rep: str) -> np.ndarray:
    """Return the latent representation, (cells, dimensions)."""
    if use_rep not in adata.obsm:
        raise KeyError(
            f"{use_rep!r} is not in adata.obsm, which has {listed(adata.obsm)}. sccvae.tl.integrate(adata) makes "
            "'X_sccvae'. To test labels, pass by=."
        )
    z = np.asarray(adata.obsm[use_rep], dtype=np.float64)
    if z.ndim != 2 or not np.isfinite(z).all():
        raise ValueError(
            f"adata.obsm[{use_rep!r}] has shape {z.shape}, or values that are not finite; expected finite numbers, "
            "(cells, dimensions). Make it again, as by sccvae.tl.integrate."
        )
    return z
