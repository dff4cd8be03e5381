"""Frames: what one AMQP message body holds. Normative text: ``schemas/README.md``.

A frame is one msgpack map, the header: ``{"v": 1, "kind": "…", …}``. In a **chunk frame** the payload follows
it as one msgpack ``bin``. Nothing is ever pickled or evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack

from broker_fl.errors import FrameRefused

PROTOCOL_VERSION = 1
MAX_BODY_BYTES = 4_000_000
"""Below what every broker version carries at its default settings, and what one frame may cost in memory."""
MAX_CHUNK_HEADER_BYTES = 65_536
"""What the header of a chunk frame may take."""
MAX_MAP_ENTRIES = 4_096
"""No kind needs more; each entry that is wrong would cost its receiver an error of its own."""
MIN_CHUNK_BYTES = 4_096
"""Smaller chunks would cost more in headers and bookkeeping than they carry."""
MAX_CHUNK_BYTES = 3_500_000
"""A chunk frame stays below ``MAX_BODY_BYTES``, whatever its header."""

_USUAL_HEADER_BYTES = 4_096
"""Tried first, so that a payload is found without a look at all of the body."""
_BIN_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_NOT_MSGPACK = (ValueError, TypeError, OverflowError, msgpack.UnpackException, RecursionError)


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
        raise FrameRefused(
            f"the header of a {kind!r} frame has {len(header)} bytes of {MAX_CHUNK_HEADER_BYTES}"
        )
    _check_length(len(header) + 5 + len(payload))
    return b"".join((header, b"\xc6", len(payload).to_bytes(4, "big"), payload))


def unpack(body: bytes) -> tuple[dict[str, Any], memoryview | None]:
    """The header of a frame, and its payload (a view of ``body``) where it has one. Arrays come as tuples.

    Raises:
        FrameRefused: too long, not a msgpack map, no string as its kind, another protocol version, or
            something else than one whole ``bin`` behind the header.
    """
    _check_length(len(body))
    view = memoryview(body)
    end = _header_end(view[:_USUAL_HEADER_BYTES]) or _header_end(view)
    if end is None:
        raise FrameRefused(f"the body ends inside its msgpack header, after {len(body)} bytes")
    rest = view[end:]
    if rest and end > MAX_CHUNK_HEADER_BYTES:
        raise FrameRefused(f"the header of a chunk frame has {end} bytes of {MAX_CHUNK_HEADER_BYTES}")
    header = _unpacked(view[:end])
    return _checked_header(header), _payload(rest) if rest else None


def unpack_short_header(body: bytes) -> dict[str, Any] | None:
    """The header of a frame, whatever follows it; None if it takes more than ``MAX_CHUNK_HEADER_BYTES``. For
    who looks into many refused messages: a header may take seventy times its bytes as objects.

    Raises:
        FrameRefused: as ``unpack``, but for what follows the header.
    """
    view = memoryview(body)[:MAX_CHUNK_HEADER_BYTES]
    if (end := _header_end(view)) is None:
        return None
    return _checked_header(_unpacked(view[:end]))


def _unpacked(view: memoryview) -> Any:
    try:
        return msgpack.unpackb(view, use_list=False, max_map_len=MAX_MAP_ENTRIES)
    except _NOT_MSGPACK as error:
        raise _no_map(error) from error


def _header_end(view: memoryview) -> int | None:
    """Where the first msgpack value ends; None if that is not in ``view``.

    Nothing is built: unpacking would reserve memory for every length that an array or map claims to have, and
    a thousand of them fit into one another. Once all claimed elements are known to be there, memory is
    bounded by the body.
    """
    unpacker = msgpack.Unpacker(read_size=len(view) + 1)
    unpacker.feed(view)
    try:
        unpacker.skip()
    except msgpack.OutOfData:
        return None
    except _NOT_MSGPACK as error:
        raise _no_map(error) from error
    return int(unpacker.tell())


def _no_map(error: Exception) -> FrameRefused:
    return FrameRefused(f"the body is no msgpack map: {str(error)[:200] or type(error).__name__}")


def _payload(rest: memoryview) -> memoryview:
    width = _BIN_LENGTH_BYTES.get(rest[0])
    if width is None:
        raise FrameRefused(f"a msgpack bin must follow the header, not the byte 0x{rest[0]:02x}")
    length = int.from_bytes(rest[1 : 1 + width], "big")
    payload = rest[1 + width :]
    if len(rest) < 1 + width:
        raise FrameRefused("the body ends inside the payload's length field")
    if len(payload) != length:
        raise FrameRefused(f"the payload has {len(payload)} bytes, its length field says {length}")
    return payload


def _checked_header(header: Any) -> dict[str, Any]:
    if not isinstance(header, dict):
        raise FrameRefused(f"the body is a msgpack {type(header).__name__}, not a map")
    version = header.get("v")
    if type(version) is not int or version != PROTOCOL_VERSION:  # True == 1 == 1.0
        raise FrameRefused(
            f"protocol version {brief(version)} is not spoken here; this side speaks {PROTOCOL_VERSION}"
        )
    if not isinstance(header.get("kind"), str):
        raise FrameRefused(f"the kind of a message is a string, not {brief(header.get('kind'))}")
    return header


def _check_length(num_bytes: int) -> None:
    if num_bytes > MAX_BODY_BYTES:
        raise FrameRefused(f"a body of {num_bytes} bytes is over the limit of {MAX_BODY_BYTES}")


def brief(value: object) -> str:
    """``repr`` of something that came from outside, cut so that an error message stays short."""
    if isinstance(value, str | bytes):
        value = value[:100]
    text = (
        repr(value)
        if isinstance(value, str | bytes | int | float | bool | None)
        else f"a {type(value).__name__}"
    )
    return text if len(text) <= 120 else text[:119] + "…"
