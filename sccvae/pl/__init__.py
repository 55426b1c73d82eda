"""Plots. Every function returns a `matplotlib.figure.Figure`, and shows it only if `show=True`.

The AnnData and matplotlib's settings are not changed.
"""

from sccvae.pl.conditions import condition_effect, differential_abundance
from sccvae.pl.diagnostics import diagnostics, history
from sccvae.pl.embedding import integration
from sccvae.pl.generation import generation, images
from sccvae.pl.genes.differential_expression import dotplot, volcano
from sccvae.pl.genes.programs import gene_programs
from sccvae.pl.latent import latent_grid, latent_scatter
from sccvae.pl.lines import interpolation
from sccvae.pl.mapping import mapping
from sccvae.pl.pseudotime import gradient, trends
from sccvae.pl.scores import score_table
from sccvae.pl.similarity import similarity

__all__ = [
    "condition_effect",
    "diagnostics",
    "differential_abundance",
    "dotplot",
    "gene_programs",
    "generation",
    "gradient",
    "history",
    "images",
    "integration",
    "interpolation",
    "latent_grid",
    "latent_scatter",
    "mapping",
    "score_table",
    "similarity",
    "trends",
    "volcano",
]
