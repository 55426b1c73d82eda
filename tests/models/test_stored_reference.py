"""A reference in a folder, saved in December 2026 by the code after 0.1.0, is read by every later version.

`reference/model` was made from 160 simulated cells of two batches and three kinds, 30 genes:
`SCCVAE(cells, batch_key="batch", labels_key="kind", n_hidden=8, n_latent=3, prior_components=4)`,
`train(12, batch_size=3, early_stopping=False)`, `save(folder, with_reference=True)`. `reference/query.json` has 24
cells of a third batch, some of a fourth kind, and what `load_query_data(query, folder)` and `predict()` gave for them:
labels, probabilities, novelty, embedding. It also has the mean of the reference's embedding. Do not make the folder
anew: a change that it does not survive breaks the folders of users.
"""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import sccvae

FOLDER = Path(__file__).parent / "reference"
STORED = json.loads((FOLDER / "query.json").read_text(encoding="utf-8"))


@pytest.fixture
def query() -> ad.AnnData:
    counts = sp.csr_matrix(np.array(STORED["counts"], dtype=np.float32))
    obs = pd.DataFrame({"batch": STORED["obs"]["batch"]}, index=[f"cell{i}" for i in range(24)])
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene{g}" for g in range(30)]))


def test_new_cells_get_the_labels_that_they_got(query):
    mapped = sccvae.SCCVAE.load_query_data(query, FOLDER / "model")
    assert mapped.batches == ("b0", "b1", "b2")
    assert mapped._calibration.batches == ()  # saved before thresholds of whole batches
    np.testing.assert_allclose(mapped.get_latent_representation(), STORED["embedding"], atol=2e-3)
    table = mapped.predict()
    assert table["label"].astype(str).tolist() == STORED["label"]
    np.testing.assert_allclose(mapped.predict(soft=True), STORED["probabilities"], atol=2e-3)
    np.testing.assert_allclose(table["novelty"], STORED["novelty"], atol=0.02)  # steps of one cell in 160
    kind = np.array(STORED["obs"]["kind"])
    known = kind != "D"
    assert (table["label"] == kind)[known].all()
    assert table["accepted"][known].mean() > table["accepted"][~known].mean()


def test_the_cells_of_the_reference_are_there(query):
    mapped = sccvae.SCCVAE.load_query_data(query, FOLDER / "model")
    mapped.train(progress_bar=False)
    kept = mapped.reference_cells()
    assert kept.n_obs == 160
    assert set(kept.obs["kind"]) == {"A", "B", "C"}
    assert set(kept.obs["batch"]) == {"b0", "b1"}
    np.testing.assert_allclose(kept.obsm["X_sccvae"].mean(0), STORED["reference_mean"], atol=1e-3)
    by_vote = mapped.predict(reference_labels=kept.obs["kind"].astype(str).to_numpy())
    known = np.array(STORED["obs"]["kind"]) != "D"
    assert (by_vote["label"] == np.array(STORED["obs"]["kind"]))[known].mean() > 0.9


def test_the_folder_is_small_and_has_no_counts():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 100_000
    assert sorted(path.name for path in files) == ["model.json", "query.json", "weights.safetensors"]
