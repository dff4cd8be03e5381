"""What a user sees of a job: a live view on a terminal, else a line for each thing that matters."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO, cast

import click
from rich.console import Console

from broker_fl.record.history import History
from broker_fl.record.live import LiveView
from broker_fl.wire.events import Event
from broker_fl.workers.process import end_now

Watcher = Callable[[Event], None]


@contextmanager
def watching(*, live: bool | None, as_json: bool = False) -> Iterator[Watcher]:
    """Show events as they come; ``live`` None: if this is a terminal. Or print each as a line of JSON."""
    if as_json:
        yield lambda event: click.echo(event.to_json())
        return
    console = Console(force_terminal=False if live is False else None, highlight=False)
    with LiveView(History(), console) as view, _logging_above(console):
        yield view.show


@contextmanager
def _logging_above(console: Console) -> Iterator[None]:
    """Log lines go above a live view, not into it."""
    handlers = [
        one
        for one in logging.getLogger().handlers
        if isinstance(one, logging.StreamHandler) and one.stream is sys.stderr and console.is_terminal
    ]
    for handler in handlers:
        handler.setStream(cast("TextIO", _Above(console)))
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(sys.stderr)


class _Above:
    """A stream that prints through a console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str) -> None:
        if text.strip():
            self._console.print(text.rstrip("\n"), markup=False, highlight=False, style="yellow")

    def flush(self) -> None:
        """Nothing is kept back."""


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
