"""What the fault simulation found, one by one: parts that were lost, mixed up, or forgotten by the store."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_fl.coordination.state import JobState, Phase
from broker_fl.errors import RequestRefused, StoreUnavailable, VersionsLost
from broker_fl.interfaces import Combined, StoredVersion, TaskContext, Update
from broker_fl.model import Arrays, Model
from broker_fl.roles.controller.job.receiving import UpdateReceiver
from broker_fl.roles.controller.job.versions import VersionRecord, Versions
from broker_fl.roles.driver import watch
from broker_fl.transports.memory import MemoryTransport
from broker_fl.wire import events as e
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import cut
from broker_fl.wire.job import Transfer
from tests.simulation.storage import MemoryStore
from tests.unit.roles.stage import WAIT_S, Adds, Stage, done, eventually, model_of, same, spec

TASK = m.TaskRef(job="j", round=2)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(watch, "LOOK_AFTER_S", 0.5)  # whoever hears nothing looks for what there is
    with Stage(tmp_path, lease_ttl_s=1.0) as stage:
        yield stage


def test_chunks_of_two_trainings_for_one_task_are_not_put_together() -> None:
    first, second = (Model.of({"w": np.full(1_200, value)}) for value in (1.0, 2.0))
    receiver = UpdateReceiver(first.spec, Transfer(chunk_bytes=4096))

    def chunks(model: Model, session: str) -> list[tuple[m.UpdateChunk, memoryview]]:
        return [
            (
                m.UpdateChunk(
                    learner="l",
                    task=TASK,
                    session=session,
                    index=one.index,
                    count=one.count,
                    checksum=one.checksum,
                ),
                one.payload,
            )
            for one in cut(model.buffer, 4096)
        ]

    def result(model: Model, session: str, num_examples: int) -> m.Result:
        manifest = m.UpdateManifest.of(
            model.spec, form="values", control="none", encoding="raw", chunk_bytes=4096
        )
        return m.Result(learner="l", task=TASK, session=session, num_examples=num_examples, update=manifest)

    receiver.expect(result(first, "a", 5), 0.0)
    for chunk, payload in chunks(first, "a")[:2]:
        receiver.add(chunk, payload, 0.0)
    for chunk, payload in chunks(second, "b"):  # of the learner that was started anew; its result was lost
        assert not receiver.add(chunk, payload, 1.0).complete
    upload = receiver.expect(result(second, "b", 2), 2.0)
    assert upload.complete
    np.testing.assert_array_equal(receiver.model(upload)["w"], second["w"])


def test_a_lost_chunk_of_an_initial_model_is_sent_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_fl.roles.driver.driver.FIRST_PATIENCE_S", 0.0)
    monkeypatch.setattr("broker_fl.roles.driver.answers._REPEAT_AFTER_S", 0.05)
    lost: list[int] = []
    publish = stage.driver.transport.publish

    def lossy(exchange: str, keys: list[str], body: bytes, **options: bool) -> None:
        if b"model_chunk" in body[:64] and not lost:
            lost.append(len(body))
        else:
            publish(exchange, keys, body, **options)

    monkeypatch.setattr(stage.driver.transport, "publish", lossy)
    job = stage.run({"a": Adds(1.0)}, rounds=2)
    done(job)
    assert lost
    same(job.model(), model_of(2.0))


def test_a_driver_outlasts_a_store_that_is_away_for_a_moment(stage: Stage) -> None:
    job = stage.run({"a": Adds(1.0)}, rounds=1)
    done(job)
    cord, _ = next(iter(stage.cords.values()))
    cord.failing = 1
    same(job.model(), model_of(1.0))


def _committed(versions: Versions, number: int) -> None:
    model = Model.of({"w": np.full(3, float(number))})
    record = VersionRecord(version=number, spec=model.spec, digest=model.digest, committed_at=0.0)
    versions.write(record, Combined(model=model), b"state", keep=3)


def test_a_controller_whose_versions_the_store_has_lost_is_told_so() -> None:
    store = MemoryStore(lambda: 0.0, forgets_versions=True)
    epoch = store.acquire_lease("a", 15.0)
    assert epoch is not None
    versions = Versions(store, "j", epoch)
    for number in range(3):
        _committed(versions, number)
    store.cut_power(lambda _, most: most)
    assert store.versions("j") == []
    with pytest.raises(VersionsLost, match="version 2 was in it, the newest is -1"):
        _committed(versions, 3)
    with pytest.raises(StoreUnavailable):  # not whole: that is another matter
        store.commit_version(
            "j", StoredVersion(version=0, manifest=b"", num_chunks=9), b"", epoch=epoch, keep=1
        )


def test_a_job_goes_back_to_what_the_store_has() -> None:
    state = JobState(
        job="j",
        spec=spec(rounds=9),
        driver="d",
        update_bytes=1,
        submitted_at=0.0,
        phase=Phase.TRAINING,
        round=5,
        version=5,
        counted={"a": 4, "b": 2},
    )
    state.evaluations = {5: {"loss": 1.0}, 3: {"loss": 2.0}}
    state.go_back_to(5)
    assert state.phase is Phase.TRAINING
    state.go_back_to(3)
    assert (state.version, state.round, state.phase) == (3, 3, Phase.IDLE)
    assert state.counted == {"b": 2}
    assert state.evaluation == {"loss": 2.0}


def test_events_after_those_that_the_store_forgot_have_numbers_that_nobody_has_heard(stage: Stage) -> None:
    first = stage.controller()
    stage.host({"a": (adds := Adds(1.0))})
    adds.gate.clear()
    job = stage.submit(rounds=3)
    assert adds.at_work.wait(WAIT_S)
    heard: list[e.Event] = []
    listener = threading.Thread(target=lambda: heard.extend(job.events()))
    listener.start()
    eventually(lambda: any(isinstance(event, e.TaskAccepted) for event in job.events(follow=False)), "a task")
    stage.kill(first)
    with sqlite3.connect(stage.path) as file:  # the power was cut before these were on the disk
        (before,) = file.execute("SELECT max(number) FROM events").fetchone()
        file.execute("DELETE FROM events WHERE number > 2")
    file.close()
    adds.gate.set()
    stage.controller()
    done(job)
    listener.join(WAIT_S)
    assert not listener.is_alive()
    assert isinstance(heard[-1], e.JobFinished)
    anew = [event for event in heard if event.sequence > before]
    assert [event.version for event in anew if isinstance(event, e.VersionCommitted)] == [1, 2, 3]
    stored = list(job.events(follow=False))
    assert stored[2:] == anew, "all that the new controller said, and nothing else"


def test_the_end_of_a_job_that_the_store_forgot_is_said_again_to_who_asks(stage: Stage) -> None:
    job = stage.run({"a": Adds(1.0)}, rounds=1)
    ended = done(job)
    with sqlite3.connect(stage.path) as file:
        file.execute("DELETE FROM events WHERE number > 3")
    file.close()
    assert len(list(job.events(follow=False))) == 3
    again = job.wait()
    assert (again.state, again.version) == (ended.state, ended.version)
    assert again.sequence > ended.sequence


def test_a_job_whose_versions_are_all_lost_is_refused_to_who_follows_it(stage: Stage) -> None:
    first = stage.controller()
    stage.host({"a": (adds := Adds(1.0))})
    adds.gate.clear()
    job = stage.submit(rounds=3)
    assert adds.at_work.wait(WAIT_S)
    stage.kill(first)
    with sqlite3.connect(stage.path) as file:
        file.execute("DELETE FROM versions")
    file.close()
    adds.gate.set()
    stage.controller()
    with pytest.raises(RequestRefused, match="cannot be resumed: the store has lost its versions"):
        job.wait()


def test_a_job_that_the_store_forgot_but_not_its_events_is_refused_to_who_follows_it(stage: Stage) -> None:
    """It was said to be another controller's, for ever."""
    first = stage.controller()
    stage.host({"a": (adds := Adds(1.0))})
    adds.gate.clear()
    job = stage.submit(rounds=3)
    assert adds.at_work.wait(WAIT_S)
    eventually(lambda: list(job.events(follow=False)), "an event")
    stage.kill(first)
    with sqlite3.connect(stage.path) as file:
        file.execute("DELETE FROM jobs")
    file.close()
    adds.gate.set()
    stage.controller()
    with pytest.raises(RequestRefused, match="is lost: the store has its events, and forgot the job"):
        job.wait()


