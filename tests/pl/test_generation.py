"""Plots of generators: what is drawn, in which units, and what is said when it cannot be."""

from __future__ import annotations

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy.sparse import csr_matrix

import sccvae
from sccvae import pl
from sccvae.metrics.distances import line_log_density
from sccvae.pl.generation import running_median
from sccvae.simulate import simulate

mpl.use("Agg")
QUIET = {"progress_bar": False}


@pytest.fixture(scope="module")
def cells():
    return simulate(150, 40, n_types=4, n_batches=1, keep_truth=False, mean_library=100)


@pytest.fixture(scope="module")
def model(cells):
    model = sccvae.SCCVAE(cells, n_hidden=16, n_latent=2)
    model.train(3, **QUIET)
    return model


@pytest.fixture(scope="module")
def pictures():
    """An autoencoder of images of 3 x 4 pixels."""
    bright = np.random.default_rng(0).random((90, 1)) < 0.5
    pixels = np.random.default_rng(1).normal(np.where(bright, 2, 0), 1, (90, 12)).astype(np.float32)
    model = sccvae.Autoencoder(ad.AnnData(csr_matrix(pixels)), gene_likelihood="normal", n_hidden=16, n_latent=2)
    model.train(3, **QUIET)
    return model


@pytest.fixture
def shown(monkeypatch):
    calls = []
    monkeypatch.setattr("matplotlib.pyplot.show", lambda *args, **kwargs: calls.append(args))
    return calls


def drawn(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def texts(labels):
    return [label.get_text() for label in labels]


# --------------------------------------------------------------------------------------------------------------- images


def test_images_are_where_and_as_bright_as_they_should_be():
    x = np.arange(24, dtype=float).reshape(2, 12)
    figure = pl.images({"one": x, "two": csr_matrix(x[1:])}, shape=(3, 4), columns=["a", "b"])
    image = figure.axes[0].images[0]
    mosaic = np.ma.filled(image.get_array(), np.nan)
    np.testing.assert_array_equal(mosaic[:3, :4], x[0].reshape(3, 4))
    np.testing.assert_array_equal(mosaic[:3, 5:9], x[1].reshape(3, 4))
    np.testing.assert_array_equal(mosaic[4:7, :4], x[1].reshape(3, 4))
    assert np.isnan(mosaic[4:7, 5:9]).all()  # the second row has one image
    assert image.get_clim() == (0, 23)
    assert texts(figure.axes[0].get_yticklabels()) == ["one", "two"]
    assert texts(figure.axes[0].get_xticklabels()) == ["a", "b"]
    drawn(figure)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({}, {}, "rows is empty: expected {title: images}"),
        ({"a": np.zeros((2, 11))}, {}, r"shape \(3, 4\) has 12 pixels; expected 11, one for each column"),
        (
            {"a": np.zeros((2, 12)), "b": np.zeros((2, 9))},
            {},
            r"images of 'b' have shape \(2, 9\); expected \(images, 12",
        ),
        ({"a": np.zeros(12)}, {}, r"images of 'a' have shape \(12,\)"),
        ({"a": np.zeros((2, 12))}, {"columns": ["x"]}, "columns has 1 names; expected 2"),
    ],
)
def test_images_errors(rows, options, message):
    with pytest.raises(ValueError, match=message):
        pl.images(rows, shape=(3, 4), **options)


# --------------------------------------------------------------------------------------------------------------- codes


def test_latent_scatter(shown):
    z = np.random.default_rng(0).standard_normal((60, 2))
    labels = np.repeat(["x", "y", "z"], 20)
    settings = mpl.rcParams.copy()
    figure = pl.latent_scatter({"epoch 1": z, "epoch 9": 2 * z}, labels=labels, label_name="kind", prior=True)
    assert isinstance(figure, Figure)
    assert mpl.rcParams == settings
    assert [ax.get_title() for ax in figure.axes] == ["epoch 1", "epoch 9"]
    for ax, scale in zip(figure.axes, (1, 2), strict=True):
        places = np.asarray(ax.collections[0].get_offsets())
        np.testing.assert_allclose(np.sort(places, 0), np.sort(scale * z, 0))
        radii = [np.hypot(*line.get_data()) for line in ax.lines]
        np.testing.assert_allclose(radii, np.repeat([[1], [2], [3]], 200, 1))
        # Each cell has the colour of its own label.
        colours = [to_hex(c) for c in ax.collections[0].get_facecolor()]
        of = {tuple(place): colour for place, colour in zip(places, colours, strict=True)}
        assert len({of[tuple(scale * code)] for code in z[:20]}) == 1
        assert len(set(colours)) == 3
    legend = figure.axes[1].get_legend()
    assert legend.get_title().get_text() == "kind"
    assert texts(legend.get_texts()) == ["x", "y", "z"]
    assert not shown
    open_figure = pl.latent_scatter({"a": z}, show=True)
    assert len(shown) == 1
    plt.close(open_figure)


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    """Not even where an error is raised: memory would fill up."""
    yield
    assert not plt.get_fignums()


