"""What a model holds after construction and training, and everything that can be asked of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData

from sccvae import differential, posterior, storage
from sccvae.data import Counts
from sccvae.inputs import Schema, labels_of
from sccvae.kernels import for_device
from sccvae.likelihoods import Likelihood
from sccvae.networks import Architecture
from sccvae.vae import VAE


class FittedModel:
    """Weights, how to read data for them, and the history: all that is saved, and all that outputs need.

    Outputs are deterministic: posterior means, or draws from a generator with the seed given.
    """

    def _set(self, schema, architecture, profiles, frequencies, seed, device) -> None:
        self._schema: Schema = schema
        self._profiles, self._frequencies = profiles, frequencies  # combinations of categories, cells with each
        self._seed: int = seed
        device = device_of(device)
        self._vae = VAE(architecture, torch.Generator().manual_seed(seed), for_device(device)).to(device).eval()
        self._counts: Counts | None = None
        self._cell_names: pd.Index | None = None
        self._obs: pd.DataFrame | None = None
        self._rows: list[dict[str, Any]] = []
        self._best_epoch = 0

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch and split: ELBO and its terms (nats per cell), KL weight, learning rate, seconds."""
        return pd.DataFrame(self._rows)

    # -------------------------------------------------------------------------------------------------------- outputs

    def get_latent_representation(
        self, adata: AnnData | None = None, *, indices: Any = None, return_variance: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Mean of q(z|x), (cells, n_latent) float32; with `return_variance` also its variance.

        Parameters
        ----------
        adata
            New data, genes in any order; None takes the training data.
        indices
            Cells to use: numbers or a boolean mask; None takes all.
        """
        counts, _ = self._cells(adata, indices)
        mean, variance = np.empty((2, len(counts), self._vae.architecture.n_latent), dtype=np.float32)
        for rows, _, q_z, _ in posterior.encode(self._vae, counts):
            mean[rows], variance[rows] = q_z.mean.cpu().numpy(), q_z.variance.cpu().numpy()
        return (mean, variance) if return_variance else mean

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        *,
        indices: Any = None,
        transform_batch: str | Sequence[str] | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent", "observed"] = 1.0,
        n_samples: int | None = None,
        return_numpy: bool = False,
        dtype: str = "float32",
        out: Any = None,
        chunk_size: int | None = None,
        seed: int = 0,
    ) -> Any:
        """Normalised expression rho, which sums to 1 over the genes of a cell: noise, depth and drop-out removed.

        Parameters
        ----------
        adata, indices
            As in `get_latent_representation`.
        transform_batch
            Batch to decode in: None, each cell's own; a name; the mean over several names; "all", over all batches.
        gene_list
            Genes to return, in that order.
        library_size
            What rho is multiplied by: a number, or each cell's inferred ("latent") or observed library size.
        n_samples
            Mean over so many draws from q(z|x); None decodes its mean.
        return_numpy
            Array instead of DataFrame.
        out
            (cells, genes) array, memmap or zarr array to fill chunk by chunk and return.
        chunk_size
            Cells decoded at once; None takes about a million values.

        Returns
        -------
        (cells, genes) DataFrame, array, or `out`. For `normal` and `bernoulli`, the mean of x.
        """
        counts, names = self._cells(adata, indices)
        genes = None if gene_list is None else self._schema.positions_of_genes(gene_list)
        shape = (len(counts), counts.n_genes if genes is None else len(genes))
        if isinstance(library_size, str) and library_size not in ("latent", "observed"):
            raise ValueError(f"library_size is {library_size!r}; expected a number, 'latent' or 'observed'.")
        _check_positive(n_samples=n_samples, chunk_size=chunk_size)
        filled = np.empty(shape, dtype=dtype) if out is None else out
        if tuple(filled.shape) != shape:
            raise ValueError(f"out has shape {tuple(filled.shape)}; expected (cells, genes) = {shape}.")
        batches = self._batch_codes(transform_batch)
        for rows, rho in posterior.expression(
            self._vae, counts, library_size, genes, chunk_size, batches=batches, n_samples=n_samples, seed=seed
        ):
            filled[rows] = rho
        if out is not None or return_numpy:
            return filled
        columns = self.gene_names if genes is None else self.gene_names[genes]
        return pd.DataFrame(filled, index=names, columns=columns, copy=False)

    def get_latent_library_size(self, adata: AnnData | None = None, *, indices: Any = None) -> np.ndarray:
        """(cells,) float32 library size in counts: the median of q(l|x), or the observed one."""
        if not self.likelihood.has_library:
            raise ValueError(f"gene_likelihood={self.likelihood.name!r} has no library size.")
        counts, _ = self._cells(adata, indices)
        log_l = counts.log_size.copy()
        if self._vae.architecture.infers_library:
            for rows, _, _, q_l in posterior.encode(self._vae, counts):
                assert q_l is not None
                log_l[rows] = q_l.mean.cpu().numpy()
        return np.exp(log_l)

    def get_likelihood_parameters(self, adata: AnnData | None = None, *, indices: Any = None) -> dict[str, np.ndarray]:
        """Parameters of p(x | z, l) at the posterior means, float32 arrays (cells, genes).

        Returns
        -------
        `mean` of the count distribution; `dispersions` theta (`nb`, `zinb`) or `scale` sigma (`normal`), a read-only
        view where it is the same in all cells; `dropout`, a probability (`zinb`). Expected counts are
        `mean * (1 - dropout)`.
        """
        counts, _ = self._cells(adata, indices)
        return posterior.likelihood_parameters(self._vae, counts)

    def posterior_predictive_sample(
        self, adata: AnnData | None = None, *, indices: Any = None, n_samples: int | None = None, seed: int = 0
    ) -> sp.csr_matrix | np.ndarray:
        """Counts drawn from p(x' | x): z and l from their posteriors, x' from the likelihood.

        Returns
        -------
        One draw as a (cells, genes) float32 CSR matrix; with `n_samples`, an array (n_samples, cells, genes).
        """
        counts, _ = self._cells(adata, indices)
        draws = [posterior.predictive(self._vae, counts, seed=[seed, k]) for k in range(n_samples or 1)]
        return draws[0] if n_samples is None else np.stack([draw.toarray() for draw in draws])

    def generate(self, n_cells: int, *, batch: str | Sequence[str] | None = None, seed: int = 0) -> AnnData:
        """Cells that nobody sequenced: z ~ N(0, I), library from the batch's log-normal, counts from the likelihood.

        Parameters
        ----------
        batch
            Name or names of the batches to generate in; None takes all. Batches and covariates come in the
            proportions of the training data, continuous covariates at their means.

        Returns
        -------
        AnnData of counts (CSR) with the batch and covariates in `obs`, z in `obsm["X_sccvae"]` and the library size in
        `obs["sccvae_library"]`.
        """
        self._check_trained()
        _check_positive(n_cells=n_cells)
        profiles, weights = np.array(self._profiles), np.array(self._frequencies, dtype=float)
        if batch is not None:
            weights[~np.isin(profiles[:, 0], np.array(self._batch_codes(batch)))] = 0
        rng = np.random.default_rng(seed)
        codes = profiles[rng.choice(len(profiles), size=n_cells, p=weights / weights.sum())]
        matrix, z, library = posterior.generate(self._vae, codes, rng)
        obs: dict[str, Any] = self._schema.columns_of(codes)
        if library is not None:
            obs["sccvae_library"] = library
            if self._schema.size_factor_key is not None:
                obs[self._schema.size_factor_key] = library / np.exp(self._schema.log_size_offset)
        frame = pd.DataFrame(obs, index=[f"generated-{i}" for i in range(n_cells)])
        return AnnData(matrix, obs=frame, var=pd.DataFrame(index=self.gene_names), obsm={"X_sccvae": z})

    def get_elbo(
        self, adata: AnnData | None = None, *, indices: Any = None, return_mean: bool = True, seed: int = 0
    ) -> float | np.ndarray:
        """Evidence lower bound in nats (higher is better), from one draw of z and l: mean over cells, or (cells,)."""
        reconstruction, kl_z, kl_l = posterior.elbo_terms(self._vae, self._cells(adata, indices)[0], seed=seed)
        return _mean_or_all(reconstruction - kl_z - kl_l, return_mean)

    def get_reconstruction_error(
        self, adata: AnnData | None = None, *, indices: Any = None, return_mean: bool = True, seed: int = 0
    ) -> float | np.ndarray:
        """-E_q[log p(x | z, l)] in nats (lower is better), from one draw: mean over cells, or (cells,)."""
        terms = posterior.elbo_terms(self._vae, self._cells(adata, indices)[0], seed=seed)
        return _mean_or_all(-terms[0], return_mean)

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        *,
        indices: Any = None,
        n_samples: int = 100,
        return_mean: bool = True,
        seed: int = 0,
    ) -> float | np.ndarray:
        """Marginal log-likelihood log p(x) in nats, mean over cells or (cells,).

        By importance sampling over z and l (Burda et al. 2016, https://arxiv.org/abs/1509.00519, equation 8).
        """
        counts, _ = self._cells(adata, indices)
        log_p = posterior.marginal_log_likelihood(self._vae, counts, n_samples=n_samples, seed=seed)
        return _mean_or_all(log_p, return_mean)

    def differential_expression(
        self,
        adata: AnnData | None = None,
        *,
        groupby: str | Sequence[Any] | pd.Series | None = None,
        group1: str | Sequence[str] | None = None,
        group2: str | None = None,
        idx1: Any = None,
        idx2: Any = None,
        mode: differential.Mode = "change",
        delta: float | None = 0.25,
        batch_correction: bool = True,
        pseudocount: float | None = None,
        fdr_target: float = 0.05,
        n_samples: int = 200,
        max_cells: int = 3000,
        chunk_size: int | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Genes whose mean normalised expression differs between groups of cells, judged by posterior samples.

        After Boyeau et al. 2019 (https://doi.org/10.1101/794289); `sccvae.differential` says what differs, and why.

        Parameters
        ----------
        groupby, group1, group2
            Column of `obs`, or a label for each cell; group or groups to compare (None: each), and with which (None:
            all other cells).
        idx1, idx2
            Instead: numbers or boolean masks of the cells of two groups; None as `idx2` takes all others.
        mode
            `change`: probability that |log2 fold change| > `delta`, also against most genes; `vanilla`: Bayes factor of
            group 1 above group 2.
        delta
            Smallest change that counts, in log2 units; None fits it to the fold changes of all genes.
        batch_correction
            Decode both groups in all batches, and hold counts against those of the same batch.
        pseudocount
            Added to the mean expression (which sums to 1) of both; None takes it from the data.
        n_samples, max_cells
            Posterior draws; cells decoded per group. Memory: 4 bytes x groups x draws x genes, and a chunk of cells.

        Returns
        -------
        Genes sorted by `bayes_factor` (log odds), with `proba_de`; `lfc_mean`, `_median`, `_std`, `_min`, `_max`, log2
        of group 1 over group 2; of each group, `scale` (mean normalised expression), `raw_mean` (counts per cell),
        `non_zeros_proportion`; `is_de_fdr_0.05`, the genes called at an expected false discovery rate of `fdr_target`.
        With groupby, also `comparison`, `group1`, `group2`. `vanilla` has `proba_m1`, `proba_m2` but no calls.

        Raises
        ------
        ValueError, KeyError, TypeError
            Which group is unknown, empty or compared with itself; the likelihood is not of counts.
        """
        if self.likelihood.support != "counts":
            raise ValueError(
                f"gene_likelihood={self.likelihood.name!r} has no fold changes: take 'zinb', 'nb' or 'poisson'."
            )
        options = differential.Options(mode, delta, pseudocount, fdr_target)
        _check_positive(max_cells=max_cells, chunk_size=chunk_size)
        counts, names = self._cells(adata, None)
        obs = cast(pd.DataFrame, self._obs) if adata is None else adata.obs
        labels = None if groupby is None else labels_of(groupby, obs, names)
        design = differential.design_of(labels, group1, group2, idx1, idx2, len(counts))
        batches = self._batch_codes("all" if batch_correction else None)
        groups = posterior.group_expression(
            self._vae, counts, design.cells, batches, n_samples, max_cells=max_cells, chunk_size=chunk_size, seed=seed
        )
        return differential.tables(groups, design, self.gene_names, options, seed=seed)

    # -------------------------------------------------------------------------------------------------------- storage

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Write the model, without data, to the folder `path`: `weights.safetensors` and `model.json`.

        A save that is killed leaves the old model or the new one.

        Raises
        ------
        FileExistsError
            There is a model at `path` and `overwrite` is False.
        """
        description = {
            "architecture": asdict(self._vae.architecture),
            "schema": asdict(self._schema),
            "profiles": self._profiles,
            "frequencies": self._frequencies,
            "seed": self._seed,
            "best_epoch": self._best_epoch,
            "history": self._rows,
        }
        storage.save(Path(path), self._vae.state_dict(), description, overwrite=overwrite)

    @classmethod
    def load(
        cls, path: str | os.PathLike, adata: AnnData | None = None, *, device: str | torch.device = "auto"
    ) -> Self:
        """Read a model that `save` wrote. Nothing in the folder is executed.

        Parameters
        ----------
        adata
            Data to use where a method is given none, and to go on training with.

        Raises
        ------
        FileNotFoundError, sccvae.ModelFileError
            There is no model at `path`, or it is damaged, or another program made it.
        """
        device, (tensors, description) = device_of(device), storage.load(Path(path))
        model = cls.__new__(cls)
        with storage.readable(Path(path)):
            schema, architecture = Schema(**description["schema"]), Architecture(**description["architecture"])
            if len(schema.genes) != architecture.n_genes or tuple(map(len, schema.categories)) != architecture.n_levels:
                raise ValueError("genes or categories do not match the architecture")
            profiles, frequencies = description["profiles"], description["frequencies"]
            model._set(schema, architecture, profiles, frequencies, description["seed"], device)
            model._vae.load_state_dict(tensors)
            model._rows, model._best_epoch = list(description["history"]), description["best_epoch"]
        if adata is not None:
            model._remember(adata, schema.read(adata))
        return model

    # -------------------------------------------------------------------------------------------------------- details

    @property
    def gene_names(self) -> pd.Index:
        """Names of the genes modelled, (genes,)."""
        return pd.Index(self._schema.genes)

    @property
    def batches(self) -> tuple[str, ...]:
        """Names of the batches, in the order of their codes."""
        return self._schema.categories[0]

    @property
    def likelihood(self) -> Likelihood:
        """The distribution of the counts."""
        return self._vae.likelihood

    def describe(self) -> dict[str, Any]:
        """Parameters, history and versions, as `uns` of an AnnData can hold them and h5ad can store them."""
        parameters = {**asdict(self._vae.architecture), **asdict(self._schema), "seed": self._seed}
        del parameters["genes"], parameters["categories"]
        parameters = {k: list(v) if isinstance(v, tuple) else v for k, v in parameters.items() if v not in (None, ())}
        return {"parameters": parameters, "history": self.history, "versions": storage.versions()}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._vae.device

    def __repr__(self) -> str:
        a, n_weights = self._vae.architecture, sum(p.numel() for p in self._vae.parameters())
        cells = "no data" if self._counts is None else f"{len(self._counts):,} cells"
        state = "not trained: call train()"
        if self._rows:
            state = f"trained for {self._rows[-1]['epoch']} epochs; holds epoch {self._best_epoch}"
            best = [r for r in self._rows if r["epoch"] == self._best_epoch]
            state += f", {best[-1]['split']} ELBO {best[-1]['elbo']:.1f} nats per cell" if best else ""
        return (
            f"SCCVAE on {cells}, {a.n_genes:,} genes, {a.n_levels[0]} batch{'es' if a.n_levels[0] > 1 else ''}"
            f"{'' if self._schema.batch_key is None else f' ({self._schema.batch_key!r})'}\n"
            f"  {a.gene_likelihood} likelihood, {a.library} library, dispersion per {a.dispersion}\n"
            f"  {a.n_latent} latent, {a.n_layers} x {a.n_hidden} hidden, {n_weights:,} weights on {self.device}\n"
            f"  {state}"
        )

    def _cells(self, adata: AnnData | None, indices: Any) -> tuple[Counts, pd.Index]:
        """The cells a method is asked about, and their names."""
        self._check_trained()
        if adata is None and self._counts is None:
            raise ValueError("This model was loaded without data: pass adata, here or as SCCVAE.load(path, adata).")
        counts = self._schema.read(adata) if adata is not None else cast(Counts, self._counts)
        names = adata.obs_names if adata is not None else cast(pd.Index, self._cell_names)
        if indices is None:
            return counts, names
        indices = np.asarray(indices)
        if indices.dtype == bool and indices.shape != (len(counts),):
            raise ValueError(f"indices is a mask of shape {indices.shape}; expected a boolean for {len(counts)} cells.")
        at = np.flatnonzero(indices) if indices.dtype == bool or indices.size == 0 else indices
        return counts[at], names[at]

    def _batch_codes(self, batches: str | Sequence[str] | None) -> list[int | None]:
        """Codes of the batches named; `[None]` for each cell's own."""
        if batches is None:
            return [None]
        if isinstance(batches, str) and batches == "all":
            return list(range(len(self.batches)))
        names: Iterable[Any] = [batches] if np.isscalar(batches) else batches
        codes: list[int | None] = [self._schema.code_of_batch(name) for name in names]
        if not codes:
            raise ValueError("The list of batches is empty.")
        return codes

    def _remember(self, adata: AnnData, counts: Counts) -> None:
        """Keep what outputs take where they are given no data; columns added to `adata.obs` later are seen."""
        self._counts, self._cell_names = counts, adata.obs_names.copy()
        self._obs = pd.DataFrame(adata.obs, copy=True) if adata.is_view else adata.obs

    def _check_trained(self) -> None:
        if not self._rows:
            raise RuntimeError("The model is not trained yet: call train() first.")


def _check_positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}; expected at least 1.")


def device_of(device: str | torch.device) -> torch.device:
    """The device that is meant, if it is there; `auto` takes a GPU when there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {str(device)!r}, but torch finds no CUDA device; pass device='cpu'.")
    return device


def _mean_or_all(values: np.ndarray, return_mean: bool) -> float | np.ndarray:
    return float(values.mean()) if return_mean else values
