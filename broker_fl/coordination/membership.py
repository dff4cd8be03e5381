"""Who is there: learners that joined and have been heard of lately, each by itself or as one of a group."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from broker_fl.errors import FrameRefused
from broker_fl.interfaces import Member
from broker_fl.wire.messages import TaskStatus

LOST_AFTER_HEARTBEATS = 4
"""Heartbeats that a learner may miss in a row before it is taken for lost."""
SILENT_AFTER_HEARTBEATS = 1.5
"""Without a word from anybody for so long, it is all of them who are silent."""
ALL_LOST_AFTER_HEARTBEATS = 24
"""Heartbeats that all of them may miss together: 2 minutes at 5 s, in which a broker restarts."""

MAX_BEATS_PER_S = 400.0
"""Heartbeats that a controller hears. One costs broker, host and controller about half a millisecond of CPU
time together: 10,000 learners at 5 s would take one core.
"""
LITTLE = 1.25
"""By what factor the time between heartbeats may be off."""

UNKNOWN_SESSION = "unknown"
"""Of a learner that a new controller awaits because a stored cohort names it."""


@dataclass(slots=True, kw_only=True)
class Presence:
    """What is known of one live learner; ``last_seen`` in seconds of the caller's clock."""

    member: Member
    session: str
    software: str = ""
    last_seen: float
    tasks: tuple[TaskStatus, ...] = ()
    compact: bool = False
    """Whether it takes a task and its model as one message."""


