"""Plots. Every function returns a `matplotlib.figure.Figure` and draws it nowhere else unless `show=True`.

The AnnData and matplotlib's settings stay as they were.
"""

from sccvae.pl.embedding import integration
from sccvae.pl.gradient import gradient, trends
from sccvae.pl.ranking import dotplot, volcano
from sccvae.pl.similarity import similarity
from sccvae.pl.training import history

__all__ = ["dotplot", "gradient", "history", "integration", "similarity", "trends", "volcano"]
