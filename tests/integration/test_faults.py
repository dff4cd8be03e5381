"""Whole jobs over real RabbitMQ and Redis, with the daemons as processes, one of which is killed mid-round.

Mid-round is an event: each learner says in a file that it trains, and waits for the gate of that round.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from broker_fl import connect
from broker_fl.model import Model
from broker_fl.roles.driver import Driver, Job
from broker_fl.wire import events as e
from broker_fl.wire.job import JobSpec, Termination, Transfer
from broker_fl.wire.protocols import Synchronous
from broker_fl.workers.servers import RabbitMQNode, RedisNode

pytestmark = pytest.mark.timeout(300)
WAIT_S = 120.0
ROUNDS = 4
AMOUNTS = {"site-1": 1.0, "site-2": 2.0, "site-3": 6.0}
SIZE = 20_000
"""80 kB of float32: 20 chunks, so that a cut hits the middle of a model."""

APP = """
import os, time
from pathlib import Path
import numpy as np
from broker_fl.interfaces import Update

FOLDER = Path(os.environ["FAULTS_FOLDER"])

class Adds:
    def __init__(self, context):
        self.name = context.learner
        self.amount = float(os.environ["FAULTS_AMOUNT"])

    def train(self, model, task):
        with (FOLDER / f"{self.name}.trained").open("a") as file:
            file.write(f"{task.round}\\n")
        while not (FOLDER / f"gate.{self.name}.{task.round}").exists():
            task.progress(0.5)
            time.sleep(0.01)
        return Update(model={"w": model["w"] + np.float32(self.amount)}, num_examples=1)

    def evaluate(self, model, task):
        return {"first": float(model["w"][0]), "num_examples": 1}

def make_learner(context):
    return Adds(context)
