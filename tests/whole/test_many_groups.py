"""A hundred and fifty groups with names of all kinds: figures stay within bounds, nothing runs off or overlaps."""

from __future__ import annotations

from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from drawn import diagnosis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import sccvae
from sccvae import pl, tl
from sccvae.pl.style import as_text, colours_of, font_for, palette, rows_and_columns
from sccvae.statistics import diagnostics
from sccvae.validation.wording import listed, shortened

mpl.use("Agg")
N_GROUPS, N_CELLS = 150, 10
ENDS = ("", " $x_1$", " CD8$^+", "_a_b", " β", " with a name that is very long, and goes on and on, and will not end")
NAMES = [f"{'_' if i % 7 == 3 else ''}group {i}{ENDS[i % len(ENDS)]}" for i in range(N_GROUPS)]
pytestmark = pytest.mark.filterwarnings("error:constrained_layout not applied", "error:.*Tight layout")


@pytest.fixture(scope="module")
def crowd():
    """150 groups of 10 cells, one of 30: cells, batches, an embedding. Shared: do not change it."""
    rng = np.random.default_rng(0)
    codes = np.concatenate([np.arange(N_GROUPS * N_CELLS) % N_GROUPS, np.full(20, 7)])
    counts = rng.poisson(np.exp(rng.standard_normal((N_GROUPS, 20)))[codes]) + 1.0
    columns = {
        "kind": pd.Categorical([NAMES[i] for i in codes]),
        "batch": pd.Categorical([NAMES[i] for i in rng.permutation(codes)]),
        "sccvae_pseudotime": np.linspace(0, 1, len(codes)),
    }
    obs = pd.DataFrame(columns, index=[f"cell{i}" for i in range(len(codes))])
    var = pd.DataFrame(index=[f"gene{i}" for i in range(20)])
    adata = AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)
    z = 3 * rng.standard_normal((N_GROUPS, 4))[codes] + rng.standard_normal((len(codes), 4))
    adata.obsm["X_sccvae"] = adata.obsm["X_draw_graph_sccvae"] = z.astype(np.float32)
    adata.layers["sccvae"] = counts + 0.5
    tl.hierarchy(adata, "kind", use_rep="X_sccvae")
    return adata


@pytest.fixture
def quick(monkeypatch):
    """Layouts that take no time; what is looked at here are legends."""
    monkeypatch.setattr("sccvae.pl.embedding.pca_of_counts", lambda adata, *_, **__: adata.obsm["X_sccvae"])
    for module in ("pl.embedding", "report.sections"):
        monkeypatch.setattr(f"sccvae.{module}.umap", lambda representation, **_: representation[:, :2])


def assert_fits(figure: Figure) -> None:
    """At most 30 inches and 30 million pixels; no text beyond the edge, no legend over a panel, no names overlap."""
    width, height = figure.get_size_inches()
    assert max(width, height) <= 30
    assert width * height * figure.dpi**2 <= 30e6
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    box = figure.get_tightbbox(renderer)
    assert min(box.x0, box.y0) > -0.05
    assert box.x1 < width + 0.05
    assert box.y1 < height + 0.05
    panels = [axes.get_window_extent(renderer) for axes in figure.axes if axes.get_visible()]
    for axes in figure.axes:
        if (legend := axes.get_legend()) is not None:
            beside = legend.get_window_extent(renderer)
            assert beside.x1 <= figure.bbox.x1
            assert beside.y0 >= figure.bbox.y0
            outside = beside.x0 >= axes.get_window_extent(renderer).x1
            assert not outside or not any(beside.overlaps(panel) for panel in panels)
        for axis, side in ((axes.xaxis, 0), (axes.yaxis, 1)):
            labels = [label for label in axis.get_ticklabels() if label.get_visible() and label.get_text()]
            ends = sorted((e.min[side], e.max[side]) for e in (label.get_window_extent(renderer) for label in labels))
            assert all(end <= start + 1 for (_, end), (start, _) in pairwise(ends))


