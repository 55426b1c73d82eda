"""Which data a model is asked about: its own, told by content, or others; and what `obs` says of its own by now."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae.data.counts import Counts
from sccvae.data.matrix import holds
from sccvae.data.schema import Schema
from sccvae.validation.names import same_names
from sccvae.validation.wording import warn


class Annotation:
    """The table `obs` of an AnnData as it is now, or as it was when last seen if the AnnData is gone."""

    def __init__(self, adata: AnnData) -> None:
        self.adata: Callable[[], AnnData | None] = weakref.ref(adata)
        self.now()

    def now(self) -> pd.DataFrame:
        """The table; a copy of a view's, so that more than the view is not kept alive."""
        if (adata := self.adata()) is not None:
            self._last = pd.DataFrame(adata.obs, copy=True) if adata.is_view else adata.obs
        return self._last

    def __reduce__(self) -> tuple[Any, ...]:
        """What copies and other processes get: a weak reference cannot travel, the table can."""
        return _kept, (self.now(),)


def _kept(table: pd.DataFrame) -> Annotation:
    annotation = Annotation.__new__(Annotation)
    annotation.adata, annotation._last = (lambda: None), table
    return annotation


def is_training_data(adata: AnnData, schema: Schema, counts: Counts, names: pd.Index) -> bool:
    """Whether an AnnData holds the cells that a model was built on: the same names, counts and covariates.

    Where there are no counts to compare, since `X` was normalised or the layer removed, names are believed, and where a
    covariate is gone, counts; either with a warning.

    Parameters
    ----------
    schema, counts, names
        How the training data were read; what was read; the names of the cells.
    """
    if not same_names(adata.obs_names, names) or not pd.Index(schema.genes).isin(adata.var_names.astype(str)).all():
        return False
    keys = (schema.batch_key, *schema.categorical_covariate_keys, *schema.continuous_covariate_keys)
    lost = [key for key in (*keys, schema.size_factor_key) if key is not None and key not in adata.obs]
    try:
        rows = schema.values_of(adata)
    except (ValueError, KeyError):
        if holds(adata, schema.layer, schema.support):
            return False  # it is something else that is wrong with them
        rows = None
    if rows is not None and not rows.same_as(counts.stored):
        return False
    if rows is not None and not lost:
        now = schema.assemble(adata, rows)
        return all(np.array_equal(getattr(now, a), getattr(counts, a)) for a in ("codes", "continuous", "log_size"))
    if not lost and _other_batches(adata, schema, counts):
        return False
    if rows is None:
        warn(
            "adata was taken for the training data by the names of its cells alone, since it has no counts to compare "
            "any more; to avoid this, keep the counts in a layer and build the model with layer=, or give other cells "
            "other obs_names."
        )
    else:
        warn(
            f"adata.obs has no {lost[0]!r} any more, so the values of the training data were taken; to avoid this, put "
            "the column back."
        )
    return True


def _other_batches(adata: AnnData, schema: Schema, counts: Counts) -> bool:
    """Whether a cell is of another batch or category than in training; unknown names may be new for the same."""
    try:
        return not np.array_equal(schema.codes_of(adata), counts.codes)
    except ValueError:
        return False
