"""A learner that computes as fast as its simulated machine does, and whose trainings fail now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from broker_fl.errors import BrokerFLError, SettingError
from broker_fl.interfaces import Learner, Metrics, Parameters, TaskContext, Update
from broker_fl.model import Arrays
from broker_fl.world import Profile, World

SLICE_S = 0.02
"""How long a slow learner pauses before it looks again whether its task is still wanted."""

R = TypeVar("R")


class SimulatedFailure(BrokerFLError):
    """A training that was to fail; its place in the code is of no interest."""


class Lock(Protocol):
    """``threading.Lock`` or ``threading.Semaphore``."""

    def acquire(self, blocking: bool = True, timeout: float = ...) -> bool:
        """Take it; False if that takes longer than ``timeout``."""
        ...

    def release(self) -> None:
        """Give it back."""
        ...


class SimulatedLearner:
    """Stretches the time that ``learner`` takes to what ``profile`` and ``world`` say.

    Of all simulated learners only as many compute at a time as ``slots`` allows; those that pause leave
    theirs to others, as if each had a machine of its own.
    """

    def __init__(self, learner: Learner, profile: Profile, world: World, slots: threading.Semaphore) -> None:
        self._learner = learner
        self._profile = profile
        self._world = world
        self._slots = slots
        self._alone = threading.Lock()  # one that came back may find that its former life still computes
        self._chance = world.rng(f"failures of {profile.learner}")
        self.is_killed: Callable[[int], bool] = lambda _: False
        """Asked with the round of each task as work on it begins."""

    def train(self, model: Arrays, task: TaskContext) -> Update:
        """Train, then pause for what a training of so many steps takes on the simulated machine.

        Raises:
            SimulatedFailure: this training is to fail.
            SettingError: the world says how long a step takes, and the learner does not count its steps.
        """
        self._begin(task)
        if self._chance.random() < self._profile.fail_probability:
            raise SimulatedFailure("the simulation has this training fail")
        declared = self._world.step_s is not None
        pace = Pace(task, self._profile.speed, self._slots, is_declared=declared)
        return pace.run(lambda: self._learner.train(model, pace), self._train_s, self._alone)

    def evaluate(self, model: Arrays, task: TaskContext) -> Metrics:
        """Evaluate, then pause for what that takes on the simulated machine."""
        self._begin(task)
        declared = self._world.evaluate_s is not None
        pace = Pace(task, self._profile.speed, self._slots, is_declared=declared)
        return pace.run(
            lambda: self._learner.evaluate(model, pace), lambda _: self._world.evaluate_s, self._alone
        )

    def _begin(self, task: TaskContext) -> None:
        task.progress(0.0)  # a former life has nothing more to do
        is_killed = self.is_killed(task.round)
        while is_killed:
            time.sleep(SLICE_S)
            task.progress(0.0)  # raises as soon as its host is gone

    def _train_s(self, update: Update) -> float | None:
        """How long training takes at speed 1; None where that is what it took here."""
        if self._world.step_s is None or not isinstance(update, Update):  # which is refused where it is sent
            return None
        if update.num_steps < 1:
            raise SettingError(
                f"simulation.step_s needs learners that count their steps; the update of "
                f"{self._profile.learner} says num_steps = {update.num_steps}"
            )
        return update.num_steps * self._world.step_s


class Pace:
    """The ``TaskContext`` of one training or evaluation, which may take longer than it does here.

    What computing takes is either declared when it is done, or is the time measured here; divided by the
    speed, it is how long it takes all in all, with whatever waiting there was.
    """

    def __init__(self, task: TaskContext, speed: float, slots: Lock, *, is_declared: bool) -> None:
        self._task = task
        self._speed = speed
        self._slots = slots
        self._is_declared = is_declared
        self._has_slot = False
        self._began = self._working_since = 0.0
        self._busy_s = 0.0

    def __getattr__(self, name: str) -> Any:
        """Whatever else a task tells."""
        return getattr(self._task, name)

    @property
    def job(self) -> str:
        return self._task.job

    @property
    def round(self) -> int:
        return self._task.round

    @property
    def learner(self) -> str:
        return self._task.learner

    @property
    def parameters(self) -> Parameters:
        return self._task.parameters

    def progress(self, fraction: float) -> None:
        """See ``TaskContext``. Pauses for what the work since the last call takes longer than here.

        Where the cost is declared there is nothing to go by before the end: only then does progress show.
        """
        if self._is_declared:
            self._task.progress(0.0)
            return
        self._task.progress(fraction)
        self._stop_work()
        self._pause(self._busy_s / self._speed, lambda _: fraction)
        self._start_work()

    def run(self, compute: Callable[[], R], cost_s: Callable[[R], float | None], alone: Lock) -> R:
        """Compute, with ``alone`` in hand, and pause; ``cost_s`` says what it takes at speed 1, if not what
        it took here.
        """
        self._take(alone)
        try:
            self._began = time.monotonic()
            self._start_work()
            result = compute()
        finally:
            self._stop_work()
            alone.release()
        cost = cost_s(result)
        self._pause((self._busy_s if cost is None else cost) / self._speed, lambda done: done)
        return result

    def _start_work(self) -> None:
        self._take(self._slots)
        self._has_slot = True
        self._working_since = time.monotonic()

    def _stop_work(self) -> None:
        if self._has_slot:
            self._has_slot = False
            self._busy_s += time.monotonic() - self._working_since
            self._slots.release()

    def _take(self, lock: Lock) -> None:
        while not lock.acquire(timeout=SLICE_S):
            self._task.progress(0.0)

    def _pause(self, total_s: float, fraction: Callable[[float], float]) -> None:
        """Until ``total_s`` after the beginning, or until the task is no longer wanted."""
        while (left_s := self._began + total_s - time.monotonic()) > 0:
            time.sleep(min(left_s, SLICE_S))
            self._task.progress(fraction(1.0 - max(0.0, left_s) / total_s))