def legend_of(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


# ------------------------------------------------------------------------------------------------------------- parts


def test_names_are_shown_as_they_are():
    """Dollar signs are no mathematics, whatever stands between them: matplotlib would fail on some."""
    for name, shown in {
        r"$\bad$": r"$\bad$",
        "a$b": "a$b",
        r"costs \$5": r"costs \$5",
        "two\nlines\tand\x00": "two lines and ",
        "x" * 40: "x" * 27 + "…",
        "": "",
    }.items():
        text = plt.Text(0, 0, as_text(name))
        text.figure = Figure()
        assert text._preprocess_math(text.get_text()) == (shown, False)


def test_colours_of_many_groups_differ_and_the_largest_have_the_clearest():
    assert len(set(palette(1000))) == 1000
    assert palette(150)[:36] == palette(36)
    codes = np.repeat(np.arange(150), np.arange(1, 151))
    values = pd.Categorical.from_codes(codes, [f"{i:03}" for i in range(150)])
    assert colours_of(values)[:-4:-1] == palette(3)
    assert len(set(colours_of(values))) == 150
    few = pd.Categorical.from_codes(codes[codes < 36], [f"{i:02}" for i in range(36)])
    assert colours_of(few) == palette(36)


def test_panels_and_fonts_get_what_room_there_is():
    assert rows_and_columns(6, 4, 2, 2) == (2, 4)
    assert rows_and_columns(150, 4, 1.75, 1.6) == (17, 9)
    assert rows_and_columns(1, 4, 2, 2) == (1, 1)
    assert font_for(1.0) == 7
    assert font_for(0.05) == pytest.approx(3)


def test_lists_in_messages_end():
    assert listed(["a", "b"]) == "['a', 'b']"
    assert listed(range(150), 3) == "['0', '1', '2'] and 147 more"
    assert len(listed(["x" * 5000])) < 70
    assert shortened("x" * 100, 10) == "x" * 9 + "…"


# ------------------------------------------------------------------------------------------------- figures of groups


def test_integration(crowd, quick):
    figure = pl.integration(crowd, batch_key="batch", label_key="kind")
    assert_fits(figure)
    names = legend_of(figure.axes[3])
    assert len(names) == 36
    assert names[-1] == "and 115 more"
    assert as_text(NAMES[7]) in names  # it has most cells, and so the first place
    missing = crowd.copy()
    missing.obs["kind"] = missing.obs["kind"].where(missing.obs["kind"] != NAMES[0])
    assert legend_of(pl.integration(missing, label_key="kind").axes[1])[-2:] == ["and 114 more", "missing"]


def test_columns_that_are_no_groups_are_refused(crowd, quick):
    with pytest.raises(ValueError, match=r"'sccvae_pseudotime'\] holds 1,520 different values, numbers: expected"):
        pl.integration(crowd, label_key="sccvae_pseudotime")
    adata = crowd.copy()
    adata.obs["barcode"] = adata.obs_names
    with pytest.raises(ValueError, match="holds 1,520 different values, one for each cell: expected categories"):
        pl.integration(adata, label_key="barcode")


def test_gradient_and_codes(crowd):
    assert_fits(pl.gradient(crowd, label_key="kind"))
    z = crowd.obsm["X_sccvae"][:, :2]
    figure = pl.latent_scatter({NAMES[1]: z}, labels=crowd.obs["kind"], label_name=NAMES[5])
    assert_fits(figure)
    assert legend_of(figure.axes[0])[-1] == "and 115 more"


def test_similarity(crowd):
    figure = pl.similarity(crowd, "kind", use_rep="X_sccvae", max_cells=1000)
    assert_fits(figure)
    ax = figure.axes[0]
    assert ax.get_title() == "1,000 cells by kind; names of the 74 largest of 150 groups"
    assert len(ax.texts) == 74
    renderer = FigureCanvasAgg(figure).get_renderer()
    ends = sorted((e.x0, e.x1) for e in (text.get_window_extent(renderer) for text in ax.texts))
    assert all(end <= start + 1 for (_, end), (start, _) in pairwise(ends))


def test_dotplot(crowd):
    figure = pl.dotplot(crowd, ["gene0", "gene1"], "kind")
    assert_fits(figure)
    shown = {label.get_text() for axes in figure.axes for label in axes.get_yticklabels()}
    assert {as_text(name, 40) for name in NAMES} <= shown


def test_dotplot_of_more_groups_than_have_room(crowd):
    adata = crowd.copy()
    adata.obs["cell"] = pd.Categorical([f"{i // 2}" for i in range(adata.n_obs)])
    figure = pl.dotplot(adata, ["gene0"], "cell")
    assert_fits(figure)
    assert "the 150 largest of 760 groups" in [axes.get_title() for axes in figure.axes]
    with pytest.raises(ValueError, match=r"There are 760 groups; a dot plot with a dendrogram shows at most 150: take"):
        pl.dotplot(adata, ["gene0"], "cell", dendrogram=True)


def changes() -> pd.DataFrame:
    """As of `differential_expression`, with long names of genes."""
    change = np.random.default_rng(0).standard_normal((N_GROUPS, 40))
    columns = {"lfc_median": change.ravel(), "bayes_factor": 5 * np.abs(change.ravel()) - 3}
    groups = np.repeat(NAMES, 40)
    called = {
        "is_de_fdr_0.05": columns["bayes_factor"] > 1,
        "group1": groups,
        "comparison": [f"{g} vs rest" for g in groups],
    }
    return pd.DataFrame({**columns, **called}, index=[f"gene{i} of {group}" for i, group in enumerate(groups)])


def test_volcano():
    table = changes()
    for group in (NAMES[1], NAMES[5]):
        assert_fits(pl.volcano(table, group))
    with pytest.raises(ValueError, match=r"several groups: name one, group=\.\.\. of \['group 0', .* and 130 more\.$"):
        pl.volcano(table)
    with pytest.raises(KeyError, match="and 130 more"):
        pl.volcano(table, "none")


def curves(genes, lineages) -> pd.DataFrame:
    time = np.linspace(0, 1, 10)
    frame = pd.DataFrame({"pseudotime": time, "mean": 1 + time, "lower": time, "upper": 2 + time})
    parts = [frame.assign(gene=gene, lineage=lineage) for gene in genes for lineage in lineages]
    return pd.concat(parts, ignore_index=True)


def test_trends():
    figure = pl.trends(curves(["g$1$", "g2"], NAMES))
    assert_fits(figure)
    assert len(figure.axes[0].lines) == 150
    assert legend_of(figure.axes[1])[-1] == "and 115 more"


@pytest.mark.slow
def test_trends_of_many_genes():
    figure = pl.trends(curves(NAMES[:80], ["all"]))
    assert_fits(figure)
    assert len([axes for axes in figure.axes if axes.get_visible()]) == 80


def test_scores():
    rng = np.random.default_rng(0)
    columns = ["knn_accuracy", "biology", "mixing", "total"]
    figure = pl.score_table(pd.DataFrame(rng.random((N_GROUPS, 4)), index=NAMES, columns=columns))
    assert_fits(figure)
    assert "70 more rows are not shown" in figure.axes[0].texts[-1].get_text().replace("\n", " ")
    wide = pl.score_table(pd.DataFrame(rng.random((3, N_GROUPS)), columns=NAMES))
    assert_fits(wide)
    assert "114 more columns are not shown" in wide.axes[0].texts[-1].get_text()


def test_images():
    figure = pl.images({name: np.eye(6) for name in NAMES}, shape=(2, 3))
    assert_fits(figure)


def test_diagnostics():
    found = diagnosis()
    mixing = diagnostics.batch_mixing(np.random.default_rng(0).standard_normal((1500, 2)), pd.Series(NAMES * 10), 20)
    mixing.loc[mixing.index[:120], "mixing"] = 0.0
    check = diagnostics.check_batches(mixing, known=True)[0]
    assert check.sentence.count("%") == 5
    assert "and 115 more" in check.sentence
    many = type(found)(found.table, found.units, found.genes, found.ranks, mixing, found.cells, found.history)
    assert_fits(pl.diagnostics(many))


def test_lines_between_many_cells(crowd):
    model = sccvae.SCCVAE(crowd, n_hidden=8, n_latent=2)
    model.train(1, progress_bar=False)
    with pytest.raises(ValueError, match="There are 150 lines; expected at most 60 in a figure"):
        pl.interpolation(model, range(150), range(150, 300))
    assert_fits(pl.interpolation(model, range(40), range(40, 80), shape=(4, 5), n_points=3))
    assert_fits(pl.interpolation(model, range(12), range(12, 24), gene_list=["gene1"], n_points=3))
    sets = {name: ["gene1"] for name in NAMES[:30]}
    assert_fits(pl.latent_grid(model, gene_list=sets, n_points=5))


# ------------------------------------------------------------------------------------------------ texts and the page


@pytest.mark.slow
def test_report_and_diagnosis(crowd, quick, tmp_path):
    model = sccvae.SCCVAE(crowd, batch_key="batch", n_hidden=8, n_latent=4)
    model.train(2, progress_bar=False)
    model.report(tmp_path / "report.html", label_key="kind")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("and 120 more</p>") == 2  # tables of batches and of labels: 30 rows each
    assert "and 142 more" in page  # batches of fewer than 50 cells
    text = str(model.diagnose())
    assert max(map(len, text.splitlines())) < 1000


def test_scores_of_many_labels_and_batches(crowd):
    scores = tl.score_integration(crowd, "batch", "kind", use_rep="X_sccvae", scib=False)
    assert np.isfinite(scores["total"]).all()


def test_messages_about_groups_end(crowd):
    with pytest.raises(ValueError, match=r"has no cell of 'none'; it has \[.* and 130 more\.$"):
        tl.gradient(crowd, root=("kind", "none"))
    model = sccvae.SCCVAE(crowd, n_hidden=8, n_latent=2)
    model.train(1, progress_bar=False)
    with pytest.raises(ValueError, match=r"names 'none', which is not in .*; it has \[.* and 130 more\.$"):
        tl.trends(crowd, model, ["gene1"], groupby="kind", lineages={"a": ["none"]})
