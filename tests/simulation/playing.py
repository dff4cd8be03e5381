"""A seed is played, or played again and told."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from broker_fl.coordination import signals as s
from broker_fl.coordination.job import Job as JobMachine
from tests.simulation.kernel import Violation
from tests.simulation.world import World

_MEMORY = re.compile(r"(, )?(peak_)?memory_bytes=\d+")
"""Of this process: not of the world, and never the same."""


@contextmanager
def observed(world: World) -> Iterator[None]:
    """Write signals, actions and what is logged into the history."""
    step, log = JobMachine.step, logging.getLogger("broker_fl")

    def noted(machine: JobMachine, signal: s.Signal, now: float) -> list[s.Action]:
        world.kernel.note("job", "signal", _brief(signal))
        actions = step(machine, signal, now)
        for action in actions:
            world.kernel.note("job", "action", _brief(action))
        return actions

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            world.kernel.note("log", record.levelname, record.getMessage())
            if record.exc_info and record.exc_info[1] is not None:
                world.kernel.note("log", "because", repr(record.exc_info[1]))

    handler = Handler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    JobMachine.step = noted  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        JobMachine.step = step  # type: ignore[method-assign]
        log.removeHandler(handler)
        log.setLevel(level)


@contextmanager
def unobserved() -> Iterator[None]:
    """Nothing is logged: it would take more time than what it is about."""
    log = logging.getLogger("broker_fl")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


def _brief(what: object) -> str:
    return _MEMORY.sub("", repr(what))[:300]


def play(seed: int) -> World:
    """Run a seed; raises what it finds."""
    with unobserved():
        world = World(seed)
        world.run()
    gc.collect(0)
    return world


def replay(seed: int) -> tuple[list[str], Violation | None]:
    """Run a seed again; its whole history, and what was found."""
    world = World(seed, keep_history=True)
    found = None
    with observed(world):
        try:
            world.run()
        except Violation as violation:
            found = violation
    return world.kernel.history or [], found
