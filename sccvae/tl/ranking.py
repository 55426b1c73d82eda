"""Differential expression where Scanpy looks for it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae.arguments import limit, unless_none
from sccvae.columns import labels_of
from sccvae.differential import expected_fdr
from sccvae.matrix import check_adata
from sccvae.model import SCCVAE


def rank_genes_groups(
    adata: AnnData,
    model: SCCVAE,
    *,
    groupby: str,
    groups: str | Sequence[str] | None = None,
    reference: str = "rest",
    n_genes: int | None = None,
    key_added: str = "rank_genes_groups",
    de_options: dict[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """Rank the genes of groups of cells by `SCCVAE.differential_expression`, where Scanpy looks for it.

    `sc.pl.rank_genes_groups*`, `sc.get.rank_genes_groups_df` and `sc.tl.filter_rank_genes_groups` read the result.

    Parameters
    ----------
    adata
        The data that `model` was trained on (told by the names of the cells; its counts are then those of that time,
        so `X` may have been normalised since), or new data.
    groupby
        Column of `obs`.
    groups, reference
        Groups to compare, None for all; with which: "rest", all other cells, or the name of a group.
    n_genes
        Genes to keep of each group, None for all.
    key_added
        Key of `uns`.
    de_options
        Further arguments of `SCCVAE.differential_expression`, such as `delta`.

    Returns
    -------
    None. Written to `uns[key_added]`, one field or column for each group:

    - `names`, by falling score: genes surely up first, surely down last;
    - `scores`: -log(1 - proba_de), with the sign of the fold change;
    - `logfoldchanges`: posterior median, log2;
    - `pvals`: 1 - proba_de, the posterior probability that the gene does not change by more than `delta`. It stands
      where Scanpy has p-values, and is none: it is no tail probability under a null hypothesis;
    - `pvals_adj`: expected false discovery rate if this gene and all surer ones are called;
    - `pts`, `pts_rest`: share of the cells with a count of the gene, in the group and in the rest;
    - `params`.
    """
    options = {"seed": seed, **(de_options or {})}
    if options.setdefault("mode", "change") != "change":
        raise ValueError(f"de_options has mode={options['mode']!r}; genes are ranked by mode='change'.")
    check_adata(adata)
    n_genes = unless_none(limit, "n_genes", n_genes)
    frame = model.differential_expression(
        model._source(adata),
        groupby=labels_of(groupby, adata.obs, adata.obs_names),
        group1=groups,
        group2=None if reference == "rest" else reference,
        **options,
    )
    error = np.exp(-np.logaddexp(0, frame["bayes_factor"]))
    sign = np.sign(frame["lfc_median"])
    frame = frame.assign(pvals=error, scores=-sign * np.log(np.maximum(error, 1e-300)))
    frame["pvals_adj"] = frame.groupby("group1", sort=False)["pvals"].transform(lambda e: expected_fdr(e.to_numpy()))
    tables = {
        str(group): part.sort_values("scores", ascending=False, kind="stable").reset_index(names="names")
        for group, part in frame.groupby("group1", sort=False)
    }
    columns = {"names": "O", "scores": "f4", "logfoldchanges": "f4", "pvals": "f8", "pvals_adj": "f8"}
    params = {"groupby": groupby, "reference": reference, "method": "sccvae", "use_raw": False}
    result: dict[str, Any] = {"params": {**params, "corr_method": "expected FDR", **_without_none(options)}}
    for column, dtype in columns.items():
        source = "lfc_median" if column == "logfoldchanges" else column
        values = [table[source].to_numpy()[:n_genes] for table in tables.values()]
        result[column] = np.rec.fromarrays(values, dtype=[(group, dtype) for group in tables])
    shares = {"pts": "non_zeros_proportion1"} | ({"pts_rest": "non_zeros_proportion2"} if reference == "rest" else {})
    for key, column in shares.items():
        by_gene = {group: table.set_index("names")[column] for group, table in tables.items()}
        result[key] = pd.DataFrame(by_gene).loc[model.gene_names]
    adata.uns[key_added] = result


def _without_none(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}
