"""Operations on sparse counts: log-likelihood, encoding, thinning; in torch for any device, or compiled for the CPU.

An entry is zero, as nearly all are, or not; `fused` takes lgamma of the latter alone. With mean m = l * rho,
dispersion theta, r = theta / (theta + m), t = log NB(0) = -theta * log1p(m / theta), and zero-inflation logit pi:

    x = 0:  log p = softplus(t - pi) - softplus(-pi)
    x > 0:  log p = -softplus(pi) + t + x (log m - log(theta + m)) + lgamma(x + theta) - lgamma(theta) - lgamma(x + 1)

Without pi this is the negative binomial (log p(0) = t); without theta as well, the Poisson (t = -m).
The gradients are closed forms of the same quantities, so forward computes both and backward only scales.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import logsigmoid, softplus

from sccvae.kernels.table import Operations

if TYPE_CHECKING:
    from sccvae.data.counts import Minibatch


class Result(NamedTuple):
    """Result of a likelihood kernel: value of each cell, and gradients of the sum of `weight` times it."""

    value: torch.Tensor  # (cells,) log-likelihood less the cost of drop-outs
    dropouts: torch.Tensor  # (cells,) expected number of drop-outs
    to_logits: torch.Tensor  # (cells, genes)
    to_log_library: torch.Tensor  # (cells,)
    to_log_theta: torch.Tensor | None  # as log_theta
    to_dropout: torch.Tensor | None  # (cells, genes)


Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]  # the last four of these

# (x, logits, log_library, log_theta, dropout, dropout_cost, weight (cells,)) -> Result; shapes as below.
Kernel = Callable[
    ["Minibatch", torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None, float, torch.Tensor], Result
]


def count_log_likelihood(
    x: Minibatch,
    logits: torch.Tensor,
    log_library: torch.Tensor,
    log_theta: torch.Tensor | None = None,
    dropout: torch.Tensor | None = None,
    dropout_cost: float = 0.0,
    kernel: Kernel | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the log-likelihood of each cell's counts, less the penalty on expected inflated zeros.

    Parameters
    ----------
    x
        Counts of the minibatch.
    logits
        (cells, genes): normalised expression is softmax(logits).
    log_library
        (cells,): log library size.
    log_theta
        (genes,) or (cells, genes): log inverse dispersion; None for Poisson.
    dropout
        (cells, genes): zero-inflation logits; None without zero inflation.
    dropout_cost
        Penalty in nats for each expected inflated zero.
    kernel
        `plain` (also None) or `fused`.

    Returns
    -------
    (cells,) `sum_g log p(x_g) - dropout_cost * sum_g sigmoid(pi_g)`, differentiable; and
    (cells,) the expected number of drop-outs `sum_g sigmoid(pi_g)`, a constant.
    """
    return _CountLogLikelihood.apply(kernel or plain, x, logits, log_library, log_theta, dropout, dropout_cost)


class _CountLogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernel, x, logits, log_library, log_theta, dropout, dropout_cost):
        ctx.save_for_backward(logits, log_library, log_theta, dropout)
        ctx.by_cell = kernel is plain
        if ctx.by_cell:
            r = _by_cell(x, logits, log_library, log_theta, dropout, dropout_cost)
        else:
            # A guess, right for a loss that is minus the mean over cells: the gradients are then ready.
            ctx.weight = torch.full_like(log_library, -1.0) / len(logits)
            r = kernel(x, logits, log_library, log_theta, dropout, dropout_cost, ctx.weight)
            ctx.again = lambda weight, *inputs: kernel(x, *inputs, dropout_cost, weight)
        ctx.gradients = r[2:]
        ctx.mark_non_differentiable(r.dropouts)
        return r.value, r.dropouts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_value, _):
        if ctx.by_cell:  # without asking whether a guess was right, for which a GPU would have to be waited for
            gradients = _weighted(ctx.gradients, grad_value, _is_by_gene(ctx.saved_tensors[2]))
        elif torch.equal(grad_value, ctx.weight):
            gradients = ctx.gradients
        else:
            gradients = ctx.again(grad_value.contiguous(), *ctx.saved_tensors)[2:]
        return None, None, *gradients, None


