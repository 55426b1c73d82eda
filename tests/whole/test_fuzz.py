"""Random AnnData, random options, both ways in: every one trains and gives finite outputs, or is refused by a sentence.

About a minute. The longer run, 5,000 cases, or as many as are named:

    SCCVAE_LONG=1 python -m pytest tests/whole/test_fuzz.py
    SCCVAE_LONG=20000 python -m pytest tests/whole/test_fuzz.py

A case is its number: `python -m pytest "tests/whole/test_fuzz.py::test_any_anndata[17]"` runs number 17 again.
"""

from __future__ import annotations

import os
import traceback
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from lazy import in_h5, in_zarr

import sccvae

LONG = int(os.environ.get("SCCVAE_LONG", "0"))
N_CASES = {0: 120, 1: 5000}.get(LONG, LONG)
PACKAGE = str(Path(sccvae.__file__).parent)
DOCUMENTED = (ValueError, KeyError, TypeError, sccvae.TrainingError)
ODD_NAMES = ["all", "rest", "", " ", "a/b", "a", "1", "Ä", "x" * 300, "'", '"', ".", "nan", "β-7"]


class Case:
    """One random case; `said` tells what was drawn."""

    def __init__(self, number: int, folder: Path):
        self.rng, self.folder, self.said = np.random.default_rng([20, number]), folder, {}
        self.n_cells = int(self.pick("cells", [1, 2, 3, 7, 20, 60], [1, 1, 1, 2, 4, 4]))
        self.n_genes = int(self.pick("genes", [1, 2, 5, 30], [1, 1, 2, 6]))

    def pick(self, what: str, choices, weights=None):
        """One of the choices, remembered."""
        p = None if weights is None else np.array(weights) / sum(weights)
        choice = choices[self.rng.choice(len(choices), p=p)]
        self.said[what] = choice if len(repr(choice)) < 80 else f"{type(choice).__name__}"
        return choice

    def chance(self, what: str, share: float) -> bool:
        return bool(self.pick(what, [True, False], [share, 1 - share]))

    # ------------------------------------------------------------------------------------------------------ the matrix

    def dense(self) -> np.ndarray:
        """Values, (cells, genes) float64: most often counts."""
        rng, shape = self.rng, (self.n_cells, self.n_genes)
        x = rng.poisson(rng.gamma(0.5, self.pick("mean", [0.5, 4, 300], [1, 4, 1]), size=shape)).astype(float)
        if self.chance("no empty cells", 0.9):
            x[x.sum(1) == 0, rng.integers(self.n_genes)] = 1
        at = rng.integers(self.n_cells), rng.integers(self.n_genes)
        kind = self.pick("values", ["counts", "one", "fractions", "log", "scaled", "binary"], [12, 3, 1, 1, 1, 1])
        if kind == "one":
            x[at] = self.pick(
                "value", [np.nan, np.inf, -np.inf, -1, 0.5, 2.0**24, 2.0**24 + 2, 1e30, 1e300, 255, 70_000]
            )
        return {
            "fractions": lambda: np.maximum(x + rng.normal(0, 0.2, shape), 0),
            "log": lambda: np.log1p(x),
            "scaled": lambda: (x - x.mean(0)) / (x.std(0) + 1),
            "binary": lambda: (x > 0).astype(float),
        }.get(kind, lambda: x)()

    def contained(self, x: np.ndarray):
        """The values in some container, of some dtype."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # casts that overflow are meant to be tried
            dtypes = [
                "f4",
                "f8",
                "i4",
                "i8",
                "u1",
                "u2",
                "u8",
                ">f4",
                ">i4",
                "f2",
                "g",
                "?",
                "O",
                "c8",
                "U8",
                "S8",
                "M8[s]",
            ]
            x = x.astype(self.pick("dtype", dtypes, [12, 6, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 0.5, 0.3, 0.3, 0.3, 0.3]))
        kind = self.pick(
            "container",
            ["numpy", "fortran", "masked", "masked values", "read-only", "csr_matrix", "csc_matrix", "csr_array",
             "csc_array", "unsorted", "twice", "zeros stored", "h5", "zarr"],
            [4, 1, 0.5, 0.3, 0.5, 6, 3, 2, 1, 1, 1, 1, 1, 1],
        )  # fmt: skip
        if x.dtype.kind not in "biuf" or x.dtype.itemsize not in (1, 2, 4, 8) or not x.dtype.isnative:
            return x
        if kind in ("h5", "zarr"):
            inside = self.pick("in the file", [np.asarray, sp.csr_matrix, sp.csc_matrix])
            if inside is np.asarray or x.dtype != np.float16:
                return {"h5": in_h5, "zarr": in_zarr}[kind](self.folder, inside(x))
        if kind == "fortran":
            return np.asfortranarray(x)
        if kind.startswith("masked"):
            return np.ma.masked_array(x, mask=(x == 1) & (kind == "masked values"))
        if kind == "read-only":
            x.setflags(write=False)
        if x.dtype == np.float16 or kind in ("numpy", "read-only", "h5", "zarr"):
            return x
        return self.sparse(sp.csr_matrix(x), kind)

    def sparse(self, x: sp.csr_matrix, kind: str):
        """A valid sparse matrix, however odd."""
        if kind == "unsorted":
            order = np.concatenate([np.arange(b - 1, a - 1, -1) for a, b in zip(x.indptr, x.indptr[1:], strict=False)])
            order = order.astype(int)
            return sp.csr_matrix((x.data[order], x.indices[order], x.indptr), shape=x.shape)
        if kind == "twice":
            data = np.stack([x.data, np.zeros_like(x.data)], axis=1).ravel()
            return sp.csr_matrix((data, np.repeat(x.indices, 2), 2 * x.indptr), shape=x.shape)
        if kind == "zeros stored":
            n, g = x.shape
            indptr = np.arange(0, n * g + 1, g)
            return sp.csr_matrix((x.toarray().ravel(), np.tile(np.arange(g), n), indptr), shape=(n, g))
        return getattr(sp, kind)(x)

    # ------------------------------------------------------------------------------------------------- what goes along

    def categories(self, what: str):
        """A column of labels."""
        rng, n = self.rng, self.n_cells
        few = rng.integers(3, size=n)
        kind = self.pick(
            what,
            ["text", "categorical", "unused", "int", "float", "bool", "string", "odd", "each its own", "one", "mixed",
             "missing", "times"],
            [3, 4, 2, 1, 1, 1, 1, 2, 1, 1, 0.5, 0.5, 0.5],
        )  # fmt: skip
        return {
            "text": lambda: np.array(["a", "b", "c"])[few],
            "categorical": lambda: pd.Categorical(np.array(["a", "b", "c"])[few]),
            "unused": lambda: pd.Categorical(np.array(["a", "b", "c"])[few], categories=["z", "c", "b", "a"]),
            "int": lambda: few,
            "float": lambda: few / 2,
            "bool": lambda: few > 0,
            "string": lambda: pd.array(np.array(["a", "b", "c"])[few].tolist(), dtype="string"),
            "odd": lambda: rng.choice(ODD_NAMES, n),
            "each its own": lambda: [f"b{i}" for i in range(n)],
            "one": lambda: ["only"] * n,
            "mixed": lambda: np.array([1, "1", None, 2.5], dtype=object)[rng.integers(4, size=n)],
            "missing": lambda: pd.Categorical(np.array(["a", None], dtype=object)[few % 2]),
            "times": lambda: pd.to_datetime(few, unit="D"),
        }[kind]()

    def numbers(self, what: str):
        """A column of numbers."""
        x = self.rng.lognormal(0, 1, self.n_cells)
        kind = self.pick(
            what,
            ["float", "int", "nullable", "bool", "constant", "huge", "tiny", "nan", "inf", "negative", "text", "times",
             "complex"],
            [6, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 1, 0.5, 0.5, 0.3],
        )  # fmt: skip
        return {
            "float": lambda: x,
            "int": lambda: np.ceil(x).astype(int),
            "nullable": lambda: pd.array(np.ceil(x).astype(int), dtype="Int64"),
            "bool": lambda: x > 1,
            "constant": lambda: np.full(self.n_cells, 0.1),
            "huge": lambda: x * 1e300,
            "tiny": lambda: x * 1e-300,
            "nan": lambda: np.where(np.arange(self.n_cells) == 0, np.nan, x),
            "inf": lambda: np.where(np.arange(self.n_cells) == 0, np.inf, x),
            "negative": lambda: -x,
            "text": lambda: x.astype(str).astype(object) + "?",
            "times": lambda: pd.to_timedelta(x, unit="D"),
            "complex": lambda: x + 1j,
        }[kind]()

    def mask(self, adata: ad.AnnData):
        """What may be passed as `mask_var`."""
        chosen = self.rng.random(self.n_genes) < 0.7
        kind = self.pick(
            "mask",
            ["none", "column", "array", "objects", "missing", "zeros and ones", "short", "series", "list", "no column"],
            [6, 3, 2, 0.5, 0.5, 0.5, 0.3, 1, 1, 0.3],
        )
        if kind in ("column", "missing", "zeros and ones"):
            objects = chosen.astype(object)
            objects[0] = np.nan
            adata.var["mine"] = {"column": chosen, "missing": objects, "zeros and ones": chosen.astype(int)}[kind]
            return "mine"
        return {
            "none": lambda: None,
            "array": lambda: chosen,
            "objects": lambda: chosen.astype(object),
            "short": lambda: chosen[1:],
            "series": lambda: pd.Series(chosen, index=adata.var_names).sample(frac=1, random_state=0),
            "list": lambda: chosen.tolist(),
            "no column": lambda: "nothing",
        }[kind]()

    def anndata(self) -> tuple[ad.AnnData, dict]:
        """The AnnData, and what `SCCVAE` is told of it."""
        rng, options = self.rng, {}
        x, names = self.contained(self.dense()), [f"g{i}" for i in range(self.n_genes)]
        adata = ad.AnnData(sp.csr_matrix((self.n_cells, self.n_genes), dtype=np.float32))
        if self.chance("odd names of genes", 0.15):
            names = rng.choice([*ODD_NAMES, "MATR3"], self.n_genes).tolist()
        adata.var_names = names
        if self.chance("names of cells twice", 0.2):
            adata.obs_names = ["cell"] * self.n_cells
        for key, share in (("batch_key", 0.7), ("categorical_covariate_keys", 0.2)):
            if self.chance(key, share):
                adata.obs[key] = self.categories(key + ", kind")
                options[key] = key if key == "batch_key" else [key]
        for key, share in (("continuous_covariate_keys", 0.2), ("size_factor_key", 0.1)):
            if self.chance(key, share):
                adata.obs[key] = self.numbers(key + ", kind")
                options[key] = key if key == "size_factor_key" else [key]
        if self.chance("a column twice", 0.05):
            adata.obs = pd.concat([adata.obs, adata.obs.iloc[:, :1]], axis=1)
        options["mask_var"] = self.mask(adata)
        place = self.pick("place", ["X", "layer", "raw", "missing layer"], [10, 3, 0.5, 0.5])
        if place == "layer":
            adata.layers["counts"], options["layer"] = x, "counts"
            adata.X = None if self.chance("no X", 0.3) else adata.X
        else:
            adata.X = x
        if place == "raw":
            adata.raw = adata.copy()
            adata.X = np.full(adata.shape, 0.5)
        if place == "missing layer":
            options["layer"] = "counts"
        return self.seen(adata), options

    def seen(self, adata: ad.AnnData) -> ad.AnnData:
        """The AnnData itself, a view of it, or the file that it was written to."""
        if self.said.get("container") == "masked values":
            return adata  # a view of anndata's has no mask
        kind = self.pick("seen as", ["itself", "some cells", "some genes", "odd view", "backed"], [8, 1, 1, 1, 1])
        if kind == "some cells":
            return adata[self.rng.random(self.n_cells) < 0.8]
        if kind == "some genes":
            return adata[:, : max(1, self.n_genes // 2)]
        if kind == "odd view":
            return adata[self.rng.permutation(self.n_cells)]
        if kind == "backed":
            try:
                adata.write_h5ad(self.folder / "adata.h5ad")
            except Exception:  # noqa: BLE001  what h5ad cannot hold is tried in memory
                return adata
            return ad.read_h5ad(self.folder / "adata.h5ad", backed="r")
        return adata

    def cells(self, n: int, names: pd.Index):
        """What may be passed as `indices`."""
        kind = self.pick(
            "indices",
            ["none", "numbers", "mask", "slice", "where", "floats", "fractions", "negative", "beyond", "names",
             "series", "empty", "scalar", "objects", "missing"],
        )  # fmt: skip
        mask = self.rng.random(n) < 0.5
        return {
            "none": lambda: None,
            "numbers": lambda: self.rng.integers(n, size=4),
            "mask": lambda: mask,
            "slice": lambda: slice(0, n, 2),
            "where": lambda: np.where(mask),
            "floats": lambda: [0.0],
            "fractions": lambda: [0.5],
            "negative": lambda: [-1],
            "beyond": lambda: [n],
            "names": lambda: ["cell"],
            "series": lambda: pd.Series(mask, index=names),
            "empty": lambda: [],
            "scalar": lambda: 0,
            "objects": lambda: mask.astype(object),
            "missing": lambda: pd.array([True, None] * n, dtype="boolean")[:n],
        }[kind]()


def is_ours(error: BaseException) -> bool:
    """Whether a documented exception was raised by the package itself, with a sentence."""
    text = str(error.args[0]) if error.args else ""
    frames = traceback.extract_tb(error.__traceback__)
    own = frames[-1].filename.startswith(PACKAGE)
    return isinstance(error, DOCUMENTED) and own and len(text.split()) > 3 and text[-1] in ".?)"


def check_ours(error: BaseException, said) -> None:
    """Fail on an exception that is not."""
    assert is_ours(error), f"{said}\n{type(error).__name__}: {error}"


def finite(array, shape) -> None:
    """Check an output."""
    array = np.asarray(array)
    assert array.shape == shape
    assert np.isfinite(array).all()


def rows(chosen):
    """What numpy takes for the same cells."""
    if isinstance(chosen, slice | int):
        return chosen
    values = np.asarray(chosen)
    return values.astype(bool if values.dtype in (bool, object) else int)


def direct(adata: ad.AnnData, options: dict, case: Case) -> None:
    """`SCCVAE`, `train`, and the outputs."""
    model = sccvae.SCCVAE(adata, n_hidden=8, n_latent=3, device="cpu", **options)
    model.train(1, progress_bar=False)
    n, genes = adata.n_obs, len(model.gene_names)
    finite(model.get_latent_representation(), (n, 3))
    frame = model.get_normalized_expression()
    assert frame.index.equals(adata.obs_names)
    finite(frame, (n, genes))
    finite(model.get_elbo(return_mean=False), (n,))
    counts = model.likelihood.support == "counts"
    if counts:
        finite(model.get_latent_library_size(), (n,))
    assert model.generate(3).shape == (3, genes)
    whole, chosen = model.get_latent_representation(), case.cells(n, adata.obs_names)
    try:
        part = model.get_latent_representation(indices=chosen)
    except DOCUMENTED as error:
        check_ours(error, f"indices={chosen}")
    else:
        at = np.arange(n)[slice(None) if chosen is None else chosen[0] if isinstance(chosen, tuple) else rows(chosen)]
        np.testing.assert_allclose(part, np.atleast_2d(whole[at]), rtol=1e-4, atol=1e-5)
    if len(set(map(str, adata.var_names))) == adata.n_vars and not adata.isbacked:
        order = case.rng.permutation(adata.n_vars)
        other = adata[:, order].copy() if not adata.is_view else adata.copy()
        np.testing.assert_allclose(model.get_latent_representation(other), whole, rtol=1e-4, atol=1e-5)


def in_memory(adata: ad.AnnData) -> ad.AnnData:
    """A copy; anndata copies no file without `X`."""
    if not adata.isbacked:
        return adata.copy()
    if "X" in adata.file._file:
        return adata.to_memory()
    return ad.AnnData(obs=adata.obs, var=adata.var, layers={name: adata.layers[name] for name in adata.layers})


def through_tl(adata: ad.AnnData, options: dict) -> None:
    """`tl.integrate`, which writes to the AnnData, or to what a view or a file is in memory."""
    own = {key: options[key] for key in ("batch_key", "layer", "mask_var", "round_counts") if key in options}
    others = {key: value for key, value in options.items() if key not in own}
    if adata.isbacked or adata.is_view:
        adata = in_memory(adata)
    given = {"n_hidden": 8, "n_latent": 3, "device": "cpu", **others}
    sccvae.tl.integrate(adata, model_options=given, train_options={"max_epochs": 1, "progress_bar": False}, **own)
    finite(adata.obsm["X_sccvae"], (adata.n_obs, 3))
    expression = adata.layers["sccvae"] if "sccvae" in adata.layers else adata.obsm["sccvae"]
    assert expression.shape[0] == adata.n_obs
    modelled = adata.var.get("sccvae_modelled", np.ones(adata.n_vars, bool))
    modelled = np.asarray(modelled, bool) if expression.shape[1] == adata.n_vars else slice(None)
    assert np.isfinite(np.asarray(expression)[:, modelled]).all()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(N_CASES))
def test_any_anndata(number, tmp_path):
    case = Case(number, tmp_path)
    try:
        adata, options = case.anndata()
    except Exception as error:  # noqa: BLE001  what anndata itself refuses is not ours
        pytest.skip(f"anndata refuses it: {error}")
    options["gene_likelihood"] = case.pick(
        "likelihood", ["zinb", "nb", "poisson", "normal", "bernoulli"], [6, 2, 1, 1, 1]
    )
    if case.chance("round", 0.2):
        options["round_counts"] = True
    options["dispersion"] = case.pick("dispersion", ["gene", "gene-batch", "gene-cell"], [6, 1, 1])
    answers = []
    for route in (lambda: direct(adata, options, case), lambda: through_tl(adata, options)):
        try:
            route()
            answers.append("trained")
        except DOCUMENTED as error:
            check_ours(error, case.said)
            answers.append(f"{type(error).__name__}: {error}")
        except Exception as error:
            raise AssertionError(f"{case.said}\n{type(error).__name__}: {error}") from error
    assert answers[0] == answers[1], case.said


def test_what_comes_from_elsewhere_is_told_from_what_is_ours():
    with pytest.raises(ValueError, match="inhomogeneous") as theirs:
        np.array([[1], [1, 2]], dtype=float)
    assert not is_ours(theirs.value)
    with pytest.raises(TypeError, match="expected an AnnData") as ours:
        sccvae.SCCVAE(None)
    assert is_ours(ours.value)
