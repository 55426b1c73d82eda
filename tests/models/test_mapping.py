"""New cells on a trained reference: what is known keeps its bits, new batches get offsets, cells get labels."""

from __future__ import annotations

import gc
import pickle

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from helpers import same_state
from scipy.special import log_softmax
from scipy.stats import nbinom

import sccvae
from sccvae import SCCVAE
from sccvae.inference import posterior
from sccvae.modules.distributions import log_standard_normal
from sccvae.statistics import diagnostics
from sccvae.statistics.checks.mapping import check_depth, check_missing_genes, check_new_cells, check_offsets

SMALL = {"n_hidden": 32, "n_latent": 5, "prior_components": 6, "device": "cpu"}
KINDS = ("A", "B", "C")


def some_cells(n: int = 360, seed: int = 0, kinds=KINDS, batches=("b0", "b1", "b2")) -> ad.AnnData:
    """Kinds of cells that differ in a third of 60 genes each, in batches that differ in depth and in ten genes."""
    rng = np.random.default_rng(seed)
    kind, batch = rng.integers(len(kinds), size=n), rng.integers(len(batches), size=n)
    mean = np.full((n, 60), 1.0)
    for k in range(len(kinds)):
        mean[np.ix_(kind == k, np.arange(k, 60, 4))] *= 8
    for b in range(len(batches)):
        mean[np.ix_(batch == b, np.arange(10) + 10 * b)] *= 2
    counts = sp.csr_matrix(rng.poisson(mean * rng.gamma(10, 0.1, (n, 1))).astype(np.float32))
    obs = pd.DataFrame(
        {"kind": np.array(kinds)[kind], "batch": np.array(batches)[batch]}, index=[f"c{i}" for i in range(n)]
    )
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene{g}" for g in range(60)]))


@pytest.fixture(scope="module")
def cells():
    return some_cells()


@pytest.fixture(scope="module")
def known(cells):
    """Two batches, with a fifth of the labels missing."""
    adata = cells[cells.obs["batch"] != "b2"].copy()
    adata.obs.loc[adata.obs_names[::5], "kind"] = None
    return adata


@pytest.fixture(scope="module")
def reference(known):
    """A model with labels."""
    model = SCCVAE(known, batch_key="batch", labels_key="kind", **SMALL)
    model.train(200, batch_size=32, early_stopping=False, progress_bar=False)
    return model


@pytest.fixture
def query(cells):
    new = cells[cells.obs["batch"] == "b2"].copy()
    del new.obs["kind"]
    return new


def truth_of(cells, query):
    return cells.obs.loc[query.obs_names, "kind"].to_numpy()


def test_labels_help_and_are_in_the_history(cells, reference):
    rows = reference.history
    held_out = rows[rows["split"] == "validation"]
    assert held_out["label_accuracy"].iloc[-1] > 0.9
    assert rows["label_penalty"].iloc[-2] < rows["label_penalty"].iloc[0] / 3
    known = cells[cells.obs["batch"] != "b2"].copy()  # also the cells whose label was missing
    assert (reference.predict(known)["label"] == known.obs["kind"]).mean() > 0.95


