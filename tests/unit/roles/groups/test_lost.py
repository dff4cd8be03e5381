"""Hosts that die, leave or stay away, and messages that are lost, come twice or are damaged."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.record.history import History
from broker_fl.roles.driver import Job
from broker_fl.wire import events as e
from broker_fl.wire import messages as m
from broker_fl.wire.job import Transfer
from tests.unit.roles.groups.learners import mean_of, named, of
from tests.unit.roles.stage import WAIT_S, Adds, Stage, done, eventually


def killed_at_work(stage: Stage, solo: Adds, learners: dict[str, Adds]) -> Job:
    """Of a round with ``solo``, while the host of ``learners`` has one of them train."""
    stage.controller()
    *_, last = learners.values()
    last.gate.clear()
    stage.host({"solo": solo})
    host = stage.host(learners, group="a", num_workers=1)
    job = stage.submit(rounds=1, min_learners=1 + len(learners), evaluate=False)
    assert last.at_work.wait(WAIT_S)
    stage.kill_host(host)
    return job


def test_a_host_that_is_killed_and_comes_back_counts_each_of_its_learners_once(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:  # in which it is not lost before it is back
        solo, again = Adds(100.0), named("a", 6)
        job = killed_at_work(stage, solo, named("a", 6))
        stage.host(again, group="a")
        assert done(job).version == 1
        np.testing.assert_allclose(job.model()["w"], mean_of(*again.values(), solo), rtol=1e-6)
        (committed,) = of(job, e.VersionCommitted)
        assert committed.num_learners == 7  # type: ignore[attr-defined]


def test_a_host_that_stays_away_is_lost_with_all_of_its_learners(stage: Stage) -> None:
    gone = named("a", 4)
    job = killed_at_work(stage, Adds(3.0), gone)
    assert done(job).version == 1
    assert np.array_equal(job.model()["w"], np.full(3, 3.0, np.float32))
    (lost,) = of(job, e.GroupLost)
    assert lost.num_learners == 4  # type: ignore[attr-defined]
    assert [one.learner for one in stage.driver.learners()] == ["solo"]
    history = History.of(job.events(follow=False))
    assert {history.learners[name].presence for name in gone} == {"lost"}


def test_a_host_that_leaves_says_so_for_all(stage: Stage) -> None:
    stage.controller()
    host = stage.host(named("a", 4), group="a")
    assert len(stage.driver.learners()) == 4
    host.stop(drain_s=0.0)
    eventually(lambda: not stage.driver.learners(), "all to be gone")


def test_a_controller_that_dies_in_a_round_gets_the_sum_again_from_its_successor(stage: Stage) -> None:
    controller = stage.controller()
    solo, learners = Adds(2.0), named("a", 5)
    solo.gate.clear()
    stage.host({"solo": solo})
    stage.host(learners, group="a")
    job = stage.submit(rounds=2, min_learners=6, evaluate=False)
    eventually(lambda: of(job, e.GroupFolded), "the group's sum to be folded")
    stage.kill(controller)
    stage.controller(wait=False)
    solo.gate.set()
    assert done(job).version == 2
    np.testing.assert_allclose(job.model()["w"], 2 * mean_of(solo, *learners.values()), rtol=1e-6)
    assert {one.num_trained for one in learners.values()} == {2}


def test_results_that_come_twice_and_lost_ones_count_once(stage: Stage) -> None:
    lost = set[str]()

    def tamper(exchange: str, body: bytes) -> list[bytes]:
        if not exchange.endswith("updates"):
            return [body]
        message, _ = m.decode(body)
        if message.KIND not in lost:
            lost.add(message.KIND)
            return []
        return [body, body]

    stage.controller()
    learners = named("a", 5)
    stage.host(learners, group="a", tamper=tamper)
    job = stage.submit(rounds=3, min_learners=5)
    assert done(job).version == 3
    assert lost == {"group_result", "update_chunk"}
    np.testing.assert_allclose(job.model()["w"], 3 * mean_of(*learners.values()), rtol=1e-6)
    assert {one.num_trained for one in learners.values()} == {3}


def test_a_sum_that_is_damaged_on_its_way_is_refused_and_the_learners_asked_once_more(stage: Stage) -> None:
    damaged = threading.Event()

    def tamper(exchange: str, body: bytes) -> list[bytes]:
        is_chunk = exchange.endswith("updates") and b"update_chunk" in body
        if not is_chunk or damaged.is_set():
            return [body]
        damaged.set()
        return [body[:-1] + bytes([body[-1] ^ 1])]

    stage.controller()
    learners = named("a", 5)
    stage.host(learners, group="a", tamper=tamper)
    job = stage.submit(rounds=1, min_learners=5, evaluate=False)
    assert done(job).version == 1
    np.testing.assert_allclose(job.model()["w"], mean_of(*learners.values()), rtol=1e-6)
    (missed,) = of(job, e.GroupMissed)
    assert isinstance(missed, e.GroupMissed)
    assert missed.outcome == "refused"
    assert "corrupt in transit" in missed.reasons[0]


def test_sums_that_do_not_fit_the_budget_are_asked_for_in_turn(stage: Stage) -> None:
    stage.controller()
    groups = {name: named(name, 3) for name in "abcd"}
    for name, learners in groups.items():
        stage.host(learners, group=name)
    transfer = Transfer(upload_budget_bytes=30)
    job = stage.submit(rounds=2, min_learners=12, transfer=transfer)
    assert done(job).version == 2
    expected = 2 * mean_of(*(one for learners in groups.values() for one in learners.values()))
    np.testing.assert_allclose(job.model()["w"], expected, rtol=1e-6)


def test_two_jobs_share_a_group_and_no_learner_does_two_things_at_once(stage: Stage) -> None:
    class Alone(Adds):
        def __init__(self, amount: float) -> None:
            super().__init__(amount)
            self.lock = threading.Lock()

        def train(self, model: Arrays, task: TaskContext) -> Update:
            assert self.lock.acquire(blocking=False), "it is at work already"
            try:
                return super().train(model, task)
            finally:
                self.lock.release()

    stage.controller()
    learners = {f"a-{index}": Alone(1.0) for index in range(6)}
    stage.host(learners, group="a")
    jobs = [stage.submit(rounds=3, min_learners=6, quorum=1.0, evaluate=False) for _ in range(2)]
    for job in jobs:
        assert done(job).version == 3
        assert not of(job, e.GroupMissed)
