"""Normalised expression, compiled and plain, against softmax in float64; straight into the arrays that ask for it."""

import copy
import itertools

import numpy as np
import pytest
import torch
from helpers import COUNT_LIKELIHOODS, few_steps, generator, small_counts, small_vae, support_of, threads
from scipy.special import softmax

from sccvae.inference import expression as module
from sccvae.inference.expression import Expressed
from sccvae.inference.posterior import Request, can_be_filled, expression
from sccvae.kernels.reference import FUSED

N_CELLS, N_GENES, N_LATENT = 40, 30, 3


def trained(name="zinb", *, n_batches=3, covariates=False, compiled=True, **choices):
    """Counts, and a model of them after some steps."""
    counts = small_counts(N_CELLS, N_GENES, support=support_of(name), n_batches=n_batches, covariates=covariates)
    vae = small_vae(counts, gene_likelihood=name, **choices)
    few_steps(vae, counts, n_steps=10)
    if not compiled:
        return vae.eval(), counts
    fast = small_vae(counts, gene_likelihood=name, kernels=FUSED, **choices)
    fast.load_state_dict(vae.state_dict())
    return fast.eval(), counts


@torch.no_grad()
def reference(vae, z, x):
    """Softmax of the decoder's logits, all in float64."""
    double = copy.deepcopy(vae).double()
    return softmax(double.decoder(z.double(), x.to(z.device, torch.float64)).logits.numpy(), axis=1)


@pytest.fixture
def z():
    return torch.randn(N_CELLS, N_LATENT, generator=generator(5))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("n_batches", "covariates"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("name", COUNT_LIKELIHOODS)
def test_it_is_the_softmax_of_the_logits_times_a_factor(z, name, n_batches, covariates, compiled):
    vae, counts = trained(name, n_batches=n_batches, covariates=covariates, compiled=compiled)
    x, express, factor = counts.minibatch(slice(None)), Expressed(vae), torch.rand(N_CELLS, generator=generator(1))
    assert express.compiled == compiled
    rho, out = reference(vae, z, x), torch.full((N_CELLS, N_GENES), np.nan)
    for by in (1.0, 1e4, factor):
        expected = rho * np.reshape(np.asarray(by), (-1, 1))
        express.into(out, z, x, by)
        np.testing.assert_allclose(out, expected, rtol=1e-5)
        express.into(out, z, x, by, add=True)
        np.testing.assert_allclose(out, 2 * expected, rtol=1e-5)


def test_a_smaller_chunk_after_a_larger_one_and_rows_of_a_larger_array(z):
    vae, counts = trained()
    x, express, out = counts.minibatch(slice(None)), Expressed(vae), torch.zeros(N_CELLS + 2, N_GENES)
    for first, last in ((0, 25), (25, 27), (27, N_CELLS)):
        express.into(out[first + 1 : last + 1], z[first:last], x.part(first, last))
    np.testing.assert_allclose(out[1:-1], reference(vae, z, x), rtol=1e-5)
    assert not out[[0, -1]].any()


@pytest.mark.parametrize("covariates", [False, True])
def test_the_product_in_pieces_is_the_same(z, monkeypatch, covariates):
    vae, counts = trained(covariates=covariates)
    x, found = counts.minibatch(slice(None)), torch.zeros(2, N_CELLS, N_GENES)
    factor = torch.rand(N_CELLS, generator=generator(1))
    for out, values in zip(found, (N_CELLS * N_GENES, 7 * N_GENES + 1), strict=True):
        monkeypatch.setattr(module, "PRODUCT", values)
        Expressed(vae).into(out, z, x, factor)
    torch.testing.assert_close(*found)


def test_threads_do_not_change_it(z):
    vae, counts = trained()
    x, found = counts.minibatch(slice(None)), []
    for n_threads in (1, 3):
        found.append(torch.zeros(N_CELLS, N_GENES))
        with threads(n_threads):
            Expressed(vae).into(found[-1], z, x)
    assert torch.equal(*found)


def test_what_is_not_a_number_stays_so(z):
    vae, counts = trained()
    out, z[3, 1] = torch.zeros(N_CELLS, N_GENES), np.nan
    Expressed(vae).into(out, z, counts.minibatch(slice(None)))
    assert out[3].isnan().all()
    assert out[torch.arange(N_CELLS) != 3].isfinite().all()


@pytest.mark.parametrize("name", ["normal", "bernoulli"])
def test_without_a_library_it_is_the_mean_of_x(z, name):
    vae, counts = trained(name)
    x, out = counts.minibatch(slice(None)), torch.zeros(N_CELLS, N_GENES)
    Expressed(vae).into(out, z, x, 0.5)
    torch.testing.assert_close(out, 0.5 * vae.likelihood.mean(vae.decoder(z, x), None).detach())


def test_in_double_precision_it_is_not_compiled(z):
    vae, counts = trained()
    vae, out = vae.double(), torch.zeros(N_CELLS, N_GENES, dtype=torch.float64)
    Expressed(vae).into(out, z.double(), x := counts.minibatch(slice(None)).to(z.device, torch.float64))
    np.testing.assert_allclose(out, reference(vae, z, x), rtol=1e-12)


OPTIONS = [*itertools.product([1.0, 1e4, "latent", "observed"], [[None], [0, 2]], [None, 3])]


@pytest.mark.parametrize(("library_size", "batches", "n_samples"), OPTIONS)
def test_compiled_and_plain_agree_whatever_is_asked(library_size, batches, n_samples):
    request, keep_draws = Request(batches, n_samples, seed=4, chunk_size=9), n_samples is not None
    found = []
    for compiled in (True, False):
        vae, counts = trained(covariates=True, compiled=compiled)
        chunks = expression(vae, counts, library_size, None, request, keep_draws=keep_draws)
        found.append(np.concatenate([rho for _, rho in chunks], -2))
    assert found[0].shape[-2:] == (N_CELLS, N_GENES)
    np.testing.assert_allclose(*found, rtol=1e-4)


@pytest.mark.parametrize("genes", [None, np.array([5, 5, 0])])
@pytest.mark.parametrize("keep_draws", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_an_array_that_is_given_is_filled_and_its_rows_are_yielded(compiled, keep_draws, genes):
    vae, counts = trained(compiled=compiled)
    asked = (vae, counts, 1.0, genes, Request([0, 1], 2, seed=4, chunk_size=9))
    expected = np.concatenate([rho for _, rho in expression(*asked, keep_draws=keep_draws)], -2)
    out = np.full(expected.shape, np.nan, np.float32)
    for rows, rho in expression(*asked, keep_draws=keep_draws, out=out):
        assert np.shares_memory(rho, out[..., rows, :])
    np.testing.assert_array_equal(out, expected)


def test_only_plain_arrays_of_float32_can_be_filled(tmp_path):
    array = np.zeros((4, 6), np.float32)
    assert can_be_filled(array)
    assert can_be_filled(np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, (4, 6)))
    read_only = array.copy()
    read_only.setflags(write=False)
    for other in (array.astype(np.float64), np.asfortranarray(array), array[:, ::2], read_only, array.tolist()):
        assert not can_be_filled(other)
