"""sccvae: a variational autoencoder of single-cell counts, for Scanpy workflows."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # For mypy and editors, which read imports and do not run `__getattr__`; a test holds it against `_MODULES`.
    from sccvae import corruption as corruption
    from sccvae import datasets as datasets
    from sccvae import generation as generation
    from sccvae import metrics as metrics
    from sccvae import pl as pl
    from sccvae import simulate as simulate
    from sccvae import tl as tl
    from sccvae.data.schema import pack as pack
    from sccvae.io.storage import ModelFileError as ModelFileError
    from sccvae.models.autoencoder import Autoencoder as Autoencoder
    from sccvae.models.denoising_autoencoder import DenoisingAutoencoder as DenoisingAutoencoder
    from sccvae.models.sccvae import SCCVAE as SCCVAE
    from sccvae.models.sccvae import cross_validate as cross_validate
    from sccvae.training.finite import TrainingError as TrainingError

__version__ = "0.1.0"  # read by pyproject.toml, so that a folder that is not installed has the version, too

# Every public name, and the module that defines it; a module stands for itself.
_MODULES = {
    "SCCVAE": "sccvae.models.sccvae",
    "Autoencoder": "sccvae.models.autoencoder",
    "DenoisingAutoencoder": "sccvae.models.denoising_autoencoder",
    "ModelFileError": "sccvae.io.storage",
    "TrainingError": "sccvae.training.finite",
    "cross_validate": "sccvae.models.sccvae",
    "pack": "sccvae.data.schema",
    **{name: f"sccvae.{name}" for name in ("corruption", "datasets", "generation", "metrics", "pl", "simulate", "tl")},
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch alone takes two seconds."""
    if name not in _MODULES:
        hint = import_module("sccvae.models.scvi_tools.scvi_attributes").PACKAGE.get(name)
        raise AttributeError(f"module 'sccvae' has no attribute {name!r}" + (f". {hint}" if hint else ""))
    module = import_module(_MODULES[name])
    return module if _MODULES[name] == f"sccvae.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
