"""In which order messages come, how many at a time, and what a consumer may answer."""

from __future__ import annotations

import random
import threading

import pytest

from broker_fl.interfaces import Delivery, Transport
from broker_fl.topology import Binding, Exchange, Queue
from tests.contract.transports.inbox import Connect, Inbox, make_queues, numbered, send


def test_messages_arrive_in_the_order_in_which_they_were_published(transport: Transport, queue: str) -> None:
    inbox = Inbox()
    transport.consume(queue, inbox, prefetch=7)
    bodies = numbered(500)
    for body in bodies:
        transport.publish("", [queue], body, persistent=True)
    inbox.stays_at(500)
    assert inbox.bodies == bodies
    assert not any(delivery.redelivered for delivery in inbox.deliveries)


@pytest.mark.parametrize("size", [0, 1, 100_000, 4_000_000])
def test_a_body_arrives_as_it_was_sent(transport: Transport, queue: str, size: int) -> None:
    inbox = Inbox()
    transport.consume(queue, inbox, prefetch=1)
    body = random.Random(size).randbytes(size)
    transport.publish("", [queue], body)
    assert inbox.wait(1)[0].body == body


def test_no_more_than_prefetch_messages_are_out_at_a_time(transport: Transport, queue: str) -> None:
    inbox = Inbox(ack=False)
    transport.consume(queue, inbox, prefetch=3)
    send(transport, queue, *numbered(10))
    inbox.stays_at(3)
    inbox.deliveries[1].ack()
    inbox.stays_at(4)
    for delivery in list(inbox.deliveries):
        delivery.ack()  # one of them for the second time: nothing happens
    inbox.stays_at(7)
    assert inbox.bodies == numbered(7)


def test_prefetch_is_counted_for_each_consumer(transport: Transport, name: str) -> None:
    names = make_queues(transport, Exchange(name, "direct"), [["a"], ["b"]])
    inboxes = [Inbox(ack=False), Inbox(ack=False)]
    for queue, inbox, prefetch in zip(names, inboxes, [1, 2], strict=True):
        transport.consume(queue, inbox, prefetch=prefetch)
        send(transport, queue, *numbered(5))
    inboxes[0].stays_at(1)
    inboxes[1].stays_at(2)


