"""The kernels of `kernels`, fused into one pass over each cell's row and compiled by numba, for the CPU.

Same numbers as the plain torch code within float32 rounding, inside the bounds below; outside them, and for anything
not finite, the kernels say so and the caller takes the plain code. exp and log are short polynomials, so that LLVM
turns the loops over genes into vector instructions.
"""

import math

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

# Beyond these, float32 intermediates could overflow: exp(LOG_MAX) squared must stay below 3.4e38.
LOG_MAX = 40.0
SMALL_COUNT = 16  # up to here lgamma and digamma differences are short products and sums


def _can_cache() -> bool:
    """Whether numba finds a folder for compiled code; without one, every process compiles anew."""
    try:
        numba.njit(cache=True)(_can_cache)
    except RuntimeError:
        return False
    return True


_CACHE = _can_cache()
# Elementary functions keep the order of their operations, which their error terms rest on. In the loops, reassociation
# lets reductions be vectorised. nnan and ninf are left out everywhere, so that NaN and infinity stay what they are.
_EXACT = {"fastmath": {"contract"}, "error_model": "numpy", "nogil": True, "cache": _CACHE}
_LOOP = {"fastmath": {"reassoc", "contract", "arcp", "nsz"}, "error_model": "numpy", "nogil": True, "cache": _CACHE}
# A parallel call wakes all of numba's threads, so one part alone is never run as one.
_PARALLEL = {"fastmath": False, "error_model": "numpy", "nogil": True, "cache": _CACHE, "parallel": True}
f32 = np.float32


@intrinsic
def _float_of_bits(typing, bits):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@intrinsic
def _bits_of_float(typing, value):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


@numba.njit(**_EXACT)
def _exp(x):
    """Exponential within 1 ulp for x in [-87, 88], and clamped to that range (Cephes' expf)."""
    x = min(max(x, f32(-87.0)), f32(88.0))
    n = np.int32(x * f32(1.4426950408889634) + f32(127.5))  # truncation of a positive number rounds to nearest
    k = f32(n - np.int32(127))
    r = x - k * f32(0.693359375) + k * f32(2.12194440e-4)
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    return (p * r * r + r + f32(1.0)) * _float_of_bits(np.int32(n << np.int32(23)))


@numba.njit(**_EXACT)
def _log(x):
    """Logarithm within 1 ulp for normal positive x (Cephes' logf)."""
    bits = _bits_of_float(x) - np.int32(0x3F3504F3)  # so that the mantissa lies in [sqrt(1/2), sqrt(2))
    k = f32(bits >> np.int32(23))
    m = _float_of_bits(np.int32((bits & np.int32(0x007FFFFF)) + np.int32(0x3F3504F3))) - f32(1.0)
    p = f32(7.0376836292e-2)
    p = p * m + f32(-1.1514610310e-1)
    p = p * m + f32(1.1676998740e-1)
    p = p * m + f32(-1.2420140846e-1)
    p = p * m + f32(1.4249322787e-1)
    p = p * m + f32(-1.6668057665e-1)
    p = p * m + f32(2.0000714765e-1)
    p = p * m + f32(-2.4999993993e-1)
    p = p * m + f32(3.3333331174e-1)
    z = m * m
    return p * m * z - k * f32(2.12194440e-4) - f32(0.5) * z + m + k * f32(0.693359375)


@numba.njit(**_EXACT)
def _log1p_and_share(x):
    """Logarithm of 1 + x, and 1 / (1 + x), for x >= 0; relative errors within float32 rounding, however small x."""
    u = f32(1.0) + x
    share = f32(1.0) / u
    return _log(u) + (x - (u - f32(1.0))) * share, share


