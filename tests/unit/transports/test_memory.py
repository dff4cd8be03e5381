"""What only the memory broker promises: time is an argument, and no thread starts without need."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from broker_fl.errors import SettingError
from broker_fl.interfaces import Delivery
from broker_fl.topology import INBOX_MAX_BYTES, MAILBOX_MAX_BYTES, Binding, Exchange, Queue
from broker_fl.transports.memory import MemoryBroker
from broker_fl.wire.handed import MAX_COUNTED_BYTES, WHOLE, Handed
from broker_fl.wire.messages import EventBatch, ModelChunk


class Clock:
    """Time as a test wants it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(clock: Clock) -> MemoryBroker:
    return MemoryBroker(clock)


def test_a_queue_expires_when_nobody_has_consumed_from_it_for_so_long(
    broker: MemoryBroker, clock: Clock
) -> None:
    transport = broker.connect()
    transport.declare([Queue(name="q", expires_s=10)])
    clock.now_s += 9.9
    transport.declare([Queue(name="q", expires_s=10)])  # a new lease
    clock.now_s += 9.9
    transport.consume("q", lambda delivery: None, prefetch=1)
    clock.now_s += 100
    transport.cancel("q")
    clock.now_s += 9.9
    transport.consume("q", lambda delivery: None, prefetch=1)
    transport.cancel("q")
    clock.now_s += 10
    with pytest.raises(SettingError, match="no queue"):
        transport.consume("q", lambda delivery: None, prefetch=1)
    transport.close()


def test_messages_expire_at_their_time_and_in_order(broker: MemoryBroker, clock: Clock) -> None:
    transport = broker.connect()
    transport.declare(
        [
            Exchange("dead", "fanout"),
            Queue(name="dead"),
            Binding("dead", "dead"),
            Queue(name="q", message_ttl_s=10, dead_letter_exchange="dead"),
        ]
    )
    transport.publish("", ["q"], b"0")
    clock.now_s += 5
    transport.publish("", ["q"], b"1")
    clock.now_s += 5
    broker.tick()
    assert (broker.depth("q"), broker.depth("dead")) == (1, 1)
    clock.now_s += 5
    assert (broker.depth("q"), broker.depth("dead")) == (0, 2)


def test_a_message_that_was_out_when_its_time_came_expires_when_it_is_put_back(
    broker: MemoryBroker, clock: Clock
) -> None:
    transport = broker.connect()
    transport.declare([Queue(name="q", message_ttl_s=10)])
    got: list[Delivery] = []
    arrived = threading.Event()

    def sink(delivery: Delivery) -> None:
        got.append(delivery)
        arrived.set()

    transport.consume("q", sink, prefetch=1)
    transport.publish("", ["q"], b"0")
    assert arrived.wait(60)
    clock.now_s += 11
    transport.cancel("q")
    got[0].reject(requeue=True)
    assert broker.depth("q") == 0
    transport.close()


def test_messages_that_would_be_dead_lettered_for_ever_end(broker: MemoryBroker) -> None:
    transport = broker.connect()
    transport.declare(
        [
            Exchange("x", "fanout"),
            Queue(name="a", max_length_bytes=5, dead_letter_exchange="x"),
            Queue(name="b", max_length_bytes=5, dead_letter_exchange="x"),
            Binding("x", "a"),
            Binding("x", "b"),
        ]
    )
    transport.publish("x", [""], b"longer than both")
    assert (broker.depth("a"), broker.depth("b")) == (0, 0)


def test_a_body_is_shared_and_not_copied(broker: MemoryBroker) -> None:
    transport = broker.connect()
    transport.declare(
        [Exchange("x", "fanout"), *(Queue(name=name) for name in "ab"), Binding("x", "a"), Binding("x", "b")]
    )
    got: list[bytes] = []
    both = threading.Semaphore(0)

    def sink(delivery: Delivery) -> None:
        got.append(delivery.body)
        both.release()

    for name in "ab":
        transport.consume(name, sink, prefetch=1)
    body = bytes(1000)
    transport.publish("x", [""], body)
    assert both.acquire(timeout=60)
    assert both.acquire(timeout=60)
    assert got[0] is body
    assert got[1] is body
    transport.close()


def test_a_transport_that_only_publishes_has_no_thread(broker: MemoryBroker) -> None:
    before = set(threading.enumerate())
    transport = broker.connect()
    transport.declare([Queue(name="q")])
    transport.publish("", ["q"], b"")
    assert set(threading.enumerate()) <= before, "others may have ended meanwhile"
    transport.close()


def test_a_publisher_that_waits_for_a_full_queue_does_not_hold_up_another(broker: MemoryBroker) -> None:
    transport, other = broker.connect(), broker.connect()
    transport.declare([Queue(name="full", max_length_bytes=1, overflow="reject-publish"), Queue(name="q")])
    transport.publish("", ["full"], b"1")
    thread = threading.Thread(target=transport.publish, args=("", ["full"], b"2"))
    thread.start()
    while transport.flush(0.01):
        pass
    transport.publish("", ["q"], b"free")
    assert broker.depth("q") == 1
    other.delete_queue("full")
    thread.join(60)
    assert not thread.is_alive()
    assert transport.flush(60)


def handed(num_bytes: int) -> Handed:
    chunk = ModelChunk(job="j", version=0, **WHOLE)
    return Handed.over(chunk, np.zeros(num_bytes, np.uint8))


def test_models_that_are_handed_over_count_with_their_bytes(broker: MemoryBroker) -> None:
    """Else who does not read keeps every version in memory."""
    transport = broker.connect(hands_over=True)
    transport.declare([Queue(name="mail", max_length_bytes=100_000)])
    for _ in range(20):
        transport.hand_over("", ["mail"], handed(30_000))
    assert broker.depth("mail") == 3
    assert min(MAILBOX_MAX_BYTES, INBOX_MAX_BYTES) > MAX_COUNTED_BYTES, "the largest model has room"
    transport.close()


def test_events_that_are_handed_over_count_with_their_bytes(broker: MemoryBroker) -> None:
    transport = broker.connect(hands_over=True)
    transport.declare([Queue(name="watcher", max_length_bytes=100_000)])
    for _ in range(20):
        transport.hand_over("", ["watcher"], Handed(EventBatch(job="j", events=(bytes(20_000),) * 2)))
    assert broker.depth("watcher") == 2
    transport.close()


def test_who_hands_over_waits_for_room(broker: MemoryBroker) -> None:
    transport, other = broker.connect(hands_over=True), broker.connect()
    transport.declare([Queue(name="inbox", max_length_bytes=50_000, overflow="reject-publish")])
    transport.hand_over("", ["inbox"], handed(30_000))
    thread = threading.Thread(target=transport.hand_over, args=("", ["inbox"], handed(30_000)))
    thread.start()
    while transport.flush(0.01):
        pass
    other.delete_queue("inbox")
    thread.join(60)
    assert not thread.is_alive()
    transport.close()
