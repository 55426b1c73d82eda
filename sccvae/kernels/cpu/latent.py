"""Operations of the latent space, compiled by numba for the CPU: one pass each, float32, with gradients.

Gaussian samples with their KL divergence, the mixture prior, the batch penalty. Names of gradients begin with `grad_`.
"""

import math
from functools import partial

import numba
import numpy as np

from sccvae.kernels.cpu.layers import SOME, multiple
from sccvae.kernels.cpu.vector_math import EXACT, INNER, LOOP, apart, empty, exp, f32
from sccvae.kernels.parallel import share

DISTANCES = 2**22  # between cells, kept at once
COMPARED = 2**20  # differences between cells in one dimension, below which another thread costs more than it saves


@numba.njit(**EXACT)
def gaussian(head, bounds, shift, prior_mean, prior_variance, noise, variance, draw, kl):
    """Draw from q = Normal(shift + first half of head, exp(second half)), and KL(q || prior) summed over a cell.

    Parameters
    ----------
    head
        (cells, 2 n): means, and log variances.
    bounds
        Lowest and highest log variance, and what is added to the variance.
    shift, prior_mean, prior_variance
        (cells,).
    noise, variance, draw
        (cells, n): standard normal; filled; filled.
    kl
        (cells,): filled.
    """
    n = noise.shape[1]
    for i in range(len(head)):
        total, m0, v0 = f32(0.0), prior_mean[i], prior_variance[i]
        for k in range(n):
            mean, log_variance = head[i, k] + shift[i], min(max(head[i, n + k], bounds[0]), bounds[1])
            v = f32(math.exp(log_variance)) + bounds[2]
            variance[i, k], draw[i, k] = v, mean + np.sqrt(v) * noise[i, k]
            total += v / v0 + (mean - m0) ** 2 / v0 - f32(1.0) - f32(math.log(v / v0))
        kl[i] = f32(0.5) * total


@numba.njit(**EXACT)
def gaussian_gradient(head, bounds, shift, prior_mean, prior_variance, noise, variance, grad_draw, weight, grad_head):
    """Fill grad_head from grad_draw and weight * KL; the rest is as `gaussian` left it."""
    n = noise.shape[1]
    for i in range(len(head)):
        m0, v0 = prior_mean[i], prior_variance[i]
        for k in range(n):
            mean, log_variance, v = head[i, k] + shift[i], head[i, n + k], variance[i, k]
            grad_head[i, k] = grad_draw[i, k] + weight * (mean - m0) / v0
            grad_v = grad_draw[i, k] * noise[i, k] / (f32(2.0) * np.sqrt(v)) + weight * f32(0.5) * (1 / v0 - 1 / v)
            inside = bounds[0] <= log_variance <= bounds[1]
            grad_head[i, n + k] = grad_v * (v - bounds[2]) if inside else f32(0.0)


@numba.njit(**LOOP, **INNER)
def _add(row, x):
    for i in range(row.size):
        row[i] += x


@numba.njit(**LOOP, **INNER)
def _add_squares(z, mean, precision, square):
    for i in range(z.size):
        square[i] += (z[i] - mean) * (z[i] - mean) * precision


@numba.njit(**LOOP, **INNER)
def _log_sum(share, value):
    """Add minus the log of the sum of exp(share), (components, cells), to value; share leaves as shares of that sum."""
    highest, total = np.empty(value.size, f32), np.empty(value.size, f32)
    for i in range(value.size):
        highest[i], total[i] = share[0, i], f32(0.0)
    for k in range(1, len(share)):
        for i in range(value.size):
            highest[i] = max(highest[i], share[k, i])
    for k in range(len(share)):
        row = share[k]
        for i in range(value.size):
            row[i] = exp(row[i] - highest[i])
            total[i] += row[i]
    for i in range(value.size):
        value[i] -= highest[i] + f32(math.log(total[i]))
    for k in range(len(share)):
        row = share[k]
        for i in range(value.size):
            row[i] /= total[i]


@numba.njit(**LOOP, **INNER)
def _by_component(z, share, mean, precision, grad_z):
    """Add the gradient of -log p(z) from one component in one dimension; return those of its mean and variance."""
    grad_mean, grad_variance = f32(0.0), f32(0.0)
    for i in range(z.size):
        pull = share[i] * (z[i] - mean) * precision
        grad_z[i] += pull
        grad_mean -= pull
        grad_variance += share[i] - pull * (z[i] - mean)
    return grad_mean, f32(0.5) * grad_variance * precision


