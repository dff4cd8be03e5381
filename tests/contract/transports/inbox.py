"""A sink that a test can wait for, and what fills it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from broker_fl.errors import TransportClosed
from broker_fl.interfaces import Delivery, Transport
from broker_fl.topology import Binding, Entity, Exchange, Queue

DEADLINE_S = 60.0
QUIET_S = 0.15
"""How long nothing must come before a test believes that nothing comes. Too short can only miss a defect."""
Connect = Callable[[], Transport]


class Inbox:
    """A sink that keeps what it gets, and lets a test wait for it."""

    def __init__(self, *, ack: bool = True) -> None:
        self.deliveries: list[Delivery] = []
        self._ack = ack
        self._changed = threading.Condition()

    def __call__(self, delivery: Delivery) -> None:
        if self._ack:
            delivery.ack()
        with self._changed:
            self.deliveries.append(delivery)
            self._changed.notify_all()

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.deliveries]

    def wait(self, count: int) -> list[Delivery]:
        """The deliveries, once there are so many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.deliveries) >= count, DEADLINE_S), self.deliveries
        return self.deliveries

    def stays_at(self, count: int) -> None:
        self.wait(count)
        with self._changed:
            assert not self._changed.wait_for(lambda: len(self.deliveries) > count, QUIET_S)


def wait_for(condition: Callable[[], Any]) -> None:
    """For conditions that nothing announces."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


@contextmanager
def in_thread(work: Callable[[], None]) -> Iterator[threading.Thread]:
    """Run something that may block; errors in it fail the test through pytest."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield thread
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def delete(transport: Transport, *names: str) -> None:
    for name in names:
        try:
            transport.delete_queue(name)
        except TransportClosed:
            return


def send(transport: Transport, queue: str, *bodies: bytes) -> None:
    for body in bodies:
        transport.publish("", [queue], body)
    assert transport.flush(DEADLINE_S)


def numbered(count: int) -> list[bytes]:
    return [b"%d" % index for index in range(count)]


def make_queues(transport: Transport, exchange: Exchange, keys: Sequence[Sequence[str]]) -> list[str]:
    """One queue per list of keys, bound with each of them."""
    names = [f"{exchange.name}.{index}" for index in range(len(keys))]
    entities: list[Entity] = [exchange]
    for name, its_keys in zip(names, keys, strict=True):
        entities.append(Queue(name=name, expires_s=60))
        entities += [Binding(exchange.name, name, key) for key in its_keys]
    transport.declare(entities)
    return names


def collect(transport: Transport, names: Sequence[str]) -> list[Inbox]:
    inboxes = [Inbox() for _ in names]
    for name, inbox in zip(names, inboxes, strict=True):
        transport.consume(name, inbox, prefetch=100)
    return inboxes
