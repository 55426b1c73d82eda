"""The contract of `tl` and `pl`: what every function does alike, as Scanpy's functions do.

Functions are found by `__all__`; each has a row here with a small call. A new function without a row fails.
"""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import sccvae
from sccvae import pl, tl

mpl.use("Agg")
QUICK = {"max_epochs": 2, "progress_bar": False}
TINY = {"n_hidden": 8, "n_latent": 2}


@dataclass(frozen=True)
class Row:
    """A small call: what comes before the keywords, made from the `given` fixture, and the keywords."""

    before: Callable[[Any], tuple]
    options: dict[str, Any] = field(default_factory=dict)
    first: str = "adata"  # name of the first parameter
    model: int | None = None  # place of the model among the parameters, where there is one
    folders: bool = False  # whether the model may be the folder of one
    returns: type | None = None  # instead of None, or of a figure
    ax: dict[str, Any] | None = None  # of figures with one pair of axes: further keywords with which they have one


TL = {
    "condition_effect": Row(
        lambda g: (g.adata, g.conditioned, "stim", "ctrl"), {"n_samples": 2, "sample_key": "sample"}, model=1
    ),
    "confounding_table": Row(lambda g: (g.adata, "batch"), returns=pd.DataFrame),
    "denoise": Row(lambda g: (g.adata, g.model, ["gene3", "gene7"]), {"n_samples": 20}, model=1),
    "differential_abundance": Row(lambda g: (g.adata, "sample", "arm"), {"n_neighbors": 20}),
    "gene_programs": Row(lambda g: (g.adata, g.model), {"n_programs": 2, "max_cells": 60}, model=1),
    "gradient": Row(lambda g: (g.adata,), {"root": 0, "n_dcs": 5}),
    "hierarchy": Row(lambda g: (g.adata, "kind"), {"use_rep": "X_sccvae"}),
    "integrate": Row(lambda g: (g.adata,), {"batch_key": "batch", "model_options": TINY, "train_options": QUICK}),
    "map_query": Row(lambda g: (g.adata, g.labelled), first="query", model=1, folders=True),
    "pseudobulk": Row(lambda g: (g.adata, "donor", "kind"), model=4, returns=ad.AnnData),
    "rank_genes_groups": Row(
        lambda g: (g.adata, g.model), {"groupby": "kind", "de_options": {"n_samples": 20}}, model=1
    ),
    "score_integration": Row(
        lambda g: (g.adata, "batch", "kind"), {"use_rep": "X_sccvae", "scib": False}, returns=pd.DataFrame
    ),
    "similarity": Row(lambda g: (g.adata, g.model), {"n_neighbors": 5}, model=1),
    "split_counts": Row(lambda g: (g.adata,)),
    "store": Row(lambda g: (g.adata, g.model), model=1),
    "transfer_labels": Row(lambda g: (g.adata, g.labelled), model=1),
    "trends": Row(
        lambda g: (g.adata, g.model, ["gene3"]), {"pseudotime": "age", "n_samples": 20, "n_points": 10}, model=1
    ),
}
PL = {
    "condition_effect": Row(lambda g: (g.adata, "gene3"), {"basis": "X_draw_graph_sccvae", "max_cells": 60}),
    "diagnostics": Row(lambda g: (g.diagnosis,), first="diagnosis"),
    "differential_abundance": Row(lambda g: (g.adata,), {"basis": "X_draw_graph_sccvae", "max_cells": 60}),
    "dotplot": Row(lambda g: (g.adata, ["gene3", "gene7"], "kind"), ax={}),
    "gene_programs": Row(lambda g: (g.adata,), {"basis": "X_draw_graph_sccvae", "max_cells": 60}),
    "generation": Row(lambda g: (g.adata, g.adata), {"max_cells": 60}, first="real"),
    "gradient": Row(lambda g: (g.adata,), {"max_cells": 60}, ax={}),
    "history": Row(lambda g: (g.model.history,), first="history", ax={}),
    "images": Row(lambda g: ({"row $1$": np.eye(4)},), {"shape": (2, 2)}, first="rows", ax={}),
    "integration": Row(lambda g: (g.adata,), {"batch_key": "batch", "max_cells": 60}),
    "interpolation": Row(lambda g: (g.model, [0, 1], [2, 3]), {"n_points": 5, "batch": "a"}, first="model", model=0),
    "latent_grid": Row(
        lambda g: (g.model,), {"gene_list": ["gene3"], "n_points": 5, "batch": "a"}, first="model", model=0, ax={}
    ),
    "latent_scatter": Row(lambda g: ({"codes": g.adata.obsm["X_sccvae"]},), {"max_cells": 60}, first="codes", ax={}),
    "mapping": Row(
        lambda g: (tl.transfer_labels(g.adata, g.labelled, copy=True),),
        {"truth": "kind", "max_cells": 60},
        first="query",
    ),
    "score_table": Row(lambda g: (pd.DataFrame({"total": [0.5, 0.7]}, index=["a", "b"]),), first="scores", ax={}),
    "similarity": Row(lambda g: (g.adata, "kind"), {"use_rep": "X_sccvae", "max_cells": 60}, ax={}),
    "trends": Row(lambda g: (g.adata,), ax={"genes": ["gene3"]}),
    "volcano": Row(lambda g: (g.table,), first="table", ax={}),
}
ALL = [*((tl, name, row) for name, row in TL.items()), *((pl, name, row) for name, row in PL.items())]
IDS = [f"{module.__name__[-2:]}.{name}" for module, name, _ in ALL]
every = pytest.mark.parametrize(("module", "name", "row"), ALL, ids=IDS)
of_tl = pytest.mark.parametrize("name", TL)
of_pl = pytest.mark.parametrize("name", PL)
writes = pytest.mark.parametrize("name", [name for name, row in TL.items() if row.returns is None])
with_model = pytest.mark.parametrize(
    ("module", "name", "row"),
    [(module, name, row) for module, name, row in ALL if row.model is not None],
    ids=[key for key, (_, _, row) in zip(IDS, ALL, strict=True) if row.model is not None],
)