"""


class Site:
    """The processes of one federation, and the gates of its learners."""

    def __init__(self, folder: Path, *, broker: str, store: str, federation: str) -> None:
        self._folder = folder
        self._common = ["--broker", broker, "--federation", federation]
        self._store = store
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "app.py").write_text(APP)

    def start(self, name: str) -> None:
        if name.startswith("controller"):
            command = ["controller", "--store", self._store, "--heartbeat", "2", "--lease", "2"]
        else:
            command = ["learner", str(self._folder / "app.py:make_learner"), "--id", name]
        environment = {
            **os.environ,
            "FAULTS_FOLDER": str(self._folder),
            "FAULTS_AMOUNT": str(AMOUNTS.get(name, 0)),
            "OMP_NUM_THREADS": "1",
        }
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "broker_fl.cli", *command, *self._common],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        assert process.poll() is None, f"{name} has ended by itself: {self.logs()}"
        process.kill()
        process.wait(30)

    def close(self) -> None:
        for name in AMOUNTS:
            self.open_gate(name)
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    def open_gate(self, *names: str, rounds: range = range(ROUNDS)) -> None:
        """Let learners, or all of them, finish their training in these rounds."""
        for name in names or AMOUNTS:
            for number in rounds:
                (self._folder / f"gate.{name}.{number}").touch()

    def trained(self, name: str) -> list[int]:
        """Rounds that a learner has begun to train in; one that is there twice was trained twice."""
        path = self._folder / f"{name}.trained"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def wait_training(self, number: int) -> None:
        """Until all learners train in this round."""
        self.wait(
            lambda: all(number in self.trained(name) for name in AMOUNTS),
            f"training in round {number}",
        )

    def wait(self, condition: Callable[[], object], what: str) -> None:
        give_up_at = time.monotonic() + WAIT_S
        while not condition():
            dead = [name for name, process in self._processes.items() if process.poll() is not None]
            assert not dead, f"{dead} ended: {self.logs()}"
            assert time.monotonic() < give_up_at, f"{what} did not happen: {self.logs()}"
            time.sleep(0.02)

    def logs(self) -> str:
        texts = {path.name: path.read_text()[-1500:] for path in sorted(self._folder.glob("*.log"))}
        return "\n".join(f"--- {name}\n{text}" for name, text in texts.items())


def run_job(driver: Driver) -> Job:
    spec = JobSpec(
        protocol=Synchronous(min_learners=len(AMOUNTS)),
        termination=Termination(rounds=ROUNDS),
        transfer=Transfer(chunk_bytes=4096),
    )
    return driver.submit(spec, {"w": np.zeros(SIZE, np.float32)})


def check(job: Job) -> list[e.Event]:
    """Each round adds (1 + 2 + 6) / 3 = 3, if everybody is counted once in each."""
    finished = job.wait()
    assert (finished.state, finished.version) == ("done", ROUNDS), finished.reason
    final: Model = job.model()
    np.testing.assert_array_equal(final["w"], np.full(SIZE, 3.0 * ROUNDS, np.float32))
    seen = list(job.events(follow=False))
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    for event in seen:
        if isinstance(event, e.VersionCommitted):
            assert event.contributors == tuple(AMOUNTS)
    return seen


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    """Asked for last, so that processes end before their servers do."""
    with ExitStack() as stack:
        yield stack


def opened(closing: ExitStack, folder: Path, broker: str, store: str, federation: str) -> tuple[Site, Job]:
    """Controller, three learners and a job that is in its second round, in which everybody trains."""
    site = Site(folder, broker=broker, store=store, federation=federation)
    closing.callback(site.close)
    for name in ("controller", *AMOUNTS):
        site.start(name)
    driver = closing.enter_context(connect(broker, federation, timeout_s=WAIT_S))
    job = run_job(driver)
    site.wait_training(0)
    site.open_gate(rounds=range(1))
    site.wait_training(1)
    return site, job


@pytest.fixture
def running(
    tmp_path: Path,
    amqp_url: str,
    redis_url: str,
    federation: str,
    closing: ExitStack,
) -> tuple[Site, Job]:
    return opened(closing, tmp_path, amqp_url, redis_url, federation)


def test_three_learner_processes_make_the_right_model(running: tuple[Site, Job]) -> None:
    site, job = running
    site.open_gate()
    check(job)
    assert all(site.trained(name) == list(range(ROUNDS)) for name in AMOUNTS)


def test_a_controller_killed_mid_round_is_continued_and_nobody_trains_twice(
    running: tuple[Site, Job],
) -> None:
    site, job = running
    site.kill("controller")
    site.open_gate("site-1")
    site.start("controller")
    site.open_gate()
    seen = check(job)
    assert any(isinstance(event, e.JobResumed) for event in seen)
    assert all(site.trained(name) == list(range(ROUNDS)) for name in AMOUNTS)


def test_a_standby_takes_over_from_a_controller_that_is_killed(running: tuple[Site, Job]) -> None:
    site, job = running
    site.start("controller-2")
    site.kill("controller")
    site.open_gate()
    check(job)
    assert all(site.trained(name) == list(range(ROUNDS)) for name in AMOUNTS)


def test_a_learner_killed_mid_round_gets_its_task_again_when_it_is_back(running: tuple[Site, Job]) -> None:
    site, job = running
    site.kill("site-3")
    site.start("site-3")
    site.wait(lambda: site.trained("site-3").count(1) == 2, "the same task once more")
    site.open_gate()
    check(job)


def test_a_broker_killed_mid_round_loses_nothing(
    tmp_path: Path,
    private_rabbitmq: RabbitMQNode,
    private_amqp_url: str,
    redis_url: str,
    federation: str,
    closing: ExitStack,
) -> None:
    site, job = opened(closing, tmp_path, private_amqp_url, redis_url, federation)
    private_rabbitmq.flush()
    private_rabbitmq.kill()
    site.open_gate("site-1")
    private_rabbitmq.start()
    site.open_gate()
    check(job)
    assert all(site.trained(name) == list(range(ROUNDS)) for name in AMOUNTS)


def test_a_redis_restarted_mid_round_loses_nothing(
    tmp_path: Path,
    private_redis: RedisNode,
    amqp_url: str,
    federation: str,
    closing: ExitStack,
) -> None:
    site, job = opened(closing, tmp_path, amqp_url, private_redis.url, federation)
    private_redis.stop()
    site.open_gate()
    private_redis.start()
    check(job)
    assert all(site.trained(name) == list(range(ROUNDS)) for name in AMOUNTS)
