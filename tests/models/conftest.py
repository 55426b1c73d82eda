"""Data that several test files of the models share."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp


@pytest.fixture
def layered(adata):
    """`adata` with log-normalised values in layer `lognorm` and 0/1 values in layer `binary`."""
    adata.layers["binary"] = (adata.X > 0).astype(np.float32)
    adata.layers["lognorm"] = sp.csr_matrix(np.log1p(adata.X.toarray() / np.asarray(adata.X.sum(1)) * 100))
    return adata