def parameters(module, name) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(getattr(module, name)).parameters)


SEEDED = [(module, name, row) for module, name, row in ALL if "seed" in parameters(module, name)]
seeded = pytest.mark.parametrize(
    ("module", "name", "row"), SEEDED, ids=[f"{module.__name__[-2:]}.{name}" for module, name, _ in SEEDED]
)


@pytest.fixture(scope="module")
def made(make_adata):
    """An analysed AnnData, its model, a diagnosis, a table of changed genes. Shared: take `given`."""
    adata = make_adata()
    del adata.var["highly_variable"]
    model = sccvae.SCCVAE(adata, batch_key="batch", **TINY)
    model.train(**QUICK)
    tl.store(adata, model)
    adata.obs["sample"] = pd.Categorical((np.arange(adata.n_obs) % 6).astype(str))
    adata.obs["arm"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 6 < 3, "ctrl", "stim"))
    tl.differential_abundance(adata, "sample", "arm", n_neighbors=20)
    conditioned = sccvae.SCCVAE(adata, batch_key="batch", condition_key="arm", **TINY)
    conditioned.train(**QUICK)
    tl.condition_effect(adata, conditioned, "stim", "ctrl", sample_key="sample", n_samples=2)
    tl.gene_programs(adata, model, n_programs=2)
    tl.gradient(adata, root=0, n_dcs=5)
    tl.trends(adata, model, ["gene3", "gene7"], n_samples=20, n_points=10)
    tl.hierarchy(adata, "kind", use_rep="X_sccvae")
    table = model.differential_expression(groupby="kind", group1="w", n_samples=20)
    labelled = sccvae.SCCVAE(adata, batch_key="batch", labels_key="kind", **TINY)
    labelled.train(**QUICK)
    models = {"model": model, "labelled": labelled, "conditioned": conditioned}
    return SimpleNamespace(adata=adata, **models, diagnosis=model.diagnose(), table=table)


@pytest.fixture
def given(made):
    """What the calls are made from; the AnnData is a copy of its own."""
    return SimpleNamespace(**{**vars(made), "adata": made.adata.copy()})


def run(module, name, given, **more):
    row = (TL if module is tl else PL)[name]
    return getattr(module, name)(*row.before(given), **{**row.options, **more})


def pixels(figure: Figure) -> bytes:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return bytes(canvas.buffer_rgba())


def result(module, name, given, left, **more):
    """What a call leaves, as something that can be compared to the bit."""
    found = run(module, name, given, **more)
    if isinstance(found, Figure):
        return pixels(found)
    return found.to_csv() if isinstance(found, pd.DataFrame) else left(given.adata)


