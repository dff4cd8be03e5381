"""The message broker, in the terms of AMQP 0-9-1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from broker_fl.topology import Entity
from broker_fl.wire.handed import Handed


class Delivery(Protocol):
    """One message from a queue. It stays the consumer's until it is acked or rejected, once."""

    @property
    def body(self) -> bytes:
        """The frame."""
        ...

    @property
    def routing_key(self) -> str:
        """As published."""
        ...

    @property
    def redelivered(self) -> bool:
        """Whether it may have been delivered before."""
        ...

    @property
    def user(self) -> str | None:
        """The account that sent it, by the broker's word; None where the sender did not have it said."""
        ...

    def ack(self) -> None:
        """Done with it. From any thread; after a lost connection it does nothing: the message comes again."""
        ...

    def reject(self, *, requeue: bool = False) -> None:
        """Do not take it: dead-letter it, or put it back to where it was in the queue."""
        ...


Sink = Callable[[Delivery], None]
"""Takes a delivery on a thread of the transport; must not block, nor call back into the transport except to
ack.
"""


class Transport(Protocol):
    """A connection to the message broker, in the terms of AMQP 0-9-1; for any thread.

    What was declared and consumed is declared and consumed again after a lost connection, by the transport
    itself. Every message says which account sent it.
    """

    @property
    def user(self) -> str:
        """The account of this connection; empty where only the broker knows it (from a certificate)."""
        ...

    def declare(self, entities: Iterable[Entity]) -> None:
        """Make exchanges, queues and bindings, in order; what is there already stays as it is.

        Raises:
            SettingError: it exists with other settings (the message names it and both settings where known).
            AccessDenied: no permission.
            BrokerUnavailable: no answer.
            QueueLost: a queue is on a node of the broker's cluster that is down, and is not ``spare``.
        """
        ...

    def delete_queue(self, name: str) -> None:
        """Delete a queue with all it holds; nothing happens if there is none."""
        ...

    def delete_exchange(self, name: str) -> None:
        """Delete an exchange with its bindings; nothing happens if there is none."""
        ...

    def consume(self, queue: str, sink: Sink, *, prefetch: int, exclusive: bool = False) -> None:
        """Hand the queue's messages to ``sink``, in order, at most ``prefetch`` of them not yet acked.

        Raises:
            AccessDenied: no permission, or ``exclusive`` and somebody else consumes from it.
            SettingError: there is no such queue.
            QueueLost: it is on a node of the broker's cluster that is down.
        """
        ...

    def cancel(self, queue: str, *, hand_back: bool = False) -> None:
        """Stop consuming; unacked deliveries stay valid. The queue is no longer declared again.

        With ``hand_back`` they go back to where they were in the queue, for whoever else consumes from it;
        to ack one does nothing any more.
        """
        ...

    def publish(
        self,
        exchange: str,
        routing_keys: Sequence[str],
        body: bytes,
        *,
        persistent: bool = False,
        mandatory: bool = False,
    ) -> None:
        """Send one body to every queue that one of the keys reaches; waits while the window is full.

        The message is sent again until the broker has confirmed it: it arrives at least once, and in order
        unless a connection was lost in between, or a full queue refused one. ``persistent`` bodies survive a
        restart of the broker (in durable queues). With ``mandatory``, a message that reaches no queue is
        given to ``on_unroutable``.

        Raises:
            TransportClosed: ``close`` was called before or meanwhile.
        """
        ...

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything published is confirmed; False if that takes longer."""
        ...

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call back, on a thread of the transport, each time a lost connection works again and consumers are
        back.
        """
        ...

    def on_queue_lost(self, callback: Callable[[str], None]) -> None:
        """Call back with the name of a queue that was consumed from and is on a node of the broker's cluster
        that went down; again and again until it is back, or ``cancel`` is called.
        """
        ...

    def on_unroutable(self, callback: Callable[[str, str], None]) -> None:
        """Call back with exchange and routing key for each ``mandatory`` message that reached no queue."""
        ...

    def close(self) -> None:
        """Send what was published, as far as the broker takes it within a few seconds; then disconnect."""
        ...


class HandsOver(Protocol):
    """What a ``Transport`` can do besides whose messages never leave the process.

    Its deliveries have an attribute ``handed``: the message itself, or None if it came as bytes; ``body`` is
    there all the same.
    """

    @property
    def hands_over(self) -> bool:
        """Whether it does so: who is at the other end of it may want bytes."""
        ...

    def hand_over(
        self, exchange: str, routing_keys: Sequence[str], handed: Handed, *, mandatory: bool = False
    ) -> None:
        """``Transport.publish`` of a message as it is. Who gave it leaves it alone from then on."""
        ...
