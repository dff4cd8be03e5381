"""What a history has besides rounds: versions, learners, incidents. ``History`` writes, others read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from broker_fl.record.tasks import Spread
from broker_fl.wire.fields import Parameter

JobState = Literal["unknown", "submitted", "waiting", "running", "paused", "done", "stopped", "failed"]
Presence = Literal["unknown", "present", "left", "lost"]
IncidentKind = Literal[
    "failed", "late", "refused", "retried", "lost", "left", "waiting", "paused", "unpaused", "resumed"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Something that an operator may want to know of."""

    time_s: float
    kind: IncidentKind
    reason: str = ""
    learner: str | None = None
    round: int | None = None


@dataclass(slots=True, kw_only=True)
class VersionRecord:
    """One model version; version 0 is the initial model."""

    version: int
    parent: int | None = None
    """The version that it was made from; of version 0 there is none in this job."""
    rule: str = ""
    """That made it."""
    round: int | None = None
    """The round that made it."""
    committed_s: float | None = None
    digest: str = ""
    contributors: tuple[str, ...] = ()
    used: Mapping[str, float] = field(default_factory=dict)
    """Shares of the contributors in it, where the rule chose among them; else empty."""
    num_contributors: int = 0
    """Updates in it; ``contributors`` names at most ``MAX_LISTED`` of their learners."""
    total_weight: float = 0.0
    mean_staleness: float | None = None
    """Of its updates."""
    max_staleness: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the training that made it."""
    training_spreads: Mapping[str, Spread] = field(default_factory=dict)
    """Of those metrics over its contributors, where they are not those of one round."""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    """Of the version itself, over the cohort of ``evaluated_in``; of an asynchronous job the mean over the
    learners' newest evaluations, of this version or of earlier ones.
    """
    evaluation_spreads: Mapping[str, Spread] = field(default_factory=dict)
    """Of those metrics over the learners, where they are not those of one round."""
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
    cancelled: int = 0
    """Not needed any more: others had delivered enough, or the job ended."""
    lost: int = 0
    trained: int = 0
    """Results that came with a time of training."""
    train_s: float = 0.0
    """Summed over ``trained``."""
    staleness: int = 0
    """Summed over ``folded``."""
    num_examples: int = 0
    """In its newest result."""
    num_steps: int = 0
    """In all its results."""
    num_epochs: float = 0.0
    weight: float = 0.0
    """Of all its updates that were folded."""
    bytes_down: int = 0
    bytes_up: int = 0
    peak_memory_bytes: int = 0
    """Most that its process had in memory; 0 where that is not known."""

    def seen(self) -> None:
        """It took a task or delivered: it is there, even where nothing told that it came."""
        if self.presence == "unknown":
            self.presence = "present"

    @property
    def mean_train_s(self) -> float | None:
        """None before its first result."""
        return self.train_s / self.trained if self.trained else None