@pytest.fixture(scope="module")
def left(fingerprint):
    """Function: AnnData -> text that changes with what is written to it, but for the seconds that a training took."""

    def of(adata: ad.AnnData) -> str:
        uns = {**adata.uns}
        if "sccvae" in uns:
            uns["sccvae"] = {**uns["sccvae"], "history": uns["sccvae"]["history"].drop(columns="seconds")}
        slim = adata.copy()
        slim.uns = uns
        return fingerprint(slim)

    return of


def test_every_function_has_a_row():
    assert set(TL) == set(tl.__all__)
    assert set(PL) == set(pl.__all__)


# ------------------------------------------------------------------------------------------------------- signatures


@every
def test_parameters_have_the_same_names_and_order(module, name, row):
    found = parameters(module, name)
    names = list(found)
    assert names[0] == row.first
    assert ("model" in names) == (row.model is not None)
    if row.model is not None:
        assert names[row.model] == "model"
    by_name = {key for key, p in found.items() if p.kind is p.KEYWORD_ONLY}
    assert {"copy", "key_added", "seed", "ax", "show"} & set(names) <= by_name
    assert not {"random_state", "rng", "inplace", "save"} & set(names)
    defaults = {"copy": False, "seed": 0, "show": False, "ax": None}
    assert {key: found[key].default for key in defaults if key in found} == {
        key: value for key, value in defaults.items() if key in found
    }
    if module is tl:
        assert ("copy" in found) == (row.returns is None)
    else:
        assert "show" in found
        assert ("ax" in found) == (row.ax is not None)


@every
def test_docstrings_have_their_sections(module, name, row):
    text = inspect.getdoc(getattr(module, name))
    places = [text.index(f"{title}\n{'-' * len(title)}") for title in ("Parameters", "Returns", "Examples")]
    assert places == sorted(places)
    described = text[places[0] : places[1]]
    for key in parameters(module, name):
        assert re.search(rf"^(\w+, )*{key}(, \w+)*$", described, re.MULTILINE), key


# ---------------------------------------------------------------------------------------------------------- results


@writes
def test_results_are_written_in_place_or_to_a_copy_and_a_second_call_changes_nothing(name, given, fingerprint, left):
    before = fingerprint(given.adata)
    copied = run(tl, name, given, copy=True)
    assert isinstance(copied, ad.AnnData)
    assert copied is not given.adata
    assert fingerprint(given.adata) == before
    assert run(tl, name, given) is None
    once, columns = left(given.adata), list(given.adata.obs)
    assert once == left(copied)
    run(tl, name, given)
    assert list(given.adata.obs) == columns
    assert left(given.adata) == once


@writes
def test_copy_is_a_bool_and_backed_data_have_none(name, given, tmp_path):
    with pytest.raises(TypeError, match=r"^copy is 'yes'; expected True or False\.$"):
        run(tl, name, given, copy="yes")
    given.adata.write_h5ad(tmp_path / "a.h5ad")
    given.adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    first = TL[name].first
    with pytest.raises(ValueError, match=rf"{first} is backed by a file: pass {first}\.to_memory\(\) to {name}"):
        run(tl, name, given, copy=True)
    given.adata.file.close()


def test_scores_are_returned(given, fingerprint):
    before = fingerprint(given.adata)
    assert isinstance(run(tl, "score_integration", given), pd.DataFrame)
    assert fingerprint(given.adata) == before
    with pytest.raises(TypeError, match="has no argument 'copy': nothing is written to adata"):
        run(tl, "score_integration", given, copy=True)


# ----------------------------------------------------------------------------------------------------------- chance


@every
def test_the_same_call_gives_the_same_to_the_bit_and_leaves_the_random_state(module, name, row, given, left):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    first = result(module, name, given, left)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # noqa: NPY002
    random.random()  # the state is another one now

    assert result(module, name, given, left) == first


SETTLED = {"tl.gradient", "tl.similarity", "tl.score_integration"}  # few cells: exact neighbours and no sampling


@seeded
def test_seeds_matter_and_have_scanpys_names_too(module, name, row, given, left):
    expected = result(module, name, given, left, seed=3)
    assert result(module, name, given, left, random_state=3) == expected
    if f"{module.__name__[-2:]}.{name}" not in SETTLED:
        assert result(module, name, given, left, rng=4) != expected
    with pytest.raises(TypeError, match="got seed and random_state, which are synonyms: pass seed alone"):
        run(module, name, given, seed=3, random_state=3)
    with pytest.raises(TypeError, match="got random_state and rng"):
        run(module, name, given, rng=3, random_state=3)
    with pytest.raises(TypeError, match=r"rng is a Generator; expected a whole number, as in seed=0\."):
        run(module, name, given, rng=np.random.default_rng())
    with pytest.raises(TypeError, match="random_state is None; expected a whole number"):
        run(module, name, given, random_state=None)


