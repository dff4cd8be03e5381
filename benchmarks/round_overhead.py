"""Seconds a round with learners that only add a constant, over RabbitMQ + Redis and embedded.

python -m benchmarks.round_overhead --out benchmarks/results/round_overhead.json
python -m benchmarks.round_overhead --quick          # one tiny cell, for checking that it works
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks import processes
from broker_fl import JobSpec, Model, connect
from broker_fl.roles.driver import Driver
from broker_fl.simulation import Federation
from broker_fl.wire import events as e
from broker_fl.wire.job import Termination
from broker_fl.wire.protocols import Synchronous
from broker_fl.workers.servers import RabbitMQNode, RedisNode

CELLS = ((10, 100_000), (10, 1_000_000), (10, 10_000_000))
QUICK_CELLS = ((2, 10_000),)
TENSORS = 20
"""A model of so many equal tensors, as a small network has."""

Node = RabbitMQNode | RedisNode

PAGE = """# Benchmarks

Written by `make bench` (`python -m benchmarks.round_overhead`); no figure is typed by hand.

## Round overhead

Learners add a constant to every weight and do nothing else, so that a round is what the system costs. Over
RabbitMQ and Redis, each learner has a mailbox and connections of its own; controller, learners (in two
processes), RabbitMQ and Redis share the machine. Embedded, all is in one process. Times are medians in
seconds over {rounds} rounds, after one that is not counted; phases count from the round's start: all
published, first update folded, last update folded; commit is from the last update to the version being
stored. Each job's final model is checked. Peak memory is that of each process, over the cell: the highest
resident size that the kernel saw (VmHWM).

{table}

{facts}
"""


@dataclass(frozen=True, slots=True)
class Round:
    """Where one round's time went, in seconds from its start."""

    publish_s: float
    first_update_s: float
    last_update_s: float
    commit_s: float
    total_s: float


@dataclass(slots=True)
class Cell:
    """One setting, measured."""

    transport: str
    num_learners: int
    num_parameters: int
    rounds: list[Round] = field(default_factory=list)
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Of a phase over all rounds."""
        return float(statistics.median(getattr(one, name) for one in self.rounds))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write JSON and page."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one tiny cell")
    parser.add_argument("--cells", type=read_cells, default=CELLS, help="as 10x100000,50x1000000")
    parser.add_argument(
        "--rounds",
        type=int,
        default=7,
        help="counted rounds a cell; one more comes first and is not counted",
    )
    parser.add_argument("--transport", choices=("rabbitmq", "embedded", "both"), default="both")
    parser.add_argument(
        "--learner-processes",
        type=int,
        default=2,
        help="processes that the learners are spread over",
    )
    parser.add_argument("--page", type=Path, help="where the Markdown page goes")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    options = parser.parse_args(arguments)
    cells = QUICK_CELLS if options.quick else options.cells
    rounds = 2 if options.quick else options.rounds
    results = []
    for num_learners, num_parameters in cells:
        if options.transport in ("embedded", "both"):
            results.append(alone(measure_embedded, num_learners, num_parameters, rounds))
            print_cell(results[-1])
        if options.transport in ("rabbitmq", "both"):
            of_both = (num_learners, num_parameters, rounds, options.learner_processes)
            results.append(alone(measure_rabbitmq, *of_both))
            print_cell(results[-1])
    print("\n" + table(results))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        record = {"facts": machine_facts(), "cells": [asdict(cell) for cell in results]}
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    if options.page:
        options.page.write_text(page(results))


def machine_facts() -> dict[str, str]:
    """What the figures depend on."""
    names = ("pika", "redis", "numpy", "numexpr", "msgpack")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return {
        "when": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "python": platform.python_version(),
        "packages": versions,
    }


def page(cells: list[Cell]) -> str:
    """docs/benchmarks.md."""
    facts = "\n".join(f"- {name}: {value}" for name, value in machine_facts().items())
    return PAGE.format(facts=facts, table=table(cells), rounds=len(cells[0].rounds))


def read_cells(text: str) -> tuple[tuple[int, int], ...]:
    """Read ``LEARNERSxPARAMETERS,…``."""
    return tuple((int(n), int(p)) for n, _, p in (cell.partition("x") for cell in text.split(",")))


def alone(measure: Callable[..., Cell], *arguments: int) -> Cell:
    """In a process of its own, so that peak memory is this cell's."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def measure_embedded(num_learners: int, num_parameters: int, rounds: int) -> Cell:
    """All in one process."""
    processes.begin()
    cell = Cell("embedded", num_learners, num_parameters)
    learners = {f"learner-{i}": processes.AddConstant(i + 1) for i in range(num_learners)}
    with Federation(learners) as federation:
        cell.rounds = run_job(federation.driver, cell, rounds)
    cell.peak_memory_bytes = {"process": processes.peak_memory_bytes()}
    return cell


