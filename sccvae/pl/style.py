"""What all figures share: sizes, colours, legends, and how a figure begins and ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008), Color universal design: distinct for readers of all kinds of colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
BLACK, MISSING = "#000000", "#D0D0D0"
SMALL, MEDIUM = 7, 8  # font sizes in points, for a figure printed at its own size
LEGEND_ROWS = 14


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    import matplotlib.pyplot as plt

    return plt.figure(figsize=(width, height), layout="constrained", dpi=150, facecolor="white")


def style(ax: Axes) -> None:
    """Small ticks, no frame at the top and right."""
    ax.tick_params(labelsize=SMALL, width=0.8, length=2.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_linewidth(0.8)
    ax.grid(visible=False)


def finished(figure: Figure, show: bool, *, own: bool = True) -> Figure:
    """Show a figure if asked; else take our own from pyplot, lest a notebook draws it twice and memory fills up."""
    import matplotlib.pyplot as plt

    if show:
        plt.show()
    elif own:
        plt.close(figure)
    return figure


def palette(n: int) -> list[str]:
    """Okabe-Ito, then darker and lighter shades of it."""
    from matplotlib.colors import to_hex, to_rgb

    colours = [*COLOURS, BLACK]
    for target, share in ((0.0, 0.45), (1.0, 0.55), (0.0, 0.7), (1.0, 0.3)):
        for colour in COLOURS:
            red, green, blue = ((1 - share) * channel + share * target for channel in to_rgb(colour))
            colours.append(to_hex((red, green, blue)))
    return [colours[i % len(colours)] for i in range(n)]


def legend_names(values: pd.Categorical) -> list[str]:
    """Categories as a legend shows them, long ones cut."""
    names = [*map(str, values.categories), *(["missing"] if (values.codes < 0).any() else [])]
    return [name if len(name) <= 28 else f"{name[:27]}…" for name in names]


def legend_width(values: pd.Categorical) -> float:
    """About the width of the legend in inches."""
    names = legend_names(values)
    columns = [names[i : i + LEGEND_ROWS] for i in range(0, len(names), LEGEND_ROWS)]
    return sum(0.3 + 0.055 * max(map(len, column)) for column in columns)


def draw_legend(ax: Axes, key: str, values: pd.Categorical) -> None:
    """Categories beside the axes, in columns."""
    from matplotlib.lines import Line2D

    names = legend_names(values)
    colours = [*palette(len(values.categories)), MISSING][: len(names)]
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=4.5, color=colour, markeredgewidth=0) for colour in colours
    ]
    ax.legend(
        handles,
        names,
        title=key,
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
