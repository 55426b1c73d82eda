"""Every number that a user can hand over is taken with a meaning, or refused by its name, with what is expected.

`TABLE` has a row for each numeric argument of each public function. They are found by inspection: one that is new fails
here until it has a row.
"""

import inspect
import math
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

import sccvae
from sccvae import SCCVAE, Autoencoder, DenoisingAutoencoder, corruption, generation, metrics, pl, simulate, tl

CLASSES = (SCCVAE, Autoencoder, DenoisingAutoencoder)
MODULES = ("corruption", "datasets", "generation", "metrics", "pl", "simulate", "tl")
SMALL = {"n_hidden": 8, "n_latent": 2}
QUIET = {"max_epochs": 1, "progress_bar": False}
NO_NUMBER = ("10", True, np.True_, [3], 3j, b"1")  # of any kind
HUGE = 10**30


class Rule(NamedTuple):
    """What an argument takes, and what it refuses beside what is refused everywhere."""

    taken: tuple[Any, ...]
    refused: tuple[Any, ...]


def whole(least: int = 1, *, huge: bool = False, none: bool = False, taken: int = 12) -> Rule:
    """A whole number, written in any way; `huge` says whether one beyond all sizes is taken."""
    more = (HUGE,) if huge else ()
    odd = (least - 1, -3, 10.5, np.float32(2.5), math.nan, math.inf, -math.inf, *NO_NUMBER)
    refused = (*odd, *(() if huge else (HUGE,)), *(() if none else (None,)))
    return Rule((float(taken), np.int16(taken), *more, *((None,) if none else ())), refused)


def real(taken: float, *refused: float, none: bool = False) -> Rule:
    """A number; NaN and infinity are refused everywhere."""
    odd = (*refused, math.nan, math.inf, -math.inf, *NO_NUMBER)
    return Rule((taken, np.float64(taken), *((None,) if none else ())), odd if none else (*odd, None))


COUNT, LIMIT = whole(), whole(huge=True)
COUNT_OR_NONE, LIMIT_OR_NONE, MAX_CELLS = whole(none=True), whole(huge=True, none=True), whole(2, huge=True, none=True)
SEED = Rule((3.0, np.int64(3), 2**40), (-1, 1.5, math.nan, math.inf, HUGE, None, *NO_NUMBER))
SEED_32 = Rule((3.0, np.int64(3), 2**32 - 1), (*SEED.refused, 2**32))  # of scikit-learn and Scanpy
SHARE = real(0.5, 0, 1, 1.5, -0.1, HUGE)
RATE = real(0.25, 1, -0.1, HUGE)
DROPOUT = real(0.25, 1, -0.1, HUGE)
POSITIVE = real(0.5, 0, -1.0, 1e300)
WEIGHT = real(0.5, -1.0)
CLIP = Rule((10, np.float32(5), math.inf), (0, -1.0, math.nan, -math.inf, None, *NO_NUMBER))
NEIGHBOURS = whole()
TRAINING = {
    "max_epochs": COUNT_OR_NONE._replace(taken=(1.0, np.int16(1))),
    "batch_size": LIMIT_OR_NONE,
    "checkpoint_every": COUNT,
    "train_size": Rule((1.0, np.float32(0.5), None), (0, -0.5, 1.5, math.nan, math.inf, HUGE, *NO_NUMBER)),
    "patience": LIMIT,
    "learning_rate": real(1e-3, 0, -1.0, 1e300),
    "gradient_clip": CLIP,
    "weight_decay": real(0.01, -1.0, 1e300),
}
SIZES = {"n_hidden": COUNT, "n_latent": COUNT, "n_layers": whole(taken=2), "dropout_rate": DROPOUT, "seed": SEED}
HELD = {
    "decode": {"library_size": real(100.0, 0, -1.0, 1e300)},
    "get_reconstruction": {"chunk_size": LIMIT_OR_NONE},
}
SOME_CELLS = whole(2, huge=True, none=True, taken=30)
CELLS = whole(huge=True)  # cells to draw: all where there are fewer

