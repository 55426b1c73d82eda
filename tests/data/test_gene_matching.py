"""Genes of new data are found by name, by Ensembl identifier or without letter case; in doubt there is an error."""

from __future__ import annotations

import re
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sccvae.data.gene_matching import Matched, match

IDS = [f"ENSG{i:011d}" for i in range(10)]
BY_IDENTIFIER, BY_TEXT = "Ensembl identifiers without version", "names without letter case"


def genes(names, **columns) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.Index(names))


def message(error: type[Exception], *args, **options) -> str:
    with pytest.raises(error) as raised:
        match(*args, **options)
    return str(raised.value)


# ------------------------------------------------------------------------------------------------------------- the ways


def test_exact_names_are_found_in_any_order():
    found = match(genes(["D", "B", "X", "A"]), ["A", "B", "C", "D"])
    np.testing.assert_array_equal(found.at, [3, 1, -1, 0])
    assert found.at.dtype == np.int64
    assert (found.by, found.missing, found.unused, found.share) == ("names", ("C",), 1, 0.75)


@pytest.mark.parametrize(
    ("new", "known"),
    [
        (["ENSG00000000003.15", "ENSG00000000005"], ["ENSG00000000005.6", "ENSG00000000003"]),
        (["ENSMUSG00000000003.1", " ENSDARG00000000005 "], ["ENSDARG00000000005.11", "ENSMUSG00000000003"]),
        (["ENSG00000000003.15", "ERCC-00002 "], ["ERCC-00002", "ENSG00000000003.14"]),  # others keep their name
    ],
)
def test_versions_of_ensembl_identifiers_are_ignored(new, known):
    found = match(genes(new), known)
    np.testing.assert_array_equal(found.at, [1, 0])
    assert found.by == BY_IDENTIFIER


@pytest.mark.parametrize("name", ["AC012345.1", "ENST00000000003.1", "ENSG0000003.1", "XENSG00000000003.1", "A.1"])
def test_versions_of_other_names_are_not_ignored(name):
    """Clones, transcripts and names that only resemble an identifier."""
    bare = name.rpartition(".")[0]
    found = match(genes(["ENSG00000000005.2", name]), ["ENSG00000000005", bare])
    np.testing.assert_array_equal(found.at, [0, -1])


def test_a_version_has_digits_only():
    found = match(genes(["ENSG00000000003.15_PAR_Y", "ENSG00000000003.15"]), ["ENSG00000000003"])
    np.testing.assert_array_equal(found.at, [1])


def test_letter_case_and_spaces_are_ignored_last():
    found = match(genes(["Gapdh", "Actb ", "Xist"]), [" ACTB", "GAPDH", "XIST"])
    np.testing.assert_array_equal(found.at, [1, 0, 2])
    assert found.by == BY_TEXT


def test_spaces_alone_do_not_make_an_ensembl_identifier():
    assert match(genes(["A ", "B"]), ["A", "B"]).by == BY_TEXT


def test_the_way_that_finds_most_genes_is_used():
    found = match(genes(["A", "b", "c"]), ["A", "B", "C"])
    np.testing.assert_array_equal(found.at, [0, 1, 2])
    assert found.by == BY_TEXT
    found = match(genes([*IDS[:3], f"{IDS[3]}.1"]), IDS[:4])
    assert (found.by, found.share) == (BY_IDENTIFIER, 1)


def test_of_equal_ways_the_first_is_used():
    assert match(genes(["A", "B", "c"]), ["A", "B", "D"]).by == "names"
    assert match(genes([f"{name}.1" for name in IDS]), IDS).by == BY_IDENTIFIER  # without letter case none is found
    assert match(genes([f"{IDS[0]}.1", "a"]), [f"{IDS[0]}.2", "A"]).by == BY_IDENTIFIER  # one each


def test_genes_of_another_species_do_not_spoil_exact_names():
    """Without letter case each gene of the model would have two matches."""
    found = match(genes(["ACTB", "Actb", "GAPDH", "Gapdh", "Xist"]), ["ACTB", "GAPDH", "XIST"])
    np.testing.assert_array_equal(found.at, [0, 2, -1])
    assert (found.by, found.unused) == ("names", 3)


