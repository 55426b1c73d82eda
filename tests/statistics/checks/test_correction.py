import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sccvae.statistics.checks import correction as checks

ALONE = 5  # the kind that is in the first batch alone
KINDS = np.repeat([*range(6), *range(5)], 80)
BATCHES = np.repeat([0, 1], [480, 400])


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(0)
    rate = rng.gamma(1.0, 1.0, 90)[None].repeat(6, 0)
    for kind in range(6):
        rate[kind, 15 * kind : 15 * kind + 10] *= 6
    shift = np.exp(rng.normal(0, 0.3, (2, 90)))
    return sp.csr_matrix(rng.poisson(rate[KINDS] * shift[BATCHES]).astype(float))


@pytest.fixture(scope="module")
def logged(counts):
    return checks.log_profiles(counts)


@pytest.fixture(scope="module")
def clusters(counts):
    return checks.cluster_batches(checks.halves(counts, 0), BATCHES, seed=0)


def embedded(kinds, seed=1):
    """An embedding in which cells of a kind are together, whatever their batch."""
    rng = np.random.default_rng(seed)
    return 5 * np.eye(6)[kinds] + rng.normal(0, 0.5, (len(kinds), 6))


def in_words(table):
    table = table.assign(markers=1.0)
    examples = [f"'gene_{k}'" for k in range(len(table))]
    return {c.name: c for c in checks.checks_of_correction(table, ["first", "second"], examples, 1.5)}


def test_profiles_are_those_of_scanpy(logged):
    import scanpy as sc

    x = np.random.default_rng(1).poisson(1.0, (50, 20)).astype(float)
    expected = sc.AnnData(x.copy())
    sc.pp.normalize_total(expected)
    sc.pp.log1p(expected)
    assert np.allclose(checks.log_profiles(sp.csr_matrix(x)).toarray(), expected.X)


def test_clusters_are_of_one_batch_and_of_one_kind(clusters):
    assert set(clusters.batch) == {0, 1}
    for number, batch in enumerate(clusters.batch):
        cells = clusters.label == number
        assert set(BATCHES[cells]) == {batch}
        assert max(np.bincount(KINDS[cells])) > 0.9 * cells.sum()
    few = sp.csr_matrix(np.eye(50))
    small = checks.cluster_batches((few, few), np.zeros(50, dtype=int), seed=0)
    assert len(small.batch) == 0
    assert (small.label == -1).all()


def test_a_good_embedding_passes(logged, clusters):
    table = checks.compared(logged, BATCHES, embedded(KINDS), clusters)
    assert all(check.ok for check in in_words(table).values())
    shared = table[table["mixing"] > 0.5]
    assert (shared["alike"] > 0.8).all()


def test_a_kind_of_one_batch_that_was_drawn_to_another_is_found_by_its_profile(logged, clusters):
    table = checks.compared(logged, BATCHES, embedded(np.where(KINDS == ALONE, 1, KINDS)), clusters)
    found = in_words(table)["kinds_drawn"]
    drawn = (table["mixing"] > checks.MIXED) & (table["alike"] < checks.ALIKE)
    kinds = [np.bincount(KINDS[clusters.label == k]).argmax() for k in np.flatnonzero(drawn)]
    assert kinds
    assert set(kinds) == {ALONE}
    assert not found.ok
    assert "in batch 'first'" in found.sentence
    assert "batch_mixing is 1.5" in found.sentence


def test_an_embedding_without_the_kinds_loses_the_neighbours(logged, clusters):
    table = checks.compared(logged, BATCHES, embedded(np.zeros(880, dtype=int)), clusters)
    found = in_words(table)["neighbours_kept"]
    assert not found.ok
    assert found.value < 0.6


def test_markers_vanish_from_expression_without_differences(logged, clusters):
    plain = logged.copy()
    plain.data = np.expm1(plain.data)
    means = np.stack([np.asarray(plain[clusters.label == k].mean(0)).ravel() for k in range(len(clusters.batch))])
    assert (checks.markers_kept(logged, clusters, means) == 1).all()
    flat = np.repeat(means.mean(0)[None], len(means), axis=0)
    assert (checks.markers_kept(logged, clusters, flat) == 0).all()


def test_examples_are_the_markers_of_a_cluster(logged, clusters):
    genes = pd.Index([f"gene_{k}" for k in range(90)])
    for number, words in enumerate(checks.examples_of(logged, clusters, genes)):
        kind = np.bincount(KINDS[clusters.label == number]).argmax()
        assert all(
            15 * kind <= int(word.strip("'").removeprefix("gene_")) < 15 * kind + 10 for word in words.split(", ")
        )


def test_a_cluster_is_drawn_if_it_is_another_kind_or_less_alike_and_lost_its_neighbours():
    rows = {"mixing": [0.9, 0.9, 0.9, 0.9, 0.1], "alike": [0.6, 0.7, 0.7, 0.9, 0.2], "kept": [1.0, 0.5, 0.9, 0.2, 0.2]}
    assert checks.is_drawn(pd.DataFrame(rows)).tolist() == [True, True, False, False, False]