def test_latent_scatter_of_many_cells_and_panels():
    z = np.random.default_rng(0).standard_normal((500, 2))
    figure = pl.latent_scatter({str(i): z for i in range(6)}, max_cells=100)
    assert len(figure.axes) == 6
    assert len(figure.axes[0].collections[0].get_offsets()) == 100


@pytest.mark.parametrize(
    ("codes", "labels", "message"),
    [
        ({}, None, "codes is empty: expected {title: codes}"),
        (
            {"a": np.zeros((5, 3))},
            None,
            r"codes of 'a' have shape \(5, 3\); expected \(cells, 2\). Train with n_latent=2",
        ),
        ({"a": np.zeros((5, 2))}, ["x"], "There are 1 labels for the 5 cells of 'a'"),
    ],
)
def test_latent_scatter_errors(codes, labels, message):
    with pytest.raises(ValueError, match=message):
        pl.latent_scatter(codes, labels=labels)


def test_latent_grid_of_images(pictures):
    figure = pl.latent_grid(pictures, shape=(3, 4), n_points=5, limits=((-1, 1), (-2, 2)))
    ax, image = figure.axes[0], figure.axes[0].images[0]
    mosaic = np.ma.filled(image.get_array(), np.nan)
    assert mosaic.shape == (5 * (3 + 2), 5 * (4 + 2))
    top_right, bottom_left = pictures.decode(np.array([[1, 2], [-1, -2]])).reshape(2, 3, 4)
    np.testing.assert_allclose(mosaic[1:4, -5:-1], top_right, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mosaic[-4:-1, 1:5], bottom_left, rtol=1e-4, atol=1e-5)
    assert tuple(image.get_extent()) == (-1.25, 1.25, -2.5, 2.5)  # each image is centred at its code
    assert ax.get_xlabel() == "$z_1$"
    drawn(figure)


def test_latent_grid_of_genes(cells, model):
    genes = {"a": list(cells.var_names[:3]), "b": [cells.var_names[5]]}
    z = model.get_latent_representation()
    figure = pl.latent_grid(model, gene_list=genes, n_points=7, limits=2, codes=z)
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["a", "b"]
    corner = model.decode(np.array([[-2, 2], [2, -2]]), library_size=1e4)  # top left, bottom right
    for ax, columns in zip(panels, ([0, 1, 2], [5]), strict=True):
        field = np.asarray(ax.images[0].get_array())
        np.testing.assert_allclose([field[0, 0], field[-1, -1]], corner[:, columns].mean(1), rtol=1e-4)
        np.testing.assert_allclose(ax.collections[0].get_offsets(), z)
    assert "counts per 10,000" in [ax.get_ylabel() for ax in figure.axes]
    one = pl.latent_grid(model, gene_list=genes["a"])
    assert one.axes[0].images[0].get_array().shape == (60, 60)


def test_latent_grid_errors(cells, model, fit):
    with pytest.raises(ValueError, match=r"Pass either shape=.* or gene_list"):
        pl.latent_grid(model)
    with pytest.raises(ValueError, match="Pass either shape"):
        pl.latent_grid(model, shape=(5, 8), gene_list=["x"])
    with pytest.raises(ValueError, match=r"shape \(3, 4\) has 12 pixels; expected 40"):
        pl.latent_grid(model, shape=(3, 4))
    with pytest.raises(KeyError, match="'x' is not among the 40 genes of the model"):
        pl.latent_grid(model, gene_list=["x"])
    with pytest.raises(ValueError, match="A set of genes is empty"):
        pl.latent_grid(model, gene_list={"none": []})
    with pytest.raises(
        ValueError, match="The model has 4 latent dimensions; a grid needs two: make it with n_latent=2"
    ):
        pl.latent_grid(fit(cells), shape=(5, 8))


# -------------------------------------------------------------------------------------------------------- interpolation


