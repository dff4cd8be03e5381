"""The bench: learners that failed too often, and when each is asked again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator


class Bench:
    """Who is left out, and why."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._ends: deque[tuple[int, str]] = deque()

    def __len__(self) -> int:
        return len(self._reasons)

    def __contains__(self, learner: object) -> bool:
        return learner in self._reasons

    def __iter__(self) -> Iterator[str]:
        return iter(self._reasons)

    def add(self, learner: str, reason: str, *, until: int) -> None:
        """Leave a learner out before the round ``until``, which is never less than of the one before."""
        self._reasons[learner] = reason
        self._ends.append((until, learner))

    def remove(self, learner: str) -> None:
        """It came anew."""
        self._reasons.pop(learner, None)

    def due(self, round: int) -> list[str]:
        """Those left out for long enough; they are taken off the bench."""
        back = []
        while self._ends and self._ends[0][0] <= round:
            _, learner = self._ends.popleft()
            if self._reasons.pop(learner, None) is not None:
                back.append(learner)
        return back

    def last(self) -> tuple[str, str]:
        """Who was put here last, and why; there is somebody."""
        return next(reversed(self._reasons.items()))
