"""What `Transport` promises, over every implementation of it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from broker_fl.errors import AccessDenied, SettingError, TransportClosed
from broker_fl.interfaces import Delivery, Transport
from broker_fl.simulation.link import LinkedTransport
from broker_fl.topology import Binding, Entity, Exchange, Queue, Topology
from broker_fl.transports.memory import MemoryBroker
from broker_fl.transports.rabbitmq import RabbitMQTransport

DEADLINE_S = 20.0
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


@pytest.fixture(params=["memory", "linked", "rabbitmq"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes transports to one empty broker, and closes them."""
    opened: list[Transport] = []
    broker = MemoryBroker()
    if request.param == "memory":
        make: Connect = broker.connect
    elif request.param == "linked":

        def make() -> Transport:
            return LinkedTransport(broker.connect(), down_bytes_s=1e8, up_bytes_s=1e8, latency_s=0.001)
    else:
        url = request.getfixturevalue("amqp_url")

        def make() -> Transport:
            return RabbitMQTransport(url)

    def connect() -> Transport:
        opened.append(make())
        return opened[-1]

    yield connect
    for transport in opened:
        transport.close()


@pytest.fixture
def transport(connect: Connect) -> Transport:
    return connect()


@pytest.fixture
def name(federation: str) -> str:
    """The queue of most tests."""
    return f"bfl.{federation}.queue"


@pytest.fixture
def queue(transport: Transport, name: str) -> Iterator[str]:
    """A plain queue."""
    transport.declare([Queue(name=name)])
    yield name
    _delete(transport, name)


def _delete(transport: Transport, *names: str) -> None:
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


# ---------------------------------------------------------------- routing


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


# ---------------------------------------------------------------- order, prefetch, settling


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
    entities = with_dead_letters(name, message_ttl_s=0.05)
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
    _delete(transport, name, dead)


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

    time.sleep(0.6)
    assert is_gone()


def test_a_used_queue_does_not_expire(connect: Connect, name: str) -> None:
    transport, inbox = connect(), Inbox()
    transport.declare([Queue(name=name, expires_s=0.2)])
    transport.consume(name, inbox, prefetch=1)
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


# ---------------------------------------------------------------- publishing


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
