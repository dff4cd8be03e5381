"""The job that is measured, and its rounds as the events tell them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmarks.peers.rounds import check_weights, initial_weights
from broker_fl.model import Model
from broker_fl.roles.driver import Driver
from broker_fl.wire import events as e
from broker_fl.wire.job import JobSpec, Termination, Transfer
from broker_fl.wire.protocols import Synchronous

ENCODINGS = ("raw", "float16", "bfloat16")
"""That a job may be asked for with ``--encoding``; the others send changes."""
ENCODING_VARIABLE = "BROKER_FL_BENCH_ENCODING"
ROUNDING = 0.01
"""That a weight may be off for each round, as a part of it, in an encoding of two bytes."""


@dataclass(frozen=True, slots=True)
class Round:
    """Where one round's time went, in seconds from its start."""

    publish_s: float
    first_update_s: float
    last_update_s: float
    commit_s: float
    """From the last update to the version being stored."""
    total_s: float
    period_s: float
    """From the version before to this one: what is held against other systems."""


def spec(num_learners: int, num_rounds: int) -> JobSpec:
    """The job that is measured: nothing but its rounds is asked for."""
    return JobSpec(
        name="bench",
        protocol=Synchronous(min_learners=num_learners),
        termination=Termination(rounds=num_rounds),
        transfer=Transfer(encoding=encoding()),
        evaluate=False,
    )


def encoding() -> str:
    """In which models travel, in this run."""
    return os.environ.get(ENCODING_VARIABLE, ENCODINGS[0])


def run_job(driver: Driver, num_learners: int, num_parameters: int, rounds: int) -> list[e.Event]:
    """Run a job of ``rounds`` counted rounds and one before; its events come back, its model is checked."""
    job = driver.submit(spec(num_learners, rounds + 1), Model.of(initial_weights(num_parameters)))
    events = list(job.events())
    rounding = 0.0 if encoding() == ENCODINGS[0] else ROUNDING * (rounds + 1)
    check_weights(dict(job.model()), num_learners, rounds + 1, rounding=rounding)
    return events


def read_rounds(events: Iterable[e.Event]) -> Iterator[Round]:
    """Phases of each counted round, the first left out; times are when the controller noted the event."""
    started = sent = first = last = before = 0.0
    for event in events:
        match event:
            case e.RoundStarted():
                started, first = event.time_s, 0.0
            case e.TaskSent():
                sent = event.time_s
            case e.UpdateFolded():
                first, last = first or event.time_s, event.time_s
            case e.VersionCommitted():
                at = event.time_s
                if before:
                    yield Round(
                        publish_s=sent - started,
                        first_update_s=first - started,
                        last_update_s=last - started,
                        commit_s=at - last,
                        total_s=at - started,
                        period_s=at - before,
                    )
                before = at
