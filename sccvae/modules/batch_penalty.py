"""Batch-mixing penalty on the embedding: differentiable, within a minibatch.

The model assumes that z is independent of the batch s. The evidence lower bound enforces this only weakly, since the KL
divergence from the prior is one of single cells. The mutual information of z and s measures it:

    I(z; s) = E log p(s | z) / p(s)

p(s | z) is estimated around each cell from the other cells of the minibatch: the fraction of the cell's batch among its
neighbours, weighted by a kernel whose width is about the distance of the 12th. The estimate is local: cells of a type
that only one batch has are not moved.
"""

import torch

NEIGHBOURS = 12  # the kernel falls from 1 at the nearest cell ...
WIDTH = 3.0  # ... to exp(-3) at the last of these
SMOOTHING = 0.05  # pseudo-cells of the expected composition in each neighbourhood, as a fraction of it


def expected_share(batch: torch.Tensor, copies: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the fraction of each cell's batch among the other cells, (cells,); copies of a cell are side by side."""
    same = (batch[:, None] == batch).sum(1) - copies  # counted so, a GPU need not wait
    return same.to(dtype) / max(len(batch) - copies, 1)


def own_batch_excess(
    z: torch.Tensor,
    batch: torch.Tensor,
    copies: int = 1,
    width: float = WIDTH,
    smoothing: float = SMOOTHING,
    n_neighbours: int = NEIGHBOURS,
) -> torch.Tensor:
    r"""Return the same-batch log ratio: log of observed over expected fraction of a cell's batch around it, at least 0.

    Parameters
    ----------
    z
        (cells, n) codes.
    batch
        (cells,) codes of batches.
    copies
        Number of copies of each cell, side by side; copies are not neighbours of each other.
    width, smoothing, n_neighbours
        As the constants of this module.
    """
    if len(z) < 3 * copies:
        return 0 * z.sum(1)  # no two others to compare
    expected = expected_share(batch, copies, z.dtype)
    expected = torch.where(expected > 0, expected, 1)  # the only cell of its batch has nothing to keep to
    cell = torch.arange(len(z), device=z.device) // copies
    square = (z[:, None] - z[None]).square().sum(2).masked_fill(cell[:, None] == cell, torch.inf)
    near = square.detach().topk(min(n_neighbours, len(z) - copies), largest=False).values
    first, scale = near[:, :1], (near[:, -1:] - near[:, :1]).clamp_min(1e-6) / width
    weight = torch.exp((first - square) / scale)
    share = (weight * (batch[:, None] == batch)).sum(1) / weight.sum(1)
    return ((share + smoothing * expected) / ((1 + smoothing) * expected)).log().clamp_min(0)
