"""Copies of training cells are found; new draws of the same distribution are none."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from sccvae import generation


def draws(n, seed):
    return np.random.default_rng(seed).normal(size=(n, 5))


def test_new_draws_score_a_half_within_the_error():
    scores = np.array([generation.memorisation(*(draws(400, 10 * seed + k) for k in range(3))) for seed in range(8)])
    assert np.abs(scores[:, :2].mean(0) - 0.5).max() < 0.02
    assert 0.5 < scores[:, :2].std(0).max() / scores[0, 2] < 2


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_copies_are_found(noise):
    training, held_out = draws(300, 0), draws(300, 1)
    copies = training[::2] + noise * draws(150, 2)
    found = generation.memorisation(training, held_out, copies)
    assert found.nearer > 0.9
    assert found.membership > 0.65


def test_half_copies_by_hand_and_sparse():
    training, held_out = np.array([[0.0], [10.0]]), np.array([[1.0], [13.0]])
    generated = np.array([[0.0], [12.0]])
    found = generation.memorisation(training, held_out, generated)
    assert found.nearer == 3 / 4  # 0 and 2 against 1 and 3
    assert found.membership == 1 / 2  # 0 and 2 against 1 and 1
    again = generation.memorisation(*(sp.csr_matrix(x) for x in (training, held_out, generated)))
    assert again.nearer == found.nearer
    with pytest.raises(ValueError, match="training has 1 columns but held_out has 2"):
        generation.memorisation(training, np.zeros((3, 2)), generated)
