"""pika's connection, with two changes that it has no options for; a unit test notices if pika moves them.

With pika's 4 KiB receives, a consumer of 1 MiB bodies needs about twice the CPU time, provided that the C
library keeps freed blocks (``workers/memory.py``); a small message leaves with one system call, not three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pika.adapters.asyncio_connection import AsyncioConnection

RECEIVE_BYTES = 64 << 10
"""Per ``recv``, where pika has 4 KiB. More slows small messages: pika copies what is left after each."""
JOIN_BYTES = 16 << 10


class TunedConnection(AsyncioConnection):  # type: ignore[misc]
    """See above."""

    def _proto_connection_made(self, transport: Any) -> None:
        # On this one object, so that other users of pika in the process keep theirs.
        transport._MAX_RECV_BYTES = RECEIVE_BYTES  # noqa: SLF001
        super()._proto_connection_made(transport)

    def abort(self) -> None:
        """Cut the connection without a word to the broker, which does not answer."""
        if self._transport is not None:
            self._transport.abort()

    def _output_marshaled_frames(self, marshaled_frames: Sequence[bytes]) -> None:
        if len(marshaled_frames) > 1 and sum(map(len, marshaled_frames)) <= JOIN_BYTES:
            marshaled_frames = [b"".join(marshaled_frames)]
        super()._output_marshaled_frames(marshaled_frames)
