"""The drawing of mapped cells: where they are, what is counted, and that names and numbers can be read."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from drawn import mapped
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from sccvae import pl
from sccvae.pl.style import COLOURS, MISSING
from sccvae.statistics.calibration import calibration_error
from sccvae.statistics.neighbour_votes import placed

mpl.use("Agg")
LONG = [f"CD{k}-positive, alpha-beta memory T cell {k}" for k in range(15)]


@pytest.fixture
def query():
    return mapped()


def panel(figure, title):
    return next(axes for axes in figure.axes if title in axes.get_title())


def test_panels(query):
    settings = mpl.rcParams.copy()
    two = pl.mapping(query)
    assert [axes.get_title() for axes in two.axes if axes.get_title()] == [
        "300 new cells: label", "300 new cells: novelty"
    ]  # fmt: skip
    four = pl.mapping(query, reference=mapped(seed=1), truth="kind")
    titles = [axes.get_title() for axes in four.axes]
    assert {"Confusion matrix, % of true label", "Calibration of probabilities"} < set(titles)
    assert mpl.rcParams == settings


def test_new_cells_are_at_the_mean_of_their_neighbours(query):
    reference = mapped(seed=1)
    figure = pl.mapping(query, reference=reference)
    for title in ("label", "novelty"):
        behind, dots = panel(figure, title).collections
        assert to_hex(behind.get_facecolor()[0]).upper() == MISSING
        np.testing.assert_allclose(np.sort(behind.get_offsets(), axis=0), np.sort(reference.obsm["X_umap"], axis=0))
        expected = placed(reference.obsm["X_sccvae"], reference.obsm["X_umap"], query.obsm["X_sccvae"])
        np.testing.assert_allclose(np.sort(dots.get_offsets(), axis=0), np.sort(expected, axis=0), atol=1e-5)
    at = np.abs(expected - 2 * query.obsm["X_sccvae"][:, :2])
    assert np.median(at) < 1.5  # the layout is two dimensions of the embedding: groups are 12 apart


def test_neighbours_weigh_by_distance():
    z, layout = np.array([[0.0], [1.0], [9.0]]), np.array([[0.0, 0.0], [10.0, 0.0], [500.0, 0.0]])
    found = placed(z, layout, np.array([[0.0], [0.5]]), n_neighbours=2)
    assert 0 < found[0, 0] < 5
    np.testing.assert_allclose(found[1], [5, 0])
    np.testing.assert_allclose(placed(z[:1], layout[:1], z), np.zeros((3, 2)))


def test_without_a_reference_the_principal_components_are_drawn(query):
    figure = pl.mapping(query)
    ax = panel(figure, "label")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("PC 1", "PC 2")
    found = np.asarray(ax.collections[0].get_offsets())
    z = query.obsm["X_sccvae"] - query.obsm["X_sccvae"].mean(0)
    np.testing.assert_allclose(found.var(0).sum(), (np.linalg.svd(z)[1][:2] ** 2).sum() / len(z), rtol=1e-4)
    query.obsm["X_sccvae"] = query.obsm["X_sccvae"][:, :1]  # one latent dimension
    assert panel(pl.mapping(query), "label").collections[0].get_offsets()[:, 1].max() == 0


def test_colours_are_those_of_label_and_novelty(query):
    query = query[:1].copy()
    query.obs["sccvae_label"] = query.obs["sccvae_label"].cat.remove_unused_categories()
    figure = pl.mapping(query)
    (dot,) = panel(figure, "label").collections
    assert to_hex(dot.get_facecolor()[0]).upper() == COLOURS[0]
    (dot,) = panel(figure, "novelty").collections
    np.testing.assert_allclose(dot.get_array(), query.obs["sccvae_novelty"])
    assert dot.get_clim() == (0, 1)


def test_the_confusion_matrix_counts_accepted_labels(query):
    query.obs.loc[query.obs_names[:20], "kind"] = np.nan
    ax = panel(pl.mapping(query, truth="kind"), "Confusion")
    obs = query.obs[query.obs["kind"].notna()]
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    sizes = obs["kind"].value_counts(sort=False).to_list()
    assert names == [f"kind {k} \\$x_{k}\\${', new' if k == 3 else ''} ({n})" for k, n in enumerate(sizes)]
    columns = [tick.get_text() for tick in ax.get_xticklabels()]
    assert columns == [*(f"kind {k} \\$x_{k}\\$" for k in range(3)), "not accepted"]
    predicted = obs["sccvae_label"].astype(str).where(obs["sccvae_accepted"], "not accepted")
    expected = 100 * pd.crosstab(obs["kind"], predicted, normalize="index")
    np.testing.assert_allclose(ax.images[0].get_array(), expected)
    assert {text.get_text() for text in ax.texts} <= {f"{value:.0f}" for value in expected.to_numpy().ravel()}


def test_the_calibration_curve(query):
    figure = pl.mapping(query, truth="kind")
    known = query.obs[query.obs["kind"].cat.codes < 3]
    right = (known["kind"].astype(str) == known["sccvae_label"].astype(str)).to_numpy()
    probability = known["sccvae_probability"].to_numpy()
    counts = panel(figure, "Calibration")
    n = np.histogram(probability, np.linspace(0, 1, 11))[0]
    np.testing.assert_array_equal([bar.get_height() for bar in counts.patches], n)
    assert [text.get_text() for text in counts.texts] == [str(k) for k in n if k]
    curve = next(axes for axes in figure.axes if axes.get_xlabel() == "probability of the label")
    x, y = curve.containers[0].lines[0].get_data()
    inside = [(probability >= k / 10) & (probability < (k + 1) / 10) for k in range(10) if n[k] >= 5]
    np.testing.assert_allclose(x, [probability[some].mean() for some in inside])
    np.testing.assert_allclose(y, [right[some].mean() for some in inside])
    (bars,) = curve.containers[0].lines[2]
    for (low, high), fraction in zip((segment[:, 1] for segment in bars.get_segments()), y, strict=True):
        assert 0 <= low <= fraction <= high <= 1
        assert low < high
    assert curve.texts[0].get_text() == f"expected calibration\nerror {calibration_error(probability, right):.3f}"


def test_truth_that_the_model_knows_nothing_of(query):
    query.obs["kind"] = "other"
    figure = pl.mapping(query, truth="kind")
    assert panel(figure, "Confusion").get_yticklabels()[0].get_text() == "other, new (300)"
    assert not panel(figure, "Calibration").texts


@pytest.mark.parametrize("n_labels", [2, 3, 14])
def test_long_names_do_not_overlap(n_labels):
    query = mapped(600, n_labels)
    for column in ("kind", "sccvae_label"):
        query.obs[column] = query.obs[column].cat.rename_categories(lambda name: LONG[int(name.split()[1])])
    figure = pl.mapping(query, reference=query, truth="kind")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    ax = panel(figure, "Confusion")
    texts = [*ax.get_xticklabels(), *ax.get_yticklabels(), *ax.texts]
    assert min(text.get_fontsize() for text in texts) >= 6
    boxes = [text.get_window_extent(renderer) for text in texts]
    for panels in figure.axes:
        if panels is not ax:
            boxes.append(panels.get_window_extent(renderer))
        legend = panels.get_legend()
        if legend is not None:
            boxes.append(legend.get_window_extent(renderer))
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    for box in boxes:
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1


def test_a_hundred_labels(query):
    query = mapped(2000, 100)
    figure = pl.mapping(query, truth="kind")
    assert max(figure.get_size_inches()) <= 30
    assert not panel(figure, "Confusion").texts  # no room for numbers


def test_a_sample_of_the_cells_is_drawn(query):
    figure = pl.mapping(query, reference=mapped(seed=1), truth="kind", max_cells=50)
    assert [len(dots.get_offsets()) for dots in panel(figure, "label").collections] == [50, 50]
    assert "(300)" not in panel(figure, "Confusion").get_yticklabels()[0].get_text()
    np.testing.assert_allclose(np.asarray(panel(figure, "Confusion").images[0].get_array()).sum(1), 100)


def test_what_is_missing_is_said(query):
    with pytest.raises(KeyError, match=r"query\.obs has no column 'vae_label': run sccvae\.tl\.map_query"):
        pl.mapping(query, key="vae")
    with pytest.raises(TypeError, match="query is of type str; expected an AnnData"):
        pl.mapping("query.h5ad")
    with pytest.raises(KeyError, match=r"'cell_type' is not a column of query\.obs"):
        pl.mapping(query, truth="cell_type")
    reference = mapped(seed=1)
    del reference.obsm["X_umap"]
    with pytest.raises(KeyError, match=r"reference\.obsm has no 'X_umap': run sc\.pp\.neighbors"):
        pl.mapping(query, reference=reference)
    reference.obsm["X_sccvae"] = reference.obsm["X_sccvae"][:, :2]
    with pytest.raises(ValueError, match="has 2 dimensions in reference and 4 in query"):
        pl.mapping(query, reference=reference)
    del reference.obsm["X_sccvae"]
    with pytest.raises(KeyError, match=r"'X_sccvae' is not in reference\.obsm"):
        pl.mapping(query, reference=reference)
    query.obs["kind"] = pd.Categorical([np.nan] * 300)
    with pytest.raises(ValueError, match=r"query\.obs\['kind'\] has no value for any cell"):
        pl.mapping(query, truth="kind")