def test_a_query_is_mapped_at_once_and_the_reference_keeps_every_bit(cells, reference, query):
    before, weights = reference.get_latent_representation(), reference._vae.state_dict()
    mapped = SCCVAE.load_query_data(query, reference)
    assert mapped.is_mapped
    assert not reference.is_mapped
    assert mapped.batches == ("b0", "b1", "b2")
    assert (mapped.predict()["label"] == truth_of(cells, query)).mean() > 0.9
    again = SCCVAE.load_query_data(query, reference)
    for model in (mapped, again):
        model.train(progress_bar=False)
    assert same_state(mapped._vae.state_dict(), again._vae.state_dict())
    assert same_state(reference._vae.state_dict(), weights)
    np.testing.assert_array_equal(mapped.get_latent_representation(reference.adata), before)
    np.testing.assert_array_equal(reference.get_latent_representation(), before)
    pd.testing.assert_frame_equal(mapped.predict(), again.predict())
    assert (mapped.predict()["label"] == truth_of(cells, query)).mean() > 0.9


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch"])
def test_training_moves_the_rows_of_the_new_batch_alone(cells, query, dispersion):
    known = cells[cells.obs["batch"] != "b2"].copy()
    model = SCCVAE(known, batch_key="batch", dispersion=dispersion, **SMALL)
    model.train(2, progress_bar=False)
    mapped = SCCVAE.load_query_data(query, model)
    start = {name: w.clone() for name, w in mapped._vae.state_dict().items()}
    mapped.train(progress_bar=False)
    moved = set()
    for name, w in mapped._vae.state_dict().items():
        if w.shape == model._vae.state_dict()[name].shape:
            assert (w == start[name]).all(), name
            assert (w == model._vae.state_dict()[name]).all(), name
        else:
            assert (w[:2] == model._vae.state_dict()[name]).all(), name
            if not (w[2:] == start[name][2:]).all():
                moved.add(name)
    expected = {name for name in start if ".levels." in name}
    assert moved == expected | ({"decoder.log_dispersion"} if dispersion == "gene-batch" else set())
    assert len(expected) == 3
    assert start["library_mean"][2].item() == pytest.approx(np.log(query.X.sum(1)).mean(), abs=1e-4)


def test_a_new_batch_begins_at_the_mean_of_the_known_ones(reference, query):
    mapped = SCCVAE.load_query_data(query, reference)
    for name, w in mapped._vae.state_dict().items():
        if ".levels." in name:
            np.testing.assert_allclose(w[2], w[:2].mean(0), atol=1e-6)


def test_cells_of_known_batches_are_mapped_without_training(reference, caplog):
    known = reference.adata[:30].copy()
    mapped = SCCVAE.load_query_data(known, reference)
    np.testing.assert_array_equal(mapped.get_latent_representation(), reference.get_latent_representation(known))
    before = {name: w.clone() for name, w in mapped._vae.state_dict().items()}
    with caplog.at_level("INFO", "sccvae"):
        mapped.train(progress_bar=False)
    assert "nothing to adapt" in caplog.text
    assert same_state(mapped._vae.state_dict(), before)


def test_known_and_new_batches_at_once_and_a_mapped_model_as_reference(cells, reference, query):
    both = cells[cells.obs["batch"].isin(["b1", "b2"])].copy()
    mapped = SCCVAE.load_query_data(both, reference)
    mapped.train(progress_bar=False)
    assert mapped.batches == ("b0", "b1", "b2")
    more = some_cells(90, seed=5, batches=("b3", "b1"))
    second = SCCVAE.load_query_data(more, mapped)
    second.train(progress_bar=False)
    assert second.batches == ("b0", "b1", "b2", "b3")
    np.testing.assert_array_equal(second.get_latent_representation(both), mapped.get_latent_representation())
    np.testing.assert_array_equal(
        second.get_latent_representation(reference.adata), reference.get_latent_representation()
    )
    assert (second.predict()["label"] == more.obs["kind"]).mean() > 0.9


@pytest.mark.parametrize("batch_key", [None, "batch"])
def test_a_reference_of_one_batch(cells, query, batch_key):
    known = cells[cells.obs["batch"] == "b0"].copy()
    model = SCCVAE(known, batch_key=batch_key, labels_key="kind", **SMALL)
    model.train(30, batch_size=32, progress_bar=False)
    mapped = SCCVAE.load_query_data(query, model, batch_key="batch")
    assert mapped.batches == (("all", "b2") if batch_key is None else ("b0", "b2"))
    mapped.train(progress_bar=False)
    assert (mapped.predict()["label"] == truth_of(cells, query)).mean() > 0.9


