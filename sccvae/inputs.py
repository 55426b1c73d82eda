"""AnnData -> checked `Counts`, by way of `columns` and `matrix`.

A `Schema` is what a model remembers of the AnnData it was built on: genes, keys, categories, scaling. The same schema
reads new data, so genes are matched by name, batches by category, and nothing by position. The AnnData is only read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae.columns import categories_of, codes_of, numbers_of, position_of, size_factors_of
from sccvae.data import Counts
from sccvae.matrix import Support, check_adata, check_known_genes, check_unique, read_rows
from sccvae.names import in_order
from sccvae.stored import Rows
from sccvae.wording import Text, did_you_mean


@dataclass(frozen=True)
class Schema:
    """How to read an AnnData the way the training data were read.

    Attributes
    ----------
    genes
        Names in the model's order.
    categories
        For the batch and every categorical covariate (in the order of the code columns): its categories, as text.
    means, scales
        Of the continuous covariates in the training data; values are standardised with them.
    log_size_offset
        Added to log size factors so that the mean library size is the mean total count; 0 without size factors.
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

    @classmethod
    def learn(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        support: Support = "counts",
        batch_key: str | None = None,
        categorical_covariate_keys: Sequence[str] = (),
        continuous_covariate_keys: Sequence[str] = (),
        size_factor_key: str | None = None,
        genes: np.ndarray | None = None,
    ) -> tuple["Schema", Counts]:
        """Check the data a model is built on; return what to remember of them and the counts.

        Parameters
        ----------
        genes
            (genes,) boolean mask of the genes to model; None takes all.

        Raises
        ------
        ValueError, KeyError, TypeError
            What is wrong with the data, where, and how to mend it.
        """
        check_adata(adata)
        names = adata.var_names.astype(str) if genes is None else adata.var_names[genes].astype(str)
        check_unique(names, "var_names", "adata.var_names_make_unique()")
        for given in (categorical_covariate_keys, continuous_covariate_keys):
            if isinstance(given, str):
                raise TypeError(f"Covariate keys are a list of columns; found the text {given!r}: pass [{given!r}].")
        keys: list[str | None] = [batch_key, *categorical_covariate_keys]
        categories = tuple(("all",) if key is None else categories_of(adata, key) for key in keys)
        numbers = [numbers_of(adata, key) for key in continuous_covariate_keys]
        rows = read_rows(adata, layer, support, names)
        offset = 0.0
        if size_factor_key is not None:
            mean_total = rows.gene_sums(lambda x: x).sum() / len(rows)
            offset = float(np.log(mean_total) - np.log(size_factors_of(adata, size_factor_key).mean()))
        schema = cls(
            genes=tuple(names),
            layer=layer,
            support=support,
            batch_key=batch_key,
            categorical_covariate_keys=tuple(categorical_covariate_keys),
            continuous_covariate_keys=tuple(continuous_covariate_keys),
            size_factor_key=size_factor_key,
            categories=categories,
            means=tuple(float(v.mean()) for v in numbers),
            scales=tuple(float(v.std()) or 1.0 for v in numbers),
            log_size_offset=offset,
        )
        return schema, schema.assemble(adata, rows)

    def values_of(self, adata: AnnData) -> Rows:
        """The values alone of new data, genes in the model's order."""
        return read_rows(adata, self.layer, self.support, self.genes)

    def codes_of(self, adata: AnnData) -> np.ndarray:
        """(cells, 1 + categorical covariates) codes of batch and covariates."""
        keys = [self.batch_key, *self.categorical_covariate_keys]
        codes = np.zeros((adata.n_obs, len(keys)), dtype=np.int64)
        for column, (key, known) in enumerate(zip(keys, self.categories, strict=True)):
            if key is not None:
                codes[:, column] = codes_of(adata, key, known)
        return codes

    def read(self, adata: AnnData) -> Counts:
        """Counts of new data, read as the training data were: genes in the model's order, known categories only.

        Raises
        ------
        ValueError, KeyError
            What is wrong with the data, where, and how to mend it.
        """
        check_adata(adata)
        return self.assemble(adata, self.values_of(adata))

    def code_of_batch(self, batch: Any) -> int:
        """Number of a batch known by name."""
        return position_of(batch, self.categories[0], "batch", self.batch_key)

    def positions_of_genes(self, gene_list: Iterable[str]) -> np.ndarray:
        """Columns of the genes named, in the order asked."""
        if isinstance(gene_list, str):
            raise TypeError(f"gene_list is a list of gene names; found the text {gene_list!r}: pass [{gene_list!r}].")
        asked = [str(gene) for gene in gene_list]
        index = pd.Index(self.genes).get_indexer(asked)
        check_known_genes(
            [gene for gene, at in zip(asked, index, strict=True) if at < 0], self.genes, "gene_list names"
        )
        return index

    def columns_of(self, codes: np.ndarray) -> dict[str, Any]:
        """Columns of `obs` for codes (cells, 1 + categorical covariates), continuous covariates at their means."""
        keys = (self.batch_key, *self.categorical_covariate_keys)
        categorical = {
            key: pd.Categorical.from_codes(codes[:, column], categories=list(self.categories[column]))
            for column, key in enumerate(keys)
            if key is not None
        }
        means = zip(self.continuous_covariate_keys, self.means, strict=True)
        return {**categorical, **{key: np.full(len(codes), mean) for key, mean in means}}

    def assemble(self, adata: AnnData, rows: Rows) -> Counts:
        """The values of an AnnData with what its `obs` says of the cells."""
        codes = self.codes_of(adata)
        continuous = np.zeros((adata.n_obs, len(self.means)), dtype=np.float32)
        for column, key in enumerate(self.continuous_covariate_keys):
            continuous[:, column] = (numbers_of(adata, key) - self.means[column]) / self.scales[column]
        log_size = None
        if self.size_factor_key is not None:
            factors = size_factors_of(adata, self.size_factor_key)
            log_size = (np.log(factors) + self.log_size_offset).astype(np.float32)
        return Counts.of(
            rows,
            codes=codes,
            n_levels=tuple(map(len, self.categories)),
            continuous=continuous,
            log_size=log_size,
            nonnegative=self.support != "real",
        )


def mask_of_genes(adata: AnnData, mask_var: str | np.ndarray | pd.Series) -> np.ndarray:
    """(genes,) boolean mask from the name of a column of `var`, an array, or a Series with the genes' names."""
    check_adata(adata)
    what = "mask_var"
    if isinstance(mask_var, str):
        if mask_var not in adata.var:
            raise KeyError(Text(f"adata.var has no column {mask_var!r}.{did_you_mean(mask_var, adata.var.columns)}"))
        what, mask_var = f"adata.var[{mask_var!r}]", adata.var[mask_var].to_numpy()
    elif isinstance(mask_var, pd.Series):
        mask_var = in_order(mask_var, adata.var_names, what, "genes").to_numpy()
    mask = np.asarray(mask_var)
    if mask.dtype != bool or mask.shape != (adata.n_vars,):
        raise ValueError(
            f"{what} has dtype {mask.dtype} and shape {mask.shape}; expected {adata.n_vars} booleans, one a gene."
        )
    if not mask.any():
        raise ValueError(f"{what} selects none of {adata.n_vars} genes; at least one is needed.")
    return mask
