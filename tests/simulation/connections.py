"""Connections to the broker that are slow and break.

A connection keeps order in both directions, as TCP does. When it breaks, some of what was on its way had
arrived and the rest has not; what the broker had not confirmed is published again on the next one, and what
was not acked comes again. When the broker starts anew, classic queues have lost what they held. A *hostile*
network loses, doubles and reorders single messages besides, which no real broker does: nothing may rely on a
message arriving.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from broker_fl.errors import BrokerUnavailable, QueueInUse, TransportClosed
from broker_fl.interfaces import Delivery, Sink
from broker_fl.topology import Entity
from broker_fl.transports.declared import Declared
from broker_fl.transports.limits import check_body, check_entities, check_prefetch, check_routing_keys
from broker_fl.wire import messages as m
from tests.simulation.network import LATENCY_S, Network
from tests.simulation.processes import Process, Waiter

WINDOW_BYTES = 200_000
CLOSE_TIMEOUT_S = 5.0
CONSUME_AGAIN_S = 1.0


@dataclass(slots=True)
class _Sent:
    exchange: str
    keys: Sequence[str]
    body: bytes
    mandatory: bool


@dataclass(slots=True)
class _Wanted:
    sink: Sink
    prefetch: int
    exclusive: bool


@dataclass(eq=False)
class _Port:
    """One connection, as the broker sees it: the owner of its consumers."""

    transport: SimTransport
    user: str = "guest"
    is_dead: bool = False
    closed: bool = False
    num_waiting: int = 0
    consumers: list[Any] = field(default_factory=list)
    last_in: float = 0.0
    last_out: float = 0.0
    on_the_way: deque[_Sent] = field(default_factory=deque)

    @property
    def outbox(self) -> _Port:
        return self

    def put(self, delivery: Any) -> None:
        """The broker hands a message over."""
        if self.is_dead:
            return  # it does not know yet
        kernel = self.transport.network.kernel
        self.last_in = max(self.last_in, kernel.now + self.transport.delay_s())
        self.transport.process.after(self.last_in - kernel.now, partial(self._arrive, delivery))

    def _arrive(self, delivery: Any) -> None:
        if not self.is_dead:
            delivery.hand_over()

    def lost(self, consumer: Any) -> None:
        self.transport.process.after(0.0, partial(self.transport.consume_again, consumer.queue.name))


class SimDelivery:
    """See ``Delivery``; an ack takes its time, and may be lost with the connection."""

    __slots__ = ("_inner", "_port", "body", "redelivered", "routing_key", "user")

    def __init__(self, inner: Delivery, port: _Port) -> None:
        self._inner = inner
        self._port = port
        self.body = inner.body
        self.routing_key = inner.routing_key
        self.redelivered = inner.redelivered
        self.user = inner.user

    def ack(self) -> None:
        self._settle(self._inner.ack)

    def reject(self, *, requeue: bool = False) -> None:
        self._settle(partial(self._inner.reject, requeue=requeue))

    def _settle(self, settle: Callable[[], None]) -> None:
        port = self._port
        if not port.is_dead and port.transport.process.alive:
            kernel = port.transport.network.kernel
            kernel.after(port.transport.network.latency_s(), lambda: None if port.is_dead else settle())


class SimTransport:
    """See ``Transport``: one process's connection, which comes back by itself."""

    def __init__(self, network: Network, process: Process) -> None:
        self.network = network
        self.process = process
        self.user = "guest"
        self.is_up = True
        self._port = _Port(self)
        self._closed = False
        self._declared = Declared()
        self._consumers: dict[str, _Wanted] = {}
        self._unconfirmed: dict[int, _Sent] = {}
        self._unconfirmed_bytes = 0
        self._waiters: list[Waiter] = []
        self._on_reconnect: list[Callable[[], None]] = []
        self._on_unroutable: list[Callable[[str, str], None]] = []
        network.transports.append(self)
        process.on_death.append(self._process_died)

    def delay_s(self) -> float:
        """How long the next message takes."""
        kernel, faults = self.network.kernel, self.network.faults
        slow = kernel.draw.random() * faults.delay_s if kernel.unlucky(faults.delay) else 0.0
        return self.network.latency_s() + slow

    # ------------------------------------------------------------ Transport

    def declare(self, entities: Iterable[Entity]) -> None:
        wanted = list(entities)
        check_entities(wanted)
        self._round_trip()
        self.network.broker.declare(wanted)
        for entity in wanted:
            self._declared.remember(entity)

    def delete_queue(self, name: str) -> None:
        self._round_trip()
        self._declared.forget_queue(name)
        self._consumers.pop(name, None)
        for consumer in self.network.broker.delete_queue(name):
            if consumer.owner is not self._port:
                consumer.owner.lost(consumer)

    def delete_exchange(self, name: str) -> None:
        self._round_trip()
        self._declared.forget_exchange(name)
        self.network.broker.delete_exchange(name)

    def consume(self, queue: str, sink: Sink, *, prefetch: int, exclusive: bool = False) -> None:
        check_prefetch(prefetch)
        self._round_trip()
        wanted = _Wanted(sink, prefetch, exclusive)
        self._attach(queue, wanted)
        self._consumers[queue] = wanted

    def cancel(self, queue: str, *, hand_back: bool = False) -> None:
        self._declared.forget_queue(queue)
        self._consumers.pop(queue, None)
        self._round_trip()
        for consumer in self._port.consumers:
            if consumer.queue.name == queue:
                self.network.broker.cancel(consumer, hand_back=hand_back)

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
        check_routing_keys(routing_keys)
        while self._unconfirmed_bytes > WINDOW_BYTES and not self._closed:
            self._park(None)
        if self._closed:
            raise TransportClosed("the transport is closed")
        sent = _Sent(exchange, routing_keys, body, mandatory)
        self._unconfirmed[id(sent)] = sent
        self._unconfirmed_bytes += len(body)
        self._note("publishes", sent)
        if self.is_up:
            self._transmit(sent)

    def flush(self, timeout_s: float) -> bool:
        until = self.network.kernel.now + timeout_s
        while self._unconfirmed and self.network.kernel.now < until:
            self._park(until - self.network.kernel.now)
        return not self._unconfirmed

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._on_reconnect.append(callback)

    def on_queue_lost(self, callback: Callable[[str], None]) -> None:
        """Never called: there is one node."""

    def on_unroutable(self, callback: Callable[[str, str], None]) -> None:
        self._on_unroutable.append(callback)

    def close(self) -> None:
        self.flush(CLOSE_TIMEOUT_S)
        self._closed = True
        self._disconnect(0.0)
        self._wake()

    # ------------------------------------------------------------ the wire

    def _transmit(self, sent: _Sent) -> None:
        network, port, kernel = self.network, self._port, self.network.kernel
        if kernel.unlucky(network.faults.lose):
            kernel.note("network", "LOSES", sent.exchange, ",".join(sent.keys))
            self.process.after(2 * LATENCY_S, partial(self._confirm, sent, port))
            return
        is_in_order = (
            sent.exchange == network.topology.control
        )  # requests of one driver follow from one another
        if not is_in_order and kernel.unlucky(network.faults.double):
            kernel.note("network", "DOUBLES", sent.exchange, ",".join(sent.keys))
            kernel.after(kernel.draw.random() * network.faults.delay_s, partial(self._enter, sent))
        if not is_in_order and kernel.unlucky(network.faults.reorder):
            kernel.after(kernel.draw.random() * network.faults.delay_s, partial(self._enter, sent))
            self.process.after(2 * LATENCY_S, partial(self._confirm, sent, port))
            return
        port.on_the_way.append(sent)
        port.last_out = max(port.last_out, kernel.now + self.delay_s())
        kernel.after(port.last_out - kernel.now, partial(self._arrive, port))

    def _arrive(self, port: _Port) -> None:
        if port.is_dead or not port.on_the_way:
            return
        sent = port.on_the_way.popleft()
        self._enter(sent)
        self.process.after(self.network.latency_s(), partial(self._confirm, sent, port))

    def _enter(self, sent: _Sent) -> None:
        """A message is in the broker's hands."""
        if not self.network.is_up:
            return
        found = self.network.broker.publish(sent.exchange, sent.keys, sent.body, _Port(self))  # type: ignore[arg-type]
        if not found and sent.mandatory:
            for callback in self._on_unroutable:
                self.process.after(0.0, partial(callback, sent.exchange, sent.keys[0]))

    def _confirm(self, sent: _Sent, port: _Port) -> None:
        if not port.is_dead and self._unconfirmed.pop(id(sent), None) is not None:
            self._unconfirmed_bytes -= len(sent.body)
            self._wake()

    def _attach(self, queue: str, wanted: _Wanted) -> None:
        port = self._port

        def sink(delivery: Delivery) -> None:
            self._note_delivery(delivery)
            wanted.sink(SimDelivery(delivery, port))

        port.consumers.append(
            self.network.broker.consume(
                queue,
                sink,
                prefetch=wanted.prefetch,
                exclusive=wanted.exclusive,
                owner=port,  # type: ignore[arg-type]
            )
        )

    def consume_again(self, queue: str) -> None:
        """After a lost connection, or when the queue was deleted; until it works."""
        wanted = self._consumers.get(queue)
        if wanted is None or self._closed or not self.is_up:
            return
        try:
            self.network.broker.declare(self._declared.of_queue(queue))
            self._attach(queue, wanted)
        except QueueInUse:
            self.process.after(CONSUME_AGAIN_S, partial(self.consume_again, queue))

    def _round_trip(self) -> None:
        if self._closed:
            raise TransportClosed("the transport is closed")
        self.process.sleep(2 * self.network.latency_s())
        if not self.is_up:
            raise BrokerUnavailable("the broker does not answer")

    # ------------------------------------------------------------ losing the connection

    def cut(self, *, notice_s: float, down_s: float) -> None:
        """Lose the connection for ``down_s``; the broker notices after ``notice_s``."""
        if not self.is_up or self._closed:
            return
        kernel = self.network.kernel
        kernel.note(self.process.name, "CUT OFF", f"for {down_s:.1f} s, noticed after {notice_s:.1f} s")
        self.is_up = False
        self._disconnect(notice_s)
        self.process.after(max(down_s, notice_s) + 0.001, self._come_back)

    def _disconnect(self, notice_s: float) -> None:
        port, kernel = self._port, self.network.kernel
        port.is_dead = True
        for _ in range(kernel.draw.randint(0, len(port.on_the_way))):
            self._enter(port.on_the_way.popleft())
        port.on_the_way.clear()
        broker = self.network.broker
        kernel.after(notice_s, lambda: broker.release(port.consumers))

    def _come_back(self) -> None:
        if self._closed:
            return
        if not self.network.is_up:
            self.process.after(1.0, self._come_back)
            return
        self.network.kernel.note(self.process.name, "RECONNECTS")
        self.is_up = True
        self._port = _Port(self)
        self.network.broker.declare(self._declared.everything())
        for queue in list(self._consumers):
            self.consume_again(queue)
        for sent in list(self._unconfirmed.values()):
            self._transmit(sent)
        for callback in self._on_reconnect:
            callback()

    def _process_died(self) -> None:
        """Its system closes the connection at once; or the machine is gone, and the broker has to notice."""
        self.network.transports.remove(self)
        if self._closed or not self.is_up:
            return
        kernel = self.network.kernel
        self._disconnect(kernel.draw.choice([0.0, 0.0, kernel.draw.random() * 30.0]))
        self._closed = True

    # ------------------------------------------------------------ waiting

    def _park(self, timeout_s: float | None) -> None:
        waiter = self.process.waiter()
        self._waiters.append(waiter)
        self.process.park(waiter, timeout_s)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            self.process.wake(waiter)

    # ------------------------------------------------------------ history

    def _note(self, what: str, sent: _Sent) -> None:
        if self.network.kernel.history is not None:
            self.network.kernel.note(self.process.name, what, ",".join(sent.keys), told(sent.body))

    def _note_delivery(self, delivery: Delivery) -> None:
        if self.network.kernel.history is not None:
            again = "(again)" if delivery.redelivered else ""
            self.network.kernel.note(self.process.name, "receives", told(delivery.body), again)


def told(body: bytes) -> str:
    """A message in a line."""
    message, _ = m.decode(body)
    fields: dict[str, Any] = message.model_dump(exclude_defaults=True)
    shown = {
        name: value
        for name, value in fields.items()
        if name not in ("model", "update", "timings", "checksum", "peak_memory_bytes", "spec", "events")
    }
    words = " ".join(f"{name}={_brief(value)}" for name, value in shown.items())
    return f"<{message.KIND} {words}>"


def _brief(value: object) -> str:
    if isinstance(value, dict):
        return "/".join(str(part) for part in value.values())
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_brief(part) for part in value) + "]"
    return str(value)
