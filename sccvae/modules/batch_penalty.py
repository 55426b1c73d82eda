"""How far cells keep to their own batch in the embedding: a penalty, differentiable, within a minibatch.

The model says that z is independent of the batch s; the evidence lower bound asks for it but weakly, since the KL
divergence from the prior looks at one cell at a time. The mutual information of z and s does say it:

    I(z; s) = E log p(s | z) / p(s)

p(s | z) is estimated around each cell, from the other cells of the minibatch: as the share of the cell's batch among
its neighbours, weighted by a kernel that reaches about as far as the 12th. So it is local: cells of a kind that one
batch alone has see none of another batch, and nothing pulls them.
"""

import torch

NEIGHBOURS = 12  # the kernel falls from 1 at the nearest cell ...
WIDTH = 3.0  # ... to exp(-3) at the last of these
SMOOTHING = 0.05  # cells of the expected composition that each neighbourhood counts in addition, as a share of it


def expected_share(batch: torch.Tensor, copies: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Share of each cell's batch among the other cells, (cells,); copies of a cell lie side by side."""
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
    r"""Log of the share of its own batch around each cell over the expected share, at least 0, (cells,) in nats.

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
