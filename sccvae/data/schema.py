"""Conversion of an AnnData to checked `Counts`, by `columns` and `matrix`.

A `Schema` describes the training data of a model: genes, keys, categories, scaling. New data are read by that schema:
genes are matched by name, batches by category, and nothing by position. The AnnData is never changed.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae.data import packs
from sccvae.data.columns import (
    categories_of,
    codes_of,
    label_codes_of,
    label_names_of,
    log_sizes,
    moments_of,
    numbers_of,
    one_column,
    position_of,
    size_factors_of,
    standardised,
)
from sccvae.data.counts import Counts
from sccvae.data.matrix import Support, check_adata, check_known_genes, check_unique, read_rows
from sccvae.data.packed_rows import PackedRows
from sccvae.data.packs import Contents, Storage
from sccvae.data.sources import Given, Join, Source, open_source
from sccvae.io.files import path_of
from sccvae.validation.arguments import flag
from sccvae.validation.names import in_order
from sccvae.validation.wording import listed_names

NEW_BATCHES = " SCCVAE.load_query_data(adata, model) maps cells of new batches onto a trained SCCVAE."
IN_MEMORY = Storage()  # or, beyond half of the free memory, in temporary files


@dataclass(frozen=True)
class Schema:
    """Description of the training data, by which new data are read.

    Attributes
    ----------
    genes
        Names of the genes in the model's order.
    categories
        Categories of the batch and of every categorical covariate, as text, in the order of the columns of codes.
    means, scales
        Means and standard deviations of the continuous covariates in the training data, for standardisation.
    log_size_offset
        Added to log size factors so that the mean library size is the mean total count; 0 without size factors.
    round_counts
        Whether counts are rounded to whole numbers.
    labels_key, unlabeled, labels
        Column of labels, which may be missing; the value of cells without one; the names of the labels.
    condition_key
        The categorical covariate, among those above, whose effect is of interest.
    """

    genes: tuple[str, ...]
    layer: str | None
    support: Support
    batch_key: str | None
    categorical_covariate_keys: tuple[str, ...]
    continuous_covariate_keys: tuple[str, ...]
    size_factor_key: str | None
    categories: tuple[tuple[str, ...], ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    log_size_offset: float
    round_counts: bool = False
    labels_key: str | None = None
    unlabeled: str | None = None
    labels: tuple[str, ...] = ()
    condition_key: str | None = None

    @classmethod
    def learn(
        cls,
        data: AnnData | Source,
        *,
        layer: str | None = None,
        support: Support = "counts",
        batch_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = (),
        continuous_covariate_keys: Sequence[str] | None = (),
        size_factor_key: str | None = None,
        genes: np.ndarray | Sequence[str] | None = None,
        round_counts: bool = False,
        labels_key: str | None = None,
        unlabeled: str | None = None,
        condition_key: str | None = None,
        storage: Storage = IN_MEMORY,
    ) -> tuple["Schema", Counts]:
        """Check the training data of a model; return their schema and counts.

        Parameters
        ----------
        genes
            Genes to model: names in order, or a (genes,) boolean mask; None takes all.
        round_counts
            Round values to the nearest whole numbers.
        storage
            Where the counts go.

        Raises
        ------
        ValueError, KeyError, TypeError
            The data are invalid; the message has the location and a fix.
        """
        source = Source.of(data)
        adata, layer = source.frame, source.layer_of(layer)
        if source.pack is not None:
            round_counts = round_counts or source.pack.contents.round_counts
        if flag("round_counts", round_counts) and support != "counts":
            raise ValueError(
                f"round_counts is True for {support} data; expected False, or counts: gene_likelihood='zinb', 'nb' or "
                "'poisson'."
            )
        names = _chosen(adata.var_names.astype(str), genes)
        at = None
        if isinstance(genes, np.ndarray) and genes.dtype == bool and len(source.parts) == 1:
            at = np.flatnonzero(genes)  # because genes that are not chosen may have the name of one that is
        categorical_covariate_keys = () if categorical_covariate_keys is None else categorical_covariate_keys
        continuous_covariate_keys = () if continuous_covariate_keys is None else continuous_covariate_keys
        for given in (categorical_covariate_keys, continuous_covariate_keys):
            if isinstance(given, str):
                raise TypeError(f"Covariate keys are the text {given!r}; expected a list of columns: pass [{given!r}].")
        if condition_key is not None:
            categorical_covariate_keys = _with_condition(condition_key, batch_key, categorical_covariate_keys)
        keys: list[str | None] = [batch_key, *categorical_covariate_keys]
        source.check_columns([*keys, *continuous_covariate_keys, size_factor_key])
        categories = tuple(("all",) if key is None else categories_of(adata, key) for key in keys)
        if condition_key is not None and len(categories[-1]) < 2:
            raise ValueError(
                f"condition_key is {condition_key!r}, which has one value, {categories[-1][0]!r}; expected at least "
                "two conditions. Leave condition_key out, or pass the cells of both conditions."
            )
        if unlabeled is not None and labels_key is None:
            raise ValueError(f"unlabeled is {unlabeled!r} without labels_key; expected the name of a column, too.")
        labels = () if labels_key is None else label_names_of(adata, labels_key, unlabeled)
        moments = [
            moments_of(numbers_of(adata, key), one_column(adata.obs, key).dtype) for key in continuous_covariate_keys
        ]
        contents = Contents(tuple(names), layer, support, bool(round_counts), ())
        options: dict[str, Any] = {"at": at, "round_counts": round_counts}
        rows = source.rows(contents, storage, lambda to: read_rows(source.parts, layer, support, names, to, **options))
        offset = 0.0
        if size_factor_key is not None and support == "counts":
            mean_total = rows.gene_sums(lambda x: x).sum() / len(rows)
            offset = float(np.log(mean_total) - np.log(moments_of(size_factors_of(adata, size_factor_key), float)[0]))
        schema = cls(
            genes=tuple(names),
            layer=layer,
            support=support,
            batch_key=batch_key,
            categorical_covariate_keys=tuple(categorical_covariate_keys),
            continuous_covariate_keys=tuple(continuous_covariate_keys),
            size_factor_key=size_factor_key,
            categories=categories,
            means=tuple(mean for mean, _ in moments),
            scales=tuple(scale for _, scale in moments),
            log_size_offset=offset,
            round_counts=bool(round_counts),
            labels_key=labels_key,
            unlabeled=unlabeled,
            labels=labels,
            condition_key=condition_key,
        )
        return schema, schema.assemble(adata, rows)

    def values_of(self, data: AnnData | Source, storage: Storage = IN_MEMORY) -> PackedRows:
        """Read only the values of new data, with genes in the model's order."""
        source = Source.of(data)
        options: dict[str, Any] = {"round_counts": self.round_counts, "learning": False}
        layer = self.layer if source.pack is None else source.pack.contents.layer
        contents = Contents(self.genes, layer, self.support, self.round_counts, ())
        return source.rows(
            contents, storage, lambda to: read_rows(source.parts, layer, self.support, self.genes, to, **options)
        )

    def codes_of(self, adata: AnnData) -> np.ndarray:
        """Return the codes of batch and covariates, (cells, 1 + categorical covariates)."""
        keys = [self.batch_key, *self.categorical_covariate_keys]
        codes = np.zeros((adata.n_obs, len(keys)), dtype=np.int64)
        for column, (key, known) in enumerate(zip(keys, self.categories, strict=True)):
            if key is not None:
                codes[:, column] = codes_of(adata, key, known, "" if column else NEW_BATCHES)
        return codes

    def read(self, data: AnnData | Source, storage: Storage = IN_MEMORY) -> Counts:
        """Read new data like the training data: genes in the model's order, known categories only.

        Raises
        ------
        ValueError, KeyError
            The data are invalid; the message has the location and a fix.
        """
        source = Source.of(data)
        keys = (self.batch_key, *self.categorical_covariate_keys, *self.continuous_covariate_keys, self.size_factor_key)
        source.check_columns(keys)
        return self.assemble(source.frame, self.values_of(source, storage))

    def read_given(self, given: Any, storage: Storage = IN_MEMORY) -> tuple[AnnData, Counts]:
        """Read what a user gave for new data, as of `open_source`; return its tables, too."""
        with open_source(given, budget=storage.memory_budget) as source:
            return source.frame, self.read(source, storage)

    @property
    def condition(self) -> int:
        """Column of the codes with the condition; -1 without one."""
        if self.condition_key is None:
            return -1
        return 1 + self.categorical_covariate_keys.index(self.condition_key)

    def code_of_batch(self, batch: Any) -> int:
        """Return the number of a batch, given its name."""
        return position_of(batch, self.categories[0], "batch", self.batch_key)

    def positions_of_genes(self, gene_list: Iterable[str]) -> np.ndarray:
        """Return the columns of named genes, in the given order."""
        if isinstance(gene_list, str):
            raise TypeError(
                f"gene_list is the text {gene_list!r}; expected a list of gene names: pass [{gene_list!r}]."
            )
        asked = [str(gene) for gene in gene_list]
        index = pd.Index(self.genes).get_indexer(asked)
        check_known_genes(
            [gene for gene, at in zip(asked, index, strict=True) if at < 0], self.genes, "gene_list names"
        )
        return index

    def columns_of(self, codes: np.ndarray) -> dict[str, Any]:
        """Return columns of `obs` for codes (cells, 1 + categorical covariates); continuous ones are at their means."""
        keys = (self.batch_key, *self.categorical_covariate_keys)
        categorical = {
            key: pd.Categorical.from_codes(codes[:, column], categories=list(self.categories[column]))
            for column, key in enumerate(keys)
            if key is not None
        }
        means = zip(self.continuous_covariate_keys, self.means, strict=True)
        return {**categorical, **{key: np.full(len(codes), mean) for key, mean in means}}

    def assemble(self, adata: AnnData, rows: PackedRows) -> Counts:
        """Combine the values of an AnnData with covariates and library sizes from its `obs`."""
        codes = self.codes_of(adata)
        continuous = np.zeros((adata.n_obs, len(self.means)), dtype=np.float32)
        for column, key in enumerate(self.continuous_covariate_keys):
            moments, where = (self.means[column], self.scales[column]), f"adata.obs[{key!r}]"
            continuous[:, column] = standardised(numbers_of(adata, key), *moments, where, adata.obs_names)
        log_size, labels = None, None
        if self.labels_key is not None and self.labels_key in adata.obs:
            labels = label_codes_of(adata, self.labels_key, self.labels)
        if self.size_factor_key is not None:
            log_size = log_sizes(adata, self.size_factor_key, self.log_size_offset).astype(np.float32)
        return Counts.of(
            rows,
            codes=codes,
            n_levels=tuple(map(len, self.categories)),
            continuous=continuous,
            log_size=log_size,
            labels=labels,
            nonnegative=self.support != "real",
        )


