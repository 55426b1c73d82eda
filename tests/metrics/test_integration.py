"""Tables of scores: each column against the function, or the package, that it names; known answers; what errors say."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import silhouette_score

from sccvae import metrics, simulate, tl
from sccvae.metrics import integration

NEEDS_SCIB = "compares with scib-metrics, which is not installed here"


@pytest.fixture(scope="module")
def cells():
    """Simulated cells with two embeddings: the truth, and the truth torn apart by batch."""
    adata = simulate.simulate(400, 30, n_batches=3, n_types=4, n_latent=5, keep_truth=False, seed=1)
    adata.obsm["truth"] = adata.obsm["z"]
    adata.obsm["torn"] = adata.obsm["z"] + 50 * adata.obs["batch"].cat.codes.to_numpy()[:, None]
    return adata


@pytest.fixture(scope="module")
def scores(cells):
    return tl.score_integration(cells, "batch", "cell_type", use_rep=["truth", "torn"], scib=False)


def test_own_scores_are_those_of_metrics(cells, scores):
    assert list(scores.index) == ["truth", "torn"]
    labels, batches = cells.obs["cell_type"], cells.obs["batch"]
    for name, row in scores.iterrows():
        z = cells.obsm[name]
        for score, value in metrics.embedding_scores(z, labels=labels, batches=batches).items():
            assert row[score] == value, score
        assert (row["mixing_entropy"], row["mixing_entropy_sd"]) == metrics.batch_mixing_entropy(z, batches)
        assert row["silhouette_label"] == pytest.approx((silhouette_score(z, labels) + 1) / 2)
        biology = [row[s] for s in ("knn_accuracy", "silhouette_label", "kmeans_ari", "kmeans_nmi")]
        mixing = [row[s] for s in ("silhouette_batch", "batch_entropy", "graph_connectivity")]
        assert row["biology"] == pytest.approx(np.mean(biology))
        assert row["mixing"] == pytest.approx(np.mean(mixing))
        assert row["total"] == pytest.approx(0.6 * np.mean(biology) + 0.4 * np.mean(mixing))


def test_known_answers(scores):
    """True z: batches are mixed by construction; torn by batch, no neighbourhood has two."""
    assert scores.loc["truth", "mixing_entropy"] == pytest.approx(np.log(3), abs=0.06)
    assert scores.loc["truth", "batch_entropy"] > 0.95
    assert scores.loc["torn", ["mixing_entropy", "mixing_entropy_sd", "batch_entropy"]].tolist() == [0, 0, 0]
    assert scores.loc["torn", "graph_connectivity"] < 0.5
    assert (scores.loc["truth", ["mixing", "total"]] > scores.loc["torn", ["mixing", "total"]] + 0.2).all()


def test_each_column_says_what_computed_it(scores):
    said = scores.attrs["implementation"]
    assert list(said) == list(scores.columns)
    assert all(text.startswith("sccvae ") and "scikit-learn" in text for text in said.values())
    assert not [column for column in scores if column.startswith("scib_")]


def test_nothing_is_written_and_seeds_are_kept(cells, scores, fingerprint):
    before = fingerprint(cells)
    again = tl.score_integration(cells, "batch", "cell_type", use_rep=["truth", "torn"], scib=False)
    assert fingerprint(cells) == before
    pd.testing.assert_frame_equal(again, scores)


def test_a_sample_is_scored(cells):
    few = tl.score_integration(cells, "batch", "cell_type", use_rep="truth", scib=False, max_cells=200, seed=3)
    kept = np.sort(np.random.default_rng(3).choice(400, 200, replace=False))
    part = tl.score_integration(cells[kept], "batch", "cell_type", use_rep="truth", scib=False, max_cells=None, seed=3)
    pd.testing.assert_frame_equal(few, part)


def test_errors(cells, monkeypatch):
    with pytest.raises(KeyError, match=r"adata.obs has no column 'bach'\. Did you mean 'batch'"):
        tl.score_integration(cells, "bach", "cell_type", use_rep="truth")
    with pytest.raises(KeyError, match=r"'X_pca' is not in adata.obsm, which has \['z', 'truth', 'torn'\]"):
        tl.score_integration(cells, "batch", "cell_type")
    one = cells.copy()
    one.obs["batch"] = "one"
    with pytest.raises(ValueError, match="batches has 1 different values; expected at least two"):
        tl.score_integration(one, "batch", "cell_type", use_rep="truth")
    one.obs["cell_type"] = one.obs["cell_type"].cat.remove_categories("type_0")
    with pytest.raises(ValueError, match=r"has no value for \d+ of 400 cells.*leave those cells out"):
        tl.score_integration(one, "batch", "cell_type", use_rep="truth")
    with pytest.raises(ValueError, match="embeddings is empty; expected at least one"):
        tl.score_integration(cells, "batch", "cell_type", use_rep=[])
    monkeypatch.setattr(integration, "_installed", lambda: False)
    with pytest.raises(ImportError, match="scib=True needs scib-metrics: pip install scib-metrics"):
        tl.score_integration(cells, "batch", "cell_type", use_rep="truth", scib=True)


@pytest.mark.skipif(find_spec("scib_metrics") is not None, reason="scib-metrics is installed: see the tests below")
def test_without_scib_metrics_own_scores_are_given(cells, scores):
    pd.testing.assert_frame_equal(tl.score_integration(cells, "batch", "cell_type", use_rep=["truth", "torn"]), scores)


@pytest.fixture(scope="module")
def scib(cells):
    pytest.importorskip("scib_metrics", reason=NEEDS_SCIB)
    before = cells.obsm["torn"]
    columns = (cells.obs["cell_type"], cells.obs["batch"])
    reps = {name: cells.obsm[name] for name in ("truth", "torn")}
    return integration.compare_embeddings(reps, *columns, unintegrated=before)


def test_scib_scores_are_those_of_scib_metrics(cells, scores, scib):
    """Beside the own scores, which stay as they were."""
    import scib_metrics

    pd.testing.assert_frame_equal(scib[list(scores.columns)], scores)
    labels, batches = cells.obs["cell_type"].to_numpy(), cells.obs["batch"].to_numpy()
    for name, row in scib.iterrows():
        z = np.asarray(cells.obsm[name], dtype=np.float32)
        near = scib_metrics.nearest_neighbors.pynndescent(z, n_neighbors=90, random_state=0, n_jobs=1)
        assert row["scib_silhouette_label"] == pytest.approx(scib_metrics.silhouette_label(z, labels), abs=1e-5)
        assert row["scib_bras"] == pytest.approx(scib_metrics.bras(z, labels, batches), abs=1e-5)
        assert row["scib_ilisi"] == pytest.approx(scib_metrics.ilisi_knn(near, batches), abs=1e-5)
        biology = ["isolated_labels", "kmeans_nmi", "kmeans_ari", "silhouette_label", "clisi"]
        mixing = ["bras", "ilisi", "kbet", "graph_connectivity", "pcr"]
        assert row["scib_biology"] == pytest.approx(row[[f"scib_{s}" for s in biology]].mean())
        assert row["scib_mixing"] == pytest.approx(row[[f"scib_{s}" for s in mixing]].mean())
        assert row["scib_total"] == pytest.approx(0.6 * row["scib_biology"] + 0.4 * row["scib_mixing"])
    assert scib.loc["truth", "scib_total"] > scib.loc["torn", "scib_total"]


def test_scib_columns_say_so(scib):
    said = scib.attrs["implementation"]
    assert list(said) == list(scib.columns)
    assert all(said[c].startswith("scib-metrics ") == c.startswith("scib_") for c in scib)


def test_own_and_scib_scores_agree_where_they_compute_the_same(scib):
    for own, theirs in [("silhouette_label", "scib_silhouette_label"), ("kmeans_nmi", "scib_kmeans_nmi")]:
        np.testing.assert_allclose(scib[own], scib[theirs], atol=0.08)


def test_without_components_before_correction_one_score_is_left_out(cells):
    pytest.importorskip("scib_metrics", reason=NEEDS_SCIB)
    table = tl.score_integration(cells, "batch", "cell_type", use_rep="truth")
    assert "scib_pcr" not in table
    assert table.notna().all(axis=None)


def test_series_are_matched_by_name_with_every_embedding():
    rng = np.random.default_rng(0)
    names = [f"cell{i}" for i in range(120)]
    labels, batches = pd.Series(np.repeat(["a", "b"], 60), index=names), pd.Series(["x", "y"] * 60, index=names)
    z = pd.DataFrame(rng.normal(size=(120, 2)) + np.repeat([0, 9], 60)[:, None], index=names)
    expected = integration.compare_embeddings({"z": z.to_numpy()}, labels.to_numpy(), batches.to_numpy(), scib=False)
    found = integration.compare_embeddings({"z": z}, labels.iloc[::-1], batches, scib=False)
    pd.testing.assert_frame_equal(found, expected)
    with pytest.raises(ValueError, match="embeddings has DataFrames with different indices"):
        integration.compare_embeddings({"z": z, "other": z.iloc[::-1]}, labels, batches, scib=False)
