"""Paragraphs that several docstrings share, written once and filled in when a function or class is made.

A line such as ``{show}``, alone in a docstring, stands for the paragraph of that name, as in Scanpy's `_doc_params`.
`help`, `inspect.getdoc` and Sphinx read the paragraph itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from textwrap import indent
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])

_MARK = re.compile(r"^( *)\{(\w+)\}$", re.MULTILINE)

PARAGRAPHS = {
    # written to an AnnData
    "adata_of_model": """\
adata
    Data that `model` was trained on, or new data with raw counts. If `X` was normalised after training, the raw counts
    are gone: the training data are then recognised by their cell names, with a warning, and the counts that the model
    keeps are used.""",
    "copy": """\
copy
    Write to a copy of `adata` and return it.""",
    # figures
    "figure": """\
Returns
-------
matplotlib.figure.Figure
    Save it with ``figure.savefig("figure.pdf")``.""",
    "show": """\
show
    Open the figure in a window (or the notebook) now.""",
    "ax": """\
ax
    Draw into these axes.""",
    "max_cells": """\
max_cells
    Draw a random sample of this many cells if there are more.""",
    "seed_of_drawing": """\
seed
    Seed of the sample and of the order in which cells are drawn.""",
    "image_shape": """\
shape
    Height and width of the decoded images in pixels, for samples that are images.""",
    "decoded_batch": """\
batch
    Name of the batch to decode in; optional if there is only one.""",
}


def filled(documented: T) -> T:
    """Decorate a function or class: fill the paragraphs that its docstring names into it.

    Raises
    ------
    KeyError
        `PARAGRAPHS` has no paragraph of that name.
    """
    documented.__doc__ = with_paragraphs(documented.__doc__, PARAGRAPHS)
    return documented


def with_paragraphs(text: str | None, paragraphs: Mapping[str, str]) -> str | None:
    """A docstring with its paragraphs filled in, at the indentation of the lines that name them; None stays None."""
    if text is None:  # python -OO
        return None
    return _MARK.sub(lambda mark: indent(paragraphs[mark[2]], mark[1]), text)
