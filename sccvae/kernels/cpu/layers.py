"""Operations between the matrix products of a training step, compiled by numba for the CPU: one pass each, float32.

The encoder's sparse product; a hidden block (covariate offset, layer norm, ReLU, dropout); a step of Adam; normalised
expression. Names of gradients begin with `grad_`. Operations of z are in `latent`.
"""

import math

import numba
import numpy as np

from sccvae.kernels.cpu.count_likelihood import softmax
from sccvae.kernels.cpu.vector_math import EXACT, INNER, LOOP, empty, f32, log1p_and_share
from sccvae.kernels.parallel import WORTH, rows_worth, share

LAYER_NORM_EPS = f32(1e-5)
SOME = 16  # cells, or genes, of a sparse product, that one thread takes at least
BLOCK = 2**17  # weights of float32 that a second-level cache of 512 KiB holds


@numba.njit(**LOOP, **INNER)
def _add_rows(table, rows, values, first, last, out):
    """Add to out values[j] * table[rows[j]] for each j in first..last, four at a time to write out less."""
    j = first
    while j + 4 <= last:
        a, b, c, d = table[rows[j]], table[rows[j + 1]], table[rows[j + 2]], table[rows[j + 3]]
        x, y, z, w = values[j], values[j + 1], values[j + 2], values[j + 3]
        for h in range(out.size):
            out[h] += x * a[h] + y * b[h] + z * c[h] + w * d[h]
        j += 4
    while j < last:
        x, a = values[j], table[rows[j]]
        for h in range(out.size):
            out[h] += x * a[h]
        j += 1


