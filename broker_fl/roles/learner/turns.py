"""Which of a host's waiting tasks is worked on next.

A learner works on one task at a time. Learners take turns; of a learner's own tasks, that of the job for
which it has worked least is next, so that jobs share a learner's time and not its number of tasks.
"""

from __future__ import annotations

from broker_fl.roles.learner.tasks import HeldTask

MAX_JOBS = 100
"""Of a learner whose time is remembered; the oldest are forgotten."""


class Turns:
    """Tasks that wait, by learner, in the order in which learners began to wait."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[HeldTask]] = {}
        self._busy: set[str] = set()
        self._worked: dict[str, dict[str, float]] = {}
        """Learner → job → seconds."""

    def add(self, task: HeldTask) -> None:
        """A task is whole, and may be worked on."""
        self._waiting.setdefault(task.learner, []).append(task)
        worked = self._worked.setdefault(task.learner, {})
        if (job := task.task.task.job) not in worked:  # one that comes later need not be caught up with
            worked[job] = min(worked.values(), default=0.0)
            while len(worked) > MAX_JOBS:
                del worked[next(iter(worked))]

    def next(self) -> HeldTask | None:
        """Take the next task, whose learner is busy until ``done``; None if no free learner has one."""
        learner = next((learner for learner in self._waiting if learner not in self._busy), None)
        if learner is None:
            return None
        tasks, worked = self._waiting.pop(learner), self._worked[learner]
        task = min(tasks, key=lambda one: worked.get(one.task.task.job, 0.0))
        tasks.remove(task)
        if tasks:
            self._waiting[learner] = tasks
        self._busy.add(learner)
        return task

    def done(self, task: HeldTask, seconds: float) -> None:
        """The learner is free again, after it has worked for so long."""
        self._busy.discard(task.learner)
        worked, job = self._worked[task.learner], task.task.task.job
        worked[job] = worked.get(job, 0.0) + seconds
