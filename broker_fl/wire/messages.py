"""The kinds of message, one frozen class each. The JSON Schemas in ``schemas/`` are generated from these
classes.

Unknown fields are ignored and new fields have defaults, so that old and new software understand each other;
an unknown kind or protocol version is refused by name. Events are in ``events.py``, job settings in
``job.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator

from broker_fl.errors import FrameRefused
from broker_fl.model import ModelError, ModelSpec
from broker_fl.wire.encodings import encoding as encoding_named
from broker_fl.wire.fields import (
    MAX_GROUP,
    MAX_INT,
    MAX_METRICS,
    MAX_PARAMETERS,
    Checksum,
    ChunkBytes,
    Count,
    Digest,
    EncodingName,
    Form,
    Identifier,
    MemberIds,
    Metric,
    Metrics,
    Name,
    Parameter,
    Parameters,
    Positive,
    Seconds,
    SpecRows,
    TensorNames,
    Text,
)
from broker_fl.wire.frames import brief, pack, unpack
from broker_fl.wire.job import JobSpec

UpdateForm = Literal["values", "changes", "sum"]
"""``sum`` is a group's: the weighted sum of its learners' values, un-normalised (``Task.learners``)."""
Control = Literal["none", "change", "lost"]
Weighting = Literal["examples", "steps", "equal"]
Generation = Annotated[int, Field(ge=0, le=255)]


class Message(BaseModel):
    """Base of all kinds; a subclass names its kind once, as the class variable ``KIND``."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    KIND: ClassVar[str]

    def pack(self) -> bytes:
        """The message as the body of an AMQP message."""
        return pack(self.KIND, self.model_dump())


class Part(BaseModel):
    """Base of what messages are made of."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class TaskRef(Part):
    """Which task: the same three values come back with everything that answers it."""

    job: Identifier
    round: Count
    attempt: Count = 0

    def __str__(self) -> str:
        return f"{self.job}/{self.round}/{self.attempt}"


class VersionRef(Part):
    """A stored model version; None is the job's newest."""

    job: Identifier
    version: Count | None = None


class ModelManifest(Part):
    """Announces the chunks of a model: what they are when put together."""

    version: Count
    spec: SpecRows
    """The tensors in order: name, element type, shape."""
    spec_digest: Digest = ""
    """Identifies ``spec``; the learner sends it back with its update."""
    digest: Digest = ""
    """Identifies the version: its spec and its values before encoding."""
    encoding: EncodingName = "raw"
    num_bytes: Count
    """Bytes on the wire: of the encoded buffer, not of the model in memory."""
    chunk_bytes: ChunkBytes

    @classmethod
    def of(cls, spec: ModelSpec, *, version: int, digest: str, encoding: str, chunk_bytes: int) -> Self:
        """Announce a model that looks like ``spec``."""
        return cls(
            version=version,
            spec=spec.to_wire(),
            spec_digest=spec.digest,
            digest=digest,
            encoding=encoding,
            num_bytes=encoding_named(encoding).num_bytes(spec),
            chunk_bytes=chunk_bytes,
        )

    def model_spec(self, max_bytes: int, kept: Collection[str] = ()) -> ModelSpec:
        """The spec, once all else that the manifest says agrees with it; nothing is allocated before that.

        Args:
            max_bytes: the largest model that is taken here, in memory; encoded it is never larger.
            kept: tensors that a coarse encoding leaves as they are.

        Raises:
            FrameRefused: no usable spec, an encoding that is unknown or not for models, a size that does not
            fit, or one above the limit.
        """
        if not encoding_named(self.encoding).of_versions:
            raise FrameRefused(f"a model is not sent as {self.encoding!r}, which is for changes only")
        try:
            spec = ModelSpec.from_wire(self.spec)
        except ModelError as error:
            raise FrameRefused(f"the manifest describes no model: {error}") from error
        if spec.num_bytes > max_bytes:
            raise FrameRefused(
                f"the model has {brief(spec.num_bytes)} bytes; at most {max_bytes} are taken here"
            )
        if self.spec_digest and self.spec_digest != spec.digest:
            raise FrameRefused(f"the spec's digest is {spec.digest}, the manifest says {self.spec_digest}")
        _check_num_bytes(self.num_bytes, self.encoding, spec, kept)
        return spec


class UpdateManifest(Part):
    """Announces the chunks of an update."""

    spec_digest: Digest = ""
    """As in the task's manifest."""
    form: UpdateForm = "values"
    control: Control = "none"
    """What the tensors behind the model's are, where the task has ``control``: the change of the learner's
    control variate; or zeros, because it has lost its own.
    """
    encoding: EncodingName = "raw"
    num_bytes: Count
    """Bytes on the wire, of the encoded buffer."""
    chunk_bytes: ChunkBytes

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        *,
        encoding: str,
        chunk_bytes: int,
        form: UpdateForm = "values",
        control: Control = "none",
    ) -> Self:
        """Announce an update that looks like ``spec``."""
        return cls(
            spec_digest=spec.digest,
            form=form,
            control=control,
            encoding=encoding,
            num_bytes=encoding_named(encoding).num_bytes(spec),
            chunk_bytes=chunk_bytes,
        )

    def check(self, spec: ModelSpec) -> None:
        """Hold the manifest against the spec of the version that the learner was given.

        Raises:
            FrameRefused: it is of another model, or its size does not fit.
        """
        if self.spec_digest and self.spec_digest != spec.digest:
            raise FrameRefused(f"the update is of a model with digest {self.spec_digest}, not {spec.digest}")
        _check_num_bytes(self.num_bytes, self.encoding, spec)


