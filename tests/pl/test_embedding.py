"""Plots: what is on the axes, and that the AnnData, matplotlib's settings and the random state stay as they were."""

from __future__ import annotations

import pickle

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy.sparse import csc_array

from sccvae import pl
from sccvae.simulate import simulate

mpl.use("Agg")


@pytest.fixture
def history():
    """Twenty epochs; validation is best at the 15th."""
    epoch = np.arange(1, 21)
    training = pd.DataFrame(
        {
            "epoch": epoch,
            "split": "training",
            "elbo": -250 - 300 * np.exp(-epoch / 2.0),
            "reconstruction": -238 - 300 * np.exp(-epoch / 2.0),
            "kl_z": 11.0 + 1 / epoch,
            "kl_l": 1.0 - 1 / epoch,
            "learning_rate": np.linspace(1e-2, 1e-4, 20),
            "kl_weight": np.minimum(1, epoch / 5),
            "seconds": 1.0,
        }
    )
    validation = training.assign(split="validation", elbo=training["elbo"] - 0.1 * (epoch - 15) ** 2)
    return pd.concat([training, validation], ignore_index=True)


def small():
    adata = simulate(150, 40, n_types=4, keep_truth=False, mean_library=100)
    adata.obsm["X_sccvae"] = adata.obsm["z"].copy()
    return adata


