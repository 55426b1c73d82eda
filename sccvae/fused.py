"""The kernels of `kernels`, fused into one pass over each cell's row and compiled by numba, for the CPU.

Same numbers as the plain torch code within float32 rounding, inside the bounds below; outside them, and for anything
not finite, the kernels say so and the caller takes the plain code.
"""

import math
from functools import partial

import numba
import numpy as np

from sccvae.elementary import EXACT, LOOP, PARALLEL, exp, f32, log, log1p_and_share, stirling

# Beyond these, float32 intermediates could overflow: exp(LOG_MAX) squared must stay below 3.4e38.
LOG_MAX = f32(40.0)
SMALL_COUNT = 16  # up to here lgamma and digamma differences are short products and sums


@numba.njit(**LOOP)
def _softmax(logits, e):
    """Fill e with exp(logits - top); return top, the sum of e, and the sum of logits (not finite if one is not)."""
    top, check = logits[0], f32(0.0)
    for g in range(logits.size):
        top = max(top, logits[g])
        check += logits[g]
    total = f32(0.0)
    for g in range(logits.size):
        e[g] = exp(logits[g] - top)
        total += e[g]
    return top, total, check


@numba.njit(**LOOP)
def _nb_zeros(scale, e, theta, inverse_theta, log1p, share, value, to_mean, to_theta):
    """Every gene of a cell as a zero of the negative binomial: log p(0) and its gradients by log m and log theta.

    Keeps log(1 + m / theta) and 1 / (1 + m / theta), which the stored counts need too.
    """
    for g in range(e.size):
        m = scale * e[g]
        log1p[g], share[g] = log1p_and_share(m * inverse_theta[g])
        value[g] = -theta[g] * log1p[g]
        to_mean[g] = -m * share[g]
        to_theta[g] = value[g] + m * share[g]


@numba.njit(**LOOP)
def _inflate_zeros(pi, cost, value, lost, kept, to_mean, to_theta, to_pi):
    """From the negative binomial's zeros to zero-inflated ones, in place.

    Returns expected drop-outs, and how many |pi| are not within LOG_MAX. Leaves p(0), not its logarithm, in `value`,
    and the probabilities of drop-out and of none in `lost` and `kept`.
    In two loops, with the outputs as scratch: one would be a single long chain of operations, each waiting.
    """
    dropouts, outside = f32(0.0), f32(0.0)
    for g in range(pi.size):
        outside += f32(0.0) if abs(pi[g]) <= LOG_MAX else f32(1.0)
        kept[g] = exp(-pi[g])
        lost[g] = exp(value[g]) * kept[g] if value[g] > f32(-87.0) else f32(0.0)
    for g in range(pi.size):
        a, b = lost[g], kept[g]  # odds of "from the counts" given a zero, and beforehand
        s, lost[g] = a / (f32(1.0) + a), f32(1.0) / (f32(1.0) + b)
        kept[g] = b * lost[g]
        value[g] = lost[g] + lost[g] * a
        to_mean[g] *= s
        to_theta[g] *= s
        to_pi[g] = kept[g] - s - cost * kept[g] * lost[g]
        dropouts += lost[g]
    return dropouts, outside


@numba.njit(**LOOP)
def _poisson_zeros(scale, e, value, to_mean):
    """Every gene of a cell as a zero of the Poisson distribution."""
    for g in range(e.size):
        m = scale * e[g]
        value[g] = -m
        to_mean[g] = -m


