"""Where events go besides the store and the run folder: experiment trackers, or whatever a user writes.

A sink is given the events of one job in their order::

    with TensorBoardSink("tensorboard") as sink:
        for event in job.events():
            sink.write(event)

``Background`` keeps a slow or broken one from holding up the job.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from typing import Final, Protocol

from broker_fl.record.closing import Closing
from broker_fl.wire.events import Event

log = logging.getLogger(__name__)

MAX_WAITING = 100_000
"""Events that wait for a slow sink; those that come beyond are left out of it."""
CLOSE_TIMEOUT_S = 30.0


class EventSink(Protocol):
    """Something that takes a job's events."""

    def write(self, event: Event) -> None:
        """Take one event; events come in the order of their numbers, by one thread."""

    def close(self) -> None:
        """Nothing follows: finish what is open."""


class Background(Closing):
    """A sink that is served by a thread of its own: writing never waits and never fails.

    When the sink fails, or cannot keep up, that is logged once as an error and it gets nothing more.
    """

    def __init__(self, sink: EventSink, name: str, *, close_timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        self.name: Final = name
        self._sink = sink
        self._close_timeout_s = close_timeout_s
        self._waiting: queue.Queue[Event | None] = queue.Queue(MAX_WAITING)
        self._failed = False
        self._lock = threading.Lock()
        # A daemon: a server that does not answer must not keep the program from ending.
        self._thread = threading.Thread(target=self._serve, name=f"sink {name}", daemon=True)
        self._thread.start()

    def write(self, event: Event) -> None:
        """Hand one event over."""
        if self._failed:
            return
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            self._fail("it does not keep up with the events")

    def close(self) -> None:
        """Wait until the sink has everything, at most ``close_timeout_s``."""
        until = time.monotonic() + self._close_timeout_s
        with contextlib.suppress(queue.Full):  # then the thread is stuck, which the next lines find out
            self._waiting.put(None, timeout=self._close_timeout_s)
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._fail(
                f"it did not take them within {self._close_timeout_s:g} s: it does not answer, or is too slow"
            )

    def _serve(self) -> None:
        while (event := self._waiting.get()) is not None:
            if not self._failed:
                self._attempt(event)
        if not self._failed:
            self._attempt(None)

    def _attempt(self, event: Event | None) -> None:
        try:
            if event is None:
                self._sink.close()
            else:
                self._sink.write(event)
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the job goes on
            self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, reason: str) -> None:
        with self._lock:
            first, self._failed = not self._failed, True
        if first:
            # Trackers explain themselves over many lines.
            why = " ".join(reason.split())
            log.error("%s gets no more events of this job, which goes on: %s", self.name, why[:500])
