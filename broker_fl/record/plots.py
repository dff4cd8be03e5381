"""The pictures of the report, one function each. matplotlib is imported here: import this module late."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from broker_fl.record.drawing import COLOUR, FULL, HALF, NARROW, SERIES, Canvas, legend, svg, whole_numbers
from broker_fl.record.history import History
from broker_fl.record.records import RoundRecord
from broker_fl.record.tasks import Spread
from broker_fl.record.text import one_line, seconds
from broker_fl.record.timeline import LANE_PHASES, ROUND_PHASES, Lane, breakdown, lanes, task_seconds

MAX_LANES = 40
MAX_BARS = 20
"""Learners that have a bar each; more become a histogram."""
_MAX_DRAWN = 1e100
"""Metrics beyond are not drawn: a diverged training would flatten everything else, and overflow the axes."""
_LOG_FROM = 1_000
"""Ratio of the largest to the smallest value from which on an axis is logarithmic."""
_MISSED = ("late", "failed", "refused")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture in two sizes, as SVG elements; the page shows the one that fits."""

    title: str
    note: str
    wide: str
    narrow: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Values over versions or time, and how they lie over learners."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    spreads: Sequence[Spread | None]
    dashed: bool = False


class Charts:
    """Draws for one page; keeps the ids of its drawings apart."""

    def __init__(self) -> None:
        self._count = 0

    def _chart(self, title: str, note: str, draw: Callable[[int], Figure], wide: int = HALF) -> Chart:
        self._count += 1
        return Chart(
            title=title,
            note=note,
            wide=svg(lambda: draw(wide), title, f"w{self._count}"),
            narrow=svg(lambda: draw(NARROW), title, f"n{self._count}"),
        )

    def metric(self, histories: Sequence[History], name: str) -> Chart:
        """One metric over model versions; of one run evaluation and training, of several the evaluations."""
        if len(histories) == 1:
            lines = [evaluation_line(histories[0], name), training_line(histories[0], name)]
        else:
            lines = [evaluation_line(history, name, index) for index, history in enumerate(histories)]
        lines = [line for line in lines if len(line.x)]
        note = "Mean over learners, weighted by examples; the band is from the lowest to the highest learner."
        with_legend = len(histories) == 1
        return self._chart(
            one_line(name, 60),
            note,
            lambda width: _lines(width, lines, "model version", with_legend=with_legend),
        )

    def metric_by_time(self, histories: Sequence[History], name: str) -> Chart:
        """One metric over the time since the job was submitted."""
        lines = [_by_time(history, name, index) for index, history in enumerate(histories)]
        lines = [line for line in lines if len(line.x)]
        return self._chart(
            f"{one_line(name, 60)} over time",
            "At the moment when the version was evaluated.",
            lambda width: _lines(width, lines, "seconds since submission"),
        )

    def durations(self, histories: Sequence[History]) -> Chart:
        """How long each round took, of several runs."""
        lines = [_durations(history, index) for index, history in enumerate(histories)]
        return self._chart(
            "Duration of rounds",
            "Seconds from the selection of the cohort to the stored version.",
            lambda width: _lines(width, [line for line in lines if len(line.x)], "round", unit=" s"),
        )

    def task_times(self, rounds: Sequence[RoundRecord]) -> Chart:
        """How long a learner has a task, over the rounds."""
        return self._chart(
            "Time of a task",
            "From sending to the folded update: median over learners, and from the fastest to the slowest.",
            lambda width: _lines(width, [_task_times(rounds)], "round", unit=" s"),
        )

    def breakdown(self, rounds: Sequence[RoundRecord]) -> Chart:
        """Where the time of each round went."""
        return self._chart(
            "Where the time of a round goes",
            "Along the path of the contributor that came last; “wait” is for learners that did not "
            "deliver and for messages on their way.",
            lambda width: _breakdown(width, rounds),
        )

    def outcomes(self, rounds: Sequence[RoundRecord]) -> Chart:
        """What became of the tasks of each round."""
        return self._chart(
            "What became of the tasks",
            "Tasks by round; of a round that was retried, all attempts.",
            lambda width: _outcomes(width, rounds),
        )

    def contribution(self, history: History) -> Chart:
        """How much each learner's updates weigh in the final model's rounds."""
        return self._chart(
            "Contribution of learners",
            "Share of the weight of all updates that were folded.",
            lambda width: _contribution(width, history),
        )

    def timeline(self, record: RoundRecord) -> Chart:
        """One round, a bar per learner."""
        drawn = lanes(record, MAX_LANES)
        note = "Marked: late, failed, refused, and those that took longer than 1.5 × the median of the round."
        if len(record.tasks) > len(drawn):
            note += f" {len(drawn)} of {len(record.tasks)} learners, from the fastest to the slowest."
        return self._chart(
            f"Round {record.round}", note, lambda width: _timeline(width, record, drawn), wide=FULL
        )


