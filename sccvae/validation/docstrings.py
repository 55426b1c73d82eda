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
    # constructors of models
    "mask_var": """\
mask_var
    Genes to model: a column of `var` or a (genes,) boolean array; None takes all.""",
    "dropout_rate": """\
dropout_rate
    Fraction of the encoder's hidden units that are left out in each training step.""",
    "seed_of_model": """\
seed
    Seed of the weights, the split and the noise of training. The global random state is not touched.""",
    "device": """\
device
    `auto` takes a GPU when there is one.""",
    "input_errors": """\
ValueError, KeyError, TypeError
    The input is invalid; the message says what is wrong, where, and how to fix it.""",
    # training
    "ctrl_c": """\
Ctrl-C ends the run and keeps the best epoch, as early stopping does.""",
    "run": """\
max_epochs
    Passes over the training cells. None takes 35, or the number that makes 1,200 to 5,000 steps of 128 cells, and at
    least 5.
batch_size
    Cells per step. None takes 128. On a GPU it takes 256, 512 or 1,024 if five epochs then have at least 4,500 steps:
    from 230,400, 460,800 or 921,600 training cells on, for each process.
train_size
    Fraction of each batch's cells to train on; the others choose the best epoch.
early_stopping, patience
    Stop after `patience` epochs without a higher objective on the held-out cells: the ELBO, of autoencoders the
    log-likelihood. With ``train_size=1`` no cell is held out; then the last epoch is kept, and a message says so.
learning_rate
    Highest rate of the one-cycle schedule of Adam.""",
    "gradients": """\
gradient_clip, weight_decay
    Highest norm of the gradient, infinity for none; L2 penalty.""",
    "checkpoint": """\
checkpoint
    Folder for the state of the run, from which `resume` goes on after a kill; None writes none. It holds the newest
    state only, about six times the size of the weights. A run that has ended is replaced.
checkpoint_every
    Steps from one checkpoint to the next. Epochs of a run need not be complete.
resume
    If `checkpoint` holds this run, with the same data and settings, go on with it. False raises an error for a run that
    has not ended.""",
    "checkpoint_errors": """\
FileExistsError
    `checkpoint` holds a run that has not ended, and `resume` is False.""",
    "progress_bar": """\
progress_bar
    One line on a terminal; nothing elsewhere.""",
    "training_error": """\
sccvae.TrainingError
    The loss was not finite; the weights are those of the last good epoch.""",
    # outputs of models
    "new_data": """\
adata
    New data, genes in any order; None takes the training data.""",
    "indices": """\
indices
    Cells to use: numbers, a slice or a boolean mask (a Series is matched by cell names); None takes all.""",
    "chunk_size": """\
chunk_size
    Cells decoded at once, a multiple of 32; None takes about half a million values.""",
    "generated_batch": """\
batch
    Name or names of the batches to generate in; None takes all.""",
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