def test_interpolation_of_images(pictures):
    figure = pl.interpolation(pictures, [0, 2], [5, 9], shape=(3, 4), n_points=5)
    top, bottom = figure.axes
    z = pictures.get_latent_representation()
    mosaic = np.ma.filled(top.images[0].get_array(), np.nan)
    ends = pictures.decode(z[[0, 5, 2, 9]]).reshape(4, 3, 4)
    half = pictures.decode((z[[2]] + z[[9]]) / 2).reshape(3, 4)
    np.testing.assert_allclose(mosaic[:3, :4], ends[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mosaic[:3, 20:24], ends[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mosaic[4:7, :4], ends[2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mosaic[4:7, 10:14], half, rtol=1e-4, atol=1e-5)
    assert texts(top.get_yticklabels()) == ["0 to 5", "2 to 9"]
    expected = line_log_density(z, [0, 2], [5, 9], np.linspace(0, 1, 41))
    for line, values in zip(bottom.lines, expected, strict=False):
        np.testing.assert_allclose(line.get_ydata(), values)
    drawn(figure)


def test_interpolation_of_cells(cells, model):
    figure = pl.interpolation(model, 3, 8, n_points=4, gene_list=list(cells.var_names[[7, 2]]))
    top = figure.axes[0]
    z = model.get_latent_representation()
    expected = np.log1p(model.decode(z[3] + np.linspace(0, 1, 4)[:, None] * (z[8] - z[3]), library_size=1e4))
    np.testing.assert_allclose(np.asarray(top.images[0].get_array()), expected[:, [7, 2]].T, rtol=1e-4)
    assert texts(top.get_yticklabels()) == list(cells.var_names[[7, 2]])
    assert top.get_title() == "3 to 8"
    drawn(figure)


def test_interpolation_counts_equal_codes_once():
    pixels = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
    densities = []
    for copies in (1, 15):
        images = ad.AnnData(np.concatenate([pixels, np.repeat(pixels[-1:], copies - 1, 0)]))
        model = sccvae.Autoencoder(images[:40].copy(), gene_likelihood="normal", n_hidden=16, n_latent=2)
        model.train(2, **QUIET)
        figure = pl.interpolation(model, 3, 8, adata=images, shape=(3, 4))
        densities.append(figure.axes[1].lines[0].get_ydata())
    np.testing.assert_allclose(*densities)


def test_interpolation_chooses_the_genes_that_change(cells, model):
    figure = pl.interpolation(model, [3, 4], [8, 70], adata=cells)
    z = model.get_latent_representation()
    for a, b in ((3, 8), (4, 70)):
        path = np.log1p(model.decode(z[a] + np.linspace(0, 1, 11)[:, None] * (z[b] - z[a]), library_size=1e4))
        most = cells.var_names[np.argsort(-np.ptp(path, axis=0))[:20]]
        panel = next(x for x in figure.axes if x.get_title() == f"{a} to {b}")
        assert set(texts(panel.get_yticklabels())) == set(most)


def test_interpolation_does_not_change_with_the_call(model):
    np.testing.assert_array_equal(*(drawn(pl.interpolation(model, 0, 1)) for _ in range(2)))


def test_interpolation_errors(model):
    with pytest.raises(ValueError, match="first has 2 cells and second 1; expected the same number of both"):
        pl.interpolation(model, [0, 1], 2)
    with pytest.raises(ValueError, match="has the cell number 150, but there are 150 cells"):
        pl.interpolation(model, 0, 150)
    with pytest.raises(KeyError, match="'x' is not among"):
        pl.interpolation(model, 0, 1, gene_list=["x"])
    with pytest.raises(ValueError, match="expected 40"):
        pl.interpolation(model, 0, 1, shape=(3, 4))


# ----------------------------------------------------------------------------------------------------------- generation


def test_generation(cells, model, shown):
    new = model.generate(100, seed=2)
    shuffled = new[:, new.var_names[::-1]].copy()
    figure = pl.generation(cells, shuffled)
    layout, variance, zeros = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["100 cells of each kind", "variance", "zero fraction"]
    assert layout.collections[0].get_offsets().shape == (200, 2)
    colours = [to_hex(c)[:7] for c in layout.collections[0].get_facecolor()]
    assert sorted(colours.count(c) for c in set(colours)) == [100, 100]
    x = new.X.toarray().astype(float)
    places = np.asarray(variance.collections[1].get_offsets())
    found = x.var(0) > 0
    np.testing.assert_allclose(places, np.column_stack([x.mean(0), x.var(0)])[found], rtol=1e-4)
    places = np.asarray(zeros.collections[1].get_offsets())
    np.testing.assert_allclose(places, np.column_stack([x.mean(0), (x == 0).mean(0)])[x.mean(0) > 0], rtol=1e-4)
    # The medians of what is drawn: a mean that is summed in another order may break ties differently.
    places = np.asarray(variance.collections[1].get_offsets())
    np.testing.assert_allclose(variance.lines[1].get_data(), running_median(*places.T))
    assert texts(figure.legends[0].get_texts()) == ["real", "generated"]
    drawn(figure)
    assert not shown


def test_generation_takes_a_layer(cells, model):
    scaled = cells.copy()
    scaled.layers["counts"], scaled.X = scaled.X.copy(), scaled.X / 3
    new = model.generate(60)
    same = pl.generation(scaled, new, layer="counts")
    np.testing.assert_array_equal(drawn(same), drawn(pl.generation(cells, new)))
    with pytest.raises(ValueError, match="holds values that are not counts"):
        pl.generation(scaled, new)
    with pytest.raises(KeyError, match=r"'raw' is not in real.layers, which has \['counts'\]"):
        pl.generation(scaled, new, layer="raw")
    with pytest.raises(KeyError, match="generated lacks 10 of the 40 genes of real"):
        pl.generation(cells, new[:, 10:])


def test_running_median():
    x, y = running_median(np.array([4.0, 1, 2, 3]), np.array([40.0, 10, 20, 30]), n_bins=2)
    np.testing.assert_array_equal([x, y], [[1.5, 3.5], [15, 35]])
    assert pd.Series(running_median(np.zeros(0), np.zeros(0))[0]).empty
