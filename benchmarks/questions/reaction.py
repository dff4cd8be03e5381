"""How soon something happens: a learner that joins gets its first task; a job that is submitted begins."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ours, processes
from benchmarks.cells import now, or_failed
from benchmarks.jobs import spec
from benchmarks.peers.rounds import initial_weights
from benchmarks.questions import Cell, Options, Question, Row
from benchmarks.tables import ALSO_OURS, OURS, plot_bars, table, verdict
from broker_fl import Model, connect
from broker_fl.interfaces import TaskContext, Transport, Update
from broker_fl.model import Arrays
from broker_fl.roles.driver import Driver
from broker_fl.roles.learner import LearnerHost, LearnerSettings
from broker_fl.simulation import Federation
from broker_fl.transports.rabbitmq import RabbitMQTransport
from broker_fl.wire.events import JobWaiting, RoundStarted

CELL: Cell = (10, 100_000)
QUICK: Cell = (2, 10_000)
REPETITIONS = 20
TIMEOUT_S = 60.0
FEDERATION = "bench"

TEXT = """Controller, broker and store are up and warm. *Submit*: from the call of `submit` in the driver,
with a model of {parameters} parameters and {learners} learners waiting, to the round's start in the
controller, and to the first call of a learner's `train`. *Join*: a job waits for its last learner; from the
moment that this one begins to connect, in a process that has imported everything, to the call of its
`train`. *Start-up*: from the first import of a process to the end of an embedded federation's first round.
Medians over {repetitions}, in milliseconds.

{table}

{reached}"""

WANTED_S = {"submit_to_train_s": 0.2, "join_to_train_s": 0.2, "startup_s": 1.0}
"""Medians, less than which was wanted; what this project set out for."""


def run(options: Options) -> Iterator[Row]:
    """Transport by transport."""
    cell = options.cells_of((CELL,), QUICK)[0]
    repetitions = 2 if options.quick else REPETITIONS
    for transport in options.transports:
        if options.is_over:
            return
        row: Row = {
            "key": transport,
            "transport": transport,
            "num_learners": cell[0],
            "num_parameters": cell[1],
            "repetitions": repetitions,
            **now(),
        }
        startups = 0 if transport == "rabbitmq" else 1 if options.quick else options.repetitions
        yield {**row, **or_failed(_measure, transport, cell, repetitions, startups)}


def _measure(transport: str, cell: Cell, repetitions: int, startups: int) -> Row:
    system = embedded(cell[0]) if transport == "embedded" else rabbitmq(cell[0])
    with system as warm:
        warm.submit_once(cell)  # not counted
        submits = [warm.submit_once(cell) for _ in range(repetitions)]
        joins = [warm.join_once(cell, index) for index in range(repetitions)]
    measured: Row = {
        "submit_to_round_s": [one[0] for one in submits],
        "submit_to_train_s": [one[1] for one in submits],
        "join_to_train_s": joins,
    }
    if startups:
        measured["startup_s"] = [ours.embedded(*cell, 1)["startup_s"] for _ in range(startups)]
    return measured


class Noting(processes.AddConstant):
    """Notes when it is first called in each job."""

    def __init__(self, constant: float) -> None:
        super().__init__(constant)
        self.called_s: dict[str, float] = {}
        self._called = threading.Condition()

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """As its base."""
        with self._called:
            self.called_s.setdefault(task.job, time.time())
            self._called.notify_all()
        return super().train(model, task)

    def wait_called(self, job: str) -> float:
        """When it was, in Unix time.

        Raises:
            TimeoutError: it was not.
        """
        with self._called:
            if not self._called.wait_for(lambda: job in self.called_s, TIMEOUT_S):
                raise TimeoutError(f"no task of {job} came within {TIMEOUT_S:g} s")
            return self.called_s[job]


@dataclass(slots=True)
class Warm:
    """A federation that is up, and how one more learner connects to it."""

    driver: Driver
    learners: Sequence[Noting]
    connect: Callable[[str], Transport]
    federation: str

    def submit_once(self, cell: Cell) -> tuple[float, float]:
        """Seconds from the call to the round's start, and to the first training."""
        model = Model.of(initial_weights(cell[1]))
        began_s = time.time()
        job = self.driver.submit(spec(cell[0], 1), model)
        trained_s = min(learner.wait_called(job.id) for learner in self.learners)
        started_s = next(event.time_s for event in job.events() if isinstance(event, RoundStarted))
        job.wait()
        return started_s - began_s, trained_s - began_s

    def join_once(self, cell: Cell, index: int) -> float:
        """Seconds from the beginning of a learner's connection to its first training."""
        job = self.driver.submit(spec(cell[0] + 1, 1), Model.of(initial_weights(cell[1])))
        next(event for event in job.events() if isinstance(event, JobWaiting))
        late, name = Noting(cell[0] + 1), f"late-{index}"
        began_s = time.time()
        transport = self.connect(name)
        host = LearnerHost(transport, {name: late}, LearnerSettings(federation=self.federation))
        host.start()
        taken_s = late.wait_called(job.id) - began_s
        job.wait()
        host.stop(drain_s=5.0)
        transport.close()
        return taken_s