class Remembers(Adds):
    """Notes what is stored of the job before its last round."""

    def __init__(self, path: Path) -> None:
        super().__init__(1.0)
        self._path = path
        self.state = b""

    def train(self, model: Arrays, task: TaskContext) -> Update:
        if task.round == 2 and not self.state:
            with sqlite3.connect(self._path) as file:
                (self.state,) = file.execute("SELECT state FROM jobs").fetchone()
            file.close()
        return super().train(model, task)


def test_a_version_that_is_lost_is_not_passed_off_as_the_one_before_it(stage: Stage) -> None:
    """A replica that took over may lack it, while the controller that made it takes the job for done."""
    first = stage.controller()
    stage.host({"a": (learner := Remembers(stage.path))})
    job = stage.submit(rounds=3)
    done(job)
    with sqlite3.connect(stage.path) as file:
        file.execute("UPDATE jobs SET state = ?", (learner.state,))
        file.execute("DELETE FROM versions WHERE version = 3")
    file.close()
    with pytest.raises(RequestRefused, match="version 3 was in it, the newest is 2"):
        job.model()
    assert first.wait(WAIT_S)
    assert isinstance(first.error, VersionsLost)
    stage.controller()
    eventually(lambda: job.versions()[-1].version == 3, "the lost version, once more")
    same(job.model(), model_of(3.0))
    assert learner.num_trained == 4


def test_a_version_that_nobody_can_make_again_is_refused_and_ends_nobody(stage: Stage) -> None:
    first = stage.controller()
    stage.host({"a": Adds(1.0)})
    job = stage.submit(rounds=2)
    done(job)
    stage.kill(first)
    second = stage.controller()
    with sqlite3.connect(stage.path) as file:
        file.execute("DELETE FROM versions WHERE version = 2")
    file.close()
    for ask in (job.model, job.versions):
        with pytest.raises(RequestRefused, match="version 2 was in it, the newest is 1"):
            ask()
    assert second.error is None


def test_a_mailbox_that_is_deleted_as_its_learner_starts_is_declared_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    consume = MemoryTransport.consume
    deleted: list[str] = []

    def delete_first(transport: MemoryTransport, queue: str, *args: Any, **options: Any) -> None:
        if queue.endswith("learner.a") and not deleted:
            deleted.append(queue)
            transport.delete_queue(queue)
        consume(transport, queue, *args, **options)

    monkeypatch.setattr(MemoryTransport, "consume", delete_first)
    done(stage.run({"a": Adds(1.0)}, rounds=1))
    assert deleted
