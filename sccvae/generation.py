"""Public module for scores of generated cells, implemented in `sccvae.metrics.generation`."""

from sccvae.metrics.generation import *  # noqa: F403
from sccvae.metrics.generation import __all__ as __all__
