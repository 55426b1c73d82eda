"""Pictures of differential abundance: what is on the axes, many labels, and what cannot be drawn."""

from __future__ import annotations

from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib.backends.backend_agg import FigureCanvasAgg

from sccvae import pl, tl

LONG = "a name that is very long, $with \\letters$ / of any kind, and longer than a figure has room for"


def cells_of(n_kinds: int, *, empty: bool = False) -> ad.AnnData:
    rng = np.random.default_rng(0)
    sample, kind = rng.integers(6, size=3000), rng.integers(n_kinds, size=3000)
    left = ~((sample >= 3) & (kind == 0) & (rng.random(3000) < 0.9))
    left &= ~((sample == 5) & (kind == 1)) if empty else True
    names = np.array([f"kind {i}" if i % 2 else f"{i} {LONG}" for i in range(n_kinds)])
    obs = pd.DataFrame(
        {"sample": sample.astype(str), "arm": np.where(sample < 3, "control", LONG), "kind": names[kind]},
        index=np.arange(3000).astype(str),
    )[left]
    adata = ad.AnnData(sp.csr_matrix((len(obs), 2), dtype=np.float32), obs=obs)
    adata.obsm["X_sccvae"] = (6 * rng.standard_normal((n_kinds, 2))[kind] + rng.standard_normal((3000, 2)))[left]
    return adata


@pytest.mark.parametrize("n_kinds", [2, 30, 120])
def test_by_label_there_is_a_row_for_each(n_kinds):
    adata = cells_of(n_kinds, empty=True)
    tl.differential_abundance(adata, "sample", "arm", "kind", reference="control")
    figure = pl.differential_abundance(adata)
    left, right = figure.axes
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    n_rows = min(n_kinds, 100)
    assert len(left.get_yticks()) == n_rows
    assert sum(len(points.get_offsets()) for points in left.collections if len(points.get_offsets()) > 1) >= 6 * n_rows
    table = adata.uns["differential_abundance"]
    drawn = np.concatenate([points.get_offsets()[:, 0] for points in right.collections if len(points.get_offsets())])
    lfc = table["lfc"].iloc[np.argsort(table["pval"].to_numpy(), kind="stable")[:n_rows]]
    assert set(np.round(lfc, 6)) <= set(np.round(drawn, 6))
    assert [text.get_text()[:5] for text in left.get_legend().get_texts()] == ["contr", "a nam"]
    assert ("lowest p-values of 120" in left.get_ylabel()) == (n_kinds == 120)
    box, size = figure.get_tightbbox(renderer), figure.get_size_inches()
    assert max(size) <= 30
    assert min(box.min) > -0.05
    assert (box.max < size + 0.05).all()
    labels = [label.get_window_extent(renderer) for label in left.get_xticklabels() if label.get_text()]
    inside = sorted((e.x0, e.x1) for e in labels if left.bbox.x0 <= (e.x0 + e.x1) / 2 <= left.bbox.x1)
    assert inside
    assert all(end <= start for (_, end), (start, _) in pairwise(inside))


def test_by_neighbourhood_cells_are_coloured_where_there_is_an_effect():
    adata = cells_of(4)
    adata.obs.loc[adata.obs["sample"] == "5", "arm"] = "third"
    tl.differential_abundance(adata, "sample", "arm", condition=LONG, reference="control")
    figure = pl.differential_abundance(adata, basis="X_sccvae")
    every, called, bar = figure.axes
    assert every.get_xlabel() == "sccvae 1"
    assert called.get_title() == "adjusted p < 0.05"
    assert bar.get_ylabel() == "log2 fold change of odds"
    grey, coloured = (len(points.get_offsets()) for points in every.collections)
    assert grey == (adata.obs["arm"] == "third").sum()
    assert grey + coloured == adata.n_obs
    assert len(called.collections[1].get_offsets()) == (adata.obs["differential_abundance_padj"] < 0.05).sum()
    assert (
        len(pl.differential_abundance(adata, basis="X_sccvae", max_cells=50).axes[0].collections[0].get_offsets()) < 50
    )


def test_a_layout_is_made_or_read(monkeypatch):
    adata = cells_of(3)
    tl.differential_abundance(adata, "sample", "arm")
    made = []
    monkeypatch.setattr("sccvae.pl.embedding.umap", lambda z, *, seed: made.append(z.shape) or z[:, :2])
    assert pl.differential_abundance(adata).axes[0].get_xlabel() == "umap 1"
    assert made == [(adata.n_obs, 2)]
    adata.obsm["X_umap"] = adata.obsm["X_sccvae"]
    pl.differential_abundance(adata)
    assert len(made) == 1
    with pytest.raises(KeyError, match=r"'X_tsne' is not in adata.obsm"):
        pl.differential_abundance(adata, basis="X_tsne")


def test_without_a_result_there_is_no_picture():
    with pytest.raises(KeyError, match=r"adata.uns has no result 'other'; expected that of sccvae.tl.differential_ab"):
        pl.differential_abundance(cells_of(2), key="other")
