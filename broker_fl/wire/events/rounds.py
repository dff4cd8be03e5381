"""Rounds, and the versions that come of them."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from broker_fl.wire.events.base import Event, Weight, counted
from broker_fl.wire.fields import Count, Digest, Listed, Metrics, Name, Seconds, Shares, Text


class RoundStarted(Event):
    """A cohort was selected; ``train`` is False for the evaluation after the last round."""

    KIND: ClassVar[str] = "round_started"
    round: Count
    version: Count
    """The version that the cohort is given."""
    cohort: Listed
    num_learners: Count = 0
    """Of the cohort; ``cohort`` names at most ``MAX_LISTED`` of them."""
    train: bool = True
    num_wanted: Count = 0
    """Deliveries with which the round closes before the others have delivered; 0: it waits for all."""
    deadline_s: Seconds | None = None

    @model_validator(mode="before")
    @classmethod
    def _count(cls, fields: Any) -> Any:
        return counted(fields, "cohort")


class RoundRetried(Event):
    """The round missed its quorum and goes on with replacements, or with the same learners once more."""

    KIND: ClassVar[str] = "round_retried"
    round: Count
    attempt: Count
    reason: Text
    replacements: Listed = ()


class VersionEvaluated(Event):
    """The cohort's evaluation of the version it was given, averaged by its numbers of examples."""

    KIND: ClassVar[str] = "version_evaluated"
    round: Count
    version: Count
    metrics: Metrics
    num_learners: Count
    num_examples: Count


class VersionCommitted(Event):
    """A round's updates (asynchronous: those that have arrived) became the next model version, and are
    stored.
    """

    KIND: ClassVar[str] = "version_committed"
    round: Count
    version: Count
    parent: Count = 0
    """The version that it was made from."""
    rule: Name = "fedavg"
    digest: Digest
    contributors: Listed
    num_learners: Count = 0
    """That contributed; ``contributors`` names at most ``MAX_LISTED`` of them."""
    total_weight: Weight
    used: Shares | None = None
    """Shares of contributors in the version, where the rule chose among them: 0 if it left one out. At most
    ``MAX_LISTED`` of them.
    """
    metrics: Metrics = Field(default={})
    """Of training, averaged by weight."""
    round_s: Seconds
    aggregate_s: Seconds
    store_s: Seconds
    memory_bytes: Count = 0
    """That the controller's process has in memory at this moment; 0 where that is not known."""

    @model_validator(mode="before")
    @classmethod
    def _count(cls, fields: Any) -> Any:
        return counted(fields, "contributors")
