"""Heat map of distances between cells, ordered by a dendrogram of their groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sccvae.data.columns import one_column
from sccvae.pl.embedding import categories, embedding, sample
from sccvae.pl.style import MEDIUM, SMALL, as_text, colour_bar, colours_of, new_figure, plot, spread
from sccvae.statistics.posterior_distances import linkage, matrix
from sccvae.validation.wording import listed

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@plot()
def similarity(
    adata: AnnData,
    groupby: str,
    *,
    key: str = "sccvae_similarity",
    use_rep: str | None = None,
    dendrogram_key: str | None = None,
    max_cells: int = 2_000,
    seed: int = 0,
    ax: Axes | None = None,
    show: bool = False,
) -> Figure:
    """Draw a heat map of distances between cells, ordered by the dendrogram of their groups.

    A dark block on the diagonal is a group with small distances between its cells; a dark block beside it is a pair of
    similar groups. Within a group, cells are ordered by hierarchical clustering.

    Parameters
    ----------
    adata
        Data after ``sccvae.tl.hierarchy(adata, groupby)``.
    groupby
        Column of `obs` with the groups.
    key
        Key of the distances between all pairs, ``obsp[f"{key}_matrix"]``, see `sccvae.tl.similarity`.
    use_rep
        Instead of `key`: key of ``adata.obsm`` with an embedding, compared by Euclidean distance.
    dendrogram_key
        Key of ``uns``; by default ``dendrogram_{groupby}``.
    {max_cells}
    seed
        Seed of the sample.
    ax
        Draw the distances into these axes, with dendrogram and colour bar beside them.
    {show}

    {figure}
        The names of the groups are below the heat map; if there is not room for all, those of the largest groups, as
        the title states.

    Raises
    ------
    KeyError, ValueError
        There are no distances or no dendrogram, or the dendrogram has other groups.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(100, 30, seed=0)
    >>> sccvae.tl.hierarchy(adata, "cell_type", use_rep="z")
    >>> figure = sccvae.pl.similarity(adata, "cell_type", use_rep="z")
    >>> figure.axes[0].get_title()
    '100 cells by cell_type'
    """
    cells = np.sort(sample(adata.n_obs, max_cells, seed))
    values = categories(adata, groupby, cells)
    tree = _tree(adata, dendrogram_key or f"dendrogram_{groupby}", groupby)
    distances, unit = _distances(adata, key, use_rep, cells)
    by_name = {str(name): np.flatnonzero(values == name) for name in values.categories}
    members = [_by_likeness(by_name.get(name, np.array([], dtype=int)), distances) for name in tree["names"]]
    ends = np.cumsum([len(m) for m in members])
    order, centres = np.concatenate(members), ends - np.array([len(m) for m in members]) / 2

    side = float(np.clip(0.11 * len(centres), 4, 9))
    if ax is None:
        figure = new_figure(side + 2.4, side + 0.8)
        grid = figure.add_gridspec(1, 2, width_ratios=[side, 0.14], wspace=0.02)
        ax, bar_ax = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    else:
        figure, bar_ax = ax.figure.figure, ax.inset_axes((1.02, 0, 0.03, 1))
    tree_ax, group_ax = ax.inset_axes((-0.31, 0, 0.26, 1)), ax.inset_axes((-0.045, 0, 0.03, 1))
    position = np.empty(len(centres))
    position[tree["leaves"]] = centres
    _draw_tree(tree_ax, tree["linkage"], position, len(order))
    colours = dict(zip(map(str, values.categories), colours_of(values), strict=True))
    for name, end, some in zip(tree["names"], ends, members, strict=True):
        group_ax.axhspan(end - len(some), end, color=colours.get(name, "white"), linewidth=0)
    group_ax.set(xticks=[], yticks=[], ylim=(len(order), 0))
    group_ax.spines[:].set_visible(False)
    shown = distances[np.ix_(order, order)]
    low, high = np.quantile(shown[~np.eye(len(shown), dtype=bool)], [0.005, 0.995])
    image = ax.imshow(shown, cmap="magma", vmin=low, vmax=high, aspect="auto", interpolation="antialiased")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    named = _with_room([len(m) for m in members], side)
    title = f"{len(order):,} cells by {as_text(groupby)}"
    title += f"; names of the {len(named)} largest of {len(ends)} groups" if len(named) < len(ends) else ""
    ax.set_title(title, fontsize=MEDIUM)
    for end in ends[:-1]:
        ax.axhline(end - 0.5, color="white", linewidth=0.5 if len(ends) <= 20 else 0.2)
        ax.axvline(end - 0.5, color="white", linewidth=0.5 if len(ends) <= 20 else 0.2)
    _name_blocks(ax, [tree["names"][i] for i in named], centres[named], len(order))
    colour_bar(figure, image, None, unit, cax=bar_ax)
    return figure


def _tree(adata: AnnData, key: str, groupby: str) -> dict:
    """Names of the groups in the order of the leaves, their numbers, and the linkage."""
    if key not in adata.uns:
        raise KeyError(f"{key!r} is not in adata.uns: run sccvae.tl.hierarchy(adata, {groupby!r}) first.")
    names = [str(name) for name in adata.uns[key]["categories_ordered"]]
    wrong = set(map(str, one_column(adata.obs, groupby).dropna().unique())) ^ set(names)
    if wrong:
        raise ValueError(
            f"adata.uns[{key!r}] and adata.obs[{groupby!r}] have different groups, such as {sorted(wrong)[0]!r}: run "
            f"sccvae.tl.hierarchy(adata, {groupby!r}) again."
        )
    leaves = np.asarray(adata.uns[key]["categories_idx_ordered"], dtype=int)
    return {"names": names, "leaves": leaves, "linkage": np.asarray(adata.uns[key]["linkage"])}


def _distances(adata: AnnData, key: str, use_rep: str | None, cells: np.ndarray) -> tuple[np.ndarray, str]:
    """Distances between the drawn cells, and the label of the colour bar."""
    if use_rep is not None:
        return matrix(
            embedding(adata, use_rep)[cells], None, metric="euclidean"
        ), f"Euclidean distance in {as_text(use_rep)}"
    if f"{key}_matrix" not in adata.obsp:
        raise KeyError(
            f"'{key}_matrix' is not in adata.obsp, which has {listed(adata.obsp)}. sccvae.tl.similarity(adata, model, "
            "dense=True) makes it; or pass use_rep='X_sccvae' for Euclidean distances of an embedding."
        )
    metric = adata.uns.get(key, {}).get("params", {}).get("posterior_distance")
    units = {
        "symmetric_kl": "distance of posteriors: root of symmetric KL (nats)",
        "wasserstein": "2-Wasserstein distance of posteriors",
        "euclidean": "Euclidean distance of posterior means",
    }
    return adata.obsp[f"{key}_matrix"][np.ix_(cells, cells)], units.get(metric, "distance")


def _by_likeness(cells: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Cells of a group in the order of their hierarchical clustering."""
    from scipy.cluster.hierarchy import leaves_list

    if len(cells) < 3:
        return cells
    return cells[leaves_list(linkage(distances[np.ix_(cells, cells)], method="average", optimal_ordering=False))]


