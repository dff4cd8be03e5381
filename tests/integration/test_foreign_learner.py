"""Learners that know nothing but schemas/README.md go through whole jobs on a real broker."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_fl import connect
from broker_fl.interfaces import TaskContext
from broker_fl.model import Arrays, Model
from broker_fl.roles.controller import Controller, ControllerSettings
from broker_fl.roles.driver import Driver
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.topology import Topology
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.wire import events as e
from broker_fl.wire.job import JobSpec
from broker_fl.wire.messages import Join
from tests.unit.roles.stage import Adds

SCRIPT = Path(__file__).parents[1] / "foreign_learner.py"
SITES = ("site-a", "site-b")


@contextmanager
def foreign_learner(url: str, federation: str, learner: str) -> Iterator[subprocess.Popen[str]]:
    """A process of its own, without this project on its path; it leaves when its standard input ends."""
    command = [sys.executable, "-I", str(SCRIPT), url, federation, learner]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
            _, errors = process.communicate(timeout=60)
            assert (process.returncode, errors) == (0, "")
        finally:
            process.kill()


@contextmanager
def controller(url: str, federation: str, folder: Path, *, heartbeat_s: float = 5.0) -> Iterator[Controller]:
    with ExitStack() as stack:
        store = SQLiteStore(folder / "state.sqlite", federation=federation)
        stack.callback(store.close)
        transport = RabbitMQTransport(url, name="controller")
        stack.callback(transport.close)
        settings = ControllerSettings(federation=federation, heartbeat_s=heartbeat_s, lease_ttl_s=15.0)
        role = Controller(transport, store, settings)
        role.start()
        stack.callback(lambda: role.wait(60.0))
        stack.callback(role.stop)
        assert role.wait_active(60.0), role.error
        yield role


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def initial_model() -> Model:
    """Three chunks, with padding, a scalar, an empty tensor and types that must come back as they are."""
    return Model.of(
        {
            "flags": np.array([True, False, True]),
            "bn.running_mean": np.array([3.125, 1e-7], np.float32),
            "weights": (np.arange(2_500, dtype=np.float32) / 8).reshape(50, 50),
            "nothing": np.zeros((0, 4), np.float32),
            "bias": np.array(0.5, np.float32),
            "steps": np.array([7, -1], np.int64),
        }
    )


def events_of(driver: Driver, job: str, kind: type[e.Event]) -> list[Any]:
    return [event for event in driver.job(job).events(follow=False) if isinstance(event, kind)]


@pytest.mark.parametrize(
    ("encoding", "upload_budget_bytes"),
    [("raw", 1 << 20), ("raw", 1), ("float16", 1 << 20), ("bfloat16", 1 << 20)],
    ids=["raw", "uploads on request", "float16", "bfloat16"],
)
def test_foreign_learners_train_a_whole_job(
    amqp_url: str, federation: str, tmp_path: Path, encoding: str, upload_budget_bytes: int
) -> None:
    spec = JobSpec.model_validate(
        {
            "protocol": {"min_learners": 2},
            "termination": {"rounds": 3},
            "transfer": {
                "encoding": encoding,
                "chunk_bytes": 4096,
                "upload_budget_bytes": upload_budget_bytes,
            },
        }
    )
    initial = initial_model()
    with ExitStack() as stack:
        stack.enter_context(controller(amqp_url, federation, tmp_path))
        for site in SITES:
            stack.enter_context(foreign_learner(amqp_url, federation, site))
        driver = stack.enter_context(connect(amqp_url, federation))
        job = driver.submit(spec, initial)
        finished = job.wait()
        final = job.model()
        seen = list(job.events(follow=False))
    assert (finished.state, finished.version, finished.reason) == ("done", 3, "3 rounds")
    assert not [event for event in seen if isinstance(event, e.TaskFailed | e.TaskLate | e.UpdateRefused)]
    assert {event.learner for event in seen if isinstance(event, e.UpdateFolded)} == set(SITES)
    tolerance = {"raw": 0.0, "float16": 0.51, "bfloat16": 4.0}[encoding]
    for name, before in initial.items():
        expected = before + np.float32(3) if before.dtype == np.float32 else before
        np.testing.assert_allclose(final[name], expected, atol=tolerance, err_msg=name)
    mean = float(np.concatenate([a.ravel() for a in final.values() if a.dtype == np.float32]).mean())
    assert finished.metrics["mean"] == pytest.approx(mean, rel=0.01)


class AddsOne(Adds):
    """A learner of this project's, for any model."""

    def __init__(self) -> None:
        super().__init__(1.0)

    def evaluate(self, model: Arrays, task: TaskContext) -> dict[str, float]:
        return {"num_examples": 1}


