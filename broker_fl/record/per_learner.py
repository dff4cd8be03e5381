"""Pictures with a row or a line for each learner: time of tasks, workload."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from broker_fl.record.curves import Line, draw_lines, scale
from broker_fl.record.drawing import (
    FULL,
    LEVELS,
    NARROW,
    SERIES,
    SINCE_SUBMISSION,
    Canvas,
    boxes,
    legend,
    whole_numbers,
)
from broker_fl.record.history import History
from broker_fl.record.rounds import RoundRecord
from broker_fl.record.tasks import OUTCOMES, Column, Spread
from broker_fl.record.text import one_line, seconds
from broker_fl.record.timeline import MISSED, some_of, task_seconds

MAX_LINES = 8
"""Learners that have a line each; of more there is the spread."""
MAX_POINTS = 500
MAX_ROWS = 30
MAX_COLUMNS = 60
_LOG_FROM = 6
"""Ratio of the largest to the smallest value from which on the levels of a map are logarithmic."""

Picked = Callable[[RoundRecord], Column]


# ---------------------------------------------------------------- a line each


def draw_per_learner(width: int, history: History, pick: Picked, shown: Callable[[float], str]) -> Figure:
    """One value of each task: over rounds, of an asynchronous job over time. ``shown`` writes a value."""
    if len(history.learners) <= MAX_LINES:
        return _draw_each(width, history, pick, shown)
    if history.asynchronous:
        return _draw_points(width, history, pick, shown)
    return draw_lines(width, [_spread_line(history, pick)], "round", shown=shown)


def _draw_each(width: int, history: History, pick: Picked, shown: Callable[[float], str]) -> Figure:
    names = sorted(history.learners)
    columns = {NARROW: 2, FULL: 8}.get(width, 4)
    top = 10 + 16 * math.ceil(len(names) / columns)
    figure, axes = Canvas(width=width, top=top, height=214 + top).axes()
    values: list[float] = []
    for index, name in enumerate(names):
        x, y = _of_learner(history, pick, name)
        values += y
        axes.plot(
            x,
            y,
            color=SERIES[index],
            linewidth=1.5,
            marker="o" if len(x) <= 60 else "",
            markersize=3,
            label=one_line(name, 12),
        )
    scale(axes, values, shown)
    if names:
        legend(axes, columns)
    if history.asynchronous:
        axes.set_xlabel(SINCE_SUBMISSION, labelpad=5)
    else:
        whole_numbers(axes, "round")
    return figure


def _draw_points(width: int, history: History, pick: Picked, shown: Callable[[float], str]) -> Figure:
    x, y = _points(history, pick)
    chosen = np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).astype(int)
    figure, axes = Canvas(width=width, top=12).axes()
    axes.plot(x[chosen], y[chosen], color=SERIES[0], linestyle="", marker="o", markersize=2.4, alpha=0.5)
    scale(axes, list(y), shown)
    axes.set_xlabel(SINCE_SUBMISSION, labelpad=5)
    return figure


def _of_learner(history: History, pick: Picked, name: str) -> tuple[list[float], list[float]]:
    x, y = [], []
    for record in _trained(history):
        if name not in record.tasks:
            continue
        row = record.tasks.row(name)
        value = pick(record)[row]
        if math.isfinite(value):
            x.append(_place(history, record, row))
            y.append(float(value))
    return x, y


def _points(history: History, pick: Picked) -> tuple[Column, Column]:
    x, y = [], []
    for record in _trained(history):
        values = pick(record)
        rows = np.flatnonzero(np.isfinite(values))
        x += [_place(history, record, int(row)) for row in rows]
        y += values[rows].tolist()
    return np.array(x), np.array(y)


def _place(history: History, record: RoundRecord, row: int) -> float:
    if not history.asynchronous:
        return record.round + 1
    return record.tasks.get(row, "sent_s") - (history.submitted_s or 0.0)


def _spread_line(history: History, pick: Picked) -> Line:
    spreads = [(record.round + 1, Spread.of(pick(record))) for record in _trained(history)]
    known = [(number, spread) for number, spread in spreads if spread is not None]
    return Line(
        label="",
        colour=SERIES[2],
        x=[number for number, _ in known],
        y=[spread.mean for _, spread in known],
        spreads=[spread for _, spread in known],
    )


def _trained(history: History) -> list[RoundRecord]:
    return [history.rounds[key] for key in sorted(history.rounds) if history.rounds[key].train]


# ---------------------------------------------------------------- learners × rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """Seconds by learner and round, NaN where there is no time; and why not."""

    learners: Sequence[str]
    first_rounds: Sequence[int]
    """The first round of each column, counted from 1; several rounds share a column if there are many."""
    seconds: npt.NDArray[np.float64]
    missed: npt.NDArray[np.uint8]
    """Place in ``OUTCOMES`` of the first task of the cell that was late, failed or was refused; else 0."""


def round_trips(history: History) -> Map:
    """Time from sending to the folded update, by learner and round; learners in order of their medians."""
    records = _trained(history)
    step = max(1, math.ceil(len(records) / MAX_COLUMNS))
    rows = {name: row for row, name in enumerate(sorted(history.learners))}
    times = np.full((len(rows), len(records)), math.nan)
    missed = np.zeros((len(rows), len(records)), np.uint8)
    wanted = [OUTCOMES.index(name) for name in MISSED]
    for column, record in enumerate(records):
        where = np.array([rows[name] for name in record.tasks.learners], dtype=int)
        outcomes = record.tasks.outcomes()
        unhappy = np.isin(outcomes, wanted)
        missed[where, column] = np.where(unhappy, outcomes, 0)
        times[where, column] = np.where(unhappy, math.nan, task_seconds(record))
    medians = [_median(line) for line in times]
    order = sorted(range(len(rows)), key=lambda row: (math.isnan(medians[row]), medians[row]))
    chosen = np.array(some_of(order, MAX_ROWS), dtype=int)
    groups = [slice(first, first + step) for first in range(0, len(records), step)]
    names = list(rows)
    return Map(
        learners=[names[row] for row in chosen],
        first_rounds=[records[group.start].round + 1 for group in groups],
        seconds=np.array([[_median(times[row, group]) for group in groups] for row in chosen]),
        missed=np.array([[missed[row, group].max() for group in groups] for row in chosen], dtype=np.uint8),
    )


def _median(values: Column) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def draw_map(width: int, shown: Map) -> Figure:
    """The map, in levels of colour; what was missed has the colour of its outcome."""
    labels = [one_line(name, 14 if width == NARROW else 28) for name in shown.learners]
    left = 16 + round(6.4 * max((len(label) for label in labels), default=4))
    columns = 3 if width == NARROW else 9
    top = 10 + 16 * math.ceil((len(LEVELS) + len(MISSED)) / columns)
    figure, axes = Canvas(width=width, left=left, top=top, height=top + 42 + 18 * len(labels)).axes()
    edges = _level_edges(shown.seconds)
    levels = np.digitize(shown.seconds, edges[1:-1])
    for level in range(len(edges) - 1):
        where = _cells((levels == level) & np.isfinite(shown.seconds))
        boxes(axes, f"h{level}", where, label=f"to {seconds(float(edges[level + 1]))}")
    for name in MISSED:
        cells = _cells(shown.missed == OUTCOMES.index(name))
        if cells:
            boxes(axes, name, cells)
    _axes_of_map(axes, shown, labels)
    legend(axes, columns, left=(left - 8) / (width - left - 14) if width == NARROW else 0.0)
    return figure


def _axes_of_map(axes: Axes, shown: Map, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(-0.5, len(shown.first_rounds) - 0.5)
    axes.grid(visible=False)
    whole_numbers(axes, "round")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: _round_at(shown, place)))


def _round_at(shown: Map, place: float) -> str:
    column = round(place)
    return str(shown.first_rounds[column]) if 0 <= column < len(shown.first_rounds) else ""


def _level_edges(values: npt.NDArray[np.float64]) -> Column:
    finite = values[np.isfinite(values) & (values > 0)]
    if not len(finite):
        return np.array([0.0, 1.0])
    low, high = float(finite.min()), float(finite.max())
    if high <= low * 1.01:
        return np.array([0.0, high])
    space = np.geomspace if high / low > _LOG_FROM else np.linspace
    edges: Column = space(low, high, len(LEVELS) + 1)
    return edges


def _cells(where: npt.NDArray[np.bool_]) -> list[tuple[float, float, float, float]]:
    """A box for each run of cells of one colour in a row."""
    found = []
    for row, line in enumerate(where):
        ends = np.flatnonzero(np.diff(np.concatenate(([0], line.astype(np.int8), [0]))))
        for first, after in zip(ends[::2], ends[1::2], strict=True):
            found.append((float(first) - 0.5, row - 0.44, float(after - first), 0.88))
    return found
