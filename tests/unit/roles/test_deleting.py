"""Jobs that have ended are deleted: by a driver, or by the controller, which keeps the newest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_fl.coordination.state import JobState, Phase
from broker_fl.errors import RequestRefused
from broker_fl.interfaces import Delivery
from broker_fl.roles.controller.retention import MAX_AT_ONCE, Retention
from broker_fl.roles.driver import Job
from broker_fl.security.audit import read, verify
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.wire.events import JobDeleted, decode_event
from broker_fl.wire.messages import DeleteJob, Done, EventBatch, decode
from tests.unit.roles.stage import FEDERATION, Adds, Stage, done, eventually, kinds, model_of, same, spec


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path) as made:
        yield made


def _stored(stage: Stage, job: str) -> list[object]:
    """All that the store has of a job."""
    store = SQLiteStore(stage.path, federation=FEDERATION)
    try:
        found = store.jobs().get(job), store.versions(job), store.updates(job), store.num_events(job)
        return [one for one in found if one]
    finally:
        store.close()


def _names(stage: Stage) -> list[str]:
    return [summary.job for summary in stage.driver.jobs()]


def test_a_deleted_job_is_gone_and_others_are_as_they_were(stage: Stage) -> None:
    stage.controller()
    stage.host({"a": Adds(1.0)})
    first, second = stage.submit(rounds=2), stage.submit(rounds=3)
    for job in (first, second):
        done(job)
    told: list[Delivery] = []
    stage.transport.declare(stage.topology.for_watcher("w"))
    stage.transport.consume(stage.topology.event_queue("w"), told.append, prefetch=9)
    first.delete("disk space")
    assert _names(stage) == [second.id]
    assert _stored(stage, first.id) == []
    for ask in (first.versions, first.model, first.delete, lambda: list(first.events(follow=False))):
        with pytest.raises(RequestRefused, match="there is no job"):
            ask()
    same(second.model(), model_of(3.0))
    assert kinds(second)[-1] == "job_finished"
    eventually(lambda: told, "word of it")
    batch, _ = decode(told[0].body)
    assert isinstance(batch, EventBatch)
    (event,) = map(decode_event, batch.events)
    assert isinstance(event, JobDeleted)
    assert (event.job, event.reason) == (first.id, "disk space")
    log = stage.audit_log()
    verify(log, FEDERATION)
    deeds = [entry for entry in map(read, log) if entry["action"] == "delete_job"]
    assert deeds[0]["subject"] == f"job {first.id}"
    assert deeds[0]["details"]["reason"] == "disk space"


def test_the_same_request_may_come_twice(stage: Stage) -> None:
    job = stage.run({"a": Adds(1.0)}, rounds=1)
    done(job)
    request = DeleteJob(driver=stage.driver.id, request="once", job=job.id)
    for _ in range(2):
        stage.driver.ask(request, Done)
    deeds = [entry["action"] for entry in map(read, stage.audit_log())]
    assert deeds.count("delete_job") == 1


def test_a_job_that_runs_is_not_deleted_and_one_that_was_stopped_just_now_is(stage: Stage) -> None:
    learner = Adds(1.0)
    learner.gate.clear()
    job = stage.run({"a": learner}, rounds=1)
    assert learner.at_work.wait(30)
    with pytest.raises(RequestRefused, match="has not ended, it is running: stop it first"):
        job.delete()
    assert _names(stage) == [job.id]
    job.stop("enough")
    job.delete()
    assert _names(stage) == []
    learner.gate.set()


def test_a_deleted_job_stays_deleted_under_the_next_controller(stage: Stage) -> None:
    controller = stage.controller()
    stage.host({"a": Adds(1.0)})
    job = stage.submit(rounds=1)
    done(job)
    job.delete()
    controller.stop()
    assert controller.wait(30)
    stage.controller()
    assert _names(stage) == []
    again = stage.submit(rounds=1)
    done(again)
    same(again.model(), model_of(1.0))


def _run(stage: Stage, num: int) -> list[Job]:
    jobs = [stage.submit(rounds=1) for _ in range(num)]
    for job in jobs:
        done(job)
    return jobs


def test_the_controller_keeps_the_newest_and_writes_down_what_it_deletes(tmp_path: Path) -> None:
    with Stage(tmp_path, heartbeat_s=0.1) as stage:
        first = stage.controller()
        stage.host({"a": Adds(1.0)})
        jobs = [job for _ in range(4) for job in _run(stage, 1)]
        assert len(_names(stage)) == 4, "nothing is deleted unless it is asked for"
        first.stop()
        assert first.wait(30)
        stage.retention = Retention(num_jobs=2, grace_s=0.0)
        stage.controller()
        eventually(lambda: len(_names(stage)) == 2, "tidying")
        assert _names(stage) == [job.id for job in jobs[2:]]
        same(jobs[-1].model(), model_of(1.0))
        assert [_stored(stage, job.id) for job in jobs[:2]] == [[], []]
        verify(stage.audit_log(), FEDERATION)
        deeds = [entry for entry in map(read, stage.audit_log()) if entry["action"] == "delete_job"]
        assert [entry["subject"] for entry in deeds] == [f"job {job.id}" for job in jobs[:2]]
        assert "the newest 2" in deeds[0]["details"]["reason"]


def _ended(*ends: float) -> dict[str, JobState]:
    states = [
        JobState(job=f"j{n}", spec=spec(), driver="d", update_bytes=1, submitted_at=0.0, ended_at=end)
        for n, end in enumerate(ends)
    ]
    for state in states:
        state.phase = Phase.ENDED
    return {state.job: state for state in states}


def test_what_goes_by_number_and_by_age() -> None:
    ended = _ended(5_000.0, 1_000.0, 9_000.0, 9_500.0)
    assert list(Retention().surplus(ended, 1e9)) == []
    assert list(Retention(num_jobs=2).surplus(ended, 10_000.0)) == ["j1", "j0"]
    assert list(Retention(num_jobs=1).surplus(ended, 10_000.0)) == ["j1", "j0"], "j2 ended just now"
    assert list(Retention(max_age_s=4_000.0).surplus(ended, 10_000.0)) == ["j1", "j0"]
    assert list(Retention(num_jobs=3, max_age_s=4_000.0).surplus(ended, 10_000.0)) == ["j1", "j0"]
    many = _ended(*[0.0] * 50)
    assert len(Retention(max_age_s=1.0).surplus(many, 10.0)) == MAX_AT_ONCE
