"""The score table as a figure: every number is on it, the best are marked, nothing overlaps or is cut off."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sccvae import pl
from sccvae.metrics.integration import BIOLOGY, MIXING

mpl.use("Agg")
OWN = [*BIOLOGY, *MIXING, "biology", "mixing", "total"]
SCIB = ["isolated_labels", "kmeans_nmi", "kmeans_ari", "silhouette_label", "clisi", "bras", "ilisi", "kbet"]
SCIB = [f"scib_{name}" for name in (*SCIB, "graph_connectivity", "pcr", "biology", "mixing", "total")]


@pytest.fixture
def scores():
    """Three embeddings; the second is the best but for one score."""
    values = np.array([[0.2] * len(OWN), [0.8] * len(OWN), [0.6] * len(OWN)])
    values[0, 0] = 0.9
    frame = pd.DataFrame(values, index=["X_pca", "X_sccvae", "X_a_rather_long_name"], columns=OWN)
    frame.attrs["implementation"] = dict.fromkeys(OWN, "sccvae 1, scikit-learn 2")
    return frame


def texts(figure):
    return [text for text in figure.axes[0].texts if text.get_text()]


def words(figure):
    return [text.get_text() for text in texts(figure)]


def cells_of(figure):
    """Numbers of the table with their boldness, row by row from the top."""
    found = [t for t in texts(figure) if t.get_text().replace(".", "").replace("–", "0").isdigit()]
    rows = sorted({t.get_position()[1] for t in found}, reverse=True)
    of_row = [sorted((t for t in found if t.get_position()[1] == y), key=lambda t: t.get_position()[0]) for y in rows]
    return [[(t.get_text(), t.get_weight() == "bold") for t in row] for row in of_row]


def assert_readable(figure):
    """No two texts overlap, and all are inside of the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts(figure)]
    whole = figure.bbox
    for i, box in enumerate(boxes):
        assert min(box.x0, box.y0) >= 0, words(figure)[i]
        assert box.x1 <= whole.x1, words(figure)[i]
        assert box.y1 <= whole.y1, words(figure)[i]
        assert not any(box.overlaps(other) for other in boxes[:i]), words(figure)[i]


def test_numbers_order_and_the_best(scores):
    before = scores.copy()
    figure = pl.score_table(scores)
    assert isinstance(figure, Figure)
    rows = cells_of(figure)
    assert [[text for text, _ in row] for row in rows] == [["0.80"] * 10, ["0.60"] * 10, ["0.90", *["0.20"] * 9]]
    assert [[bold for _, bold in row] for row in rows] == [[False, *[True] * 9], [False] * 10, [True, *[False] * 9]]
    names = [word for word in words(figure) if word.startswith("X_")]
    assert names == ["X_sccvae", "X_a_rather_long_name", "X_pca"]
    assert {"cell types", "batches", "together", "computed by sccvae 1, scikit-learn 2"} <= set(words(figure))
    assert_readable(figure)
    pd.testing.assert_frame_equal(scores, before)


def test_scib_scores_come_first_where_there_are_any(scores):
    for column in SCIB:
        scores[column] = [0.1, 0.3, 0.2]
        scores.attrs["implementation"][column] = "scib-metrics 3"
    scores.loc["X_pca", "scib_pcr"] = np.nan
    figure = pl.score_table(scores)
    said = words(figure)
    assert "neighbour accuracy, entropy of mixing: sccvae 1, scikit-learn 2; all others: scib-metrics 3" in said
    assert "kBET" in said
    assert len(cells_of(figure)[0]) == 2 + len(SCIB)
    assert ("–", False) in cells_of(figure)[2]
    assert_readable(figure)


def test_ties_are_no_difference():
    rows = cells_of(
        pl.score_table(pd.DataFrame({"a": [0.701, 0.702], "b": [0.5, 0.904], "c": [0.9, 0.901]}, index=["x", "y"]))
    )
    assert [[bold for _, bold in row] for row in rows] == [[False] * 3, [False, True, False]]
    rows = cells_of(pl.score_table(pd.DataFrame({"a": [0.1, 0.902, 0.904]}, index=["x", "y", "z"])))
    assert [bold for ((_, bold),) in rows] == [False, True, True]  # both are printed as 0.90


def test_columns_sorting_and_axes(scores):
    figure = pl.score_table(scores, columns=["knn_accuracy", "total"], sort_by="knn_accuracy")
    assert next(word for word in words(figure) if word.startswith("X_")) == "X_pca"
    assert [row[0][0] for row in cells_of(figure)] == ["0.90", "0.80", "0.60"]
    assert_readable(figure)
    given = Figure(figsize=(8, 3))
    ax = given.add_subplot()
    assert pl.score_table(scores, ax=ax) is given
    assert len(ax.texts) > 30


def test_any_table_will_do():
    figure = pl.score_table(pd.DataFrame({"loss_a": [1200.0, 900.0], "b": [1.0, 2.0]}, index=["x", "y"]))
    assert {"1,200", "900", "loss\na", "b"} <= set(words(figure))


def test_errors(scores):
    with pytest.raises(ValueError, match="scores is empty: expected a row for each embedding"):
        pl.score_table(scores.iloc[:0])
    with pytest.raises(KeyError, match="scores has no column 'nonsense'"):
        pl.score_table(scores, columns=["total", "nonsense"])
    with pytest.raises(KeyError, match="sort_by='nonsense' is not a column"):
        pl.score_table(scores, sort_by="nonsense")
    with pytest.raises(ValueError, match="The column 'word' of the scores holds no numbers"):
        pl.score_table(scores.assign(word="a"), columns=["word"])