@dataclass(slots=True, kw_only=True)
class Group:
    """A host of many learners: what is heard of it is heard of all of them."""

    group: str
    session: str
    members: Mapping[str, Member]
    """In the order in which the group named them."""
    software: str = ""
    last_seen: float
    tasks: tuple[TaskStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Lost:
    """A learner, or a group, that has been silent for too long."""

    learner: str
    silent_s: float
    members: tuple[str, ...] | None = None
    """Of a group."""


@dataclass(frozen=True, slots=True)
class GroupChange:
    """What the joining of a group changed."""

    is_new: bool
    """It was not there, or is another session than before."""
    gone: tuple[str, ...] = field(default=())
    """Members that it had before and has no more."""


class Membership:
    """The live learners. A learner that is silent for ``LOST_AFTER_HEARTBEATS`` heartbeats is lost.

    ``expire`` must be called at least once a heartbeat. When it was not, it is this process that was away
    (frozen, or busy), and the learners are given the time back: silence counts only while somebody listened.

    When nobody at all is heard of, it is more likely that the broker is away than that all died at once:
    they are lost after ``ALL_LOST_AFTER_HEARTBEATS`` only, and the first that is heard of again gives the
    others their time.

    Nor is anybody lost while what was sent before has not been read: a flood of one holds up the heartbeats
    of all.

    An id is one learner's, in a group or not. Joining, leaving and a heartbeat cost O(log N), or the size of
    the group.
    """

    def __init__(self, heartbeat_s: float, now: float) -> None:
        self.heartbeat_s = heartbeat_s
        """At present: a great many are asked to be heard of less often than at first."""
        self._shortest_s = heartbeat_s
        self._presences: dict[str, Presence] = {}
        self._groups: dict[str, Group] = {}
        self._group_of: dict[str, str] = {}
        """Member of a group → the group."""
        self._sorted: list[str] = []
        """Ids of all."""
        self._members: list[Member] | None = None
        """All, in the same order; None: to be made anew."""
        self._expired_at = now
        self._heard_at = now

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, learner: object) -> bool:
        return learner in self._presences or learner in self._group_of

    def __iter__(self) -> Iterator[Presence]:
        yield from self._presences.values()
        for group in self._groups.values():
            for member in group.members.values():
                yield Presence(
                    member=member,
                    session=group.session,
                    software=group.software,
                    last_seen=group.last_seen,
                )

    def get(self, learner: str) -> Member | None:
        """The learner, if it is there."""
        if (group := self._group_of.get(learner)) is not None:
            return self._groups[group].members[learner]
        presence = self._presences.get(learner)
        return presence.member if presence is not None else None

    def members(self) -> list[Member]:
        """All live learners, sorted by id; to be read at once, and not to be changed."""
        if self._members is None:
            self._members = [member for name in self._sorted if (member := self.get(name)) is not None]
        return self._members

    def alone(self) -> list[Member]:
        """Those that are in no group, sorted by id."""
        if not self._group_of:
            return self.members()
        return [member for member in self.members() if member.learner not in self._group_of]

    def group_of(self, learner: str) -> str | None:
        """The group through which a learner is reached; None if it has a mailbox of its own."""
        return self._group_of.get(learner)

    def is_group(self, name: str) -> bool:
        """Whether that is a group that is there."""
        return name in self._groups

    def members_of(self, group: str) -> Mapping[str, Member]:
        """Of a group; none if it is not there."""
        found = self._groups.get(group)
        return found.members if found is not None else {}

    def compact(self, learners: Iterable[str]) -> frozenset[str]:
        """Those of these learners that take a task and its model as one message."""
        parties = ((learner, self._presences.get(learner)) for learner in learners)
        return frozenset(learner for learner, party in parties if party is not None and party.compact)

    def join(self, member: Member, *, session: str, software: str, now: float, compact: bool = False) -> bool:
        """Take a learner in, or refresh it; True if it was not there, or is another session than before.

        Raises:
            FrameRefused: it is there as one of a group, or its id is that of a group.
        """
        self._refuse_taken(member.learner)
        self._heard_somebody(now)
        known = self._presences.get(member.learner)
        self._presences[member.learner] = Presence(
            member=member,
            session=session,
            software=software,
            last_seen=now,
            compact=compact,
        )
        self._keep_sorted(member, is_new=known is None)
        return known is None or known.session != session

    def _refuse_taken(self, learner: str) -> None:
        if (group := self._group_of.get(learner)) is not None:
            raise FrameRefused(f"learner {learner!r} is there already, as one of group {group!r}")
        if learner in self._groups:
            raise FrameRefused(f"{learner!r} is the name of a group that is there")

    def join_group(self, joining: Group) -> GroupChange:
        """Take a group in with all of its members, or refresh it.

        Raises:
            FrameRefused: one of its members is there already, by itself or in another group, or the group's
                name is that of a learner; nothing was changed.
        """
        name = joining.group
        if name in self._group_of or name in joining.members or not self._is_unheard(name):
            raise FrameRefused(f"{name!r} is the name of a learner that is there")
        for learner in joining.members:
            if self._group_of.get(learner, name) != name or not self._is_unheard(learner):
                how = self._group_of.get(learner)
                where = f"as one of group {how!r}" if how else "with a mailbox of its own"
                raise FrameRefused(f"learner {learner!r} of group {name!r} is there already, {where}")
        self._heard_somebody(joining.last_seen)
        before = self._groups.get(name)
        was = before.members if before is not None else {}
        self._groups[name] = joining
        gone = tuple(learner for learner in was if learner not in joining.members)
        for learner in gone:
            del self._group_of[learner]
        for learner in (name, *joining.members):
            self._presences.pop(learner, None)
        self._group_of.update(dict.fromkeys(joining.members, name))
        self._sort_anew()
        return GroupChange(before is None or before.session != joining.session, gone)

    def _is_unheard(self, learner: str) -> bool:
        """Whether nobody has joined under this id: it is only awaited, as one of a stored cohort."""
        presence = self._presences.get(learner)
        return presence is None or presence.session == UNKNOWN_SESSION

    def heard(self, learner: str, session: str, tasks: tuple[TaskStatus, ...], now: float) -> bool:
        """Note a heartbeat of a learner or a group; False if this session of it is not known and has to join
        first.
        """
        presence = self._presences.get(learner) or self._groups.get(learner)
        if presence is None or presence.session != session:
            return False
        self._heard_somebody(now)
        presence.last_seen = now
        presence.tasks = tasks
        return True

    def leave(self, learner: str, session: str) -> bool:
        """Take a learner out; False if it is not there, or is there under a newer session."""
        presence = self._presences.get(learner)
        if presence is None or presence.session != session:
            return False
        self._remove(learner)
        return True

    def leave_group(self, name: str, session: str) -> tuple[str, ...] | None:
        """Take a group out, and return its members; None if it is not there, or is there under a newer
        session.
        """
        group = self._groups.get(name)
        return self._remove_group(name) if group is not None and group.session == session else None

    def pace(self) -> float | None:
        """Have so many be heard of less often that they take no more than ``MAX_BEATS_PER_S``; the new time
        between heartbeats if it has changed, which all are to be told.

        It becomes shorter by half at most, so that one who has not heard of it is not lost.
        """
        num_parties = len(self._presences) + len(self._groups)
        wanted_s = max(self._shortest_s, num_parties / MAX_BEATS_PER_S, self.heartbeat_s / 2)
        if self.heartbeat_s / LITTLE < wanted_s < self.heartbeat_s * LITTLE:
            return None
        self.heartbeat_s = wanted_s
        return wanted_s

    def expire(self, now: float, is_behind: Callable[[], bool] = lambda: False) -> list[Lost]:
        """Take out and return who has been silent for too long. ``is_behind``, which is asked only if there
        is somebody: whether heartbeats wait to be read.
        """
        away_s = now - self._expired_at - self.heartbeat_s
        self._expired_at = now
        if away_s > 0:
            self._give_back(away_s, now)
            self._heard_at = min(now, self._heard_at + away_s)
        is_silent = now - self._heard_at > SILENT_AFTER_HEARTBEATS * self.heartbeat_s
        limit = (ALL_LOST_AFTER_HEARTBEATS if is_silent else LOST_AFTER_HEARTBEATS) * self.heartbeat_s
        if not is_silent and self._is_anybody_over(limit, now) and is_behind():
            self._let_be_heard(now - limit + self.heartbeat_s)
            return []
        lost = [
            Lost(learner, now - presence.last_seen)
            for learner, presence in self._presences.items()
            if now - presence.last_seen > limit
        ]
        for gone in lost:
            self._remove(gone.learner)
        silent = [(name, group) for name, group in self._groups.items() if now - group.last_seen > limit]
        return lost + [Lost(name, now - group.last_seen, self._remove_group(name)) for name, group in silent]

    def _is_anybody_over(self, limit: float, now: float) -> bool:
        parties = (self._presences, self._groups)
        return any(now - one.last_seen > limit for some in parties for one in some.values())

    def _let_be_heard(self, since: float) -> None:
        """Take all for heard of then, or later."""
        parties: list[Presence | Group] = [*self._presences.values(), *self._groups.values()]
        for one in parties:
            one.last_seen = max(one.last_seen, since)

    def _keep_sorted(self, member: Member, *, is_new: bool) -> None:
        place = bisect_left(self._sorted, member.learner)
        if is_new:
            self._sorted.insert(place, member.learner)
            if self._members is not None:
                self._members.insert(place, member)
        elif self._members is not None:
            self._members[place] = member

    def _remove(self, learner: str) -> None:
        del self._presences[learner]
        place = bisect_left(self._sorted, learner)
        del self._sorted[place]
        if self._members is not None:
            del self._members[place]

    def _remove_group(self, name: str) -> tuple[str, ...]:
        members = tuple(self._groups.pop(name).members)
        for learner in members:
            del self._group_of[learner]
        self._sort_anew()
        return members

    def _sort_anew(self) -> None:
        self._sorted = sorted([*self._presences, *self._group_of])
        self._members = None

    def _heard_somebody(self, now: float) -> None:
        silent_s = now - self._heard_at
        self._heard_at = now
        if silent_s > SILENT_AFTER_HEARTBEATS * self.heartbeat_s:
            self._give_back(silent_s, now)

    def _give_back(self, seconds: float, now: float) -> None:
        parties: list[Presence | Group] = [*self._presences.values(), *self._groups.values()]
        for presence in parties:
            presence.last_seen = min(now, presence.last_seen + seconds)
