"""One thread that owns a role's state; everything reaches it as a call to be made."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable

from broker_fl.errors import BrokerFLError, Fenced, TransportClosed, VersionsLost
from broker_fl.roles.runtime import THREADS, Runtime, Waiting

log = logging.getLogger(__name__)
Call = Callable[[], None]
LOOK_AT_TIMERS_EVERY_S = 0.005


class Loop:
    """Makes calls one by one on its own thread, and ``on_idle`` when none is waiting or a timer is due.

    An error that the library raises on purpose ends the call, not the thread; any other one ends the thread.

    How many calls wait is bounded by who posts them: a transport hands over at most ``prefetch`` deliveries
    of a queue.
    """

    def __init__(self, name: str, runtime: Runtime = THREADS) -> None:
        self._runtime = runtime
        self._calls: Waiting[Call | None] = runtime.queue()
        self._thread = runtime.thread(self._run, name)
        self._look_at = 0.0
        self._turned_at = runtime.steady_s()
        self.error: BaseException | None = None
        """What ended the thread, if it was not ``stop``."""

    def start(self, *, on_idle: Call, timeout_s: Callable[[], float]) -> None:
        """Begin, with the calls that were posted before; ``timeout_s`` tells when the next timer is due."""
        self._on_idle, self._timeout_s = on_idle, timeout_s
        self._thread.start()

    def post(self, call: Call) -> None:
        """Have ``call`` made on the loop's thread, after those posted before; from any thread."""
        self._calls.put(call)

    def stop(self) -> None:
        """End the thread when it has made the calls posted before; from any thread."""
        self._calls.put(None)

    @property
    def num_calls(self) -> int:
        """How many wait."""
        return self._calls.qsize()

    @property
    def stalled_s(self) -> float:
        """Since the thread last turned to a new call."""
        return self._runtime.steady_s() - self._turned_at

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread's end; False if that takes longer."""
        if self._thread.is_alive() and self._thread is not self._runtime.current():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._once():
                pass
        except TransportClosed:
            log.debug("the transport was closed; %s ends", self._thread.name)
        except BaseException as error:
            self.error = error
            if not isinstance(error, Fenced):
                log.exception("%s ends because of an error", self._thread.name)

    def _once(self) -> bool:
        self._turned_at = self._runtime.steady_s()
        try:
            call = self._next()
        except queue.Empty:
            self._make(self._on_idle)
            return True
        if call is None:
            return False
        self._make(call)
        if self._calls.empty() or self._is_timer_due():
            self._make(self._on_idle)
        return True

    def _next(self) -> Call | None:
        """Wait for a call until a timer is due; what waits already needs no look at the timers."""
        try:
            return self._calls.get_nowait()
        except queue.Empty:
            return self._calls.get(timeout=max(0.0, self._timeout_s()))

    def _is_timer_due(self) -> bool:
        """While calls wait, timers are looked at now and then: that costs as much as a small call."""
        now = self._runtime.steady_s()
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_AT_TIMERS_EVERY_S
        return self._timeout_s() <= 0

    def _make(self, call: Call) -> None:
        try:
            call()
        except (TransportClosed, Fenced, VersionsLost):
            raise
        except BrokerFLError as error:
            log.warning("%s", error)
