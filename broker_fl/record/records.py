"""What a history is made of: rounds, versions, learners and incidents. ``History`` writes, others read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from broker_fl.record.tasks import Spread, TaskTable
from broker_fl.wire.fields import Parameter

JobState = Literal["unknown", "submitted", "waiting", "running", "done", "stopped", "failed"]
Presence = Literal["unknown", "present", "left", "lost"]
IncidentKind = Literal["failed", "late", "refused", "retried", "lost", "left", "waiting", "resumed"]
COUNTS = ("sent", "accepted", "finished", "folded", "failed", "late", "refused", "retried")


def _counts() -> Counter[str]:
    return Counter(dict.fromkeys(COUNTS, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Something that an operator may want to know of."""

    time_s: float
    kind: IncidentKind
    reason: str = ""
    learner: str | None = None
    round: int | None = None


@dataclass(slots=True, kw_only=True)
class RoundRecord:
    """One round, or the evaluation after the last one (``train`` is False)."""

    round: int
    version: int = 0
    """The version that the cohort was given."""
    train: bool = True
    started_s: float | None = None
    committed_s: float | None = None
    """When the new version was stored; of an evaluation, when its result was there."""
    deadline_s: float | None = None
    attempt: int = 0
    cohort: tuple[str, ...] = ()
    num_learners: int = 0
    """Of the cohort; events name the first ``MAX_LISTED`` of them."""
    contributors: tuple[str, ...] = ()
    num_contributors: int = 0
    tasks: TaskTable = field(default_factory=TaskTable)
    counts: Counter[str] = field(default_factory=_counts)
    """Learners by how far they came in the newest attempt, and by what went wrong in all attempts."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of training, averaged by weight."""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    """Of the version that the cohort was given, averaged by examples."""
    total_weight: float = 0.0
    bytes_down: int = 0
    """Published for learners; the broker copies each message to up to 100 of them."""
    bytes_up: int = 0
    messages_down: int = 0
    messages_up: int = 0
    send_s: float = 0.0
    fold_s: float = 0.0
    aggregate_s: float = 0.0
    store_s: float = 0.0
    round_s: float | None = None

    @property
    def state(self) -> Literal["running", "committed", "evaluated"]:
        """``committed`` where it made a version."""
        if self.committed_s is None:
            return "running"
        return "committed" if self.train else "evaluated"

    def metric_spread(self, name: str) -> Spread | None:
        """How a training metric lies over the learners; None where none reported it."""
        return Spread.of(self.tasks.metric(self.tasks.metrics, name))

    def evaluation_spread(self, name: str) -> Spread | None:
        """How an evaluation metric of the given version lies over learners; None where none reported it."""
        return Spread.of(self.tasks.metric(self.tasks.evaluation, name))


@dataclass(slots=True, kw_only=True)
class VersionRecord:
    """One model version; version 0 is the initial model."""

    version: int
    round: int | None = None
    """The round that made it."""
    committed_s: float | None = None
    digest: str = ""
    contributors: tuple[str, ...] = ()
    total_weight: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the training that made it."""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    """Of the version itself, over the cohort of ``evaluated_in``."""
    evaluated_in: int | None = None
    num_evaluators: int = 0
    num_examples: int = 0


@dataclass(slots=True, kw_only=True)
class LearnerRecord:
    """One learner over the whole job."""

    learner: str
    presence: Presence = "unknown"
    attributes: Mapping[str, Parameter] = field(default_factory=dict)
    tasks: int = 0
    """Sent, those of later attempts too."""
    folded: int = 0
    failed: int = 0
    late: int = 0
    refused: int = 0
    lost: int = 0
    trained: int = 0
    """Results that came with a time of training."""
    train_s: float = 0.0
    """Summed over ``trained``."""
    num_examples: int = 0
    """In its newest result."""
    num_steps: int = 0
    weight: float = 0.0
    """Of all its updates that were folded."""
    bytes_up: int = 0

    @property
    def mean_train_s(self) -> float | None:
        """None before its first result."""
        return self.train_s / self.trained if self.trained else None
