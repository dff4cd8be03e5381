"""What is known of a job, as it stands after the events so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from broker_fl.record.records import (
    Incident,
    IncidentKind,
    JobState,
    LearnerRecord,
    Presence,
    VersionRecord,
)
from broker_fl.record.rounds import Missed, RoundRecord
from broker_fl.wire.job import JobSpec
from broker_fl.wire.messages import VersionRef


class Ledger:
    """Records of rounds, versions and learners, and of the job itself; made when they are first asked for."""

    def __init__(self) -> None:
        self.job: str | None = None
        self.state: JobState = "unknown"
        self.reason = ""
        self.spec: JobSpec | None = None
        self.driver: str | None = None
        self.num_parameters = 0
        self.model_bytes = 0
        self.parent: VersionRef | None = None
        """The version of another job that version 0 is a copy of."""
        self.num_resumed = 0
        self.submitted_s: float | None = None
        self.finished_s: float | None = None
        self.last_event_s: float | None = None
        self.rounds: dict[int, RoundRecord] = {}
        self.versions: dict[int, VersionRecord] = {}
        self.learners: dict[str, LearnerRecord] = {}
        self.incidents: list[Incident] = []
        self.counts: Counter[str] = Counter(folded=0, failed=0, late=0, refused=0, cancelled=0)
        """Updates ``folded`` and tasks ``failed``, ``late``, ``refused``, ``cancelled``."""
        self.num_asked = 0
        """Updates that learners were asked for, in all attempts."""
        self.open: dict[str, int] = {}
        """Learners that have a task now, and its round."""
        self._uncommitted: dict[str, RoundRecord] = {}
        self._evaluations: dict[str, Mapping[str, float]] = {}
        self._newest_round = self._newest_evaluated = -1
        self._newest_version = 0
        self._metrics: Mapping[str, float] = {}

    @property
    def asynchronous(self) -> bool:
        """Whether the job has no rounds: what is kept by round is by version then (see ``RoundRecord``)."""
        return self.spec is not None and self.spec.protocol.name == "asynchronous"

    def _round(self, number: int) -> RoundRecord:
        if (record := self.rounds.get(number)) is None:
            record = self.rounds[number] = RoundRecord(round=number)
            self._newest_round = max(self._newest_round, number)
        return record

    def _version(self, number: int) -> VersionRecord:
        if (record := self.versions.get(number)) is None:
            record = self.versions[number] = VersionRecord(version=number)
            self._newest_version = max(self._newest_version, number)
        return record

    def _learner(self, name: str) -> LearnerRecord:
        if (record := self.learners.get(name)) is None:
            record = self.learners[name] = LearnerRecord(learner=name)
        return record

    def _names(self, names: Iterable[str]) -> tuple[str, ...]:
        # Every event is parsed into strings of its own: one string per learner saves most of a long history's
        # memory.
        return tuple(self._learner(name).learner for name in names)

    def _note(self, event: Any, kind: IncidentKind, reason: str) -> None:
        number, learner = getattr(event, "round", None), getattr(event, "learner", None)
        name = None if learner is None else self._learner(learner).learner
        self.incidents.append(
            Incident(time_s=event.time_s, kind=kind, reason=reason, learner=name, round=number),
        )

    def _missed(self, event: Any, outcome: Missed) -> bool:
        learner = self._learner(event.learner).learner
        if self.open.get(learner) == event.round:
            del self.open[learner]
        if not self._round(event.round).miss(learner, outcome, event.reason):
            return False
        self.counts[outcome] += 1
        if outcome != "cancelled":
            self._note(event, outcome, event.reason)
        return True

    def _gone(self, name: str, presence: Presence) -> LearnerRecord:
        learner = self._learner(name)
        learner.presence = presence
        self.open.pop(learner.learner, None)
        self._evaluations.pop(learner.learner, None)
        return learner
