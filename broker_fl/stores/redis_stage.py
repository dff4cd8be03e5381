"""The chunks of a version on their way into Redis: sent as they come, confirmed later."""

from __future__ import annotations

import secrets
from collections import deque
from typing import Any

import redis

WINDOW_BYTES = 16 << 20
"""Sent and not confirmed, at most; also how much is written between two looks at the epoch."""
_OVERHEAD_BYTES = 1024
"""Counted for each chunk, so that there are never too many small ones under way."""


class Stage:
    """One attempt to write one version. Its keys are its own: no fenced or repeated one touches another's.

    Chunks go out by ``SET`` with an expiry, without a copy, and without waiting for the answer until more
    than ``WINDOW_BYTES`` are under way (40 MB: 13 to 15 ms; waiting for each answer: 20 ms). Errors are
    those of ``redis``.
    """

    def __init__(self, client: redis.Redis, prefix: str, *, expires_s: float) -> None:
        """Begin; ``prefix`` is what the keys begin with, before ``:<stage>:<index>``."""
        self.name = secrets.token_hex(6)
        self.unchecked_bytes = WINDOW_BYTES
        self.newest = -1
        """Of the job's versions, when the epoch was last looked at."""
        self._client = client
        self._keys = f"{prefix}:{self.name}:"
        self._tail = b"\r\n$2\r\nPX\r\n" + _bulk(b"%d" % int(expires_s * 1000))
        self._written: set[int] = set()
        self._under_way: deque[int] = deque()
        self._under_way_bytes = 0
        self._connection: Any = None  # a redis.connection.Connection, whose methods have no types

    def write(self, index: int, data: memoryview) -> None:
        """Send one chunk; may raise the error of an earlier one."""
        if self._connection is None:
            self._connection = self._client.connection_pool.get_connection()
        self._written.add(index)
        head = b"*5\r\n" + _bulk(b"SET") + _bulk(f"{self._keys}{index}".encode()) + b"$%d\r\n" % data.nbytes
        self._connection.send_packed_command([head, data, self._tail], check_health=False)
        self._under_way.append(_OVERHEAD_BYTES + data.nbytes)
        self._under_way_bytes += _OVERHEAD_BYTES + data.nbytes
        self.unchecked_bytes += data.nbytes
        self._confirm(WINDOW_BYTES)

    def flush(self) -> None:
        """Wait until everything is confirmed."""
        self._confirm(0)
        self._let_go()

    def discard(self, first: int = 0) -> None:
        """Delete the chunks from index ``first`` on."""
        self._let_go()
        if keys := [f"{self._keys}{index}" for index in sorted(self._written) if index >= first]:
            self._client.unlink(*keys)

    def close(self) -> None:
        """Break off; what was written expires."""
        self._let_go()

    def _confirm(self, max_bytes: int) -> None:
        """Take answers until at most ``max_bytes`` are under way."""
        while self._under_way and self._under_way_bytes > max_bytes:
            self._connection.read_response()
            self._under_way_bytes -= self._under_way.popleft()

    def _let_go(self) -> None:
        if self._connection is not None:
            if self._under_way:  # their answers are still to come: nobody else may read them
                self._connection.disconnect()
                self._under_way.clear()
                self._under_way_bytes = 0
            self._client.connection_pool.release(self._connection)
            self._connection = None


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(value), value)
