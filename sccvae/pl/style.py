"""Sizes, colours and legends of all figures, and the decorator of the functions that draw them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Signature, signature
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from sccvae.validation.conventions import scanpy_like
from sccvae.validation.docstrings import filled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

# Okabe & Ito (2008), Color universal design: distinct for all types of colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
BLACK, MISSING = "#000000", "#D0D0D0"
SMALL, MEDIUM = 7, 8  # font sizes in points, for a figure printed at its nominal size
LEGEND_ROWS = 14
MOST_INCHES = 30.0  # of width and height: 20 million pixels at 150 dots per inch
MOST_NAMED = 36  # colours of a legend that can be distinguished
# Types of data, as annotations write them: what messages call them, and an attribute by which they are recognised.
_DATA = {"AnnData": ("an AnnData", "obs"), "pd.DataFrame": ("a DataFrame", "columns"), "Mapping": ("a dict", "keys")}


def plot(*, kinds: tuple[str, ...] = ()) -> Callable[[Callable[P, Figure]], Callable[P, Figure]]:
    """Decorate a function of `pl` that draws a figure and returns it.

    `scanpy_like` checks the call and fills the shared paragraphs of the docstring in; `kinds` is its argument. Then
    `finished` shows the figure if `show` is True, and else closes it in pyplot unless it belongs to the user (`ax`).
    Arguments annotated as data, such as an AnnData, raise a TypeError if they are of another type.
    """

    def decorate(function: Callable[P, Figure]) -> Callable[P, Figure]:
        filled(function)
        known = signature(function)

        @wraps(function)
        def draw(*args: P.args, **kwargs: P.kwargs) -> Figure:
            options: dict[str, Any] = kwargs
            _check_data(known, args, kwargs)
            figure = function(*args, **kwargs)
            return finished(figure, bool(options.get("show")), own=options.get("ax") is None)

        return scanpy_like(kinds=kinds)(draw)

    return decorate


def _check_data(known: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise TypeError for a required argument that should hold data and is of another type."""
    for name, value in known.bind_partial(*args, **kwargs).arguments.items():
        parameter = known.parameters[name]
        heads = [kind.partition("[")[0] for kind in str(parameter.annotation).split(" | ")]
        if parameter.default is not parameter.empty or not set(heads) <= _DATA.keys():
            continue
        if not any(hasattr(value, _DATA[head][1]) for head in heads):
            expected = " or ".join(_DATA[head][0] for head in heads)
            raise TypeError(f"{name} is of type {type(value).__name__}; expected {expected}.")


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of a size in inches, at most 30 in width and height."""
    import matplotlib.pyplot as plt

    size = min(width, MOST_INCHES), min(height, MOST_INCHES)
    return plt.figure(figsize=size, layout="constrained", dpi=150, facecolor="white")


def axes_for(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """Figure and axes: the user's, or those of a new figure of a size in inches."""
    if ax is not None:
        return ax.figure.figure, ax  # the figure, also for axes in a subfigure
    figure = new_figure(width, height)
    return figure, figure.add_subplot()


