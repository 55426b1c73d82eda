"""A model of some of its genes, for cells in which others were not measured."""

from dataclasses import replace

import numpy as np
import torch

from sccvae.data.counts import Counts
from sccvae.data.packed_rows import PackedRows
from sccvae.modules.vae import VAE

_HEADS = ("logits", "dropout", "dispersion_head")
_AXES = {"encoder.first.weight": 0, "decoder.log_dispersion": 1}  # of the genes, by name of an array
_AXES |= {f"decoder.{head}.{what}": axis for head in _HEADS for what, axis in (("weight", 1), ("bias", 0))}


def _axis(name: str) -> int | None:
    """Return the axis of the genes of a named array, None for an array without genes."""
    return 1 if name.startswith("decoder.offset.") else _AXES.get(name)


@torch.no_grad()
def with_genes(vae: VAE, genes: np.ndarray) -> VAE:
    """Return a copy of a model with the genes numbered `genes` alone; expression is then that among them."""
    nothing = torch.Generator().manual_seed(0)
    part = VAE(replace(vae.architecture, n_genes=len(genes)), nothing, vae.kernels).to(vae.device)
    at, arrays = torch.from_numpy(genes).to(vae.device), dict(vae.state_dict())
    for name, array in part.state_dict().items():
        axis = _axis(name)
        array.copy_(arrays[name] if axis is None else arrays[name].index_select(axis, at))
    for w, whole in zip(part.parameters(), vae.parameters(), strict=True):
        w.requires_grad_(whole.requires_grad)
    part.moving = vae.moving
    return part.train(vae.training)


def of_genes(counts: Counts, genes: np.ndarray) -> Counts:
    """Return cells with the genes numbered `genes` alone, in ascending order; sizes and totals stay as they are."""
    found = Counts.of(
        PackedRows.of(counts.matrix[:, genes]),
        codes=counts.codes,
        n_levels=counts.n_levels,
        continuous=counts.continuous,
    )
    return replace(found, log_size=counts.log_size, log_total=counts.log_total, labels=counts.labels)


@torch.no_grad()
def put_back(vae: VAE, part: VAE, genes: np.ndarray) -> None:
    """Copy the arrays of a model of some genes into the model of all."""
    at, arrays = torch.from_numpy(genes).to(vae.device), dict(part.state_dict())
    for name, array in vae.state_dict().items():
        axis = _axis(name)
        if axis is None:
            array.copy_(arrays[name])
        else:
            array.index_copy_(axis, at, arrays[name])


@torch.no_grad()
def fraction_of_counts(vae: VAE, genes: np.ndarray) -> float:
    """Return the fraction of the counts of a typical cell that some genes, (genes,) bool, have by the model."""
    of_genes = vae.decoder.logits.bias.double().softmax(0).cpu().numpy()
    return float(max(of_genes[genes].sum(), 1e-6))
