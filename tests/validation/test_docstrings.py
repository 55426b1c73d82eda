"""Shared paragraphs of docstrings."""

from __future__ import annotations

import inspect
import io
import re
from contextlib import redirect_stdout

import pytest

import sccvae
from sccvae import pl, tl
from sccvae.validation.docstrings import PARAGRAPHS, filled, with_paragraphs

CLASSES = [sccvae.SCCVAE, sccvae.Autoencoder, sccvae.DenoisingAutoencoder]
METHODS = [
    method for kind in CLASSES for name, method in inspect.getmembers(kind, callable) if not name.startswith("_")
]
PUBLIC = [getattr(module, name) for module in (tl, pl) for name in module.__all__]
PUBLIC += [*CLASSES, *METHODS, sccvae.cross_validate]


def test_a_paragraph_takes_the_indentation_of_its_line():
    text = 'First line.\n\n    {a}\n    b\n        See {a}: "{b}".\n'
    assert with_paragraphs(text, {"a": "a\n    Text of a."}) == (
        'First line.\n\n    a\n        Text of a.\n    b\n        See {a}: "{b}".\n'
    )
    assert with_paragraphs(None, {}) is None  # python -OO


def test_functions_and_classes_are_filled():
    @filled
    def function(copy):
        """First line.

        {copy}
        """

    @filled
    class Class:
        """First line.

        {copy}
        """

    assert inspect.getdoc(function) == inspect.getdoc(Class) == f"First line.\n\n{PARAGRAPHS['copy']}"
    assert list(inspect.signature(function).parameters) == ["copy"]


def test_a_paragraph_that_is_not_there_is_an_error():
    with pytest.raises(KeyError, match="nothing"):

        @filled
        def function():
            """First line.

            {nothing}
            """


@pytest.mark.parametrize("documented", PUBLIC, ids=lambda documented: documented.__qualname__)
def test_no_public_docstring_has_an_unfilled_paragraph(documented):
    assert not re.search(r"^ *\{\w+\}$", inspect.getdoc(documented) or "", re.MULTILINE)


def test_help_shows_the_paragraphs():
    shown = io.StringIO()
    with redirect_stdout(shown):
        help(pl.volcano)
    for name in ("show", "ax", "figure"):
        assert PARAGRAPHS[name].splitlines()[-1].strip() in shown.getvalue()


def test_every_paragraph_is_used_more_than_once():
    texts = "\n".join(inspect.getdoc(documented) or "" for documented in PUBLIC)
    assert {name for name, text in PARAGRAPHS.items() if texts.count(text) < 2} == set()
