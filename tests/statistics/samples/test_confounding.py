import numpy as np
import pandas as pd
import pytest

from sccvae.statistics.samples import confounding


def table_of(rows, names=("donor", "stim", "type")):
    return pd.DataFrame(rows, columns=[*names, "cells"])


@pytest.mark.parametrize(
    ("counts", "pairs"),
    [
        ([[50, 0], [0, 50]], [(0, 1)]),
        ([[50, 50], [0, 50]], []),
        ([[50, 1], [0, 50]], [(0, 1)]),  # 2 % of a group do not connect it
        ([[50, 5], [0, 50]], []),
        ([[9, 9, 0], [0, 9, 9]], []),  # the first and the last by the group between
        ([[9, 0, 9], [0, 9, 0]], [(0, 1), (1, 2)]),
        ([[9, 0], [9, 0]], []),  # a group without cells
    ],
)
def test_groups_are_apart_unless_batches_connect_them(counts, pairs):
    assert confounding.apart(np.array(counts)) == pairs


def test_the_sentence_names_the_batches_of_both_groups_and_the_way_out():
    counts = np.array([[9, 0], [9, 0], [0, 9]])
    text = confounding.sentence_of_groups(("ctrl", "stim"), counts, ["a", "b", "c"], "differential_expression")
    assert "ctrl lies in 'a', 'b'; stim in 'c'" in text
    assert "sample_key" in text
    assert confounding.sentence_of_groups(("ctrl", "stim"), counts + 9, ["a", "b", "c"], "x") is None


def test_donors_within_conditions_are_said_and_crossed_ones_are_not():
    within = table_of([("d1", "ctrl", "T", 9), ("d2", "ctrl", "T", 9), ("d3", "stim", "T", 9), ("d4", "stim", "T", 9)])
    (text,) = confounding.sentences(within, "donor", "stim", None)
    assert "no batch holds both 'ctrl' and 'stim'" in text
    assert "sample_key='donor'" in text
    both = pd.concat([within, table_of([("d1", "stim", "T", 9)])])
    assert confounding.sentences(both, "donor", "stim", None) == []


def test_one_batch_for_each_condition_has_no_way_out():
    one = table_of([("d1", "ctrl", "T", 9), ("d2", "stim", "T", 9)])
    (text,) = confounding.sentences(one, "donor", "stim", None)
    assert "Several batches of each condition are needed" in text


def test_a_type_in_one_batch_and_one_in_one_condition_are_said():
    rows = [("d1", "ctrl", "T", 9), ("d1", "stim", "T", 9), ("d2", "ctrl", "T", 9), ("d2", "ctrl", "B", 9)]
    first, second = confounding.sentences(table_of(rows), "donor", "stim", "type")
    assert "'B' lie in one batch only ('d2')" in first
    assert "'B' occur in one value of 'stim' only" in second
    assert "one value, 'ctrl'" in confounding.sentences(table_of(rows[2:]), "donor", "stim", None)[0]