@numba.njit(**_EXACT)
def _stirling(x):
    """Values lgamma(x) and digamma(x) for x > 0, float64: recurrence to x >= 10, then the asymptotic series."""
    shift, slope = 1.0, 0.0
    while x < 10.0:
        shift *= x
        slope -= 1.0 / x
        x += 1.0
    i = 1.0 / (x * x)
    series = (1 / 12 - i * (1 / 360 - i * (1 / 1260 - i * (1 / 1680 - i / 1188)))) / x
    lgamma = (x - 0.5) * math.log(x) - x + 0.9189385332046727 + series - math.log(shift)
    digamma = math.log(x) - 0.5 / x - i * (1 / 12 - i * (1 / 120 - i * (1 / 252 - i * (1 / 240 - i / 132)))) + slope
    return lgamma, digamma


@numba.njit(**_EXACT)
def _sigmoid_and_softplus(x):
    """Sigmoid of x and log(1 + exp(x))."""
    a = _exp(-abs(x))
    log1p, share = _log1p_and_share(a)
    return (share if x >= 0 else a * share), max(x, f32(0.0)) + log1p


@numba.njit(**_LOOP)
def _softmax(logits, e):
    """Fill e with exp(logits - top); return top, the sum of e, and the sum of logits (not finite if one is not)."""
    top, check = logits[0], f32(0.0)
    for g in range(logits.size):
        top = max(top, logits[g])
        check += logits[g]
    total = f32(0.0)
    for g in range(logits.size):
        e[g] = _exp(logits[g] - top)
        total += e[g]
    return top, total, check


@numba.njit(**_LOOP)
def _zinb_zeros(scale, e, theta, inverse_theta, pi, cost, weight, value, to_mean, to_theta, to_pi):
    """Every gene of a cell as a zero: log p(0) and its gradients; returns expected drop-outs.

    In three loops, with the outputs as scratch: one would be a single long chain of operations, each waiting.
    """
    for g in range(e.size):
        m = scale * e[g]
        log1p, r = _log1p_and_share(m * inverse_theta[g])
        value[g] = -theta[g] * log1p  # t
        to_mean[g] = -m * r
    for g in range(e.size):
        to_theta[g] = _exp(-abs(value[g] - pi[g]))
        to_pi[g] = _exp(-abs(pi[g]))
    dropouts = f32(0.0)
    for g in range(e.size):
        t, a, b, m_r = value[g], to_theta[g], to_pi[g], to_mean[g]
        u = t - pi[g]
        one_a, share_b = f32(1.0) + a, f32(1.0) / (f32(1.0) + b)
        s = (f32(1.0) if u >= 0 else a) / one_a  # sigmoid(u): probability that the zero came from the counts
        lost = share_b if pi[g] >= 0 else b * share_b  # sigmoid(pi)
        kept = b * share_b if pi[g] >= 0 else share_b  # sigmoid(-pi)
        value[g] = max(u, f32(0.0)) - max(-pi[g], f32(0.0)) + _log(one_a * share_b)
        to_mean[g] = s * m_r
        to_theta[g] = weight * s * (t - m_r)
        to_pi[g] = weight * (kept - s - cost * kept * lost)
        dropouts += lost
    return dropouts


@numba.njit(**_LOOP)
def _nb_zeros(scale, e, theta, inverse_theta, weight, value, to_mean, to_theta):
    """Every gene of a cell as a zero of the negative binomial."""
    for g in range(e.size):
        m = scale * e[g]
        log1p, r = _log1p_and_share(m * inverse_theta[g])
        t = -theta[g] * log1p
        value[g] = t
        to_mean[g] = -m * r
        to_theta[g] = weight * (t + m * r)


@numba.njit(**_LOOP)
def _poisson_zeros(scale, e, value, to_mean):
    """Every gene of a cell as a zero of the Poisson distribution."""
    for g in range(e.size):
        m = scale * e[g]
        value[g] = -m
        to_mean[g] = -m


