"""What a job is at any moment, and how it is written down so that another controller can go on."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import msgpack

from broker_fl.coordination.cohort import OPEN, Assignment, Cohort, Status
from broker_fl.errors import FrameRefused
from broker_fl.interfaces import Record
from broker_fl.wire.events import JobEnd
from broker_fl.wire.job import JobSpec
from broker_fl.wire.messages import JobSummary

STATE_VERSION = 3
"""Raised when older software must not go on with a job as it is written. Fields may be added without that, at
the end and with a default: who does not know one leaves it out.
"""
_READABLE = (2, 3)
_KEPT = "state", "spec", "phase", "cohort", "records"


class Phase(StrEnum):
    """What a job is doing."""

    IDLE = "idle"
    """Between rounds."""
    WAITING = "waiting"
    """For learners."""
    TRAINING = "training"
    """A round is open; asynchronous: tasks are given and updates taken."""
    COMMITTING = "committing"
    EVALUATING = "evaluating"
    """The last version, after all training."""
    ENDED = "ended"


@dataclass(slots=True, kw_only=True)
class JobState:
    """One job. Times are seconds of the controller's clock, which goes on across restarts."""

    job: str
    spec: JobSpec
    driver: str
    update_bytes: int
    """Size of one update on the wire."""
    submitted_at: float
    phase: Phase = Phase.IDLE
    waiting_since: float | None = None
    round: int = 0
    version: int = 0
    num_updates: int = 0
    """That are in a version."""
    retries: int = 0
    num_wanted: int = 0
    """Deliveries with which the open round closes before the others have delivered; 0: it waits for all."""
    round_started_at: float = 0.0
    deadline_at: float | None = None
    cohort: Cohort = field(default_factory=Cohort)
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    """What cohorts found out about the versions that are kept, by version."""
    records: dict[str, Record] = field(default_factory=dict)
    """What was seen of learners; kept where selector, pacing or protocol go by it."""
    counted: dict[str, int] = field(default_factory=dict)
    """The round of each learner's last task whose update is in a version; kept by asynchronous jobs, and by
    those with error feedback, whose learners are told.
    """
    paused_at: float | None = None
    """Since when a driver has it paused; None: it is not."""
    paused_s: float = 0.0
    """How long it was paused before."""
    pause_after: int | None = None
    """The version after which it pauses."""
    pause_reason: str = ""
    """Why it is paused; of no meaning while it is not."""
    unsaid: tuple[int, bytes] | None = None
    """The event of the newest version, and the number of the one before: a controller that dies when the
    version is stored and the event is not leaves it to the next one to say.
    """
    ending: str = ""
    """Why training is over, while the last version is evaluated."""
    end: JobEnd | None = None
    reason: str = ""
    """Why it has ended, or what it last waited for."""
    ended_at: float = 0.0
    """0: it has not, or nobody wrote down when."""

    def pack(self, **changes: Any) -> bytes:
        """The state as bytes, with ``changes`` in the place of what it is now.

        What a crash loses anyway is left out: sums, and so who has delivered.
        """
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__} | changes
        fields |= {
            "state": STATE_VERSION,
            "spec": self.spec.model_dump(),
            "phase": str(fields["phase"]),
            "cohort": [
                (learner, part.round, part.attempt, str(_after_a_crash(part)), part.reason)
                for learner, part in fields["cohort"].items()
            ],
            "records": {
                learner: [getattr(record, name) for name in Record.__slots__]
                for learner, record in fields["records"].items()
            },
        }
        packed: bytes = msgpack.packb(fields)
        return packed

    @classmethod
    def unpack(cls, data: bytes, now: float) -> JobState:
        """Read what ``pack`` wrote.

        Raises:
            FrameRefused: it was written by software that knows of what this one does not.
        """
        try:
            return cls._of(msgpack.unpackb(data, use_list=False, strict_map_key=False), now)
        except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException) as error:
            problem = " ".join(str(error).split())[:300]
            raise FrameRefused(f"a stored job state is not readable here: {problem}") from error

    @classmethod
    def _of(cls, packed: dict[str, Any], now: float) -> JobState:
        if (version := packed["state"]) not in _READABLE:
            raise FrameRefused(
                f"a stored job state of version {version!r} is not readable here (those of {_READABLE} are)",
            )
        cohort = {
            learner: Assignment(Status(status), now, attempt, round, sent_at=now, reason=reason)
            for learner, round, attempt, status, reason in packed["cohort"]
        }
        records = {
            learner: Record(**dict(zip(Record.__slots__, values, strict=False)))
            for learner, values in packed["records"].items()
        }
        spec, phase = JobSpec.model_validate(packed["spec"]), Phase(packed["phase"])
        fields = {name: packed[name] for name in cls.__slots__ if name in packed and name not in _KEPT}
        return cls(**fields, spec=spec, phase=phase, cohort=Cohort(cohort), records=records)

    @property
    def evaluation(self) -> dict[str, float]:
        """The newest evaluation; empty before the first."""
        return self.evaluations[max(self.evaluations)] if self.evaluations else {}

    @property
    def is_paused(self) -> bool:
        """Whether a driver wants no new round to begin."""
        return self.paused_at is not None

    def note_evaluation(self, metrics: dict[str, float]) -> None:
        """Keep the evaluation of the newest version, and those of the versions that are kept beside it."""
        self.evaluations[self.version] = metrics
        oldest = self.version - self.spec.keep_versions
        self.evaluations = {version: found for version, found in self.evaluations.items() if version > oldest}

    def go_back_to(self, version: int) -> None:
        """Begin anew after this version, if the store has lost those after it; ``num_updates`` counts on."""
        if version >= self.version:
            return
        self.round -= self.version - version
        self.version, self.phase, self.cohort = version, Phase.IDLE, Cohort()
        self.retries, self.ending, self.unsaid = 0, "", None
        self.evaluations = {one: found for one, found in self.evaluations.items() if one <= version}
        self.counted = {learner: round for learner, round in self.counted.items() if round < self.round}

    def go_on_to(self, version: int, num_updates: int) -> None:
        """This version is committed; so many updates are in it."""
        self.version, self.round = version, self.round + 1
        self.num_updates += num_updates

    def _current_reason(self) -> str:
        if self.end is None and self.is_paused:
            return self.pause_reason
        return self.reason if self.end or self.waiting_since is not None else ""

    def summary(self) -> JobSummary:
        """The job's line in a list of jobs."""
        running: Literal["paused", "waiting", "running"] = (
            "paused" if self.is_paused else "waiting" if self.phase is Phase.WAITING else "running"
        )
        return JobSummary(
            job=self.job,
            name=self.spec.name,
            state=self.end or running,
            round=self.round,
            version=self.version,
            reason=self._current_reason(),
            submitted_at=self.submitted_at,
        )


def _after_a_crash(part: Assignment) -> Status:
    return Status.SENT if part.status in OPEN or part.status is Status.DELIVERED else part.status