TABLE: dict[str, dict[str, Rule]] = {
    "SCCVAE": {
        **SIZES,
        "n_hidden": Rule(
            (8.0, np.int16(8), (8.0, 9)), (0, -3, 10.5, HUGE, "10", True, None, (8, 0), (8, 8, 8), (8, "9"))
        ),
        "dropout_rate": real(0.25, 1, -0.1, HUGE, none=True),
        "dropout_cost": WEIGHT,
        "prior_components": whole(0, none=True),
        "batch_mixing": WEIGHT,
        "weight_precision": WEIGHT,
        "thinning": DROPOUT,
        "label_weight": WEIGHT,
        "memory_budget": real(1e9, -1.0, none=True),
    },
    "SCCVAE.load_query_data": {"least_genes": real(0.5, -0.1, 1.5)},
    "SCCVAE.predict": {"novelty_rate": RATE, "error_rate": RATE, "n_samples": COUNT, "seed": SEED},
    "SCCVAE.train": {
        **TRAINING,
        "learning_rate": real(1e-3, 0, -1.0, 1e300, none=True),
        "kl_warmup": real(1.0, -0.1, 1.1, HUGE),
        "n_draws": whole(taken=2),
    },
    "SCCVAE.cross_validate": {"n_splits": whole(taken=1), "kept": SHARE, "seed": SEED},
    "SCCVAE.diagnose": {"n_samples": whole(taken=2), "n_neighbors": LIMIT, "max_cells": LIMIT_OR_NONE, "seed": SEED},
    "SCCVAE.differential_expression": {
        "delta": real(0.5, -0.1, none=True),
        "pseudocount": real(1e-3, -1e-3, none=True),
        "fdr_target": SHARE,
        "n_samples": whole(10),
        "max_cells": LIMIT,
        "chunk_size": LIMIT_OR_NONE,
        "seed": SEED,
    },
    "SCCVAE.generate": {"n_cells": COUNT, "seed": SEED},
    "SCCVAE.get_elbo": {"seed": SEED},
    "SCCVAE.get_feature_correlation_matrix": {
        "n_samples": whole(taken=2),
        "rna_size_factor": real(100.0, 0, -1.0, 1e300),
        "seed": SEED,
    },
    "SCCVAE.get_marginal_ll": {"n_samples": COUNT, "seed": SEED},
    "SCCVAE.get_normalized_expression": {
        "library_size": real(100.0, 0, -1.0, 1e300),
        "n_samples": COUNT_OR_NONE,
        "chunk_size": LIMIT_OR_NONE,
        "seed": SEED,
    },
    "SCCVAE.get_reconstruction_error": {"seed": SEED},
    "SCCVAE.posterior_predictive_sample": {"n_samples": COUNT_OR_NONE, "seed": SEED},
    "SCCVAE.report": {"max_cells": CELLS, "seed": SEED_32},
    **{f"{cls.__name__}.{name}": rows for cls in CLASSES for name, rows in HELD.items()},
    "Autoencoder": {**SIZES, "scale": real(0.5, 0, -1.0, 1e300, none=True)},
    "Autoencoder.train": TRAINING,
    "Autoencoder.generate": {"n_cells": COUNT, "seed": SEED},
    "Autoencoder.sample_codes": {"n_codes": COUNT, "seed": SEED},
    "DenoisingAutoencoder": {**SIZES, "scale": real(0.5, 0, -1.0, 1e300, none=True), "continuation": SHARE},
    "DenoisingAutoencoder.train": TRAINING,
    "DenoisingAutoencoder.corrupt": {"seed": SEED},
    "DenoisingAutoencoder.generate": {
        "n_cells": COUNT,
        "steps": whole(taken=2),
        "thin": whole(taken=2),
        "n_chains": COUNT_OR_NONE,
        "seed": SEED,
    },
    "cross_validate": {"n_splits": whole(taken=1), "kept": SHARE, "seed": SEED},
    "corruption.GaussianNoise": {"sd": POSITIVE},
    "corruption.GeneDropout": {"lost": SHARE},
    "corruption.SaltAndPepper": {"rate": SHARE},
    "corruption.Thinning": {"kept": SHARE},
    "generation.gene_agreement": {"n_top_genes": LIMIT},
    "generation.line_log_density": {"n_neighbors": NEIGHBOURS},
    "generation.log_normalized": {"total": POSITIVE},
    "generation.mmd": {
        "n_permutations": COUNT,
        "bandwidth": real(0.5, 0, -1.0, 1e300, none=True),
        "max_cells": MAX_CELLS,
        "seed": SEED,
    },
    "generation.path_log_density": {
        "n_pairs": COUNT,
        "n_points": COUNT,
        "n_neighbors": NEIGHBOURS,
        "max_cells": whole(3, huge=True, none=True, taken=30),
        "seed": SEED,
    },
    "generation.precision_coverage": {
        "n_neighbors": NEIGHBOURS,
        "max_cells": SOME_CELLS,
        "seed": SEED,
    },
    "generation.principal_components": {"n_components": LIMIT, "seed": SEED_32},
    "generation.prior_fit": {"n_permutations": COUNT, "max_cells": whole(3, huge=True, none=True), "seed": SEED},
    "generation.score_generator": {
        "seconds": real(2.0, -1.0, none=True),
        "n_components": LIMIT,
        "max_cells": whole(6, huge=True, none=True, taken=30),
        "seed": SEED_32,
    },
    "generation.memorisation": {"max_cells": MAX_CELLS, "seed": SEED},
    "generation.spurious": {"quantile": SHARE, "max_cells": MAX_CELLS, "seed": SEED},
    "generation.two_sample_auc": {
        "n_folds": whole(2, taken=3),
        "n_components": LIMIT,
        "max_cells": SOME_CELLS,
        "seed": SEED,
    },
    "metrics.batch_entropy": {"k": NEIGHBOURS, "max_cells": SOME_CELLS, "seed": SEED},
    "metrics.batch_mixing_entropy": {
        "k": NEIGHBOURS,
        "n_cells": COUNT,
        "n_pools": COUNT,
        "max_cells": SOME_CELLS,
        "seed": SEED,
    },
    "metrics.embedding_scores": {"max_cells": whole(2, huge=True, none=True, taken=60), "seed": SEED_32},
    "metrics.graph_connectivity": {
        "k": NEIGHBOURS,
        "max_cells": SOME_CELLS,
        "seed": SEED,
    },
    "metrics.kmeans_ari_nmi": {"n_init": whole(taken=2), "seed": SEED_32, "max_cells": MAX_CELLS},
    "metrics.knn_accuracy": {"k": NEIGHBOURS, "max_cells": SOME_CELLS, "seed": SEED},
    "metrics.silhouette_batch": {"max_cells": MAX_CELLS, "seed": SEED},
    "metrics.silhouette_label": {"max_cells": MAX_CELLS, "seed": SEED},
    "pl.condition_effect": {"max_cells": CELLS, "seed": SEED_32},
    "pl.differential_abundance": {"max_cells": CELLS, "seed": SEED_32},
    "pl.gene_programs": {"n_genes": LIMIT, "max_cells": CELLS, "seed": SEED_32},
    "pl.generation": {"max_cells": whole(2, huge=True, taken=40), "seed": SEED_32},
    "pl.gradient": {"max_cells": CELLS, "seed": SEED_32},
    "pl.images": {"shape": Rule(((2.0, np.int8(30)),), ((0, 60), (-2, -30), (1.5, 40), (True, 60), "ab", 60, None))},
    "pl.integration": {"max_cells": whole(huge=True, taken=40), "seed": SEED_32},
    "pl.interpolation": {
        "first": Rule((1.0, np.int16(2), [3]), (-1, 1.5, math.nan, HUGE, "1", True, None)),
        "second": Rule((1.0, np.int16(2), [3]), (-1, 1.5, math.nan, HUGE, "1", True, None)),
        "shape": Rule(((2.0, np.int8(30)),), ((0, 60), (-2, -30), (1.5, 40), (True, 60), "ab", 60)),
        "n_points": whole(2),
        "n_neighbors": NEIGHBOURS,
        "seed": SEED,
    },
    "pl.latent_grid": {
        "shape": Rule(((2.0, np.int8(30)),), ((0, 60), (-2, -30), (1.5, 40), (True, 60), "ab", 60)),
        "n_points": COUNT_OR_NONE,
        "limits": Rule((2, ((-1, 1.0), (0, 2))), (0, -1, math.nan, 1e300, "3", True, None, (1, 2), ((1, 0), (0, 1)))),
    },
    "pl.latent_scatter": {"max_cells": CELLS, "seed": SEED_32},
    "pl.similarity": {"max_cells": CELLS, "seed": SEED_32},
    "pl.trends": {"n_columns": LIMIT},
    "pl.volcano": {"n_names": whole(0, huge=True)},
    "simulate.simulate": {
        "n_cells": COUNT,
        "n_genes": whole(2),
        "n_batches": whole(taken=2),
        "n_types": COUNT,
        "n_latent": COUNT,
        "batch_strength": real(0.5, -0.1, HUGE),
        "dropout": DROPOUT,
        "mean_library": real(50.0, 0, -1.0, HUGE),
        "n_files": whole(none=True, taken=2),
        "seed": SEED,
    },
    "tl.condition_effect": {"interval": SHARE, "n_samples": whole(2, taken=3), "seed": SEED},
    "tl.split_counts": {"fraction": SHARE, "seed": SEED},
    "SCCVAE.condition_effect": {"n_samples": whole(1, none=True, taken=2), "seed": SEED, "chunk_size": LIMIT_OR_NONE},
    "tl.denoise": {"interval": SHARE, "n_samples": whole(20, taken=25), "seed": SEED},
    "tl.differential_abundance": {
        "n_neighbors": whole(2, none=True),
        "n_neighborhoods": whole(2, none=True, taken=20),
        "interval": SHARE,
        "seed": SEED,
    },
    "tl.gene_programs": {
        "n_programs": whole(none=True, taken=2),
        "n_genes": LIMIT,
        "max_cells": whole(2, huge=True, taken=30),
        "seed": SEED,
    },
    "tl.gradient": {
        "root": Rule((3.0, np.int16(3)), (-1, 1.5, math.nan, HUGE, True, None)),
        "n_neighbors": whole(2, huge=True),
        "n_dcs": whole(2, taken=3),
        "seed": SEED_32,
    },
    "tl.integrate": {"seed": SEED},
    "pl.mapping": {"max_cells": CELLS, "seed": SEED_32},
    "tl.map_query": {"least_genes": real(0.5, -0.1, 1.5), "seed": SEED},
    "tl.transfer_labels": {"novelty_rate": RATE, "error_rate": RATE, "seed": SEED},
    "tl.rank_genes_groups": {"n_genes": LIMIT_OR_NONE, "seed": SEED},
    "tl.score_integration": {"max_cells": whole(2, huge=True, none=True, taken=60), "seed": SEED_32},
    "tl.similarity": {"n_neighbors": whole(2), "seed": SEED_32},
    "tl.trends": {
        "library_size": real(100.0, 0, -1.0, 1e300),
        "n_points": whole(2),
        "span": Rule((1.0, np.float32(0.5)), (0, -0.5, 1.5, math.nan, math.inf, None, *NO_NUMBER)),
        "level": SHARE,
        "n_samples": whole(20, taken=25),
        "seed": SEED,
    },
}
SLOW = {"SCCVAE.report", "pl.generation", "pl.integration", "generation.score_generator"}  # to run, not to refuse


