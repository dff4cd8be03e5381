"""Frames: what one AMQP message body holds. Normative text: ``schemas/README.md``.

A frame is one msgpack map, the header: ``{"v": 1, "kind": "…", …}``. In a **chunk frame** the payload follows it as one
msgpack ``bin``. Nothing is ever pickled or evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack

from broker_fl.errors import FrameRefused

PROTOCOL_VERSION = 1
MAX_BODY_BYTES = 4_000_000
"""Below what every broker version carries at its default settings, and what one frame may cost in memory."""
MAX_CHUNK_HEADER_BYTES = 4_096
"""What the header of a chunk frame may take, so that its payload is found without unpacking all of the body."""

_BIN_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}


def pack(kind: str, fields: Mapping[str, Any]) -> bytes:
    """Make a frame without payload.

    Raises:
        FrameRefused: it would be longer than ``MAX_BODY_BYTES``.
    """
    body: bytes = msgpack.packb({"v": PROTOCOL_VERSION, "kind": kind, **fields})
    _check_length(len(body))
    return body


def pack_chunk(kind: str, fields: Mapping[str, Any], payload: memoryview) -> bytes:
    """Make a chunk frame; ``payload`` (bytes, 1-d) is copied once, into the result."""
    header = msgpack.packb({"v": PROTOCOL_VERSION, "kind": kind, **fields})
    if len(header) > MAX_CHUNK_HEADER_BYTES:
        raise FrameRefused(f"the header of a {kind!r} frame has {len(header)} bytes of {MAX_CHUNK_HEADER_BYTES}")
    _check_length(len(header) + 5 + len(payload))
    return b"".join((header, b"\xc6", len(payload).to_bytes(4, "big"), payload))


def unpack(body: bytes) -> tuple[dict[str, Any], memoryview | None]:
    """The header of a frame, and its payload (a view of ``body``) where it has one. Arrays come as tuples.

    Raises:
        FrameRefused: too long, not a msgpack map, no string as its kind, another protocol version, or something else
            than one whole ``bin`` behind the header.
    """
    _check_length(len(body))
    view = memoryview(body)
    unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=MAX_BODY_BYTES)
    try:
        unpacker.feed(view[:MAX_CHUNK_HEADER_BYTES])
        try:
            header = unpacker.unpack()
        except msgpack.OutOfData:
            header = msgpack.unpackb(body, use_list=False)
            return _checked_header(header), None
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise FrameRefused(f"the body is no msgpack map: {error or type(error).__name__}") from error
    rest = view[unpacker.tell() :]
    return _checked_header(header), _payload(rest) if rest else None


def _payload(rest: memoryview) -> memoryview:
    width = _BIN_LENGTH_BYTES.get(rest[0])
    if width is None:
        raise FrameRefused(f"a msgpack bin must follow the header, not the byte 0x{rest[0]:02x}")
    length = int.from_bytes(rest[1 : 1 + width], "big")
    payload = rest[1 + width :]
    if len(payload) != length:
        raise FrameRefused(f"the payload has {len(payload)} bytes, its length field says {length}")
    return payload


def _checked_header(header: Any) -> dict[str, Any]:
    if not isinstance(header, dict):
        raise FrameRefused(f"the body is a msgpack {type(header).__name__}, not a map")
    if (version := header.get("v")) != PROTOCOL_VERSION:
        raise FrameRefused(f"protocol version {version!r} is not spoken here; this side speaks {PROTOCOL_VERSION}")
    if not isinstance(header.get("kind"), str):
        raise FrameRefused(f"the kind of a message is a string, not {header.get('kind')!r}")
    return header


def _check_length(num_bytes: int) -> None:
    if num_bytes > MAX_BODY_BYTES:
        raise FrameRefused(f"a body of {num_bytes} bytes is over the limit of {MAX_BODY_BYTES}")
