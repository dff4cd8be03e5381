"""Channels that deliver, and the way back of acks. Many consumers may share a channel."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from pika.adapters.asyncio_connection import AsyncioConnection

from broker_fl.errors import BrokerUnavailable
from broker_fl.interfaces import Sink
from broker_fl.transports.rabbitmq.channel import Channel, Subscription
from broker_fl.transports.rabbitmq.io import IoThread
from broker_fl.transports.rabbitmq.tuned import FIRST_DEATH
from broker_fl.transports.traffic import Traffic

log = logging.getLogger(__name__)

OWN_CHANNELS = 16
"""Consumers of one transport that have a channel each; with more of them, those that follow share channels.

RabbitMQ allows 2,047 channels on a connection, and each costs four Erlang processes: with a channel each, a
host of 10,000 learners would need five connections, and two messages more for each of them at the start.
"""
CONSUMERS_PER_CHANNEL = 100


class RabbitMQDelivery:
    """See ``Delivery``."""

    __slots__ = ("_consuming", "_settled", "_tag", "body", "died_in", "redelivered", "routing_key", "user")

    def __init__(self, consuming: Consuming, method: Any, properties: Any, body: bytes) -> None:
        self._consuming = consuming
        self._tag: int = method.delivery_tag
        self._settled = False
        self.body = body
        key = method.routing_key  # pika leaves bytes as they are that are no UTF-8
        self.routing_key: str = key if isinstance(key, str) else key.decode("utf-8", "backslashreplace")
        self.redelivered: bool = method.redelivered
        self.user: str | None = properties.user_id  # the broker refuses any but the sender's own
        self.died_in: str = (properties.headers or {}).get(FIRST_DEATH, "")
        """The queue that handed it on as a dead letter first; worth as much as its sender's word."""

    def ack(self) -> None:
        self._settle(None)

    def reject(self, *, requeue: bool = False) -> None:
        self._settle(requeue)

    def _settle(self, requeue: bool | None) -> None:
        if not self._settled:
            self._settled = True
            self._consuming.settlements.put(self._consuming, self._tag, requeue)


class Settlements:
    """Acks and rejections on their way to the I/O thread, which is woken once for many."""

    def __init__(self, io: IoThread, traffic: Traffic) -> None:
        self.traffic = traffic
        self._io = io
        self._waiting: deque[tuple[Consuming, int, bool | None]] = deque()
        self._is_due = False

    def put(self, consuming: Consuming, tag: int, requeue: bool | None) -> None:
        # No lock: `send` lowers the flag before it looks, so whoever sees the flag up is still seen.
        self._waiting.append((consuming, tag, requeue))
        if not self._is_due:
            self._is_due = True
            self._io.soon(self.send)

    def send(self) -> None:
        """On the I/O thread."""
        self._is_due = False
        acked: dict[Consuming, list[int]] = {}
        while self._waiting:
            consuming, tag, requeue = self._waiting.popleft()
            if requeue is None:
                acked.setdefault(consuming, []).append(tag)
            else:
                consuming.reject(tag, requeue=requeue)
        for consuming, tags in acked.items():
            consuming.ack(tags)


