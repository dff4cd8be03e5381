"""FedRec in a federation: each version is the mean of the newest updates, whoever dies meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from broker_fl.coordination.state import JobState
from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Array, Arrays, Model
from broker_fl.roles.driver import Job
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.wire import events as e
from broker_fl.wire.rules import FedRec
from tests.unit.coordination.bench import asynchronous
from tests.unit.roles.stage import FEDERATION, WAIT_S, Stage, done, eventually
from tests.unit.roles.test_takeover import die_when

SIZE = 5
NAMES = ("a", "b", "c")
VERSIONS = 24


class Draws:
    """Sends another model, drawn, after each training, with another number of examples; says which in its
    metrics.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.trained = 0
        self.allowed = 0
        """Trainings; the next one takes until more are."""

    def drawn(self, number: int) -> tuple[dict[str, Array], int]:
        """The update of a training, and its examples."""
        rng = np.random.default_rng([self.seed, number])
        model = {
            "w": rng.normal(size=SIZE).astype(np.float32) * (1e30 if number % 3 == 1 else 1),
            "steps": np.array([number * 10]),
        }
        return model, int(rng.integers(1, 1000))

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """Once it is allowed."""
        self.trained += 1
        number = self.trained
        while number > self.allowed:
            task.progress(0.5)
            threading.Event().wait(0.005)
        drawn, num_examples = self.drawn(number)
        return Update(model=drawn, num_examples=num_examples, metrics={"training": float(number)})

    def evaluate(self, model: Arrays, task: TaskContext) -> Mapping[str, float]:
        """Nothing."""
        return {}


def check_versions(job: Job, learners: Mapping[str, Draws]) -> None:
    """Each version that was made, against the updates that are in it."""
    events = {event.version: event for event in committed(job)}
    newest: dict[str, int] = {}
    for version in range(1, VERSIONS + 1):
        found = job.model(version)
        if (event := events.get(version)) is not None:
            choices = [(event.contributors[0], int(event.metrics["training"]))]
        else:  # the controller died before it could say so
            choices = [(n, k) for n in learners for k in range(newest.get(n, 0) + 1, learners[n].trained + 1)]
        matching = [choice for choice in choices if is_mean(found, dict([*newest.items(), choice]), learners)]
        assert len(matching) == 1, (version, choices)
        newest |= dict(matching)
        if event is not None:
            assert event.total_weight == sum(learners[n].drawn(k)[1] for n, k in newest.items())


def is_mean(found: Model, newest: Mapping[str, int], learners: Mapping[str, Draws]) -> bool:
    """To the last bit: in extended precision, in which the sum of three is exact enough."""
    updates = [learners[name].drawn(number) for name, number in newest.items()]
    total = sum(weight for _, weight in updates)
    means = {
        name: sum(model[name].astype(np.longdouble) * weight for model, weight in updates) / total
        for name in found
    }
    is_same = np.array_equal(found["w"], np.asarray(means["w"], np.float32))
    return is_same and np.array_equal(found["steps"], np.rint(np.asarray(means["steps"], np.float64)))


def committed(job: Job) -> list[e.VersionCommitted]:
    return [event for event in job.events(follow=False) if isinstance(event, e.VersionCommitted)]


def stored(stage: Stage) -> tuple[JobState, set[str]]:
    """The newest state of the one job, and the names of the updates that are stored."""
    store = SQLiteStore(stage.path, federation=FEDERATION)
    try:
        [(job, state)] = store.jobs().items()
        return JobState.unpack(state, 0.0), set(store.updates(job))
    finally:
        store.close()


def submit(stage: Stage) -> Job:
    start = {"w": np.full(SIZE, -7.0, np.float32), "steps": np.array([-7])}
    settings = asynchronous(
        rule=FedRec(), versions=VERSIONS, keep_versions=VERSIONS + 1, min_learners=len(NAMES), evaluate=False
    )
    return stage.driver.submit(settings, start)


