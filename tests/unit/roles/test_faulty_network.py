"""A network that does what it should not: doubles, loses, corrupts and mixes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_fl.wire import events as e
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import cut
from broker_fl.wire.frames import pack_chunk
from broker_fl.wire.job import Transfer
from tests.unit.roles.stage import Adds, Stage, done, eventually, kinds, model_of, same


@pytest.fixture
def stage(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Stage(tmp_path, heartbeat_s=0.3) as made:
        yield made


def test_messages_doubled_by_the_network_are_counted_once(stage: Stage) -> None:
    stage.controller()
    stage.host({name: Adds(1.0) for name in "ab"}, tamper=lambda _, body: [body, body])
    transfer = Transfer(chunk_bytes=4096)
    job = stage.submit(model_of(0.0, size=5_000), rounds=4, min_learners=2, transfer=transfer)
    done(job)
    same(job.model(), model_of(4.0, size=5_000))
    folded = [event for event in job.events(follow=False) if isinstance(event, e.UpdateFolded)]
    assert len(folded) == 8


@pytest.mark.parametrize("what", ["result", "update_chunk"])
def test_a_message_that_is_lost_is_sent_again_and_not_trained_again(stage: Stage, what: str) -> None:
    lost: list[str] = []

    def lose_one(_: str, body: bytes) -> list[bytes]:
        kind = m.decode(body)[0].KIND
        if kind == what and not lost:
            lost.append(kind)
            return []
        return [body]

    stage.controller()
    adds = Adds(1.0)
    stage.host({"a": adds}, tamper=lose_one)
    job = stage.submit(model_of(0.0, size=5_000), rounds=2, transfer=Transfer(chunk_bytes=4096))
    done(job)
    assert lost
    assert adds.num_trained == 2
    same(job.model(), model_of(2.0, size=5_000))


def test_a_chunk_corrupted_on_its_way_is_refused_and_the_learner_asked_again(stage: Stage) -> None:
    broken: list[int] = []

    def corrupt_one(_: str, body: bytes) -> list[bytes]:
        if m.decode(body)[0].KIND == "update_chunk" and not broken:
            broken.append(1)
            return [body[:-1] + bytes([body[-1] ^ 1])]
        return [body]

    stage.controller()
    stage.host({"a": Adds(1.0)}, tamper=corrupt_one)
    job = stage.submit(rounds=2)
    done(job)
    same(job.model(), model_of(2.0))
    assert "corrupt in transit" in stage.dead_letters(1)[0][0]


def test_booleans_that_are_none_are_refused_once_and_not_asked_for_for_ever(stage: Stage) -> None:
    broken: list[int] = []

    def two(_: str, body: bytes) -> list[bytes]:
        message, payload = m.decode(body)
        if not isinstance(message, m.UpdateChunk) or broken:
            return [body]
        broken.append(1)
        (chunk,) = cut(np.full(len(payload or b""), 2, np.uint8), 1 << 20)
        header = message.model_copy(update={"checksum": chunk.checksum})
        return [pack_chunk(header.KIND, header.model_dump(), chunk.payload)]

    stage.controller()
    stage.host({"a": Adds(1.0)}, tamper=two)
    model = {"w": np.zeros(3, np.float32), "mask": np.array([True, False])}
    job = stage.submit(model, rounds=1)
    done(job)
    assert [kind for kind in kinds(job) if kind == "update_refused"] == ["update_refused"]


def test_parts_of_the_model_that_a_learner_never_got_are_sent_again(stage: Stage) -> None:
    """A broker that restarts forgets the chunks that were still in the mailbox."""
    stage.controller()
    host = stage.host({"a": (adds := Adds(1.0))})
    assert host.wait_welcomed(30)
    broken: list[int] = []

    def corrupt_one(_: str, body: bytes) -> list[bytes]:
        if m.decode(body)[0].KIND == "model_chunk" and len(broken) < 2:
            broken.append(1)
            return [body[:-1] + bytes([body[-1] ^ 1])] if len(broken) == 2 else [body]
        return [body]

    controller = next(iter(stage.cords))
    inner = controller._transport.publish

    def publish(exchange: str, keys: Any, body: bytes, **options: Any) -> None:
        for changed in corrupt_one(exchange, body):
            inner(exchange, keys, changed, **options)

    controller._transport.publish = publish  # type: ignore[method-assign,assignment]
    job = stage.submit(model_of(0.0, size=5_000), rounds=1, transfer=Transfer(chunk_bytes=4096))
    done(job)
    assert len(broken) == 2
    assert adds.num_trained == 1
    same(job.model(), model_of(1.0, size=5_000))


def test_two_trainings_of_a_learner_that_was_restarted_are_not_mixed(stage: Stage) -> None:
    """It dies after the first chunk of its update; what it trains then differs."""
    stage.controller()
    sent: list[int] = []

    def first_chunk_only(_: str, body: bytes) -> list[bytes]:
        if m.decode(body)[0].KIND == "update_chunk":
            sent.append(1)
            return [body] if len(sent) == 1 else []
        return [body]

    host = stage.host({"a": Adds(5.0)}, tamper=first_chunk_only)
    job = stage.submit(model_of(0.0, size=5_000), rounds=1, transfer=Transfer(chunk_bytes=4096))
    eventually(lambda: len(sent) >= 5, "an upload that breaks off")
    host._transport.close()
    stage.host({"a": Adds(1.0)})
    done(job)
    same(job.model(), model_of(1.0, size=5_000))
