"""Bars: stacked by round, and by learner."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from broker_fl.record.drawing import COLOUR, NARROW, Canvas, boxes, legend, whole_numbers
from broker_fl.record.history import History
from broker_fl.record.rounds import RoundRecord
from broker_fl.record.text import one_line
from broker_fl.record.timeline import ROUND_PHASES, breakdown, some_of

MAX_BARS = 20
"""Learners that have a bar each; more become a histogram."""
_OUTCOMES = ("folded", "cancelled", "late", "failed", "refused")


def _stack(axes: Axes, x: Sequence[int], layers: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Stacked bars; of many rounds stacked areas, for a thousand bars are a megabyte."""
    if len(x) > 60:
        axes.stackplot(
            x,
            [values for _, values in layers],
            colors=[COLOUR[name] for name, _ in layers],
            labels=[name for name, _ in layers],
            linewidth=0,
            step="mid",
        )
    else:
        base = np.zeros(len(x))
        for name, values in layers:
            where = [
                (at - 0.36, low, 0.72, height)
                for at, low, height in zip(x, base, values, strict=True)
                if height
            ]
            boxes(axes, name, where)
            base += np.asarray(values)
    if x:
        axes.set_xlim(min(x) - 0.6, max(x) + 0.6)
    axes.set_ylim(bottom=0)


def draw_breakdown(width: int, rounds: Sequence[RoundRecord]) -> Figure:
    """Where the time of each round went, stacked."""
    parts = [breakdown(record) for record in rounds]
    layers = [(phase, [part[phase] for part in parts]) for phase in ROUND_PHASES]
    largest = max((sum(part.values()) for part in parts), default=0.0)
    layers = [(phase, values) for phase, values in layers if max(values, default=0.0) > largest / 200]
    columns = 3 if width == NARROW else 5
    rows = math.ceil(max(1, len(layers)) / columns)
    figure, axes = Canvas(width=width, top=10 + 16 * rows, height=230 + 16 * (rows - 1)).axes()
    _stack(axes, [record.round + 1 for record in rounds], layers)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g} s"))
    whole_numbers(axes, "round")
    if layers:
        legend(axes, columns)
    return figure


def draw_outcomes(width: int, rounds: Sequence[RoundRecord]) -> Figure:
    """What became of the tasks of each round, stacked."""
    layers = [(name, [float(record.counts[name]) for record in rounds]) for name in _OUTCOMES]
    figure, axes = Canvas(width=width).axes()
    _stack(axes, [record.round + 1 for record in rounds], [layer for layer in layers if any(layer[1])])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    whole_numbers(axes, "round")
    legend(axes, 3 if width == NARROW else 5)
    return figure


def draw_contribution(width: int, history: History) -> Figure:
    """The share of each learner; of many learners, how many have which share."""
    total = sum(learner.weight for learner in history.learners.values()) or 1.0
    shares = sorted((learner.weight / total * 100, learner.learner) for learner in history.learners.values())
    if len(shares) > MAX_BARS:
        return _histogram(width, [share for share, _ in shares])
    labels = [one_line(name, 18) for _, name in shares]
    left = 16 + round(6.4 * max((len(label) for label in labels), default=4))
    figure, axes = Canvas(
        width=width,
        height=max(120, 66 + 19 * len(shares)),
        left=left,
        right=46,
        top=8,
    ).axes()
    axes.barh(
        range(len(shares)),
        [share for share, _ in shares],
        height=0.64,
        color=COLOUR["s0"],
        linewidth=0,
    )
    axes.set_yticks(range(len(shares)), labels)
    for row, (share, _) in enumerate(shares):
        axes.annotate(
            f"{share:.1f} %",
            (share, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=COLOUR["muted"],
        )
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", linewidth=0.7)
    axes.set_xlim(left=0)
    axes.set_ylim(-0.6, len(shares) - 0.4)
    axes.set_xlabel("share of weight, %", labelpad=5)
    return figure


def draw_learner_outcomes(width: int, history: History) -> Figure:
    """What became of the tasks of each learner, stacked; those with the most tasks on top."""
    drawn = some_of(
        sorted(history.learners.values(), key=lambda item: (-item.tasks, item.learner)), 2 * MAX_BARS
    )
    labels = [one_line(item.learner, 14 if width == NARROW else 18) for item in drawn]
    left = 16 + round(6.4 * max((len(label) for label in labels), default=4))
    figure, axes = Canvas(width=width, height=66 + 19 * len(drawn), left=left, right=20).axes()
    base = [0.0] * len(drawn)
    for name in _OUTCOMES:
        values = [float(getattr(item, name)) for item in drawn]
        if any(values):
            boxes(
                axes,
                name,
                [
                    (low, row - 0.32, value, 0.64)
                    for row, (low, value) in enumerate(zip(base, values, strict=True))
                ],
            )
            base = [low + value for low, value in zip(base, values, strict=True)]
    axes.set_yticks(range(len(drawn)), labels)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", linewidth=0.7)
    whole_numbers(axes, "tasks")
    legend(
        axes, 3 if width == NARROW else 5, left=(left - 8) / (width - left - 20) if width == NARROW else 0.0
    )
    return figure


def draw_staleness(width: int, stalenesses: Sequence[float]) -> Figure:
    """How many updates were how stale."""
    figure, axes = Canvas(width=width, top=12).axes()
    most = int(max(stalenesses, default=0))
    step = 1 + most // 40
    counts, edges = np.histogram(stalenesses, bins=np.arange(-0.5, most + step + 0.5, step))
    where = [
        (edge + 0.06 * step, 0.0, 0.88 * step, float(number))
        for edge, number in zip(edges, counts, strict=False)
        if number
    ]
    boxes(axes, "s0", where)
    axes.set_ylim(bottom=0)
    axes.set_xlim(-0.6, most + step - 0.4)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    whole_numbers(axes, "staleness, versions")
    return figure


def _histogram(width: int, shares: Sequence[float]) -> Figure:
    figure, axes = Canvas(width=width, top=12).axes()
    axes.hist(
        shares,
        bins=min(30, max(8, len(shares) // 4)),
        color=COLOUR["s0"],
        edgecolor=COLOUR["surface"],
        linewidth=0.6,
    )
    axes.set_xlim(left=0)
    axes.set_xlabel("share of weight, %", labelpad=5)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    return figure
