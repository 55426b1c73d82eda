"""Simulation of an AnnData from the generative model, in memory or as files of any size.

May import `io` and `validation`.
"""

from sccvae.simulate.simulation import simulate

__all__ = ["simulate"]