# ----------------------------------------------------------------------------------------------- what there is to try


def public() -> dict[str, Callable]:
    """Every function, method and class that users are told of, by its name."""
    found: dict[str, Callable] = {"cross_validate": sccvae.cross_validate}
    for cls in CLASSES:
        found[cls.__name__] = cls.__init__
        methods = inspect.getmembers(cls, callable)
        found |= {f"{cls.__name__}.{name}": f for name, f in methods if not name.startswith("_")}
    for name in MODULES:
        module = getattr(sccvae, name)
        for what in getattr(module, "__all__", [w for w in vars(module) if not w.startswith("_")]):
            member = getattr(module, what)
            own = "sccvae." if hasattr(module, "__all__") else module.__name__
            if callable(member) and getattr(member, "__module__", "").startswith(own):
                found[f"{name}.{what}"] = member.__init__ if inspect.isclass(member) else member
    return found


def is_numeric(parameter: inspect.Parameter) -> bool:
    """Whether annotation or default say that a number is meant, also among others."""
    default = isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool)
    return default or bool(re.search(r"\b(int|float)\b", str(parameter.annotation)))


NOT_ASKED = {"generation.MMD", "generation.PathLogDensity", "generation.PrecisionCoverage"}  # what scores return
# What a helper behind the public ones is handed by them, checked.
INTERNAL = {"corruption.processes_for", "corruption.described", "corruption.understood", "corruption.Corruption"}


