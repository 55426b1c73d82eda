"""Elementary functions of the compiled loops."""

import numba
import numpy as np
import pytest
import torch

from sccvae.kernels.cpu.vector_math import narrow, widen

pytestmark = pytest.mark.loops


@numba.njit
def widened(values, out):
    for k in range(values.size):
        out[k] = widen(values[k])


@numba.njit
def narrowed(values, out):
    for k in range(values.size):
        out[k] = narrow(values[k], out[k])


def some_numbers():
    """Numbers of every size and sign, and ties: those half-way between two bfloat16, which go to the even one."""
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    ties = (bits[:5000] & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    numbers = np.concatenate([bits, ties, np.array([0, 2**31], dtype=np.uint32)]).view(np.float32)
    return numbers[np.abs(numbers) < 3e38]  # neither infinite nor rounded to infinity


def test_narrow_rounds_to_bfloat16_as_torch_does_and_widen_undoes_it():
    numbers = some_numbers()
    expected = torch.from_numpy(numbers).bfloat16()
    bits, back = np.empty(numbers.size, np.uint16), np.empty(numbers.size, np.float32)
    narrowed(numbers, bits)
    np.testing.assert_array_equal(bits, expected.view(torch.uint16).numpy())
    widened(bits, back)
    np.testing.assert_array_equal(back.view(np.uint32), expected.float().numpy().view(np.uint32))


def test_float32_stays_as_it_is():
    numbers = some_numbers()
    for function in (narrowed, widened):
        out = np.empty_like(numbers)
        function(numbers, out)
        np.testing.assert_array_equal(out.view(np.uint32), numbers.view(np.uint32))