@numba.njit(**EXACT)
def _nb_count(x, m, log_m, theta, log1p, share):
    """Log-probability plus log x! of one stored count, and its gradients by log m and log theta.

    Up to SMALL_COUNT, lgamma(x + theta) - lgamma(theta) - x log(theta + m) is the log of a product of ratios, which
    does not cancel at large theta; beyond, float64 makes up for the cancellation.
    """
    t = -theta * log1p
    if x == 1:
        terms, slope = -log1p, m * share / theta
    elif x <= SMALL_COUNT:
        product, total, m64, theta64 = 1.0, 0.0, np.float64(m), np.float64(theta)
        inverse = 1.0 / (theta64 + m64)
        for k in range(int(x)):
            product *= (theta64 + k) * inverse
            total += (m64 - k) / (theta64 + k)
        terms = log(f32(product)) if 1e-30 < product < 1e30 else f32(math.log(product))
        slope = f32(total) * share
    else:
        x64, m64, theta64 = np.float64(x), np.float64(m), np.float64(theta)
        lgamma_sum, digamma_sum = stirling(x64 + theta64)
        lgamma, digamma = stirling(theta64)
        terms = f32(lgamma_sum - lgamma - x64 * math.log(theta64 + m64))
        slope = f32(theta64 * (digamma_sum - digamma) - x64 * theta64 / (theta64 + m64))
    return t + x * log_m + terms, share * (x - m), t + m * share + slope


@numba.njit(**LOOP)
def _sum(value):
    total = f32(0.0)
    for g in range(value.size):
        total += value[g]
    return total


@numba.njit(**LOOP)
def _sum_of_logs(value):
    """Sum of the logarithms of probabilities of at least 1e-18: of products of two, which float32 still holds."""
    half, total = value.size // 2, f32(0.0)
    for g in range(half):
        total += log(value[g] * value[g + half])
    return total + log(value[-1]) if value.size % 2 else total


@numba.njit(**LOOP)
def _finish_row(share, weight, e, to_logits):
    """Turn gradients by log m into those by the logits, in place; return the sum of the former over genes."""
    slope = f32(0.0)
    for g in range(e.size):
        slope += to_logits[g]
    for g in range(e.size):
        to_logits[g] = weight * (to_logits[g] - slope * share * e[g])
    return weight * slope


@numba.njit(**LOOP)
def _add(weight, terms, sums):
    for g in range(terms.size):
        sums[g] += weight * terms[g]


@numba.njit(**EXACT)
def _empty(size):
    return np.empty(size, f32)


@numba.njit(**EXACT)
def _cells(
    part,
    first,
    last,
    indptr,
    genes,
    counts,
    logits,
    log_library,
    theta,
    pi,
    cost,
    weight,
    out,
    to_logits,
    to_theta,
    to_pi,
):
    """The cells first..last. theta and pi without columns stand for none; theta has one row, or one per cell.

    Fills out (cells, 3): value, sum over genes of the gradient by log m, expected drop-outs; the gradients are those of
    the sum of weight * value. Those by log theta are added to the row of the cell, or to row `part` if theta has one.
    Returns whether all of it is finite and every |pi| within LOG_MAX.
    """
    n_genes, fine = logits.shape[1], True
    has_theta, has_pi = theta.shape[1] > 0, pi.shape[1] > 0
    # One by one: LLVM does not vectorise loops over the rows of one array, which it cannot tell apart.
    e, value, log1p, share = _empty(n_genes), _empty(n_genes), _empty(n_genes), _empty(n_genes)
    by_theta, lost, kept = _empty(n_genes), _empty(n_genes), _empty(n_genes)
    inverse_theta = np.empty(theta.shape[1], f32)
    for i in range(first, last):
        row_theta = theta[i if theta.shape[0] > 1 else 0]
        if i == first or theta.shape[0] > 1:
            inverse_theta[:] = f32(1.0) / row_theta
        top, total, check = _softmax(logits[i], e)
        log_share = f32(log_library[i] - top - math.log(total))  # log m = logit + log_share
        scale, by_mean, sum_of_stored = f32(math.exp(log_library[i]) / total), to_logits[i], f32(0.0)
        out[i, 2] = 0.0
        if has_theta:
            _nb_zeros(scale, e, row_theta, inverse_theta, log1p, share, value, by_mean, by_theta)
        else:
            _poisson_zeros(scale, e, value, by_mean)
        if has_pi:
            out[i, 2], outside = _inflate_zeros(pi[i], cost, value, lost, kept, by_mean, by_theta, to_pi[i])
            fine = fine and outside == 0
        for j in range(indptr[i], indptr[i + 1]):
            g, x = genes[j], counts[j]
            m, log_m, value[g] = scale * e[g], logits[i, g] + log_share, f32(0.0)
            if has_theta:
                terms, by_mean[g], by_theta[g] = _nb_count(x, m, log_m, row_theta[g], log1p[g], share[g])
            else:
                terms, by_mean[g] = x * log_m - m, x - m
            sum_of_stored += terms
            if has_pi:
                value[g], to_pi[i, g] = kept[g], -lost[g] * (f32(1.0) + cost * kept[g])
        out[i, 0] = sum_of_stored + (_sum_of_logs(value) if has_pi else _sum(value)) - cost * out[i, 2]
        out[i, 1] = _finish_row(f32(1.0) / total, weight[i], e, by_mean)
        if has_theta:
            _add(weight[i], by_theta, to_theta[i if theta.shape[0] > 1 else part])
        if has_pi:
            to_pi[i] *= weight[i]
        fine = fine and math.isfinite(check) and math.isfinite(out[i, 0]) and math.isfinite(out[i, 1])
    return fine


