"""From the last update's last chunk to the next round's task on its way, whatever the number of learners."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import ours
from benchmarks.cells import cell_by_cell, keys
from benchmarks.jobs import run_job
from benchmarks.questions import Cell, Options, Question, Row
from benchmarks.tables import cell_name, size, table, times, verdict
from broker_fl.wire import events as e

CELLS: tuple[Cell, ...] = tuple(
    (learners, parameters) for parameters in (1_000_000, 10_000_000) for learners in (2, 10, 50)
)
QUICK: Cell = (2, 10_000)

TEXT = """From the moment when the last learner's update is whole in the controller to the moment when the
next round's task begins to go out, over RabbitMQ and Redis, by the controller's own events. *Fold* is the
update's check, *mean* that it is added, with what else still waits for that, the division, and the look
whether all is finite, *store* the version and the job's state in Redis, durable as far as its settings go;
*rest* is everything else: the state machine, choosing the next cohort. Packing the task is not in it.
Milliseconds, medians over
the rounds after one that is not counted; of the whole also the least and the most. *Wanted* is of the
median; *over it* are the rounds that took longer.

{table}

{reached}

{flatness}"""

WANTED_S = {1_000_000: 0.020, 10_000_000: 0.150}
"""At most, by parameters; what this project set out for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Between two rounds, in seconds."""

    fold_s: float
    mean_s: float
    store_s: float
    total_s: float


def run(options: Options) -> Iterator[Row]:
    """Cell by cell."""
    at_least = options.rounds if options.quick else options.rounds * options.repetitions

    def measure(cell: Cell) -> dict[str, Any]:
        return ours.alone(_measure, *cell, ours.rounds_for(*cell, at_least))

    return cell_by_cell(options, CELLS, QUICK, measure)


def _measure(num_learners: int, num_parameters: int, rounds: int) -> dict[str, Any]:
    with ours.over_servers(num_learners) as running:
        events = run_job(running.driver, num_learners, num_parameters, rounds + 1)
    return {"gaps": [asdict(one) for one in read_gaps(events)][1:]}


def read_gaps(events: Iterable[e.Event]) -> Iterator[Gap]:
    """Of each pair of rounds."""
    folded: e.UpdateFolded | None = None
    committed: e.VersionCommitted | None = None
    for event in events:
        match event:
            case e.UpdateFolded():
                folded = event
            case e.VersionCommitted():
                committed = event
            case e.TaskSent() if folded is not None and committed is not None:
                yield Gap(
                    fold_s=folded.fold_s,
                    mean_s=committed.aggregate_s,
                    store_s=committed.store_s,
                    total_s=event.time_s - event.send_s - (folded.time_s - folded.fold_s),
                )
                folded = committed = None


def text(rows: Sequence[Row]) -> str:
    """One table."""
    lines = []
    reached: list[tuple[str, bool]] = []
    for row in rows:
        named = (size(row["num_parameters"]), row["num_learners"])
        if "left_out" in row:
            lines.append((*named, *["–"] * 6, row["left_out"]))
            continue
        gaps = row["gaps"]
        fold, mean, store, total = (
            statistics.median(gap[name] for gap in gaps)
            for name in ("fold_s", "mean_s", "store_s", "total_s")
        )
        totals = [gap["total_s"] for gap in gaps]
        whole = f"{_ms(total)} ({_ms(min(totals))}–{_ms(max(totals))})"
        rest = max(0.0, total - fold - mean - store)
        wanted_s = WANTED_S.get(row["num_parameters"])
        held = ("–", "–")
        if wanted_s is not None:
            over = sum(one > wanted_s for one in totals)
            is_reached = total <= wanted_s
            reached.append((cell_name((row["num_learners"], row["num_parameters"])), is_reached))
            held = (
                f"≤ {_ms(wanted_s)}, {'reached' if is_reached else 'missed'}",
                f"{over} of {len(totals)}",
            )
        lines.append((*named, *map(_ms, (fold, mean, store, rest)), whole, *held))
    columns = (
        *("parameters", "learners", "fold", "mean", "store", "rest", "all together ms"),
        *("wanted", "over it"),
    )
    most = ", ".join(f"{_ms(most)} ms with {size(number)} parameters" for number, most in WANTED_S.items())
    return TEXT.format(
        table=table(columns, lines),
        reached=verdict(f"a median of at most {most}", reached),
        flatness=_flatness([row for row in rows if "gaps" in row]),
    )


def _flatness(rows: Sequence[Row]) -> str:
    """What more learners change, by size."""
    found = []
    for parameters in sorted({row["num_parameters"] for row in rows}):
        here = {row["num_learners"]: row["gaps"] for row in rows if row["num_parameters"] == parameters}
        few, many = min(here), max(here)
        if few != many:
            before, after = (
                statistics.median(gap["total_s"] for gap in here[number]) for number in (few, many)
            )
            found.append(
                f"With {size(parameters)}, {many} learners take {times(after / before)} the time of {few}."
            )
    return " ".join(found)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.{1 if seconds < 0.01 else 0}f}"


QUESTION = Question(
    name="after_last_update", title="After the last update", place=35, run=run, keys=keys(CELLS), text=text
)
