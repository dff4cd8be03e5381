"""Who is there: learners that joined and have been heard of lately."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from broker_fl.interfaces import Member
from broker_fl.wire.messages import TaskStatus

LOST_AFTER_HEARTBEATS = 4
"""Heartbeats that a learner may miss in a row before it is taken for lost."""
SILENT_AFTER_HEARTBEATS = 1.5
"""Without a word from anybody for so long, it is all of them who are silent."""
ALL_LOST_AFTER_HEARTBEATS = 24
"""Heartbeats that all of them may miss together: 2 minutes at 5 s, in which a broker restarts."""


@dataclass(slots=True, kw_only=True)
class Presence:
    """What is known of one live learner; ``last_seen`` in seconds of the caller's clock."""

    member: Member
    session: str
    software: str = ""
    last_seen: float
    tasks: tuple[TaskStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Lost:
    """A learner that has been silent for too long."""

    learner: str
    silent_s: float


class Membership:
    """The live learners. A learner that is silent for ``LOST_AFTER_HEARTBEATS`` heartbeats is lost.

    ``expire`` must be called at least once a heartbeat. When it was not, it is this process that was away
    (frozen, or busy), and the learners are given the time back: silence counts only while somebody listened.

    When nobody at all is heard of, it is more likely that the broker is away than that all died at once:
    they are lost after ``ALL_LOST_AFTER_HEARTBEATS`` only, and the first that is heard of again gives the
    others their time.
    """

    def __init__(self, heartbeat_s: float, now: float) -> None:
        self.heartbeat_s = heartbeat_s
        self._presences: dict[str, Presence] = {}
        self._expired_at = now
        self._heard_at = now

    def __len__(self) -> int:
        return len(self._presences)

    def __contains__(self, learner: object) -> bool:
        return learner in self._presences

    def __iter__(self) -> Iterator[Presence]:
        return iter(self._presences.values())

    def get(self, learner: str) -> Member | None:
        """The learner, if it is there."""
        presence = self._presences.get(learner)
        return presence.member if presence is not None else None

    def members(self) -> list[Member]:
        """All live learners, sorted by id."""
        return [self._presences[learner].member for learner in sorted(self._presences)]

    def join(self, member: Member, *, session: str, software: str, now: float) -> bool:
        """Take a learner in, or refresh it; True if it was not there, or is another session than before."""
        self._heard_somebody(now)
        known = self._presences.get(member.learner)
        self._presences[member.learner] = Presence(
            member=member,
            session=session,
            software=software,
            last_seen=now,
        )
        return known is None or known.session != session

    def heard(self, learner: str, session: str, tasks: tuple[TaskStatus, ...], now: float) -> bool:
        """Note a heartbeat; False if this session of the learner is not known and has to join first."""
        presence = self._presences.get(learner)
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
        del self._presences[learner]
        return True

    def expire(self, now: float) -> list[Lost]:
        """Take out and return who has been silent for too long."""
        away_s = now - self._expired_at - self.heartbeat_s
        self._expired_at = now
        if away_s > 0:
            self._give_back(away_s, now)
            self._heard_at = min(now, self._heard_at + away_s)
        is_silent = now - self._heard_at > SILENT_AFTER_HEARTBEATS * self.heartbeat_s
        limit = (ALL_LOST_AFTER_HEARTBEATS if is_silent else LOST_AFTER_HEARTBEATS) * self.heartbeat_s
        lost = [
            Lost(learner, now - presence.last_seen)
            for learner, presence in self._presences.items()
            if now - presence.last_seen > limit
        ]
        for gone in lost:
            del self._presences[gone.learner]
        return lost

    def _heard_somebody(self, now: float) -> None:
        silent_s = now - self._heard_at
        self._heard_at = now
        if silent_s > SILENT_AFTER_HEARTBEATS * self.heartbeat_s:
            self._give_back(silent_s, now)

    def _give_back(self, seconds: float, now: float) -> None:
        for presence in self._presences.values():
            presence.last_seen = min(now, presence.last_seen + seconds)
