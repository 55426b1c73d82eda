"""New cells from a trained `SCCVAE`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from sccvae.data.columns import position_of, standardised
from sccvae.inference import aggregate_prior, generation, posterior
from sccvae.inference.generation import Latent
from sccvae.io import in_blocks, storage
from sccvae.models.description import Description
from sccvae.models.outputs.posterior import OutputsModel
from sccvae.modules.likelihoods import LIKELIHOODS
from sccvae.validation.arguments import check_choice, checked_seed, flag, positive

Prior = Literal["normal", "aggregate"]
PER_BLOCK = 4096  # cells that are written at once
_STORED = "aggregate."  # prefix of the mixture's arrays in a saved model


class GenerationModel(OutputsModel):
    """Generation of cells."""

    _aggregate: aggregate_prior.Mixture | None = None  # fitted to the training cells' posteriors at the first use

    def generate(
        self,
        n_cells: int | None = None,
        *,
        prior: Prior = "normal",
        batch: str | Sequence[str] | None = None,
        label: str | None = None,
        like: AnnData | None = None,
        library_size: Any = None,
        covariates: Mapping[str, Any] | None = None,
        store_truth: bool = False,
        out: str | os.PathLike | None = None,
        seed: int = 0,
    ) -> AnnData | None:
        """Generate cells: z and library size from a prior or like given cells, counts from the likelihood.

        Parameters
        ----------
        n_cells
            Number of cells. None generates one for each cell of `like`.
        prior
            `normal`: z from the model's own prior (a mixture of Gaussians, or N(0, I) with `prior_components=0`),
            library size from the batch's log-normal, as the model assumes. `aggregate`: both from a mixture of
            Gaussians fitted to the posteriors of the training cells (`sccvae.inference.aggregate_prior`). The mixture
            is fitted per batch and jointly with the library size, and has low density where there are no cells.
        {generated_batch}
            Batches and covariates come in the proportions of the training data, continuous covariates at their means.
        label
            Generate cells with this label, for models with `labels_key`: z from p(z | label). Needs `prior="normal"`.
        like
            Cells with the genes of the model: new ones resemble them. z and library size are drawn from their
            posteriors, each cell as often as any other. Batch and covariates are theirs, unless `batch` or `covariates`
            change them. `prior` is not used.
        library_size
            Depth of the new cells: a number, a number for each cell, or the name of a batch, whose distribution it is
            drawn from. It is the expected total count before zero inflation. None draws it as `prior` says.
        covariates
            Values of covariates and of the condition, by name: a value, or one for each cell. Combinations may be new.
        store_truth
            Also store what the counts were drawn from: the expected counts in `layers["expected"]`, and with
            `labels_key` the most probable label of z in `obs`.
        out
            New `.h5ad` or `.zarr` file, which is written block by block; None returns the cells.

        Returns
        -------
        AnnData of counts (CSR) with the batch and covariates in `obs`, z in `obsm["X_sccvae"]` and the library size in
        `obs["sccvae_library"]`; None with `out`.

        Raises
        ------
        ValueError, KeyError
            `prior`, batch, label or covariate is unknown; `like` lacks genes of the model; a library size is not above
            0; or the model was saved without the mixture and loaded without data.

        Examples
        --------
        >>> new = model.generate(100, prior="aggregate", batch="batch_0", seed=1)
        >>> new.shape, new.obs["batch"].unique().tolist()
        ((100, 50), ['batch_0'])

        Ten cells like each of the first two, at a depth of 1,000 counts, in another batch:

        >>> new = model.generate(20, like=adata[:2], library_size=1000, batch="batch_1")
        >>> new.obs["sccvae_library"].unique().round().tolist()
        [1000.0]
        """
        self._check_trained()
        if n_cells is None and like is None:
            raise ValueError("n_cells is None; expected a number of cells, or cells to resemble: like=.")
        n_cells = None if n_cells is None else positive("n_cells", n_cells)
        seed, store_truth = checked_seed(seed), flag("store_truth", store_truth)
        check_choice("prior", prior, get_args(Prior))
        if label is not None and like is not None:
            raise ValueError("label and like both say which cells to generate; pass one of them.")
        rng, code = np.random.default_rng(seed), None if label is None else self._code_of_label(label, prior)
        if like is not None:
            latent = self._like(like, n_cells, batch, rng)
        else:
            assert n_cells is not None
            latent = self._from_prior(n_cells, prior, batch, code, rng)
        latent, given = self._with_covariates(latent, covariates)
        latent = self._with_library(latent, library_size, rng)
        blocks = self._blocks(latent, given, code, rng, store_truth, len(latent) if out is None else PER_BLOCK)
        if out is None:
            return next(blocks)
        in_blocks.write(blocks, out, "out")
        return None

    # -------------------------------------------------------------------------------------------------------- details

    def _from_prior(
        self, n_cells: int, prior: Prior, batch: Any, label: int | None, rng: np.random.Generator
    ) -> Latent:
        """Draw cells from a prior; `label` is the number of their label."""
        codes = self._draw_profiles(n_cells, batch, rng)
        if prior == "aggregate":
            profiles = list(map(tuple, self._profiles))
            y = self._mixture().draw(np.array([profiles.index(tuple(code)) for code in codes.tolist()]), rng)
            return self._latent(codes, None, y, rng)
        return self._latent(codes, None, generation.draw_z(self._vae, n_cells, rng, label), rng)

    def _like(self, cells: AnnData, n_cells: int | None, batch: Any, rng: np.random.Generator) -> Latent:
        """Draw z and library size from the posteriors of given cells, each as often as any other."""
        counts, _ = self._cells(cells, None)
        n_cells = len(counts) if n_cells is None else n_cells
        rest = rng.choice(len(counts), n_cells % len(counts), replace=False)
        at = np.sort(np.concatenate([np.repeat(np.arange(len(counts)), n_cells // len(counts)), rest]))
        mean, variance = posterior.aggregate(self._vae, counts)
        y = mean[at] + np.sqrt(variance[at]) * rng.standard_normal((n_cells, mean.shape[1]))
        latent = self._latent(counts.codes[at], counts.continuous[at], y, rng)
        if batch is None:
            return latent
        codes = latent.codes.copy()
        codes[:, 0] = rng.choice(np.array(self._batch_codes(batch)), n_cells)
        return replace(latent, codes=codes)

    def _latent(
        self, codes: np.ndarray, continuous: np.ndarray | None, y: np.ndarray, rng: np.random.Generator
    ) -> Latent:
        """Return decoder inputs; y is z, with the library size as `posterior.aggregate` gives it, or to be drawn."""
        n_latent, log_library = self._vae.architecture.n_latent, None
        if self.likelihood.has_library:
            deviation = y[:, n_latent] if y.shape[1] > n_latent else None
            log_library = generation.draw_log_library(self._vae, codes, rng, deviation)
        return Latent(codes, continuous, y[:, :n_latent].astype(np.float32), log_library)

    def _with_covariates(
        self, latent: Latent, values: Mapping[str, Any] | None
    ) -> tuple[Latent, dict[str, np.ndarray]]:
        """Return the cells with other covariates, and the given continuous ones, in their own units."""
        given: dict[str, np.ndarray] = {}
        schema, codes, continuous = self._schema, latent.codes.copy(), latent.continuous
        known = (*schema.categorical_covariate_keys, *schema.continuous_covariate_keys)
        for key, value in (values or {}).items():
            if key not in known:
                advice = ": pass the batch as batch=" if key == schema.batch_key else ""
                raise ValueError(f"covariates has {key!r}; expected covariates of the model, {list(known)}{advice}.")
            column = np.asarray(value)
            if column.ndim and len(column) != len(codes):
                raise ValueError(
                    f"covariates[{key!r}] has {len(column)} values; expected one, or one for each of the cells."
                )
            column = np.broadcast_to(column, len(codes))
            if key in schema.categorical_covariate_keys:
                at, names = 1 + schema.categorical_covariate_keys.index(key), column.tolist()
                number = {name: position_of(name, schema.categories[at], "value", key) for name in dict.fromkeys(names)}
                codes[:, at] = [number[name] for name in names]
                continue
            if column.dtype.kind not in "biuf":
                raise ValueError(f"covariates[{key!r}] is {column.tolist()[0]!r}; expected numbers.")
            at = schema.continuous_covariate_keys.index(key)
            if continuous is None:
                continuous = np.zeros((len(codes), len(schema.means)), dtype=np.float32)
            continuous = continuous.copy()
            given[key] = column.astype(np.float64)
            index = pd.RangeIndex(len(codes)).astype(str)
            where = f"covariates[{key!r}]"
            continuous[:, at] = standardised(given[key], schema.means[at], schema.scales[at], where, index)
        return replace(latent, codes=codes, continuous=continuous), given

    def _with_library(self, latent: Latent, library_size: Any, rng: np.random.Generator) -> Latent:
        if library_size is None:
            return latent
        if latent.log_library is None:
            raise ValueError(
                f"library_size is given, and gene_likelihood={self.likelihood.name!r} has none; expected a model of "
                "counts, or None."
            )
        if isinstance(library_size, str):
            codes = latent.codes.copy()
            codes[:, 0] = self._schema.code_of_batch(library_size)
            return replace(latent, log_library=generation.draw_log_library(self._vae, codes, rng))
        sizes = np.asarray(library_size, dtype=np.float64)
        if sizes.ndim > 1 or (sizes.ndim and len(sizes) != len(latent)):
            raise ValueError(f"library_size has shape {sizes.shape}; expected a number, or one for each of the cells.")
        if not (np.isfinite(sizes) & (sizes > 0)).all():
            found = sizes if not sizes.ndim else sizes[~(np.isfinite(sizes) & (sizes > 0))][0]
            raise ValueError(f"library_size is {found:g}; expected numbers above 0, or the name of a batch.")
        return replace(latent, log_library=np.broadcast_to(np.log(sizes), len(latent)).astype(np.float32))

    def _blocks(
        self,
        latent: Latent,
        given: Mapping[str, np.ndarray],
        label: int | None,
        rng: np.random.Generator,
        truth: bool,
        per_block: int,
    ) -> Iterator[AnnData]:
        """Yield the new cells, block by block."""
        for rows, matrix, expected in generation.counts_of(self._vae, latent, rng, per_block, expected=truth):
            part = latent.part(rows)
            cells = self._generated(matrix, part.codes, part.z, part.library, start=rows.start)
            for key, values in given.items():
                cells.obs[key] = values[rows]
            if expected is not None:
                cells.layers["expected"] = expected
            if self._schema.labels and (truth or label is not None):
                codes = generation.labels_of(self._vae, part.z) if label is None else np.full(len(part), label)
                cells.obs[self._schema.labels_key] = pd.Categorical.from_codes(codes, list(self._schema.labels))
            yield cells

    def _code_of_label(self, label: Any, prior: Prior) -> int:
        if not self._schema.labels:
            raise ValueError(f"label is {label!r}, and the model has no labels; expected None: train with labels_key=.")
        if prior != "normal":
            raise ValueError(f"prior is {prior!r} with a label; expected 'normal', whose components have labels.")
        return position_of(label, self._schema.labels, "label", self._schema.labels_key)

    def _mixture(self) -> aggregate_prior.Mixture:
        """Mixture fitted to the aggregate posterior; it is fitted to the data at the first call."""
        if self._aggregate is None:
            if self._counts is None:
                raise ValueError(
                    "This model was saved without its aggregate posterior and loaded without data to fit one to: load "
                    "it as SCCVAE.load(path, adata), or pass prior='normal'."
                )
            profiles, index = np.unique(self._counts.codes, axis=0, return_inverse=True)
            known = list(map(tuple, self._profiles))
            at = np.array([known.index(tuple(p)) if tuple(p) in known else -1 for p in profiles.tolist()])
            moments = posterior.aggregate(self._vae, self._counts)
            self._aggregate = aggregate_prior.fit(*moments, at[index.ravel()], len(known), seed=self._seed)
        return self._aggregate

    def _after_training(self) -> None:
        self._aggregate = None  # it was fitted to other posteriors

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Weights and, if there are data to fit it to, the mixture of `generate(prior="aggregate")`."""
        tensors = super()._tensors()
        if self._aggregate is None and (self._counts is None or not self._rows):
            return tensors
        return tensors | {_STORED + name: torch.from_numpy(a) for name, a in self._mixture()._asdict().items()}

    def _take(self, tensors: dict[str, torch.Tensor]) -> None:
        stored = {name.removeprefix(_STORED): t for name, t in tensors.items() if name.startswith(_STORED)}
        super()._take({name: t for name, t in tensors.items() if not name.startswith(_STORED)})
        if stored:
            self._aggregate = aggregate_prior.Mixture(**{name: t.clone().numpy() for name, t in stored.items()})

    @classmethod
    def _expected(cls, found: Description, arrays: storage.Arrays) -> storage.Arrays:
        """Arrays of every model, and those of the mixture if there is one, with as many components as its means."""
        expected = super()._expected(found, arrays)
        if any(name.startswith(_STORED) for name in arrays):
            k = (*arrays.get(_STORED + "means", ("", ()))[1], 0)[0]
            d = found.architecture.n_latent + LIKELIHOODS[found.architecture.gene_likelihood].has_library
            shapes: dict[str, tuple[int, ...]]
            shapes = {"weights": (len(found.profiles), k), "means": (k, d), "factors": (k, d, d)}
            expected |= {_STORED + name: ("F64", shape) for name, shape in shapes.items()}
        return expected
