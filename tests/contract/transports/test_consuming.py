"""Who may consume, and what becomes of messages when a consumer ends."""

from __future__ import annotations

import pytest

from broker_fl.errors import AccessDenied, SettingError, TransportClosed
from broker_fl.interfaces import Transport
from broker_fl.topology import Exchange, Queue
from tests.contract.transports.inbox import Connect, Inbox, make_queues, numbered, send

# ---------------------------------------------------------------- close, cancel


def test_what_was_not_acked_before_close_comes_again_in_order(connect: Connect, queue: str) -> None:
    first, second = connect(), connect()
    inbox, again = Inbox(ack=False), Inbox()
    first.consume(queue, inbox, prefetch=4)
    send(second, queue, *numbered(6))
    inbox.stays_at(4)
    inbox.deliveries[1].ack()
    inbox.stays_at(5)
    first.close()
    inbox.deliveries[2].ack()  # too late: nothing happens
    second.consume(queue, again, prefetch=10)
    again.stays_at(5)
    assert again.bodies == [b"0", b"2", b"3", b"4", b"5"]
    assert [delivery.redelivered for delivery in again.deliveries] == [True, True, True, True, False]


def test_close_sends_what_was_published(connect: Connect, queue: str) -> None:
    first, second = connect(), connect()
    for body in numbered(300):
        first.publish("", [queue], body)
    first.close()
    inbox = Inbox()
    second.consume(queue, inbox, prefetch=300)
    assert [delivery.body for delivery in inbox.wait(300)] == numbered(300)


def test_a_closed_transport_says_so(connect: Connect, queue: str) -> None:
    transport = connect()
    transport.close()
    transport.close()
    with pytest.raises(TransportClosed):
        transport.publish("", [queue], b"")
    with pytest.raises(TransportClosed):
        transport.declare([Queue(name=queue)])
    with pytest.raises(TransportClosed):
        transport.consume(queue, Inbox(), prefetch=1)


def test_after_cancel_nothing_comes_and_what_came_can_be_acked(connect: Connect, queue: str) -> None:
    first, second = connect(), connect()
    inbox, again = Inbox(ack=False), Inbox()
    first.consume(queue, inbox, prefetch=2)
    send(first, queue, *numbered(4))
    inbox.stays_at(2)
    first.cancel(queue)
    inbox.deliveries[0].ack()
    inbox.stays_at(2)
    first.close()
    second.consume(queue, again, prefetch=10)
    again.stays_at(3)
    assert again.bodies == [b"1", b"2", b"3"]


def test_one_can_consume_again_after_cancel(transport: Transport, queue: str) -> None:
    for round in range(3):
        inbox = Inbox()
        transport.consume(queue, inbox, prefetch=1)
        send(transport, queue, b"%d" % round)
        assert inbox.wait(1)[0].body == b"%d" % round
        transport.cancel(queue)
    transport.cancel(queue)


# ---------------------------------------------------------------- who may consume


def test_a_queue_has_one_exclusive_consumer(connect: Connect, queue: str) -> None:
    first, second = connect(), connect()
    first.consume(queue, Inbox(), prefetch=1, exclusive=True)
    with pytest.raises(AccessDenied, match=queue):
        second.consume(queue, Inbox(), prefetch=1, exclusive=True)
    with pytest.raises(AccessDenied, match=queue):
        second.consume(queue, Inbox(), prefetch=1)
    first.cancel(queue)
    inbox = Inbox()
    second.consume(queue, inbox, prefetch=1, exclusive=True)
    send(first, queue, b"x")
    inbox.wait(1)


def test_a_refused_consumer_leaves_the_others_alone(connect: Connect, name: str) -> None:
    first, second = connect(), connect()
    mine, taken = make_queues(first, Exchange(name, "direct"), [["a"], ["b"]])
    inbox = Inbox(ack=False)
    second.consume(mine, inbox, prefetch=5)
    send(first, mine, b"1")
    inbox.wait(1)
    first.consume(taken, Inbox(), prefetch=1, exclusive=True)
    with pytest.raises(AccessDenied):
        second.consume(taken, Inbox(), prefetch=1)
    with pytest.raises(SettingError):
        second.consume(f"{name}.missing", Inbox(), prefetch=1)
    inbox.deliveries[0].ack()
    send(first, mine, b"2")
    inbox.stays_at(2)
    assert not inbox.deliveries[1].redelivered


def test_consuming_twice_from_one_queue_is_refused(transport: Transport, queue: str) -> None:
    transport.consume(queue, Inbox(), prefetch=1)
    with pytest.raises(SettingError, match="already"):
        transport.consume(queue, Inbox(), prefetch=1)


def test_a_queue_that_does_not_exist_cannot_be_consumed_from(transport: Transport, name: str) -> None:
    with pytest.raises(SettingError, match=name):
        transport.consume(name, Inbox(), prefetch=1)


@pytest.mark.parametrize("prefetch", [0, -1, 65536])
def test_a_prefetch_out_of_range_is_refused(transport: Transport, queue: str, prefetch: int) -> None:
    with pytest.raises(ValueError, match="prefetch"):
        transport.consume(queue, Inbox(), prefetch=prefetch)


def test_several_consumers_of_a_queue_share_its_messages(connect: Connect, queue: str) -> None:
    transports = [connect(), connect()]
    inboxes = [Inbox(ack=False), Inbox(ack=False)]
    for transport, inbox in zip(transports, inboxes, strict=True):
        transport.consume(queue, inbox, prefetch=5)
    send(transports[0], queue, *numbered(10))
    for inbox in inboxes:
        inbox.stays_at(5)
    assert sorted(inboxes[0].bodies + inboxes[1].bodies) == numbered(10)


def test_a_single_active_consumer_is_followed_by_the_next(connect: Connect, name: str) -> None:
    first, second, sender = connect(), connect(), connect()
    sender.declare([Queue(name=name, quorum=True, single_active_consumer=True)])
    one, two = Inbox(ack=False), Inbox()
    first.consume(name, one, prefetch=1)
    second.consume(name, two, prefetch=1)
    send(sender, name, *numbered(3))
    one.stays_at(1)
    assert not two.deliveries
    first.close()
    two.stays_at(3)
    # RabbitMQ 3.10 activates the next consumer before it has taken back what the last one held.
    assert sorted(two.bodies) == numbered(3)
    assert [delivery.body for delivery in two.deliveries if delivery.redelivered] == [b"0"]
    sender.delete_queue(name)


def test_a_single_active_consumer_needs_a_quorum_queue(transport: Transport, name: str) -> None:
    with pytest.raises(SettingError, match="quorum"):
        transport.declare([Queue(name=name, single_active_consumer=True)])
