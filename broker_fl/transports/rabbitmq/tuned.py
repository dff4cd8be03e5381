"""pika's connection with another way of reading and writing frames: a body's bytes are copied once each way.

pika copies what it receives for each frame again and again, holding Python's lock; for bodies of a mebibyte
that was most of what a process of learners did. Here what was received is looked at in place: pieces of a
body go to pika's assembler as views, which joins them once. A message leaves as one buffer, so that a small
one takes one system call. A unit test notices if pika moves what this rests on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from pika import frame, spec
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import InvalidFrameError

RECEIVE_BYTES = 256 << 10
"""Per ``recv``, where pika has 4 KiB; a frame of RabbitMQ has 128 KiB at most."""
_HEAD = struct.Struct(">BHL")
"""Type, channel and length of a frame (AMQP 0-9-1, section 2.3.5)."""
_END = bytes([spec.FRAME_END])
_CONTENT = struct.Struct(">HHQH")
"""Class, weight, length of the body and flags of a content header (section 4.2.6.1)."""
_MORE_FLAGS = 0b11
"""Flags that stand for no property: the last says that more of them follow, which RabbitMQ ignores."""
_SHORT, _TABLE = 0, -1
_BEFORE_USER = (_SHORT, _SHORT, _TABLE, 1, 1, _SHORT, _SHORT, _SHORT, _SHORT, 8, _SHORT)
"""Properties that come before ``user_id``, from the first flag on: short string, table, or so many bytes."""
_FIRST_FLAG = spec.BasicProperties.FLAG_CONTENT_TYPE


class FrameReader:
    """Cuts a stream of bytes into frames. What is left of one waits for the bytes that follow, but a body's
    are handed on as they come, in as many ``Body`` frames as it takes: what is put together is the same.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._body_channel = 0
        self._body_left: int | None = None
        """Of the body frame that is being read; None between frames."""

    def feed(self, received: bytes) -> Iterator[frame.Frame | frame.ProtocolHeader]:
        """The frames that these bytes complete.

        Raises:
            InvalidFrameError: they are none.
        """
        data = self._rest + received if self._rest else received
        self._rest = b""
        view, at = memoryview(data), 0
        while at < len(data):
            if self._body_left == 0:
                at += self._end(data, at)
            elif self._body_left is not None:
                part = view[at : at + self._body_left]
                at += len(part)
                self._body_left -= len(part)
                yield frame.Body(self._body_channel, part)
            elif (size := self._size(data, at)) is None or at + size > len(data):
                self._rest = data[at:]
                return
            elif data[at] == spec.FRAME_BODY:
                _, self._body_channel, self._body_left = _HEAD.unpack_from(data, at)
                at += size
            elif data[at] == spec.FRAME_HEADER:
                yield _content_header(data[at : at + size])
                at += size
            else:
                _, found = frame.decode_frame(data[at : at + size])
                at += size
                if found is not None:
                    yield found

    def _end(self, data: bytes, at: int) -> int:
        """Past the byte that ends a body frame."""
        if data[at] != spec.FRAME_END:
            raise InvalidFrameError("Invalid FRAME_END marker")
        self._body_left = None
        return len(_END)

    @staticmethod
    def _size(data: bytes, at: int) -> int | None:
        """Of the frame that begins here, of a body's only what comes before the bytes; None if too little is
        there to say.
        """
        if data[at : at + 4] == b"AMQP":
            return 8
        if at + _HEAD.size > len(data):
            return None
        kind, _, length = _HEAD.unpack_from(data, at)
        return _HEAD.size if kind == spec.FRAME_BODY else _HEAD.size + int(length) + len(_END)


def _content_header(data: bytes) -> frame.Header:
    """With nothing in it but the body's length and ``user_id``. What else there is, senders make up: tables
    within tables end Python's stack, and a time beyond the calendar is an error of its own; either would end
    the connection, on which the message comes again.

    Raises:
        InvalidFrameError: that is none.
    """
    if len(data) < _HEAD.size + _CONTENT.size + len(_END) or data[-1:] != _END:
        raise InvalidFrameError("Invalid content header")
    _, channel, _ = _HEAD.unpack_from(data)
    header = data[_HEAD.size : -len(_END)]
    _, _, body_size, flags = _CONTENT.unpack_from(header)
    return frame.Header(channel, body_size, spec.BasicProperties(user_id=_user_id(header, flags)))


def _user_id(header: bytes, flags: int) -> str | None:
    """The account that sent it, as the broker has read it; None if it is not said, or could be read in
    another way.
    """
    if not flags & spec.BasicProperties.FLAG_USER_ID or flags & _MORE_FLAGS:
        return None
    at = _CONTENT.size
    try:
        for place, width in enumerate(_BEFORE_USER):
            if not flags & _FIRST_FLAG >> place:
                continue
            if width == _TABLE:
                at += 4 + int.from_bytes(header[at : at + 4])
            else:
                at += width if width != _SHORT else 1 + header[at]
        user = header[at + 1 : at + 1 + header[at]]
        return user.decode() if len(user) == header[at] else None
    except (IndexError, UnicodeDecodeError):
        return None


class TunedConnection(AsyncioConnection):  # type: ignore[misc]
    """See above."""

    def _proto_connection_made(self, transport: Any) -> None:
        # On this one object, so that other users of pika in the process keep theirs.
        transport._MAX_RECV_BYTES = RECEIVE_BYTES  # noqa: SLF001
        self._reader = FrameReader()
        super()._proto_connection_made(transport)

    def abort(self) -> None:
        """Cut the connection without a word to the broker, which does not answer."""
        if self._transport is not None:
            self._transport.abort()

    def _on_data_available(self, data_in: bytes) -> None:
        self.bytes_received += len(data_in)
        for one in self._reader.feed(data_in):
            self._process_frame(one)

    def _send_message(self, channel_number: int, method_frame: Any, content: tuple[Any, bytes]) -> None:
        properties, body = content
        pieces: list[bytes | memoryview] = [
            frame.Method(channel_number, method_frame).marshal(),
            frame.Header(channel_number, len(body), properties).marshal(),
        ]
        view, most = memoryview(body), self._body_max_length
        for start in range(0, len(body), most):
            part = view[start : start + most]
            pieces += (_HEAD.pack(spec.FRAME_BODY, channel_number, len(part)), part, _END)
        # A view, so that what a full socket did not take is not copied again.
        self._output_marshaled_frames([memoryview(b"".join(pieces))])
