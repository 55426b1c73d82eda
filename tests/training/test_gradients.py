"""The fastest way to the gradients is taken where it is exact, and nowhere else."""

import numpy as np
import pytest
import torch
from helpers import COUNT_LIKELIHOODS, LIKELIHOOD_NAMES, a_plan, small_counts, small_vae, support_of

from sccvae.inference.expression import Expressed
from sccvae.kernels.reference import FUSED, PLAIN
from sccvae.modules.latent_terms import TERMS, LatentTerm, MixturePrior
from sccvae.modules.likelihoods import LIKELIHOODS, NB
from sccvae.modules.vae import VAE
from sccvae.training import gradients
from sccvae.training.gradients import Autograd, gradients_of
from sccvae.training.loop import Progress, fit
from sccvae.training.manual_step import AutogradHeads, BFloat16Product, CountHeads, ManualStep, Product


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
@pytest.mark.parametrize("kernels", [PLAIN, FUSED], ids=["plain", "fused"])
def test_by_hand_with_compiled_kernels(name, kernels):
    vae = small_vae(small_counts(support=support_of(name)), gene_likelihood=name, kernels=kernels)
    path = gradients_of(vae, "full")
    assert type(path) is (ManualStep if kernels is FUSED else Autograd)
    if kernels is FUSED:
        assert type(path.heads) is (CountHeads if name in COUNT_LIKELIHOODS else AutogradHeads)


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
    monkeypatch.setattr(gradients, "bfloat16_is_fast", lambda: known)
    vae = small_vae(small_counts(), kernels=FUSED)
    for precision, product in (("mixed", BFloat16Product if known else Product), ("full", Product)):
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
    for (name, w), grad_w in zip(vae.named_parameters(), expected, strict=True):
        still = waits and name == "decoder.dropout.weight"
        assert grad_w.any() or not still
        torch.testing.assert_close(w.grad, 0 * grad_w if still else grad_w)


class Tempered(NB):
    """A likelihood of counts that someone derives from NB: half of its log-likelihood."""

    name = "tempered"

    def log_prob(self, x, decoded, log_library, dropout_cost=0.0):
        value, dropouts = super().log_prob(x, decoded, log_library, dropout_cost)
        return 0.5 * value, dropouts


class Sharper(Tempered):
    """Derived once more."""


def check_path(vae, x, kl_weight=1.0, precision="full"):
    """Hold loss, terms and gradients of the path that training takes against autograd of `vae(x).loss()`."""
    elbo = vae(x, torch.Generator().manual_seed(1))
    free = {name: w for name, w in vae.named_parameters() if w.requires_grad}
    expected = torch.autograd.grad(elbo.loss(kl_weight), list(free.values()), allow_unused=True)
    path = gradients_of(vae, precision)
    loss, terms = path(x, torch.Generator().manual_seed(1), kl_weight, False)
    torch.testing.assert_close(loss, elbo.loss(kl_weight).detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms, elbo.columns(kl_weight), rtol=1e-4, atol=1e-4)
    for (name, w), grad_w in zip(free.items(), expected, strict=True):
        grad_w = torch.zeros_like(w) if grad_w is None else grad_w
        found = torch.zeros_like(w) if w.grad is None else w.grad
        scale = max(grad_w.abs().max().item(), 1e-6)
        np.testing.assert_allclose(found, grad_w, rtol=0, atol=2e-4 * scale, err_msg=name)
    return path


@pytest.mark.parametrize("likelihood", [Tempered, Sharper])
def test_a_likelihood_derived_from_another_is_not_trained_as_its_parent(monkeypatch, likelihood):
    monkeypatch.setitem(LIKELIHOODS, "tempered", likelihood)
    counts = small_counts(n_batches=2)
    for options in (
        {},
        {"dispersion": "gene-batch", "n_layers": 2},
        {"dispersion": "gene-cell", "library": "observed"},
    ):
        vae = small_vae(counts, gene_likelihood="tempered", kernels=FUSED, **options).train()
        assert not vae.likelihood.is_compiled
        assert type(check_path(vae, counts.minibatch(slice(0, 20)))) is ManualStep
    assert not Expressed(vae).compiled