def _with_condition(condition_key: str, batch_key: str | None, covariates: Sequence[str]) -> tuple[str, ...]:
    """Return the categorical covariates with the condition as the last one."""
    for key, what in ((batch_key, "batch_key"), *((key, "a categorical covariate") for key in covariates)):
        if key == condition_key:
            raise ValueError(
                f"condition_key is {condition_key!r}, and so is {what}; expected a column of its own: the effect of a "
                "batch or covariate is removed, that of the condition is kept."
            )
    return (*covariates, condition_key)


def learn(
    given: Any,
    *,
    mask_var: str | np.ndarray | pd.Series | None = None,
    genes: Sequence[str] | None = None,
    join: Join = "inner",
    storage: Storage = IN_MEMORY,
    **options: Any,
) -> tuple[AnnData, Schema, Counts]:
    """Read what a user gave to train on; return its tables, schema and counts.

    Parameters
    ----------
    given, join
        As in `open_source`.
    mask_var, genes
        Genes to model: a mask, as in `mask_of_genes`, or their names.
    options
        Further arguments of `Schema.learn`.
    """
    if mask_var is not None and genes is not None:
        raise ValueError("mask_var and genes both choose the genes to model; expected one of them.")
    with open_source(given, join=join, budget=storage.memory_budget) as source:
        source.check_mask(mask_var)
        chosen = genes if mask_var is None else mask_of_genes(source.frame, mask_var)
        return source.frame, *Schema.learn(source, genes=chosen, storage=storage, **options)