@numba.njit(**LOOP)
def mixture_prior(
    z, logits, mean, log_variance, floor, weight, share, value, grad_z, grad_logits, grad_mean, grad_log_v
):
    """Fill value, (cells,), with log N(z | 0, I) - log p(z), and the others with the gradients of weight * its sum.

    Parameters
    ----------
    z, grad_z
        (n, cells): loops are over cells.
    logits, mean, log_variance, floor
        (components,), (components, n), (components, n), a number: as in `MixturePrior`.
    share
        (components, cells): filled with the responsibility of each component.
    """
    # No row is assigned to a row: numba takes seconds to compile that.
    total, n_cells = f32(math.log(np.exp(logits - logits.max()).sum())) + logits.max(), z.shape[1]
    value[:] = f32(0.0)
    for d in range(len(z)):
        _add_squares(z[d], f32(0.0), f32(-0.5), value)
        multiple(-weight, z[d], grad_z[d])
    for k in range(len(share)):
        share[k] = logits[k] - total
        for d in range(len(z)):
            v = f32(math.exp(log_variance[k, d])) + floor
            _add(share[k], f32(-0.5) * f32(math.log(v)))
            _add_squares(z[d], mean[k, d], f32(-0.5) / v, share[k])
    _log_sum(share, value)
    for k in range(len(share)):
        grad_logits[k] = weight * (n_cells * f32(math.exp(logits[k] - total)) - share[k].sum())
        multiple(weight, share[k], share[k])
        for d in range(len(z)):
            e = f32(math.exp(log_variance[k, d]))
            grad_mean[k, d], grad_v = _by_component(z[d], share[k], mean[k, d], f32(1.0) / (e + floor), grad_z[d])
            grad_log_v[k, d] = grad_v * e


@numba.njit(**EXACT, **INNER)
def _add_label(of_component, labels, row):
    for i in range(row.size):
        if labels[i] >= 0:
            row[i] += of_component[labels[i]]


@numba.njit(**LOOP, **INNER)
def _add_multiples(first, second, x, out):
    """Fill out with first * out + second * x."""
    for i in range(out.size):
        out[i] = first * out[i] + second * x[i]


@numba.njit(**EXACT, **INNER)
def _by_label(weight, log_pi, labels, joint, grad_label):
    """Fill the gradient of -weight * log p(z, y) by the logits of one component's labels."""
    grad_label[:], total = f32(0.0), f32(0.0)
    for i in range(labels.size):
        if labels[i] >= 0:
            total += joint[i]
            grad_label[labels[i]] -= weight * joint[i]
    for label in range(log_pi.size):
        grad_label[label] += weight * total * f32(math.exp(log_pi[label]))


@numba.njit(**LOOP)
def labelled_prior(
    z,
    logits,
    mean,
    log_variance,
    log_pi,
    labels,
    floor,
    weight,
    penalty_weight,
    share,
    joint,
    value,
    penalty,
    grad_z,
    grad_logits,
    grad_mean,
    grad_log_v,
    grad_label,
):
    """`mixture_prior` with labels: value is log N(z | 0, I) - log p(z, y), penalty -log p(y | z), both (cells,).

    The gradients are those of weight * value + penalty_weight * penalty, summed over cells.

    Parameters
    ----------
    log_pi
        (components, labels): log probability of each label in a component.
    labels
        (cells,): -1 for a cell without a label, of which p(z) takes the place of p(z, y).
    share, joint
        (components, cells): filled.
    """
    # With responsibilities r of p(z) and s of p(z, y), a cell pulls a component by (weight + penalty_weight) s -
    # penalty_weight r; both are the same for a cell without a label. Loops shared with `mixture_prior` round otherwise.
    total, n_cells = f32(math.log(np.exp(logits - logits.max()).sum())) + logits.max(), z.shape[1]
    value[:], penalty[:] = f32(0.0), f32(0.0)
    for d in range(len(z)):
        multiple(-weight, z[d], grad_z[d])
    for k in range(len(share)):
        share[k] = logits[k] - total
        for d in range(len(z)):
            v = f32(math.exp(log_variance[k, d])) + floor
            _add(share[k], f32(-0.5) * f32(math.log(v)))
            _add_squares(z[d], mean[k, d], f32(-0.5) / v, share[k])
        multiple(f32(1.0), share[k], joint[k])
        _add_label(log_pi[k], labels, joint[k])
    _log_sum(share, value)
    _log_sum(joint, penalty)
    for i in range(n_cells):  # minus log p(z), minus log p(z, y)
        value[i], penalty[i] = penalty[i], penalty[i] - value[i]
    for d in range(len(z)):
        _add_squares(z[d], f32(0.0), f32(-0.5), value)
    for k in range(len(share)):
        _by_label(weight + penalty_weight, log_pi[k], labels, joint[k], grad_label[k])
        _add_multiples(-penalty_weight, weight + penalty_weight, joint[k], share[k])
        grad_logits[k] = weight * n_cells * f32(math.exp(logits[k] - total)) - share[k].sum()
        for d in range(len(z)):
            e = f32(math.exp(log_variance[k, d]))
            grad_mean[k, d], grad_v = _by_component(z[d], share[k], mean[k, d], f32(1.0) / (e + floor), grad_z[d])
            grad_log_v[k, d] = grad_v * e


