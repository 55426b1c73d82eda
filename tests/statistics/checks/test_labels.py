"""Labels that do not fit the cells of a batch: agreement, which batches are left out, and what the model says."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

import sccvae
from sccvae.statistics.checks import labels as checks


@pytest.fixture(scope="module")
def cells():
    return sccvae.simulate.simulate(600, 200, n_batches=3, n_types=4, seed=0)


def codes(cells):
    return cells.obs["cell_type"].cat.codes.to_numpy(int), cells.obs["batch"].cat.codes.to_numpy(int)


def test_the_agreement_is_the_kappa_of_cohen():
    rng = np.random.default_rng(0)
    given = rng.integers(4, size=200)
    predicted = np.where(rng.random(200) < 0.6, given, rng.integers(4, size=200))
    assert np.isclose(checks.kappa(predicted, given), cohen_kappa_score(predicted, given))
    assert checks.kappa(given, given) == 1
    assert checks.kappa(given[:0], given[:0]) == 0


def test_labels_of_one_batch_dealt_anew_do_not_fit(cells):
    labels, batches = codes(cells)
    whole = checks.agreement(cells.X, labels, batches, 0)
    assert whole.min() > 0.5
    assert not len(checks.contradicted(whole))
    wrong = labels.copy()
    wrong[batches == 1] = np.random.default_rng(0).permutation(labels[batches == 1])
    found = checks.agreement(cells.X, wrong, batches, 0)
    assert abs(found[1]) < 0.2
    assert list(checks.contradicted(found)) == [1]


def test_other_names_in_one_batch_and_few_cells_are_left_alone(cells):
    labels, batches = codes(cells)
    renamed = np.where(batches == 1, (labels + 1) % 4, labels)
    assert not len(checks.contradicted(checks.agreement(cells.X, renamed, batches, 0)))
    few = np.where((batches == 2) & (np.cumsum(batches == 2) > 40), -1, labels)
    assert np.isnan(checks.agreement(cells.X, few, batches, 0)[2])
    assert not len(checks.contradicted(np.array([0.1, np.nan])))
    assert not len(checks.contradicted(np.array([0.0, 0.1, 0.12])))  # labels that are not about expression
    assert list(checks.contradicted(np.array([0.1, 0.8, 0.3]))) == [0]


def test_a_model_is_trained_without_them_and_says_so(cells):
    adata = cells.copy()
    labels, batches = codes(adata)
    names = adata.obs["cell_type"].cat.categories
    rows = batches == 1
    mixed = labels.copy()
    mixed[rows] = np.random.default_rng(0).permutation(labels[rows])
    adata.obs["given"] = names[mixed]
    with pytest.warns(UserWarning, match=r"'given' in 'batch_1' do not fit the cells: .* trained without them"):
        model = sccvae.SCCVAE(adata, batch_key="batch", labels_key="given")
    assert (model._counts.labels[rows] == -1).all()
    assert np.array_equal(model._counts.labels[~rows], mixed[~rows])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        sccvae.SCCVAE(cells, batch_key="batch", labels_key="cell_type")
