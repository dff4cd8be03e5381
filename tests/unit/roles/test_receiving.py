"""What is known of an update's values when its last piece is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from broker_fl.aggregation import kernels
from broker_fl.errors import FrameRefused
from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays, Model
from broker_fl.roles.controller.job.receiving import UpdateReceiver, Upload
from broker_fl.simulation import Federation
from broker_fl.wire.chunks import NO_CHECKSUM, Chunk, cut
from broker_fl.wire.encodings import encoding
from broker_fl.wire.job import Transfer
from broker_fl.wire.messages import Result, TaskRef, UpdateChunk, UpdateManifest
from tests.unit.roles.stage import Stage, done, kinds, spec

TASK = TaskRef(job="job", round=0, attempt=0)
GOOD = Model.of({"a": np.arange(3_000, dtype=np.float32), "b": np.arange(500, dtype=np.float64)})


def sent(model: Model, *, used: str = "raw", whole: bool = False, adds_back: bool = False) -> Upload:
    """An upload of the model's buffer, its pieces from the last to the first, and once more."""
    transfer = Transfer(chunk_bytes=4096, encoding=used)
    receiver, upload = UpdateReceiver(model.spec, transfer, adds_back=adds_back), None
    buffer = encoding(used).encode(model)
    pieces = [*cut(buffer, len(buffer) if whole else 4096)][::-1]
    for piece in pieces * 2:
        chunk = UpdateChunk(
            learner="a",
            task=TASK,
            session="s",
            index=piece.index,
            count=piece.count,
            encoding=used,
            checksum=NO_CHECKSUM if whole else piece.checksum,
        )
        payload = piece.payload if whole else memoryview(bytes(piece.payload))
        upload = receiver.add(chunk, payload, now=0.0)
    assert upload is not None
    assert upload.assembly.complete
    return upload


@pytest.mark.parametrize("whole", [False, True])
def test_values_are_looked_at_once_as_they_arrive(whole: bool) -> None:
    look = sent(GOOD, whole=whole).look
    assert look is not None
    expected = [kernels.magnitude(GOOD.run(run)) for run in GOOD.spec.runs]
    assert look.magnitudes() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("name", "place"), [("a", 0), ("a", 2_999), ("b", 0), ("b", 499)])
def test_a_bad_value_in_any_piece_leaves_the_update_to_a_look_at_the_whole(
    whole: bool, name: str, place: int
) -> None:
    broken = GOOD.copy()
    broken[name][place] = np.nan
    look = sent(broken, whole=whole).look
    assert look is not None
    assert look.magnitudes() is None


def test_what_is_changed_after_it_arrived_is_not_looked_at_before() -> None:
    assert sent(GOOD, adds_back=True).look is None
    assert sent(GOOD, used="float16").look is None


def receive(receiver: UpdateReceiver, piece: Chunk, session: str | None = "s", spoilt: bytes = b"") -> Upload:
    """Add a piece; ``spoilt`` arrives in the place of its first bytes."""
    chunk = UpdateChunk(
        learner="a",
        task=TASK,
        session=session,
        index=piece.index,
        count=piece.count,
        checksum=piece.checksum,
    )
    payload = spoilt + bytes(piece.payload)[len(spoilt) :]
    return receiver.add(chunk, memoryview(payload), now=0.0)


def is_good(receiver: UpdateReceiver, upload: Upload) -> None:
    """Whole, looked at once, and just what was sent."""
    expected = [kernels.magnitude(GOOD.run(run)) for run in GOOD.spec.runs]
    assert upload.assembly.complete
    assert upload.look is not None
    assert upload.look.magnitudes() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(receiver.model(upload).buffer, GOOD.buffer)


def test_a_piece_that_was_spoilt_on_its_way_is_neither_taken_nor_looked_at() -> None:
    receiver, pieces = UpdateReceiver(GOOD.spec, Transfer(chunk_bytes=4096)), [*cut(GOOD.buffer, 4096)]
    nan = np.array([np.nan], np.float32).tobytes()
    for piece in pieces:
        with pytest.raises(FrameRefused, match="corrupt in transit"):
            receive(receiver, piece, spoilt=nan)
        receive(receiver, piece)
    is_good(receiver, receive(receiver, pieces[0]))


def test_a_piece_with_other_content_in_the_place_of_one_that_is_there_changes_nothing() -> None:
    receiver, pieces = UpdateReceiver(GOOD.spec, Transfer(chunk_bytes=4096)), [*cut(GOOD.buffer, 4096)]
    others = [*cut(Model.of({name: array * np.nan for name, array in GOOD.items()}).buffer, 4096)]
    for piece, other in zip(pieces, others, strict=True):
        receive(receiver, piece)
        receive(receiver, other)
    is_good(receiver, receive(receiver, pieces[0]))


