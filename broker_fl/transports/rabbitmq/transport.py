"""The transport over RabbitMQ: two connections on one thread, and what is done again when one was lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial

from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import AMQPError

from broker_fl.errors import BrokerFLError, LoginRefused, QueueLost, SettingError, TransportClosed
from broker_fl.interfaces import Sink
from broker_fl.security import Security
from broker_fl.topology import Entity
from broker_fl.transports.declared import Declared
from broker_fl.transports.limits import check_body, check_entities, check_prefetch, check_routing_keys
from broker_fl.transports.rabbitmq.addresses import parse_addresses
from broker_fl.transports.rabbitmq.channel import (
    ANSWER_TIMEOUT_S,
    Channel,
    Subscription,
    declare_again,
    declare_first,
)
from broker_fl.transports.rabbitmq.consumer import Consumer
from broker_fl.transports.rabbitmq.consuming import Channels, Settlements
from broker_fl.transports.rabbitmq.failures import forbidden_exchange, missing_exchange
from broker_fl.transports.rabbitmq.io import CallbackThread, IoThread, backoff
from broker_fl.transports.rabbitmq.link import FIRST_DELAY_S, LONGEST_DELAY_S, Link, LinkSettings
from broker_fl.transports.rabbitmq.publisher import Publisher
from broker_fl.transports.traffic import Traffic

log = logging.getLogger(__name__)

WINDOW_BYTES = 16 << 20
CLOSE_TIMEOUT_S = 5.0
"""For what is still unconfirmed when the owner closes."""
DISCONNECT_TIMEOUT_S = 4.0


class RabbitMQTransport:
    """See ``Transport``. Constructing it connects; from then on it comes back by itself when it is cut off.

    There are two connections, because a broker in need stops reading from those that publish, acks included.
    One thread owns both and runs the sinks. Callbacks (``on_reconnect``, ``on_unroutable``) run on another,
    and may block.

    Args:
        url: ``amqp[s]://user:password@host[:port]/vhost``; of a cluster, several hosts with commas between
            them, of which one that answers is chosen by chance; ``?heartbeat=SECONDS`` wins over
            ``heartbeat_s``.
        name: shown to the broker's operator.
        window_bytes: how much may be unconfirmed before ``publish`` blocks.

    Raises:
        SettingError: URL, TLS files or proxy are not usable, or the way there would be in plain text.
        AccessDenied: wrong user, password or virtual host, or no permission.
        BrokerUnavailable: nobody answers within ``connect_timeout_s``.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "",
        security: Security | None = None,
        window_bytes: int = WINDOW_BYTES,
        heartbeat_s: int = 60,
        connect_timeout_s: float = 10.0,
    ) -> None:
        label = name or "broker_fl"
        settings = LinkSettings.of(
            parse_addresses(url, security),
            name=label,
            heartbeat_s=heartbeat_s,
            connect_timeout_s=connect_timeout_s,
        )
        self.user = settings.address.user
        self.traffic = Traffic()
        self._closed = False
        self._declared = Declared()
        self._consumers: dict[str, Consumer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reconnect_callbacks: list[Callable[[], None]] = []
        self._queue_lost_callbacks: list[Callable[[str], None]] = []
        self._unroutable_callbacks: list[Callable[[str, str], None]] = []
        self._down: set[Link] = set()
        self._io = IoThread(f"{label} i/o")
        self._callbacks = CallbackThread(f"{label} callbacks")
        self._settlements = Settlements(self._io, self.traffic)
        self._channels = Channels(self._settlements)
        self._publisher = Publisher(
            self._io,
            window_bytes=window_bytes,
            on_unroutable=self._report_unroutable,
            traffic=self.traffic,
            user=self.user,
        )
        self._publisher.on_stuck = self._replace_publish_channel
        self._out = self._make_link(
            settings.named(f"{label} publish"), self._publishing_up, self._publisher.pause
        )
        self._in = self._make_link(settings.named(f"{label} consume"), self._consuming_up, lambda: None)
        self._connect_or_end(2 * settings.num_nodes * connect_timeout_s + ANSWER_TIMEOUT_S)

    def _make_link(
        self,
        settings: LinkSettings,
        on_up: Callable[[AsyncioConnection], Coroutine[None, None, None]],
        on_down: Callable[[], None],
    ) -> Link:
        async def up(connection: AsyncioConnection) -> None:
            await on_up(connection)
            self._link_up(link)

        def down() -> None:
            self._down.add(link)
            on_down()

        link = Link(settings, on_up=up, on_down=down)
        return link

    def _connect_or_end(self, timeout_s: float) -> None:
        try:
            self._io.run(self._connect(), timeout_s)
        except BaseException:
            self._disconnect(self._in.close())
            self._io.stop(DISCONNECT_TIMEOUT_S)
            raise

    # ------------------------------------------------------------ any thread

    def declare(self, entities: Iterable[Entity]) -> None:
        wanted = list(entities)
        check_entities(wanted)
        self._run(self._declare(wanted), ANSWER_TIMEOUT_S + len(wanted))

    def delete_queue(self, name: str) -> None:
        self._run(self._delete_queue(name), ANSWER_TIMEOUT_S)

    def delete_exchange(self, name: str) -> None:
        self._run(self._delete_exchange(name), ANSWER_TIMEOUT_S)

    def consume(self, queue: str, sink: Sink, *, prefetch: int, exclusive: bool = False) -> None:
        check_prefetch(prefetch)
        self._run(self._consume(queue, sink, prefetch, exclusive), ANSWER_TIMEOUT_S)

    def cancel(self, queue: str, *, hand_back: bool = False) -> None:
        self._run(self._cancel(queue, hand_back), ANSWER_TIMEOUT_S)

    def publish(
        self,
        exchange: str,
        routing_keys: Sequence[str],
        body: bytes,
        *,
        persistent: bool = False,
        mandatory: bool = False,
    ) -> None:
        check_body(body)
        check_routing_keys(routing_keys)
        self._publisher.publish(exchange, routing_keys, body, persistent=persistent, mandatory=mandatory)

    def flush(self, timeout_s: float) -> bool:
        return self._publisher.flush(timeout_s)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._reconnect_callbacks.append(callback)

    def on_queue_lost(self, callback: Callable[[str], None]) -> None:
        self._queue_lost_callbacks.append(callback)

    def on_unroutable(self, callback: Callable[[str, str], None]) -> None:
        self._unroutable_callbacks.append(callback)

    @property
    def is_connected(self) -> bool:
        """Whether both connections work, as far as is known: a silent death shows after two heartbeats."""
        return not self._closed and not self._down

    @property
    def login_refused(self) -> LoginRefused | None:
        """Set once the broker has refused the account again and again; it is tried further all the same."""
        return self._in.login_refused or self._out.login_refused

    @property
    def unconfirmed_bytes(self) -> int:
        """What was published and the broker has not confirmed."""
        return self._publisher.unconfirmed_bytes

    def depth(self, queue: str, timeout_s: float = 2.0) -> int | None:
        """Messages that wait in a queue, without those that are delivered; None if the broker does not say.

        Needs no permission (RabbitMQ, "Access Control": ``queue.declare`` with ``passive``).
        """
        if not self.is_connected:
            return None
        try:
            return self._io.run(self._depth(queue), timeout_s)
        except (BrokerFLError, AMQPError):
            return None

    def close(self) -> None:
        self._io.check_not_current()
        if self._closed:
            return
        self._closed = True
        self._publisher.stop()
        self._disconnect(self._close_consuming())
        if not self._publisher.flush(CLOSE_TIMEOUT_S):
            log.warning(
                "closing although the broker has not confirmed %d messages", self._publisher.num_unconfirmed
            )
        self._disconnect(self._out.close())
        self._callbacks.stop(DISCONNECT_TIMEOUT_S)
        self._io.stop(DISCONNECT_TIMEOUT_S)

    def _run(self, work: Coroutine[None, None, None], timeout_s: float) -> None:
        if self._closed:
            work.close()
            raise TransportClosed("the transport is closed")
        self._io.run(work, timeout_s)

    def _disconnect(self, work: Coroutine[None, None, None]) -> None:
        try:
            self._io.run(work, DISCONNECT_TIMEOUT_S)
        except (BrokerFLError, AMQPError) as error:
            log.info("did not disconnect in good order: %s", error)

    # ------------------------------------------------------------ I/O thread

    async def _connect(self) -> None:
        await self._in.connect()
        await self._out.connect()

    async def _declare(self, entities: Sequence[Entity]) -> None:
        await declare_first(self._in.connection, entities, self._declared.remember)

    async def _depth(self, queue: str) -> int:
        channel = await Channel.open(self._in.connection)
        try:
            return await channel.depth(queue)
        finally:
            channel.close()

    async def _delete_queue(self, name: str) -> None:
        self._declared.forget_queue(name)
        self._consumers.pop(name, None)
        channel = await Channel.open(self._in.connection)
        try:
            await channel.delete_queue(name)
        finally:
            channel.close()

    async def _delete_exchange(self, name: str) -> None:
        self._declared.forget_exchange(name)
        channel = await Channel.open(self._in.connection)
        try:
            await channel.delete_exchange(name)
        finally:
            channel.close()

    async def _consume(self, queue: str, sink: Sink, prefetch: int, exclusive: bool) -> None:
        if queue in self._consumers:
            raise SettingError(f"this transport consumes from queue {queue!r} already")
        wanted = Subscription(queue, exclusive, self._declared.is_quorum(queue))
        consumer = Consumer(wanted, sink, prefetch=prefetch)
        self._consumers[queue] = consumer  # before it begins: the broker may end it at once
        try:
            await self._start(consumer, self._in.connection)
        except BaseException:
            if self._consumers.get(queue) is consumer:
                del self._consumers[queue]
            raise

    async def _cancel(self, queue: str, hand_back: bool) -> None:
        self._declared.forget_queue(queue)
        consumer = self._consumers.pop(queue, None)
        if consumer is not None:
            self._settlements.send()  # what was acked by now is done with
            await consumer.stop(hand_back=hand_back)

    async def _start(self, consumer: Consumer, connection: AsyncioConnection | None) -> None:
        await consumer.start(connection, self._channels, partial(self._consumer_stopped, consumer))

    async def _close_consuming(self) -> None:
        self._settlements.send()
        self._consumers.clear()
        await self._in.close()

    async def _consuming_up(self, connection: AsyncioConnection) -> None:
        await declare_again(connection, self._declared.everything())
        await asyncio.gather(
            *(self._start_again(consumer, connection) for consumer in self._consumers.values())
        )

    async def _start_again(self, consumer: Consumer, connection: AsyncioConnection) -> None:
        try:
            await self._start(consumer, connection)
        except BrokerFLError as error:
            self._report_if_lost(consumer, error)
            self._consumer_stopped(consumer, str(error))

    async def _publishing_up(self, connection: AsyncioConnection) -> None:
        connection.add_on_connection_blocked_callback(lambda *_: self._publisher.block(True))
        connection.add_on_connection_unblocked_callback(lambda *_: self._publisher.block(False))
        await declare_again(connection, self._declared.everything())
        await self._open_publish_channel(connection)

    async def _open_publish_channel(self, connection: AsyncioConnection) -> None:
        channel = await Channel.open(connection)
        channel.on_closed = partial(self._publish_channel_closed, connection)
        await self._publisher.use(channel)

    def _publish_channel_closed(self, connection: AsyncioConnection, reason: Exception) -> None:
        self._publisher.pause()
        if not connection.is_open:
            return
        missing, forbidden = missing_exchange(reason), forbidden_exchange(reason)
        if missing is not None and not self._declared.names_exchange(missing):
            log.error("messages to exchange %r are lost: it does not exist", missing)
            self._publisher.drop_exchange(missing)
        else:
            log.error("the broker refused a message, which will be tried again: %s", reason)
            self._publisher.refuse_exchange(missing or forbidden or "")
        self._begin(self._reopen_publish_channel(connection))

    def _replace_publish_channel(self) -> None:
        connection = self._out.connection
        if connection is not None and connection.is_open:
            self._begin(self._reopen_publish_channel(connection))

    async def _reopen_publish_channel(self, connection: AsyncioConnection) -> None:
        for delay_s in backoff(FIRST_DELAY_S, LONGEST_DELAY_S):
            if not connection.is_open:
                return
            try:
                await declare_again(connection, self._declared.everything())
                await self._open_publish_channel(connection)
            except BrokerFLError as error:
                log.warning("%s", error)
                await asyncio.sleep(delay_s)
            else:
                return

    def _consumer_stopped(self, consumer: Consumer, reason: str) -> None:
        connection = self._in.connection
        if self._consumers.get(consumer.queue) is consumer and connection is not None and connection.is_open:
            log.warning("the consumer of queue %r stopped: %s; starting it again", consumer.queue, reason)
            self._begin(self._restart(consumer, connection))

    async def _restart(self, consumer: Consumer, connection: AsyncioConnection) -> None:
        for delay_s in backoff(FIRST_DELAY_S, LONGEST_DELAY_S):
            await asyncio.sleep(delay_s)
            if self._consumers.get(consumer.queue) is not consumer or not connection.is_open:
                return
            try:
                await declare_again(connection, self._declared.of_queue(consumer.queue))
                await self._start(consumer, connection)
            except BrokerFLError as error:
                log.warning("%s", error)
                self._report_if_lost(consumer, error)
            else:
                return

    def _link_up(self, link: Link) -> None:
        if link in self._down:
            self._down.discard(link)
            self.traffic.num_reconnects += 1
            if not self._down:
                for callback in self._reconnect_callbacks:
                    self._callbacks.call(callback)

    def _report_if_lost(self, consumer: Consumer, error: BrokerFLError) -> None:
        if isinstance(error, QueueLost):
            for callback in self._queue_lost_callbacks:
                self._callbacks.call(callback, consumer.queue)

    def _report_unroutable(self, exchange: str, routing_key: str) -> None:
        for callback in self._unroutable_callbacks:
            self._callbacks.call(callback, exchange, routing_key)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
