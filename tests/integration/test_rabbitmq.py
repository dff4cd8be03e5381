"""The RabbitMQ transport when things go wrong: the broker is killed, frozen, short of memory, or says no."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker_fl.errors import AccessDenied, BrokerUnavailable, SettingError, TransportClosed
from broker_fl.interfaces import Delivery
from broker_fl.topology import Binding, Entity, Exchange, Queue
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.workers.servers import RabbitMQNode
from broker_fl.workers.servers.process import free_port

DEADLINE_S = 60.0


@pytest.fixture
def connect() -> Iterator[Callable[..., RabbitMQTransport]]:
    """Makes transports, and closes them."""
    opened: list[RabbitMQTransport] = []

    def connect(url: str, **settings: Any) -> RabbitMQTransport:
        opened.append(RabbitMQTransport(url, **settings))
        return opened[-1]

    yield connect
    for transport in opened:
        transport.close()


Connect = Callable[..., RabbitMQTransport]


class Seen:
    """A sink that acks and remembers which bodies came."""

    def __init__(self) -> None:
        self.bodies: set[bytes] = set()
        self._changed = threading.Condition()

    def __call__(self, delivery: Delivery) -> None:
        with self._changed:
            self.bodies.add(delivery.body)
            self._changed.notify_all()
        delivery.ack()

    def wait(self, bodies: set[bytes]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: bodies <= self.bodies, DEADLINE_S), len(
                bodies - self.bodies
            )

    def wait_for_any(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.bodies) >= count, DEADLINE_S)


def wait_for(condition: Callable[[], bool]) -> None:
    """For conditions that nothing announces."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


# ---------------------------------------------------------------- lost connections


def test_a_killed_broker_loses_no_persistent_message(
    private_rabbitmq: RabbitMQNode, private_amqp_url: str, connect: Connect
) -> None:
    sender, reader = connect(private_amqp_url, name="sender"), connect(private_amqp_url, name="reader")
    back = [threading.Event(), threading.Event()]
    sender.on_reconnect(back[0].set)
    reader.on_reconnect(back[1].set)
    entities: list[Entity] = [Exchange("x", "topic"), Queue(name="q"), Binding("x", "q", "#")]
    sender.declare(entities)
    reader.declare(entities)
    seen, sent, stop = Seen(), set[bytes](), threading.Event()
    reader.consume("q", seen, prefetch=20)

    def publish() -> None:
        while not stop.is_set():
            body = b"%06d" % len(sent)
            sender.publish("x", ["key"], body, persistent=True)
            sent.add(body)
            stop.wait(0.002)

    thread = threading.Thread(target=publish)
    thread.start()
    seen.wait_for_any(100)
    private_rabbitmq.kill()
    private_rabbitmq.start()
    assert all(event.wait(DEADLINE_S) for event in back)
    stop.set()
    thread.join()
    assert sender.flush(DEADLINE_S)
    seen.wait(sent)


def test_a_connection_that_an_operator_closes_comes_back(
    private_rabbitmq: RabbitMQNode, private_amqp_url: str, connect: Connect
) -> None:
    transport, seen, back = connect(private_amqp_url), Seen(), threading.Semaphore(0)
    transport.on_reconnect(back.release)
    transport.declare([Queue(name="q")])
    held: list[Delivery] = []
    transport.consume(
        "q", lambda d: held.append(d) if d.body == b"held" and not d.redelivered else seen(d), prefetch=5
    )
    transport.publish("", ["q"], b"held")
    transport.publish("", ["q"], b"before")
    seen.wait({b"before"})
    vhost = private_amqp_url.rpartition("/")[2]
    for _ in range(2):
        private_rabbitmq.control("close_all_connections", "-p", vhost, "maintenance")
        assert back.acquire(timeout=DEADLINE_S)
    held[0].ack()  # of a connection that is gone: nothing happens
    transport.publish("", ["q"], b"after")
    seen.wait({b"held", b"before", b"after"})
    assert not back.acquire(timeout=0.2), "once for each time, although there are two connections"