def test_pieces_of_nobody_knows_which_training_are_refused() -> None:
    """Without a session those of a second training would complete what the first one has begun."""
    receiver, pieces = UpdateReceiver(GOOD.spec, Transfer(chunk_bytes=4096)), [*cut(GOOD.buffer, 4096)]
    assert len(pieces) > 1
    with pytest.raises(FrameRefused, match="needs its learner's session"):
        receive(receiver, pieces[0], None)
    for piece in pieces:
        receive(receiver, piece)
    is_good(receiver, receive(receiver, pieces[0]))
    whole = UpdateReceiver(GOOD.spec, Transfer(chunk_bytes=1 << 20))
    (piece,) = cut(GOOD.buffer, 1 << 20)
    is_good(whole, receive(whole, piece, None))  # one piece is of one training


class Gives:
    """Adds ``amount`` to all elements; the last of them becomes ``last``, if that is given."""

    def __init__(self, amount: float, last: float | None = None) -> None:
        self.amount = amount
        self.last = last

    def train(self, model: Arrays, task: TaskContext) -> Update:
        model["w"][...] += np.float32(self.amount)
        if self.last is not None:
            model["w"][-1] = self.last
        return Update(model=model, num_examples=1)

    def evaluate(self, model: Arrays, task: TaskContext) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize(
    "last", [float("nan"), float("inf"), 3.4e38], ids=["nan", "infinite", "sum could overflow"]
)
def test_an_update_that_is_refused_while_others_wait_for_their_addition_leaves_no_trace(
    last: float, embedded: bool, tmp_path: Path
) -> None:
    learners = {"a": Gives(1.0, last if last == 3.4e38 else None), "b": Gives(1.0, last), "c": Gives(6.0)}
    job_spec = spec(rounds=1, min_learners=3, quorum=2, transfer={"chunk_bytes": 4096})
    model = {"w": np.zeros(3_000, np.float32)}
    if embedded:
        with Federation(learners, num_workers=1) as federation:
            job = federation.submit(job_spec, model)
            done(job)
            found, said = job.model()["w"], kinds(job)
    else:
        with Stage(tmp_path) as stage:
            stage.controller()
            stage.host(learners, num_workers=1)
            job = stage.driver.submit(job_spec, model)
            done(job)
            found, said = job.model()["w"], kinds(job)
    assert said.count("update_refused") == 1, said
    np.testing.assert_array_equal(found[:-1], np.full(2_999, 3.5, np.float32))
    assert np.isfinite(found).all()


def test_what_is_there_already_is_no_progress() -> None:
    receiver = UpdateReceiver(GOOD.spec, Transfer(chunk_bytes=4096))
    first, second, *_ = cut(encoding("raw").encode(GOOD), 4096)
    for now, piece in ((1.0, first), (2.0, second), (9.0, first), (10.0, second)):
        chunk = UpdateChunk(
            learner="a",
            task=TASK,
            session="s",
            index=piece.index,
            count=piece.count,
            encoding="raw",
            checksum=piece.checksum,
        )
        receiver.add(chunk, memoryview(bytes(piece.payload)), now=now)
    assert receiver.active("a", since=2.0)
    assert not receiver.active("a", since=2.1)


def test_what_is_there_already_counts_unless_it_was_asked_for_again() -> None:
    receiver, pieces = UpdateReceiver(GOOD.spec, Transfer(chunk_bytes=4096)), [*cut(GOOD.buffer, 4096)]
    manifest = UpdateManifest(spec_digest=GOOD.spec.digest, num_bytes=GOOD.spec.num_bytes, chunk_bytes=4096)
    result = Result(learner="a", task=TASK, session="s", num_examples=1, update=manifest)

    def send() -> int:
        before = receiver.num_repeated
        receiver.expect(result, now=0.0)
        for piece in pieces[:-1]:
            receive(receiver, piece)
        return receiver.num_repeated - before

    assert send() == 0
    assert send() == len(pieces)
    receiver.asked("a")
    assert send() == 0
    assert send() == len(pieces) - 1, "one piece of what was asked for had not come"
    repeated = receiver.num_repeated
    for session in ("another", "s"):
        receive(receiver, pieces[0], session=session)
    assert receiver.num_repeated == repeated + 2, "what was there is of no use any more"
