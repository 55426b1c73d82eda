"""Cells that do not fit into memory: a run in little address space is as the guide's formula says."""

from __future__ import annotations

import os
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sccvae.io import in_blocks

N_CELLS, N_GENES, PER_CELL = 500_000, 500, 150  # 225 MB packed, 600 MB as CSR

RUN = """
import resource, sys
import torch
import sccvae

torch.set_num_threads(1)
budget = None if sys.argv[1] == "None" else float(sys.argv[1])
options = {"n_hidden": 16, "n_latent": 2, "prior_components": 5, "batch_mixing": 0.0}
warm = sccvae.SCCVAE(sccvae.simulate.simulate(200, 50, keep_truth=False, seed=0), **options)
warm.train(max_epochs=1, progress_bar=False)  # imports and compiles

pages = int(open("/proc/self/statm").read().split()[0])
beyond = int(sys.argv[2]) * 2**20
limit = pages * resource.getpagesize() + beyond
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
model = sccvae.SCCVAE("cells.h5ad", batch_key="batch", memory_budget=budget, **options)
model.train(max_epochs=1, batch_size=4096, progress_bar=False)
z = model.get_latent_representation()
rho = model.get_normalized_expression(indices=slice(0, 20_000), out="rho.zarr")
print(model._counts.stored.in_file, z.shape, rho.shape)
"""


def _blocks():
    """Random counts, 50,000 cells at a time."""
    rng, n, width = np.random.default_rng(0), 50_000, N_GENES // PER_CELL
    for start in range(0, N_CELLS, n):
        genes = np.arange(PER_CELL) * width + rng.integers(0, width, (n, PER_CELL))
        values = rng.integers(1, 4, genes.size).astype(np.float32)
        x = sp.csr_matrix((values, genes.ravel(), np.arange(0, genes.size + 1, PER_CELL)), shape=(n, N_GENES))
        names = [f"cell_{k}" for k in range(start, start + n)]
        yield ad.AnnData(x, obs=pd.DataFrame({"batch": np.arange(n) % 2}, index=names))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS")
def test_a_set_larger_than_its_memory_is_trained_and_embedded(tmp_path):
    """The index, blocks and windows fit into the limit; the counts in memory do not."""
    in_blocks.write(_blocks(), tmp_path / "cells.h5ad")

    def run(budget, mib):
        command = [sys.executable, "-W", "ignore", "-c", RUN, str(budget), str(mib)]
        env = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
        env |= {name: value for name, value in os.environ.items() if name in ("PYTHONPATH", "HOME")}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    # By the guide: 0.3 GiB, and for each cell 150 bytes and 4 for each dimension of z.
    mib = int(0.3 * 1024 + N_CELLS * (150 + 8) / 2**20)
    found = run(None, mib)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout == f"True ({N_CELLS}, 2) (20000, {N_GENES})\n"
    refused = run(1e12, mib)
    assert refused.returncode == 1
    assert "MemoryError" in refused.stderr or "cannot allocate memory" in refused.stderr.lower()