@contextmanager
def embedded(num_learners: int) -> Iterator[Warm]:
    """In this process."""
    learners = {f"learner-{index}": Noting(index + 1) for index in range(num_learners)}
    with Federation(learners, name=FEDERATION) as federation:
        yield Warm(federation.driver, list(learners.values()), federation.broker.connect, FEDERATION)


@contextmanager
def rabbitmq(num_learners: int) -> Iterator[Warm]:
    """Private servers, a controller process, and the learners here, each with its own connection."""
    with ExitStack() as stack:
        nodes = stack.enter_context(ours.servers())
        url = nodes["rabbitmq"].url
        stack.enter_context(processes.controller(url, nodes["redis"].url, FEDERATION))
        learners = [Noting(index + 1) for index in range(num_learners)]
        for index, learner in enumerate(learners):
            name = f"learner-{index}"
            transport = RabbitMQTransport(url, name=name)
            stack.callback(transport.close)
            host = LearnerHost(transport, {name: learner}, LearnerSettings(federation=FEDERATION))
            host.start()
            stack.callback(host.stop, drain_s=0.0)
        driver = stack.enter_context(connect(url, FEDERATION, timeout_s=TIMEOUT_S))
        yield Warm(driver, learners, lambda name: RabbitMQTransport(url, name=name), FEDERATION)


NAMES = {"embedded": "embedded", "rabbitmq": "RabbitMQ and Redis"}
SHOWN = {
    "submit to round": "submit_to_round_s",
    "submit to training": "submit_to_train_s",
    "join to training": "join_to_train_s",
    "start-up": "startup_s",
}


def text(rows: Sequence[Row]) -> str:
    """One table, in milliseconds."""
    lines = []
    for row in rows:
        measured = [
            f"{statistics.median(row[key]) * 1e3:.0f} ({min(row[key]) * 1e3:.0f}–{max(row[key]) * 1e3:.0f})"
            if key in row
            else "–"
            for key in SHOWN.values()
        ]
        lines.append((NAMES[row["transport"]], *measured))
    first = rows[0]
    return TEXT.format(
        parameters=f"{first['num_parameters']:,}",
        learners=first["num_learners"],
        repetitions=first["repetitions"],
        table=table(("transport", *(f"{name} ms" for name in SHOWN)), lines),
        reached="\n".join(
            "- "
            + verdict(
                f"{name} in less than {WANTED_S[key] * 1e3:.0f} ms",
                [
                    (NAMES[row["transport"]], statistics.median(row[key]) < WANTED_S[key])
                    for row in rows
                    if key in row
                ],
            )
            for name, key in SHOWN.items()
            if key in WANTED_S and any(key in row for row in rows)
        ),
    )


def plot(rows: Sequence[Row], path: Path) -> bool:
    """Bars by transport."""
    groups = {
        name: {NAMES[row["transport"]]: statistics.median(row[key]) for row in rows if key in row}
        for name, key in SHOWN.items()
    }
    shown = {name: bars for name, bars in groups.items() if bars}
    plot_bars(path, shown, "seconds", (OURS, ALSO_OURS))
    return True


QUESTION = Question(
    name="reaction",
    title="Start-up and reaction",
    place=40,
    run=run,
    keys={"embedded": "embedded", "rabbitmq": "RabbitMQ and Redis"},
    text=text,
    plot=plot,
)