@given(st.data())
def test_the_order_of_new_genes_does_not_matter(data):
    known = data.draw(st.lists(st.sampled_from([*IDS, *"ABCDEFGH"]), unique=True, min_size=1))
    alike = data.draw(st.sampled_from([str, str.lower, lambda name: f" {name}", lambda name: f"{name}.7"]))
    new = [*map(alike, known), *(f"other {i}" for i in range(5))]
    order = np.array(data.draw(st.permutations(range(len(new)))))
    try:
        expected = match(genes(new), known)
    except ValueError:
        with pytest.raises(ValueError, match=r"genes? of the model|no gene in common"):
            match(genes(new).iloc[order], known)
        return
    found = match(genes(new).iloc[order], known)
    np.testing.assert_array_equal(found.at >= 0, expected.at >= 0)
    np.testing.assert_array_equal(order[found.at[found.at >= 0]], expected.at[expected.at >= 0])
    assert (found.by, found.missing, found.unused) == (expected.by, expected.missing, expected.unused)


@pytest.mark.parametrize("change", [str, lambda name: f"{name}.3", str.lower])
def test_matching_40_000_genes_takes_less_than_a_second(change):
    known = [f"ENSG{i:011d}" for i in range(40_000)]
    order = np.random.default_rng(0).permutation(40_000)
    var = genes([change(known[i]) for i in order])
    times = []
    for _ in range(3):
        start = time.process_time()
        found = match(var, known)
        times.append(time.process_time() - start)
    np.testing.assert_array_equal(order[found.at], np.arange(40_000))
    assert min(times) < 1


# ------------------------------------------------------------------------------------------------------------- gene_key


@pytest.mark.parametrize("dtype", [object, "category", "string"])
def test_identifiers_come_from_a_column(dtype):
    var = genes(["TP53", "MYC", "KRAS"], gene_ids=pd.array([f"{IDS[2]}.1", IDS[0], IDS[1]], dtype=dtype))
    found = match(var, IDS[:3], gene_key="gene_ids")
    np.testing.assert_array_equal(found.at, [1, 2, 0])


def test_a_gene_without_identifier_matches_nothing():
    """Also if the model has a gene of that text, and however many such genes there are."""
    var = genes(["1", "2", "3", "4", "5"], symbol=[None, "A", np.nan, "", " "])
    found = match(var, ["A", "nan", "None", ""], gene_key="symbol", least=0.2)
    np.testing.assert_array_equal(found.at, [1, -1, -1, -1])
    assert found.unused == 4
    np.testing.assert_array_equal(match(genes([np.nan, "A", None]), ["A", "nan"]).at, [1, -1])


def test_numbers_are_identifiers_also_beside_missing_ones():
    whole = genes(["TP53", "MYC"], entrez=[7157, 4609])
    missing = genes(["TP53", "x", "MYC"], entrez=[7157, np.nan, 4609])
    nullable = genes(["TP53", "x", "MYC"], entrez=pd.array([7157, None, 4609], dtype="Int64"))
    np.testing.assert_array_equal(match(whole, ["4609", "7157"], gene_key="entrez").at, [1, 0])
    for var in (missing, nullable):
        np.testing.assert_array_equal(match(var, ["4609", "7157"], gene_key="entrez").at, [2, 0])


def test_an_unknown_column_is_named():
    assert message(KeyError, genes(["A"], gene_ids=["B"]), ["B"], gene_key="gene_id") == (
        "adata.var has no column 'gene_id'. Did you mean 'gene_ids'?"
    )


# ---------------------------------------------------------------------------------------------------- ambiguous matches


def test_two_equal_new_genes():
    assert message(ValueError, genes(["A", "B", "A"]), ["A", "B"]) == (
        "'A' (column 0), 'A' (column 2) in adata.var_names match the same gene of the model, 'A', by name; expected "
        "one. Rename or remove all but one."
    )


