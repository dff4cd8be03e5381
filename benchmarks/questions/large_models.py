"""Models of gigabytes over RabbitMQ and Redis: peak memory, and bytes a second against bare pika."""

from __future__ import annotations

import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import bare, ours, processes
from benchmarks.cells import cell_by_cell, keys
from benchmarks.jobs import spec
from benchmarks.peers.rounds import check_weights, initial_weights
from benchmarks.questions import Cell, Options, Question, Row
from benchmarks.tables import at_most, cell_name, seconds, spread_of_times, table, times, verdict
from broker_fl import connect
from broker_fl.model import Model
from broker_fl.roles.driver import Driver
from broker_fl.wire import events as e
from broker_fl.workers.servers import RabbitMQNode

CELLS: tuple[Cell, ...] = ((10, 25_000_000), (2, 250_000_000), (10, 250_000_000), (2, 500_000_000))
QUICK: Cell = (2, 1_000_000)
ROUNDS = 2
"""Counted in each job, at most; one more comes first."""
JOBS = 2
WANTED_CONTROLLER, WANTED_LEARNER = 2.5, 3.0
"""Models in memory, at most; what this project set out for."""
WANTED_FROM_BYTES = 1_000_000_000
"""Of a model; with smaller ones Python and ``transfer.upload_budget_bytes`` weigh more."""
WANTED_TIMES_BARE = 2.0
POLICY = ("large", r"^bfl\.", '{"queue-mode": "lazy"}', "--apply-to", "queues")
"""As docs/operations.md wants it for large models: RabbitMQ before 3.12 keeps bodies in memory without."""
MEMORY = {"vm_memory_high_watermark.absolute": "2500MB"}
"""Of each broker, beyond which it makes publishers wait: bare pika waits for no confirmation, and 10 GB on
their way to its disk are more than the machine has left.
"""
FEDERATION = "bench"
TIMEOUT_S = 1800.0
BYTES = 4
"""Of a parameter."""

TEXT = """Learners add a constant of their own and do nothing else; each is a process of its own, and so are
controller and driver. Lossless float32, all settings as they come, but one version kept. *Bare pika* moves
the same bytes through a broker of its own that is set up alike, bodies on disk as well, and publishers made
to wait beyond {limit} in memory: bodies of a mebibyte, down with one publish for all mailboxes (BCC), up to
one inbox, one learner after the other and once more all together, of which the faster counts; nothing is
checked, summed or stored. It takes turns with our jobs, before, between and after them, and its fastest
down and its fastest up count; with figures that were taken otherwise the table says *after* at their
number. *Down* is from the round's start to the last learner saying that it has trained, by when others'
uploads are under way, and is not to be held against bare pika's; *up* is from there to the last update in
the sum, a round from one version to the next, the version's storing in Redis included. *Times bare* is our
round against bare pika's down and up together. MB a second count each learner's bytes, both ways. Medians
over the rounds, the first of each job not counted; figures in brackets are the least and the most.

{speed}

{reached}

Peak memory (VmHWM) as a multiple of the model, of the whole process, Python and all: the controller is to
hold the sum and the update that is arriving, a learner one model. The broker's is its process's, in MB.
*Lazy*: mailboxes and inboxes were under the policy that
[operations](operations.md) recommends for large models, by which a broker before 3.12 has bodies on disk
(`{policy}`). Redis has the version before while the next one is written. *Sent again* are tasks beyond one
for each learner and round.

{memory}

{bounded}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Of one round, in seconds."""

    down_s: float
    up_s: float
    round_s: float


def run(options: Options) -> Iterator[Row]:
    """Cell by cell."""
    rounds = 1 if options.quick else min(ROUNDS, options.rounds)
    jobs = 1 if options.quick else JOBS

    def measure(cell: Cell) -> dict[str, Any]:
        return ours.alone(_measure, *cell, rounds, jobs, timeout_s=2 * TIMEOUT_S)

    return cell_by_cell(options, CELLS, QUICK, measure, needed_bytes)


def needed_bytes(num_learners: int, num_parameters: int) -> int:
    """A model for each learner, two each for controller and store, one for the driver; and what the broker
    holds.
    """
    model = BYTES * num_parameters
    return int(model * (1.03 * num_learners + 2 + 2 + 1)) + num_learners * 100_000_000 + 2_500_000_000


def _measure(num_learners: int, num_parameters: int, rounds: int, jobs: int) -> dict[str, Any]:
    cell = num_learners, num_parameters
    phases: list[Phases] = []
    events: list[e.Event] = []
    num_bytes = BYTES * num_parameters
    with ExitStack() as stack:
        nodes = stack.enter_context(ours.servers(MEMORY))
        node = nodes["rabbitmq"]
        assert isinstance(node, RabbitMQNode)
        node.control("set_policy", *POLICY)
        # Another one, lest what it holds for bare pika be taken for ours.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        other = stack.enter_context(RabbitMQNode(folder / "rabbitmq", settings=MEMORY))
        other.control("set_policy", POLICY[0], r"^bare\.", *POLICY[2:])  # what is in memory is many gigabytes
        broker, store = nodes["rabbitmq"].url, nodes["redis"].url
        running = [stack.enter_context(processes.controller(broker, store, FEDERATION))]
        running += [
            stack.enter_context(processes.learners(broker, FEDERATION, index, 1))
            for index in range(num_learners)
        ]
        with connect(broker, FEDERATION, timeout_s=TIMEOUT_S) as driver:
            loops = [bare.measure(other.url, num_learners, num_bytes)]
            for _ in range(jobs):
                of_job = _run_job(driver, *cell, rounds)
                phases += read_phases(of_job)
                events += of_job
                loops.append(bare.measure(other.url, num_learners, num_bytes))
        peaks = {
            "driver": processes.peak_memory_bytes(),
            **ours.peak_memory_bytes_of(nodes),
            **{process.name: process.stop() for process in reversed(running)},
        }
    return {
        "rounds": [asdict(one) for one in phases],
        "bare": loops,
        "peak_memory_bytes": peaks,
        "policy": POLICY[2],
        "events_by_kind": dict(Counter(event.KIND for event in events)),
        "tasks_sent": sum(event.num_learners for event in events if isinstance(event, e.TaskSent)),
        "num_all_rounds": jobs * (rounds + 1),
    }


