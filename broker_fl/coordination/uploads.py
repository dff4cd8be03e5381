"""Who may upload when: updates that together do not fit the budget are asked for a few at a time."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from statistics import median

SLOWEST_BYTES_PER_S = 1 << 20
"""An upload that is slower has to let others go first."""
LEAST_S = 20.0
"""A turn is never shorter: four heartbeats, for what waits in the broker before it."""
TIMES_THE_OTHERS = 4.0
"""A turn may take so many times what others took."""
MAX_DOUBLINGS = 5
"""Of the time of a learner that was passed over before."""
NUM_TIMES = 15
"""Uploads by which the next is judged."""


class Uploads:
    """Turns for uploading, of learners and of groups. With room for the whole cohort nobody has to ask;
    otherwise as many at a time as fit, at least one.

    A turn ends: after a multiple of what other uploads took, or, while none is known, of what a slow line
    needs; and with half of the time that there is until the deadline. Whoever is not done then goes to the
    end of those who wait, and keeps what has arrived, while there is room for it
    (``roles/controller/job/halves.py``). While nobody waits, all may go on.
    """

    def __init__(self, update_bytes: int, budget_bytes: int) -> None:
        self._update_bytes = max(1, update_bytes)
        self._budget_bytes = budget_bytes
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._uploading: dict[str, tuple[float, float]] = {}
        """Since when, and until when at most."""
        self._first_due = math.inf
        """No turn ends earlier."""
        self._passed_over: Counter[str] = Counter()
        """How often the turns of those who have not delivered yet have ended."""
        self._held_up: set[str] = set()
        """Those of them who had to wait for others."""
        self._took: deque[float] = deque(maxlen=NUM_TIMES)
        self.on_request = False

    def open(self, cohort_size: int) -> None:
        """Begin a round; nobody waits any more."""
        self.on_request = self._update_bytes * cohort_size > self._budget_bytes
        for of_round in (self._waiting, self._uploading, self._passed_over, self._held_up):
            of_round.clear()
        self._first_due = math.inf

    def make_room_for(self, num_learners: int) -> None:
        """So many may come to upload at the same time, without a round that begins."""
        self.on_request = self.on_request or self._update_bytes * num_learners > self._budget_bytes

    def add(self, learner: str, now: float = 0.0, deadline_at: float | None = None) -> list[str]:
        """A learner has something to upload, which counts until ``deadline_at``; who shall begin now comes
        back.
        """
        if not self.on_request:
            return []
        if learner not in self._uploading:
            self._waiting[learner] = None
        granted = self._next(now, deadline_at)
        self._held_up.update({learner} & self._waiting.keys())
        return granted

    def release(self, learner: str, now: float = 0.0, deadline_at: float | None = None) -> list[str]:
        """A learner's upload will never be; who shall begin now comes back."""
        self._uploading.pop(learner, None)
        self._waiting.pop(learner, None)
        self._passed_over.pop(learner, None)
        self._held_up.discard(learner)
        return self._next(now, deadline_at)

    def delivered(self, learner: str, now: float, deadline_at: float | None = None) -> list[str]:
        """A learner's upload is done; who shall begin now comes back."""
        since, _ = self._uploading.get(learner, (None, None))
        if since is not None:
            self._took.append(now - since)
        return self.release(learner, now, deadline_at)

    def pass_on(self, learner: str, now: float, deadline_at: float | None = None) -> list[str]:
        """A learner's turn ends, and it is the last of those who wait; who shall begin now comes back."""
        if self._uploading.pop(learner, None) is not None:
            self._passed_over[learner] += 1
        self._waiting.setdefault(learner)
        granted = self._next(now, deadline_at)
        self._held_up.update({learner} & self._waiting.keys())
        return granted

    def pass_on_overdue(self, now: float, deadline_at: float | None = None) -> list[str]:
        """End the turns whose time is over, if somebody waits; who shall begin now comes back."""
        if now < self._first_due or not self._waiting:
            return []
        overdue = [learner for learner, (_, until) in self._uploading.items() if now >= until]
        overdue = overdue[: len(self._waiting)]
        self._first_due = min((until for _, until in self._uploading.values()), default=math.inf)
        return [one for learner in overdue for one in self.pass_on(learner, now, deadline_at)]

    def is_waiting(self, learner: str) -> bool:
        """Whether its turn has not come yet."""
        return learner in self._waiting

    def has_turn(self, learner: str) -> bool:
        """Whether it may upload now."""
        return not self.on_request or learner in self._uploading

    def is_in_the_way(self, learner: str) -> bool:
        """Whether others wait for the end of its turn."""
        return learner in self._uploading and bool(self._waiting)

    def is_held_up(self, learner: str) -> bool:
        """Whether it is others for whom its update is not there: it has waited for its turn, and has not let
        one pass by.
        """
        return learner in self._held_up and not self._passed_over[learner]

    def _next(self, now: float, deadline_at: float | None) -> list[str]:
        room = max(1, self._budget_bytes // self._update_bytes)
        granted = []
        while self._waiting and len(self._uploading) < room:
            learner, _ = self._waiting.popitem(last=False)
            until = now + self._limit_s(learner, None if deadline_at is None else deadline_at - now)
            self._uploading[learner] = now, until
            self._first_due = min(self._first_due, until)
            granted.append(learner)
        return granted

    def _limit_s(self, learner: str, left_s: float | None) -> float:
        """How long a turn that begins now may take while others wait."""
        took = TIMES_THE_OTHERS * median(self._took) if self._took else 0.0
        limit_s = took or self._update_bytes / SLOWEST_BYTES_PER_S
        limit_s = max(LEAST_S, limit_s) * 2.0 ** min(self._passed_over[learner], MAX_DOUBLINGS)
        return limit_s if left_s is None else min(limit_s, max(left_s / 2, 0.0))
