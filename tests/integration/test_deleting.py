"""``broker-fl jobs delete``, and a controller that keeps the newest, over a real broker and a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from redis import Redis

from broker_fl import connect
from broker_fl.cli.main import commands
from broker_fl.model import Model
from broker_fl.roles.controller import Controller, ControllerSettings
from broker_fl.roles.controller.retention import Retention
from broker_fl.roles.driver import Driver, Job
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.stores.redis import RedisStore
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.wire.job import JobSpec
from tests.integration.daemons import DEADLINE_S, started, until
from tests.unit.roles.stage import Adds


class Federation:
    def __init__(self, amqp_url: str, redis_url: str, name: str) -> None:
        self.name, self._amqp_url, self._redis_url = name, amqp_url, redis_url
        self.driver: Driver = connect(amqp_url, name, timeout_s=DEADLINE_S)
        self.redis = Redis.from_url(redis_url)
        self._closing: list[Any] = [self.redis.close, self.driver.close]

    def controller(self, retention: Retention) -> Controller:
        transport = RabbitMQTransport(self._amqp_url, name="controller")
        store = RedisStore(self._redis_url, federation=self.name)
        settings = ControllerSettings(federation=self.name, heartbeat_s=0.1, retention=retention)
        controller = Controller(transport, store, settings)
        self._closing += [store.close, transport.close, lambda: controller.wait(10), controller.stop]
        controller.start()
        assert controller.wait_active(DEADLINE_S)
        return controller

    def learner(self) -> None:
        transport = RabbitMQTransport(self._amqp_url, name="learner")
        host = LearnerHost(transport, {"a": Adds(1.0)}, LearnerSettings(federation=self.name))
        self._closing += [transport.close, lambda: host.stop(drain_s=0.0)]
        host.start()

    def submit(self, name: str) -> Job:
        spec = JobSpec.model_validate({"name": name, "termination": {"rounds": 2}})
        job = self.driver.submit(spec, Model.of({"w": np.zeros(3, "f4")}))
        assert job.wait().state == "done"
        return job

    def keys_of(self, job: str) -> list[str]:
        return [key for key in (one.decode() for one in self.redis.scan_iter()) if job in key.split(":")]

    def jobs(self) -> list[str]:
        return [one.job for one in self.driver.jobs()]

    def run(self, *args: str, answer: str | None = None, where: bool = True) -> Result:
        place = ["--broker", self._amqp_url, "--federation", self.name] if where else []
        return CliRunner().invoke(commands, ["jobs", *args, *place], input=answer)

    def close(self) -> None:
        for close in reversed(self._closing):
            close()


@pytest.fixture
def there(amqp_url: str, redis_url: str, federation: str) -> Iterator[Federation]:
    there = Federation(amqp_url, redis_url, federation)
    yield there
    there.close()


def test_the_command_says_what_is_lost_asks_and_deletes(there: Federation) -> None:
    there.controller(Retention())
    there.learner()
    kept, gone = there.submit("kept"), there.submit("gone")
    assert there.keys_of(gone.id) != []

    asked = there.run("delete", "gone", answer="n\n")
    assert asked.exit_code == 1
    nobody = there.run("delete", "gone")
    assert nobody.exit_code == 2
    assert "--yes deletes without asking" in nobody.stderr
    assert "done: 3 model versions (36 B) and its record of events are deleted for good" in asked.stdout
    assert there.jobs() == [kept.id, gone.id]
    before = there.run("--federation", there.name, "delete", gone.id, "--yes", where=False)
    assert before.exit_code == 2
    assert "give --federation after 'delete'" in before.stderr
    assert there.jobs() == [kept.id, gone.id]

    said = there.run("delete", "gone", answer="y\n")
    assert said.exit_code == 0, said.stderr
    assert f"{gone.id}: deleted, with 3 model versions (36 B)" in said.stdout
    assert there.keys_of(gone.id) == []
    listed = there.run()
    assert kept.id in listed.stdout
    assert gone.id not in listed.stdout
    again = there.run("delete", gone.id, "--yes")
    assert again.exit_code == 1
    assert "has no job" in again.stderr
    assert there.run("delete", "latest", "--yes").exit_code == 0
    assert there.keys_of(kept.id) == there.jobs() == []


def test_a_controller_that_keeps_one_leaves_nothing_of_the_others_in_redis(there: Federation) -> None:
    there.controller(Retention(num_jobs=1, grace_s=0.0))
    there.learner()
    first, second = there.submit("first"), there.submit("second")
    until(lambda: there.jobs() == [second.id])
    assert there.keys_of(first.id) == []
    np.testing.assert_array_equal(second.model()["w"], np.full(3, 2, "f4"))


def test_a_controller_is_told_by_its_command_how_long_to_keep(
    there: Federation, amqp_url: str, redis_url: str, tmp_path: Path
) -> None:
    first = there.controller(Retention())
    there.learner()
    job = there.submit("old")
    first.stop()
    assert first.wait(DEADLINE_S)
    environment = {
        "BROKER_FL_BROKER": amqp_url,
        "BROKER_FL_STORE": redis_url,
        "BROKER_FL_FEDERATION": there.name,
    }
    with started(tmp_path, environment) as start:
        start("next", "controller", "--heartbeat", "0.5", "--keep-days", "0.000001")
        until(lambda: there.jobs() == [])
        assert there.keys_of(job.id) == []