@pytest.fixture
def shown(monkeypatch):
    """Calls of `plt.show`."""
    calls = []
    monkeypatch.setattr("matplotlib.pyplot.show", lambda *args, **kwargs: calls.append(args))
    return calls


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def drawn(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def test_history(history, shown):
    figure = pl.history(history)
    assert isinstance(figure, Figure)
    assert titles(figure) == [
        "ELBO",
        "log-likelihood",
        "KL divergence of z",
        "KL divergence of library size",
        "learning rate",
        "KL weight",
    ]
    elbo = figure.axes[0]
    assert elbo.get_xlabel() == "epoch"
    assert elbo.get_ylabel() == "nats per cell"
    assert legend_of(elbo) == ["training", "validation", "best: epoch 15"]
    np.testing.assert_array_equal(elbo.lines[0].get_ydata(), history["elbo"][:20])
    assert elbo.get_ylim()[1] > history["elbo"].max()
    assert not shown


def test_history_from_other_forms(history):
    columns = {name: column.to_numpy() for name, column in history.items()}
    np.testing.assert_array_equal(drawn(pl.history(columns)), drawn(pl.history(history)))


def test_history_leaves_out_what_is_not_there(history):
    assert "KL divergence of library size" not in titles(pl.history(history.assign(kl_l=0.0)))
    assert titles(pl.history(history[["epoch", "split", "elbo"]])) == ["ELBO"]
    assert legend_of(pl.history(history[history["split"] == "training"]).axes[0]) == ["training"]


def test_history_of_one_epoch(history):
    figure = pl.history(history.iloc[[0]])
    drawn(figure)
    assert figure.axes[0].lines[0].get_marker() == "o"


def test_history_keeps_the_end_readable(history):
    low, high = (
        pl.history(history.assign(elbo=np.where(history["epoch"] == 1, -1e6, history["elbo"]))).axes[0].get_ylim()
    )
    assert high - low < 1000


def test_history_in_given_axes(history, shown):
    figure = Figure()
    axes = figure.add_subplot()
    assert pl.history(history, ax=axes) is figure
    assert legend_of(axes) == ["training", "validation", "best: epoch 15"]
    assert not shown


def test_show(history, shown):
    import matplotlib.pyplot as plt

    pl.history(history)
    assert not plt.get_fignums()
    figure = pl.history(history, show=True)
    assert len(shown) == 1
    plt.close(figure)


def test_history_errors(history):
    with pytest.raises(ValueError, match=r"history lacks the columns \['split'\]"):
        pl.history(history.drop(columns="split"))
    with pytest.raises(ValueError, match="history is empty"):
        pl.history(history.iloc[:0])


def test_integration(history, shown):
    adata = small()
    adata.uns["batch_colors"] = ["#000000"] * 3
    before, settings, random_state = pickle.dumps(adata), mpl.rcParams.copy(), np.random.get_state()  # noqa: NPY002
    figure = pl.integration(adata, batch_key="batch", label_key="cell_type", history=history)
    assert pickle.dumps(adata) == before
    assert mpl.rcParams == settings
    assert all(np.array_equal(a, b) for a, b in zip(random_state, np.random.get_state(), strict=True))  # noqa: NPY002
    assert not shown

    assert isinstance(figure, Figure)
    assert titles(figure) == [
        "Before: principal components", "After: X_sccvae", "ELBO", "", "", "KL divergence of z",
    ]  # fmt: skip
    by_batch, by_type = figure.axes[1], figure.axes[4]
    assert by_batch.get_legend().get_title().get_text() == "batch"
    assert legend_of(by_batch) == ["batch_0", "batch_1", "batch_2"]
    assert legend_of(by_type) == ["type_0", "type_1", "type_2", "type_3"]
    for axes in (figure.axes[i] for i in (0, 1, 3, 4)):
        assert len(axes.collections[0].get_offsets()) == 150
    # Before and after are different layouts; both rows show the same two.
    places = [np.asarray(figure.axes[i].collections[0].get_offsets()) for i in (0, 1, 3, 4)]
    np.testing.assert_array_equal(places[0], places[2])
    np.testing.assert_array_equal(places[1], places[3])
    assert not np.allclose(places[0], places[1])
    # As many cells in the first colour as in the first batch.
    colours = [to_hex(colour) for colour in by_batch.collections[0].get_facecolor()]
    assert colours.count("#0072b2") == (adata.obs["batch"] == "batch_0").sum()
    # Deterministic.
    again = pl.integration(adata, batch_key="batch", label_key="cell_type", history=history)
    np.testing.assert_array_equal(drawn(again), drawn(figure))


def test_legends_do_not_overlap(history):
    adata = small()
    adata.obs["cell_type"] = [f"a cell type with a long name {i % 20}" for i in range(150)]
    figure = pl.integration(adata, batch_key="batch", label_key="cell_type", history=history)
    drawn(figure)
    boxes = [axes.get_legend().get_window_extent() for axes in (figure.axes[1], figure.axes[4])]
    panels = [axes.get_window_extent() for axes in figure.axes]
    assert not boxes[0].overlaps(boxes[1])
    for box in boxes:
        assert not any(box.overlaps(panel) for panel in panels)
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
    assert all(len(name) <= 28 for name in legend_of(figure.axes[4]))


def test_integration_takes_what_the_embedding_was_made_with(history):
    adata = small()
    adata.layers["counts"] = csc_array(adata.X)
    adata.X = adata.X / 3
    adata.uns["sccvae"] = {"parameters": {"batch_key": "batch", "layer": "counts"}, "history": history}
    figure = pl.integration(adata)
    assert titles(figure) == ["Before: principal components", "After: X_sccvae", "ELBO"]
    with pytest.raises(ValueError, match=r"adata.X holds values that are not counts: .* pass layer="):
        pl.integration(adata, use_rep="z", batch_key="batch")


def test_missing_labels_and_samples():
    adata = small()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.add_categories(["unused"])
    adata.obs.iloc[:100, adata.obs.columns.get_loc("cell_type")] = np.nan
    figure = pl.integration(adata, label_key="cell_type", max_cells=120)
    assert len(figure.axes[0].collections[0].get_offsets()) == 120
    assert legend_of(figure.axes[1])[-1] == "missing"
    assert "unused" not in legend_of(figure.axes[1])


def test_palette():
    colours = pl.style.palette(36)
    assert len(set(colours)) == 36
    assert colours[:8] == ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000"]
    assert len(pl.style.palette(90)) == 90


def test_integration_errors():
    adata = small()
    with pytest.raises(ValueError, match="pass batch_key, label_key, or both"):
        pl.integration(adata)
    with pytest.raises(KeyError, match=r"'donor' is not a column of adata.obs, which has \['batch'"):
        pl.integration(adata, batch_key="donor")
    with pytest.raises(KeyError, match=r"'X_other' is not in adata.obsm"):
        pl.integration(adata, batch_key="batch", use_rep="X_other")
    with pytest.raises(KeyError, match=r"'raw' is not in adata.layers"):
        pl.integration(adata, batch_key="batch", layer="raw")
    with pytest.raises(ValueError, match=r"adata.obs\['library'\] holds 150 different values"):
        pl.integration(adata, batch_key="library")
