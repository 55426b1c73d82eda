"""The table of operations for the CPU: compiled passes of float32, which read torch tensors without copying them."""

from typing import Any

import numpy as np
import torch

from sccvae.kernels import parallel
from sccvae.kernels.cpu import count_likelihood as likelihood
from sccvae.kernels.cpu import latent, layers
from sccvae.kernels.table import HeadGradients, Heads, Keep, Operations, Rows

f32 = np.float32


def array(t: torch.Tensor) -> np.ndarray:
    """Return a tensor as an array, without a copy; bfloat16, which numpy does not have, as its bits."""
    t = t.detach()
    return (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy()


def _sum_rows(source: torch.Tensor, out: torch.Tensor) -> None:
    array(source).sum(0, out=array(out))  # in the order of the rows


def _encode(keep: Keep, x, scale, weight) -> tuple[torch.Tensor, Any]:
    out, values = keep("a", x.n_cells, weight.shape[1]), torch.empty_like(x.values)
    scales = x.values.new_empty(0) if scale is None else scale
    layers.encode([array(t) for t in (x.indptr, x.genes, x.values, scales, weight, values, out)])
    return out, (x, values)


def _encode_backward(saved, grad_out: torch.Tensor, grad_weight: torch.Tensor) -> None:
    x, values = saved
    layers.encode_gradient(tuple(array(t) for t in (x.indptr, x.genes, values, grad_out, grad_weight)))


def _block(keep: Keep, a, bias: Rows, gamma, beta, noise, lowest, rate) -> tuple[torch.Tensor, Any]:
    out, normal, scale = keep("out", *a.shape), keep("normal", *a.shape), keep("scale", len(a))
    given = [array(t) for t in (a, bias.values, bias.row, gamma, beta, noise)]
    layers.block(*given, lowest, f32(rate), array(normal), array(scale), array(out))
    return out, (out, f32(rate), gamma, bias, normal, scale)


def _block_backward(keep: Keep, saved, grad_out, grad_gamma, grad_beta) -> tuple[torch.Tensor, torch.Tensor]:
    out, rate, gamma, bias, normal, scale = saved
    grad_a, grad_bias = keep("grad_a", *out.shape), keep("grad_bias", len(bias.values), out.shape[1])
    kept = array(out), rate, array(gamma), array(bias.row), array(normal), array(scale)
    layers.block_gradient(array(grad_out), *kept, *(array(t) for t in (grad_a, grad_bias, grad_gamma, grad_beta)))
    return grad_a, grad_bias


def _gaussian(keep: Keep, head, bounds, shift, prior_mean, prior_variance, noise):
    sample, variance, kl = keep("sample", *noise.shape), keep("variance", *noise.shape), noise.new_empty(len(noise))
    kept = (array(head), tuple(map(f32, bounds)), *map(array, (shift, prior_mean, prior_variance, noise, variance)))
    latent.gaussian(*kept, array(sample), array(kl))
    return sample, variance, kl, kept


def _gaussian_backward(keep: Keep, saved, grad_sample: torch.Tensor, kl_weight: float) -> torch.Tensor:
    grad_head = keep("grad_head", *saved[0].shape)
    latent.gaussian_gradient(*saved, array(grad_sample), f32(kl_weight), array(grad_head))
    return grad_head


def _mixture_prior(keep: Keep, z, logits, mean, log_variance, floor, weight, *gradients):
    n_cells, n = z.shape
    value, grad_z, share = z.new_empty(n_cells), keep("grad_z", n, n_cells), keep("share", len(logits), n_cells)
    given = [array(t) for t in (z.t().contiguous(), logits, mean, log_variance)]
    filled = [array(t) for t in (share, value, grad_z, *gradients)]
    latent.mixture_prior(*given, f32(floor), f32(weight), *filled)
    return value, grad_z.t()


def _labelled_prior(
    keep: Keep, z, logits, mean, log_variance, label_logits, labels, floor, weight, penalty_weight, *gradients
):
    n_cells, n = z.shape
    value, penalty, grad_z = z.new_empty(n_cells), z.new_empty(n_cells), keep("grad_z", n, n_cells)
    share, joint = keep("share", len(logits), n_cells), keep("joint", len(logits), n_cells)
    given = (z.t().contiguous(), logits, mean, log_variance, label_logits.log_softmax(1), labels.contiguous())
    filled = [array(t) for t in (share, joint, value, penalty, grad_z, *gradients)]
    latent.labelled_prior(*map(array, given), f32(floor), f32(weight), f32(penalty_weight), *filled)
    return value, penalty, grad_z.t()


def _own_batch_excess(keep: Keep, mean, batch, copies: int, width: float, smoothing: float, n_neighbours: int):
    value = mean.new_zeros(len(mean))
    given = array(mean.t().contiguous()), array(batch.contiguous()), copies, f32(width), f32(smoothing), n_neighbours
    return value, torch.from_numpy(latent.own_batch_excess((*given, array(value)))).t()


def _table(rows: Rows) -> likelihood.Table:
    return likelihood.Table(array(rows.values), array(rows.row), rows.own)


def _count_likelihood(keep: Keep, x, heads: Heads, dropout_cost: float, weight) -> HeadGradients | None:
    theta = None if heads.log_theta is None else _table(heads.log_theta)
    pi = (None, None) if heads.pi is None or heads.pi_bias is None else (array(heads.pi), array(heads.pi_bias))
    given = likelihood.Heads(array(heads.logits), _table(heads.bias), array(heads.log_library), theta, *pi)
    found = likelihood.count_log_likelihood(
        [array(t) for t in (x.indptr, x.genes, x.values)],
        *(given, dropout_cost, array(weight)),
        in_place=True,
        kept=lambda name, *shape: array(keep(name, *shape)),
    )
    if found is None:
        return None
    return HeadGradients(
        value=torch.from_numpy(found.value),
        dropouts=torch.from_numpy(found.dropouts),
        logits=heads.logits,
        bias=torch.from_numpy(found.bias),
        log_library=torch.from_numpy(found.log_library),
        log_theta=None if found.log_theta is None else torch.from_numpy(found.log_theta),
        pi=heads.pi,
        pi_bias=None if found.pi_bias is None else torch.from_numpy(found.pi_bias),
    )


def _adam(segments, arrays, numbers) -> None:
    layers.adam(segments, [array(t) for t in arrays], numbers)


CPU = Operations(
    multiply=parallel.multiply,
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
