"""Mapping of new cells onto a trained `SCCVAE`, and labels for them."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, Self, cast

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from sccvae.data.columns import categories_of
from sccvae.data.counts import Counts
from sccvae.data.gene_matching import Matched, match
from sccvae.data.matrix import check_adata, with_columns
from sccvae.data.origin import Elsewhere
from sccvae.data.schema import Schema
from sccvae.data.sources import Given
from sccvae.inference import posterior
from sccvae.inference.labels import STORED, Reference, calibration_of, checks_of_mapping, labelled, table_of
from sccvae.io import storage
from sccvae.kernels.reference import Kernels
from sccvae.models.analysis import AnalysisModel
from sccvae.models.base import BaseModel, device_of
from sccvae.models.description import Description
from sccvae.models.plan import Run
from sccvae.modules.architecture import Architecture
from sccvae.modules.batch_offsets import (
    centre_within_conditions,
    freeze_known,
    start_new_batches,
    take_known,
    with_start,
)
from sccvae.modules.gene_subset import fraction_of_counts, of_genes, put_back, with_genes
from sccvae.modules.vae import VAE
from sccvae.statistics.calibration import Calibration
from sccvae.statistics.diagnostics import Check
from sccvae.statistics.neighbour_votes import vote
from sccvae.validation.arguments import checked_seed, finite, flag, positive, real
from sccvae.validation.wording import warn

STEPS, RATE = 100, 3e-2  # of training a mapped model: steps, learning rate
NOVELTY_RATE = 0.07  # fraction of the reference's cells that would be called new
ERROR_RATE = 0.05  # fraction of held-out cells whose right label is less probable than what is accepted
N_SAMPLES = 20  # of z, that probabilities of labels are averaged over
LEAST_GENES = 0.5  # fraction of the reference's genes that has to be found
KNOWN = "known_batches"  # option of a mapped model: number of batches of its reference
EPOCHS = "reference_epochs"  # and the number of epochs in the history of the reference


class MappingModel(AnalysisModel):
    """Mapping of new cells onto an `SCCVAE`, and labels."""

    _train_size = 0.95  # of the last run
    _reference: Reference | None = None  # cells of the reference, where they are kept
    _elsewhere = Elsewhere()  # counts of the reference, of a mapped model whose reference is in memory

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData,
        reference: Self | str | os.PathLike,
        *,
        batch_key: str | None = None,
        gene_key: str | None = None,
        least_genes: float = LEAST_GENES,
        device: str | torch.device = "auto",
    ) -> Self:
        """Return a model for new cells, from known or new batches, that leaves the reference as it is.

        The model can be used at once. A new batch begins with the mean offsets of the known batches, and with the
        library sizes of its own cells. `train` adapts the offsets of the new batches alone, in seconds. All other
        weights stay those of the reference, and so do its embeddings, to the bit. The data of the reference are not
        needed. Counts that are given to the model are not changed.

        Parameters
        ----------
        adata
            (cells, genes) raw counts of new cells, where the reference has them: in `X` or in its layer.
        reference
            A trained model, or the folder of one.
        batch_key
            Column of `obs` with the batches; None takes the name of the reference's.
        gene_key
            Column of `var` with identifiers that the reference has as names of its genes; None takes the names. Ensembl
            identifiers match without their version, and names without letter case, where more genes are found so.
        least_genes
            Smallest fraction of the reference's genes that has to be found. Missing genes are no zeros: they are left
            out of the encoder, of the library size, of the training and of the ELBO. A warning says how many are
            missing. Expression is given of all genes.
        device
            "cpu", "cuda" or another device of torch. "auto" takes that of a reference in memory, and for a folder a GPU
            if there is one.

        Returns
        -------
        A model of the same class. It can be saved, and be the reference of further cells.

        Raises
        ------
        RuntimeError
            The reference is not trained.
        ValueError, KeyError, TypeError
            The counts are invalid, the column of batches or too many genes are missing; the message says how to fix it.

        Source
        ------
        New rows for new batches, and all else frozen: Lotfollahi et al. 2022 (https://doi.org/10.1038/s41587-021-01001-7).

        Examples
        --------
        >>> import sccvae
        >>> cells = sccvae.simulate.simulate(300, 50, seed=0)
        >>> new = cells.obs["batch"] == "batch_2"
        >>> reference = sccvae.SCCVAE(cells[~new].copy(), batch_key="batch", labels_key="cell_type")
        >>> reference.train(max_epochs=2)
        >>> mapped = sccvae.SCCVAE.load_query_data(cells[new].copy(), reference)
        >>> mapped.train()
        >>> mapped.get_latent_representation().shape
        (118, 20)
        """
        check_adata(adata)
        expected = "a fraction of the genes of the reference, in [0, 1]"
        least_genes = finite("least_genes", least_genes, expected, least=0, most=1)
        device = device if device == "auto" else device_of(device)
        model = reference if isinstance(reference, cls) else _loaded(cls, reference, device)
        model._check_trained()
        schema = model._schema
        key = schema.batch_key if batch_key is None else batch_key
        known = schema.categories[0]
        found = () if key is None else categories_of(adata, key)
        new = tuple(name for name in found if name not in known)
        schema = replace(schema, batch_key=key, categories=(known + new, *schema.categories[1:]))
        options: dict[str, Any] = {KNOWN: len(known), EPOCHS: model._rows[-1]["epoch"]}
        options |= {"gene_key": gene_key, "least_genes": least_genes}
        counts, matched = _read(adata, schema, options, model._vae)
        if matched.missing:
            warn(matched.describe())
        architecture = replace(model._vae.architecture, n_levels=counts.n_levels)
        profiles, frequencies = _together(model, counts)
        mapped = cls.__new__(cls)
        place = model.device if device == "auto" else device
        mapped._set(schema, architecture, profiles, frequencies, model._seed, place, options)
        take_known(mapped._vae, model._vae)
        if new and model.likelihood.has_library:
            means, variances = counts.library_prior()
            start_new_batches(mapped._vae, means, variances)
        mapped._remember(adata, adata, counts)
        mapped._rows, mapped._best_epoch = [dict(row) for row in model._rows], model._best_epoch
        mapped._calibration = model._calibrated() if model._has_calibration else None
        mapped._reference = model._reference
        mapped._elsewhere = model._elsewhere if model.is_mapped else Elsewhere(model._counts)
        return mapped

    def save(self, path: str | os.PathLike, *, overwrite: bool = False, with_reference: bool = False) -> None:
        """Write the model, without counts, to the folder `path`: `weights.safetensors` and `model.json`.

        If the process is killed meanwhile, the folder holds the old model or the new one.

        Parameters
        ----------
        with_reference
            Also write the embedding and the labels of the cells that the model was trained on, which `reference_cells`
            and `predict(reference_labels=)` need where there are no data. The embedding is rounded: its error is at
            most 1/65,534 of the largest value of each dimension.

        Raises
        ------
        FileExistsError
            There is a model at `path` and `overwrite` is False.
        TypeError, ValueError
            `overwrite` or `with_reference` is neither True nor False; `path` is no path; a weight is not finite; the
            reference is asked for, and the model has no data.
        OSError
            `path` cannot be written to, or the disk is full. An earlier model at `path` is kept.

        Examples
        --------
        >>> model.save("my_model", overwrite=True, with_reference=True)
        >>> type(model).load("my_model").reference_cells().shape
        (300, 0)
        """
        if flag("with_reference", with_reference) and self._reference is None:
            self._reference = self._own_reference()
        super().save(path, overwrite=overwrite)

    def reference_cells(self) -> AnnData:
        """Cells of the reference without counts: embedding in `obsm["X_sccvae"]`, label and batch in `obs`.

        Raises
        ------
        ValueError
            The model has no data, and was saved without its reference. Of a mapped model: its reference was, and is not
            in memory.

        Examples
        --------
        >>> model.reference_cells().obsm["X_sccvae"].shape
        (300, 20)
        """
        found = self._own_reference() if self._reference is None else self._reference
        schema = self._schema
        obs = pd.DataFrame(index=[f"reference-{k}" for k in range(len(found.z))])
        if schema.labels_key is not None:
            obs[schema.labels_key] = pd.Categorical.from_codes(found.labels, list(schema.labels))
        if schema.batch_key is not None and schema.batch_key != schema.labels_key:
            batches = pd.Categorical.from_codes(found.batches, list(schema.categories[0]))
            obs[schema.batch_key] = batches.remove_unused_categories()  # without those of new cells
        return AnnData(obs=obs, obsm={"X_sccvae": found.z})

    def _own_reference(self) -> Reference:
        self._check_trained()
        counts = self._elsewhere.counts() if self.is_mapped else self._counts
        if counts is None:
            what = "model was loaded without data, and was saved without its cells"
            what = "cells of the reference are not here, and were not saved with it" if self.is_mapped else what
            raise ValueError(f"The {what}: save the reference by save(path, with_reference=True).")
        z = posterior.latent(self._vae, counts)
        return Reference(z, counts.labels.astype(np.int32), counts.codes[:, 0].astype(np.int32))

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Arrays that are saved, with the cells of the reference if they are kept."""
        tensors = BaseModel._tensors(self) if self.is_mapped else super()._tensors()
        return tensors if self._reference is None else tensors | self._reference.tensors()

    def _take(self, tensors: dict[str, torch.Tensor]) -> None:
        self._reference = Reference.of(tensors)
        super()._take({name: t for name, t in tensors.items() if not name.startswith(STORED)})

    @classmethod
    def _expected(cls, found: Description, arrays: storage.Arrays) -> storage.Arrays:
        kept = {name: a for name, a in arrays.items() if name.startswith(STORED)}
        return super()._expected(found, arrays) | (
            Reference.expected(kept, found.architecture.n_latent) if kept else {}
        )

    def _mixture(self) -> Any:
        if self.is_mapped:
            raise ValueError(
                "prior is 'aggregate' for a mapped model; expected 'normal', or the reference's own model."
            )
        return super()._mixture()

    @property
    def is_mapped(self) -> bool:
        """Whether the model is that of a reference with new cells, made by `load_query_data`.

        Examples
        --------
        >>> model.is_mapped
        False
        """
        return KNOWN in self._options

    def _read_given(self, given: Given) -> tuple[AnnData, Counts]:
        if not self.is_mapped or not isinstance(given, AnnData):
            return super()._read_given(given)
        check_adata(given)
        return given, _read(given, self._schema, self._options, self._vae)[0]

    def _measured(self, counts: Counts) -> tuple[VAE, Counts, pd.Index]:
        if counts.missing is None:
            return super()._measured(counts)
        found = np.flatnonzero(~counts.missing)
        return with_genes(self._vae, found), of_genes(counts, found), self.gene_names[found]

    def _run(self, run: Run, progress_bar: bool) -> None:
        """Train; of a mapped model with missing genes, a copy without them."""
        missing = self._counts.missing if self._counts is not None else None
        if not self.is_mapped or missing is None:
            super()._run(run, progress_bar)
            return
        found = np.flatnonzero(~missing)
        whole, counts = self._vae, cast(Counts, self._counts)
        self._vae, self._counts = with_genes(whole, found), of_genes(counts, found)
        try:
            super()._run(run, progress_bar)
        finally:
            put_back(whole, self._vae, found)
            self._vae, self._counts = whole, counts

    def _epochs(self, max_epochs: int | None, train_size: float) -> int:
        if max_epochs is not None or not self.is_mapped:
            return super()._epochs(max_epochs, train_size)
        n_steps = -(-len(self._split(train_size)[0]) // self._batch_size(None, train_size))
        return max(1, round(STEPS / n_steps))

    @staticmethod
    def _network(
        architecture: Architecture, generator: torch.Generator, kernels: Kernels, options: dict[str, Any]
    ) -> VAE:
        vae = VAE(architecture, generator, kernels)
        if KNOWN in options:
            freeze_known(vae, options[KNOWN])
        return vae

    def predict(
        self,
        adata: AnnData | None = None,
        indices: Any = None,
        *,
        soft: bool = False,
        reference_labels: Any = None,
        novelty_rate: float = NOVELTY_RATE,
        error_rate: float = ERROR_RATE,
        n_samples: int = N_SAMPLES,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Labels of cells, with probabilities, and whether each label is accepted.

        Parameters
        ----------
        {new_data}
        {indices}
        soft
            Return the probability of every label instead.
        reference_labels
            Labels of the cells that the model was trained on, for a model without labels: a column of their `obs`, or a
            label for each. Cells are labelled by their nearest neighbours among them. Without the data, the model needs
            its reference: see `save`.
        novelty_rate
            Fraction of the reference's own cells that would be called new. A cell less likely than those is not
            accepted.
        error_rate
            Largest fraction of cells like the held-out ones of the reference whose right label has too low a
            probability to be accepted. It holds in three of four new batches like the reference's, if three of these
            have enough held-out cells: 19 for a rate of 0.05. With fewer, it holds for cells of the known batches.
        n_samples
            Samples of z that probabilities are averaged over.
        seed
            Seed of the samples.

        Returns
        -------
        DataFrame with a row for each cell:

        - `label`: the most probable label;
        - `probability`: its probability, calibrated on held-out cells of the reference;
        - `novelty`: in [0, 1], 1 minus the fraction of the reference's cells that are as unlikely as this one;
        - `accepted`: whether `novelty` and `probability` are within the rates;
        - `reason`: why not, such as "new kind" or "between T cells and NK cells"; empty for accepted cells.

        With `soft`, (cells, labels) probabilities.

        Raises
        ------
        ValueError
            The model has no labels, and none are given; a rate is not between 0 and 1.

        Examples
        --------
        >>> import sccvae
        >>> cells = sccvae.simulate.simulate(300, 50, seed=0)
        >>> model = sccvae.SCCVAE(cells, batch_key="batch", labels_key="cell_type")
        >>> model.train(max_epochs=2)
        >>> model.predict().columns.tolist()
        ['label', 'probability', 'novelty', 'accepted', 'reason']
        """
        novelty_rate, error_rate = _rate("novelty_rate", novelty_rate), _rate("error_rate", error_rate)
        n_samples, seed, soft = positive("n_samples", n_samples), checked_seed(seed), flag("soft", soft)
        counts, names = self._cells(adata, indices)
        if not self._schema.labels and reference_labels is None:
            raise ValueError(
                "The model has no labels: train one with labels_key=, or pass labels of the cells that it was trained "
                "on: reference_labels=."
            )
        calibration = self._calibrated()
        if reference_labels is not None:
            probability, labels = self._vote(reference_labels, counts)
        else:
            found, labels = labelled(self._vae, counts, n_samples, seed), np.array(self._schema.labels)
            probability = calibration.tempered(found.probability)
        if soft:
            return pd.DataFrame(probability, index=names, columns=labels)
        p = calibration.p_values(labelled(self._unadapted(), counts, 0, seed).density)
        return table_of(names, labels, probability, p, counts, calibration, novelty_rate, error_rate)

    def _unadapted(self) -> VAE:
        """Return the network by which novelty is judged: offsets that were adapted to cells of a new kind hide them."""
        return with_start(self._vae) if self._vae.moving else self._vae

    def _own_history(self) -> pd.DataFrame:
        history = self.history
        return history[history["epoch"] > self._options.get(EPOCHS, 0)] if self.is_mapped else history

    def _shown_mapping(self, adata: AnnData | None, seed: int) -> dict[str, Any] | None:
        if not self.is_mapped:
            return None
        predicted, reference = self.predict(adata, seed=seed) if self._schema.labels else None, None
        with suppress(ValueError):
            reference = self.reference_cells()
        known = self._options[KNOWN]
        batches = {"known": self.batches[:known], "new": self.batches[known:]}
        return {"predicted": predicted, "reference": reference, **batches}

    def _own_checks(self, counts: Counts, seed: int) -> list[Check]:
        if not self.is_mapped:
            return super()._own_checks(counts, seed)
        names = {"genes": self.gene_names.to_numpy(), "labels": np.array(self._schema.labels), "batches": self.batches}
        return checks_of_mapping(self._vae, self._unadapted(), counts, self._calibration, NOVELTY_RATE, seed, **names)

    def _vote(self, reference_labels: Any, counts: Counts) -> tuple[np.ndarray, np.ndarray]:
        """Return the shares of the neighbours' labels, (cells, labels), and the names of the labels."""
        found = self._own_reference() if self._reference is None else self._reference
        no_table = self.is_mapped or self._reference is not None
        names = pd.RangeIndex(len(found.z)).astype(str) if no_table else self._cell_names
        if isinstance(reference_labels, str) and no_table:
            raise TypeError(
                f"reference_labels is the text {reference_labels!r}; expected a label for each of {len(found.z)} "
                "cells, in the order of the reference, because the model has no table of them."
            )
        if isinstance(reference_labels, pd.Series) and no_table:
            reference_labels = reference_labels.to_numpy()
        known = self._labels(reference_labels, None, cast(pd.Index, names), "reference_labels")
        return vote(found.z, known.astype(str).to_numpy(), posterior.latent(self._vae, counts))

    @property
    def _has_calibration(self) -> bool:
        return self._calibration is not None or (self._counts is not None and not self.is_mapped)

    def _calibrated(self) -> Calibration:
        """Return the calibration of the reference; that of a model with its own data is computed at the first call."""
        if self._calibration is None:
            counts = self._counts
            if counts is None or self.is_mapped:
                raise ValueError(
                    "The reference was saved without the calibration of labels and loaded without data: load it as "
                    "SCCVAE.load(path, adata), or save it by save(path, with_reference=True)."
                )
            held_out = self._split(self._train_size)[1]
            self._calibration = calibration_of(self._vae, counts, held_out, N_SAMPLES, self._seed)
        return self._calibration

    def _after_training(self) -> None:
        super()._after_training()
        if not self.is_mapped:
            self._calibration = self._reference = None
            if self._schema.condition > 0 and self._counts is not None:
                centre_within_conditions(self._vae, self._schema.condition, self._counts.codes)

    def _description(self) -> dict[str, Any]:
        found = super()._description()
        if (self._schema.labels or self._reference is not None) and self._rows and self._has_calibration:
            found["calibration"] = asdict(self._calibrated())
        return found


def _read(adata: AnnData, schema: Schema, options: dict[str, Any], vae: VAE) -> tuple[Counts, Matched]:
    """Read new cells for a mapped model, and say how their genes were matched; labels take no part."""
    matched = match(adata.var, schema.genes, gene_key=options["gene_key"], least=options["least_genes"])
    if matched.by != "names" or matched.missing or options["gene_key"] is not None:
        adata = with_columns(adata, schema.layer, schema.genes, matched.at)
    counts = replace(schema.read(adata), labels=np.full(adata.n_obs, -1))
    if not matched.missing:
        return counts, matched
    # The encoder scales counts to a common total: that of the genes found is the fraction that these have elsewhere.
    missing = matched.at < 0
    there = fraction_of_counts(vae, ~missing)
    log_total = counts.log_total - np.float32(np.log(there))
    return replace(counts, log_total=log_total, missing=missing), matched


def _loaded(kind: Any, reference: Any, device: Any) -> Any:
    """Return the model in a folder."""
    if not isinstance(reference, str | os.PathLike):
        what = getattr(reference, "kind", type(reference).__name__)
        raise TypeError(f"reference is of the class {what}; expected an SCCVAE, or the folder of a saved one.")
    return kind.load(reference, device=device_of(device))


def _together(model: Any, counts: Counts) -> tuple[list, list]:
    """Return the profiles of the reference, then others of the new cells, and the frequencies of all."""
    profiles, frequencies = list(map(list, model._profiles)), list(model._frequencies)
    for profile, n in zip(*np.unique(counts.codes, axis=0, return_counts=True), strict=True):
        if profile.tolist() in profiles:
            frequencies[profiles.index(profile.tolist())] += int(n)
        else:
            profiles.append(profile.tolist())
            frequencies.append(int(n))
    return profiles, frequencies


def _rate(name: str, value: Any) -> float:
    return finite(name, real(name, value), "a fraction of the cells in [0, 1), such as 0.05", least=0, below=1)