@numba.njit(**LOOP)
def _encode(first, last, indptr, genes, counts, scale, weight, values, out):
    """Rows first..last of log1p(scale * counts) @ weight; keeps the left factor's nonzero values for the gradient.

    In blocks of genes, whose weights stay in a cache for all cells. Genes of a cell may have any order: a later block
    takes what an earlier one stopped before.
    """
    out[first:last] = f32(0.0)
    for i in range(first, last):
        for j in range(indptr[i], indptr[i + 1]):
            values[j] = log1p_and_share(counts[j] * scale[i])[0] if scale.size else counts[j]
    begin, block = indptr[first:last].copy(), max(BLOCK // weight.shape[1], 1)
    for limit in range(block, len(weight) + block, block):
        for i in range(first, last):
            end = begin[i - first]
            while end < indptr[i + 1] and genes[end] < limit:
                end += 1
            _add_rows(weight, genes, values, begin[i - first], end, out[i])
            begin[i - first] = end


@numba.njit(**EXACT)
def _by_gene(indptr, genes, values, n_genes):
    """Sort nonzero values by gene; return where each gene begins, the cells, the values."""
    starts = np.zeros(n_genes + 2, np.int64)
    for j in range(genes.size):
        starts[genes[j] + 2] += 1
    for g in range(n_genes):
        starts[g + 2] += starts[g + 1]
    cells, sorted_values = np.empty(genes.size, np.int32), np.empty(genes.size, f32)
    for i in range(indptr.size - 1):
        for j in range(indptr[i], indptr[i + 1]):
            at = starts[genes[j] + 1]
            cells[at], sorted_values[at] = i, values[j]
            starts[genes[j] + 1] = at + 1
    return starts, cells, sorted_values


@numba.njit(**LOOP)
def _encode_gradient(first, last, starts, cells, values, grad_out, grad_weight):
    """Genes first..last of the gradient by weight: each row is written once, from gradients that fit a cache."""
    for g in range(first, last):
        grad_weight[g] = f32(0.0)
        _add_rows(grad_out, cells, values, starts[g], starts[g + 1], grad_weight[g])


def encode(arguments):
    """Fill out (cells, hidden) with log1p(scale * counts) @ weight, and values (stored,) with the left factor.

    `arguments`: indptr, genes, counts, scale, weight, values, out.
    """
    share(lambda first, last: _encode(first, last, *arguments), len(arguments[-1]), SOME)


def encode_gradient(arguments):
    """Fill grad_weight (genes, hidden), the gradient by weight, from the gradient grad_out (cells, hidden).

    `arguments`: indptr, genes, values, grad_out, grad_weight.
    """
    indptr, genes, values, grad_out, grad_weight = arguments
    arguments = (*_by_gene(indptr, genes, values, len(grad_weight)), grad_out, grad_weight)
    share(lambda first, last: _encode_gradient(first, last, *arguments), len(grad_weight), SOME)


@numba.njit(**LOOP, **INNER)
def _add_multiple(share, e, out):
    for g in range(e.size):
        out[g] += share * e[g]


@numba.njit(**LOOP, **INNER)
def multiple(share, e, out):
    """Fill out with share * e."""
    for g in range(e.size):
        out[g] = share * e[g]


@numba.njit(**LOOP)
def _expression(first, last, logits, bias, row, factor, add, out):
    """Cells first..last of `expression`."""
    e = empty(out.shape[1])
    for i in range(first, last):
        total, check = softmax(logits[i], bias[row[i]], e)[1:]
        share = factor[i] / total if math.isfinite(check) else f32(math.nan)
        if add:
            _add_multiple(share, e, out[i])
        else:
            multiple(share, e, out[i])


def expression(arguments):
    """Fill out, (cells, genes), with factor * softmax(logits + bias[row]), or add that to it.

    `arguments`: logits, bias, row, factor (cells,), whether to add, out.
    """
    out = arguments[-1]
    share(lambda first, last: _expression(first, last, *arguments), len(out), rows_worth(out.shape[1]))


@numba.njit(**LOOP, **INNER)
def _normalise(a, bias, gamma, beta, normal, out):
    """One cell: out = ReLU(layer norm of a + bias), `normal` before gamma and beta; returns 1 / standard deviation."""
    n, mean, square = f32(a.size), f32(0.0), f32(0.0)
    for k in range(a.size):
        normal[k] = a[k] + bias[k]
        mean += normal[k]
    mean /= n
    for k in range(a.size):
        normal[k] -= mean
        square += normal[k] * normal[k]
    scale = f32(1.0) / np.sqrt(square / n + LAYER_NORM_EPS)
    for k in range(a.size):
        normal[k] *= scale
        y = normal[k] * gamma[k] + beta[k]
        out[k] = f32(0.0) if y < f32(0.0) else y  # NaN stays NaN
    return scale


@numba.njit(**LOOP, **INNER)
def _drop(noise, lowest, rate, out):
    kept = f32(1.0) / (f32(1.0) - rate)
    for k in range(out.size):
        out[k] *= kept if noise[k] >= lowest else f32(0.0)


@numba.njit(**LOOP)
def block(a, bias, row, gamma, beta, noise, lowest, rate, normal, scale, out):
    """Fill out, (cells, hidden), with dropout(ReLU(layer norm of (a + bias[row]))); keeps what `block_gradient` needs.

    `noise`, shaped like `a`, is read if `rate` > 0: units of at least `lowest` are kept; `normal` (cells, hidden) and
    `scale` (cells,) are filled.
    """
    for i in range(a.shape[0]):
        scale[i] = _normalise(a[i], bias[row[i]], gamma, beta, normal[i], out[i])
        if rate > 0:
            _drop(noise[i], lowest, rate, out[i])


@numba.njit(**LOOP, **INNER)
def _by_normal(grad_out, out, kept, gamma, normal, grad_a, grad_gamma, grad_beta):
    """One cell: back through dropout, ReLU, gamma and beta; returns two sums that layer norm's gradient needs."""
    total, product = f32(0.0), f32(0.0)
    for k in range(out.size):
        d = grad_out[k] * kept if out[k] > f32(0.0) else f32(0.0)  # 0 if ReLU or dropout took it
        grad_beta[k] += d
        grad_gamma[k] += d * normal[k]
        grad_a[k] = d * gamma[k]
        total += grad_a[k]
        product += grad_a[k] * normal[k]
    return total, product


@numba.njit(**LOOP, **INNER)
def _by_input(total, product, scale, normal, grad_a, grad_bias):
    n = f32(grad_a.size)
    for k in range(grad_a.size):
        grad_a[k] = scale * (grad_a[k] - total / n - normal[k] * (product / n))
        grad_bias[k] += grad_a[k]


@numba.njit(**LOOP)
def block_gradient(grad_out, out, rate, gamma, row, normal, scale, grad_a, grad_bias, grad_gamma, grad_beta):
    """Fill grad_a, grad_bias (table), grad_gamma and grad_beta from grad_out; the rest is as `block` left it."""
    grad_bias[:], grad_gamma[:], grad_beta[:] = f32(0.0), f32(0.0), f32(0.0)
    kept = f32(1.0) / (f32(1.0) - rate)
    for i in range(out.shape[0]):
        sums = _by_normal(grad_out[i], out[i], kept, gamma, normal[i], grad_a[i], grad_gamma, grad_beta)
        _by_input(sums[0], sums[1], scale[i], normal[i], grad_a[i], grad_bias[row[i]])


@numba.njit(**LOOP, **INNER)
def _adam_of_one(first, last, decay, weights, gradient, mean, square, average, rate, correction, *numbers):
    """One step of Adam on the entries first..last, which belong to one weight."""
    # Loops from 0, because numba must otherwise think of negative indices, and does not vectorise.
    weights, gradient, mean, square = weights[first:last], gradient[first:last], mean[first:last], square[first:last]
    average, (share, square_share, average_share, eps, scale) = average[first:last], numbers
    for k in range(weights.size):
        g = scale * gradient[k] + decay * weights[k]
        mean[k] += share * (g - mean[k])
        square[k] += square_share * (g * g - square[k])
        weights[k] -= rate * mean[k] / (np.sqrt(square[k]) * correction + eps)
    if average_share > 0:
        for k in range(weights.size):
            average[k] += average_share * (weights[k] - average[k])


@numba.njit(**LOOP)
def _adam(first, last, starts, stops, decays, *arguments):
    """One step of Adam on the entries first..last that lie in segments.

    `arguments`: arrays of weights, gradient, mean, square and average; `rate` and `correction`, which hold the bias
    corrections; shares of mean, square and average; eps, scale of the gradient. The shares are 1 minus what these keep,
    which float32 would round: 1 - 0.999 by a hundred thousandth.
    """
    for k in range(stops.size):
        a, b = max(first, starts[k]), min(last, stops[k])
        if a < b:
            _adam_of_one(a, b, decays[k], *arguments)


def adam(segments, arrays, numbers):
    """One step in place; `segments`: where each begins and ends in the flat arrays, its decay; see `_adam`."""
    size, arguments = arrays[0].size, (*segments, *arrays, *map(f32, numbers))
    share(lambda first, last: _adam(first, last, *arguments), size, WORTH)
