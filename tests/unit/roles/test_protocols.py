"""Protocols, pacing and control of whole jobs, on the memory transport."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import TypeVar

import pytest

from broker_fl.errors import RequestRefused
from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays, Model
from broker_fl.roles.driver import Job
from broker_fl.roles.learner.tasks import HeldTask
from broker_fl.roles.learner.turns import Turns
from broker_fl.roles.runtime import Threads
from broker_fl.wire import events as e
from broker_fl.wire.frames import pack, unpack
from broker_fl.wire.job import JobSpec, Termination
from broker_fl.wire.messages import ModelManifest, Result, Task, TaskRef, VersionRef
from broker_fl.wire.pacing import Aimd
from broker_fl.wire.protocols import SemiSynchronous
from broker_fl.wire.rules import FedAsync, FedAvgM, FedBuff
from broker_fl.wire.selectors import SelectRandom
from tests.unit.coordination.bench import asynchronous
from tests.unit.roles.stage import Adds, Halts, Stage, done, eventually, model_of, same, spec

E = TypeVar("E", bound=e.Event)


@pytest.fixture
def stage(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Stage(tmp_path) as made:
        yield made


class Counts:
    """Does the steps that it is asked for, and says so."""

    def __init__(self, step_s: float = 0.0, *, steps_per_epoch: int = 4) -> None:
        self.step_s = step_s
        self.steps_per_epoch = steps_per_epoch
        self.asked: list[dict[str, object]] = []
        self.gate = threading.Event()
        self.gate.set()

    def train(self, model: Arrays, task: TaskContext) -> Update:
        epochs = task.parameters.get("epochs", 1)
        assert isinstance(epochs, int)
        steps = task.parameters.get("steps") or epochs * self.steps_per_epoch
        assert isinstance(steps, int)
        self.asked.append(dict(task.parameters))
        while not self.gate.wait(0.01):
            task.progress(0.0)
        pause = threading.Event()
        for step in range(steps):
            pause.wait(self.step_s)
            task.progress((step + 1) / steps)
        return Update(model=model, num_examples=1, num_steps=steps, num_epochs=steps / self.steps_per_epoch)

    def evaluate(self, model: Arrays, task: TaskContext) -> dict[str, float]:
        return {}


def held(learner: str, job: str, round: int) -> HeldTask:
    """A task whose model is there."""
    manifest = ModelManifest.of(
        Model.of(model_of()).spec, version=0, digest="", encoding="raw", chunk_bytes=1 << 20
    )
    task = Task(task=TaskRef(job=job, round=round), model=manifest, inbox="i")
    return HeldTask.of(task, learner, 1 << 20)


def of(job: Job, kind: type[E]) -> list[E]:
    """The job's stored events of one kind."""
    return [event for event in job.events(follow=False) if isinstance(event, kind)]


# ---------------------------------------------------------------- asynchronous


def test_each_update_of_one_learner_is_mixed_in_and_the_model_is_known(stage: Stage) -> None:
    """With α = 0.5 and nobody else: x ← (x + (x + 1)) / 2, half a step each."""
    stage.controller()
    stage.host({"a": Adds(1.0)})
    rule = FedAsync(alpha=0.5)
    job = stage.driver.submit(asynchronous(versions=6, rule=rule), model_of())
    assert done(job).version == 6
    same(job.model(), model_of(3.0))
    assert {event.weight for event in of(job, e.UpdateFolded)} == {0.5}
    assert [event.rule for event in of(job, e.VersionCommitted)] == ["fedasync"] * 6


def test_changes_of_a_buffer_move_the_newest_version(stage: Stage) -> None:
    """Each learner sends what it added, 1, 2 or 3; their mean is what a version moves by."""
    stage.controller()
    stage.host({"a": Adds(1.0), "b": Adds(2.0), "c": Adds(3.0)})
    rule = FedBuff(buffer_size=3, staleness={"name": "constant"})  # type: ignore[arg-type]
    job = stage.driver.submit(asynchronous(versions=4, rule=rule, min_learners=3), model_of())
    done(job)
    same(job.model(), model_of(8.0))
    assert {event.contributors for event in of(job, e.VersionCommitted)} == {("a", "b", "c")}


def test_the_fast_do_not_wait_for_the_slow_and_both_count(stage: Stage) -> None:
    fast, slow = Halts(1.0, after=10), Adds(1.0)
    slow.gate.clear()
    stage.controller()
    stage.host({"fast": fast, "slow": slow})
    job = stage.driver.submit(asynchronous(versions=30), model_of())
    eventually(lambda: len(of(job, e.VersionCommitted)) == 10, "ten versions of the fast one's")
    slow.gate.set()
    eventually(lambda: len(of(job, e.VersionCommitted)) > 10, "one of the slow one's")
    fast.go_on()
    done(job)
    by = Counter(name for event in of(job, e.VersionCommitted) for name in event.contributors)
    assert by["fast"] >= 10
    assert by["slow"] >= 1
    assert max(event.staleness for event in of(job, e.UpdateFolded) if event.learner == "slow") >= 9


