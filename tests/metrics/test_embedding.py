"""Scores of an embedding: known answers, brute force on small data, sampling, and what the errors say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy

from sccvae import metrics

BY_LABEL = [metrics.knn_accuracy, metrics.silhouette_label, metrics.graph_connectivity, metrics.kmeans_ari_nmi]


@pytest.fixture
def apart():
    """Three types far apart, two batches mixed within each."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["B", "T", "NK"], 200)
    centres = 100 * np.eye(3)[np.repeat([0, 1, 2], 200)]
    return centres + rng.normal(size=(600, 3)), labels, rng.choice(["10x", "plates"], 600)


def test_separated_types_and_mixed_batches(apart):
    z, labels, batches = apart
    scores = metrics.embedding_scores(z, labels=labels, batches=batches)
    assert scores["knn_accuracy"] == 1
    assert scores["kmeans_ari"] == 1
    assert scores["kmeans_nmi"] == pytest.approx(1)
    assert scores["graph_connectivity"] == 1
    assert scores["silhouette_label"] > 0.98
    assert scores["silhouette_batch"] > 0.95
    assert 0.97 < scores["batch_entropy"] <= 1
    assert all(type(score) is float for score in scores.values())


def test_disjoint_batches(apart):
    z, labels, batches = apart
    torn = z + 1000 * (batches == "10x")[:, None]
    assert metrics.batch_entropy(torn, batches) == 0
    larger = [
        max(np.mean(batches[labels == label] == batch) for batch in ("10x", "plates")) for label in ["B", "T", "NK"]
    ]
    assert metrics.graph_connectivity(torn, labels) == pytest.approx(np.mean(larger))
    assert metrics.silhouette_batch(torn, labels, batches) < 0.01
    assert metrics.knn_accuracy(torn, labels) == 1


def test_labels_without_relation(apart):
    z, _, batches = apart
    assert metrics.knn_accuracy(z, batches) == pytest.approx(0.5, abs=0.08)
    assert metrics.silhouette_label(z, batches) == pytest.approx(0.5, abs=0.01)
    ari, nmi = metrics.kmeans_ari_nmi(z, batches)
    assert abs(ari) < 0.02
    assert nmi < 0.02


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.9, 0.1], [0.6, 0.3, 0.1]])
def test_batch_entropy_of_random_neighbours(shares):
    """Mixed batches of any size score near 1; what is missing is the known bias of an entropy of k draws."""
    rng = np.random.default_rng(1)
    z, batches, k = rng.normal(size=(4000, 2)), rng.choice(len(shares), 4000, p=shares), 100
    entropy = -np.sum(np.multiply(shares, np.log(shares)))
    expected = 1 - (len(shares) - 1) / (2 * k) / entropy
    assert metrics.batch_entropy(z, batches, k=k) == pytest.approx(expected, abs=0.01)


def test_batch_entropy_by_hand():
    # Two neighbours each: of cells 0, 1, 2 the neighbours are 12, 02, 01; 3, 4, 5 likewise.
    z = np.array([[0.0], [1.0], [2.1], [50.0], [51.0], [52.1]])
    batches = ["a", "a", "b", "b", "b", "b"]
    local = np.log(2) * 2 / 6  # of cells 0 and 1, half and half; the others see one batch
    whole = -(2 / 6 * np.log(2 / 6) + 4 / 6 * np.log(4 / 6))
    assert metrics.batch_entropy(z, batches, k=2) == pytest.approx(local / whole)


def test_batch_mixing_entropy_of_perfectly_mixed_batches():
    """51 cells in each place, 17 of each of 3 batches: a cell's 50 neighbours are the others, 16, 17 and 17."""
    places = np.repeat(np.arange(12.0), 51)[:, None] * 1000
    batches = np.tile(np.repeat(["a", "b", "c"], 17), 12)
    exact = entropy([16, 17, 17])
    mean, sd = metrics.batch_mixing_entropy(places, batches)
    assert mean == pytest.approx(exact, rel=1e-12)
    assert sd == pytest.approx(0, abs=1e-12)
    assert exact == pytest.approx(np.log(3), abs=5e-4)


def test_batch_mixing_entropy_of_separated_batches(apart):
    z, _, batches = apart
    assert metrics.batch_mixing_entropy(z + 1000 * (batches == "10x")[:, None], batches) == (0, 0)