@every
def test_a_seed_where_there_is_no_chance_is_refused(module, name, row, given):
    if "seed" not in parameters(module, name):
        with pytest.raises(
            TypeError, match=rf"{name}\(\) has no argument 'random_state': the function uses no random numbers"
        ):
            run(module, name, given, random_state=0)


# ---------------------------------------------------------------------------------------------------------- figures


@of_pl
def test_figures_are_returned_and_not_left_open(name, given, fingerprint, monkeypatch):
    shown = []
    monkeypatch.setattr("matplotlib.pyplot.show", lambda *_, **__: shown.append(1))
    before, settings = fingerprint(given.adata), mpl.rcParams.copy()
    figure = run(pl, name, given)
    assert isinstance(figure, Figure)
    assert not plt.get_fignums()
    assert not shown
    assert fingerprint(given.adata) == before
    assert mpl.rcParams == settings
    assert isinstance(run(pl, name, given, show=None), Figure)  # Scanpy's default
    assert isinstance(run(pl, name, given, show=True), Figure)
    assert shown
    with pytest.raises(TypeError, match=r"^show is 'no'; expected True or False\.$"):
        run(pl, name, given, show="no")


@of_pl
def test_axes_are_drawn_into_where_a_figure_has_one(name, given):
    more = PL[name].ax
    if more is None:
        with pytest.raises(TypeError, match=rf"{name}\(\) has no argument 'ax': the function draws several panels"):
            run(pl, name, given, ax=plt.figure().add_subplot())
        return
    figure, (left, right) = plt.subplots(1, 2)
    blank, place = pixels(figure), right.get_position().bounds
    assert run(pl, name, given, ax=right, **more) is figure
    assert plt.fignum_exists(figure.number)  # it is the user's, and stays open
    assert pixels(figure) != blank
    assert not left.has_data()
    inside = [axes for axes in figure.axes if axes.has_data() and axes.get_position().x0 >= place[0] - 0.2]
    assert inside
    with pytest.raises(TypeError, match="ax is of type ndarray; expected one matplotlib Axes"):
        run(pl, name, given, ax=np.array([left, right]), **more)


def test_axes_have_room_for_one_panel(given):
    ax = Figure().add_subplot()
    z = given.adata.obsm["X_sccvae"]
    with pytest.raises(ValueError, match="ax has room for one gene; found 2"):
        pl.trends(given.adata, ax=ax)
    with pytest.raises(ValueError, match="ax has room for one entry of codes; found 2"):
        pl.latent_scatter({"a": z, "b": z}, ax=ax)
    with pytest.raises(ValueError, match="ax has room for one set of genes; found 2"):
        pl.latent_grid(given.model, gene_list={"a": ["gene3"], "b": ["gene7"]}, batch="a", ax=ax)


@of_pl
def test_figures_are_saved_by_matplotlib(name, given):
    for word, cure in (("save", r"figure\.savefig\('figure\.pdf'\)"), ("return_fig", "the figure is always returned")):
        with pytest.raises(TypeError, match=rf"{name}\(\) has no argument '{word}': .*{cure}"):
            run(pl, name, given, **{word: True})


# ----------------------------------------------------------------------------------------------------------- models


@with_model
def test_what_is_no_trained_model_is_said(module, name, row, given, make_adata, tmp_path):
    by_name = parameters(module, name)["model"].kind is inspect.Parameter.KEYWORD_ONLY

    def call(model):
        before = list(row.before(given))
        if by_name:
            return getattr(module, name)(*before, **row.options, model=model)
        before[row.model] = model
        return getattr(module, name)(*before, **row.options)

    place = "" if by_name else f", the {('first', 'second')[row.model]} argument,"
    with pytest.raises(TypeError, match=rf"model{place} is 'leiden'; .*: {name}\(.*model"):
        call("leiden")
    given.model.save(tmp_path / "m")
    for path in () if row.folders else (tmp_path / "m", str(tmp_path / "m")):
        with pytest.raises(TypeError, match=r"model is the path .* Load it first: model = sccvae\.SCCVAE\.load\('/"):
            call(path)
    with pytest.raises(TypeError, match="model is the class SCCVAE; expected a trained SCCVAE"):
        call(sccvae.SCCVAE)
    with pytest.raises(TypeError, match="model is of type VAE; expected a trained SCCVAE"):
        call(given.model._vae)
    with pytest.raises(TypeError, match="model is of type AnnData; expected a trained SCCVAE"):
        call(given.adata)
    with pytest.raises(RuntimeError, match=r"The model is not trained yet: call train\(\) first\."):
        call(sccvae.SCCVAE(make_adata(), **TINY))
    if (module, name) not in ((tl, "similarity"), (pl, "interpolation"), (pl, "latent_grid")):
        with pytest.raises(TypeError, match=r"model is of type Autoencoder; expected a trained SCCVAE: "):
            call(sccvae.Autoencoder(make_adata(), **TINY))
    if parameters(module, name)["model"].default is inspect.Parameter.empty:
        with pytest.raises(TypeError, match=rf"{name}\(\) was given no model: {name}\(.*model"):
            getattr(module, name)(*row.before(given)[: row.model], **row.options)


