"""A picture of how a data set is split: which learner has how many examples of which label.

matplotlib is imported here: import this module late.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from broker_fl.errors import SettingError
from broker_fl.record.drawing import COLOUR, FULL, Canvas, svg
from broker_fl.record.runfolder import write_whole
from broker_fl.record.text import one_line

MAX_LEARNERS = 300
MAX_LABELS = 100
_MAX_CELL, _BARS, _RIGHT, _TITLE, _BELOW = 30, 64, 14, 30, 44
_FONT = 'Inter, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

Counts = npt.NDArray[np.int64]


def save_split(
    parts: Sequence[Sequence[int] | npt.NDArray[np.int64]],
    labels: Sequence[Any] | npt.NDArray[Any],
    path: str | Path,
    *,
    title: str = "",
) -> Path:
    """Write a picture of a split, ``path``: a column for each learner, a row for each label.

    The area of a bubble is the number of examples; the bars above are each learner's examples in all. The
    picture is an SVG that follows its reader's light or dark mode.

    Args:
        parts: for each learner the positions of its examples in ``labels``, as ``partition`` gives them.
        labels: the class of each example.
        path: of the file, which ends in ``.svg``.
        title: above the picture.

    Raises:
        SettingError: there is nothing to draw, or too much for a picture, or the file is of another type.
        StoreUnavailable: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".svg":
        raise SettingError(f"{path}: the picture of a split is an SVG; give it a name that ends in .svg")
    found, counts = count(parts, labels)
    drawing = svg(lambda: draw_split(found, counts, title), title or "Examples by label and learner", "split")
    write_whole(path, _alone(drawing).encode())
    return path


def count(
    parts: Sequence[Sequence[int] | npt.NDArray[np.int64]], labels: Sequence[Any] | npt.NDArray[Any]
) -> tuple[list[str], Counts]:
    """The labels in their order, and how many examples of each (a row) each learner (a column) has.

    Raises:
        SettingError: there is nothing to count, or more than a picture can show.
    """
    if not len(parts) or not len(labels):
        raise SettingError("there is nothing to draw: give at least one part and one label")
    distinct, row = np.unique(np.asarray(labels), return_inverse=True)
    if len(parts) > MAX_LEARNERS or len(distinct) > MAX_LABELS:
        raise SettingError(
            f"{len(parts)} learners and {len(distinct)} labels are too many for a picture: give at most "
            f"{MAX_LEARNERS} parts, and group the labels into at most {MAX_LABELS}"
        )
    counts = [np.bincount(row[np.asarray(part, np.int64)], minlength=len(distinct)) for part in parts]
    return [one_line(str(label), 18) for label in distinct], np.stack(counts, axis=1)


def draw_split(labels: Sequence[str], counts: Counts, title: str) -> Figure:
    """Bubbles for ``counts`` (labels × learners), and bars for what each learner has in all."""
    num_labels, num_learners = counts.shape
    left = 46 + round(6.4 * max(4, *(len(label) for label in labels)))
    cell = min(_MAX_CELL, (FULL - left - _RIGHT) / num_learners)
    row = min(_MAX_CELL, max(16.0, cell))
    top = _BARS + 12 + (_TITLE if title else 8)
    canvas = Canvas(
        width=max(320, left + _RIGHT + round(cell * num_learners)),
        height=top + round(row * num_labels) + _BELOW,
        left=left,
        right=_RIGHT,
        top=top,
        bottom=_BELOW,
    )
    figure, axes = canvas.axes()
    _bubbles(axes, labels, counts, min(cell, row))
    low = (canvas.height - top + 12) / canvas.height
    wide = (canvas.width - left - _RIGHT) / canvas.width
    _bars(figure.add_axes((left / canvas.width, low, wide, _BARS / canvas.height)), counts.sum(axis=0))
    if title:
        figure.text(left / canvas.width, 1 - 18 / canvas.height, one_line(title, 120), size=13, weight="bold")
    return figure


def _bubbles(axes: Axes, labels: Sequence[str], counts: Counts, cell: float) -> None:
    row, learner = np.nonzero(counts)
    areas = counts[row, learner] / counts.max() * (0.94 * cell) ** 2
    axes.scatter(learner, row, s=areas, color=COLOUR["s0"], linewidths=0)
    axes.grid(visible=False, axis="x")
    axes.set_xlim(-0.6, counts.shape[1] - 0.4)
    axes.set_ylim(-0.7, len(labels) - 0.3)
    axes.set_yticks(range(len(labels)), labels)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    axes.set_xlabel("learner", labelpad=5)
    axes.set_ylabel("label", labelpad=6)


def _bars(axes: Axes, sizes: Counts) -> None:
    axes.bar(range(len(sizes)), sizes, width=0.62, color=COLOUR["queue"], linewidth=0)
    axes.set_axisbelow(True)
    axes.grid(axis="y", linewidth=0.7)
    axes.tick_params(length=0, pad=5, labelbottom=False)
    axes.set_xlim(-0.6, len(sizes) - 0.4)
    axes.set_ylabel("examples", labelpad=6)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _alone(drawing: str) -> str:
    """The page's ``<svg>`` element as a file of its own, with the page's colours in it."""
    page = (resources.files("broker_fl.record") / "template.html.j2").read_text(encoding="utf-8")
    colours = page[page.index(":root {") : page.index("* { box-sizing")]
    style = f"<style>{colours} svg {{ font-family: {_FONT}; }}</style>"
    backdrop = '<rect width="100%" height="100%" rx="10" style="fill: var(--surface)"/>'
    head, _, body = drawing.partition(">")
    xml = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    box = head[head.index('viewBox="') :].split('"')[1].split()
    opening = f'{head.replace("<svg", f"<svg {xml}", 1)} width="{box[2]}" height="{box[3]}">'
    body = re.sub(r"(\.\d\d)\d+", r"\1", body)  # a hundredth of a pixel is enough
    return f"{opening}\n{style}\n{backdrop}\n{body}\n"