def test_save_and_load(cells, reference, query, tmp_path):
    reference.save(tmp_path / "reference")
    mapped = SCCVAE.load_query_data(query, tmp_path / "reference")
    mapped.train(progress_bar=False)
    direct = SCCVAE.load_query_data(query, reference)
    direct.train(progress_bar=False)
    pd.testing.assert_frame_equal(mapped.predict(), direct.predict())
    mapped.save(tmp_path / "mapped")
    loaded = SCCVAE.load(tmp_path / "mapped", query)
    assert loaded.is_mapped
    pd.testing.assert_frame_equal(loaded.predict(), mapped.predict())
    np.testing.assert_array_equal(loaded.get_latent_representation(), mapped.get_latent_representation())
    loaded.train(1, progress_bar=False)
    for name, w in loaded._vae.state_dict().items():
        known = reference._vae.state_dict()[name]
        assert (w[: len(known)] == known).all() if w.ndim else w == known, name


def test_a_reference_is_kept_in_the_folder(reference, query, tmp_path):
    reference.save(tmp_path / "plain")
    reference.save(tmp_path / "reference", with_reference=True)
    loaded = SCCVAE.load(tmp_path / "reference")
    kept = loaded.reference_cells()
    z = reference.get_latent_representation()
    assert np.abs(kept.obsm["X_sccvae"] - z).max() <= np.abs(z).max() / 65_000
    expected = reference.reference_cells()
    pd.testing.assert_frame_equal(kept.obs, expected.obs)
    assert kept.obs["kind"].isna().sum() == reference.adata.obs["kind"].isna().sum()
    mapped = SCCVAE.load_query_data(query, loaded)
    mapped.save(tmp_path / "mapped")
    assert SCCVAE.load(tmp_path / "mapped").reference_cells().n_obs == kept.n_obs
    with pytest.raises(ValueError, match=r"loaded without data, and was saved without its cells: save the reference"):
        SCCVAE.load(tmp_path / "plain").reference_cells()


def test_predictions(cells, reference, query):
    table = reference.predict()
    assert table.index.equals(reference.adata.obs_names)
    assert table["label"].cat.categories.tolist() == list(KINDS)
    soft = reference.predict(soft=True)
    assert soft.columns.tolist() == list(KINDS)
    np.testing.assert_allclose(soft.sum(1), 1)
    np.testing.assert_allclose(table["probability"], soft.max(1))
    assert table["novelty"].between(0, 1).all()
    assert (table["reason"] == "").equals(table["accepted"])
    assert table["accepted"].mean() > 0.8
    assert len(reference.predict(indices=[3, 1])) == 2
    assert reference.predict(novelty_rate=0.0, error_rate=0.0)["accepted"].mean() > table["accepted"].mean()
    assert reference.predict(novelty_rate=0.5)["accepted"].mean() < 0.55


def test_cells_of_an_unknown_kind_are_not_accepted(reference):
    new = some_cells(120, seed=3, kinds=("A", "B", "D"), batches=("b2",))
    rng = np.random.default_rng(0)
    unknown = (new.obs["kind"] == "D").to_numpy()
    x = new.X.toarray()
    x[unknown] = rng.poisson(np.where(np.arange(60) % 4 == 3, 12.0, 0.5), (unknown.sum(), 60))
    new.X = sp.csr_matrix(x.astype(np.float32))
    mapped = SCCVAE.load_query_data(new, reference)
    mapped.train(progress_bar=False)
    table = mapped.predict()
    assert (~table["accepted"])[unknown].mean() > 0.8
    assert table["accepted"][~unknown].mean() > 0.7
    reasons = table["reason"][unknown & ~table["accepted"]].str.split().str[0]
    assert set(reasons) <= {"new", "few", "between"}


