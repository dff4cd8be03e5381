"""A job as it happens, in a terminal; one line a round where there is none.

What is drawn never grows with the number of learners: counts, the newest few incidents, one line of metrics.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np
from rich.bar import Bar
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from broker_fl.record.history import History
from broker_fl.record.incidents import Incidents, grouped, names_of
from broker_fl.record.plain import MAX_METRICS, MISSED, PlainLog, goal, of_version, place, under_way
from broker_fl.record.records import Incident
from broker_fl.record.rounds import RoundRecord
from broker_fl.record.tasks import Spread
from broker_fl.record.text import count, number, one_line, plural, seconds, size
from broker_fl.wire import events as ev
from broker_fl.wire.fields import MAX_TEXT_CHARS

REFRESH_PER_S = 8
MAX_INCIDENTS = 6
MAX_GROUPED = 200
"""Newest incidents among which those that say the same are looked for."""
MAX_WORKLOADS = 2

_BLOCKS = "▁▂▃▄▅▆▇█"
_STATE_STYLES = {
    "done": "bold green",
    "failed": "bold red",
    "stopped": "bold yellow",
    "waiting": "yellow",
    "paused": "yellow",
}
_INCIDENT_STYLES = {"failed": "red", "refused": "red", "lost": "red", "late": "yellow", "retried": "yellow"}


class LiveView:
    """Shows events as they come. Use it as a context manager; ``show`` may be called from any thread.

    ``history`` is the view's own to write while it is open: ``show`` folds each event into it.
    """

    def __init__(
        self,
        history: History,
        console: Console,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.history = history
        self._console = console
        self._clock = clock
        self._lock = threading.Lock()
        self._last_event_at = clock()
        self._plain = PlainLog(console)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                _Locked(self._lock, self._screen),
                console=self._console,
                refresh_per_second=REFRESH_PER_S,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
            )
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()  # draws once more, and gives the cursor back
            self._live = None
        else:
            self._plain.flush(self.history)

    def show(self, event: ev.Event) -> None:
        """Fold one event and show what it changes, at once or with the next frame."""
        with self._lock:
            if not self.history.add(event):
                return
            self._last_event_at = self._clock()
            if self._live is None:
                self._plain.tell(self.history, event)

    # ------------------------------------------------------------ the screen

    def _screen(self) -> RenderableType:
        history, current = self.history, self.history.current
        parts: list[RenderableType] = [self._head()]
        if (aim := goal(history)) is not None:
            parts.append(_progress(*aim))
        elif history.rounds:
            noun = "version" if history.asynchronous else "round"
            parts.append(Text(f"  {plural(len(history.committed), noun)} done", style="default"))
        if history.state in ("waiting", "paused"):
            parts.append(_standstill(history))
        if current is not None:
            parts.append(_task_lines(history) if history.asynchronous else _round_lines(current))
            parts += _workload(history)
        if history.metrics:
            parts.append(_metrics(history))
        elif history.committed:
            parts.append(Text("  evaluation –", style="dim"))
        return Group(*parts, *_what_went_wrong(history))

    def _head(self) -> Text:
        history = self.history
        spec = history.spec
        head = Text(no_wrap=True, overflow="ellipsis")
        if history.job is None:
            return head.append("waiting for the job's first event", style="dim")
        head.append(spec.name if spec else "job", style="bold")
        head.append(f"  {history.job}", style="dim")
        head.append(f"  {history.state}", style=_STATE_STYLES.get(history.state, "bold cyan"))
        head.append(f"  {seconds(self._elapsed_s())}")
        if history.finished_s is not None and history.reason and not _why_not_done(history):
            head.append(f"  {one_line(history.reason)}", style="dim")
        return head

    def _elapsed_s(self) -> float | None:
        """By the events' clock, and since the newest of them by ours: the two need not agree."""
        duration_s = self.history.duration_s
        if duration_s is None or self.history.finished_s is not None:
            return duration_s
        return duration_s + max(0.0, self._clock() - self._last_event_at)


class _Locked:
    """Draws anew at each frame, while no event is being folded."""

    def __init__(self, lock: threading.Lock, draw: Callable[[], RenderableType]) -> None:
        self._lock = lock
        self._draw = draw

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            drawn = self._draw()
        yield drawn


def _why_not_done(history: History) -> bool:
    """Whether the job's end has to be explained: below all else, where there is room for the whole reason."""
    return history.finished_s is not None and history.state != "done" and bool(history.reason)


def _standstill(history: History) -> Text:
    text = f"  {history.state}"
    if history.reason:
        text += f": {one_line(history.reason)}"
    if history.state == "paused" and history.open:
        text += f" ({plural(len(history.open), 'learner')} still at work)"
    return Text(text, style="yellow", no_wrap=True, overflow="ellipsis")


def _progress(noun: str, done: int, total: int) -> Table:
    row = Table.grid(padding=(0, 1))
    row.add_column(width=10)
    row.add_column(width=32)
    row.add_column()
    bar = Bar(size=total, begin=0, end=min(done, total), width=32, color="cyan", bgcolor="bright_black")
    row.add_row(f"  {noun}", bar, f"{count(done)} of {count(total)}")
    return row


