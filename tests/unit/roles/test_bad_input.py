"""What learners, drivers and strangers may send: daemons live on, jobs finish, and the reason is kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from broker_fl.errors import AccessDenied, RequestRefused
from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays, Model
from broker_fl.topology import Topology
from broker_fl.wire import events as e
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import cut
from broker_fl.wire.frames import PROTOCOL_VERSION, pack, pack_chunk
from tests.unit.coordination.bench import spec
from tests.unit.roles.stage import FEDERATION, Adds, Stage, done, kinds, model_of, same

NAMES = Topology(FEDERATION)


@pytest.fixture
def stage(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Stage(tmp_path, heartbeat_s=0.3) as made:
        yield made


class Does(Adds):
    """Does something else than training, in some of its rounds."""

    def __init__(self, act: Callable[[Arrays], Any], *, rounds: Iterable[int] = range(100)) -> None:
        super().__init__(1.0)
        self._act = act
        self._rounds = set(rounds)

    def train(self, model: Arrays, task: TaskContext) -> Update:
        if task.round not in self._rounds:
            return super().train(model, task)
        self.num_trained += 1
        result: Update = self._act(model)
        return result


def raises(error: BaseException) -> Callable[[Arrays], Any]:
    def act(_: Arrays) -> Any:
        raise error

    return act


def update(change: Mapping[str, Any] | None = None, **fields: Any) -> Callable[[Arrays], Any]:
    """A usable update but for some of its tensors or fields."""

    def act(model: Arrays) -> Any:
        return Update(**{"model": {**model, **(change or {})}, "num_examples": 1, **fields})

    return act


FAILURES = {
    "raises": (raises(ValueError("no such column")), "ValueError: no such column"),
    "runs out of memory": (raises(MemoryError()), "MemoryError"),
    "exits": (raises(SystemExit(3)), "SystemExit: 3"),
    "is interrupted": (raises(KeyboardInterrupt()), "KeyboardInterrupt"),
    "raises with text that is not UTF-8": (raises(OSError("file \udcff is gone")), "is gone"),
    "raises at length": (raises(ValueError("x" * 100_000)), "ValueError: xxx"),
    "returns nothing": (lambda model: None, "must return broker_fl.Update, not NoneType"),
    "returns the arrays": (lambda model: model, "must return broker_fl.Update"),
    "another shape": (update({"w": np.zeros(4, np.float32)}), "tensor 'w' has shape (4,) instead of (3,)"),
    "another type": (update({"w": np.zeros(3, np.float64)}), "tensor 'w' has element type float64"),
    "a type that is none": (update({"w": np.array(["a", "b", "c"])}), "element type <U1"),
    "a tensor more": (update({"extra": np.zeros(1, np.float32)}), "tensor 'extra' is not in the model"),
    "no tensor": (update(model={}), "tensor 'w' is missing"),
    "negative examples": (update(num_examples=-1), "num_examples"),
    "examples that are not a number": (update(num_examples="many"), "TypeError"),
    "no examples": (update(num_examples=0), "num_examples of an update is at least 1"),
    "metrics that are not numbers": (update(metrics={"loss": "low"}), "metrics of train"),
    "metrics that are not named": (update(metrics=[1, 2]), "metrics of train"),
    "too many metrics": (update(metrics={f"m{i}": 0.0 for i in range(1_001)}), "metrics"),
    "a metric of a long name": (update(metrics={"m" * 200: 0.0}), "metrics"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_learner_that_fails_is_reported_with_its_reason_and_the_round_goes_on(
    stage: Stage, name: str
) -> None:
    act, reason = FAILURES[name]
    bad = Does(act, rounds=[0])
    job = stage.run({"good": Adds(1.0), "bad": bad}, rounds=2, quorum=0.5)
    done(job)
    same(job.model(), model_of(2.0))
    failed = [event for event in job.events(follow=False) if isinstance(event, e.TaskFailed)]
    assert [event.learner for event in failed] == ["bad"]
    assert reason in failed[0].reason
    assert "test_bad_input.py" in failed[0].reason or "raises" not in name, "where it was raised"
    assert bad.num_trained == 2


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (
            update({"w": np.array([1, np.nan, 3], np.float32)}),
            "tensor 'w' of the update has values that are NaN",
        ),
        (update({"b": np.array(np.inf)}), "tensor 'b'"),
    ],
)
def test_an_update_that_cannot_be_folded_is_refused_dead_lettered_and_counts_nowhere(
    stage: Stage, act: Callable[[Arrays], Any], reason: str
) -> None:
    job = stage.run({"good": Adds(1.0), "bad": Does(act, rounds=[0])}, rounds=2, quorum=0.5)
    done(job)
    same(job.model(), model_of(2.0))
    (refused,) = [event for event in job.events(follow=False) if isinstance(event, e.UpdateRefused)]
    assert (refused.learner, refused.round) == ("bad", 0)
    assert reason in refused.reason
    assert reason in stage.dead_letters(1)[0][0]


def test_a_job_whose_learners_all_fail_ends_and_says_who_and_why(stage: Stage) -> None:
    broken = {name: Does(raises(ValueError(f"{name} is broken"))) for name in "ab"}
    job = stage.run(broken, rounds=2, max_retries=1)
    finished = job.wait()
    assert finished.state == "failed"
    assert "a: ValueError: a is broken" in finished.reason
    assert "b: ValueError: b is broken" in finished.reason
    assert [learner.num_trained for learner in broken.values()] == [2, 2], "each was asked once more"


def test_a_learner_that_fails_once_is_asked_again_and_delivers(stage: Stage) -> None:
    tries: list[int] = []

    def second_time(model: Arrays) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("the disk was busy")
        return Update(model={name: array + 1 for name, array in model.items()}, num_examples=1)

    job = stage.run({"a": Does(second_time)}, rounds=1)
    done(job)
    same(job.model(), model_of(1.0))
    assert "round_retried" in kinds(job)


def test_metrics_that_are_nan_or_infinite_harm_nobody(stage: Stage) -> None:
    class Measures(Adds):
        def evaluate(self, model: Arrays, task: TaskContext) -> Mapping[str, float]:
            return {"loss": float("nan"), "perplexity": float("inf"), "fine": 1.0}

    job = stage.run({"a": Measures(1.0)}, rounds=2)
    assert done(job).metrics == {"fine": 1.0}


def test_an_evaluation_that_always_fails_does_not_lose_the_model(stage: Stage) -> None:
    class Blind(Adds):
        def evaluate(self, model: Arrays, task: TaskContext) -> Mapping[str, float]:
            if task.round == 2:
                raise ValueError("no test data")
            return {}

    job = stage.run({"a": Blind(1.0)}, rounds=2, max_retries=1)
    assert "no test data" in done(job).reason
    same(job.model(), model_of(2.0))


def test_values_that_would_overflow_the_sum_are_refused_and_the_last_good_version_stays(stage: Stage) -> None:
    huge = update({"w": np.full(3, 3e38, np.float32)}, num_examples=100)
    job = stage.run({"a": Does(huge, rounds=[1])}, rounds=5)
    finished = job.wait()
    assert (finished.state, finished.version) == ("failed", 1)
    assert "float32 values with which the sum could overflow" in finished.reason
    same(job.model(), model_of(1.0))


# ---------------------------------------------------------------- frames


TASK = m.TaskRef(job="some-job", round=0)
JOIN = m.Join(learner="mallory", session="s").pack()
CHUNK = m.UpdateChunk(learner="mallory", task=TASK, index=0, count=1, checksum="xxh3:0")
FRAMES = {
    "nothing": b"",
    "noise": random.Random(1).randbytes(1_000),
    "text": b"hello",
    "a list": msgpack.packb([1, 2, 3]),
    "truncated": JOIN[:-3],
    "trailing bytes": JOIN + b"\x00",
    "too long": b"\x00" * 3_999_999,
    "no kind": msgpack.packb({"v": PROTOCOL_VERSION}),
    "an unknown kind": pack("teleport", {}),
    "another protocol version": msgpack.packb({"v": 99, "kind": "join", "learner": "x", "session": "s"}),
    "a field that is missing": pack("join", {"learner": "mallory"}),
    "a field of another type": pack("heartbeat", {"learner": "mallory", "session": 7}),
    "a field out of range": pack(
        "failed", {"learner": "mallory", "task": {"job": "j", "round": -1}, "reason": ""}
    ),
    "a name that is none": pack("join", {"learner": "../../etc", "session": "s"}),
    "a kind for somebody else": m.Rejoin().pack(),
    "in the name of another": m.Leave(learner="good", session="s").pack(),
    "a chunk without a payload": pack("update_chunk", CHUNK.model_dump()),
    "a payload where none belongs": pack_chunk(
        "join", {"learner": "mallory", "session": "s"}, memoryview(b"x")
    ),
    "an event": e.LearnerLost(job="j", learner="good", silent_s=1.0).pack(),
    "deep": b"\x91" * 100_000 + b"\xc0",
}


@pytest.mark.parametrize("name", FRAMES)
def test_no_frame_ends_a_daemon_and_the_controllers_keep_the_reason(stage: Stage, name: str) -> None:
    adds = Adds(1.0)
    adds.gate.clear()
    job = stage.run({"good": adds}, rounds=3)
    assert adds.at_work.wait(30)
    body, send = FRAMES[name], stage.transport.publish
    inbox = "controller-1"
    send(NAMES.reports, ["mallory.join"], body)
    send(NAMES.updates, [f"mallory.{inbox}"], body)
    send(NAMES.control, [NAMES.CONTROL], body)
    send(NAMES.tasks, [NAMES.learner_key("good")], body)
    send(NAMES.answers, [NAMES.driver_key(stage.driver.id)], body)
    send(NAMES.events, [job.id], body)
    letters = stage.dead_letters(3)
    assert all(reason for reason, _ in letters)
    assert all(payload == body[: len(payload)] for _, payload in letters)
    adds.gate.set()
    done(job)
    same(job.model(), model_of(3.0))


def forged(learner: str, task: m.TaskRef, value: float) -> list[bytes]:
    """A whole, valid update."""
    model = Model.of(model_of(value))
    manifest = m.UpdateManifest.of(model.spec, encoding="raw", chunk_bytes=1 << 20)
    result = m.Result(learner=learner, task=task, num_examples=1_000, update=manifest)
    (chunk,) = cut(model.buffer, 1 << 20)
    header = m.UpdateChunk(learner=learner, task=task, index=0, count=1, checksum=chunk.checksum)
    return [result.pack(), pack_chunk(header.KIND, header.model_dump(), chunk.payload)]


def test_whole_updates_of_strangers_of_other_rounds_and_of_forged_names_count_nowhere(stage: Stage) -> None:
    adds = Adds(1.0)
    adds.gate.clear()
    job = stage.run({"good": adds}, rounds=3)
    assert adds.at_work.wait(30)
    now, later = m.TaskRef(job=job.id, round=0), m.TaskRef(job=job.id, round=1)
    other = m.TaskRef(job="other", round=0)
    attempt = m.TaskRef(job=job.id, round=0, attempt=4)
    for sender, name, task in [
        ("mallory", "mallory", now),
        ("mallory", "good", now),
        ("good", "good", later),
        ("good", "good", other),
        ("good", "good", attempt),
    ]:
        for body in forged(name, task, 99.0):
            stage.transport.publish(NAMES.updates, [f"{sender}.controller-1"], body)
    assert {"in the name of" in reason for reason, _ in stage.dead_letters(2)} == {True}
    adds.gate.set()
    done(job)
    same(job.model(), model_of(3.0))


# ---------------------------------------------------------------- who says to be somebody else


def test_a_second_process_with_the_same_id_is_turned_away(stage: Stage) -> None:
    adds = Adds(1.0)
    adds.gate.clear()
    job = stage.run({"a": adds}, rounds=2)
    with pytest.raises(AccessDenied):
        stage.host({"a": Adds(9.0)})
    adds.gate.set()
    done(job)
    same(job.model(), model_of(2.0))


def test_a_driver_that_sends_another_model_for_its_job_id_is_refused(stage: Stage) -> None:
    stage.controller()
    driver, one, two = stage.driver, Model.of(model_of()), Model.of(model_of(size=9))
    manifests = [
        m.ModelManifest.of(model.spec, version=0, digest=model.digest, encoding="raw", chunk_bytes=1 << 20)
        for model in (one, two)
    ]
    asks = [
        m.Submit(driver=driver.id, request=f"r{i}", job="j", spec=spec(), model=man)
        for i, man in enumerate(manifests)
    ]
    assert driver.ask(asks[0], m.Submitted).job == "j"
    assert driver.ask(asks[0], m.Submitted).job == "j", "asked again, answered again"
    with pytest.raises(RequestRefused, match="another initial model"):
        driver.ask(asks[1], m.Submitted)