def fused(x, logits, log_library, log_theta, dropout, dropout_cost, weight) -> Result:
    """Compute the likelihood in one compiled pass over each cell, float32; out of bounds, fall back to `plain`."""
    tensors = (logits, log_library, log_theta, dropout)
    if all(t is None or fits(t) for t in tensors):
        from sccvae.kernels.cpu import count_likelihood as compiled  # numba takes half a second to import

        heads = _without_biases(compiled, *[None if t is None else t.detach().contiguous().numpy() for t in tensors])
        r = compiled.count_log_likelihood(stored(x), heads, dropout_cost, weight.numpy())
        if r is not None:
            grad_theta = r.log_theta[0] if log_theta is not None and log_theta.dim() == 1 else r.log_theta
            arrays = (r.value - x.log_factorial.numpy(), r.dropouts, r.logits, r.log_library, grad_theta, r.pi)
            return Result(*[None if a is None else torch.from_numpy(a) for a in arrays])  # type: ignore[arg-type]
    return plain(x, *tensors, dropout_cost, weight)


def stored(x: Minibatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`indptr`, `genes` and `values` of a minibatch as arrays, on the CPU."""
    return x.indptr.numpy(), x.genes.numpy(), x.values.numpy()


def _without_biases(compiled, logits, log_library, log_theta, dropout):
    """Return the heads for the compiled pass when the biases are already added."""
    n_cells, n_genes = logits.shape
    zeros, one_row = np.zeros((1, n_genes), np.float32), np.zeros(n_cells, np.int64)
    if log_theta is not None:
        own = log_theta.ndim == 2
        log_theta = compiled.Table(np.atleast_2d(log_theta), np.arange(n_cells) if own else one_row, own)
    return compiled.Heads(logits, compiled.Table(zeros, one_row), log_library, log_theta, dropout, zeros[0])


def fits(t: torch.Tensor) -> bool:
    """Return whether compiled code accepts the tensor: float32 on the CPU."""
    return t.dtype == torch.float32 and t.device.type == "cpu"


def plain(x, logits, log_library, log_theta, dropout, dropout_cost, weight) -> Result:
    """Compute the likelihood in torch operations on whole arrays, on any device and in any precision."""
    r = _by_cell(x, logits, log_library, log_theta, dropout, dropout_cost)
    return Result(r.value, r.dropouts, *_weighted(r[2:], weight, _is_by_gene(log_theta)))


def _by_cell(x, logits, log_library, log_theta, dropout, dropout_cost) -> Result:
    """Return values, and gradients of each cell's own value, (cells, genes), also by log_theta."""
    log_rho = torch.log_softmax(logits, dim=1)  # (cells, genes)
    log_m, counts = log_rho + log_library[:, None], x.dense()
    m = log_m.exp()
    grad_theta: Any = None
    if log_theta is None:
        entries, grad_mean = counts * log_m - m, counts - m
    else:
        entries, grad_mean, grad_theta = _negative_binomial(counts, log_m, m, log_theta)
    grad_dropout, dropouts = None, torch.zeros_like(log_library)
    if dropout is not None:
        found, lost = counts > 0, torch.sigmoid(dropout)
        zero = entries - dropout  # where there is no count, `entries` is t
        entries = torch.where(found, zero, softplus(zero)) + logsigmoid(dropout)
        kept = torch.sigmoid(zero).masked_fill_(found, 1)  # probability that it came from the counts: a zero may not
        grad_mean, grad_theta, dropouts = grad_mean * kept, grad_theta * kept, lost.sum(1)
        grad_dropout = (1 - lost) * (1 - dropout_cost * lost) - kept
    value = entries.sum(1) - x.log_factorial - dropout_cost * dropouts
    slope = grad_mean.sum(1)
    return Result(value, dropouts, grad_mean - log_rho.exp_() * slope[:, None], slope, grad_theta, grad_dropout)


def _negative_binomial(counts, log_m, m, log_theta) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log NB(x) without log x!, and its gradients by log m and log theta, (cells, genes) each."""
    # lgamma(x + theta) - lgamma(theta) cancels, and so does its derivative: these in float64.
    exact = log_theta.double().exp()
    theta, shifted = exact.to(m.dtype), counts + exact
    total, t = theta + m, -theta * torch.log1p(m / theta)
    r = theta / total
    ratio, slope = torch.lgamma(shifted) - torch.lgamma(exact), torch.digamma(shifted) - torch.digamma(exact)
    entries = t + counts * (log_m - total.log()) + ratio.to(m.dtype)
    return entries, r * (counts - m), t + (m - counts) * r + (exact * slope).to(m.dtype)


def _weighted(gradients: Gradients, weight: torch.Tensor, by_gene: bool) -> Gradients:
    """Return gradients of the sum of `weight` times the values, from those of each cell; theta's may be per gene."""
    grad_logits, grad_log_library, grad_theta, grad_dropout = gradients
    each = weight[:, None]
    if grad_theta is not None:
        grad_theta = weight @ grad_theta if by_gene else each * grad_theta
    if grad_dropout is not None:
        grad_dropout = each * grad_dropout
    return each * grad_logits, weight * grad_log_library, grad_theta, grad_dropout


def _is_by_gene(log_theta: torch.Tensor | None) -> bool:
    return log_theta is not None and log_theta.dim() == 1


def plain_encode(x: Minibatch, scale: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
    """log1p(scale * counts) @ weight, (cells, hidden).

    Parameters
    ----------
    scale
        (cells,): what a cell's counts are multiplied by; None takes the values as they are, without log1p.
    weight
        (genes, hidden).
    """
    counts = x.dense()
    return (counts if scale is None else torch.log1p(counts * scale[:, None])) @ weight


def fused_encode(x: Minibatch, scale: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
    """Compute `plain_encode` compiled, for float32 on the CPU."""
    return _Encode.apply(x, scale, weight) if fits(weight) else plain_encode(x, scale, weight)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, weight):
        out, ctx.saved = _cpu().encode(lambda _, *shape: x.values.new_empty(*shape), x, scale, weight)
        ctx.n_genes = len(weight)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        grad_weight = grad_out.new_empty(ctx.n_genes, grad_out.shape[1])
        _cpu().encode_backward(ctx.saved, grad_out.contiguous(), grad_weight)
        return None, None, grad_weight


def plain_thin(x: Minibatch, generator: torch.Generator, most_hidden: float) -> Minibatch:
    """Thin the counts of each cell binomially, by a fraction of its own.

    A share s ~ Uniform(0, most_hidden) of each cell's molecules is hidden: of a count x, Binomial(x, s). A code should
    say what a cell expresses, not how deeply it was sequenced; the evidence lower bound of the whole cell holds for any
    q, also one that saw a part (Im et al. 2017, https://arxiv.org/abs/1511.06406). Hidden counts stay, as stored zeros.
    """
    if most_hidden == 0:
        return x
    hidden = _hidden(x, generator, most_hidden)
    values = x.values - torch.binomial(x.values.floor(), hidden[x.rows], generator=generator)
    return _with_values(x, values, torch.zeros_like(hidden).index_add_(0, x.rows, values))


def fused_thin(x: Minibatch, generator: torch.Generator, most_hidden: float) -> Minibatch:
    """Compute `plain_thin` compiled, for float32 on the CPU; counts from 64 on use a rounded normal sample."""
    if most_hidden == 0 or not fits(x.values):
        return plain_thin(x, generator, most_hidden)
    from sccvae.kernels.cpu import thinning

    hidden, seed = _hidden(x, generator, most_hidden), torch.empty((), dtype=torch.int64).random_(generator=generator)
    values, totals = torch.empty_like(x.values), torch.empty_like(hidden)
    arrays = (t.numpy() for t in (x.indptr, x.values, hidden, values, totals))
    thinning.thin(np.uint64(int(seed)), *arrays)
    return _with_values(x, values, totals)


def _hidden(x: Minibatch, generator: torch.Generator, most: float) -> torch.Tensor:
    return most * torch.rand(x.n_cells, generator=generator, device=x.values.device, dtype=x.values.dtype)


def _with_values(x: Minibatch, values: torch.Tensor, totals: torch.Tensor) -> Minibatch:
    return x._replace(values=values, log_total=totals.clamp_min(1).log())


class Kernels(NamedTuple):
    """Versions of the operations on counts, chosen once at construction of a model."""

    likelihood: Kernel
    encode: Callable[[Minibatch, torch.Tensor | None, torch.Tensor], torch.Tensor]
    thin: Callable[[Minibatch, torch.Generator, float], Minibatch]
    operations: Callable[[], Operations] | None = None  # the table of the step by hand; None: autograd takes it


def _cpu() -> Operations:
    from sccvae.kernels.cpu.operations import CPU

    return CPU


PLAIN = Kernels(plain, plain_encode, plain_thin)
FUSED = Kernels(fused, fused_encode, fused_thin, _cpu)


def for_device(device: torch.device) -> Kernels:
    """Return the fastest kernels for tensors on `device`."""
    return FUSED if device.type == "cpu" else PLAIN
