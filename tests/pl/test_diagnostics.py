"""The drawing of a diagnosis: its panels, and what stands out in them."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import sccvae
from sccvae import pl
from sccvae.pl.style import COLOURS
from sccvae.simulate import simulate

mpl.use("Agg")


@pytest.fixture(scope="module")
def diagnosis():
    """Of a Poisson model of overdispersed counts, which was not given the batches."""
    adata = simulate(300, 60, n_types=4, batch_strength=1.5, keep_truth=False, seed=2)
    model = sccvae.SCCVAE(adata, n_hidden=16, n_latent=4, gene_likelihood="poisson")
    model.train(10, progress_bar=False)
    return model.diagnose(batch_key="batch")


def panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title() == title)


def test_panels(diagnosis):
    settings = mpl.rcParams.copy()
    figure = pl.diagnostics(diagnosis)
    assert mpl.rcParams == settings
    assert isinstance(figure, Figure)
    assert [axes.get_title() for axes in figure.axes] == [
        "What was checked", "ELBO", "Latent units", "Zero fraction per gene", "Variance per gene",
        "Rank of counts among predicted ones", "Mixing of batches", "Cells",
    ]  # fmt: skip
    for axes in figure.axes[1:]:
        assert axes.get_xlabel()
    zeros = np.concatenate([c.get_offsets() for c in panel(figure, "Zero fraction per gene").collections])
    assert len(zeros) == 60
    np.testing.assert_allclose(np.sort(zeros[:, 1]), np.sort(diagnosis.genes["zeros"]))
    heights = [bar.get_height() for bar in panel(figure, "Rank of counts among predicted ones").patches]
    np.testing.assert_allclose(heights, 20 * diagnosis.ranks)
    heights = [bar.get_height() for bar in panel(figure, "Latent units").patches]
    np.testing.assert_allclose(heights, np.sort(diagnosis.units["kl"])[::-1])
    bars = {
        text.get_text(): bar
        for text, bar in zip(
            panel(figure, "Mixing of batches").get_yticklabels(),
            panel(figure, "Mixing of batches").patches,
            strict=True,
        )
    }
    for name, row in diagnosis.batches.iterrows():
        assert bars[name].get_width() == pytest.approx(row["mixing"])
        assert to_hex(bars[name].get_facecolor()).upper() == COLOURS[3]


def test_the_list_of_checks_says_which_failed(diagnosis):
    texts = [text.get_text() for text in pl.diagnostics(diagnosis).axes[0].texts]
    assert texts.count("✓") == diagnosis.table["ok"].sum()
    assert texts.count("✗") == (~diagnosis.table["ok"]).sum() > 2
    assert f"{diagnosis.table.loc['zeros_inside', 'value']:.1%}" in texts
    assert len(texts) == 3 * len(diagnosis.table)


def test_nothing_in_the_list_overlaps(diagnosis):
    figure = pl.diagnostics(diagnosis)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_panels_that_do_not_apply_are_left_out():
    adata = simulate(200, 40, keep_truth=False)
    adata.X = (adata.X > 0).astype(np.float32)
    model = sccvae.SCCVAE(adata, n_hidden=8, n_latent=2, gene_likelihood="bernoulli")
    model.train(1, progress_bar=False)
    titles = [axes.get_title() for axes in pl.diagnostics(model.diagnose()).axes]
    assert titles == ["What was checked", "ELBO", "Latent units", "Cells"]


def test_shown_when_asked(diagnosis, monkeypatch):
    import matplotlib.pyplot as plt

    calls = []
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: calls.append(1))
    pl.diagnostics(diagnosis)
    assert not calls
    assert not plt.get_fignums()
    plt.close(pl.diagnostics(diagnosis, show=True))
    assert calls == [1]


def test_a_model_is_no_diagnosis(model):
    with pytest.raises(
        TypeError, match=r"is of type SCCVAE; expected the result .* pl.diagnostics\(model.diagnose\(\)\)"
    ):
        pl.diagnostics(model)