def test_an_asynchronous_job_goes_on_with_another_controller(tmp_path: Path) -> None:
    with Stage(tmp_path, heartbeat_s=0.2, lease_ttl_s=0.5) as stage:
        first = stage.controller()
        learners = {name: Halts(1.0, after=10) for name in "abc"}
        stage.host(learners)
        job = stage.driver.submit(asynchronous(versions=60), model_of())
        eventually(lambda: len(of(job, e.VersionCommitted)) >= 10, "ten versions")
        stage.kill(first)
        stage.controller()
        for learner in learners.values():
            learner.go_on()
        assert done(job).version == 60
        assert len(of(job, e.JobResumed)) == 1
        versions = [event.version for event in of(job, e.VersionCommitted)]
        assert versions == sorted(set(versions))


# ---------------------------------------------------------------- pacing


def test_semi_synchronous_learners_get_steps_by_their_speed(stage: Stage) -> None:
    learners = {"fast": Counts(0.001), "slow": Counts(0.02)}
    stage.controller()
    stage.host(learners)
    protocol = SemiSynchronous(lam=2.0, min_learners=2)
    termination = Termination(rounds=3)
    job = stage.driver.submit(JobSpec(protocol=protocol, termination=termination, evaluate=False), model_of())
    done(job)
    fast, slow = (learners[name].asked for name in ("fast", "slow"))
    assert "steps" not in fast[0]
    first = {event.learner: event for event in of(job, e.TaskFinished) if event.round == 0}
    step_s = {name: event.timings.train_s / event.num_steps for name, event in first.items()}
    assert step_s["fast"] > 0.0009
    assert step_s["slow"] > 0.018
    time_s = protocol.lam * max(event.timings.train_s / event.num_epochs for event in first.values())
    for name, asked in (("fast", fast), ("slow", slow)):
        assert asked[1]["steps"] == round(time_s / step_s[name])
        sent = [event.workload for event in of(job, e.TaskSent) if name in event.learners]
        assert sent == [{}, *({"steps": one["steps"]} for one in asked[1:])]


class SetClock(Threads):
    """The machine's time, and more when it is told to."""

    later_s = 0.0

    def steady_s(self) -> float:
        return Threads.steady_s() + self.later_s


def test_stragglers_get_fewer_epochs_and_the_others_more(tmp_path: Path) -> None:
    clock, target_s = SetClock(), 300.0
    fast, slow = Counts(), Counts()
    slow.gate.clear()
    with Stage(tmp_path, heartbeat_s=target_s, lease_ttl_s=10 * target_s, runtime=clock) as stage:
        pacing = Aimd(target_s=target_s, max_epochs=3)
        job = stage.run(
            {"fast": fast, "slow": slow}, rounds=4, evaluate=False, pacing=pacing, parameters={"epochs": 2}
        )
        eventually(lambda: of(job, e.UpdateFolded), "the fast one's update")
        clock.later_s += target_s
        slow.gate.set()
        done(job)
    assert [asked["epochs"] for asked in fast.asked] == [2, 3, 3, 3]
    assert [asked["epochs"] for asked in slow.asked] == [2, 1, 2, 3]


def test_enough_are_enough_and_the_others_stop(stage: Stage) -> None:
    learners = {name: Adds(1.0) for name in "abcd"}
    for name in "ab":
        learners[name].gate.clear()
    selector = SelectRandom(count=2)
    job = stage.run(learners, rounds=2, over_selection=2, selector=selector, evaluate=False)
    done(job)
    assert {event.contributors for event in of(job, e.VersionCommitted)} == {("c", "d")}
    same(job.model(), model_of(2.0))


# ---------------------------------------------------------------- control


def test_a_job_is_paused_stepped_and_resumed(stage: Stage) -> None:
    learner = Adds(1.0)
    learner.gate.clear()
    stage.controller()
    stage.host({"a": learner})
    job = stage.driver.submit(spec(rounds=6), model_of())
    assert learner.at_work.wait(30.0)
    job.pause("look")
    learner.gate.set()
    eventually(lambda: len(of(job, e.VersionCommitted)) == 1, "the open round's version")
    job.step()
    eventually(lambda: len(of(job, e.JobPaused)) == 2, "the pause after the step")
    assert [one.state for one in stage.driver.jobs()] == ["paused"]
    assert learner.num_trained == 2
    job.resume(versions=2)
    eventually(lambda: len(of(job, e.JobPaused)) == 3, "the pause after two versions")
    assert learner.num_trained == 4
    job.resume()
    assert done(job).version == 6
    with pytest.raises(RequestRefused, match="has ended: done"):
        job.pause()


