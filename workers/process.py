"""What every daemon does as a process: signals, exit codes."""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
from enum import IntEnum
from types import FrameType, TracebackType
from typing import Any, Self

from broker_fl.errors import BrokerFLError, Fenced, ServerUnavailable, SettingError

log = logging.getLogger(__name__)
WORKER_THREADS = "learner-worker"
"""How names of the threads begin that run users' code."""
_IDLE_WITHIN_S = 1.0


class ExitCode(IntEnum):
    """How commands and daemons end; 128 + n where the signal n ended one at once."""

    DONE = 0
    FAILED = 1
    SETTING = 2
    UNAVAILABLE = 3
    FENCED = 4


def exit_code(error: BaseException) -> ExitCode:
    """What sort of an error it is."""
    if isinstance(error, SettingError):
        return ExitCode.SETTING
    if isinstance(error, ServerUnavailable):
        return ExitCode.UNAVAILABLE
    if isinstance(error, Fenced):
        return ExitCode.FENCED
    return ExitCode.FAILED


# ---------------------------------------------------------------- signals


class Stopped(BrokerFLError):
    """The process was told to end before it had begun to work."""


class Signals:
    """SIGTERM and SIGINT ask the process to end in good order; the second of them ends it at once."""

    def __init__(self) -> None:
        # The handler runs between two steps of the main thread, which may hold the lock of an Event at that
        # moment; a SimpleQueue may be put to even then.
        self._received: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._previous: dict[int, Any] = {}
        self.first: int | None = None
        """Number of the signal that came first."""

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def wait(self, timeout_s: float) -> bool:
        """Wait for a signal; False if none came. On the main thread."""
        try:
            self._received.get(timeout=timeout_s)
        except queue.Empty:
            return self.first is not None
        return True

    def check(self) -> None:
        """Go on only if there was no signal.

        Raises:
            Stopped: there was one.
        """
        if self.first is not None:
            raise Stopped(f"stopped by {signal.Signals(self.first).name}")

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.first is not None:
            end_now(128 + number)
        self.first = number
        self._received.put(number)


def end_now(code: int) -> None:
    """End without waiting for anything."""
    os._exit(code)


def end_despite_work(code: int) -> None:
    """End now if users' code still computes on some thread: Python would wait for it, however long."""
    workers = [one for one in threading.enumerate() if one.name.startswith(WORKER_THREADS)]
    give_up_at = time.monotonic() + _IDLE_WITHIN_S
    for worker in workers:
        worker.join(max(0.0, give_up_at - time.monotonic()))
    if any(worker.is_alive() for worker in workers):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        end_now(code)
