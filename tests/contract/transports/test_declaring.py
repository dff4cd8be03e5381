"""Queues and exchanges: declared twice, deleted, expired, full."""

from __future__ import annotations

import time
from typing import Any

import pytest

from broker_fl.errors import SettingError
from broker_fl.interfaces import Transport
from broker_fl.topology import Binding, Entity, Exchange, Queue
from tests.contract.transports.inbox import (
    DEADLINE_S,
    QUIET_S,
    Connect,
    Inbox,
    delete,
    in_thread,
    make_queues,
    numbered,
    send,
    wait_for,
)

# ---------------------------------------------------------------- declaring


@pytest.mark.parametrize(
    "other",
    [
        {"expires_s": 30.0},
        {"max_length_bytes": 1000},
        {"overflow": "reject-publish", "max_length_bytes": 10},
        {"quorum": True},
        {"dead_letter_exchange": "x"},
    ],
    ids=str,
)
def test_other_settings_for_what_exists_are_refused_and_named(
    connect: Connect, queue: str, other: dict[str, Any]
) -> None:
    with pytest.raises(SettingError, match=queue):
        connect().declare([Queue(name=queue, **other)])


def test_another_type_for_an_exchange_that_exists_is_refused(transport: Transport, name: str) -> None:
    transport.declare([Exchange(name, "direct")])
    with pytest.raises(SettingError, match=name):
        transport.declare([Exchange(name, "topic")])


def test_a_binding_needs_both_its_ends(transport: Transport, queue: str) -> None:
    with pytest.raises(SettingError):
        transport.declare([Binding(f"{queue}.missing", queue, "k")])


def test_deleting_a_queue_takes_its_messages_and_works_without_a_queue(
    transport: Transport, name: str
) -> None:
    transport.delete_queue(name)
    transport.declare([Queue(name=name)])
    send(transport, name, b"x")
    transport.delete_queue(name)
    transport.declare([Queue(name=name)])
    inbox = Inbox()
    transport.consume(name, inbox, prefetch=1)
    inbox.stays_at(0)
    transport.delete_queue(name)
    with pytest.raises(SettingError):
        transport.consume(name, inbox, prefetch=1)


def test_an_exchange_that_was_deleted_is_gone_for_all_and_with_it_the_dead_letters(
    connect: Connect, name: str
) -> None:
    """A queue that names it stays as it is, also for whoever declares it after that."""
    transport, other, dead = connect(), connect(), f"{name}.dead"
    transport.delete_exchange(dead)
    entities = with_dead_letters(name, message_ttl_s=60.0)
    transport.declare(entities)
    other.delete_exchange(dead)
    transport.declare([entity for entity in entities if isinstance(entity, Queue)])
    transport.delete_exchange(dead)
    with pytest.raises(SettingError, match=dead):
        transport.declare([Binding(dead, dead)])
    letters, inbox = Inbox(), Inbox(ack=False)
    transport.consume(dead, letters, prefetch=10)
    transport.consume(name, inbox, prefetch=1)
    send(other, name, b"x")
    inbox.wait(1)[0].reject()
    letters.stays_at(0)
    delete(transport, name, dead)


def test_a_queue_deleted_by_somebody_else_is_made_and_consumed_from_again(
    connect: Connect, name: str
) -> None:
    mine, other = connect(), connect()
    (queue,) = make_queues(mine, Exchange(name, "direct"), [["k"]])
    inbox = Inbox()
    mine.consume(queue, inbox, prefetch=10)
    other.delete_queue(queue)

    def try_again(exchange: str, key: str) -> None:
        assert (exchange, key) == (name, "k")
        other.publish(name, ["k"], b"back", mandatory=True)

    other.on_unroutable(try_again)
    other.publish(name, ["k"], b"back", mandatory=True)
    inbox.wait(1)
    assert inbox.bodies[0] == b"back"


def test_an_unused_queue_expires(connect: Connect, name: str) -> None:
    transport = connect()
    transport.declare([Queue(name=name, expires_s=0.3)])

    def is_gone() -> bool:
        try:
            transport.consume(name, Inbox(), prefetch=1)
        except SettingError:
            return True
        transport.cancel(name)
        return False

    for pause_s in (0.6, 1.2, 2.4, 4.8, 9.6):  # to look is to use it
        time.sleep(pause_s)
        if is_gone():
            return
    pytest.fail("it is still there")


def test_a_used_queue_does_not_expire(connect: Connect, name: str) -> None:
    transport, inbox = connect(), Inbox()

    def is_consumed_from() -> bool:
        transport.declare([Queue(name=name, expires_s=0.2)])
        try:
            transport.consume(name, inbox, prefetch=1)
        except SettingError:  # it has expired before
            return False
        return True

    wait_for(is_consumed_from)
    inbox.stays_at(0)
    time.sleep(0.5)
    send(transport, name, b"still there")
    inbox.wait(1)


# ---------------------------------------------------------------- limits


def with_dead_letters(name: str, **settings: Any) -> list[Entity]:
    dead = f"{name}.dead"
    return [
        Exchange(dead, "fanout"),
        Queue(name=dead, expires_s=60),
        Binding(dead, dead),
        Queue(name=name, dead_letter_exchange=dead, **settings),
    ]


def test_messages_that_expire_are_dead_lettered(transport: Transport, name: str) -> None:
    transport.declare(with_dead_letters(name, message_ttl_s=0.05, expires_s=60))
    dead = Inbox()
    transport.consume(f"{name}.dead", dead, prefetch=10)
    send(transport, name, *numbered(2))
    time.sleep(0.2)
    send(transport, name, b"fresh")  # memory looks at the clock when something happens
    inbox = Inbox()
    transport.consume(name, inbox, prefetch=10)
    dead.wait(2)
    assert dead.bodies[:2] == numbered(2)
    assert inbox.bodies in ([b"fresh"], [])


def test_a_full_queue_drops_its_oldest_messages(transport: Transport, name: str) -> None:
    transport.declare(with_dead_letters(name, max_length_bytes=3000, expires_s=60))
    bodies = [bytes([65 + index]) * 1000 for index in range(5)]
    dead, inbox = Inbox(), Inbox()
    transport.consume(f"{name}.dead", dead, prefetch=10)
    send(transport, name, *bodies)
    dead.stays_at(2)
    transport.consume(name, inbox, prefetch=10)
    inbox.stays_at(3)
    assert (dead.bodies, inbox.bodies) == (bodies[:2], bodies[2:])


def test_a_full_queue_that_refuses_makes_its_publisher_wait_and_loses_nothing(
    connect: Connect, name: str
) -> None:
    sender, reader = connect(), connect()
    sender.declare([Queue(name=name, max_length_bytes=5000, overflow="reject-publish")])
    bodies = [b"%04d" % index * 250 for index in range(40)]

    def publish() -> None:
        for body in bodies:
            sender.publish("", [name], body)

    with in_thread(publish):
        wait_for(lambda: not sender.flush(QUIET_S))
        inbox = Inbox()
        reader.consume(name, inbox, prefetch=2)
        wait_for(lambda: {*inbox.bodies} == {*bodies})
    assert sender.flush(DEADLINE_S)
    reader.delete_queue(name)
