"""Rounds of our own system, in processes of their own: over private servers, and embedded."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import ending, processes
from benchmarks.jobs import read_rounds, run_job
from benchmarks.peers import run_script
from broker_fl import connect
from broker_fl.roles.driver import Driver
from broker_fl.workers.servers import RabbitMQNode, RedisNode

LEARNER_PROCESSES = 2
"""That learners are spread over, each with connections of its own."""
DRIVER_TIMEOUT_S = 300.0
END_TIMEOUT_S = 60.0
"""For a process to stop its servers."""
MAX_ROUNDS = 30
COPIES = 3.3
"""Of the model that a learner's process has at its peak, measured at 10 million parameters."""
OTHERS_BYTES = 2_000_000_000
"""Controller, broker and store, at most."""

THREAD = "controller's thread "
LONGEST_S = 1200.0
"""For a measurement in a process of its own; one that hangs must not hold up all others."""

Node = RabbitMQNode | RedisNode


class OursFailed(Exception):
    """Our own rounds did not end as they should."""


def rounds_for(num_learners: int, num_parameters: int, at_least: int) -> int:
    """Short rounds are measured more often."""
    return max(at_least, min(MAX_ROUNDS, int(2e8 / (num_learners * num_parameters))))


def needed_bytes(num_learners: int, num_parameters: int) -> int:
    """Memory that a cell takes over RabbitMQ and Redis, all processes together, about."""
    return int(num_learners * num_parameters * 4 * COPIES + num_learners * 1_000_000 + OTHERS_BYTES)


def rabbitmq(num_learners: int, num_parameters: int, rounds: int) -> dict[str, Any]:
    """Private servers, a controller process, and the learners on a few processes, each with its own
    connection; ``rounds``, ``cpu_share`` and ``peak_memory_bytes`` come back. In a process of its own.
    """
    return alone(_measure_rabbitmq, num_learners, num_parameters, rounds)


def embedded(num_learners: int, num_parameters: int, rounds: int) -> dict[str, Any]:
    """All in one fresh process; ``rounds``, ``peak_memory_bytes`` and ``startup_s`` come back."""
    arguments = ["--learners", num_learners, "--parameters", num_parameters, "--rounds", rounds]
    return run_script(
        sys.executable, "benchmarks.embedded", [str(one) for one in arguments], DRIVER_TIMEOUT_S
    )


def alone(
    measure: Callable[..., dict[str, Any]], *arguments: Any, timeout_s: float = LONGEST_S
) -> dict[str, Any]:
    """In a process of its own, so that peak memory is this cell's.

    Raises:
        OursFailed: with the last line of its error; or it was not done in time.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_alone, args=(theirs, measure, arguments))
    process.start()
    theirs.close()
    try:
        if not ours.poll(timeout_s):
            raise OursFailed(f"{measure.__name__} was not done after {timeout_s:g} s")
        found, error = ours.recv()
    except EOFError:
        process.join(END_TIMEOUT_S)
        raise OursFailed(f"{measure.__name__} ended with status {process.exitcode}") from None
    finally:
        process.join(END_TIMEOUT_S) if sys.exception() is None else process.terminate()
        process.join(END_TIMEOUT_S)
        process.kill()
    if error:
        raise OursFailed(error)
    return dict(found)


def _alone(pipe: Connection, measure: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    ending.by_exception()
    ending.with_parent()
    try:
        pipe.send((measure(*arguments), ""))
    except Exception as error:
        pipe.send((None, f"{type(error).__name__}: {error}"))
        raise


def _measure_rabbitmq(num_learners: int, num_parameters: int, rounds: int) -> dict[str, Any]:
    with over_servers(num_learners) as running:
        before, began_s = running.cpu_s(), time.monotonic()
        events = run_job(running.driver, num_learners, num_parameters, rounds)
        seconds = time.monotonic() - began_s
        cpu_s = {name: after - before.get(name, 0.0) for name, after in running.cpu_s().items()}
        peak_memory_bytes = running.stop()
    return {
        "rounds": [asdict(one) for one in read_rounds(events)],
        "cpu_share": {name: used / seconds for name, used in cpu_s.items()},
        "peak_memory_bytes": peak_memory_bytes,
    }


@dataclass(frozen=True, slots=True)
class Running:
    """A federation in processes of its own, over private servers, and a driver in this one."""

    driver: Driver
    nodes: Mapping[str, Node]
    roles: Sequence[processes.Process]

    def cpu_s(self) -> dict[str, float]:
        """CPU time so far of each process and of each thread of the controller, where the system tells."""
        pids = {
            "driver": os.getpid(),
            **{name: node.pid for name, node in self.nodes.items()},
            **{one.name: one.process.pid for one in self.roles},
        }
        times = {name: processes.cpu_s_of(pid) for name, pid in pids.items() if pid}
        threads = processes.thread_cpu_s_of(pids["controller"] or 0)
        return {
            **{name: cpu_s for name, cpu_s in times.items() if cpu_s is not None},
            **{THREAD + number: cpu_s for number, cpu_s in threads.items()},
        }

    def stop(self) -> dict[str, int]:
        """End the roles' processes; the peak memory of each comes back, and of servers and driver."""
        return {
            "driver": processes.peak_memory_bytes(),
            **peak_memory_bytes_of(self.nodes),
            **{one.name: one.stop() for one in reversed(self.roles)},
        }


@contextmanager
def over_servers(num_learners: int) -> Iterator[Running]:
    """A controller, and learners spread over a few processes, until the block ends."""
    with ExitStack() as stack:
        nodes = stack.enter_context(servers())
        broker, store = nodes["rabbitmq"].url, nodes["redis"].url
        roles = [stack.enter_context(processes.controller(broker, store, "bench"))]
        share = -(-num_learners // LEARNER_PROCESSES)
        for first in range(0, num_learners, share):
            count = min(share, num_learners - first)
            roles.append(stack.enter_context(processes.learners(broker, "bench", first, count)))
        driver = stack.enter_context(connect(broker, "bench", timeout_s=DRIVER_TIMEOUT_S))
        yield Running(driver, nodes, roles)


@contextmanager
def servers(broker_settings: Mapping[str, str] | None = None) -> Iterator[dict[str, Node]]:
    """A private RabbitMQ, with further lines of its rabbitmq.conf, and a private Redis."""
    with (
        tempfile.TemporaryDirectory() as folder,
        RabbitMQNode(Path(folder) / "rabbitmq", settings=broker_settings) as broker,
        RedisNode(Path(folder) / "redis") as store,
    ):
        yield {"rabbitmq": broker, "redis": store}


def peak_memory_bytes_of(nodes: Mapping[str, Node]) -> dict[str, int]:
    """Of each server, where the system tells."""
    peaks = {name: processes.peak_memory_bytes_of(node.pid) for name, node in nodes.items() if node.pid}
    return {name: peak for name, peak in peaks.items() if peak is not None}
