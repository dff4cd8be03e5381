"""Where the time of our own rounds goes, and the peak memory of each process."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import ours
from benchmarks.cells import by_transport, keys
from benchmarks.questions import Cell, Options, Question, Row
from benchmarks.tables import seconds, size, spread, table

CELLS: tuple[Cell, ...] = ((10, 100_000), (10, 1_000_000), (10, 10_000_000), (50, 1_000_000))
QUICK: Cell = (2, 10_000)
PHASES = {
    "publish": "publish_s",
    "first update": "first_update_s",
    "last update": "last_update_s",
    "commit": "commit_s",
}
MEASURE = {"embedded": ours.embedded, "rabbitmq": ours.rabbitmq}

TEXT = """Learners add a constant of their own and do nothing else. Over RabbitMQ and Redis, each has a
mailbox and connections of its own, in {processes} processes; embedded, all is in one process. Phases count
from the round's start: all published, first update folded, last update folded; commit is from the last
update to the version being stored. Medians over the rounds, after one that is not counted, in seconds; a
round is from one version to the next. Peak memory is that of each process, over the cell: the highest
resident size that the kernel saw (VmHWM).

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
    lines = []
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
    return TEXT.format(processes=ours.LEARNER_PROCESSES, table=table(columns, lines))


QUESTION = Question(
    name="rounds",
    title="Where a round's time goes",
    place=30,
    run=run,
    keys=keys(CELLS, ("embedded", "rabbitmq")),
    text=text,
)
