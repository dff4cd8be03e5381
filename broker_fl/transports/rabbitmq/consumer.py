"""Consuming: a channel for each consumer, so that what closes one does not touch the others."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from pika.adapters.asyncio_connection import AsyncioConnection

from broker_fl.errors import BrokerFLError
from broker_fl.interfaces import Sink
from broker_fl.transports.rabbitmq.channel import Channel
from broker_fl.transports.rabbitmq.io import IoThread
from broker_fl.transports.traffic import Traffic

log = logging.getLogger(__name__)


class RabbitMQDelivery:
    """See ``Delivery``."""

    __slots__ = ("_consuming", "_settled", "_tag", "body", "redelivered", "routing_key", "user")

    def __init__(self, consuming: Consuming, method: Any, properties: Any, body: bytes) -> None:
        self._consuming = consuming
        self._tag: int = method.delivery_tag
        self._settled = False
        self.body = body
        self.routing_key: str = method.routing_key
        self.redelivered: bool = method.redelivered
        self.user: str | None = properties.user_id  # the broker refuses any but the sender's own

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
    """One consumer on one channel, from its start until the channel closes."""

    def __init__(self, channel: Channel, sink: Sink, settlements: Settlements) -> None:
        self.settlements = settlements
        self.channel = channel
        self._sink = sink
        self._outstanding: dict[int, None] = {}
        self._close_when_settled = False

    def deliver(self, _: Any, method: Any, properties: Any, body: bytes) -> None:
        """Called by pika."""
        self.settlements.traffic.took(body)
        self._outstanding[method.delivery_tag] = None
        delivery = RabbitMQDelivery(self, method, properties, body)
        try:
            self._sink(delivery)
        except Exception:
            log.exception("a consumer failed; its message is rejected")
            delivery.reject()

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

    def close_when_settled(self) -> None:
        """The consumer is cancelled: the channel stays for what it has delivered."""
        self._close_when_settled = True
        self._close_if_settled()

    def _close_if_settled(self) -> None:
        if self._close_when_settled and not self._outstanding:
            self.channel.close()


class Consumer:
    """What the owner asked for: consume from this queue, whatever happens."""

    def __init__(self, queue: str, sink: Sink, *, prefetch: int, exclusive: bool) -> None:
        self.queue = queue
        self._sink = sink
        self._prefetch = prefetch
        self._exclusive = exclusive
        self._consuming: Consuming | None = None
        self._tag = ""
        self._number = 0
        self._is_starting = False

    @property
    def is_running(self) -> bool:
        return self._consuming is not None and self._consuming.channel.is_open

    async def start(
        self,
        connection: AsyncioConnection | None,
        settlements: Settlements,
        on_stopped: Callable[[str], None],
    ) -> None:
        """Consume on a new channel; ``on_stopped`` is told why, should the broker end it.

        Raises:
            AccessDenied, SettingError, BrokerUnavailable: see ``Transport.consume``.
        """
        if self._is_starting or self.is_running:
            return
        self._is_starting = True
        try:
            await self._start(connection, settlements, on_stopped)
        finally:
            self._is_starting = False

    async def _start(
        self,
        connection: AsyncioConnection | None,
        settlements: Settlements,
        on_stopped: Callable[[str], None],
    ) -> None:
        channel = await Channel.open(connection)
        consuming = Consuming(channel, self._sink, settlements)
        self._number += 1
        tag = f"broker_fl.{self._number}"
        # The broker cancels a consumer whose queue is deleted, or whose leader moves.
        channel.raw.add_on_cancel_callback(
            lambda _: self._ended(consuming, "cancelled by the broker", on_stopped)
        )
        channel.on_closed = lambda reason: self._ended(consuming, str(reason), on_stopped)
        self._consuming, self._tag = consuming, tag
        try:
            await channel.consume(
                self.queue, consuming.deliver, prefetch=self._prefetch, exclusive=self._exclusive, tag=tag
            )
        except BaseException:
            if self._consuming is consuming:
                self._consuming = None
            channel.close()
            raise

    def _ended(self, consuming: Consuming, reason: str, on_stopped: Callable[[str], None]) -> None:
        if self._consuming is consuming:
            self._consuming = None
            consuming.close_when_settled()
            on_stopped(reason)

    async def stop(self) -> None:
        """Cancel it; what it has delivered may still be settled."""
        consuming, self._consuming = self._consuming, None
        if consuming is None or not consuming.channel.is_open:
            return
        if self._is_starting:  # the broker has not said yes: there is no consumer to cancel
            consuming.channel.close()
            return
        try:
            await consuming.channel.cancel(self._tag)
        except (BrokerFLError, asyncio.CancelledError):
            log.debug("the channel closed meanwhile")
        consuming.close_when_settled()
