"""What a federation costs that has nothing to do: CPU time, and messages through the broker."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

from benchmarks import ours, processes
from benchmarks.cells import now, or_failed
from benchmarks.questions import Cell, Options, Question, Row
from benchmarks.tables import table
from broker_fl import connect
from broker_fl.roles.learner import DEFAULT_HEARTBEAT_S
from broker_fl.workers.servers import RabbitMQNode

LEARNERS = 10
SETTLING_S, MEASURED_S, QUICK_S = 10.0, 60.0, 6.0
FEDERATION = "bench"

TEXT = """{learners} learners in {processes} processes, each with a mailbox and connections of its own, and
a controller, over RabbitMQ and Redis, with no job; {seconds:.0f} s, once all are there. Learners send a
heartbeat each {heartbeat_s:g} s, the controller renews its lease, and that is all: {messages:.0f} messages
a minute went through the broker. The broker's own CPU time is mostly Erlang's schedulers, which look for
work.

{table}"""


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
            **or_failed(_measure, num_learners, seconds, 1.0 if options.quick else SETTLING_S),
        }


def _measure(num_learners: int, seconds: float, settling_s: float) -> dict[str, object]:
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
        time.sleep(settling_s)
        assert isinstance(broker, RabbitMQNode)
        messages, before = num_messages(broker), _cpu_s(pids)
        time.sleep(seconds)
        after, messages = _cpu_s(pids), num_messages(broker) - messages
    return {
        "messages_per_minute": messages * 60 / seconds,
        "cpu_s_per_minute": {name: (after[name] - before[name]) * 60 / seconds for name in pids},
    }


def num_messages(broker: RabbitMQNode) -> int:
    """That were published since the broker began, by its own count."""
    said = broker.control("eval", "rabbit_global_counters:overview().")
    return sum(map(int, re.findall(r"messages_received_total\s*=>\s*(\d+)", said)))


def _cpu_s(pids: Mapping[str, int]) -> dict[str, float]:
    return {name: processes.cpu_s_of(pid) or 0.0 for name, pid in pids.items()}


def text(rows: Sequence[Row]) -> str:
    """One table."""
    parts = []
    for row in rows:
        cpu_s = row["cpu_s_per_minute"]
        learners = {name: value for name, value in cpu_s.items() if name.startswith("learner")}
        lines = [(name, f"{value:.2f}") for name, value in cpu_s.items() if name not in learners]
        lines.append(("all learners together", f"{sum(learners.values()):.2f}"))
        parts.append(
            TEXT.format(
                learners=row["num_learners"],
                processes=len(learners),
                seconds=row["seconds"],
                heartbeat_s=DEFAULT_HEARTBEAT_S,
                messages=row["messages_per_minute"],
                table=table(("process", "CPU seconds a minute"), lines),
            )
        )
    return "\n\n".join(parts)


QUESTION = Question(name="idle", title="An idle federation", place=45, run=run, text=text)