def test_a_message_can_be_acked_on_any_thread_in_any_order(transport: Transport, queue: str) -> None:
    inbox = Inbox(ack=False)
    transport.consume(queue, inbox, prefetch=100)
    send(transport, queue, *numbered(100))
    deliveries = list(inbox.wait(100))
    random.Random(3).shuffle(deliveries)
    threads = [
        threading.Thread(target=lambda part=part: [d.ack() for d in part])
        for part in (deliveries[::2], deliveries[1::2])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    send(transport, queue, *numbered(100))
    inbox.stays_at(200)


def test_a_requeued_message_comes_again_before_those_behind_it(connect: Connect, queue: str) -> None:
    first, second = connect(), connect()
    inbox, again = Inbox(ack=False), Inbox()
    first.consume(queue, inbox, prefetch=3)
    send(first, queue, *numbered(5))
    inbox.wait(3)
    first.cancel(queue)
    for index in (1, 0, 2):
        inbox.deliveries[index].reject(requeue=True)
    assert_empty_soon(inbox)
    second.consume(queue, again, prefetch=10)
    again.wait(5)
    # The three settlements are one after the other: the second consumer may be faster than some of them.
    assert sorted(again.bodies) == numbered(5)
    assert [delivery.redelivered for delivery in sorted(again.deliveries, key=lambda d: d.body)] == [
        True
    ] * 3 + [False] * 2


def assert_empty_soon(inbox: Inbox) -> None:
    inbox.stays_at(len(inbox.deliveries))


def test_a_requeued_message_goes_back_to_its_place(transport: Transport, queue: str) -> None:
    inbox = Inbox(ack=False)
    transport.consume(queue, inbox, prefetch=1)
    send(transport, queue, *numbered(2))
    inbox.wait(1)
    inbox.deliveries[0].reject(requeue=True)
    inbox.wait(2)
    assert (inbox.deliveries[1].body, inbox.deliveries[1].redelivered) == (b"0", True)
    inbox.deliveries[1].ack()
    assert inbox.wait(3)[2].body == b"1"


def test_a_rejected_message_is_dead_lettered_with_its_key(transport: Transport, name: str) -> None:
    dead = f"{name}.dead"
    transport.declare(
        [
            Exchange(dead, "fanout"),
            Queue(name=dead, expires_s=60),
            Binding(dead, dead),
            Queue(name=name, expires_s=60, dead_letter_exchange=dead),
        ]
    )
    inbox, dead_inbox = Inbox(ack=False), Inbox()
    transport.consume(name, inbox, prefetch=10)
    transport.consume(dead, dead_inbox, prefetch=10)
    send(transport, name, b"bad", b"good")
    inbox.wait(2)
    inbox.deliveries[0].reject()
    inbox.deliveries[1].ack()
    dead_inbox.stays_at(1)
    assert (dead_inbox.deliveries[0].body, dead_inbox.deliveries[0].routing_key) == (b"bad", name)


def test_what_is_handed_back_comes_to_the_next_consumer_and_is_settled_there(
    connect: Connect, queue: str
) -> None:
    first, second = connect(), connect()
    held, after = Inbox(ack=False), Inbox(ack=False)
    first.consume(queue, held, prefetch=10)
    send(first, queue, *numbered(5))
    held.wait(5)[0].ack()
    first.cancel(queue, hand_back=True)
    second.consume(queue, after, prefetch=10)
    after.stays_at(4)
    assert sorted(after.bodies) == numbered(5)[1:]
    for delivery in held.deliveries[1:3]:
        delivery.ack()  # too late: nothing happens
    for delivery in held.deliveries[3:]:
        delivery.reject()
    again = Inbox()
    second.cancel(queue, hand_back=True)
    first.consume(queue, again, prefetch=10)
    again.stays_at(4)


def test_handing_back_one_queue_leaves_what_others_hold(connect: Connect, name: str) -> None:
    """Of many consumers, some share a channel."""
    first, second = connect(), connect()
    names = make_queues(first, Exchange(name, "direct"), [[str(number)] for number in range(18)])
    inboxes = [Inbox(ack=False) for _ in names]
    for queue, inbox in zip(names, inboxes, strict=True):
        first.consume(queue, inbox, prefetch=2)
        send(first, queue, *numbered(1))
    for inbox in inboxes:
        inbox.wait(1)
    first.cancel(names[-1], hand_back=True)
    gone, kept = Inbox(), Inbox()
    second.consume(names[-1], gone, prefetch=2)
    second.consume(names[-2], kept, prefetch=2)
    gone.wait(1)
    kept.stays_at(0)
    first.cancel(names[-2])
    inboxes[-2].deliveries[0].ack()
    kept.stays_at(0)


def test_a_rejected_message_without_a_dead_letter_exchange_is_gone(connect: Connect, queue: str) -> None:
    transport, inbox = connect(), Inbox(ack=False)
    transport.consume(queue, inbox, prefetch=1)
    send(transport, queue, *numbered(2))
    inbox.wait(1)[0].reject()
    inbox.stays_at(2)
    inbox.deliveries[1].ack()
    inbox.stays_at(2)


def test_a_sink_that_raises_rejects_its_message_and_gets_the_next(transport: Transport, queue: str) -> None:
    got = Inbox()

    def sink(delivery: Delivery) -> None:
        if delivery.body == b"0":
            raise RuntimeError("a defect")
        got(delivery)

    transport.consume(queue, sink, prefetch=1)
    send(transport, queue, *numbered(3))
    got.stays_at(2)
