"""What docs/operations.md says about backup: a copy of Redis, taken while a job runs, gives the job back."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from redis import Redis

from broker_fl import connect
from broker_fl.model import Model
from broker_fl.roles.driver import Job
from broker_fl.wire.events import JobResumed
from broker_fl.wire.job import JobSpec
from broker_fl.workers.servers import RedisNode
from tests.integration.daemons import APP, DEADLINE_S, started, until

NUM_ROUNDS = 25
PAUSE = """
class Slow(Adder):
    def train(self, model, task):
        time.sleep(0.1)
        while task.round >= int(Path("num_rounds").read_text()):
            time.sleep(0.02)
        return super().train(model, task)

def make_learner(context):
    return Slow()
"""


def _let_train(folder: Path, num_rounds: int) -> None:
    """Learners finish so many rounds of the job, and wait in the next one."""
    (folder / "partial").write_text(str(num_rounds))
    (folder / "partial").replace(folder / "num_rounds")


def _newest(job: Job) -> int:
    return job.versions()[-1].version


def _back_up(node: RedisNode, target: Path) -> None:
    """As the page says; the password is not for the command line, which others can read."""
    password = urlsplit(node.url).password or ""
    with Redis.from_url(node.url) as client:
        client.config_set("repl-diskless-sync-delay", "0")  # seconds that it waits for more who want a copy
    subprocess.run(
        ["redis-cli", "-p", str(node.port), "--rdb", target],
        env={**os.environ, "REDISCLI_AUTH": password},
        check=True,
        capture_output=True,
        timeout=60,
    )


def _restored(backup: Path, folder: Path) -> RedisNode:
    """A Redis with what the backup has, which appends from then on, as the page says."""
    folder.mkdir()
    shutil.copy(backup, folder / "dump.rdb")
    reading = RedisNode(folder, password=True, settings={"appendonly": "no"}).start()
    with Redis.from_url(reading.url) as client:
        client.config_set("appendonly", "yes")
        going_on = ("aof_rewrite_in_progress", "aof_rewrite_scheduled")
        until(lambda: not any(map(client.info("persistence").get, going_on)))
    reading.stop()
    return RedisNode(folder, password=True).start()  # as it always starts


def test_a_backup_of_redis_gives_a_running_job_back(
    private_redis: RedisNode, amqp_url: str, federation: str, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(f"import time\nfrom pathlib import Path\n{APP}\n{PAUSE}")
    _let_train(tmp_path, NUM_ROUNDS - 5)  # the job must not come to its end before it has been lost
    environment = {"BROKER_FL_BROKER": amqp_url, "BROKER_FL_FEDERATION": federation}
    spec = JobSpec.model_validate({"protocol": {"min_learners": 2}, "termination": {"rounds": NUM_ROUNDS}})
    backup = tmp_path / "backup.rdb"
    with (
        started(tmp_path, environment) as start,
        connect(amqp_url, federation, timeout_s=DEADLINE_S) as driver,
    ):
        command = ("controller", "--heartbeat", "0.5", "--lease", "2")
        lost = start("lost", *command, BROKER_FL_STORE=private_redis.url)
        for name in ("site-0", "site-1"):
            start(name, "learner", "app.py", "--id", name)
        job = driver.submit(spec, Model.of({"w": np.zeros(1000, "f4")}))
        until(lambda: _newest(job) >= 2)
        _back_up(private_redis, backup)
        saved = _newest(job)
        _let_train(tmp_path, NUM_ROUNDS - 2)
        until(lambda: _newest(job) > saved)
        at_the_end = _newest(job)
        lost.process.kill()
        lost.process.wait(DEADLINE_S)
        private_redis.kill()
        _let_train(tmp_path, NUM_ROUNDS)

        node = _restored(backup, tmp_path / "restored")
        try:
            start("new", *command, BROKER_FL_STORE=node.url)
            found = driver.job(job.id)
            found.wait()
            resumed = [event for event in found.events(follow=False) if isinstance(event, JobResumed)]
            assert [2 <= event.version < at_the_end for event in resumed] == [True]
            # Each round adds 1, once: what was lost was done again, and nothing twice.
            assert found.versions()[-1].version == NUM_ROUNDS
            np.testing.assert_array_equal(found.model()["w"], np.full(1000, NUM_ROUNDS, "f4"))
        finally:
            node.kill()
            node.stop()
