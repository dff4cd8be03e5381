"""``pause``, ``resume``, ``stop``, ``jobs`` and ``models export``, of a federation in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_fl import JobSpec, Model, Update
from broker_fl.cli import control as control_module
from broker_fl.cli import jobs as jobs_module
from broker_fl.cli import models as models_module
from broker_fl.interfaces import Metrics, TaskContext
from broker_fl.model import Arrays
from broker_fl.roles.driver import Driver
from broker_fl.simulation import Federation
from broker_fl.wire.events import JobPaused
from tests.unit.cli.calling import call


class Adder:
    """Each of its trainings needs a permit."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)

    def train(self, model: Arrays, task: TaskContext) -> Update:
        while not self.permits.acquire(timeout=0.01):
            task.progress(0.0)
        return Update(model={"w": model["w"] + 1}, num_examples=1)

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        return {}


@pytest.fixture
def learner() -> Adder:
    return Adder()


@pytest.fixture
def federation(learner: Adder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    """The commands' driver is connected to it in the place of RabbitMQ."""
    with Federation({"a": learner}) as federation:
        assert federation.learners.wait_welcomed(60.0)

        @contextmanager
        def driver_of(_: Any) -> Iterator[Driver]:
            yield federation.driver

        for module in (control_module, jobs_module, models_module):
            monkeypatch.setattr(module, "driver_of", driver_of)
        yield federation


def told(*args: str) -> str:
    result = call(*args)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def spec(rounds: int) -> JobSpec:
    return JobSpec.model_validate({"name": "add", "evaluate": False, "termination": {"rounds": rounds}})


def test_what_happened_to_a_job_is_told(federation: Federation, learner: Adder) -> None:
    job = federation.submit(spec(rounds=100), {"w": np.zeros(2, "f4")})
    assert told("resume", "latest") == f"{job.id}: was not paused; goes on"
    assert told("pause", job.id, "--reason", "lunch") == (
        f"{job.id}: paused; what is under way (the open round) is finished first"
    )
    assert told("pause", "add-") == f"{job.id}: was paused already (lunch)"
    assert told("jobs").splitlines()[-1].split()[1:3] == ["paused", "0"]
    assert told("jobs").endswith("lunch")
    shown = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(job.summary().submitted_at))
    assert shown in told("jobs")
    assert told("resume", "latest", "--versions", "1") == f"{job.id}: goes on, and pauses after 1 new version"
    learner.permits.release()
    for event in job.events():
        if isinstance(event, JobPaused) and "version" in event.reason:
            break
    assert told("jobs").endswith("version 1 is there")
    assert told("stop", job.id) == f"{job.id}: stopped; the versions that it committed are kept"
    job.wait()
    assert told("stop", job.id) == f"{job.id}: has ended already: stopped, stopped by broker-fl stop"
    refused = call("pause", job.id)
    assert refused.exit_code == 1
    assert "has ended: stopped" in refused.stderr


def test_a_version_is_exported_by_its_number_behind_the_job(
    federation: Federation, learner: Adder, tmp_path: Path
) -> None:
    job = federation.submit(spec(rounds=3), {"w": np.zeros(2, "f4")})
    learner.permits.release(3)
    job.wait()
    out = str(tmp_path / "m.safetensors")
    for wanted, more, version in (
        ("latest@2", (), 2),
        (f"{job.id}@1", ("--version", "1"), 1),
        ("add-", ("--version", "2"), 2),
        ("latest", (), 3),
    ):
        assert f"version {version} of {job.id}" in told("models", "export", wanted, *more, "--out", out)
        assert Model.load(out)["w"].tolist() == [version, version]
    for wanted, more, problem in (
        ("latest@two", (), "'two' is no version; give a number, as in latest@3"),
        ("latest@", (), "'' is no version"),
        ("latest@2", ("--version", "1"), "latest@2 and --version 1 are two versions"),
    ):
        refused = call("models", "export", wanted, *more, "--out", out)
        assert refused.exit_code == 2
        assert problem in refused.stderr


def test_the_list_of_jobs_has_the_whole_reason(federation: Federation) -> None:
    job = federation.submit(spec(rounds=100), {"w": np.zeros(2, "f4")})
    told("stop", job.id, "--reason", "out of scope; " * 60)
    job.wait()
    assert told("jobs").count("scope;") == 60