# ---------------------------------------------------------------- values


def evaluation_line(history: History, name: str, index: int = 0) -> Line:
    """The evaluations of the versions, over version numbers."""
    versions = [
        history.versions[key] for key in sorted(history.versions) if name in history.versions[key].evaluation
    ]
    rounds = [
        history.rounds.get(-1 if version.evaluated_in is None else version.evaluated_in)
        for version in versions
    ]
    return Line(
        label="evaluation",
        colour=SERIES[index % len(SERIES)],
        x=[version.version for version in versions],
        y=[version.evaluation[name] for version in versions],
        spreads=[record.evaluation_spread(name) if record else None for record in rounds],
        dashed=index >= len(SERIES),
    )


def training_line(history: History, name: str) -> Line:
    """The metrics of the training that made each version."""
    versions = [
        history.versions[key] for key in sorted(history.versions) if name in history.versions[key].metrics
    ]
    rounds = [history.rounds.get(-1 if version.round is None else version.round) for version in versions]
    return Line(
        label="training",
        colour=SERIES[1],
        x=[version.version for version in versions],
        y=[version.metrics[name] for version in versions],
        spreads=[record.metric_spread(name) if record else None for record in rounds],
        dashed=True,
    )


def _by_time(history: History, name: str, index: int) -> Line:
    start_s = history.submitted_s or 0.0
    points = [
        (record.committed_s - start_s, record.evaluation[name])
        for record in (history.rounds[key] for key in sorted(history.rounds))
        if name in record.evaluation and record.committed_s is not None
    ]
    return _bare(points, index)


def _durations(history: History, index: int) -> Line:
    return _bare(
        [(record.round, record.round_s) for record in history.committed if record.round_s is not None], index
    )


def _task_times(rounds: Sequence[RoundRecord]) -> Line:
    times = [(record.round, task_seconds(record)) for record in rounds]
    times = [(number, values[np.isfinite(values)]) for number, values in times]
    times = [(number, values) for number, values in times if len(values)]
    return Line(
        label="",
        colour=SERIES[2],
        x=[number for number, _ in times],
        y=[float(np.median(values)) for _, values in times],
        spreads=[Spread.of(values) for _, values in times],
    )


def _bare(points: Sequence[tuple[float, float]], index: int) -> Line:
    return Line(
        label="",
        colour=SERIES[index % len(SERIES)],
        x=[x for x, _ in points],
        y=[y for _, y in points],
        spreads=[None] * len(points),
        dashed=index >= len(SERIES),
    )


# ---------------------------------------------------------------- drawings


def _lines(
    width: int, lines: Sequence[Line], label: str, *, with_legend: bool = False, unit: str = ""
) -> Figure:
    figure, axes = Canvas(width=width, top=26 if with_legend else 12).axes()
    for line in lines:
        y = _drawable(line.y)
        low = _drawable([spread.min if spread else math.nan for spread in line.spreads])
        high = _drawable([spread.max if spread else math.nan for spread in line.spreads])
        if len(lines) <= 4:  # more bands than that hide one another
            axes.fill_between(line.x, low, high, color=line.colour, alpha=0.14, linewidth=0)
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
    _scale(axes, [value for line in lines for value in line.y], unit)
    if with_legend and lines:
        legend(axes, len(lines))
    if label == "seconds since submission":
        axes.set_xlabel(label, labelpad=5)
    else:
        whole_numbers(axes, label)
    return figure


def _drawable(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    array = np.array(values, dtype=np.float64)
    array[~(np.abs(array) < _MAX_DRAWN)] = np.nan
    return array


def _scale(axes: Axes, values: Sequence[float], unit: str) -> None:
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
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}{unit}"))
    if unit and axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)


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
            axes.bar(x, values, bottom=base, width=0.72, color=COLOUR[name], label=name, linewidth=0)
            base += np.asarray(values)
    if x:
        axes.set_xlim(min(x) - 0.6, max(x) + 0.6)
    axes.set_ylim(bottom=0)


