"""Publishing: a window of unconfirmed bytes, and sending again until the broker has confirmed."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pika
from pika import spec

from broker_fl.errors import TransportClosed
from broker_fl.transports.rabbitmq.channel import Channel
from broker_fl.transports.rabbitmq.io import IoThread, backoff
from broker_fl.transports.traffic import Traffic

log = logging.getLogger(__name__)

MULTICAST_KEYS = 100
"""Keys of one publish. The broker copies the list to every queue: 1,000 take 3.4 s and 1.7 GB, 100 0.09 s."""
MESSAGE_OVERHEAD_BYTES = 256
"""Counted for each message, so that small ones fill the window, too."""
SHARE_BYTES = 256 << 10
REFUSED_FIRST_S, REFUSED_LONGEST_S = 0.05, 2.0
REFUSED_TOO_LONG_S = 5.0
"""Then it may not be a full queue: a channel whose first message to a quorum queue met a leader that had just
died refuses all that follow (seen on RabbitMQ 3.10.8), and a new channel does not.
"""


@dataclass(slots=True, eq=False)
class Outgoing:
    """A message that the broker has not confirmed yet."""

    sequence: int
    exchange: str
    routing_keys: Sequence[str]
    body: bytes
    persistent: bool
    mandatory: bool
    window_bytes: int
    was_refused: bool = False


class Publisher:
    """``publish``, ``flush`` and ``stop`` are for any thread; the rest is for the I/O thread."""

    def __init__(
        self,
        io: IoThread,
        *,
        window_bytes: int,
        on_unroutable: Callable[[str, str], None],
        traffic: Traffic,
        user: str = "",
    ) -> None:
        """``user`` is the connection's account, which every message names; empty: none is named."""
        self._io = io
        self._traffic = traffic
        self._user = user or None
        self._window_bytes = window_bytes
        self._on_unroutable = on_unroutable
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._used_bytes = 0
        self._line: deque[object] = deque()
        self._unconfirmed: OrderedDict[int, Outgoing] = OrderedDict()
        self._unsent: deque[Outgoing] = deque()
        self._sequence = 0
        self._num_waiting = 0
        self._stopped = False
        self._send_is_due = False
        # Of the I/O thread:
        self._channel: Channel | None = None
        self._blocked = False
        self._tag = 0
        self._refused_since = 0.0
        self.on_stuck: Callable[[], None] = lambda: None
        """Called when messages have been refused for so long that another channel should be tried."""
        self._sent: OrderedDict[int, Outgoing] = OrderedDict()
        self._refused: dict[int, Outgoing] = {}
        self._refused_delays: Iterator[float] | None = None

    # ------------------------------------------------------------ any thread

    def publish(
        self, exchange: str, routing_keys: Sequence[str], body: bytes, *, persistent: bool, mandatory: bool
    ) -> None:
        """See ``Transport.publish``."""
        for start in range(0, len(routing_keys), MULTICAST_KEYS):
            keys = tuple(routing_keys[start : start + MULTICAST_KEYS])
            size = len(body) + MESSAGE_OVERHEAD_BYTES + 32 * (len(keys) - 1)
            with self._changed:
                self._wait_for_window(size)
                self._sequence += 1
                message = Outgoing(self._sequence, exchange, keys, body, persistent, mandatory, size)
                self._used_bytes += size
                self._unconfirmed[message.sequence] = message
                self._unsent.append(message)
                wake, self._send_is_due = not self._send_is_due, True
            if wake:
                self._io.soon(self._send)

    def _wait_for_window(self, size: int) -> None:
        # First come, first served: a large body is not overtaken for ever by small ones.
        if not self._line and self._fits(size) and not self._stopped:
            return
        self._io.check_not_current()
        ticket = object()
        self._line.append(ticket)
        self._num_waiting += 1
        try:
            self._changed.wait_for(lambda: self._stopped or (self._line[0] is ticket and self._fits(size)))
        finally:
            self._num_waiting -= 1
            self._line.remove(ticket)
            self._changed.notify_all()
        if self._stopped:
            raise TransportClosed("the transport is closed")

    def _fits(self, size: int) -> bool:
        # A body larger than the window goes alone.
        return not self._used_bytes or self._used_bytes + size <= self._window_bytes

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was published so far is confirmed."""
        with self._changed:
            last = self._sequence
            self._num_waiting += 1
            try:
                return self._changed.wait_for(
                    lambda: next(iter(self._unconfirmed), last + 1) > last, timeout_s
                )
            finally:
                self._num_waiting -= 1

    def stop(self) -> None:
        """Take no more; whoever waits for the window gets ``TransportClosed``."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def num_unconfirmed(self) -> int:
        return len(self._unconfirmed)

    @property
    def unconfirmed_bytes(self) -> int:
        """Of the window, how much is in use."""
        return self._used_bytes

    # ------------------------------------------------------------ I/O thread

    async def use(self, channel: Channel) -> None:
        """Publish on this channel from now on; all that is not confirmed is sent again, in order."""
        channel.raw.add_on_return_callback(self._returned)
        await channel.confirm(self._confirmed)
        self._channel, self._blocked, self._tag = channel, False, 0
        self._traffic.block(False)
        self._sent.clear()
        self._send_again(())

    def pause(self) -> None:
        """The channel is gone."""
        self._channel = None

    def block(self, blocked: bool) -> None:
        """The broker is short of memory or disk space, or no longer is."""
        log.warning(
            "RabbitMQ %s publishers",
            "has a memory or disk alarm and blocks" if blocked else "no longer blocks",
        )
        self._blocked = blocked
        self._traffic.block(blocked)
        self._send()

    def refuse_exchange(self, exchange: str) -> None:
        """Hold back what goes to this exchange, to be tried again later; the rest need not wait for it."""
        with self._changed:
            self._refuse([message for message in self._unconfirmed.values() if message.exchange == exchange])

    def drop_exchange(self, exchange: str) -> None:
        """Give up what goes to an exchange that does not exist: it reaches no queue."""
        with self._changed:
            dropped = [message for message in self._unconfirmed.values() if message.exchange == exchange]
            for message in dropped:
                self._settle(message)
        for message in dropped:
            if message.mandatory:
                self._on_unroutable(exchange, message.routing_keys[0])

    def _send_again(self, refused: Sequence[Outgoing]) -> None:
        with self._changed:
            if refused:
                self._unsent.extendleft(reversed(refused))
            else:
                self._unsent = deque(m for m in self._unconfirmed.values() if m.sequence not in self._refused)
        self._send()

    def _send(self) -> None:
        with self._changed:
            self._send_is_due = False
        # A share at a time: what arrives meanwhile (and heartbeats) must not wait for a whole window.
        sent_bytes = 0
        while self._channel is not None and self._channel.is_open and not self._blocked:
            try:
                message = self._unsent.popleft()
            except IndexError:
                return
            self._transmit(self._channel, message)
            sent_bytes += message.window_bytes
            if sent_bytes >= SHARE_BYTES:
                self._io.soon(self._send)
                return

    def _transmit(self, channel: Channel, message: Outgoing) -> None:
        first, *others = message.routing_keys
        properties = pika.BasicProperties(
            delivery_mode=2 if message.persistent else 1,
            headers={"BCC": others} if others else None,
            user_id=self._user,
        )
        self._tag += 1
        self._sent[self._tag] = message
        self._traffic.sent(message.body)
        channel.raw.basic_publish(message.exchange, first, message.body, properties, message.mandatory)

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        messages = []
        if method.multiple:
            while self._sent and next(iter(self._sent)) <= method.delivery_tag:
                messages.append(self._sent.popitem(last=False)[1])
        elif method.delivery_tag in self._sent:
            messages.append(self._sent.pop(method.delivery_tag))
        with self._changed:
            if isinstance(method, spec.Basic.Nack):
                self._refuse(messages)
                return
            for message in messages:
                self._settle(message)

    def _settle(self, message: Outgoing) -> None:
        if self._unconfirmed.pop(message.sequence, None) is None:
            return
        self._refused.pop(message.sequence, None)
        if message.was_refused:
            self._refused_delays = None
        self._used_bytes -= message.window_bytes
        if self._num_waiting:
            self._changed.notify_all()

    def _refuse(self, messages: Sequence[Outgoing]) -> None:
        """Try these again after a while: a queue is full."""
        if not messages:
            return
        if self._refused_delays is None:
            self._refused_delays = backoff(REFUSED_FIRST_S, REFUSED_LONGEST_S)
            self._refused_since = self._io.loop.time()
        if not self._refused:
            delay_s = next(self._refused_delays)
            log.info("a queue refuses messages: it is full; trying again in %.2f s", delay_s)
            self._io.loop.call_later(delay_s, self._retry)
        for message in messages:
            message.was_refused = True
            self._refused[message.sequence] = message

    def _retry(self) -> None:
        refused = [self._refused[sequence] for sequence in sorted(self._refused)]
        self._refused.clear()
        if not refused:
            return
        if self._io.loop.time() - self._refused_since >= REFUSED_TOO_LONG_S and self._channel is not None:
            self._refused_since = self._io.loop.time()
            channel, self._channel = self._channel, None
            channel.close()
            self.on_stuck()
        self._send_again(refused)

    def _returned(self, _: Any, method: Any, __: Any, ___: bytes) -> None:
        self._on_unroutable(method.exchange, method.routing_key)
