"""The count likelihood of `kernels.reference` and its gradients, in one pass over each cell, compiled by numba.

Same numbers as the plain torch code within float32 rounding, inside the bounds below; outside them, and for anything
not finite, the kernels say so and the caller takes the plain code.

What a cell shares with others (biases, dispersion) stands in a *table*, (rows, genes), beside the row of each cell: one
row for all cells, one for each batch, or one for each cell.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np

from sccvae.kernels.cpu.vector_math import (
    EXACT,
    INNER,
    LOOP,
    empty,
    exp,
    f32,
    log,
    log1p_and_share,
    narrow,
    stirling,
    widen,
)
from sccvae.kernels.parallel import alone, rows_worth, share

# Beyond these, float32 intermediates could overflow: exp(LOG_MAX) squared must stay below 3.4e38.
LOG_MAX = f32(40.0)
SMALL_COUNT = 16  # up to here lgamma and digamma differences are short products and sums
# What becomes of a cell's gradient by what cells share: it is added to a sum, it has a row of its own, or neither,
# where it is read from the gradient by logits or pi.
SUMMED = 2**19  # values of a sum over cells, below which another thread costs more than it saves
ADD, PUT, LEAVE = 0, 1, 2


@numba.njit(**LOOP, **INNER)
def softmax(logits, bias, e):
    """Fill e with exp(l - top), l = logits + bias; return top, and the sums of e and l (not finite if one is not)."""
    top, check = widen(logits[0]) + bias[0], f32(0.0)
    for g in range(e.size):
        e[g] = widen(logits[g]) + bias[g]
        top = max(top, e[g])
        check += e[g]
    total = f32(0.0)
    for g in range(e.size):
        e[g] = exp(e[g] - top)
        total += e[g]
    return top, total, check


@numba.njit(**LOOP, **INNER)
def _nb_zeros(scale, e, theta, inverse_theta, log1p, share, value, to_mean, to_theta):
    """Compute every gene of a cell as a zero of the negative binomial: log p(0), gradients by log m and log theta.

    Keeps log(1 + m / theta) and 1 / (1 + m / theta), which the stored counts need too.
    """
    for g in range(e.size):
        m = scale * e[g]
        log1p[g], share[g] = log1p_and_share(m * inverse_theta[g])
        value[g] = -theta[g] * log1p[g]
        to_mean[g] = -m * share[g]
        to_theta[g] = value[g] + m * share[g]


@numba.njit(**LOOP, **INNER)
def _inflate_zeros(pi, bias, cost, value, lost, kept, to_mean, to_theta, to_pi):
    """Turn zeros of the negative binomial into zero-inflated ones, in place.

    Returns expected drop-outs, and how many |pi + bias| are not within LOG_MAX. Leaves p(0), not its logarithm, in
    `value`, and the probabilities of drop-out and of none in `lost` and `kept`.
    In two loops, with the outputs as scratch: one would be a single long chain of operations, each waiting.
    """
    dropouts, outside = f32(0.0), f32(0.0)
    for g in range(pi.size):
        logit = widen(pi[g]) + bias[g]
        outside += f32(0.0) if abs(logit) <= LOG_MAX else f32(1.0)
        kept[g] = exp(-logit)
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


@numba.njit(**LOOP, **INNER)
def _poisson_zeros(scale, e, value, to_mean):
    """Compute every gene of a cell as a zero of the Poisson distribution."""
    for g in range(e.size):
        m = scale * e[g]
        value[g] = -m
        to_mean[g] = -m


@numba.njit(**EXACT, **INNER)
def _nb_count(x, m, log_m, theta, log1p, share):
    """Return log-probability plus log x! of one nonzero count, and its gradients by log m and log theta.

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


@numba.njit(**LOOP, **INNER)
def _sum(value):
    total = f32(0.0)
    for g in range(value.size):
        total += value[g]
    return total


@numba.njit(**LOOP, **INNER)
def _sum_of_logs(value):
    """Sum of the logarithms of probabilities of at least 1e-18: of products of two, which float32 still holds."""
    half, total = value.size // 2, f32(0.0)
    for g in range(half):
        total += log(value[g] * value[g + half])
    return total + log(value[-1]) if value.size % 2 else total


@numba.njit(**LOOP, **INNER)
def _finish_row(share, weight, e, grad_mean, to_logits, to_bias, mode):
    """Turn gradients by log m into those by the logits; return the sum of the former over genes."""
    slope = f32(0.0)
    for g in range(e.size):
        slope += grad_mean[g]
    if mode == LEAVE:
        for g in range(e.size):
            grad_logit = weight * (grad_mean[g] - slope * share * e[g])
            to_logits[g] = narrow(grad_logit, to_logits[g])
    elif mode == PUT:
        for g in range(e.size):
            grad_logit = weight * (grad_mean[g] - slope * share * e[g])
            to_bias[g] = grad_logit
            to_logits[g] = narrow(grad_logit, to_logits[g])
    else:
        for g in range(e.size):
            grad_logit = weight * (grad_mean[g] - slope * share * e[g])
            to_bias[g] += grad_logit
            to_logits[g] = narrow(grad_logit, to_logits[g])
    return weight * slope