@numba.njit(**_EXACT)
def _nb_count(x, m, log_m, theta):
    """Log-probability plus log x! of one stored count, and its gradients by log m and log theta.

    Up to SMALL_COUNT, lgamma(x + theta) - lgamma(theta) - x log(theta + m) is the log of a product of ratios, which
    does not cancel at large theta; beyond, float64 makes up for the cancellation.
    """
    log1p, r = _log1p_and_share(m / theta)
    t = -theta * log1p
    if x == 1:
        terms, slope = -log1p, m * r / theta
    elif x <= SMALL_COUNT:
        product, total, m64, theta64 = 1.0, 0.0, np.float64(m), np.float64(theta)
        inverse = 1.0 / (theta64 + m64)
        for k in range(int(x)):
            product *= (theta64 + k) * inverse
            total += (m64 - k) / (theta64 + k)
        terms = _log(f32(product)) if 1e-30 < product < 1e30 else f32(math.log(product))
        slope = f32(total) * r
    else:
        x64, m64, theta64 = np.float64(x), np.float64(m), np.float64(theta)
        lgamma_sum, digamma_sum = _stirling(x64 + theta64)
        lgamma, digamma = _stirling(theta64)
        terms = f32(lgamma_sum - lgamma - x64 * math.log(theta64 + m64))
        slope = f32(theta64 * (digamma_sum - digamma) - x64 * theta64 / (theta64 + m64))
    return t + x * log_m + terms, r * (x - m), t + m * r + slope


@numba.njit(**_LOOP)
def _finish_row(share, weight, e, value, to_logits):
    """Turn gradients by log m into gradients by the logits, in place; return the sums of both over genes."""
    total, slope = f32(0.0), f32(0.0)
    for g in range(e.size):
        total += value[g]
        slope += to_logits[g]
    for g in range(e.size):
        to_logits[g] = weight * (to_logits[g] - slope * share * e[g])
    return total, weight * slope


@numba.njit(**_EXACT)
def _cells(
    first, last, indptr, genes, counts, logits, log_library, theta, pi, cost, weight, out, to_logits, to_theta, to_pi
):
    """The cells first..last. theta and pi without columns stand for none; theta has one row, or one per cell.

    Fills out (cells, 3): value, sum over genes of the gradient by log m, expected drop-outs; the gradients are those of
    weight * value. Returns whether all of it is finite.
    """
    n_genes, fine = logits.shape[1], True
    e, value = np.empty(n_genes, f32), np.empty(n_genes, f32)
    inverse_theta = np.empty(theta.shape[1], f32)
    for i in range(first, last):
        row_theta = theta[i if theta.shape[0] > 1 else 0]
        if i == first or theta.shape[0] > 1:
            inverse_theta[:] = f32(1.0) / row_theta
        top, total, check = _softmax(logits[i], e)
        log_share = log_library[i] - top - math.log(total)  # log m = logit + log_share
        scale = f32(math.exp(log_library[i]) / total)
        out[i, 2] = 0.0
        if pi.shape[1] > 0:
            out[i, 2] = _zinb_zeros(
                scale, e, row_theta, inverse_theta, pi[i], cost, weight, value, to_logits[i], to_theta[i], to_pi[i]
            )
        elif theta.shape[1] > 0:
            _nb_zeros(scale, e, row_theta, inverse_theta, weight, value, to_logits[i], to_theta[i])
        else:
            _poisson_zeros(scale, e, value, to_logits[i])
        for j in range(indptr[i], indptr[i + 1]):
            g = genes[j]
            x, m, log_m = counts[j], scale * e[g], f32(logits[i, g] + log_share)
            if theta.shape[1] == 0:
                value[g], to_logits[i, g] = x * log_m - m, x - m
                continue
            value[g], to_logits[i, g], by_theta = _nb_count(x, m, log_m, row_theta[g])
            to_theta[i, g] = weight * by_theta
            if pi.shape[1] > 0:
                lost, softplus = _sigmoid_and_softplus(pi[i, g])
                value[g] -= softplus
                to_pi[i, g] = -weight * (lost + cost * lost * (f32(1.0) - lost))
        out[i, 0], out[i, 1] = _finish_row(f32(1.0) / total, weight, e, value, to_logits[i])
        out[i, 0] -= cost * out[i, 2]
        fine = fine and math.isfinite(check) and math.isfinite(out[i, 0]) and math.isfinite(out[i, 1])
    return fine


