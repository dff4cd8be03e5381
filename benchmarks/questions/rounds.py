"""Where the time of our own rounds goes, and the peak memory of each process."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import ours
from benchmarks.cells import by_transport, keys
from benchmarks.questions import Cell, Options, Question, Row
from benchmarks.tables import cell_name, seconds, size, spread, table

CELLS: tuple[Cell, ...] = ((10, 100_000), (10, 1_000_000), (10, 10_000_000), (50, 1_000_000))
QUICK: Cell = (2, 10_000)
PHASES = {
    "publish": "publish_s",
    "first update": "first_update_s",
    "last update": "last_update_s",
    "commit": "commit_s",
}
MEASURE = {"embedded": ours.embedded, "rabbitmq": ours.rabbitmq}

WORK_COLUMNS = ("cell", "controller", "its busiest", "learners", "driver", "rabbitmq", "redis", "all")

TEXT = """Learners add a constant of their own and do nothing else. Over RabbitMQ and Redis, each has a
mailbox and connections of its own, in {processes} processes; embedded, all is in one process. Phases count
from the round's start: all published, first update folded, last update folded; commit is from the last
update to the version being stored. Medians over the rounds, after one that is not counted, in seconds; a
round is from one version to the next. Peak memory is that of each process, over the cell: the highest
resident size that the kernel saw (VmHWM).

{table}{work}"""
WORK = """

What keeps the machine busy meanwhile: CPU time of each process as a share of one core, over a whole job from
its submission to its last model. *Busiest* is that of the controller's threads that works most, of which one
does all of its sending and receiving: another connection or process for that could take away from it only.

{table}"""


def run(options: Options) -> Iterator[Row]:
    """Cell by cell, transport by transport."""
    at_least = options.rounds if options.quick else options.rounds * options.repetitions

    def measure(transport: str, cell: Cell) -> dict[str, Any]:
        return MEASURE[transport](*cell, ours.rounds_for(*cell, at_least))

    return by_transport(options, CELLS, QUICK, measure)


def text(rows: Sequence[Row]) -> str:
    """One table."""
    columns = ("transport", "learners", "parameters", "rounds", "round s", *PHASES, "peak memory MB")
    lines, work = [], []
    for row in rows:
        named = (row["transport"], row["num_learners"], size(row["num_parameters"]))
        if "left_out" in row:
            lines.append((*named, *["–"] * (len(columns) - 4), row["left_out"]))
            continue
        rounds = row["rounds"]
        phases = (seconds(statistics.median(one[name] for one in rounds)) for name in PHASES.values())
        memory = ", ".join(
            f"{name} {peak / 1e6:.0f}" for name, peak in sorted(row["peak_memory_bytes"].items())
        )
        periods = [one["period_s"] for one in rounds]
        lines.append((*named, len(rounds), spread(periods), *phases, memory))
        if row.get("cpu_share"):
            work.append((cell_name((row["num_learners"], row["num_parameters"])), *_work(row["cpu_share"])))
    return TEXT.format(
        processes=ours.LEARNER_PROCESSES,
        table=table(columns, lines),
        work=WORK.format(table=table(WORK_COLUMNS, work)) if work else "",
    )


def _work(shares: Mapping[str, float]) -> tuple[str, ...]:
    threads = [share for name, share in shares.items() if name.startswith(ours.THREAD)]
    learners = sum(share for name, share in shares.items() if name.startswith("learner"))
    others = [shares[name] for name in ("driver", "rabbitmq", "redis")]
    found = (
        shares["controller"],
        max(threads),
        learners,
        *others,
        shares["controller"] + learners + sum(others),
    )
    return tuple(f"{share:.0%}" for share in found)


QUESTION = Question(
    name="rounds",
    title="Where a round's time goes",
    place=30,
    run=run,
    keys=keys(CELLS, ("embedded", "rabbitmq")),
    text=text,
)
