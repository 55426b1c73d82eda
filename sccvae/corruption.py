"""Corruption processes C(x~ | x): what a `DenoisingAutoencoder` learns to undo.

Each takes a sparse matrix and a generator and returns another matrix; the one that it was given stays as it was.

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
    """Contract of all processes: which data they are for, and what they do to a matrix.

    Examples
    --------
    >>> from sccvae import corruption
    >>> issubclass(corruption.Thinning, corruption.Corruption), corruption.Thinning.support
    (True, 'counts')
    """

    support: ClassVar[Support]

    def __call__(self, x: sp.csr_matrix, rng: np.random.Generator) -> sp.csr_matrix:
        """A corrupted copy of `x`, (cells, genes) CSR float32 without stored zeros."""
        raise NotImplementedError


@dataclass(frozen=True)
class Thinning(Corruption):
    """Binomial thinning of counts: as if the cell had been sequenced less deeply.

    Mean `kept` x, variance `kept` (1 - `kept`) x.

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
    """Loss of a gene's whole count in a cell, gene by gene and cell by cell: as if its capture had failed.

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
    """Independent normal noise on every entry, the zeros included.

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
    """Entries of 0/1 data replaced by fair coins, so that half of those that are hit flip.

    Parameters
    ----------
    rate
        Probability that an entry is replaced, in (0, 1); it flips with half of that.

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
    """The processes to apply, one after another, to data of a kind; None takes the defaults.

    Raises
    ------
    TypeError, ValueError
        Something is not a corruption process, or is one for other data.
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
            raise TypeError(f"corruption holds {process!r}; {expected}.")
        if process.support != support:
            raise ValueError(f"corruption holds {process!r}, which is for {process.support} data; {expected}.")
    return processes


def described(processes: Sequence[Corruption]) -> list[dict[str, Any]]:
    """The processes as JSON can hold them."""
    return [{"process": type(p).__name__, **asdict(p)} for p in processes]  # type: ignore[call-overload]


def understood(description: Sequence[dict[str, Any]]) -> tuple[Corruption, ...]:
    """The processes that `described` wrote down."""
    return tuple(CORRUPTIONS[d["process"]](**{k: v for k, v in d.items() if k != "process"}) for d in description)


def _with_data(x: sp.csr_matrix, data: np.ndarray) -> sp.csr_matrix:
    """The matrix with other stored values, of which zeros are dropped."""
    changed = sp.csr_matrix((data.astype(np.float32), x.indices.copy(), x.indptr.copy()), shape=x.shape)
    changed.eliminate_zeros()
    return changed


def _probability(process: str, name: str, value: float) -> float:
    return finite(f"{process}: {name}", value, "a probability above 0 and below 1", above=0, below=1)


def _set(process: Corruption, **values: float) -> None:
    """Put what was read of the arguments, plain floats that JSON can hold, into a process that is being made."""
    for name, value in values.items():
        object.__setattr__(process, name, value)
