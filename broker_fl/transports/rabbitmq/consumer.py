"""Consuming from one queue, whatever happens to channels and connections."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from pika.adapters.asyncio_connection import AsyncioConnection

from broker_fl.errors import BrokerFLError, QueueLost, SettingError
from broker_fl.interfaces import Sink
from broker_fl.transports.rabbitmq.channel import Subscription, is_of_quorum
from broker_fl.transports.rabbitmq.consuming import Channels, Consuming

log = logging.getLogger(__name__)


class Consumer:
    """What the owner asked for: consume from this queue, whatever happens."""

    def __init__(self, wanted: Subscription, sink: Sink, *, prefetch: int) -> None:
        self.queue = wanted.queue
        self._wanted = wanted
        self._sink = sink
        self._prefetch = prefetch
        self._consuming: Consuming | None = None
        self._tag = ""
        self._is_starting = False
        self._was_refused = False
        self._is_over = False

    @property
    def is_running(self) -> bool:
        return self._consuming is not None and self._consuming.channel.is_open

    async def start(
        self,
        connection: AsyncioConnection | None,
        channels: Channels,
        on_stopped: Callable[[str], None],
    ) -> None:
        """Consume; ``on_stopped`` is told why, should the broker end it.

        Raises:
            AccessDenied, SettingError, BrokerUnavailable: see ``Transport.consume``.
        """
        if self._is_starting or self.is_running:
            return
        self._is_starting = True
        try:
            await self._start(connection, channels, on_stopped)
        except (SettingError, QueueLost) as error:
            self._was_refused = True  # which closes the channel: from now on it is one of its own
            if self._wanted.quorum or not is_of_quorum(error):
                raise
            self._wanted = replace(self._wanted, quorum=True)
            await self._start(connection, channels, on_stopped)
        finally:
            self._is_starting = False

    async def _start(
        self,
        connection: AsyncioConnection | None,
        channels: Channels,
        on_stopped: Callable[[str], None],
    ) -> None:
        consuming = await channels.take(connection, self._prefetch, alone=self._was_refused)
        if self._is_over:  # stopped before it had a channel
            consuming.leave()
            return
        self._consuming = consuming
        try:
            self._tag = await consuming.start(
                self._wanted, self._sink, lambda reason: self._ended(consuming, reason, on_stopped)
            )
        except BaseException:
            if self._consuming is consuming:
                self._consuming = None
                consuming.leave()
            raise

    def _ended(self, consuming: Consuming, reason: str, on_stopped: Callable[[str], None]) -> None:
        if self._consuming is consuming:
            self._consuming = None
            consuming.leave()
            on_stopped(reason)

    async def stop(self, *, hand_back: bool = False) -> None:
        """Cancel it; what it has delivered may still be settled, or is put back with ``hand_back``."""
        self._is_over = True
        consuming, self._consuming = self._consuming, None
        if consuming is None:
            return
        if self._is_starting:  # the broker has not said yes: there is no consumer to cancel
            consuming.channel.close()
            return
        try:
            if consuming.channel.is_open:
                await consuming.channel.cancel(self._tag)
        except (BrokerFLError, asyncio.CancelledError):
            log.debug("the channel closed meanwhile")
        if hand_back:
            consuming.hand_back(self._tag)
        consuming.leave(self._tag)
