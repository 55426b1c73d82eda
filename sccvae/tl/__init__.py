"""Scanpy-style functions: they run a model on an AnnData and write the results back into it."""

from sccvae.tl.gradient import gradient, trends
from sccvae.tl.integration import integrate, store
from sccvae.tl.ranking import rank_genes_groups
from sccvae.tl.similarity import hierarchy, similarity

__all__ = ["gradient", "hierarchy", "integrate", "rank_genes_groups", "similarity", "store", "trends"]