@pytest.mark.parametrize("frozen", ["encoder", "decoder.logits", "decoder.log_dispersion", "all but one bias"])
def test_frozen_weights_have_no_gradient_and_do_not_move(frozen):
    counts = small_counts(n_batches=2)
    vae = small_vae(counts, kernels=FUSED, prior_components=3, batch_mixing=2.0).train()
    for name, w in vae.named_parameters():
        w.requires_grad_(name == "encoder.z.bias" if frozen == "all but one bias" else not name.startswith(frozen))
    assert type(check_path(vae, counts.minibatch(slice(0, 20)))) is ManualStep
    assert all(w.grad is None for w in vae.parameters() if not w.requires_grad)
    before = {name: w.detach().clone() for name, w in vae.named_parameters()}
    everyone = np.arange(len(counts))
    fit(vae, counts, everyone, everyone[:0], a_plan(max_epochs=2, weight_decay=0.1), Progress(), seed=0)
    for name, w in vae.named_parameters():
        assert torch.equal(w, before[name]) == (not w.requires_grad), name


def test_a_hook_or_another_forward_is_not_left_out():
    counts = small_counts(n_batches=2)
    x = counts.minibatch(slice(0, 20))
    vae = small_vae(counts, kernels=FUSED).train()
    hook = vae.encoder.blocks[0].register_forward_hook(lambda _, __, out: 2 * out)
    assert type(check_path(vae, x)) is Autograd
    hook.remove()
    assert type(check_path(vae, x)) is ManualStep
    forward = vae.decoder.logits.forward
    vae.decoder.logits.forward = lambda h: forward(h) + 0.1 * h.sum(1, keepdim=True)
    assert type(check_path(vae, x)) is Autograd


OPTIONS = {
    "defaults": {"prior_components": 4, "batch_mixing": 2.0, "thinning": 0.3, "encode_covariates": True},
    "no mixture": {"prior_components": 0, "batch_mixing": 2.0},
    "observed library": {"library": "observed"},
    "by batch": {"dispersion": "gene-batch"},
    "by cell": {"dispersion": "gene-cell"},
    "layers": {"n_layers": 3, "n_hidden": (17, 9)},
    "no dropout": {"dropout_rate": 0.0, "dropout_cost": 0.0},
}


@pytest.mark.parametrize("kernels", [PLAIN, FUSED], ids=["plain", "fused"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_every_path_has_the_loss_of_forward(name, options, kernels):
    counts = small_counts(n_batches=2, covariates=True, support=support_of(name))
    vae = small_vae(counts, gene_likelihood=name, kernels=kernels, **OPTIONS[options]).train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for w in vae.parameters():
            w.add_(0.1 * torch.randn(w.shape, generator=generator))
    for kl_weight in (0.3, 1.0):
        path = check_path(vae, counts.minibatch(slice(0, 40)), kl_weight)
    assert type(path) is (ManualStep if kernels is FUSED else Autograd)


class Spread(LatentTerm):
    """A term that reads all that it is given."""

    name = "spread"

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7))

    @classmethod
    def of(cls, architecture, generator):
        return cls()

    def forward(self, q, z, x):
        return self.weight * (z.square() + q.mean.sin() * q.variance + q.variance.log() * z).sum(1) * x.log_total


class SpreadInBound(Spread):
    """The same in the bound."""

    in_bound = True


class Constant(Spread):
    """A term without a gradient."""

    def forward(self, q, z, x):
        return torch.ones(len(z))


@pytest.mark.parametrize("kind", [Spread, SpreadInBound, Constant])
@pytest.mark.parametrize("name", ["zinb", "normal"])
def test_a_term_without_a_compiled_version_goes_to_autograd_within_the_step(monkeypatch, kind, name):
    monkeypatch.setattr("sccvae.modules.vae.TERMS", (*TERMS, kind))
    counts = small_counts(n_batches=2, support=support_of(name))
    vae = small_vae(counts, kernels=FUSED, gene_likelihood=name, prior_components=3, batch_mixing=2.0).train()
    with torch.no_grad():
        vae.encoder.z.bias[vae.architecture.n_latent] = -50.0  # beyond the bounds of the log variance
    for kl_weight in (0.3, 1.0):
        path = check_path(vae, counts.minibatch(slice(0, 30)), kl_weight)
    assert type(path) is ManualStep
    assert [type(by).__name__ for _, by in path.terms] == [
        "PriorGradients",
        "PenaltyGradients",
        "ByAutograd",
    ]


def test_a_term_derived_from_one_that_is_compiled_goes_to_autograd(monkeypatch):
    class Doubled(MixturePrior):
        def forward(self, q, z, x):
            return 2 * super().forward(q, z, x)

    monkeypatch.setattr("sccvae.modules.vae.TERMS", (Doubled,))
    counts = small_counts()
    vae = small_vae(counts, kernels=FUSED, prior_components=3).train()
    path = check_path(vae, counts.minibatch(slice(0, 30)))
    assert type(path) is ManualStep
    assert [type(by).__name__ for _, by in path.terms] == ["ByAutograd"]
