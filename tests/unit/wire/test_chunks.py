"""Chunks: any order, doubled or damaged, gives the same buffer or changes nothing."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.errors import FrameRefused
from broker_fl.wire.chunks import Assembly, Chunk, check, checksum, cut, num_chunks

BUFFERS = st.binary(max_size=300).map(lambda data: np.frombuffer(data, np.uint8))


def add(assembly: Assembly, chunk: Chunk) -> bool:
    return assembly.add(chunk.index, chunk.count, chunk.checksum, chunk.payload)


@given(BUFFERS, st.integers(1, 64), st.randoms(use_true_random=False))
def test_any_order_with_any_doubles_gives_the_buffer(buffer: Any, chunk_bytes: int, random: Any) -> None:
    chunks = list(cut(buffer, chunk_bytes))
    delivered = chunks + random.choices(chunks, k=5)
    random.shuffle(delivered)
    assembly = Assembly(buffer.nbytes, chunk_bytes)
    seen: set[int] = set()
    for chunk in delivered:
        seen.add(chunk.index)
        assert add(assembly, chunk) == assembly.complete == (len(seen) == len(chunks))
        assert assembly.num_missing == len(chunks) - len(seen)
    assert assembly.buffer.tobytes() == buffer.tobytes()


@given(BUFFERS, st.integers(1, 64))
def test_chunks_are_views_that_cover_the_buffer_once(buffer: Any, chunk_bytes: int) -> None:
    chunks = list(cut(buffer, chunk_bytes))
    assert len(chunks) == num_chunks(buffer.nbytes, chunk_bytes) == chunks[0].count
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert b"".join(chunk.payload for chunk in chunks) == buffer.tobytes()
    assert all(len(chunk.payload) == chunk_bytes for chunk in chunks[:-1])
    assert all(
        np.shares_memory(np.frombuffer(chunk.payload, np.uint8), buffer) for chunk in chunks if chunk.payload
    )


def test_an_empty_buffer_is_one_empty_chunk() -> None:
    (chunk,) = cut(np.empty(0, np.uint8), 4096)
    assert (chunk.index, chunk.count, len(chunk.payload)) == (0, 1, 0)
    assembly = Assembly(0, 4096)
    assert not assembly.complete
    assert add(assembly, chunk)


def started() -> tuple[Assembly, list[Chunk]]:
    """A buffer of 25 bytes in chunks of 10, of which the first is there."""
    chunks = list(cut(np.arange(25, dtype=np.uint8), 10))
    assembly = Assembly(25, 10)
    assembly.buffer[:] = 255
    add(assembly, chunks[0])
    return assembly, chunks


@pytest.mark.parametrize(
    ("index", "count", "payload", "words"),
    [
        (3, 3, bytes(5), "chunk 3 of 3 does not belong to a buffer of 3 chunks"),
        (-1, 3, bytes(5), "chunk -1 of 3 does not belong"),
        (2**63 - 1, 3, bytes(5), "does not belong"),
        (1, 2, bytes(10), "chunk 1 of 2 does not belong to a buffer of 3 chunks"),
        (1, 4, bytes(10), "chunk 1 of 4 does not belong"),
        (1, 3, bytes(9), "chunk 1 of 3 has 9 bytes instead of 10"),
        (1, 3, bytes(11), "chunk 1 of 3 has 11 bytes instead of 10"),
        (2, 3, bytes(10), "chunk 2 of 3 has 10 bytes instead of 5"),
        (1, 3, b"", "chunk 1 of 3 has 0 bytes"),
        (0, 3, bytes(9), "chunk 0 of 3 has 9 bytes instead of 10"),
    ],
)
def test_a_chunk_that_does_not_fit_changes_nothing(
    index: int, count: int, payload: bytes, words: str
) -> None:
    assembly, _ = started()
    before = assembly.buffer.copy()
    with pytest.raises(FrameRefused, match=words):
        assembly.add(index, count, checksum(memoryview(payload)), memoryview(payload))
    assert (assembly.buffer == before).all()
    assert assembly.num_missing == 2


@given(st.integers(0, 9), st.integers(1, 255))
def test_a_flipped_byte_is_noticed_and_the_right_chunk_still_taken(place: int, flip: int) -> None:
    assembly, chunks = started()
    damaged = bytearray(chunks[1].payload)
    damaged[place] ^= flip
    for known in (chunks[1].checksum, f"crc32:{zlib.crc32(chunks[1].payload):08x}"):
        with pytest.raises(FrameRefused, match="corrupt in transit"):
            assembly.add(1, 3, known, memoryview(damaged))
    assert (assembly.buffer[10:] == 255).all()
    assert not add(assembly, chunks[1])
    assert add(assembly, chunks[2])


def test_a_chunk_that_is_there_is_not_written_over() -> None:
    assembly, chunks = started()
    assembly.add(0, 3, checksum(memoryview(bytes(10))), memoryview(bytes(10)))
    assert assembly.buffer[:10].tobytes() == bytes(chunks[0].payload)


@pytest.mark.parametrize(
    "known", ["", "md5:00", "xxh3", "crc32", "XXH3:2d06800538d394c2", "sha256:" + "0" * 64, "x" * 80]
)
def test_an_unknown_or_missing_checksum_is_refused(known: str) -> None:
    with pytest.raises(FrameRefused):
        check(memoryview(b"data"), known)


def test_checksums_have_known_values() -> None:
    check(memoryview(b"123456789"), "crc32:cbf43926")
    check(memoryview(b""), "xxh3:2d06800538d394c2")
    assert checksum(memoryview(b"")) == "xxh3:2d06800538d394c2"
