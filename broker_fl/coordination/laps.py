"""Laps: how often each learner has delivered, so that nobody gets too far ahead of the slowest."""

from __future__ import annotations

from collections import Counter


class Laps:
    """The laps of those that take part; a change costs the number of different laps at most."""

    def __init__(self) -> None:
        self._lap: dict[str, int] = {}
        self._num_in = Counter[int]()
        """Learners by lap."""

    def enter(self, learner: str) -> None:
        """Who comes later begins with the slowest: nobody has to wait for it to catch up."""
        if learner not in self._lap:
            self._put(learner, self._slowest())

    def leave(self, learner: str) -> None:
        """Nobody waits for this learner."""
        lap = self._lap.pop(learner, None)
        if lap is not None:
            self._num_in[lap] -= 1
            if not self._num_in[lap]:
                del self._num_in[lap]

    def next(self, learner: str) -> None:
        """It has delivered."""
        if (lap := self._lap.get(learner)) is not None:
            self.leave(learner)
            self._put(learner, lap + 1)

    def lead(self, learner: str) -> int:
        """How much more often than the slowest it has delivered."""
        return self._lap.get(learner, 0) - self._slowest()

    def _put(self, learner: str, lap: int) -> None:
        self._lap[learner] = lap
        self._num_in[lap] += 1

    def _slowest(self) -> int:
        return min(self._num_in, default=0)