def test_every_numeric_argument_has_a_row():
    found = {
        name: {p.name for p in inspect.signature(f).parameters.values() if is_numeric(p)}
        for name, f in public().items()
        if name not in NOT_ASKED | INTERNAL
    }
    found = {name: arguments for name, arguments in found.items() if arguments}
    assert {name: set(rows) for name, rows in TABLE.items()} == found


# ---------------------------------------------------------------------------------------------------------------- calls


@pytest.fixture(scope="module")
def data(make_adata, tmp_path_factory):
    """A small AnnData with all that `tl` writes, and a trained model of each kind."""
    adata = make_adata(60, 60)
    model = SCCVAE(adata, batch_key="batch", **SMALL)
    model.train(**QUIET)
    tl.store(adata, model)
    tl.transfer_labels(adata, model, reference_labels="kind")
    tl.hierarchy(adata, "kind", use_rep="X_sccvae")
    tl.gene_programs(adata, model)
    adata.obs["sccvae_pseudotime"] = np.linspace(0, 1, 60)
    adata.obs["sample"], adata.obs["arm"] = (np.arange(60) % 6).astype(str), np.where(np.arange(60) % 6 < 3, "a", "b")
    tl.trends(adata, model, ["gene1", "gene2"], n_samples=20, n_points=3)
    tl.differential_abundance(adata, "sample", "arm")
    conditioned = SCCVAE(adata, batch_key="batch", condition_key="arm", **SMALL)
    conditioned.train(**QUIET)
    tl.condition_effect(adata, conditioned, "a", "b", sample_key="sample", n_samples=2)
    others = {}
    for cls in (Autoencoder, DenoisingAutoencoder):
        others[cls.__name__] = cls(adata, **SMALL)
        others[cls.__name__].train(**QUIET)
    rng = np.random.default_rng(0)
    return SimpleNamespace(
        adata=adata,
        models={"SCCVAE": model, **others},
        conditioned=conditioned,
        counts=(adata.X, model.posterior_predictive_sample()),
        z=rng.standard_normal((60, 2)),
        other=rng.standard_normal((60, 2)),
        table=model.differential_expression(groupby="kind", group1="w", n_samples=10),
        path=tmp_path_factory.mktemp("numbers") / "report.html",
    )


