"""Cells are chosen by numbers, masks or slices; all else is named, with how to choose."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sccvae.validation.cells import numbers_of_cells

NAMES = pd.Index([f"cell{i}" for i in range(12)])
MASK = np.arange(12) % 3 == 0
CHOSEN = [0, 3, 6, 9]


def chosen(index, names=NAMES):
    return numbers_of_cells(index, "indices", 12, names).tolist()


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ([3, 1, 1], [3, 1, 1]),
        (range(2, 5), [2, 3, 4]),
        (slice(1, None, 5), [1, 6, 11]),
        (slice(None, None, -6), [11, 5]),
        (slice(0, 99), list(range(12))),
        (-1, [11]),
        (np.int8(3), [3]),
        ([-12, -1], [0, 11]),
        ([2.0, 5.0], [2, 5]),
        (np.array([2], dtype="f4"), [2]),
        (np.array([250], dtype="u1") - 245, [5]),
        ([], []),
        (np.zeros((0, 2)), None),
        (np.zeros(12, bool), []),
        (np.where(MASK), CHOSEN),
        ((3, 5), [3, 5]),
        (MASK, CHOSEN),
        (MASK.tolist(), CHOSEN),
        (MASK.astype(object), CHOSEN),
        (np.array(CHOSEN, dtype=object), CHOSEN),
        (pd.array(MASK, dtype="boolean"), CHOSEN),
        (pd.array(CHOSEN, dtype="Int64"), CHOSEN),
        (pd.Series(CHOSEN, index=list("abcd")), CHOSEN),
        (pd.Index(CHOSEN), CHOSEN),
        (pd.Series(MASK, index=NAMES), CHOSEN),
        (pd.Series(MASK, index=NAMES, dtype="boolean"), CHOSEN),
        (pd.Series(MASK, index=NAMES)[::-1], CHOSEN),
        (pd.Series(MASK, index=NAMES, dtype=object).sample(frac=1, random_state=1), CHOSEN),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_clear_is_taken(index, expected):
    if expected is None:
        with pytest.raises(TypeError, match="shape"):
            chosen(index)
    else:
        assert chosen(index) == expected


NAMED = "adata.obs_names.get_indexer"


@pytest.mark.parametrize(
    ("index", "error", "text"),
    [
        (["cell1", "cell2"], TypeError, f"indices has dtype <U5 and shape (2,); expected a mask or numbers of cells. "
                                        f"For names of cells: {NAMED}(indices)."),
        (NAMES[:2], TypeError, f"{NAMED}(indices)."),
        (np.array(["cell1", 2], dtype=object), TypeError, f"{NAMED}(indices)."),
        ("cell1", TypeError, "indices is the text 'cell1'; expected a mask or numbers of cells"),
        (slice("cell1", "cell3"), TypeError, "indices is slice('cell1', 'cell3', None); expected a slice of numbers"),
        ([0.5], TypeError, "indices has dtype float64 and shape (1,); expected a mask or numbers of cells."),
        ([np.nan], TypeError, "indices has dtype float64 and shape (1,)"),
        ([np.inf], TypeError, "indices has dtype float64 and shape (1,)"),
        ([1e300], TypeError, "indices has dtype float64"),
        (12, ValueError, "indices has cell number 12; expected numbers from 0 to 11, for 12 cells."),
        ([0, -13], ValueError, "indices has cell number -13; expected numbers from 0 to 11"),
        ([10**30], ValueError, "indices has a number beyond int64"),
        (np.array([2**64 - 1], dtype="u8"), ValueError, "indices has cell number 18446744073709551615"),
        (MASK[:11], ValueError, "indices is a mask of shape (11,); expected a boolean for each of 12 cells."),
        (MASK[:, None], ValueError, "indices is a mask of shape (12, 1)"),
        (True, ValueError, "indices is a mask of shape ()"),
        (MASK.astype(int), ValueError, "indices has 12 zeros and ones, one for each cell; expected booleans"),
        (MASK.astype(float), ValueError, "indices has 12 zeros and ones"),
        (pd.array([True, None] * 6, dtype="boolean"), ValueError, "indices has no value for 6 of 12 cells"),
        (np.array([True, None] * 6, dtype=object), ValueError, "such as indices.fillna(False)."),
        (pd.Series(MASK), ValueError, "indices is a Series whose index is not the names of the cells"),
        (pd.Series(MASK, index=[*NAMES[1:], "other"]), ValueError, "Pass indices.to_numpy() if the values are in"),
        (pd.Series(MASK, index=["cell0"] * 12), ValueError, "is not the names of the cells"),
        (pd.DataFrame({"a": MASK}), ValueError, "indices is a mask of shape (12, 1)"),
        (np.where(np.eye(3)), TypeError, "indices has dtype int64 and shape (2, 3)"),
        ([[1], [2, 3]], TypeError, "indices is a list, which is not an array"),
        ({1, 2}, TypeError, "indices is a set, which has no order"),
        ({1: 2}, TypeError, "indices is a dict, which has no order"),
        (iter([1]), TypeError, "indices is a list_iterator"),
        (1j, TypeError, "indices has dtype complex128"),
        (pd.to_datetime(["2020-01-01"]), TypeError, "indices has dtype datetime64"),
        (object(), TypeError, "indices has dtype object and shape ()"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_not_clear_is_named(index, error, text):
    with pytest.raises(error, match=re.escape(text)):
        chosen(index)


def test_a_series_of_another_order_by_numbers_is_refused_for_they_may_be_places():
    names = pd.Index(["2", "0", "1"])
    mask = pd.Series([True, False, False])
    with pytest.raises(ValueError, match=re.escape("Pass indices.to_numpy()")):
        numbers_of_cells(mask, "indices", 3, names)
    assert numbers_of_cells(mask, "indices", 3, pd.Index(["0", "1", "2"])).tolist() == [0]
    assert numbers_of_cells(mask.rename(str), "indices", 3, names).tolist() == [1]


@given(st.lists(st.integers(-12, 11)), st.sampled_from(["i1", "i8", "f4", "f8", "O"]))
def test_numbers_are_taken_as_numpy_takes_them(numbers, dtype):
    if len(numbers) != 12:  # of 12 zeros and ones one cannot tell
        expected = np.arange(12)[np.array(numbers, dtype=int)].tolist()
        assert chosen(np.array(numbers, dtype=dtype)) == expected


@given(st.permutations(range(12)), st.lists(st.booleans(), min_size=12, max_size=12))
def test_a_mask_goes_by_name_whatever_its_order(order, mask):
    series = pd.Series(mask, index=NAMES)
    assert chosen(series.iloc[list(order)]) == np.flatnonzero(mask).tolist()


def test_outputs_and_groups_choose_alike(adata, model):
    """One rule for `indices`, `idx1` and `idx2`."""
    mask = adata.obs["kind"] == "x"
    whole = model.get_latent_representation()
    for index in (mask.sample(frac=1, random_state=0), np.where(mask), mask.to_numpy().astype(object)):
        np.testing.assert_allclose(model.get_latent_representation(indices=index), whole[mask], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            model.get_latent_representation(adata, indices=index), whole[mask], rtol=1e-4, atol=1e-6
        )
        first = model.differential_expression(idx1=index, n_samples=20)
        pd.testing.assert_frame_equal(first, model.differential_expression(idx1=mask, n_samples=20))
    for call in (
        lambda index: model.get_normalized_expression(indices=index),
        lambda index: model.get_elbo(indices=index),
        lambda index: model.differential_expression(idx1=index),
        lambda index: model.differential_expression(idx1=[0], idx2=index),
    ):
        with pytest.raises(TypeError, match=r"(indices|idx1|idx2) has dtype .* adata\.obs_names\.get_indexer\("):
            call(list(adata.obs_names[:3]))
        with pytest.raises(ValueError, match=r"(indices|idx1|idx2) has cell number 120"):
            call([120])