def test_a_job_goes_on_from_any_kept_version_with_another_rule(stage: Stage) -> None:
    first = stage.run({"a": Adds(1.0)}, rounds=3)
    done(first)
    other = stage.driver.submit(asynchronous(versions=2, rule=FedAsync(alpha=1.0)), first.version(2))
    done(other)
    same(other.model(), model_of(4.0))
    (submitted,) = of(other, e.JobSubmitted)
    assert submitted.parent == VersionRef(job=first.id, version=2)
    newest = stage.driver.submit(spec(rounds=1), first.version())
    done(newest)
    same(newest.model(), model_of(4.0))
    for wrong in (VersionRef(job=first.id, version=0), VersionRef(job="none-such")):
        with pytest.raises(RequestRefused, match=r"version 0|no job"):
            stage.driver.submit(spec(rounds=1), wrong)


def test_a_rule_goes_on_with_its_memory_if_it_is_the_same(stage: Stage) -> None:
    """Momentum 0.5 of steps of 1: 1, 1.5, 1.75, …"""
    rule = FedAvgM(momentum=0.5)
    whole = stage.run({"a": Adds(1.0)}, rounds=4, rule=rule)
    half = stage.driver.submit(spec(rounds=2, rule=rule), model_of())
    done(half)
    rest = stage.driver.submit(spec(rounds=2, rule=rule), half.version())
    fresh = stage.driver.submit(spec(rounds=2, rule=FedAvgM(momentum=0.25)), half.version())
    for job in (whole, rest, fresh):
        done(job)
    assert rest.model()["w"].tolist() == whole.model()["w"].tolist()
    assert fresh.model()["w"].tolist() == pytest.approx([2.5 + 1.0 + 1.25] * 3)


# ---------------------------------------------------------------- several jobs at once


def test_jobs_share_learners_fairly_and_mix_nothing(stage: Stage) -> None:
    """Two jobs with tasks of like length on the same learners: both advance alike, each by its own rule."""
    stage.controller()
    learners = {name: Counts(0.002) for name in "abc"}
    stage.host(learners, num_workers=2)
    for learner in learners.values():
        learner.gate.clear()
    specs = [
        JobSpec(termination=Termination(rounds=8), parameters={"epochs": 2}, evaluate=False),
        asynchronous(versions=24, parameters={"epochs": 2}, evaluate=False),
    ]
    jobs = [stage.driver.submit(one, model_of(float(index))) for index, one in enumerate(specs)]
    for learner in learners.values():  # not before both are there
        learner.gate.set()
    for index, job in enumerate(jobs):
        done(job)
        same(job.model(), model_of(float(index)))
    order = sorted(
        (event.time_s, index) for index, job in enumerate(jobs) for event in of(job, e.UpdateFolded)
    )
    first_half = Counter(index for _, index in order[: len(order) // 2])
    assert min(first_half.values()) >= len(order) // 8, "one job waited for the other's end"


def test_time_is_shared_not_the_number_of_tasks() -> None:
    turns = Turns()
    turns.add(held("a", "long", 0))
    turns.add(held("a", "short", 0))
    served: list[str] = []
    for number in range(1, 23):
        task = turns.next()
        assert task is not None
        assert turns.next() is None, "a learner works on one task at a time"
        job = task.task.task.job
        served.append(job)
        turns.done(task, 10.0 if job == "long" else 1.0)
        turns.add(held("a", job, number))
    assert served.count("long") == 2
    assert served.count("short") == 20


# ---------------------------------------------------------------- bad results


def test_a_result_with_negative_examples_is_refused_and_the_round_goes_on(stage: Stage) -> None:
    def tamper(_: str, body: bytes) -> list[bytes]:
        fields, payload = unpack(body)
        if payload is None and fields["kind"] == Result.KIND:
            kind = fields.pop("kind")
            fields.pop("v", None)
            return [pack(kind, {**fields, "num_examples": -5})]
        return [body]

    stage.controller()
    stage.host({"liar": Adds(100.0)}, tamper=tamper)
    stage.host({"good": Adds(1.0)})
    job = stage.submit(rounds=2, quorum=0.5, min_learners=2, max_retries=0, evaluate=False)
    done(job)
    same(job.model(), model_of(2.0))
    refused = of(job, e.UpdateRefused)
    assert {event.learner for event in refused} == {"liar"}
    assert "num_examples" in refused[0].reason