def run(d: SimpleNamespace, name: str, given: dict[str, Any]) -> Any:
    """Call the function called `name` with what is given and small data."""
    kind, _, method = name.partition(".")
    layer = {"adata": d.adata}
    classes = {cls.__name__: cls for cls in CLASSES}
    if kind in classes and not method:
        normal = {"gene_likelihood": "normal"} if "scale" in given else {}
        return classes[kind](d.adata, **{**SMALL, **normal, **given})
    if kind in classes:
        model = d.conditioned if name == "SCCVAE.condition_effect" else d.models[kind]
        if method == "train":
            model = classes[kind](d.adata, **SMALL)
            return model.train(**{**QUIET, **given})
        defaults: dict[str, dict[str, Any]] = {
            "cross_validate": {"options": QUIET | SMALL | {"max_epochs": 1}, "progress_bar": False, "n_splits": 1},
            "decode": {"z": d.z, **({"batch": "a"} if kind == "SCCVAE" else {})},
            "differential_expression": {"groupby": "kind", "n_samples": 10},
            "generate": {"n_cells": 5, **({"steps": 2, "thin": 1} if kind == "DenoisingAutoencoder" else {})},
            "sample_codes": {"n_codes": 5},
            "load_query_data": {"adata": d.adata, "reference": model},
            "predict": {"reference_labels": "kind"},
            "report": {"path": d.path},
            "get_marginal_ll": {"n_samples": 2},
            "condition_effect": {"condition": "a", "reference": "b", "n_samples": 2},
        }
        if method == "cross_validate":
            defaults[method]["options"] = {**SMALL, "max_epochs": 1}
        return getattr(model, method)(**{**defaults.get(method, {}), **given})
    model, labels, batches = d.models["SCCVAE"], d.adata.obs["kind"], d.adata.obs["batch"]
    two, k = {"x": d.z, "y": d.other}, {"k": 5}
    pair, counts = {"real": d.z, "generated": d.other}, dict(zip(("real", "generated"), d.counts, strict=True))
    defaults = {
        "cross_validate": {**layer, "settings": {"a": {}}, "options": {**SMALL, "max_epochs": 1}, "n_splits": 1},
        "generation.gene_agreement": counts,
        "generation.line_log_density": {"z": d.z, "first": [0], "second": [1], "along": [0.5]},
        "generation.log_normalized": {"counts": d.counts[0]},
        "generation.mmd": {**two, "n_permutations": 5},
        "generation.path_log_density": {"z": d.z},
        "generation.precision_coverage": pair,
        "generation.principal_components": pair,
        "generation.prior_fit": {"z": d.z, "n_permutations": 5},
        "generation.score_generator": counts,
        "generation.memorisation": {"training": pair["real"], "held_out": pair["real"], "generated": pair["generated"]},
        "generation.spurious": pair,
        "generation.two_sample_auc": {**pair, "n_folds": 2},
        "metrics.batch_entropy": {"z": d.z, "batches": batches, **k},
        "metrics.batch_mixing_entropy": {"z": d.z, "batches": batches, **k},
        "metrics.embedding_scores": {"z": d.z, "labels": labels},
        "metrics.graph_connectivity": {"z": d.z, "labels": labels, **k},
        "metrics.kmeans_ari_nmi": {"z": d.z, "labels": labels, "n_init": 1},
        "metrics.knn_accuracy": {"z": d.z, "labels": labels, **k},
        "metrics.silhouette_batch": {"z": d.z, "labels": labels, "batches": batches},
        "metrics.silhouette_label": {"z": d.z, "labels": labels},
        "pl.condition_effect": {**layer, "gene": "gene1", "basis": "X_sccvae"},
        "pl.differential_abundance": {**layer, "basis": "X_sccvae"},
        "pl.gene_programs": {**layer, "basis": "X_sccvae"},
        "pl.generation": {"real": d.adata, "generated": d.adata},
        "pl.gradient": {**layer, "basis": "X_sccvae"},
        "pl.images": {"rows": {"a": d.adata.X[:2]}, "shape": (6, 10)},
        "pl.integration": {**layer, "label_key": "kind"},
        "pl.interpolation": {"model": model, "first": 0, "second": 9, "batch": "a"},
        "pl.latent_grid": {"model": model, "batch": "a", "n_points": 3},
        "pl.latent_scatter": {"codes": {"a": d.z}},
        "pl.mapping": {"query": d.adata},
        "pl.similarity": {**layer, "groupby": "kind", "use_rep": "X_sccvae"},
        "pl.trends": layer,
        "pl.volcano": {"table": d.table},
        "simulate.simulate": {"n_cells": 10, "n_genes": 10},
        "tl.condition_effect": {**layer, "model": d.conditioned, "condition": "a", "reference": "b", "copy": True},
        "tl.split_counts": {**layer, "copy": True},
        "tl.denoise": {**layer, "model": model, "genes": "gene1", "n_samples": 20},
        "tl.differential_abundance": {**layer, "sample_key": "sample", "condition_key": "arm", "copy": True},
        "tl.gene_programs": {**layer, "model": model, "copy": True},
        "tl.gradient": {**layer, "root": 0, "layout": None},
        "tl.integrate": {**layer, "copy": True, "model_options": SMALL, "train_options": QUIET},
        "tl.map_query": {"query": d.adata, "model": model, "copy": True},
        "tl.transfer_labels": {**layer, "model": model, "reference_labels": "kind", "copy": True},
        "tl.rank_genes_groups": {**layer, "model": model, "groupby": "kind", "de_options": {"n_samples": 10}},
        "tl.score_integration": {**layer, "batch_key": "batch", "label_key": "kind", "use_rep": "X_sccvae"},
        "tl.similarity": {**layer, "model": model},
        "tl.trends": {**layer, "model": model, "genes": ["gene1"], "n_samples": 20, "n_points": 3},
    }
    if name == "tl.integrate" and "seed" in given:
        given = {**given, "expression": False}
    if given.get("n_files") is not None:
        given = {**given, "out": d.path.with_name("cells.h5ad")}
    if name == "pl.latent_grid" and "shape" not in given:
        given = {**given, "gene_list": ["gene1"]}
    if name == "cross_validate":
        given = {**given, "progress_bar": False}
    if name == "tl.score_integration":
        given = {**given, "scib": False}
    home = sccvae if not method else {m.__name__.split(".")[-1]: m for m in LOADED}[kind]
    return getattr(home, method or kind)(**{**defaults.get(name, {}), **given})


