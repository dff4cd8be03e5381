"""Which learners a selector chooses from: by their attributes, and without those that keep failing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker_fl.interfaces import Member, Record, Selector
from broker_fl.wire.conditions import AnyCondition, is_met
from broker_fl.wire.selectors import Selecting


class Eligible:
    """A selector that chooses from those who may take part, and from nobody else.

    A learner whose last ``exclude_after`` tasks all failed is left out in the ``exclude_rounds`` rounds after
    the one in which it was last asked. If fewer than ``at_least`` were left, so many of those left out are
    let in again as are missing, the longest left out first: a round that nobody may take part in would never
    end, and so would no exclusion.
    """

    def __init__(self, settings: Selecting, selector: Selector, at_least: int = 1) -> None:
        """``selector`` chooses; ``settings`` say from whom."""
        self._settings = settings
        self._selector = selector
        self._at_least = at_least

    def select(self, members: Sequence[Member], round: int, history: Mapping[str, Record]) -> list[str]:
        """Some of the eligible; nobody if nobody is."""
        eligible = self.eligible(members, round, history)
        return self._selector.select(eligible, round, history) if eligible else []

    def matches(self, member: Member) -> bool:
        """Whether its attributes are as ``where`` wants them."""
        return matches(self._settings, member)

    def matching(self, members: Sequence[Member]) -> Sequence[Member]:
        """Those that match."""
        if not self._settings.where:
            return members
        return [member for member in members if self.matches(member)]

    def eligible(
        self, members: Sequence[Member], round: int, history: Mapping[str, Record]
    ) -> Sequence[Member]:
        """Those that match and are not left out: who may be asked in this round, also in another's place."""
        matching = self.matching(members)
        if not (out := self._left_out(matching, round, history)):
            return matching
        back = max(0, self._at_least - (len(matching) - len(out)))
        left_out = set(out[back:])
        return [member for member in matching if member.learner not in left_out]

    def _left_out(self, members: Sequence[Member], round: int, history: Mapping[str, Record]) -> list[str]:
        """Those that keep failing, the longest left out first."""
        limit = self._settings.exclude_after
        if limit is None:
            return []
        out = [
            (record.last_round, member.learner)
            for member in members
            if (record := history.get(member.learner)) is not None
            and record.num_failures >= limit
            and round - record.last_round <= self._settings.exclude_rounds
        ]
        return [learner for _, learner in sorted(out)]


def matches(settings: Selecting, member: Member) -> bool:
    """Whether a learner's attributes are as ``where`` wants them."""
    return all(_meets(member, name, condition) for name, condition in settings.where.items())


def _meets(member: Member, name: str, condition: AnyCondition) -> bool:
    if name == "learner":
        return is_met(condition, member.learner)
    if name == "software":
        return is_met(condition, member.software)
    return name in member.attributes and is_met(condition, member.attributes[name])
