"""Exchanges, queues and consumers of one process."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from broker_fl.errors import QueueInUse, SettingError, TransportClosed
from broker_fl.interfaces import Sink
from broker_fl.topology import Binding, Entity, Exchange, Queue
from broker_fl.transports.memory.delivery import MemoryDelivery
from broker_fl.transports.memory.queue import Consumer, MemoryQueue, Message
from broker_fl.transports.memory.routing import Router
from broker_fl.wire.handed import Handed

if TYPE_CHECKING:
    from broker_fl.transports.memory.transport import MemoryTransport

log = logging.getLogger(__name__)

DEFAULT_EXCHANGE = Exchange("", "direct")
"""Every queue is bound to it by its name."""


class MemoryBroker:
    """The state that all transports of one process share, behind one lock that is held for microseconds.

    Sinks run outside the lock, on the thread of their transport. Messages and queues expire by ``clock`` (in
    seconds), which is looked at whenever something else happens; ``tick`` is for when nothing does.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._no_publisher_waits = threading.Condition(self._lock)
        self._num_waiting = 0
        self._routers: dict[str, Router] = {"": Router(DEFAULT_EXCHANGE)}
        self._queues: dict[str, MemoryQueue] = {}
        self._due: list[tuple[float, int, MemoryQueue]] = []
        self._counter = itertools.count()

    def connect(self, name: str = "", *, user: str = "guest", hands_over: bool = False) -> MemoryTransport:
        """A new connection of an account; ``name`` is for its thread and log lines. What is published by one
        that ``hands_over`` may come as it is, not as bytes.
        """
        from broker_fl.transports.memory.transport import MemoryTransport

        return MemoryTransport(self, name=name, user=user, hands_over=hands_over)

    def tick(self) -> None:
        """Let expire what is due."""
        with self._lock:
            self._expire()

    def depth(self, queue: str) -> int:
        """Messages in the queue that no consumer has; 0 if there is no such queue."""
        with self._lock:
            self._expire()
            return len(self._queues[queue]) if queue in self._queues else 0

    # ------------------------------------------------------------ declarations

    def declare(self, entities: Iterable[Entity]) -> None:
        """See ``Transport.declare``."""
        with self._lock:
            self._expire()
            for entity in entities:
                if isinstance(entity, Exchange):
                    self._declare_exchange(entity)
                elif isinstance(entity, Queue):
                    self._declare_queue(entity)
                else:
                    self._bind(entity)

    def _declare_exchange(self, exchange: Exchange) -> None:
        router = self._routers.setdefault(exchange.name, Router(exchange))
        if router.exchange != exchange:
            raise SettingError(
                f"exchange {exchange.name!r} exists with other settings: {router.exchange}, not {exchange}"
            )

    def _declare_queue(self, settings: Queue) -> None:
        queue = self._queues.get(settings.name)
        if queue is None:
            queue = self._queues[settings.name] = MemoryQueue(settings)
            self._routers[""].bind(queue, queue.name)
        elif queue.settings != settings:
            raise SettingError(
                f"queue {settings.name!r} exists with other settings: {queue.settings}, not {settings}"
            )
        self._touch(queue)

    def _bind(self, binding: Binding) -> None:
        if binding.exchange not in self._routers or binding.queue not in self._queues:
            raise SettingError(
                f"cannot bind: exchange {binding.exchange!r} or queue {binding.queue!r} does not exist"
            )
        self._routers[binding.exchange].bind(self._queues[binding.queue], binding.routing_key)

    def delete_queue(self, name: str) -> list[Consumer]:
        """Delete a queue with all it holds; the consumers that it had come back."""
        with self._lock:
            self._expire()
            return self._delete(self._queues[name]) if name in self._queues else []

    def delete_exchange(self, name: str) -> None:
        """See ``Transport.delete_exchange``."""
        with self._lock:
            self._routers.pop(name, None)

    def _delete(self, queue: MemoryQueue) -> list[Consumer]:
        del self._queues[queue.name]
        for router in self._routers.values():
            router.unbind(queue)
        consumers = list(queue.consumers)
        queue.consumers.clear()
        for consumer in consumers:
            consumer.unseen.clear()
            consumer.unacked.clear()
        self._signal_room()
        return consumers

    # ------------------------------------------------------------ publishing

    def publish(
        self,
        exchange: str,
        routing_keys: Sequence[str],
        body: bytes | Handed,
        sender: MemoryTransport,
    ) -> bool:
        """Put one body into every queue that a key reaches; False if there is none. Waits for full ones."""
        with self._lock:
            if self._due:
                self._expire()
            targets = self._targets(exchange, routing_keys)
            for queue in targets:
                if not queue.has_room(len(body)):
                    targets = self._wait_for_room(exchange, routing_keys, body, sender)
                    break
            if sender.closed:
                raise TransportClosed("the transport is closed")
            for queue in targets:
                self._enqueue(queue, Message(body, routing_keys[0], sender.user))
            return bool(targets)

    def _targets(self, exchange: str, routing_keys: Sequence[str]) -> Collection[MemoryQueue]:
        router = self._routers.get(exchange)
        if router is None:
            log.error("published to exchange %r, which does not exist", exchange)
            return ()
        return router.route(routing_keys)

    def _wait_for_room(
        self,
        exchange: str,
        routing_keys: Sequence[str],
        body: bytes | Handed,
        sender: MemoryTransport,
    ) -> Collection[MemoryQueue]:
        self._num_waiting += 1
        sender.num_waiting += 1
        try:
            while True:
                targets = self._targets(exchange, routing_keys)
                if sender.closed or all(queue.has_room(len(body)) for queue in targets):
                    return targets
                self._room.wait()
                self._expire()
        finally:
            self._num_waiting -= 1
            sender.num_waiting -= 1
            self._no_publisher_waits.notify_all()

    def _signal_room(self) -> None:
        if self._num_waiting:
            self._room.notify_all()

    def wait_for_publishers(self, sender: MemoryTransport, timeout_s: float) -> bool:
        """Wait until no publisher of this transport waits for room."""
        with self._no_publisher_waits:
            return self._no_publisher_waits.wait_for(lambda: not sender.num_waiting, timeout_s)

    def _enqueue(self, queue: MemoryQueue, message: Message) -> None:
        ttl_s = queue.settings.message_ttl_s
        if ttl_s is not None:
            message.expires_at = self._clock() + ttl_s
            if not len(queue):
                self._schedule(message.expires_at, queue)
        queue.push(message)
        self._pump(queue)
        self._drop_over_limit(queue)

    def _drop_over_limit(self, queue: MemoryQueue) -> None:
        while queue.is_over_limit:
            self._bury(queue, queue.pop())

    def _bury(self, queue: MemoryQueue, message: Message) -> None:
        """Dead-letter a message that was rejected or dropped, or that expired."""
        died_in = message.died_in | {queue.name}
        router = self._routers.get(queue.settings.dead_letter_exchange or "")
        if queue.settings.dead_letter_exchange is None or router is None:
            return
        for target in router.route((message.routing_key,)):
            # As with RabbitMQ: nobody waits here, so a full queue that refuses messages loses this one.
            if target.name not in died_in and target.has_room(len(message.body)):
                again = Message(message.body, message.routing_key, message.user, died_in=died_in)
                self._enqueue(target, again)

    # ------------------------------------------------------------ consuming

    def consume(
        self,
        name: str,
        sink: Sink,
        *,
        prefetch: int,
        exclusive: bool,
        owner: MemoryTransport,
    ) -> Consumer:
        """See ``Transport.consume``."""
        with self._lock:
            self._expire()
            queue = self._queues.get(name)
            if queue is None:
                raise SettingError(f"no queue {name!r}: declare it first")
            if any(other.exclusive or exclusive for other in queue.consumers):
                raise QueueInUse(
                    f"somebody else consumes from queue {name!r}, and one of the two asks to be alone"
                )
            consumer = Consumer(
                queue=queue,
                sink=sink,
                prefetch=prefetch,
                exclusive=exclusive,
                owner=owner,
            )
            queue.consumers.append(consumer)
            self._pump(queue)
            return consumer

    def cancel(self, consumer: Consumer, *, hand_back: bool = False) -> None:
        """Remove a consumer. What its sink has not seen goes back; what it has seen may still be settled,
        unless with ``hand_back`` that goes back, too.
        """
        with self._lock:
            self._remove(consumer)
            unseen = [delivery for delivery in list(consumer.unseen) if consumer.take(delivery)]
            self._put_back(consumer, list(consumer.unacked) if hand_back else unseen)
            self._serve(consumer.queue)

    def release(self, consumers: Sequence[Consumer]) -> None:
        """Remove the consumers of a closing transport; what they had not settled goes back in order."""
        with self._lock:
            for consumer in consumers:
                consumer.unseen.clear()
                self._remove(consumer)
            for consumer in consumers:
                self._put_back(consumer, list(consumer.unacked))
            for consumer in consumers:
                self._serve(consumer.queue)
            self._room.notify_all()

    def _remove(self, consumer: Consumer) -> None:
        if consumer in consumer.queue.consumers:
            consumer.queue.consumers.remove(consumer)
            self._touch(consumer.queue)

    def _put_back(self, consumer: Consumer, deliveries: Iterable[MemoryDelivery]) -> None:
        for delivery in deliveries:
            message = consumer.unacked.pop(delivery, None)
            if message is not None:
                consumer.queue.put_back(message)

    def _serve(self, queue: MemoryQueue) -> None:
        """Go on with a queue that has got messages back, or whose consumers have changed."""
        if self._queues.get(queue.name) is not queue:
            return
        head = queue.head()
        if head is not None and head.expires_at is not None:
            self._schedule(head.expires_at, queue)
            self._expire()
        self._pump(queue)
        self._drop_over_limit(queue)

    def settle(self, delivery: MemoryDelivery, *, ack: bool, requeue: bool = False) -> None:
        """Ack, reject or requeue; nothing happens the second time."""
        consumer = delivery.consumer
        with self._lock:
            message = consumer.unacked.pop(delivery, None)
            if message is None:
                return
            if requeue:
                queue = consumer.queue
                queue.put_back(message)
                self._serve(queue)
                return
            if not ack:
                message.died_in = frozenset()
                self._bury(consumer.queue, message)
            if self._due:
                self._expire()
            if consumer.queue:
                self._pump(consumer.queue)

    def _pump(self, queue: MemoryQueue) -> None:
        """Hand messages to consumers that have credit."""
        moved = False
        while queue.head() is not None and (consumer := queue.next_consumer()) is not None:
            message = queue.pop()
            delivery = MemoryDelivery(self, consumer, message)
            consumer.unacked[delivery] = message
            consumer.unseen.add(delivery)
            consumer.owner.outbox.put(delivery)
            moved = True
        if moved:
            self._signal_room()

    # ------------------------------------------------------------ expiry

    def _touch(self, queue: MemoryQueue) -> None:
        """The queue was used just now; unless somebody consumes from it, it expires from here."""
        if queue.settings.expires_s is not None:
            queue.unused_since = self._clock()
            self._schedule(queue.unused_since + queue.settings.expires_s, queue)

    def _schedule(self, at: float, queue: MemoryQueue) -> None:
        heapq.heappush(self._due, (at, next(self._counter), queue))

    def _expire(self) -> None:
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            _, _, queue = heapq.heappop(self._due)
            if self._queues.get(queue.name) is queue:
                self._expire_in(queue, now)

    def _expire_in(self, queue: MemoryQueue, now: float) -> None:
        expires_s = queue.settings.expires_s
        if expires_s is not None and not queue.consumers and queue.unused_since + expires_s <= now:
            self._delete(queue)
            return
        for dropped in queue.drop_expired(now):
            self._bury(queue, dropped)
            self._signal_room()
        head = queue.head()
        if head is not None and head.expires_at is not None:
            self._schedule(head.expires_at, queue)