def _breakdown(width: int, rounds: Sequence[RoundRecord]) -> Figure:
    parts = [breakdown(record) for record in rounds]
    layers = [(phase, [part[phase] for part in parts]) for phase in ROUND_PHASES]
    largest = max((sum(part.values()) for part in parts), default=0.0)
    layers = [(phase, values) for phase, values in layers if max(values, default=0.0) > largest / 200]
    columns = 3 if width == NARROW else 5
    rows = math.ceil(max(1, len(layers)) / columns)
    figure, axes = Canvas(width=width, top=10 + 16 * rows, height=230 + 16 * (rows - 1)).axes()
    _stack(axes, [record.round for record in rounds], layers)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g} s"))
    whole_numbers(axes, "round")
    if layers:
        legend(axes, columns)
    return figure


def _outcomes(width: int, rounds: Sequence[RoundRecord]) -> Figure:
    layers = [(name, [float(record.counts[name]) for record in rounds]) for name in ("folded", *_MISSED)]
    figure, axes = Canvas(width=width).axes()
    _stack(axes, [record.round for record in rounds], [layer for layer in layers if any(layer[1])])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    whole_numbers(axes, "round")
    legend(axes, 4)
    return figure


def _contribution(width: int, history: History) -> Figure:
    total = sum(learner.weight for learner in history.learners.values()) or 1.0
    shares = sorted((learner.weight / total * 100, learner.learner) for learner in history.learners.values())
    if len(shares) > MAX_BARS:
        return _histogram(width, [share for share, _ in shares])
    labels = [one_line(name, 18) for _, name in shares]
    left = 16 + round(6.4 * max((len(label) for label in labels), default=4))
    figure, axes = Canvas(
        width=width, height=max(120, 66 + 19 * len(shares)), left=left, right=46, top=8
    ).axes()
    axes.barh(
        range(len(shares)), [share for share, _ in shares], height=0.64, color=COLOUR["s0"], linewidth=0
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


def _timeline(width: int, record: RoundRecord, drawn: Sequence[Lane]) -> Figure:
    narrow = width == NARROW
    labels = [one_line(lane.learner, 14 if narrow else 28) for lane in drawn]
    left = 16 + round(6.4 * max((len(label) for label in labels), default=4))
    canvas = Canvas(
        width=width,
        left=left,
        right=58,
        top=58 if narrow else 26,
        height=22 * len(drawn) + (98 if narrow else 66),
    )
    figure, axes = canvas.axes()
    for phase in LANE_PHASES:
        _phase(axes, phase, drawn)
    _moments(axes, record, drawn)
    for row, lane in enumerate(drawn):
        if mark := _mark(lane):
            _remark(axes, f"◆ {mark}", lane.end_s, row)
    axes.set_yticks(range(len(drawn)), labels)
    for label, lane in zip(axes.get_yticklabels(), drawn, strict=True):
        label.set_color(COLOUR["failed"] if _mark(lane) else COLOUR["ink"])
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", linewidth=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5 if narrow else 10))
    axes.set_xlabel("seconds from the start of the round", labelpad=5)
    legend(axes, 3 if narrow else 7, left=(left - 8) / (width - left - 58) if narrow else 0.0)
    return figure


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
    bars = [
        (row, segment)
        for row, lane in enumerate(drawn)
        for segment in lane.segments
        if segment.phase == phase
    ]
    if bars:
        axes.barh(
            [row for row, _ in bars],
            [segment.duration_s for _, segment in bars],
            left=[segment.start_s for _, segment in bars],
            height=0.62,
            color=COLOUR[phase],
            linewidth=0,
            label=phase,
        )


def _mark(lane: Lane) -> Literal["", "late", "failed", "refused", "slow"]:
    if lane.outcome in ("late", "failed", "refused"):
        return lane.outcome
    return "slow" if lane.straggler else ""


def _moments(axes: Axes, record: RoundRecord, drawn: Sequence[Lane]) -> None:
    """Vertical lines where the round closed, and at its deadline if that was near."""
    end_s = max([lane.end_s for lane in drawn] + [record.round_s or 0.0], default=0.0)
    if record.round_s is not None:
        axes.axvline(
            record.round_s, color=COLOUR["ink"], linewidth=1.1, label=f"committed ({seconds(record.round_s)})"
        )
    if record.deadline_s is not None and record.deadline_s <= 1.2 * end_s:
        label = f"deadline {seconds(record.deadline_s)}"
        axes.axvline(
            record.deadline_s, color=COLOUR["failed"], linewidth=1.1, linestyle=(0, (2, 2)), label=label
        )
        end_s = max(end_s, record.deadline_s)
    axes.set_xlim(0, end_s * 1.02 or 1.0)
