"""What goes into the job's state machine, and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker_fl.coordination.cohort import Workload
from broker_fl.coordination.shares import Share
from broker_fl.wire.events import Event
from broker_fl.wire.messages import Result, TaskRef, TaskStatus

# ---------------------------------------------------------------- in


@dataclass(frozen=True, slots=True)
class LearnerUp:
    """A learner joined, or joined again; ``tasks`` is what it holds."""

    learner: str
    tasks: tuple[TaskStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class LearnerDown:
    """A learner left, or is lost."""

    learner: str
    reason: str


@dataclass(frozen=True, slots=True)
class LearnerReported:
    """A heartbeat; ``receiving`` is whether its task is on the way out, or parts of its update have arrived
    of late.
    """

    learner: str
    tasks: tuple[TaskStatus, ...]
    receiving: bool = False


@dataclass(frozen=True, slots=True)
class TaskWasAccepted:
    """A learner has task and model."""

    learner: str
    task: TaskRef
    receive_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TaskHasFailed:
    """A learner could not do it."""

    learner: str
    task: TaskRef
    reason: str


@dataclass(frozen=True, slots=True)
class ResultArrived:
    """A learner's result is there; its update may still be on the way."""

    result: Result


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateWasFolded:
    """A learner's update is in the sum."""

    learner: str
    task: TaskRef
    weight: float
    num_bytes: int = 0
    num_messages: int = 0
    upload_s: float = 0.0
    fold_s: float = 0.0


@dataclass(frozen=True, slots=True)
class UpdateWasRefused:
    """A learner's update cannot be folded; the sum is as it was."""

    learner: str
    task: TaskRef
    reason: str


@dataclass(frozen=True, slots=True)
class GroupUp:
    """A group joined, or joined again, with all of its members; ``tasks`` is what it holds."""

    group: str
    tasks: tuple[TaskStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupDown:
    """Members of a group are gone: it left, is lost, or goes on without them."""

    group: str
    learners: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class GroupReported:
    """A group's heartbeat; ``receiving`` as of a learner's."""

    group: str
    tasks: tuple[TaskStatus, ...]
    receiving: bool = False


@dataclass(frozen=True, slots=True)
class GroupHasAccepted:
    """A group has task and model."""

    group: str
    task: TaskRef
    receive_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GroupHasFailed:
    """A group could not do a task for any of its members."""

    group: str
    task: TaskRef
    reason: str


@dataclass(frozen=True, slots=True)
class ShareArrived:
    """Results of a group's learners are there, all pages; the sum of their updates may still be on the
    way.
    """

    share: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareWasFolded:
    """The sum of a share is in the round's sum."""

    share: Share
    weight: float
    num_bytes: int = 0
    num_messages: int = 0
    upload_s: float = 0.0
    fold_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ShareWasRefused:
    """The sum of a share cannot be folded; the round's sum is as it was."""

    share: Share
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionWasStored:
    """What ``Commit`` asked for is durable."""

    version: int
    digest: str
    total_weight: float
    used: Mapping[str, float] | None = None
    """``Combined.used``."""
    aggregate_s: float = 0.0
    store_s: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """The updates could not be combined; the sum is gone."""

    reason: str


@dataclass(frozen=True, slots=True)
class CannotGoOn:
    """The job's own code (its rule, its selector) failed; it would fail again."""

    reason: str


@dataclass(frozen=True, slots=True)
class StopWanted:
    """A driver wants the job to end."""

    reason: str


@dataclass(frozen=True, slots=True)
class PauseWanted:
    """A driver wants no new round to begin."""

    reason: str


@dataclass(frozen=True, slots=True)
class ResumeWanted:
    """A driver lets the job go on: to its end, or for so many versions."""

    versions: int | None = None


@dataclass(frozen=True, slots=True)
class ControllerRestarted:
    """A new controller read the state from the store: sums are lost, learners are about to join again."""

    epoch: int


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing but time."""


Signal = (
    LearnerUp
    | LearnerDown
    | LearnerReported
    | TaskWasAccepted
    | TaskHasFailed
    | ResultArrived
    | UpdateWasFolded
    | UpdateWasRefused
    | GroupUp
    | GroupDown
    | GroupReported
    | GroupHasAccepted
    | GroupHasFailed
    | ShareArrived
    | ShareWasFolded
    | ShareWasRefused
    | VersionWasStored
    | CommitFailed
    | CannotGoOn
    | StopWanted
    | PauseWanted
    | ResumeWanted
    | ControllerRestarted
    | TimePassed
)

# ---------------------------------------------------------------- out


@dataclass(frozen=True, slots=True)
class Emit:
    """Number, store and publish an event."""

    event: Event


@dataclass(frozen=True, slots=True)
class Save:
    """Store the job's state before anything that follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendTasks:
    """Send task and model version to these learners; ``workload`` adds to the job's task parameters."""

    task: TaskRef
    learners: tuple[str, ...]
    """With a mailbox of their own."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Group → those of its members that are meant."""
    version: int
    train: bool
    upload_on_request: bool
    deadline_s: float | None
    cohort: int = 0
    """Learners whose updates make one version, as it looks now."""
    min_cohort: int = 0
    """With how few of them it may be made."""
    workload: Workload = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestUpload:
    """Ask a learner for the update that it holds, or a group for its sums."""

    learner: str
    task: TaskRef


@dataclass(frozen=True, slots=True)
class CancelTasks:
    """Tell learners and groups that their task is no longer wanted."""

    task: TaskRef
    learners: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class StartSum:
    """Forget what was folded, and begin a new sum for this round."""

    round: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Store the sum as the next version, with the job's state; ``VersionWasStored`` answers."""

    version: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The job has ended: store its state, forget its sum."""


Action = Emit | Save | SendTasks | RequestUpload | CancelTasks | StartSum | Commit | Finish
Actions = list[Action]