LOADED = (corruption, generation, metrics, pl, simulate, tl)
ROWS = [pytest.param(name, argument, id=f"{name}-{argument}") for name, rows in TABLE.items() for argument in rows]


def forms(value: Any) -> set[str]:
    """How a message may write a value: of several numbers, the first that is wrong may stand for all."""
    several = {str(v) for v in np.ravel(np.asarray(value, dtype=object))}
    return {repr(value), str(value), *several, *({str(float(value))} if isinstance(value, int | float) else ())}


@pytest.mark.parametrize(("name", "argument"), ROWS)
def test_a_number_that_makes_no_sense_is_named(data, name, argument):
    for value in TABLE[name][argument].refused:
        with pytest.raises((ValueError, TypeError)) as caught:
            run(data, name, {argument: value})
        text = str(caught.value)
        assert re.search(rf"\b{argument}\b", text), (value, text)
        assert any(form in text for form in forms(value)), (value, text)
        assert "expected" in text, (value, text)


@pytest.mark.parametrize(
    ("name", "argument"),
    [pytest.param(*row.values, id=row.id, marks=pytest.mark.slow if row.values[0] in SLOW else ()) for row in ROWS],
)
def test_a_number_that_makes_sense_is_taken(data, name, argument):
    for value in TABLE[name][argument].taken:
        run(data, name, {argument: value})


