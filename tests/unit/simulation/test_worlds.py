"""Federations whose learners differ in speed and link, die and fail: what reports and events say."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from broker_fl.errors import SettingError
from broker_fl.interfaces import Learner, TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.record.history import History
from broker_fl.simulation import Each, Fail, Federation, Kill, Links, Spread, World
from broker_fl.wire.events import VersionCommitted
from tests.unit.roles.stage import Adds, eventually, model_of, same, spec

STEPS = 5


class Steps:
    """Adds 1, and says that it took ``STEPS`` steps."""

    def train(self, model: Arrays, task: TaskContext) -> Update:
        for step in range(STEPS):
            task.progress((step + 1) / STEPS)
        return Update(
            model={name: a + a.dtype.type(1) for name, a in model.items()}, num_examples=1, num_steps=STEPS
        )

    def evaluate(self, model: Arrays, task: TaskContext) -> Mapping[str, float]:
        return {"first": float(model["w"].reshape(-1)[0]), "num_examples": 1}


def team(num: int, kind: type[Any] = Steps, *args: Any) -> dict[str, Learner]:
    return {f"l{index}": kind(*args) for index in range(num)}


def ran(learners: Mapping[str, Learner], world: World, size: int = 3, **settings: Any) -> History:
    """The history of one job, which ends well."""
    settings = {"rounds": 1, "min_learners": 1} | settings
    with Federation(learners, world=world) as federation:
        job = federation.submit(spec(**settings), model_of(size=size))
        finished = job.wait()
        assert finished.state == "done", finished.reason
        return job.history()


# ---------------------------------------------------------------- speed


def test_a_learner_ten_times_as_slow_reports_ten_times_the_time() -> None:
    speeds = {"l0": 1.0, "l1": 0.3, "l2": 0.1}
    history = ran(team(3), World(speeds=Each(values=speeds), step_s=0.01, evaluate_s=0.02), rounds=3)
    shortest: dict[str, float] = {}  # of three: a machine that has other work to do makes some longer
    for name, speed in speeds.items():
        tasks = [history.rounds[number].tasks[name] for number in range(3)]
        shortest[name] = min(task.train_s or 0.0 for task in tasks)
        assert shortest[name] >= STEPS * 0.01 / speed
        assert all((task.evaluate_s or 0.0) >= 0.02 / speed for task in tasks)
    assert sorted(speeds, key=shortest.__getitem__) == ["l0", "l1", "l2"]


def test_without_declared_costs_it_is_the_real_time_that_is_stretched() -> None:
    class Works(Steps):
        def train(self, model: Arrays, task: TaskContext) -> Update:
            for _ in range(2):
                time.sleep(0.02)  # real work
                task.progress(0.5)
            return super().train(model, task)

    history = ran(team(2, Works), World(speeds=Each(values={"l0": 1.0, "l1": 0.1})))
    assert history.rounds[0].tasks["l1"].train_s >= 10 * 0.04  # type: ignore[operator]


def test_who_pauses_keeps_nobody_from_computing_and_a_straggler_lets_go_at_the_deadline() -> None:
    """One worker for all: were a pause to hold it, nothing would ever come of the others."""
    world = World(speeds=Each(values={"l0": 1e-5}, others=1.0), step_s=0.01, evaluate_s=0.0)
    with Federation(team(4), world=world, num_workers=1) as federation:
        job = federation.submit(spec(rounds=1, quorum=0.5, deadline_s=6.0), model_of())
        assert job.wait().state == "done"
        history = job.history()
    assert history.rounds[0].contributors == ("l1", "l2", "l3")
    assert history.learners["l0"].late == 1


def test_a_pause_is_over_at_once_when_the_federation_ends() -> None:
    before = set(threading.enumerate())
    with Federation(team(2), world=World(step_s=3600.0)) as federation:
        job = federation.submit(spec(rounds=1), model_of())
        next(event for event in job.events() if event.KIND == "task_accepted")
    eventually(lambda: set(threading.enumerate()) <= before, "the end of all threads")


def test_a_step_that_takes_time_needs_learners_that_count_steps() -> None:
    with Federation({"a": Adds(1.0)}, world=World(step_s=0.01)) as federation:
        job = federation.submit(spec(rounds=1, max_retries=0), model_of())
        assert "needs learners that count their steps" in job.wait().reason


# ---------------------------------------------------------------- death


def test_a_killed_learner_is_lost_without_a_word_and_the_rounds_go_on_under_quorum() -> None:
    world = World(faults=[Kill(learners=["l1", "l3"], at_round=1)], heartbeat_s=0.5)
    with Federation(team(4), world=world) as federation:
        job = federation.submit(spec(rounds=3, quorum=0.75), model_of())
        assert job.wait().state == "done"
        same(job.model(), model_of(3.0))
        history = job.history()
    everybody, left = ("l0", "l1", "l2", "l3"), ("l0", "l2")
    assert [record.contributors for record in history.committed] == [everybody, left, left]
    assert {i.learner for i in history.incidents if i.kind == "lost"} == {"l1", "l3"}
    assert not [i for i in history.incidents if i.kind in ("left", "failed")]


@pytest.mark.parametrize(
    "kill",
    [
        Kill(learners=["l1"], at_round=1, back_at_round=3),
        Kill(learners=["l1"], at_round=1, back_after_s=4.0),
        Kill(learners=["l1"], at_s=0.0, back_after_s=4.0),
    ],
)
def test_a_learner_that_comes_back_takes_part_again(kill: Kill) -> None:
    world = World(step_s=0.004, faults=[kill], heartbeat_s=0.1)
    with Federation(team(3), world=world) as federation:
        job = federation.submit(spec(rounds=100_000, quorum=0.5, deadline_s=1.5, max_retries=100), model_of())
        seen = []
        for event in job.events():
            if isinstance(event, VersionCommitted):
                seen.append("l1" in event.contributors)
                if False in seen and seen[-1]:
                    job.stop()
        assert seen[-1]
    if kill.at_round is not None:
        assert seen[: seen.index(False)] == [True] * kill.at_round


def test_a_learner_that_dies_while_it_trains_is_not_waited_for() -> None:
    """The round has no deadline: it ends because the learner is lost, hours before its training does."""
    speeds = Each(values={"l0": 1e-5}, others=1.0)
    world = World(speeds=speeds, step_s=0.01, faults=[Kill(learners=["l0"], at_s=2.0)], heartbeat_s=0.1)
    history = ran(team(2), world, quorum=0.5)
    assert history.rounds[0].contributors == ("l1",)
    assert history.learners["l0"].lost == 1


def test_a_learner_that_is_back_before_it_is_missed_does_its_task_anew() -> None:
    world = World(faults=[Kill(learners=["l1"], at_round=1, back_after_s=0.01)], heartbeat_s=5.0)
    history = ran(team(2), world, rounds=2)
    assert [record.contributors for record in history.committed] == [("l0", "l1")] * 2
    # It may have found the task in its mailbox besides, and have sent its result twice.
    assert {incident.kind for incident in history.incidents} <= {"late"}


# ---------------------------------------------------------------- failure


def test_trainings_fail_as_often_as_they_should_and_the_rounds_go_on() -> None:
    world = World(faults=[Fail(probability=1.0, learners=["l0"])])
    history = ran(team(3), world, rounds=3, quorum=0.5)
    assert [record.contributors for record in history.committed] == [("l1", "l2")] * 3
    assert history.learners["l0"].failed == 3
    assert "the simulation has this training fail" in history.incidents[0].reason


def test_the_seed_decides_which_trainings_fail() -> None:
    def failures(seed: int) -> list[tuple[int | None, str | None]]:
        world = World(faults=[Fail(probability=0.4)], seed=seed)
        history = ran(team(4), world, rounds=6, quorum=1, max_retries=100)
        return sorted((i.round, i.learner) for i in history.incidents if i.kind == "failed")

    assert failures(1) == failures(1)
    assert failures(1) != failures(2)


# ---------------------------------------------------------------- links


def test_a_link_makes_receiving_and_uploading_grow_with_the_bytes() -> None:
    world = World(links=Links(down_bytes_s=80_000.0, up_bytes_s=40_000.0, latency_s=0.01))
    times = {}
    for size in (2_500, 25_000):  # float32: 10 and 100 kB
        # A model of one chunk comes in one message with its task: nothing of it is seen on its way.
        history = ran(team(2), world, size=size, evaluate=False, transfer={"chunk_bytes": 4096})
        task = history.rounds[0].tasks["l0"]
        assert task.receive_s is not None
        assert task.upload_s is not None
        times[size] = task.receive_s, task.upload_s
    # Less than the whole where the loop was late to take in what came first.
    assert times[25_000][0] > 0.5 * 100_000 / 80_000
    assert times[25_000][1] > 0.5 * 100_000 / 40_000
    assert times[25_000] > times[2_500]


def test_a_slow_link_holds_up_no_other_learner() -> None:
    world = World(links=Links(down_bytes_s=Each(values={"l0": 5_000.0}, others=1e8)), heartbeat_s=0.2)
    history = ran(team(3), world, size=50_000, quorum=0.5, deadline_s=6.0, evaluate=False)
    assert history.rounds[0].contributors == ("l1", "l2")


# ---------------------------------------------------------------- what was drawn


def test_a_federation_tells_what_was_drawn_for_each_learner() -> None:
    with Federation(team(5), world=World(speeds=Spread(low=0.1, high=1.0))) as federation:
        assert [summary.learner for summary in federation.driver.learners()] == sorted(federation.profiles)
        speeds = sorted(profile.speed for profile in federation.profiles.values())
        np.testing.assert_allclose(speeds, np.logspace(-1, 0, 5))


def test_a_world_of_other_learners_is_refused() -> None:
    with pytest.raises(SettingError, match=r"faults, number 1: there is no learner 'l7'"):
        Federation(team(2), world=World(faults=[Kill(learners=["l7"], at_round=1)]))
