"""One connection to the broker, kept alive."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection

from broker_fl.errors import BrokerFLError, BrokerUnavailable, LoginRefused
from broker_fl.transports.rabbitmq.address import Address
from broker_fl.transports.rabbitmq.addresses import Addresses
from broker_fl.transports.rabbitmq.failures import connection_failure
from broker_fl.transports.rabbitmq.io import backoff
from broker_fl.transports.rabbitmq.tuned import TunedConnection
from broker_fl.transports.rabbitmq.tunnel import io_services

log = logging.getLogger(__name__)

BLOCKED_TIMEOUT_S = 300.0
"""An alarm of the broker that lasts so long may have been a lost "unblocked": connect again."""
GOODBYE_TIMEOUT_S = 1.5
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 10.0
"""Shorter than what makes a learner count as lost (four heartbeats of 5 s)."""
MAX_REFUSED_LOGINS = 10
"""In a row, about a minute: then the account is gone, and not the broker busy with its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """How to connect."""

    address: Address
    others: tuple[Address, ...] = ()
    """Further nodes of the same broker, where to go when ``address`` does not answer."""
    name: str
    """What the broker's operator sees."""
    heartbeat_s: int
    connect_timeout_s: float

    @classmethod
    def of(
        cls, addresses: Addresses, *, name: str, heartbeat_s: int, connect_timeout_s: float
    ) -> LinkSettings:
        """To one of the nodes by chance, so that a thousand learners with the same URL are spread over a
        cluster; a heartbeat that the URL asks for wins over ``heartbeat_s``.
        """
        first, *others = random.sample(addresses.nodes, k=len(addresses.nodes))
        return cls(
            address=first,
            others=tuple(others),
            name=name,
            heartbeat_s=addresses.heartbeat_s or heartbeat_s,
            connect_timeout_s=connect_timeout_s,
        )

    @property
    def num_nodes(self) -> int:
        return 1 + len(self.others)

    def named(self, name: str) -> LinkSettings:
        return replace(self, name=name)

    def elsewhere(self) -> LinkSettings:
        """The same for the next node; after the last one, the first again."""
        nodes = (*self.others, self.address)
        return replace(self, address=nodes[0], others=nodes[1:])

    def parameters(self) -> pika.ConnectionParameters:
        address = self.address
        credentials = pika.PlainCredentials(address.user, address.password)
        if address.external:
            credentials = pika.credentials.ExternalCredentials()
        return pika.ConnectionParameters(
            host=address.host,
            port=address.port,
            virtual_host=address.vhost,
            credentials=credentials,
            heartbeat=self.heartbeat_s,
            socket_timeout=self.connect_timeout_s,
            stack_timeout=self.connect_timeout_s,
            blocked_connection_timeout=BLOCKED_TIMEOUT_S,
            client_properties={"connection_name": self.name, "product": "broker_fl"},
            ssl_options=pika.SSLOptions(address.tls, address.host) if address.tls else None,
        )


class Link:
    """Connects once, then again whenever the connection is lost. To be used on the I/O thread only."""

    def __init__(
        self,
        settings: LinkSettings,
        *,
        on_up: Callable[[AsyncioConnection], Awaitable[None]],
        on_down: Callable[[], None],
    ) -> None:
        self.connection: TunedConnection | None = None
        self.settings = settings
        self.login_refused: LoginRefused | None = None
        """What the broker said, once it has refused a login that it took before many times in a row."""
        self._num_refused = 0
        self._on_up = on_up
        self._on_down = on_down
        self._lost: asyncio.Future[BaseException]
        self._keeper: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Make the first connection.

        Raises:
            AccessDenied, SettingError: trying again changes nothing.
            BrokerUnavailable: no answer.
        """
        await self._connect_anywhere()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Disconnect in good order."""
        if self._keeper is not None:
            self._keeper.cancel()
        connection, self.connection = self.connection, None
        if connection is not None and connection.is_open:
            connection.close()
            try:
                await asyncio.wait_for(asyncio.shield(self._lost), GOODBYE_TIMEOUT_S)
            except TimeoutError:
                connection.abort()
                await self._lost

    async def _connect_anywhere(self) -> None:
        """On the first node that takes us; what the last one said is raised."""
        for left in reversed(range(self.settings.num_nodes)):
            try:
                await self._connect()
            except BrokerUnavailable as error:
                if not left:
                    raise
                log.warning("%s; trying the next node", error)
                self.settings = self.settings.elsewhere()
            else:
                return

    async def _connect(self) -> None:
        self.connection = connection = await self._open()
        try:
            await self._on_up(connection)
        except BaseException:
            self.connection = None
            if connection.is_open:
                connection.close()
            raise

    async def _open(self) -> TunedConnection:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        lost = self._lost = loop.create_future()
        connection = TunedConnection(
            self.settings.parameters(),
            on_open_callback=lambda _: _settle(opened, None),
            on_open_error_callback=lambda _, error: _settle(opened, error),
            on_close_callback=lambda _, error: _settle(lost, None, result=error),
            custom_ioloop=io_services(loop, self.settings.address),
        )
        try:
            # pika's own limits do not cover the name look-up.
            await asyncio.wait_for(opened, self.settings.connect_timeout_s + 1.0)
        except TimeoutError as error:
            raise BrokerUnavailable(
                f"{self.settings.address}: no answer within {self.settings.connect_timeout_s:.0f} s"
            ) from error
        except Exception as error:
            raise connection_failure(error, self.settings.address) from error
        finally:
            if not connection.is_open:
                _abandon(connection)
        return connection

    async def _keep(self) -> None:
        while True:
            reason = await asyncio.shield(self._lost)
            self.connection = None
            self._on_down()
            log.warning(
                "%s: connection %r lost (%s); connecting again",
                self.settings.address,
                self.settings.name,
                reason,
            )
            await self._connect_again()
            log.info("%s: connection %r works again", self.settings.address, self.settings.name)

    async def _connect_again(self) -> None:
        for delay_s in backoff(FIRST_DELAY_S, LONGEST_DELAY_S):
            await asyncio.sleep(delay_s)
            try:
                await self._connect_anywhere()
            except BrokerFLError as error:
                log.warning("still no connection %r: %s", self.settings.name, error)
                self._count_refused(error)
            except Exception:
                log.exception("connecting %r failed", self.settings.name)
            else:
                self._num_refused, self.login_refused = 0, None
                return

    def _count_refused(self, error: BrokerFLError) -> None:
        self._num_refused = self._num_refused + 1 if isinstance(error, LoginRefused) else 0
        if isinstance(error, LoginRefused) and self._num_refused >= MAX_REFUSED_LOGINS:
            self.login_refused = error


def _settle(future: asyncio.Future[Any], error: BaseException | None, *, result: Any = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _abandon(connection: AsyncioConnection) -> None:
    if not connection.is_closed and not connection.is_closing:
        connection.close()
