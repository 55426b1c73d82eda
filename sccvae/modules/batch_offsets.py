"""Offsets of batches: rows for new batches of a trained model, and what batches of a condition have in common."""

import copy

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn

from sccvae.modules.networks import CovariateOffset
from sccvae.modules.vae import VAE


@torch.no_grad()
def take_known(new: VAE, known: VAE) -> None:
    """Copy all arrays of a model to one with further batches, whose rows become the means of those of the known ones.

    Outputs for known batches are then those of the known model.
    """
    parts = dict(known.named_modules())
    for name, part in new.named_modules():
        if (old := parts.get(name)) is None:  # such as the penalty of batches, of a model that had one
            continue
        if isinstance(part, CovariateOffset) and isinstance(old, CovariateOffset):
            # A single batch had no row, because it would only repeat the bias.
            rows = dict(zip(old.used, old.levels, strict=True))
            if hasattr(part, "slopes"):
                part.slopes.copy_(old.slopes)
            for column, levels in zip(part.used, part.levels, strict=True):
                _fill(levels, rows.get(column, levels.new_zeros(1, levels.shape[1])))
        elif not isinstance(part, nn.ParameterList):
            before = _own_arrays(old)
            for of_part, array in _own_arrays(part).items():
                _fill(array, before[of_part])


def _own_arrays(part: nn.Module) -> dict[str, torch.Tensor]:
    return dict(part.named_parameters(recurse=False)) | dict(part.named_buffers(recurse=False))


def batch_levels(vae: VAE) -> list[nn.Parameter]:
    """Return the offsets of batches, (batches, n) each, by layer; those of the output are last."""
    offsets = [part for part in vae.modules() if isinstance(part, CovariateOffset) and 0 in part.used]
    return [offset.levels[offset.used.index(0)] for offset in offsets]


def _fill(array: torch.Tensor, known: torch.Tensor) -> None:
    """Fill the first rows with the known ones, further rows with their mean."""
    if array.shape == known.shape:
        array.copy_(known)
        return
    array[: len(known)] = known
    array[len(known) :] = known.mean(0)


def freeze_known(vae: VAE, n_known: int) -> None:
    """Let training change the rows of the batches from number `n_known` on, and nothing else."""
    n_batches = vae.architecture.n_levels[0]
    for w in vae.parameters():
        w.requires_grad_(False)
    vae.moving = range(n_known, n_batches)
    if vae.moving:
        for levels in batch_levels(vae):
            levels.requires_grad_(True)
        if vae.decoder.dispersion == "gene-batch":
            vae.decoder.log_dispersion.requires_grad_(True)


@torch.no_grad()
def start_new_batches(vae: VAE, means: np.ndarray, variances: np.ndarray) -> None:
    """Set the library prior of the new batches from means and variances of all, (batches,) each."""
    assert vae.moving is not None
    n_known = vae.moving.start
    for of_batches, values in ((vae.library_mean, means), (vae.library_variance, variances)):
        of_batches[n_known:] = torch.from_numpy(values[n_known:])


@torch.no_grad()
def centre_within_conditions(vae: VAE, column: int, codes: np.ndarray) -> None:
    """Move what the batches of a condition have in common from their offsets to those of the condition.

    Where batches lie within conditions, such as donors, a number added to the offsets of all batches of a condition and
    subtracted from that of the condition changes no output. Training leaves the effect of the condition divided between
    the two. Here the mean of the batches becomes zero. Outputs of all cells that there are stay as they are.

    Parameters
    ----------
    column
        Column of the codes with the condition.
    codes
        (cells, 1 + covariates) codes of batch and covariates.
    """
    n_batches, n_conditions = vae.architecture.n_levels[0], vae.architecture.n_levels[column]
    pairs = (codes[:, 0], n_batches + codes[:, column])
    linked = coo_matrix((np.ones(len(codes)), pairs), shape=(n_batches + n_conditions,) * 2)
    # A component moves together: conditions that share batches keep their difference.
    n_components, component = connected_components(linked, directed=False)
    offsets = [part for part in vae.modules() if isinstance(part, CovariateOffset)]
    for offset in (part for part in offsets if {0, column} <= set(part.used)):
        of_batches, of_conditions = (offset.levels[offset.used.index(k)] for k in (0, column))
        for number in range(n_components):
            inside = torch.from_numpy(component == number).to(of_batches.device)
            batches, conditions = inside[:n_batches], inside[n_batches:]
            if batches.any() and conditions.any():
                common = of_batches[batches].mean(0)
                of_batches[batches] -= common
                of_conditions[conditions] += common


@torch.no_grad()
def with_start(vae: VAE) -> VAE:
    """Return a copy whose new batches have the offsets that they began with: the means of those of the known ones."""
    copied = copy.deepcopy(vae)
    assert copied.moving is not None
    n_known = copied.moving.start
    for levels in batch_levels(copied):
        levels[n_known:] = levels[:n_known].mean(0)
    return copied
