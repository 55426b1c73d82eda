"""The fastest way to the gradients is taken where it is exact, and nowhere else."""

import pytest
import torch
from helpers import COUNT_LIKELIHOODS, LIKELIHOOD_NAMES, small_counts, small_vae, support_of

from sccvae import backprop
from sccvae.backprop import ByHand, Halved, Product
from sccvae.gradients import Autograd, gradients_of
from sccvae.kernels import FUSED, PLAIN
from sccvae.vae import VAE


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
@pytest.mark.parametrize("kernels", [PLAIN, FUSED], ids=["plain", "fused"])
def test_by_hand_for_counts_with_compiled_kernels(name, kernels):
    vae = small_vae(small_counts(support=support_of(name)), gene_likelihood=name, kernels=kernels)
    by_hand = kernels is FUSED and name in COUNT_LIKELIHOODS
    assert type(gradients_of(vae, "full")) is (ByHand if by_hand else Autograd)


def test_other_precisions_and_other_models_go_to_autograd():
    class Another(VAE):
        pass

    counts = small_counts()
    assert type(gradients_of(small_vae(counts, kernels=FUSED).double(), "full")) is Autograd
    vae = small_vae(counts, kernels=FUSED)
    vae.__class__ = Another
    assert type(gradients_of(vae, "mixed")) is Autograd


@pytest.mark.parametrize("known", [True, False], ids=["bfloat16 known", "unknown"])
def test_products_are_halved_where_that_is_wanted_and_the_processor_can(monkeypatch, known):
    monkeypatch.setattr(backprop, "FASTEST", Halved if known else Product)
    vae = small_vae(small_counts(), kernels=FUSED)
    for precision, product in (("mixed", Halved if known else Product), ("full", Product)):
        heads = gradients_of(vae, precision).heads
        assert type(heads.logits) is type(heads.pi[0]) is product


@pytest.mark.parametrize(("kl_weight", "waits"), [(0.3, True), (1.0, True), (1.0, False)])
def test_autograd_returns_the_loss_and_its_terms_and_forgets_the_gradients_before(kl_weight, waits):
    vae = small_vae(counts := small_counts()).train()
    x = counts.minibatch(slice(0, 9))
    for _ in range(2):
        loss, terms = Autograd(vae)(x, torch.Generator().manual_seed(1), kl_weight, waits)
    elbo = vae(x, torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss, elbo.loss(kl_weight).detach())
    torch.testing.assert_close(terms, torch.stack(elbo[:3]).detach())
    expected = torch.autograd.grad(elbo.loss(kl_weight), list(vae.parameters()))
    for (name, w), by_w in zip(vae.named_parameters(), expected, strict=True):
        still = waits and name == "decoder.dropout.weight"
        assert by_w.any() or not still
        torch.testing.assert_close(w.grad, 0 * by_w if still else by_w)
