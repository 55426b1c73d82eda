"""Labels of cells from the joint density of z and label, and how likely z is in the reference."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
import torch

from sccvae.data.counts import Counts
from sccvae.data.schema import Schema
from sccvae.inference import posterior
from sccvae.kernels.parallel import alone
from sccvae.modules.batch_offsets import batch_levels
from sccvae.modules.latent_terms import LabelledPrior
from sccvae.modules.vae import VAE
from sccvae.statistics.calibration import Calibration, calibrated
from sccvae.statistics.checks import labels as label_checks
from sccvae.statistics.checks.mapping import check_depth, check_missing_genes, check_new_cells, check_offsets
from sccvae.statistics.diagnostics import Check

TOGETHER = 8192  # cells
MOST_COMPARED = 20_000  # cells whose labels are compared with their counts
MANY_MISSING = 0.3  # fraction of the reference's genes without which a cell may look new
STORED = "reference."  # names of arrays begin with it
_LARGEST = np.float32(2**15 - 1)


class Labelled(NamedTuple):
    """What the model says of cells."""

    probability: np.ndarray  # (cells, labels) float64, averaged over samples of q(z|x); 0 without samples
    density: np.ndarray  # (cells,) log p(z) at the mean of q(z|x)


class Reference(NamedTuple):
    """Cells that a model was trained on, without counts."""

    z: np.ndarray  # (cells, n_latent) float32
    labels: np.ndarray  # (cells,) int32, -1 for none
    batches: np.ndarray  # (cells,) int32

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return arrays to store; z is rounded to 16 bits, relative to the largest value of each dimension."""
        unit = np.maximum(np.abs(self.z).max(0, initial=0), 1e-12).astype(np.float32) / _LARGEST
        arrays = {"z": np.rint(self.z / unit).astype(np.int16), "unit": unit, "labels": self.labels}
        return {STORED + name: torch.from_numpy(a) for name, a in (arrays | {"batches": self.batches}).items()}

    @classmethod
    def of(cls, tensors: dict[str, torch.Tensor]) -> "Reference | None":
        """Return the cells that `tensors` gave; None if there are none."""
        found = {name.removeprefix(STORED): t.clone().numpy() for name, t in tensors.items() if name.startswith(STORED)}
        if not found:
            return None
        return cls(found["z"].astype(np.float32) * found["unit"], found["labels"], found["batches"])

    @staticmethod
    def expected(arrays: dict[str, tuple[str, tuple[int, ...]]], n_latent: int) -> dict:
        """Return the types and shapes of arrays that `tensors` gave."""
        n = (*arrays.get(STORED + "z", ("", ()))[1], 0)[0]
        shapes = {"z": ("I16", (n, n_latent)), "unit": ("F32", (n_latent,)), "labels": ("I32", (n,))}
        return {STORED + name: kind for name, kind in (shapes | {"batches": ("I32", (n,))}).items()}


@alone()
@torch.no_grad()
def labelled(vae: VAE, counts: Counts, n_samples: int, seed: int) -> Labelled:
    """Compute p(y | x) and log p(z) of cells; without samples, log p(z) alone."""
    mean, variance = posterior.latent_moments(vae, counts)
    rng, n_labels = np.random.default_rng(seed), vae.architecture.n_labels
    probability = np.zeros((len(mean), n_labels))
    density = np.empty(len(mean), np.float32)
    for start in range(0, len(mean), TOGETHER):
        rows = slice(start, start + TOGETHER)
        m, sd = mean[rows], np.sqrt(variance[rows])
        density[rows] = vae.log_prior(_tensor(m, vae)).cpu().numpy()
        for _ in range(n_samples if n_labels else 0):
            assert isinstance(vae.prior, LabelledPrior)
            z = m + sd * rng.standard_normal(m.shape)
            probability[rows] += vae.prior.label_probabilities(_tensor(z, vae)).double().cpu().numpy()
    if n_labels and n_samples:
        probability /= probability.sum(1, keepdims=True)
    return Labelled(probability, density)


