"""What the controller tells learners to do (exchange ``tasks``)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from broker_fl.wire.fields import (
    MAX_INT,
    Checksum,
    ChunkBytes,
    Count,
    EncodingName,
    Form,
    Identifier,
    MemberIds,
    Parameters,
    Positive,
    Seconds,
    TensorNames,
    Text,
)
from broker_fl.wire.messages.manifests import ModelManifest
from broker_fl.wire.messages.parts import Message, Part, TaskRef

Weighting = Literal["examples", "steps", "equal"]


class Terms(Part):
    """What job a task is of, and what becomes of its update: a site may go by that whether it takes it."""

    name: Annotated[str, Field(max_length=64)] = ""
    """The job's name."""
    driver: Annotated[str, Field(max_length=64)] = ""
    """Who submitted it."""
    rule: Annotated[str, Field(max_length=128)] = ""
    """Of aggregation: its name, or the class of one of the user's own."""
    protocol: Annotated[str, Field(max_length=64)] = ""
    cohort: Count = 0
    """Learners whose updates go into one version with this one's, this one among them, if all goes well."""
    min_cohort: Count = 0
    """The least number of them with whose updates the job lets a version be made, whoever is lost or fails;
    0: it is not said.
    """
    privacy: Annotated[str, Field(max_length=64)] = "none"
    """What the aggregation does so that nobody sees one update alone; nothing but ``none`` is there yet."""


class Task(Message):
    """Evaluate the announced version, then train from it; its chunks follow."""

    KIND: ClassVar[str] = "task"
    task: TaskRef
    model: ModelManifest
    train: bool = True
    evaluate: bool = True
    parameters: Parameters = Field(default={})
    encoding: EncodingName = "raw"
    """Of the update that is asked for."""
    form: Form = "values"
    """Of the update that is asked for; a learner that cannot do it must refuse the task."""
    buffers: TensorNames = ()
    """Of the model's float tensors those that have no change, where ``form`` is ``changes``: of these the
    update holds the values. Encodings leave them as they are, in the update and in the model. Empty where
    both are ``raw`` and ``form`` is ``values``.
    """
    learners: MemberIds = ()
    """Of a group's task: the members that shall do it. Its update is the sum ``Σ w x`` of theirs, in the form
    ``sum`` and never encoded.
    """
    weighting: Weighting = "examples"
    """Of a group's task: what the ``w`` in that sum are."""
    control: Annotated[int, Field(ge=-1, le=MAX_INT)] | None = None
    """SCAFFOLD: behind the model's tensors are those of the server's control variate, ``control/<name>`` for
    each float tensor, and the update is made so, too. This is the round that the learner's own variate is
    from; -1 if it is zero. None in other jobs. A learner that cannot do it must refuse the task.
    """
    residual: Annotated[int, Field(ge=-1, le=MAX_INT)] | None = None
    """Error feedback: the round of the learner's own last update that counted. What its encoding lost then
    is added to the change that is sent now; nothing is for -1. None where the encoding has no residual.
    """
    chunk_bytes: ChunkBytes = 1 << 20
    inbox: Identifier
    """Where result and update go: routing key ``<learner>.<inbox>``."""
    upload: Literal["at_once", "on_request"] = "at_once"
    deadline_s: Seconds | None = None
    """Seconds that the controller waits, counted from sending."""
    compact: bool = False
    """Whether the controller takes a result inside of its update's only chunk (``UpdateChunk.result``)."""
    terms: Terms | None = None
    """None: the controller does not say."""


class ModelChunk(Message):
    """Header of a chunk frame that carries a part of a model version."""

    KIND: ClassVar[str] = "model_chunk"
    job: Identifier
    version: Count
    index: Count
    count: Positive
    encoding: EncodingName = "raw"
    checksum: Checksum
    task: Task | None = None
    """The task that the model belongs to, where the model is one chunk and the learner said ``compact`` when
    it joined: the chunk then stands for both messages.
    """


class UploadRequest(Message):
    """Send (again) the chunks of the update that you hold for this task."""

    KIND: ClassVar[str] = "upload_request"
    task: TaskRef
    inbox: Identifier


class Cancel(Message):
    """Stop working on this task, and forget its result."""

    KIND: ClassVar[str] = "cancel"
    task: TaskRef
    reason: Text = ""
