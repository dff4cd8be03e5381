"""What a refused message may do to who reads the dead letters: nothing, whatever is in it."""

from __future__ import annotations

import json
import tracemalloc
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from broker_fl.cli.dead import readable
from broker_fl.errors import SettingError
from broker_fl.topology import Topology
from broker_fl.transports.rabbitmq.dead import MAX_NAME_CHARS, DeadLetters, Letter, read_letter
from broker_fl.wire.frames import pack_chunk
from broker_fl.wire.messages import DeadLetter

MAPS = b"\xdd" + (200_000).to_bytes(4, "big") + b"\x80" * 200_000
"""An array of empty maps: as objects more than 12 MB."""


def body(**fields: Any) -> bytes:
    packed: bytes = msgpack.packb({"v": 1, "kind": "submit", **fields})
    return packed


def with_value(name: bytes, packed: bytes) -> bytes:
    """A frame with one more field, which is packed already."""
    frame = body()
    return bytes([frame[0] + 1]) + frame[1:] + bytes([0xA0 + len(name)]) + name + packed


def read(raw: bytes, key: str = "control", user: str | None = None) -> Letter:
    method = SimpleNamespace(routing_key=key, delivery_tag=1)
    return read_letter(method, SimpleNamespace(headers={}, user_id=user), raw, "F")


@pytest.mark.parametrize("depth", [15, 500, 1_000])
def test_what_is_nested_deeply_is_read_and_shown(depth: int) -> None:
    letter = read(with_value(b"driver", b"\x91" * depth + b"\x01"))
    assert (letter.kind, letter.sender) == ("submit", "")
    shown = json.dumps(readable(letter.header))
    assert ("…" in repr(json.loads(shown)["driver"])) is (depth > 20)


def test_what_is_no_name_is_none_and_a_long_one_is_cut() -> None:
    assert read(body(job=["digits"])).job == ""
    assert read(body(driver="ana", job="digits-1")).sender == "ana"
    long = read(body(driver="x" * 5_000, job="y" * 5_000))
    assert (len(long.sender), len(long.job)) == (MAX_NAME_CHARS, MAX_NAME_CHARS)


@pytest.mark.parametrize("as_note", [False, True])
def test_letters_that_are_kept_take_little_more_than_their_bytes(*, as_note: bool) -> None:
    raw = with_value(b"x", MAPS)
    if as_note:  # as if a controller had written it
        raw = raw.replace(b"\xa6submit", b"\xab" + DeadLetter.KIND.encode())
    tracemalloc.start()
    try:
        letters = [read(bytes(bytearray(raw))) for _ in range(4)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 4 * len(raw)
    assert [letter.header for letter in letters] == [None] * 4


@pytest.mark.parametrize("num_bytes", [0, 3_000_000])
def test_a_letter_of_which_the_controller_kept_the_beginning_says_so_and_is_not_sent_again(
    num_bytes: int,
) -> None:
    names = Topology("F")
    about: dict[str, Any] = {"source": names.reports, "routing_key": "m.join", "user": "F.learner.m"}
    note = DeadLetter(**about, reason="r", time_s=1.0, num_bytes=num_bytes)
    raw = pack_chunk(note.KIND, note.model_dump(), memoryview(bytes(4_096)))
    letter = read(raw, user="F.controller.main")
    assert (letter.is_cut, letter.num_bytes, len(letter.body)) == (num_bytes > 0, num_bytes or 4_096, 4_096)
    if letter.is_cut:  # before anything is published: there is no channel
        with pytest.raises(SettingError, match="only its first 4096 bytes were kept"):
            DeadLetters(None, names, [letter], "F.controller.main").replay(letter)
