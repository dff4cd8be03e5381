"""Frames: what is written is read, and hostile bytes are refused at bounded cost."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.errors import FrameRefused
from broker_fl.wire import frames
from broker_fl.wire.frames import MAX_BODY_BYTES, MAX_CHUNK_HEADER_BYTES, brief, pack, pack_chunk, unpack

INTEGERS = st.integers(-(2**63), 2**63 - 1)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | INTEGERS
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)
FIELDS = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda key: key not in {"v", "kind"}), VALUES, max_size=5
)


def packed(value: object) -> bytes:
    body = msgpack.packb(value)
    assert isinstance(body, bytes)
    return body


@given(FIELDS)
def test_a_frame_comes_back(fields: dict[str, Any]) -> None:
    assert unpack(pack("greeting", fields)) == ({"v": 1, "kind": "greeting", **fields}, None)


@given(FIELDS, st.binary(max_size=10_000))
def test_a_chunk_frame_comes_back_with_its_payload(fields: dict[str, Any], payload: bytes) -> None:
    header, received = unpack(pack_chunk("part", fields, memoryview(payload)))
    assert header == {"v": 1, "kind": "part", **fields}
    assert received is not None
    assert received.tobytes() == payload


def test_the_payload_is_a_view_of_the_body() -> None:
    body = pack_chunk("part", {}, memoryview(b"abc"))
    _, payload = unpack(body)
    assert payload is not None
    assert payload.obj is body


@pytest.mark.parametrize(
    ("length", "prefix"), [(3, b"\xc4\x03"), (3, b"\xc5\x00\x03"), (300, b"\xc5\x01\x2c")]
)
def test_a_payload_may_have_any_width_of_length(length: int, prefix: bytes) -> None:
    _, payload = unpack(packed({"v": 1, "kind": "part"}) + prefix + b"x" * length)
    assert payload is not None
    assert payload.tobytes() == b"x" * length


def test_a_header_larger_than_usual_is_found_too() -> None:
    fields = {"text": "x" * 10_000}
    _, payload = unpack(pack_chunk("part", fields, memoryview(b"abc")))
    assert payload is not None
    assert payload.tobytes() == b"abc"
    assert unpack(pack("plain", {"text": "x" * 100_000}))[0]["text"] == "x" * 100_000


def test_what_would_be_too_long_is_not_sent() -> None:
    with pytest.raises(FrameRefused, match="over the limit of 4000000"):
        pack("greeting", {"text": "x" * MAX_BODY_BYTES})
    with pytest.raises(FrameRefused, match="over the limit"):
        pack_chunk("part", {}, memoryview(bytes(MAX_BODY_BYTES)))
    with pytest.raises(FrameRefused, match="header of a 'part' frame"):
        pack_chunk("part", {"text": "x" * MAX_CHUNK_HEADER_BYTES}, memoryview(b""))


HEADER = packed({"v": 1, "kind": "part"})
LARGE_HEADER = packed({"v": 1, "kind": "part", "text": "x" * MAX_CHUNK_HEADER_BYTES})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "ends inside its msgpack header"),
        (HEADER[:-1], "ends inside its msgpack header"),
        (b"\xc1", "no msgpack map"),
        (b"plain text", "msgpack int, not a map"),
        (packed([1, 2]), "msgpack tuple, not a map"),
        (packed("text"), "msgpack str, not a map"),
        (packed(None), "msgpack NoneType, not a map"),
        (packed({1: 2}), "no msgpack map: int is not allowed for map key"),
        (packed({"v": 1, "kind": "part"})[:-1] + b"\xff", "no msgpack map: 'utf-8' codec"),
        (packed({"kind": "part"}), "protocol version None is not spoken here; this side speaks 1"),
        (packed({"v": 2, "kind": "part"}), "protocol version 2 "),
        (packed({"v": True, "kind": "part"}), "protocol version True "),
        (packed({"v": 1.0, "kind": "part"}), "protocol version 1.0 "),
        (packed({"v": "x" * 1000, "kind": "part"}), "protocol version 'xxx"),
        (packed({"v": 1}), "the kind of a message is a string, not None"),
        (packed({"v": 1, "kind": b"part"}), "the kind of a message is a string, not b'part'"),
        (packed({"v": 1, "kind": ["part"]}), "the kind of a message is a string, not a tuple"),
        (HEADER + b"\x00", "a msgpack bin must follow the header, not the byte 0x00"),
        (HEADER + HEADER, "a msgpack bin must follow the header, not the byte 0x82"),
        (HEADER + b"\xa3abc", "a msgpack bin must follow the header, not the byte 0xa3"),
        (HEADER + b"\xc4", "ends inside the payload's length field"),
        (HEADER + b"\xc6\x00\x00\x00", "ends inside the payload's length field"),
        (HEADER + b"\xc4\x03ab", "the payload has 2 bytes, its length field says 3"),
        (HEADER + b"\xc4\x03abcd", "the payload has 4 bytes, its length field says 3"),
        (HEADER + b"\xc6\xff\xff\xff\xffab", "the payload has 2 bytes, its length field says 4294967295"),
        (LARGE_HEADER + b"\xc4\x01a", "the header of a chunk frame has"),
        (bytes(MAX_BODY_BYTES + 1), "a body of 4000001 bytes is over the limit of 4000000"),
    ],
)
def test_what_is_no_frame_is_refused_in_words(body: bytes, words: str) -> None:
    with pytest.raises(FrameRefused, match=words) as caught:
        unpack(body)
    assert len(str(caught.value)) < 400


def array32(length: int) -> bytes:
    return b"\xdd" + length.to_bytes(4, "big")


def map32(length: int) -> bytes:
    return b"\xdf" + length.to_bytes(4, "big")


@pytest.mark.parametrize(
    "body",
    [
        array32(2**32 - 1),
        map32(2**32 - 1),
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        array32(3_900_000) * 700,
        array32(3_900_000) * 900 + b"\xc0" * 3_900_000,
        array32(3_900_000) * 700_000,
        b"\x91" * MAX_BODY_BYTES,
        b"\x81\xa1x" * 1_000_000,
        b"\x81\xa1x" + map32(400_000) + b"".join(packed(f"{i:06}") + b"\xc0" for i in range(400_000)),
    ],
    ids=[
        "array of 4 billion",
        "map of 4 billion",
        "string of 4 GB",
        "bin of 4 GB",
        "extension of 4 GB",
        "700 arrays in one another, of 3.9 million each",
        "the same, long",
        "as many as fit",
        "nested arrays",
        "nested maps",
        "a map that is too large",
    ],
)
def test_claimed_sizes_reserve_no_memory(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FrameRefused):
            unpack(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * len(body) + 1_000_000


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_and_nothing_else(body: bytes) -> None:
    with pytest.raises(FrameRefused):
        unpack(body)


@given(FIELDS, st.binary(max_size=50), st.data())
def test_damaged_frames_are_read_or_refused_and_nothing_else(
    fields: Any, payload: bytes, data: st.DataObject
) -> None:
    body = bytearray(pack_chunk("part", fields, memoryview(payload)))
    for _ in range(data.draw(st.integers(1, 5))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    del body[data.draw(st.integers(1, len(body))) :]
    try:
        header, _ = unpack(bytes(body))
    except FrameRefused:
        return
    assert header["v"] == frames.PROTOCOL_VERSION


@pytest.mark.parametrize("value", ["x" * 10_000, b"x" * 10_000, 10**200, ["x"] * 1000, None, 1.5, True])
def test_values_from_outside_are_cut_in_error_texts(value: object) -> None:
    assert len(brief(value)) <= 120


def test_a_chunk_whose_header_is_too_long_is_refused_before_it_becomes_objects() -> None:
    """Empty maps take 72 times their bytes."""
    header = {"v": 1, "kind": "update_chunk", "more": [{}] * 500_000}
    body = msgpack.packb(header) + msgpack.packb(b"payload")
    tracemalloc.start()
    try:
        with pytest.raises(FrameRefused, match="the header of a chunk frame has"):
            unpack(body)
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()
