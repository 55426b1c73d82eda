"""Noise of posterior draws: standard normal, the same in any chunks."""

import numpy as np
import pytest
import torch

from sccvae.inference.noise import BLOCK, Noise, streams

N = 2 * BLOCK + 40


def in_chunks(size: int, seed: int = 3, n_samples: int = 2) -> np.ndarray:
    noise, found = Noise(seed, 5, torch.zeros(())), np.full((n_samples, N, 5), np.nan, np.float32)
    for start in range(0, N, size):
        rows = slice(start, min(start + size, N))
        for sample in range(n_samples):
            found[sample, rows] = noise(rows, sample)
    return found


@pytest.mark.parametrize("size", [1, 100, BLOCK, BLOCK + 1, N])
def test_chunks_do_not_change_it(size):
    np.testing.assert_array_equal(in_chunks(size), in_chunks(97))


def test_it_is_standard_normal_and_every_part_its_own():
    drawn = in_chunks(N)
    assert abs(drawn.mean()) < 0.05
    assert drawn.std() == pytest.approx(1, abs=0.03)
    parts = [drawn[0, :40], drawn[1, :40], drawn[0, BLOCK : BLOCK + 40], drawn[0, 2 * BLOCK :], in_chunks(N, 4)[0, :40]]
    assert np.abs(np.corrcoef([part.ravel() for part in parts]) - np.eye(5)).max() < 0.3


def test_only_what_a_later_chunk_needs_is_kept():
    noise = Noise(0, 5, torch.zeros(()))
    noise(slice(0, BLOCK - 1), 0)
    assert list(noise.kept) == [(0, 0)]
    noise(slice(BLOCK - 1, 2 * BLOCK), 0)
    assert not noise.kept


def test_a_part_has_its_own_stream_however_long_others_draw():
    first, second = (streams(np.random.default_rng(1)) for _ in range(2))
    first(0).random(1000)
    assert first(1).random() == second(1).random() != second(2).random()
