"""Roles as processes of their own, for measuring; each tells its peak memory when it ends."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from broker_fl.interfaces import TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.workers.memory import keep_freed_blocks

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


def peak_memory_bytes() -> int:
    """Of this process so far; where there is no /proc, at least what its parent needed before it began."""
    return peak_memory_bytes_of(os.getpid()) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def peak_memory_bytes_of(pid: int) -> int | None:
    """Of any process of ours that runs; None where there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(peak[1]) * 1024 if peak else None


def begin() -> None:
    """As the daemons do; BROKER_FL_BENCH_MALLOC=default leaves it, for comparison."""
    if os.environ.get("BROKER_FL_BENCH_MALLOC") != "default":
        keep_freed_blocks()


def _run(name: str, target: object, arguments: tuple[object, ...]) -> Iterator[Process]:
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=target, args=(theirs, *arguments), name=name)  # type: ignore[arg-type]
    process.start()
    theirs.close()
    ours.recv()
    try:
        yield Process(name, process, ours)
    finally:
        if process.is_alive():
            process.terminate()
            process.join(10)


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
        hosts.append(
            (LearnerHost(transport, {f"learner-{index}": AddConstant(index + 1)}, settings), transport),
        )
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
