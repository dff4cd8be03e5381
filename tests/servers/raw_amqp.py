"""Content headers byte by byte (AMQP 0-9-1, section 4.2.6.1), as no client library would write them."""

from __future__ import annotations

import struct

from pika import BasicProperties

NESTED = 3_000
"""Deeper than Python's calls go."""


class RawProperties(BasicProperties):  # type: ignore[misc]
    """Goes out as these bytes: flags, then the properties whose flags are set."""

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self._raw = raw

    def encode(self) -> list[bytes]:
        return [self._raw]


def short(words: bytes) -> bytes:
    """A short string."""
    return bytes([len(words)]) + words


def with_table(table: bytes, user: str) -> bytes:
    """Properties with the table of headers, and the account that sends it."""
    flags = BasicProperties.FLAG_HEADERS | BasicProperties.FLAG_USER_ID
    return struct.pack(">HI", flags, len(table)) + table + short(user.encode())


def tables(user: str) -> dict[str, bytes]:
    """Tables that RabbitMQ passes on as they are, and that break who believes in them; with the account that
    sends them.
    """
    arrays, inner = b"", b""
    for _ in range(NESTED):
        arrays = b"A" + struct.pack(">I", len(arrays)) + arrays
        inner = short(b"") + b"F" + struct.pack(">I", len(inner)) + inner
    found = {
        "a time beyond all calendars": short(b"a") + b"T" + b"\xff" * 8,
        "tables in tables": inner,
        "arrays in arrays": short(b"a") + arrays,
    }
    return {what: with_table(table, user) for what, table in found.items()}


def in_two_ways(user: str, other: str) -> bytes:
    """Properties that RabbitMQ, which ignores the last bit of the flags, reads as sent by ``user``; and who
    takes that bit for "more flags follow", as the protocol has it, as sent by ``other``.
    """
    flags = BasicProperties.FLAG_CONTENT_TYPE | BasicProperties.FLAG_USER_ID | 1
    content_type = b"\0" + short(b"") + short(other.encode())
    content_type += b"\0" * (len(content_type) % 2)  # its length is the flags' next byte
    return struct.pack(">H", flags) + short(content_type) + short(user.encode())
