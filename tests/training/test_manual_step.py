"""Gradients by hand: those of autograd, for every model of counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import COUNT_LIKELIHOODS, move, small_counts, small_vae, threads

from sccvae.kernels.cpu.operations import CPU
from sccvae.kernels.reference import FUSED
from sccvae.kernels.table import APART
from sccvae.modules.networks import LEAST_L
from sccvae.training import workspace
from sccvae.training.gradients import Autograd
from sccvae.training.manual_step import BFloat16Product, ManualStep, Product
from sccvae.training.optimizer import Adam
from sccvae.training.reference import REFERENCE

pytestmark = pytest.mark.loops


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def n_threads(request):
    with threads(request.param):
        yield request.param


ROUNDED = 0.04  # of the largest gradient: what bfloat16 costs, 2^-9 of each factor and of each result


def unreachable(*_):
    raise AssertionError("autograd was asked")


def a_vae(counts, seed=0, **choices):
    """A small VAE whose every weight differs from 0, in training."""
    vae, generator = small_vae(counts, kernels=FUSED, **choices).train(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for w in vae.parameters():
            w.add_(0.1 * torch.randn(w.shape, generator=generator))
    return vae


def noise(seed=3):
    return torch.Generator().manual_seed(seed)


def compare(vae, x, kl_weight=0.4, rtol=2e-4, product=Product, *, waits=False, operations=CPU):
    """Loss, terms, gradients and what is left of the noise, by hand and by autograd."""
    one, other = noise(), noise()
    loss, terms = Autograd(vae)(x, one, kl_weight, waits)
    expected = {name: w.grad.clone() for name, w in vae.named_parameters()}
    for w in vae.parameters():
        w.grad = torch.full_like(w, torch.nan)  # whatever stood there before
    by_hand = ManualStep(vae, operations, unreachable, product)
    for _ in range(2):  # the second time into the same arrays
        loss_by_hand, terms_by_hand = by_hand(x, other, kl_weight, waits)
        torch.testing.assert_close(loss_by_hand, loss, rtol=rtol / 20, atol=1e-5)
        torch.testing.assert_close(terms_by_hand, terms, rtol=rtol / 2, atol=1e-4)
        for name, w in vae.named_parameters():
            scale = expected[name].abs().max().item()
            still = waits and name == "decoder.dropout.weight"
            assert (scale == 0) == still, name
            if still:
                assert w.grad is None
                continue
            np.testing.assert_allclose(w.grad, expected[name], rtol=0, atol=rtol * scale, err_msg=name)
        assert torch.equal(one.get_state(), other.get_state())
        other = noise()


@pytest.mark.parametrize("library", ["lognormal", "observed"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
@pytest.mark.parametrize("name", COUNT_LIKELIHOODS)
def test_gradients_are_those_of_autograd(name, dispersion, library, n_threads):
    counts = small_counts(n_batches=3)
    vae = a_vae(counts, gene_likelihood=name, dispersion=dispersion, library=library, dropout_cost=0.3)
    compare(vae, counts.minibatch(slice(0, 40)))
    compare(vae, counts.minibatch(slice(0, 40)), waits=True)
    compare(vae, counts.minibatch(slice(0, 40)), kl_weight=1.0)


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
@pytest.mark.parametrize("name", COUNT_LIKELIHOODS)
def test_the_step_is_the_same_with_the_reference_table(name, dispersion):
    counts = small_counts(n_batches=3, covariates=dispersion == "gene")
    options = {"prior_components": 3, "batch_mixing": 2.0, "thinning": 0.3, "n_layers": 2, "encode_covariates": True}
    vae = a_vae(counts, gene_likelihood=name, dispersion=dispersion, dropout_cost=0.3, **options)
    compare(vae, counts.minibatch(slice(0, 40)), waits=True, operations=REFERENCE)
    compare(vae, counts.minibatch(slice(0, 40)), kl_weight=1.0, operations=REFERENCE)


@pytest.mark.parametrize("kl_weight", [0.4, 1.0])
@pytest.mark.parametrize("operations", [CPU, REFERENCE])
def test_gradients_of_a_model_with_labels(kl_weight, operations, n_threads):
    counts = small_counts(n_batches=3)
    labels = np.arange(len(counts)) % 4 - 1  # a quarter has none
    counts = replace(counts, labels=labels)
    vae = a_vae(counts, prior_components=5, n_labels=3, label_weight=2.0, batch_mixing=1.5)
    compare(vae, counts.minibatch(slice(0, 40)), kl_weight=kl_weight, operations=operations)
    assert vae.columns[3:] == ("label_penalty", "batch_penalty")


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
@pytest.mark.parametrize("name", COUNT_LIKELIHOODS)
def test_gradients_with_halved_products_are_nearly_those_of_autograd(name, dispersion, n_threads):
    counts = small_counts(n_batches=3)
    vae = a_vae(counts, gene_likelihood=name, dispersion=dispersion, dropout_cost=0.3)
    compare(vae, counts.minibatch(slice(0, 40)), rtol=ROUNDED, product=BFloat16Product, waits=True)
    compare(vae, counts.minibatch(slice(0, 40)), rtol=ROUNDED, product=BFloat16Product, kl_weight=1.0)


@pytest.mark.parametrize(("product", "rtol"), [(Product, 2e-4), (BFloat16Product, ROUNDED)])
def test_while_the_drop_out_head_waits_at_zero_it_multiplies_nothing(product, rtol, monkeypatch, n_threads):
    counts = small_counts(n_batches=2)
    vae, x, multiplied = a_vae(counts), counts.minibatch(slice(0, 40)), []
    with torch.no_grad():
        vae.decoder.dropout.weight.zero_()
    forward = product.forward
    monkeypatch.setattr(product, "forward", lambda self, h: multiplied.append(self.weight) or forward(self, h))
    compare(vae, x, rtol=rtol, product=product, waits=True)
    assert multiplied
    assert all(w is vae.decoder.logits.weight for w in multiplied)
    compare(vae, x, rtol=rtol, product=product)
    assert any(w is vae.decoder.dropout.weight for w in multiplied)


@torch.no_grad()
def test_halved_products_round_factors_and_results_once():
    generator = torch.Generator().manual_seed(0)
    h, weight = torch.randn(9, 40, generator=generator), torch.nn.Parameter(torch.randn(40, 70, generator=generator))
    grad_out, grad_input = torch.randn(9, 70, generator=generator), torch.ones(9, 40)
    rounded = [t.detach().bfloat16().double() for t in (h, weight, grad_out)]
    product = BFloat16Product(CPU, weight)
    product.forward(h)
    result = product.out
    close = {"rtol": 2**-8, "atol": 1e-4, "check_dtype": False}
    torch.testing.assert_close(result, rounded[0] @ rounded[1], **close)
    result.copy_(grad_out)  # the gradient takes the product's place
    product.backward(grad_input, add=True)
    torch.testing.assert_close(grad_input - 1, rounded[2] @ rounded[1].t(), **close | {"atol": 2**-8})
    torch.testing.assert_close(weight.grad, rounded[0].t() @ rounded[2], **close)
    product.backward(grad_input, add=False)
    torch.testing.assert_close(grad_input, rounded[2] @ rounded[1].t(), **close)


@pytest.mark.parametrize("n_latent", [1, 4])
def test_library_sizes_at_their_lower_bound(n_latent, n_threads):
    counts = small_counts(n_batches=2)
    vae, x = a_vae(counts, n_latent=n_latent), counts.minibatch(slice(0, 40))
    with torch.no_grad():
        residual = vae.encoder(x)[1].mean - x.log_size
        middle = residual.flatten().sort().values[19:21].mean()  # half of them below, and none at the bound itself
        vae.encoder.library.bias[0] += LEAST_L - middle
        below = (vae.encoder(x)[1].mean - x.log_size).isclose(torch.tensor(LEAST_L)).sum()
    assert 10 < below < 30
    compare(vae, x)


@pytest.mark.parametrize("encode_covariates", [False, True])
@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize(("n_batches", "covariates"), [(1, False), (3, False), (1, True), (3, True)])
def test_layers_and_covariates(n_batches, covariates, n_layers, encode_covariates):
    counts = small_counts(n_batches=n_batches, covariates=covariates)
    compare(a_vae(counts, n_layers=n_layers, encode_covariates=encode_covariates), counts.minibatch(slice(0, 40)))


@pytest.mark.parametrize("dropout_rate", [0.0, 0.5])
@pytest.mark.parametrize("n_cells", [1, 2, 33])
def test_any_size_with_and_without_dropout(n_cells, dropout_rate, n_threads):
    counts = small_counts(n_batches=2)
    compare(a_vae(counts, dropout_rate=dropout_rate, n_hidden=33), counts.minibatch(slice(5, 5 + n_cells)))


@pytest.mark.parametrize("encode_covariates", [False, True])
@pytest.mark.parametrize("name", COUNT_LIKELIHOODS)
def test_with_molecules_hidden_from_the_encoder(name, encode_covariates, n_threads):
    counts = small_counts(n_batches=2, covariates=True)
    vae = a_vae(counts, thinning=0.6, gene_likelihood=name, encode_covariates=encode_covariates, batch_mixing=2.0)
    compare(vae, counts.minibatch(slice(0, 40)), kl_weight=1.0)
    compare(vae, counts.minibatch(slice(0, 20)).repeated(2))


@pytest.mark.parametrize("n_layers", [1, 2])
def test_encoder_and_decoder_of_different_width(n_layers, n_threads):
    counts = small_counts(n_batches=2)
    compare(a_vae(counts, n_hidden=(33, 21), n_layers=n_layers), counts.minibatch(slice(0, 40)))


def test_fewer_cells_than_batches(n_threads):
    """The table of biases then has more rows than there are cells, and cells still share one."""
    counts = small_counts(n_batches=5)
    x = counts.minibatch(np.array([0, 5, 10, 1]))
    assert len(set(x.codes[:, 0].tolist())) == 2
    compare(a_vae(counts, dispersion="gene-batch"), x)


def test_a_cell_more_than_once_and_in_any_order():
    counts = small_counts()
    compare(a_vae(counts), counts.minibatch(np.array([7, 3, 7])).repeated(2))


@pytest.mark.parametrize("n_components", [2, 30])
def test_a_mixture_as_prior(n_components):
    counts = small_counts(n_batches=2)
    vae, x = a_vae(counts, prior_components=n_components), counts.minibatch(slice(0, 40))
    compare(vae, x)
    compare(vae, x, kl_weight=1.0)


@pytest.mark.parametrize("n_components", [0, 3])
@pytest.mark.parametrize("n_cells", [1, 2, 3, 40])
def test_batches_apart(n_cells, n_components, n_threads):
    counts = small_counts(n_batches=3)
    vae = a_vae(counts, batch_mixing=50.0, prior_components=n_components)
    x = counts.minibatch(slice(0, n_cells))
    ((term, nats),) = vae(x, noise()).penalties
    assert term is vae.batch_penalty
    assert (nats.max() > 1) == (n_cells == 40)
    compare(vae, x, kl_weight=1.0)
    compare(vae, x)


def test_batches_apart_among_copies_of_cells():
    counts = small_counts(n_batches=2)
    x = counts.minibatch(slice(0, 20)).repeated(2)
    assert x.copies == 2
    compare(a_vae(counts, batch_mixing=50.0), x, kl_weight=1.0)


def test_log_variances_beyond_their_bounds_have_no_gradient():
    counts = small_counts()
    vae = a_vae(counts)
    with torch.no_grad():
        n = vae.architecture.n_latent
        vae.encoder.z.bias[n], vae.encoder.z.bias[n + 1], vae.encoder.library.bias[1] = -50.0, 50.0, -50.0
        vae.encoder.z.weight[:, n : n + 2], vae.encoder.library.weight[:, 1] = 0.0, 0.0
    x = counts.minibatch(slice(0, 20))
    Autograd(vae)(x, noise(), 1.0, False)
    expected = [w.grad.clone() for w in vae.parameters()]
    ManualStep(vae, CPU, unreachable, Product)(x, noise(), 1.0, False)
    for w, grad_w in zip(vae.parameters(), expected, strict=True):
        np.testing.assert_allclose(w.grad, grad_w, rtol=0, atol=2e-4 * grad_w.abs().max().item() + 1e-12)
    assert not vae.encoder.z.bias.grad[n : n + 2].any()
    assert not vae.encoder.library.bias.grad[1]


@pytest.mark.parametrize("product", [Product, BFloat16Product])
def test_what_is_out_of_range_goes_to_autograd_and_the_next_step_comes_back(product):
    counts = small_counts()
    vae = a_vae(counts)
    adam = Adam(list(vae.parameters()), clip=50.0)
    asked = []
    by_hand = ManualStep(vae, CPU, lambda *arguments: asked.append(1) or Autograd(vae)(*arguments), product)
    x = counts.minibatch(slice(0, 20))
    kept = vae.decoder.dropout.bias.detach().clone()
    with torch.no_grad():
        vae.decoder.dropout.bias[0] = -100.0  # e^100 is too large for float32
    by_hand(x, noise(), 1.0, False)
    assert asked == [1]
    found = [w.grad.clone() for w in vae.parameters()]
    assert all(torch.isfinite(grad_w).all() for grad_w in found)
    move(adam, 0.0)
    with torch.no_grad():
        vae.decoder.dropout.bias.copy_(kept)
    by_hand(x, noise(), 1.0, False)
    assert asked == [1]
    assert all(w.grad is place for w, place in zip(vae.parameters(), adam.places, strict=True))
    compare(vae, x, rtol=ROUNDED if product is BFloat16Product else 2e-4, product=product)


@pytest.mark.parametrize("product", [Product, BFloat16Product])
def test_no_array_of_genes_is_made_twice(monkeypatch, product):
    """From the second step on, the large arrays are those of the first."""
    counts = small_counts()
    vae, made = a_vae(counts), []
    empty = torch.empty
    monkeypatch.setattr(workspace.torch, "empty", lambda *shape, **k: made.append(shape) or empty(*shape, **k))
    by_hand = ManualStep(vae, CPU, unreachable, product)
    by_hand(counts.minibatch(slice(0, 20)), noise(), 1.0, False)
    assert (20 * counts.n_genes + 2 * APART,) in made
    made.clear()
    by_hand(counts.minibatch(slice(20, 39)), noise(), 1.0, False)
    n_noise = -(-19 * vae.architecture.n_hidden // 4)
    assert made == [(n_noise,)]  # of dropout
