"""Methods of models that `tl` and `pl` are written with, as a third party's functions would be."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

import sccvae

QUICK = {"max_epochs": 2, "progress_bar": False}


@pytest.fixture(scope="module")
def adata():
    return sccvae.simulate.simulate(120, 30, seed=0)


@pytest.fixture(scope="module", params=["nb", "zinb", "poisson"])
def model(adata, request):
    model = sccvae.SCCVAE(adata, batch_key="batch", gene_likelihood=request.param, n_hidden=8, n_latent=3)
    model.train(**QUICK)
    return model


def test_moments_are_those_of_the_distribution_of_the_counts(adata, model):
    genes, cells = ["gene_4", "gene_2"], np.arange(100, 20, -1)
    mean, variance = model.moments_of(genes, indices=cells)
    assert mean.shape == variance.shape == (80, 2)
    assert mean.dtype == variance.dtype == np.float32
    said = model.get_likelihood_parameters(indices=cells)
    mu, inverse = said["mean"][:, [4, 2]].astype(float), 1 / said.get("dispersions", np.full((80, 30), np.inf))
    off = said.get("dropout", np.zeros((80, 30)))[:, [4, 2]]
    inverse = inverse[:, [4, 2]]
    np.testing.assert_allclose(mean, (1 - off) * mu, rtol=1e-4)
    np.testing.assert_allclose(variance, (1 - off) * mu * (1 + mu * (inverse + off)), rtol=1e-4)
    np.testing.assert_array_equal(model.moments_of(genes, adata)[0][cells], model.moments_of(genes)[0][cells])


def test_moments_of_what_is_not_there(adata, model):
    with pytest.raises((KeyError, ValueError), match="gene_list names"):
        model.moments_of(["gene_x"])
    with pytest.raises(TypeError, match="gene_list is the text 'gene_1'; expected a list of gene names"):
        model.moments_of("gene_1")
    with pytest.raises(RuntimeError, match="not trained yet"):
        sccvae.SCCVAE(adata, n_hidden=8).moments_of(["gene_1"])
    values = adata.copy()
    values.X = np.log1p(values.X.toarray())
    normal = sccvae.SCCVAE(values, gene_likelihood="normal", n_hidden=8)
    normal.train(**QUICK)
    with pytest.raises(ValueError, match="moments_of needs a count likelihood; found gene_likelihood='normal'"):
        normal.moments_of(["gene_1"])


def test_source_of_is_none_for_the_training_data_alone(adata, model):
    assert model.source_of(adata) is model.source_of(adata.copy()) is None
    others = adata[:50].copy()
    assert model.source_of(others) is others
    with pytest.raises(TypeError, match="AnnData"):
        model.source_of(adata.X)


def test_the_dimensions_of_the_latent_space(adata, model):
    assert model.n_latent == 3
    assert sccvae.Autoencoder(adata, n_latent=5).n_latent == 5


def test_the_table_of_methods_has_all_public_ones():
    """At the head of models/sccvae.py, because the class is written in four files."""
    for kind in sccvae.SCCVAE.__mro__[:-1]:
        file = kind.__module__.split(".")[-1]
        rows = re.split(r"\n(?=\w|=)", sys.modules[sccvae.SCCVAE.__module__].__doc__)
        (row,) = [row for row in rows if row.split()[1:2] == [file]]
        known = {name for name in vars(kind) if not name.startswith("_")}
        attributes = {name for name, value in vars(kind).items() if isinstance(value, str | tuple)}
        assert set(re.findall(r"\w+", row)[2:]) == known - attributes
