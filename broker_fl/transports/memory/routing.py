"""Which queues a routing key reaches."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from broker_fl.topology import Exchange
from broker_fl.transports.memory.queue import MemoryQueue

_MAX_CACHED_KEYS = 10_000


class Router:
    """One exchange and its bindings."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self._bindings: dict[str, dict[MemoryQueue, None]] = {}
        self._matched: dict[str, dict[MemoryQueue, None]] = {}

    def bind(self, queue: MemoryQueue, routing_key: str) -> None:
        self._bindings.setdefault(routing_key, {})[queue] = None
        self._matched.clear()

    def unbind(self, queue: MemoryQueue) -> None:
        for routing_key in [key for key, queues in self._bindings.items() if queue in queues]:
            del self._bindings[routing_key][queue]
            if not self._bindings[routing_key]:
                del self._bindings[routing_key]
        self._matched.clear()

    def route(self, routing_keys: Sequence[str]) -> Collection[MemoryQueue]:
        """Each queue that one of the keys reaches, once."""
        if len(routing_keys) == 1:
            return self._queues(routing_keys[0])
        return dict.fromkeys(queue for key in routing_keys for queue in self._queues(key))

    def _queues(self, routing_key: str) -> Collection[MemoryQueue]:
        if self.exchange.type == "direct":
            return self._bindings.get(routing_key, ())
        found = self._matched.get(routing_key)
        if found is None:
            if len(self._matched) >= _MAX_CACHED_KEYS:
                self._matched.clear()
            found = self._matched[routing_key] = self._match(routing_key)
        return found

    def _match(self, routing_key: str) -> dict[MemoryQueue, None]:
        every, words = self.exchange.type == "fanout", routing_key.split(".")
        return {
            queue: None
            for pattern, queues in self._bindings.items()
            if every or topic_matches(pattern.split("."), words)
            for queue in queues
        }


def topic_matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """AMQP 0-9-1, 3.1.3.3: ``*`` stands for one word, ``#`` for any number of words, none included."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(topic_matches(pattern[1:], words[start:]) for start in range(len(words) + 1))
    if not words:
        return False
    return pattern[0] in ("*", words[0]) and topic_matches(pattern[1:], words[1:])
