"""What a controller does while its store is away: it asks again, and ends when its patience does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from broker_fl.errors import StoreUnavailable
from broker_fl.roles.runtime import Clock, Event

log = logging.getLogger(__name__)
MAX_RETRY_PAUSE_S = 5.0
T = TypeVar("T")


class Patience:
    """With one store; ``give_up`` ends the controller."""

    def __init__(
        self,
        patience_s: float | None,
        *,
        clock: Clock,
        stop: Event,
        give_up: Callable[[StoreUnavailable], None],
    ) -> None:
        """``patience_s``: how long the store may fail; None is for ever. ``stop``: nobody waits any more."""
        self._patience_s = patience_s
        self._clock = clock
        self._stop = stop
        self._give_up = give_up
        self._unheard: StoreUnavailable | None = None
        self._unwritten_since: float | None = None

    @property
    def is_without_store(self) -> bool:
        """Whether the store did not take the last that was asked of it; from any thread."""
        return self._unheard is not None or self.has_unwritten

    @property
    def has_given_up(self) -> bool:
        """Whether what was asked of the store last is asked no more: memory is ahead of what is stored."""
        return self._unheard is not None

    @property
    def has_unwritten(self) -> bool:
        """Whether the store did not take the last events."""
        return self._unwritten_since is not None

    def persist(self, operation: Callable[[], T]) -> T:
        """Ask the store until it answers; the lease is kept meanwhile, and nothing else goes on.

        Raises:
            Fenced: another controller has taken over.
            StoreUnavailable: the controller was stopped while the store was away, or its patience is over.
        """
        if self._unheard is not None:  # what was asked may have been done: what follows must not undo it
            raise self._unheard
        began, pause_s = self._clock.steady_s(), 0.05
        while True:
            try:
                done = operation()
                self._unheard = None
                return done
            except StoreUnavailable as error:
                self._unheard = error
                if self._is_over(began):
                    self._give_up(error)
                    raise
                log.warning("the store is away, trying again: %s", error)
                if self._stop.wait(pause_s):
                    raise
                pause_s = min(2 * pause_s, MAX_RETRY_PAUSE_S)

    def written(self, error: StoreUnavailable | None) -> None:
        """Note what came of writing events out: those that the store did not take wait, as long as the
        patience lasts.
        """
        if error is None:
            self._unwritten_since = None
        elif self._unwritten_since is None:
            self._unwritten_since = self._clock.steady_s()
        elif self._is_over(self._unwritten_since):
            self._give_up(error)

    def _is_over(self, began: float) -> bool:
        return self._patience_s is not None and self._clock.steady_s() - began >= self._patience_s
