"""Small models: a task with its model, and a result with its update, as one message each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_fl.coordination import membership
from broker_fl.interfaces import TaskContext
from broker_fl.model import Arrays
from broker_fl.roles.learner import seats
from broker_fl.transports.memory import MemoryTransport
from broker_fl.wire import events as e
from broker_fl.wire import messages as m
from broker_fl.wire.frames import pack_chunk, unpack
from broker_fl.wire.job import Transfer
from tests.unit.roles.stage import Adds, Stage, done, eventually, model_of, same


@pytest.fixture
def stage(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Stage(tmp_path, heartbeat_s=0.3) as made:
        yield made


def listen(transport: MemoryTransport, heard: list[m.Message]) -> None:
    """Note what is published through this transport from now on."""
    publish = transport.publish

    def noting(exchange: str, keys: Any, body: bytes, **options: Any) -> None:
        heard.append(m.decode(body)[0])
        publish(exchange, keys, body, **options)

    transport.publish = noting  # type: ignore[method-assign,assignment]


def work(heard: list[m.Message]) -> Counter[str]:
    """Messages of the work itself, by kind."""
    kinds = Counter(one.KIND for one in heard)
    names = ("task", "model_chunk", "accepted", "result", "update_chunk")
    return Counter({name: kinds[name] for name in names if kinds[name]})


@pytest.fixture
def unhurried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """Where nothing is announced or said again for lack of time, so that messages can be counted."""
    monkeypatch.setattr(seats, "ACCEPTED_AFTER_S", 600.0)
    with Stage(tmp_path, heartbeat_s=60.0) as made:
        yield made


def test_a_small_task_is_one_message_each_way(unhurried: Stage) -> None:
    stage = unhurried
    controller, host = stage.controller(), stage.host({name: Adds(1.0) for name in "ab"})
    assert host.wait_welcomed(30)
    down: list[m.Message] = []
    up: list[m.Message] = []
    listen(controller._transport, down)  # type: ignore[arg-type]
    listen(host._transport, up)  # type: ignore[arg-type]
    job = stage.submit(rounds=3, min_learners=2, evaluate=False)
    done(job)
    assert work(down) == {"model_chunk": 3}, "both learners are reached by one message"
    same(job.model(), model_of(3.0))
    assert work(up) == {"update_chunk": 6}
    events = list(job.events(follow=False))
    sent = [event for event in events if isinstance(event, e.TaskSent)]
    assert [(one.num_learners, one.num_messages) for one in sent] == [(2, 2)] * 3
    assert sum(isinstance(event, e.UpdateFolded) for event in events) == 6


def test_what_does_not_fit_into_one_message_goes_as_several(unhurried: Stage) -> None:
    stage = unhurried
    controller, host = stage.controller(), stage.host({"a": Adds(1.0)})
    assert host.wait_welcomed(30)
    heard: list[m.Message] = []
    for transport in (controller._transport, host._transport):
        listen(transport, heard)  # type: ignore[arg-type]
    job = stage.submit(
        model_of(0.0, size=2_000), rounds=1, evaluate=False, transfer=Transfer(chunk_bytes=4096)
    )
    done(job)
    assert work(heard) == {"task": 1, "model_chunk": 2, "result": 1, "update_chunk": 2}


class Talks(Adds):
    """Reports more than the header of a chunk holds."""

    def evaluate(self, model: Arrays, task: TaskContext) -> dict[str, float]:
        return {f"{index:0100}": 1.0 for index in range(900)}


def test_a_result_too_long_for_a_chunk_goes_by_itself(unhurried: Stage) -> None:
    stage = unhurried
    stage.controller()
    host = stage.host({"a": Talks(1.0)})
    heard: list[m.Message] = []
    listen(host._transport, heard)  # type: ignore[arg-type]
    job = stage.submit(rounds=1)
    done(job)
    same(job.model(), model_of(1.0))
    assert work(heard)["result"] == 2, "the last round is one of evaluation"
    assert work(heard)["update_chunk"] == 1


def test_software_that_wants_them_apart_gets_them_apart(unhurried: Stage) -> None:
    """Of two learners one says, at joining, nothing of it."""
    stage = unhurried
    controller = stage.controller()
    old, new = stage.host({"old": Adds(1.0)}), stage.host({"new": Adds(1.0)})
    eventually(lambda: len(controller._members) == 2, "both join")
    with_old = controller._members._presences["old"]
    with_old.compact = False
    down: list[m.Message] = []
    listen(controller._transport, down)  # type: ignore[arg-type]
    job = stage.submit(rounds=1, min_learners=2, evaluate=False)
    done(job)
    assert work(down) == {"task": 1, "model_chunk": 2}
    assert sum(isinstance(one, m.ModelChunk) and one.task is not None for one in down) == 1
    assert old.error is None and new.error is None  # noqa: PT018
    same(job.model(), model_of(1.0))


@pytest.mark.parametrize("field", ["learner", "num_examples"])
def test_a_result_inside_of_a_chunk_is_held_to_the_same_rules(stage: Stage, field: str) -> None:
    """In the name of another it is refused; if it cannot be read, its learner is not waited for."""
    stage.controller()
    good, liar = stage.host({"good": Adds(1.0)}), stage.host({"liar": Adds(100.0)})
    publish = liar._transport.publish

    def lie(exchange: str, keys: Any, body: bytes, **options: Any) -> None:
        fields, payload = unpack(body)
        if fields.get("result") and payload is not None:
            fields["result"][field] = {"learner": "good", "num_examples": -5}[field]
            kind = fields.pop("kind")
            fields.pop("v")
            body = pack_chunk(kind, fields, payload)
        publish(exchange, keys, body, **options)

    liar._transport.publish = lie  # type: ignore[method-assign,assignment]
    job = stage.submit(rounds=1, quorum=0.5, min_learners=2, max_retries=0, deadline_s=6.0)
    done(job)
    same(job.model(), model_of(1.0))
    reason = stage.dead_letters(1)[0][0]
    assert ("brought a result of learner 'good'" if field == "learner" else "num_examples") in reason
    assert good.error is None


def test_work_that_takes_its_time_is_announced(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "ACCEPTED_AFTER_S", 0.01)
    slow, queued = Adds(1.0), Adds(1.0)
    slow.gate.clear()
    queued.gate.clear()
    job = stage.run({"slow": slow, "queued": queued}, rounds=1)

    def accepted() -> set[str]:
        events = job.events(follow=False)
        return {event.learner for event in events if isinstance(event, e.TaskAccepted)}

    eventually(lambda: accepted() == {"slow", "queued"}, "both say that they have the task")
    slow.gate.set()
    queued.gate.set()
    done(job)
    same(job.model(), model_of(1.0))


def test_learners_hear_of_another_time_between_heartbeats(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "MAX_BEATS_PER_S", 2.0)
    stage.controller()
    host = stage.host({f"l{index}": Adds(1.0) for index in range(20)})
    eventually(lambda: host._heartbeat_s == 10.0, "20 learners are to be heard of every 10 s")