def _round_lines(record: RoundRecord) -> Group:
    counts = record.counts
    what = f"round {record.round + 1}" if record.train else "last evaluation"
    first = Text(f"  {what}", no_wrap=True, overflow="ellipsis")
    if record.attempt:
        first.append(f", attempt {record.attempt + 1}", style="yellow")
    first.append(f"  {record.state}", style="dim")
    first.append(f"  {plural(record.num_learners, 'learner')}", style="dim")
    first.append(f"  ↓ {size(record.bytes_down)}  ↑ {size(record.bytes_up)}", style="dim")
    if record.num_wanted:
        first.append(f"  closes with {count(record.num_wanted)}", style="dim")
    second = Text("    ", no_wrap=True, overflow="ellipsis")
    steps = ("accepted", "finished", "folded") if record.train else ("accepted", "finished")
    second.append("  ".join(f"{name} {count(counts[name])}" for name in steps))
    _add_missed(second, counts)
    if record.state == "running" and record.under_way:
        return Group(first, second, Text(f"    {under_way(record)}", no_wrap=True, overflow="ellipsis"))
    return Group(first, second)


def _task_lines(history: History) -> Group:
    """An asynchronous job: who is at work, what came of it, how stale it was."""
    newest = history.newest_version
    first = Text(f"  version {newest.version}", no_wrap=True, overflow="ellipsis")
    if history.finished_s is None:
        first.append(f"  {plural(len(history.open), 'learner')} at work", style="dim")
    first.append(f"  ↓ {size(history.bytes_down)}  ↑ {size(history.bytes_up)}", style="dim")
    second = Text("    ", no_wrap=True, overflow="ellipsis")
    second.append(f"in all  folded {count(history.counts['folded'])}")
    _add_missed(second, history.counts)
    if newest.mean_staleness is not None:
        second.append(f"  staleness {newest.mean_staleness:.3g}", style="dim")
    return Group(first, second)


def _add_missed(line: Text, counts: Mapping[str, int]) -> None:
    for name in MISSED:
        style = _INCIDENT_STYLES[name] if counts[name] else "dim"
        line.append(f"  {name} {count(counts[name])}", style=style)


def _workload(history: History) -> list[Text]:
    """What pacing gave to those who are at work: from the least to the most."""
    rounds = set(history.open.values()) or {history.current.round if history.current else 0}
    tables = [history.rounds[number].tasks for number in rounds]
    lines = []
    for name in dict.fromkeys(name for table in tables for name in table.workload):
        values = np.concatenate([table.named(table.workload, name) for table in tables])
        if (spread := Spread.of(values)) is not None:
            text = number(spread.min)
            if spread.max > spread.min:
                text += f" to {number(spread.max)}, mean {spread.mean:.3g}"
            lines.append(Text(f"    {one_line(name, 24)} {text}", style="dim"))
    return lines[:MAX_WORKLOADS]


def _metrics(history: History) -> Text:
    """The newest evaluation; of its first metric also the course."""
    names = list(history.metrics)[:MAX_METRICS]
    line = Text("  ", no_wrap=True, overflow="ellipsis")
    versions = history.versions.values()
    course = [version.evaluation[names[0]] for version in versions if names[0] in version.evaluation]
    for index, name in enumerate(names):
        line.append(f"{one_line(name, 24)} ")
        line.append(number(history.metrics[name]), style="bold")
        if index == 0:
            line.append(f" {sparkline(course[-40:])}", style="cyan")
        line.append("  ")
    line.append(of_version(history).strip(), style="dim")
    return line


def sparkline(values: Sequence[float]) -> str:
    """Values as blocks, from the height of the lowest to that of the highest; ``·`` if not finite."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    # Halved, so that the distance of the largest floats stays finite.
    span = (high / 2 - low / 2) or 1.0
    return "".join(
        _BLOCKS[min(7, int((value / 2 - low / 2) / span * 8))] if math.isfinite(value) else "·"
        for value in values
    )


def _what_went_wrong(history: History) -> Iterator[RenderableType]:
    if incidents := history.incidents[-MAX_GROUPED:]:
        yield _incident_lines(incidents, history)
    if _why_not_done(history):
        yield Text(f"\n{history.state}: {one_line(history.reason, MAX_TEXT_CHARS)}")  # wrapped, not cut


def _incident_lines(incidents: Sequence[Incident], history: History) -> Group:
    shown = grouped(incidents)[-MAX_INCIDENTS:]
    more = len(history.incidents) - sum(group.number for group in shown)
    lines = [Text("")] + [_incident(group, history) for group in shown]
    if more > 0:
        lines.append(Text(f"  and {count(more)} before", style="dim"))
    return Group(*lines)


def _incident(group: Incidents, history: History) -> Text:
    incident = group.first
    after_s = max(0.0, incident.time_s - (history.submitted_s or incident.time_s))
    line = Text(f"  {seconds(after_s):>10}  ", style="default", no_wrap=True, overflow="ellipsis")
    line.append(incident.kind, style=_INCIDENT_STYLES.get(incident.kind, "dim"))
    if incident.round is not None:
        line.append(f"  {place(history, incident.round)}")
    if group.learners:
        line.append(f"  {names_of(group.learners)}", style="bold")
    line.append(f"  {one_line(incident.reason)}", style="dim")
    return line
