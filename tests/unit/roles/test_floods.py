"""Floods of valid messages, by enrolled accounts: what of them is kept is bounded, and others are heard."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_fl.errors import FrameRefused
from broker_fl.interfaces import Delivery
from broker_fl.observer import Nobody
from broker_fl.roles.controller import Controller, ControllerSettings
from broker_fl.roles.controller.attendance import is_behind
from broker_fl.roles.controller.auditing import stored_lines
from broker_fl.roles.controller.limits import (
    DEAD_LETTER_BYTES,
    DEAD_LETTERS,
    FORGOTTEN,
    JOINS,
    MAX_WAITING_BYTES,
    WRITTEN_DOWN,
    Rate,
)
from broker_fl.roles.controller.reports import MAX_FORGOTTEN
from broker_fl.roles.driver import Driver, Job
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.security.audit import read
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.topology import MAX_GENERATIONS, Topology
from broker_fl.transports.memory import MemoryBroker, MemoryTransport
from broker_fl.wire import events as e
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import checksum
from broker_fl.wire.frames import pack_chunk
from tests.unit.roles.stage import WAIT_S, Adds, eventually, model_of, spec

F = "F"


class Counts(Nobody):
    """Messages that the controller says to have refused, by where from."""

    def __init__(self) -> None:
        self.refused_from: Counter[str] = Counter()

    def refused(self, source: str) -> None:
        self.refused_from[source] += 1


class Federation:
    """A controller that requires identities, and accounts on a broker in memory."""

    def __init__(self, folder: Path) -> None:
        self.topology = Topology(F)
        self._broker = MemoryBroker()
        self.store = SQLiteStore(folder / "state.sqlite", federation=F)
        settings = ControllerSettings(federation=F, heartbeat_s=5.0)
        self.counts = Counts()
        self.controller = Controller(self.connect("F.controller.main"), self.store, settings)
        self.controller.observe(self.counts)
        self.controller.start()
        assert self.controller.wait_active(WAIT_S)
        self.hosts: list[LearnerHost] = []
        self.driver = Driver(self.connect("F.driver.ana"), F, timeout_s=WAIT_S)
        self.began = time.monotonic()

    def connect(self, user: str) -> MemoryTransport:
        return self._broker.connect(user, user=user)

    def learner(self, name: str, adds: Adds) -> None:
        """It is welcomed after everything that was reported before is handled."""
        transport = self.connect(f"F.learner.{name}")
        transport.declare([*self.topology.exchanges(), *self.topology.for_learner(name)])
        host = LearnerHost(transport, {name: adds}, LearnerSettings(federation=F))
        self.hosts.append(host)
        host.start()
        assert host.wait_welcomed(WAIT_S)

    def heard(self, queue: str) -> list[m.Message]:
        """What arrives there from now on."""
        found: list[m.Message] = []

        def take(delivery: Delivery) -> None:
            found.append(m.decode(delivery.body)[0])
            delivery.ack()

        self.connect("F.controller.main").consume(queue, take, prefetch=100)
        return found

    def allowed(self, rate: Rate) -> float:
        return rate.burst + rate.per_s * (time.monotonic() - self.began) + 1

    def entries(self, actor: str) -> int:
        """Of the audit log, by one account."""
        return sum(read(line)["actor"] == actor for line in stored_lines(self.store))

    def stop(self) -> None:
        for host in self.hosts:
            host.stop(drain_s=0.0)
        self.driver.close()
        self.controller.stop()
        assert self.controller.wait(WAIT_S)
        self.store.close()


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path)
    yield made
    made.stop()


def begun(federation: Federation) -> tuple[Job, Adds]:
    """A job whose first round is open: mallory is in it, and another, who is at work and waits."""
    adds = Adds(1.0)
    adds.gate.clear()
    federation.learner("good", adds)
    job = federation.driver.submit(spec(rounds=2, min_learners=2, quorum=1, deadline_s=60.0), model_of())
    assert adds.at_work.wait(WAIT_S)
    return job, adds


def test_messages_that_do_not_say_who_sent_them_are_not_all_kept(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    letters, nobody = federation.heard(federation.topology.dead), federation.connect("")
    with caplog.at_level(logging.WARNING):
        for number in range(2_000):
            nobody.publish(federation.topology.reports, [f"mallory.{number}"], b"x" * 1_000)
        federation.learner("good", Adds(1.0))
    eventually(lambda: letters, "a dead letter")
    assert len(letters) <= federation.allowed(DEAD_LETTERS)
    refusals = [record for record in caplog.records if "refused a message" in record.message]
    assert len(refusals) <= federation.allowed(DEAD_LETTERS)
    assert "whoever does not say which account it is sends more" in caplog.text


def test_large_refused_messages_do_not_push_out_the_letters_of_others(federation: Federation) -> None:
    names, mallory = federation.topology, federation.connect("F.learner.mallory")
    sizes, kept = [], []

    def take(delivery: Delivery) -> None:
        letter, payload = m.decode(delivery.body)
        assert isinstance(letter, m.DeadLetter)
        assert payload is not None
        kept.append(letter)
        sizes.append(len(payload))
        delivery.ack()

    federation.connect("F.controller.main").consume(names.dead, take, prefetch=100)
    for _ in range(20):
        mallory.publish(names.reports, ["mallory.x"], bytes(3_000_000))
    eventually(lambda: len(sizes) == 20, "all being kept, if not whole")
    assert sizes[0] == 3_000_000
    assert sum(sizes) <= federation.allowed(DEAD_LETTER_BYTES) + 20 * 4_096
    assert [one.num_bytes for one in kept[:1] + kept[-1:]] == [0, 3_000_000], "which is whole, which is cut"
    assert "of 3000000 bytes 4096 are kept" in kept[-1].reason


def test_learners_are_told_apart_from_who_submits_an_initial_model(federation: Federation) -> None:
    job, adds = begun_alone(federation)
    letters = federation.heard(federation.topology.dead)
    inbox = federation.controller.status().queues["inbox"].rpartition(".")[2]
    chunk = m.ModelChunk(job=job.id, version=0, index=0, count=1, checksum=checksum(memoryview(b"x")))
    body = pack_chunk(chunk.KIND, chunk.model_dump(), memoryview(b"x"))
    federation.connect("F.learner.good").publish(federation.topology.updates, [f"good.{inbox}"], body)
    eventually(lambda: letters, "a dead letter")
    (letter,) = letters
    assert isinstance(letter, m.DeadLetter)
    assert "is for a driver" in letter.reason
    adds.gate.set()
    assert job.wait().state == "done"


def begun_alone(federation: Federation) -> tuple[Job, Adds]:
    """A job whose only learner is at work, and waits."""
    adds = Adds(1.0)
    adds.gate.clear()
    federation.learner("good", adds)
    job = federation.driver.submit(spec(rounds=1, min_learners=1), model_of())
    assert adds.at_work.wait(WAIT_S)
    return job, adds


def test_who_joins_again_and_again_fills_no_store_and_gets_its_task_once_more(federation: Federation) -> None:
    names, mallory = federation.topology, federation.connect("F.learner.mallory")
    mallory.declare([*names.exchanges(), *names.for_learner("mallory")])
    mail = federation.heard(names.mailbox("mallory"))
    mallory.publish(names.reports, ["mallory.join"], m.Join(learner="mallory", session="0").pack())
    job, adds = begun(federation)
    for number in range(1_000):
        join = m.Join(learner="mallory", session=str(number), attributes={"about": "x" * 3_000})
        mallory.publish(names.reports, ["mallory.join"], join.pack())
        mallory.publish(names.reports, ["mallory.leave"], m.Leave(learner="mallory", session="0").pack())
    federation.learner("another", Adds(1.0))
    for number in range(1_000):  # with the session that it was heard under last
        leave = m.Leave(learner="mallory", session=str(number))
        mallory.publish(names.reports, ["mallory.leave"], leave.pack())
    adds.gate.set()
    assert job.wait().state == "done"
    joined = [one for one in job.events(follow=False) if isinstance(one, e.LearnerJoined)]
    assert len(joined) <= federation.allowed(JOINS) + 1
    assert federation.entries("F.learner.mallory") <= federation.allowed(JOINS)
    tasks = [one for one in mail if isinstance(one, m.Task) and one.task.round == 0]
    assert 1 <= len(tasks) <= 5


def test_heartbeats_that_name_tasks_of_no_job_have_few_cancelled_each(federation: Federation) -> None:
    names, mallory = federation.topology, federation.connect("F.learner.mallory")
    mallory.declare([*names.exchanges(), *names.for_learner("mallory")])
    mail = federation.heard(names.mailbox("mallory"))
    mallory.publish(names.reports, ["mallory.join"], m.Join(learner="mallory", session="s").pack())
    invented = [m.TaskRef(job=f"job-{i}", round=0, attempt=0) for i in range(100)]
    statuses = tuple(m.TaskStatus(task=task, phase="finished") for task in invented)

    def cancelled() -> list[m.TaskRef]:
        return [one.task for one in list(mail) if isinstance(one, m.Cancel)]

    for start in (0, MAX_FORGOTTEN):  # what it has let go of is not in the next one
        beat = m.Heartbeat(learner="mallory", session="s", tasks=statuses[start:])
        mallory.publish(names.reports, ["mallory.heartbeat"], beat.pack())
    eventually(lambda: len(cancelled()) == 2 * MAX_FORGOTTEN, "the first tasks being let go of")
    assert cancelled() == invented[: 2 * MAX_FORGOTTEN]
    beat = m.Heartbeat(learner="mallory", session="s", tasks=statuses)
    for _ in range(200):
        mallory.publish(names.reports, ["mallory.heartbeat"], beat.pack())
    federation.learner("good", Adds(1.0))
    assert len(cancelled()) <= federation.allowed(FORGOTTEN)


@pytest.mark.parametrize("kind", [m.Join, m.Heartbeat])
def test_no_mailbox_is_made_that_is_not_deleted_with_its_account(kind: type[m.Join | m.Heartbeat]) -> None:
    last = kind(learner="mallory", session="s", mailbox=MAX_GENERATIONS - 1).pack()
    assert m.decode(last)[0].pack() == last
    beyond = kind.model_construct(learner="mallory", session="s", mailbox=MAX_GENERATIONS)
    with pytest.raises(FrameRefused, match="mailbox"):
        m.decode(beyond.pack())


def test_large_messages_do_not_fill_the_memory_of_a_controller_that_waits(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    names, mallory = federation.topology, federation.connect("F.learner.mallory")
    waits, goes_on = threading.Event(), threading.Event()
    append = federation.store.append_events

    def wait_and_append(*words: Any, **more: Any) -> None:
        waits.set()
        goes_on.wait()
        append(*words, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federation.store, "append_events", wait_and_append)  # as one that does not answer
        join = m.Join(learner="mallory", session="s").pack()
        mallory.publish(names.reports, ["mallory.join"], join)
        assert waits.wait(WAIT_S)
        for _ in range(20):
            mallory.publish(names.reports, ["mallory.x"], bytes(8 << 20))
        federation.connect("F.learner.good").publish(
            names.reports, ["good.join"], m.Join(learner="good", session="s").pack()
        )
        eventually(lambda: federation.controller.status().num_calls >= 21, "all being fetched")
        goes_on.set()
        federation.learner("another", Adds(1.0))
    warnings = [one for one in caplog.records if "wait to be handled" in one.message]
    assert [one.getMessage().partition(":")[0] for one in warnings] == ["F.learner.mallory"]
    assert federation.counts.refused_from["over_limit"] == 20 - MAX_WAITING_BYTES // (8 << 20)
    assert {one.learner for one in federation.driver.learners()} == {"mallory", "good", "another"}


def test_attributes_are_bounded(federation: Federation) -> None:
    letters, mallory = federation.heard(federation.topology.dead), federation.connect("F.learner.mallory")
    join = m.Join(learner="mallory", session="0", attributes={f"a{i}": "x" * 1_000 for i in range(9)})
    mallory.publish(federation.topology.reports, ["mallory.join"], join.pack())
    eventually(lambda: letters, "a dead letter")
    (letter,) = letters
    assert isinstance(letter, m.DeadLetter)
    assert "at most 8192" in letter.reason
    assert not federation.driver.learners()


def test_refused_requests_do_not_fill_the_audit_log(federation: Federation) -> None:
    names, eve = federation.topology, federation.connect("F.observer.eve")
    for number in range(600):
        stop = m.StopJob(driver="eve-000000000000", request=str(number), job="a-job")
        eve.publish(names.control, [names.CONTROL], stop.pack())
    assert not federation.driver.jobs(), "it is answered after all these"
    assert 1 <= federation.entries("F.observer.eve") <= federation.allowed(WRITTEN_DOWN)


def test_reports_that_wait_at_the_broker_are_seen() -> None:
    names, transport = Topology(F), MemoryBroker().connect("c", user="F.controller.main")
    transport.declare(names.for_controller())
    assert not is_behind(transport, names.reports)
    transport.publish(names.reports, ["mallory.heartbeat"], b"x")
    assert is_behind(transport, names.reports)
