"""Elementary functions for numba's loops, as short polynomials that LLVM turns into vector instructions.

float32, except for `stirling`; relative errors of about one unit in the last place over the ranges given.
"""

import math

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from sccvae.kernels.table import APART

f32, _I32 = np.float32, ir.IntType(32)


def _can_cache() -> bool:
    """Whether numba finds a folder for compiled code; without one, every process compiles anew."""
    try:
        numba.njit(cache=True)(_can_cache)
    except RuntimeError:
        return False
    return True


# Whether this processor multiplies bfloat16.
BFLOAT16 = any(binding.get_host_cpu_features().get(name, False) for name in ("avx512bf16", "amx-bf16"))
_CACHE = _can_cache()
# Elementary functions keep the order of their operations, which their error terms rest on. In the loops, reassociation
# lets reductions be vectorised. nnan and ninf are left out everywhere, so that NaN and infinity stay what they are.
# Without forceinline the process that compiles links a loop compiled by itself where later ones, which read the cache,
# have it compiled within its caller: other roundings, other bits.
_COMMON = {"forceinline": True, "error_model": "numpy", "nogil": True, "cache": _CACHE}
EXACT = {"fastmath": {"contract"}, **_COMMON}
LOOP = {"fastmath": {"reassoc", "contract", "arcp", "nsz"}, **_COMMON}
INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # sooner compiled, but Python crashes if it calls them


# In 32 bits throughout: numba's own integer arithmetic widens to 64, which halves the vectors.
@intrinsic
def _two_to_the(typing, n):
    """2 to the power n - 127, for n in [1, 254]."""

    def generate(context, builder, signature, arguments):
        bits = builder.shl(arguments[0], ir.Constant(_I32, 23))
        return builder.bitcast(bits, context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@intrinsic
def _split(typing, x):
    """(m, k) with x = m * 2^k and m in [sqrt(1/2), sqrt(2)), for normal positive x."""

    def generate(context, builder, signature, arguments):
        f32_type, sqrt_half = context.get_value_type(types.float32), ir.Constant(_I32, 0x3F3504F3)
        bits = builder.sub(builder.bitcast(arguments[0], _I32), sqrt_half)
        k = builder.sitofp(builder.ashr(bits, ir.Constant(_I32, 23)), f32_type)
        mantissa = builder.add(builder.and_(bits, ir.Constant(_I32, 0x007FFFFF)), sqrt_half)
        return context.make_tuple(builder, signature.return_type, (builder.bitcast(mantissa, f32_type), k))

    return types.UniTuple(types.float32, 2)(types.float32), generate


@intrinsic
def widen(typing, x):
    """A float32 as it is, or the 16 bits of a bfloat16 as a float32."""

    def generate(context, builder, signature, arguments):
        if signature.args[0] == types.float32:
            return arguments[0]
        bits = builder.shl(builder.zext(arguments[0], _I32), ir.Constant(_I32, 16))
        return builder.bitcast(bits, context.get_value_type(types.float32))

    return types.float32(x), generate


@intrinsic
def narrow(typing, x, like):
    """A finite float32 as it is, or rounded to the nearest bfloat16, of which it is the 16 bits; as `like`."""

    def generate(context, builder, signature, arguments):
        if signature.return_type == types.float32:
            return arguments[0]
        bits = builder.bitcast(arguments[0], _I32)
        odd = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))  # ties go to even
        rounded = builder.add(bits, builder.add(odd, ir.Constant(_I32, 0x7FFF)))
        return builder.trunc(builder.lshr(rounded, ir.Constant(_I32, 16)), ir.IntType(16))

    return like(x, like), generate


def apart(*shape: int) -> np.ndarray:
    """Return an array of float32 with whatever it holds, apart from all others (see `APART`)."""
    size = math.prod(shape)
    return np.empty(size + 2 * APART, f32)[APART : APART + size].reshape(shape)


@numba.njit(**EXACT, **INNER)
def empty(size):
    """As `apart`, for one dimension."""
    return np.empty(size + 2 * APART, f32)[APART : APART + size]


@numba.njit(**EXACT, **INNER)
def exp(x):
    """Exponential within 1 ulp for x in [-87, 88], and clamped to that range (Cephes' expf)."""
    x = min(max(x, f32(-87.0)), f32(88.0))
    n = np.int32(x * f32(1.4426950408889634) + f32(127.5))  # truncation of a positive number rounds to nearest
    k = f32(n) - f32(127.0)
    r = x - k * f32(0.693359375) + k * f32(2.12194440e-4)
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    return (p * r * r + r + f32(1.0)) * _two_to_the(n)


@numba.njit(**EXACT, **INNER)
def log(x):
    """Logarithm within 1 ulp for normal positive x (Cephes' logf)."""
    m, k = _split(x)
    m -= f32(1.0)
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


@numba.njit(**EXACT, **INNER)
def log1p_and_share(x):
    """Logarithm of 1 + x, and 1 / (1 + x), for x >= 0; relative errors within float32 rounding, however small x."""
    u = f32(1.0) + x
    share = f32(1.0) / u
    return log(u) + (x - (u - f32(1.0))) * share, share


@numba.njit(**EXACT, **INNER)
def stirling(x):
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
