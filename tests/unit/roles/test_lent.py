"""What a learner does to its arrays after ``train`` has returned changes no update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays, Model
from broker_fl.recycled import LEAST_BYTES
from broker_fl.roles.learner.tasks import HeldTask
from broker_fl.simulation import Federation
from broker_fl.wire.chunks import cut
from broker_fl.wire.handed import WHOLE
from broker_fl.wire.job import JobSpec
from broker_fl.wire.messages import ModelChunk, ModelManifest, Task, TaskRef
from tests.unit.roles.stage import done

SIZE = 1_200


def started(model: Model) -> dict[str, np.ndarray]:
    """What ``Trains`` makes of it."""
    return {"w": model["w"] + np.float32(1.0), "n": model["n"]}


class Trains:
    """In place. ``keep`` says what it keeps of the arrays that it was given."""

    def __init__(self, keep: Callable[[Arrays], object] = lambda model: None, *, when: str = "train") -> None:
        self._keep = keep
        self._when = when
        self.kept: object = None
        self.address = 0

    def evaluate(self, model: Arrays, task: TaskContext) -> dict[str, float]:
        if self._when == "evaluate":
            self.kept = self._keep(model)
        return {}

    def train(self, model: Arrays, task: TaskContext) -> Update:
        self.address = model["w"].ctypes.data
        model["w"][...] += 1
        if self._when == "train":
            self.kept = self._keep(model)
        return Update(model=model, num_examples=1)


class Scratch:
    """Has one model in which it writes whatever it returns."""

    def __init__(self, scratch: Model, amount: float = 1.0) -> None:
        self.scratch = scratch
        self.amount = amount

    def evaluate(self, model: Arrays, task: TaskContext) -> dict[str, float]:
        return {}

    def train(self, model: Arrays, task: TaskContext) -> Update:
        for name, array in model.items():
            self.scratch[name][...] = array
        self.scratch["w"][...] += np.float32(self.amount)
        return Update(model=self.scratch, num_examples=1)


class Spoils:
    """Trains in place, after it has spoilt all that it and its like were ever given."""

    def __init__(self, given: list[Arrays], amount: float) -> None:
        self.given = given
        self.amount = amount

    def evaluate(self, model: Arrays, task: TaskContext) -> dict[str, float]:
        return {}

    def train(self, model: Arrays, task: TaskContext) -> Update:
        for former in self.given:
            former["w"][...] = np.nan
        model["w"][...] += np.float32(self.amount)
        self.given.append(model)
        return Update(model=model, num_examples=1)


def initial(size: int = SIZE, start: float = 0.0) -> Model:
    return Model.of({"w": np.full(size, start, np.float32), "n": np.array([3, 4])})


def held(model: Model, *, handed: bool, **fields: Any) -> HeldTask:
    """A task whose model is there: from within the process, or in frames."""
    manifest = ModelManifest.of(
        model.spec, version=0, digest=model.digest, encoding="raw", chunk_bytes=1 << 20
    )
    one = HeldTask.of(Task(task=TaskRef(job="j", round=0), model=manifest, inbox="i", **fields), "a", 1 << 30)
    if handed:
        assert one.receive(ModelChunk(job="j", version=0, **WHOLE), model.buffer.data.toreadonly())
        return one
    for piece in cut(model.buffer, 1 << 20):
        header = ModelChunk(job="j", version=0, index=piece.index, count=piece.count, checksum=piece.checksum)
        one.receive(header, piece.payload)
    assert one.phase == "queued"
    return one


def overwrite(kept: object) -> None:
    """Through whatever was kept."""
    for value in kept.values() if isinstance(kept, Mapping) else (kept,):
        np.asarray(value)[...] = 99


KEPT: dict[str, Callable[[Arrays], object]] = {
    "all arrays": lambda model: model,
    "one array": lambda model: model["w"],
    "the last element": lambda model: model["n"][1:],
    "a buffer": lambda model: model["w"].data,
    "what the views are of": lambda model: model["w"].base,
    "an array of another type": lambda model: model["w"].view(np.int32)[::2],
}


@pytest.mark.parametrize("handed", [True, False])
@pytest.mark.parametrize("when", ["evaluate", "train"])
@pytest.mark.parametrize("what", KEPT)
def test_what_a_learner_has_kept_of_what_it_was_given_is_no_part_of_its_update(
    what: str, when: str, handed: bool
) -> None:
    model = initial()
    one, learner = held(model, handed=handed), Trains(KEPT[what], when=when)
    one.work(learner)
    assert one.update is not None, one.failure
    overwrite(learner.kept)
    np.testing.assert_array_equal(one.update, Model.of(started(model), model.spec).buffer)


@pytest.mark.parametrize("handed", [True, False])
@pytest.mark.parametrize("size", [SIZE, LEAST_BYTES // 4])
def test_an_update_that_nobody_else_has_is_not_copied(size: int, handed: bool) -> None:
    one, learner = held(initial(size), handed=handed), Trains()
    one.work(learner)
    assert one.update is not None, one.failure
    assert one.update.ctypes.data == learner.address
    kept, keeper = held(initial(size), handed=handed), Trains(KEPT["one array"])
    kept.work(keeper)
    assert kept.update is not None
    assert kept.update.ctypes.data != keeper.address


@pytest.mark.parametrize("encoding", ["raw", "float32"])
def test_a_model_of_the_learners_own_is_copied(encoding: str) -> None:
    model, scratch = initial(), initial()
    one = held(model, handed=True, encoding=encoding)
    one.work(Scratch(scratch))
    assert one.update is not None, one.failure
    overwrite(scratch)
    np.testing.assert_array_equal(one.update, Model.of(started(model), model.spec).buffer)


def settings(rule: str, rounds: int = 2, learners: int = 3) -> JobSpec:
    return JobSpec.model_validate(
        {
            "rule": {"name": rule},
            "protocol": {"min_learners": learners, "quorum": learners},
            "termination": {"rounds": rounds},
        }
    )


@pytest.mark.parametrize(("rule", "gain"), [("fedavg", 3.0), ("median", 2.0)])
@pytest.mark.parametrize("shares", ["a scratch", "all that was given"])
def test_learners_that_write_where_others_returned_change_no_version(
    shares: str, rule: str, gain: float
) -> None:
    """Updates of 1, 2 and 6, whose addition waits for the last of them."""
    scratch, given = initial(), list[Arrays]()
    learners = {
        f"learner-{amount}": Scratch(scratch, amount) if shares == "a scratch" else Spoils(given, amount)
        for amount in (1, 2, 6)
    }
    with Federation(learners, num_workers=1) as federation:
        job = federation.submit(settings(rule), initial())
        assert done(job).version == 2
        np.testing.assert_array_equal(job.model()["w"], np.full(SIZE, 2 * gain, np.float32))


def test_two_jobs_of_learners_with_one_scratch_have_their_own_versions() -> None:
    scratch = initial()
    learners = {f"learner-{amount}": Scratch(scratch, amount) for amount in (1, 3)}
    with Federation(learners, num_workers=1) as federation:
        jobs = [federation.submit(settings("fedavg", 8, 2), initial(start=start)) for start in (0, 100)]
        for job, start in zip(jobs, (0, 100), strict=True):
            assert done(job).version == 8
            np.testing.assert_array_equal(job.model()["w"], np.full(SIZE, start + 16, np.float32))
