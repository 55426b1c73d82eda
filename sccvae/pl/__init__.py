"""Plots. Every function returns a `matplotlib.figure.Figure` and draws it nowhere else unless `show=True`.

The AnnData and matplotlib's settings stay as they were.
"""

from sccvae.pl.diagnostics import diagnostics
from sccvae.pl.embedding import integration
from sccvae.pl.scores import score_table
from sccvae.pl.training import history

__all__ = ["diagnostics", "history", "integration", "score_table"]
