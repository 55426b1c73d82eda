"""The log-likelihood of sparse counts and its gradient, in plain torch on any device.

Counts are nearly all zeros, so the sum over genes is split: every entry is first taken as a zero (no lgamma), then
the stored non-zeros replace theirs. With mean m = l * rho, dispersion theta, r = theta / (theta + m),
t = log NB(0) = -theta * log1p(m / theta), and drop-out logit pi:

    x = 0:  log p = softplus(t - pi) - softplus(-pi)
    x > 0:  log p = -softplus(pi) + t + x (log m - log(theta + m)) + lgamma(x + theta) - lgamma(theta) - lgamma(x + 1)

Without pi this is the negative binomial (log p(0) = t); without theta as well, the Poisson (t = -m).
The gradients are closed forms of the same quantities, so forward computes both and backward only scales.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import softplus

from sccvae.data import Minibatch


class _Gradients(NamedTuple):
    log_mean: torch.Tensor  # (cells, genes)
    log_theta: torch.Tensor | None  # (cells, genes)
    dropout: torch.Tensor | None  # (cells, genes)


def count_log_likelihood(
    x: Minibatch,
    logits: torch.Tensor,
    log_library: torch.Tensor,
    log_theta: torch.Tensor | None = None,
    dropout: torch.Tensor | None = None,
    dropout_cost: float = 0.0,
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

    Returns
    -------
    (cells,) `sum_g log p(x_g) - dropout_cost * sum_g sigmoid(pi_g)`, differentiable; and
    (cells,) the expected number of drop-outs `sum_g sigmoid(pi_g)`, a constant.
    """
    return _CountLogLikelihood.apply(x, logits, log_library, log_theta, dropout, dropout_cost, torch.is_grad_enabled())


class _CountLogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, logits, log_library, log_theta, dropout, dropout_cost, with_gradients):
        log_rho = torch.log_softmax(logits, dim=1)  # (cells, genes)
        log_m = log_rho + log_library[:, None]
        entries, grads = _zeros(log_m, log_theta, dropout)
        _replace_nonzeros(x, log_m, log_theta, dropout, entries, grads)
        value = entries.sum(1) - x.log_factorial
        dropouts = torch.zeros_like(value)
        if dropout is not None:
            probability = torch.sigmoid(dropout)
            dropouts = probability.sum(1)
            value = value - dropout_cost * dropouts
            assert grads.dropout is not None
            grads.dropout.sub_(probability * (1 - probability), alpha=dropout_cost)
        if with_gradients:
            total = grads.log_mean.sum(1)
            to_logits = grads.log_mean - log_rho.exp_() * total[:, None]
            per_gene = log_theta is not None and log_theta.dim() == 1
            ctx.per_gene = per_gene
            ctx.save_for_backward(to_logits, total, grads.log_theta, grads.dropout)
        ctx.mark_non_differentiable(dropouts)
        return value, dropouts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_value, _):
        to_logits, total, to_theta, to_dropout = ctx.saved_tensors
        if to_theta is not None:
            to_theta = grad_value @ to_theta if ctx.per_gene else to_theta * grad_value[:, None]
        if to_dropout is not None:
            to_dropout = to_dropout * grad_value[:, None]
        return None, to_logits * grad_value[:, None], total * grad_value, to_theta, to_dropout, None, None


def _zeros(log_m, log_theta, dropout) -> tuple[torch.Tensor, _Gradients]:
    """Every entry as if it were a zero: log p(0), (cells, genes), and its gradients."""
    m = log_m.exp()
    if log_theta is None:
        return -m, _Gradients(-m, None, None)
    theta = log_theta.exp()
    t = -theta * torch.log1p(m / theta)
    m_r = m * (theta / (theta + m))
    if dropout is None:
        return t, _Gradients(-m_r, t + m_r, None)
    s = torch.sigmoid(t - dropout)  # probability that a zero came from the counts
    entries = softplus(t - dropout) - softplus(-dropout)
    return entries, _Gradients(-s * m_r, s * (t + m_r), torch.sigmoid(-dropout) - s)


def _replace_nonzeros(x, log_m, log_theta, dropout, entries, grads) -> None:
    """Put the stored counts' terms (without log x!) and gradients in their places, in place.

    In float64: lgamma(x + theta) - lgamma(theta) cancels at large theta, and non-zeros are few.
    """
    at = (x.rows, x.genes)
    counts, log_m = x.values.double(), log_m[at].double()
    m = log_m.exp()
    put = lambda target, values: target.index_put_(at, values.to(target.dtype))  # noqa: E731
    if log_theta is None:
        put(entries, counts * log_m - m)
        put(grads.log_mean, counts - m)
        return
    log_theta = log_theta[x.genes if log_theta.dim() == 1 else at].double()
    theta = log_theta.exp()
    log_sum = torch.log(theta + m)
    t = -theta * torch.log1p(m / theta)
    r = theta / (theta + m)
    terms = t + counts * (log_m - log_sum) + torch.lgamma(counts + theta) - torch.lgamma(theta)
    put(grads.log_mean, r * (counts - m))
    slope = torch.digamma(counts + theta) - torch.digamma(theta)
    put(grads.log_theta, t + m * r + theta * slope - counts * r)
    if dropout is not None:
        pi = dropout[at].double()
        terms = terms - softplus(pi)
        put(grads.dropout, -torch.sigmoid(pi))
    put(entries, terms)
