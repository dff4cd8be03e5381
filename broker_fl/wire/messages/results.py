"""What comes of a task: reports (exchange ``reports``), results and updates (exchange ``updates``, inbox)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import FailFast, Field, model_validator

from broker_fl.wire.fields import (
    MAX_METRICS,
    Checksum,
    Count,
    EncodingName,
    Identifier,
    MemberIds,
    Metric,
    Metrics,
    Name,
    Positive,
    Seconds,
    Text,
)
from broker_fl.wire.messages.manifests import UpdateManifest
from broker_fl.wire.messages.parts import Message, TaskRef, Timings

Counts = Annotated[tuple[Count, ...], FailFast()]
Durations = Annotated[tuple[Seconds, ...], FailFast()]
MetricColumns = Annotated[
    dict[Name, Annotated[tuple[Metric, ...], FailFast()]], Field(max_length=MAX_METRICS)
]


class Accepted(Message):
    """Task and model arrived whole; the learner works on it."""

    KIND: ClassVar[str] = "accepted"
    learner: Identifier
    task: TaskRef
    receive_s: Seconds = 0.0


class Failed(Message):
    """The task could not be done; no update will come."""

    KIND: ClassVar[str] = "failed"
    learner: Identifier
    task: TaskRef
    reason: Text


class Result(Message):
    """A task is done. ``update`` is None where the task asked for an evaluation only."""

    KIND: ClassVar[str] = "result"
    learner: Identifier
    task: TaskRef
    session: Identifier | None = None
    """The learner's, as in ``join``: one that was started anew has trained anew."""
    num_examples: Count = 0
    num_steps: Count = 0
    num_epochs: Seconds = 0.0
    """Passes over the learner's data that were done, parts of one included; 0 where nothing counts them."""
    metrics: Metrics = Field(default={})
    """Of training."""
    evaluation: Metrics = Field(default={})
    """Of the version that the task brought, before training."""
    evaluation_examples: Count = 0
    timings: Timings = Timings()
    peak_memory_bytes: Count = 0
    """Most that the learner's process has had in memory so far; 0 where that is not known."""
    update: UpdateManifest | None = None


class GroupColumns(Message):
    """What a group's learners did, in columns: the fields of ``Result``, for many.

    A column has a value for each of ``learners``, in their order; one value, if it is the same for all; or
    none, if it is 0 for all. A metric that a learner does not report is NaN.
    """

    group: Identifier
    share: Identifier
    """Drawn by the group: of the learners whose updates are in one sum. A task may have several."""
    page: Count = 0
    num_pages: Positive = 1
    learners: MemberIds = ()
    """That have done the task; those of this page."""
    num_examples: Counts = ()
    num_steps: Counts = ()
    num_epochs: Durations = ()
    metrics: MetricColumns = Field(default={})
    evaluation: MetricColumns = Field(default={})
    evaluation_examples: Counts = ()
    queue_s: Durations = ()
    evaluate_s: Durations = ()
    train_s: Durations = ()
    receive_s: Seconds = 0.0
    """Of the model, by the group."""
    peak_memory_bytes: Count = 0

    COLUMNS: ClassVar = (
        "num_examples",
        "num_steps",
        "num_epochs",
        "evaluation_examples",
        "queue_s",
        "evaluate_s",
        "train_s",
    )

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        columns = {name: getattr(self, name) for name in self.COLUMNS}
        columns |= {f"metrics.{name}": values for name, values in self.metrics.items()}
        columns |= {f"evaluation.{name}": values for name, values in self.evaluation.items()}
        for name, values in columns.items():
            if len(values) not in (0, 1, len(self.learners)):
                raise ValueError(
                    f"column {name!r} has {len(values)} values for {len(self.learners)} learners"
                )
        if self.page >= self.num_pages:
            raise ValueError(f"page {self.page} of {self.num_pages}: pages are counted from 0")
        return self


class GroupResult(GroupColumns):
    """Learners of a group are done with a task, or could not do it.

    If ``update`` is there, it is the one sum of the updates of all ``learners`` of all pages.
    """

    KIND: ClassVar[str] = "group_result"
    task: TaskRef
    failed: MemberIds = ()
    """Learners that could not do it; no update of theirs is in the sum."""
    reasons: Annotated[tuple[Text, ...], FailFast()] = ()
    """Of each of ``failed``."""
    update: UpdateManifest | None = None

    @model_validator(mode="after")
    def _reasons_fit(self) -> Self:
        if len(self.reasons) != len(self.failed):
            raise ValueError(f"{len(self.reasons)} reasons for {len(self.failed)} learners that failed")
        return self


class UpdateChunk(Message):
    """Header of a chunk frame that carries a part of an update."""

    KIND: ClassVar[str] = "update_chunk"
    learner: Identifier
    """Or the group."""
    task: TaskRef
    session: Identifier | None = None
    """As in the result: chunks of two trainings for one task are never put together. A learner's update of
    more than one chunk is refused without it.
    """
    share: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{0,64}$")] = ""
    """Of a group: which of its sums."""
    index: Count
    count: Positive
    encoding: EncodingName = "raw"
    checksum: Checksum
    result: Result | None = None
    """The result that the update belongs to, where the update is one chunk and the task is ``compact``: the
    chunk then stands for both messages. Not of groups.
    """
