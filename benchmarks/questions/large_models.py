"""Models of gigabytes over RabbitMQ and Redis: peak memory, and bytes a second against bare pika."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import bare, ours, processes
from benchmarks.cells import cell_by_cell, keys
from benchmarks.jobs import spec
from benchmarks.peers.rounds import check_weights, initial_weights
from benchmarks.questions import Cell, Options, Question, Row
from benchmarks.tables import cell_name, seconds, spread_of_times, table, times
from broker_fl import connect
from broker_fl.model import Model
from broker_fl.roles.driver import Driver
from broker_fl.wire import events as e

CELLS: tuple[Cell, ...] = ((10, 25_000_000), (10, 250_000_000), (2, 500_000_000))
QUICK: Cell = (2, 1_000_000)
ROUNDS, BARE_LOOPS = 2, 2
FEDERATION = "bench"
TIMEOUT_S = 1800.0
BYTES = 4
"""Of a parameter."""

TEXT = """Learners add a constant of their own and do nothing else; each is a process of its own, and so are
controller and driver. Lossless float32, all settings as they come, but one version kept. *Bare pika* moves
the same bytes through the same broker right after: bodies of a mebibyte, down with one publish for all
mailboxes (BCC), up to one inbox, one learner after the other; nothing is checked, summed or stored. *Down* is
from the round's start to the last learner saying that it has trained, *up* from there to the last update in
the sum, a round from one version to the next, the version's storing in Redis included. *Times bare* is our
round against bare pika's down and up together. MB a second count each learner's bytes, both ways. Medians
over {rounds} rounds after one that is not counted; figures in brackets are the least and the most.

{speed}

Peak memory (VmHWM) as a multiple of the model, of the whole process, Python and all: the controller holds the
sum and the update that is arriving, a learner one model. The broker's is its process's, in MB: what learners
have not fetched yet. Redis has the version before while the next one is written.

{memory}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Of one round, in seconds."""

    down_s: float
    up_s: float
    round_s: float


def run(options: Options) -> Iterator[Row]:
    """Cell by cell."""
    rounds = 1 if options.quick else ROUNDS

    def measure(cell: Cell) -> dict[str, Any]:
        return ours.alone(_measure, *cell, rounds, timeout_s=2 * TIMEOUT_S)

    return cell_by_cell(options, CELLS, QUICK, measure, needed_bytes)


def needed_bytes(num_learners: int, num_parameters: int) -> int:
    """A model for each learner, two each for controller and store, one for the driver; and what the broker
    holds.
    """
    model = BYTES * num_parameters
    return int(model * (1.03 * num_learners + 2 + 2 + 1)) + num_learners * 100_000_000 + 2_500_000_000


def _measure(num_learners: int, num_parameters: int, rounds: int) -> dict[str, Any]:
    with ExitStack() as stack:
        nodes = stack.enter_context(ours.servers())
        broker, store = nodes["rabbitmq"].url, nodes["redis"].url
        running = [stack.enter_context(processes.controller(broker, store, FEDERATION))]
        running += [
            stack.enter_context(processes.learners(broker, FEDERATION, index, 1))
            for index in range(num_learners)
        ]
        with connect(broker, FEDERATION, timeout_s=TIMEOUT_S) as driver:
            phases = _rounds(driver, num_learners, num_parameters, rounds)
        peaks = {
            **ours.peak_memory_bytes_of(nodes),
            **{process.name: process.stop() for process in reversed(running)},
        }
        num_bytes = BYTES * num_parameters
        loops = [bare.measure(broker, num_learners, num_bytes) for _ in range(min(rounds, BARE_LOOPS))]
    return {"rounds": [asdict(one) for one in phases], "bare": loops, "peak_memory_bytes": peaks}


def _rounds(driver: Driver, num_learners: int, num_parameters: int, rounds: int) -> list[Phases]:
    job = spec(num_learners, rounds + 1).model_copy(update={"keep_versions": 1})
    running = driver.submit(job, Model.of(initial_weights(num_parameters)))
    phases = list(read_phases(running.events()))
    check_weights(dict(running.model()), num_learners, rounds + 1)
    return phases


def read_phases(events: Iterable[e.Event]) -> Iterator[Phases]:
    """Of each round but the first."""
    started = trained = folded = before = 0.0
    for event in events:
        match event:
            case e.RoundStarted():
                started = event.time_s
            case e.TaskFinished():
                trained = event.time_s
            case e.UpdateFolded():
                folded = event.time_s
            case e.VersionCommitted():
                if before:
                    yield Phases(
                        down_s=trained - started, up_s=folded - trained, round_s=event.time_s - before
                    )
                before = event.time_s
            case e.JobFinished() if event.state != "done":
                raise RuntimeError(f"the job {event.state}: {event.reason}")


def text(rows: Sequence[Row]) -> str:
    """What is fast, and what it takes."""
    measured = [row for row in rows if "rounds" in row]
    left_out = [f"\n\n{_name(row)} was left out: {row['left_out']}." for row in rows if "left_out" in row]
    speed = table(
        ("cell", "model", "down s", "up s", "round s", "MB a second", "times bare"), map(_speed, measured)
    )
    memory = table(("cell", "controller", "learners, the most", "broker MB", "Redis"), map(_memory, measured))
    rounds = max((len(row["rounds"]) for row in measured), default=0)
    return TEXT.format(rounds=rounds, speed=speed, memory=memory) + "".join(left_out)


def _speed(row: Row) -> tuple[str, ...]:
    medians = {name: statistics.median(one[name] for one in row["rounds"]) for name in row["rounds"][0]}
    moved = 2 * row["num_learners"] * row["num_parameters"] * BYTES
    return (
        _name(row),
        f"{row['num_parameters'] * BYTES / 1e9:g} GB",
        *(seconds(medians[name]) for name in ("down_s", "up_s", "round_s")),
        f"{moved / medians['round_s'] / 1e6:.0f}",
        spread_of_times([one["round_s"] / _bare_s(row) for one in row["rounds"]]),
    )


def _bare_s(row: Row) -> float:
    loops: list[float] = [loop["down_s"] + loop["up_s"] for loop in row["bare"]]
    return statistics.median(loops)


def _memory(row: Row) -> tuple[str, ...]:
    peaks, model = row["peak_memory_bytes"], row["num_parameters"] * BYTES
    learners = max(peak for name, peak in peaks.items() if name.startswith("learner"))
    return (
        _name(row),
        times(peaks["controller"] / model),
        times(learners / model),
        f"{peaks['rabbitmq'] / 1e6:.0f}" if "rabbitmq" in peaks else "–",
        times(peaks["redis"] / model) if "redis" in peaks else "–",
    )


def _name(row: Row) -> str:
    return cell_name((row["num_learners"], row["num_parameters"]))


QUESTION = Question(name="large_models", title="Large models", place=50, run=run, keys=keys(CELLS), text=text)
