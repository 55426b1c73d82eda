"""Generated samples: comparison of real and generated cells; images in rows and in mosaics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix, vstack

from sccvae.data.blocks import rows_of
from sccvae.pl.embedding import matrix_of, pca_of_counts, sample, umap
from sccvae.pl.style import COLOURS, MEDIUM, SMALL, as_text, axes_for, font_for, new_figure, plot, style
from sccvae.validation.arguments import limit, positive

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_KINDS = (("real", COLOURS[0]), ("generated", COLOURS[3]))


@plot()
def generation(
    real: AnnData,
    generated: AnnData,
    *,
    layer: str | None = None,
    max_cells: int = 3_000,
    seed: int = 0,
    show: bool = False,
) -> Figure:
    """Compare real and generated cells: joint UMAP, and variance and zero fraction of each gene against its mean.

    The layout is that of `pl.integration`, of real and generated cells together. A region with real cells only has no
    generated cells; a region with generated cells only has no real ones. The curves are medians over genes with similar
    means.

    Parameters
    ----------
    real
        AnnData with raw counts, preferably of cells that the generator was not trained on.
    generated
        AnnData of generated counts, its genes in any order.
    layer
        Layer of `real` with the raw counts; None takes `X`.
    max_cells
        Number of real and of generated cells at most; the same number of both is drawn and counted.
    seed
        Seed of the sample and of the layout.
    {show}

    {figure}

    Raises
    ------
    KeyError
        `generated` lacks genes of `real`, or `layer` does not exist.
    ValueError
        The values are not counts.

    Examples
    --------
    >>> import sccvae
    >>> real, other = (sccvae.simulate.simulate(100, 30, seed=seed) for seed in (0, 1))
    >>> figure = sccvae.pl.generation(real, other)
    >>> figure.axes[0].get_title()
    '100 cells of each kind'
    """
    from anndata import AnnData

    missing = real.var_names.difference(generated.var_names)
    if len(missing):
        raise KeyError(
            f"generated lacks {len(missing)} of the {real.n_vars} genes of real, such as {missing[0]!r}: expected the "
            "same genes, as in real[:, generated.var_names]."
        )
    counts, where = matrix_of(real, layer, "real")
    n = min(real.n_obs, generated.n_obs, limit("max_cells", max_cells, least=2))
    x = rows_of(counts, where, np.sort(sample(real.n_obs, n, seed)))
    order = generated.var_names.get_indexer(real.var_names)
    y = rows_of(generated.X, "generated.X", np.sort(sample(generated.n_obs, n, seed)))[:, order]
    both = vstack([x, y], format="csr")
    layout = umap(pca_of_counts(AnnData(both), None, np.arange(2 * n), seed=seed), seed=seed)

    figure = new_figure(7.8, 2.7)
    axes = [figure.add_subplot(1, 3, i + 1) for i in range(3)]
    mixed = sample(2 * n, 2 * n, seed)
    colours = np.array([colour for _, colour in _KINDS])[(mixed >= n).astype(int)]
    size = float(np.clip(9000 / (2 * n), 0.6, 10))
    axes[0].scatter(layout[mixed, 0], layout[mixed, 1], c=colours, s=size, linewidths=0, alpha=0.7, rasterized=True)
    axes[0].set(xticks=[], yticks=[], box_aspect=1)
    axes[0].set_xlabel("UMAP 1", fontsize=SMALL, loc="left")
    axes[0].set_ylabel("UMAP 2", fontsize=SMALL, loc="bottom")
    axes[0].set_title(f"{n:,} cells of each kind", fontsize=MEDIUM)
    _draw_genes(axes[1], x, y, "variance")
    _draw_genes(axes[2], x, y, "zero fraction")
    for ax in axes:
        style(ax)
    handles = [axes[1].lines[i] for i in range(2)]
    figure.legend(
        handles, [name for name, _ in _KINDS], loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False
    )
    return figure


def _draw_genes(ax: Axes, real: csr_matrix, generated: csr_matrix, what: str) -> None:
    """Draw a quantity of each gene against its mean, and its median over genes with similar means."""
    n_drawn = 0
    for x, (name, colour) in zip((real, generated), _KINDS, strict=True):
        x = x.astype(np.float64)
        mean, square = (np.asarray(m.mean(0)).ravel() for m in (x, x.power(2)))
        values = square - mean**2 if what == "variance" else 1 - x.getnnz(0) / x.shape[0]
        found = (mean > 0) & (values > 0 if what == "variance" else True)
        n_drawn += int(found.sum())
        ax.scatter(mean[found], values[found], s=4, color=colour, alpha=0.35, linewidths=0, rasterized=True)
        ax.plot(*running_median(mean[found], values[found]), color=colour, linewidth=1.4, label=name, zorder=3)
    if n_drawn:  # an empty axis has no logarithm
        ax.set_xscale("log")
    if n_drawn and what == "variance":
        ax.set_yscale("log")
        ends = np.array(ax.get_xlim())
        ax.plot(ends, ends, color="0.5", linewidth=0.8, linestyle=":", zorder=0)  # Poisson counts
        ax.set_xlim(*ends)
    ax.set_box_aspect(1)
    ax.set_xlabel("mean count of the gene", fontsize=SMALL)
    ax.set_title(what, fontsize=MEDIUM)


def running_median(x: NDArray, y: NDArray, n_bins: int = 25) -> tuple[NDArray, NDArray]:
    """Medians of x and of y in bins of x with about the same number of points each."""
    if len(x) == 0:
        return x, y
    bins = np.array_split(np.argsort(x, kind="stable"), min(n_bins, len(x)))
    return np.array([np.median(x[b]) for b in bins]), np.array([np.median(y[b]) for b in bins])


@plot()
def images(
    rows: Mapping[str, Any],
    *,
    shape: tuple[int, int],
    columns: Sequence[str] | None = None,
    ax: Axes | None = None,
    show: bool = False,
) -> Figure:
    """Draw rows of images, such as originals above their reconstructions, or the steps of a chain.

    Parameters
    ----------
    rows
        Title of each row -> its images, (images, pixels), dense or SciPy sparse. All have one scale, from the smallest
        value (white) to the largest (black).
    shape
        Height and width of the images in pixels.
    columns
        Names of the columns, one for each image of the longest row.
    {ax}
    {show}

    {figure}

    Raises
    ------
    ValueError
        `rows` is empty; `shape` does not match the number of pixels; the number of `columns` is not that of images.

    Examples
    --------
    >>> import numpy as np
    >>> from sccvae import pl
    >>> figure = pl.images({"originals": np.eye(4)}, shape=(2, 2))
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['originals']
    """
    from scipy.sparse import issparse

    if not rows:
        raise ValueError("rows is empty: expected {title: images}, such as {'originals': adata.X[:10]}.")
    dense = [np.asarray(x.toarray() if issparse(x) else x, dtype=float) for x in rows.values()]
    longest = max(len(x) for x in dense)
    if columns is not None and len(columns) != longest:
        raise ValueError(
            f"columns has {len(columns)} names; expected {longest}, the number of images in the longest row."
        )
    blank = np.full((len(dense), longest, dense[0].shape[-1]), np.nan)
    for i, (title, x) in enumerate(zip(rows, dense, strict=True)):
        if x.ndim != 2 or x.shape[1] != blank.shape[2]:
            raise ValueError(
                f"The images of {title!r} have shape {x.shape}; expected (images, {blank.shape[2]} pixels)."
            )
        blank[i, : len(x)] = x
    shape = checked_shape(shape, blank.shape[2])
    titles = [as_text(title, 60) for title in rows]
    width, height = max(map(len, titles)) * 0.068 + 0.2, 0.42 * len(dense) * shape[0] / shape[1]
    own = ax is None
    figure, ax = axes_for(ax, 0.42 * longest + width, height + (0.1 if columns is None else 0.3))
    draw_images(ax, blank, shape, extent=(0, longest, len(dense) * shape[0] / shape[1], 0))
    ax.set(xticks=[], yticks=(np.arange(len(dense)) + 0.5) * shape[0] / shape[1], yticklabels=titles)
    if columns is not None:
        ax.xaxis.tick_top()
        ax.set(xticks=np.arange(longest) + 0.5, xticklabels=[as_text(name, 60) for name in columns])
    # If the figure has its largest size, images are smaller than 0.42 inches.
    side = min(0.42, (figure.get_figwidth() - width) / longest, figure.get_figheight() / height * 0.42) if own else 0.42
    ax.tick_params(labelsize=font_for(side * shape[0] / shape[1]), length=0)
    return figure


def checked_shape(shape: tuple[int, int], n_pixels: int) -> tuple[int, int]:
    """Check height and width of images; call it before a figure is made, which would stay open."""
    if np.shape(shape) != (2,) or isinstance(shape, str):
        raise TypeError(f"shape is {shape!r}; expected two whole numbers, (height, width).")
    height, width = (positive("shape", side) for side in shape)
    if height * width != n_pixels:
        raise ValueError(
            f"shape {shape} has {height * width} pixels; expected {n_pixels}, one for each column of the data."
        )
    return height, width


def draw_images(
    ax: Axes, values: NDArray, shape: tuple[int, int], *, extent: tuple[float, float, float, float], gap: int = 1
) -> None:
    """Draw a mosaic of images, (rows, columns, pixels), from the top left; NaN is white."""
    n_rows, n_columns, _ = values.shape
    height, width = shape
    mosaic = np.full((n_rows * (height + gap), n_columns * (width + gap)), np.nan)
    for row in range(n_rows):
        for column in range(n_columns):
            top, left = row * (height + gap) + gap // 2, column * (width + gap) + gap // 2
            mosaic[top : top + height, left : left + width] = values[row, column].reshape(shape)
    ax.imshow(mosaic, cmap="gray_r", extent=extent, interpolation="nearest")
    ax.spines[:].set_visible(False)
