"""Virtual time: the clock, the dice, and what is still to happen.

Who is next, and when, follows from one seeded random generator. So a run is the same each time, to the last
message, and hours take milliseconds.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from greenlet import getcurrent, greenlet

if TYPE_CHECKING:
    from tests.simulation.processes import Process

Call = Callable[[], object]
MAX_SPINS = 1_000
_MASK = (1 << 64) - 1


class Violation(AssertionError):
    """What must never be has happened."""


class Died(BaseException):
    """The process was killed: raised in each of its threads, wherever that waits."""


class Kernel:
    """The clock, the dice, and what is still to happen."""

    def __init__(self, seed: int, *, keep_history: bool = False) -> None:
        self.now = 0.0
        self.draw = random.Random(seed)
        self.num_steps = 0
        self.num_spins = 0
        """How often in a row a thread did not wait."""
        self.trace = seed
        """A digest of all that has happened, and when."""
        self.history: list[str] | None = [] if keep_history else None
        self._heap: list[tuple[float, int, Call]] = []
        self._count = 0
        self._hub = getcurrent()
        self.violation: Violation | None = None
        self.processes: list[Process] = []

    def after(self, delay_s: float, call: Call) -> None:
        """Have something happen later, whoever is alive then."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, call))

    def unlucky(self, probability: float) -> bool:
        """Whether something that is this likely happens."""
        return probability > 0.0 and self.draw.random() < probability

    def note(self, who: str, what: str, *values: object) -> None:
        """Write a line of history."""
        if self.history is not None:
            told = " ".join(str(value) for value in values)
            self.history.append(f"{self.now:12.6f}  {who:<14} {what:<12} {told}")

    def run(self, until: Callable[[], bool], *, until_s: float, max_steps: int) -> None:
        """Let things happen until ``until``.

        Raises:
            Violation: time or steps ran out, or something happened that must not.
        """
        while not until():
            if not self._heap:
                raise Violation("nothing is left to happen: everybody waits for ever")
            self.now, number, call = heapq.heappop(self._heap)
            self.num_steps += 1
            self.trace = (self.trace * 1_000_003 ^ int(self.now * 1e9) ^ number) & _MASK
            if self.now > until_s or self.num_steps > max_steps:
                raise Violation(f"it is not over after {self.now:.0f} s and {self.num_steps} steps")
            call()
            if self.violation is not None:
                raise self.violation

    @contextmanager
    def watched(self) -> Iterator[None]:
        """What is found within ends the run, whatever the role does with the exception."""
        try:
            yield
        except Exception as error:
            self.violation = self.violation or _as_violation(error)
            raise

    def spin(self, who: str) -> None:
        """A thread has asked for what is not there, and does not wait for it."""
        self.num_spins += 1
        if self.num_spins > MAX_SPINS:
            self.violation = Violation(f"a thread of {who} goes round and round while no time passes")
            raise self.violation

    def check_not_hub(self) -> None:
        """Waiting is for threads of processes, not for sinks and callbacks of a transport."""
        if getcurrent() is self._hub:
            raise Violation("a sink or a callback of the transport waits")

    def on_hub(self) -> bool:
        return getcurrent() is self._hub

    @property
    def hub(self) -> greenlet:
        return self._hub

    def end(self) -> None:
        """Kill what still lives."""
        for process in self.processes:
            process.kill()
        self._heap.clear()


def _as_violation(error: Exception) -> Violation:
    if isinstance(error, Violation):
        return error
    violation = Violation(f"the simulation itself failed: {error!r}")
    violation.__cause__ = error
    return violation
