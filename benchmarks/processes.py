"""Roles as processes of their own, for measuring; each tells its peak memory when it ends."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks import ending
from benchmarks.peers.rounds import constant_of
from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.workers.memory import keep_freed_blocks

CROWD_PARAMETERS = 20
_SPAWN = multiprocessing.get_context("spawn")


class AddConstant:
    """A learner that does no training: a round with it is the system's overhead.

    Every learner adds another number, so that no two updates are alike and nothing can be skipped.
    """

    def __init__(self, constant: float) -> None:
        self._constant = np.float32(constant)

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """Add the constant to every weight, in place."""
        for array in model.values():
            np.add(array, self._constant, out=array)
        return Update(model=model, num_examples=1)

    def evaluate(self, model: Arrays, task: TaskContext) -> dict[str, float]:
        """The first weight."""
        return {"first": float(next(iter(model.values())).reshape(-1)[0])}


@dataclass(slots=True)
class Process:
    """A role that runs elsewhere."""

    name: str
    process: multiprocessing.process.BaseProcess
    pipe: Connection

    def stop(self) -> int:
        """End it; its peak memory in bytes comes back."""
        self.pipe.send("stop")
        peak: int = self.pipe.recv()
        self.process.join(30)
        return peak


@contextmanager
def controller(broker: str, store: str, federation: str) -> Iterator[Process]:
    """A controller on Redis, until the block ends."""
    yield from _run("controller", _controller, (broker, store, federation))


@contextmanager
def learners(broker: str, federation: str, first: int, count: int) -> Iterator[Process]:
    """``count`` learners in one process, each with a connection of its own."""
    yield from _run(f"learner-{first}", _learners, (broker, federation, first, count))


@contextmanager
def crowd(broker: str, federation: str, name: str, count: int, *, grouped: bool) -> Iterator[Process]:
    """``count`` learners with data of their own in one process: as one group, or with a mailbox each."""
    yield from _run(name, _crowd, (broker, federation, name, count, grouped))


def peak_memory_bytes() -> int:
    """Of this process so far; where there is no /proc, at least what its parent needed before it began."""
    return peak_memory_bytes_of(os.getpid()) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def peak_memory_bytes_of(pid: int) -> int | None:
    """Of any process of ours that runs; None where there is no /proc."""
    return _memory_bytes(pid, "VmHWM")


def resident_bytes_of(pid: int) -> int | None:
    """Memory that a process of ours has at this moment; None where there is no /proc."""
    return _memory_bytes(pid, "VmRSS")


def _memory_bytes(pid: int, field: str) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def cpu_s_of(pid: int) -> float | None:
    """CPU time that a process of ours has taken, user and system; None where there is no /proc."""
    return _cpu_s(Path(f"/proc/{pid}"))


def thread_cpu_s_of(pid: int) -> dict[str, float]:
    """CPU time of each thread that a process of ours has, by its number; empty where there is no /proc."""
    times = {folder.name: _cpu_s(folder) for folder in Path(f"/proc/{pid}/task").glob("*")}
    return {thread: cpu_s for thread, cpu_s in times.items() if cpu_s is not None}


def _cpu_s(folder: Path) -> float | None:
    try:
        fields = (folder / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def begin() -> None:
    """As the daemons do; BROKER_FL_BENCH_MALLOC=default leaves it, for comparison."""
    if os.environ.get("BROKER_FL_BENCH_MALLOC") != "default":
        keep_freed_blocks()


def _run(name: str, target: Callable[..., None], arguments: tuple[object, ...]) -> Iterator[Process]:
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_child, args=(target, theirs, *arguments), name=name)
    process.start()
    theirs.close()
    ours.recv()
    try:
        yield Process(name, process, ours)
    finally:
        if process.is_alive():
            process.terminate()
            process.join(10)


def _child(target: Callable[..., None], *arguments: object) -> None:
    ending.with_parent()
    target(*arguments)


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe.send("ready")
    pipe.recv()
    pipe.send(peak_memory_bytes())


def _controller(pipe: Connection, broker: str, store: str, federation: str) -> None:
    from broker_fl.roles.controller import Controller, ControllerSettings
    from broker_fl.stores.redis import RedisStore
    from broker_fl.transports.rabbitmq import RabbitMQTransport

    begin()
    transport = RabbitMQTransport(broker, name="controller")
    role = Controller(
        transport,
        RedisStore(store, federation=federation),
        ControllerSettings(federation=federation),
    )
    role.start()
    role.wait_active(30)
    _serve(pipe)
    role.stop()
    role.wait(10)
    transport.close()


def _learners(pipe: Connection, broker: str, federation: str, first: int, count: int) -> None:
    from broker_fl.roles.learner import LearnerHost, LearnerSettings
    from broker_fl.transports.rabbitmq import RabbitMQTransport

    begin()
    hosts = []
    for index in range(first, first + count):
        transport = RabbitMQTransport(broker, name=f"learner-{index}")
        settings = LearnerSettings(federation=federation)
        learner = AddConstant(constant_of(index))
        hosts.append((LearnerHost(transport, {f"learner-{index}": learner}, settings), transport))
    for host, _ in hosts:
        host.start()
    _serve(pipe)
    stops = [threading.Thread(target=host.stop, kwargs={"drain_s": 0.0}) for host, _ in hosts]
    for stop in stops:
        stop.start()
    for stop in stops:
        stop.join(20)
    for _, transport in hosts:
        transport.close()


class OneStep:
    """A learner that fits a line to 16 points of its own, one step of gradient descent a round."""

    def __init__(self, seed: int) -> None:
        """Its points follow from ``seed``: they need no place while nobody works on them."""
        draw = np.random.default_rng(seed)
        self._x = draw.standard_normal((16, CROWD_PARAMETERS), np.float32)
        self._y = self._x @ np.linspace(-1, 1, CROWD_PARAMETERS, dtype=np.float32)

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """One step."""
        wrong = self._x @ model["w"] - self._y
        model["w"][...] -= np.float32(0.1) * (wrong @ self._x) / np.float32(len(wrong))
        return Update(model=model, num_examples=16, num_steps=1, metrics={"loss": float(wrong @ wrong) / 16})

    def evaluate(self, model: Arrays, task: TaskContext) -> dict[str, float]:
        """The mean of the squares."""
        wrong = self._x @ model["w"] - self._y
        return {"loss": float(wrong @ wrong) / 16, "num_examples": 16}


def _crowd(pipe: Connection, broker: str, federation: str, name: str, count: int, grouped: bool) -> None:
    from broker_fl.roles.learner import LazyLearners, LearnerHost, LearnerSettings
    from broker_fl.transports.rabbitmq import RabbitMQTransport

    begin()
    first = sum(map(ord, name)) * 1_000_000
    ids = [f"{name}-{index}" for index in range(count)]
    learners = LazyLearners(ids, lambda context: OneStep(first + context.index))
    settings = LearnerSettings(federation=federation, group=name if grouped else None)
    transport = RabbitMQTransport(broker, name=name)
    host = LearnerHost(transport, learners if grouped else {one: learners[one] for one in ids}, settings)
    host.start()
    _serve(pipe)
    host.stop(drain_s=0.0)
    transport.close()
