"""What happens to a job, step by step: one frozen class per kind of event.

The controller numbers a job's events from 1, stores them and publishes them; the live view, the JSONL log,
the report and the driver all read these. ``time_s`` is Unix time; durations end in ``_s`` and are seconds.
"""

from broker_fl.wire.events.base import Event, Weight
from broker_fl.wire.events.decoding import EVENT_KINDS, UnknownEvent, decode_event, event_from_json
from broker_fl.wire.events.groups import (
    GroupAccepted,
    GroupEvent,
    GroupFinished,
    GroupFolded,
    GroupJoined,
    GroupLeft,
    GroupLost,
    GroupMissed,
    Missed,
)
from broker_fl.wire.events.jobs import (
    JobDeleted,
    JobEnd,
    JobFinished,
    JobPaused,
    JobResumed,
    JobSubmitted,
    JobUnpaused,
    JobWaiting,
)
from broker_fl.wire.events.learners import LearnerExcluded, LearnerJoined, LearnerLeft, LearnerLost
from broker_fl.wire.events.rounds import RoundRetried, RoundStarted, VersionCommitted, VersionEvaluated
from broker_fl.wire.events.tasks import (
    TaskAccepted,
    TaskFailed,
    TaskFinished,
    TaskLate,
    TaskSent,
    TransferProgress,
    UpdateFolded,
    UpdateRefused,
)

__all__ = [
    "EVENT_KINDS",
    "Event",
    "GroupAccepted",
    "GroupEvent",
    "GroupFinished",
    "GroupFolded",
    "GroupJoined",
    "GroupLeft",
    "GroupLost",
    "GroupMissed",
    "JobDeleted",
    "JobEnd",
    "JobFinished",
    "JobPaused",
    "JobResumed",
    "JobSubmitted",
    "JobUnpaused",
    "JobWaiting",
    "LearnerExcluded",
    "LearnerJoined",
    "LearnerLeft",
    "LearnerLost",
    "Missed",
    "RoundRetried",
    "RoundStarted",
    "TaskAccepted",
    "TaskFailed",
    "TaskFinished",
    "TaskLate",
    "TaskSent",
    "TransferProgress",
    "UnknownEvent",
    "UpdateFolded",
    "UpdateRefused",
    "VersionCommitted",
    "VersionEvaluated",
    "Weight",
    "decode_event",
    "event_from_json",
]
