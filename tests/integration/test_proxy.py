"""Through a real HTTP proxy to a real broker with TLS, on any port, and what is said when that fails."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from broker_fl.doctor_broker import check_broker
from broker_fl.errors import AccessDenied, BrokerFLError, BrokerUnavailable, SettingError
from broker_fl.interfaces import Delivery
from broker_fl.security import Security
from broker_fl.topology import Queue
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.workers.servers.process import free_port
from tests.servers.proxies import ProxyServer, proxy_server
from tests.servers.secured import SecuredRabbitMQ

ACCOUNT = "site:pr0xy-s3cret"
Connect = Callable[..., RabbitMQTransport]


@pytest.fixture(scope="module")
def open_proxy(server_root: Path) -> Iterator[ProxyServer]:
    with proxy_server(server_root / "proxy-open") as server:
        yield server


@pytest.fixture(scope="module")
def closed_proxy(server_root: Path) -> Iterator[ProxyServer]:
    """Wants credentials."""
    with proxy_server(server_root / "proxy-closed", account=ACCOUNT) as server:
        yield server


@pytest.fixture
def connect(secured_rabbitmq: SecuredRabbitMQ) -> Iterator[Connect]:
    """Makes transports that go through a proxy, and closes them."""
    opened: list[RabbitMQTransport] = []

    def connect(proxy: str, url: str = "", timeout_s: float = 30) -> RabbitMQTransport:
        security = replace(secured_rabbitmq.certificates.of("anybody"), proxy=proxy)
        place = url or secured_rabbitmq.url(secured_rabbitmq.administrator)
        opened.append(RabbitMQTransport(place, security=security, connect_timeout_s=timeout_s))
        return opened[-1]

    yield connect
    for transport in opened:
        transport.close()


def send_and_receive(transport: RabbitMQTransport, queue: str) -> None:
    body, came = bytes(range(256)) * 8_000, threading.Event()
    transport.declare([Queue(name=queue)])

    def sink(delivery: Delivery) -> None:
        assert delivery.body == body
        delivery.ack()
        came.set()

    transport.consume(queue, sink, prefetch=1)
    transport.publish("", [queue], body)
    assert came.wait(60)
    transport.delete_queue(queue)


@pytest.mark.parametrize("account", ["", ACCOUNT])
def test_large_bodies_pass_through_a_proxy(
    request: pytest.FixtureRequest, secured_rabbitmq: SecuredRabbitMQ, connect: Connect, account: str
) -> None:
    proxy: ProxyServer = request.getfixturevalue("closed_proxy" if account else "open_proxy")
    before = len(proxy.connects())
    send_and_receive(connect(proxy.url(account)), "through")
    place = f"127.0.0.1:{secured_rabbitmq.port}"
    assert proxy.connects()[before:] == [place, place]  # two connections, and nothing beside the proxy


def test_a_tunnel_that_breaks_is_dug_again(server_root: Path, connect: Connect) -> None:
    port, back = 0, threading.Event()
    with proxy_server(server_root / "proxy-mortal") as proxy:
        transport, port = connect(proxy.url()), proxy.port
        transport.on_reconnect(back.set)
        send_and_receive(transport, "before")
    with proxy_server(server_root / "proxy-reborn", port=port):
        assert back.wait(60)
        send_and_receive(transport, "after")


def test_what_is_wrong_with_a_proxy_is_said_by_its_name(
    server_root: Path,
    open_proxy: ProxyServer,
    closed_proxy: ProxyServer,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    nobody = free_port()
    with proxy_server(server_root / "proxy-443", connect_port=443) as strict, _silent() as silent:
        cases: list[tuple[str, str, type[BrokerFLError], str]] = [
            (closed_proxy.url(), "", AccessDenied, "it wants credentials"),
            (closed_proxy.url("site:wr0ng-s3cret"), "", AccessDenied, "it wants other credentials"),
            (strict.url(ACCOUNT), "", SettingError, "does not let this pass.*port 443"),
            (open_proxy.url(), f"amqps://a:b@127.0.0.1:{nobody}", BrokerUnavailable, "does not reach it"),
            (
                f"http://127.0.0.1:{nobody}",
                "",
                BrokerUnavailable,
                f"proxy http://127.0.0.1:{nobody}: no conn",
            ),
            ("http://no-such-proxy.invalid", "", BrokerUnavailable, "no-such-proxy.*name is not known"),
            (f"http://127.0.0.1:{silent}", "", BrokerUnavailable, f"127.0.0.1:{silent}: no answer"),
        ]
        for proxy, url, error, words in cases:
            with pytest.raises(error, match=words) as caught:
                connect(proxy, url, 4 if words.endswith("no answer") else 30)
            assert type(caught.value) is error
            assert "s3cret" not in str(caught.value)
    assert "s3cret" not in caplog.text


def test_the_brokers_certificate_is_verified_through_a_proxy_too(
    secured_rabbitmq: SecuredRabbitMQ, open_proxy: ProxyServer
) -> None:
    untrusting = Security(proxy=open_proxy.url())
    with pytest.raises(SettingError, match=r"through proxy.*certificate is not trusted"):
        RabbitMQTransport(secured_rabbitmq.url("a:b"), security=untrusting, connect_timeout_s=30)


def test_doctor_goes_through_the_proxy(secured_rabbitmq: SecuredRabbitMQ, closed_proxy: ProxyServer) -> None:
    server = secured_rabbitmq
    security = replace(server.certificates.of("anybody"), proxy=closed_proxy.url(ACCOUNT))
    before = len(closed_proxy.connects())
    findings = check_broker(
        server.url(server.administrator), federation="f", role="driver", security=security
    )
    assert {one.level for one in findings} <= {"ok", "warning"}
    assert f"through proxy http://site@127.0.0.1:{closed_proxy.port}" in findings[0].what
    assert len(closed_proxy.connects()) == before + 1
    refused = check_broker(
        server.url(server.administrator),
        federation="f",
        role="driver",
        security=replace(security, proxy=closed_proxy.url()),
    )
    assert "it wants credentials" in refused[0].what


class _silent:  # noqa: N801 - a context manager
    """A port that takes connections, and says nothing."""

    def __enter__(self) -> int:
        self._server = socket.create_server(("127.0.0.1", 0))
        return int(self._server.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._server.close()
