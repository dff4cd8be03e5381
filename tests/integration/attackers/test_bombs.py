"""Small messages that claim to be large, large ones, and updates that are not what was asked for.

As in ``test_rights``: with the credentials of one enrolled learner, which takes part in the open round.
"""

from __future__ import annotations

import re
import secrets
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from broker_fl.model import Array, Model
from broker_fl.roles.driver import Job
from broker_fl.roles.learner import LearnerHost
from broker_fl.roles.usage import peak_bytes
from broker_fl.wire import events as e
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import checksum
from broker_fl.wire.frames import MAX_BODY_BYTES, MAX_CHUNK_HEADER_BYTES, pack_chunk
from tests.integration.attackers.stage import Mallory, Stage, update_of
from tests.servers.enrolling import DEADLINE_S, Adds, eventually

LETTER_BYTES = MAX_BODY_BYTES - MAX_CHUNK_HEADER_BYTES - 5
"""That a dead letter keeps of a body."""
MAX_PEAK_BYTES = 300 << 20
"""Of the controller's process, whatever it is sent; a bomb of those below claims gigabytes."""
Bomber = tuple[Mallory, Adds, LearnerHost]
ONE_ROUND = {"termination": {"rounds": 1}}
"""Another one would wait for the sender of the bomb, which delivers nothing else."""
BILLION = {"spec": [["w", "float32", [10**9, 10**9]]]}
FRAMES: dict[str, tuple[bytes, str]] = {
    "an array of 2^32": (b"\xdd\xff\xff\xff\xff", "ends inside its msgpack header"),
    "a map of 2^32": (b"\xdf\xff\xff\xff\xff", "ends inside its msgpack header"),
    "a binary of 4 GB": (b"\x81\xa1x\xc6\xff\xff\xff\xff", "ends inside its msgpack header"),
    "arrays in arrays": (b"\x91" * 100_000 + b"\x00", "no msgpack map"),
    "arrays of 2^32 in one another": (b"\xdd\xff\xff\xff\xff" * 10_000, "no msgpack map"),
    "maps in maps": (b"\x81\xa1x" * 100_000 + b"\x00", "no msgpack map"),
    "a map with 100,000 keys": (
        msgpack.packb({"v": 1, "kind": "join", **{f"k{i}": i for i in range(100_000)}}),
        "no msgpack map: .*4096",
    ),
    "a number beyond 64 bits": (b"\x82\xa1v\x01\xa4kind\xcf" + b"\xff" * 8, "kind of a message is a string"),
    "a body of 5 MB": (bytes(5_000_000), "over the limit of 4000000"),
    "too many attributes": (
        msgpack.packb(
            {"v": 1, "kind": "join", "learner": "bomber", "session": "s"}
            | {"attributes": {f"a{i}": i for i in range(4_000)}}
        ),
        "attributes.*at most 128",
    ),
    "a group of a million": (
        msgpack.packb(
            {"v": 1, "kind": "group_join", "group": "bomber", "session": "s", "members": ["m"] * 1_000_000}
        ),
        "members.*at most 50000",
    ),
}
"""Messages that are refused wherever they arrive, and the words of it."""
ANNOUNCED: dict[str, tuple[dict[str, Any], str]] = {
    "an exabyte": ({"num_bytes": 1 << 60}, f"announced as raw in {1 << 60} bytes"),
    "negative bytes": ({"num_bytes": -1}, "update.num_bytes"),
    "chunks of 2 GB": ({"chunk_bytes": 1 << 31}, "update.chunk_bytes"),
    "a billion elements": ({"num_bytes": 4 * 10**9, **BILLION}, "announced as raw in 4000000000 bytes"),
    "another model": ({"spec_digest": "0" * 16}, "digest"),
    "coarse where raw was asked for": (
        {"encoding": "int8", "num_bytes": 24},
        "announced as int8 in 24 bytes",
    ),
    "the billion largest of eight": ({"encoding": "topk/1000000000", "num_bytes": 8}, "topk/1000000000"),
    "an encoding of no such width": ({"encoding": "float1", "num_bytes": 1}, "float1"),
    "a sum of a group": ({"form": "sum"}, "sent as sum; the task asked for values"),
}
"""What a result says of its update, and why it is refused."""
PIECES: dict[str, tuple[dict[str, Any], bytes | None, str]] = {
    "chunk 2^60 of 2^61": (
        {"index": 1 << 60, "count": 1 << 61, "session": "s"},
        None,
        "does not belong to a buffer of 1 chunks",
    ),
    "a chunk in another encoding": ({"encoding": "int8"}, None, "the chunk is 'int8'"),
    "a chunk of one byte": ({}, b"x", "has 1 bytes instead of 32"),
    "a chunk of a megabyte": ({}, bytes(1 << 20), "has 1048576 bytes instead of 32"),
    "a chunk that is corrupt": ({}, b"\xff" * 32, "corrupt in transit"),
    "values that are none": ({}, np.full(8, np.nan, np.float32).tobytes(), "finite"),
}
"""Headers and payloads of the only chunk of an update, and why it is refused."""


