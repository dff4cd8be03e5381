"""From a matplotlib figure to SVG that belongs to the page: its colours are the page's, light or dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

# matplotlib only takes colours: each of these stands for a variable of the page's style sheet.
_VARIABLES = (
    "ink", "muted", "grid", "surface",
    "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7",
    "send", "download", "queue", "evaluate", "train", "upload", "aggregate", "store", "wait",
    "folded", "failed", "late", "refused", "cancelled",
    "h0", "h1", "h2", "h3", "h4", "h5",
)  # fmt: skip
COLOUR = {name: f"#0a5f{index:02x}" for index, name in enumerate(_VARIABLES)}
_VARIABLE_OF = {colour: f"var(--{name})" for name, colour in COLOUR.items()}
SERIES = tuple(COLOUR[f"s{index}"] for index in range(8))

LEVELS = tuple(COLOUR[f"h{index}"] for index in range(6))
"""From little to much."""
SINCE_SUBMISSION = "seconds since submission"

NARROW, HALF, FULL = 320, 500, 1040
"""Widths in CSS pixels: a phone, one of two columns, the whole page."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "broker_fl",
    "text.parse_math": False,  # names of metrics come from learners
    "axes.unicode_minus": True,
    "font.size": 11.0,
    "text.color": COLOUR["ink"],
    "axes.edgecolor": COLOUR["muted"],
    "axes.labelcolor": COLOUR["muted"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": COLOUR["muted"],
    "ytick.color": COLOUR["muted"],
    "grid.color": COLOUR["grid"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "legend.labelcolor": COLOUR["muted"],
    "path.simplify": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """Size of a drawing and its margins, in CSS pixels."""

    width: int
    height: int = 230
    left: int = 52
    right: int = 14
    top: int = 26
    bottom: int = 40

    def axes(self) -> tuple[Figure, Axes]:
        """An empty drawing with its axes at the same place in every drawing of this size."""
        figure = Figure(figsize=(self.width / 72, self.height / 72), dpi=72)
        wide, high = self.width - self.left - self.right, self.height - self.top - self.bottom
        axes = figure.add_axes(
            (self.left / self.width, self.bottom / self.height, wide / self.width, high / self.height),
        )
        axes.set_axisbelow(True)
        axes.grid(axis="y", linewidth=0.7)
        axes.tick_params(length=0, pad=5)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        return figure, axes


def whole_numbers(axes: Axes, label: str) -> None:
    """The x axis counts rounds or versions."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.set_xlabel(label, labelpad=5)


def legend(axes: Axes, num_columns: int, left: float = 0.0) -> None:
    """A legend above the axes, ``left`` of their left edge: areas before lines, and row by row."""
    pairs = list(zip(*axes.get_legend_handles_labels(), strict=True))
    if not pairs:
        return  # nothing is drawn: matplotlib would warn
    pairs.sort(key=lambda pair: isinstance(pair[0], Line2D))
    pairs = [pair for column in range(num_columns) for pair in pairs[column::num_columns]]
    axes.legend(
        *zip(*pairs, strict=True),
        loc="lower left",
        bbox_to_anchor=(-left, 1.02),
        ncols=num_columns,
        borderaxespad=0,
        handlelength=1.1,
        handletextpad=0.5,
        columnspacing=1.2,
        fontsize=10.5,
    )


def boxes(axes: Axes, name: str, where: Sequence[tuple[float, float, float, float]], label: str = "") -> None:
    """Boxes (left, bottom, width, height) of one colour, named in the legend as ``label`` or as the colour.

    They are one path: an element for each would make the page several times larger.
    """
    corners = [((x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)) for x, y, w, h in where]
    vertices = np.array(corners, dtype=np.float64).reshape(-1, 2)
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(where)
    axes.add_patch(PathPatch(Path(vertices, codes), facecolor=COLOUR[name], linewidth=0, label=label or name))
    axes.autoscale_view()


def svg(draw: Callable[[], Figure], title: str, prefix: str) -> str:
    """Draw, and give the ``<svg>`` element; ``prefix`` keeps its ids apart from other drawings' ids."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the page's fonts may have it
        figure = draw()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _adopt(buffer.getvalue(), title, prefix)


def _adopt(text: str, title: str, prefix: str) -> str:
    text = text[text.index("<svg ") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", text, flags=re.DOTALL)
    text = re.sub("|".join(_VARIABLE_OF), lambda match: _VARIABLE_OF[match[0]], text)
    # The page's font: matplotlib writes "font", from 3.11 on "font-size" and "font-family".
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", text))
    text = re.sub(
        r' id="([^"]*)"',
        lambda match: f' id="{prefix}-{match[1]}"' if match[1] in used else "",
        text,
    )
    text = re.sub(r"(url\(|href=\")#", rf"\1#{prefix}-", text)
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    return f'<svg {box[0] if box else ""} role="img" aria-label="{_attribute(title)}">{body.strip()}'


def _attribute(value: str) -> str:
    return value.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
