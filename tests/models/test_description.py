"""How a model describes itself."""

from __future__ import annotations

import pandas as pd
import pytest
from helpers import EVERY_OPTION

import sccvae
from sccvae.io import storage
from sccvae.models.description import understood


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


def test_the_calibration_of_labels_is_checked(make_adata, tmp_path):
    adata = make_adata()
    model = sccvae.SCCVAE(adata, batch_key="batch", labels_key="kind", n_hidden=8, n_latent=2)
    model.train(1, progress_bar=False)
    model.save(tmp_path / "model")
    with storage.opened(tmp_path / "model", "SCCVAE") as saved:
        description = saved.description
    calibration = description["calibration"]
    assert understood(description, "SCCVAE").calibration == model._calibrated()
    assert len(calibration["batches"]) == len(calibration["scores"]) > 0
    for change, text in (
        ({"batches": calibration["batches"][1:]}, "batches of .* scores; expected one for each"),
        ({"temperature": 0.0}, "calibration.temperature is 0.0; expected more than 0"),
    ):
        with pytest.raises(ValueError, match=text):
            understood(description | {"calibration": calibration | change}, "SCCVAE")
    before = {name: value for name, value in calibration.items() if name != "batches"}
    assert understood(description | {"calibration": before}, "SCCVAE").calibration.batches == ()


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