def test_labels_of_a_model_without_labels(cells, query, tmp_path):
    known = cells[cells.obs["batch"] != "b2"].copy()
    model = SCCVAE(known, batch_key="batch", **SMALL)
    model.train(30, batch_size=32, progress_bar=False)
    with pytest.raises(ValueError, match=r"The model has no labels: train one with labels_key=, or pass labels"):
        model.predict()
    table = model.predict(known, reference_labels="kind")
    assert (table["label"] == known.obs["kind"]).mean() > 0.95
    model.save(tmp_path / "plain")
    plain = SCCVAE.load_query_data(query, tmp_path / "plain")
    assert plain.get_latent_representation().shape == (query.n_obs, 5)
    assert "new_cells" not in plain.diagnose().table.index
    labels = known.obs["kind"].to_numpy()
    with pytest.raises(ValueError, match="The reference was saved without the calibration of labels and loaded with"):
        plain.predict(reference_labels=labels)
    model.save(tmp_path / "model", with_reference=True)
    mapped = SCCVAE.load_query_data(query, tmp_path / "model")
    assert (mapped.predict(reference_labels=labels)["label"] == truth_of(cells, query)).mean() > 0.9
    with pytest.raises(TypeError, match="expected a label for each of"):
        mapped.predict(reference_labels="kind")


@pytest.mark.parametrize("missing", [0, 6, 20])
def test_missing_genes_are_left_out(cells, reference, query, missing):
    part = query[:, missing:].copy()
    if missing:
        with pytest.warns(UserWarning, match=rf"{60 - missing} of 60 genes of the model were found by name"):
            mapped = SCCVAE.load_query_data(part, reference)
    else:
        mapped = SCCVAE.load_query_data(part, reference)
    mapped.train(progress_bar=False)
    assert (mapped.predict()["label"] == truth_of(cells, query)).mean() > 0.85
    expression = mapped.get_normalized_expression()
    assert expression.shape == (query.n_obs, 60)
    assert (expression > 0).all().all()
    np.testing.assert_array_equal(
        mapped.get_latent_representation(reference.adata), reference.get_latent_representation()
    )
    pd.testing.assert_frame_equal(mapped.predict(part), mapped.predict())


def test_the_cells_of_a_reference_in_memory_are_known_as_long_as_it_exists(known, query):
    model = SCCVAE(known, batch_key="batch", labels_key="kind", **SMALL)
    model.train(1, progress_bar=False)
    mapped = SCCVAE.load_query_data(query, model)
    second = SCCVAE.load_query_data(query, mapped)
    for one in (mapped, second):
        np.testing.assert_array_equal(one.reference_cells().obsm["X_sccvae"], model.get_latent_representation())
        pd.testing.assert_frame_equal(one.reference_cells().obs, model.reference_cells().obs)
    copied = pickle.loads(pickle.dumps(mapped))
    del model
    gc.collect()
    for one in (mapped, second, copied):
        with pytest.raises(ValueError, match=r"The cells of the reference are not here, and were not saved with it"):
            one.reference_cells()


def test_a_mapped_model_is_loaded_with_its_query(reference, query, tmp_path):
    """Missing genes are left out and labels of the query take no part, as where it was mapped."""
    part = query[:, 15:].copy()
    with pytest.warns(UserWarning, match="15 are missing"):
        mapped = SCCVAE.load_query_data(part, reference)
    mapped.save(tmp_path / "mapped")
    part.obs["kind"] = "A"
    loaded = SCCVAE.load(tmp_path / "mapped", part)
    assert (loaded._counts.labels == -1).all()
    np.testing.assert_array_equal(loaded.get_latent_representation(), mapped.get_latent_representation())
    assert loaded.get_elbo() == mapped.get_elbo()
    assert loaded.diagnose().genes.index.equals(pd.Index([f"gene{g}" for g in range(15, 60)]))


