"""Functions in Scanpy's manner: they apply a model to an AnnData and write the results into it."""

from sccvae.tl.conditions import condition_effect, confounding_table, split_counts
from sccvae.tl.differential_abundance import differential_abundance
from sccvae.tl.genes.denoising import denoise
from sccvae.tl.genes.differential_expression import rank_genes_groups
from sccvae.tl.genes.programs import gene_programs
from sccvae.tl.integration import integrate, store
from sccvae.tl.mapping import map_query, transfer_labels
from sccvae.tl.pseudobulk import pseudobulk
from sccvae.tl.pseudotime import gradient, trends
from sccvae.tl.scores import score_integration
from sccvae.tl.similarity import hierarchy, similarity

__all__ = [
    "condition_effect",
    "confounding_table",
    "denoise",
    "differential_abundance",
    "gene_programs",
    "gradient",
    "hierarchy",
    "integrate",
    "map_query",
    "pseudobulk",
    "rank_genes_groups",
    "score_integration",
    "similarity",
    "split_counts",
    "store",
    "transfer_labels",
    "trends",
]
