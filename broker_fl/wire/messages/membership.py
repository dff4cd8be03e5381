"""Who is there: learners and groups that come, stay and go, and the controller's word to them.

Learners and groups speak to exchange ``reports``, the controller to ``tasks``.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from broker_fl.wire.fields import (
    MAX_GROUP,
    MAX_PARAMETERS,
    Count,
    Identifier,
    MemberIds,
    Name,
    Parameter,
    Parameters,
    Text,
)
from broker_fl.wire.messages.parts import Generation, Message, TaskStatuses


class Join(Message):
    """A learner is there, again or for the first time, and takes tasks."""

    KIND: ClassVar[str] = "join"
    learner: Identifier
    session: Identifier
    """Drawn anew at each start of the learner."""
    attributes: Parameters = Field(default={})
    software: Annotated[str, Field(max_length=128)] = ""
    tasks: TaskStatuses = ()
    compact: bool = False
    """Whether the learner takes a task inside of its model's only chunk (``ModelChunk.task``)."""
    mailbox: Generation = 0
    """Which of its mailboxes it reads: 0 is the first; another one, while that is on a node that is down."""


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
    attributes: Parameters = Field(default={})
    """Of each member."""
    columns: Annotated[dict[Name, tuple[Parameter, ...]], Field(max_length=MAX_PARAMETERS)] = Field(
        default={}
    )
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


class Welcome(Message):
    """Answers ``join``."""

    KIND: ClassVar[str] = "welcome"
    federation: Identifier
    heartbeat_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """How often the controller wants to hear from the learner."""


class Rejoin(Message):
    """Everybody is asked to send ``join``: the controller does not know who is there."""

    KIND: ClassVar[str] = "rejoin"
