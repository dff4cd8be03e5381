"""A round's cohort: who has which task, how far each is, and whether that is a quorum."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from broker_fl.coordination.shares import Share
from broker_fl.wire.messages import Result

Workload = dict[str, int]
"""Task parameters that say how much to train: ``steps`` or ``epochs``."""


class Status(StrEnum):
    """How far a member of the cohort is."""

    SENT = "sent"
    ACCEPTED = "accepted"
    FINISHED = "finished"
    """Its result is there, its update is not."""
    DELIVERED = "delivered"
    """All that was asked for is there, and counts."""
    FAILED = "failed"
    REFUSED = "refused"
    LATE = "late"
    LOST = "lost"
    REPLACED = "replaced"
    """Did not deliver; somebody else was asked in its place."""


OPEN = frozenset({Status.SENT, Status.ACCEPTED, Status.FINISHED})
_NOT_COUNTED = (Status.LOST, Status.REPLACED)


@dataclass(slots=True)
class Assignment:
    """One member's part in the round; ``changed_at`` is when it last moved, or was last reminded."""

    status: Status
    changed_at: float
    attempt: int = 0
    round: int = 0
    sent_at: float = 0.0
    workload: Workload = field(default_factory=dict)
    """Task parameters that pacing has set for this member."""
    weight: float = 0.0
    """Of its update in the sum."""
    reminders: int = 0
    received: float = 0.0
    """How much of the model it had, 0 to 1, when it was last heard to be receiving."""
    reason: str = ""
    group: str | None = None
    """Through which the member is reached; None if it has a mailbox of its own."""
    result: Result | None = None
    """Of a member of a group it is in the cohort's ``shares``."""


@dataclass(slots=True)
class GroupPart:
    """What a round remembers of a group for its reminders, as ``Assignment`` does of a learner."""

    changed_at: float
    reminders: int = 0
    received: float = 0.0


class Cohort:
    """The members of one round by learner id; counts by status are kept, so that every question is O(1)."""

    def __init__(self, assignments: dict[str, Assignment] | None = None) -> None:
        self._assignments = assignments or {}
        self._counts = Counter(assignment.status for assignment in self._assignments.values())
        self.shares: dict[tuple[str, str], Share] = {}
        """Results of groups, by group and the id that it drew (``Share.key``)."""
        self.groups: dict[str, GroupPart] = {}
        """Groups of which there are members."""

    def __len__(self) -> int:
        return len(self._assignments)

    def __contains__(self, learner: object) -> bool:
        return learner in self._assignments

    def __iter__(self) -> Iterator[str]:
        return iter(self._assignments)

    def get(self, learner: str) -> Assignment | None:
        """The member's part; None for one that is not a member."""
        return self._assignments.get(learner)

    def values(self) -> Iterable[Assignment]:
        """The parts of all members."""
        return self._assignments.values()

    def items(self) -> Iterable[tuple[str, Assignment]]:
        """Members and their parts."""
        return self._assignments.items()

    def assign(
        self,
        learner: str,
        now: float,
        *,
        round: int,
        attempt: int = 0,
        workload: Workload | None = None,
        group: str | None = None,
    ) -> Assignment:
        """Give a learner the task, for the first time or again."""
        self.remove(learner)
        part = Assignment(Status.SENT, now, attempt, round, sent_at=now, workload=workload or {}, group=group)
        if group is not None:
            self.groups[group] = GroupPart(now)
        self._assignments[learner] = part
        self._counts[Status.SENT] += 1
        return part

    def remove(self, learner: str) -> Assignment | None:
        """Forget a member; what was its part comes back."""
        part = self._assignments.pop(learner, None)
        if part is not None:
            self._counts[part.status] -= 1
        return part

    def move(self, learner: str, status: Status, now: float, reason: str = "") -> None:
        """Note a member's new status."""
        assignment = self._assignments[learner]
        self._counts[assignment.status] -= 1
        self._counts[status] += 1
        assignment.status, assignment.changed_at, assignment.reason = status, now, reason

    def move_all(self, learners: Iterable[str], status: Status, now: float, reason: str = "") -> None:
        """Note the new status of several members."""
        for learner in learners:
            self.move(learner, status, now, reason)

    def with_status(self, *statuses: Status) -> list[str]:
        """Members with one of these statuses, sorted."""
        return sorted(learner for learner, part in self._assignments.items() if part.status in statuses)

    def count(self, status: Status) -> int:
        """How many members have this status."""
        return self._counts[status]

    @property
    def num_open(self) -> int:
        """Members from whom something may still come."""
        return sum(self._counts[status] for status in OPEN)

    @property
    def num_taking_part(self) -> int:
        """Members that have delivered, or may still."""
        return self.num_open + self._counts[Status.DELIVERED]

    def num_required(self, quorum: float, num_wanted: int = 0) -> int:
        """How many deliveries are a quorum: a count (int), or a share (float) of the live members.

        Lost and replaced members are not in the denominator: a round must not wait for the dead. Nor are
        those that were asked beyond ``num_wanted``, if that is not 0.
        """
        if isinstance(quorum, int):
            return quorum
        live = len(self) - sum(self._counts[status] for status in _NOT_COUNTED)
        return max(1, math.ceil(quorum * min(live, num_wanted or live) - 1e-9))

    def summary(self) -> str:
        """Counts in words, and the first reasons of those that failed."""
        counts = ", ".join(f"{number} {status}" for status, number in sorted(self._counts.items()) if number)
        by_reason: dict[str, list[str]] = {}
        for learner, part in sorted(self._assignments.items()):
            if part.status in (Status.FAILED, Status.REFUSED, Status.LOST) and part.reason:
                by_reason.setdefault(part.reason, []).append(learner)
        reasons = [f"{_some(learners)}: {reason}" for reason, learners in list(by_reason.items())[:3]]
        more = " …" if len(by_reason) > 3 else ""
        return counts + (f" ({'; '.join(reasons)}{more})" if reasons else "")


def _some(learners: list[str]) -> str:
    rest = f" and {len(learners) - 3} more" if len(learners) > 3 else ""
    return ", ".join(learners[:3]) + rest