@numba.njit(**PARALLEL)
def _cells_in_parallel(
    n_parts, indptr, genes, counts, logits, log_library, theta, pi, cost, weight, out, to_logits, to_theta, to_pi
):
    """`_cells` on all of them, in `n_parts` pieces at a time."""
    n_cells = logits.shape[0]
    fine = np.ones(n_parts, np.bool_)
    for part in numba.prange(n_parts):
        cells = part * n_cells // n_parts, (part + 1) * n_cells // n_parts
        stored, parameters = (indptr, genes, counts), (logits, log_library, theta, pi)
        results = (out, to_logits, to_theta, to_pi)
        fine[part] = _cells(np.int64(part), *cells, *stored, *parameters, cost, weight, *results)
    return fine.all()


def _run(serial, parallel, n, n_parts, arguments):
    """Call `serial(0, n, ...)`, or `parallel(n_parts, ...)` on as many threads as there are parts."""
    if n_parts <= 1:
        return serial(0, n, *arguments)
    before = numba.get_num_threads()
    numba.set_num_threads(min(n_parts, numba.config.NUMBA_NUM_THREADS))
    try:
        return parallel(n_parts, *arguments)
    finally:
        numba.set_num_threads(before)


def count_log_likelihood(stored, parameters, cost, weight, n_threads):
    """The arrays of a `kernels.Result` (without log x!), or None where a bound of this module is broken.

    `stored` holds indptr, genes and counts of the minibatch; `parameters` logits, log_library, log_theta and pi as in
    `kernels.count_log_likelihood`, float32, the last two None where missing; `weight` (cells,) is that of `Result`.
    """
    logits, log_library, log_theta, pi = parameters
    n_cells, n_genes = logits.shape
    if _out_of_bounds(log_library) or (log_theta is not None and _out_of_bounds(log_theta)):
        return None
    none = np.empty((1, 0), f32)
    n_parts = min(n_threads, n_cells)
    theta = none if log_theta is None else np.exp(np.atleast_2d(log_theta))
    to_logits, out = np.empty((n_cells, n_genes), f32), np.empty((n_cells, 3), f32)
    to_theta = none if log_theta is None else np.zeros((n_parts if len(theta) == 1 else n_cells, n_genes), f32)
    to_pi = none if pi is None else np.empty((n_cells, n_genes), f32)
    arguments = (
        *(*stored, np.ascontiguousarray(logits), np.ascontiguousarray(log_library), theta),
        *(none if pi is None else np.ascontiguousarray(pi), f32(cost), weight, out, to_logits, to_theta, to_pi),
    )
    fine = _run(partial(_cells, 0), _cells_in_parallel, n_cells, n_parts, arguments)
    if not fine:
        return None
    value, slope, dropouts = np.ascontiguousarray(out.T)
    if log_theta is not None and log_theta.ndim == 1:
        to_theta = to_theta.sum(0)
    return value, dropouts, to_logits, slope, None if log_theta is None else to_theta, None if pi is None else to_pi


def _out_of_bounds(a):
    return not (a.min() >= -LOG_MAX and a.max() <= LOG_MAX)  # NaN compares false


