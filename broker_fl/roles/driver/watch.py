"""What happens to a job, as it happens."""

from __future__ import annotations

import queue
from typing import Self

from broker_fl.errors import BrokerUnavailable, MessageRefused, QueueLost
from broker_fl.interfaces import Delivery
from broker_fl.roles.driver.connection import Connection
from broker_fl.roles.runtime import Waiting
from broker_fl.roles.sender import read
from broker_fl.wire import messages as m
from broker_fl.wire.events import Event, decode_event

EVENTS_PREFETCH = 256
LOOK_AFTER_S = 10.0
"""Without an event for so long, the stored ones are looked at."""
_TRY_AGAIN_AFTER_S = 0.25


class Watch:
    """Live events of one job, in a queue of its own."""

    def __init__(self, connection: Connection, job: str) -> None:
        self._connection = connection
        self._watcher = self._new_name()
        self._job = job
        self._batches: Waiting[tuple[bytes, ...] | None] = connection.runtime.queue()

    def __enter__(self) -> Self:
        connection, runtime = self._connection, self._connection.runtime
        give_up_at = runtime.steady_s() + connection.timeout_s
        while not self._is_consuming():
            if runtime.steady_s() >= give_up_at:
                raise BrokerUnavailable(f"the broker has not been there for {connection.timeout_s:g} s")
            runtime.sleep(_TRY_AGAIN_AFTER_S)
        connection.add_watch(self)
        return self

    def _is_consuming(self) -> bool:
        """Begin; False while the broker is away."""
        try:
            self._consume(self._watcher)
        except QueueLost:  # its node went down just now
            self._connection.transport.cancel(self._connection.topology.event_queue(self._watcher))
            self._watcher = self._new_name()
            return False
        except BrokerUnavailable:
            return False
        return True

    def _new_name(self) -> str:
        return f"{self._connection.id}-{self._connection.unique()[:8]}"

    def _consume(self, watcher: str) -> None:
        connection, name = self._connection, self._connection.topology.event_queue(watcher)
        connection.transport.declare(connection.topology.for_watcher(watcher, self._job))
        connection.transport.consume(name, self._take, prefetch=EVENTS_PREFETCH, exclusive=True)

    def move(self, queue: str) -> None:
        """``queue`` is on a node that is down: if it is this one, have another. On a thread of the transport.

        Raises:
            BrokerUnavailable: there is none at the moment; the transport says again that it is lost.
        """
        connection = self._connection
        if queue != connection.topology.event_queue(self._watcher):
            return
        watcher = self._new_name()
        self._consume(watcher)
        self._watcher = watcher
        connection.transport.cancel(queue)
        self.check()

    def __exit__(self, *_: object) -> None:
        self._connection.remove_watch(self)
        self._connection.let_go(self._connection.topology.event_queue(self._watcher))

    def check(self) -> None:
        """Something may have been missed: have ``next`` say so; from any thread."""
        self._batches.put(None)

    def _take(self, delivery: Delivery) -> None:
        try:
            message, _ = read(delivery)
            if isinstance(message, m.EventBatch):
                self._batches.put(message.events)
        except MessageRefused:
            self.check()  # the stored events tell what was missed
        finally:
            delivery.ack()

    def next(self, last: int) -> list[Event]:
        """Events after ``last``; empty when some may have been missed, or none came for a while."""
        while True:
            try:
                batch = self._batches.get(timeout=LOOK_AFTER_S)
            except queue.Empty:
                return []
            if batch is None:
                return []
            if fresh := [event for event in map(decode_event, batch) if event.sequence > last]:
                return fresh
