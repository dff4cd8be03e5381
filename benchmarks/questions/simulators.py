"""The embedded federation against Flower's simulation on Ray and NVIDIA FLARE's simulator."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import ours
from benchmarks.comparison import (
    Comparison,
    against_target,
    better_alone,
    by_itself,
    columns_of,
    gaps,
    is_measured,
    ours_s,
    theirs_s,
    was_swept,
    why_left_out,
    wins_of_peer,
)
from benchmarks.peers import Peer, flare, flower
from benchmarks.questions import Cell, Options, Question, Row
from benchmarks.sweep import Setting
from benchmarks.tables import cell_name, plot_bars, size, spread, table, verdict

CELLS: tuple[Cell, ...] = ((10, 1_000_000), (10, 10_000_000), (50, 1_000_000), (200, 100_000))
QUICK: Cell = (2, 10_000)
WANTED = 10.0
"""Times our round that theirs was to take at least; what this project set out for."""
WANTED_STARTUP_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulator:
    """A peer's."""

    peer: Peer
    engine: tuple[str, ...]
    settings: tuple[Setting, ...]
    defaults: Setting | None
    learner_bytes: int
    """Of memory for each learner beside its models: that of its process."""


FLOWER = Simulator(
    peer=flower.PEER,
    engine=("simulation",),
    settings=({"cpus": 1.0}, {"cpus": 2.0}, {"cpus": 0.5}),
    defaults={"cpus": 2.0},
    learner_bytes=0,
)
FLARE = Simulator(
    peer=flare.PEER,
    engine=(),
    settings=tuple({"poll-s": every, "check-s": every} for every in (0.05, 0.2, 0.5)),
    defaults={"poll-s": flare.DEFAULT_POLL_S, "check-s": flare.DEFAULT_CHECK_S},
    learner_bytes=75_000_000,
)
COPIES = 7
"""Of the model for each learner that a simulator has in memory at once; measured at 10 million: 6."""

TEXT = """Learners add a constant of their own and do nothing else, in systems that are made for one
machine: our federation in one process, Flower's `run_simulation` (Ray keeps the clients' processes; the
best of {flower} CPUs reserved for a client was taken, {cpus:g} being its own; two waits in its code were
left), and NVIDIA FLARE's simulator with a process for each client (the best of asking for work every
{flare} s and, as by itself, every {default:g} s was taken). Where *not swept* stands, one setting was
given, and the peer may be faster with another. Seconds are medians over the rounds of a block, then over
blocks of ours and theirs in alternation, with the least and the most in brackets; where there is one block
nothing alternated, the brackets are its rounds', and the ratio has none. Start-up is from the first import of
the process to the end of the first round.

{table}

{reached}

{wins} Where the peers are ahead by their design: their clients compute in processes of their own, so
training that holds Python's lock scales over cores there, and Ray spreads over machines and GPUs; ours
computes on threads of one process.

{gaps}"""


def run(options: Options) -> Iterator[Row]:
    """Peer by peer, cell by cell."""
    for simulator in (FLOWER, FLARE):
        yield from _run(simulator, options)


def _run(simulator: Simulator, options: Options) -> Iterator[Row]:
    comparison = Comparison(
        simulator.peer,
        engine=simulator.engine,
        ours=ours.embedded,
        settings=simulator.settings,
        defaults=simulator.defaults,
    )
    cells = options.cells_of(CELLS, QUICK)
    for cell, row in comparison.rows(cells, options, partial(_why_left_out, simulator)):
        yield _named(simulator.peer, cell, row)


def _why_left_out(simulator: Simulator, cell: Cell) -> str | None:
    learners, parameters = cell
    needed = learners * (simulator.learner_bytes + parameters * 4 * COPIES) + 1_000_000_000
    return why_left_out(needed, simulator.peer.title)


def _named(peer: Peer, cell: Cell, row: Row) -> Row:
    learners, parameters = cell
    key = f"{peer.name}-{learners}x{parameters}"
    return {"key": key, "num_learners": learners, "num_parameters": parameters, "peer": peer.title, **row}


def startups_s(row: Row, whose: str) -> list[float]:
    """Of each block."""
    return [float(block[whose]["startup_s"]) for block in row["blocks"]]


def _startup_s(row: Row) -> float:
    return statistics.median(startups_s(row, "ours"))


def _cell_of(row: Row) -> str:
    return f"{cell_name((row['num_learners'], row['num_parameters']))} ({row['peer'].split()[0]}'s row)"


def text(rows: Sequence[Row]) -> str:
    """Table, who wins, what is missing."""
    columns = (
        *(
            "peer",
            "learners",
            "parameters",
            "blocks",
            "ours s",
            "theirs s",
            "they take",
            "wanted",
            "their setting",
        ),
        *("by themselves s", "our start-up s", "their start-up s"),
    )
    lines = []
    for row in filter(is_measured, rows):
        setting = " ".join(f"{name} {value:g}" for name, value in row["setting"].items()) + was_swept(row)
        startups = (spread(startups_s(row, whose)) for whose in ("ours", "theirs"))
        named = (row["peer"], row["num_learners"], size(row["num_parameters"]))
        lines.append(
            (*named, *columns_of(row), against_target(row, WANTED), setting, by_itself(row), *startups)
        )
    return TEXT.format(
        flower=", ".join(f"{one['cpus']:g}" for one in FLOWER.settings),
        flare=", ".join(f"{one['poll-s']:g}" for one in FLARE.settings),
        default=flare.DEFAULT_POLL_S,
        cpus=(FLOWER.defaults or {})["cpus"],
        table=table(columns, lines) if lines else "(nothing measured)",
        reached=verdict(
            f"our start-up within {WANTED_STARTUP_S:g} s (median)",
            [(_cell_of(row), _startup_s(row) < WANTED_STARTUP_S) for row in filter(is_measured, rows)],
        ),
        wins=" ".join(filter(None, (wins_of_peer(rows), better_alone(rows)))),
        gaps=gaps(rows),
    )


def plot(rows: Sequence[Row], path: Path) -> bool:
    """Bars for each cell, and for start-up."""
    groups: dict[str, dict[str, float]] = {}
    measured = [row for row in rows if is_measured(row)]
    for row in measured:
        group = groups.setdefault(cell_name((row["num_learners"], row["num_parameters"])), {})
        group.setdefault("broker_fl, embedded", ours_s(row))
        group[row["peer"]] = theirs_s(row)
    startups: dict[str, list[float]] = {}
    for row in measured:
        startups.setdefault("broker_fl, embedded", []).extend(startups_s(row, "ours"))
        startups.setdefault(row["peer"], []).extend(startups_s(row, "theirs"))
    if startups:
        groups["start-up"] = {name: statistics.median(found) for name, found in startups.items()}
    if groups:
        plot_bars(path, groups, "seconds")
    return bool(groups)


QUESTION = Question(
    name="simulators",
    title="Embedded rounds and start-up against simulators",
    place=20,
    share=3.0,
    keys={
        f"{one.peer.name}-{learners}x{parameters}": f"{one.peer.title} at {cell_name((learners, parameters))}"
        for one in (FLOWER, FLARE)
        for learners, parameters in CELLS
    },
    settings=(FLOWER.settings, FLARE.settings),
    run=run,
    text=text,
    plot=plot,
)