def test_the_likelihood_leaves_missing_genes_out(reference, query):
    """ELBO terms of one sample, computed in float64 from the decoder's output for the genes that were found."""
    part, found = query[:, 20:].copy(), np.arange(20, 60)
    with pytest.warns(UserWarning, match="20 are missing"):
        mapped = SCCVAE.load_query_data(part, reference)
    vae, counts = mapped._vae, mapped._counts
    (rows, x, q_z, q_l), *rest = posterior.encode(vae, counts)
    assert not rest
    numbers = posterior.noise_of(vae, 3)(rows, 0)
    with torch.no_grad():
        z, log_l = q_z.sample(numbers), q_l.sample(numbers)
        decoded = vae.decoder(z, x)
        kl = (q_z.kl().sum(1) + log_standard_normal(z) - vae.log_prior(z)).double().numpy()
        kl_l = q_l.kl(vae.library_prior(x)).double().numpy()
    logits, extra = decoded.logits.double().numpy()[:, found], decoded.dropout.double().numpy()
    extra = np.broadcast_to(extra, (len(counts), 60))[:, found]
    theta = np.exp(np.broadcast_to(decoded.log_dispersion.double().numpy(), (len(counts), 60))[:, found])
    mean = np.exp(log_softmax(logits, axis=1) + log_l.double().numpy()[:, None])
    k, pi = part.X.toarray(), 1 / (1 + np.exp(-extra))
    log_p = np.log(1 - pi) + nbinom.logpmf(k, theta, theta / (theta + mean))
    log_p = np.where(k == 0, np.logaddexp(np.log(pi), log_p), log_p).sum(1)
    np.testing.assert_allclose(-mapped.get_reconstruction_error(return_mean=False, seed=3), log_p, rtol=1e-4)
    np.testing.assert_allclose(mapped.get_elbo(return_mean=False, seed=3), log_p - kl - kl_l, rtol=1e-3)
    assert mapped.get_marginal_ll(n_samples=50) > mapped.get_elbo()
    assert mapped.get_marginal_ll(n_samples=50) < log_p.mean()


def test_the_device_of_a_mapped_model(reference, query):
    assert SCCVAE.load_query_data(query, reference, device="cpu").device.type == "cpu"
    with pytest.raises(ValueError, match=r"device is 'nowhere'; expected 'auto', 'cpu', 'cuda'"):
        SCCVAE.load_query_data(query, reference, device="nowhere")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device is 'cuda', but torch finds no CUDA device; pass device='cpu'"):
            SCCVAE.load_query_data(query, reference, device="cuda")
        return
    there = SCCVAE.load_query_data(query, reference, device="cuda")
    assert there.device.type == "cuda"
    assert reference.device.type == "cpu"
    here = SCCVAE.load_query_data(query, reference).get_latent_representation()
    np.testing.assert_allclose(there.get_latent_representation(), here, atol=1e-3)


def test_an_unknown_batch_says_how_new_batches_are_mapped(reference, query):
    with pytest.raises(
        ValueError, match=r"Unknown category 'b2' of 'batch'.*SCCVAE\.load_query_data\(adata, model\) maps"
    ):
        reference.get_latent_representation(query)


def test_genes_are_matched_by_a_column_of_var(reference, query):
    direct = SCCVAE.load_query_data(query, reference).get_latent_representation()
    renamed = query[:, ::-1].copy()
    renamed.var["symbol"] = renamed.var_names
    renamed.var_names = [f"ENSG{k:011d}" for k in range(60)]
    found = SCCVAE.load_query_data(renamed, reference, gene_key="symbol")
    np.testing.assert_allclose(found.get_latent_representation(), direct, atol=1e-5)
    upper = query.copy()
    upper.var_names = upper.var_names.str.upper()
    np.testing.assert_allclose(SCCVAE.load_query_data(upper, reference).get_latent_representation(), direct, atol=1e-5)