def _check_num_bytes(num_bytes: int, encoding: str, spec: ModelSpec, kept: Collection[str] = ()) -> None:
    expected = encoding_named(encoding, kept).num_bytes(spec)
    if num_bytes != expected:
        raise FrameRefused(
            f"the manifest announces {num_bytes} bytes; as {encoding!r} the model has {expected}"
        )


class Timings(Part):
    """Where a learner's time went, in seconds."""

    receive_s: Seconds = 0.0
    evaluate_s: Seconds = 0.0
    train_s: Seconds = 0.0
    queue_s: Seconds = 0.0


# ---------------------------------------------------------------- learner → controller, exchange `reports`


class TaskStatus(Part):
    """What a learner holds of a task, in its heartbeats; the controller re-sends what is missing."""

    task: TaskRef
    phase: Literal["receiving", "queued", "evaluating", "training", "finished"]
    progress: Annotated[float, Field(ge=0, le=1)] = 0.0
    num_learners: Count = 0
    """Of a group's task: its learners that the group has it for."""


TaskStatuses = Annotated[tuple[TaskStatus, ...], Field(max_length=100), FailFast()]


class Join(Message):
    """A learner is there, again or for the first time, and takes tasks."""

    KIND: ClassVar[str] = "join"
    learner: Identifier
    session: Identifier
    """Drawn anew at each start of the learner."""
    attributes: Parameters = {}
    software: Annotated[str, Field(max_length=128)] = ""
    tasks: TaskStatuses = ()
    compact: bool = False
    """Whether the learner takes a task inside of its model's only chunk (``ModelChunk.task``)."""
    mailbox: Generation = 0
    """Which of its mailboxes it reads: 0 is the first; another one, while that is on a node that is down."""


class Leave(Message):
    """A learner goes; its open tasks will not be finished."""

    KIND: ClassVar[str] = "leave"
    learner: Identifier
    session: Identifier
    reason: Text = ""


class Heartbeat(Message):
    """A learner is still there, and this is what it holds."""

    KIND: ClassVar[str] = "heartbeat"
    learner: Identifier
    session: Identifier
    tasks: TaskStatuses = ()
    mailbox: Generation = 0
    """As in ``join``."""


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


class GroupJoin(Message):
    """A host of many learners is there, again or for the first time, and takes tasks for all of them.

    It is one party: a mailbox, a session and heartbeats as a learner has them, under the name ``group``. Its
    members come in pages; it has joined when all of them are there.
    """

    KIND: ClassVar[str] = "group_join"
    group: Identifier
    session: Identifier
    """Drawn anew at each start of the host."""
    members: MemberIds
    """Ids of learners, those of this page. At most 50,000 in all pages."""
    attributes: Parameters = {}
    """Of each member."""
    columns: Annotated[dict[Name, tuple[Parameter, ...]], Field(max_length=MAX_PARAMETERS)] = {}
    """Attributes in which members differ, one value for each member of this page; nil where one has none."""
    page: Count = 0
    num_pages: Annotated[int, Field(ge=1, le=MAX_GROUP)] = 1
    software: Annotated[str, Field(max_length=128)] = ""
    tasks: TaskStatuses = ()
    mailbox: Generation = 0
    """As in ``join``."""

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        for name, values in self.columns.items():
            if len(values) != len(self.members):
                raise ValueError(f"column {name!r} has {len(values)} values for {len(self.members)} members")
        if self.page >= self.num_pages:
            raise ValueError(f"page {self.page} of {self.num_pages}: pages are counted from 0")
        return self


# ---------------------------------------------------------------- learner → inbox, exchange `updates`


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
    metrics: Metrics = {}
    """Of training."""
    evaluation: Metrics = {}
    """Of the version that the task brought, before training."""
    evaluation_examples: Count = 0
    timings: Timings = Timings()
    peak_memory_bytes: Count = 0
    """Most that the learner's process has had in memory so far; 0 where that is not known."""
    update: UpdateManifest | None = None


Counts = Annotated[tuple[Count, ...], FailFast()]
Durations = Annotated[tuple[Seconds, ...], FailFast()]
MetricColumns = Annotated[
    dict[Name, Annotated[tuple[Metric, ...], FailFast()]], Field(max_length=MAX_METRICS)
]


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
    metrics: MetricColumns = {}
    evaluation: MetricColumns = {}
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
    """As in the result: chunks of two trainings for one task are never put together."""
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


