"""Binary images: digits."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from helpers import real_adata
from sklearn.datasets import load_digits

import sccvae
from sccvae import DenoisingAutoencoder
from sccvae.corruption import (
    SaltAndPepper,
)

QUIET = {"progress_bar": False}


@pytest.fixture(scope="module")
def digits():
    """1,797 handwritten digits of 8 x 8 pixels: grey in X, black and white in a layer."""
    images = load_digits()
    adata = real_adata(images.data / 16)
    adata.layers["binary"] = (adata.X > 0.5).astype(np.float32)
    return adata


@pytest.mark.parametrize(("likelihood", "layer"), [("bernoulli", "binary"), ("normal", None)])
def test_sccvae_is_the_plain_variational_autoencoder_of_digits(digits, likelihood, layer):
    model = sccvae.SCCVAE(digits, layer=layer, gene_likelihood=likelihood, n_latent=8, n_hidden=128)
    model.train(15, batch_size=100, **QUIET)
    elbo = model.history.query("split == 'validation'")["elbo"].to_numpy()
    data = digits.X if layer is None else digits.layers[layer]
    frequencies = np.clip(data.mean(0), 1e-3, 1 - 1e-3)
    if likelihood == "bernoulli":  # without codes: each pixel by itself
        alone = (data * np.log(frequencies) + (1 - data) * np.log(1 - frequencies)).sum(1).mean()
        assert elbo[-1] > alone + 3
    assert elbo[-1] > elbo[0]
    new = model.generate(20)
    assert isinstance(new, ad.AnnData)
    assert new.shape == (20, 64)
    assert likelihood == "normal" or set(np.unique(new.X.toarray())) == {0, 1}
    error = ((model.get_reconstruction() - data) ** 2).mean()
    assert error < 0.8 * data.var(0).mean()


def test_denoising_restores_digits_that_salt_and_pepper_has_hit(digits):
    model = DenoisingAutoencoder(
        digits, layer="binary", gene_likelihood="bernoulli", corruption=SaltAndPepper(0.4), n_hidden=64
    )
    model.train(10, batch_size=100, **QUIET)
    hit = ad.AnnData(model.corrupt(seed=1), var=digits.var, layers={"binary": model.corrupt(seed=1)})
    wrong = np.abs(hit.X.toarray() - digits.layers["binary"]).mean()
    restored = np.abs(np.round(model.get_reconstruction(hit)) - digits.layers["binary"]).mean()
    assert abs(wrong - 0.2) < 0.01
    assert restored < 0.75 * wrong