def int8(scale: float, number: int) -> bytes:
    """Eight elements as ``int8``: one block with its scale."""
    return struct.pack("<f8b", scale, *[number] * 8)


def topk(places: tuple[int, int], value: float) -> bytes:
    """Eight elements as ``topk/4``: two places, and what is there."""
    return struct.pack("<2I2f", *places, value, value)


COARSE: dict[str, tuple[str, bytes, str]] = {
    "a number that int8 never has": ("int8", int8(1.0, -128), "an element is -128"),
    "a scale below nothing": ("int8", int8(-1.0, 1), "one is negative, not finite"),
    "a scale that is no number": ("int8", int8(np.nan, 1), "one is negative, not finite"),
    "a scale beyond the type": ("int8", int8(3e38, 127), "or too large for the type"),
    "places beyond the model": ("topk/4", topk((1 << 31, (1 << 32) - 1), 1.0), "do not ascend below"),
    "one place twice": ("topk/4", topk((3, 3), 1.0), "do not ascend below"),
    "places that descend": ("topk/4", topk((5, 2), 1.0), "do not ascend below"),
    "a value that is none, at few places": ("topk/4", topk((1, 2), np.inf), "NaN or infinite"),
}
"""Encoding, payload, and why it is refused where that encoding is asked for."""


def coarse_bomb(what: str, learner: str, task: m.TaskRef) -> list[bytes]:
    """An update of which nothing is wrong but its values, scales or places."""
    encoding, payload, _ = COARSE[what]
    spec = Model.of({"w": np.zeros(8, np.float32)}).spec
    manifest = m.UpdateManifest.of(spec, encoding=encoding, chunk_bytes=1 << 20, form="changes")
    result = m.Result(learner=learner, task=task, num_examples=1, update=manifest)
    header = m.UpdateChunk(
        learner=learner,
        task=task,
        index=0,
        count=1,
        encoding=encoding,
        checksum=checksum(memoryview(payload)),
    )
    return [result.pack(), pack_chunk(header.KIND, header.model_dump(), memoryview(payload))]


def update_bomb(what: str, learner: str, task: m.TaskRef) -> tuple[list[bytes], str]:
    """Messages, and the words of the refusal."""
    result, chunk = update_of(learner, task, 1.0)
    if what in ANNOUNCED:
        said, words = ANNOUNCED[what]
        fields: dict[str, Any] = msgpack.unpackb(result)
        return [msgpack.packb(fields | {"update": fields["update"] | said})], words
    header, payload, words = PIECES[what]
    whole, values = m.decode(chunk)
    assert values is not None
    sent = values if payload is None else memoryview(payload)
    mark = checksum(values if "corrupt" in what else sent)
    made = whole.model_dump() | {"checksum": mark} | header
    return [result, pack_chunk(whole.KIND, made, sent)], words


@pytest.fixture(scope="module")
def coarse_in_peace(stage: Stage) -> dict[str, Array]:
    """The model of a job in each encoding, before there is anybody else."""
    found = {}
    for encoding in {encoding for encoding, _, _ in COARSE.values()}:
        found[encoding] = stage.finish(stage.begin(transfer={"encoding": encoding}, **ONE_ROUND))["w"]
    return found


