"""Messages that never leave their process: the same to who reads bytes, and no way around checks."""

from __future__ import annotations

import numpy as np
import pytest

from broker_fl.errors import FrameRefused
from broker_fl.wire.chunks import NO_CHECKSUM, Assembly
from broker_fl.wire.frames import MAX_BODY_BYTES
from broker_fl.wire.handed import WHOLE, Handed
from broker_fl.wire.messages import Leave, Result, TaskRef, UpdateChunk, decode

TASK = TaskRef(job="j", round=0)


def update(buffer: np.ndarray, metrics: dict[str, float] | None = None) -> Handed:
    result = Result(learner="a", task=TASK, metrics=metrics or {})
    chunk = UpdateChunk(learner="a", task=TASK, encoding="raw", result=result, **WHOLE)
    return Handed.over(chunk, buffer)


def test_who_reads_bytes_gets_the_same_message() -> None:
    handed = update(np.arange(100, dtype=np.uint8))
    message, payload = decode(handed.pack())
    assert message == handed.message
    assert payload == bytes(range(100))
    leave = Leave(learner="a", session="s")
    assert decode(Handed(leave).pack()) == (leave, None)


def test_bytes_of_a_buffer_that_is_too_long_for_a_frame_are_cut_and_readable() -> None:
    body = update(np.zeros(MAX_BODY_BYTES + 1, np.uint8)).pack()
    message, payload = decode(body)
    assert isinstance(message, UpdateChunk)
    assert payload is not None
    assert 3_000_000 < len(payload) < len(body) <= MAX_BODY_BYTES


def test_bytes_of_a_result_too_long_for_a_header_are_its_message() -> None:
    metrics = {f"{number:0100}": 1.0 for number in range(1_000)}
    body = update(np.zeros(10, np.uint8), metrics).pack()
    assert 100_000 < len(body) < MAX_BODY_BYTES


def test_a_buffer_is_taken_as_it_is_and_cannot_be_written_to() -> None:
    buffer = np.arange(25, dtype=np.uint8)
    assembly, handed = Assembly(25, 10), update(buffer)
    assert handed.payload is not None
    assert assembly.add(0, 1, NO_CHECKSUM, handed.payload)
    assert assembly.complete
    taken = assembly.take()
    assert np.shares_memory(taken, buffer)
    with pytest.raises(ValueError, match="read-only"):
        taken[0] = 1


def test_a_buffer_of_another_length_changes_nothing() -> None:
    assembly = Assembly(25, 10)
    for num_bytes in (0, 10, 24, 26):
        payload = update(np.zeros(num_bytes, np.uint8)).payload
        assert payload is not None
        with pytest.raises(FrameRefused, match=f"a buffer of {num_bytes} bytes"):
            assembly.add(0, 1, NO_CHECKSUM, payload)
    assert assembly.num_missing == 3


def test_what_came_in_a_frame_needs_a_checksum() -> None:
    """Nobody at the other end of a broker hands anything over."""
    _, payload = decode(update(np.zeros(25, np.uint8)).pack())
    assert payload is not None
    for chunk_bytes in (10, 100):
        assembly = Assembly(25, chunk_bytes)
        with pytest.raises(FrameRefused):
            assembly.add(0, 1, NO_CHECKSUM, payload)
        assert not assembly.complete