def test_two_new_genes_that_are_equal_by_the_way_used():
    assert message(ValueError, genes(["Gapdh", "Actb", "actb"]), ["ACTB", "GAPDH"]) == (
        "'Actb' (column 1), 'actb' (column 2) in adata.var_names match the same gene of the model, 'ACTB', by name "
        "without letter case; expected one. Rename or remove all but one."
    )
    assert message(ValueError, genes([f"{IDS[0]}.{i}" for i in range(5)]), [IDS[0]]) == (
        "'ENSG00000000000.0' (column 0), 'ENSG00000000000.1' (column 1), 'ENSG00000000000.2' (column 2) and 2 more in "
        "adata.var_names match the same gene of the model, 'ENSG00000000000', by Ensembl identifier without version; "
        "expected one. Rename or remove all but one."
    )


def test_two_equal_identifiers_in_a_column():
    var = genes(["g0", "g1", "g2", "g3", "g4"], symbol=["A", "B", "A", "B", "C"])
    assert message(ValueError, var, ["C", "B", "A"], gene_key="symbol") == (
        "'B' (gene 'g1'), 'B' (gene 'g3') in adata.var['symbol'] match the same gene of the model, 'B', by name; "
        "expected one. Set all but one to None, or remove those genes. There are 2 such genes of the model."
    )
    var.loc[["g2", "g3"], "symbol"] = None
    np.testing.assert_array_equal(match(var, ["C", "B", "A"], gene_key="symbol").at, [4, 1, 0])


def test_two_genes_of_the_model_that_are_equal_by_the_way_used():
    assert message(ValueError, genes(["actb", "gapdh"]), ["ACTB", "Actb", "Gapdh"]) == (
        "'actb' in adata.var_names matches 2 genes of the model, 'ACTB', 'Actb', by name without letter case; expected "
        "one. Write such names as in the model. There are 2 such genes of the model."
    )
    found = match(genes(["Actb", "ACTB", "x"]), ["ACTB", "Actb", "Gapdh"])  # exact names differ
    np.testing.assert_array_equal(found.at, [1, 0, -1])
    found = match(genes(["gapdh", "xist"]), ["ACTB", "Actb", "Gapdh", "Xist"])  # no new gene is meant
    np.testing.assert_array_equal(found.at, [-1, -1, 0, 1])


def test_equal_names_of_other_genes_do_not_matter():
    found = match(genes(["X", "A", "X", "B", "x"]), ["A", "B"])
    np.testing.assert_array_equal(found.at, [1, 3])
    assert found.unused == 3


# ------------------------------------------------------------------------------------------------------- too few genes


def test_too_few_genes():
    known = list("ABCDEFGHIJ")
    assert message(ValueError, genes(["A", "B", "X", "Y"]), known) == (
        "adata.var_names has 2 of 10 genes of the model (not 'C', 'D', 'E' and 5 more, but 'X', 'Y'); expected at "
        "least 5 (least_genes=0.5): pass in gene_key= the name of a column of adata.var with identifiers as in the "
        "model, or a smaller least_genes=."
    )
    assert message(ValueError, genes(["A", "B"]), known, least=0.25).startswith(
        "adata.var_names has 2 of 10 genes of the model (not 'C', 'D', 'E' and 5 more); expected at least 3 "
        "(least_genes=0.25): "
    )
    assert match(genes(["A", "B", "X", "Y"]), known, least=0.2).share == 0.2


@pytest.mark.parametrize("n", [1, 3, 7, 30, 1000])
@pytest.mark.parametrize("least", [0, 0.1, 0.3, 0.5, 0.7, 1])
def test_least_is_inclusive(least, n):
    known = [f"g{i}" for i in range(n)]
    enough = max(1, round(np.ceil(round(least * n, 9))))
    assert match(genes(known[:enough]), known, least=least).share == enough / n
    if enough > 1:
        with pytest.raises(ValueError, match=rf"has {enough - 1} of {n:,} genes .* expected at least {enough:,} "):
            match(genes(known[: enough - 1]), known, least=least)


