"""One round, or some time of an asynchronous job, with a lane for each learner."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from broker_fl.record.drawing import COLOUR, FULL, NARROW, SINCE_SUBMISSION, Canvas, boxes, legend
from broker_fl.record.rounds import RoundRecord
from broker_fl.record.text import one_line, seconds
from broker_fl.record.timeline import LANE_PHASES, Lane, Window

_RIGHT = 58
_MAX_COMMITS = 80
"""Versions in a window as wide as the page that have a line each; more would hide the lanes."""


def draw_timeline(width: int, record: RoundRecord, drawn: Sequence[Lane]) -> Figure:
    """The lanes of a round, and when it was committed."""
    figure, axes = _lanes(width, drawn)
    _moments(axes, record, drawn)
    axes.set_xlabel("seconds from the start of the round", labelpad=5)
    _legend(axes, width, drawn, columns=7)
    return figure


def draw_window(width: int, window: Window, drawn: Sequence[Lane], commits: Sequence[float]) -> Figure:
    """The lanes of some time of an asynchronous job, and when versions were stored."""
    figure, axes = _lanes(width, drawn)
    if 0 < len(commits) <= _MAX_COMMITS * width / FULL:
        bottom = len(drawn) - 0.4
        axes.vlines(
            commits, -0.6, bottom, color=COLOUR["ink"], linewidth=0.6, alpha=0.55, label="version stored"
        )
    axes.set_xlim(0, window.duration_s)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value + window.start_s:.4g}"))
    axes.set_xlabel(SINCE_SUBMISSION, labelpad=5)
    _legend(axes, width, drawn, columns=6)
    return figure


def _lanes(width: int, drawn: Sequence[Lane]) -> tuple[Figure, Axes]:
    narrow = width == NARROW
    labels = _labels(width, drawn)
    canvas = Canvas(
        width=width,
        left=_left(labels),
        right=_RIGHT,
        top=58 if narrow else 26,
        height=22 * len(drawn) + (98 if narrow else 66),
    )
    figure, axes = canvas.axes()
    for phase in LANE_PHASES:
        _phase(axes, phase, drawn)
    for row, lane in enumerate(drawn):
        for mark in lane.marks:
            alone = len(lane.marks) == 1
            _remark(axes, f"◆ {mark.text}" if alone else "◆", mark.at_s, row)
    axes.set_yticks(range(len(drawn)), labels)
    for label, lane in zip(axes.get_yticklabels(), drawn, strict=True):
        label.set_color(COLOUR["failed"] if lane.marks else COLOUR["ink"])
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", linewidth=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5 if narrow else 10))
    return figure, axes


def _labels(width: int, drawn: Sequence[Lane]) -> list[str]:
    return [one_line(lane.learner, 14 if width == NARROW else 28) for lane in drawn]


def _left(labels: Sequence[str]) -> int:
    return 16 + round(6.4 * max((len(label) for label in labels), default=4))


def _legend(axes: Axes, width: int, drawn: Sequence[Lane], columns: int) -> None:
    left = _left(_labels(width, drawn))
    narrow = width == NARROW
    legend(axes, 3 if narrow else columns, left=(left - 8) / (width - left - _RIGHT) if narrow else 0.0)


def _remark(axes: Axes, text: str, x: float, row: int) -> None:
    plate = {"facecolor": COLOUR["surface"], "edgecolor": "none", "pad": 1.5}
    axes.annotate(
        text,
        (x, row),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        color=COLOUR["failed"],
        bbox=plate,
    )


def _phase(axes: Axes, phase: str, drawn: Sequence[Lane]) -> None:
    segments = ((row, segment) for row, lane in enumerate(drawn) for segment in lane.segments)
    where = [
        (part.start_s, row - 0.31, part.duration_s, 0.62) for row, part in segments if part.phase == phase
    ]
    if where:
        boxes(axes, phase, where)


def _moments(axes: Axes, record: RoundRecord, drawn: Sequence[Lane]) -> None:
    """Vertical lines where the round closed, and at its deadline if that was near."""
    end_s = max([lane.end_s for lane in drawn] + [record.round_s or 0.0], default=0.0)
    if record.round_s is not None:
        axes.axvline(
            record.round_s,
            color=COLOUR["ink"],
            linewidth=1.1,
            label=f"committed {seconds(record.round_s)}",
        )
    if record.deadline_s is not None and record.deadline_s <= 1.2 * end_s:
        label = f"deadline {seconds(record.deadline_s)}"
        axes.axvline(
            record.deadline_s,
            color=COLOUR["failed"],
            linewidth=1.1,
            linestyle=(0, (2, 2)),
            label=label,
        )
        end_s = max(end_s, record.deadline_s)
    axes.set_xlim(0, end_s * 1.02 or 1.0)
