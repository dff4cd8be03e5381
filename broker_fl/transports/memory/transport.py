"""One party's connection to a ``MemoryBroker``."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from broker_fl.errors import BrokerFLError, SettingError, TransportClosed
from broker_fl.interfaces import Sink
from broker_fl.topology import Entity
from broker_fl.transports.declared import Declared
from broker_fl.transports.limits import check_body, check_entities, check_prefetch, check_routing_keys
from broker_fl.transports.memory.delivery import MemoryDelivery
from broker_fl.transports.memory.queue import Consumer
from broker_fl.wire.handed import Handed

if TYPE_CHECKING:
    from broker_fl.transports.memory.broker import MemoryBroker

log = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 5.0


class _Notice:
    """Something else than a delivery to be done on the transport's thread."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action

    def hand_over(self) -> None:
        try:
            self._action()
        except Exception:
            log.exception("a callback failed")


class MemoryTransport:
    """See ``Transport``. One thread runs all sinks and callbacks; a transport that needs none has none.

    A publisher waits in ``publish`` itself while a queue that refuses messages is full.
    """

    def __init__(
        self, broker: MemoryBroker, *, name: str = "", user: str = "guest", hands_over: bool = False
    ) -> None:
        self.user = user
        self.hands_over = hands_over
        self.closed = False
        self.num_waiting = 0
        """Publishers that wait for room; the broker's lock guards it."""
        self._broker = broker
        self._name = name
        self._lock = threading.Lock()
        self._declared = Declared()
        self._consumers: dict[str, Consumer] = {}
        self._cancelled: list[Consumer] = []
        self.outbox: queue.SimpleQueue[MemoryDelivery | _Notice | None] = queue.SimpleQueue()
        """What the thread does next: ``None`` ends it."""
        self._thread: threading.Thread | None = None
        self._on_unroutable: list[Callable[[str, str], None]] = []

    def declare(self, entities: Iterable[Entity]) -> None:
        self._check_open()
        wanted = list(entities)
        check_entities(wanted)
        for entity in wanted:
            self._broker.declare((entity,))
            with self._lock:
                self._declared.remember(entity)

    def delete_queue(self, name: str) -> None:
        self._check_open()
        with self._lock:
            self._declared.forget_queue(name)
            self._consumers.pop(name, None)
        for consumer in self._broker.delete_queue(name):
            if consumer.owner is not self:
                consumer.owner.lost(consumer)

    def delete_exchange(self, name: str) -> None:
        self._check_open()
        with self._lock:
            self._declared.forget_exchange(name)
        self._broker.delete_exchange(name)

    def consume(self, queue: str, sink: Sink, *, prefetch: int, exclusive: bool = False) -> None:
        check_prefetch(prefetch)
        self._check_open()
        with self._lock:
            if queue in self._consumers:
                raise SettingError(f"this transport consumes from queue {queue!r} already")
            self._start_thread()
            self._consumers[queue] = self._broker.consume(
                queue, sink, prefetch=prefetch, exclusive=exclusive, owner=self
            )

    def cancel(self, queue: str, *, hand_back: bool = False) -> None:
        with self._lock:
            self._declared.forget_queue(queue)
            consumer = self._consumers.pop(queue, None)
            if consumer is not None:
                self._broker.cancel(consumer, hand_back=hand_back)
                self._cancelled = [old for old in (*self._cancelled, consumer) if old.unacked]

    def publish(
        self,
        exchange: str,
        routing_keys: Sequence[str],
        body: bytes,
        *,
        persistent: bool = False,
        mandatory: bool = False,
    ) -> None:
        check_body(body)
        self._publish(exchange, routing_keys, body, mandatory=mandatory)

    def hand_over(
        self, exchange: str, routing_keys: Sequence[str], handed: Handed, *, mandatory: bool = False
    ) -> None:
        self._publish(exchange, routing_keys, handed, mandatory=mandatory)

    def _publish(
        self, exchange: str, routing_keys: Sequence[str], body: bytes | Handed, *, mandatory: bool
    ) -> None:
        check_routing_keys(routing_keys)
        if not routing_keys:
            return
        if not self._broker.publish(exchange, routing_keys, body, self) and mandatory:
            self._report_unroutable(exchange, routing_keys[0])

    def flush(self, timeout_s: float) -> bool:
        return self._broker.wait_for_publishers(self, timeout_s)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Never called: this connection cannot be lost."""

    def on_queue_lost(self, callback: Callable[[str], None]) -> None:
        """Never called: there is one node."""

    def on_unroutable(self, callback: Callable[[str, str], None]) -> None:
        self._on_unroutable.append(callback)

    def depth(self, queue: str) -> int:
        """Messages that wait in a queue, without those that are delivered."""
        return self._broker.depth(queue)

    def close(self) -> None:
        with self._lock:
            if self.closed:
                return
            self.closed = True
            consumers = [*self._consumers.values(), *self._cancelled]
            self._consumers.clear()
            self._cancelled.clear()
        self._broker.release(consumers)
        self.outbox.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_TIMEOUT_S)

    def lost(self, consumer: Consumer) -> None:
        """The consumer's queue was deleted by somebody else: declare it again, consume again."""
        self.outbox.put(_Notice(partial(self._consume_again, consumer)))

    def _consume_again(self, lost: Consumer) -> None:
        name = lost.queue.name
        with self._lock:
            if self.closed or self._consumers.get(name) is not lost:
                return
            del self._consumers[name]
            entities = self._declared.of_queue(name)
        log.warning(
            "queue %r was deleted while in use; %s it again",
            name,
            "making" if entities else "not making",
        )
        try:
            self._broker.declare(entities)
            self.consume(name, lost.sink, prefetch=lost.prefetch, exclusive=lost.exclusive)
        except BrokerFLError as error:
            log.error("cannot consume from queue %r again: %s", name, error)

    def _report_unroutable(self, exchange: str, routing_key: str) -> None:
        with self._lock:
            self._start_thread()
            for callback in self._on_unroutable:
                self.outbox.put(_Notice(partial(callback, exchange, routing_key)))

    def _check_open(self) -> None:
        if self.closed:
            raise TransportClosed("the transport is closed")

    def _start_thread(self) -> None:
        if self._thread is None and not self.closed:
            name = f"broker_fl {self._name or 'transport'}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (item := self.outbox.get()) is not None:
            item.hand_over()