@numba.njit(**_PARALLEL)
def _cells_in_parallel(
    n_parts, indptr, genes, counts, logits, log_library, theta, pi, cost, weight, out, to_logits, to_theta, to_pi
):
    """`_cells` on all of them, in `n_parts` pieces at a time."""
    n_cells = logits.shape[0]
    fine = np.ones(n_parts, np.bool_)
    for part in numba.prange(n_parts):
        first, last = part * n_cells // n_parts, (part + 1) * n_cells // n_parts
        fine[part] = _cells(
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
        )
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
    `kernels.count_log_likelihood`, float32, the last two None where missing.
    """
    logits, log_library, log_theta, pi = parameters
    n_cells, n_genes = logits.shape
    if _out_of_bounds(log_library) or (log_theta is not None and _out_of_bounds(log_theta)):
        return None
    none = np.empty((1, 0), f32)
    theta = none if log_theta is None else np.exp(np.atleast_2d(log_theta))
    to_logits = np.empty((n_cells, n_genes), f32)
    to_theta = None if log_theta is None else np.empty((n_cells, n_genes), f32)
    to_pi = None if pi is None else np.empty((n_cells, n_genes), f32)
    out = np.empty((n_cells, 3), f32)
    arguments = (
        *(*stored, np.ascontiguousarray(logits), np.ascontiguousarray(log_library), theta),
        *(none if pi is None else np.ascontiguousarray(pi), f32(cost), f32(weight), out, to_logits),
        *(none if to_theta is None else to_theta, none if to_pi is None else to_pi),
    )
    n_parts = min(n_threads, n_cells)
    fine = _run(_cells, _cells_in_parallel, n_cells, n_parts, arguments)
    if not fine:
        return None
    value, slope, dropouts = np.ascontiguousarray(out.T)
    return value, dropouts, to_logits, slope, to_theta, to_pi


def _out_of_bounds(a):
    return not (a.min() >= -LOG_MAX and a.max() <= LOG_MAX)  # NaN compares false


@numba.njit(**_LOOP)
def _encode(first, last, indptr, genes, counts, scale, weight, values, out):
    """Rows first..last of log1p(scale * counts) @ weight; keeps the left factor's stored values for the gradient."""
    for i in range(first, last):
        for j in range(indptr[i], indptr[i + 1]):
            values[j] = _log1p_and_share(counts[j] * scale[i])[0] if scale.size else counts[j]
        out[i] = 0.0
        for j in range(indptr[i], indptr[i + 1]):
            value, row = values[j], weight[genes[j]]
            for h in range(out.shape[1]):
                out[i, h] += value * row[h]


@numba.njit(**_EXACT)
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


@numba.njit(**_LOOP)
def _encode_gradient(first, last, starts, cells, values, by_out, by_weight):
    """Genes first..last of the gradient by weight: each row is written once, from gradients that fit a cache."""
    for g in range(first, last):
        row = by_weight[g]
        row[:] = 0.0
        for j in range(starts[g], starts[g + 1]):
            value, by_cell = values[j], by_out[cells[j]]
            for h in range(row.size):
                row[h] += value * by_cell[h]


@numba.njit(**_PARALLEL)
def _encode_in_parallel(n_parts, indptr, genes, counts, scale, weight, values, out):
    for part in numba.prange(n_parts):
        first, last = part * out.shape[0] // n_parts, (part + 1) * out.shape[0] // n_parts
        _encode(first, last, indptr, genes, counts, scale, weight, values, out)


@numba.njit(**_PARALLEL)
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