@numba.njit(**LOOP, **INNER)
def _weigh(weight, terms, sums, mode):
    if mode == ADD:
        for g in range(terms.size):
            terms[g] *= weight
            sums[g] += terms[g]
    else:
        for g in range(terms.size):
            terms[g] *= weight
        if mode == PUT:
            for g in range(terms.size):
                sums[g] = terms[g]


@numba.njit(**LOOP, **INNER)
def _put(terms, out):
    for g in range(terms.size):
        out[g] = narrow(terms[g], out[g])


@numba.njit(**EXACT, **INNER)
def _place(mode, row, cell):
    return row if mode == ADD else cell if mode == PUT else 0


@numba.njit(**EXACT, **INNER)
def _add(terms, sums):
    for g in range(terms.size):
        sums[g] += terms[g]


@numba.njit(**EXACT)
def _cells(
    first,
    last,
    indptr,
    genes,
    counts,
    logits,
    bias,
    bias_row,
    log_library,
    theta,
    inverse_theta,
    theta_row,
    pi,
    pi_bias,
    cost,
    weight,
    out,
    to_logits,
    to_bias,
    to_theta,
    to_pi,
    to_pi_bias,
    modes,
):
    """The cells first..last. theta and pi without columns stand for none.

    Fills out (cells, 3): value, sum over genes of the gradient by log m, expected drop-outs; the gradients are those of
    the sum of weight * value. to_logits and to_pi may be logits and pi themselves. What becomes of gradients by what
    cells share `modes` says, of to_bias, to_theta and to_pi_bias: (rows, genes) for sums, else (cells, genes).
    Returns whether all of it is finite and every |pi| within LOG_MAX.
    """
    n_genes, fine = logits.shape[1], True
    has_theta, has_pi = theta.shape[1] > 0, pi.shape[1] > 0
    # One by one: LLVM does not vectorise loops over the rows of one array, which it cannot tell apart.
    e, value, log1p, share = empty(n_genes), empty(n_genes), empty(n_genes), empty(n_genes)
    grad_theta, lost, kept, stored_logit = empty(n_genes), empty(n_genes), empty(n_genes), empty(n_genes)
    grad_mean, grad_pi = empty(n_genes), empty(n_genes)
    for i in range(first, last):
        b, t, start, stop = bias_row[i], theta_row[i], indptr[i], indptr[i + 1]
        top, total, check = softmax(logits[i], bias[b], e)
        for j in range(start, stop):
            stored_logit[j - start] = widen(logits[i, genes[j]]) + bias[b, genes[j]]
        log_share = f32(log_library[i] - top - math.log(total))  # log m = logit + log_share
        scale, sum_of_stored = f32(math.exp(log_library[i]) / total), f32(0.0)
        out[i, 2] = 0.0
        if has_theta:
            _nb_zeros(scale, e, theta[t], inverse_theta[t], log1p, share, value, grad_mean, grad_theta)
        else:
            _poisson_zeros(scale, e, value, grad_mean)
        if has_pi:
            zeros = (value, lost, kept, grad_mean, grad_theta, grad_pi)
            out[i, 2], outside = _inflate_zeros(pi[i], pi_bias, cost, *zeros)
            fine = fine and outside == 0
        for j in range(start, stop):
            g, x = genes[j], counts[j]
            m, log_m, value[g] = scale * e[g], stored_logit[j - start] + log_share, f32(0.0)
            if has_theta:
                terms, grad_mean[g], grad_theta[g] = _nb_count(x, m, log_m, theta[t, g], log1p[g], share[g])
            else:
                terms, grad_mean[g] = x * log_m - m, x - m
            sum_of_stored += terms
            if has_pi:
                value[g], grad_pi[g] = kept[g], -lost[g] * (f32(1.0) + cost * kept[g])
        out[i, 0] = sum_of_stored + (_sum_of_logs(value) if has_pi else _sum(value)) - cost * out[i, 2]
        row = e, grad_mean, to_logits[i], to_bias[_place(modes[0], b, i)], modes[0]
        out[i, 1] = _finish_row(f32(1.0) / total, weight[i], *row)
        if has_theta:
            _weigh(weight[i], grad_theta, to_theta[_place(modes[1], t, i)], modes[1])
        if has_pi:
            _weigh(weight[i], grad_pi, to_pi_bias[_place(modes[2], 0, i)], modes[2])
            _put(grad_pi, to_pi[i])
        fine = fine and math.isfinite(check) and math.isfinite(out[i, 0]) and math.isfinite(out[i, 1])
    return fine


@numba.njit(**EXACT)
def _add_rows(first, last, rows, row, out):
    """Add the genes first..last of rows, (cells, genes), to the rows of out that `row`, (cells,), names, in order."""
    for i in range(row.size):
        _add(rows[i, first:last], out[row[i], first:last])


class Table(NamedTuple):
    """Rows of genes that cells share."""

    values: np.ndarray  # (rows, genes) float32
    row: np.ndarray  # (cells,) int64: the row of each cell
    own: bool = False  # whether every cell has a row of its own


