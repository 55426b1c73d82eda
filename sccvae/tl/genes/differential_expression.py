"""Differential expression, in the format of Scanpy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae.data.columns import labels_of
from sccvae.data.matrix import check_adata
from sccvae.models.sccvae import SCCVAE
from sccvae.statistics.differential_expression.probability import expected_fdr
from sccvae.validation.arguments import flag, limit, unless_none
from sccvae.validation.conventions import scanpy_like
from sccvae.validation.names import check_key, why_no_key
from sccvae.validation.wording import listed_names, warn

COUNTS = "genes are ranked by the counts that the model was trained on; choose their layer when it is built"
INSTEAD = {
    "layer": COUNTS,
    "use_raw": COUNTS,
    "method": "genes are ranked by the model's posterior; de_options has the choices of SCCVAE.differential_expression",
    "corr_method": "pvals_adj is the expected false discovery rate",
    "rankby_abs": "genes have decreasing scores; sort sc.get.rank_genes_groups_df(adata, group) by its absolute value",
    "tie_correct": "there is no test by ranks, so there are no ties",
    "mask_var": "all genes of the model are ranked; choose them when it is built",
}


@scanpy_like(kinds=("SCCVAE",), instead=INSTEAD)
def rank_genes_groups(
    adata: AnnData,
    model: SCCVAE,
    *,
    groupby: str,
    groups: str | Sequence[str] | None = None,
    reference: str | Sequence[str] = "rest",
    n_genes: int | None = None,
    pts: bool = True,
    key_added: str = "rank_genes_groups",
    copy: bool = False,
    de_options: dict[str, Any] | None = None,
    seed: int = 0,
) -> AnnData | None:
    """Rank genes for groups of cells by `SCCVAE.differential_expression`, in the format of Scanpy.

    `sc.pl.rank_genes_groups*`, `sc.get.rank_genes_groups_df` and `sc.tl.filter_rank_genes_groups` read the result.

    Parameters
    ----------
    {adata_of_model}
    model
        A trained model of counts.
    groupby
        Column of `obs`.
    groups, reference
        Groups to compare, None or "all" for all. The reference: "rest", all other cells, or the name of a group; for a
        group called rest, `["rest"]`.
    n_genes
        Number of genes to keep for each group; None keeps all.
    pts
        Whether to store the fractions of cells with a count.
    key_added
        Key of `uns`.
    {copy}
    de_options
        Further arguments of `SCCVAE.differential_expression`, such as `delta`.
    seed
        Seed of the samples.

    Returns
    -------
    None, or the copy. Written to `uns[key_added]`, one field or column for each group (``write_zarr`` takes ":" in its
    name with ``anndata.settings.zarr_write_format = 3``):

    - `names`, by decreasing score: genes with the clearest increase first, with the clearest decrease last;
    - `scores`: -log(1 - proba_de), with the sign of the fold change;
    - `logfoldchanges`: posterior median, log2;
    - `pvals`: 1 - proba_de, the posterior probability that the gene does not change by more than `delta`. It takes the
      place of Scanpy's p-values, but is not a tail probability under a null hypothesis;
    - `pvals_adj`: expected false discovery rate if this gene and all with a lower `pvals` are called;
    - `pts`, `pts_rest`: fraction of cells with a count of the gene, in the group and in the rest; left out, with a
      warning, if files cannot store the name of a group as a column name, for instance because it contains "/";
    - `params`.

    Raises
    ------
    ValueError, KeyError, TypeError
        A group is unknown or has no name; others as in `SCCVAE.differential_expression`.

    Examples
    --------
    >>> import scanpy as sc
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(200, 30, seed=0)
    >>> model = sccvae.SCCVAE(adata, batch_key="batch")
    >>> model.train(max_epochs=1)
    >>> sccvae.tl.rank_genes_groups(adata, model, groupby="cell_type", n_genes=5)
    >>> sc.get.rank_genes_groups_df(adata, "type_1").shape
    (5, 7)
    """
    options = {"seed": seed, **(de_options or {})}
    if options.setdefault("mode", "change") != "change":
        raise ValueError(f"de_options has mode={options['mode']!r}; genes are ranked by mode='change'.")
    over_samples = options.get("sample_key") is not None
    if over_samples and not isinstance(options["sample_key"], str):
        raise TypeError("de_options has labels as sample_key; expected the name of a column of adata.obs.")
    if options.get("by") is not None:
        raise ValueError(
            "de_options has by, and Scanpy's format has no cell types: call model.differential_expression."
        )
    check_adata(adata)
    check_key("key_added", key_added)
    n_genes = unless_none(limit, "n_genes", n_genes)
    if not isinstance(groupby, str):
        raise TypeError(f"groupby is a {type(groupby).__name__}; expected the name of a column of adata.obs.")
    pts, labels = flag("pts", pts), labels_of(groupby, adata.obs, adata.obs_names)
    _check_groups(labels, groupby, reference)
    if isinstance(groups, str) and groups == "all":  # Scanpy's word for None
        if (labels.astype(str) == "all").any():
            raise ValueError(
                "groups='all' are all groups, and one has that name: pass groups=['all'], or None for all."
            )
        groups = None
    against_all = isinstance(reference, str) and reference == "rest"
    if not np.isscalar(reference):
        if len(reference) != 1:
            raise ValueError(f"reference names {len(reference)} groups; expected one, or 'rest'.")
        reference = reference[0]
    frame = model.differential_expression(
        model.source_of(adata),
        groupby=labels,
        group1=groups,
        group2=None if against_all else reference,
        **options,
    )
    frame = _ranked(frame, over_samples)
    tables = {
        str(group): part.sort_values("scores", ascending=False, kind="stable").reset_index(names="names")
        for group, part in frame.groupby("group1", sort=False)
    }
    columns = {"names": "O", "scores": "f4", "logfoldchanges": "f4", "pvals": "f8", "pvals_adj": "f8"}
    params = {"groupby": groupby, "reference": reference, "method": "sccvae", "use_raw": False}
    corrected = "benjamini-hochberg" if over_samples else "expected FDR"
    result: dict[str, Any] = {"params": {**params, "corr_method": corrected, **_without_none(options)}}
    for column, dtype in columns.items():
        values = [table[column].to_numpy()[:n_genes] for table in tables.values()]
        result[column] = np.rec.fromarrays(values, dtype=[(group, dtype) for group in tables])
    shares = {"pts": "non_zeros_proportion1"} | ({"pts_rest": "non_zeros_proportion2"} if against_all else {})
    no_column = [group for group in tables if why_no_key(group) is not None]
    if pts and no_column:
        warn(
            f"The fractions of cells, pts, were left out, since files cannot hold columns called "
            f"{listed_names(no_column)}; rename the groups to have them."
        )
    for key, column in shares.items() if pts and not no_column else ():
        by_gene = {group: table.set_index("names")[column] for group, table in tables.items()}
        result[key] = pd.DataFrame(by_gene).loc[model.gene_names].rename_axis(index=None)
    adata.uns[key_added] = result
    return None


def _ranked(frame: pd.DataFrame, over_samples: bool) -> pd.DataFrame:
    """Add the columns of Scanpy's result to a table of comparisons."""
    if over_samples:
        error, change, adjusted = frame["pval"], frame["lfc_mean"], frame["padj"].to_numpy()
    else:
        error, change = np.exp(-np.logaddexp(0, frame["bayes_factor"])), frame["lfc_median"]
        groups = error.groupby(frame["group1"].to_numpy(), sort=False)
        adjusted = groups.transform(lambda e: expected_fdr(e.to_numpy())).to_numpy()
    scores = -np.sign(change) * np.log(np.maximum(error, 1e-300))
    return frame.assign(pvals=error, pvals_adj=adjusted, logfoldchanges=change, scores=scores)


def _check_groups(labels: pd.Series, groupby: str, reference: Any) -> None:
    """Raise unless every group name can be a field of a record array; warn if the reference is ambiguous."""
    groups = [str(label) for label in pd.unique(labels)]
    for group in groups:
        if group == "" or "\0" in group:
            what = "has no name" if group == "" else f"is called {group!r}, with a null character"
            raise ValueError(f"A group of adata.obs[{groupby!r}] {what}: rename it, Scanpy's result has a field of it.")
    if isinstance(reference, str) and reference == "rest" and "rest" in groups:
        warn(
            f"adata.obs[{groupby!r}] has a group called 'rest'; reference='rest' means all other cells, and "
            "reference=['rest'] that group."
        )


def _without_none(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}
