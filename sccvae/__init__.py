"""sccvae: a variational autoencoder of single-cell counts, for Scanpy workflows."""

from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING

from sccvae import tl
from sccvae.model import SCCVAE
from sccvae.storage import ModelFileError
from sccvae.train import TrainingError

if TYPE_CHECKING:
    from sccvae import datasets, metrics, pl, simulate

__version__ = version("sccvae")
__all__ = ["SCCVAE", "ModelFileError", "TrainingError", "datasets", "metrics", "pl", "simulate", "tl"]


def __getattr__(name: str) -> ModuleType:
    """Import the leaves when they are first used: scikit-learn and the like would double the import time."""
    if name in __all__:
        return import_module(f"sccvae.{name}")
    raise AttributeError(f"module 'sccvae' has no attribute {name!r}")
