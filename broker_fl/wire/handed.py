"""Messages that never leave their process, as they are: neither packed nor copied.

The buffer of a model goes along whole, whatever its length, without a checksum: nothing can happen to it on
its way. Who hands it over leaves it alone from then on; who takes it may read it, and does not write to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from broker_fl.errors import FrameRefused
from broker_fl.model import Array
from broker_fl.wire.chunks import NO_CHECKSUM
from broker_fl.wire.frames import MAX_CHUNK_BYTES, pack_chunk
from broker_fl.wire.messages import EventBatch, Events, Message, ModelChunk, UpdateChunk

WHOLE: dict[str, Any] = {"index": 0, "count": 1, "checksum": NO_CHECKSUM}
"""Fields of a chunk that is a whole buffer."""
MESSAGE_BYTES = 1 << 10
"""That a message without a buffer counts in a queue; what it takes is not worth packing it."""
MAX_COUNTED_BYTES = 1 << 30
"""Less than a queue of models may hold."""


@dataclass(frozen=True, slots=True, eq=False)
class Handed:
    """A message, and the buffer if it is one that brings a buffer."""

    message: Message
    payload: memoryview | None = None
    """Read-only, of an array."""

    @classmethod
    def over(cls, chunk: ModelChunk | UpdateChunk, buffer: Array) -> Handed:
        """A chunk that is all of ``buffer`` (uint8, 1-d)."""
        return cls(chunk, buffer.data.toreadonly())

    def __len__(self) -> int:
        """What it counts in a queue, in bytes: about as much as its body would, since what waits there is
        what keeps its buffer alive. At most ``MAX_COUNTED_BYTES``, so that none is too large for a queue.
        """
        message, payload = self.message, self.payload
        if payload is not None:
            return min(MESSAGE_BYTES + len(payload), MAX_COUNTED_BYTES)
        if isinstance(message, EventBatch | Events):
            return MESSAGE_BYTES + sum(map(len, message.events))
        return MESSAGE_BYTES

    def pack(self) -> bytes:
        """The body of an AMQP message that says the same, for a dead letter or whoever reads bytes; of a
        large buffer only as much as fits.
        """
        message, payload = self.message, self.payload
        if payload is not None:
            try:
                return pack_chunk(message.KIND, message.model_dump(), payload[:MAX_CHUNK_BYTES])
            except FrameRefused:  # its result has more metrics than the header of a chunk may have
                pass
        return message.pack()