def test_groupby_in_the_place_of_the_model_as_in_scanpy(given):
    usage = re.escape("rank_genes_groups(adata, model, groupby=...)")
    with pytest.raises(TypeError, match=rf"model, the second argument, is 'kind'; .*: {usage}\."):
        tl.rank_genes_groups(given.adata, "kind")
    with pytest.raises(TypeError, match=usage):
        tl.rank_genes_groups(given.adata, groupby="kind")


# ---------------------------------------------------------------------------------------------- ranking, as Scanpy's


def test_groups_all_are_none(given, fingerprint):
    run(tl, "rank_genes_groups", given)
    expected = fingerprint(given.adata)
    run(tl, "rank_genes_groups", given, groups="all")
    assert fingerprint(given.adata) == expected
    given.adata.obs["kind"] = given.adata.obs["kind"].cat.rename_categories({"w": "all"})
    with pytest.raises(ValueError, match=r"one has that name: pass groups=\['all'\], or None for all"):
        run(tl, "rank_genes_groups", given, groups="all")
    run(tl, "rank_genes_groups", given, groups=["all"])
    assert given.adata.uns["rank_genes_groups"]["names"].dtype.names == ("all",)


def test_shares_are_stored_on_request(given):
    run(tl, "rank_genes_groups", given, pts=False)
    assert not {"pts", "pts_rest"} & set(given.adata.uns["rank_genes_groups"])
    sc.get.rank_genes_groups_df(given.adata, "w")
    run(tl, "rank_genes_groups", given, pts=True)
    assert {"pts", "pts_rest"} <= set(given.adata.uns["rank_genes_groups"])


@pytest.mark.parametrize("word", ["layer", "use_raw", "method", "corr_method", "rankby_abs", "tie_correct", "mask_var"])
def test_scanpys_other_arguments_have_an_answer(given, word):
    assert word in inspect.signature(sc.tl.rank_genes_groups).parameters
    with pytest.raises(TypeError, match=rf"^rank_genes_groups\(\) has no argument '{word}': \w.*\.$"):
        run(tl, "rank_genes_groups", given, **{word: None})


def test_key_added_is_the_prefix_of_everything_written(given):
    """Or, of functions that write under one key, the key; `denoise` adds it to the names of the genes."""
    bare = given.adata.copy()
    for part in ("obsm", "layers", "uns", "obsp"):
        getattr(bare, part).clear() if part != "obsm" else None
    for name in [name for name, row in TL.items() if row.returns is None]:
        given.adata = bare.copy()
        before = {part: set(getattr(given.adata, part)) for part in ("obs", "var", "obsm", "layers", "uns", "obsp")}
        run(tl, name, given, key_added="mine")
        new = [key for part, keys in before.items() for key in set(getattr(given.adata, part)) - keys]
        assert new
        assert all("mine" in key for key in new), (name, new)


def test_a_matrix_of_an_earlier_call_does_not_stay_beside_a_new_graph(given):
    tl.similarity(given.adata, given.model, n_neighbors=5, dense=True)
    assert "sccvae_similarity_matrix" in given.adata.obsp
    tl.similarity(given.adata, given.model, n_neighbors=5, metric="euclidean")
    assert "sccvae_similarity_matrix" not in given.adata.obsp


def test_warnings_point_at_the_call(given):
    apart = given.adata.copy()
    apart.obsm["X_sccvae"][:60] += 1e6
    with pytest.warns(UserWarning, match="No path leads from the root") as caught:
        tl.gradient(apart, root=0, n_neighbors=5, layout=None)
    assert [Path(w.filename).name for w in caught if "No path" in str(w.message)] == [Path(__file__).name]
