"""Scanpy-style functions: they run a model on an AnnData and write the results back into it."""

from sccvae.tl.denoising import denoise
from sccvae.tl.integration import integrate, store
from sccvae.tl.ranking import rank_genes_groups
from sccvae.tl.scores import score_integration

__all__ = ["denoise", "integrate", "rank_genes_groups", "score_integration", "store"]
