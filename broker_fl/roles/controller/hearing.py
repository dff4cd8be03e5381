"""Reading the queues that all controllers of a federation share, only while nobody else can have the lease.

A controller that is cut off from the store, and not from the broker, would otherwise go on being the one
active consumer of requests, and take half of the reports, while another one leads.
"""

from __future__ import annotations

import logging

from broker_fl.errors import BrokerFLError
from broker_fl.roles.controller.leadership import Leadership
from broker_fl.roles.controller.lease import Lease
from broker_fl.roles.runtime import THREADS, Runtime

log = logging.getLogger(__name__)
LOOKS_PER_TTL = 12
"""For a renewal, while it is not sure of the lease."""
MOMENT_S = 0.001
STOP_TIMEOUT_S = 5.0
"""For a broker that does not answer."""


class Hearing:
    """Of one controller. It has a thread of its own, since the one that decides may wait for the store, and
    so may the one that renews the lease.
    """

    def __init__(
        self, lease: Lease, leadership: Leadership, *, ttl_s: float, runtime: Runtime = THREADS
    ) -> None:
        """``ttl_s``: of the lease. The queues are being read."""
        self._lease = lease
        self._leadership = leadership
        self._ttl_s = ttl_s
        self._is_reading = True
        self._has_failed = False
        """To read again; each attempt may hand messages back, and brokers count how often."""
        self._over = runtime.event()
        self._thread = runtime.thread(self._run, "controller-hearing")

    def start(self) -> None:
        """Begin to look after it."""
        self._thread.start()

    def stop(self) -> None:
        """Leave it as it is from now on."""
        self._over.set()
        self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        while not self._over.wait(self._pause_s()):
            try:
                self._look()
            except Exception:  # without this thread nobody would read again
                log.exception("reports and requests: trying again")

    def _look(self) -> None:
        if self._is_reading and not self._lease.is_sure:
            self._hand_back()
        elif not self._is_reading and self._lease.is_sure:
            self._read_again()
            if self._over.is_set():  # meanwhile, so that nobody would answer
                self._leadership.hand_back()

    def _pause_s(self) -> float:
        if self._is_reading:
            return max(self._lease.sure_s, MOMENT_S)
        return self._ttl_s / (1 if self._has_failed else LOOKS_PER_TTL)

    def _hand_back(self) -> None:
        log.warning(
            "the store has not confirmed the lease for %g s: leaving reports and requests to whoever has it",
            self._ttl_s,
        )
        self._is_reading = False
        self._leadership.hand_back()

    def _read_again(self) -> None:
        try:
            self._leadership.read_again()
        except BrokerFLError as error:
            log.warning("reports and requests cannot be read again yet: %s", error)
            self._has_failed = True
            self._leadership.hand_back()
        else:
            self._is_reading, self._has_failed = True, False
            log.info("the lease is confirmed once more: reading reports and requests")