def pack(
    source: Given,
    out: str | os.PathLike,
    *,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    join: Join = "inner",
    round_counts: bool = False,
) -> Path:
    """Write the counts of files, checked and in compact form, into a folder that models read at once.

    The pack also holds `obs` and `var`. It takes about three bytes for each nonzero count, and is read by
    ``SCCVAE("atlas.pack")`` in place of the files. Of counts that do not fit into memory, training reads blocks of
    cells from it. Models can be trained on some of its genes, by `mask_var` or `genes`.

    Parameters
    ----------
    source, layer, genes, join, round_counts
        As `adata`, `layer`, `genes`, `join` and `round_counts` of `SCCVAE`.
    out
        Folder to write, such as ``"atlas.pack"``; it must be new.

    Returns
    -------
    The path of the pack.

    Raises
    ------
    ValueError, KeyError, TypeError
        A file is damaged, or the data are invalid; the message has the file, the location and a fix.
    OSError
        `out` exists or cannot be written, or the disk is full. Nothing is left of the pack then.

    Examples
    --------
    >>> import sccvae
    >>> for k in range(2):
    ...     sccvae.simulate.simulate(100, 30, seed=0).write_h5ad(f"sample_{k}.h5ad")
    >>> path = sccvae.pack(["sample_0.h5ad", "sample_1.h5ad"], "atlas.pack")
    >>> sccvae.SCCVAE("atlas.pack", batch_key="batch").adata.n_obs
    200
    """
    target = path_of(out, "out")
    with open_source(source, join=join) as opened:
        names, layer = _chosen(opened.frame.var_names.astype(str), genes), opened.layer_of(layer)
        rounded = flag("round_counts", round_counts)
        contents = Contents(tuple(names), layer, "counts", rounded, packs.stamps(opened.files))
        options: dict[str, Any] = {"round_counts": rounded}
        packs.write(
            target, contents, opened.frame, lambda to: read_rows(opened.parts, layer, "counts", names, to, **options)
        )
    return target


