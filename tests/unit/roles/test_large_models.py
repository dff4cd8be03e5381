"""What is done about models of which a process can hold few."""

from __future__ import annotations

import gc
import logging
import threading
from pathlib import Path

import numpy as np
import pytest

from broker_fl.model import Model
from broker_fl.record.history import History
from broker_fl.record.plain import under_way
from broker_fl.roles import progress
from broker_fl.roles.learner.tasks import HeldTask
from broker_fl.wire import events as e
from broker_fl.wire import messages as m
from broker_fl.wire.job import Transfer
from tests.unit.roles.stage import WAIT_S, Adds, Stage, done, eventually, same

SIZE = 50_021
"""Of no other test's model."""


def num_alive(size: int = SIZE) -> int:
    """Models of a test that something in the process still holds."""
    return sum(1 for one in gc.get_objects() if type(one) is Model and one.spec.num_elements == size)


def test_a_large_version_is_let_go_of_once_it_is_sent_and_read_again_for_who_starts_anew(
    tmp_path: Path,
) -> None:
    transfer = Transfer(upload_budget_bytes=1, chunk_bytes=8192)
    slow, quick = Adds(1.0), Adds(3.0)
    slow.gate.clear()
    quick.gate.clear()
    with Stage(tmp_path) as stage:
        stage.controller()
        stage.host({"quick": quick})
        host = stage.host({"slow": slow})
        job = stage.submit(
            {"w": np.zeros(SIZE, np.float32)}, min_learners=2, rounds=2, evaluate=False, transfer=transfer
        )
        assert slow.at_work.wait(30)
        assert quick.at_work.wait(30)
        eventually(lambda: num_alive() == 2, "nobody but the learners having the model")
        stage.kill_host(host)
        again = Adds(1.0)
        stage.host({"slow": again})
        quick.gate.set()
        done(job)
        assert again.num_trained >= 2
        same(job.model(), {"w": np.full(SIZE, 4.0, np.float32)})


def test_a_large_version_is_in_memory_once_however_many_are_to_get_it_again(tmp_path: Path) -> None:
    learners = {name: Adds(1.0) for name in "abc"}
    for learner in learners.values():
        learner.gate.clear()
    gate = threading.Event()
    with Stage(tmp_path) as stage:
        controller = stage.controller()
        hosts = {name: stage.host({name: learner}) for name, learner in learners.items()}
        job = stage.submit(
            {"w": np.zeros(SIZE + 2, np.float32)},
            min_learners=3,
            rounds=1,
            evaluate=False,
            transfer=Transfer(upload_budget_bytes=1, chunk_bytes=8192),
        )
        assert all(learner.at_work.wait(WAIT_S) for learner in learners.values())
        controller._bulk_sender.post(lambda: gate.wait(WAIT_S))
        for name in ("a", "b"):
            stage.kill_host(hosts[name])
            stage.host({name: Adds(1.0)})
        eventually(lambda: controller._bulk_sender._work.qsize() >= 2, "both being sent their task again")
        assert num_alive(SIZE + 2) <= 3 + 1, "what learners have, and what is to be sent"
        gate.set()
        learners["c"].gate.set()
        done(job)


def test_a_model_that_is_asked_for_again_while_it_is_sent_is_sent_once(tmp_path: Path) -> None:
    gate = threading.Event()
    with Stage(tmp_path) as stage:
        controller = stage.controller()
        stage.host({"a": Adds(1.0)})
        job = stage.submit({"w": np.zeros(3, np.float32)}, rounds=1, evaluate=False)
        done(job)
        driver = stage.driver
        controller._bulk_sender.post(lambda: gate.wait(WAIT_S))
        request = m.ReadModel(driver=driver.id, request="again", job=job.id, version=None)
        answers = driver._connection.expect("again")
        for _ in range(3):
            driver._connection.send(request)
        assert driver.jobs(), "what was asked before has been handled"
        gate.set()
        same(job.model(), {"w": np.ones(3, np.float32)})
        found = [answers.get(timeout=WAIT_S)]
        while not answers.empty():
            found.append(answers.get())
        assert [type(answer) for answer in found] == [m.ModelFollows]
        driver._connection.forget("again")


def test_what_a_learner_held_of_a_task_goes_when_the_next_one_comes(tmp_path: Path) -> None:
    def num_held() -> int:
        return sum(type(one) is HeldTask and one.spec.num_elements == SIZE + 1 for one in gc.get_objects())

    gc.disable()  # nothing must wait for it
    try:
        with Stage(tmp_path) as stage:
            transfer = Transfer(chunk_bytes=8192)
            job = stage.run(
                {"a": Adds(1.0)}, {"w": np.zeros(SIZE + 1, np.float32)}, rounds=4, transfer=transfer
            )
            done(job)
            eventually(lambda: num_held() <= 1, "only the last task being held")
    finally:
        gc.enable()


def test_progress_is_told_now_and_then_of_what_is_large_and_takes_long() -> None:
    told: list[tuple[int, int]] = []
    clock = {"now": 100.0}
    large, small = (
        progress.Progress(size, lambda: clock["now"], lambda *said: told.append(said))
        for size in (progress.LARGE_BYTES, progress.LARGE_BYTES - 1)
    )
    fifth = progress.LARGE_BYTES // 5
    for clock["now"] in (104.9, 105.0, 105.1, 109.9, 110.0, 115.0):
        large.add(fifth)
        small.add(fifth)
    assert told == [(2 * fifth, 5 * fifth + 1), (5 * fifth, 5 * fifth + 1), (5 * fifth + 1, 5 * fifth + 1)]


def test_everybody_is_told_in_bytes_how_far_a_transfer_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    monkeypatch.setattr(progress, "LARGE_BYTES", 1)
    caplog.set_level(logging.INFO)
    num_bytes, chunk_bytes = SIZE * 4, 8192
    learners = {"a": Adds(1.0), "b": Adds(3.0)}
    for learner in learners.values():
        learner.gate.clear()
    with Stage(tmp_path) as stage:
        job = stage.run(
            learners,
            {"w": np.zeros(SIZE, np.float32)},
            rounds=1,
            evaluate=False,
            transfer=Transfer(chunk_bytes=chunk_bytes),
        )

        def is_sent() -> bool:
            """Who sends may be slower to say so than learners are done."""
            told = [event for event in job.events(follow=False) if isinstance(event, e.TransferProgress)]
            return any(one.num_bytes == one.total_bytes for one in told)

        eventually(is_sent, "word of all that is sent")
        for learner in learners.values():
            learner.gate.set()
        done(job)
        told = [event for event in job.events(follow=False) if isinstance(event, e.TransferProgress)]
    down = [event.num_bytes for event in told if event.direction == "down"]
    up = [event.num_bytes for event in told if event.direction == "up"]
    assert down == [*range(chunk_bytes, num_bytes, chunk_bytes), num_bytes]
    assert up[0] == chunk_bytes
    assert up[-1] == 2 * num_bytes
    assert up == sorted(up)
    assert {(event.direction, event.total_bytes) for event in told} == {
        ("down", num_bytes),
        ("up", 2 * num_bytes),
    }
    for line in (
        "learner a has 8.19 kB of 200 kB of version 0",
        "learner a has 200 kB of 200 kB of version 0",
        "learner b has sent 98.3 kB of 200 kB",
    ):
        assert line in caplog.messages
    record = History.of([event for event in told if event.num_bytes < num_bytes]).rounds[0]
    assert under_way(record) == "sent 197 kB of 200 kB, received 197 kB of 400 kB"
