"""Conditions of an AnnData: what can be told apart, and the effect of a condition in each cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.special import ndtri

from sccvae.data.columns import labels_of
from sccvae.data.matrix import check_adata, counts_in_blocks
from sccvae.models.sccvae import SCCVAE
from sccvae.statistics.samples import confounding, regions
from sccvae.tl.results import MAX_LAYER_BYTES
from sccvae.validation.arguments import checked_seed, finite, positive
from sccvae.validation.conventions import scanpy_like
from sccvae.validation.names import check_key
from sccvae.validation.wording import listed, warn

BYTES = 3 * 4  # of a cell and gene: the effect and both ends of its interval, float32


@scanpy_like(instead={"copy": "nothing is written to adata, the table is returned"})
def confounding_table(
    adata: AnnData, batch_key: str, condition_key: str | None = None, label_key: str | None = None
) -> pd.DataFrame:
    """Count the cells of each batch, condition and label, and warn where they cannot be told apart.

    Run it before the fit. Where no batch holds cells of two conditions, the correction for batches also removes the
    effect of the condition. A cell type that lies in one batch only may be drawn to other types.

    Parameters
    ----------
    adata
        Data with these columns. Its counts are not read.
    batch_key, condition_key, label_key
        Columns of `obs` without missing values: the batches to correct for, the conditions to compare, the cell types.

    Returns
    -------
    DataFrame of numbers of cells. A row for each batch, or for each batch and condition; a column for each label, or
    the column `cells`. Its `attrs["warnings"]` has the sentences of the warnings.

    Raises
    ------
    KeyError, ValueError
        A column is unknown, is named twice, or has missing values.

    Warns
    -----
    UserWarning
        A sentence for each pair of columns that cannot be told apart, with what to do.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(300, 50, seed=0)
    >>> table = sccvae.tl.confounding_table(adata, "batch", label_key="cell_type")
    >>> table.shape, table.attrs["warnings"]
    ((3, 6), [])
    """
    check_adata(adata)
    keys = [key for key in (batch_key, condition_key, label_key) if key is not None]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"batch_key, condition_key and label_key name {twice!r} twice; expected different columns.")
    columns = {key: labels_of(key, adata.obs, adata.obs_names, "key").astype(str) for key in keys}
    table = pd.DataFrame(columns).groupby(keys).size().rename("cells").reset_index()
    found = confounding.sentences(table, batch_key, condition_key, label_key)
    for sentence in found:
        warn(sentence)
    rows = [key for key in (batch_key, condition_key) if key is not None]
    counts = table.set_index(keys)["cells"]
    counts = counts.unstack(label_key, fill_value=0) if label_key is not None else counts.to_frame()
    counts = counts.groupby(level=rows, sort=False).sum()
    counts.attrs["warnings"] = found
    return counts


@scanpy_like()
def split_counts(
    adata: AnnData,
    *,
    layer: str | None = None,
    fraction: float = 0.5,
    key_added: str = "split",
    copy: bool = False,
    seed: int = 0,
) -> AnnData | None:
    """Assign each molecule at random to one of two layers: one to fit a model to, one to test on.

    A test on the molecules that chose the cells or the question is biased. Counts of the two layers are independent
    given the expression of the cell (count splitting, Neufeld et al. 2024,
    https://doi.org/10.1093/biostatistics/kxac047).

    Parameters
    ----------
    adata
        Counts in `X` or in `layer`.
    layer
        Layer with the counts; None takes `X`.
    fraction
        Fraction of the molecules in the first layer, in (0, 1).
    key_added
        Prefix of the names of the two layers.
    {copy}
    seed
        Seed of the assignment.

    Returns
    -------
    None, or the copy. Written, with `key_added="split"`: `layers["split_fit"]` and `layers["split_held_out"]`, CSR
    matrices of float32, whose sum is the counts.

    Raises
    ------
    ValueError, KeyError
        The values are not whole numbers of 0 or more; there is no such layer; `fraction` is out of range.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(100, 30, seed=0)
    >>> sccvae.tl.split_counts(adata)
    >>> bool((adata.layers["split_fit"] + adata.layers["split_held_out"] != adata.X).sum() == 0)
    True
    """
    check_adata(adata)
    fraction = finite("fraction", fraction, "a fraction in (0, 1)", above=0, below=1)
    check_key("key_added", key_added)
    blocks = [block for _, block in counts_in_blocks(adata, layer)]
    counts = sp.vstack(blocks, format="csr", dtype=np.float32)
    kept = counts.copy()
    kept.data = np.random.default_rng(checked_seed(seed)).binomial(counts.data.astype(np.int64), fraction)
    kept.data = kept.data.astype(np.float32)
    rest = counts - kept
    for name, part in (("fit", kept), ("held_out", rest)):
        part.eliminate_zeros()
        adata.layers[f"{key_added}_{name}"] = part.tocsr()
    return None


@scanpy_like(kinds=("SCCVAE",))
def condition_effect(
    adata: AnnData,
    model: SCCVAE,
    condition: str,
    reference: str,
    *,
    by: str | None = None,
    sample_key: str | None = None,
    held_out: str | None = None,
    gene_list: Sequence[str] | None = None,
    interval: float = 0.9,
    n_samples: int = 25,
    key_added: str = "condition_effect",
    copy: bool = False,
    seed: int = 0,
) -> AnnData | None:
    """Write the effect of a condition in each cell, with intervals, and tests of it over samples.

    Each cell is decoded under both conditions. The fold change between the two is the model's expectation: whether
    other samples, such as donors, would show it is tested over the samples.

    Parameters
    ----------
    adata
        Data that the model was trained on, or new data of the same samples.
    model
        Model with `condition_key`.
    condition, reference
        Values of that column: fold changes are those of the first over the second.
    by
        Column of `obs` with cell types: each is tested by itself. None tests all cells together.
    sample_key
        Column of `obs` with the sample of each cell; None takes the batches of the model.
    held_out
        Layer with molecules that the model was not fitted to, of `split_counts`. For each gene, the cells in which the
        condition changes it most are then sought, and tested on these molecules. None leaves this out.
    gene_list
        Genes to write and test; None takes all of the model.
    interval
        Probability of the intervals, in (0, 1).
    n_samples
        Samples of z for each cell, at least 2.
    key_added
        Prefix of everything written.
    {copy}
    seed
        Seed of the samples.

    Returns
    -------
    None, or the copy. Written, with `key_added="condition_effect"`:

    - `layers["condition_effect"]`: log2 fold changes, (cells, genes), NaN for other genes;
    - `layers["condition_effect_low"]`, `layers["condition_effect_high"]`: intervals. They include the uncertainty of z
      and the scatter of samples within the cell type;
    - both as tables of these genes in `obsm`, under the same names, if layers would take more than 2 GiB;
    - `uns["condition_effect"]`: the arguments; `by_label`, a table with a row for each cell type and gene: `effect`,
      the mean of the layer, and the columns of `SCCVAE.differential_expression` with `sample_key`;
    - with `held_out`, `regions` in `uns["condition_effect"]`: a row for each gene, with `cells`, the number of cells of
      its region, `label`, the most frequent cell type there, `effect`, and `lfc_mean`, `lfc_se`, `pval`, `padj` of the
      test; and `obsm["condition_effect_regions"]`, the cells of the region of each gene, sparse, (cells, genes).

    Raises
    ------
    ValueError, KeyError
        The model has no condition; a condition, column or layer is unknown; a condition has one sample; the effects of
        these genes would take more than 2 GiB.

    Examples
    --------
    >>> import numpy as np
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(300, 40, seed=0)
    >>> adata.obs["donor"] = [f"donor_{k}" for k in np.arange(300) % 6]
    >>> adata.obs["drug"] = np.where(np.arange(300) % 2, "drug", "none")
    >>> sccvae.tl.split_counts(adata)
    >>> model = sccvae.SCCVAE(adata, layer="split_fit", batch_key="donor", condition_key="drug")
    >>> model.train(max_epochs=2)
    >>> sccvae.tl.condition_effect(adata, model, "drug", "none", held_out="split_held_out", n_samples=5)
    >>> adata.layers["condition_effect"].shape, len(adata.uns["condition_effect"]["regions"])
    ((300, 40), 40)
    """
    check_adata(adata)
    check_key("key_added", key_added)
    interval = finite("interval", interval, "a probability in (0, 1)", above=0, below=1)
    if positive("n_samples", n_samples) < 2:
        raise ValueError(f"n_samples is {n_samples}; expected at least 2, for intervals.")
    said = model.describe()["parameters"]
    condition_key, sample_key = said.get("condition_key"), sample_key or said.get("batch_key")
    if sample_key is None:
        raise ValueError("sample_key is None, and the model has no batch_key; expected a column of adata.obs.")
    if held_out is not None and held_out not in adata.layers:
        raise KeyError(f"{held_out!r} is not in adata.layers, which has {listed(adata.layers)}: see tl.split_counts.")
    source, genes = model.source_of(adata), list(model.gene_names if gene_list is None else map(str, gene_list))
    if (n_bytes := BYTES * adata.n_obs * len(genes)) > MAX_LAYER_BYTES:
        raise ValueError(
            f"The effects of {len(genes):,} genes in {adata.n_obs:,} cells, with intervals, would take "
            f"{n_bytes / 2**30:.1f} GiB; expected at most 2: name fewer genes in gene_list."
        )
    effect, sd = model.condition_effect(condition, reference, source, gene_list=genes, n_samples=n_samples, seed=seed)
    obs, names = adata.obs, adata.obs_names
    samples, conditions = labels_of(sample_key, obs, names, "sample_key"), obs[condition_key].astype(str)
    labels = np.full(adata.n_obs, "all") if by is None else labels_of(by, obs, names, "by").astype(str).to_numpy()
    table = model.differential_expression(
        source,
        groupby=conditions,
        group1=condition,
        group2=reference,
        sample_key=samples,
        by=pd.Series(labels, index=names),
        seed=seed,
    )
    table = table.drop(columns=["comparison", "group1", "group2"]).rename(columns={"by": "label"})
    table = table.rename_axis("gene").reset_index()
    table = table[table["gene"].isin(genes)].reset_index(drop=True)
    table.insert(2, "effect", _means(effect, labels, genes, table))
    error = _errors(table, labels, genes)
    half = float(ndtri((1 + interval) / 2)) * np.sqrt(sd.astype(float) ** 2 + error**2)
    for ending, values in (("", effect), ("_low", effect - half), ("_high", effect + half)):
        _write(adata, key_added + ending, values.astype(np.float32), genes)
    adata.uns[key_added] = {
        "condition": condition, "reference": reference, "condition_key": condition_key, "sample_key": sample_key,
        "by": "" if by is None else by, "interval": interval, "genes": np.array(genes), "by_label": table,
    }  # fmt: skip
    if held_out is not None:
        at = adata.var_names.get_indexer(genes)
        layers = [sp.csr_matrix(adata.X if k is None else adata.layers[k]) for k in (said.get("layer"), held_out)]
        found, inside = regions.tested(
            effect,
            [sp.csc_matrix(x[:, at], dtype=np.float64) for x in layers],
            np.asarray(layers[1].sum(1)).ravel(),
            pd.Categorical(samples).codes.astype(int),
            conditions.map({condition: 1, reference: 0}).to_numpy(dtype=float),
        )
        frame = pd.DataFrame(found, index=pd.Index(genes, name="gene"))
        frame.insert(1, "label", [pd.Series(labels[cells]).mode().iloc[0] for cells in inside])
        adata.uns[key_added]["regions"] = frame.sort_values("pval")
        adata.obsm[f"{key_added}_regions"] = sp.csr_matrix(inside.T)
    return None


def _write(adata: AnnData, key: str, values: np.ndarray, genes: list[str]) -> None:
    """Write (cells, genes) values to a layer, or to a table in `obsm` if three layers would take more than 2 GiB."""
    if BYTES * adata.n_obs * adata.n_vars > MAX_LAYER_BYTES:
        adata.obsm[key] = pd.DataFrame(values, index=adata.obs_names, columns=genes)
        return
    adata.layers[key] = np.full(adata.shape, np.nan, dtype=np.float32)
    adata.layers[key][:, adata.var_names.get_indexer(genes)] = values


def _means(effect: np.ndarray, labels: np.ndarray, genes: list[str], table: pd.DataFrame) -> np.ndarray:
    """Return the mean effect of each row of the table over the cells with its label."""
    names = list(dict.fromkeys(table["label"]))
    means = np.stack([effect[labels == name].mean(0) for name in names])
    return means[pd.Index(names).get_indexer(table["label"]), pd.Index(genes).get_indexer(table["gene"])]


def _errors(table: pd.DataFrame, labels: np.ndarray, genes: list[str]) -> np.ndarray:
    """Return the standard error of the fold change over samples, (cells, genes); of labels without test the largest."""
    wide = table.pivot(index="label", columns="gene", values="lfc_se").reindex(columns=genes)
    wide = wide.reindex(pd.unique(labels))
    wide = wide.fillna(wide.max()).fillna(0.0)
    return wide.to_numpy()[wide.index.get_indexer(labels)]
