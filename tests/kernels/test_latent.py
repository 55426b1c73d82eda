"""The compiled passes over z, next to torch in float64; of batches that lie apart see `test_mixing`."""

import numpy as np
import pytest
import torch
from helpers import double
from torch.distributions import Normal, kl_divergence

from sccvae.kernels.cpu import latent
from sccvae.modules.latent_terms import FLOOR, MixturePrior

f32 = np.float32

pytestmark = pytest.mark.loops


@pytest.mark.parametrize("n", [1, 6])
def test_gaussian(n):
    rng, n_cells, bounds = np.random.default_rng(1), 9, (f32(-3), f32(2), f32(1e-6))
    head = (2 * rng.standard_normal((n_cells, 2 * n))).astype(f32)
    head[0, n], head[1, n] = -4, 4
    shift, prior_mean = rng.standard_normal((2, n_cells)).astype(f32)
    prior_variance = rng.gamma(2, 1, n_cells).astype(f32)
    noise, grad_draw = rng.standard_normal((2, n_cells, n)).astype(f32)
    variance, draw, kl = np.empty((n_cells, n), f32), np.empty((n_cells, n), f32), np.empty(n_cells, f32)
    given = (head, bounds, shift, prior_mean, prior_variance, noise, variance)
    latent.gaussian(*given, draw, kl)
    grad_head = np.full_like(head, np.nan)
    latent.gaussian_gradient(*given, grad_draw, f32(0.7), grad_head)

    (reference,) = double(head)
    mean, log_variance = reference[:, :n] + torch.from_numpy(shift)[:, None], reference[:, n:]
    sd = (log_variance.clamp(-3, 2).exp() + 1e-6).sqrt()
    prior = Normal(*(torch.from_numpy(t)[:, None].double() for t in (prior_mean, np.sqrt(prior_variance))))
    expected = kl_divergence(Normal(mean, sd), prior).sum(1)
    drawn = mean + sd * torch.from_numpy(noise)
    np.testing.assert_allclose(draw, drawn.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kl, expected.detach(), rtol=1e-5, atol=1e-5)
    loss = (drawn * torch.from_numpy(grad_draw)).sum() + 0.7 * expected.sum()
    np.testing.assert_allclose(grad_head, torch.autograd.grad(loss, reference)[0], rtol=1e-4, atol=1e-5)
    outside = (head[:, n:] < -3) | (head[:, n:] > 2)
    assert not grad_head[:, n:][outside].any()


@pytest.mark.parametrize(("n_components", "n"), [(1, 1), (5, 3), (30, 20)])
def test_mixture_prior(n_components, n):
    prior = MixturePrior(n_components, n, torch.Generator().manual_seed(0)).double()
    rng = np.random.default_rng(2)
    with torch.no_grad():
        for w in prior.parameters():
            w.add_(torch.from_numpy(rng.standard_normal(w.shape)))
    (z,) = double(2 * rng.standard_normal((9, n)).astype(f32))
    expected = prior(None, z, None)
    weights, value = (prior.logits, prior.mean, prior.log_variance), np.full(9, np.nan, f32)
    given = [t.detach().numpy().astype(f32) for t in (z.T.contiguous(), *weights)]
    by = [np.full_like(a, np.nan) for a in given]
    latent.mixture_prior(*given, f32(FLOOR), f32(0.5), np.empty((n_components, 9), f32), value, *by)
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad(0.5 * expected.sum(), (z, *weights))
    for found, reference in zip((by[0].T, *by[1:]), gradients, strict=True):
        np.testing.assert_allclose(found, reference, rtol=1e-3, atol=1e-4 * max(1, float(reference.abs().max())))
