"""What messages are made of: their base, and the parts that several kinds have."""

from __future__ import annotations

from types import ModuleType
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field

from broker_fl.wire.fields import Count, Identifier, Seconds
from broker_fl.wire.frames import pack


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


def kinds_in(base: type[Message], *modules: ModuleType) -> dict[str, type[Message]]:
    """The kinds that these modules define, by name: subclasses of ``base`` with a ``KIND`` of their own."""
    return {
        cls.KIND: cls
        for module in modules
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, base) and "KIND" in vars(cls)
    }


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


class Timings(Part):
    """Where a learner's time went, in seconds."""

    receive_s: Seconds = 0.0
    evaluate_s: Seconds = 0.0
    train_s: Seconds = 0.0
    queue_s: Seconds = 0.0


Generation = Annotated[int, Field(ge=0, le=15)]
"""Of a mailbox: below ``topology.MAX_GENERATIONS``, for the controller makes the one that is named here."""


class TaskStatus(Part):
    """What a learner holds of a task, in its heartbeats; the controller re-sends what is missing."""

    task: TaskRef
    phase: Literal["receiving", "queued", "evaluating", "training", "finished"]
    progress: Annotated[float, Field(ge=0, le=1)] = 0.0
    num_learners: Count = 0
    """Of a group's task: its learners that the group has it for."""


TaskStatuses = Annotated[tuple[TaskStatus, ...], Field(max_length=100), FailFast()]
