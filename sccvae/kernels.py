"""What is computed from sparse counts, their log-likelihood first: in plain torch on any device, or fused on the CPU.

Counts are nearly all zeros, so the sum over genes is split: every entry is first taken as a zero (no lgamma), then
the stored non-zeros replace theirs. With mean m = l * rho, dispersion theta, r = theta / (theta + m),
t = log NB(0) = -theta * log1p(m / theta), and drop-out logit pi:

    x = 0:  log p = softplus(t - pi) - softplus(-pi)
    x > 0:  log p = -softplus(pi) + t + x (log m - log(theta + m)) + lgamma(x + theta) - lgamma(theta) - lgamma(x + 1)

Without pi this is the negative binomial (log p(0) = t); without theta as well, the Poisson (t = -m).
The gradients are closed forms of the same quantities, so forward computes both and backward only scales.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import embedding_bag, softplus

from sccvae.data import Minibatch


class Result(NamedTuple):
    """What a kernel returns: the value of each cell, and the gradients of the sum of `weight` times it."""

    value: torch.Tensor  # (cells,) log-likelihood less the cost of drop-outs
    dropouts: torch.Tensor  # (cells,) expected number of drop-outs
    to_logits: torch.Tensor  # (cells, genes)
    to_log_library: torch.Tensor  # (cells,)
    to_log_theta: torch.Tensor | None  # as log_theta
    to_dropout: torch.Tensor | None  # (cells, genes)


# (x, logits, log_library, log_theta, dropout, dropout_cost, weight (cells,)) -> Result; shapes as below.
Kernel = Callable[
    [Minibatch, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None, float, torch.Tensor], Result
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
    """Log-likelihood of each cell's counts, less what its expected drop-outs cost.

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
        (cells, genes): drop-out logits; None without zero inflation.
    dropout_cost
        Nats charged for each expected drop-out.
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
        # A guess, right for a loss that is minus the mean over cells: the gradients are then ready.
        ctx.weight = torch.full_like(log_library, -1.0) / len(logits)
        r = kernel(x, logits, log_library, log_theta, dropout, dropout_cost, ctx.weight)
        ctx.again = lambda weight, *inputs: kernel(x, *inputs, dropout_cost, weight)
        ctx.gradients = r[2:]
        ctx.save_for_backward(logits, log_library, log_theta, dropout)
        ctx.mark_non_differentiable(r.dropouts)
        return r.value, r.dropouts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_value, _):
        gradients = ctx.gradients
        # On a GPU the answer would have to be waited for, so there the guess is never trusted.
        if grad_value.is_cuda or not torch.equal(grad_value, ctx.weight):
            gradients = ctx.again(grad_value.contiguous(), *ctx.saved_tensors)[2:]
        return None, None, *gradients, None


def fused(x, logits, log_library, log_theta, dropout, dropout_cost, weight) -> Result:
    """One pass over each cell's row, compiled; float32 on the CPU. What it cannot do exactly goes to `plain`."""
    tensors = (logits, log_library, log_theta, dropout)
    if all(t is None or fits(t) for t in tensors):
        from sccvae import fused as compiled  # numba takes half a second to import

        heads = _without_biases(compiled, *[None if t is None else t.detach().contiguous().numpy() for t in tensors])
        with threads() as n_threads:
            r = compiled.count_log_likelihood(stored(x), heads, dropout_cost, weight.numpy(), n_threads)
        if r is not None:
            by_theta = r.log_theta[0] if log_theta is not None and log_theta.dim() == 1 else r.log_theta
            arrays = (r.value - x.log_factorial.numpy(), r.dropouts, r.logits, r.log_library, by_theta, r.pi)
            return Result(*[None if a is None else torch.from_numpy(a) for a in arrays])  # type: ignore[arg-type]
    return plain(x, *tensors, dropout_cost, weight)