def forget_peak() -> None:
    """Have the kernel measure the peak of this process, the controller's, from now on, where it can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


@pytest.fixture
def bomber(stage: Stage) -> Iterator[Bomber]:
    """An account that has sent nothing yet, whose learner takes tasks and never delivers."""
    bomber = Mallory(stage.operator, stage.port, f"bomber-{secrets.token_hex(4)}")
    adds = Adds()
    adds.gate.clear()
    host = stage.operator.learner(bomber.path, adds)
    assert host.wait_welcomed(DEADLINE_S)
    yield bomber, adds, host
    host.stop(drain_s=0.0)
    bomber.connection.close()


def test_bombs_cost_nothing_and_each_is_refused_for_what_it_is(stage: Stage, bomber: Bomber) -> None:
    """Sent as reports and to the inbox, while the sender takes part in the round."""
    sender, _, host = bomber
    job = stage.begin()
    stage.dead_letters()
    forget_peak()
    before, counted = peak_bytes(), stage.counts.refusals.copy()
    for body, _ in FRAMES.values():
        sender.report(body)
        sender.deliver(stage.inbox, [body])
    letters: list[tuple[m.DeadLetter, bytes]] = []

    def are_refused() -> bool:
        letters.extend(stage.letters())
        return len(letters) >= 2 * len(FRAMES)

    eventually(are_refused, f"each of {len(FRAMES)} bombs being refused twice")
    assert peak_bytes() - before < MAX_PEAK_BYTES
    assert stage.counts.refusals - counted == Counter(reports=len(FRAMES), inbox=len(FRAMES))
    by_body = {body[:LETTER_BYTES]: what for what, (body, _) in FRAMES.items()}
    refusals = {(by_body[body], letter.source): letter.reason for letter, body in letters}
    sources = stage.topology.reports, stage.topology.inbox(stage.inbox)
    assert set(refusals) == {(what, source) for what in FRAMES for source in sources}
    wrong = {
        (what, source): reason
        for (what, source), reason in refusals.items()
        if not re.search(FRAMES[what][1], reason)
    }
    assert not wrong
    host.stop(drain_s=0.0)  # or each round would wait for it until its deadline
    stage.check_as_in_peace(job)


def test_an_update_that_is_a_bomb_is_refused_for_what_it_is(stage: Stage, bomber: Bomber) -> None:
    """Its sender answers its task with it, one in each job; the updates of the others count."""
    sender, adds, _ = bomber
    forget_peak()
    before, wrong = peak_bytes(), dict[str, list[e.UpdateRefused]]()
    for what in [*ANNOUNCED, *PIECES]:
        adds.at_work.clear()
        job = stage.begin(**ONE_ROUND)
        assert adds.at_work.wait(DEADLINE_S)
        bodies, words = update_bomb(what, sender.name, m.TaskRef(job=job.id, round=0))
        sender.deliver(stage.inbox, bodies)
        refusals = partial(refused_updates, job)
        eventually(refusals, f"{what} being refused")
        stage.check_as_in_peace(job, np.ones(8, np.float32), rounds=1)
        told = [(one.learner, one.round) for one in refusals()]
        if told != [(sender.name, 0)] or words not in refusals()[0].reason:
            wrong[what] = refusals()
    assert not wrong
    assert peak_bytes() - before < MAX_PEAK_BYTES


def test_a_coarse_update_that_no_encoder_writes_is_refused_for_what_it_is(
    stage: Stage, coarse_in_peace: dict[str, Array], bomber: Bomber
) -> None:
    sender, adds, _ = bomber
    wrong = dict[str, list[e.UpdateRefused]]()
    for what, (encoding, _, words) in COARSE.items():
        adds.at_work.clear()
        job = stage.begin(transfer={"encoding": encoding}, **ONE_ROUND)
        assert adds.at_work.wait(DEADLINE_S)
        sender.deliver(stage.inbox, coarse_bomb(what, sender.name, m.TaskRef(job=job.id, round=0)))
        refusals = partial(refused_updates, job)
        eventually(refusals, f"{what} being refused")
        stage.check_as_in_peace(job, coarse_in_peace[encoding], rounds=1)
        told = [(one.learner, one.round) for one in refusals()]
        if told != [(sender.name, 0)] or words not in refusals()[0].reason:
            wrong[what] = refusals()
    assert not wrong


def refused_updates(job: Job) -> list[e.UpdateRefused]:
    """That the driver is told of."""
    return [event for event in job.events(follow=False) if isinstance(event, e.UpdateRefused)]
