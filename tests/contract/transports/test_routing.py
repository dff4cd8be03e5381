"""Which queues a message reaches."""

from __future__ import annotations

import pytest

from broker_fl.interfaces import Transport
from broker_fl.topology import Exchange, Topology
from tests.contract.transports.inbox import DEADLINE_S, Connect, Inbox, collect, make_queues


def test_a_direct_exchange_routes_by_the_exact_key(transport: Transport, name: str) -> None:
    one, two, both = collect(
        transport, make_queues(transport, Exchange(name, "direct"), [["1"], ["2"], ["1", "2"]])
    )
    transport.publish(name, ["1"], b"first")
    transport.publish(name, ["2"], b"second")
    transport.publish(name, ["1.2"], b"third")
    both.stays_at(2)
    assert (one.bodies, two.bodies, both.bodies) == ([b"first"], [b"second"], [b"first", b"second"])


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.inbox", ["site-1.inbox"], ["inbox", "a.b.inbox", "site-1.other"]),
        ("job.#", ["job", "job.x", "job.x.y"], ["jobs", "x.job"]),
        ("#", ["", "a", "a.b"], []),
        ("#.end", ["end", "a.end", "a.b.end"], ["end.a"]),
        ("a.*.#.z", ["a.b.z", "a.b.c.z"], ["a.z", "a.b"]),
    ],
)
def test_a_topic_exchange_routes_by_pattern(
    transport: Transport, name: str, pattern: str, matching: list[str], others: list[str]
) -> None:
    (inbox,) = collect(transport, make_queues(transport, Exchange(name, "topic"), [[pattern]]))
    for key in [*others, *matching]:
        transport.publish(name, [key], key.encode())
    inbox.stays_at(len(matching))
    assert [delivery.routing_key for delivery in inbox.deliveries] == matching


def test_a_fanout_exchange_ignores_the_key(transport: Transport, name: str) -> None:
    inboxes = collect(transport, make_queues(transport, Exchange(name, "fanout"), [[""], ["x"]]))
    transport.publish(name, ["y"], b"all")
    assert [inbox.wait(1)[0].body for inbox in inboxes] == [b"all", b"all"]


def test_a_queue_gets_one_copy_even_if_several_keys_reach_it(transport: Transport, name: str) -> None:
    (inbox,) = collect(transport, make_queues(transport, Exchange(name, "topic"), [["a", "b", "*"]]))
    transport.publish(name, ["a", "b", "c"], b"once")
    inbox.stays_at(1)


def test_one_publish_reaches_two_hundred_and_fifty_queues(transport: Transport, name: str) -> None:
    keys = [f"k{index}" for index in range(250)]
    inboxes = collect(transport, make_queues(transport, Exchange(name, "direct"), [[key] for key in keys]))
    transport.publish(name, keys, b"x" * 1000)
    for inbox in inboxes:
        assert inbox.wait(1)[0].body == b"x" * 1000
    assert transport.flush(DEADLINE_S)
    assert sum(len(inbox.deliveries) for inbox in inboxes) == 250


def test_the_topology_of_a_federation_can_be_declared_twice_by_two_parties(
    connect: Connect, federation: str
) -> None:
    topology = Topology(federation)
    entities = [
        *topology.for_controller(),
        *topology.for_inbox("controller"),
        *topology.for_learner("site-1"),
        *topology.for_driver("d"),
        *topology.for_watcher("w"),
    ]
    connect().declare(entities)
    connect().declare(entities)
    transport = connect()
    inbox, mailbox = Inbox(), Inbox()
    transport.consume(topology.inbox("controller"), inbox, prefetch=1, exclusive=True)
    transport.consume(topology.mailbox("site-1"), mailbox, prefetch=1)
    transport.publish(topology.updates, ["site-1.controller"], b"update", mandatory=True)
    transport.publish(topology.tasks, [topology.ALL_LEARNERS], b"task", mandatory=True)
    assert inbox.wait(1)[0].routing_key == "site-1.controller"
    assert mailbox.wait(1)[0].body == b"task"


def test_every_message_says_which_account_sent_it(connect: Connect, name: str) -> None:
    reader, sender = connect(), connect()
    (inbox,) = collect(reader, make_queues(reader, Exchange(name, "topic"), [["#"]]))
    sender.publish(name, ["somebody.else"], b"from me")
    (delivery,) = inbox.wait(1)
    assert sender.user
    assert delivery.user == sender.user


def test_no_key_reaches_nobody(transport: Transport, queue: str) -> None:
    transport.publish("", [], b"nobody")
    assert transport.flush(DEADLINE_S)
