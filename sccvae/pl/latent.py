"""Latent spaces in two dimensions: cells, and the decoded mean on a grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccvae.pl.embedding import sample
from sccvae.pl.generation import checked_shape, draw_images
from sccvae.pl.style import (
    COLOURS,
    MEDIUM,
    MISSING,
    SMALL,
    as_text,
    axes_for,
    colours_of,
    draw_legend,
    legend_width,
    new_figure,
    plot,
    rows_and_columns,
    style,
)
from sccvae.validation.arguments import FLOAT32, checked_seed, finite, limit, positive, unless_none
from sccvae.validation.conventions import ANY_MODEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    from sccvae.models.base import BaseModel

PER_10_000 = 1e4  # expression is drawn as log(1 + counts per 10,000)


@plot()
def latent_scatter(
    codes: Mapping[str, ArrayLike],
    *,
    labels: ArrayLike | None = None,
    label_name: str = "",
    prior: bool = False,
    max_cells: int = 20_000,
    seed: int = 0,
    ax: Axes | None = None,
    show: bool = False,
) -> Figure:
    """Draw two-dimensional latent representations (codes), such as those of several epochs or models.

    Parameters
    ----------
    codes
        Title of each panel -> its codes, (cells, 2).
    labels
        A category for each cell, (cells,), such as a column of ``adata.obs``; it colours the cells of all panels.
    label_name
        Title of the legend.
    prior
        Draw circles of radius 1, 2 and 3, which contain 39, 86 and 99 % of N(0, I).
    {max_cells}
    {seed_of_drawing}
    ax
        Draw the only entry of `codes` into these axes.
    {show}

    {figure}
        A panel for each entry of `codes`, four in a row, or more if there are more than fifty.

    Raises
    ------
    ValueError
        `codes` is empty, does not have two columns, or has another number of cells than `labels`; `ax` is given and
        there are several entries.

    Examples
    --------
    >>> from sccvae import pl
    >>> figure = pl.latent_scatter({"epoch 1": [[0.0, 1.0], [1.0, 0.5]]}, labels=["a", "b"])
    >>> figure.axes[0].get_title()
    'epoch 1'
    """
    max_cells = limit("max_cells", max_cells)
    if not codes:
        raise ValueError(
            "codes is empty: expected {title: codes}, such as {'epoch 1': model.get_latent_representation()}."
        )
    arrays = {title: np.asarray(z, dtype=float) for title, z in codes.items()}
    values = None if labels is None else pd.Categorical(np.asarray(labels)).remove_unused_categories()
    for title, z in arrays.items():
        if z.ndim != 2 or z.shape[1] != 2:
            raise ValueError(
                f"The codes of {title!r} have shape {z.shape}; expected (cells, 2). Train with n_latent=2, or lay out "
                "the codes in two dimensions first."
            )
        if values is not None and len(values) != len(z):
            raise ValueError(f"There are {len(values)} labels for the {len(z)} cells of {title!r}; expected one each.")
    if ax is not None and len(arrays) > 1:
        raise ValueError(f"ax has room for one entry of codes; found {len(arrays)}: pass one, or leave ax out.")
    n_rows, n_columns = rows_and_columns(len(arrays), 4, 2.3, 2.4)
    width = 2.3 * n_columns + (0 if values is None else legend_width(values))
    figure = new_figure(width, 2.4 * n_rows) if ax is None else ax.figure.figure
    for i, (title, z) in enumerate(arrays.items()):
        panel = figure.add_subplot(n_rows, n_columns, i + 1) if ax is None else ax
        _draw_codes(panel, z, values, prior=prior, max_cells=max_cells, seed=seed)
        panel.set_title(as_text(title), fontsize=MEDIUM)
        if i == n_columns - 1 and values is not None:
            draw_legend(panel, label_name, values)
    return figure


@plot(kinds=ANY_MODEL)
def latent_grid(
    model: BaseModel,
    *,
    shape: tuple[int, int] | None = None,
    gene_list: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    n_points: int | None = None,
    limits: float | tuple[tuple[float, float], tuple[float, float]] = 3.0,
    codes: ArrayLike | None = None,
    batch: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
) -> Figure:
    """Draw the decoded mean on a grid of the latent space, for models with two latent dimensions.

    As figure 4 of Kingma & Welling 2014.

    Parameters
    ----------
    model
        A trained `SCCVAE` or autoencoder with ``n_latent=2``.
    {image_shape}
    gene_list
        Instead of `shape`: genes whose mean decoded expression is drawn as a heat map, in counts per 10,000 (for
        `normal` and `bernoulli`, the decoded mean). Several sets as ``{title: genes}`` have a panel each.
    n_points
        Number of grid points per dimension; None takes 15 for images and 60 for a heat map.
    limits
        Range of the grid: a number, for minus to plus this number in both dimensions, or two pairs of ends.
    codes
        Latent representations to draw on a heat map as dots, (cells, 2), such as ``model.get_latent_representation()``.
    {decoded_batch}
    ax
        Draw the images, or the only set of genes, into these axes.
    {show}

    {figure}
        The second latent dimension increases upwards.

    Raises
    ------
    ValueError
        The model does not have two latent dimensions; neither or both of `shape` and `gene_list` are given; `shape`
        does not match the number of columns; `ax` is given and there are several sets.
    KeyError
        A gene is not in the model.

    Examples
    --------
    >>> import sccvae
    >>> model = sccvae.SCCVAE(sccvae.simulate.simulate(100, 30, seed=0), n_latent=2, n_hidden=8)
    >>> model.train(max_epochs=1)
    >>> figure = sccvae.pl.latent_grid(model, gene_list={"markers": ["gene_1", "gene_2"]}, n_points=10)
    >>> figure.axes[0].get_title()
    'markers'
    """
    if model.n_latent != 2:
        raise ValueError(
            f"The model has {model.n_latent} latent dimensions; a grid needs two: make it with n_latent=2."
        )
    if (shape is None) == (gene_list is None):
        raise ValueError("Pass either shape=(height, width), to draw images, or gene_list, to draw the mean of genes.")
    n = unless_none(positive, "n_points", n_points, most=1000) or (15 if shape is not None else 60)
    (left, right), (low, high) = _limits(limits)
    across, up = np.linspace(left, right, n), np.linspace(low, high, n)
    z = np.column_stack([np.tile(across, n), np.repeat(up[::-1], n)])  # row by row from the top
    extent = (*edges_of(left, right, n), *edges_of(low, high, n))
    if shape is not None:
        shape = checked_shape(shape, len(model.gene_names))
        decoded = model.decode(z, batch=batch)
        figure, panel = axes_for(ax, 4.2, 4.2)
        draw_images(panel, decoded.reshape(n, n, -1), shape, extent=extent, gap=2)
        _name_dimensions(panel)
        return figure
    sets = dict(gene_list) if isinstance(gene_list, Mapping) else {"": list(gene_list or ())}
    positions = {title: genes_of(model, genes) for title, genes in sets.items()}
    if ax is not None and len(sets) > 1:
        raise ValueError(f"ax has room for one set of genes; found {len(sets)}: pass one, or leave ax out.")
    decoded = model.decode(z, batch=batch, library_size=PER_10_000)
    n_rows, n_columns = rows_and_columns(len(sets), 10, 2.9, 2.5)
    figure = new_figure(2.9 * n_columns, 2.5 * n_rows) if ax is None else ax.figure.figure
    for i, (title, columns) in enumerate(positions.items()):
        panel = figure.add_subplot(n_rows, n_columns, i + 1) if ax is None else ax
        mean = decoded[:, columns].mean(1).reshape(n, n)
        image = panel.imshow(mean, extent=extent, cmap="viridis", aspect="auto", interpolation="nearest")
        bar = figure.colorbar(image, ax=panel, shrink=0.85)
        bar.ax.tick_params(labelsize=SMALL, width=0.8, length=2.5)
        bar.set_label("counts per 10,000" if model.likelihood.has_library else "mean", fontsize=SMALL)
        if codes is not None:
            dots = np.asarray(codes)
            panel.scatter(dots[:, 0], dots[:, 1], s=1.5, c="white", linewidths=0, alpha=0.6, rasterized=True)
        panel.set(xlim=extent[:2], ylim=extent[2:], box_aspect=1)
        panel.set_title(as_text(title), fontsize=MEDIUM)
        _name_dimensions(panel)
    return figure


def _limits(limits: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ends of a grid in each dimension."""
    expected = "a number above 0, or two pairs of finite numbers: from where to where in each dimension"
    if not np.iterable(limits) or isinstance(limits, str):
        reach = finite("limits", limits, expected, above=0, most=FLOAT32)
        return (-reach, reach), (-reach, reach)
    pairs: Any = np.asarray(limits, dtype=object)
    if pairs.shape != (2, 2):
        raise ValueError(f"limits is {limits!r}; expected {expected}.")
    (left, right), (low, high) = (
        [finite("limits", end, expected, least=-FLOAT32, most=FLOAT32) for end in pair] for pair in pairs
    )
    if not (left < right and low < high):
        raise ValueError(f"limits is {limits!r}; expected {expected}, the lower end first.")
    return (left, right), (low, high)