def stored(x: Minibatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`indptr`, `genes` and `values` of a minibatch as arrays, on the CPU."""
    return x.indptr.numpy(), x.genes.numpy(), x.values.numpy()


def _without_biases(compiled, logits, log_library, log_theta, dropout):
    """The heads of the compiled kernel, where biases were added before."""
    n_cells, n_genes = logits.shape
    zeros, one_row = np.zeros((1, n_genes), np.float32), np.zeros(n_cells, np.int64)
    if log_theta is not None:
        own = log_theta.ndim == 2
        log_theta = compiled.Table(np.atleast_2d(log_theta), np.arange(n_cells) if own else one_row, own)
    return compiled.Heads(logits, compiled.Table(zeros, one_row), log_library, log_theta, dropout, zeros[0])


@contextmanager
def threads() -> Iterator[int]:
    """Yield torch's number of threads, and see that numba, which may share its OpenMP, does not change it."""
    n_threads = torch.get_num_threads()
    yield n_threads
    if torch.get_num_threads() != n_threads:
        torch.set_num_threads(n_threads)


def fits(t: torch.Tensor) -> bool:
    """Whether compiled code takes it."""
    return t.dtype == torch.float32 and t.device.type == "cpu"


def plain(x, logits, log_library, log_theta, dropout, dropout_cost, weight) -> Result:
    """The same in torch operations, on any device and in any precision."""
    log_rho = torch.log_softmax(logits, dim=1)  # (cells, genes)
    log_m = log_rho + log_library[:, None]
    entries, by_mean, by_theta, by_dropout = _zeros(log_m, log_theta, dropout)
    _replace_nonzeros(x, log_m, log_theta, dropout, entries, by_mean, by_theta, by_dropout)
    value = entries.sum(1) - x.log_factorial
    dropouts = torch.zeros_like(value)
    if dropout is not None:
        probability = torch.sigmoid(dropout)
        dropouts = probability.sum(1)
        value = value - dropout_cost * dropouts
        by_dropout.sub_(probability * (1 - probability), alpha=dropout_cost)
    slope = weight * by_mean.sum(1)
    by_logits = by_mean.mul_(weight[:, None]) - log_rho.exp_() * slope[:, None]
    if log_theta is not None:
        by_theta = weight @ by_theta if log_theta.dim() == 1 else by_theta.mul_(weight[:, None])
    if dropout is not None:
        by_dropout.mul_(weight[:, None])
    return Result(value, dropouts, by_logits, slope, by_theta, by_dropout)


def _zeros(log_m, log_theta, dropout) -> tuple[Any, Any, Any, Any]:
    """Every entry as if it were a zero: log p(0) and its gradients by log m, log theta and pi, (cells, genes) each."""
    m = log_m.exp()
    if log_theta is None:
        return -m, -m, None, None
    theta = log_theta.exp()
    t = -theta * torch.log1p(m / theta)
    m_r = m * (theta / (theta + m))
    if dropout is None:
        return t, -m_r, t + m_r, None
    s = torch.sigmoid(t - dropout)  # probability that a zero came from the counts
    entries = softplus(t - dropout) - softplus(-dropout)
    return entries, -s * m_r, s * (t + m_r), torch.sigmoid(-dropout) - s


def _replace_nonzeros(x, log_m, log_theta, dropout, entries, by_mean, by_theta, by_dropout) -> None:
    """Put the stored counts' terms (without log x!) and gradients in their places, in place.

    In float64: lgamma(x + theta) - lgamma(theta) cancels at large theta, and non-zeros are few.
    """
    at = (x.rows, x.genes.long())
    counts, log_m = x.values.double(), log_m[at].double()
    m = log_m.exp()
    put = lambda target, values: target.index_put_(at, values.to(target.dtype))  # noqa: E731
    if log_theta is None:
        put(entries, counts * log_m - m)
        put(by_mean, counts - m)
        return
    log_theta = log_theta[at[1] if log_theta.dim() == 1 else at].double()
    theta = log_theta.exp()
    log_sum = torch.log(theta + m)
    t = -theta * torch.log1p(m / theta)
    r = theta / (theta + m)
    terms = t + counts * (log_m - log_sum) + torch.lgamma(counts + theta) - torch.lgamma(theta)
    put(by_mean, r * (counts - m))
    slope = torch.digamma(counts + theta) - torch.digamma(theta)
    put(by_theta, t + m * r + theta * slope - counts * r)
    if dropout is not None:
        pi = dropout[at].double()
        terms = terms - softplus(pi)
        put(by_dropout, -torch.sigmoid(pi))
    put(entries, terms)


def plain_encode(x: Minibatch, scale: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
    """log1p(scale * counts) @ weight, (cells, hidden): each cell sums the rows of its stored counts.

    Parameters
    ----------
    scale
        (cells,): what a cell's counts are multiplied by; None takes the values as they are, without log1p.
    weight
        (genes, hidden).
    """
    values = x.values if scale is None else torch.log1p(x.values * scale[x.rows])
    starts = x.indptr.to(x.genes.dtype)
    return embedding_bag(x.genes, weight, starts, mode="sum", per_sample_weights=values, include_last_offset=True)


def fused_encode(x: Minibatch, scale: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
    """The same compiled, for float32 on the CPU."""
    return _Encode.apply(x, scale, weight) if fits(weight) else plain_encode(x, scale, weight)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, weight):
        out = x.values.new_empty(x.n_cells, weight.shape[1])
        ctx.x, ctx.values, ctx.n_genes = x, encode_into(out, x, scale, weight.detach()), len(weight)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, by_out):
        by_weight = by_out.new_empty(ctx.n_genes, by_out.shape[1])
        encode_gradient_into(by_weight, ctx.x, ctx.values, by_out.contiguous())
        return None, None, by_weight


def encode_into(out: torch.Tensor, x: Minibatch, scale: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
    """Fill out, (cells, hidden), as `plain_encode` would; return the left factor's stored values."""
    from sccvae import layers

    values = torch.empty_like(x.values)
    scales = x.values.new_empty(0) if scale is None else scale
    with threads() as n_threads:
        layers.encode([*stored(x), *(t.numpy() for t in (scales, weight, values, out))], n_threads)
    return values


def encode_gradient_into(by_weight: torch.Tensor, x: Minibatch, values: torch.Tensor, by_out: torch.Tensor) -> None:
    """Fill by_weight, (genes, hidden), from by_out, (cells, hidden), and the values that `encode_into` returned."""
    from sccvae import layers

    indptr, genes, _ = stored(x)
    with threads() as n_threads:
        layers.encode_gradient((indptr, genes, values.numpy(), by_out.numpy(), by_weight.numpy()), n_threads)


def plain_thin(x: Minibatch, generator: torch.Generator, most_hidden: float) -> Minibatch:
    """The same cells as if they had been sequenced less deeply, each by a share of its own.

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
    """The same compiled, for float32 on the CPU; from 64 molecules of a gene on, as many as a rounded normal says."""
    if most_hidden == 0 or not fits(x.values):
        return plain_thin(x, generator, most_hidden)
    from sccvae import molecules

    hidden, seed = _hidden(x, generator, most_hidden), torch.empty((), dtype=torch.int64).random_(generator=generator)
    values, totals = torch.empty_like(x.values), torch.empty_like(hidden)
    arrays = (t.numpy() for t in (x.indptr, x.values, hidden, values, totals))
    molecules.thin(np.uint64(int(seed)), *arrays)
    return _with_values(x, values, totals)


def _hidden(x: Minibatch, generator: torch.Generator, most: float) -> torch.Tensor:
    return most * torch.rand(x.n_cells, generator=generator, device=x.values.device, dtype=x.values.dtype)


def _with_values(x: Minibatch, values: torch.Tensor, totals: torch.Tensor) -> Minibatch:
    return x._replace(values=values, log_total=totals.clamp_min(1).log())


class Kernels(NamedTuple):
    """The three places where counts meet arithmetic, chosen once at construction."""

    likelihood: Kernel
    encode: Callable[[Minibatch, torch.Tensor | None, torch.Tensor], torch.Tensor]
    thin: Callable[[Minibatch, torch.Generator, float], Minibatch]


PLAIN, FUSED = Kernels(plain, plain_encode, plain_thin), Kernels(fused, fused_encode, fused_thin)


def for_device(device: torch.device) -> Kernels:
    """The fastest kernels for tensors on `device`."""
    return FUSED if device.type == "cpu" else PLAIN
