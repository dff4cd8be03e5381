"""Values over versions, rounds or time, and how they lie over learners: as numbers, and drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from broker_fl.record.drawing import COLOUR, SERIES, SINCE_SUBMISSION, Canvas, legend, whole_numbers
from broker_fl.record.history import History
from broker_fl.record.rounds import RoundRecord
from broker_fl.record.tasks import Column, Spread
from broker_fl.record.timeline import task_seconds

_MAX_DRAWN = 1e100
"""Metrics beyond are not drawn: a diverged training would flatten all else, and overflow the axes."""
MAX_POINTS = 800
"""Of a line, as it is drawn."""
MAX_BANDS = 4
"""More bands would hide one another."""
_LOG_FROM = 1_000
"""Ratio of the largest to the smallest value from which on an axis is logarithmic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Values over versions or time, and how they lie over learners."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    spreads: Sequence[Spread | None]
    dashed: bool = False


def evaluation_line(history: History, name: str, index: int = 0) -> Line:
    """The evaluations of the versions, over version numbers."""
    versions = [
        history.versions[key] for key in sorted(history.versions) if name in history.versions[key].evaluation
    ]
    return Line(
        label="evaluation",
        colour=SERIES[index % len(SERIES)],
        x=[version.version for version in versions],
        y=[version.evaluation[name] for version in versions],
        spreads=[history.evaluation_spread(version, name) for version in versions],
        dashed=index >= len(SERIES),
    )


def training_line(history: History, name: str) -> Line:
    """The metrics of the training that made each version."""
    versions = [
        history.versions[key] for key in sorted(history.versions) if name in history.versions[key].metrics
    ]
    return Line(
        label="training",
        colour=SERIES[1],
        x=[version.version for version in versions],
        y=[version.metrics[name] for version in versions],
        spreads=[history.training_spread(version, name) for version in versions],
        dashed=True,
    )


def line_by_time(history: History, name: str, index: int) -> Line:
    """The evaluations of the versions, over the time from submission to when the version was stored."""
    start_s = history.submitted_s or 0.0
    versions = [
        version
        for version in (history.versions[key] for key in sorted(history.versions))
        if name in version.evaluation and version.committed_s is not None
    ]
    points = [((version.committed_s or 0.0) - start_s, version.evaluation[name]) for version in versions]
    line = _bare(points, index)
    return replace(line, spreads=[history.evaluation_spread(version, name) for version in versions])


def duration_line(history: History, index: int) -> Line:
    """How long each round took; of an asynchronous job the time from version to version."""
    return _bare(
        [(record.round + 1, record.round_s) for record in history.committed if record.round_s is not None],
        index,
    )


def task_time_line(rounds: Sequence[RoundRecord]) -> Line:
    """The median over learners of how long they had their task, by round."""
    times = [(record.round + 1, task_seconds(record)) for record in rounds]
    times = [(number, values[np.isfinite(values)]) for number, values in times]
    times = [(number, values) for number, values in times if len(values)]
    return Line(
        label="",
        colour=SERIES[2],
        x=[number for number, _ in times],
        y=[float(np.median(values)) for _, values in times],
        spreads=[Spread.of(values) for _, values in times],
    )


def memory_lines(history: History) -> list[Line]:
    """Memory of the controller, and the peaks of the learners so far, as versions were made."""
    rounds = [history.rounds[key] for key in sorted(history.rounds)]
    controller = [(record.round + 1, float(record.memory_bytes)) for record in rounds if record.memory_bytes]
    peaks: dict[str, float] = {}
    points: list[tuple[int, Spread]] = []
    for record in rounds:
        values = record.tasks.column("peak_memory_bytes")
        peaks |= {record.tasks.learners[row]: values[row] for row in np.flatnonzero(np.isfinite(values))}
        if (spread := Spread.of(np.array(list(peaks.values())))) is not None:
            points.append((record.round + 1, spread))
    learners = _bare([(number, spread.mean) for number, spread in points], 0)
    lines = [
        replace(learners, label="learners, peak", spreads=[spread for _, spread in points]),
        replace(_bare(controller, 1), label="controller", dashed=True),
    ]
    return [line for line in lines if len(line.x)]


def _bare(points: Sequence[tuple[float, float]], index: int) -> Line:
    return Line(
        label="",
        colour=SERIES[index % len(SERIES)],
        x=[x for x, _ in points],
        y=[y for _, y in points],
        spreads=[None] * len(points),
        dashed=index >= len(SERIES),
    )


def draw_lines(
    width: int,
    lines: Sequence[Line],
    label: str,
    *,
    with_legend: bool = False,
    shown: Callable[[float], str] | None = None,
) -> Figure:
    """Curves with their bands; ``label`` is the x axis; ``shown`` writes the values of a y axis from 0."""
    figure, axes = Canvas(width=width, top=26 if with_legend else 12).axes()
    for line in map(_thinned, lines):
        y = _drawable(line.y)
        if len(lines) <= MAX_BANDS:
            _band(axes, line, "min", "max", 0.14)
        if len(lines) <= 2:
            _band(axes, line, "lower", "upper", 0.16)
        marker = "o" if len(line.x) <= 30 else ""
        style = (0, (4, 2)) if line.dashed else "-"
        axes.plot(
            line.x,
            y,
            color=line.colour,
            linestyle=style,
            linewidth=1.8,
            marker=marker,
            markersize=3.2,
            label=line.label,
        )
    scale(axes, [value for line in lines for value in line.y], shown)
    if with_legend and lines:
        legend(axes, len(lines))
    if label == SINCE_SUBMISSION:
        axes.set_xlabel(label, labelpad=5)
    else:
        whole_numbers(axes, label)
    return figure


def _thinned(line: Line) -> Line:
    """The line, or ``MAX_POINTS`` of it at even distances: more than a screen has columns are not seen."""
    if len(line.x) <= MAX_POINTS:
        return line
    rows = np.linspace(0, len(line.x) - 1, MAX_POINTS).astype(int)
    x, y, spreads = ([values[row] for row in rows] for values in (line.x, line.y, line.spreads))
    return replace(line, x=x, y=y, spreads=spreads)


def _band(axes: Axes, line: Line, low: str, high: str, alpha: float) -> None:
    bottom, top = (
        _drawable([getattr(spread, name) if spread else math.nan for spread in line.spreads])
        for name in (low, high)
    )
    if np.isfinite(bottom).any():
        axes.fill_between(line.x, bottom, top, color=line.colour, alpha=alpha, linewidth=0)


def _drawable(values: Sequence[float]) -> Column:
    array = np.array(values, dtype=np.float64)
    array[~(np.abs(array) < _MAX_DRAWN)] = np.nan
    return array


def scale(axes: Axes, values: Sequence[float], shown: Callable[[float], str] | None = None) -> None:
    """A y axis for these values, logarithmic if they differ that much; see ``draw_lines``."""
    drawable = _drawable(values)
    finite = drawable[np.isfinite(drawable)]
    if not len(finite):
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no finite values", transform=axes.transAxes, ha="center", color=COLOUR["muted"])
        return
    if finite.min() > 0 and finite.max() / finite.min() > _LOG_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value) if shown else f"{value:.4g}"))
    if shown and axes.get_yscale() == "linear":
        axes.set_ylim(0, 1.06 * max(finite.max(), axes.get_ylim()[1]))
