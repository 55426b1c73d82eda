"""Run numba's loops as plain Python (`NUMBA_DISABLE_JIT=1`), so that their lines count in the coverage.

Without its compiler numba leaves functions as they are, except for intrinsics: these emit LLVM's instructions, and
raise an error when Python calls them. `install` replaces each by a NumPy version; call it before sccvae is imported.
"""

import numba.extending
import numpy as np


def _two_to_the(n):
    return np.uint32(np.uint32(n) << np.uint32(23)).view(np.float32)


def _split(x):
    sqrt_half = np.int32(0x3F3504F3)
    bits = np.float32(x).view(np.int32) - sqrt_half
    mantissa = (bits & np.int32(0x007FFFFF)) + sqrt_half
    return np.int32(mantissa).view(np.float32), np.float32(bits >> np.int32(23))


def widen(x):
    return x if isinstance(x, np.float32) else np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)


def narrow(x, like):
    if isinstance(like, np.float32):
        return x
    bits = np.float32(x).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)  # ties go to even
    return np.uint16((bits + odd + np.uint32(0x7FFF)) >> np.uint32(16))


PYTHON = {function.__name__: function for function in (_two_to_the, _split, widen, narrow)}


def install() -> None:
    """Let numba's decorator `intrinsic` return the NumPy version of the same name."""
    numba.extending.intrinsic = lambda function: PYTHON[function.__name__]