def test_analyses_of_a_mapped_model(cells, reference, query):
    mapped = SCCVAE.load_query_data(query, reference)
    mapped.train(progress_bar=False)
    corrected = mapped.get_normalized_expression(transform_batch="b0", return_numpy=True)
    np.testing.assert_allclose(corrected.sum(1), 1, rtol=1e-4)
    query.obs["group"] = mapped.predict()["label"].astype(str)
    table = mapped.differential_expression(groupby="group", group1="A", n_samples=20)
    best = table.sort_values("lfc_mean", ascending=False).index[:10]
    assert np.mean([int(gene.removeprefix("gene")) % 4 == 0 for gene in best]) > 0.7
    assert mapped.generate(20, batch="b2").n_obs == 20
    with pytest.raises(ValueError, match="prior is 'aggregate' for a mapped model"):
        mapped.generate(5, prior="aggregate")
    assert mapped.get_elbo() < 0


def test_cells_with_a_label_are_generated(reference):
    for kind in KINDS:
        new = reference.generate(100, label=kind, batch="b0")
        assert (reference.predict(new)["label"] == kind).mean() > 0.9
    with pytest.raises(
        ValueError, match=r"Unknown label 'Z' of 'kind'; expected one of the training data: 'A', 'B', 'C'"
    ):
        reference.generate(3, label="Z")
    with pytest.raises(ValueError, match="prior is 'aggregate' with a label; expected 'normal'"):
        reference.generate(3, label="A", prior="aggregate")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda a: a.obs.drop(columns="batch", inplace=True), KeyError, "adata.obs has no column 'batch'"),
        (lambda a: setattr(a, "var_names", [f"x{g}" for g in range(60)]), ValueError, "no gene in common|No gene"),
        (lambda a: setattr(a, "X", a.X * 0.5), ValueError, "holds values that are not counts"),
    ],
)
def test_a_bad_query_is_one_sentence(reference, query, change, error, text):
    change(query)
    with pytest.raises(error, match=text):
        SCCVAE.load_query_data(query, reference)


def test_bad_references(reference, query, tmp_path, cells):
    with pytest.raises(TypeError, match=r"reference is of the class Autoencoder; expected an SCCVAE, or the folder"):
        SCCVAE.load_query_data(query, sccvae.Autoencoder(cells, n_hidden=8, n_latent=2))
    with pytest.raises(RuntimeError, match="not trained yet"):
        SCCVAE.load_query_data(query, SCCVAE(cells, batch_key="batch", **SMALL))
    with pytest.raises(FileNotFoundError):
        SCCVAE.load_query_data(query, tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"least_genes is 2; expected a fraction of the genes of the reference, in \[0, 1\]"
    ):
        SCCVAE.load_query_data(query, reference, least_genes=2)
    for name in ("novelty_rate", "error_rate"):
        with pytest.raises(ValueError, match=rf"{name} is 1\.0; expected a fraction of the cells in \[0, 1\)"):
            reference.predict(**{name: 1.0})


@pytest.mark.parametrize(
    ("labels", "options", "error", "text"),
    [
        (["A"] * 360, {}, ValueError, r"has one label, 'A'; expected at least two labels"),
        ([None] * 360, {}, ValueError, r"has no label: all values are missing; expected at least two"),
        (np.arange(360) / 7, {}, TypeError, r"has decimal numbers \(dtype float64\); expected labels, as text"),
        (["A", "B"] * 180, {"unlabeled": "Unknown"}, ValueError, r"unlabeled is 'Unknown', and no cell has it"),
        (["A", "B"] * 180, {"labels_key": None, "unlabeled": "A"}, ValueError, "unlabeled is 'A' without labels_key"),
        (["A", "B"] * 180, {"prior_components": 0}, ValueError, r"prior_components is 0, and labels are given"),
        (["A", "B"] * 180, {"label_weight": -1}, ValueError, r"label_weight is -1"),
    ],
)
def test_bad_labels(cells, labels, options, error, text):
    adata = cells.copy()
    adata.obs["kind"] = labels
    with pytest.raises(error, match=text):
        SCCVAE(adata, **{"labels_key": "kind"} | SMALL | options)


