"""What a user sees of a job: a live view on a terminal, else a line for each thing that matters."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from broker_fl.record.text import count, number, one_line, plural, seconds
from broker_fl.wire import events as ev
from broker_fl.workers.process import end_now

Watcher = Callable[[ev.Event], None]


@contextmanager
def watching(*, live: bool | None) -> Iterator[Watcher]:
    """Show events as they come; None: live if this is a terminal."""
    if live is None:
        live = sys.stdout.isatty()
    if live:
        from broker_fl.record.live import LiveView

        with LiveView() as view:
            yield view.add
    else:
        yield print_line


def print_line(event: ev.Event) -> None:
    """Print an event as one line, if it is one that people care for."""
    if text := line(event):
        click.echo(text)


def line(event: ev.Event) -> str:
    """A line for what matters; empty for the rest."""
    write = _LINES.get(type(event))
    return write(event) if write else ""


def _waiting(event: ev.JobWaiting) -> str:
    return f"waiting: {one_line(event.reason)}"


def _evaluated(event: ev.VersionEvaluated) -> str:
    return f"version {event.version}: {_metrics(event.metrics)} ({plural(event.num_learners, 'learner')})"


def _committed(event: ev.VersionCommitted) -> str:
    updates = plural(event.num_learners, "update")
    return f"round {event.round}: version {event.version} of {updates} in {seconds(event.round_s)}"


def _incident(what: str) -> Callable[[Any], str]:
    return lambda event: f"round {event.round}: {event.learner} {what}: {one_line(event.reason)}"


def _retried(event: ev.RoundRetried) -> str:
    return f"round {event.round} is tried again: {one_line(event.reason)}"


def _finished(event: ev.JobFinished) -> str:
    took = f"{plural(event.rounds, 'round')}, {seconds(event.duration_s)}"
    return f"job {event.state} after {took}" + (f": {one_line(event.reason)}" if event.reason else "")


_LINES: dict[type[ev.Event], Callable[[Any], str]] = {
    ev.JobSubmitted: lambda event: f"job {event.job}: {count(event.num_parameters)} parameters",
    ev.JobWaiting: _waiting,
    ev.JobResumed: lambda event: f"a new controller goes on in round {event.round}",
    ev.VersionEvaluated: _evaluated,
    ev.VersionCommitted: _committed,
    ev.TaskFailed: _incident("failed"),
    ev.TaskLate: _incident("was late"),
    ev.UpdateRefused: _incident("had its update refused"),
    ev.RoundRetried: _retried,
    ev.LearnerLost: lambda event: f"{event.learner} was lost: silent for {seconds(event.silent_s)}",
    ev.JobFinished: _finished,
}


def _metrics(metrics: dict[str, float]) -> str:
    return (
        ", ".join(f"{one_line(name, 40)} {number(value)}" for name, value in metrics.items()) or "evaluated"
    )


@contextmanager
def stopping_on_signal(stop: Callable[[str], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM calls ``stop`` on a thread of its own; the second ends at once."""
    received: list[int] = []

    def handle(signum: int, _frame: FrameType | None) -> None:
        if received:
            end_now(128 + signum)
        received.append(signum)
        reason = (
            "stopped by Ctrl-C" if signum == signal.SIGINT else f"stopped by {signal.Signals(signum).name}"
        )
        threading.Thread(target=stop, args=(reason,), name="stop", daemon=True).start()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
