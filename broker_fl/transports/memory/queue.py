"""One queue: order, limits and who is served. Pure: no lock, no thread; time is an argument."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker_fl.interfaces import Sink
from broker_fl.topology import Queue
from broker_fl.wire.handed import Handed

if TYPE_CHECKING:
    from broker_fl.transports.memory.delivery import MemoryDelivery
    from broker_fl.transports.memory.transport import MemoryTransport


@dataclass(slots=True, eq=False)
class Message:
    """A message's place in one queue. The body is shared between queues."""

    body: bytes | Handed
    routing_key: str
    user: str = ""
    """The sender's account."""
    sequence: int = 0
    expires_at: float | None = None
    redelivered: bool = False
    died_in: frozenset[str] = frozenset()
    """Queues that dropped it since a consumer last had it; it enters none of them again, so no circles."""

    def __lt__(self, other: Message) -> bool:
        return self.sequence < other.sequence


@dataclass(slots=True, eq=False, kw_only=True)
class Consumer:
    """One consumer and what it has not settled yet."""

    queue: MemoryQueue
    sink: Sink
    prefetch: int
    exclusive: bool
    owner: MemoryTransport
    unacked: dict[MemoryDelivery, Message] = field(default_factory=dict)
    unseen: set[MemoryDelivery] = field(default_factory=set)
    """Those of ``unacked`` that the sink has not been given yet."""

    def take(self, delivery: MemoryDelivery) -> bool:
        """Claim an unseen delivery, either for the sink or to put it back; atomic, one of them gets it."""
        try:
            self.unseen.remove(delivery)
        except KeyError:
            return False
        return True


class MemoryQueue:
    """Messages in order, and the consumers that wait for them."""

    def __init__(self, settings: Queue) -> None:
        self.settings = settings
        self.consumers: deque[Consumer] = deque()
        self.unused_since = 0.0
        self.ready_bytes = 0
        limit = settings.max_length_bytes
        self._max_bytes = float("inf") if limit is None else limit
        self._refuses = settings.overflow == "reject-publish" and limit is not None
        self._sequence = 0
        self._fresh: deque[Message] = deque()
        self._returned: list[Message] = []  # a heap; each is older than all of _fresh

    @property
    def name(self) -> str:
        return self.settings.name

    def __len__(self) -> int:
        return len(self._fresh) + len(self._returned)

    def head(self) -> Message | None:
        """The oldest message that no consumer has."""
        if self._returned:
            return self._returned[0]
        return self._fresh[0] if self._fresh else None

    def push(self, message: Message) -> None:
        self._sequence += 1
        message.sequence = self._sequence
        self._fresh.append(message)
        self.ready_bytes += len(message.body)

    def pop(self) -> Message:
        message = heapq.heappop(self._returned) if self._returned else self._fresh.popleft()
        self.ready_bytes -= len(message.body)
        return message

    def put_back(self, message: Message) -> None:
        """Return a message to where it was."""
        message.redelivered = True
        message.died_in = frozenset()
        heapq.heappush(self._returned, message)
        self.ready_bytes += len(message.body)

    def has_room(self, body_bytes: int) -> bool:
        """Whether a publisher need not wait."""
        return not self._refuses or self.ready_bytes + body_bytes <= self._max_bytes

    @property
    def is_over_limit(self) -> bool:
        """Whether the oldest messages must go."""
        return self.ready_bytes > self._max_bytes and not self._refuses

    def drop_expired(self, now: float) -> Iterator[Message]:
        """Drop messages whose time is over; ``now`` in seconds."""
        while (head := self.head()) is not None and head.expires_at is not None and head.expires_at <= now:
            yield self.pop()

    def next_consumer(self) -> Consumer | None:
        """Whose turn it is, always the first one's where only one is active; None if nobody has credit."""
        consumers = self.consumers
        if not consumers:
            return None
        if len(consumers) == 1 or self.settings.single_active_consumer:
            first = consumers[0]
            return first if len(first.unacked) < first.prefetch else None
        for _ in range(len(consumers)):
            consumers.rotate(-1)
            if len(consumers[-1].unacked) < consumers[-1].prefetch:
                return consumers[-1]
        return None