def test_a_value_that_means_no_label(cells):
    adata = cells.copy()
    adata.obs["kind"] = adata.obs["kind"].where(np.arange(360) % 2 == 0, "Unknown")
    model = SCCVAE(adata, labels_key="kind", unlabeled="Unknown", **SMALL)
    assert model._schema.labels == KINDS
    assert (model._counts.labels >= 0).sum() == 180
    numbers = cells.copy()
    numbers.obs["kind"] = np.where(np.arange(360) % 2 == 0, 1, 2)
    assert SCCVAE(numbers, labels_key="kind", **SMALL)._schema.labels == ("1", "2")


@pytest.mark.parametrize("likelihood", ["nb", "poisson", "normal"])
def test_labels_with_other_likelihoods(cells, likelihood):
    adata = cells[:120].copy()
    if likelihood == "normal":
        adata.X = adata.X.log1p()
    model = SCCVAE(adata, batch_key="batch", labels_key="kind", gene_likelihood=likelihood, **SMALL)
    model.train(15, batch_size=32, progress_bar=False)
    assert (model.predict()["label"] == adata.obs["kind"]).mean() > 0.8


def test_diagnosis_of_mapped_cells(cells, reference, query):
    assert not set(diagnostics.OF_MAPPED) & set(reference.diagnose().table.index)
    mapped = SCCVAE.load_query_data(query, reference)
    mapped.train(progress_bar=False)
    table = mapped.diagnose().table
    assert table.loc[["missing_genes", "depth", "offsets"], "ok"].all()
    assert table.loc["new_cells", "value"] < 0.35  # of 118 cells; last digits of the training move some of them
    assert "epochs" in table.loc["late_gain", "sentence"]
    assert "late_gain" not in SCCVAE.load_query_data(query, reference).diagnose().table.index
    shallow = query[:, 20:].copy()
    shallow.X = sp.csr_matrix(np.random.default_rng(0).binomial(shallow.X.toarray().astype(int), 0.2).astype("f4"))
    with pytest.warns(UserWarning, match="20 are missing"):
        poor = SCCVAE.load_query_data(shallow, reference).diagnose()
    assert "20 of 60 genes of the reference are missing, such as" in " ".join(poor.warnings)
    assert "times the molecules of the reference's. Labels are less certain" in " ".join(poor.warnings)


def test_sentences_of_checks():
    p, labels = np.array([0.01, 0.5, 0.01, 0.9]), np.array(["a", "b", "a", "b"])
    found = check_new_cells(p, 0.05, labels)
    assert found.value == 0.5
    assert found.sentence == (
        "50% of the cells are unlike the reference, where 5% are expected. Among cells labelled a they are 100%."
    )
    many = check_new_cells(np.r_[np.full(8, 0.01), 0.5, 0.5, 0.01], 0.05, np.array(list("bbbbbbbbbba")))
    assert many.sentence.endswith("Among cells labelled b they are 80%.")
    levels = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 5.0]])
    far = check_offsets(levels, 2, ["x", "y", "new"])
    assert far.value == pytest.approx(5)
    assert far.sentence.startswith("The offsets of batch new are 5 times as large as those of known ones. It differs")
    assert check_offsets(levels, 3, ["x", "y", "new"]) is None
    assert check_offsets(levels[:2], 1, ["x", "y"]) is None
    assert check_depth(np.log([10.0, 20.0, 30.0]), np.log(100.0)).value == pytest.approx(0.2)
    assert check_missing_genes(None, np.array(["a"])).ok


def test_many_labels_have_three_components_each():
    cells = sccvae.simulate.simulate(300, 30, n_types=3, seed=0)
    cells.obs["fine"] = [f"kind_{k % 12}" for k in range(300)]
    few, many = (
        sccvae.SCCVAE(cells, batch_key="batch", labels_key=key).describe()["parameters"]["prior_components"]
        for key in ("cell_type", "fine")
    )
    assert (few, many) == (30, 36)
    assert (
        sccvae.SCCVAE(cells, labels_key="fine", prior_components=12).describe()["parameters"]["prior_components"] == 12
    )
