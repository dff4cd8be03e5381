"""One AMQP channel whose calls can be awaited, and whose failures are ours."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from pika import exceptions as pika_errors
from pika.adapters.asyncio_connection import AsyncioConnection

from broker_fl.errors import BrokerFLError, BrokerUnavailable, QueueLost, SettingError
from broker_fl.topology import Binding, Entity, Exchange, Queue
from broker_fl.transports.rabbitmq.failures import channel_failure

log = logging.getLogger(__name__)

LANES = 16
"""Channels on which many queues are declared."""
CANCEL_WHEN_GONE = {"x-cancel-on-ha-failover": True}
"""Of consumers of classic queues; quorum queues refuse it. Without it, RabbitMQ 3.10.8 does not say that a
queue was deleted if somebody has declared it again meanwhile: it subscribes again by itself, and some of
those subscriptions deliver nothing for ever. RabbitMQ 4 does not know it, and ignores it.
"""
ANSWER_TIMEOUT_S = 30.0
"""A quorum queue of a cluster that is just starting takes this long in bad cases."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """What is to be consumed."""

    queue: str
    exclusive: bool
    quorum: bool
    """As far as is known: another process may have declared it."""


def is_of_quorum(error: BrokerFLError) -> bool:
    """Whether a consumer was refused because its queue is a quorum queue."""
    return any(name in str(error) for name in CANCEL_WHEN_GONE)


class Channel:
    """See above. To be used on the I/O thread only."""

    def __init__(self) -> None:
        self.raw: Any = None
        self.on_closed: Callable[[Exception], None] | None = None
        """Called when the channel closes and ``close`` was not called."""
        self._replies: set[asyncio.Future[Any]] = set()

    @classmethod
    async def open(cls, connection: AsyncioConnection | None) -> Channel:
        """A new channel.

        Raises:
            BrokerUnavailable: there is no connection.
        """
        if connection is None or not connection.is_open:
            raise BrokerUnavailable("the broker is not connected at the moment")
        channel = cls()

        def start(callback: Callable[[Any], None]) -> None:
            channel.raw = connection.channel(on_open_callback=callback)
            channel.raw.add_on_close_callback(channel._closed)

        await channel._call("open a channel", start)
        return channel

    @property
    def is_open(self) -> bool:
        return bool(self.raw is not None and self.raw.is_open)

    async def declare(self, entity: Entity) -> None:
        """Make an exchange, a queue or a binding."""
        if isinstance(entity, Exchange):
            await self._call(
                f"declare exchange {entity.name!r} of type {entity.type}",
                partial(self.raw.exchange_declare, entity.name, exchange_type=entity.type, durable=True),
            )
        elif isinstance(entity, Queue):
            arguments = queue_arguments(entity)
            await self._call(
                f"declare queue {entity.name!r} with {arguments}",
                partial(self.raw.queue_declare, entity.name, durable=True, arguments=arguments),
            )
        else:
            await self._call(
                f"bind queue {entity.queue!r} to exchange {entity.exchange!r}",
                partial(self.raw.queue_bind, entity.queue, entity.exchange, routing_key=entity.routing_key),
            )

    async def depth(self, queue: str) -> int:
        """How many messages wait in it."""
        frame = await self._call(
            f"look at queue {queue!r}", partial(self.raw.queue_declare, queue, passive=True)
        )
        return int(frame.method.message_count)

    async def delete_queue(self, name: str) -> None:
        await self._call(f"delete queue {name!r}", partial(self.raw.queue_delete, name))

    async def delete_exchange(self, name: str) -> None:
        await self._call(f"delete exchange {name!r}", partial(self.raw.exchange_delete, name))

    async def confirm(self, on_confirm: Callable[[Any], None]) -> None:
        await self._call("ask for confirms", partial(self.raw.confirm_delivery, on_confirm))

    async def limit(self, prefetch: int) -> None:
        """Of each consumer that starts after this."""
        await self._call("set the prefetch", partial(self.raw.basic_qos, prefetch_count=prefetch))

    async def consume(self, wanted: Subscription, on_message: Callable[..., None], *, tag: str) -> None:
        consume = partial(
            self.raw.basic_consume,
            wanted.queue,
            on_message,
            exclusive=wanted.exclusive,
            consumer_tag=tag,
            arguments={} if wanted.quorum else CANCEL_WHEN_GONE,
        )
        await self._call(f"consume from queue {wanted.queue!r}", consume)

    async def cancel(self, tag: str) -> None:
        await self._call("cancel a consumer", partial(self.raw.basic_cancel, tag))

    def close(self) -> None:
        """Close it without waiting for the answer."""
        self.on_closed = None
        if self.is_open:
            self.raw.close()

    async def _call(self, doing: str, method: Callable[..., Any]) -> Any:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._replies.add(reply)
        try:
            method(callback=partial(_answer, reply))
            return await asyncio.wait_for(reply, ANSWER_TIMEOUT_S)
        except TimeoutError as error:
            raise BrokerUnavailable(f"cannot {doing}: no answer within {ANSWER_TIMEOUT_S:.0f} s") from error
        except pika_errors.NoFreeChannels as error:
            raise SettingError(f"cannot {doing}: the broker allows no more (its channel_max)") from error
        except pika_errors.ShortStringTooLong as error:
            raise SettingError(f"cannot {doing}: a name is longer than 255 bytes") from error
        except (pika_errors.AMQPError, pika_errors.ChannelError) as error:
            raise channel_failure(error, doing) from error
        finally:
            self._replies.discard(reply)

    def _closed(self, _: Any, reason: Exception) -> None:
        for reply in self._replies:
            if not reply.done():
                reply.set_exception(reason)
        if self.on_closed is not None:
            self.on_closed(reason)


def _answer(reply: asyncio.Future[Any], frame: Any) -> None:
    if not reply.done():
        reply.set_result(frame)


async def declare_again(connection: AsyncioConnection | None, entities: Iterable[Entity]) -> None:
    """Make entities that were made before; those that are now refused, or on a node that is down, are
    logged.
    """
    await _in_lanes(entities, partial(_declare_again, connection))


async def _declare_again(connection: AsyncioConnection | None, entities: Sequence[Entity]) -> None:
    channel = await Channel.open(connection)
    try:
        for entity in entities:
            try:
                await channel.declare(entity)
            except (SettingError, QueueLost) as error:
                log.log(logging.WARNING if isinstance(error, QueueLost) else logging.ERROR, "%s", error)
                channel = await Channel.open(connection)
    finally:
        channel.close()


async def declare_first(
    connection: AsyncioConnection | None, entities: Iterable[Entity], on_done: Callable[[Entity], None]
) -> None:
    """Make entities, and tell of each; a spare queue whose node is down is left out, with its bindings.

    Raises:
        SettingError, AccessDenied, BrokerUnavailable: see ``Transport.declare``.
    """
    await _in_lanes(entities, partial(_declare_first, connection, on_done))


async def _declare_first(
    connection: AsyncioConnection | None, on_done: Callable[[Entity], None], entities: Sequence[Entity]
) -> None:
    channel, lost = await Channel.open(connection), set[str]()
    try:
        for entity in entities:
            try:
                if not isinstance(entity, Binding) or entity.queue not in lost:
                    await channel.declare(entity)
            except QueueLost as error:
                if not isinstance(entity, Queue) or not entity.spare:
                    raise
                log.warning("going on without it: %s", error)
                lost.add(entity.name)
                channel = await Channel.open(connection)
            on_done(entity)
    finally:
        channel.close()


async def _in_lanes(
    entities: Iterable[Entity], declare: Callable[[Sequence[Entity]], Awaitable[None]]
) -> None:
    """Declare exchanges in order, then queues, each with its bindings: thousands of them side by side, on
    channels of their own, so that not each waits for the answer to the one before.
    """
    wanted = list(entities)
    if len(wanted) < 2 * LANES:
        await declare(wanted)
        return
    by_queue: dict[str, list[Entity]] = {}
    for entity in wanted:
        if not isinstance(entity, Exchange):
            name = entity.name if isinstance(entity, Queue) else entity.queue
            by_queue.setdefault(name, []).append(entity)
    await declare([entity for entity in wanted if isinstance(entity, Exchange)])
    queues = list(by_queue.values())
    lanes = [list(chain.from_iterable(queues[first::LANES])) for first in range(min(LANES, len(queues)))]
    outcomes = await asyncio.gather(*map(declare, lanes), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


def queue_arguments(queue: Queue) -> dict[str, str | int | bool]:
    """AMQP arguments, of which RabbitMQ 3.10 to 4.x accept all.

    The type is always named: an operator may have set another default for the virtual host.
    """
    optional = {
        "x-single-active-consumer": queue.single_active_consumer or None,
        "x-expires": _milliseconds(queue.expires_s),
        "x-message-ttl": _milliseconds(queue.message_ttl_s),
        "x-max-length-bytes": queue.max_length_bytes,
        "x-overflow": queue.overflow if queue.overflow != "drop-head" else None,
        "x-dead-letter-exchange": queue.dead_letter_exchange,
    }
    given = {name: value for name, value in optional.items() if value is not None}
    return {"x-queue-type": "quorum" if queue.quorum else "classic", **given}


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
