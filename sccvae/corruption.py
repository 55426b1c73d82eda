"""Corruption processes C(x~ | x), whose inverse a `DenoisingAutoencoder` learns.

Each process takes a sparse matrix and a random generator and returns a new matrix; the input is unchanged.

===============  =======  ==================================================================================
process          data     an entry x~ given x
===============  =======  ==================================================================================
`Thinning`       counts   Binomial(x, kept): each molecule is kept with probability `kept`
`GeneDropout`    counts   0 with probability `lost`, else x
`GaussianNoise`  real     Normal(x, sd^2)
`SaltAndPepper`  binary   a fair coin with probability `rate`, else x
===============  =======  ==================================================================================
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp

from sccvae.validation.arguments import FLOAT32, finite

__all__ = ["Corruption", "GaussianNoise", "GeneDropout", "SaltAndPepper", "Thinning"]

Support = Literal["counts", "real", "binary"]


class Corruption:
    """Base class of all processes: type of data, and corruption of a matrix.

    Examples
    --------
    >>> from sccvae import corruption
    >>> issubclass(corruption.Thinning, corruption.Corruption), corruption.Thinning.support
    (True, 'counts')
    """

    support: ClassVar[Support]

    def __call__(self, x: sp.csr_matrix, rng: np.random.Generator) -> sp.csr_matrix:
        """Return a corrupted copy of `x`, (cells, genes) CSR float32 without stored zeros."""
        raise NotImplementedError


@dataclass(frozen=True)
class Thinning(Corruption):
    """Binomial thinning of counts, which simulates a lower sequencing depth.

    The thinned count has mean `kept` x and variance `kept` (1 - `kept`) x.

    Parameters
    ----------
    kept
        Probability that a molecule is kept, in (0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> import sccvae
    >>> x = sccvae.simulate.simulate(100, 30, seed=0).X
    >>> thinned = sccvae.corruption.Thinning(kept=0.5)(x, np.random.default_rng(0))
    >>> bool(0.45 < thinned.sum() / x.sum() < 0.55)
    True
    """

    support = "counts"
    kept: float = 0.5

    def __post_init__(self) -> None:
        _set(self, kept=_probability("Thinning", "kept", self.kept))

    def __call__(self, x, rng):  # noqa: D102
        return _with_data(x, rng.binomial(x.data.astype(np.int64), self.kept))


@dataclass(frozen=True)
class GeneDropout(Corruption):
    """Loss of a gene's whole count in a cell, independently for each entry, which simulates failed capture.

    Parameters
    ----------
    lost
        Probability that a count becomes 0, in (0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> import sccvae
    >>> x = sccvae.simulate.simulate(100, 30, seed=0).X
    >>> fewer = sccvae.corruption.GeneDropout(lost=0.2)(x, np.random.default_rng(0))
    >>> 0.7 < fewer.nnz / x.nnz < 0.9
    True
    """

    support = "counts"
    lost: float = 0.2

    def __post_init__(self) -> None:
        _set(self, lost=_probability("GeneDropout", "lost", self.lost))

    def __call__(self, x, rng):  # noqa: D102
        return _with_data(x, np.where(rng.random(len(x.data)) < self.lost, 0, x.data))


@dataclass(frozen=True)
class GaussianNoise(Corruption):
    """Independent normal noise on every entry, including zeros.

    Parameters
    ----------
    sd
        Standard deviation, above 0, in the units of the data.

    Examples
    --------
    >>> import numpy as np
    >>> import scipy.sparse as sp
    >>> import sccvae
    >>> noisy = sccvae.corruption.GaussianNoise(sd=0.5)(sp.csr_matrix((100, 30)), np.random.default_rng(0))
    >>> bool(0.4 < noisy.toarray().std() < 0.6)
    True
    """

    support = "real"
    sd: float = 0.5

    def __post_init__(self) -> None:
        _set(self, sd=finite("GaussianNoise: sd", self.sd, "a standard deviation above 0", above=0, most=FLOAT32))

    def __call__(self, x, rng):  # noqa: D102
        noise = rng.standard_normal(x.shape, dtype=np.float32)
        return sp.csr_matrix(x.toarray() + np.float32(self.sd) * noise)


@dataclass(frozen=True)
class SaltAndPepper(Corruption):
    """Replacement of entries of 0/1 data by fair coins, so that half of the replaced entries flip.

    Parameters
    ----------
    rate
        Probability that an entry is replaced, in (0, 1); an entry flips with probability `rate` / 2.

    Examples
    --------
    >>> import numpy as np
    >>> import scipy.sparse as sp
    >>> import sccvae
    >>> flipped = sccvae.corruption.SaltAndPepper(rate=0.2)(sp.csr_matrix((100, 30)), np.random.default_rng(0))
    >>> bool(0.05 < flipped.mean() < 0.15)
    True
    """

    support = "binary"
    rate: float = 0.2

    def __post_init__(self) -> None:
        _set(self, rate=_probability("SaltAndPepper", "rate", self.rate))

    def __call__(self, x, rng):  # noqa: D102
        flips = rng.random(x.shape, dtype=np.float32) < self.rate / 2
        return sp.csr_matrix(np.logical_xor(x.toarray(), flips), dtype=np.float32)


CORRUPTIONS: dict[str, type[Corruption]] = {
    cls.__name__: cls for cls in (Thinning, GeneDropout, GaussianNoise, SaltAndPepper)
}


def processes_for(support: Support, given: Corruption | Sequence[Corruption] | None) -> tuple[Corruption, ...]:
    """Return the processes to apply in sequence to data of a support; None selects the defaults.

    Raises
    ------
    TypeError, ValueError
        An element is not a corruption process, or is one for data of another support.
    """
    if given is None:
        defaults = {"counts": (Thinning(), GeneDropout()), "real": (GaussianNoise(),), "binary": (SaltAndPepper(),)}
        return defaults[support]
    processes = (given,) if not isinstance(given, Sequence) or isinstance(given, str) else tuple(given)
    fitting = [f"{name}()" for name, cls in CORRUPTIONS.items() if cls.support == support]
    expected = f"expected {' or '.join(fitting)} of sccvae.corruption, or a list of them"
    if not processes:
        raise ValueError(f"corruption is empty; {expected}.")
    for process in processes:
        if type(process) not in CORRUPTIONS.values():
            raise TypeError(f"corruption has {process!r}; {expected}.")
        if process.support != support:
            raise ValueError(f"corruption has {process!r}, which is for {process.support} data; {expected}.")
    return processes


def described(processes: Sequence[Corruption]) -> list[dict[str, Any]]:
    """Return a description of processes for JSON."""
    return [{"process": type(p).__name__, **asdict(p)} for p in processes]  # type: ignore[call-overload]


def understood(description: Sequence[dict[str, Any]]) -> tuple[Corruption, ...]:
    """Return the processes of a description by `described`."""
    return tuple(CORRUPTIONS[d["process"]](**{k: v for k, v in d.items() if k != "process"}) for d in description)


def _with_data(x: sp.csr_matrix, data: np.ndarray) -> sp.csr_matrix:
    """Return the matrix with other stored values, without zeros."""
    changed = sp.csr_matrix((data.astype(np.float32), x.indices.copy(), x.indptr.copy()), shape=x.shape)
    changed.eliminate_zeros()
    return changed


def _probability(process: str, name: str, value: float) -> float:
    return finite(f"{process}: {name}", value, "a probability above 0 and below 1", above=0, below=1)


def _set(process: Corruption, **values: float) -> None:
    """Set validated arguments, as floats for JSON, on a frozen process during its initialisation."""
    for name, value in values.items():
        object.__setattr__(process, name, value)
