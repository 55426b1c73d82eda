"""Simulation of an AnnData from the generative model, with the true parameters stored beside the counts."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import vstack

from sccvae.io import anndata_files, files, in_blocks
from sccvae.simulate.blocks import BLOCK, BlockOfCells, Genes, Libraries, Tree, draw_block
from sccvae.validation.arguments import MOST, checked_seed, finite, flag, whole

__all__ = ["simulate"]

T = TypeVar("T")
_SIZES = ("n_cells", "n_genes", "n_batches", "n_types", "n_latent")
_RANGES: tuple[tuple[str, str, dict[str, float]], ...] = (
    ("batch_strength", "a number from 0 to 10, such as 0.5", {"least": 0, "most": 10}),
    ("dropout", "a probability in [0, 1), such as 0.1", {"least": 0, "below": 1}),
    ("mean_library", "molecules per cell, above 0 and at most 1e9, such as 300", {"above": 0, "most": 1e9}),
)
_LAYERS = ("rho", "rho_corrected", "dropout")
_TOGETHER = 2**25  # entries (cells x genes) that are written to a file at once
_AT_ONCE = 2**23  # entries that all threads sample at once: about 40 bytes each
_lock = threading.Lock()
_limits: list[Any] = []  # one for each simulation that runs: the limit on threads of BLAS


@overload
def simulate(n_cells: int = ..., n_genes: int = ..., *, out: None = None, **options: Any) -> AnnData: ...
@overload
def simulate(
    n_cells: int = ..., n_genes: int = ..., *, out: str | os.PathLike, n_files: None = None, **options: Any
) -> Path: ...
@overload
def simulate(
    n_cells: int = ..., n_genes: int = ..., *, out: str | os.PathLike, n_files: int, **options: Any
) -> list[Path]: ...
def simulate(  # type: ignore[misc]  # the options of the overloads are those that are here
    n_cells: int = 3000,
    n_genes: int = 1000,
    *,
    n_batches: int = 3,
    n_types: int = 6,
    n_latent: int = 10,
    batch_strength: float = 0.5,
    dropout: float = 0.1,
    mean_library: float = 300.0,
    keep_truth: bool | None = None,
    seed: int = 0,
    out: str | os.PathLike | None = None,
    n_files: int | None = None,
) -> AnnData | Path | list[Path]:
    r"""Simulate cells from the model that sccvae fits, along a branching gradient of cell types.

    Cell types are the segments of a binary tree in latent space: type :math:`k` begins at the end of type
    :math:`\lfloor (k-1)/2 \rfloor`. Cells are distributed uniformly along their segment, so neighbouring types form a
    continuum, as in differentiating tissue. For cell :math:`n` in batch :math:`s_n` and gene :math:`g`:

    .. math::

        z_n &= \text{point on the tree} + \text{Gaussian noise} \\
        l_n &\sim \mathrm{LogNormal}(\mu_{s_n}, \sigma_{s_n}^2) \\
        \rho_n &= \mathrm{softmax}(f(z_n, s_n)) \\
        w_{ng} &\sim \mathrm{Gamma}(\theta_g, \text{mean } l_n \rho_{ng}) \\
        x_{ng} &\sim \mathrm{Poisson}(w_{ng}) \text{ with probability } 1 - \pi_{ng}, \text{ else } 0

    This is the zero-inflated negative binomial of Lopez et al. [1]_ in its gamma-Poisson form. :math:`f` is linear
    in :math:`z` plus 16 tanh units. A batch shifts each gene by a separate amount. A batch also shifts the tanh units,
    so that the batch effect depends slightly on the state of the cell. All batches have the same proportions of types:
    in the true ``z``, batches are perfectly mixed.

    Parameters
    ----------
    n_cells, n_genes
        Size of the data. Cells ``0 .. n`` do not depend on ``n_cells``; the genes' parameters depend on ``n_genes``.
    n_batches, n_types, n_latent
        Number of batches, of cell types (segments of the tree), of latent dimensions.
    batch_strength
        Standard deviation over genes of the batch effect on the log of the expression; 0 means no batch effect.
    dropout
        Mean probability of zero inflation over all entries, in ``[0, 1)``, higher for genes of low expression. 0 gives
        negative binomial counts.
    mean_library
        Mean of the latent library size :math:`l` over all cells, in molecules. Cells have slightly fewer counts,
        because zero inflation removes some.
    keep_truth
        Store the three dense layers below: 12 bytes per cell and gene. All other truth is always stored. None stores
        them in memory, and not in files.
    seed
        Seed of the private random generators, not negative. The same arguments give the same data, whatever the number
        of threads.
    out
        File to write, ``.h5ad`` or ``.zarr``, replaced if it exists. Cells are sampled and written in blocks, so
        memory does not depend on their number. None returns them in memory.
    n_files
        Write so many files with consecutive cells: ``cells_0.h5ad``, ``cells_1.h5ad``, ... for ``cells.h5ad``. Each is
        written completely or not at all.

    Returns
    -------
    AnnData, or with `out` the path of the file, or with `n_files` the list of paths
        Counts in ``X`` (CSR, float32), cells x genes, at least one count in every cell, and the true parameters:

        - ``obsm["z"]`` (cells, n_latent), mean 0 and mean variance 1 over dimensions; ``obs["cell_type"]``,
          ``obs["batch"]``; ``obs["gradient"]``, the distance from the root along the tree, 0 to 1;
          ``obs["library"]``, the latent :math:`l` in molecules;
        - ``layers["rho"]``, expression of the cell in its own batch, rows sum to 1; ``layers["rho_corrected"]``, the
          mean over all batches of the expression of the cell in that batch; ``layers["dropout"]``, the probability of
          zero inflation :math:`\pi`;
        - ``var["theta"]``, the inverse dispersion; ``varm["batch_effect"]`` (genes, n_batches), in log units;
        - ``uns["simulate"]``: the arguments, ``log_library_mean`` and ``log_library_sd`` (n_batches,),
          ``type_proportions`` (n_types,), ``tree_parent`` (n_types,; -1 for the root), ``tree_start`` and
          ``tree_end`` (n_types, n_latent).

    Raises
    ------
    ValueError
        An argument is out of its range.
    OSError
        A file cannot be written, or the disk is full.

    References
    ----------
    .. [1] Lopez et al., Deep generative modeling for single-cell transcriptomics, Nature Methods 15 (2018), Methods.

    Examples
    --------
    >>> from sccvae import simulate
    >>> adata = simulate.simulate(200, 100, seed=1)
    >>> adata.shape, adata.layers["rho"].shape
    ((200, 100), (200, 100))
    >>> simulate.simulate(200, 100, seed=1, out="cells.h5ad").name
    'cells.h5ad'
    """
    arguments = {
        "n_cells": n_cells,
        "n_genes": n_genes,
        "n_batches": n_batches,
        "n_types": n_types,
        "n_latent": n_latent,
        "batch_strength": batch_strength,
        "dropout": dropout,
        "mean_library": mean_library,
        "seed": seed,
    }
    arguments = _checked(arguments)
    keep_truth = out is None if keep_truth is None else flag("keep_truth", keep_truth)
    paths = _paths(out, n_files, int(arguments["n_cells"]))
    simulation = _Simulation.of(arguments, keep_truth)
    ends = np.linspace(0, int(arguments["n_cells"]), max(len(paths), 1) + 1).astype(int).tolist()
    if out is None:
        (cells,) = simulation.cells(0, ends[-1], together=ends[-1])
        return cells
    together = max(_TOGETHER // simulation.n_genes, BLOCK)
    for path, first, last in zip(paths, ends[:-1], ends[1:], strict=True):
        in_blocks.write(simulation.cells(first, last, together), path, "out")
    return paths[0] if n_files is None else paths


def _checked(arguments: dict[str, int | float]) -> dict[str, int | float]:
    """Return the arguments of `simulate`; raise if one is out of its range."""
    read: dict[str, int | float] = {
        name: whole(name, arguments[name], least=2 if name == "n_genes" else 1, most=MOST) for name in _SIZES
    }
    for name, expected, limits in _RANGES:
        read[name] = finite(name, arguments[name], expected, **limits)
    return {**read, "seed": checked_seed(arguments["seed"])}


def _paths(out: str | os.PathLike | None, n_files: int | None, n_cells: int) -> list[Path]:
    """Return the files to write, none without `out`; raise if one cannot be written."""
    if out is None:
        if n_files is not None:
            raise ValueError(f"n_files is {n_files}, but out is None; expected the name of a file: out='cells.h5ad'.")
        return []
    given, paths = files.path_of(out, "out"), []
    if n_files is None:
        paths = [given]
    else:
        n_files = whole("n_files", n_files, least=1, most=n_cells)
        digits = len(str(n_files - 1))
        paths = [given.with_name(f"{given.stem}_{i:0{digits}d}{given.suffix}") for i in range(n_files)]
    for path in paths:
        anndata_files.checked(path, "out")
    return paths


@dataclass(frozen=True)
class _Simulation:
    """Parameters of a simulation, from which any range of its cells is sampled."""

    arguments: dict[str, int | float]
    keep_truth: bool
    tree: Tree
    libraries: Libraries
    genes: Genes

    @classmethod
    def of(cls, arguments: dict[str, int | float], keep_truth: bool) -> _Simulation:
        """Sample the parameters."""
        _, n_genes, n_batches, n_types, n_latent = (int(arguments[name]) for name in _SIZES)
        strength, dropout, library = (arguments[name] for name in ("batch_strength", "dropout", "mean_library"))
        rng = np.random.default_rng(np.random.SeedSequence(int(arguments["seed"]), spawn_key=(0,)))
        tree = Tree.draw(rng, n_types, n_latent)
        libraries = Libraries.draw(rng, n_batches, library)
        genes = Genes.draw(rng, tree, n_genes, n_batches, strength, dropout)
        return cls(arguments, keep_truth, tree, libraries, genes)

    @property
    def n_genes(self) -> int:
        return len(self.genes.theta)

    def cells(self, first: int, last: int, together: int) -> Iterator[AnnData]:
        """Yield the cells from `first` to `last`, exclusive, about `together` at a time."""
        numbers = range(first // BLOCK, -(-last // BLOCK))
        drawn = _in_order(self._draw, numbers, _n_threads(self.n_genes))
        step = -(-together // BLOCK)
        edges = [first, *(number * BLOCK for number in numbers[step::step]), last]
        with _one_thread_of_blas(), closing(drawn):
            for start, stop in pairwise(edges):
                yield self._assembled(start, stop, drawn)

    def _draw(self, number: int) -> tuple[BlockOfCells, dict[str, np.ndarray]]:
        """Sample a block of cells, and its layers."""
        block, rho = draw_block(int(self.arguments["seed"]), number, self.tree, self.libraries, self.genes)
        if not self.keep_truth:
            return block, {}
        corrected, dropout = self.genes.corrected_expression(block.z), self.genes.dropout_probability(rho)
        return block, dict(zip(_LAYERS, (rho, corrected, dropout), strict=True))

    def _assembled(self, first: int, last: int, drawn: Iterator[tuple[BlockOfCells, dict[str, np.ndarray]]]) -> AnnData:
        """Assemble cells and parameters into an AnnData; blocks come from `drawn`, in order."""
        names = _LAYERS if self.keep_truth else ()
        layers = {name: np.empty((last - first, self.n_genes), dtype=np.float32) for name in names}
        blocks = []
        for start in range(first - first % BLOCK, last, BLOCK):
            # Whole blocks are sampled and then cut, because matrix products of fewer rows may round differently.
            block, truth = next(drawn)
            cells, place = (
                slice(max(first - start, 0), last - start),
                slice(max(start - first, 0), start - first + BLOCK),
            )
            for name, layer in truth.items():
                layers[name][place] = layer[cells]
            blocks.append(block.part(cells))
        return AnnData(
            X=vstack([block.counts for block in blocks], format="csr"),
            obs=self._obs(blocks, first),
            var=pd.DataFrame({"theta": self.genes.theta}, index=[f"gene_{i}" for i in range(self.n_genes)]),
            obsm={"z": np.concatenate([block.z for block in blocks])},
            varm={"batch_effect": self.genes.batch_effect.T.copy()},
            layers=layers,
            uns={"simulate": self._parameters()},
        )

    def _obs(self, blocks: list[BlockOfCells], first: int) -> pd.DataFrame:
        """Columns of the cells, of which the first has number `first`."""
        names = ("cell_type", "gradient", "batch", "library")
        joined = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in names}
        categorical = {
            name: pd.Categorical.from_codes(joined[name], [f"{prefix}_{i}" for i in range(n)])
            for name, prefix, n in (
                ("batch", "batch", len(self.libraries.log_mean)),
                ("cell_type", "type", len(self.tree.parent)),
            )
        }
        return pd.DataFrame(
            {**categorical, "gradient": joined["gradient"], "library": joined["library"]},
            index=[f"cell_{i}" for i in range(first, first + len(joined["batch"]))],
        )

    def _parameters(self) -> dict[str, Any]:
        """Arguments and true parameters, for `uns`."""
        return {
            **self.arguments,
            "log_library_mean": self.libraries.log_mean,
            "log_library_sd": self.libraries.log_sd,
            "type_proportions": self.tree.proportions,
            "tree_parent": self.tree.parent,
            "tree_start": self.tree.start,
            "tree_end": self.tree.end,
        }


def _n_threads(n_genes: int) -> int:
    """Return OMP_NUM_THREADS or the number of usable cores, within the memory for blocks of so many genes."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(int(asked) if asked.isdigit() else cores, _AT_ONCE // (BLOCK * n_genes)))


@contextmanager
def _one_thread_of_blas() -> Iterator[None]:
    """Compute products of matrices in the calling thread: for small ones, the threads of BLAS mostly wait, busily.

    The limit is that of the process, and ends with the last simulation that runs.
    """
    from threadpoolctl import threadpool_limits

    with _lock:
        _limits.append(_limits[0] if _limits else threadpool_limits(1, user_api="blas"))
    try:
        yield
    finally:
        with _lock:
            limits = _limits.pop()
            if not _limits:
                limits.restore_original_limits()


def _in_order(function: Callable[[int], T], numbers: Iterable[int], n_threads: int) -> Generator[T, None, None]:
    """Yield results of a function in the order of its arguments, with at most `n_threads` + 1 of them ahead."""
    if n_threads == 1:
        yield from map(function, numbers)
        return
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            for number in numbers:
                waiting.append(pool.submit(function, number))
                if len(waiting) > n_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for result in waiting:
                result.cancel()