class Heads(NamedTuple):
    """Output of the decoder for a minibatch, float32; biases of `logits` and `pi` are not added yet."""

    logits: np.ndarray  # (cells, genes)
    bias: Table
    log_library: np.ndarray  # (cells,)
    log_theta: Table | None
    pi: np.ndarray | None  # (cells, genes)
    pi_bias: np.ndarray | None  # (genes,)


class Gradients(NamedTuple):
    """Each cell's value (without log x!), and the gradients of the sum of weight * value, shaped as their heads."""

    value: np.ndarray  # (cells,)
    dropouts: np.ndarray  # (cells,) expected number of drop-outs
    logits: np.ndarray
    bias: np.ndarray  # of the table
    log_library: np.ndarray
    log_theta: np.ndarray | None  # of the table
    pi: np.ndarray | None
    pi_bias: np.ndarray | None


def _new(name: str, *shape: int) -> np.ndarray:
    return np.empty(shape, f32)


def count_log_likelihood(stored, heads, cost, weight, *, in_place=False, kept: Callable[..., np.ndarray] = _new):
    """Return the `Gradients` of a minibatch; None where a value is outside the bounds of this module.

    `stored` holds indptr, genes and counts of the minibatch; `weight` (cells,). With `in_place`, the gradients by
    logits and pi take the places of logits and pi, which are lost even if the answer is None. `kept(name, *shape)`
    returns arrays to write to.
    """
    logits, bias, log_library, log_theta, pi, pi_bias = heads
    n_cells, n_genes = logits.shape
    if _out_of_bounds(log_library) or (log_theta is not None and _out_of_bounds(log_theta.values)):
        return None
    none, one_row = np.empty((1, 0), f32), np.zeros(n_cells, np.int64)
    theta, theta_row = (none, bias.row) if log_theta is None else (np.exp(log_theta.values), log_theta.row)
    to_logits, to_pi = (logits, pi) if in_place else (np.empty_like(logits), None if pi is None else np.empty_like(pi))
    with alone() as n_threads:
        part, out = rows_worth(n_genes), np.empty((n_cells, 3), f32)
        serial = n_threads == 1 or n_cells <= part
        sums = [
            _Sum("grad_bias", bias.row, len(bias.values), bias.own, to_logits, serial, kept),
            _Sum("grad_theta", theta_row, len(theta), log_theta is not None and log_theta.own, None, serial, kept),
            _Sum("grad_pi_bias", one_row, 1, False, to_pi, serial, kept),
        ]
        to_bias = sums[0].place(n_genes)
        to_theta = sums[1].place(0 if log_theta is None else n_genes)
        to_pi_bias = sums[2].place(0 if pi is None else n_genes)
        arguments = (
            *(*stored, logits, bias.values, bias.row, log_library, theta, f32(1) / theta, theta_row),
            *((none, none[0]) if pi is None else (pi, pi_bias)),
            *(f32(cost), weight, out, to_logits, to_bias, to_theta, none if pi is None else to_pi, to_pi_bias),
            tuple(s.mode for s in sums),
        )
        if not all(share(lambda first, last: _cells(first, last, *arguments), n_cells, part)):
            return None
        value, slope, dropouts = np.ascontiguousarray(out.T)
        grad_theta = None if log_theta is None else sums[1].total()
        grad_pi_bias = None if pi is None else sums[2].total()[0]
        return Gradients(value, dropouts, to_logits, sums[0].total(), slope, grad_theta, to_pi, grad_pi_bias)


class _Sum:
    """A gradient of values that cells share: the sum over cells in their order, for any number of threads.

    One thread adds as it goes. Several write rows, one for each cell, which are then added gene by gene.
    """

    def __init__(self, name, row, n_rows, own, gradient, serial, kept):
        """`gradient`, (cells, genes), holds those rows where it is of float32."""
        self.name, self.row, self.n_rows, self.own, self.kept = name, row, n_rows, own, kept
        self.gradient = gradient if gradient is not None and gradient.dtype == f32 else None
        self.mode = PUT if own else ADD if serial else PUT if self.gradient is None else LEAVE

    def place(self, n_genes):
        """Return the array that `_cells` writes to."""
        if self.mode == PUT:
            shape = len(self.row), n_genes
            self.rows = np.empty(shape, f32) if self.own else self.kept(self.name, *shape)
        else:
            self.rows = np.zeros((self.n_rows if self.mode == ADD else 1, n_genes), f32)
        return self.rows

    def total(self):
        """The sum, (rows, genes)."""
        if self.own or self.mode == ADD:
            return self.rows
        rows: Any = self.gradient if self.mode == LEAVE else self.rows
        total = np.zeros((self.n_rows, rows.shape[1]), f32)
        part = max(16, SUMMED // len(rows))
        share(lambda first, last: _add_rows(first, last, rows, self.row, total), rows.shape[1], part)
        return total


def _out_of_bounds(a):
    return not (a.min() >= -LOG_MAX and a.max() <= LOG_MAX)  # NaN compares false
