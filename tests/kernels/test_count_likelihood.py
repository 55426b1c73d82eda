"""The compiled likelihood where heads come as bfloat16; `test_kernels` has its numbers, and float32."""

import numpy as np
import pytest
import torch
from helpers import COUNT_LIKELIHOODS, small_counts, threads

from sccvae.kernels.cpu import count_likelihood
from sccvae.kernels.reference import stored

pytestmark = pytest.mark.loops


def some_heads(name, counts, dtype, seed=0):
    rng, (n_cells, n_genes) = np.random.default_rng(seed), counts.matrix.shape
    row = rng.integers(0, 3, n_cells)

    def head():
        rounded = torch.from_numpy(rng.normal(size=(n_cells, n_genes)).astype(np.float32)).bfloat16()
        return rounded.float().numpy() if dtype is np.float32 else rounded.view(torch.uint16).numpy().copy()

    def table():
        return count_likelihood.Table(rng.normal(size=(3, n_genes)).astype(np.float32), row)

    logits, bias, log_theta, pi, pi_bias = head(), table(), table(), head(), rng.normal(size=n_genes).astype(np.float32)
    if name != "zinb":
        pi, pi_bias = None, None
    return count_likelihood.Heads(logits, bias, counts.log_total, None if name == "poisson" else log_theta, pi, pi_bias)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("name", COUNT_LIKELIHOODS)
def test_bfloat16_is_read_exactly_and_gradients_are_rounded_once(name, n_threads, in_place):
    counts = small_counts()
    x, weight = stored(counts.minibatch(slice(None))), np.linspace(-1, 1, len(counts), dtype=np.float32)
    wide, half = some_heads(name, counts, np.float32), some_heads(name, counts, np.uint16)
    with threads(n_threads):
        expected = count_likelihood.count_log_likelihood(x, wide, 0.3, weight)
        found = count_likelihood.count_log_likelihood(x, half, 0.3, weight, in_place=in_place)
    assert (found.logits is half.logits) is in_place
    for field, one, other in zip(expected._fields, expected, found, strict=True):
        if one is None:
            assert other is None
        elif other.dtype == np.uint16:
            assert field in ("logits", "pi")
            rounded = torch.from_numpy(other).view(torch.bfloat16).float().numpy()
            # Twice a last place: the two are compiled apart, so float32 roundings before may differ.
            np.testing.assert_allclose(rounded, one, rtol=2**-8, atol=1e-6, err_msg=field)
            assert np.abs(one).max() > 0
        else:
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-4, err_msg=field)


def test_a_bfloat16_that_is_not_finite_is_seen():
    counts = small_counts()
    x, weight = stored(counts.minibatch(slice(None))), np.ones(len(counts), np.float32)
    for value in (0x7F80, 0x7FC0):  # infinity, NaN
        heads = some_heads("zinb", counts, np.uint16)
        heads.logits[3, 2] = value
        assert count_likelihood.count_log_likelihood(x, heads, 0.0, weight) is None
