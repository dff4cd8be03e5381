"""How the plots look, in the colours of Okabe and Ito 2008, which the colour-blind can tell apart."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222",
)  # fmt: skip
MUTED, OTHERS = "#5a5a5a", "#c9c9c9"
WIDTH = 9.0
"""Of a figure, in inches of 72 px: what a README is wide."""
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "broker_fl",
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titlelocation": "left",
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.7,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.09,
}


def panels(
    rows: int, columns: int, height: float, title: str, **options: Any
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a title, and its axes by row and column."""
    figure = Figure(figsize=(WIDTH, height))
    found = figure.subplots(rows, columns, squeeze=False, **options)
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=BLACK)
    return figure, [list(row) for row in found]


def shades(count: int) -> list[Any]:
    """Colours in an order, from dark to light."""
    return [mpl.colormaps["viridis"](place) for place in np.linspace(0.0, 0.82, count)]


def whole_numbers(axes: Axes, label: str) -> None:
    """The x axis counts."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel(label)


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, Any]], gap: float, room: float) -> None:
    """Labels at the right ends of lines, ``gap`` apart at least; the x axis has no ticks beside them.

    Args:
        axes: of the lines.
        ends: the y at which a line ends, its label and its colour.
        gap: in units of y.
        room: to make for the labels, as a share of the x axis.
    """
    low, high = axes.get_xlim()
    drawn = [np.asarray(line.get_xdata()) for line in axes.get_lines()]
    right = max(float(xs.max()) for xs in drawn if xs.size > 2)  # the others are marks
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= right]
    axes.set_xlim(low, right + (high - low) * room)
    axes.set_xticks(ticks)
    ordered = sorted(ends, key=lambda end: end[0])
    places = _apart([y for y, _, _ in ordered], gap)
    top = axes.get_ylim()[1] - gap / 2
    for number, ((_, label, colour), place) in enumerate(zip(ordered, places, strict=True), start=1):
        at = right, min(place, top - gap * (len(ordered) - number))
        axes.annotate(label, at, (6, 0), textcoords="offset points", color=colour, va="center", fontsize=9.5)


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places moved as little as need be: those that touch stand around their mean."""
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _touch(groups[-2], groups[-1], gap):
            above = groups.pop()
            groups[-1] += above
    return [
        mean(group) + gap * (number - (len(group) - 1) / 2)
        for group in groups
        for number in range(len(group))
    ]


def _touch(below: list[float], above: list[float], gap: float) -> bool:
    return mean(above) - mean(below) < gap * (len(below) + len(above)) / 2


def save(draw: Callable[[], Figure], path: Path) -> None:
    """Write a picture: SVG, the same for the same figures; or PNG."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else None
        draw().savefig(buffer, format=path.suffix[1:], dpi=144, facecolor="white", metadata=metadata)
    content = buffer.getvalue()
    if path.suffix == ".svg":  # a hundredth of a pixel is enough
        content = re.sub(rb' d="[^"]*"', lambda path: re.sub(rb"(\.\d\d)\d+", rb"\1", path[0]), content)
    path.write_bytes(content)
