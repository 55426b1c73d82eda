"""Designs of samples and groups: kinds, covariates, and the reasons why one is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sccvae.statistics.samples.design import check_covariates, columns_of, design_of, whitening
from sccvae.statistics.samples.moderated import residuals_of

BETWEEN = np.arange(8), np.repeat([1, 2], 4)
PAIRED = np.repeat(np.arange(5), 2), np.tile([1, 2], 5)


def test_samples_in_one_group_each_have_an_intercept():
    design = design_of(*BETWEEN)
    assert (design.kind, design.degrees, design.n_samples) == ("between", 6, (4, 4))
    np.testing.assert_array_equal(design.nuisance, np.ones((8, 1)))


def test_samples_in_both_groups_are_paired_and_need_no_covariates():
    plain = design_of(*PAIRED)
    adjusted = design_of(*PAIRED, pd.DataFrame({"sex": np.repeat(list("mfmfm"), 2)}))
    assert plain.kind == adjusted.kind == "paired"
    assert plain.degrees == adjusted.degrees == 4
    np.testing.assert_array_equal(plain.nuisance, adjusted.nuisance)


def test_some_samples_in_both_groups_are_correlated():
    sample, group = np.array([0, 0, 1, 1, 2, 3, 4]), np.array([1, 2, 1, 2, 1, 2, 2])
    design = design_of(sample, group)
    assert design.kind == "partly paired"
    rng = np.random.default_rng(0)
    y = rng.standard_normal((5, 4000))[sample] + 0.5 * rng.standard_normal((7, 4000))
    white = whitening(design, residuals_of(y, design))
    covariance = np.cov(white @ y)
    off = covariance - np.diag(np.diag(covariance))
    assert np.abs(off).max() < 0.2 * np.diag(covariance).min()
    assert whitening(design_of(*BETWEEN), y) is None


@pytest.mark.parametrize("group", [[1, 2, 2, 2], [2, 2, 2, 2], [1, 1, 1, 2]])
def test_a_group_without_replicates_is_refused_with_the_reason(group):
    with pytest.raises(ValueError, match=r"group [12] has [01] samples? .*expected at least two.*no p-value exists"):
        design_of(np.arange(4), np.array(group))


def test_covariates_are_indicators_or_standardised_numbers():
    table = pd.DataFrame({"site": list("aabc"), "age": [20.0, 30.0, 40.0, 50.0], "old": [False, False, True, True]})
    columns = columns_of(table)
    assert columns.shape == (4, 4)
    np.testing.assert_array_equal(columns[:, :2], [[0, 0], [0, 0], [1, 0], [0, 1]])
    np.testing.assert_allclose((columns[:, 2].mean(), columns[:, 2].std()), (0, 1), atol=1e-12)


def test_covariates_that_determine_the_groups_are_refused():
    with pytest.raises(ValueError, match=r"covariates 'dose' and the groups are collinear in 8 samples; expected"):
        design_of(*BETWEEN, pd.DataFrame({"dose": [1, 1, 1, 1, 2, 2, 2, 2]}))


def test_covariates_that_leave_no_degree_of_freedom_are_refused():
    sample, group = np.arange(4), np.array([1, 1, 2, 2])
    table = pd.DataFrame({"sex": list("mfmf"), "age": [1.0, 5.0, 2.0, 9.0]})
    with pytest.raises(ValueError, match=r"'sex' and 'age' leave 0 residual degrees|leave 0 residual degrees"):
        design_of(sample, group, table)


def test_covariates_are_constant_within_samples_and_differ_between_them():
    sample = np.array(["a", "a", "b", "b"])
    table = check_covariates(pd.DataFrame({"sex": ["m", "m", "f", "f"]}), sample)
    assert table["sex"].to_dict() == {"a": "m", "b": "f"}
    with pytest.raises(ValueError, match=r"sample 'a' has 2 values of 'sex'; expected one value for each sample"):
        check_covariates(pd.DataFrame({"sex": ["m", "f", "f", "f"]}), sample)
    with pytest.raises(ValueError, match=r"'sex' has the value 'm' in all samples; expected at least two values"):
        check_covariates(pd.DataFrame({"sex": ["m"] * 4}), sample)
