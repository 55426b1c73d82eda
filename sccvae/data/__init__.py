"""Data loading from AnnData to sparse minibatches: reading and checking, compact storage, splits.

May import `validation`.
"""

from sccvae.data.counts import split

__all__ = ["split"]
