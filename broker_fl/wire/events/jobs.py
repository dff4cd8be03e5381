"""A job begins, waits, is paused, goes on and ends."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from broker_fl.wire.events.base import Event
from broker_fl.wire.fields import Count, Identifier, Metrics, Seconds, Text
from broker_fl.wire.job import JobSpec
from broker_fl.wire.messages import VersionRef

JobEnd = Literal["done", "stopped", "failed"]


class JobSubmitted(Event):
    """A driver's job was taken and its initial model stored as version 0."""

    KIND: ClassVar[str] = "job_submitted"
    driver: Identifier
    spec: JobSpec
    num_parameters: Count
    model_bytes: Count
    parent: VersionRef | None = None
    """The version of another job that version 0 is a copy of."""


class JobPaused(Event):
    """A driver wants no new round to begin; what is under way is finished."""

    KIND: ClassVar[str] = "job_paused"
    reason: Text = ""


class JobUnpaused(Event):
    """A driver lets the job go on."""

    KIND: ClassVar[str] = "job_unpaused"
    versions: Count | None = None
    """After so many new ones it pauses again; None: it does not."""


class JobWaiting(Event):
    """The next round cannot begin yet."""

    KIND: ClassVar[str] = "job_waiting"
    reason: Text
    num_learners: Count
    num_needed: Count


class JobResumed(Event):
    """A controller that was started anew goes on with the job where the store says it was."""

    KIND: ClassVar[str] = "job_resumed"
    round: Count
    version: Count
    epoch: Count


class JobFinished(Event):
    """The job ended; no event of it follows, but that it was deleted."""

    KIND: ClassVar[str] = "job_finished"
    state: JobEnd
    reason: Text
    version: Count
    rounds: Count
    duration_s: Seconds
    metrics: Metrics = Field(default={})
    """The last evaluation."""


class JobDeleted(Event):
    """The job, which had ended, was deleted with all that was stored of it. Only who watches hears of it, for
    it is in no record.
    """

    KIND: ClassVar[str] = "job_deleted"
    reason: Text = ""