@numba.njit(**EXACT, **INNER)
def _nearest(square, nearest):
    """Fill nearest with the smallest entries of square, in order."""
    nearest[:] = f32(np.inf)
    last = nearest.size - 1
    for j in range(square.size):
        if square[j] < nearest[last]:
            k = last
            while k > 0 and nearest[k - 1] > square[j]:
                nearest[k] = nearest[k - 1]
                k -= 1
            nearest[k] = square[j]


@numba.njit(**LOOP, **INNER)
def _own_excess(square, batch, i, expected, first, scale, smoothing, grad_square):
    """Return the same-batch log ratio around a cell, at least 0; fill grad_square, (cells,), its gradient by `square`.

    `square` leaves as kernel weights.
    """
    total, own, faster = f32(0.0), f32(0.0), f32(1.0) / scale
    for j in range(square.size):
        x = (first - square[j]) * faster
        square[j] = exp(x) if x > f32(-40.0) else f32(0.0)
        total += square[j]
        own += square[j] if batch[j] == batch[i] else f32(0.0)
    share, more = own / total, smoothing * expected
    ratio = (share + more) / ((f32(1.0) + smoothing) * expected)
    if not ratio > 1:
        return f32(0.0)
    factor = f32(-1.0) / (scale * total * (share + more))
    for j in range(square.size):
        grad_square[j] = factor * square[j] * ((f32(1.0) if batch[j] == batch[i] else f32(0.0)) - share)
    return f32(math.log(ratio))


@numba.njit(**LOOP, **INNER)
def _pull(z, i, grad_square, grad_z):
    """Add the gradient by one dimension of z, (cells,), from that by the squared distances of cell i."""
    total = f32(0.0)
    for j in range(z.size):
        by = f32(2.0) * grad_square[j] * (z[i] - z[j])
        total += by
        grad_z[j] -= by
    grad_z[i] += total


@numba.njit(**EXACT)
def _own_batch_excess(first, last, z, batch, copies, width, smoothing, n_neighbours, begin, value, grad_square):
    """Cells first..last after number `begin`: fill value, and grad_square, (cells, cells), where that is above 0."""
    n = batch.size
    nearest, square = np.empty(n_neighbours, f32), empty(n)
    for row in range(first, last):
        i = begin + row
        value[i], expected = f32(0.0), f32((batch == batch[i]).sum() - copies) / f32(n - copies)
        if expected <= 0 or expected >= 1:
            continue
        square[:] = f32(0.0)
        for d in range(len(z)):
            _add_squares(z[d], z[d, i], f32(1.0), square)
        own = i - i % copies
        square[own : own + copies] = f32(np.inf)
        _nearest(square, nearest)
        scale = max(nearest[-1] - nearest[0], f32(1e-6)) / width
        value[i] = _own_excess(square, batch, i, expected, nearest[0], scale, smoothing, grad_square[row])


@numba.njit(**EXACT)
def _pull_all(first, last, z, begin, value, grad_square, grad_z):
    """Add to dimensions first..last of grad_z the gradients from the cells of grad_square, in their order."""
    for d in range(first, last):
        for row in range(min(len(grad_square), value.size - begin)):
            if value[begin + row] > 0:
                _pull(z[d], begin + row, grad_square[row], grad_z[d])


def _call(work, arguments, first, last):
    work(first, last, *arguments)


def own_batch_excess(arguments):
    """`batch_penalty.own_batch_excess`: fill value, (cells,), and return the gradient of its sum, (n, cells).

    `arguments`: z, (n, cells): loops are over cells; codes of batches, (cells,); how many copies of each cell lie side
    by side; width, smoothing, number of neighbours; value.
    """
    *given, value = arguments
    z, (n, n_cells) = given[0], given[0].shape
    some = min(max(DISTANCES // n_cells, 1), n_cells)
    grad_z, grad_square = apart(n, n_cells), apart(some, n_cells)
    grad_z[:] = f32(0.0)
    for begin in range(0, n_cells, some):
        kept = begin, value, grad_square
        part = max(SOME, COMPARED // (n * n_cells))
        share(partial(_call, _own_batch_excess, (*given, *kept)), min(some, n_cells - begin), part)
        share(partial(_call, _pull_all, (z, *kept, grad_z)), n, max(4, COMPARED // (some * n_cells)))
    return grad_z