def _with_room(sizes: list[int], inches: float) -> np.ndarray:
    """Numbers of the groups whose names fit below axes of this width in inches: all, or the largest."""
    room = int(inches / (SMALL * 1.25 / 72))
    scattered = 0.618034 * np.arange(len(sizes)) % 1  # so that groups of equal size are chosen evenly
    return np.sort(np.lexsort((scattered, -np.array(sizes)))[:room])


def _draw_tree(ax: Axes, tree: np.ndarray, position: np.ndarray, n_cells: int) -> None:
    """Draw the dendrogram, root at the left, each leaf at the middle of its block; `position` is by group number."""
    at = [(float(where), 0.0) for where in position]  # of each cluster: position along the blocks, height
    for first, second, height, _ in tree:
        (y1, h1), (y2, h2) = at[int(first)], at[int(second)]
        ax.plot([h1, height, height, h2], [y1, y1, y2, y2], color="0.25", linewidth=0.9, solid_joinstyle="miter")
        at.append(((y1 + y2) / 2, float(height)))
    ax.set(xlim=(1.05 * tree[-1, 2], 0), ylim=(n_cells, 0), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _name_blocks(ax: Axes, names: list[str], centres: np.ndarray, n_cells: int) -> None:
    """Write names below the blocks, slanted, or vertical if there are many; names of small blocks are moved apart."""
    from matplotlib.transforms import Affine2D, blended_transform_factory

    # x in data coordinates, y as a fraction of the axes' height, 1 at the lower edge
    below = blended_transform_factory(ax.transData, Affine2D().translate(0, -1) + ax.transAxes)
    crowded = len(names) > 20
    places = spread(centres, n_cells * (0.023 if crowded else 0.045), 0.01 * n_cells, 0.99 * n_cells)
    for name, centre, place in zip(map(as_text, names), centres, places, strict=True):
        ax.plot([centre, place], [1, 0.975], transform=below, color="0.5", linewidth=0.6, clip_on=False)
        ax.text(
            place,
            0.97,
            name,
            transform=below,
            fontsize=SMALL,
            rotation=90 if crowded else 40,
            rotation_mode="default" if crowded else "anchor",
            ha="center" if crowded else "right",
            va="top",
        )
