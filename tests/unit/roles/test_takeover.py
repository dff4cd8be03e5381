"""A controller that dies, freezes or is replaced in the middle of a round."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from broker_fl.coordination.state import JobState, Phase
from broker_fl.errors import Fenced
from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.roles.controller import Controller
from broker_fl.roles.controller.job.eventlog import MAX_FORGOTTEN
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.wire import events as e
from broker_fl.wire.job import Transfer
from tests.unit.roles.stage import FEDERATION, WAIT_S, Adds, Stage, done, eventually, kinds, model_of, same

TTL_S = 0.6
LONG_TTL_S = 18.0
"""Not over when the machine stands still for a while."""


@pytest.fixture
def stage(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Stage(tmp_path, heartbeat_s=0.3, lease_ttl_s=TTL_S) as made:
        yield made


def counted_once(events: list[e.Event]) -> bool:
    """No learner is twice in one version, and versions follow one another."""
    committed = [event for event in events if isinstance(event, e.VersionCommitted)]
    once = all(max(Counter(event.contributors).values()) == 1 for event in committed)
    return once and [event.version for event in committed] == list(range(1, len(committed) + 1))


@pytest.mark.parametrize("end", ["kill", "stop"])
@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_the_next_controller_goes_on_with_the_round_and_nobody_trains_twice(
    stage: Stage, end: str, budget: int
) -> None:
    """One learner has delivered, one still trains."""
    first = stage.controller()
    fast, slow = Adds(1.0), Adds(3.0)
    stage.host({"fast": fast, "slow": slow})
    transfer = Transfer(chunk_bytes=4096, upload_budget_bytes=budget)
    model = model_of(0.0, size=5_000)
    slow.gate.clear()
    job = stage.submit(model, rounds=3, min_learners=2, transfer=transfer)
    assert slow.at_work.wait(WAIT_S)
    eventually(lambda: fast.num_trained and "update_folded" in kinds(job), "the first delivery")
    if end == "kill":
        stage.kill(first)
    else:
        first.stop()
        assert first.wait(WAIT_S)
    second = stage.controller()
    assert second.epoch > first.epoch
    slow.gate.set()
    done(job)
    same(job.model(), model_of(6.0, size=5_000))
    assert (fast.num_trained, slow.num_trained) == (3, 3)
    seen = list(job.events(follow=False))
    said_once(seen)
    assert counted_once(seen)
    assert [event.epoch for event in seen if isinstance(event, e.JobResumed)] == [second.epoch]


def said_once(seen: list[e.Event]) -> None:
    """Each version, with who is in it; numbers are without gaps but where the second controller began."""
    committed = [event for event in seen if isinstance(event, e.VersionCommitted)]
    assert [event.version for event in committed] == [1, 2, 3]
    assert len({(event.contributors, event.total_weight) for event in committed}) == 1
    steps = [later.sequence - event.sequence for event, later in pairwise(seen)]
    assert set(steps) <= {1, MAX_FORGOTTEN + 1}
    assert steps.count(1) >= len(steps) - 1


def test_a_standby_takes_over_at_once_from_one_that_was_stopped(tmp_path: Path) -> None:
    with Stage(tmp_path, heartbeat_s=0.3, lease_ttl_s=LONG_TTL_S) as stage:
        first = stage.controller()
        standby = stage.controller(wait=False)
        eventually(lambda: standby.status().is_standby, "standing by")
        assert not standby.wait_active(2 * TTL_S)
        stage.host({"a": (adds := Adds(1.0))})
        adds.gate.clear()
        job = stage.submit(rounds=3)
        assert adds.at_work.wait(WAIT_S)
        first.stop()
        assert standby.wait_active(WAIT_S)
        adds.gate.set()
        done(job)
        same(job.model(), model_of(3.0))
        assert first.error is None


def test_a_controller_that_was_frozen_is_fenced_and_stops_by_itself(stage: Stage) -> None:
    """Its lease ran out while it hung, and another took over: what it still wants to write is refused."""
    frozen = stage.controller()
    stage.host({"a": (adds := Adds(1.0))})
    adds.gate.clear()
    job = stage.submit(rounds=3)
    assert adds.at_work.wait(WAIT_S)
    cord, _ = stage.cords[frozen]
    cord.pulled = True  # not even its lease is renewed
    heir = stage.controller()
    cord.pulled = False
    adds.gate.set()
    assert frozen.wait(WAIT_S)
    assert isinstance(frozen.error, Fenced)
    stage.cords[frozen][1].close()
    done(job)
    same(job.model(), model_of(3.0))
    assert heir.error is None
    assert counted_once(list(job.events(follow=False)))


class Paced(Adds):
    """Trains in the first rounds only, and waits in the others until it is let."""

    num_rounds = 0

    def train(self, model: Arrays, task: TaskContext) -> Update:
        while task.round >= self.num_rounds:
            task.progress(0.5)
            time.sleep(0.005)
        return super().train(model, task)


def test_a_controller_killed_again_and_again_loses_and_doubles_nothing(stage: Stage) -> None:
    """The job does not end before that, however late each kill is."""
    learners = {name: Paced(1.0) for name in "abc"}
    controller = stage.controller()
    stage.host(learners)
    job = stage.submit(rounds=12, min_learners=3)
    for _ in range(4):
        before = newest(stage)
        for learner in learners.values():
            learner.num_rounds = max(0, before) + 2
        eventually(lambda before=before: newest(stage) > before, "a version")  # type: ignore[misc]
        stage.kill(controller)
        controller = stage.controller()
    for learner in learners.values():
        learner.num_rounds = 12
    done(job)
    same(job.model(), model_of(12.0))
    committed = [event for event in job.events(follow=False) if isinstance(event, e.VersionCommitted)]
    assert all(len(event.contributors) == 3 for event in committed)
    assert max(learner.num_trained for learner in learners.values()) <= 13, "12 and the cut of a commit"


def newest(stage: Stage) -> int:
    store = SQLiteStore(stage.path, federation=FEDERATION)
    try:
        versions = [version.version for job in store.jobs() for version in store.versions(job)]
        return max(versions, default=-1)
    finally:
        store.close()


def die_when(controller: Controller, stage: Stage, name: str, *, after: bool) -> None:
    """Kill it right before, or right after, its next call of that name on the store."""
    cord, _ = stage.cords[controller]
    real = getattr(cord._inner, name)

    def call(*args: object, **options: object) -> object:
        result: object = real(*args, **options) if after else None
        stage.kill(controller)
        getattr(cord, "is_pulled")  # noqa: B009 - raises, as every call does now
        return result

    setattr(cord._inner, name, call)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["write_chunk", "commit_version", "append_events"])
def test_a_controller_that_dies_at_a_write_is_continued_from_there(
    stage: Stage, name: str, after: bool
) -> None:
    first = stage.controller()
    adds = Adds(1.0)
    stage.host({"a": adds})
    adds.gate.clear()
    job = stage.submit(rounds=3)
    assert adds.at_work.wait(WAIT_S)
    die_when(first, stage, name, after=after)
    adds.gate.set()
    eventually(lambda: stage.cords[first][0].pulled, "the death")
    stage.controller()
    done(job)
    same(job.model(), model_of(3.0))
    assert adds.num_trained == 3
    seen = list(job.events(follow=False))
    said_once(seen)


def test_a_job_that_ended_without_having_said_so_says_it_when_the_next_controller_starts(
    stage: Stage,
) -> None:
    first = stage.controller()
    stage.host({"a": (adds := Adds(1.0))})
    adds.gate.clear()
    job = stage.submit(rounds=2)
    assert adds.at_work.wait(WAIT_S)
    cord, _ = stage.cords[first]
    real: Callable[..., None] = cord._inner.save_job

    def save_job(job: str, state: bytes, *, epoch: int) -> None:
        real(job, state, epoch=epoch)
        if JobState.unpack(state, 0.0).phase is Phase.ENDED:
            stage.kill(first)

    cord._inner.save_job = save_job  # type: ignore[method-assign]
    adds.gate.set()
    eventually(lambda: cord.pulled, "the job's end")
    stage.controller()
    assert done(job).version == 2
    same(job.model(), model_of(2.0))
    assert kinds(job).count("job_finished") == 1


def test_a_store_that_fails_now_and_then_delays_a_job_and_no_more(stage: Stage) -> None:
    controller = stage.controller()
    stage.host({"a": Adds(1.0), "b": Adds(1.0)})
    job = stage.submit(rounds=6, min_learners=2)
    for event in job.events():
        if isinstance(event, e.VersionCommitted):
            stage.cords[controller][0].failing = 3
    stage.cords[controller][0].failing = 0
    done(job)
    same(job.model(), model_of(6.0))
    assert kinds(job).count("version_committed") == 6


def test_a_driver_whose_controller_dies_while_it_submits_sends_the_model_to_the_next_one(
    stage: Stage,
) -> None:
    import broker_fl.roles.driver.answers as module

    first = stage.controller()
    cord, _ = stage.cords[first]
    real = cord._inner.write_chunk

    def write_chunk(*args: object, **options: object) -> None:
        stage.kill(first)
        stage.controller(wait=False)
        cord._inner.write_chunk = real  # type: ignore[method-assign]
        getattr(cord, "is_pulled")  # noqa: B009

    cord._inner.write_chunk = write_chunk  # type: ignore[method-assign]
    stage.host({"a": Adds(1.0)})
    repeat_after_s, module._REPEAT_AFTER_S = module._REPEAT_AFTER_S, 0.3
    try:
        job = stage.submit(rounds=2)
    finally:
        module._REPEAT_AFTER_S = repeat_after_s
    done(job)
    same(job.model(), model_of(2.0))
