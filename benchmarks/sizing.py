"""What a federation takes of its servers and machines: connections, queues, memory.

Run by hand: ``python -m benchmarks.sizing``. Prints the tables of docs/operations.md, "Sizing". Private
servers, real processes; memory is what is resident, from /proc.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from redis import Redis

from broker_fl import connect
from broker_fl.model import Model
from broker_fl.roles.driver import Driver
from broker_fl.wire.job import JobSpec
from broker_fl.workers.servers import RabbitMQNode, RedisNode

APP = """
from broker_fl import Update

class Adder:
    def train(self, model, task):
        model["w"] += 1
        return Update(model=model, num_examples=1)

    def evaluate(self, model, task):
        return {}

def make_learner(context):
    return Adder()
"""
MB = 1_000_000
NUM_LEARNERS = (0, 1, 10, 100, 500)
MODEL_MB = (1, 10, 100)
NUM_ROUNDS = 3


class Run:
    """Servers, a controller, and hosts of learners."""

    def __init__(self, folder: Path, node: RabbitMQNode, redis: RedisNode) -> None:
        self.folder = folder
        self.node = node
        self.redis = redis
        self.processes: list[subprocess.Popen[bytes]] = []
        self.url = node.add_vhost("sizing")

    def start(self, *args: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "broker_fl.cli", *args, "--federation", "sizing"]
        servers = {"BROKER_FL_BROKER": self.url, "BROKER_FL_STORE": self.redis.url}
        with (self.folder / f"{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                words, cwd=self.folder, env=os.environ | servers, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(60)

    def count(self, what: str) -> int:
        lines = self.node.control(f"list_{what}", "name", *self._vhost(what)).splitlines()
        return len(lines) - 1  # the first is the column's head

    def _vhost(self, what: str) -> list[str]:
        return ["-p", "sizing"] if what == "queues" else []

    def broker_mb(self) -> float:
        return float(self.node.control("eval", "erlang:garbage_collect(), erlang:memory(total).")) / MB


@contextmanager
def run() -> Iterator[Run]:
    """All anew."""
    with tempfile.TemporaryDirectory(prefix="sizing-") as name:
        folder = Path(name)
        (folder / "app.py").write_text(APP)
        with RabbitMQNode(folder / "rabbitmq") as node, RedisNode(folder / "redis") as redis:
            made = Run(folder, node, redis)
            try:
                yield made
            finally:
                made.end()


def memory_mb(process: subprocess.Popen[bytes], field: str) -> float:
    """``VmRSS``: at this moment; ``VmHWM``: at most so far."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / MB
    return 0.0


def wait_for(driver: Driver, num_learners: int) -> None:
    while len(driver.learners()) < num_learners:
        pass


def by_learners(num_learners: int) -> str:
    with run() as made:
        controller = made.start("controller")
        host = None
        if num_learners:
            host = made.start("learner", "app.py", "--id", "site", "--count", str(num_learners))
        with connect(made.url, "sizing", timeout_s=120.0) as driver:
            wait_for(driver, num_learners)
        cells = [
            str(made.count("connections")),
            str(made.count("channels")),
            str(made.count("queues")),
            f"{made.broker_mb():.0f}",
            f"{memory_mb(controller, 'VmRSS'):.0f}",
            f"{memory_mb(host, 'VmRSS'):.0f}" if host else "–",
        ]
    return f"| {num_learners} | {' | '.join(cells)} |"


def by_model(model_mb: int) -> str:
    spec = JobSpec.model_validate({"protocol": {"min_learners": 2}, "termination": {"rounds": NUM_ROUNDS}})
    with run() as made:
        controller = made.start("controller")
        hosts = [made.start("learner", "app.py", "--id", f"site-{number}") for number in range(2)]
        with connect(made.url, "sizing", timeout_s=600.0) as driver:
            wait_for(driver, 2)
            before = memory_mb(controller, "VmHWM"), memory_mb(hosts[0], "VmHWM")
            # Random: Redis compresses what it writes when it rewrites its file, and a model does not shrink.
            start = np.random.default_rng(1).standard_normal(model_mb * MB // 4, "f4")
            driver.submit(spec, Model.of({"w": start})).wait()
            after = memory_mb(controller, "VmHWM"), memory_mb(hosts[0], "VmHWM")
        with Redis.from_url(made.redis.url) as client:
            memory = client.info("memory")["used_memory"] / MB
        disk = sum(path.stat().st_size for path in made.redis.directory.rglob("*") if path.is_file()) / MB
        cells = [f"{after[0] - before[0]:.0f}", f"{after[1] - before[1]:.0f}", f"{memory:.0f}", f"{disk:.0f}"]
    return f"| {model_mb} | {' | '.join(cells)} |"


def main() -> None:
    print("| learners | connections | channels | queues | RabbitMQ MB | controller MB | their process MB |")
    print("|---|---|---|---|---|---|---|")
    for num_learners in NUM_LEARNERS:
        print(by_learners(num_learners), flush=True)
    print()
    print("| model MB | controller + MB | learner + MB | Redis MB | Redis's files MB |")
    print("|---|---|---|---|---|")
    for model_mb in MODEL_MB:
        print(by_model(model_mb), flush=True)


if __name__ == "__main__":
    main()
