"""A federation without threads, sockets or clocks: one controller and its learners over a network that loses,
doubles, delays and reorders, and processes that die at any step. All of it follows from a seed.

The controller of this world performs what ``coordination.job`` decides, as ``roles/controller/job`` does, and
checks at every step what must never happen. ``World(...).run()`` ends when the job has ended.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from broker_fl.wire.events import Event
from broker_fl.wire.job import JobSpec
from tests.unit.coordination.actors import Crash, SimController
from tests.unit.coordination.group_actors import SimGroup
from tests.unit.coordination.learner_actors import SimLearner

JOB = "job-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How likely each thing goes wrong, until ``until_s``; then all are there and nothing is lost."""

    lose: float = 0.0
    double: float = 0.0
    delay_s: float = 0.01
    fail: float = 0.0
    """Of a training."""
    refuse: float = 0.0
    """Of an update: not usable."""
    learner_crash: float = 0.0
    """For each message that a learner takes."""
    learner_leave: float = 0.0
    """For each heartbeat of a learner."""
    controller_crash: float = 0.0
    """For each action that the controller performs."""
    down_s: float = 30.0
    """How long who went away stays away, at most."""
    until_s: float = 300.0


@dataclass(slots=True)
class Disk:
    """What survives the controller: a store."""

    state: bytes = b""
    version: int = 0
    epoch: int = 0
    events: list[Event] = field(default_factory=list)
    contributions: dict[int, dict[str, int]] = field(default_factory=dict)
    """Committed version → learner → number of the training that its update came from."""
    updates: dict[str, int] = field(default_factory=dict)
    """Name of a stored update → number of its training (``roles/controller/job/updates.py``)."""


class World:
    """Everything that happens, in the order of its time."""

    def __init__(
        self,
        spec: JobSpec,
        *,
        seed: int,
        num_learners: int = 5,
        group_sizes: tuple[int, ...] = (),
        faults: Faults | None = None,
    ) -> None:
        self.spec = spec
        self.draw = random.Random(seed)
        self.faults = faults or Faults()
        self.now = 0.0
        self.heartbeat_s = 5.0
        self.num_signals = 0
        self.disk = Disk()
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self.trainings = itertools.count()
        self.controller: SimController | None = None
        self.learners: dict[str, SimLearner | SimGroup] = {
            f"l{index:02}": SimLearner(self, f"l{index:02}") for index in range(num_learners)
        }
        for index, size in enumerate(group_sizes):
            self.learners[f"g{index}"] = SimGroup(self, f"g{index}", size)

    # ------------------------------------------------------------ time and chance

    def at(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        """Have something happen later."""
        heapq.heappush(self._due, (self.now + delay_s, next(self._order), call, args))

    def unlucky(self, probability: float) -> bool:
        """Whether something that is this likely happens; nothing does once faults have ended."""
        return probability > 0 and self.now < self.faults.until_s and self.draw.random() < probability

    def downtime_s(self) -> float:
        """How long somebody stays away."""
        return self.draw.uniform(0.1, self.faults.down_s)

    # ------------------------------------------------------------ network

    def send(self, take: Callable[..., None], *args: Any) -> None:
        """Deliver a message: once, if all goes well."""
        if self.unlucky(self.faults.lose):
            return
        for _ in range(2 if self.unlucky(self.faults.double) else 1):
            slow = self.faults.delay_s if self.now < self.faults.until_s else 0.01
            self.at(self.draw.uniform(0.0, slow), take, *args)

    def to_learner(self, learner: str, message: Any) -> None:
        """Put a message into a mailbox."""
        if (there := self.learners.get(learner)) is not None:
            self.send(there.take, message)

    def to_controller(self, message: Any, inbox: int | None = None) -> None:
        """Report something; what goes to the inbox of an earlier controller is read by nobody."""
        self.send(self._to_controller, message, inbox)

    def _to_controller(self, message: Any, inbox: int | None) -> None:
        if self.controller is not None and inbox in (None, self.controller.epoch):
            self._guarded(self.controller.take, message)

    # ------------------------------------------------------------ the controller's life

    def _start_controller(self) -> None:
        self.disk.epoch += 1
        self.controller = SimController(self, self.disk)
        self._guarded(self.controller.begin)
        self.at(self.heartbeat_s, self._tick, self.disk.epoch)

    def _guarded(self, call: Callable[..., None], *args: Any) -> None:
        """Call the controller; it may die of it at any step."""
        try:
            call(*args)
            if self.controller is not None:
                self.controller.flush()
        except Crash:
            self.controller = None
            self.at(self.downtime_s(), self._start_controller)
            return
        self._wake()

    def _wake(self) -> None:
        """See to it that the job is told the time when it wants to be."""
        timer = self.controller.next_timer() if self.controller else None
        if timer is not None and self.controller is not None:
            self.at(max(0.0, timer - self.now), self._ring, self.controller.epoch)

    def _ring(self, epoch: int) -> None:
        if self.controller is not None and self.controller.epoch == epoch:
            timer = self.controller.next_timer()
            if timer is not None and timer <= self.now:
                self._guarded(self.controller.tell_time)

    def _tick(self, epoch: int) -> None:
        if self.controller is None or self.controller.epoch != epoch:
            return
        self._guarded(self.controller.tick)
        self.at(self.heartbeat_s, self._tick, epoch)

    # ------------------------------------------------------------ all of it

    def run(self, *, until_s: float = 20_000.0, max_steps: int = 2_000_000) -> Disk:
        """Let it happen until the job has ended.

        Raises:
            AssertionError: something happened that must not, or the job did not end in time.
        """
        self.at(0.0, self._start_controller)
        for learner in self.learners.values():
            self.at(self.draw.uniform(0.0, 3.0), learner.start)
        for _ in range(max_steps):
            if self.ended or not self._due:
                break
            self.now, _, call, args = heapq.heappop(self._due)
            assert self.now < until_s, f"the job has not ended after {until_s:g} s: {self.describe()}"
            call(*args)
        assert self.ended, f"the job has not ended after {max_steps} steps: {self.describe()}"
        return self.disk

    @property
    def ended(self) -> bool:
        """Whether the job has."""
        return self.controller is not None and self.controller.ended

    def describe(self) -> str:
        """For a failed test."""
        last = ", ".join(event.KIND for event in self.disk.events[-8:])
        doing = self.controller.describe() if self.controller else "no controller"
        return f"t={self.now:.1f} version={self.disk.version} {doing} … {last}"