@torch.no_grad()
def checks_of_mapping(
    vae: VAE,
    start: VAE,
    counts: Counts,
    calibration: Calibration | None,
    novelty_rate: float,
    seed: int,
    *,
    genes: np.ndarray,
    labels: np.ndarray,
    batches: Sequence[str],
) -> list[Check]:
    """Check how far mapped cells are from the reference.

    Parameters
    ----------
    vae, start
        The network, and the one that novelty is judged by: its new batches have the offsets that they began with.
    calibration
        That of the reference; None leaves the check of new cells out.
    novelty_rate
        Fraction of the reference's cells that would be called new.
    genes, labels, batches
        Their names.
    """
    moving = cast(range, vae.moving)
    checks = [check_missing_genes(counts.missing, genes)]
    if calibration is not None:
        found = labelled(start, counts, 5, seed)
        of_cells = labels[found.probability.argmax(1)] if len(labels) else None
        checks.insert(0, check_new_cells(calibration.p_values(found.density), novelty_rate, of_cells))
    if vae.likelihood.has_library:
        checks.append(check_depth(counts.log_size, float(vae.library_mean[: moving.start].mean())))
    for levels in batch_levels(vae)[-1:]:  # those of the output
        far = check_offsets(levels.detach().cpu().numpy(), moving.start, list(batches))
        checks += [] if far is None else [far]
    return checks


def _tensor(z: np.ndarray, vae: VAE) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(z, np.float32)).to(vae.device)


def table_of(
    names: pd.Index,
    labels: np.ndarray,
    probability: np.ndarray,
    p: np.ndarray,
    counts: Counts,
    calibration: Calibration,
    novelty_rate: float,
    error_rate: float,
) -> pd.DataFrame:
    """Return the table of `SCCVAE.predict`, from probabilities of labels, (cells, labels), and p-values, (cells,)."""
    order = np.argsort(-probability, axis=1, kind="stable")
    first, second = labels[order[:, 0]], labels[order[:, min(1, len(labels) - 1)]]
    sure = probability[np.arange(len(order)), order[:, 0]]
    new = p < novelty_rate
    open_ = sure < calibration.least_probability(error_rate)
    reason = np.full(len(names), "", dtype=object)
    reason[open_] = [f"between {a} and {b}" for a, b in zip(first[open_], second[open_], strict=True)]
    few_genes = counts.missing is not None and counts.missing.mean() > MANY_MISSING
    reason[new] = "few shared genes" if few_genes else "new kind"
    reason[(new | open_) & (counts.log_total < calibration.log_total)] = "few molecules"
    columns = {"label": pd.Categorical(first, labels), "probability": sure, "novelty": 1 - p}
    return pd.DataFrame({**columns, "accepted": ~(new | open_), "reason": reason}, index=names)


def without_contradicted(counts: Counts, schema: Schema, seed: int = 0) -> Counts:
    """Return the cells without the labels of batches whose labels do not fit the cells, and warn of them."""
    known = np.flatnonzero(counts.labels >= 0)
    if len(schema.categories[0]) < 2 or not len(known) or schema.support != "counts":
        return counts
    if len(known) > MOST_COMPARED:
        known = np.sort(np.random.default_rng(seed).choice(known, MOST_COMPARED, replace=False))
    part = counts[known]
    found = label_checks.agreement(part.matrix, part.labels, part.codes[:, 0], seed)
    left_out = label_checks.contradicted(found)
    if not len(left_out):
        return counts
    label_checks.warn_of(found, left_out, schema.categories[0], str(schema.labels_key))
    return replace(counts, labels=np.where(np.isin(counts.codes[:, 0], left_out), -1, counts.labels))


def calibration_of(vae: VAE, counts: Counts, held_out: np.ndarray, n_samples: int, seed: int) -> Calibration:
    """Return the calibration of labels and of novelty, from all cells and the `held_out` ones that have a label."""
    every = labelled(vae, counts, 0, seed)
    held_out = held_out[counts.labels[held_out] >= 0]
    of_held = labelled(vae, counts[held_out], n_samples, seed)
    labels, batches = counts.labels[held_out], counts.codes[held_out, 0]
    return calibrated(of_held.probability, labels, every.density, counts.log_total, batches)
