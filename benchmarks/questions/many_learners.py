"""Thousands of learners: time and memory of a round against their number, in groups and each by itself."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ours, processes
from benchmarks.cells import now, or_failed
from benchmarks.questions import Options, Question, Row
from benchmarks.tables import plot_lines, seconds, spread, table
from broker_fl import connect
from broker_fl.roles.driver import Driver
from broker_fl.wire import events as e
from broker_fl.wire.job import JobSpec, Termination
from broker_fl.wire.selectors import SelectAll, SelectRandom

SAMPLE = 1_000
LINEAR = 1.2
"""Times as long for each learner as with fewer of them, at most: that is called linear here."""
FEDERATION = "bench"
JOIN_TIMEOUT_S = 600.0


WANTED_S = {"alone-1000-all": 1.0, "grouped-100000-all": 60.0, "grouped-100000-1000": 1.0}
"""Seconds a round, at most, by row; what this project set out for."""


@dataclass(frozen=True, slots=True)
class Cell:
    """How many learners, how they are reached, and how many take part in a round."""

    num_learners: int
    grouped: bool
    sample: int | None = None
    """None: all."""

    @property
    def key(self) -> str:
        """Of its row."""
        how = "grouped" if self.grouped else "alone"
        return f"{how}-{self.num_learners}-{self.sample or 'all'}"

    @property
    def name(self) -> str:
        """On the page."""
        drawn = f", {self.sample:,} drawn" if self.sample else ""
        return f"{self.num_learners:,} {'in groups' if self.grouped else 'alone'}{drawn}"

    @property
    def num_hosts(self) -> int:
        """Processes that the learners are spread over."""
        return min(4, self.num_learners) if self.grouped else 2


CELLS = (
    *(Cell(number, True) for number in (100, 1_000, 10_000, 100_000)),
    *(Cell(number, True, SAMPLE) for number in (10_000, 100_000)),
    *(Cell(number, False) for number in (100, 1_000, 10_000)),
)
QUICK = (Cell(40, True), Cell(40, True, 10), Cell(10, False))

TEXT = """Each learner fits a line of {parameters} coefficients to 16 points of its own, one step a round,
after it has evaluated the model that it was given. Over RabbitMQ and Redis, on one machine with everything
else; heartbeats, metrics and events are on. In groups, {groups} daemons host the learners, each as one
group: it has one mailbox, makes a learner when it works on it, and sends one sum. Alone, two processes host
them, each over a connection of its own, and each learner has a mailbox of its own and sends an update of
its own. Seconds from one version to the next, medians and in brackets least and most. *Drawn*: so many are
chosen by chance for each round, and the others only say that they are there. *Joining* is from the start of
the processes until all learners have a mailbox and are known to the controller. Memory is the most that the
controller's process had (VmHWM), Python and all; events are those stored, and their bytes, for each round.

{table}

{reached}

