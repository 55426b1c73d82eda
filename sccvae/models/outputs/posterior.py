"""Outputs of a trained `SCCVAE` for given cells."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sccvae.data.counts import Counts
from sccvae.inference import correlation, posterior
from sccvae.io import arrays, storage
from sccvae.models.base import BaseModel
from sccvae.modules.vae import VAE
from sccvae.validation.arguments import (
    check_choice,
    checked_library_size,
    checked_seed,
    flag,
    float_dtype,
    limit,
    positive,
    unless_none,
)


class OutputsModel(BaseModel):
    """Outputs of the variational autoencoder; they need its weights, not its training data.

    Outputs are deterministic: posterior means, or samples from a generator with the given seed.
    """

    kind: ClassVar[str] = "SCCVAE"

    # -------------------------------------------------------------------------------------------------------- outputs

    def get_latent_representation(
        self, adata: AnnData | None = None, indices: Any = None, *, return_variance: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Mean of q(z|x), (cells, n_latent) float32; with `return_variance` also its variance.

        Parameters
        ----------
        {new_data}
        {indices}

        Examples
        --------
        >>> adata.obsm["X_sccvae"] = model.get_latent_representation()
        >>> some = adata.obs["batch"] == "batch_0"
        >>> mean, variance = model.get_latent_representation(indices=some, return_variance=True)
        >>> mean.shape == variance.shape
        True
        """
        both = flag("return_variance", return_variance)
        counts, _ = self._cells(adata, indices)
        return (posterior.latent_moments if both else posterior.latent)(self._vae, counts)

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Any = None,
        transform_batch: str | Sequence[str] | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent", "observed"] = 1.0,
        n_samples: int | None = None,
        *,
        return_mean: bool = True,
        return_numpy: bool = False,
        dtype: str = "float32",
        out: Any = None,
        chunk_size: int | None = None,
        seed: int = 0,
    ) -> Any:
        """Normalised expression rho, which sums to 1 over the genes of a cell: noise, depth and zero inflation removed.

        Parameters
        ----------
        adata, indices
            As in `get_latent_representation`.
        transform_batch
            Batch to decode in. None: each cell's own. A name: that batch. Several names, or "all": the mean over them.
            Where conditions share no batch, this also removes the difference between them.
        gene_list
            Genes to return, in this order; None returns all.
        library_size
            Factor of rho: a number, or the library size of each cell, inferred ("latent") or "observed". With "latent"
            scvi-tools means the observed one, unless its model infers it.
        n_samples
            Number of samples from q(z|x) to average over; None decodes its mean, where scvi-tools takes one sample.
        return_mean
            False returns the `n_samples` samples themselves.
        return_numpy
            Return an array instead of a DataFrame.
        out
            (cells, genes) array, memmap or zarr array, which is filled chunk by chunk and returned; or the path of a
            new ``.npy`` or ``.zarr``, which is returned open for reading.
        {chunk_size}

        Returns
        -------
        (cells, genes) DataFrame, array, or `out`; samples, (n_samples, cells, genes), as an array or in `out`. For
        `normal` and `bernoulli`, the mean of x.

        Examples
        --------
        Batch-corrected expression of two genes, in counts per ten thousand:

        >>> genes = ["gene_1", "gene_2"]
        >>> rho = model.get_normalized_expression(transform_batch="all", gene_list=genes, library_size=1e4)
        >>> rho.shape
        (300, 2)

        Ninety per cent intervals, from samples of the posterior:

        >>> samples = model.get_normalized_expression(gene_list=genes, n_samples=20, return_mean=False)
        >>> low, high = np.quantile(samples, [0.05, 0.95], axis=0)
        >>> low.shape
        (300, 2)
        """
        return_mean, return_numpy = flag("return_mean", return_mean), flag("return_numpy", return_numpy)
        n_samples, seed = unless_none(positive, "n_samples", n_samples), checked_seed(seed)
        chunk_size, taken_dtype = unless_none(limit, "chunk_size", chunk_size), float_dtype("dtype", dtype)
        counts, names = self._cells(adata, indices)
        genes = None if gene_list is None else self._schema.positions_of_genes(gene_list)
        shape: tuple[int, ...] = (len(counts), counts.n_genes if genes is None else len(genes))
        if not return_mean:
            if n_samples is None:
                raise ValueError("return_mean=False returns samples: pass their number as n_samples.")
            shape = (n_samples, *shape)
        if isinstance(library_size, str) and library_size not in ("latent", "observed"):
            raise ValueError(f"library_size is {library_size!r}; expected a number, 'latent' or 'observed'.")
        library_size = library_size if isinstance(library_size, str) else checked_library_size(library_size)
        request = posterior.Request(self._batch_codes(transform_batch), n_samples, seed, chunk_size)

        def fill(array: Any) -> None:
            direct = array if posterior.can_be_filled(array) else None
            for rows, rho in posterior.expression(
                self._vae, counts, library_size, genes, request, keep_draws=not return_mean, out=direct
            ):
                if direct is None:
                    array[(rows if return_mean else (slice(None), rows))] = rho

        if isinstance(out, str | os.PathLike):
            with arrays.new_array(out, shape, taken_dtype) as array:
                fill(array)
            return arrays.opened(out)
        filled = np.empty(shape, dtype=taken_dtype) if out is None else out
        if tuple(filled.shape) != shape:
            axes = "(cells, genes)" if return_mean else "(n_samples, cells, genes)"
            raise ValueError(f"out has shape {tuple(filled.shape)}; expected {axes} = {shape}.")
        fill(filled)
        if out is not None or return_numpy or not return_mean:
            return filled
        columns = self.gene_names if genes is None else self.gene_names[genes]
        return pd.DataFrame(filled, index=names, columns=columns, copy=False)

    def get_latent_library_size(self, adata: AnnData | None = None, indices: Any = None) -> np.ndarray:
        """Library size of each cell in counts, (cells,) float32: the median of q(l|x), or the observed one.

        Examples
        --------
        >>> library_size = model.get_latent_library_size()
        >>> library_size.shape
        (300,)
        """
        if not self.likelihood.has_library:
            raise ValueError(f"gene_likelihood={self.likelihood.name!r} has no library size.")
        counts, _ = self._cells(adata, indices)
        log_l = counts.log_size.copy()
        if self._vae.architecture.infers_library:
            for rows, _, _, q_l in posterior.encode(self._vae, counts):
                assert q_l is not None
                log_l[rows] = q_l.mean.cpu().numpy()
        return np.exp(log_l)

    def get_likelihood_parameters(self, adata: AnnData | None = None, indices: Any = None) -> dict[str, np.ndarray]:
        """Parameters of p(x | z, l) at the posterior means, float32 arrays (cells, genes).

        Returns
        -------
        Dictionary with `mean`, the mean of the count distribution; `dispersions`, theta (`nb`, `zinb`), or `scale`,
        sigma (`normal`), a read-only view if it is the same in all cells; `dropout`, the probability of zero inflation
        (`zinb`). Expected counts are `mean * (1 - dropout)`.

        Examples
        --------
        >>> parameters = model.get_likelihood_parameters()
        >>> sorted(parameters)
        ['dispersions', 'dropout', 'mean']
        >>> expected_counts = parameters["mean"] * (1 - parameters["dropout"])
        """
        counts, _ = self._cells(adata, indices)
        return posterior.likelihood_parameters(self._vae, counts)

    def moments_of(
        self, gene_list: Sequence[str], adata: AnnData | None = None, indices: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the counts of some genes at each cell's posterior mean, (cells, genes) float32 each.

        Zero inflation is part of both (`zinb`).

        Parameters
        ----------
        gene_list
            Names of the genes, in the order of the columns.
        {new_data}
        {indices}

        Raises
        ------
        RuntimeError, ValueError
            The model is not trained; the likelihood is not one of counts; a gene is unknown.

        Examples
        --------
        >>> import sccvae
        >>> model = sccvae.SCCVAE(sccvae.simulate.simulate(100, 30, seed=0))
        >>> model.train(max_epochs=1)
        >>> mean, variance = model.moments_of(["gene_1", "gene_2"])
        >>> mean.shape, bool((variance >= mean).all())
        ((100, 2), True)
        """
        self._check_counts("moments_of")
        counts, _ = self._cells(adata, indices)
        columns = self._schema.positions_of_genes(gene_list)
        _, mean, variance = zip(*posterior.gene_moments(self._vae, counts, columns), strict=True)
        return np.vstack(mean), np.vstack(variance)

    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: Any = None,
        *,
        n_samples: int | None = None,
        transform_batch: str | None = None,
        gene_list: Sequence[str] | None = None,
        seed: int = 0,
    ) -> sp.csr_matrix | np.ndarray:
        """Sample counts from p(x' | x): z and l from their posteriors, x' from the likelihood.

        Parameters
        ----------
        adata, indices
            As in `get_latent_representation`.
        transform_batch
            Name of one batch to sample in; None takes each cell's own. The library size stays that of the cell.
        gene_list
            Genes to return, in this order; None returns all. The values do not depend on it.

        Returns
        -------
        One sample as a (cells, genes) float32 CSR matrix; with `n_samples`, an array (n_samples, cells, genes).

        Examples
        --------
        >>> model.posterior_predictive_sample(indices=[0, 1], n_samples=5).shape
        (5, 2, 50)
        """
        n_samples, seed = unless_none(positive, "n_samples", n_samples), checked_seed(seed)
        counts, _ = self._cells(adata, indices)
        columns = slice(None) if gene_list is None else self._schema.positions_of_genes(gene_list)
        batches = self._batch_codes(transform_batch)
        if len(batches) != 1:
            raise ValueError(
                f"transform_batch stands for {len(batches)} batches; expected the name of one, because a mean over "
                "batches is no sample, or None for each cell's own."
            )
        draws = (posterior.predictive(self._vae, counts, *batches, seed=[seed, k]) for k in range(n_samples or 1))
        if n_samples is None:
            return next(draws)[:, columns]
        return np.stack([draw[:, columns].toarray() for draw in draws])

    def get_feature_correlation_matrix(
        self,
        adata: AnnData | None = None,
        indices: Any = None,
        n_samples: int = 10,
        *,
        rna_size_factor: float = 1000,
        transform_batch: str | Sequence[str] | None = None,
        correlation_type: correlation.CorrelationType = "spearman",
        gene_list: Sequence[str] | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Correlation of genes over cells and samples of denoised expression, (genes, genes).

        Denoised expression is the rate of the negative binomial: Gamma(theta) with mean `rna_size_factor` * rho, for
        z from its posterior. It has no noise of counting and no zero inflation. The decoder itself makes genes
        correlated, so that the matrix is no evidence of regulation.

        Parameters
        ----------
        adata, indices
            As in `get_latent_representation`.
        n_samples, rna_size_factor
            Samples for each cell; counts per cell, on which correlations do not depend.
        transform_batch
            Batch to decode in, as in `get_normalized_expression`; over several, correlations are averaged.
        correlation_type
            `spearman`, of ranks, or `pearson`.
        gene_list
            Genes to correlate; None takes all. Memory: 4 bytes x samples x cells x genes, and 24 bytes x genes x genes.

        Returns
        -------
        DataFrame with the names of the genes. Genes whose samples are all equal have NaN.

        Raises
        ------
        ValueError, KeyError
            The memory would exceed 2 GiB; the likelihood is not one of counts; a batch or gene is unknown.

        Examples
        --------
        >>> table = model.get_feature_correlation_matrix(gene_list=["gene_1", "gene_2"], n_samples=2)
        >>> table.loc["gene_1", "gene_1"], table.shape
        (np.float64(1.0), (2, 2))
        """
        self._check_counts("get_feature_correlation_matrix")
        n_samples, seed = positive("n_samples", n_samples), checked_seed(seed)
        size = checked_library_size(rna_size_factor, "rna_size_factor")
        check_choice("correlation_type", correlation_type, get_args(correlation.CorrelationType))
        counts, _ = self._cells(adata, indices)
        genes = np.arange(counts.n_genes) if gene_list is None else self._schema.positions_of_genes(gene_list)
        batches, options = self._batch_codes(transform_batch), {"n_samples": n_samples, "seed": seed}
        found = correlation.correlation(self._vae, counts, genes, batches, size, correlation_type, **options)
        return pd.DataFrame(found, index=self.gene_names[genes], columns=self.gene_names[genes])

    def get_elbo(
        self, adata: AnnData | None = None, indices: Any = None, *, return_mean: bool = True, seed: int = 0
    ) -> float | np.ndarray:
        """Evidence lower bound in nats (higher is better), from one sample of z and l: mean over cells, or (cells,).

        Genes that mapped cells lack are left out: see `SCCVAE.load_query_data`.

        Examples
        --------
        >>> model.get_elbo(return_mean=False).shape
        (300,)
        """
        return_mean, seed = flag("return_mean", return_mean), checked_seed(seed)
        vae, counts, _ = self._measured(self._cells(adata, indices)[0])
        reconstruction, kl_z, kl_l = posterior.elbo_terms(vae, counts, seed=seed)
        return _mean_or_all(reconstruction - kl_z - kl_l, return_mean)

    def get_reconstruction_error(
        self, adata: AnnData | None = None, indices: Any = None, *, return_mean: bool = True, seed: int = 0
    ) -> float | np.ndarray:
        """Reconstruction error -E_q[log p(x | z, l)] in nats (lower is better), from one sample of z and l.

        The mean over cells, or (cells,). Genes that mapped cells lack are left out, as in `get_elbo`.

        Examples
        --------
        >>> model.get_reconstruction_error() < -model.get_elbo()  # the ELBO subtracts KL divergences as well
        True
        """
        return_mean, seed = flag("return_mean", return_mean), checked_seed(seed)
        vae, counts, _ = self._measured(self._cells(adata, indices)[0])
        terms = posterior.elbo_terms(vae, counts, seed=seed)
        return _mean_or_all(-terms[0], return_mean)

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: Any = None,
        n_samples: int = 100,
        *,
        return_mean: bool = True,
        seed: int = 0,
    ) -> float | np.ndarray:
        """Marginal log-likelihood log p(x) in nats, mean over cells or (cells,).

        By importance sampling over z and l (Burda et al. 2016, https://arxiv.org/abs/1509.00519, equation 8). Genes
        that mapped cells lack are left out, as in `get_elbo`.

        Examples
        --------
        >>> model.get_marginal_ll(n_samples=20) > model.get_elbo()  # the ELBO is a lower bound
        True
        """
        return_mean, seed = flag("return_mean", return_mean), checked_seed(seed)
        n_samples = positive("n_samples", n_samples)
        vae, counts, _ = self._measured(self._cells(adata, indices)[0])
        log_p = posterior.marginal_log_likelihood(vae, counts, n_samples=n_samples, seed=seed)
        return _mean_or_all(log_p, return_mean)

    # -------------------------------------------------------------------------------------------------------- details

    def _measured(self, counts: Counts) -> tuple[VAE, Counts, pd.Index]:
        """Network, counts and names of the genes that were measured in these cells: those of the likelihood."""
        return self._vae, counts, self.gene_names

    def _check_counts(self, method: str) -> None:
        """Raise unless the likelihood is one of counts."""
        if self.likelihood.support != "counts":
            raise ValueError(
                f"{method} needs a count likelihood; found gene_likelihood={self.likelihood.name!r}, expected 'zinb', "
                "'nb' or 'poisson'."
            )

    def describe(self) -> dict[str, Any]:
        """Parameters, history and versions, in types that `uns` of an AnnData and h5ad files can store.

        Examples
        --------
        >>> adata.uns["model"] = model.describe()
        >>> adata.uns["model"]["parameters"]["n_latent"]
        20
        """
        parameters = {**asdict(self._vae.architecture), **asdict(self._schema), "seed": self._seed}
        del parameters["genes"], parameters["categories"]
        parameters = {k: list(v) if isinstance(v, tuple) else v for k, v in parameters.items() if v not in (None, ())}
        return {"parameters": parameters, "history": self.history, "versions": storage.versions()}


def _mean_or_all(values: np.ndarray, return_mean: bool) -> float | np.ndarray:
    return float(values.mean()) if return_mean else values