def test_a_frozen_broker_is_noticed_by_its_heartbeats_and_found_again(
    private_rabbitmq: RabbitMQNode, private_amqp_url: str, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    transport, seen, back = (
        connect(private_amqp_url, heartbeat_s=2),
        Seen(),
        threading.Event(),
    )
    transport.on_reconnect(back.set)
    transport.declare([Queue(name="q")])
    transport.consume("q", seen, prefetch=5)
    private_rabbitmq.freeze()
    try:
        transport.publish("", ["q"], b"meanwhile")
        wait_for(lambda: "consume' lost" in caplog.text and "publish' lost" in caplog.text)
        assert not transport.flush(0)
    finally:
        private_rabbitmq.thaw()
    assert back.wait(DEADLINE_S)
    seen.wait({b"meanwhile"})


def test_consumers_and_their_queues_come_back_even_if_the_broker_forgot_them(
    private_rabbitmq: RabbitMQNode, private_amqp_url: str, connect: Connect
) -> None:
    transport, other, seen = connect(private_amqp_url), connect(private_amqp_url), Seen()
    transport.declare([Exchange("x", "direct"), Queue(name="q"), Binding("x", "q", "k")])
    transport.consume("q", seen, prefetch=5)
    back = threading.Event()
    transport.on_reconnect(back.set)
    vhost = private_amqp_url.rpartition("/")[2]
    private_rabbitmq.delete_vhost(vhost)
    private_rabbitmq.add_vhost(vhost)
    assert back.wait(DEADLINE_S)
    transport.publish("x", ["k"], b"new")
    seen.wait({b"new"})
    other.close()


def test_queues_deleted_while_others_declare_them_are_read_on(
    private_amqp_url: str, connect: Connect
) -> None:
    """RabbitMQ 3.10.8 subscribed again by itself to a tenth of them, and delivered nothing any more."""
    reader, owner, operator = connect(private_amqp_url), connect(private_amqp_url), connect(private_amqp_url)
    names = [f"q{index}" for index in range(40)]
    entities: dict[str, list[Entity]] = {name: [Queue(name=name), Binding("x", name, name)] for name in names}
    seen = {name: Seen() for name in names}
    owner.declare([Exchange("x", "direct")])
    for index, name in enumerate(names):
        owner.declare(entities[name])
        reader.consume(name, seen[name], prefetch=5, exclusive=True)
        deleting = threading.Thread(target=operator.delete_queue, args=[name])
        deleting.start()
        time.sleep(0.0005 * (index % 10))  # not for luck: any moment of the deletion has to be met once
        for _ in range(3):
            with contextlib.suppress(SettingError):  # gone between the queue and its binding
                owner.declare(entities[name])
        deleting.join()
        owner.declare(entities[name])
    for name in names:
        owner.publish("x", [name], b"after")
    for name in names:
        seen[name].wait({b"after"})


def test_a_quorum_queue_can_be_read_by_who_did_not_declare_it(
    private_amqp_url: str, connect: Connect
) -> None:
    owner, reader, seen = connect(private_amqp_url), connect(private_amqp_url), Seen()
    owner.declare([Exchange("x", "direct"), Queue(name="q", quorum=True), Binding("x", "q", "k")])
    reader.consume("q", seen, prefetch=5)
    owner.publish("x", ["k"], b"new", persistent=True)
    seen.wait({b"new"})


# ---------------------------------------------------------------- publishers that must wait


def test_a_full_window_blocks_publishers_until_the_broker_confirms(
    private_rabbitmq: RabbitMQNode, private_amqp_url: str, connect: Connect
) -> None:
    transport = connect(private_amqp_url, window_bytes=3_000_000)
    transport.declare([Queue(name="q")])
    done: list[int] = []

    def publish() -> None:
        for index in range(6):
            transport.publish("", ["q"], bytes(1_000_000))
            done.append(index)

    private_rabbitmq.freeze()
    try:
        thread = threading.Thread(target=publish)
        thread.start()
        wait_for(lambda: len(done) == 2)
        thread.join(0.5)
        assert len(done) == 2  # 256 bytes are counted for each message
        assert not transport.flush(0.1)
    finally:
        private_rabbitmq.thaw()
    thread.join(DEADLINE_S)
    assert len(done) == 6
    assert transport.flush(DEADLINE_S)


def test_a_body_larger_than_the_window_goes_alone(private_amqp_url: str, connect: Connect) -> None:
    transport, seen = connect(private_amqp_url, window_bytes=1000), Seen()
    transport.declare([Queue(name="q")])
    transport.consume("q", seen, prefetch=5)
    bodies = {bytes([65 + index]) * 4_000_000 for index in range(3)}
    for body in bodies:
        transport.publish("", ["q"], body)
    seen.wait(bodies)


def test_a_memory_alarm_makes_publishers_wait_while_consumers_go_on(
    private_rabbitmq: RabbitMQNode, private_amqp_url: str, connect: Connect
) -> None:
    transport, seen = connect(private_amqp_url), Seen()
    transport.declare([Queue(name="q")])
    for index in range(20):
        transport.publish("", ["q"], b"%d" % index)
    assert transport.flush(DEADLINE_S)
    private_rabbitmq.control("set_vm_memory_high_watermark", "0.000001")
    try:
        transport.publish("", ["q"], b"during")
        assert not transport.flush(0.5)
        transport.consume("q", seen, prefetch=2)
        seen.wait({b"%d" % index for index in range(20)})
        assert b"during" not in seen.bodies
    finally:
        private_rabbitmq.control("set_vm_memory_high_watermark", "0.6")
    assert transport.flush(DEADLINE_S)
    seen.wait({b"during"})


def test_close_does_not_wait_for_a_broker_that_is_gone_and_wakes_publishers(
    private_rabbitmq: RabbitMQNode, private_amqp_url: str
) -> None:
    transport = RabbitMQTransport(private_amqp_url, window_bytes=1000)
    transport.declare([Queue(name="q")])
    woken = threading.Event()

    def publish() -> None:
        try:
            while True:
                transport.publish("", ["q"], bytes(900))
        except TransportClosed:
            woken.set()

    private_rabbitmq.freeze()
    try:
        thread = threading.Thread(target=publish)
        thread.start()
        thread.join(0.3)
        closing = threading.Thread(target=transport.close)
        closing.start()
        closing.join(DEADLINE_S)
        assert not closing.is_alive(), "the broker stays frozen until it ends"
        assert woken.wait(DEADLINE_S)
    finally:
        private_rabbitmq.thaw()


# ---------------------------------------------------------------- refusals


def account(node: RabbitMQNode, url: str, *, write: str = ".*", read: str = ".*") -> str:
    """The URL for a user `limited` with the password `p@ss/w:rd%` and these permissions."""
    vhost = url.rpartition("/")[2]
    if "limited" not in node.control("list_users"):
        node.control("add_user", "limited", "p@ss/w:rd%")
    node.control("set_permissions", "-p", vhost, "limited", ".*", write, read)
    return f"amqp://limited:p%40ss%2Fw%3Ard%25@127.0.0.1:{node.port}/{vhost}"


def test_a_password_may_have_any_character(
    private_rabbitmq: RabbitMQNode, private_amqp_url: str, connect: Connect
) -> None:
    transport = connect(account(private_rabbitmq, private_amqp_url))
    transport.declare([Queue(name="q")])


def test_a_wrong_password_is_named_and_not_shown(
    private_amqp_url: str, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    head, _, tail = private_amqp_url.rpartition("@")
    user = head.split("//")[1].split(":")[0]
    with pytest.raises(AccessDenied, match=f"{user}.*password is wrong.*change_password") as caught:
        connect(f"amqp://{user}:s3cret-word@{tail}")
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in caplog.text


def test_a_missing_vhost_is_named(private_amqp_url: str, connect: Connect) -> None:
    with pytest.raises(AccessDenied, match=r"no-such-vhost.*add_vhost"):
        connect(private_amqp_url.rpartition("/")[0] + "/no-such-vhost")


def test_a_vhost_that_the_user_may_not_enter_is_named(
    private_rabbitmq: RabbitMQNode, private_amqp_url: str, connect: Connect
) -> None:
    url = account(private_rabbitmq, private_amqp_url)
    vhost = url.rpartition("/")[2]
    private_rabbitmq.control("clear_permissions", "-p", vhost, "limited")
    with pytest.raises(AccessDenied, match=f"{vhost}.*set_permissions"):
        connect(url)


def test_nobody_listening_is_told_apart_from_an_unknown_host(connect: Connect) -> None:
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1.*nothing listens"):
        connect(f"amqp://127.0.0.1:{free_port()}")
    with pytest.raises(BrokerUnavailable, match=r"no-such-host\.invalid.*name"):
        connect("amqps://no-such-host.invalid")


def test_a_broker_that_does_not_answer_is_given_up(
    private_rabbitmq: RabbitMQNode, private_amqp_url: str, connect: Connect
) -> None:
    private_rabbitmq.freeze()
    try:
        with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1"):
            connect(private_amqp_url, connect_timeout_s=0.5)
    finally:
        private_rabbitmq.thaw()


def test_a_missing_permission_to_declare_or_consume_is_named(
    private_rabbitmq: RabbitMQNode, private_amqp_url: str, connect: Connect
) -> None:
    connect(private_amqp_url).declare([Queue(name="secret"), Exchange("x", "fanout")])
    transport = connect(account(private_rabbitmq, private_amqp_url, write="^$", read="^mine"))
    with pytest.raises(AccessDenied, match=r"secret.*set_permissions"):
        transport.consume("secret", Seen(), prefetch=1)
    with pytest.raises(AccessDenied, match=r"bind queue 'secret'.*set_permissions"):
        transport.declare([Binding("x", "secret")])


def test_messages_that_may_not_be_published_wait_for_the_permission_and_hold_up_no_others(
    private_rabbitmq: RabbitMQNode, private_amqp_url: str, connect: Connect
) -> None:
    admin = connect(private_amqp_url)
    for exchange in ("open", "closed"):
        admin.declare([Exchange(exchange, "fanout"), Queue(name=exchange), Binding(exchange, exchange)])
    seen = {exchange: Seen() for exchange in ("open", "closed")}
    for queue, sink in seen.items():
        admin.consume(queue, sink, prefetch=5)
    transport = connect(account(private_rabbitmq, private_amqp_url, write="^open$"))
    transport.publish("closed", [""], b"1")
    transport.publish("open", [""], b"2")
    seen["open"].wait({b"2"})
    assert not transport.flush(0.3)
    account(private_rabbitmq, private_amqp_url)
    assert transport.flush(DEADLINE_S)
    seen["closed"].wait({b"1"})
