"""Mapping of new cells onto a trained `SCCVAE`, and labels for them."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from typing import Any, Self, cast

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from sccvae.data.columns import categories_of
from sccvae.data.counts import Counts
from sccvae.data.matrix import check_adata
from sccvae.inference import posterior
from sccvae.inference.labels import Labelled, labelled
from sccvae.kernels.reference import Kernels
from sccvae.models.analysis import AnalysisModel
from sccvae.models.base import device_of
from sccvae.modules.architecture import Architecture
from sccvae.modules.new_batches import freeze_known, start_new_batches, take_known, with_start
from sccvae.modules.vae import VAE
from sccvae.statistics.calibration import Calibration, calibrated
from sccvae.statistics.neighbour_votes import vote
from sccvae.validation.arguments import checked_seed, flag, positive, real

STEPS, RATE = 100, 3e-2  # of training a mapped model: steps, learning rate
KNOWN = "known_batches"  # option of a mapped model: number of batches of its reference


class MappingModel(AnalysisModel):
    """Mapping of new cells onto an `SCCVAE`, and labels."""

    _train_size = 0.95  # of the last run

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData,
        reference: Self | str | os.PathLike,
        *,
        batch_key: str | None = None,
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
        {device}

        Returns
        -------
        A model of the same class. It can be saved, and be the reference of further cells.

        Raises
        ------
        RuntimeError
            The reference is not trained.
        ValueError, KeyError, TypeError
            The counts are invalid, the column of batches or a gene is missing; the message says how to fix it.

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
        (100, 20)
        """
        check_adata(adata)
        model = reference if isinstance(reference, cls) else _loaded(cls, reference, device)
        model._check_trained()
        schema = model._schema
        key = schema.batch_key if batch_key is None else batch_key
        known = schema.categories[0]
        found = () if key is None else categories_of(adata, key)
        new = tuple(name for name in found if name not in known)
        schema = replace(schema, batch_key=key, categories=(known + new, *schema.categories[1:]))
        counts = schema.read(adata)
        counts = replace(counts, labels=np.full(len(counts), -1))  # labels of new cells take no part
        architecture = replace(model._vae.architecture, n_levels=counts.n_levels)
        profiles, frequencies = _together(model, counts)
        mapped = cls.__new__(cls)
        options = {KNOWN: len(known)}
        mapped._set(schema, architecture, profiles, frequencies, model._seed, model.device, options)
        take_known(mapped._vae, model._vae)
        if new and model.likelihood.has_library:
            means, variances = counts.library_prior()
            start_new_batches(mapped._vae, means, variances)
        mapped._remember(adata, adata, counts)
        mapped._rows, mapped._best_epoch = [dict(row) for row in model._rows], model._best_epoch
        mapped._calibration = model._calibrated()
        return mapped

    @property
    def is_mapped(self) -> bool:
        """Whether the model is that of a reference with new cells, made by `load_query_data`.

        Examples
        --------
        >>> model.is_mapped
        False
        """
        return KNOWN in self._options

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
        novelty_rate: float = 0.05,
        error_rate: float = 0.05,
        n_samples: int = 20,
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
            For a model without labels that was loaded or trained with its data: a column of `obs`, or a label for each
            of those cells. New cells are labelled by their nearest neighbours among them.
        novelty_rate
            Fraction of the reference's own cells that would be called new. A cell less likely than those is not
            accepted.
        error_rate
            Largest fraction of cells like the held-out ones of the reference whose right label has too low a
            probability to be accepted.
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
        found, labels = labelled(self._vae, counts, n_samples, seed), np.array(self._schema.labels)
        if reference_labels is not None:
            known = self._labels(reference_labels, None, cast(pd.Index, self._cell_names), "reference_labels")
            z = posterior.latent(self._vae, cast(Counts, self._counts))
            probability, labels = vote(z, known.astype(str).to_numpy(), posterior.latent(self._vae, counts))
        calibration = self._calibrated()
        if reference_labels is None:
            probability = calibration.tempered(found.probability)
        if soft:
            return pd.DataFrame(probability, index=names, columns=labels)
        density = found.density
        if self._vae.moving:  # offsets that were adapted to cells of a new kind hide them
            density = labelled(with_start(self._vae), counts, 0, seed).density
        p = calibration.p_values(density)
        return _table(names, labels, probability, p, counts, calibration, novelty_rate, error_rate)

    def _calibrated(self) -> Calibration:
        """Return the calibration of the reference; that of a model with its own data is computed at the first call."""
        if self._calibration is None:
            if self._counts is None:
                raise ValueError(
                    "This model was saved without the calibration of its labels and loaded without data: load it as "
                    "SCCVAE.load(path, adata)."
                )
            every = labelled(self._vae, self._counts, 0, self._seed)
            held_out = self._split(self._train_size)[1]
            held_out = held_out[self._counts.labels[held_out] >= 0]
            of_held = Labelled(np.zeros((0, 0)), every.density)
            if self._schema.labels and len(held_out):
                of_held = labelled(self._vae, self._counts[held_out], 20, self._seed)
            self._calibration = calibrated(
                of_held.probability, self._counts.labels[held_out[: len(of_held.probability)]],
                every.density, self._counts.log_total,
            )  # fmt: skip
        return self._calibration

    def _after_training(self) -> None:
        super()._after_training()
        if not self.is_mapped:
            self._calibration = None

    def _description(self) -> dict[str, Any]:
        found = super()._description()
        if self._schema.labels and self._rows and (self._calibration is not None or self._counts is not None):
            found["calibration"] = asdict(self._calibrated())
        return found


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
    value = real(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}; expected a fraction of the cells in [0, 1), such as 0.05.")
    return value


def _table(
    names: pd.Index,
    labels: np.ndarray,
    probability: np.ndarray,
    p: np.ndarray,
    counts: Counts,
    calibration: Calibration,
    novelty_rate: float,
    error_rate: float,
) -> pd.DataFrame:
    """Return the table of `predict`."""
    order = np.argsort(-probability, axis=1, kind="stable")
    first, second = labels[order[:, 0]], labels[order[:, min(1, len(labels) - 1)]]
    sure = probability[np.arange(len(order)), order[:, 0]]
    new = p < novelty_rate
    open_ = sure < calibration.least_probability(error_rate)
    reason = np.full(len(names), "", dtype=object)
    reason[open_] = [f"between {a} and {b}" for a, b in zip(first[open_], second[open_], strict=True)]
    reason[new] = "new kind"
    reason[(new | open_) & (counts.log_total < calibration.log_total)] = "few molecules"
    columns = {"label": pd.Categorical(first, labels), "probability": sure, "novelty": 1 - p}
    return pd.DataFrame({**columns, "accepted": ~(new | open_), "reason": reason}, index=names)