@numba.njit(**LOOP)
def _sum_of_rows(table, rows, values, first, last, out):
    """Fill out with the sum of values[j] * table[rows[j]] over j in first..last, four at a time to write out less."""
    out[:] = 0.0
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
    """Rows first..last of log1p(scale * counts) @ weight; keeps the left factor's stored values for the gradient."""
    for i in range(first, last):
        for j in range(indptr[i], indptr[i + 1]):
            values[j] = log1p_and_share(counts[j] * scale[i])[0] if scale.size else counts[j]
        _sum_of_rows(weight, genes, values, indptr[i], indptr[i + 1], out[i])


@numba.njit(**EXACT)
def _by_gene(indptr, genes, values, n_genes):
    """The stored values sorted by gene: where each gene's begin, their cells, the values themselves."""
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
def _encode_gradient(first, last, starts, cells, values, by_out, by_weight):
    """Genes first..last of the gradient by weight: each row is written once, from gradients that fit a cache."""
    for g in range(first, last):
        _sum_of_rows(by_out, cells, values, starts[g], starts[g + 1], by_weight[g])


@numba.njit(**PARALLEL)
def _encode_in_parallel(n_parts, indptr, genes, counts, scale, weight, values, out):
    for part in numba.prange(n_parts):
        first, last = part * out.shape[0] // n_parts, (part + 1) * out.shape[0] // n_parts
        _encode(first, last, indptr, genes, counts, scale, weight, values, out)


@numba.njit(**PARALLEL)
def _encode_gradient_in_parallel(n_parts, starts, cells, values, by_out, by_weight):
    for part in numba.prange(n_parts):
        first, last = part * by_weight.shape[0] // n_parts, (part + 1) * by_weight.shape[0] // n_parts
        _encode_gradient(first, last, starts, cells, values, by_out, by_weight)


def encode(arguments, n_threads):
    """Fill out (cells, hidden) with log1p(scale * counts) @ weight, and values (stored,) with the left factor.

    `arguments`: indptr, genes, counts, scale, weight, values, out.
    """
    _run(_encode, _encode_in_parallel, len(arguments[-1]), n_threads, arguments)


def encode_gradient(arguments, n_threads):
    """Fill by_weight (genes, hidden), the gradient by weight, from the gradient by_out (cells, hidden).

    `arguments`: indptr, genes, values, by_out, by_weight.
    """
    indptr, genes, values, by_out, by_weight = arguments
    arguments = (*_by_gene(indptr, genes, values, len(by_weight)), by_out, by_weight)
    _run(_encode_gradient, _encode_gradient_in_parallel, len(by_weight), n_threads, arguments)


@numba.njit(**LOOP)
def _adam(first, last, weights, gradient, mean, square, rate, correction, shares, eps, decay, scale):
    """One step of Adam on the entries first..last; `rate` and `correction` hold the bias corrections.

    The shares, 1 minus beta, come as such: float32 would round 1 - 0.999 by a hundred thousandth.
    """
    # Loops from 0, because numba must otherwise think of negative indices, and does not vectorise.
    weights, gradient, mean, square = weights[first:last], gradient[first:last], mean[first:last], square[first:last]
    share, square_share = shares
    for k in range(weights.size):
        g = scale * gradient[k] + decay * weights[k]
        mean[k] += share * (g - mean[k])
        square[k] += square_share * (g * g - square[k])
        weights[k] -= rate * mean[k] / (np.sqrt(square[k]) * correction + eps)


@numba.njit(**PARALLEL)
def _adam_in_parallel(n_parts, weights, gradient, mean, square, rate, correction, shares, eps, decay, scale):
    for part in numba.prange(n_parts):
        first, last = part * weights.size // n_parts, (part + 1) * weights.size // n_parts
        _adam(first, last, weights, gradient, mean, square, rate, correction, shares, eps, decay, scale)


def adam(arrays, rate, correction, shares, others, n_threads):
    """One step of Adam in place; `arrays`, flat, and numbers as `_adam` takes them, `others` from eps on."""
    numbers = (f32(rate), f32(correction), (f32(shares[0]), f32(shares[1])), *map(f32, others))
    size = arrays[0].size
    _run(_adam, _adam_in_parallel, size, n_threads if size > 2**15 else 1, (*arrays, *numbers))
