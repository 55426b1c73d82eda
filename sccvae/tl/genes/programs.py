"""Gene programs: for each direction of the latent space, the genes that it moves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae.data.matrix import check_adata
from sccvae.models.sccvae import SCCVAE
from sccvae.statistics import gene_programs as statistics
from sccvae.tl.results import check_counts
from sccvae.validation.arguments import checked_seed, limit, positive, unless_none
from sccvae.validation.conventions import scanpy_like
from sccvae.validation.names import check_key

LEAST = 0.01  # counts per cell that are added to expression, as in `SCCVAE.condition_effect`
VALUES = 2**19  # of expression at once


@scanpy_like(kinds=("SCCVAE",))
def gene_programs(
    adata: AnnData,
    model: SCCVAE,
    *,
    n_programs: int | None = None,
    n_genes: int = 50,
    batch: str | Sequence[str] | None = None,
    models: Sequence[SCCVAE] = (),
    max_cells: int = 3000,
    key_added: str = "gene_programs",
    copy: bool = False,
    seed: int = 0,
) -> AnnData | None:
    """Find gene programs: directions of the latent space, rotated to be sparse, with the genes that each moves.

    The loading of a gene is the effect of a program on its decoded expression: the log2 fold change for one standard
    deviation of the program's score. It is the decoder's Jacobian, averaged over the lines between pairs of cells;
    `sccvae.statistics.gene_programs` has the formula, and the reason for lines. A hundredth of a molecule per cell is
    added to expression, so that genes without expression have no fold change. Directions are rotated by varimax, so
    that each gene has a large loading on few programs. Scores have mean 0, variance 1, and are uncorrelated. The longer
    tail of the loadings is positive.

    Parameters
    ----------
    {adata_of_model}
    model
        A trained model of counts.
    n_programs
        Number of programs, at most `n_latent`. None takes the fewest that explain 98 % of what all directions explain.
    n_genes
        Genes in the table for each program and direction.
    batch
        Name or names of the batches to decode in; None takes all. Log expression is averaged over them. Covariates take
        their most frequent values in the batch.
    models
        Further models with the same genes, trained on the same cells with other seeds, for the stability: see Returns.
    max_cells
        Decode a random sample of this many cells if there are more. All cells have scores.
    key_added
        Key of everything written.
    {copy}
    seed
        Seed of the sample of cells and of the resamples.

    Returns
    -------
    None, or the copy. Written, with `key_added="gene_programs"`:

    - `varm["gene_programs"]`: loadings, (genes, programs) float32, NaN for genes that are not modelled;
    - `obsm["X_gene_programs"]`: scores, (cells, programs) float32;
    - `uns["gene_programs"]`: the arguments, and two tables.

    `uns["gene_programs"]["programs"]` has a row for each program, by decreasing variance: `program`, its name;
    `variance`, the fraction of the variance of log expression over cells and genes that it explains; `stability`, in
    [0, 1]. The stability is the largest absolute correlation of its loadings with those of another program, averaged
    over other sets of programs. With `models` these are the sets of the other models: the stability includes the
    randomness of training. Without `models` they are those of this model on three resamples of the cells. They tell
    nothing about the training: another model can have other programs.

    `uns["gene_programs"]["table"]` has the genes: `program`, `direction` ("up" or "down"), `gene`, `loading`, and
    `rank` within program and direction. Enrichment tools take sets of genes, as gseapy and decoupler do:

        table = adata.uns["gene_programs"]["table"]
        sets = table.groupby(["program", "direction"])["gene"].agg(list).to_dict()

    or all loadings of a program, as a ranking:

        ranking = pd.Series(adata.varm["gene_programs"][:, 0], adata.var_names).dropna().sort_values()

    Raises
    ------
    ValueError, KeyError, TypeError
        The likelihood is not one of counts; a batch is unknown; there are more programs than directions of z; cells do
        not differ; `models` holds something else than trained models of the same genes.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(300, 50, seed=0)
    >>> model = sccvae.SCCVAE(adata, batch_key="batch")
    >>> model.train(max_epochs=2)
    >>> sccvae.tl.gene_programs(adata, model, n_programs=4)
    >>> adata.varm["gene_programs"].shape, adata.obsm["X_gene_programs"].shape
    ((50, 4), (300, 4))
    >>> table = adata.uns["gene_programs"]["table"]
    >>> sets = table.groupby(["program", "direction"])["gene"].agg(list).to_dict()
    >>> len(sets["program_1", "up"]) > 0
    True
    """
    check_adata(adata)
    check_key("key_added", key_added)
    n_programs, n_genes = unless_none(positive, "n_programs", n_programs), limit("n_genes", n_genes)
    max_cells, seed = limit("max_cells", max_cells, least=2), checked_seed(seed)
    others = _checked(models, model)
    check_counts(model, "gene_programs")
    cells = np.arange(adata.n_obs)
    if adata.n_obs > max_cells:
        cells = np.sort(np.random.default_rng(seed).choice(adata.n_obs, max_cells, replace=False))
    decoded = _Decoded(adata, model, batch)
    z, weights = decoded.z, None if others else statistics.resampled(len(cells), seed)
    found, *rest = statistics.programs(z[cells], decoded.expression(cells), n_programs, weights)
    sets, n_programs = [other.loadings for other in rest], found.loadings.shape[1]
    for other in others:
        of_other = _Decoded(adata, other, batch)
        (one,) = statistics.programs(of_other.z[cells], of_other.expression(cells), n_programs, strict=False)
        sets.append(one.loadings[other.gene_names.get_indexer(model.gene_names)])
    names = [f"program_{number}" for number in range(1, n_programs + 1)]
    loadings = np.full((adata.n_vars, n_programs), np.nan, dtype=np.float32)
    at = model.gene_names.get_indexer(adata.var_names)  # -1: not modelled
    loadings[at >= 0] = found.loadings[at[at >= 0]]
    adata.varm[key_added] = loadings
    adata.obsm[f"X_{key_added}"] = ((z - found.centre) @ found.axes).astype(np.float32)
    stability = statistics.stability(found.loadings, sets)
    adata.uns[key_added] = {
        "batches": np.array(list(map(str, decoded.batches))), "n_genes": n_genes, "max_cells": max_cells, "seed": seed,
        "stability_over": "models" if others else "resamples of cells",
        "programs": pd.DataFrame({"program": names, "variance": found.fraction, "stability": stability}),
        "table": statistics.table(found.loadings, model.gene_names, names, n_genes),
    }  # fmt: skip
    return None


def _checked(models: Sequence[SCCVAE], model: SCCVAE) -> list[SCCVAE]:
    """Raise unless all are trained models with the genes of `model`."""
    if not isinstance(models, list | tuple):
        raise TypeError(f"models is of type {type(models).__name__}; expected a list of trained SCCVAE.")
    for number, other in enumerate(models):
        if not isinstance(other, SCCVAE):
            raise TypeError(f"models[{number}] is of type {type(other).__name__}; expected a trained SCCVAE.")
        if not other.is_trained:
            raise ValueError(f"models[{number}] is not trained; expected a trained SCCVAE: call train() first.")
        if other.likelihood.support != "counts" or set(other.gene_names) != set(model.gene_names):
            raise ValueError(
                f"models[{number}] models {len(other.gene_names):,} genes by {other.likelihood.name!r}; expected "
                f"counts of the same {len(model.gene_names):,} genes as model."
            )
    return list(models)


class _Decoded:
    """Latent representation of the cells by a model, and their log expression."""

    def __init__(self, adata: AnnData, model: SCCVAE, batch: str | Sequence[str] | None):
        self.model, source = model, model.source_of(adata)
        self.batches: list[Any] = list(model.batches if batch is None else [batch] if np.isscalar(batch) else batch)
        if not self.batches:
            raise ValueError("batch is an empty list; expected the name of a batch, several, or None for all.")
        self.z = np.asarray(model.get_latent_representation(source))
        self.library_size = float(np.median(model.get_latent_library_size(source)))

    def expression(self, cells: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (rows, log2 expression of some cells, averaged over batches, (cells, genes)) chunk by chunk."""
        n_genes = len(self.model.gene_names)
        size = max(1, VALUES // n_genes)
        for start in range(0, len(cells), size):
            rows = slice(start, min(start + size, len(cells)))
            total = np.zeros((rows.stop - rows.start, n_genes))
            for batch in self.batches:
                decoded = self.model.decode(self.z[cells[rows]], batch=batch, library_size=self.library_size)
                total += np.log2(decoded.astype(np.float64) + LEAST)
            yield rows, total / len(self.batches)
