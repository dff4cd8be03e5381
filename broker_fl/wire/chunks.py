"""Models and updates as chunks: cut by bytes, checked one by one, put together in any order.

Chunk ``i`` of a buffer holds its bytes ``[i * chunk_bytes, (i + 1) * chunk_bytes)``; a buffer of no bytes is
one empty chunk, so that every model has something that completes it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from broker_fl import recycled
from broker_fl.errors import FrameRefused
from broker_fl.model import Array
from broker_fl.wire.frames import brief

NO_CHECKSUM = ""
"""Of a buffer that is handed over within its process (``handed.py``)."""


def num_chunks(num_bytes: int, chunk_bytes: int) -> int:
    """How many chunks a buffer is cut into; never 0."""
    return max(1, -(-num_bytes // chunk_bytes))


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a buffer; ``payload`` is a view of it."""

    index: int
    count: int
    checksum: str
    payload: memoryview


def cut(buffer: Array, chunk_bytes: int) -> Iterator[Chunk]:
    """The chunks of ``buffer`` (uint8, 1-d), in order, nothing copied."""
    view = buffer.data
    count = num_chunks(len(view), chunk_bytes)
    for index in range(count):
        payload = view[index * chunk_bytes : (index + 1) * chunk_bytes]
        yield Chunk(index, count, checksum(payload), payload)


def checksum(payload: memoryview) -> str:
    """``xxh3:`` and 16 hex digits: XXH3-64 of the payload."""
    return f"xxh3:{xxhash.xxh3_64_hexdigest(payload)}"


def check(payload: memoryview, expected: str) -> None:
    """Hold a payload against its checksum, ``xxh3:<16 hex>`` or ``crc32:<8 hex>`` (of zlib).

    Raises:
        FrameRefused: it does not match, or the checksum is of a kind that is not known here.
    """
    algorithm, _, value = expected.partition(":")
    if algorithm == "xxh3":
        found = xxhash.xxh3_64_hexdigest(payload)
    elif algorithm == "crc32":
        found = f"{zlib.crc32(payload):08x}"
    else:
        raise FrameRefused(f"checksum {brief(expected)} is neither xxh3: nor crc32:")
    if found != value:
        raise FrameRefused(
            f"the payload's {algorithm} is {found}, the header says {brief(value)}: corrupt in transit"
        )


class Assembly:
    """A buffer that fills up from chunks, in any order, doubled or not.

    All that decides how much memory it takes is given by the side that receives; what a chunk says of itself
    is held against it before anything is written.
    """

    def __init__(self, num_bytes: int, chunk_bytes: int) -> None:
        self._buffer: Array | None = None
        self.num_bytes = num_bytes
        self.chunk_bytes = chunk_bytes
        self.count = num_chunks(num_bytes, chunk_bytes)
        self.num_missing = self.count
        """Chunks that are not there yet."""
        self._there = np.zeros(self.count, np.bool_)

    @property
    def buffer(self) -> Array:
        """Where the chunks go; read-only, if it was handed over whole within the process."""
        if self._buffer is None:
            self._buffer = recycled.empty(self.num_bytes)
        return self._buffer

    def add(self, index: int, count: int, expected_checksum: str, payload: memoryview) -> bool:
        """Write one chunk into its place; True when the buffer is whole. A chunk that is there already
        changes nothing.

        Raises:
            FrameRefused: index, count, length or checksum do not fit; the buffer is unchanged.
        """
        if expected_checksum == NO_CHECKSUM and isinstance(payload.obj, np.ndarray):
            return self._take_over(payload)
        if count != self.count or not 0 <= index < self.count:
            raise FrameRefused(f"chunk {index} of {count} does not belong to a buffer of {self.count} chunks")
        start = index * self.chunk_bytes
        length = min(self.chunk_bytes, self.num_bytes - start)
        if len(payload) != length:
            raise FrameRefused(f"chunk {index} of {count} has {len(payload)} bytes instead of {length}")
        if not self._there[index]:
            check(payload, expected_checksum)
            self.buffer[start : start + length] = np.frombuffer(payload, np.uint8)
            self._there[index] = True
            self.num_missing -= 1
        return self.complete

    def _take_over(self, payload: memoryview) -> bool:
        """Have the whole buffer as it is: it was never in a frame."""
        if len(payload) != self.num_bytes:
            raise FrameRefused(
                f"a buffer of {len(payload)} bytes was handed over instead of {self.num_bytes}"
            )
        if not self.complete:
            self._buffer = np.frombuffer(payload, np.uint8)
            self._there[:] = True
            self.num_missing = 0
        return True

    @property
    def complete(self) -> bool:
        """Whether every chunk is there."""
        return self.num_missing == 0

    @property
    def has_begun(self) -> bool:
        """Whether any chunk is there."""
        return self.num_missing < self.count

    def forget(self) -> None:
        """Have nothing, and no memory."""
        self._buffer = None
        self._there[:] = False
        self.num_missing = self.count

    def take(self) -> Array:
        """Hand the whole buffer over, which is then the caller's alone; unless it is read-only."""
        buffer, self._buffer = self.buffer, np.empty(0, np.uint8)
        return buffer
