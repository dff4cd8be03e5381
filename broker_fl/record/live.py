"""A job as it happens, in a terminal; one line a round where there is none.

What is drawn never grows with the number of learners: counts, the newest few incidents, one line of metrics.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.bar import Bar
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from broker_fl.record.history import History
from broker_fl.record.records import Incident
from broker_fl.record.rounds import RoundRecord
from broker_fl.record.text import count, number, one_line, plural, seconds, size
from broker_fl.wire import events as ev

REFRESH_PER_S = 8
MAX_INCIDENTS = 6
MAX_METRICS = 4
MAX_INCIDENT_LINES = 5
"""Incidents of one round that a plain log names one by one; of the others it says how many there were."""

_MISSED = ("failed", "late", "refused")
_BLOCKS = "▁▂▃▄▅▆▇█"
_STATE_STYLES = {"done": "bold green", "failed": "bold red", "stopped": "bold yellow", "waiting": "yellow"}
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
        self._plain = _PlainLog(console)
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
        if (total := _planned_rounds(history)) is not None:
            parts.append(_progress(len(history.committed), total))
        elif history.rounds:
            parts.append(Text(f"  {plural(len(history.committed), 'round')} done", style="default"))
        if history.state == "waiting":
            parts.append(
                Text(
                    f"  waiting: {one_line(history.reason)}",
                    style="yellow",
                    no_wrap=True,
                    overflow="ellipsis",
                ),
            )
        if current is not None:
            parts.append(_round_lines(current))
        if history.metrics:
            parts.append(_metrics(history))
        if incidents := history.incidents[-MAX_INCIDENTS:]:
            parts.append(_incident_lines(incidents, history))
        return Group(*parts)

    def _head(self) -> Text:
        history = self.history
        spec = history.spec
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append(spec.name if spec else "job", style="bold")
        if history.job:
            head.append(f"  {history.job}", style="dim")
        head.append(f"  {history.state}", style=_STATE_STYLES.get(history.state, "bold cyan"))
        head.append(f"  {seconds(self._elapsed_s())}")
        if history.finished_s is not None and history.reason:
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


def _planned_rounds(history: History) -> int | None:
    return history.spec.termination.rounds if history.spec else None


def _progress(done: int, total: int) -> Table:
    row = Table.grid(padding=(0, 1))
    row.add_column(width=8)
    row.add_column(width=32)
    row.add_column()
    bar = Bar(size=total, begin=0, end=min(done, total), width=32, color="cyan", bgcolor="bright_black")
    row.add_row("  rounds", bar, f"{count(done)} of {count(total)}")
    return row


def _round_lines(record: RoundRecord) -> Group:
    counts = record.counts
    what = f"round {record.round}" if record.train else "last evaluation"
    first = Text(f"  {what}", no_wrap=True, overflow="ellipsis")
    if record.attempt:
        first.append(f", attempt {record.attempt + 1}", style="yellow")
    first.append(f"  {record.state}", style="dim")
    first.append(f"  {plural(record.num_learners, 'learner')}", style="dim")
    first.append(f"  ↓ {size(record.bytes_down)}  ↑ {size(record.bytes_up)}", style="dim")
    second = Text("    ", no_wrap=True, overflow="ellipsis")
    steps = ("accepted", "finished", "folded") if record.train else ("accepted", "finished")
    second.append("  ".join(f"{name} {count(counts[name])}" for name in steps))
    for name in _MISSED:
        style = _INCIDENT_STYLES[name] if counts[name] else "dim"
        second.append(f"  {name} {count(counts[name])}", style=style)
    return Group(first, second)


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


def _incident_lines(incidents: Sequence[Incident], history: History) -> Group:
    more = len(history.incidents) - len(incidents)
    lines = [Text("")] + [_incident(incident, history) for incident in incidents]
    if more > 0:
        lines.append(Text(f"  and {count(more)} before", style="dim"))
    return Group(*lines)


def _incident(incident: Incident, history: History) -> Text:
    after_s = max(0.0, incident.time_s - (history.submitted_s or incident.time_s))
    line = Text(f"  {seconds(after_s):>10}  ", style="default", no_wrap=True, overflow="ellipsis")
    line.append(incident.kind, style=_INCIDENT_STYLES.get(incident.kind, "dim"))
    if incident.round is not None:
        line.append(f"  round {incident.round}")
    if incident.learner:
        line.append(f"  {one_line(incident.learner, 64)}", style="bold")
    line.append(f"  {one_line(incident.reason)}", style="dim")
    return line


# ---------------------------------------------------------------- without a terminal


class _PlainLog:
    """A line for each round and each thing that an operator wants to know, for log files and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = 0
        self._in_round = 0

    def tell(self, history: History, event: ev.Event) -> None:
        """Say what this event, just folded, means for a reader of the log."""
        self._incidents(history)
        match event:
            case ev.JobSubmitted():
                parameters = plural(event.num_parameters, "parameter")
                self._line(f"job {event.job} ({event.spec.name}): submitted, {parameters}")
            case ev.VersionCommitted():
                self._committed(history, history.rounds[event.round])
            case ev.VersionEvaluated() if not history.rounds[event.round].train:
                self._line(f"last evaluation: {_plain_metrics(history.metrics)}")
            case ev.JobFinished():
                self._summary(history)
            case _:
                pass

    def _committed(self, history: History, record: RoundRecord) -> None:
        if self._in_round > MAX_INCIDENT_LINES:
            self._line(f"and {count(self._in_round - MAX_INCIDENT_LINES)} more incidents in this round")
        self._in_round = 0
        total = _planned_rounds(history)
        place = f" ({len(history.committed)} of {total})" if total is not None else ""
        missed = "".join(f", {record.counts[kind]} {kind}" for kind in _MISSED if record.counts[kind])
        metrics = _plain_metrics(record.evaluation or record.metrics)
        self._line(
            f"round {record.round}{place}: {seconds(record.round_s)}, "
            f"{count(record.counts['folded'])} of {plural(record.num_learners, 'learner')}{missed}"
            + (f"; {metrics}" if metrics else ""),
        )

    def _incidents(self, history: History) -> None:
        for incident in history.incidents[self._told :]:
            self._in_round += 1
            if self._in_round <= MAX_INCIDENT_LINES:
                where = f" in round {incident.round}" if incident.round is not None else ""
                who = f" {one_line(incident.learner, 64)}" if incident.learner else ""
                self._line(f"{incident.kind}{who}{where}: {one_line(incident.reason)}")
        self._told = len(history.incidents)

    def _summary(self, history: History) -> None:
        end = f"{history.state} after {seconds(history.duration_s)}: {one_line(history.reason)}"
        metrics = _plain_metrics(history.metrics)
        self._line(f"job {history.job}: {end}" + (f"; {metrics}" if metrics else ""))

    def _line(self, text: str) -> None:
        # Not wrapped to a width that a file does not have, and nothing in it is markup.
        self._console.print(Text(text), soft_wrap=True, highlight=False)


def _plain_metrics(metrics: Mapping[str, float]) -> str:
    items = list(metrics.items())[:MAX_METRICS]
    return ", ".join(f"{one_line(name, 24)} {number(value)}" for name, value in items)