def measure_rabbitmq(num_learners: int, num_parameters: int, rounds: int, num_processes: int) -> Cell:
    """Private servers, a controller process, and the learners on a few processes, each with its own
    connection.
    """
    cell = Cell("rabbitmq", num_learners, num_parameters)
    with ExitStack() as stack:
        nodes = stack.enter_context(servers())
        broker, store = nodes["rabbitmq"].url, nodes["redis"].url
        running = [stack.enter_context(processes.controller(broker, store, "bench"))]
        share = -(-num_learners // num_processes)
        for first in range(0, num_learners, share):
            count = min(share, num_learners - first)
            running.append(stack.enter_context(processes.learners(broker, "bench", first, count)))
        driver = stack.enter_context(connect(broker, "bench", timeout_s=120))
        cell.rounds = run_job(driver, cell, rounds)
        cell.peak_memory_bytes = {
            "driver": processes.peak_memory_bytes(),
            **peak_memory_bytes_of(nodes),
            **{process.name: process.stop() for process in reversed(running)},
        }
    return cell


def peak_memory_bytes_of(nodes: Mapping[str, Node]) -> dict[str, int]:
    """Of each server, where the system tells."""
    peaks = {name: processes.peak_memory_bytes_of(node.pid) for name, node in nodes.items() if node.pid}
    return {name: peak for name, peak in peaks.items() if peak is not None}


@contextmanager
def servers() -> Iterator[dict[str, Node]]:
    """A private RabbitMQ and a private Redis."""
    with (
        tempfile.TemporaryDirectory() as folder,
        RabbitMQNode(Path(folder) / "rabbitmq") as broker,
        RedisNode(Path(folder) / "redis") as store,
    ):
        yield {"rabbitmq": broker, "redis": store}


def run_job(driver: Driver, cell: Cell, rounds: int) -> list[Round]:
    """Run one job and read its rounds off the events; checks that the model is the right one."""
    shape = max(1, cell.num_parameters // TENSORS)
    initial = {f"layer{i}": np.zeros(shape, np.float32) for i in range(TENSORS)}
    spec = JobSpec(
        name="bench",
        protocol=Synchronous(min_learners=cell.num_learners),
        termination=Termination(rounds=rounds + 1),
        evaluate=False,
    )
    job = driver.submit(spec, Model.of(initial))
    measured = list(read_rounds(job.events()))[1:]
    mean_constant = (cell.num_learners + 1) / 2
    np.testing.assert_allclose(job.model()["layer0"], (rounds + 1) * mean_constant, rtol=1e-5)
    return measured


def read_rounds(events: Iterable[e.Event]) -> Iterator[Round]:
    """Phases of each round; times are when the controller noted the event."""
    started = sent = first = last = 0.0
    for event in events:
        match event:
            case e.RoundStarted():
                started, first = event.time_s, 0.0
            case e.TaskSent():
                sent = event.time_s
            case e.UpdateFolded():
                first, last = first or event.time_s, event.time_s
            case e.VersionCommitted():
                at = event.time_s
                yield Round(sent - started, first - started, last - started, at - last, at - started)


def print_cell(cell: Cell) -> None:
    """One line while measuring."""
    total = cell.median("total_s")
    size = f"{cell.num_learners} x {cell.num_parameters:,}"
    print(f"{time.strftime('%H:%M:%S')} {cell.transport:9} {size}: {total:.3f} s", flush=True)


def table(cells: list[Cell]) -> str:
    """Medians as a Markdown table."""
    phases = ("publish", "first update", "last update", "commit")
    columns = ("transport", "learners", "parameters", "round s", "min–max", *phases, "peak memory MB")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for cell in cells:
        totals = [one.total_s for one in cell.rounds]
        memory = ", ".join(
            f"{name} {peak / 1e6:.0f}" for name, peak in sorted(cell.peak_memory_bytes.items())
        )
        medians = " | ".join(
            f"{cell.median(name):.3f}"
            for name in ("publish_s", "first_update_s", "last_update_s", "commit_s")
        )
        lines.append(
            f"| {cell.transport} | {cell.num_learners} | {cell.num_parameters:,} "
            f"| {cell.median('total_s'):.3f} | {min(totals):.3f}–{max(totals):.3f} | {medians} | {memory} |",
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