def _chosen(known: pd.Index, genes: np.ndarray | Sequence[str] | None) -> pd.Index:
    """Return the names of the genes to model, which must be unique."""
    if genes is None:
        names = known
    elif isinstance(genes, np.ndarray) and genes.dtype == bool:
        names = known[genes]
    else:
        if isinstance(genes, str):
            raise TypeError(f"genes is the text {genes!r}; expected a list of names of genes: pass [{genes!r}].")
        names = pd.Index([str(gene) for gene in genes])
        if len(names) == 0:
            raise ValueError("genes is an empty list; expected names of genes to model.")
        if not names.is_unique:
            raise ValueError(f"genes has {listed_names(names[names.duplicated()])} twice; expected each gene once.")
        check_known_genes([gene for gene in names if gene not in known], known, "genes names")
        known = known[known.isin(names)]
        check_unique(known, "var_names", "adata.var_names_make_unique()")
        return names
    check_unique(names, "var_names", "adata.var_names_make_unique()")
    return names


def mask_of_genes(adata: AnnData, mask_var: str | np.ndarray | pd.Series) -> np.ndarray:
    """Return a boolean mask, (genes,), from a column of `var`, an array, or a Series indexed by gene names.

    A column of `var` may also have 0 and 1 in place of booleans.
    """
    check_adata(adata)
    what, column = "mask_var", isinstance(mask_var, str)
    if isinstance(mask_var, str):
        what, mask_var = f"adata.var[{mask_var!r}]", one_column(adata.var, mask_var, "var")
    elif isinstance(mask_var, pd.Series):
        mask_var = in_order(mask_var, adata.var_names, what, "genes")
    mask = np.asarray(mask_var)
    if (missing := np.asarray(pd.isna(mask))).any():
        raise ValueError(
            f"{what} has dtype {mask.dtype} and shape {mask.shape}, without a value for {missing.sum()} genes; "
            f"expected {adata.n_vars} booleans. Joins of tables leave such gaps: {what} = {what}.fillna(False)"
            ".astype(bool)."
        )
    if _is_yes_or_no(mask, numbers=column):
        mask = mask.astype(bool)
    if mask.dtype != bool or mask.shape != (adata.n_vars,):
        cure = f" Convert zeros and ones: {what}.astype(bool)." if mask.dtype.kind in "iuf" else ""
        raise ValueError(
            f"{what} has dtype {mask.dtype} and shape {mask.shape}; expected {adata.n_vars} booleans, one a gene.{cure}"
        )
    if not mask.any():
        raise ValueError(f"{what} selects none of {adata.n_vars} genes; expected at least one.")
    return mask


def _is_yes_or_no(values: np.ndarray, *, numbers: bool) -> bool:
    """Return whether values of another dtype are all booleans or, with `numbers`, all 0 or 1."""
    if values.dtype == object:
        return all(isinstance(value, bool | np.bool_) for value in values.flat)
    return numbers and values.dtype.kind in "iuf" and bool(np.isin(values, (0, 1)).all())
