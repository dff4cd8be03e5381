"""What is known of an update's values when its last piece is there."""

from __future__ import annotations

import numpy as np
import pytest

from broker_fl.aggregation import kernels
from broker_fl.model import Model
from broker_fl.roles.controller.job.receiving import UpdateReceiver, Upload
from broker_fl.wire.chunks import NO_CHECKSUM, cut
from broker_fl.wire.encodings import encoding
from broker_fl.wire.job import Transfer
from broker_fl.wire.messages import TaskRef, UpdateChunk

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


def test_what_is_there_already_is_no_progress() -> None:
    receiver = UpdateReceiver(GOOD.spec, Transfer(chunk_bytes=4096))
    first, second, *_ = cut(encoding("raw").encode(GOOD), 4096)
    for now, piece in ((1.0, first), (2.0, second), (9.0, first), (10.0, second)):
        chunk = UpdateChunk(
            learner="a",
            task=TASK,
            index=piece.index,
            count=piece.count,
            encoding="raw",
            checksum=piece.checksum,
        )
        receiver.add(chunk, memoryview(bytes(piece.payload)), now=now)
    assert receiver.active("a", since=2.0)
    assert not receiver.active("a", since=2.1)
