"""What the controller answers to a driver (exchange ``tasks``)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import FailFast, Field

from broker_fl.wire.fields import Count, Digest, Identifier, Metrics, Parameters, Seconds, Text
from broker_fl.wire.messages.manifests import ModelManifest
from broker_fl.wire.messages.parts import Message, Part, TaskStatuses


class Reply(Message):
    """Base of answers."""

    request: Identifier


class Refused(Reply):
    """The request was not carried out."""

    KIND: ClassVar[str] = "refused"
    reason: Text
    again: bool = False
    """Whether the reason may pass, as a store does that is away: then the request may be sent again."""
    setting: bool = False
    """Whether a setting of the request is wrong, or does not fit the federation."""


class Done(Reply):
    """The request was carried out."""

    KIND: ClassVar[str] = "done"
    warnings: Annotated[tuple[Text, ...], Field(max_length=16)] = ()
    """What whoever asked should think over, though it was done."""


class Submitted(Reply):
    """The job is taken; its initial model is awaited as chunks at routing key ``<driver>.<inbox>``."""

    KIND: ClassVar[str] = "submitted"
    job: Identifier
    inbox: Identifier
    num_chunks: Count = 0
    """Of the initial model, that have arrived so far: while they grow in number, none need be sent again."""


class JobSummary(Part):
    """One line of the list of jobs."""

    job: Identifier
    name: Identifier
    state: Literal["submitted", "waiting", "running", "paused", "done", "stopped", "failed"]
    round: Count = 0
    version: Count = 0
    reason: Text = ""
    submitted_at: Seconds = 0.0


class Jobs(Reply):
    """Answers ``list_jobs``, oldest first; more follow unless ``last``."""

    KIND: ClassVar[str] = "jobs"
    jobs: Annotated[tuple[JobSummary, ...], FailFast()]
    last: bool = True


class VersionSummary(Part):
    """One stored model version."""

    version: Count
    num_bytes: Count
    num_parameters: Count
    digest: Digest
    committed_at: Seconds
    metrics: Metrics = Field(default={})


class Versions(Reply):
    """Answers ``list_versions``, oldest first; more follow unless ``last``."""

    KIND: ClassVar[str] = "versions"
    versions: Annotated[tuple[VersionSummary, ...], FailFast()]
    last: bool = True


class LearnerSummary(Part):
    """One learner that is there."""

    learner: Identifier
    attributes: Parameters = Field(default={})
    software: Annotated[str, Field(max_length=128)] = ""
    last_seen_s: Seconds = 0.0
    """Seconds since it was heard of."""
    tasks: TaskStatuses = ()


class Learners(Reply):
    """Answers ``list_learners``; more follow unless ``last``."""

    KIND: ClassVar[str] = "learners"
    learners: Annotated[tuple[LearnerSummary, ...], FailFast()]
    last: bool = True


class Events(Reply):
    """Answers ``read_events``: packed events, in order; more follow unless ``last``."""

    KIND: ClassVar[str] = "events"
    events: Annotated[tuple[bytes, ...], FailFast()]
    last: bool = True


class ModelFollows(Reply):
    """Answers ``read_model``; the chunks come next."""

    KIND: ClassVar[str] = "model_follows"
    job: Identifier
    model: ModelManifest
