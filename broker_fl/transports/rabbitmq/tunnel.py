"""The way to the broker through an HTTP proxy, under pika's connections.

pika reaches the network through an object of its own interface ``AbstractIOServices``, which a connection may
be given. Here ``getaddrinfo`` finds the proxy and ``connect_socket`` asks it for a tunnel; TLS and AMQP,
which come after, do not notice.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

import pika
from pika.adapters.asyncio_connection import _AsyncioIOServicesAdapter
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.nbio_interface import AbstractIOReference
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter

from broker_fl.errors import BrokerFLError, BrokerUnavailable
from broker_fl.security.proxy import MAX_ANSWER_BYTES, Proxy
from broker_fl.transports.rabbitmq.address import Address
from broker_fl.transports.rabbitmq.tuned import TolerantConnection

_END = b"\r\n\r\n"
Done = Callable[[BaseException | None], None]


class _Opening(AbstractIOReference):  # type: ignore[misc]
    """One tunnel on its way: connect, ask, read the answer."""

    def __init__(
        self, services: Any, sock: socket.socket, proxy: Proxy, address: Address, done: Done
    ) -> None:
        self._services = services
        self._sock = sock
        self._proxy = proxy
        self._place = address.place
        self._request = proxy.request(address.host, address.port)
        self._done = done
        self._answer = b""
        self._connecting: Any = None
        self._reads = False

    def start(self, connect: Callable[..., Any], proxy_address: Any) -> _Opening:
        self._connecting = connect(self._sock, proxy_address, on_done=self._connected)
        return self

    def cancel(self) -> bool:
        """As of ``AbstractIOReference``: ``done`` is not called."""
        if self._reads:
            self._stop_reading()
            return True
        return bool(self._connecting.cancel())

    def _connected(self, error: BaseException | None) -> None:
        if error is not None:
            self._done(BrokerUnavailable(f"proxy {self._proxy}: no connection ({error})"))
            return
        try:
            # A few hundred bytes always fit into the empty buffer of a new connection.
            self._sock.sendall(self._request)
        except OSError as failure:
            self._done(BrokerUnavailable(f"proxy {self._proxy}: the connection was lost ({failure})"))
            return
        self._reads = True
        self._services.set_reader(self._sock.fileno(), self._read)

    def _read(self) -> None:
        try:
            self._read_some()
        except BlockingIOError:
            return
        except BrokerFLError as failure:
            self._finish(failure)
        except OSError as failure:
            self._finish(BrokerUnavailable(f"proxy {self._proxy}: the connection was lost ({failure})"))
        else:
            if self._answer.endswith(_END):
                self._finish(None)

    def _read_some(self) -> None:
        """One byte at a time: what follows the answer's head is the broker's."""
        while not self._answer.endswith(_END):
            one = self._sock.recv(1)
            self._answer += one
            if not one or len(self._answer) > MAX_ANSWER_BYTES:
                self._proxy.check(self._answer, self._place)
                raise BrokerUnavailable(f"proxy {self._proxy}: it hung up without an answer")
        self._proxy.check(self._answer, self._place)

    def _stop_reading(self) -> None:
        self._reads = False
        self._services.remove_reader(self._sock.fileno())

    def _finish(self, failure: BaseException | None) -> None:
        self._stop_reading()
        self._done(failure)


class _Tunnels:
    """What both adapters of pika do otherwise when a proxy is on the way."""

    def __init__(self, loop: Any, address: Address, proxy: Proxy) -> None:
        super().__init__(loop)  # type: ignore[call-arg]
        self._address = address
        self._proxy = proxy

    def getaddrinfo(self, host: str, port: int, on_done: Callable[..., None], **hints: int) -> Any:
        """The proxy's addresses: who knows the broker's name is the proxy."""
        return super().getaddrinfo(self._proxy.host, self._proxy.port, on_done, **hints)  # type: ignore[misc]

    def connect_socket(self, sock: socket.socket, resolved_addr: Any, on_done: Done) -> Any:
        """Connect to the proxy, and have it connect to the broker."""
        opening = _Opening(self, sock, self._proxy, self._address, on_done)
        return opening.start(super().connect_socket, resolved_addr)  # type: ignore[misc]


class _AsyncioTunnels(_Tunnels, _AsyncioIOServicesAdapter):  # type: ignore[misc]
    pass


class _SelectTunnels(_Tunnels, SelectorIOServicesAdapter):  # type: ignore[misc]
    pass


def io_services(loop: asyncio.AbstractEventLoop, address: Address) -> Any:
    """What a connection on an event loop is given as its ``custom_ioloop``."""
    return loop if address.proxy is None else _AsyncioTunnels(loop, address, address.proxy)


def blocking_connection(parameters: pika.ConnectionParameters, address: Address) -> pika.BlockingConnection:
    """A blocking connection, through the proxy if the address has one; no message ends it."""
    if address.proxy is None:
        return pika.BlockingConnection(parameters, _impl_class=TolerantConnection)
    proxy = address.proxy

    class Tunnelled(TolerantConnection):
        @classmethod
        def create_connection(
            cls,
            connection_configs: Sequence[Any],
            on_done: Callable[[Any], None],
            custom_ioloop: Any = None,
            workflow: Any = None,
        ) -> Any:
            """As ``SelectConnection`` does it."""
            services = _SelectTunnels(custom_ioloop or IOLoop(), address, proxy)

            def connection(one: Any) -> Any:
                return cls(one, custom_ioloop=services, internal_connection_workflow=False)

            return cls._start_connection_workflow(
                connection_configs=connection_configs,
                connection_factory=connection,
                nbio=services,
                workflow=workflow,
                on_done=on_done,
            )

    return pika.BlockingConnection(parameters, _impl_class=Tunnelled)