def _run_job(driver: Driver, num_learners: int, num_parameters: int, rounds: int) -> list[e.Event]:
    job = spec(num_learners, rounds + 1).model_copy(update={"keep_versions": 1})
    running = driver.submit(job, Model.of(initial_weights(num_parameters)))
    events = list(running.events())
    check_weights(dict(running.model()), num_learners, rounds + 1)
    running.delete()  # or Redis would have its last version beside those of the next job
    return events


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
        (
            *("cell", "model", "rounds", "down s", "up s", "round s", "MB a second", "bare loops"),
            *("bare down s", "bare up s", "times bare", "wanted"),
        ),
        map(_speed, measured),
    )
    memory = table(
        (
            *("cell", "controller", "wanted", "learners, the most", "wanted", "driver", "broker MB"),
            *("of the model", "lazy", "Redis", "sent again"),
        ),
        map(_memory, measured),
    )
    told = TEXT.format(
        speed=speed,
        memory=memory,
        policy=" ".join(POLICY),
        limit=MEMORY["vm_memory_high_watermark.absolute"],
        reached=verdict(
            f"a round of at most {WANTED_TIMES_BARE:g} times bare pika's",
            [(_name(row), _times_bare(row) <= WANTED_TIMES_BARE) for row in measured],
        ),
        bounded=verdict(
            f"at most {WANTED_CONTROLLER:g} models in the controller and {WANTED_LEARNER:g} in a learner, "
            f"with models of {WANTED_FROM_BYTES / 1e9:g} GB or more",
            [(_name(row), _is_bounded(row)) for row in measured if _is_large(row)],
        ),
    )
    return told + "".join(left_out)


def _speed(row: Row) -> tuple[str, ...]:
    medians = {name: statistics.median(one[name] for one in row["rounds"]) for name in row["rounds"][0]}
    moved = 2 * row["num_learners"] * row["num_parameters"] * BYTES
    return (
        _name(row),
        f"{row['num_parameters'] * BYTES / 1e9:g} GB",
        str(len(row["rounds"])),
        *(seconds(medians[name]) for name in ("down_s", "up_s", "round_s")),
        f"{moved / medians['round_s'] / 1e6:.0f}",
        f"{len(row['bare'])}{'' if 'policy' in row else ', after'}",
        *(seconds(_fastest_s(row, name)) for name in ("down_s", "up_s")),
        spread_of_times([one["round_s"] / _bare_s(row) for one in row["rounds"]]),
        at_most(_times_bare(row), WANTED_TIMES_BARE),
    )


def _fastest_s(row: Row, name: str) -> float:
    return float(min(loop[name] for loop in row["bare"]))


def _bare_s(row: Row) -> float:
    return _fastest_s(row, "down_s") + _fastest_s(row, "up_s")


def _times_bare(row: Row) -> float:
    return float(statistics.median(one["round_s"] for one in row["rounds"])) / _bare_s(row)


def _memory(row: Row) -> tuple[str, ...]:
    peaks, model = row["peak_memory_bytes"], row["num_parameters"] * BYTES
    controller, learner = _models(row)

    def of_model(name: str) -> str:
        return times(peaks[name] / model) if name in peaks else "–"

    return (
        _name(row),
        times(controller),
        at_most(controller, WANTED_CONTROLLER) if _is_large(row) else "–",
        times(learner),
        at_most(learner, WANTED_LEARNER) if _is_large(row) else "–",
        of_model("driver"),
        f"{peaks['rabbitmq'] / 1e6:.0f}" if "rabbitmq" in peaks else "–",
        of_model("rabbitmq"),
        "yes" if "policy" in row else "no",
        of_model("redis"),
        _sent_again(row),
    )


def _models(row: Row) -> tuple[float, float]:
    """In the controller's memory, and in that of the learner that had most."""
    peaks, model = row["peak_memory_bytes"], row["num_parameters"] * BYTES
    learner = max(peak for name, peak in peaks.items() if name.startswith("learner"))
    return peaks["controller"] / model, learner / model


def _is_large(row: Row) -> bool:
    return bool(row["num_parameters"] * BYTES >= WANTED_FROM_BYTES)


def _is_bounded(row: Row) -> bool:
    controller, learner = _models(row)
    return controller <= WANTED_CONTROLLER and learner <= WANTED_LEARNER


def _sent_again(row: Row) -> str:
    if "tasks_sent" not in row:
        return "–"
    return str(row["tasks_sent"] - row["num_learners"] * row["num_all_rounds"])


def _name(row: Row) -> str:
    return cell_name((row["num_learners"], row["num_parameters"]))


QUESTION = Question(name="large_models", title="Large models", place=50, run=run, keys=keys(CELLS), text=text)
