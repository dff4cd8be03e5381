"""Who may upload when: updates that together do not fit the budget are asked for a few at a time."""

from __future__ import annotations

from collections import OrderedDict


class Uploads:
    """Turns for uploading, of learners and of groups. With room for the whole cohort nobody has to ask;
    otherwise as many at a time as fit, at least one.
    """

    def __init__(self, update_bytes: int, budget_bytes: int) -> None:
        self._update_bytes = max(1, update_bytes)
        self._budget_bytes = budget_bytes
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._uploading: set[str] = set()
        self.on_request = False

    def open(self, cohort_size: int) -> None:
        """Begin a round; nobody waits any more."""
        self.on_request = self._update_bytes * cohort_size > self._budget_bytes
        self._waiting.clear()
        self._uploading.clear()

    def make_room_for(self, num_learners: int) -> None:
        """So many may come to upload at the same time, without a round that begins."""
        self.on_request = self.on_request or self._update_bytes * num_learners > self._budget_bytes

    def add(self, learner: str) -> list[str]:
        """A learner has something to upload; who shall begin now comes back."""
        if not self.on_request:
            return []
        if learner not in self._uploading:
            self._waiting[learner] = None
        return self._next()

    def release(self, learner: str) -> list[str]:
        """A learner's upload is done, or will never be; who shall begin now comes back."""
        self._uploading.discard(learner)
        self._waiting.pop(learner, None)
        return self._next()

    def is_waiting(self, learner: str) -> bool:
        """Whether its turn has not come yet."""
        return learner in self._waiting

    def _next(self) -> list[str]:
        room = max(1, self._budget_bytes // self._update_bytes)
        granted = []
        while self._waiting and len(self._uploading) < room:
            learner, _ = self._waiting.popitem(last=False)
            self._uploading.add(learner)
            granted.append(learner)
        return granted
