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

from pika import data as amqp
from pika import frame, spec
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.select_connection import SelectConnection
from pika.exceptions import InvalidFrameError

from broker_fl.wire.frames import MAX_BODY_BYTES

RECEIVE_BYTES = 256 << 10
"""Per ``recv``, where pika has 4 KiB; a frame of RabbitMQ has 128 KiB at most."""
MAX_TAKEN_BYTES = MAX_BODY_BYTES + 1
"""Of one body: enough to see that it is too long."""
_HEAD = struct.Struct(">BHL")
"""Type, channel and length of a frame (AMQP 0-9-1, section 2.3.5)."""
_END = bytes([spec.FRAME_END])
_CONTENT = struct.Struct(">HHQH")
"""Class, weight, length of the body and flags of a content header (section 4.2.6.1)."""
_MORE_FLAGS = 0b11
"""Flags that stand for no property: the last says that more of them follow, which RabbitMQ ignores."""
_SHORT, _TABLE = 0, -1
_PROPERTIES = (_SHORT, _SHORT, _TABLE, 1, 1, _SHORT, _SHORT, _SHORT, _SHORT, 8, _SHORT)
"""Properties that come before ``user_id``, from the first flag on: short string, table, or so many bytes."""
_HEADERS, _USER = 2, len(_PROPERTIES)
"""Places in this order."""
FIRST_DEATH = "x-first-death-queue"
"""Header that RabbitMQ adds to a message which a queue handed on as a dead letter: the queue's name."""
_FIRST_DEATH = bytes([len(FIRST_DEATH)]) + FIRST_DEATH.encode() + b"S"
_FIRST_FLAG = spec.BasicProperties.FLAG_CONTENT_TYPE


class FrameReader:
    """Cuts a stream of bytes into frames. What is left of one waits for the bytes that follow, but a body's
    are handed on as they come, in as many ``Body`` frames as it takes: what is put together is the same. Of a
    body that is longer than any that is sent here, only ``MAX_TAKEN_BYTES`` come out: a broker may take 128
    MiB and more from anybody, and a thousand of them may be on their way to a consumer.
    """

    def __init__(self, *, reads_headers: bool = False) -> None:
        """``reads_headers``: messages have their table of headers, where it can be read."""
        self._reads_headers = reads_headers
        self._rest = b""
        self._body_channel = 0
        self._body_left: int | None = None
        """Of the body frame that is being read; None between frames."""
        self._cut: dict[int, int] = {}
        """Channel → how much of the body that it brings is still wanted, where that is cut."""

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
                if wanted := self._wanted(part):
                    yield frame.Body(self._body_channel, wanted)
            elif (size := self._size(data, at)) is None or at + size > len(data):
                self._rest = data[at:]
                return
            elif data[at] == spec.FRAME_BODY:
                _, self._body_channel, self._body_left = _HEAD.unpack_from(data, at)
                at += size
            else:
                found = self._whole(data[at : at + size])
                at += size
                if found is not None:
                    yield found

    def _whole(self, data: bytes) -> frame.Frame | frame.ProtocolHeader | None:
        if data[0] == spec.FRAME_HEADER:
            return self._cut_to_size(_content_header(data, reads_headers=self._reads_headers))
        return frame.decode_frame(data)[1]

    def _cut_to_size(self, header: frame.Header) -> frame.Header:
        self._cut.pop(header.channel_number, None)
        if header.body_size > MAX_TAKEN_BYTES:
            header.body_size = self._cut[header.channel_number] = MAX_TAKEN_BYTES
        return header

    def _wanted(self, part: memoryview) -> memoryview:
        left = self._cut.get(self._body_channel)
        if left is None:
            return part
        part = part[:left]
        self._cut[self._body_channel] = left - len(part)
        return part

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


def _content_header(data: bytes, *, reads_headers: bool) -> frame.Header:
    """With nothing in it but the body's length, ``user_id``, and what can be read of the table of headers if
    that is wanted, or else of it the one header ``FIRST_DEATH``. What else there is, senders make up: tables
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
    properties = spec.BasicProperties(
        user_id=_user_id(header, flags),
        headers=_table(header, flags) if reads_headers else _first_death(header, flags),
    )
    return frame.Header(channel, body_size, properties)


def _start_of(place: int, header: bytes, flags: int) -> int | None:
    """Where the property of that place begins; None if it is not there, or could be read in another way.

    Raises:
        IndexError: the header ends before it.
    """
    if not flags & _FIRST_FLAG >> place or flags & _MORE_FLAGS:
        return None
    at = _CONTENT.size
    for before, width in enumerate(_PROPERTIES[:place]):
        if not flags & _FIRST_FLAG >> before:
            continue
        if width == _TABLE:
            at += 4 + int.from_bytes(header[at : at + 4])
        else:
            at += width if width != _SHORT else 1 + header[at]
    return at


def _user_id(header: bytes, flags: int) -> str | None:
    """The account that sent it, as the broker has read it; None if it is not said, or cannot be told."""
    try:
        at = _start_of(_USER, header, flags)
        if at is None:
            return None
        user = header[at + 1 : at + 1 + header[at]]
        return user.decode() if len(user) == header[at] else None
    except (IndexError, UnicodeDecodeError):
        return None


def _first_death(header: bytes, flags: int) -> dict[str, str] | None:
    """Where it died first, if the table of headers says so: looked for, not read, for anybody may have
    written the rest of it. In what an account sent itself it may be anything.
    """
    if not flags & spec.BasicProperties.FLAG_HEADERS or (found := header.find(_FIRST_DEATH)) < 0:
        return None
    at = found + len(_FIRST_DEATH)
    end = at + 4 + min(int.from_bytes(header[at : at + 4]), 255)
    return {FIRST_DEATH: header[at + 4 : end].decode("utf-8", "backslashreplace")}


def _table(header: bytes, flags: int) -> dict[Any, Any] | None:
    """The table of headers; an empty one where it cannot be read; None if there is none."""
    if not flags & spec.BasicProperties.FLAG_HEADERS:
        return None
    try:
        at = _start_of(_HEADERS, header, flags)
        return {} if at is None else dict(amqp.decode_table(header, at)[0])
    except Exception:  # noqa: BLE001 - whatever pika makes of what anybody may have written
        return {}


class _Tuned:
    """What is otherwise than in pika's connections."""

    _READS_HEADERS = False

    def _proto_connection_made(self, transport: Any) -> None:
        # On this one object, so that other users of pika in the process keep theirs.
        transport._MAX_RECV_BYTES = RECEIVE_BYTES  # noqa: SLF001
        self._reader = FrameReader(reads_headers=self._READS_HEADERS)
        super()._proto_connection_made(transport)  # type: ignore[misc]

    def _on_data_available(self, data_in: bytes) -> None:
        self.bytes_received += len(data_in)  # type: ignore[attr-defined]
        for one in self._reader.feed(data_in):
            self._process_frame(one)  # type: ignore[attr-defined]


class TolerantConnection(_Tuned, SelectConnection):  # type: ignore[misc]
    """Under ``pika.BlockingConnection``: messages have their table of headers where it can be read, and none
    of them ends the connection.
    """

    _READS_HEADERS = True


class TunedConnection(_Tuned, AsyncioConnection):  # type: ignore[misc]
    """See above."""

    def abort(self) -> None:
        """Cut the connection without a word to the broker, which does not answer."""
        if self._transport is not None:
            self._transport.abort()

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
