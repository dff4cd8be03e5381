"""A message on its way to a sink of this process."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from broker_fl.wire.handed import Handed

if TYPE_CHECKING:
    from broker_fl.transports.memory.broker import MemoryBroker
    from broker_fl.transports.memory.queue import Consumer, Message

log = logging.getLogger(__name__)


class MemoryDelivery:
    """See ``Delivery``."""

    __slots__ = ("_body", "_broker", "consumer", "redelivered", "routing_key", "user")

    def __init__(self, broker: MemoryBroker, consumer: Consumer, message: Message) -> None:
        self._broker = broker
        self.consumer = consumer
        self._body = message.body
        self.routing_key = message.routing_key
        self.redelivered = message.redelivered
        self.user: str | None = message.user or None

    @property
    def body(self) -> bytes:
        body = self._body
        return body.pack() if isinstance(body, Handed) else body

    @property
    def handed(self) -> Handed | None:
        """The message itself, if it was handed over; see ``HandsOver``."""
        return self._body if isinstance(self._body, Handed) else None

    def ack(self) -> None:
        self._broker.settle(self, ack=True)

    def reject(self, *, requeue: bool = False) -> None:
        self._broker.settle(self, ack=False, requeue=requeue)

    def hand_over(self) -> None:
        """Give it to its sink. If that raises, the message is dead-lettered, and the thread lives on."""
        if not self.consumer.take(self):
            return
        try:
            self.consumer.sink(self)
        except Exception:
            log.exception(
                "the consumer of queue %r failed; its message is rejected",
                self.consumer.queue.name,
            )
            self.reject()
