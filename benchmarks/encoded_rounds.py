"""Rounds of jobs that differ in their encoding alone, which take turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks import ours, processes
from benchmarks.jobs import read_rounds, spec
from benchmarks.peers.rounds import check_weights, constant_of, initial_weights
from benchmarks.questions import Cell
from broker_fl import Model, connect
from broker_fl.roles.driver import Driver
from broker_fl.simulation import Federation
from broker_fl.wire.job import Transfer

Transfers = Mapping[str, Mapping[str, str]]
"""A job's settings of ``transfer`` by the name of the encoding."""


def alternating(
    transport: str, cell: Cell, transfers: Transfers, rounds: int, repetitions: int
) -> dict[str, Any]:
    """Seconds of each round by encoding, ``round_s``; each repetition is a process of its own, and begins
    with another encoding.
    """
    titles = list(transfers)
    found: dict[str, list[float]] = {title: [] for title in titles}
    for repetition in range(repetitions):
        first = (1 + repetition * max(1, len(titles) // repetitions)) % len(titles)
        order = [(title, transfers[title]) for title in (*titles[first:], *titles[:first])]
        for title, round_s in ours.alone(measure, transport, cell, order, rounds).items():
            found[title] += round_s
    return {"round_s": found}


def measure(
    transport: str, cell: Cell, order: Sequence[tuple[str, Mapping[str, str]]], rounds: int
) -> dict[str, Any]:
    """One job after the other in one federation: seconds of its rounds without the first, by encoding."""
    processes.begin()
    with federation(transport, cell[0]) as driver:
        return {title: _rounds(driver, transfer, cell, rounds) for title, transfer in order}


@contextmanager
def federation(transport: str, num_learners: int) -> Iterator[Driver]:
    """Learners that do not train, and a driver."""
    if transport == "embedded":
        learners = {
            f"learner-{index}": processes.AddConstant(constant_of(index)) for index in range(num_learners)
        }
        with Federation(learners) as running:
            yield running.driver
        return
    with ExitStack() as stack:
        nodes = stack.enter_context(ours.servers())
        broker, store = nodes["rabbitmq"].url, nodes["redis"].url
        stack.enter_context(processes.controller(broker, store, "bench"))
        share = -(-num_learners // ours.LEARNER_PROCESSES)
        for first in range(0, num_learners, share):
            count = min(share, num_learners - first)
            stack.enter_context(processes.learners(broker, "bench", first, count))
        yield stack.enter_context(connect(broker, "bench", timeout_s=ours.DRIVER_TIMEOUT_S))


def _rounds(driver: Driver, transfer: Mapping[str, str], cell: Cell, count: int) -> list[float]:
    settings = spec(cell[0], count + 1).model_copy(update={"transfer": Transfer.model_validate(transfer)})
    job = driver.submit(settings, Model.of(initial_weights(cell[1])))
    if (end := job.wait()).state != "done":
        raise RuntimeError(f"{dict(transfer)}: the job {end.state}: {end.reason}")
    if not transfer:  # the others are not exact
        check_weights(dict(job.model()), cell[0], count + 1)
    return [one.period_s for one in read_rounds(job.events(follow=False))]
