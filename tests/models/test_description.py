"""How a model describes itself."""

from __future__ import annotations

import pandas as pd
import pytest
from helpers import EVERY_OPTION

import sccvae


def test_repr_is_short_and_says_what_the_model_is(adata, model):
    text = repr(model)
    assert text.startswith("SCCVAE on 120 cells, 60 genes, 3 batches ('batch')\n")
    assert "zinb likelihood" in text
    assert "trained for 5 epochs" in text
    assert "not trained: call train()" in repr(sccvae.SCCVAE(adata))
    assert "1 batch\n" in repr(sccvae.SCCVAE(adata))


@pytest.mark.parametrize("name", EVERY_OPTION)
def test_repr_fits_on_a_terminal(layered, fit, name):
    layered.obs["batch_of_the_experiment_with_a_long_name"] = layered.obs["batch"]
    options = dict(EVERY_OPTION[name])
    if "batch_key" in options:
        options["batch_key"] = "batch_of_the_experiment_with_a_long_name"
    lines = repr(fit(layered, **options)).splitlines()
    assert len(lines) <= 8
    assert max(map(len, lines)) <= 100


def test_names_and_description(adata, model):
    assert list(model.gene_names) == list(adata.var_names)
    assert model.batches == ("a", "b", "c")
    assert model.device.type in {"cpu", "cuda"}
    description = model.describe()
    assert set(description) == {"parameters", "history", "versions"}
    assert description["parameters"]["n_latent"] == 4
    assert description["parameters"]["batch_key"] == "batch"
    assert description["versions"]["sccvae"] == sccvae.__version__
    pd.testing.assert_frame_equal(description["history"], model.history)