def made(seed: int = 0) -> dict[str, Draws]:
    return {name: Draws(seed + index) for index, name in enumerate(NAMES)}


def let(learners: Mapping[str, Draws], *allowed: int) -> None:
    """Let the learners train so often."""
    for learner, number in zip(learners.values(), allowed, strict=True):
        learner.allowed = number


def at_rest(learners: Mapping[str, Draws]) -> bool:
    """Whether all wait to be allowed more: what they delivered is in versions, or lost."""
    return all(learner.trained > learner.allowed for learner in learners.values())


def newest_names(state: JobState) -> set[str]:
    return {f"{learner}:{round}" for learner, round in state.counted.items()}


def test_every_version_is_the_mean_of_the_newest_updates(tmp_path: Path) -> None:
    """One learner takes for ever after its second update, one leaves after its third: both stay in."""
    with Stage(tmp_path) as stage:
        stage.controller()
        learners = made()
        stage.host({name: learners[name] for name in "ac"})
        host = stage.host({"b": learners["b"]})
        job = submit(stage)
        let(learners, 4, 3, 2)
        eventually(lambda: at_rest(learners), "9 updates")
        state, names = stored(stage)
        assert state.version == 9
        assert names == newest_names(state)
        assert len(names) == len(NAMES)
        host.stop(drain_s=0.0)
        let(learners, 1_000, 3, 2)
        done(job)
        check_versions(job, learners)
        state, names = stored(stage)
        assert set(state.counted) == set(NAMES)
        assert not names, "of a job that has ended nothing is left"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["write_update", "write_chunk", "commit_version", "drop_updates"])
def test_a_controller_that_dies_between_two_writes_loses_and_doubles_nothing(
    tmp_path: Path, name: str, after: bool
) -> None:
    with Stage(tmp_path, heartbeat_s=0.3, lease_ttl_s=0.6) as stage:
        controller = stage.controller()
        learners = made(seed=10)
        stage.host(learners)
        job = submit(stage)
        for allowed in (2, 4):
            let(learners, allowed, allowed, allowed)
            eventually(lambda: at_rest(learners), "updates")
            die_when(controller, stage, name, after=after)
            let(learners, allowed + 1, allowed + 1, allowed + 1)
            cord, _ = stage.cords[controller]
            eventually(lambda cord=cord: cord.pulled, "the death")  # type: ignore[misc]
            state, names = stored(stage)
            assert names >= newest_names(state), "what counts is there at any moment"
            controller = stage.controller()
            eventually(lambda: at_rest(learners), "updates")
            state, names = stored(stage)
            assert names == newest_names(state)
        let(learners, 1_000, 1_000, 1_000)
        done(job)
        check_versions(job, learners)
        assert not stored(stage)[1]


def test_what_a_crash_left_over_is_dropped_when_the_next_controller_starts(tmp_path: Path) -> None:
    """Of a job that runs: all but each learner's newest. Of one that has ended: everything."""
    with Stage(tmp_path, heartbeat_s=0.3, lease_ttl_s=0.6) as stage:
        learners = made(seed=20)
        first = stage.controller()
        stage.host(learners)
        job = submit(stage)
        let(learners, 2, 2, 2)
        eventually(lambda: at_rest(learners), "updates")
        stage.kill(first)
        leave_over(stage, job)
        second = stage.controller()
        state, names = stored(stage)
        assert names == newest_names(state)
        assert len(names) == len(NAMES)
        let(learners, 1_000, 1_000, 1_000)
        done(job)
        second.stop()
        assert second.wait(WAIT_S)
        leave_over(stage, job)
        stage.controller()
        assert not stored(stage)[1]


def leave_over(stage: Stage, job: Job) -> None:
    """An update of no version, as a controller writes it that dies right after."""
    store = SQLiteStore(stage.path, federation=FEDERATION)
    epoch = 1 + max(controller.epoch for controller in stage.cords)
    store.write_update(job.id, "a:99", 0, memoryview(b"of a version that never was"), epoch=epoch)
    store.release_lease(epoch)
    store.close()
