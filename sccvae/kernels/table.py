"""The table of operations of a training step: one name for each, a version for each kind of device.

`training.manual_step` is written once against `Operations`. A version takes and returns torch tensors of its device;
arrays that it may reuse come from `keep(name, *shape)`. `forward` operations return what they computed and, last, what
`backward` needs. Gradients begin with `grad_`; those of parameters are written to the tensors that are passed.

`training.reference` defines each operation in plain torch, and its gradients by autograd. `kernels.cpu.operations` is
compiled. One test holds every entry of every table against the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from sccvae.data.counts import Minibatch

Keep = Callable[..., torch.Tensor]
# Values of float32 between an array that compiled loops write to and any other. Such a loop begins with a check of
# addresses. If two arrays are less than some vectors apart, it does not use vectors, and adds up in another order.
APART = 128


class Rows(NamedTuple):
    """Values that cells share: row `row[i]` of `values` belongs to cell i."""

    values: torch.Tensor  # (rows, n) float32
    row: torch.Tensor  # (cells,) int64
    own: bool = False  # every cell has a row of its own


class Heads(NamedTuple):
    """Output of the decoder for a minibatch; biases are not added yet."""

    logits: torch.Tensor  # (cells, genes), float32 or bfloat16
    bias: Rows  # of genes
    log_library: torch.Tensor  # (cells,)
    log_theta: Rows | None  # of genes; None for Poisson
    pi: torch.Tensor | None  # (cells, genes) logits of zero inflation, float32 or bfloat16
    pi_bias: torch.Tensor | None  # (genes,)


class HeadGradients(NamedTuple):
    """Log-likelihood of each cell, and gradients of the sum of weight * value, shaped as their heads."""

    value: torch.Tensor  # (cells,) less the penalty on zero inflation, without log x!
    dropouts: torch.Tensor  # (cells,) expected number of inflated zeros
    logits: torch.Tensor  # in place of the logits
    bias: torch.Tensor  # of `bias.values`
    log_library: torch.Tensor
    log_theta: torch.Tensor | None  # of `log_theta.values`
    pi: torch.Tensor | None  # in place of pi
    pi_bias: torch.Tensor | None


class Operations(NamedTuple):
    """Versions of the operations for one kind of device; (...) are the arguments, -> what is returned."""

    # (a, b, out, add=False) -> out: a @ b, or that added.
    multiply: Callable[..., torch.Tensor]
    # (source, out): sum over rows, (rows, n) -> (n,).
    sum_rows: Callable[[torch.Tensor, torch.Tensor], None]
    # (keep, x, scale, weight) -> out (cells, hidden), saved: log1p(scale * counts) @ weight.
    encode: Callable[[Keep, Minibatch, torch.Tensor | None, torch.Tensor], tuple[torch.Tensor, Any]]
    # (saved, grad_out, grad_weight).
    encode_backward: Callable[[Any, torch.Tensor, torch.Tensor], None]
    # (keep, a, bias: Rows, gamma, beta, noise, lowest, rate) -> out, saved: dropout(ReLU(layer norm of a + bias)).
    block: Callable[..., tuple[torch.Tensor, Any]]
    # (keep, saved, grad_out, grad_gamma, grad_beta) -> grad_a, grad_bias (rows, hidden).
    block_backward: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    # (keep, head, bounds, shift, prior_mean, prior_variance, noise) -> sample, variance (cells, n), KL (cells,), saved:
    # q = Normal(shift + first half of head, exp(second half, within bounds[:2]) + bounds[2]); KL(q || prior).
    gaussian: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]]
    # (keep, saved, grad_sample, kl_weight) -> grad_head.
    gaussian_backward: Callable[[Keep, Any, torch.Tensor, float], torch.Tensor]
    # (keep, z, logits, mean, log_variance, floor, weight, gradients of the three) -> value (cells,), grad_z:
    # log N(z; 0, I) - log p(z), and gradients of weight * its sum.
    mixture_prior: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    # (keep, z, logits, mean, log_variance, label_logits, labels, floor, weight, penalty_weight, gradients of the four)
    # -> value, penalty (cells,), grad_z: log N(z; 0, I) - log p(z, y), and -log p(y | z); labels of -1 are none. The
    # gradients are those of the sums, times weight and penalty_weight, together.
    labelled_prior: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    # (keep, mean, batch, copies, width, smoothing, n_neighbours) -> value (cells,), gradient of its sum by mean: see
    # `modules.batch_penalty.own_batch_excess`.
    own_batch_excess: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    # (keep, x, heads, dropout_cost, weight) -> gradients; None where this version is not exact.
    count_likelihood: Callable[[Keep, Minibatch, Heads, float, torch.Tensor], HeadGradients | None]
    # (segments, arrays, numbers): a step of Adam in place; see `training.optimizer`.
    adam: Callable[..., None]
