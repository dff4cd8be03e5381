"""Many seeds, on all processors."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.simulation.playing import play


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a seed."""

    seed: int
    outcomes: tuple[str, ...] = ()
    """How its jobs ended."""
    num_steps: int = 0
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    violation: str = ""


def played(seed: int) -> Played:
    """Play one."""
    began = time.process_time()
    try:
        world = play(seed)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was looked for
        return Played(seed, violation=f"{type(error).__name__}: {error}")
    took_s = time.process_time() - began
    return Played(seed, tuple(world.outcomes), world.kernel.num_steps, world.kernel.now, took_s)


def play_many(seeds: Iterable[int], *, processes: int | None = None) -> Iterator[Played]:
    """Play them; what came of them, in their order."""
    context = multiprocessing.get_context("spawn")  # greenlets and SQLite are no friends of a fork
    with context.Pool(processes or os.cpu_count(), _end_at_sigterm) as pool:
        yield from pool.imap(played, seeds, chunksize=10)
        pool.close()
        pool.join()


def _end_at_sigterm() -> None:
    """At once: who asks for no more seeds would wait for ever for a process that coverage's handler holds."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
