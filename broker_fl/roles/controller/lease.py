"""The controller's lease on its federation, and the epoch that comes with it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from broker_fl.errors import BrokerFLError, Fenced, StoreUnavailable
from broker_fl.interfaces import Store
from broker_fl.roles.runtime import THREADS, Event, Runtime

log = logging.getLogger(__name__)


class Lease:
    """Holds the lease by renewing it three times per ``ttl_s``, on a thread of its own.

    A store that does not answer is asked again: as long as nobody else took the lease, it goes on where it
    was.
    """

    def __init__(
        self,
        store: Store,
        owner: str,
        *,
        ttl_s: float,
        on_fenced: Callable[[Fenced], None],
        runtime: Runtime = THREADS,
    ) -> None:
        self._store = store
        self._owner = owner
        self._ttl_s = ttl_s
        self._on_fenced = on_fenced
        self._runtime = runtime
        self._released = runtime.event()
        self._thread = runtime.thread(self._renew, "lease")
        self._sure_until = 0.0
        self.epoch = 0
        self.is_waiting = False
        """Another controller holds it."""

    @property
    def is_sure(self) -> bool:
        """Whether nobody else can have the lease: the store has confirmed it less than ``ttl_s`` ago. False
        after a freeze, too, before anything else is noticed.
        """
        return self.sure_s > 0

    @property
    def sure_s(self) -> float:
        """For how long that is so if the store confirms it no more; 0 if it is not."""
        return max(0.0, self._sure_until - self._runtime.steady_s())

    def acquire(self, stop: Event, store_patience_s: float | None = None) -> bool:
        """Wait until the lease is free, as a standby; False if ``stop`` was set first.

        Raises:
            StoreUnavailable: the store has failed for ``store_patience_s``.
        """
        announced = False
        answered = self._runtime.steady_s()
        while not stop.is_set():
            asked = self._runtime.steady_s()
            try:
                epoch = self._store.acquire_lease(self._owner, self._ttl_s)
            except StoreUnavailable as error:
                if store_patience_s is not None and self._runtime.steady_s() - answered >= store_patience_s:
                    raise
                log.warning("waiting for the store: %s", error)
                epoch, self.is_waiting = None, False
            else:
                answered = self._runtime.steady_s()
                self.is_waiting = epoch is None
            if epoch is not None:
                self.epoch, self._sure_until = epoch, asked + self._ttl_s
                self._thread.start()
                return True
            if not announced:
                log.info("another controller holds the federation's lease; standing by")
                announced = True
            stop.wait(self._ttl_s / 6)
        return False

    def release(self) -> None:
        """Let go, so that a standby can take over at once."""
        self._released.set()
        if self.epoch:
            self._thread.join(self._ttl_s)
            try:
                self._store.release_lease(self.epoch)
            except (Fenced, StoreUnavailable) as error:
                log.info("the lease was not released: %s", error)

    def _renew(self) -> None:
        while not self._released.wait(self._ttl_s / 3):
            asked = self._runtime.steady_s()
            try:
                self._store.renew_lease(self.epoch, self._ttl_s)
                self._sure_until = asked + self._ttl_s
            except Fenced as error:
                self._on_fenced(error)
                return
            except BrokerFLError as error:
                # Also one that refuses us: an operator may mend an account meanwhile.
                log.warning("the lease could not be renewed: %s", error)
