"""A task, from sending it to the learner's update being in the sum, or to what went wrong."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from broker_fl.wire.events.base import Event, Weight, counted
from broker_fl.wire.fields import Count, Identifier, Listed, Metrics, Parameters, Seconds, Text
from broker_fl.wire.messages import Timings


class TaskSent(Event):
    """Task and model were handed to the broker for these learners."""

    KIND: ClassVar[str] = "task_sent"
    round: Count
    attempt: Count = 0
    version: Count = 0
    """That the learners are given."""
    learners: Listed
    num_learners: Count = 0
    """To whom it was sent; ``learners`` names at most ``MAX_LISTED`` of them."""
    group: Identifier | None = None
    """Whose members these learners are, if they are a group's: then one copy went to all of them."""
    workload: Parameters = Field(default={})
    """The task parameters that pacing has set for these learners."""
    num_bytes: Count
    """For all of them together, a copy each; over the link to the broker one copy goes for up to 100."""
    num_messages: Count
    send_s: Seconds

    @model_validator(mode="before")
    @classmethod
    def _count(cls, fields: Any) -> Any:
        return counted(fields, "learners")


class TransferProgress(Event):
    """How far the transfer of a large model is; told every few seconds while it goes on."""

    KIND: ClassVar[str] = "transfer_progress"
    round: Count
    direction: Literal["down", "up"]
    """``down``: the version, on its way to the broker; ``up``: all the round's updates, from learners."""
    num_bytes: Count
    """So far; of what goes down, one copy for all."""
    total_bytes: Count


class TaskAccepted(Event):
    """A learner has task and model, whole."""

    KIND: ClassVar[str] = "task_accepted"
    round: Count
    learner: Identifier
    receive_s: Seconds = 0.0


class TaskFinished(Event):
    """A learner's result arrived; its update is on the way or was not asked for."""

    KIND: ClassVar[str] = "task_finished"
    round: Count
    learner: Identifier
    num_examples: Count = 0
    num_steps: Count = 0
    num_epochs: Seconds = 0.0
    metrics: Metrics = Field(default={})
    evaluation: Metrics = Field(default={})
    timings: Timings = Timings()
    peak_memory_bytes: Count = 0
    """Most that the learner's process has had in memory so far; 0 where that is not known."""


class UpdateFolded(Event):
    """A learner's update was whole and usable, and is part of the round's sum."""

    KIND: ClassVar[str] = "update_folded"
    round: Count
    learner: Identifier
    weight: Weight
    staleness: Count = 0
    """Versions that were committed since the one that it was trained from; in a round always 0."""
    num_bytes: Count
    num_messages: Count
    upload_s: Seconds = 0.0
    """From the result's arrival to the update being whole."""
    fold_s: Seconds = 0.0


class TaskFailed(Event):
    """A learner could not do its task."""

    KIND: ClassVar[str] = "task_failed"
    round: Count
    learner: Identifier
    reason: Text


class TaskLate(Event):
    """A learner had not delivered when the round closed, or delivered afterwards; its update counts
    nowhere.
    """

    KIND: ClassVar[str] = "task_late"
    round: Count
    learner: Identifier
    reason: Text
    cancelled: bool = False
    """It was not needed any more: others had delivered enough, or the job ended. The learner is not slow."""


class UpdateRefused(Event):
    """A learner's update was not folded, and the message was dead-lettered."""

    KIND: ClassVar[str] = "update_refused"
    round: Count
    learner: Identifier
    reason: Text
