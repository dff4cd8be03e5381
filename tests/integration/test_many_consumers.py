"""One transport with many queues: declared side by side, and read on channels that they share."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from broker_fl.errors import QueueInUse
from broker_fl.interfaces import Delivery
from broker_fl.topology import Binding, Entity, Exchange, Queue
from broker_fl.transports.rabbitmq import RabbitMQTransport, consuming
from broker_fl.workers.servers import RabbitMQNode

DEADLINE_S = 60.0
NAMES = [f"q{number}" for number in range(40)]


class Heard:
    """Bodies by queue; they are acked when they are taken."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, bytes]] = Counter()
        self._changed = threading.Condition()

    def read(self, transport: RabbitMQTransport, name: str) -> None:
        def sink(delivery: Delivery) -> None:
            with self._changed:
                self.counts[name, delivery.body] += 1
                self._changed.notify_all()
            delivery.ack()

        transport.consume(name, sink, prefetch=3, exclusive=True)

    def wait(self, names: list[str], body: bytes) -> None:
        with self._changed:
            wanted = {(name, body) for name in names}
            assert self._changed.wait_for(lambda: wanted <= self.counts.keys(), DEADLINE_S), (
                wanted - self.counts.keys()
            )


@pytest.fixture
def reader(
    private_amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RabbitMQTransport, RabbitMQTransport, Heard]]:
    """A transport that reads all queues but the last one, on 3 channels of their own and 6 shared ones; and
    another transport, which reads the last.
    """
    monkeypatch.setattr(consuming, "OWN_CHANNELS", 3)
    monkeypatch.setattr(consuming, "CONSUMERS_PER_CHANNEL", 6)
    entities: list[Entity] = [Exchange("x", "direct")]
    for name in NAMES:
        entities += [Queue(name=name), Binding("x", name, name), Binding("x", name, "all")]
    with ExitStack() as stack:
        many, other = RabbitMQTransport(private_amqp_url), RabbitMQTransport(private_amqp_url)
        stack.callback(many.close)
        stack.callback(other.close)
        many.declare(entities)
        heard = Heard()
        heard.read(other, NAMES[-1])
        for name in NAMES[:-1]:
            heard.read(many, name)
        yield many, other, heard


Reading = tuple[RabbitMQTransport, RabbitMQTransport, Heard]


def channels(transport: RabbitMQTransport) -> int:
    """On which a transport reads."""
    return len({consumer._consuming for consumer in transport._consumers.values()})


def test_each_gets_its_messages_once_and_all_are_acked(reader: Reading) -> None:
    many, _, heard = reader
    assert channels(many) == 3 + 36 // 6
    for number in range(5):
        many.publish("x", NAMES, b"own %d" % number)
        many.publish("x", ["all"], b"all %d" % number)
    for number in range(5):
        heard.wait(NAMES, b"own %d" % number)
        heard.wait(NAMES, b"all %d" % number)
    assert set(heard.counts.values()) == {1}
    for name in NAMES[:-1]:
        many.cancel(name)
    many.declare([Queue(name="q0")])  # behind the acks and the cancels, on the same connection
    again = Heard()
    for name in NAMES[:-1]:
        again.read(many, name)
    many.publish("x", NAMES, b"end")
    again.wait(NAMES[:-1], b"end")
    assert set(again.counts) == {(name, b"end") for name in NAMES[:-1]}, "nothing was left unacked"


def test_one_that_is_refused_does_not_stop_those_beside_it(reader: Reading) -> None:
    many, other, heard = reader
    with pytest.raises(QueueInUse):
        heard.read(many, NAMES[-1])  # which closes the channel that it was to share
    many.publish("x", ["all"], b"still there")
    heard.wait(NAMES, b"still there")
    other.cancel(NAMES[-1])
    heard.read(many, NAMES[-1])
    many.publish("x", ["all"], b"all of them")
    heard.wait(NAMES, b"all of them")


def test_all_come_back_when_the_connection_was_lost(
    reader: Reading, private_rabbitmq: RabbitMQNode, private_amqp_url: str
) -> None:
    many, _, heard = reader
    back = threading.Event()
    many.on_reconnect(back.set)
    vhost = private_amqp_url.rpartition("/")[2]
    private_rabbitmq.control("close_all_connections", "-p", vhost, "maintenance")
    assert back.wait(DEADLINE_S)
    many.publish("x", ["all"], b"back")
    heard.wait(NAMES, b"back")
    assert channels(many) == 3 + 36 // 6
