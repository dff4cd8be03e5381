"""How much is held of uploads whose turn was passed on."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.coordination.shares import Share
from broker_fl.coordination.uploads import Uploads
from broker_fl.model import Model
from broker_fl.roles.controller.job.receiving import UpdateReceiver
from broker_fl.roles.controller.job.shares import ShareReceiver
from broker_fl.wire.chunks import Assembly, cut
from broker_fl.wire.job import Transfer
from broker_fl.wire.messages import GroupResult, TaskRef, UpdateChunk, UpdateManifest, decode
from tests.unit.roles.stage import Adds, Stage, done

MODEL = Model.of({"w": np.arange(5_000, dtype=np.float32)})
PIECES = [(one.index, one.count, one.checksum, bytes(one.payload)) for one in cut(MODEL.buffer, 4096)]
TASK = TaskRef(job="job", round=0)
LEARNERS = "abcdef"


def held(receiver: UpdateReceiver) -> set[str]:
    """Learners of whose updates something is in memory."""
    return {learner for learner, one in receiver._uploads.items() if one.assembly.has_begun}


class Round:
    """Learners with one update each, of which so many fit at a time; each sends its pieces over and over."""

    def __init__(self, room: int) -> None:
        budget = room * MODEL.spec.num_bytes
        self.uploads = Uploads(MODEL.spec.num_bytes, budget)
        self.uploads.open(1_000)
        self.receiver = UpdateReceiver(MODEL.spec, Transfer(chunk_bytes=4096, upload_budget_bytes=budget))
        self.next = {learner: cycle(PIECES) for learner in LEARNERS}
        self.held: dict[str, int] = {}
        """Learner → pieces that are held."""
        self.delivered: set[str] = set()

    def send(self, learner: str) -> None:
        """One piece; whose turn it is loses nothing by it."""
        if learner in self.delivered:
            return
        index, count, checksum, payload = next(self.next[learner])
        chunk = UpdateChunk(
            learner=learner, task=TASK, session="s", index=index, count=count, checksum=checksum
        )
        if not self.receiver.admits(chunk, len(payload), 0.0, self.uploads.has_turn):
            assert not self.uploads.has_turn(learner), "there is room for whose turn it is"
            return
        self.forget_what_was_forgotten()
        upload = self.receiver.add(chunk, memoryview(payload), 0.0)
        self.held[learner] = upload.assembly.count - upload.assembly.num_missing
        if upload.assembly.complete:
            assert self.receiver.model(upload).digest == MODEL.digest
            self.receiver.drop(learner)
            self.held.pop(learner)
            self.delivered.add(learner)
            self.uploads.delivered(learner, 0.0)

    def forget_what_was_forgotten(self) -> None:
        """At most one at a time: the one of which least is there, of those whose turn it is not."""
        now = held(self.receiver)
        gone = [learner for learner in self.held if learner not in now]
        if gone:
            (one,) = gone
            others = [num for other, num in self.held.items() if not self.uploads.has_turn(other)]
            assert not self.uploads.has_turn(one)
            assert self.held.pop(one) == min(others)


@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from(["send", "send", "send", "pass_on"]), st.sampled_from(LEARNERS)),
             max_size=150),
)  # fmt: skip
def test_no_more_is_held_than_the_budget_and_one_and_all_are_delivered_in_the_end(
    room: int, steps: list[tuple[str, str]]
) -> None:
    one = Round(room)
    for learner in LEARNERS:
        one.uploads.add(learner)
    for what, learner in steps:
        if what == "send":
            one.send(learner)
        elif one.uploads.is_in_the_way(learner):
            one.uploads.pass_on(learner, 0.0)
        assert len(held(one.receiver)) <= room + 1
    while len(one.delivered) < len(LEARNERS):
        num = len(one.delivered)
        for learner in [name for name in LEARNERS if one.uploads.has_turn(name)]:
            for _ in range(2 * len(PIECES)):
                one.send(learner)
        assert len(one.delivered) > num, "nobody who has a turn waits for room"


def test_a_controller_forgets_a_half_when_a_third_learner_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until that has happened all lose their last pieces, so that each turn is passed on."""
    forgotten: list[int] = []
    forget = Assembly.forget

    def spied(assembly: Assembly) -> None:
        forgotten.append(assembly.num_missing)
        forget(assembly)

    def tamper(exchange: str, body: bytes) -> list[bytes]:
        message, _ = decode(body) if exchange.endswith("updates") else (None, None)
        if not isinstance(message, UpdateChunk) or message.index + 1 < message.count:
            return [body]
        return [body] if forgotten else []

    monkeypatch.setattr(Assembly, "forget", spied)
    with Stage(tmp_path, heartbeat_s=0.5, lease_ttl_s=2.0) as stage:
        stage.controller()
        for index, learner in enumerate("abc"):
            stage.host({learner: Adds(float(index))}, tamper=tamper)
        transfer = Transfer(chunk_bytes=4096, upload_budget_bytes=1)
        job = stage.submit(dict(MODEL), rounds=1, min_learners=3, evaluate=False, transfer=transfer)
        assert done(job).version == 1
        np.testing.assert_allclose(job.model()["w"], MODEL["w"] + 1, rtol=1e-6)
    assert forgotten[0] == 1


def test_two_groups_that_have_drawn_the_same_id_are_not_taken_for_one() -> None:
    receiver = ShareReceiver(MODEL.spec, Transfer(chunk_bytes=4096, upload_budget_bytes=1))
    total = Model.of({"sum.0": MODEL["w"]})
    manifest = UpdateManifest.of(total.spec, encoding="raw", chunk_bytes=4096, form="sum")
    shares = [
        Share.of([GroupResult(group=group, task=TASK, share="x", learners=(f"{group}-0",), update=manifest)])
        for group in ("g", "h")
    ]
    for share in shares:
        receiver.expect(share, 0.0)
    for share in shares:
        for index, count, checksum, payload in PIECES:
            chunk = UpdateChunk(
                learner=share.group, task=TASK, share="x", index=index, count=count, checksum=checksum
            )
            assert receiver.of(chunk) is share
            upload = receiver.add(chunk, memoryview(payload), 0.0)
            assert upload is not None
            assert upload.share is share
            assert upload.assembly.complete == (index + 1 == count)


def test_of_sums_that_nobody_asked_for_no_more_is_held_either() -> None:
    receiver = ShareReceiver(MODEL.spec, Transfer(chunk_bytes=4096, upload_budget_bytes=1))
    total = Model.of({"sum.0": MODEL["w"]})
    manifest = UpdateManifest.of(total.spec, encoding="raw", chunk_bytes=4096, form="sum")
    index, count, checksum, payload = PIECES[0]

    def admits(group: str) -> bool:
        result = GroupResult(group=group, task=TASK, share="x", learners=(f"{group}-0",), update=manifest)
        receiver.expect(Share.of([result]), 0.0)
        chunk = UpdateChunk(learner=group, task=TASK, share="x", index=index, count=count, checksum=checksum)
        is_admitted = receiver.admits(chunk, len(payload), lambda one: one == "turn")
        if is_admitted:
            receiver.add(chunk, memoryview(payload), 0.0)
        return is_admitted

    assert [admits(group) for group in ("g", "h", "i", "turn")] == [True, True, False, True]
