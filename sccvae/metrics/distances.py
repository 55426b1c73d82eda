"""Distance scores of two samples, (cells, features) dense or sparse, or of latent representations; in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from scipy.sparse import csr_array, issparse, vstack

from sccvae.validation.arguments import FLOAT32, checked_seed, finite, limit, positive, unless_none, whole
from sccvae.validation.names import with_columns_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    Matrix: TypeAlias = Any  # ArrayLike, or any SciPy sparse matrix or array

__all__ = [
    "MMD",
    "PathLogDensity",
    "PrecisionCoverage",
    "line_log_density",
    "mmd",
    "path_log_density",
    "precision_coverage",
    "prior_fit",
    "spurious",
]

_BLOCK = 1024  # rows of a distance matrix in memory at a time


class MMD(NamedTuple):
    """Squared maximum mean discrepancy and its permutation p-value.

    Examples
    --------
    >>> import numpy as np
    >>> from sccvae import generation
    >>> z = np.random.default_rng(0).normal(size=(100, 2))
    >>> result = generation.mmd(z[:50], z[50:])
    >>> result.value < 0.1, result.p_value > 0.01
    (True, True)
    """

    value: float
    p_value: float


class PrecisionCoverage(NamedTuple):
    """Fraction of generated cells near real cells, and of real cells near generated cells.

    Examples
    --------
    >>> import numpy as np
    >>> from sccvae import generation
    >>> z = np.random.default_rng(0).normal(size=(100, 2))
    >>> result = generation.precision_coverage(z[:50], z[50:])
    >>> result.precision > 0.8, result.coverage > 0.8
    (True, True)
    """

    precision: float
    coverage: float


class PathLogDensity(NamedTuple):
    """Log density on lines between cells in latent space minus that at the cells, in nats, for z and for N(0, I).

    Examples
    --------
    >>> import numpy as np
    >>> from sccvae import generation
    >>> result = generation.path_log_density(np.random.default_rng(0).normal(size=(100, 2)))
    >>> result.value > 0, result.reference > 0
    (True, True)
    """

    value: float
    reference: float


# ---------------------------------------------------------------------------------------------------------- two samples


def mmd(
    x: Matrix,
    y: Matrix,
    *,
    n_permutations: int = 200,
    bandwidth: float | None = None,
    max_cells: int | None = 2_000,
    seed: int = 0,
) -> MMD:
    r"""Compute the unbiased squared maximum mean discrepancy (Gaussian kernel) and its permutation p-value.

    .. math:: \mathrm{MMD}^2 = E\,k(x, x') + E\,k(y, y') - 2 E\,k(x, y), \quad k(a, b) = e^{-|a-b|^2 / (2 h^2)}

    with means over pairs of different cells (equation 3 of [1]_). The p-value is the fraction of random relabellings of
    the pooled cells, the given labelling included, whose value is at least as large.

    Parameters
    ----------
    x, y
        Features, (cells, features) each, at least two cells of each.
    n_permutations
        Number of relabellings; the p-value is at least ``1 / (n_permutations + 1)``.
    bandwidth
        :math:`h`; ``None`` takes the median distance between pooled cells.
    max_cells
        Largest number of cells of each, sampled at random; ``None`` takes all. Memory is about 100 bytes times its
        square.
    seed
        Seed of the random sample of cells and of the relabellings.

    Returns
    -------
    MMD
        ``value``: 0 on average for two samples of one distribution, so small negative values occur; at most 2.
        ``p_value``: in (0, 1], uniform for two samples of one distribution.

    Raises
    ------
    ValueError
        The arrays do not match or are not finite; more than half of all distances are 0 and no `bandwidth` is given.

    References
    ----------
    .. [1] Gretton et al., A kernel two-sample test, Journal of Machine Learning Research 13 (2012).

    Examples
    --------
    >>> import numpy as np
    >>> from sccvae import generation
    >>> z = np.random.default_rng(0).normal(size=(100, 2))
    >>> value, p_value = generation.mmd(z[:50], z[50:] + 3)  # two distributions
    >>> p_value < 0.01
    True
    """
    x, y = checked_pair(x, y, names=("x", "y"), max_cells=max_cells, seed=seed)
    n_permutations = positive("n_permutations", n_permutations)
    what = "a distance > 0, or None for the median distance"
    bandwidth = unless_none(finite, "bandwidth", bandwidth, what, above=0, most=FLOAT32)
    both, n, m = stacked(*_centred(x, y)), x.shape[0], y.shape[0]
    kernel = np.concatenate(list(squared_distances(both, both)))  # squared distances, for now
    if bandwidth is None:
        bandwidth = float(np.sqrt(np.median(kernel[~np.eye(n + m, dtype=bool)], overwrite_input=True)))
        if bandwidth == 0:
            raise ValueError(
                "bandwidth is None and more than half of the pairs of cells have distance 0; expected a median above "
                "0: pass bandwidth, such as 1.0."
            )
    kernel /= -2 * bandwidth**2
    np.exp(kernel, out=kernel)
    np.fill_diagonal(kernel, 0)
    in_x = np.zeros((n + m, 1 + n_permutations))  # a column per labelling, the given one first
    in_x[:n, 0] = 1
    rng = stream(seed, 2)
    for labelling in range(1, 1 + n_permutations):
        in_x[rng.permutation(n + m)[:n], labelling] = 1
    sums = kernel.sum(1)
    xx, x_any = (in_x * (kernel @ in_x)).sum(0), sums @ in_x
    xy, yy = x_any - xx, sums.sum() + xx - 2 * x_any
    values = xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)
    larger = values[1:] >= values[0] - 1e-12  # values that differ by rounding alone count as equal
    return MMD(float(values[0]), float((1 + larger.sum()) / (1 + n_permutations)))


def precision_coverage(
    real: Matrix, generated: Matrix, *, n_neighbors: int = 5, max_cells: int | None = 5_000, seed: int = 0
) -> PrecisionCoverage:
    """Compute precision (fidelity of generated cells) and coverage (diversity relative to real cells).

    Of [1]_ and [2]_. Balls around real cells have the distance to the `n_neighbors`-th nearest real cell as radius.

    Parameters
    ----------
    real, generated
        Features, (cells, features) each. Coverage grows with the number of generated cells: use as many as real cells.
    n_neighbors
        Below the number of real cells.
    max_cells, seed
        As in `mmd`.

    Returns
    -------
    PrecisionCoverage
        ``precision``: fraction of generated cells in some real cell's ball. ``coverage``: fraction of real cells whose
        ball contains a generated cell. Both are between 0 and 1, higher is better. A perfect generator of as many cells
        has a mean coverage of ``1 - 2**-n_neighbors`` (0.969 for 5) for any distribution.

    Raises
    ------
    ValueError
        The arrays do not match or are not finite; there are too few real cells.

    References
    ----------
    .. [1] Kynkäänniemi et al., Improved precision and recall metric for assessing generative models, NeurIPS 2019.
    .. [2] Naeem et al., Reliable fidelity and diversity metrics for generative models, ICML 2020.

    Examples
    --------
    Real cells of two types, and a generator that makes one of them:

    >>> import numpy as np
    >>> from sccvae import generation
    >>> rng = np.random.default_rng(0)
    >>> real = np.concatenate([rng.normal(size=(50, 2)), rng.normal(10, 1, size=(50, 2))])
    >>> precision, coverage = generation.precision_coverage(real, rng.normal(size=(100, 2)))
    >>> precision > 0.8, coverage < 0.6
    (True, True)
    """
    real, generated = _centred(*checked_pair(real, generated, max_cells=max_cells, seed=seed, least=1))
    radius2 = _other_neighbour2(real, n_neighbors) * (1 + 1e-9)  # a cell on the edge is inside, despite rounding
    inside, covered = 0, np.zeros(real.shape[0], dtype=bool)
    for distance2 in squared_distances(generated, real):
        hit = distance2 <= radius2  # (block of generated, real)
        inside += int(hit.any(1).sum())
        covered |= hit.any(0)
    return PrecisionCoverage(inside / generated.shape[0], float(covered.mean()))


def spurious(
    real: Matrix, generated: Matrix, *, quantile: float = 0.99, max_cells: int | None = 5_000, seed: int = 0
) -> float:
    """Compute the fraction of generated cells that are farther from all real cells than real cells from each other.

    Parameters
    ----------
    real, generated
        Features, (cells, features) each.
    quantile
        The threshold is this quantile of the real cells' distances to their nearest real neighbour, in (0, 1).
    max_cells, seed
        As in `mmd`.

    Returns
    -------
    float
        Between 0 and 1; about ``1 - quantile`` for a perfect generator, 0 for copies of real cells, higher for cells
        of no real cell type. One threshold serves all cells: cells in a narrow gap between cell types are not detected.

    Raises
    ------
    ValueError
        The arrays do not match or are not finite; there are fewer than two real cells; `quantile` is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from sccvae import generation
    >>> z = np.random.default_rng(0).normal(size=(100, 2))
    >>> generation.spurious(z[:50], z[50:] + 20)  # far from every real cell
    1.0
    """
    quantile = finite("quantile", quantile, "a fraction between 0 and 1, such as 0.99", above=0, below=1)
    real, generated = _centred(*checked_pair(real, generated, max_cells=max_cells, seed=seed, least=1))
    limit = np.quantile(np.sqrt(_other_neighbour2(real, 1)), quantile) * (1 + 1e-9)
    nearest2 = np.concatenate([distance2.min(1) for distance2 in squared_distances(generated, real)])
    return float(np.mean(np.sqrt(nearest2) > limit))


# -------------------------------------------------------------------------------------------------------- latent space


def prior_fit(z: ArrayLike, *, n_permutations: int = 200, max_cells: int | None = 2_000, seed: int = 0) -> MMD:
    """Compare latent representations with as many samples from N(0, I), by `mmd`.

    A difference means that samples from the prior fall into regions of the latent space without cells.

    Parameters
    ----------
    z
        Samples from q(z|x), one per cell, (cells, dimensions). Posterior means vary less than the prior by design.
    n_permutations, max_cells, seed
        As in `mmd`.

    Returns
    -------
    MMD
        Value and p-value. Judge by the value: with many cells, any difference has a small p-value.

    Raises
    ------
    ValueError
        `z` is not a dense matrix of finite numbers of at least three cells.

    Examples
    --------
    >>> import numpy as np
    >>> from sccvae import generation
    >>> z = np.random.default_rng(0).normal(size=(100, 2))
    >>> generation.prior_fit(z).value < generation.prior_fit(3 * z).value
    True
    """
    z = _latent(z, max_cells, seed)
    return mmd(z, stream(seed, 3).standard_normal(z.shape), n_permutations=n_permutations, max_cells=None, seed=seed)


def path_log_density(
    z: ArrayLike,
    *,
    n_pairs: int = 500,
    n_points: int = 10,
    n_neighbors: int = 10,
    max_cells: int | None = 5_000,
    seed: int = 0,
) -> PathLogDensity:
    """Compare the density of latent representations on lines between pairs of cells with that at the cells.

    A low density on the lines shows holes in the latent space. The density estimate is that of nearest neighbours,
    which has no bandwidth: minus d times the log distance to the `n_neighbors`-th nearest cell. The cell itself, or
    the two cells at the ends of the line, are left out.

    Parameters
    ----------
    z
        Latent representations (cells, dimensions), such as samples from q(z|x).
    n_pairs, n_points
        Number of lines between random pairs of different cells, and of evenly spaced points on each line.
    n_neighbors
        Smooths the density; at most the number of cells minus 2.
    max_cells, seed
        As in `mmd`.

    Returns
    -------
    PathLogDensity
        ``value``: mean log density at the points minus that at the cells, in nats. ``reference``: that difference for
        as many samples from N(0, I), about d / 6 in few dimensions, because lines are nearer to the centre than their
        ends. A value far below the reference, or below 0, means that lines cross holes.

    Raises
    ------
    ValueError
        `z` is not a matrix of finite numbers, has too few cells, or a cell has `n_neighbors` duplicates.

    Examples
    --------
    Two clusters with a gap between them:

    >>> import numpy as np
    >>> from sccvae import generation
    >>> z = np.random.default_rng(0).normal(size=(100, 2))
    >>> z[:50] += 20
    >>> generation.path_log_density(z).value < 0
    True
    """
    n_pairs, n_points = positive("n_pairs", n_pairs), positive("n_points", n_points)
    z = _latent(z, max_cells, seed)
    normal = stream(seed, 4).standard_normal(z.shape)
    rng = stream(seed, 5)
    first = rng.integers(len(z), size=n_pairs)
    second = (first + rng.integers(1, len(z), size=n_pairs)) % len(z)
    along = (np.arange(n_points) + 0.5) / n_points
    densities = (line_log_density(points, first, second, along, n_neighbors=n_neighbors) for points in (z, normal))
    return PathLogDensity(*(float(density.mean()) for density in densities))


def line_log_density(z: Any, first: Any, second: Any, along: Any, *, n_neighbors: int = 10) -> NDArray:
    """Compute the log density on lines between pairs of cells, minus its mean at the cells: see `path_log_density`.

    Parameters
    ----------
    z
        Latent representations (cells, dimensions).
    first, second
        Numbers of the cells at the ends of the lines, (lines,) each.
    along
        (points,) positions on each line: 0 is the first end, 1 the second.

    Returns
    -------
    numpy.ndarray
        (lines, points), in nats. Raises as `path_log_density` does.

    Examples
    --------
    >>> import numpy as np
    >>> from sccvae import generation
    >>> z = np.random.default_rng(0).normal(size=(100, 2))
    >>> generation.line_log_density(z, [0, 1], [2, 3], along=[0.25, 0.5, 0.75]).shape
    (2, 3)
    """
    along, first, second = np.asarray(along), np.asarray(first), np.asarray(second)
    n_cells = len(z := _latent(z, None, 0))
    if not 1 <= (n_neighbors := whole("n_neighbors", n_neighbors)) <= n_cells - 2:
        raise ValueError(f"n_neighbors is {n_neighbors} for {n_cells} cells; expected 1 to {n_cells - 2}.")
    z -= z.mean(0)
    points = (z[first][:, None] + along[:, None] * (z[second] - z[first])[:, None]).reshape(-1, z.shape[1])
    ends = np.repeat(np.column_stack([first, second]), len(along), axis=0)
    at_cells = _log_distance(_kth_smallest(z, z, n_neighbors, np.arange(n_cells)[:, None])).mean()
    at_points = _log_distance(_kth_smallest(points, z, n_neighbors, ends)).reshape(len(first), len(along))
    # Constants of the dimension and of n_neighbors are equal for both and cancel.
    return z.shape[1] * (at_cells - at_points) + np.log((n_cells - 1) / (n_cells - 2))


def _latent(z: Any, max_cells: int | None, seed: int) -> NDArray:
    max_cells = unless_none(limit, "max_cells", max_cells, least=3)
    z = checked(z, "z", least=3)
    if issparse(z):
        raise ValueError("z is sparse; expected a dense latent representation, (cells, dimensions), not counts.")
    return as_float(sample(z, max_cells, stream(seed, 0)))


def _log_distance(distance2: NDArray) -> NDArray:
    if not distance2.all():
        raise ValueError(
            f"z has {np.sum(distance2 == 0)} points with n_neighbors duplicates, whose density is infinite; expected "
            "fewer: remove duplicates, or pass a larger n_neighbors."
        )
    return np.log(distance2) / 2


# ------------------------------------------------------------------------------------------------------------ distances


def squared_distances(x: Any, y: Any) -> Iterator[NDArray]:
    """Yield squared distances of each row of x to each row of y, in blocks of x; exactly 0 between equal rows."""
    x2, y2 = ((a * a).sum(1) for a in (x, y))
    for start in range(0, x.shape[0], _BLOCK):
        rows = slice(start, start + _BLOCK)
        product = x[rows] @ y.T
        size = x2[rows, None] + y2  # (block of x, y)
        distance2 = size - 2 * (product.toarray() if issparse(product) else product)
        distance2[distance2 < 1e-12 * size] = 0  # rounding
        yield distance2


def _kth_smallest(x: Any, y: Any, k: int, excluded: NDArray | None = None) -> NDArray:
    """Compute squared distances from rows of x to the k-th nearest row of y, without rows `excluded` (rows of x, n)."""
    found, start = [], 0
    for distance2 in squared_distances(x, y):
        if excluded is not None:
            np.put_along_axis(distance2, excluded[start : start + len(distance2)], np.inf, axis=1)
        found.append(np.partition(distance2, k - 1, axis=1)[:, k - 1])
        start += len(distance2)
    return np.concatenate(found)


def _other_neighbour2(x: Any, k: int) -> NDArray:
    """Compute the squared distance of each row to its k-th nearest other row."""
    if not 1 <= (k := whole("n_neighbors", k)) < x.shape[0]:
        raise ValueError(f"n_neighbors is {k} for {x.shape[0]} real cells; expected 1 to {x.shape[0] - 1}.")
    return _kth_smallest(x, x, k, np.arange(x.shape[0])[:, None])


def _centred(x: Any, y: Any) -> tuple[Any, Any]:
    """Subtract the mean of x from dense x and y: squared distances lose digits far from the origin."""
    if issparse(x):
        return x, y
    mean = x.mean(0)
    return x - mean, y - mean


# ------------------------------------------------------------------------------------------------------------ arguments


def stream(seed: int, use: int) -> np.random.Generator:
    """Return a random generator per use, different from `default_rng(seed)`, which may have sampled z."""
    return np.random.default_rng(np.random.SeedSequence(checked_seed(seed), spawn_key=(7, use)))


def checked(x: Matrix, name: str, *, nonnegative: bool = False, least: int = 2) -> Any:
    """Return x as an array or csr_array, neither copied nor changed; raise if x is invalid."""
    x = csr_array(x) if issparse(x) else np.asarray(x)
    if x.ndim != 2 or x.dtype.kind not in "biuf" or x.shape[1] < 1:
        raise ValueError(
            f"{name} has shape {x.shape} and dtype {x.dtype}; expected numbers of shape (cells, columns), dense or "
            "sparse, such as adata.X."
        )
    if x.shape[0] < least:
        raise ValueError(f"{name} has {x.shape[0]} cells; expected at least {least}.")
    values = x.data if issparse(x) else x
    huge = np.abs(values) > 1e100 if x.dtype.itemsize > 4 else np.isnan(values)
    for bad, what, want in (
        (~np.isfinite(values), "NaN or infinite", "finite numbers"),
        (huge, "huge", "numbers of at most 1e100, whose squares are finite"),
        (values < 0 if nonnegative else np.zeros(0, dtype=bool), "negative", "counts, not scaled or centred values"),
    ):
        if bad.any():
            place = np.flatnonzero(bad)[0] if issparse(x) else np.flatnonzero(bad.any(1))[0]
            cell = np.searchsorted(x.indptr, place, side="right") - 1 if issparse(x) else place
            raise ValueError(f"{name} has {bad.sum()} {what} values, first in cell {cell}; expected {want}.")
    return x


def checked_pair(
    x: Matrix,
    y: Matrix,
    *,
    names: tuple[str, str] = ("real", "generated"),
    nonnegative: bool = False,
    least: int = 2,
    max_cells: int | None = None,
    balanced: bool = False,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Check two matrices and sample at most `max_cells` cells of each; float64, both sparse or both dense."""
    y = with_columns_of(x, y, names)
    x, y = (checked(a, name, nonnegative=nonnegative, least=least) for a, name in zip((x, y), names, strict=True))
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{names[0]} has {x.shape[1]} columns but {names[1]} has {y.shape[1]}; expected the same genes or features "
            "in the same order. Keep the genes that both have, as in adata[:, shared].X."
        )
    max_cells = unless_none(limit, "max_cells", max_cells, least=max(least, 2))
    if balanced:
        max_cells = min(x.shape[0], y.shape[0], *([] if max_cells is None else [max_cells]))
    rng = stream(seed, 0)
    x, y = (as_float(sample(a, max_cells, rng)) for a in (x, y))
    if issparse(x) != issparse(y):
        x, y = (a.toarray() if issparse(a) else a for a in (x, y))
    return x, y


def sample(x: Any, max_cells: int | None, rng: np.random.Generator) -> Any:
    if max_cells is None or x.shape[0] <= max_cells:
        return x
    return x[np.sort(rng.choice(x.shape[0], size=max_cells, replace=False))]


def as_float(x: Any) -> Any:
    """Return a float64 copy; duplicate entries of a sparse array are summed."""
    x = x.astype(np.float64)
    if issparse(x):
        x.sum_duplicates()
    return x


def stacked(x: Any, y: Any) -> Any:
    return vstack([x, y], format="csr") if issparse(x) else np.concatenate([x, y])
