"""Simulation of an AnnData from the generative model, with the true parameters stored beside the counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log, sqrt
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.optimize import brentq
from scipy.sparse import csr_matrix, vstack
from scipy.special import expit

from sccvae.validation.arguments import MOST, checked_seed, finite, flag, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["simulate"]

# Cells are sampled in blocks of this many, each block from its own random stream. Memory is therefore bounded, and cell
# n does not depend on the number of cells. Changing this number changes every simulated data set.
_BLOCK = 256
_SIZES = ("n_cells", "n_genes", "n_batches", "n_types", "n_latent")
_RANGES: tuple[tuple[str, str, dict[str, float]], ...] = (
    ("batch_strength", "a number from 0 to 10, such as 0.5", {"least": 0, "most": 10}),
    ("dropout", "a probability in [0, 1), such as 0.1", {"least": 0, "below": 1}),
    ("mean_library", "molecules per cell, above 0 and at most 1e9, such as 300", {"above": 0, "most": 1e9}),
)


def simulate(
    n_cells: int = 3000,
    n_genes: int = 1000,
    *,
    n_batches: int = 3,
    n_types: int = 6,
    n_latent: int = 10,
    batch_strength: float = 0.5,
    dropout: float = 0.1,
    mean_library: float = 300.0,
    keep_truth: bool = True,
    seed: int = 0,
) -> AnnData:
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
        Store the three dense layers below: 12 bytes per cell and gene. All other truth is always stored.
    seed
        Seed of the private random generators, not negative. The same arguments give the same data.

    Returns
    -------
    AnnData
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

    References
    ----------
    .. [1] Lopez et al., Deep generative modeling for single-cell transcriptomics, Nature Methods 15 (2018), Methods.

    Examples
    --------
    >>> from sccvae import simulate
    >>> adata = simulate.simulate(200, 100, seed=1)
    >>> adata.shape, adata.layers["rho"].shape
    ((200, 100), (200, 100))
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
    n_cells, n_genes, n_batches, n_types, n_latent = (int(arguments[name]) for name in _SIZES)
    batch_strength, dropout, mean_library = (arguments[name] for name in ("batch_strength", "dropout", "mean_library"))
    keep_truth, seed = flag("keep_truth", keep_truth), int(arguments["seed"])
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    tree = _Tree.draw(rng, n_types, n_latent)
    libraries = _Libraries.draw(rng, n_batches, mean_library)
    genes = _Genes.draw(rng, tree, n_genes, n_batches, batch_strength, dropout)

    names = ("rho", "rho_corrected", "dropout") if keep_truth else ()
    layers = {name: np.empty((n_cells, n_genes), dtype=np.float32) for name in names}
    blocks = []
    for start in range(0, n_cells, _BLOCK):
        block, rho = _draw_block(seed, start // _BLOCK, tree, libraries, genes)
        n = min(_BLOCK, n_cells - start)
        if keep_truth:  # from whole blocks, because matrix products of fewer rows may round differently
            rows = slice(start, start + n)
            layers["rho"][rows] = rho[:n]
            layers["rho_corrected"][rows] = genes.corrected_expression(block.z)[:n]
            layers["dropout"][rows] = genes.dropout_probability(rho)[:n]
        blocks.append(block.first(n))
    return _assemble(blocks, layers, tree, libraries, genes, arguments)


def _checked(arguments: dict[str, int | float]) -> dict[str, int | float]:
    """Return the arguments of `simulate`; raise if one is out of its range."""
    read: dict[str, int | float] = {
        name: whole(name, arguments[name], least=2 if name == "n_genes" else 1, most=MOST) for name in _SIZES
    }
    for name, expected, limits in _RANGES:
        read[name] = finite(name, arguments[name], expected, **limits)
    return {**read, "seed": checked_seed(arguments["seed"])}


@dataclass(frozen=True)
class _Tree:
    """Cell types as segments of a binary tree in latent space."""

    proportions: NDArray  # (types,)
    parent: NDArray  # (types,), -1 for the root
    start: NDArray  # (types, latent)
    end: NDArray  # (types, latent)
    depth: NDArray  # (types,), number of segments above
    noise: float  # sd of z around its segment, per dimension

    @classmethod
    def draw(cls, rng: np.random.Generator, n_types: int, n_latent: int) -> _Tree:
        parent = (np.arange(n_types) - 1) // 2  # -1 for the root
        proportions = rng.dirichlet(np.full(n_types, 10.0))
        steps = rng.standard_normal((max(n_types, n_latent), n_latent))
        if n_types <= n_latent:
            steps = np.linalg.qr(steps.T)[0].T  # orthogonal, so that branches do not cross
        steps = steps[:n_types] / np.linalg.norm(steps[:n_types], axis=1, keepdims=True)
        start, depth = np.zeros_like(steps), np.zeros(n_types, dtype=int)
        for child in range(1, n_types):
            start[child] = start[parent[child]] + steps[parent[child]]
            depth[child] = depth[parent[child]] + 1
        noise = 0.15  # in lengths of a segment

        # Mean 0 and mean variance 1, from the moments of the tree, not of sampled cells.
        middle = start + steps / 2
        mean = proportions @ middle
        variance = proportions @ (((middle - mean) ** 2).sum(1) + 1 / 12) / n_latent + noise**2
        scale = 1 / sqrt(variance)
        start = (start - mean) * scale
        return cls(proportions, parent, start, start + steps * scale, depth, noise * scale)


@dataclass(frozen=True)
class _Libraries:
    """Log-normal distribution of the library size in each batch."""

    log_mean: NDArray  # (batches,)
    log_sd: NDArray  # (batches,)

    @classmethod
    def draw(cls, rng: np.random.Generator, n_batches: int, mean_library: float) -> _Libraries:
        log_sd = rng.uniform(0.25, 0.45, n_batches)
        depth = np.exp(0.3 * rng.standard_normal(n_batches))  # batches are sequenced to different depths
        return cls(np.log(mean_library * depth / depth.mean()) - log_sd**2 / 2, log_sd)


@dataclass(frozen=True)
class _Genes:
    """The decoder and other parameters of genes, as float32 arrays."""

    theta: NDArray  # (genes,)
    base: NDArray  # (genes,), log expression for z = 0 and hidden units 0
    linear: NDArray  # (latent, genes)
    hidden_in: NDArray  # (latent, hidden)
    hidden_bias: NDArray  # (batches, hidden)
    hidden_out: NDArray  # (hidden, genes)
    batch_effect: NDArray  # (batches, genes)
    dropout_logit: NDArray  # (genes,), -inf without zero inflation

    @classmethod
    def draw(
        cls, rng: np.random.Generator, tree: _Tree, n_genes: int, n_batches: int, batch_strength: float, dropout: float
    ) -> _Genes:
        n_latent, n_hidden = tree.start.shape[1], 16

        def normal(*shape: int) -> NDArray:
            return rng.standard_normal(shape, dtype=np.float32)

        # Few genes differ between cell types, most hardly change. The bound prevents one gene from dominating a cell.
        response = (2 * rng.beta(1, 3, n_genes)).astype(np.float32)
        per_batch = normal(n_batches, n_genes), normal(n_batches, n_hidden)
        gene_shift, hidden_shift = (x - x.mean(0) for x in per_batch)  # relative to the mean: one batch has no effect
        rescale = sqrt(n_batches / max(n_batches - 1, 1)) * batch_strength
        genes = cls(
            theta=np.exp(log(2.0) + np.float32(0.5) * normal(n_genes)),
            base=np.float32(1.7) * normal(n_genes),
            linear=response * normal(n_latent, n_genes) / np.float32(sqrt(n_latent)),
            hidden_in=normal(n_latent, n_hidden) / np.float32(sqrt(n_latent)),
            hidden_bias=normal(n_hidden) + np.float32(0.5 * rescale) * hidden_shift,
            hidden_out=response * normal(n_hidden, n_genes) / np.float32(sqrt(n_hidden)),
            batch_effect=np.float32(rescale) * gene_shift,
            dropout_logit=np.float32(0.5) * normal(n_genes),
        )
        return genes._with_mean_dropout(rng, tree, dropout)

    def expression(self, z: NDArray, batch: NDArray | int) -> NDArray:
        """Compute the decoder's softmax: (cells, latent) and (cells,) -> (cells, genes), float32, rows sum to 1."""
        hidden = np.tanh(z @ self.hidden_in + self.hidden_bias[batch])
        logits = z @ self.linear
        logits += hidden @ self.hidden_out
        logits += self.base
        logits += self.batch_effect[batch]
        logits -= logits.max(1, keepdims=True)
        rho = np.exp(logits, out=logits)
        rho /= rho.sum(1, keepdims=True)
        return rho

    def corrected_expression(self, z: NDArray) -> NDArray:
        """Compute the mean over batches of the expression of cells in that batch: (cells, genes)."""
        n_batches = len(self.batch_effect)
        total = self.expression(z, 0)
        for batch in range(1, n_batches):
            total += self.expression(z, batch)
        return total / np.float32(n_batches)

    def dropout_probability(self, rho: NDArray) -> NDArray:
        """Compute the probability of zero inflation, with odds ~ 1 / sqrt(expression): (cells, genes)."""
        logit = np.log(np.maximum(rho, np.float32(1e-30)) * np.float32(rho.shape[1]))
        logit *= np.float32(-0.5)
        logit += self.dropout_logit
        return expit(logit, out=logit)

    def _with_mean_dropout(self, rng: np.random.Generator, tree: _Tree, dropout: float) -> _Genes:
        """Return genes with `dropout_logit` shifted so that the mean probability of zero inflation is `dropout`."""
        if dropout == 0:
            return replace(self, dropout_logit=np.full_like(self.dropout_logit, -np.inf))
        z, _, _ = _draw_latent(rng, tree)
        rho = self.expression(z, rng.integers(len(self.batch_effect), size=len(z)))

        def excess(shift: float) -> float:
            moved = replace(self, dropout_logit=self.dropout_logit + np.float32(shift))
            return float(moved.dropout_probability(rho).mean(dtype=np.float64)) - dropout

        shift = brentq(excess, -50, 50, xtol=1e-4)
        return replace(self, dropout_logit=self.dropout_logit + np.float32(shift))


