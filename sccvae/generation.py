"""Scores of generated cells, under the name that users import; they are written in `sccvae.metrics.generation`."""

from sccvae.metrics.generation import *  # noqa: F403
from sccvae.metrics.generation import __all__ as __all__
