"""What a driver asks of the controller (exchange ``control``)."""

from __future__ import annotations

from typing import ClassVar

from broker_fl.wire.fields import Count, Identifier, Positive, Text
from broker_fl.wire.job import JobSpec
from broker_fl.wire.messages.manifests import ModelManifest
from broker_fl.wire.messages.parts import Message, VersionRef


class Request(Message):
    """Base of what a driver asks; the answer goes to the driver's own queue with the same ``request`` id."""

    driver: Identifier
    request: Identifier


class Submit(Request):
    """Run a job. After ``submitted`` comes back, the initial model's chunks are sent to the inbox it names;
    when they are stored as version 0, ``done`` comes back.
    """

    KIND: ClassVar[str] = "submit"
    job: Identifier
    """Drawn by the driver; submitting the same id again is answered, not run again."""
    spec: JobSpec
    model: ModelManifest | None = None
    """Announces the initial model; None where the job goes on from ``parent``."""
    parent: VersionRef | None = None
    """A stored version to go on from; nothing is sent then, and ``done`` is the first answer."""


class StopJob(Request):
    """End a job; what it has committed is kept."""

    KIND: ClassVar[str] = "stop_job"
    job: Identifier
    reason: Text = ""


class PauseJob(Request):
    """Begin no new round (asynchronous: give no new task) until ``resume_job``; what is under way is
    finished.
    """

    KIND: ClassVar[str] = "pause_job"
    job: Identifier
    reason: Text = ""


class ResumeJob(Request):
    """Go on with a job that was paused."""

    KIND: ClassVar[str] = "resume_job"
    job: Identifier
    versions: Positive | None = None
    """Pause again after so many new versions; None goes on to the end."""


class DeleteJob(Request):
    """Delete a job that has ended, with all that is stored of it: versions, events, updates."""

    KIND: ClassVar[str] = "delete_job"
    job: Identifier
    reason: Text = ""


class ListJobs(Request):
    """Ask for all jobs that the store knows."""

    KIND: ClassVar[str] = "list_jobs"


class ListVersions(Request):
    """Ask for the stored model versions of a job."""

    KIND: ClassVar[str] = "list_versions"
    job: Identifier


class ListLearners(Request):
    """Ask who is there."""

    KIND: ClassVar[str] = "list_learners"


class ReadEvents(Request):
    """Ask for a job's events from ``after`` on; they come in pages."""

    KIND: ClassVar[str] = "read_events"
    job: Identifier
    after: Count = 0
    """Sequence number of the last event that the driver has."""


class ReadModel(Request):
    """Ask for a model version; None is the newest. Its chunks follow the answer, in the driver's queue."""

    KIND: ClassVar[str] = "read_model"
    job: Identifier
    version: Count | None = None