def test_a_better_column_is_named():
    var = genes(["A", "X", "Y"], symbol=["B", "B", "C"], gene_ids=[f"{i}.1" for i in IDS[:3]], used=[True, False, True])
    assert message(ValueError, var, [*IDS[:4], "A"], least=0.7) == (
        "adata.var_names has 1 of 5 genes of the model (not 'ENSG00000000000', 'ENSG00000000001', 'ENSG00000000002' "
        "and 1 more, but 'X', 'Y'); expected at least 4 (least_genes=0.7): pass gene_key='gene_ids', the column of "
        "adata.var that has 3."
    )
    assert message(ValueError, var, IDS[:4], gene_key="symbol") == (
        "adata.var['symbol'] and the model have no gene in common: adata.var['symbol'] has 'B', 'C', the model "
        "'ENSG00000000000', 'ENSG00000000001', 'ENSG00000000002' and 1 more; expected the same identifiers: pass "
        "gene_key='gene_ids', the column of adata.var that has 3."
    )
    np.testing.assert_array_equal(match(var, IDS[:4], gene_key="gene_ids").at, [0, 1, 2, -1])


def test_the_index_may_be_better_than_a_column():
    assert message(ValueError, genes(IDS, symbol=list("ABCDEFGHIJ")), IDS, gene_key="symbol").endswith(
        ": pass gene_key=None, since adata.var_names has 10."
    )


def test_a_column_that_gene_key_cannot_name_is_not_advised():
    var = pd.DataFrame([[name, name, name] for name in IDS], columns=["twice", "twice", 0], index=list("ABCDEFGHIJ"))
    assert "pass in gene_key= the name of a column" in message(ValueError, var, IDS)


def test_no_gene_in_common():
    """However few genes are asked for."""
    assert message(ValueError, genes(["X", "Y"]), ["A", "B", "C", "D"], least=0) == (
        "adata.var_names and the model have no gene in common: adata.var_names has 'X', 'Y', the model 'A', 'B', 'C' "
        "and 1 more; expected the same identifiers: pass in gene_key= the name of a column of adata.var with "
        "identifiers as in the model."
    )
    var = genes(["X", "Y"], symbol=[np.nan, np.nan])
    assert "adata.var['symbol'] has no names, the model 'A'" in message(ValueError, var, ["A"], gene_key="symbol")
    assert "adata.var_names has no names, the model 'A'" in message(ValueError, genes([]), ["A"])


@pytest.mark.parametrize("least", [-0.1, 1.01, 50, np.nan, np.inf])
def test_least_is_a_fraction(least):
    with pytest.raises(ValueError, match=re.escape(f"least is {least}; expected a fraction of the genes of the model")):
        match(genes(["A"]), ["A"], least=least)
    with pytest.raises(TypeError, match="least is 'half'; expected a fraction"):
        match(genes(["A"]), ["A"], least="half")


# ---------------------------------------------------------------------------------------------------------- description


def described(n_found: int, missing: str = "", unused: int = 0, by: str = "names") -> str:
    at = np.concatenate([np.arange(n_found), np.full(len(missing), -1)])
    return Matched(at, by, tuple(missing), unused).describe()


def test_a_description_has_one_or_two_sentences():
    assert described(2000) == "All 2,000 genes of the model were found by name."
    assert described(1) == "The gene of the model was found by name."
    assert described(1800, "ABCDE" * 40) == (
        "1,800 of 2,000 genes of the model were found by name; 200 are missing, such as A, B and C, and are left out."
    )
    assert described(2, "A", by=BY_IDENTIFIER) == (
        "2 of 3 genes of the model were found by Ensembl identifier without version; 1 is missing, A, and is left out."
    )
    assert described(2, "AB", 1, BY_TEXT) == (
        "2 of 4 genes of the model were found by name without letter case; 2 are missing, A and B, and are left out. "
        "1 gene of the data is not in the model and not used."
    )
    assert described(3, "ABC", 34_601) == (
        "3 of 6 genes of the model were found by name; 3 are missing, A, B and C, and are left out. "
        "34,601 genes of the data are not in the model and not used."
    )
