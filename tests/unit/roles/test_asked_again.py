"""Enrolled accounts that ask for or send the same again and again: it costs them, not the others."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_fl.errors import RequestRefused
from broker_fl.model import Model
from broker_fl.roles.controller.limits import READS, WASTE
from broker_fl.roles.controller.requests import handling
from broker_fl.roles.controller.requests.reading import LINE_BYTES, MAX_DOWNLOADS
from broker_fl.roles.controller.requests.submissions import MAX_PENDING_EACH
from broker_fl.roles.driver import Driver
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.wire import messages as m
from broker_fl.wire.chunks import checksum
from broker_fl.wire.frames import pack_chunk
from broker_fl.wire.job import Transfer
from tests.unit.roles.stage import WAIT_S, Adds, eventually, model_of, spec
from tests.unit.roles.test_floods import Federation, begun_alone

EVE = "eve-000000000000"


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path)
    yield made
    made.stop()


def asked(federation: Federation, role: str, *requests: m.Request) -> list[m.Message]:
    """Answers that eve gets from now on, when all of these are handled."""
    names, eve = federation.topology, federation.connect(f"F.{role}.eve")
    eve.declare(names.for_driver(EVE))
    found = federation.heard(names.driver_queue(EVE))
    for request in requests:
        eve.publish(names.control, [names.CONTROL], request.pack())
    federation.driver.jobs()  # is answered after these
    return found


def num_refused(answers: list[m.Message]) -> int:
    return sum(isinstance(one, m.Refused) and one.again for one in answers)


def test_an_observer_that_asks_without_end_is_answered_at_a_rate_and_others_at_once(
    federation: Federation,
) -> None:
    num = int(READS.burst) + 500
    questions = [m.ListJobs(driver=EVE, request=str(number)) for number in range(num)]
    answers = asked(federation, "observer", *questions)
    eventually(lambda: len(answers) == num, "each being answered, in one way or the other")
    assert 1 <= Counter(map(type, answers))[m.Jobs] <= federation.allowed(READS)
    assert num_refused(answers) == num - Counter(map(type, answers))[m.Jobs]


def test_large_answers_count_by_their_bytes(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handling, "READ_BYTES", 1)
    federation.learner("good", Adds(1.0))
    num = int(READS.burst) // LINE_BYTES + 10
    answers = asked(
        federation, "observer", *(m.ListLearners(driver=EVE, request=str(number)) for number in range(num))
    )
    eventually(lambda: len(answers) == num, "all answers")
    assert 1 <= Counter(map(type, answers))[m.Learners] <= federation.allowed(READS) / LINE_BYTES + 1


def test_a_driver_has_few_models_on_their_way_and_none_is_read_by_who_decides(federation: Federation) -> None:
    job, adds = begun_alone(federation)
    gate, read_by = threading.Event(), set[str]()
    read_chunk = federation.store.read_chunk

    def read(*about: Any) -> bytes:
        read_by.add(threading.current_thread().name)
        return read_chunk(*about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federation.store, "read_chunk", read)
        federation.controller._bulk_sender.post(lambda: gate.wait(WAIT_S))
        requests = [
            m.ReadModel(driver=EVE, request=str(number), job=job.id, version=0)
            for number in range(3 * MAX_DOWNLOADS)
        ]
        answers = asked(federation, "driver", *requests)
        eventually(lambda: num_refused(answers) == 2 * MAX_DOWNLOADS, "the others being refused for now")
        assert not read_by, "nothing is read before it is sent"
        gate.set()
        assert job.model(0) is not None, "another driver's turn comes"
        eventually(lambda: Counter(map(type, answers))[m.ModelFollows] == MAX_DOWNLOADS, "the first ones")
    assert read_by == {"controller-bulk-sender"}
    adds.gate.set()
    assert job.wait().state == "done"


def test_a_version_that_is_gone_when_its_turn_comes_is_refused(federation: Federation) -> None:
    job, adds = begun_alone(federation)
    adds.gate.set()
    assert job.wait().state == "done"
    gate = threading.Event()
    federation.controller._bulk_sender.post(lambda: gate.wait(WAIT_S))
    answers = asked(federation, "driver", m.ReadModel(driver=EVE, request="1", job=job.id, version=1))
    job.delete()
    gate.set()
    eventually(lambda: answers, "an answer")
    (answer,) = answers
    assert isinstance(answer, m.Refused)
    assert "has no version 1" in answer.reason


def test_a_driver_that_submits_and_sends_no_model_keeps_nobody_else_from_it(federation: Federation) -> None:
    model = Model.of(model_of())
    manifest = m.ModelManifest.of(
        model.spec, version=0, digest=model.digest, encoding="raw", chunk_bytes=1 << 20
    )
    eve = Driver(federation.connect("F.driver.eve"), "F", timeout_s=WAIT_S)

    def submit(job: str) -> m.Submitted:
        request = m.Submit(driver=eve.id, request=job, job=job, spec=spec(), model=manifest)
        return eve.ask(request, m.Submitted)

    for number in range(MAX_PENDING_EACH):
        submit(f"j-{number}")
    with pytest.raises(RequestRefused, match="jobs of driver 'eve' of federation 'F' wait"):
        submit("one-more")
    assert submit("j-0").num_chunks == 0, "what waits may be asked for again"
    federation.learner("good", Adds(1.0))
    assert federation.driver.submit(spec(rounds=1), model_of()).wait().state == "done"
    eve.close()


@pytest.mark.parametrize("what", ["chunk", "result", "session"])
def test_a_learner_that_sends_what_is_there_already_is_not_read_for_long(
    federation: Federation, what: str
) -> None:
    names, mallory = federation.topology, federation.connect("F.learner.mallory")
    mallory.declare([*names.exchanges(), *names.for_learner("mallory")])
    mail = federation.heard(names.mailbox("mallory"))
    mallory.publish(names.reports, ["mallory.join"], m.Join(learner="mallory", session="s").pack())
    federation.learner("good", Adds(1.0))
    settings: dict[str, Any] = {"rounds": 1, "min_learners": 2, "quorum": 1, "deadline_s": 60.0}
    job = federation.driver.submit(
        spec(transfer=Transfer(chunk_bytes=4096), evaluate=False, **settings),
        {"w": np.zeros(3_000, np.float32)},
    )
    eventually(lambda: any(isinstance(one, m.Task) for one in mail), "her task")
    (task,) = (one for one in mail if isinstance(one, m.Task))
    payload = memoryview(bytes(4096))

    def message(number: int) -> bytes:
        session = f"s{number}" if what == "session" else "s"
        about: dict[str, Any] = {"learner": "mallory", "task": task.task, "session": session}
        if what == "result":
            digest = task.model.spec_digest
            manifest = m.UpdateManifest(spec_digest=digest, num_bytes=12_000, chunk_bytes=4096)
            return m.Result(**about, num_examples=1, update=manifest).pack()
        chunk = m.UpdateChunk(**about, index=0, count=3, checksum=checksum(payload))
        return pack_chunk(chunk.KIND, chunk.model_dump(), payload)

    for number in range(3 * int(WASTE.burst)):
        mallory.publish(names.updates, [f"mallory.{task.inbox}"], message(number))
    eventually(lambda: federation.counts.refused_from["over_limit"], "no more of hers being read")
    job.stop("enough")
    assert job.wait().state == "stopped"


def test_pages_of_a_groups_result_are_kept_only_for_a_task_that_it_has(federation: Federation) -> None:
    names, adds = federation.topology, Adds(1.0)
    adds.gate.clear()
    transport = federation.connect("F.group.g")
    transport.declare([*names.exchanges(), *names.for_learner("g")])
    host = LearnerHost(transport, {"g-0": adds}, LearnerSettings(federation="F", group="g"))
    federation.hosts.append(host)
    host.start()
    assert host.wait_welcomed(WAIT_S)
    job = federation.driver.submit(spec(rounds=1), model_of())
    assert adds.at_work.wait(WAIT_S)
    leadership, letters = federation.controller._leadership, federation.heard(names.dead)
    assert leadership is not None
    runner = leadership.jobs.runner(job.id)
    assert runner is not None
    key = f"g.{runner._services.inbox}"
    for number, place in enumerate([(0, 0), (1, 0), (0, 1)], start=1):  # round and attempt: the first is open
        task = m.TaskRef(job=job.id, round=place[0], attempt=place[1])
        for share in "ab":
            page = m.GroupResult(group="g", task=task, share=share * number, num_pages=2, learners=("g-0",))
            transport.publish(names.updates, [key], page.pack())
        transport.publish(names.updates, [key], b"is handled after these")
        eventually(lambda: len(letters) == number, "all pages being handled")  # noqa: B023 - called at once
        assert list(runner.shares.receiver._pages["g"]) == ["a", "b"]
    adds.gate.set()
    assert job.wait().state == "done"