class Consuming:
    """One channel with its consumers, until it closes. Deliveries are numbered by channel, and acked so."""

    def __init__(self, channel: Channel, settlements: Settlements) -> None:
        self.settlements = settlements
        self.channel = channel
        self.num_users = 0
        """Consumers that are on it, or on their way to it."""
        self._ended: dict[str, Callable[[str], None]] = {}
        """Consumer tag → whom to tell that it is over."""
        self._number = 0
        self._outstanding: dict[int, str] = {}
        """Delivery tag → consumer tag."""
        self._starting = (
            asyncio.Lock()
        )  # what the broker refuses closes the channel: it is one's own fault then
        # The broker cancels a consumer whose queue is deleted, or whose leader moves.
        channel.raw.add_on_cancel_callback(self._cancelled)
        channel.on_closed = self._closed

    async def start(self, wanted: Subscription, sink: Sink, on_ended: Callable[[str], None]) -> str:
        """Consume; the consumer's tag comes back. ``on_ended`` is told why, should the broker end it.

        Raises:
            AccessDenied, SettingError, BrokerUnavailable: see ``Transport.consume``.
        """
        async with self._starting:
            if not self.channel.is_open:
                raise BrokerUnavailable(f"cannot consume from queue {wanted.queue!r}: the channel was closed")
            self._number += 1
            tag = f"broker_fl.{self._number}"
            self._ended[tag] = on_ended
            try:
                await self.channel.consume(wanted, partial(self._deliver, sink), tag=tag)
            except BaseException:
                self._ended.pop(tag, None)
                raise
        return tag

    def leave(self, tag: str = "") -> None:
        """A consumer is over; the channel stays for others, and for what is not settled yet."""
        self._ended.pop(tag, None)
        self.num_users -= 1
        self._close_if_settled()

    def _deliver(self, sink: Sink, _: Any, method: Any, properties: Any, body: bytes) -> None:
        self.settlements.traffic.took(body)
        self._outstanding[method.delivery_tag] = method.consumer_tag
        delivery = RabbitMQDelivery(self, method, properties, body)
        try:
            sink(delivery)
        except Exception:
            log.exception("a consumer failed; its message is rejected")
            delivery.reject()

    def _cancelled(self, frame: Any) -> None:
        if (told := self._ended.pop(frame.method.consumer_tag, None)) is not None:
            told("cancelled by the broker")

    def _closed(self, reason: Exception) -> None:
        ended, self._ended = self._ended, {}
        for told in ended.values():
            told(str(reason))

    def ack(self, tags: list[int]) -> None:
        """Ack with one frame for all the oldest ones, and one each for those behind something not acked."""
        settled = self._outstanding.keys() & tags
        oldest = 0
        for tag in self._outstanding:
            if tag not in settled:
                break
            oldest = tag
        if self.channel.is_open and oldest:
            self.channel.raw.basic_ack(oldest, multiple=True)
        for tag in sorted(settled):
            del self._outstanding[tag]
            if tag > oldest and self.channel.is_open:
                self.channel.raw.basic_ack(tag)
        self._close_if_settled()

    def reject(self, tag: int, *, requeue: bool) -> None:
        if tag not in self._outstanding:
            return
        del self._outstanding[tag]
        if self.channel.is_open:
            self.channel.raw.basic_reject(tag, requeue=requeue)
        self._close_if_settled()

    def hand_back(self, tag: str) -> None:
        """Put back what this consumer has delivered and nobody has settled."""
        for number in [number for number, consumer in self._outstanding.items() if consumer == tag]:
            self.reject(number, requeue=True)

    def _close_if_settled(self) -> None:
        if not self.num_users and not self._outstanding:
            self.channel.close()


class Channels:
    """Of one transport's consumers. To be used on the I/O thread only."""

    def __init__(self, settlements: Settlements) -> None:
        self._settlements = settlements
        self._own: list[Consuming] = []
        self._shared: dict[int, Consuming] = {}
        """By prefetch, which is a channel's, that to which others may still come."""
        self._taking = asyncio.Lock()

    async def take(self, connection: AsyncioConnection | None, prefetch: int, *, alone: bool) -> Consuming:
        """A channel for one more consumer, which has to ``leave`` it; ``alone`` if it may not share.

        Raises:
            BrokerUnavailable: there is no connection.
            SettingError: the broker allows no more channels.
        """
        async with self._taking:
            found = None if alone else await self._find(connection, prefetch)
            if found is None:
                found = await self._open(connection, prefetch)
            found.num_users += 1
            return found

    async def _find(self, connection: AsyncioConnection | None, prefetch: int) -> Consuming:
        self._own = [one for one in self._own if one.channel.is_open]
        if len(self._own) < OWN_CHANNELS:
            self._own.append(opened := await self._open(connection, prefetch))
            return opened
        shared = self._shared.get(prefetch)
        if shared is None or not shared.channel.is_open or shared.num_users >= CONSUMERS_PER_CHANNEL:
            shared = self._shared[prefetch] = await self._open(connection, prefetch)
        return shared

    async def _open(self, connection: AsyncioConnection | None, prefetch: int) -> Consuming:
        channel = await Channel.open(connection)
        await channel.limit(prefetch)
        return Consuming(channel, self._settlements)
