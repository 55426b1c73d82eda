"""Simulated cells: the tree of cell types, library sizes, genes, and blocks of cells sampled from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log, sqrt
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq
from scipy.sparse import csr_matrix
from scipy.special import expit

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Cells are sampled in blocks of this many, each block from its own random stream. Memory is therefore bounded, and cell
# n does not depend on the number of cells. Changing this number changes every simulated data set.
BLOCK = 256


@dataclass(frozen=True)
class Tree:
    """Cell types as segments of a binary tree in latent space."""

    proportions: NDArray  # (types,)
    parent: NDArray  # (types,), -1 for the root
    start: NDArray  # (types, latent)
    end: NDArray  # (types, latent)
    depth: NDArray  # (types,), number of segments above
    noise: float  # sd of z around its segment, per dimension

    @classmethod
    def draw(cls, rng: np.random.Generator, n_types: int, n_latent: int) -> Tree:
        """Sample a tree."""
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
class Libraries:
    """Log-normal distribution of the library size in each batch."""

    log_mean: NDArray  # (batches,)
    log_sd: NDArray  # (batches,)

    @classmethod
    def draw(cls, rng: np.random.Generator, n_batches: int, mean_library: float) -> Libraries:
        """Sample the batches' distributions."""
        log_sd = rng.uniform(0.25, 0.45, n_batches)
        depth = np.exp(0.3 * rng.standard_normal(n_batches))  # batches are sequenced to different depths
        return cls(np.log(mean_library * depth / depth.mean()) - log_sd**2 / 2, log_sd)


@dataclass(frozen=True)
class Genes:
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
        cls, rng: np.random.Generator, tree: Tree, n_genes: int, n_batches: int, batch_strength: float, dropout: float
    ) -> Genes:
        """Sample the genes' parameters."""
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

    def _with_mean_dropout(self, rng: np.random.Generator, tree: Tree, dropout: float) -> Genes:
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
class BlockOfCells:
    """Cells from one random stream."""

    z: NDArray  # (cells, latent)
    cell_type: NDArray  # (cells,)
    gradient: NDArray  # (cells,)
    batch: NDArray  # (cells,)
    library: NDArray  # (cells,)
    counts: csr_matrix  # (cells, genes)

    def part(self, cells: slice) -> BlockOfCells:
        """Return some of the cells."""
        return BlockOfCells(**{name: array[cells] for name, array in vars(self).items()})


def _draw_latent(rng: np.random.Generator, tree: Tree) -> tuple[NDArray, NDArray, NDArray]:
    """Sample one block of cells on the tree: z (cells, latent), cell types and positions along them (cells,)."""
    cell_type = rng.choice(len(tree.parent), size=BLOCK, p=tree.proportions)
    position = rng.uniform(size=BLOCK)
    z = tree.start[cell_type] + position[:, None] * (tree.end - tree.start)[cell_type]
    z += tree.noise * rng.standard_normal(z.shape)
    return z.astype(np.float32), cell_type, position


def draw_block(seed: int, number: int, tree: Tree, libraries: Libraries, genes: Genes) -> tuple[BlockOfCells, NDArray]:
    """Sample block `number` of the data and its rho (cells, genes), independently of other blocks."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, number)))
    z, cell_type, position = _draw_latent(rng, tree)
    batch = rng.integers(len(libraries.log_mean), size=BLOCK)
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
    return BlockOfCells(z, cell_type, gradient, batch, library, csr_matrix(counts)), rho
