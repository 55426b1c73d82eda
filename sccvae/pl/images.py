"""Images of samples, in rows and in mosaics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sccvae.pl.style import as_text, axes_for, font_for, plot
from sccvae.validation.arguments import positive

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


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