def test_batch_mixing_entropy_is_a_bootstrap_of_the_mean_over_cells(apart):
    z, _, batches = apart
    distances = np.linalg.norm(z[:, None] - z, axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1)[:, :50]
    of_cells = np.array([entropy([(batches[row] == b).sum() for b in ("10x", "plates")]) for row in nearest])
    mean, sd = metrics.batch_mixing_entropy(z, batches, n_pools=400)
    assert mean == pytest.approx(of_cells.mean(), abs=4 * of_cells.std() / np.sqrt(400 * 100))
    assert sd == pytest.approx(of_cells.std() / 10, rel=0.15)
    assert metrics.batch_mixing_entropy(z, batches, seed=1) != metrics.batch_mixing_entropy(z, batches)
    assert metrics.batch_mixing_entropy(z, batches, seed=1) == metrics.batch_mixing_entropy(z, batches, seed=1)
    assert np.isnan(metrics.batch_mixing_entropy(z, batches, n_pools=1)[1])
    # Divided by what can be reached, it is `batch_entropy`.
    whole = entropy([(batches == b).mean() for b in ("10x", "plates")])
    assert metrics.batch_entropy(z, batches) == pytest.approx(of_cells.mean() / whole)


def test_knn_accuracy_against_brute_force():
    rng = np.random.default_rng(2)
    z, labels = rng.normal(size=(300, 3)), rng.integers(3, size=300)
    z[:, 0] += labels
    distances = np.linalg.norm(z[:, None] - z, axis=2)
    np.fill_diagonal(distances, np.inf)
    right = 0
    for cell in range(300):
        nearest = labels[np.argsort(distances[cell])[:7]]
        votes = np.bincount(nearest, minlength=3)
        tied = np.flatnonzero(votes == votes.max())
        if len(tied) == 1:
            right += tied[0] == labels[cell]
        else:
            ranks = [np.flatnonzero(nearest == label).sum() for label in tied]
            right += tied[np.argmin(ranks)] == labels[cell]
    assert metrics.knn_accuracy(z, labels, k=7) == pytest.approx(right / 300, abs=1e-9)


def test_cells_do_not_vote_for_themselves():
    # All cells in one place: a vote that counted the cell itself could still be right.
    assert metrics.knn_accuracy([[0.0], [0.0]], ["T", "B"], k=1) == 0


def test_silhouettes_by_hand():
    z = [[0.0], [0.0], [10.0], [10.0], [20.0]]
    assert metrics.silhouette_label(z[:4], ["a", "a", "b", "b"]) == 1
    assert metrics.silhouette_batch(z[:4], ["T"] * 4, ["a", "a", "b", "b"]) == 0
    assert metrics.silhouette_batch(z[:4], ["T"] * 4, ["a", "b", "a", "b"]) == pytest.approx(0.5)
    # A label of one batch is left out.
    assert metrics.silhouette_batch([*z[:4], [10.0]], [*"TTTTB"], [*"aabba"]) == 0


def test_silhouette_batch_without_shared_labels():
    assert np.isnan(metrics.silhouette_batch(np.eye(4), [*"TTBB"], [*"aabb"]))


def test_graph_connectivity_by_hand():
    # Label T lies in pieces of 3 and 2 cells, label B in one of 3.
    z = [[0.0], [1.0], [2.0], [100.0], [101.0], [200.0], [201.0], [202.0]]
    assert metrics.graph_connectivity(z, [*"TTTTTBBB"], k=1) == pytest.approx((3 / 5 + 1) / 2)


@pytest.mark.parametrize("score", BY_LABEL)
def test_kinds_of_labels(apart, score):
    z, labels, _ = apart
    codes, _ = pd.factorize(labels)
    series = pd.Series(labels, index=np.arange(600)[::-1])  # scores go by position: an index means nothing
    expected = score(z, labels)
    for same in (list(labels), series, series.astype("category"), pd.Categorical(labels), codes, codes + 0.5):
        assert score(z, same) == pytest.approx(expected)
    assert score(pd.DataFrame(z), labels) == expected


@pytest.mark.parametrize("score", BY_LABEL)
def test_order_of_cells_means_nothing(apart, score):
    z, labels, _ = apart
    order = np.random.default_rng(3).permutation(600)
    assert score(z[order], labels[order]) == pytest.approx(score(z, labels))


