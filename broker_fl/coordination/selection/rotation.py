"""Fair rotation: whoever has waited longest is next.

Longest ago comes first, and of those that were asked in one round the one that was asked least. So of two
learners that are there all the time neither is asked twice more than the other, whoever else comes and goes;
and a newcomer is among the next, but does not catch up on the rounds before it came: were it the least asked
who is next, a few newcomers would be the whole cohort of many rounds, and the model would become theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker_fl.interfaces import Member, Record
from broker_fl.wire.selectors import SelectRotation


class Rotation:
    """Those who have waited longest."""

    def __init__(self, settings: SelectRotation) -> None:
        self._settings = settings

    def select(self, members: Sequence[Member], round: int, history: Mapping[str, Record]) -> list[str]:
        return sorted(longest_waiting(members, history)[: self._settings.cohort_size(len(members))])


def longest_waiting(members: Sequence[Member], history: Mapping[str, Record]) -> list[str]:
    """All ids, in the order in which it is their turn."""
    new = Record()
    records = ((member.learner, history.get(member.learner, new)) for member in members)
    turns = sorted((record.last_round, record.num_tasks, learner) for learner, record in records)
    return [learner for _, _, learner in turns]
