"""What a job's events say that was folded since its last version, by learners and by groups."""

from __future__ import annotations

from collections.abc import Mapping

from broker_fl.wire import events as e
from tests.simulation.readings import check


class Folded:
    """Updates by learner, and those in sums of groups."""

    def __init__(self, job: str) -> None:
        self._job = job
        self.weights: dict[str, float] = {}
        """By learner."""
        self.groups: dict[str, float] = {}
        """The weight of a group's sum, by share."""
        self._shares: dict[str, list[str]] = {}
        """Of groups: whose updates are in one sum."""

    def take(self, event: e.Event) -> None:
        """The next event."""
        match event:
            case e.UpdateFolded():
                self._add([event.learner])
                self.weights[event.learner] = event.weight
            case e.GroupFinished():
                if event.page == 0:
                    self._shares[event.share] = []
                self._shares.setdefault(event.share, []).extend(event.learners)
            case e.GroupFolded():
                members = self._shares.get(event.share, [])
                check(len(members) == event.num_learners, f"{self._job}: {event} is of {members}")
                self._add(members)
                check(event.share not in self.groups, f"{self._job}: share {event.share} is folded twice")
                self.groups[event.share] = event.weight
            case _:
                pass

    def _add(self, learners: list[str]) -> None:
        known = {*self.weights, *(one for share in self.groups for one in self._shares[share])}
        twice = known.intersection(learners)
        check(not twice, f"{self._job}: {sorted(twice)} are folded twice")

    def is_of(self, found: Mapping[str, float]) -> bool:
        """Whether it is just what is in a version, with these weights."""
        said = dict(self.weights)
        for share, weight in self.groups.items():
            members = self._shares[share]
            if not set(members) <= set(found) or abs(sum(found[one] for one in members) - weight) > 1e-9:
                return False
            said |= {one: found[one] for one in members}
        return set(said) == set(found) and all(abs(said[one] - found[one]) <= 1e-9 for one in found)
