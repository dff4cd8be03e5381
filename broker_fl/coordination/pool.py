"""The learners of a job without rounds: who takes part, who is free, who has to wait, who is left out."""

from __future__ import annotations

from collections.abc import Iterable

from broker_fl.coordination.bench import Bench
from broker_fl.coordination.laps import Laps
from broker_fl.coordination.state import JobState


class Pool:
    """A learner that takes part has a task, or is free, or is on the bench."""

    def __init__(self, state: JobState, max_lead: int | None) -> None:
        """``state`` goes on as the job does. ``max_lead``: how much more often than the slowest a learner may
        have delivered.
        """
        self._state = state
        self._max_lead = max_lead
        self.matching: set[str] = set()
        """Live learners that ``selector.where`` lets take part."""
        self.bench = Bench()
        self._free: dict[str, None] = {}
        """In the order in which they became free."""
        self._laps = Laps()

    @property
    def num_free(self) -> int:
        """How many may be given a task, or wait for the slowest."""
        return len(self._free)

    def first(self, room: int) -> list[str]:
        """Those that have been free longest, ``room`` of them at most."""
        chosen: list[str] = []
        for learner in self._free:
            if len(chosen) >= room:
                break
            if self._max_lead is None or self._laps.lead(learner) < self._max_lead:
                chosen.append(learner)
        if not chosen and not self._state.cohort.num_open:  # the slowest wait for the next version
            return list(self._free)[: max(0, room)]
        return chosen

    def enter(self, learner: str) -> None:
        """It takes part: others wait for it, if they are far ahead."""
        self._laps.enter(learner)

    def free(self, learner: str) -> None:
        """It may have a task, if it takes part, has none, and is not left out."""
        if learner in self.matching and learner not in self._state.cohort and learner not in self.bench:
            self._free.setdefault(learner, None)

    def busy(self, learner: str) -> None:
        """It has a task."""
        self._free.pop(learner, None)

    def delivered(self, learner: str) -> None:
        """Its update is in the sum of the next version."""
        self._laps.next(learner)

    def leave(self, learner: str) -> None:
        """It takes no part any more, or not for now: it gets no task, and nobody waits for it."""
        self._free.pop(learner, None)
        self._laps.leave(learner)

    def leave_out(self, learner: str, reason: str, *, until: int) -> None:
        """Put it on the bench, before the round ``until``."""
        self.bench.add(learner, reason, until=until)
        self._laps.leave(learner)

    def gone(self, learner: str) -> None:
        """It is not there any more."""
        self.matching.discard(learner)
        self.leave(learner)

    def waited_for(self) -> set[str]:
        """Who takes part and is not left out."""
        return self.matching.difference(self.bench)

    def let_in(self, learners: Iterable[str]) -> None:
        """These, and no others, are there and may take part."""
        self.matching = set(learners)