@pytest.mark.parametrize(
    ("transfer", "event", "reason"),
    [
        ({"encoding": "int8"}, e.TaskFailed, "unknown encoding int8"),
        ({"encoding": "topk/10"}, e.TaskFailed, "unknown encoding topk/10"),
        ({"broadcast": "int8"}, e.TaskFailed, "unknown encoding int8"),
        ({"form": "changes"}, e.UpdateRefused, "sent as values; the task asked for changes"),
    ],
    ids=str,
)
def test_a_learner_that_does_not_know_an_encoding_says_so_and_one_that_does_goes_on(
    amqp_url: str, federation: str, tmp_path: Path, transfer: dict[str, str], event: Any, reason: str
) -> None:
    """It knows the four encodings of before, and values only; the other is this project's."""
    spec = JobSpec.model_validate(
        {
            "protocol": {"min_learners": 2, "quorum": 0.5, "max_retries": 0},
            "termination": {"rounds": 2},
            "transfer": transfer,
        }
    )
    initial = initial_model()
    with ExitStack() as stack:
        stack.enter_context(controller(amqp_url, federation, tmp_path))
        stack.enter_context(foreign_learner(amqp_url, federation, "site-a"))
        transport = RabbitMQTransport(amqp_url, name="learner")
        stack.callback(transport.close)
        host = LearnerHost(transport, {"site-b": AddsOne()}, LearnerSettings(federation=federation))
        host.start()
        stack.callback(host.stop, drain_s=0.0)
        driver = stack.enter_context(connect(amqp_url, federation))
        job = driver.submit(spec, initial)
        assert job.wait().state == "done"
        final = job.model()
        told = {(one.learner, one.reason) for one in events_of(driver, job.id, event)}
    assert {learner for learner, _ in told} == {"site-a"}
    assert all(reason in words for _, words in told)
    moved = final["weights"] - initial["weights"]  # as one element in ten, not all have yet
    assert moved.max() == pytest.approx(2, abs=0.02)


def test_a_new_controller_gets_what_a_foreign_learner_has_kept(
    amqp_url: str, federation: str, tmp_path: Path
) -> None:
    """The round waits for a second learner; the controller is replaced, and what it had folded is lost."""
    spec = JobSpec.model_validate({"protocol": {"min_learners": 2}, "termination": {"rounds": 1}})
    with ExitStack() as stack:
        stack.enter_context(foreign_learner(amqp_url, federation, "site-a"))
        driver = stack.enter_context(connect(amqp_url, federation))
        patient = controller(amqp_url, federation, tmp_path, heartbeat_s=10.0)  # nobody is lost here
        with patient, silent_member(amqp_url, federation, "site-b"):
            job = driver.submit(spec, initial_model())
            wait_for(lambda: bool(events_of(driver, job.id, e.UpdateFolded)))
        stack.enter_context(controller(amqp_url, federation, tmp_path, heartbeat_s=10.0))
        stack.enter_context(foreign_learner(amqp_url, federation, "site-b"))
        finished = job.wait()
        folded = [event.learner for event in events_of(driver, job.id, e.UpdateFolded)]
        results = [event for event in events_of(driver, job.id, e.TaskFinished) if event.learner == "site-a"]
        np.testing.assert_array_equal(job.model()["bias"], np.float32(1.5))
    assert finished.state == "done"
    assert sorted(folded) == ["site-a", "site-a", "site-b"]
    trainings = [event.metrics["trainings"] for event in results if event.round == 0]
    assert len(trainings) >= 2
    assert set(trainings) == {1.0}, "it does not train twice for one task"


@contextmanager
def silent_member(url: str, federation: str, learner: str) -> Iterator[None]:
    """Somebody who joins and then does nothing; heartbeats are sent, tasks are left in the mailbox."""
    topology = Topology(federation)
    transport = RabbitMQTransport(url, name=learner)
    try:
        transport.declare([*topology.for_controller(), *topology.for_learner(learner)])
        join = Join(learner=learner, session="silent").pack()
        transport.publish(topology.reports, [f"{learner}.join"], join, persistent=True)
        transport.flush(10.0)
        yield
    finally:
        transport.close()
