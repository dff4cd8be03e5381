"""A job's events on their way out: numbered, stored, and published in batches."""

from __future__ import annotations

import logging

from broker_fl.errors import StoreUnavailable
from broker_fl.interfaces import Store
from broker_fl.observer import NOBODY, Observer
from broker_fl.roles.runtime import Clock
from broker_fl.roles.sender import Sender
from broker_fl.topology import Topology
from broker_fl.wire.events import Event, TaskAccepted, TaskFinished, UpdateFolded
from broker_fl.wire.messages import EventBatch

log = logging.getLogger(__name__)
BATCH_BYTES = 1 << 20
_OF_ONE_TASK = (TaskAccepted, TaskFinished, UpdateFolded)
MAX_FORGOTTEN = 1_000_000
"""Numbers that a new controller leaves out. The one before may have published events that a store which lost
power has forgotten; with their numbers, others would be taken for those, and never heard.
"""


class EventLog:
    """Numbers events at once; stores and publishes them at ``flush``. What the store does not take stays for
    the next one.
    """

    def __init__(  # noqa: PLR0913 - whom it writes for, and through what
        self,
        job: str,
        *,
        store: Store,
        epoch: int,
        sender: Sender,
        topology: Topology,
        clock: Clock,
        is_continued: bool = False,
    ) -> None:
        """``is_continued``: another controller has written to the log before."""
        self._job = job
        self._store = store
        self._epoch = epoch
        self._sender = sender
        self._topology = topology
        self._clock = clock
        self.observer: Observer = NOBODY
        self._last = store.num_events(job) + (MAX_FORGOTTEN if is_continued else 0)
        self._pending: list[bytes] = []
        self.is_urgent = False
        """Whether something waits beside events of single tasks, of which there may be thousands."""

    @property
    def last(self) -> int:
        """Number of the event that was added last."""
        return self._last

    def add(self, event: Event) -> None:
        """Give an event its number and time."""
        self._last += 1
        self.is_urgent = self.is_urgent or not isinstance(event, _OF_ONE_TASK)
        self._pending.append(event.stamped(self._last, self._clock.now()).pack())
        self.observer.event(event)

    @property
    def num_pending(self) -> int:
        """Events that are not stored yet."""
        return len(self._pending)

    def flush(self) -> StoreUnavailable | None:
        """Store and publish what was added; an error of the store is returned, and it has to be tried again.

        Raises:
            Fenced: another controller has taken over.
        """
        if not self._pending:
            return None
        first = self._last - len(self._pending) + 1
        try:
            self._store.append_events(self._job, self._pending, first=first, epoch=self._epoch)
        except StoreUnavailable as error:
            log.warning("events of job %s wait for the store: %s", self._job, error)
            return error
        pending, self._pending = self._pending, []
        self.is_urgent = False
        for batch in _batches(pending):
            self._sender.send(self._topology.events, [self._job], EventBatch(job=self._job, events=batch))
        return None

    def flush_all(self) -> None:
        """Store and publish what was added.

        Raises:
            StoreUnavailable: it has to be tried again.
            Fenced: another controller has taken over.
        """
        if (error := self.flush()) is not None:
            raise error


def _batches(events: list[bytes]) -> list[tuple[bytes, ...]]:
    """Split so that a batch stays below the limit of a frame; one event alone is always below it."""
    batches: list[list[bytes]] = [[]]
    size = 0
    for event in events:
        if batches[-1] and size + len(event) > BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(event)
        size += len(event)
    return [tuple(batch) for batch in batches]
