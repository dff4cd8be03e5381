"""A transport around another one, to override where it differs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from broker_fl.interfaces import Sink, Transport
from broker_fl.topology import Entity


class DelegatingTransport:
    """See ``Transport``: all that it is told it hands on to ``inner``, as it is."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.user = inner.user

    def declare(self, entities: Iterable[Entity]) -> None:
        self._inner.declare(entities)

    def delete_queue(self, name: str) -> None:
        self._inner.delete_queue(name)

    def delete_exchange(self, name: str) -> None:
        self._inner.delete_exchange(name)

    def consume(self, queue: str, sink: Sink, *, prefetch: int, exclusive: bool = False) -> None:
        self._inner.consume(queue, sink, prefetch=prefetch, exclusive=exclusive)

    def cancel(self, queue: str, *, hand_back: bool = False) -> None:
        self._inner.cancel(queue, hand_back=hand_back)

    def publish(
        self,
        exchange: str,
        routing_keys: Sequence[str],
        body: bytes,
        *,
        persistent: bool = False,
        mandatory: bool = False,
    ) -> None:
        self._inner.publish(exchange, routing_keys, body, persistent=persistent, mandatory=mandatory)

    def flush(self, timeout_s: float) -> bool:
        return self._inner.flush(timeout_s)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._inner.on_reconnect(callback)

    def on_queue_lost(self, callback: Callable[[str], None]) -> None:
        self._inner.on_queue_lost(callback)

    def on_unroutable(self, callback: Callable[[str, str], None]) -> None:
        self._inner.on_unroutable(callback)

    def close(self) -> None:
        self._inner.close()
