"""What may be published, what is said of what reaches nobody, and what many threads do at once."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from broker_fl.interfaces import Delivery, Transport
from broker_fl.topology import Exchange
from tests.contract.transports.inbox import DEADLINE_S, Connect, Inbox, make_queues, numbered, wait_for


def test_a_mandatory_message_that_reaches_no_queue_is_reported(transport: Transport, name: str) -> None:
    make_queues(transport, Exchange(name, "direct"), [["known"]])
    reported: list[tuple[str, str]] = []
    told = threading.Event()

    def report(exchange: str, routing_key: str) -> None:
        reported.append((exchange, routing_key))
        told.set()

    transport.on_unroutable(report)
    transport.publish(name, ["known"], b"1", mandatory=True)
    transport.publish(name, ["unknown"], b"2")
    transport.publish(name, ["other", "known"], b"3", mandatory=True)
    transport.publish(name, ["unknown"], b"4", mandatory=True)
    assert told.wait(DEADLINE_S)
    assert transport.flush(DEADLINE_S)
    assert reported == [(name, "unknown")]


def test_an_exchange_that_does_not_exist_reaches_no_queue_and_disturbs_nobody(
    transport: Transport, queue: str
) -> None:
    told = threading.Event()
    transport.on_unroutable(lambda exchange, key: told.set())
    inbox = Inbox()
    transport.consume(queue, inbox, prefetch=10)
    transport.publish("", [queue], b"before")
    transport.publish(f"{queue}.missing", ["k"], b"lost", mandatory=True)
    transport.publish("", [queue], b"after")
    assert told.wait(DEADLINE_S)
    assert transport.flush(DEADLINE_S)
    wait_for(lambda: {*inbox.bodies} == {b"before", b"after"})


def test_a_callback_may_call_the_transport(transport: Transport, queue: str, name: str) -> None:
    inbox = Inbox()
    transport.consume(queue, inbox, prefetch=1)
    transport.on_unroutable(lambda exchange, key: transport.publish("", [queue], key.encode()))
    transport.publish("", [f"{name}.nobody"], b"x", mandatory=True)
    assert inbox.wait(1)[0].body == f"{name}.nobody".encode()


@pytest.mark.parametrize(
    "body", [bytearray(b"x"), memoryview(b"x"), "x"], ids=lambda body: type(body).__name__
)
def test_a_body_must_be_bytes(transport: Transport, queue: str, body: Any) -> None:
    with pytest.raises(TypeError, match="bytes"):
        transport.publish("", [queue], body)


def test_a_body_that_no_broker_takes_is_refused_at_once(transport: Transport, queue: str) -> None:
    with pytest.raises(ValueError, match="16777216"):
        transport.publish("", [queue], bytes((16 << 20) + 1))


def test_a_key_that_is_too_long_is_refused_at_once(transport: Transport, queue: str) -> None:
    with pytest.raises(ValueError, match="255"):
        transport.publish("", ["ä" * 128], b"x")


def test_many_threads_publish_and_consume_at_once(connect: Connect, name: str) -> None:
    sender, reader = connect(), connect()
    queues = make_queues(sender, Exchange(name, "direct"), [[str(index)] for index in range(5)])
    inboxes = [Inbox(), Inbox(), Inbox(), Inbox(), Inbox()]
    for queue, inbox in zip(queues, inboxes, strict=True):
        reader.consume(queue, inbox, prefetch=3)

    def publish(thread: int) -> None:
        choose = random.Random(thread)
        for index in range(200):
            sender.publish(name, [str(choose.randrange(5))], b"%d %d" % (thread, index))

    threads = [threading.Thread(target=publish, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sender.flush(DEADLINE_S)
    wait_for(lambda: sum(len(inbox.deliveries) for inbox in inboxes) >= 800)
    bodies = [body for inbox in inboxes for body in inbox.bodies]
    assert sorted(bodies) == sorted(b"%d %d" % (number, index) for number in range(4) for index in range(200))
    for inbox in inboxes:
        for number in range(4):
            mine = [int(body.split()[1]) for body in inbox.bodies if body.startswith(b"%d " % number)]
            assert mine == sorted(mine), "one thread's messages to one queue stay in order"


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_done_with_deliveries_each_message_is_settled_once(
    connect: Connect, queue: str, seed: int
) -> None:
    choose = random.Random(seed)
    acked: list[bytes] = []
    lock = threading.Lock()

    def sink(delivery: Delivery) -> None:
        with lock:
            if choose.random() < 0.3 and not delivery.redelivered:
                delivery.reject(requeue=True)
                return
            delivery.ack()
            acked.append(delivery.body)

    transports = [connect(), connect()]
    for transport in transports:
        transport.consume(queue, sink, prefetch=choose.randrange(1, 20))
    bodies = numbered(200)
    for body in bodies:
        transports[0].publish("", [queue], body)
    wait_for(lambda: len(acked) >= 200)
    assert sorted(acked) == sorted(bodies)
    for transport in transports:
        transport.cancel(queue)
    left = Inbox()
    transports[0].consume(queue, left, prefetch=1)
    left.stays_at(0)
