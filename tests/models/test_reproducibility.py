"""`SCCVAE` is reproducible and leaves all global state alone."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import warnings_are_errors

import sccvae


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(adata, fit):
    first, again, other = (fit(adata, 3, batch_key="batch", seed=seed) for seed in (1, 1, 2))
    z = first.get_latent_representation()
    np.testing.assert_array_equal(again.get_latent_representation(), z)
    timeless = [m.history.drop(columns="seconds") for m in (first, again)]
    pd.testing.assert_frame_equal(*timeless)
    assert np.abs(other.get_latent_representation() - z).max() > 0.01


@pytest.mark.slow
def test_the_process_that_compiles_has_the_bits_of_those_that_read_the_cache(tmp_path):
    code = """
        import sccvae
        cells = sccvae.simulate.simulate(256, 150, seed=0)
        model = sccvae.SCCVAE(cells, batch_key="batch", thinning=0.5, device="cpu")
        model.train(2, progress_bar=False)
        print(model.get_latent_representation().tobytes().hex(), model.get_normalized_expression().to_numpy().sum())
    """
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    options = {"capture_output": True, "text": True, "check": True, "env": environment}
    compiled, cached = (
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], **options).stdout for _ in range(2)
    )
    assert list(tmp_path.rglob("count_likelihood._cells*.nbc"))
    assert compiled == cached


def test_global_random_state_has_no_say(adata, fit):
    results = []
    for seed in (11, 12):
        np.random.seed(seed)  # noqa: NPY002  the state that must not matter
        torch.manual_seed(seed)
        random.seed(seed)
        results.append(fit(adata, 2, batch_key="batch").get_latent_representation())
    np.testing.assert_array_equal(*results)


def use_everything(adata):
    model = sccvae.SCCVAE(adata, batch_key="batch", n_hidden=8)
    model.train(2)
    model.get_normalized_expression(n_samples=2, transform_batch="all")
    model.posterior_predictive_sample()
    model.generate(5)
    model.get_elbo()
    model.get_marginal_ll(n_samples=2)
    sccvae.tl.store(adata, model)


def test_global_state_stays_as_it_was(adata, capsys):
    def state():
        return {
            "numpy": repr(np.random.get_state()),  # noqa: NPY002
            "torch": torch.get_rng_state().tolist(),
            "random": random.getstate(),
            "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
            "dtype": torch.get_default_dtype(),
            "grad": torch.is_grad_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "warnings": list(warnings.filters),
            "numpy errors": np.geterr(),
            "root": (logging.root.level, list(logging.root.handlers), logging.root.disabled),
            "logger": (logging.getLogger("sccvae").level, list(logging.getLogger("sccvae").handlers)),
        }

    before = state()
    use_everything(adata)
    after = state()
    for name, value in before.items():
        assert after[name] == value, name
    assert capsys.readouterr() == ("", "")


def test_nothing_is_logged_and_nothing_is_warned_of(adata, caplog):
    with warnings_are_errors():
        use_everything(adata)
    assert caplog.records == []


def test_every_output_is_deterministic(model):
    for _ in range(2):
        draws = [
            (
                model.get_latent_representation(),
                model.get_normalized_expression(n_samples=3, seed=4, return_numpy=True),
                model.posterior_predictive_sample(seed=4).toarray(),
                model.generate(20, seed=4).X.toarray(),
                model.get_elbo(return_mean=False, seed=4),
                model.get_reconstruction_error(return_mean=False, seed=4),
                model.get_marginal_ll(n_samples=3, return_mean=False, seed=4),
            )
            for _ in range(2)
        ]
        for first, again in zip(*draws, strict=True):
            np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    "draw",
    [
        lambda m, seed: m.get_normalized_expression(n_samples=2, seed=seed, return_numpy=True),
        lambda m, seed: m.posterior_predictive_sample(seed=seed).toarray(),
        lambda m, seed: m.generate(20, seed=seed).X.toarray(),
        lambda m, seed: m.get_elbo(return_mean=False, seed=seed),
        lambda m, seed: m.get_marginal_ll(n_samples=2, return_mean=False, seed=seed),
    ],
    ids=["expression", "predictive", "generate", "elbo", "marginal"],
)
def test_another_seed_gives_another_draw(model, draw):
    assert (draw(model, 1) != draw(model, 2)).any()
