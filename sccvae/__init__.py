"""sccvae: a variational autoencoder of single-cell counts, for Scanpy workflows."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sccvae import corruption, datasets, generation, metrics, pl, simulate, tl
    from sccvae.io.storage import ModelFileError
    from sccvae.models.autoencoder import Autoencoder
    from sccvae.models.denoising_autoencoder import DenoisingAutoencoder
    from sccvae.models.sccvae import SCCVAE, cross_validate
    from sccvae.training.loop import TrainingError

__version__ = "0.1.0"  # read by pyproject.toml, so that a folder that is not installed has the version, too
__all__ = [
    "SCCVAE",
    "Autoencoder",
    "DenoisingAutoencoder",
    "ModelFileError",
    "TrainingError",
    "corruption",
    "cross_validate",
    "datasets",
    "generation",
    "metrics",
    "pl",
    "simulate",
    "tl",
]

_HOMES = {
    "SCCVAE": "sccvae.models.sccvae",
    "Autoencoder": "sccvae.models.autoencoder",
    "DenoisingAutoencoder": "sccvae.models.denoising_autoencoder",
    "ModelFileError": "sccvae.io.storage",
    "TrainingError": "sccvae.training.loop",
    "cross_validate": "sccvae.models.sccvae",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, because importing torch takes two seconds."""
    if name not in __all__:
        hint = import_module("sccvae.models.scvi_attributes").PACKAGE.get(name)
        raise AttributeError(f"module 'sccvae' has no attribute {name!r}" + (f". {hint}" if hint else ""))
    return getattr(import_module(_HOMES[name]), name) if name in _HOMES else import_module(f"sccvae.{name}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
