"""Interpolation: the decoded mean along lines between cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccvae.metrics.distances import line_log_density
from sccvae.pl.generation import checked_shape, draw_images
from sccvae.pl.latent import PER_10_000, codes_of, edges_of, genes_of
from sccvae.pl.style import (
    MEDIUM,
    SMALL,
    as_text,
    colours_of,
    draw_legend,
    font_for,
    legend_height,
    legend_width,
    new_figure,
    plot,
    rows_and_columns,
    style,
)
from sccvae.validation.arguments import positive, whole
from sccvae.validation.conventions import ANY_MODEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from sccvae.models.base import BaseModel

MOST_LINES, FEW_LINES = 60, 10  # of an interpolation; up to FEW_LINES have matplotlib's own legend


@plot(kinds=ANY_MODEL)
def interpolation(
    model: BaseModel,
    first: int | Sequence[int],
    second: int | Sequence[int],
    *,
    adata: AnnData | None = None,
    shape: tuple[int, int] | None = None,
    gene_list: Sequence[str] | None = None,
    n_points: int = 11,
    n_neighbors: int = 10,
    batch: str | None = None,
    seed: int = 0,
    show: bool = False,
) -> Figure:
    """Draw the decoded mean on straight lines between latent representations, and the density of cells there.

    The lower panel is the log density of the aggregate posterior along each line minus its mean at the cells, in nats,
    as `sccvae.metrics.distances.line_log_density` estimates it. Values far below 0 mean that the line crosses a region
    without cells. Latent representations (codes) are the encoder's means; for an `SCCVAE`, the density is that of
    samples from q(z|x), except at the ends of lines. Identical codes, as those of equal images, count once.

    Parameters
    ----------
    model
        A trained `SCCVAE` or autoencoder.
    first, second
        Numbers of the cells at both ends of a line; lists for several lines.
    adata
        Data that the numbers refer to; None takes the training data.
    {image_shape}
    gene_list
        Genes to draw as a heat map of log(1 + counts per 10,000); None takes the 20 that change most on each line.
    n_points
        Decoded points on each line, the ends included.
    n_neighbors
        Number of neighbours in the density estimate; more smooth it.
    {decoded_batch}
    seed
        Seed of the samples from q(z|x).
    {show}

    {figure}

    Raises
    ------
    ValueError
        `first` and `second` have different lengths; a cell number is out of range; `shape` does not match the number
        of columns; there are more than 60 lines.
    KeyError
        A gene is not in the model.

    Examples
    --------
    >>> import sccvae
    >>> model = sccvae.SCCVAE(sccvae.simulate.simulate(100, 30, seed=0), n_hidden=8)
    >>> model.train(max_epochs=1)
    >>> figure = sccvae.pl.interpolation(model, 0, 1, gene_list=["gene_1", "gene_2"])
    >>> figure.axes[0].get_title()
    '0 to 1'
    """
    n_points, n_neighbors = whole("n_points", n_points, least=2, most=1000), positive("n_neighbors", n_neighbors)
    begin, end = _numbers("first", first), _numbers("second", second)
    z, spread = codes_of(model, adata, seed)
    if begin.shape != end.shape or begin.ndim != 1:
        raise ValueError(f"first has {begin.size} cells and second {end.size}; expected the same number of both.")
    if begin.size > MOST_LINES:
        raise ValueError(f"There are {begin.size} lines; expected at most {MOST_LINES} in a figure.")
    wrong = [int(i) for i in (*begin, *end) if not 0 <= i < len(z)]
    if wrong:
        what = "first" if wrong[0] in begin else "second"
        raise ValueError(
            f"{what} has the cell number {wrong[0]}, but there are {len(z)} cells; expected 0 to {len(z) - 1}."
        )
    if shape is not None:
        shape = checked_shape(shape, len(model.gene_names))
    along, fine = np.linspace(0, 1, n_points), np.linspace(0, 1, 41)
    lines = z[begin][:, None] + along[:, None] * (z[end] - z[begin])[:, None]  # (lines, points, n_latent)
    decoded = model.decode(lines.reshape(-1, z.shape[1]), batch=batch, library_size=PER_10_000)
    decoded = decoded.reshape(len(begin), n_points, -1)
    ends = np.unique(np.concatenate([begin, end]))
    spread[ends] = z[ends]
    kept = np.union1d(np.unique(spread, axis=0, return_index=True)[1], ends)
    numbered = np.searchsorted(kept, begin), np.searchsorted(kept, end)
    density = line_log_density(spread[kept], *numbered, fine, n_neighbors=n_neighbors)
    names = [f"{a} to {b}" for a, b in zip(begin, end, strict=True)]
    if shape is not None:
        images = decoded / PER_10_000 if model.likelihood.has_library else decoded
        return _image_lines(images, shape, fine, density, names)
    given = None if gene_list is None else genes_of(model, gene_list)
    levels = np.log1p(decoded) if model.likelihood.has_library else decoded
    unit = "log(1 + counts per 10,000)" if model.likelihood.has_library else "mean"
    return _gene_lines(levels, given, model.gene_names, unit, fine, density, names)


def _image_lines(decoded: NDArray, shape: tuple[int, int], fine: NDArray, density: NDArray, names: list[str]) -> Figure:
    """Draw images (lines, points, pixels), a row for each line, above the density on all lines."""
    n_lines, n_points, _ = decoded.shape
    lines = _lines(names)
    beside, below = (legend_width(lines), legend_height(lines) + 0.4) if n_lines > FEW_LINES else (0.0, 1.5)
    figure = new_figure(0.42 * n_points + 0.9 + beside, 0.42 * n_lines + below + 0.2)
    grid = figure.add_gridspec(2, 1, height_ratios=[0.42 * n_lines, below])
    top = figure.add_subplot(grid[0])
    draw_images(top, decoded, shape, extent=(*edges_of(0, 1, n_points), n_lines, 0))
    top.set(xticks=[], yticks=np.arange(n_lines) + 0.5, yticklabels=names, aspect="auto")
    top.tick_params(labelsize=font_for(0.42), length=0)
    _draw_density(figure.add_subplot(grid[1], xlim=top.get_xlim()), fine, density, names, legend=n_lines > 1)
    return figure


def _gene_lines(
    levels: NDArray,
    given: NDArray | None,
    gene_names: pd.Index,
    unit: str,
    fine: NDArray,
    density: NDArray,
    names: list[str],
) -> Figure:
    """Draw expression of genes (lines, points, genes), a heat map for each line, above the density on it."""
    n_rows, n_columns = rows_and_columns(len(names), 10, 2.7, 4.4)
    figure = new_figure(2.7 * n_columns + 0.5, 4.4 * n_rows)
    grid = figure.add_gridspec(2 * n_rows, n_columns, height_ratios=[2.4, 1] * n_rows)
    along, images = np.linspace(0, 1, levels.shape[1]), []
    for i, name in enumerate(names):
        genes = given
        if genes is None:  # the 20 that change most, from decreasing to increasing
            genes = np.argsort(-np.ptp(levels[i], axis=0), kind="stable")[:20]
            genes = genes[np.argsort(levels[i, -1, genes] - levels[i, 0, genes], kind="stable")]
        row, column = divmod(i, n_columns)
        ax = figure.add_subplot(grid[2 * row, column])
        images.append(_draw_genes(ax, levels[i][:, genes], gene_names[genes], along))
        ax.set_title(name, fontsize=MEDIUM)
        _draw_density(
            figure.add_subplot(grid[2 * row + 1, column], xlim=ax.get_xlim()), fine, density[[i]], [name], legend=False
        )
    low, high = min(image.norm.vmin for image in images), max(image.norm.vmax for image in images)
    for image in images:
        image.set_clim(low, high)
    bar = figure.colorbar(images[-1], ax=figure.axes, shrink=0.5, anchor=(0, 1), pad=0.02)
    bar.ax.tick_params(labelsize=SMALL, width=0.8, length=2.5)
    bar.set_label(unit, fontsize=SMALL)
    return figure


def _numbers(name: str, cells: Any) -> NDArray:
    """Numbers of cells, (lines,), from one number or several."""
    return np.array([whole(name, cell, least=0) for cell in np.atleast_1d(np.asarray(cells, dtype=object)).ravel()])


def _draw_density(ax: Axes, along: NDArray, density: NDArray, names: list[str], *, legend: bool) -> None:
    lines = _lines(names)
    colours = colours_of(lines)
    for name, values, code in zip(names, density, lines.codes, strict=True):
        ax.plot(along, values, color=colours[code], linewidth=1.2, label=name)
    ax.axhline(0, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    ax.set_xlabel("place on the line", fontsize=SMALL)
    ax.set_ylabel("log density\nagainst cells (nats)", fontsize=SMALL)
    style(ax)
    if legend and len(names) > FEW_LINES:
        draw_legend(ax, "", lines)
    elif legend:
        ax.legend(fontsize=SMALL, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1.4)


def _lines(names: list[str]) -> pd.Categorical:
    """Lines as categories in their order; lines with the same name have one colour."""
    return pd.Categorical(names, categories=list(dict.fromkeys(names)))


def _draw_genes(ax: Axes, levels: NDArray, names: pd.Index, along: NDArray) -> Any:
    left, right = edges_of(along[0], along[-1], len(along))
    image = ax.imshow(
        levels.T, extent=(left, right, len(names), 0), aspect="auto", cmap="viridis", interpolation="nearest"
    )
    ax.set(yticks=np.arange(len(names)) + 0.5, yticklabels=[as_text(name) for name in names])
    style(ax)
    ax.tick_params(axis="y", length=0, labelsize=font_for(2.7 / len(names)))
    ax.tick_params(axis="x", labelbottom=False)
    return image