# ----------------------------------------------------------------------------------------------- what numbers come to


def test_numbers_of_any_kind_give_the_same(data):
    model = data.models["SCCVAE"]
    expected = model.get_normalized_expression(n_samples=3, seed=4, chunk_size=7, library_size=100)
    for convert in (float, np.int64, np.float32):
        found = model.get_normalized_expression(
            n_samples=convert(3), seed=convert(4), chunk_size=convert(7), library_size=convert(100)
        )
        pd.testing.assert_frame_equal(found, expected)
    pd.testing.assert_frame_equal(
        model.differential_expression(groupby="kind", n_samples=10.0, seed=np.float64(2)),
        model.differential_expression(groupby="kind", n_samples=10, seed=2),
    )


@pytest.mark.parametrize("dtype", ["int32", bool, "complex64", "O", "number", None])
def test_expression_has_a_dtype_that_holds_fractions(data, dtype):
    with pytest.raises(TypeError, match=r"^dtype is .*; expected 'float32', or another dtype of floating"):
        data.models["SCCVAE"].get_normalized_expression(dtype=dtype)


@pytest.mark.parametrize("z", ["no", [["a", "b"]], [[None, object()]], [[math.nan, 0]], [[1e300, 0]], [1.0, 2.0], 3])
def test_codes_that_are_none_are_named(data, z):
    with pytest.raises((ValueError, TypeError), match=r"^z (has shape|is of type) .*; expected finite"):
        data.models["SCCVAE"].decode(z, batch="a")
