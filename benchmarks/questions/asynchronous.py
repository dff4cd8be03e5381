"""How many versions a second an asynchronous job makes, and whether learners change that."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ours, processes
from benchmarks.cells import if_it_fits, keys, named
from benchmarks.peers.rounds import initial_weights
from benchmarks.questions import Cell, Options, Question, Row
from benchmarks.tables import plot_lines, size, table, times
from broker_fl import JobSpec
from broker_fl.model import Model
from broker_fl.roles.driver import Driver
from broker_fl.simulation import Federation
from broker_fl.wire.events import VersionCommitted
from broker_fl.wire.job import Termination
from broker_fl.wire.protocols import Asynchronous
from broker_fl.wire.rules import FedAsync

CELLS: tuple[Cell, ...] = tuple(
    (learners, parameters) for parameters in (100_000, 1_000_000) for learners in (2, 10, 50, 200)
)
QUICK: Cell = (3, 10_000)
WANTED_FLAT = 0.9
"""Of the versions a second with few learners, that many make at least: that is called flat here."""
VERSIONS = {"embedded": 200_000_000, "rabbitmq": 80_000_000}
"""In one measurement, times the parameters of each: so that both sizes take seconds."""
BLOCKS = 10

TEXT = """Every update makes a version (`fedasync`): it is received, checked, mixed in, stored durably with
the job's state and its events, and its learner is sent the new version. All learners work at once and do no
training, so the controller is never idle. Versions a second, over ten blocks of each repetition, once as many
versions were made as there are learners: median (least to most).

{table}

{flatness}"""


def run(options: Options) -> Iterator[Row]:
    """Those of one transport and size take turns, each repetition the other way round."""
    cells = options.cells_of(CELLS, QUICK)
    for transport in options.transports:
        for parameters in dict.fromkeys(parameters for _, parameters in cells):
            of_size = [cell for cell in cells if cell[1] == parameters]
            yield from _in_turns(options, transport, of_size)


def _in_turns(options: Options, transport: str, cells: Sequence[Cell]) -> Iterator[Row]:
    """The rows of these cells, anew with each repetition."""
    run = _embedded if transport == "embedded" else _rabbitmq
    repetitions = 1 if options.quick else options.repetitions
    found: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in cells}
    for repetition in range(repetitions):
        for cell in cells if repetition % 2 == 0 else reversed(cells):
            if options.is_over:
                return
            counted = BLOCKS if options.quick else max(4 * BLOCKS, VERSIONS[transport] // cell[1])
            found[cell].append(if_it_fits(ours.needed_bytes(*cell), ours.alone, run, *cell, counted))
            yield named(cell, transport) | _joined(found[cell])


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the repetitions found; the first that has no figures is for all."""
    for part in parts:
        if "per_s" not in part:
            return dict(part)
    return {
        **parts[0],
        "repetitions": len(parts),
        "busy_share": max(part["busy_share"] for part in parts),
        "per_s": [per_s for part in parts for per_s in part["per_s"]],
    }


def _embedded(num_learners: int, num_parameters: int, counted: int) -> dict[str, Any]:
    processes.begin()
    learners = {f"learner-{i}": processes.AddConstant(i + 1) for i in range(num_learners)}
    with Federation(learners) as federation:
        return _versions_per_s(federation.driver, num_learners, num_parameters, counted)


def _rabbitmq(num_learners: int, num_parameters: int, counted: int) -> dict[str, Any]:
    with ours.over_servers(num_learners) as running:
        return _versions_per_s(running.driver, num_learners, num_parameters, counted)


def _versions_per_s(driver: Driver, num_learners: int, num_parameters: int, counted: int) -> dict[str, Any]:
    """Of each block of those that are counted, after one for each learner."""
    versions = num_learners + counted
    spec = JobSpec(
        protocol=Asynchronous(min_learners=num_learners),
        rule=FedAsync(),
        termination=Termination(versions=versions),
        evaluate=False,
    )
    job = driver.submit(spec, Model.of(initial_weights(num_parameters)))
    times_s = [event.time_s for event in job.events() if isinstance(event, VersionCommitted)]
    weights = next(iter(job.model().values()))
    if len(times_s) != versions or not np.isfinite(weights).all():
        raise AssertionError(f"{len(times_s)} versions of {versions}, or weights that are not finite")
    return {"versions": versions, "per_s": per_second(times_s, num_learners, counted // BLOCKS)}


def per_second(times_s: Sequence[float], num_learners: int, block: int) -> list[float]:
    """Versions a second, block by block, once as many were made as there are learners."""
    marks = times_s[num_learners - 1 :: block]
    return [block / (after - before) for before, after in pairwise(marks)]


def text(rows: Sequence[Row]) -> str:
    """One table."""
    columns = ("transport", "parameters", "learners", "versions a second")
    lines = [
        (row["transport"], size(row["num_parameters"]), row["num_learners"], _per_s(row))
        for row in sorted(
            rows, key=lambda row: (row["transport"], row["num_parameters"], row["num_learners"])
        )
    ]
    return TEXT.format(table=table(columns, lines), flatness=_flatness(rows))


def _flatness(rows: Sequence[Row]) -> str:
    """What more learners change, by transport and size."""
    groups: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for row in rows:
        if "per_s" in row:
            point = row["num_learners"], statistics.median(row["per_s"])
            groups.setdefault((row["transport"], row["num_parameters"]), []).append(point)
    found = []
    for (transport, parameters), points in sorted(groups.items()):
        (few, before), *more = sorted(points)
        if more:
            least, many = min((per_s, number) for number, per_s in more)
            reached = "reached" if least / before >= WANTED_FLAT else "missed"
            found.append(
                f"- {transport}, {size(parameters)}: against {few} learners, fewest versions a second are "
                f"{times(least / before)} as many, with {many}; with {more[-1][0]} learners "
                f"{times(more[-1][1] / before)}. Flat wanted (at least {WANTED_FLAT:g}×): {reached}."
            )
    return "\n".join(found)


def _per_s(row: Row) -> str:
    if "left_out" in row:
        return str(row["left_out"])
    values = row["per_s"]
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def plot(rows: Sequence[Row], path: Path) -> bool:
    """Versions a second against learners."""
    measured = [row for row in rows if "per_s" in row]
    panels: dict[str, tuple[dict[str, list[tuple[float, float]]], dict[str, Any]]] = {}
    for row in measured:
        ours_of, _ = panels.setdefault(row["transport"], ({}, {}))
        point = float(row["num_learners"]), statistics.median(row["per_s"])
        ours_of.setdefault(f"{size(row['num_parameters'])} parameters", []).append(point)
    if not measured:
        return False
    plot_lines(path, panels, ("learners", "versions a second"))
    return True


QUESTION = Question(
    name="asynchronous",
    title="Asynchronous throughput",
    place=70,
    run=run,
    keys=keys(CELLS, ("embedded", "rabbitmq")),
    text=text,
    plot=plot,
)