@dataclass(frozen=True)
class _Block:
    """Block of cells from one random stream."""

    z: NDArray  # (cells, latent)
    cell_type: NDArray  # (cells,)
    gradient: NDArray  # (cells,)
    batch: NDArray  # (cells,)
    library: NDArray  # (cells,)
    counts: csr_matrix  # (cells, genes)

    def first(self, n: int) -> _Block:
        return _Block(**{name: array[:n] for name, array in vars(self).items()})


def _draw_latent(rng: np.random.Generator, tree: _Tree) -> tuple[NDArray, NDArray, NDArray]:
    """Sample one block of cells on the tree: z (cells, latent), cell types and positions along them (cells,)."""
    cell_type = rng.choice(len(tree.parent), size=_BLOCK, p=tree.proportions)
    position = rng.uniform(size=_BLOCK)
    z = tree.start[cell_type] + position[:, None] * (tree.end - tree.start)[cell_type]
    z += tree.noise * rng.standard_normal(z.shape)
    return z.astype(np.float32), cell_type, position


def _draw_block(seed: int, number: int, tree: _Tree, libraries: _Libraries, genes: _Genes) -> tuple[_Block, NDArray]:
    """Sample block `number` of the data and its rho (cells, genes), independently of other blocks."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, number)))
    z, cell_type, position = _draw_latent(rng, tree)
    batch = rng.integers(len(libraries.log_mean), size=_BLOCK)
    library = rng.lognormal(libraries.log_mean[batch], libraries.log_sd[batch])
    rho = genes.expression(z, batch)
    kept = rng.random(rho.shape, dtype=np.float32) >= genes.dropout_probability(rho)
    rate = rng.standard_gamma(genes.theta, size=rho.shape, dtype=np.float32)
    rate *= rho
    rate *= (library[:, None] / genes.theta).astype(np.float32)
    rate *= kept
    counts = rng.poisson(rate).astype(np.float32)
    for cell in np.flatnonzero(counts.sum(1) == 0):
        # Cells need at least one count; one molecule is the most likely number where few are expected.
        chance = rho[cell] * (1 - genes.dropout_probability(rho[[cell]])[0])
        counts[cell, rng.choice(len(chance), p=chance.astype(np.float64) / chance.sum(dtype=np.float64))] = 1
    gradient = (tree.depth[cell_type] + position) / (tree.depth.max() + 1)
    return _Block(z, cell_type, gradient, batch, library, csr_matrix(counts)), rho


def _assemble(
    blocks: list[_Block], layers: dict[str, NDArray], tree: _Tree, libraries: _Libraries, genes: _Genes, arguments: dict
) -> AnnData:
    """Assemble blocks and parameters into an AnnData."""
    joined = {
        name: np.concatenate([getattr(block, name) for block in blocks])
        for name in ("z", "cell_type", "gradient", "batch", "library")
    }
    counts = vstack([block.counts for block in blocks], format="csr")
    n_cells, n_genes = counts.shape
    categorical = {
        name: pd.Categorical.from_codes(joined[name], [f"{prefix}_{i}" for i in range(n)])
        for name, prefix, n in (
            ("batch", "batch", len(libraries.log_mean)),
            ("cell_type", "type", len(tree.parent)),
        )
    }
    obs = pd.DataFrame(
        {**categorical, "gradient": joined["gradient"], "library": joined["library"]},
        index=[f"cell_{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame({"theta": genes.theta}, index=[f"gene_{i}" for i in range(n_genes)])
    parameters = {
        "log_library_mean": libraries.log_mean,
        "log_library_sd": libraries.log_sd,
        "type_proportions": tree.proportions,
        "tree_parent": tree.parent,
        "tree_start": tree.start,
        "tree_end": tree.end,
    }
    return AnnData(
        X=counts,
        obs=obs,
        var=var,
        obsm={"z": joined["z"]},
        varm={"batch_effect": genes.batch_effect.T.copy()},
        layers=layers,
        uns={"simulate": {**arguments, **parameters}},
    )