def genes_of(model: BaseModel, genes: Sequence[str]) -> NDArray:
    """Column numbers of the named genes."""
    columns = model.gene_names.get_indexer(pd.Index(genes))
    if len(columns) == 0:
        raise ValueError("A set of genes is empty; expected names of model.gene_names.")
    if (columns < 0).any():
        unknown = [str(gene) for gene, column in zip(genes, columns, strict=True) if column < 0]
        raise KeyError(f"{unknown[0]!r} is not among the {len(model.gene_names):,} genes of the model.")
    return columns


def codes_of(model: Any, adata: AnnData | None, seed: int) -> tuple[NDArray, NDArray]:
    """Means of q(z|x), and samples from it; of autoencoders the codes twice; (cells, n_latent) each."""
    seed = checked_seed(seed)
    if model.kind != "SCCVAE":
        z = model.get_latent_representation(adata)
        return z, z.copy()
    z, variance = model.get_latent_representation(adata, return_variance=True)
    return z, z + np.sqrt(variance) * np.random.default_rng(seed).standard_normal(z.shape)


def _draw_codes(ax: Axes, z: NDArray, values: pd.Categorical | None, *, prior: bool, max_cells: int, seed: int) -> None:
    cells = sample(len(z), max_cells, seed)
    colours = [COLOURS[0]] if values is None else np.array([*colours_of(values), MISSING])[values.codes[cells]]
    size = float(np.clip(6000 / len(cells), 0.6, 10))
    ax.scatter(z[cells, 0], z[cells, 1], c=colours, s=size, linewidths=0, alpha=0.8, rasterized=True)
    if prior:
        turn = np.linspace(0, 2 * np.pi, 200)
        for radius in (1, 2, 3):
            ax.plot(radius * np.cos(turn), radius * np.sin(turn), color="0.35", linewidth=0.7, linestyle="--")
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_box_aspect(1)
    _name_dimensions(ax)


def _name_dimensions(ax: Axes) -> None:
    ax.set_xlabel("$z_1$", fontsize=SMALL)
    ax.set_ylabel("$z_2$", fontsize=SMALL)
    style(ax)


def edges_of(first: float, last: float, n: int) -> tuple[float, float]:
    """Outer edges of n evenly spaced fields, given the centres of the first and the last."""
    half = (last - first) / max(2 * (n - 1), 1)
    return first - half, last + half
