"""Figure of gene programs: the genes with the largest loadings, and the scores of cells on a layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sccvae.pl.embedding import draw_signed, dress, layout_of, sample
from sccvae.pl.style import (
    COLOURS,
    MEDIUM,
    SMALL,
    as_text,
    colour_bar,
    font_for,
    new_figure,
    plot,
    rows_and_columns,
    style,
)
from sccvae.validation.arguments import limit
from sccvae.validation.wording import listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 12  # programs that are drawn unless some are named
REACH = 3.0  # standard deviations of a score, at the ends of the colours
WIDTH = 3.4  # of the two panels of a program, in inches


@plot()
def gene_programs(
    adata: AnnData,
    programs: str | Sequence[str] | None = None,
    *,
    n_genes: int = 10,
    key: str = "gene_programs",
    basis: str | None = None,
    use_rep: str = "X_sccvae",
    max_cells: int = 20_000,
    seed: int = 0,
    show: bool = False,
) -> Figure:
    """Draw gene programs: bars of the largest loadings with their signs, and the cells coloured by score.

    Parameters
    ----------
    adata
        Data after `sccvae.tl.gene_programs`.
    programs
        Name or names of programs, such as ``"program_1"``; None takes the first 12.
    n_genes
        Genes of each program, those with the largest absolute loadings.
    key
        The `key_added` of `sccvae.tl.gene_programs`.
    basis
        Key of ``adata.obsm`` with a layout of the cells. None takes ``"X_umap"``, or makes a UMAP of `use_rep`.
    use_rep
        Key of ``adata.obsm`` with the embedding. The scores of the programs are taken if the key is missing.
    {max_cells}
    {seed_of_drawing}
    {show}

    {figure}
        Titles have the fraction of the variance of log expression, and the stability, as percentages.

    Raises
    ------
    KeyError
        There is no result, or no program of that name, or the layout is missing.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(300, 50, seed=0)
    >>> model = sccvae.SCCVAE(adata, batch_key="batch")
    >>> model.train(max_epochs=2)
    >>> sccvae.tl.gene_programs(adata, model, n_programs=4)
    >>> figure = sccvae.pl.gene_programs(adata, ["program_1", "program_2"], basis="z")
    >>> figure.axes[0].get_xlabel()
    'log2 fold change per SD'
    """
    if key not in adata.varm or key not in adata.uns or f"X_{key}" not in adata.obsm:
        raise KeyError(
            f"adata has no result {key!r}; expected that of sccvae.tl.gene_programs: run it first, or pass its "
            "key_added as key."
        )
    n_genes, table = limit("n_genes", n_genes), adata.uns[key]["programs"]
    numbers = _numbers(table["program"].astype(str), programs, key)
    cells = np.sort(sample(adata.n_obs, max_cells, seed))
    layout, axis_name = layout_of(adata, basis, use_rep if use_rep in adata.obsm else f"X_{key}", cells, seed=seed)
    loadings, scores = np.asarray(adata.varm[key]), np.asarray(adata.obsm[f"X_{key}"])[cells]
    height = max(1.75, 0.45 + 0.12 * min(n_genes, len(loadings)))
    n_rows, n_columns = rows_and_columns(len(numbers), 3 if len(numbers) > 4 else 2, WIDTH, height)
    figure = new_figure(WIDTH * n_columns + 0.6, height * n_rows)
    grid = figure.add_gridspec(n_rows, 2 * n_columns, width_ratios=[1, 1.45] * n_columns)
    drawn = []
    for place, number in enumerate(numbers):
        row, column = divmod(place, n_columns)
        left = figure.add_subplot(grid[row, 2 * column])
        _draw_loadings(left, loadings[:, number], adata.var_names, n_genes, height)
        if place + n_columns >= len(numbers):  # the lowest of its column
            left.set_xlabel("log2 fold change per SD", fontsize=SMALL)
        right = figure.add_subplot(grid[row, 2 * column + 1])
        drawn.append(right)
        points = draw_signed(right, layout, scores[:, number], np.arange(len(layout)), REACH)
        dress(right, axis_name)
        _, variance, stability = table[["program", "variance", "stability"]].iloc[number]
        name = as_text(table["program"].iloc[number]).replace("_", " ")
        left.set_title(name, fontsize=MEDIUM, loc="left", fontweight="bold")
        right.set_title(f"variance {variance:.1%}, stability {stability:.0%}", fontsize=SMALL)
    shrink = min(0.8, 0.1 + 1.1 / (height * n_rows))
    colour_bar(figure, points, drawn, "score (SD)", shrink=shrink, aspect=14, extend="both", ticks=(-REACH, 0, REACH))
    return figure


def _numbers(known: pd.Series, programs: str | Sequence[str] | None, key: str) -> list[int]:
    """Return the numbers of the programs to draw."""
    if programs is None:
        return list(range(min(len(known), MOST)))
    names = [programs] if isinstance(programs, str) else list(programs)
    at = pd.Index(known).get_indexer(names)
    if not names or (at < 0).any():
        found = "an empty list" if not names else repr(names[int(np.argmin(at))])
        raise KeyError(f"programs holds {found}; adata.uns[{key!r}] has {listed(known, 10)}.")
    return at.tolist()


def _draw_loadings(ax: Axes, loadings: np.ndarray, genes: pd.Index, n_genes: int, height: float) -> None:
    """Draw the largest absolute loadings as bars, from the highest to the lowest value."""
    known = np.flatnonzero(np.isfinite(loadings))
    top = known[np.argsort(-np.abs(loadings[known]), kind="stable")[:n_genes]]
    top = top[np.argsort(-loadings[top], kind="stable")]
    values, rows = loadings[top], np.arange(len(top))
    ax.barh(rows, values, height=0.7, color=[COLOURS[3] if value > 0 else COLOURS[0] for value in values])
    ax.axvline(0, color="0.6", linewidth=0.8)
    ax.set_yticks(rows, [as_text(gene, 24) for gene in genes[top]], fontsize=font_for((height - 0.5) / len(top)))
    ax.set_ylim(len(top) - 0.4, -0.6)
    style(ax)
    ax.tick_params(axis="y", left=False, labelsize=font_for((height - 0.5) / len(top)))
    ax.locator_params(axis="x", nbins=3)
