"""What a federation costs that has nothing to do: CPU time, messages through the broker, and memory."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks import ours, processes
from benchmarks.cells import now, or_failed
from benchmarks.jobs import run_job
from benchmarks.questions import Cell, Options, Question, Row
from benchmarks.tables import table
from broker_fl import connect
from broker_fl.roles.learner import DEFAULT_HEARTBEAT_S
from broker_fl.workers.servers import RabbitMQNode

LEARNERS = 10
PARAMETERS, QUICK_PARAMETERS = 10_000_000, 10_000
"""Of the job's model."""
SETTLING_S, MEASURED_S, QUICK_S = 10.0, 60.0, 6.0
FEDERATION = "bench"

TEXT = """{learners} learners in {processes} processes, each with a mailbox and connections of its own, and
a controller, over RabbitMQ and Redis, with no job; {seconds:.0f} s, once all are there{and_after}. Learners
send a heartbeat each {heartbeat_s:g} s, the controller renews its lease, and no other message is wanted,
which makes {wanted:.0f} messages a minute: {reached} with {messages}. The broker's own CPU time is mostly
Erlang's schedulers, which look for work.

{table}"""
AND_AFTER = """, and again {settling:.0f} s
after the end of a job of one round with a model of {parameters:,} parameters ({mb:.0f} MB)"""
SLACK = 1.1
"""More messages a minute may be counted: a heartbeat at each end, and the controller's own."""


def run(options: Options) -> Iterator[Row]:
    """One row."""
    cells: tuple[Cell, ...] = options.cells_of(((LEARNERS, 1),), (2, 1))
    seconds = QUICK_S if options.quick else MEASURED_S
    for num_learners, _ in cells:
        if options.is_over:
            return
        yield {
            "key": str(num_learners),
            "num_learners": num_learners,
            **now(),
            "seconds": seconds,
            **or_failed(_measure, num_learners, seconds, options.quick),
        }


def _measure(num_learners: int, seconds: float, quick: bool) -> dict[str, object]:
    settling_s = 1.0 if quick else SETTLING_S
    parameters = QUICK_PARAMETERS if quick else PARAMETERS
    with ExitStack() as stack:
        nodes = stack.enter_context(ours.servers())
        broker = nodes["rabbitmq"]
        running = [stack.enter_context(processes.controller(broker.url, nodes["redis"].url, FEDERATION))]
        share = -(-num_learners // ours.LEARNER_PROCESSES)
        running += [
            stack.enter_context(
                processes.learners(broker.url, FEDERATION, first, min(share, num_learners - first))
            )
            for first in range(0, num_learners, share)
        ]
        with connect(broker.url, FEDERATION) as driver:
            while len(driver.learners()) < num_learners:
                time.sleep(0.1)
        pids = {
            **{name: node.pid for name, node in nodes.items() if node.pid},
            **{one.name: one.process.pid for one in running if one.process.pid},
        }
        assert isinstance(broker, RabbitMQNode)
        time.sleep(settling_s)
        before = _idle(broker, pids, seconds)
        with connect(broker.url, FEDERATION) as driver:
            run_job(driver, num_learners, parameters, 0)
        time.sleep(settling_s)
        after = _idle(broker, pids, seconds)
    return {**before, "after": after, "settling_s": settling_s, "num_parameters": parameters}


def _idle(broker: RabbitMQNode, pids: Mapping[str, int], seconds: float) -> dict[str, object]:
    """What is used in so many seconds, and what memory is held at their end."""
    messages, before = num_messages(broker), _cpu_s(pids)
    time.sleep(seconds)
    after, messages = _cpu_s(pids), num_messages(broker) - messages
    return {
        "messages_per_minute": messages * 60 / seconds,
        "cpu_s_per_minute": {name: (after[name] - before[name]) * 60 / seconds for name in pids},
        "resident_bytes": {name: processes.resident_bytes_of(pid) or 0 for name, pid in pids.items()},
    }


def num_messages(broker: RabbitMQNode) -> int:
    """That were published since the broker began, by its own count."""
    said = broker.control("eval", "rabbit_global_counters:overview().")
    return sum(map(int, re.findall(r"messages_received_total\s*=>\s*(\d+)", said)))


def _cpu_s(pids: Mapping[str, int]) -> dict[str, float]:
    return {name: processes.cpu_s_of(pid) or 0.0 for name, pid in pids.items()}


def text(rows: Sequence[Row]) -> str:
    """One table for each row."""
    return "\n\n".join(map(_told, rows))


def _told(row: Row) -> str:
    times = [row, *([row["after"]] if "after" in row else [])]
    learners = [name for name in row["cpu_s_per_minute"] if name.startswith("learner")]
    names = {name: [name] for name in row["cpu_s_per_minute"] if name not in learners}
    names["all learners together"] = learners
    lines = [
        (
            name,
            *(f"{sum(one['cpu_s_per_minute'][part] for part in parts):.2f}" for one in times),
            *(_megabytes(one, parts) for one in times if "resident_bytes" in one),
        )
        for name, parts in names.items()
    ]
    columns = ["process", "CPU seconds a minute", "MB resident"]
    if len(times) > 1:
        columns = ["process", *(f"{name}, {when}" for name in columns[1:] for when in ("before", "after"))]
    wanted = row["num_learners"] * 60 / DEFAULT_HEARTBEAT_S
    counts = [one["messages_per_minute"] for one in times]
    return TEXT.format(
        learners=row["num_learners"],
        processes=len(learners),
        seconds=row["seconds"],
        and_after=AND_AFTER.format(
            settling=row["settling_s"],
            parameters=row["num_parameters"],
            mb=row["num_parameters"] * 4 / 1e6,
        )
        if "after" in row
        else "",
        heartbeat_s=DEFAULT_HEARTBEAT_S,
        wanted=wanted,
        messages=" before and ".join(f"{count:.0f}" for count in counts) + (" after" if counts[1:] else ""),
        reached="reached" if max(counts) <= SLACK * wanted else "missed",
        table=table(columns[: len(lines[0])], lines),
    )


def _megabytes(measured: Mapping[str, Any], parts: Sequence[str]) -> str:
    return f"{sum(measured['resident_bytes'][part] for part in parts) / 1e6:.0f}"


QUESTION = Question(name="idle", title="An idle federation", place=45, run=run, text=text)