{growth}"""


def run(options: Options) -> Iterator[Row]:
    """Cell by cell, the small ones first."""
    for cell in _cells(options):
        if options.is_over:
            return
        row: Row = {
            "key": cell.key,
            "num_learners": cell.num_learners,
            "grouped": cell.grouped,
            "sample": cell.sample,
            **now(),
        }
        yield {**row, **or_failed(_alone, cell, min(options.rounds, 5))}


def _cells(options: Options) -> Sequence[Cell]:
    """Those with the learners asked for; new ones, in groups and alone, where there are none of them."""
    if options.cells is None:
        return QUICK if options.quick else CELLS
    numbers = [learners for learners, parameters in options.cells if parameters == processes.CROWD_PARAMETERS]
    if not numbers:
        print(f"many_learners has no cells but LEARNERSx{processes.CROWD_PARAMETERS}")
    return [
        cell
        for number in numbers
        for cell in [one for one in CELLS if one.num_learners == number]
        or [Cell(number, grouped) for grouped in (True, False)]
    ]


def _alone(cell: Cell, rounds: int) -> dict[str, Any]:
    return ours.alone(measure, cell, rounds, timeout_s=JOIN_TIMEOUT_S + ours.LONGEST_S)


def measure(cell: Cell, rounds: int) -> dict[str, Any]:
    """One cell, with servers of its own."""
    with ExitStack() as stack:
        nodes = stack.enter_context(ours.servers())
        broker, store = nodes["rabbitmq"].url, nodes["redis"].url
        controller = stack.enter_context(processes.controller(broker, store, FEDERATION))
        began = time.perf_counter()
        share, rest = divmod(cell.num_learners, cell.num_hosts)
        hosts = [
            stack.enter_context(
                processes.crowd(
                    broker, FEDERATION, f"host-{place}", share + (place < rest), grouped=cell.grouped
                )
            )
            for place in range(cell.num_hosts)
        ]
        driver = stack.enter_context(connect(broker, FEDERATION, timeout_s=ours.DRIVER_TIMEOUT_S))
        _wait_for(driver, cell.num_learners)
        join_s = time.perf_counter() - began
        busy_before = time.process_time()
        events = run_job(driver, cell, rounds)
        peaks = {one.name: one.stop() for one in (*reversed(hosts), controller)}
    return {
        "join_s": join_s,
        "rounds_s": _periods(events),
        "driver_s": time.process_time() - busy_before,
        "controller_bytes": peaks["controller"],
        "hosts_bytes": sum(peak for name, peak in peaks.items() if name != "controller"),
        **_stored(events),
    }


def run_job(driver: Driver, cell: Cell, rounds: int) -> list[e.Event]:
    """A job of ``rounds`` counted rounds and one before; its events come back, and it is held to what it
    should be.
    """
    selector = SelectRandom(count=cell.sample, seed=1) if cell.sample else SelectAll()
    spec = JobSpec(
        name="bench",
        protocol={"min_learners": cell.num_learners},  # type: ignore[arg-type]
        termination=Termination(rounds=rounds + 1),
        selector=selector,
    )
    job = driver.submit(spec, {"w": np.zeros(processes.CROWD_PARAMETERS, np.float32)})
    job.wait()
    events = list(job.events(follow=False))
    taking_part = cell.sample or cell.num_learners
    versions = [event for event in events if isinstance(event, e.VersionCommitted)]
    losses = [event.metrics["loss"] for event in versions]
    assert len(versions) == rounds + 1
    assert all(event.num_learners == taking_part for event in versions)
    assert all(event.total_weight == 16 * taking_part for event in versions)
    assert losses == sorted(losses, reverse=True), "every round makes the loss smaller"
    return events


def _wait_for(driver: Driver, num_learners: int) -> None:
    give_up_at = time.monotonic() + JOIN_TIMEOUT_S
    while (num := len(driver.learners())) < num_learners:
        assert time.monotonic() < give_up_at, f"{num} of {num_learners} learners joined"
        time.sleep(0.5)


def _periods(events: Sequence[e.Event]) -> list[float]:
    times = [event.time_s for event in events if isinstance(event, e.VersionCommitted)]
    return [after - before for before, after in pairwise(times)]


def _stored(events: Sequence[e.Event]) -> dict[str, Any]:
    """Of one round, about."""
    num_rounds = sum(isinstance(event, e.RoundStarted) for event in events)
    return {
        "events": len(events) / num_rounds,
        "events_bytes": sum(len(event.pack()) for event in events) / num_rounds,
        "events_by_kind": dict(Counter(event.KIND for event in events)),
    }


def text(rows: Sequence[Row]) -> str:
    """A table, and how time and memory grow."""
    columns = (
        "learners",
        "in a round",
        "reached",
        "round s",
        "joining s",
        "controller MB",
        "events a round",
        "MB",
    )
    lines = [
        (
            f"{row['num_learners']:,}",
            f"{row['sample']:,} drawn" if row["sample"] else "all",
            "in groups" if row["grouped"] else "alone",
            spread(row["rounds_s"]),
            seconds(row["join_s"]),
            f"{row['controller_bytes'] / 1e6:.0f}",
            f"{row['events']:,.0f}",
            f"{row['events_bytes'] / 1e6:.2f}",
        )
        for row in rows
    ]
    return TEXT.format(
        parameters=processes.CROWD_PARAMETERS,
        groups=max((Cell(row["num_learners"], True).num_hosts for row in rows if row["grouped"]), default=4),
        table=table(columns, lines),
        reached="\n".join(_against_wanted(row) for row in rows if row["key"] in WANTED_S),
        growth="\n".join(_growth(rows, grouped) for grouped in (True, False)).strip(),
    )


def _against_wanted(row: Row) -> str:
    median_s, wanted_s = statistics.median(row["rounds_s"]), WANTED_S[row["key"]]
    name = Cell(row["num_learners"], row["grouped"], row["sample"]).name
    reached = "reached" if median_s < wanted_s else "missed"
    return (
        f"- {name}: less than {wanted_s:g} s a round wanted, {reached} with {seconds(median_s)} s (median)."
    )


def _growth(rows: Sequence[Row], grouped: bool) -> str:
    """What ten times as many cost, from step to step; of figures of two machines, none."""
    full = sorted(
        (row for row in rows if row["grouped"] is grouped and not row["sample"]),
        key=lambda row: row["num_learners"],
    )
    pairs = [(few, many) for few, many in pairwise(full) if _cpu(few) == _cpu(many)]
    if not pairs:
        return ""
    steps = [
        f"from {few['num_learners']:,} to {many['num_learners']:,} learners a round takes "
        f"{_round_s(many) / _round_s(few):.1f} times as long and the controller "
        f"{many['controller_bytes'] / few['controller_bytes']:.1f} times the memory"
        for few, many in pairs
    ]
    few, many = pairs[-1]
    times_each = _each_s(many) / _each_s(few)
    each_s = f"{_each_s(many) * 1e3:.2g} ms of a round of {many['num_learners']:,}"
    linear = (
        f"Linear wanted (at most {LINEAR:g}× as long for each learner as with fewer): "
        f"{'reached' if times_each <= LINEAR else 'missed'} with {times_each:.2f}× at "
        f"{many['num_learners']:,}."
    )
    others = len(full) - 1 - len(pairs)
    left_out = f" {others} more cannot be told: measured on different CPUs." if others else ""
    return (
        f"- {'In groups' if grouped else 'Alone'}: {'; '.join(steps)}.{left_out} A learner costs "
        f"{each_s}. {linear}"
    )


def _cpu(row: Row) -> str:
    return str(row.get("facts", {}).get("CPU", ""))


def _round_s(row: Row) -> float:
    return float(statistics.median(row["rounds_s"]))


def _each_s(row: Row) -> float:
    """Of a round, for each learner."""
    return _round_s(row) / float(row["num_learners"])


def plot(rows: Sequence[Row], path: Path) -> bool:
    """Seconds a round, and the controller's memory, against the number of learners."""
    names = {"in groups": (True, False), f"{SAMPLE:,} drawn of groups": (True, True), "alone": (False, False)}
    series = {
        name: [row for row in rows if (row["grouped"], bool(row["sample"])) == how]
        for name, how in names.items()
    }
    shown = {name: found for name, found in series.items() if found}
    if not shown:
        return False
    round_s = {
        name: [(row["num_learners"], statistics.median(row["rounds_s"])) for row in found]
        for name, found in shown.items()
    }
    memory = {
        name: [(row["num_learners"], row["controller_bytes"] / 1e6) for row in found]
        for name, found in shown.items()
    }
    plot_lines(
        path,
        {"seconds a round": (round_s, {}), "controller's memory, MB": (memory, {})},
        ("learners", ""),
        guide="proportional to learners",
    )
    return True


QUESTION = Question(
    name="many_learners",
    title="Many learners",
    place=60,
    share=2.0,
    run=run,
    keys={cell.key: cell.name for cell in CELLS},
    text=text,
    plot=plot,
)
