"""`DenoisingAutoencoder`, which generates cells by a Markov chain of corruption and reconstruction."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData

from sccvae.corruption import Corruption, described, processes_for, understood
from sccvae.data.counts import Minibatch
from sccvae.inference import generation, posterior
from sccvae.inference.noise import streams
from sccvae.kernels.parallel import alone
from sccvae.models.autoencoder import AutoencodingModel, checked_scale
from sccvae.modules.architecture import check_choices
from sccvae.modules.autoencoders import Denoiser, noise_start
from sccvae.modules.likelihoods import LIKELIHOODS, LikelihoodName
from sccvae.validation.arguments import check_choice, checked_seed, flag, positive, real, unless_none

Start = Literal["data", "noise"]


class DenoisingAutoencoder(AutoencodingModel):
    """Denoising autoencoder, trained to reconstruct cells from corrupted ones.

    Alternating corruption and reconstruction is a Markov chain whose stationary distribution estimates that of the data
    (Bengio, Yao, Alain & Vincent 2013, https://arxiv.org/abs/1305.6663). `generate` runs this chain.

    Parameters
    ----------
    adata, batch_key, layer, mask_var, round_counts, n_hidden, n_latent, n_layers, gene_likelihood, scale, seed, device
        As for `Autoencoder`.
    {dropout_rate}
        The default leaves none out, because the input is corrupted already.
    corruption
        Process of `sccvae.corruption`, or several, applied in turn. None takes `Thinning` and `GeneDropout` for counts,
        `GaussianNoise` for real values (set its `sd`, which is in their units), `SaltAndPepper` for 0/1 values. With
        more corruption the chain mixes faster, but samples are less sharp: given a corrupted cell, genes are sampled
        independently.
    walkback
        Train on the states that the chain visits. The chain starts at each cell and continues, with probability
        `continuation` per step, from a sample of the reconstruction; the cell is to be reconstructed from each
        corrupted state. Training takes about five times as long, mostly for sampling on the CPU. False corrupts each
        cell once.
    continuation
        Probability of another step, in (0, 1).

    Raises
    ------
    {input_errors}

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(300, 50, seed=0)
    >>> model = sccvae.DenoisingAutoencoder(adata, corruption=sccvae.corruption.Thinning(0.3))
    >>> model.train(max_epochs=2)
    >>> cells = model.generate(100, steps=20, start="noise")
    """

    kind: ClassVar[str] = "DenoisingAutoencoder"
    generated: ClassVar[tuple[str, ...]] = ("sccvae_library", "chain", "step")
    _vae: Denoiser

    def __init__(
        self,
        adata: AnnData,
        *,
        batch_key: str | None = None,
        layer: str | None = None,
        mask_var: str | np.ndarray | None = None,
        round_counts: bool = False,
        n_hidden: int = 256,
        n_latent: int = 20,
        n_layers: int = 1,
        dropout_rate: float = 0.0,
        gene_likelihood: LikelihoodName = "nb",
        scale: float | None = None,
        corruption: Corruption | Sequence[Corruption] | None = None,
        walkback: bool = True,
        continuation: float = 0.5,
        seed: int = 0,
        device: str | torch.device = "auto",
    ):
        check_choices(gene_likelihood=gene_likelihood)
        if not 0 < (continuation := real("continuation", continuation)) < 1:
            raise ValueError(
                f"continuation is {continuation}; expected a probability above 0 and below 1, such as 0.5. "
                "walkback=False corrupts each cell once."
            )
        sizes = {"n_hidden": n_hidden, "n_latent": n_latent, "n_layers": n_layers}
        options = {
            "scale": checked_scale(scale, gene_likelihood),
            "corruption": described(processes_for(LIKELIHOODS[gene_likelihood].support, corruption)),
            "continuation": continuation if flag("walkback", walkback) else 0.0,
        }
        data = (adata, batch_key, layer, mask_var, round_counts)
        self._build(*data, sizes, dropout_rate, gene_likelihood, seed, device, options)

    @staticmethod
    def _network(architecture, generator, kernels, options) -> Denoiser:
        chosen = {**options, "corruption": understood(options["corruption"])}
        return Denoiser(architecture, generator, kernels, **chosen)

    @property
    def corruption(self) -> tuple[Corruption, ...]:
        """The corruption processes, in the order in which they are applied.

        Examples
        --------
        >>> model.corruption
        (Thinning(kept=0.5), GeneDropout(lost=0.2))
        """
        return self._vae.corruption

    def corrupt(self, adata: AnnData | None = None, indices: Any = None, *, seed: int = 0) -> sp.csr_matrix:
        """Corrupt each cell once, (cells, genes) CSR float32.

        Examples
        --------
        >>> corrupted = model.corrupt()
        >>> bool(corrupted.sum() < adata.X.sum())
        True
        """
        seed = checked_seed(seed)
        return self._vae.corrupt(self._cells(adata, indices)[0].matrix, np.random.default_rng(seed))

    def generate(
        self,
        n_cells: int,
        *,
        steps: int = 50,
        thin: int = 10,
        n_chains: int | None = None,
        start: Start = "data",
        batch: str | Sequence[str] | None = None,
        seed: int = 0,
    ) -> AnnData:
        """Generate cells by Markov chains of corruption and reconstruction, many chains at a time.

        Each chain keeps the batch and, for counts, the library size of its start; see `sccvae.modules.autoencoders`.

        Parameters
        ----------
        n_cells
            Cells to return, over all chains.
        steps
            Steps of each chain before its first cell is taken (burn-in): the more, the less the start matters.
        thin
            Steps between two cells of one chain, if there are fewer chains than cells.
        n_chains
            Number of chains, among which the cells are split evenly. None runs one for each cell: cells are then
            independent given their starts.
        start
            `data`: training cells, sampled at random, each once before any is repeated. `noise`: batches in the
            proportions of the training data, library sizes from the batch's log-normal, and values independent of the
            data: Poisson counts of the same mean in every gene, N(0, 1), or Bernoulli(1/2).
        {generated_batch}

        Returns
        -------
        AnnData, chain after chain. `obs` has `chain` (its number), `step` (after which the cell was taken), the batch
        and, for counts, `sccvae_library`. `obsm["X_sccvae"]` has the code that the cell was sampled from.

        Raises
        ------
        ValueError
            A number is below 1, or the model was loaded without the data to start from.

        Examples
        --------
        >>> new = model.generate(20, steps=10, start="data")
        >>> new.obs[["chain", "step"]].shape
        (20, 2)
        """
        self._check_trained()
        n_cells, steps, thin = (positive(k, v) for k, v in {"n_cells": n_cells, "steps": steps, "thin": thin}.items())
        n_chains, seed = unless_none(positive, "n_chains", n_chains), checked_seed(seed)
        check_choice("start", start, get_args(Start))
        n_chains = min(n_chains or n_cells, n_cells)
        taken = np.arange(steps, steps + thin * -(-n_cells // n_chains), thin)
        rng = np.random.default_rng(seed)
        state, along = self._starts(n_chains, start, batch, rng)
        rng_of, parts = streams(rng), []
        for part, rows in enumerate(posterior.chunks(n_chains, posterior.SAMPLED)):
            parts.append(self._walk(state[rows], along.part(rows.start, rows.stop), taken, rng_of(part)))
        chains, steps_taken = np.repeat(np.arange(n_chains), len(taken)), np.tile(taken, n_chains)
        kept = (steps_taken - steps) // thin * n_chains + chains < n_cells  # the first chains give one cell more
        matrix, z = sp.vstack([x for x, _ in parts], format="csr")[kept], np.concatenate([z for _, z in parts])[kept]
        chains, steps_taken = chains[kept], steps_taken[kept]
        library = along.log_size.exp().numpy()[chains] if self.likelihood.has_library else None
        cells = self._generated(matrix, along.codes.numpy()[chains], z, library)
        cells.obs["chain"], cells.obs["step"] = chains, steps_taken
        return cells

    def _starts(
        self, n_chains: int, start: Start, batch: str | Sequence[str] | None, rng: np.random.Generator
    ) -> tuple[sp.csr_matrix, Minibatch]:
        """Initial values of the chains, (chains, genes), and their covariates and library sizes, on the CPU."""
        if start == "data":
            if (counts := self._counts) is None:
                raise ValueError(
                    "This model was loaded without data to start chains from: load it as "
                    f"{self.kind}.load(path, adata), or pass start='noise'."
                )
            cells = np.arange(len(counts))
            if batch is not None:
                cells = np.flatnonzero(np.isin(counts.codes[:, 0], np.array(self._batch_codes(batch))))
            if len(cells) == 0:
                raise ValueError(f"There is no cell of batch {batch!r} to start a chain from; pass start='noise'.")
            cells = np.concatenate([rng.permutation(cells) for _ in range(-(-n_chains // len(cells)))])[:n_chains]
            return counts.stored.csr(cells), counts.minibatch(cells)
        codes = self._draw_profiles(n_chains, batch, rng)
        along = Minibatch.of_covariates(codes, 0, self._vae.architecture.n_genes)
        if self.likelihood.has_library:
            along = along._replace(log_size=torch.from_numpy(generation.draw_log_library(self._vae, codes, rng)))
        return noise_start(self.likelihood.support, along.log_size.numpy(), along.n_genes, rng), along

    @alone()
    def _walk(
        self, state: sp.csr_matrix, along: Minibatch, taken: np.ndarray, rng: np.random.Generator
    ) -> tuple[sp.csr_matrix, np.ndarray]:
        """Cells and codes of some chains after the steps `taken`, chain after chain: (chains * taken, ...)."""
        self._vae.eval()
        walk = itertools.islice(self._vae.chain(state, along.to(self.device), rng), int(taken[-1]))
        visited = [cells for step, cells in enumerate(walk, 1) if step in taken]
        by_chain = np.arange(len(visited) * state.shape[0]).reshape(len(visited), -1).T.ravel()
        matrix = sp.vstack([x for x, _ in visited], format="csr")[by_chain]
        return matrix, np.concatenate([z for _, z in visited])[by_chain]