def rows_and_columns(n: int, n_columns: int, width: float, height: float) -> tuple[int, int]:
    """Rows and columns for n panels of a size in inches; more columns if the rows would exceed 30 inches."""
    n_columns = min(n_columns, n)
    if -(-n // n_columns) * height > MOST_INCHES:
        most_rows = max(1, int(MOST_INCHES / height))
        n_columns = max(n_columns, min(-(-n // most_rows), max(1, int(MOST_INCHES / width))))
    return -(-n // n_columns), n_columns


def as_text(name: object, most: int = 28) -> str:
    """Name for a figure: on one line, shortened if it is long, with dollar signs escaped."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(name)[: most + 1])
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return text.replace("$", r"\$")


def font_for(inches: float, size: float = SMALL) -> float:
    """Font size in points for names at a distance in inches: `size`, or smaller so that they do not overlap."""
    return max(1.0, min(size, 72 * inches / 1.2))


def style(ax: Axes) -> None:
    """Set small ticks, and remove the frame at the top and right."""
    ax.tick_params(labelsize=SMALL, width=0.8, length=2.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_linewidth(0.8)
    ax.grid(visible=False)


def finished(figure: Figure, show: bool, *, own: bool = True) -> Figure:
    """Show a figure if `show`; else close our own in pyplot, so that notebooks draw it once and memory is freed."""
    import matplotlib.pyplot as plt

    legends = [legend for axes in figure.axes if (legend := axes.get_legend()) is not None]
    crowded = any(len(legend.get_texts()) >= MOST_NAMED for legend in legends)
    if own and crowded and (engine := figure.get_layout_engine()) is not None:
        for _ in range(2):  # twice: panels keep their shape, so that a wide legend moves
            engine.execute(figure)
    if show:
        plt.show()
    elif own:
        plt.close(figure)
    return figure


def palette(n: int) -> list[str]:
    """First n colours of: Okabe-Ito, darker and lighter shades of it, from the 37th on pale ones; all are distinct."""
    from matplotlib.colors import hsv_to_rgb, to_hex, to_rgb

    colours = [*COLOURS, BLACK]
    for target, share in ((0.0, 0.45), (1.0, 0.55), (0.0, 0.7), (1.0, 0.3)):
        for colour in COLOURS:
            red, green, blue = ((1 - share) * channel + share * target for channel in to_rgb(colour))
            colours.append(to_hex((red, green, blue)))
    for i in range(n - len(colours)):  # hues by the golden ratio, so that successive ones differ much
        red, green, blue = hsv_to_rgb((0.618034 * i % 1, (0.35, 0.5, 0.65)[i % 3], (0.92, 0.82)[i % 2]))
        colours.append(to_hex((red, green, blue)))
    return colours[:n]


def colours_of(values: pd.Categorical) -> list[str]:
    """Colour of each category; of more than 36, the largest have the colours that can be distinguished."""
    colours = palette(len(values.categories))
    if len(colours) <= MOST_NAMED:
        return colours
    return [colours[place] for place in np.argsort(_by_size(values))]


def _by_size(values: pd.Categorical) -> np.ndarray:
    """Codes of the categories by decreasing number of cells."""
    sizes = np.bincount(values.codes[values.codes >= 0], minlength=len(values.categories))
    return np.argsort(-sizes, kind="stable")


def _legend(values: pd.Categorical) -> list[tuple[str, str]]:
    """Names and colours of a legend: of all categories, or of the largest 35 and the number of others."""
    colours, n = colours_of(values), len(values.categories)
    named = range(n) if n <= MOST_NAMED else _by_size(values)[: MOST_NAMED - 1]
    entries = [(as_text(values.categories[i]), colours[i]) for i in named]
    if len(entries) < n:
        entries.append((f"and {n - len(entries):,} more", "none"))
    return [*entries, ("missing", MISSING)] if (values.codes < 0).any() else entries


def legend_width(values: pd.Categorical) -> float:
    """Approximate width of the legend in inches."""
    names = [name for name, _ in _legend(values)]
    columns = [names[i : i + LEGEND_ROWS] for i in range(0, len(names), LEGEND_ROWS)]
    return sum(0.3 + 0.055 * max(map(len, column)) for column in columns) + 0.13 * (len(columns) - 1)


def legend_height(values: pd.Categorical) -> float:
    """Approximate height of the legend with its title in inches."""
    return 0.135 * (min(len(_legend(values)), LEGEND_ROWS) + 1.5)


def draw_legend(ax: Axes, key: str, values: pd.Categorical) -> None:
    """Draw the legend of categories beside the axes, in columns."""
    from matplotlib.lines import Line2D

    names, colours = zip(*_legend(values), strict=True)
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=4.5, color=colour, markeredgewidth=0) for colour in colours
    ]
    legend = ax.legend(
        handles,
        [f"name {i}" for i in range(len(names))],
        title=as_text(key),
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        borderaxespad=0,
        frameon=False,
        fontsize=SMALL,
        title_fontsize=MEDIUM,
        handletextpad=0.2,
        labelspacing=0.35,
        columnspacing=0.8,
        ncols=-(-len(names) // LEGEND_ROWS),
        alignment="left",
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)  # set afterwards, because matplotlib omits names that begin with an underscore


def spread(positions: np.ndarray, least: float, low: float, high: float) -> np.ndarray:
    """Positions at least `least` apart and within [low, high], in the same order, near the given ones.

    Names that would overlap form a block around the mean of their positions (pool adjacent violators). If there is not
    room for all, they are spaced evenly.
    """
    positions = np.asarray(positions, dtype=float)
    if len(positions) < 2 or least * (len(positions) - 1) >= high - low:
        return np.linspace(low, high, len(positions))[np.argsort(np.argsort(positions, kind="stable"))]
    order = np.argsort(positions, kind="stable")
    # After subtracting least * i, the condition is "not decreasing": a monotone regression.
    room = least * np.arange(len(order))
    blocks: list[list[float]] = []  # mean, size
    for value in positions[order] - room:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, size = blocks.pop()
            before, count = blocks[-1]
            blocks[-1] = [(before * count + mean * size) / (count + size), count + size]
    level = np.concatenate([np.full(int(size), mean) for mean, size in blocks])
    result = np.empty(len(order))
    result[order] = np.clip(level, low, high - room[-1]) + room
    return result


def colour_bar(figure: Any, points: Any, axes: Any, label: str = "", **options: Any) -> None:
    """Add a colour bar without a frame beside some axes; `options` are those of ``figure.colorbar``."""
    bar = figure.colorbar(points, ax=axes, **options)
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL, width=0.8, length=2.5)
    bar.outline.set_visible(False)
