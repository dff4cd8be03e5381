from __future__ import annotations

import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from broker_fl.interfaces import Delivery, Learner, TaskContext, Update
from broker_fl.model import Arrays, Model
from broker_fl.simulation import Federation
from broker_fl.topology import Topology
from broker_fl.wire.events import VersionCommitted
from broker_fl.wire.messages import DeadLetter, UpdateChunk, decode
from tests.unit.roles.stage import Adds, eventually, model_of, same, spec


def learners(num: int) -> dict[str, Learner]:
    return {f"l{index:02}": Adds(float(index % 4)) for index in range(num)}


def test_a_federation_of_one_process_makes_the_model_computed_by_hand() -> None:
    """(0 + 1 + 2 + 3) / 4 = 1.5 a round."""
    with Federation(learners(20), num_workers=4) as federation:
        job = federation.submit(spec(rounds=3, min_learners=20), model_of())
        assert job.wait().state == "done"
        same(job.model(), model_of(4.5))
        committed = [event for event in job.events(follow=False) if isinstance(event, VersionCommitted)]
        assert [event.num_learners for event in committed] == [20] * 3


def test_its_threads_end_with_it_and_a_temporary_folder_too() -> None:
    before = set(threading.enumerate())
    with Federation(learners(2)) as federation:
        federation.submit(spec(rounds=1), model_of()).wait()
        folder = federation.folder
        assert folder.exists()
    assert not folder.exists()
    eventually(lambda: set(threading.enumerate()) <= before, "the end of all threads")


def test_a_folder_keeps_a_job_that_was_cut_off_and_the_next_federation_goes_on(tmp_path: Path) -> None:
    with Federation({"a": (stuck := Adds(1.0))}, folder=tmp_path) as federation:
        job = federation.submit(spec(rounds=5), model_of())
        for event in job.events():
            if isinstance(event, VersionCommitted) and event.version == 2:
                stuck.gate.clear()
                break
    with Federation({"a": Adds(1.0)}, folder=tmp_path) as federation:
        again = federation.driver.job(job.id)
        assert again.wait().state == "done"
        same(again.model(), model_of(5.0))
        assert [summary.job for summary in federation.driver.jobs()] == [job.id]


class Scribbles(Adds):
    """Keeps the arrays of all its rounds, and writes to those of former rounds."""

    def __init__(self, amount: float) -> None:
        super().__init__(amount)
        self.kept: list[Arrays] = []

    def train(self, model: Arrays, task: TaskContext) -> Update:
        for old in self.kept:
            for array in old.values():
                array[...] = np.nan
        for array in model.values():
            np.add(array, self.amount, out=array)
        self.kept.append(model)
        return Update(model=model, num_examples=1)


@pytest.mark.parametrize("transfer", [{}, {"form": "changes"}, {"encoding": "float16"}, {"encoding": "int8"}])
@pytest.mark.parametrize("rule", ["fedavg", "median"])
def test_models_are_shared_but_nobody_can_write_to_what_another_has(
    rule: str, transfer: dict[str, str]
) -> None:
    """Mean and median of 1, …, 5 are 3."""
    team = {f"l{amount}": Scribbles(float(amount)) for amount in range(1, 6)}
    initial = {"w": np.zeros(1_000, np.float32)}
    with Federation(team) as federation:
        job = federation.submit(
            spec(rounds=4, min_learners=5, keep_versions=9, rule={"name": rule}, transfer=transfer), initial
        )
        initial["w"][...] = np.nan
        assert job.wait().state == "done"
        for version in (*range(5), *range(5)):
            found = job.model(version)
            np.testing.assert_array_equal(found["w"], np.float32(3 * version))
            found["w"][...] = np.nan  # it is the caller's


def test_what_an_update_took_is_free_once_it_is_in_the_sum() -> None:
    """In a process of many learners memory does not grow with their number."""
    rooms: list[weakref.ref[object]] = []

    class Watched(Adds):
        def train(self, model: Arrays, task: TaskContext) -> Update:
            update = super().train(model, task)
            whole = Model.of(update.model)
            rooms.append(weakref.ref(whole.buffer))
            return Update(model=whole, num_examples=1)

    with Federation({name: Watched(1.0) for name in "abc"}) as federation:
        job = federation.submit(spec(rounds=2, min_learners=3), model_of())
        assert job.wait().state == "done"
        eventually(lambda: not [room for room in rooms if room() is not None], "that all are free")
        assert len(rooms) == 6


def test_a_refused_update_is_a_dead_letter_that_can_be_read() -> None:
    with Federation({"a": Adds(1.0), "bad": Adds(float("nan"))}) as federation:
        job = federation.submit(spec(rounds=1, min_learners=2, quorum=1), model_of())
        assert job.wait().state == "done"
        same(job.model(), model_of(1.0))
        found: list[Delivery] = []
        federation.broker.connect().consume(Topology("simulation").dead, found.append, prefetch=9)
        eventually(lambda: found, "a dead letter")
    letter, body = decode(found[0].body)
    assert isinstance(letter, DeadLetter)
    assert body is not None
    assert "NaN or infinite" in letter.reason
    refused, payload = decode(bytes(body))
    assert isinstance(refused, UpdateChunk)
    assert payload is not None
    assert (refused.learner, len(payload)) == ("bad", 24)
