"""The reference for the table of operations: each in plain torch, on any device, with gradients by autograd.

The formulas are those of `modules`. `training.manual_step` runs with this table, too, which is how tests hold the step
and the compiled operations against each other; it is slower than `VAE.forward` under autograd.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from sccvae.kernels.reference import count_log_likelihood, plain_encode
from sccvae.kernels.table import HeadGradients, Heads, Keep, Operations, Rows
from sccvae.modules import batch_penalty
from sccvae.modules.distributions import Gaussian, log_standard_normal
from sccvae.modules.latent_terms import joint_log_prob, mixture_log_prob


def _recorded(function: Callable, inputs: Sequence[torch.Tensor]) -> tuple[Any, list[torch.Tensor]]:
    """Return function(*inputs) with its graph, and the inputs that it starts from."""
    with torch.enable_grad():
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        return function(*leaves), leaves


def _gradients(out: torch.Tensor, leaves: Sequence[torch.Tensor], grad_out: torch.Tensor) -> list[torch.Tensor]:
    found = torch.autograd.grad(out, leaves, grad_out, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(t) if by is None else by for t, by in zip(leaves, found, strict=True)]


def _multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, add: bool = False) -> torch.Tensor:
    product = a @ b
    return out.add_(product) if add else out.copy_(product)


def _sum_rows(source: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(source.sum(0))


def _encode(keep: Keep, x, scale, weight):
    out, leaves = _recorded(lambda w: plain_encode(x, scale, w), [weight])
    return out.detach(), (out, leaves)


def _encode_backward(saved, grad_out, grad_weight) -> None:
    out, leaves = saved
    grad_weight.copy_(_gradients(out, leaves, grad_out)[0])


def _block(keep: Keep, a, bias: Rows, gamma, beta, noise, lowest, rate):
    def block(a, values, gamma, beta):
        h = F.relu(F.layer_norm(a + F.embedding(bias.row, values), (a.shape[1],), gamma, beta))
        return h * (noise >= lowest) / (1 - rate) if rate > 0 else h

    out, leaves = _recorded(block, (a, bias.values, gamma, beta))
    return out.detach(), (out, leaves)


def _block_backward(keep: Keep, saved, grad_out, grad_gamma, grad_beta):
    out, leaves = saved
    grad_a, grad_bias, *others = _gradients(out, leaves, grad_out)
    grad_gamma.copy_(others[0])
    grad_beta.copy_(others[1])
    return grad_a, grad_bias


def _gaussian(keep: Keep, head, bounds, shift, prior_mean, prior_variance, noise):
    def parts(head):
        mean, log_variance = head.chunk(2, dim=1)
        variance = log_variance.clamp(*bounds[:2]).exp() + bounds[2]
        q = Gaussian(mean + shift[:, None], variance)
        prior = Gaussian(prior_mean[:, None], prior_variance[:, None])
        return q.sample(iter([noise])), q.variance, q.kl(prior).sum(1)

    found, (leaf,) = _recorded(parts, [head])
    sample, variance, kl = found
    return sample.detach(), variance.detach(), kl.detach().clone(), (sample, kl, leaf)


def _gaussian_backward(keep: Keep, saved, grad_sample, kl_weight):
    sample, kl, leaf = saved
    return _gradients(sample, [leaf], grad_sample)[0] + _gradients(kl, [leaf], torch.full_like(kl, kl_weight))[0]


def _mixture_prior(keep: Keep, z, logits, mean, log_variance, floor, weight, *gradients):
    def below_standard(z, logits, mean, log_variance):
        return log_standard_normal(z) - mixture_log_prob(z, logits, mean, log_variance, floor)

    value, leaves = _recorded(below_standard, (z, logits, mean, log_variance))
    grad_z, *others = _gradients(value, leaves, torch.full_like(value, weight))
    for out, by in zip(gradients, others, strict=True):
        out.copy_(by)
    return value.detach(), grad_z


def _labelled_prior(
    keep: Keep, z, logits, mean, log_variance, label_logits, labels, floor, weight, penalty_weight, *gradients
):
    def terms(z, logits, mean, log_variance, label_logits):
        joint = joint_log_prob(z, logits, mean, log_variance, label_logits, labels, floor)
        return log_standard_normal(z) - joint, mixture_log_prob(z, logits, mean, log_variance, floor) - joint

    (value, penalty), leaves = _recorded(terms, (z, logits, mean, log_variance, label_logits))
    by_value = _gradients(value, leaves, torch.full_like(value, weight))
    by_penalty = _gradients(penalty, leaves, torch.full_like(penalty, penalty_weight))
    grad_z, *others = (a + b for a, b in zip(by_value, by_penalty, strict=True))
    for out, by in zip(gradients, others, strict=True):
        out.copy_(by)
    return value.detach(), penalty.detach(), grad_z


def _own_batch_excess(keep: Keep, mean, batch, copies, width, smoothing, n_neighbours):
    def excess(z):
        return batch_penalty.own_batch_excess(z, batch, copies, width, smoothing, n_neighbours)

    value, leaves = _recorded(excess, [mean])
    return value.detach(), _gradients(value, leaves, torch.ones_like(value))[0]


def _count_likelihood(keep: Keep, x, heads: Heads, dropout_cost, weight):
    names = ("logits", "bias", "log_library", "log_theta", "pi", "pi_bias")
    tables = {name: rows.row for name in ("bias", "log_theta") if (rows := getattr(heads, name)) is not None}
    given = {name: t for name in names if (t := getattr(heads, name)) is not None}
    given = {name: t.values if name in tables else t.float() for name, t in given.items()}

    def value(*inputs):
        h = dict(zip(given, inputs, strict=True))
        of_cells = {name: F.embedding(row, h[name]) for name, row in tables.items()}
        pi = h["pi"] + h["pi_bias"] if "pi" in h else None
        logits = h["logits"] + of_cells["bias"]
        return count_log_likelihood(x, logits, h["log_library"], of_cells.get("log_theta"), pi, dropout_cost)

    (values, dropouts), leaves = _recorded(value, tuple(given.values()))
    by = dict(zip(given, _gradients(values, leaves, weight), strict=True))
    for name in ("logits", "pi"):
        if name in by:
            by[name] = getattr(heads, name).copy_(by[name])
    found = values.detach() + x.log_factorial  # `x!` is the caller's
    return HeadGradients(found, dropouts, *(by.get(name) for name in names))  # type: ignore[arg-type]


def _adam(segments, arrays, numbers) -> None:
    values, gradient, mean, square, average = arrays
    rate, correction, share, square_share, average_share, eps, scale = numbers
    for start, stop, decay in zip(*segments, strict=True):
        part = slice(int(start), int(stop))
        g = scale * gradient[part] + float(decay) * values[part]
        mean[part] += share * (g - mean[part])
        square[part] += square_share * (g.square() - square[part])
        values[part] -= rate * mean[part] / (square[part].sqrt() * correction + eps)
        average[part] += average_share * (values[part] - average[part])


REFERENCE = Operations(
    multiply=_multiply,
    sum_rows=_sum_rows,
    encode=_encode,
    encode_backward=_encode_backward,
    block=_block,
    block_backward=_block_backward,
    gaussian=_gaussian,
    gaussian_backward=_gaussian_backward,
    mixture_prior=_mixture_prior,
    labelled_prior=_labelled_prior,
    own_batch_excess=_own_batch_excess,
    count_likelihood=_count_likelihood,
    adam=_adam,
)
