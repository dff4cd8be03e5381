"""What happens to a job, step by step: one frozen class per kind of event.

The controller numbers a job's events from 1, stores them and publishes them; the live view, the JSONL log,
the report and the driver all read these. ``time_s`` is Unix time; durations end in ``_s`` and are seconds.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from broker_fl.errors import FrameRefused
from broker_fl.wire.fields import (
    MAX_LISTED,
    Count,
    Digest,
    Identifier,
    Listed,
    Metrics,
    Name,
    Parameters,
    Seconds,
    Shares,
    Text,
    listed,
)
from broker_fl.wire.frames import unpack
from broker_fl.wire.job import JobSpec
from broker_fl.wire.messages import (
    GroupColumns,
    Message,
    Timings,
    VersionRef,
    concrete,
    first_problem,
    parse,
)

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
JobEnd = Literal["done", "stopped", "failed"]
Missed = Literal["failed", "late", "refused", "cancelled"]
"""What becomes of a task of which nothing comes; cancelled: it was not needed any more."""


class Event(Message):
    """Base of all events."""

    job: Identifier
    sequence: Count = 0
    """1, 2, … within the job; given when the event is stored."""
    time_s: Seconds = 0.0

    def stamped(self, sequence: int, time_s: float) -> Self:
        """The same event with its number and time."""
        return self.model_copy(update={"sequence": sequence, "time_s": time_s})

    def to_json(self) -> str:
        """One line of a JSONL log; NaN and infinity are written as null."""
        return f'{{"kind":"{self.KIND}",{self.model_dump_json()[1:]}'


def _counted(fields: Any, listed: str) -> Any:
    """Fill in ``num_learners`` before the list of them is cut."""
    if isinstance(fields, dict) and isinstance(ids := fields.get(listed), tuple | list):
        return {"num_learners": len(ids), **fields}
    return fields


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
        return _counted(fields, "cohort")


class RoundRetried(Event):
    """The round missed its quorum and goes on with replacements, or with the same learners once more."""

    KIND: ClassVar[str] = "round_retried"
    round: Count
    attempt: Count
    reason: Text
    replacements: Listed = ()


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
        return _counted(fields, "learners")


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
        return _counted(fields, "contributors")


class LearnerExcluded(Event):
    """A learner whose tasks came to nothing so often in a row is left out for a while."""

    KIND: ClassVar[str] = "learner_excluded"
    round: Count
    learner: Identifier
    num_failures: Count
    reason: Text = ""
    """Of the last failure."""


class LearnerJoined(Event):
    """A learner is there (again)."""

    KIND: ClassVar[str] = "learner_joined"
    learner: Identifier
    attributes: Parameters = Field(default={})


class LearnerLeft(Event):
    """A learner said that it goes."""

    KIND: ClassVar[str] = "learner_left"
    learner: Identifier
    reason: Text = ""


class LearnerLost(Event):
    """A learner has not been heard of for too long."""

    KIND: ClassVar[str] = "learner_lost"
    learner: Identifier
    silent_s: Seconds


class GroupEvent(Event):
    """Base of events of several members of a group at once."""

    group: Identifier
    learners: Listed = ()
    num_learners: Count = 0
    """How many; ``learners`` names at most ``MAX_LISTED`` of them."""

    @model_validator(mode="before")
    @classmethod
    def _count(cls, fields: Any) -> Any:
        return _counted(fields, "learners")


class GroupJoined(GroupEvent):
    """A group is there (again), with these learners."""

    KIND: ClassVar[str] = "group_joined"
    attributes: Parameters = Field(default={})
    """Of each of them."""


class GroupLeft(GroupEvent):
    """Learners are no longer there: their group said that it goes, or that it goes on without them."""

    KIND: ClassVar[str] = "group_left"
    reason: Text = ""


class GroupLost(GroupEvent):
    """A group has not been heard of for too long."""

    KIND: ClassVar[str] = "group_lost"
    silent_s: Seconds


class GroupAccepted(Event):
    """A group has task and model, whole, for the learners to whom it was sent."""

    KIND: ClassVar[str] = "group_accepted"
    round: Count
    group: Identifier
    num_learners: Count
    receive_s: Seconds = 0.0


class GroupFinished(GroupColumns, Event):
    """Results of a group's learners arrived; the sum of their updates is on the way or was not asked for."""

    KIND: ClassVar[str] = "group_finished"
    round: Count


class GroupFolded(Event):
    """The sum of a group's updates was whole and usable, and is part of the round's sum."""

    KIND: ClassVar[str] = "group_folded"
    round: Count
    group: Identifier
    share: Identifier
    """As in ``group_finished``."""
    num_learners: Count
    """Whose updates are in it."""
    weight: Weight
    """Of all of them together."""
    num_bytes: Count
    num_messages: Count
    upload_s: Seconds = 0.0
    fold_s: Seconds = 0.0


class GroupMissed(GroupEvent):
    """Tasks of a group's learners came to nothing, for one kind of reason."""

    KIND: ClassVar[str] = "group_missed"
    round: Count
    outcome: Missed
    reasons: Annotated[tuple[Text, ...], Field(max_length=MAX_LISTED), BeforeValidator(listed)] = ()
    """One for each of ``learners``, or one for all."""


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


EVENT_KINDS: dict[str, type[Message]] = concrete(Event)
"""Every kind of event by name."""


class UnknownEvent(Event):
    """An event of a kind that is not known here, from a newer controller."""

    KIND: ClassVar[str] = "unknown"
    kind: Name


def decode_event(body: bytes) -> Event:
    """Read one packed event; one of an unknown kind is an ``UnknownEvent``.

    Raises:
        FrameRefused: no valid frame, or not an event.
    """
    fields, payload = unpack(body)
    if fields["kind"] not in EVENT_KINDS and payload is None and "sequence" in fields:
        fields = {name: fields.get(name) for name in ("kind", "job", "sequence", "time_s")}
        return cast("Event", parse(fields, {fields["kind"]: UnknownEvent}))
    event = parse(fields, EVENT_KINDS)
    if payload is not None or not isinstance(event, Event):
        raise FrameRefused(f"{event.KIND!r} is not an event")
    return event


def event_from_json(line: str) -> Event:
    """Read one line of a JSONL log.

    Raises:
        FrameRefused: no valid JSON, or not an event.
    """
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FrameRefused(f"not a line of JSON: {str(error)[:200]}") from error
    if not isinstance(fields, dict) or (cls := EVENT_KINDS.get(str(fields.get("kind")))) is None:
        raise FrameRefused("the line is not an event")
    try:
        event = cls.model_validate_json(line)
    except ValidationError as error:
        raise FrameRefused(f"a {cls.KIND!r} event with a wrong field {first_problem(error)}") from error
    if not isinstance(event, Event):
        raise FrameRefused(f"{event.KIND!r} is not an event")
    return event