def test_sampling():
    rng = np.random.default_rng(4)
    z, labels = rng.normal(size=(2000, 2)), rng.integers(2, size=2000)
    z[:, 0] += 2 * labels
    sampled = [metrics.knn_accuracy(z, labels, max_cells=500, seed=seed) for seed in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert sampled[0] == pytest.approx(metrics.knn_accuracy(z, labels, max_cells=None), abs=0.06)
    assert metrics.knn_accuracy(z, labels, max_cells=2000) == metrics.knn_accuracy(z, labels, max_cells=None)


def test_random_state_is_left_alone(apart):
    before = np.random.get_state()  # noqa: NPY002
    metrics.embedding_scores(apart[0], labels=apart[1], batches=apart[2], max_cells=300)
    assert all(np.array_equal(a, b) for a, b in zip(before, np.random.get_state(), strict=True))  # noqa: NPY002


def test_embedding_scores_are_those_of_the_functions(apart):
    z, labels, batches = apart
    labels = np.where(np.random.default_rng(5).random(600) < 0.2, "T", labels)
    ari, nmi = metrics.kmeans_ari_nmi(z, labels)
    assert metrics.embedding_scores(z, labels=labels, batches=batches) == {
        "knn_accuracy": metrics.knn_accuracy(z, labels),
        "kmeans_ari": ari,
        "kmeans_nmi": nmi,
        "graph_connectivity": metrics.graph_connectivity(z, labels),
        "silhouette_label": metrics.silhouette_label(z, labels),
        "batch_entropy": metrics.batch_entropy(z, batches),
        "silhouette_batch": metrics.silhouette_batch(z, labels, batches),
    }


def test_embedding_scores_that_apply(apart):
    z, labels, batches = apart
    assert set(metrics.embedding_scores(z, batches=batches)) == {"batch_entropy"}
    assert "batch_entropy" not in metrics.embedding_scores(z, labels=labels)
    assert "batch_entropy" not in metrics.embedding_scores(z, labels=labels, batches=["one"] * 600)
    assert "silhouette_label" not in metrics.embedding_scores(z, labels=["one"] * 600)


def test_errors(apart):
    z, labels, batches = apart
    with pytest.raises(ValueError, match="labels has 599 values but z has 600 cells"):
        metrics.knn_accuracy(z, labels[1:])
    with pytest.raises(ValueError, match="batches has 10 values but z has 600 cells"):
        metrics.silhouette_batch(z, labels, batches[:10])
    with pytest.raises(ValueError, match="k is 600 for 600 cells; expected 1 to 599"):
        metrics.batch_entropy(z, batches, k=600)
    with pytest.raises(ValueError, match="batches has one value only"):
        metrics.batch_entropy(z, ["one"] * 600)
    with pytest.raises(ValueError, match="labels has 1 different values for 600 cells"):
        metrics.silhouette_label(z, ["one"] * 600)
    with pytest.raises(ValueError, match="pass labels"):
        metrics.embedding_scores(z)
    with pytest.raises(ValueError, match=r"z has shape \(600,\)"):
        metrics.knn_accuracy(z[:, 0], labels)
    z[7, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite values in 1 of 600 cells, first in cell 7"):
        metrics.knn_accuracy(z, labels)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_missing_labels(apart, missing):
    labels = [missing if i == 5 else label for i, label in enumerate(apart[1])]
    with pytest.raises(ValueError, match="labels misses 1 of 600 values, first of cell 5"):
        metrics.knn_accuracy(apart[0], labels)


def test_series_are_matched_by_name(apart):
    z, labels, batches = apart
    names = [f"cell{i}" for i in range(600)]
    named, other = pd.DataFrame(z, index=names), np.random.default_rng(0).permutation(600)
    labels, batches = pd.Series(labels, index=names), pd.Series(batches, index=names)
    expected = metrics.embedding_scores(z, labels=labels, batches=batches)
    found = metrics.embedding_scores(named, labels=labels.iloc[other], batches=batches.iloc[other[::-1]])
    assert found == expected
    assert metrics.embedding_scores(z, labels=labels, batches=batches.reset_index(drop=True)) == expected
    with pytest.raises(ValueError, match="labels and batches are Series with different indices, and z has none"):
        metrics.silhouette_batch(z, labels, batches.iloc[other])
    for wrong in (labels.iloc[1:], labels.reset_index(drop=True), labels.rename(str.upper)):
        with pytest.raises(ValueError, match="labels is a Series whose index is not the names of the cells"):
            metrics.knn_accuracy(named, wrong)
