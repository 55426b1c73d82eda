"""Walkback: which corrupted points are visited, and what each learns."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from helpers import close, denoiser, generator, small_counts, support_of
from scipy import stats

from sccvae.corruption import (
    Thinning,
    processes_for,
)
from sccvae.modules.autoencoders import (
    gathered,
    matrix_of,
    numpy_generator,
    with_values,
)


def test_the_number_of_points_visited_is_geometric():
    counts = small_counts(2000, 10)
    net = denoiser(counts, (Thinning(0.7),), 0.5, gene_likelihood="poisson", n_hidden=4)
    points, cells = net.visit(counts.minibatch(slice(None)), np.random.default_rng(1))
    visits = np.bincount(cells, minlength=2000)
    assert points.n_cells == len(cells)
    assert visits.min() == 1
    close(visits, 2, 2)  # geometric with p = 0.5: mean 2, variance 2
    expected = 2000 * 0.5 ** np.arange(1, 7)
    observed = np.array([(visits == k).sum() for k in range(1, 7)])
    assert ((observed - expected) ** 2 / expected).sum() < stats.chi2(6).ppf(1 - 1e-6)


class Recorded(Thinning):
    """Thinning that keeps what it was given."""

    def __call__(self, x, rng):
        self.__dict__.setdefault("seen", []).append(x.toarray())
        return super().__call__(x, rng)


def test_a_walk_goes_on_from_samples_of_the_reconstruction(monkeypatch):
    counts = small_counts(64, 12)
    process = Recorded(0.5)
    net = denoiser(counts, (process,), 0.5, gene_likelihood="nb")
    asked = []

    def sample(decoded, log_library, rng):
        asked.append(log_library.numpy())
        return np.full(decoded.logits.shape, 100 + len(asked), dtype=np.float32)

    monkeypatch.setattr(net.likelihood, "sample", sample)
    points, cells = net.visit(counts.minibatch(slice(None)), np.random.default_rng(3))
    visits = np.bincount(cells, minlength=64)
    assert visits.max() >= 4
    np.testing.assert_array_equal(process.seen[0], counts.matrix.toarray())  # first the cells themselves
    firsts = np.r_[0, np.cumsum([len(x) for x in process.seen])]
    for step in range(1, visits.max()):
        on = np.flatnonzero(visits > step)
        np.testing.assert_array_equal(process.seen[step], np.full((len(on), 12), 100 + step))  # then samples alone
        np.testing.assert_array_equal(cells[firsts[step] : firsts[step + 1]], on)
        np.testing.assert_array_equal(asked[step - 1], counts.log_size[on])  # at the library size of the start
    corrupted = matrix_of(points).toarray()
    assert (corrupted[:64] <= counts.matrix.toarray()).all()
    assert (corrupted[64:] <= 100 + visits.max()).all()
    close(corrupted[64:128], 0.5 * 101, 25) if firsts[2] >= 128 else None


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "normal", "bernoulli"])
@pytest.mark.parametrize("continuation", [0.0, 0.5])
def test_every_point_is_to_give_back_the_cell_that_its_walk_began_at(likelihood, continuation):
    counts = small_counts(50, 15, support=support_of(likelihood), n_batches=2)
    processes = processes_for(support_of(likelihood), None)
    net = denoiser(counts, processes, continuation, gene_likelihood=likelihood)
    x = counts.minibatch(slice(None))
    elbo = net(x, generator(7))
    points, cells = net.visit(x, numpy_generator(generator(7)))
    assert (len(cells) > 60) == (continuation > 0)
    originals = counts.minibatch(cells)  # read from the data once more
    decoded = net.decoder(net.encoder(points)[0].mean, originals)
    value, dropouts = net.likelihood.log_prob(originals, decoded, originals.log_size)
    torch.testing.assert_close(elbo.reconstruction, value)
    torch.testing.assert_close(elbo.dropout_penalty, 0.05 * dropouts)
    assert not elbo.kl_z.any()
    assert not elbo.kl_l.any()
    torch.testing.assert_close(elbo.loss(0.3), -(value - 0.05 * dropouts).mean())


def test_points_carry_their_own_totals_and_the_cell_its_covariates():
    counts = small_counts(30, 15, n_batches=3)
    x, cells = counts.minibatch(slice(None)), np.array([4, 4, 29, 0])
    picked = gathered(x, cells)
    for name, found in picked._asdict().items():
        expected = getattr(counts.minibatch(cells), name)
        assert torch.equal(found, expected) if isinstance(found, torch.Tensor) else found == expected, name
    thinned = Thinning(0.4)(counts.matrix[cells], np.random.default_rng(0))
    thinned = sp.vstack([sp.csr_matrix((1, 15), dtype=np.float32), thinned[1:]], format="csr")
    changed = with_values(picked, thinned)
    np.testing.assert_array_equal(changed.dense().numpy(), thinned.toarray())
    np.testing.assert_allclose(changed.log_total[1:].exp(), thinned.toarray()[1:].sum(1), rtol=1e-6)
    assert torch.equal(changed.log_size, picked.log_size)
    assert torch.equal(changed.codes, picked.codes)
    net = denoiser(counts, (Thinning(),), gene_likelihood="nb")
    assert torch.isfinite(net.encoder(changed)[0].mean).all()  # a cell that lost everything can be encoded


def test_walking_uses_no_dropout_of_hidden_units_and_leaves_training_on():
    counts = small_counts(40, 15)
    nets = [denoiser(counts, (Thinning(),), gene_likelihood="nb", dropout_rate=rate) for rate in (0.0, 0.5)]
    points = []
    for net in nets:
        net.train()
        points.append(net.visit(counts.minibatch(slice(None)), np.random.default_rng(0))[0].dense())
        assert net.training
    assert torch.equal(*points)
