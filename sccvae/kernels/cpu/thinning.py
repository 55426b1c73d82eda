"""Binomial thinning of counts, compiled by numba for the CPU: the loop of `kernels.reference.fused_thin`."""

import math

import numba
import numpy as np

from sccvae.kernels.cpu.vector_math import EXACT

ONE_BY_ONE = 64  # fewer molecules of a gene exactly; from so many on by the normal distribution
_STEP, _A, _B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@numba.njit(**EXACT)
def _uniform(seed, i):
    """The i-th number in [0, 1) of a stream: SplitMix64 (Steele, Lea & Flood 2014), which needs no state."""
    z = seed + np.uint64(i + 1) * _STEP
    z = (z ^ (z >> np.uint64(30))) * _A
    z = (z ^ (z >> np.uint64(27))) * _B
    return np.float64((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


@numba.njit(**EXACT)
def _binomial(u, n, share, none):
    """The u-quantile of Binomial(n, share), whose probability of 0 is `none`."""
    k, odds, probability, below = 0, share / (1.0 - share), none, none
    while u >= below and k < n:
        k += 1
        probability *= odds * (n - k + 1) / k
        below += probability
    return k


@numba.njit(**EXACT)
def thin(seed, indptr, values, hidden, seen, totals):
    """Fill `seen`, shaped as `values`, with the thinned counts, and totals, (cells,), with their sums over genes.

    Parameters
    ----------
    seed
        uint64.
    hidden
        (cells,): probability that a molecule is left out, in [0, 1).
    """
    none = np.empty(ONE_BY_ONE)  # probability that no molecule of n is
    for cell in range(hidden.size):
        share, total, none[0] = np.float64(hidden[cell]), 0.0, 1.0
        for n in range(1, ONE_BY_ONE):
            none[n] = none[n - 1] * (1.0 - share)
        for j in range(indptr[cell], indptr[cell + 1]):
            n, u = int(values[j]), _uniform(seed, 2 * j)
            if n < ONE_BY_ONE:
                k = _binomial(u, n, share, none[n])
            else:  # Box & Muller 1958
                normal = math.sqrt(-2.0 * math.log(1.0 - u)) * math.cos(2.0 * math.pi * _uniform(seed, 2 * j + 1))
                k = min(max(round(n * share + math.sqrt(n * share * (1.0 - share)) * normal), 0), n)
            seen[j] = values[j] - k
            total += seen[j]
        totals[cell] = total