# ---------------------------------------------------------------- controller → learner, exchange `tasks`


class Welcome(Message):
    """Answers ``join``."""

    KIND: ClassVar[str] = "welcome"
    federation: Identifier
    heartbeat_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """How often the controller wants to hear from the learner."""


class Rejoin(Message):
    """Everybody is asked to send ``join``: the controller does not know who is there."""

    KIND: ClassVar[str] = "rejoin"


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
    parameters: Parameters = {}
    encoding: EncodingName = "raw"
    """Of the update that is asked for."""
    form: Form = "values"
    """Of the update that is asked for; a learner that cannot do it must refuse the task."""
    buffers: TensorNames = ()
    """Of the model's float tensors those that have no change, where ``form`` is ``changes``: of these the
    update holds the values. Coarse encodings leave them as they are, in the update and in the model.
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


# ---------------------------------------------------------------- driver → controller, exchange `control`


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


# ---------------------------------------------------------------- controller → driver, exchange `tasks`


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
    metrics: Metrics = {}


class Versions(Reply):
    """Answers ``list_versions``, oldest first; more follow unless ``last``."""

    KIND: ClassVar[str] = "versions"
    versions: Annotated[tuple[VersionSummary, ...], FailFast()]
    last: bool = True


class LearnerSummary(Part):
    """One learner that is there."""

    learner: Identifier
    attributes: Parameters = {}
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


class EventBatch(Message):
    """Events of one job as they happen, packed, in order; exchange ``events``, key ``<job>``."""

    KIND: ClassVar[str] = "event_batch"
    job: Identifier
    events: Annotated[tuple[bytes, ...], FailFast()]


class DeadLetter(Message):
    """Header of a frame whose payload (cut off at ``MAX_BODY_BYTES``) is a body that was refused, and why."""

    KIND: ClassVar[str] = "dead_letter"
    source: Text
    """The queue it came from."""
    routing_key: Text
    reason: Text
    time_s: Seconds
    user: Text = ""
    """The account that sent it, by the broker's word; empty: the broker did not say."""
    needs_account: bool = False
    """Whether the controller that refused it hears nobody but enrolled accounts."""


class ModelFollows(Reply):
    """Answers ``read_model``; the chunks come next."""

    KIND: ClassVar[str] = "model_follows"
    job: Identifier
    model: ModelManifest


def concrete(base: type[Message]) -> dict[str, type[Message]]:
    """The kinds below ``base`` by name: its subclasses, however deep, that name a ``KIND`` of their own."""
    found: dict[str, type[Message]] = {}
    for cls in base.__subclasses__():
        if "KIND" in vars(cls):
            found[cls.KIND] = cls
        found |= concrete(cls)
    return found


KINDS: dict[str, type[Message]] = concrete(Message)
"""Every kind that is understood, by name; events are not messages to a role and have a table of their own."""

WITH_PAYLOAD = (UpdateChunk, ModelChunk, DeadLetter)


def decode(body: bytes) -> tuple[Message, memoryview | None]:
    """Read one frame: the message, and the payload if its kind has one (a view of ``body``).

    Raises:
        FrameRefused: no valid frame, an unknown kind, or a field that is missing or not allowed; names kind
        and field.
    """
    fields, payload = unpack(body)
    message = parse(fields, KINDS)
    if isinstance(message, WITH_PAYLOAD) is (payload is None):
        raise FrameRefused(f"a {message.KIND!r} frame {'without' if payload is None else 'with'} a payload")
    return message, payload


def parse(fields: dict[str, Any], kinds: Mapping[str, type[Message]]) -> Message:
    """Make the message of a frame's header; ``kinds`` are those that are understood.

    Raises:
        FrameRefused: the kind is unknown, or a field is missing or not allowed.
    """
    kind = fields["kind"]
    if (cls := kinds.get(kind)) is None:
        raise FrameRefused(f"messages of kind {brief(kind)} are not known here")
    try:
        return cls.model_validate(fields)
    except ValidationError as error:
        raise FrameRefused(f"a {kind!r} message with a wrong field {first_problem(error)}") from error


def broken_result(body: bytes) -> tuple[str, TaskRef] | None:
    """Learner (or group) and task of a ``result`` (or ``group_result``) whose other fields are wrong; None if
    it is no such thing. A result inside of a chunk is one, too.
    """
    try:
        fields, _ = unpack(body)
        if fields["kind"] == UpdateChunk.KIND and isinstance(fields.get("result"), dict):
            fields = {**fields["result"], "kind": Result.KIND}
        names = {Result.KIND: "learner", GroupResult.KIND: "group"}
        if (name := names.get(fields["kind"])) is None:
            return None
        result = Result.model_validate({"learner": fields.get(name), "task": fields.get("task")})
    except (FrameRefused, ValidationError):
        return None
    return result.learner, result.task


def first_problem(error: ValidationError) -> str:
    """Where and what the first problem is, in a few words, whatever the sender wrote."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part)[:100] for part in first["loc"][:10])
    return f"{where!r}: {first['msg'][:300]}"
