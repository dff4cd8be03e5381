"""What happens to many members of a group at once."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from broker_fl.wire.events.base import Event, Weight, counted
from broker_fl.wire.fields import MAX_LISTED, Count, Identifier, Listed, Parameters, Seconds, Text, listed
from broker_fl.wire.messages import GroupColumns

Missed = Literal["failed", "late", "refused", "cancelled"]
"""What becomes of a task of which nothing comes; cancelled: it was not needed any more."""


class GroupEvent(Event):
    """Base of events of several members of a group at once."""

    group: Identifier
    learners: Listed = ()
    num_learners: Count = 0
    """How many; ``learners`` names at most ``MAX_LISTED`` of them."""

    @model_validator(mode="before")
    @classmethod
    def _count(cls, fields: Any) -> Any:
        return counted(fields, "learners")


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
