"""Recognition of the training data of a model by content, and access to the current `obs` of the training data."""

from __future__ import annotations

import hashlib
import json
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

_TOGETHER = 100_000  # names of cells


class Annotation:
    """Current table `obs` of an AnnData, or its last known state if the AnnData was deleted."""

    def __init__(self, adata: AnnData, *, kept: bool = False) -> None:
        """`kept`: whether the AnnData is kept; else it is the user's, who may delete it."""
        self.adata: Callable[[], AnnData | None] = (lambda: adata) if kept else weakref.ref(adata)
        self.now()

    def now(self) -> pd.DataFrame:
        """Return the table; for a view a copy, so that the viewed AnnData is not kept in memory."""
        if (adata := self.adata()) is not None:
            self._last = pd.DataFrame(adata.obs, copy=True) if adata.is_view else adata.obs
        return self._last

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the table for copies and pickles, which cannot include the weak reference."""
        return _kept, (self.now(),)


class Elsewhere:
    """Counts that another model holds, for as long as it does; copies and pickles have none."""

    def __init__(self, counts: Counts | None = None) -> None:
        self.counts: Callable[[], Counts | None] = (lambda: None) if counts is None else weakref.ref(counts)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return no counts for copies and pickles, which cannot include the weak reference."""
        return Elsewhere, ()


def _kept(table: pd.DataFrame) -> Annotation:
    annotation = Annotation.__new__(Annotation)
    annotation.adata, annotation._last = (lambda: None), table
    return annotation


def is_training_data(adata: AnnData, schema: Schema, counts: Counts, names: pd.Index) -> bool:
    """Return whether an AnnData is the training data of a model: equal names, counts and covariates.

    Without counts to compare, because `X` was normalised or the layer removed, names alone decide. Without a covariate,
    names and counts decide. Both cases warn.

    Parameters
    ----------
    schema, counts, names
        Schema, counts and names of the cells of the training data.
    """
    if not same_names(adata.obs_names, names) or not pd.Index(schema.genes).isin(adata.var_names.astype(str)).all():
        return False
    keys = (schema.batch_key, *schema.categorical_covariate_keys, *schema.continuous_covariate_keys)
    lost = [key for key in (*keys, schema.size_factor_key) if key is not None and key not in adata.obs]
    try:
        rows = schema.values_of(adata)
    except (ValueError, KeyError):
        if holds(adata, schema.layer, schema.support):
            return False  # the values are valid, so the error is that of another part of the data
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
            "adata was recognised as the training data by the names of its cells alone, because it has no counts to "
            "compare any more; to avoid this, keep the counts in a layer and build the model with layer=, or give "
            "other cells other obs_names."
        )
    else:
        warn(
            f"adata.obs has no {lost[0]!r} any more, so the values of the training data were used; to avoid this, "
            "restore the column."
        )
    return True


def _other_batches(adata: AnnData, schema: Schema, counts: Counts) -> bool:
    """Return whether a cell has another batch or category than in training; False if a category is unknown.

    Unknown categories may be new names of known ones.
    """
    try:
        return not np.array_equal(schema.codes_of(adata), counts.codes)
    except ValueError:
        return False


def fingerprint(counts: Counts, names: pd.Index) -> dict[str, Any]:
    """Compute a fingerprint of training data: the number of cells, and SHA-256 of what cells have besides counts."""

    def digest(*arrays: np.ndarray) -> str:
        found = hashlib.sha256()
        for array in arrays:
            found.update(np.ascontiguousarray(array).view(np.uint8).data)
        return found.hexdigest()

    of_names = hashlib.sha256()
    for start in range(0, len(names), _TOGETHER):  # the names of an atlas take gigabytes
        of_names.update(json.dumps(list(map(str, names[start : start + _TOGETHER]))).encode())
    return {
        "place of the counts": "file" if counts.stored.in_file else "memory",  # which the order of training depends on
        "number of cells": len(counts),
        "names of the cells": of_names.hexdigest(),
        "batches or covariates": digest(counts.codes, counts.continuous),
        **({"labels": digest(counts.labels)} if (counts.labels >= 0).any() else {}),
        "total counts or library sizes": digest(counts.log_total, counts.log_size),
    }
