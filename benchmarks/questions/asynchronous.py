"""How many versions a second an asynchronous job makes, and whether learners change that."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ours, processes
from benchmarks.cells import by_transport, keys
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
UPDATES_BYTES = 400_000_000
"""Of updates in one measurement; at least 40 updates."""

TEXT = """Every update makes a version (`fedasync`): it is received, checked, mixed in, stored durably with
the job's state and its events, and its learner is sent the new version. All learners work at once and do no
training, so the controller is never idle. Versions a second, over blocks of a tenth of all versions, the
first block left out: median (least to most).

{table}

{flatness}"""


def run(options: Options) -> Iterator[Row]:
    """Cell by cell, transport by transport."""

    def measure(transport: str, cell: Cell) -> dict[str, Any]:
        learners, parameters = cell
        versions = 20 if options.quick else max(40, min(400, UPDATES_BYTES // (4 * parameters)))
        run = _embedded if transport == "embedded" else _rabbitmq
        return ours.alone(run, learners, parameters, max(versions, 2 * learners))

    return by_transport(options, CELLS, QUICK, measure)


def _embedded(num_learners: int, num_parameters: int, versions: int) -> dict[str, Any]:
    processes.begin()
    learners = {f"learner-{i}": processes.AddConstant(i + 1) for i in range(num_learners)}
    with Federation(learners) as federation:
        return _versions_per_s(federation.driver, num_learners, num_parameters, versions)


def _rabbitmq(num_learners: int, num_parameters: int, versions: int) -> dict[str, Any]:
    with ours.over_servers(num_learners) as running:
        return {
            **_versions_per_s(running.driver, num_learners, num_parameters, versions),
            "peak_memory_bytes": running.stop(),
        }


def _versions_per_s(driver: Driver, num_learners: int, num_parameters: int, versions: int) -> dict[str, Any]:
    """Of each tenth of the job's versions but the first."""
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
    block = max(1, versions // 10)
    marks = times_s[block::block]
    return {"versions": versions, "per_s": [block / (after - before) for before, after in pairwise(marks)]}


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
        (few, before), (many, after) = min(points), max(points)
        if few != many:
            reached = "reached" if after / before >= WANTED_FLAT else "missed"
            found.append(
                f"- {transport}, {size(parameters)}: {many} learners make {times(after / before)} "
                f"the versions a second of {few}. Flat wanted (at least {WANTED_FLAT:g}×): {reached}."
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
